//! One transaction: rows and positions together.

use crate::log::block::StreamId;
use crate::log::ownership::Owner;
use crate::postgres::copy_rows::{self, CopyRows, Rows};
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::set_seen;
use crate::postgres::session::Database;
use crate::sale::ids::{SaleId, Seq};
use bytes::Bytes;
use futures_util::SinkExt;
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};
use tokio::try_join;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

/// Bytes of one COPY message.
const COPY_BYTES: usize = 256 * 1024;

/// Items of a catalogue made in one go: about 2 MiB of rows, while no others are shipped.
const CATALOGUE_ITEMS: i32 = 20_000;

/// How far one stream moves on in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionMove {
    /// The stream.
    pub stream: StreamId,
    /// Its position before, exactly.
    pub from: Seq,
    /// Its position after.
    pub to: Seq,
}

impl Database {
    /// Makes the next part of a catalogue. Returns whether there was one to make.
    ///
    /// # Errors
    /// Of the connection. The transaction may still be open then.
    pub async fn extend_catalogue(&self) -> Result<bool, Failure> {
        let Database { client, copy_items, .. } = self;
        client.batch_execute("begin").await?;
        let unfinished = "select sale_id, items, catalogued from sales where catalogued < items \
            order by sale_id limit 1 for update";
        let row = client.query_opt(unfinished, &[]).await?;
        if let Some(row) = &row {
            let (sale, items, catalogued): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
            let until = items.min(catalogued + CATALOGUE_ITEMS);
            let rows = copy_rows::catalogue(SaleId(sale as u32), catalogued as u32..until as u32);
            copy(client, copy_items, rows).await?;
            client.execute("update sales set catalogued = $2 where sale_id = $1", &[&sale, &until]).await?;
        }
        client.batch_execute("commit").await?;
        Ok(row.is_some())
    }

    /// Brings `rows` and the positions in one transaction: both, or neither. What need not wait for an answer is sent
    /// at once, in this order; the commit waits for all of them. `moves` are of one installation.
    ///
    /// # Errors
    /// After [`Failure::Passing`], whether it happened is unknown: connect anew and read the positions again. The
    /// transaction may still be open until then.
    pub async fn ship(&mut self, owner: Owner, rows: Rows, moves: &[PositionMove]) -> Result<(), Failure> {
        let Database { client, prepared, .. } = self;
        try_join!(
            biased;
            async { Ok(client.batch_execute("begin").await?) },
            // This row is the fence: whoever wants to take over waits for this transaction.
            set_seen(client, &self.set_seen, owner, "now"),
            // Before the rows: if another transaction of this run is still in doubt, this is where it shows. It moves
            // nothing unless it is in the transaction that the fence has written in: `begin` may have failed.
            move_on(client, &self.move_on, moves),
        )?;
        for sale in rows.sales.difference(prepared) {
            client.execute("select prepare_sale($1)", &[&i64::from(*sale)]).await?;
        }
        for (terms, unix_ms) in &rows.opened {
            let opened = UNIX_EPOCH + Duration::from_millis(*unix_ms);
            let values: [&(dyn ToSql + Sync); 4] =
                [&i64::from(terms.sale.0), &(terms.items as i32), &(terms.user_limit as i32), &opened];
            let insert = "insert into sales (sale_id, items, user_limit, opened_at) values ($1, $2, $3, $4) \
                on conflict (sale_id) do nothing";
            client.execute(insert, &values).await?;
        }
        try_join!(
            biased;
            copy(client, &self.copy_checkouts, rows.checkouts),
            copy(client, &self.copy_purchases, rows.purchases),
            copy(client, &self.copy_releases, rows.releases),
        )?;
        client.batch_execute("commit").await?;
        prepared.extend(&rows.sales);
        Ok(())
    }
}

async fn move_on(client: &Client, statement: &Statement, moves: &[PositionMove]) -> Result<(), Failure> {
    let Some(PositionMove { stream: StreamId { cluster, .. }, .. }) = moves.first() else { return Ok(()) };
    let epochs: Vec<_> = moves.iter().map(|moved| i64::from(moved.stream.epoch)).collect();
    let shards: Vec<_> = moves.iter().map(|moved| i32::from(moved.stream.shard)).collect();
    let logs: Vec<_> = moves.iter().map(|moved| moved.stream.log.name()).collect();
    let from: Vec<_> = moves.iter().map(|moved| moved.from as i64).collect();
    let to: Vec<_> = moves.iter().map(|moved| moved.to as i64).collect();
    let moved = client.execute(statement, &[cluster, &epochs, &shards, &logs, &from, &to]).await?;
    if moved == moves.len() as u64 {
        return Ok(());
    }
    Err(Failure::Passing(format!("only {moved} of {} positions are as this run left them", moves.len())))
}

async fn copy(client: &Client, statement: &Statement, rows: CopyRows) -> Result<(), Failure> {
    let sent = rows.rows();
    if sent == 0 {
        return Ok(());
    }
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    let mut bytes = rows.finish();
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(COPY_BYTES));
        sink.feed(piece).await?;
    }
    let copied = sink.finish().await?;
    if copied != sent {
        return Err(Failure::Passing(format!("{copied} of {sent} rows were copied")));
    }
    Ok(())
}
