//! Whether the run that owns the database is alive, as another server sees it before it takes over.
//!
//! A run reports by updating its row. Whoever wants to replace it reads the row again and again, and counts the time since
//! it has changed last, by its own clock: a run that has not reported for long enough is *silent*. Nothing unsafe can
//! follow from a wrong verdict, because the takeover fences the old run first.
//!
//! | the run | counts as silent after |
//! |---|---|
//! | is one of two servers, and reports often | its `--standby-patience`, which its row has |
//! | is one of two, and has lost the advisory lock that it was seen to hold: its session has ended, as after kill -9 | one and a half `--standby-heartbeat` |
//! | is not one of two | 15 s: longer than its longest wait between two attempts to connect |
//! | has stopped in order | at once; for one of two servers that has seen it only stopped, `--standby-patience` |
//!
//! A takeover that is in progress looks like a run that has stopped: it sells nothing yet, and has still to write its log.
//! Two servers that took over from each other at once would never come to sell.
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
use crate::sale::sale_schedule::are_compatible;
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
    locked: Option<Uuid>,
    /// The run that was seen before it had stopped.
    seen_running: Option<Uuid>,
}

impl OwnerWatch {
    /// Creates the watch of a server with these settings.
    pub fn new(rules: Rules, recover_from: RecoverFrom, pair: Option<PairTimes>) -> Self {
        OwnerWatch { rules, recover_from, pair, session: None, seen: None, locked: None, seen_running: None }
    }

    /// Forgets the session and the silence, after a takeover has failed: its host may not be the primary any more.
    pub fn begin_anew(&mut self) {
        (self.session, self.seen) = (None, None);
    }

    /// Looks at the database once.
    ///
    /// # Errors
    /// [`Failure::Final`]: this server cannot use the database, or the database does not replicate as `--ack` needs it.
    /// [`Failure::Transient`]: a later look may succeed. The time of silence then begins anew, because the other server
    /// may not have reached the database either.
    pub async fn look(&mut self, url: &DatabaseUrl) -> Result<OwnerState, Failure> {
        let seen = self.take_seen();
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
        if !are_compatible(found.sale_period_s, self.rules.schedule.period_s()) {
            return Err(other_period(found.sale_period_s));
        }
        Ok(self.judge(seen, (found, is_locked), Instant::now()))
    }

    /// Returns the time at which the owner's row was first seen like this, and removes it. Without it, the time of silence
    /// begins anew.
    pub fn take_seen(&mut self) -> Option<(OwnerRow, Instant)> {
        self.seen.take()
    }

    /// Judges the row that a look has found at `now`, and whether a session holds the lock of its run. `seen` is the result
    /// of [`take_seen`](Self::take_seen), from before the look.
    pub fn judge(
        &mut self,
        seen: Option<(OwnerRow, Instant)>,
        (found, is_locked): (OwnerRow, bool),
        now: Instant,
    ) -> OwnerState {
        if is_locked {
            self.locked = Some(found.owner.run.id);
        }
        if found.is_exclusive() && self.recover_from != RecoverFrom::Postgres {
            return OwnerState::Exclusive(found);
        }
        let id = Some(found.owner.run.id);
        if found.seen_us.is_some() {
            self.seen_running = id;
        } else if self.pair.is_none() || self.seen_running == id {
            return OwnerState::Replaceable(found);
        }
        let since = match seen {
            Some((before, since)) if before == found => since,
            before => {
                self.seen = Some((found, now));
                return match before {
                    Some((before, _)) if before.owner == found.owner => OwnerState::Reports(found),
                    _ => OwnerState::Quiet(found, Duration::ZERO),
                };
            }
        };
        self.seen = seen;
        let silent = now.saturating_duration_since(since);
        match silent < self.patience(found, is_locked) {
            true => OwnerState::Quiet(found, silent),
            false => OwnerState::Replaceable(found),
        }
    }

    /// Returns the time after which the owner counts as silent.
    fn patience(&self, found: OwnerRow, is_locked: bool) -> Duration {
        let has_lost_lock = !is_locked && self.locked == Some(found.owner.run.id);
        match (self.pair, found.patience) {
            (Some(pair), _) if found.seen_us.is_none() => pair.patience,
            (Some(pair), Some(patience)) if has_lost_lock => patience.min(patience_without_session(pair)),
            (Some(_), Some(patience)) => patience,
            _ => OWNER_TIMEOUT,
        }
    }
}

/// Returns the time after which one of two servers counts as silent when its session has ended.
pub fn patience_without_session(pair: PairTimes) -> Duration {
    pair.heartbeat * 3 / 2
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

    const PAIR: PairTimes = PairTimes { heartbeat: Duration::from_millis(100), patience: Duration::from_millis(400) };

    fn watch(pair: Option<PairTimes>) -> OwnerWatch {
        let sales = PeriodicSale { period_s: 1, items: 1, user_limit: 1, ttl_ms: 1, extension_ms: 0 };
        let rules = Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms: 0, ack: Ack::Replicated };
        OwnerWatch::new(rules, RecoverFrom::Auto, pair)
    }

    fn row(run: u128, seen_us: Option<i64>) -> OwnerRow {
        let owner = Owner { cluster: Uuid::nil(), run: Run { epoch: 1, id: Uuid::from_u128(run) } };
        OwnerRow { owner, sale_period_s: 1, ack: Ack::Replicated, patience: None, seen_us }
    }

    #[test]
    fn only_one_of_two_servers_is_replaced_soon() {
        let mut watch = watch(Some(PAIR));
        for (patience_ms, was_locked, is_locked, expected_ms) in [
            (Some(300), true, true, 300),
            (Some(300), true, false, 150),
            (Some(300), false, false, 300),
            (Some(90), true, false, 90),
            (None, true, false, 15_000),
        ] {
            watch.locked = was_locked.then_some(Uuid::from_u128(1));
            let found = OwnerRow { patience: patience_ms.map(Duration::from_millis), ..row(1, Some(5)) };
            let patience = watch.patience(found, is_locked);
            assert_eq!(patience, Duration::from_millis(expected_ms), "{patience_ms:?} {was_locked} {is_locked}");
        }
        watch.pair = None;
        let found = OwnerRow { patience: Some(PAIR.patience), ..row(1, Some(5)) };
        assert_eq!(watch.patience(found, true), OWNER_TIMEOUT);
    }

    #[test]
    fn a_takeover_in_progress_is_not_taken_for_a_run_that_has_stopped() {
        let start = Instant::now();
        let look = |watch: &mut OwnerWatch, found, ms| {
            let seen = watch.take_seen();
            watch.judge(seen, (found, false), start + Duration::from_millis(ms))
        };
        let mut standby = watch(Some(PAIR));
        look(&mut standby, row(1, Some(5)), 0);
        assert_eq!(look(&mut standby, row(1, None), 1), OwnerState::Replaceable(row(1, None)));
        // Another standby was faster, and writes its log.
        let quiet = |ms| OwnerState::Quiet(row(2, None), Duration::from_millis(ms));
        assert_eq!(look(&mut standby, row(2, None), 2), quiet(0));
        assert_eq!(look(&mut standby, row(2, None), 401), quiet(399));
        assert_eq!(look(&mut standby, row(2, None), 402), OwnerState::Replaceable(row(2, None)));
        assert_eq!(look(&mut watch(None), row(2, None), 0), OwnerState::Replaceable(row(2, None)), "no standby");
    }
}
