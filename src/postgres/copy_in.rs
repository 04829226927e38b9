//! Sends rows by COPY.

use crate::postgres::copy_rows::CopyRows;
use crate::postgres::failure::Failure;
use bytes::Bytes;
use futures_util::SinkExt;
use std::pin::{Pin, pin};
use tokio_postgres::{Client, CopyInSink, Error, Statement};

/// Maximum number of bytes in one COPY message. Postgres reads a whole message before it handles a row of it, so a message
/// must fit into the buffer of a socket, about 200 KB.
const COPY_BYTES: usize = 32 * 1024;

/// Prepares the statement that copies `rows`, or nothing if there are none. It is deallocated within its transaction.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn prepare(client: &Client, copy: &str, rows: &CopyRows) -> Result<Option<Statement>, Failure> {
    if rows.rows() == 0 { Ok(None) } else { Ok(Some(client.prepare(copy).await?)) }
}

/// Copies rows by their prepared statement.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn copy(client: &Client, statement: Option<Statement>, rows: CopyRows) -> Result<(), Failure> {
    let Some(statement) = statement else { return Ok(()) };
    let sent = rows.rows();
    let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    feed(sink.as_mut(), rows.finish()).await?;
    let copied = sink.finish().await?;
    if copied != sent {
        return Err(Failure::Transient(format!("{copied} of {sent} rows were copied").into()));
    }
    Ok(())
}

/// Sends a part of the rows, in messages that Postgres can read in one piece.
///
/// # Errors
/// The statement failed.
pub async fn feed(mut sink: Pin<&mut CopyInSink<Bytes>>, mut bytes: Bytes) -> Result<(), Error> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(COPY_BYTES));
        sink.feed(piece).await?;
    }
    Ok(())
}
