//! Synchronous replication: whether the database has standbys that confirm each commit, and whether they confirmed one.
//!
//! With `--ack replicated`, a commit counts only if a synchronous standby has it. Postgres answers COMMIT without that in
//! two cases, and both look like success:
//!
//! - `synchronous_standby_names` is empty, or becomes empty during the wait. So it is read before the first change of a
//!   session, and in the same session after each commit. Before Postgres ends the waits, it tells every session to read
//!   its configuration again.
//! - The wait was cancelled, by `pg_cancel_backend`. Postgres sends a warning before the answer.
//!
//! After either, the database shows rows that its standbys may lack. The caller drops the connection and claims the
//! database again. The claim commits a change of its own, and standbys receive commits in order, so everything that the
//! claim has read is replicated when that commit is.

use crate::config::fatal::Fatal;
use crate::postgres::failure::Failure;
use crate::sale::rules::Ack;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The reason why a database cannot be used with `--ack replicated`.
const NO_STANDBY: &str = "--ack replicated needs a synchronous standby, and synchronous_standby_names is empty; set it on \
    the database server, for example to 'ANY 1 (*)', and reload its configuration, or set --ack postgres";

/// The warnings of a session about waits for standbys.
#[derive(Clone, Default)]
pub struct ReplicationWaits(Arc<AtomicBool>);

impl ReplicationWaits {
    /// Notes a notice of the session. Messages may be translated, the name of the function in Postgres is not.
    pub fn note(&self, notice: &DbError) {
        if is_about_waits(notice.routine(), notice.message()) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// Checks that no wait of the session was cancelled. A warning about a commit is noted before the commit is answered.
    ///
    /// # Errors
    /// [`Failure::Transient`]: standbys may lack a commit of the session.
    pub fn check(&self) -> Result<(), Failure> {
        match self.0.load(Ordering::Acquire) {
            true => Err(Failure::Transient(
                "a wait for synchronous replication was cancelled: the commit does not count".into(),
            )),
            false => Ok(()),
        }
    }
}

fn is_about_waits(routine: Option<&str>, message: &str) -> bool {
    routine == Some("SyncRepWaitForLSN") || message.contains("wait for synchronous replication")
}

/// Checks that the database replicates synchronously, if `ack` needs it. `sells` is whether this process serves clients
/// already.
///
/// # Errors
/// If the database does not: [`Failure::Transient`] if the process serves clients, because a person can repair the
/// database meanwhile, otherwise [`Failure::Final`]. [`Failure::Transient`] also if the query failed.
pub async fn require(client: &Client, ack: Ack, sells: bool) -> Result<(), Failure> {
    if ack != Ack::Replicated || has_standby_names(client).await? {
        return Ok(());
    }
    Err(if sells { Failure::refusal(NO_STANDBY) } else { Failure::Final(Fatal::Database(NO_STANDBY.into())) })
}

async fn has_standby_names(client: &Client) -> Result<bool, Failure> {
    let rows = client.simple_query("show synchronous_standby_names").await?;
    Ok(rows.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).is_some_and(|names| !names.is_empty()),
        _ => false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_wait_is_recognized_in_every_language() {
        let english = "canceling wait for synchronous replication due to user request";
        for (routine, message, expected) in [
            (Some("SyncRepWaitForLSN"), "storniere Warten auf synchrone Replikation", true),
            (None, english, true),
            (Some("WarnNoTransactionBlock"), "there is no transaction in progress", false),
        ] {
            assert_eq!(is_about_waits(routine, message), expected, "{message}");
        }
    }
}
