//! Whether the run that owns the database is alive, as another server sees it before it takes over.
//!
//! A run reports by updating its row. Whoever wants to replace it reads the row again and again, and counts the time since
//! it has changed last, by its own clock: a run that has not reported for long enough is *silent*. Nothing unsafe can
//! follow from a wrong verdict, because the takeover fences the old run first.
//!
//! | the run | counts as silent after |
//! |---|---|
//! | holds its advisory lock: it is one of two servers, and reports often | `--standby-patience` |
//! | held it, and the lock is free: its session has ended, as after kill -9 | one and a half `--standby-heartbeat` |
//! | was never seen to hold it | 15 s: longer than its longest wait between two attempts to connect |
//!
//! The lock alone is no proof: a live run loses it with its connection, and a pooler keeps it for a dead one.

use crate::config::database_url::DatabaseUrl;
use crate::config::settings::{PairTimes, RecoverFrom};
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, in_time};
use crate::postgres::owner_row::{OwnerRow, other_period};
use crate::postgres::replication::require;
use crate::postgres::session::Session;
use crate::postgres::snapshot::Snapshot;
use crate::sale::rules::Rules;
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use uuid::Uuid;

/// How long a server must not report to a reachable database before another one takes over, unless it is one of two.
const OWNER_TIMEOUT: Duration = Duration::from_secs(15);

/// What one look at the database has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// The database was never used.
    NeverUsed,
    /// The owner has reported since the look before.
    Reports(OwnerRow),
    /// The owner has not reported for this time, which is not long enough.
    Quiet(OwnerRow, Duration),
    /// The owner has stopped in order, or is silent: another run may take over.
    Replaceable(OwnerRow),
    /// The owner has not stopped in order, and may sell without the database. Its silence proves nothing.
    Exclusive(OwnerRow),
}

/// The session, and what the looks so far have shown.
pub struct OwnerWatch {
    rules: Rules,
    recover_from: RecoverFrom,
    pair: Option<PairTimes>,
    /// Session of the last look, with the name of its host.
    session: Option<Session>,
    /// The owner's row, and the time at which it was first seen like this.
    seen: Option<(OwnerRow, Instant)>,
    /// The run that was seen to hold its lock.
    one_of_two: Option<Uuid>,
}

impl OwnerWatch {
    /// Creates the watch of a server with these settings.
    pub fn new(rules: Rules, recover_from: RecoverFrom, pair: Option<PairTimes>) -> Self {
        OwnerWatch { rules, recover_from, pair, session: None, seen: None, one_of_two: None }
    }

    /// Looks at the database once.
    ///
    /// # Errors
    /// [`Failure::Final`]: this server cannot use the database, or the database does not replicate as `--ack` needs it.
    /// [`Failure::Transient`]: a later look may succeed. The time of silence then begins anew, because the other server
    /// may not have reached the database either.
    pub async fn look(&mut self, url: &DatabaseUrl) -> Result<OwnerState, Failure> {
        let seen = self.seen.take();
        let snapshot = match self.session.take() {
            Some(session) => Snapshot::of(session).await?,
            None => Snapshot::take(url).await?,
        };
        // A standby waits for a database that has lost its standbys.
        in_time(FENCE_TIME, require(&snapshot.client, self.rules.ack, self.pair.is_some())).await?;
        let Some(found) = snapshot.owner_row else {
            self.session = Some(snapshot.end().await?);
            return Ok(OwnerState::NeverUsed);
        };
        let is_locked = in_time(FENCE_TIME, is_locked(&snapshot.client, found.owner)).await?;
        self.session = Some(snapshot.end().await?);
        if found.sale_period_s != self.rules.schedule.period_s() {
            return Err(other_period(found.sale_period_s));
        }
        if is_locked {
            self.one_of_two = Some(found.owner.run.id);
        }
        if found.is_exclusive() && self.recover_from != RecoverFrom::Postgres {
            return Ok(OwnerState::Exclusive(found));
        }
        if found.seen_us.is_none() {
            return Ok(OwnerState::Replaceable(found));
        }
        let since = match seen {
            Some((before, since)) if before == found => since,
            before => {
                self.seen = Some((found, Instant::now()));
                return Ok(match before {
                    Some((before, _)) if before.owner == found.owner => OwnerState::Reports(found),
                    _ => OwnerState::Quiet(found, Duration::ZERO),
                });
            }
        };
        self.seen = seen;
        let silent = since.elapsed();
        Ok(match silent < self.patience(found.owner, is_locked) {
            true => OwnerState::Quiet(found, silent),
            false => OwnerState::Replaceable(found),
        })
    }

    /// Returns the time after which the owner counts as silent.
    fn patience(&self, owner: Owner, is_locked: bool) -> Duration {
        match self.pair {
            Some(pair) if is_locked => pair.patience,
            Some(pair) if self.one_of_two == Some(owner.run.id) => pair.heartbeat * 3 / 2,
            _ => OWNER_TIMEOUT,
        }
    }
}

/// Returns the key of a run's advisory lock.
fn lock_key(owner: Owner) -> i64 {
    owner.run.id.as_u64_pair().0 as i64
}

/// Takes the advisory lock of the owner, one of two servers, until the end of the session.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn lock(client: &Client, owner: Owner) -> Result<(), Failure> {
    client
        .query_typed("select pg_try_advisory_lock($1)", &[(&lock_key(owner), tokio_postgres::types::Type::INT8)])
        .await?;
    Ok(())
}

/// Returns whether a session holds the lock of `owner`.
async fn is_locked(client: &Client, owner: Owner) -> Result<bool, Failure> {
    // The two halves of the key, as the view pg_locks shows them.
    let held = "select exists (select 1 from pg_locks where locktype = 'advisory' and objsubid = 1 and granted \
        and classid::bigint << 32 | objid::bigint = $1 \
        and database = (select oid from pg_database where datname = current_database()))";
    Ok(client.query_one(held, &[&lock_key(owner)]).await?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ownership::Run;
    use crate::sale::rules::Ack;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};

    #[test]
    fn only_one_of_two_servers_is_replaced_soon() {
        let sales = PeriodicSale { period_s: 1, items: 1, user_limit: 1, ttl_ms: 1, extension_ms: 0 };
        let rules = Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms: 0, ack: Ack::Replicated };
        let pair = PairTimes { heartbeat: Duration::from_millis(100), patience: Duration::from_millis(400) };
        let owner = |id| Owner { cluster: Uuid::nil(), run: Run { epoch: 1, id: Uuid::from_u128(id) } };
        let mut watch = OwnerWatch::new(rules, RecoverFrom::Auto, Some(pair));
        watch.one_of_two = Some(Uuid::from_u128(1));
        for (run, is_locked, expected_ms) in [(1, true, 400), (1, false, 150), (2, true, 400), (2, false, 15_000)] {
            assert_eq!(watch.patience(owner(run), is_locked), Duration::from_millis(expected_ms), "{run} {is_locked}");
        }
        watch.pair = None;
        assert_eq!(watch.patience(owner(1), true), OWNER_TIMEOUT);
    }
}
