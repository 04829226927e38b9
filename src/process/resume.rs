//! Finds the sale that a run continues: in the log of its data directory or, if that directory is new, in the database.
//! In an upgrade, the log is read while another process still writes it.
//!
//! A start does not wait for the database, with two exceptions. A new data directory waits for it, because the sale may
//! be there. With `--ack local`, a data directory whose latest run has ended in order, or has never used the database,
//! waits until it has claimed the database, because another machine may have taken the sale over.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::{Config, RecoverFrom};
use crate::log::block::{LogKind, StreamId};
use crate::log::data_dir::{ControlFile, DataDir, OpenDataDir};
use crate::log::ownership::{Owner, Run, judge_owner};
use crate::log::recovery::{Ends, Recovered, Recovery};
use crate::postgres::claim::Claim;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{self, OwnerRow};
use crate::postgres::restore::{Attempt, TakeoverWait};
use crate::postgres::session::log_in;
use crate::postgres::snapshot::Snapshot;
use crate::sale::deferred::Watermark;
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::host;
use crate::system::threads::event_loop;
use std::time::Duration;

/// How long a start waits for the database, to check whether it fits the log. After that, selling begins without the
/// check; the persistence thread makes it later.
const CLAIM_TIME: Duration = Duration::from_secs(3);
/// Time between two attempts to take a sale over.
const RETRY_TIME: Duration = Duration::from_millis(500);
/// Maximum duration of one attempt to take a sale over.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);

/// Number of records so small that the new process is close enough to the end of the log.
const CATCH_UP_RECORDS: u64 = 2_000;
/// Maximum number of passes over new records. There is a limit, because the writer may be faster than the reader.
const CATCH_UP_TRIES: u32 = 20;

/// Everything from which a run begins.
pub struct Resumed {
    /// Data directory of the run.
    pub data: OpenDataDir,
    /// `control.json` of the data directory.
    pub control: ControlFile,
    /// State of the sale, recovered from the log.
    pub recovered: Recovered,
    /// Claim on the database, or `None` without a database.
    pub claim: Option<Claim>,
}

/// Returns the state from which the run begins, or `None` if the process was stopped while it waited for the database.
/// `is_stopped` sleeps for the given time, and returns whether a signal to stop has arrived.
///
/// # Errors
/// Every reason that an operator must remove, such as a damaged log or a database that does not fit the log.
pub fn resume(
    config: &Config,
    dir: &DataDir,
    partition: Partition,
    clock: &Clock,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<Option<Resumed>, Fatal> {
    let runtime = event_loop()?;
    let fill_from_database = |conflict| runtime.block_on(fill_from_database(config, dir, clock, conflict, &is_stopped));
    if dir.is_new() && config.recover_from != RecoverFrom::Log && !fill_from_database(None)? {
        return Ok(None);
    }
    let recover = || runtime.block_on(recover(config, dir, partition, clock, &is_stopped));
    match recover() {
        Err(why @ (Fatal::Damaged(_) | Fatal::DirectoryOlder(_))) if config.recover_from == RecoverFrom::Postgres => {
            if fill_from_database(Some(why))? {
                recover()
            } else {
                Ok(None)
            }
        }
        result => result,
    }
}

/// Fills a new data directory from the database, if a database is set. Waits for the database without a limit, because
/// the sale may be there. With a `conflict`, does the same for a data directory whose log cannot be used: its log is
/// moved aside, but only after the sale has been found in the database. Returns false if the process was stopped
/// meanwhile.
async fn fill_from_database(
    config: &Config,
    dir: &DataDir,
    clock: &Clock,
    conflict: Option<Fatal>,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<bool, Fatal> {
    let Some(url) = &config.database else { return conflict.map_or(Ok(true), Err) };
    let mut takeover_wait = TakeoverWait::default();
    let mut wait_log = WaitLog::new(url, "it may have the sale; if it was never used, set --recover-from log");
    loop {
        let make_new = || {
            if let Some(why) = conflict.as_ref().filter(|_| !dir.is_new()) {
                let aside = dir.set_aside()?;
                tracing::warn!(%why, aside = %aside.display(), "the log is set aside: Postgres has the sale");
            }
            Ok(())
        };
        let attempt =
            takeover_wait.attempt((url, config.recover_from), dir, &config.rules, clock.now().unix_ms, make_new);
        let attempt = tokio::time::timeout(ATTEMPT_TIME, attempt).await;
        let reason = match attempt.unwrap_or_else(|_| Err(no_answer())) {
            Ok(Attempt::NeverUsed) => return conflict.map_or(Ok(true), Err),
            Ok(Attempt::TakenOver(taken_over)) => {
                let (epoch, records) = (taken_over.owner.run.epoch, taken_over.records.len());
                tracing::info!(url = url.place(), epoch, records, "the sale is taken over from the database");
                return Ok(true);
            }
            Ok(Attempt::OwnerAlive) => {
                let text = "another server is running on it; stop that server, or use another database";
                return Err(Fatal::Database(text.into()));
            }
            Ok(Attempt::Waiting) => "waiting until the previous server has not reported for 15 s".to_owned(),
            Err(Failure::Transient(why)) => why,
            Err(Failure::Final(why)) => return Err(why),
        };
        wait_log.write(reason);
        if is_stopped(RETRY_TIME) {
            return Ok(false);
        }
    }
}

/// The log lines of a wait for the database: one for each new reason.
struct WaitLog<'a> {
    url: &'a DatabaseUrl,
    purpose: &'static str,
    last_reason: String,
}

impl WaitLog<'_> {
    fn new<'a>(url: &'a DatabaseUrl, purpose: &'static str) -> WaitLog<'a> {
        WaitLog { url, purpose, last_reason: String::new() }
    }

    fn write(&mut self, reason: String) {
        if reason != self.last_reason {
            tracing::warn!(url = self.url.place(), why = reason, "waiting for the database: {}", self.purpose);
            self.last_reason = reason;
        }
    }
}

fn no_answer() -> Failure {
    Failure::Transient("the database did not answer".into())
}

/// Claims the database before the first item is sold, so that a conflict is found before. Waits without a limit only if
/// another machine may have taken the sale over. The persistence thread makes the claim again. Returns false if the
/// process was stopped meanwhile.
async fn claim_before_selling(claim: &mut Claim, is_stopped: impl Fn(Duration) -> bool) -> Result<bool, Fatal> {
    let url = claim.url.clone();
    let purpose = "another server may have taken the sale over; to sell without the database, set --recover-from log";
    let mut wait_log = WaitLog::new(&url, purpose);
    loop {
        let time = if claim.may_precede() { CLAIM_TIME } else { ATTEMPT_TIME };
        match tokio::time::timeout(time, claim.make()).await.unwrap_or_else(|_| Err(no_answer())) {
            Ok(_) => return Ok(true),
            Err(Failure::Final(why)) => return Err(why),
            // The failed claim may have changed this.
            Err(Failure::Transient(_)) if claim.may_precede() => return Ok(true),
            Err(Failure::Transient(why)) => wait_log.write(why),
        }
        if is_stopped(RETRY_TIME) {
            return Ok(false);
        }
    }
}

/// Recovers from the log, and claims the database. Returns `None` if the process was stopped while it waited for the
/// database.
async fn recover(
    config: &Config,
    dir: &DataDir,
    partition: Partition,
    clock: &Clock,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<Option<Resumed>, Fatal> {
    let (data, control) = dir.open(config.rules.period_s)?;
    let clock = clock.clone();
    let recovered = Recovery::new(data.clone(), partition, config.rules, move || clock.now()).finish(&Ends::new())?;
    control.raise_longest_hold(config.rules.longest_hold_ms())?;
    let mut claim = claim(config, &data, control.clone(), &recovered, partition)?;
    if let Some(claim) = &mut claim
        && !claim_before_selling(claim, is_stopped).await?
    {
        return Ok(None);
    }
    Ok(Some(Resumed { data, control, recovered, claim }))
}

/// The recovery of a new process in an upgrade, while the old process still writes the log.
pub struct UpgradeRecovery {
    data: OpenDataDir,
    control: ControlFile,
    recovery: Recovery,
    partition: Partition,
}

impl UpgradeRecovery {
    /// Reads the log as far as the old process has written it, and checks whether the database fits, for the new run of
    /// this `epoch`. `was_fenced` is whether the old run acknowledges no purchase without the database. If the new run
    /// does, the database records it for the old run already. Changes nothing else.
    ///
    /// # Errors
    /// The reasons of [`resume`].
    pub fn read(
        config: &Config,
        (epoch, was_fenced): (u32, bool),
        partition: Partition,
        clock: &Clock,
    ) -> Result<UpgradeRecovery, Fatal> {
        let (data, control) = DataDir::open_reserved(&config.data_dir, config.rules.period_s, epoch)?;
        let clock = clock.clone();
        let mut recovery = Recovery::new(data.clone(), partition, config.rules, move || clock.now());
        recovery.read_ahead()?;
        if let Some(url) = &config.database {
            let owner = Owner { cluster: data.cluster, run: Run { epoch, id: host::new_id()? } };
            let (runtime, is_fenced) = (event_loop()?, config.rules.purchase_ack == Watermark::Persisted);
            let found = runtime.block_on(async { tokio::time::timeout(CLAIM_TIME, Snapshot::take(url)).await });
            // Read this after the database: the old run writes a claim to `control.json` before it sends the claim.
            control.reload_database()?;
            match found {
                Ok(Err(Failure::Final(why))) => return Err(why),
                Ok(Ok(found)) => {
                    judge_owner(owner, control.database(), found.owner, config.recover_from)?;
                    let is_weaker = |row: &OwnerRow| row.ack == Watermark::Persisted && !is_fenced;
                    if let Some(old) = found.owner_row.filter(is_weaker) {
                        runtime.block_on(make_exclusive(url, old.owner))?;
                    }
                }
                Ok(Err(Failure::Transient(_))) | Err(_) if was_fenced && !is_fenced => {
                    return Err(not_recorded("it does not answer"));
                }
                // The database is unavailable: the new run sells without it, as the old run does.
                Ok(Err(Failure::Transient(_))) | Err(_) => {}
            }
        }
        Ok(UpgradeRecovery { data, control, recovery, partition })
    }

    /// Reads the records that were written meanwhile, until few new ones are left or the passes are used up.
    ///
    /// # Errors
    /// The reasons of recovery, such as a damaged log.
    pub fn catch_up(&mut self) -> Result<(), Fatal> {
        for _ in 0..CATCH_UP_TRIES {
            if self.recovery.read_ahead()? < CATCH_UP_RECORDS {
                break;
            }
        }
        Ok(())
    }

    /// Returns the number of held items of each shard, as of the last record read.
    pub fn held(&self) -> Vec<u32> {
        self.recovery.held()
    }

    /// Returns the data directory of the new run.
    pub fn data(&self) -> &OpenDataDir {
        &self.data
    }

    /// Reads the rest of the log, after the old process has stopped writing. `ends` has the end of each of its streams.
    ///
    /// # Errors
    /// [`Fatal::Damaged`]: a durable record is lost. [`Fatal::DataDir`]: the log cannot be read.
    pub fn finish(self, config: &Config, ends: &Ends) -> Result<Resumed, Fatal> {
        let UpgradeRecovery { data, control, recovery, partition } = self;
        let recovered = recovery.finish(ends)?;
        control.assume_longest_hold(config.rules.longest_hold_ms());
        let claim = claim(config, &data, control.clone(), &recovered, partition)?;
        Ok(Resumed { data, control, recovered, claim })
    }
}

/// Records in the database that the run of `old` must not be replaced without the word of an operator any more.
async fn make_exclusive(url: &DatabaseUrl, old: Owner) -> Result<(), Fatal> {
    let change = async { owner_row::make_exclusive(&log_in(url).await?, old).await };
    match tokio::time::timeout(CLAIM_TIME, change).await.unwrap_or_else(|_| Err(no_answer())) {
        Ok(()) => Ok(()),
        Err(Failure::Final(why)) => Err(why),
        Err(Failure::Transient(why)) => Err(not_recorded(&why)),
    }
}

fn not_recorded(why: &str) -> Fatal {
    Fatal::Database(format!("an upgrade from --ack postgres to --ack local must be recorded in it first: {why}"))
}

/// Returns this run's claim on the database, or `None` without a database.
fn claim(
    config: &Config,
    data: &OpenDataDir,
    control: ControlFile,
    recovered: &Recovered,
    partition: Partition,
) -> Result<Option<Claim>, Fatal> {
    let Some(url) = config.database.clone() else { return Ok(None) };
    let (cluster, epoch) = (data.cluster, data.epoch);
    let kinds = [LogKind::Purchases, LogKind::Attempts];
    let streams =
        (0..partition.shards()).flat_map(|shard| kinds.map(|log| (StreamId { cluster, epoch, shard, log }, None)));
    let earlier = recovered.earlier.iter().map(|(stream, end)| (*stream, Some(*end)));
    Ok(Some(Claim {
        url,
        owner: Owner { cluster, run: Run { epoch, id: host::new_id()? } },
        sale_period_s: config.rules.period_s,
        ack: config.rules.purchase_ack,
        recover_from: config.recover_from,
        control,
        logs: data.logs.clone(),
        streams: earlier.chain(streams).collect(),
    }))
}
