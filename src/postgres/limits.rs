//! The limits of each wait for the database: those of a transaction, which the database observes, and those of this
//! process.

use crate::postgres::failure::Failure;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Client, Transaction};

/// The parameters of every transaction. Each wait has a limit, on both sides, so that a session whose client is lost
/// releases its locks. They are set for the transaction only, and statements are prepared in the transaction only, so
/// that a connection pooler can give each transaction another session.
pub const LIMITS: &str = "set local statement_timeout = '30s'; set local lock_timeout = '10s'; \
    set local synchronous_commit = on; set local idle_in_transaction_session_timeout = '60s'; \
    set local tcp_user_timeout = '30s'; set local tcp_keepalives_idle = 10; set local tcp_keepalives_interval = 5; \
    set local tcp_keepalives_count = 3; set local client_min_messages = warning";
/// Limit for the statements that begin a transaction and check its owner. It is longer than `lock_timeout`. A connection
/// whose cable was pulled ends here if the kernel does not notice it.
pub const FENCE_TIME: Duration = Duration::from_secs(15);

/// Begins a transaction with [`LIMITS`], which is rolled back if it is dropped.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn begin(client: &mut Client) -> Result<Transaction<'_>, Failure> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LIMITS).await?;
    Ok(transaction)
}

/// Waits for work on the database, for a limited time.
///
/// # Errors
/// The failure of the work. [`Failure::Transient`]: the time is over.
pub async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let no_answer = || Err(Failure::Transient("the database does not answer".into()));
    timeout(limit, work).await.unwrap_or_else(|_| no_answer())
}
