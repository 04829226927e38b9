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
use crate::log::losses::Persisted;
use crate::log::ownership::{Owner, Run, judge_owner};
use crate::log::recovery::{Ends, Recovered, Recovery};
use crate::postgres::claim::Claim;
use crate::postgres::failure::{Failure, Reason};
use crate::postgres::limits::in_time;
use crate::postgres::owner_row::{self, OwnerRow, OwnerTerms};
use crate::postgres::owner_watch::{OwnerState, OwnerWatch};
use crate::postgres::replication::require;
use crate::postgres::restore::{may_still_sell, restore};
use crate::postgres::session::log_in;
use crate::postgres::snapshot::Snapshot;
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::host;
use crate::system::threads::event_loop;
use std::time::Duration;

/// Time between two attempts to take a sale over.
const RETRY_TIME: Duration = Duration::from_millis(500);

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
    let mut watch = OwnerWatch::new(config.rules, config.recover_from, None);
    let mut wait_log = WaitLog::new(url, "it may have the sale; if it was never used, set --recover-from log");
    loop {
        let make_new = || {
            if let Some(why) = conflict.as_ref().filter(|_| !dir.is_new()) {
                let aside = dir.set_aside()?;
                tracing::warn!(%why, aside = %aside.display(), "the log is set aside: Postgres has the sale");
            }
            Ok(())
        };
        let replaced = match watch.look(url).await {
            Ok(OwnerState::NeverUsed) => return conflict.map_or(Ok(true), Err),
            Ok(OwnerState::Reports(_)) => {
                let text = "another server is running on it; stop that server, or use another database";
                return Err(Fatal::Database(text.into()));
            }
            Ok(OwnerState::Exclusive(found)) => return Err(may_still_sell(&found)),
            Ok(OwnerState::Quiet(..)) => Ok(None),
            Ok(OwnerState::Replaceable(found)) => {
                let sales = (&config.rules, config.plan);
                restore(url, dir, sales, clock.now().unix_ms, found, make_new).await.map(Some)
            }
            Err(failure) => Err(failure),
        };
        let reason = match replaced {
            Ok(Some(taken_over)) => {
                let (epoch, records) = (taken_over.owner.run.epoch, taken_over.records.len());
                tracing::info!(url = taken_over.place, epoch, records, "the sale is taken over from the database");
                return Ok(true);
            }
            Ok(None) => "waiting until the previous server has not reported for 15 s".into(),
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
pub struct WaitLog<'a> {
    url: &'a DatabaseUrl,
    purpose: &'static str,
    last_reason: Option<Reason>,
}

impl WaitLog<'_> {
    /// Creates the lines of a wait for `url`, with the purpose of the wait.
    pub fn new<'a>(url: &'a DatabaseUrl, purpose: &'static str) -> WaitLog<'a> {
        WaitLog { url, purpose, last_reason: None }
    }

    /// Logs the reason for which the database cannot be used, unless it is the one that was logged last.
    pub fn write(&mut self, reason: Reason) {
        if self.last_reason.as_ref() != Some(&reason) {
            let what = if reason.is_refusal { ", which refuses this server" } else { "" };
            let why = &reason.text;
            tracing::warn!(url = self.url.place(), why, "waiting for the database{what}: {}", self.purpose);
            self.last_reason = Some(reason);
        }
    }
}

/// Claims the database before the first item is sold, so that a conflict is found before. Waits without a limit only if
/// another machine may have taken the sale over. The persistence thread makes the claim again. Returns false if the
/// process was stopped meanwhile.
async fn claim_before_selling(claim: &mut Claim, is_stopped: impl Fn(Duration) -> bool) -> Result<bool, Fatal> {
    let url = claim.url.clone();
    let purpose = "another server may have taken the sale over; to sell without the database, set --recover-from log";
    let mut wait_log = WaitLog::new(&url, purpose);
    loop {
        // If selling may begin without the claim, this is not the time to wait for locks.
        let limit = if claim.may_precede() { url.patience() } else { Duration::MAX };
        match in_time(limit, claim.make()).await {
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
///
/// # Errors
/// The reasons of [`resume`]. [`Fatal::DirectoryOlder`]: another run has claimed the database.
pub async fn recover(
    config: &Config,
    dir: &DataDir,
    partition: Partition,
    clock: &Clock,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<Option<Resumed>, Fatal> {
    let (data, control) = dir.open(config.rules.schedule.period_s())?;
    let clock = clock.clone();
    let rules = (config.rules, config.plan);
    let recovered = Recovery::new(data.clone(), partition, rules, move || clock.now()).finish(&Ends::new())?;
    let damaged = recovered.streams.damaged();
    if !damaged.is_empty() {
        let (persisted, _) = persisted(config, &data, &control).await?;
        damaged.iter().try_for_each(|beginning| beginning.require_persisted(&data.logs, &persisted))?;
    }
    control.raise_longest_hold(config.rules.schedule.longest_hold_ms())?;
    let mut claim = claim(config, &data, control.clone(), &recovered, partition)?;
    if let Some(claim) = &mut claim
        && !claim_before_selling(claim, is_stopped).await?
    {
        return Ok(None);
    }
    Ok(Some(Resumed { data, control, recovered, claim }))
}

/// Asks the database for its owner and for what it has of the log, and checks whether this run may write there.
async fn persisted(
    config: &Config,
    data: &OpenDataDir,
    control: &ControlFile,
) -> Result<(Persisted, Option<OwnerRow>), Fatal> {
    let Some(url) = &config.database else { return Ok((Persisted::NoDatabase, None)) };
    let owner = Owner { cluster: data.cluster, run: Run { epoch: data.epoch, id: host::new_id()? } };
    let found = in_time(url.patience(), Snapshot::take(url)).await;
    // Read this after the database: the old run of an upgrade writes a claim to `control.json` before it sends the claim.
    control.reload_database()?;
    match found {
        Err(Failure::Final(why)) => Err(why),
        Ok(found) => {
            match in_time(url.patience(), require(&found.client, config.rules.ack, false)).await {
                Err(Failure::Final(why)) => return Err(why),
                Err(Failure::Transient(_)) | Ok(()) => {}
            }
            judge_owner(owner, control.database(), found.owner, config.recover_from)?;
            Ok((Persisted::Positions(found.positions), found.owner_row))
        }
        // The database is unavailable: the new run sells without it, as the old run of an upgrade does.
        Err(Failure::Transient(_)) => Ok((Persisted::Unknown, None)),
    }
}

/// The recovery of a new process in an upgrade, while the old process still writes the log.
pub struct UpgradeRecovery {
    data: OpenDataDir,
    control: ControlFile,
    recovery: Recovery,
    partition: Partition,
    persisted: Persisted,
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
        let (data, control) = DataDir::open_reserved(&config.data_dir, config.rules.schedule.period_s(), epoch)?;
        let clock = clock.clone();
        let rules = (config.rules, config.plan);
        let mut recovery = Recovery::new(data.clone(), partition, rules, move || clock.now());
        recovery.read_ahead()?;
        recovery.check_plan()?;
        let is_fenced = config.rules.ack.needs_database();
        let runtime = event_loop()?;
        let (persisted, row) = runtime.block_on(persisted(config, &data, &control))?;
        for beginning in recovery.damaged()? {
            beginning.require_persisted(&data.logs, &persisted)?;
        }
        if matches!(persisted, Persisted::Unknown) && was_fenced && !is_fenced {
            return Err(not_recorded("it does not answer"));
        }
        let is_weaker = |row: &OwnerRow| row.ack.needs_database() && !is_fenced;
        if let (Some(url), Some(old)) = (&config.database, row.filter(is_weaker)) {
            runtime.block_on(make_exclusive(url, old.owner))?;
        }
        Ok(UpgradeRecovery { data, control, recovery, partition, persisted })
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
        let UpgradeRecovery { data, control, recovery, partition, persisted } = self;
        let recovered = recovery.finish(ends)?;
        for beginning in recovered.streams.damaged() {
            beginning.require_persisted(&data.logs, &persisted)?;
        }
        control.assume_longest_hold(config.rules.schedule.longest_hold_ms());
        let claim = claim(config, &data, control.clone(), &recovered, partition)?;
        Ok(Resumed { data, control, recovered, claim })
    }
}

/// Records in the database that the run of `old` must not be replaced without the word of an operator any more.
async fn make_exclusive(url: &DatabaseUrl, old: Owner) -> Result<(), Fatal> {
    let change = async { owner_row::make_exclusive(&log_in(url).await?.client, old).await };
    match in_time(url.patience(), change).await {
        Ok(()) => Ok(()),
        Err(Failure::Final(why)) => Err(why),
        Err(Failure::Transient(why)) => Err(not_recorded(&why.text)),
    }
}

fn not_recorded(why: &str) -> Fatal {
    Fatal::Database(format!("an upgrade to --ack local must be recorded in it first: {why}"))
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
        (0..partition.shards()).flat_map(|shard| kinds.map(|log| (StreamId { cluster, epoch, shard, log }, 0, None)));
    let earlier = recovered.earlier.iter().map(|(stream, lost, end)| (*stream, *lost, Some(*end)));
    Ok(Some(Claim {
        url,
        owner: Owner { cluster, run: Run { epoch, id: host::new_id()? } },
        terms: OwnerTerms {
            sale_period_s: config.rules.schedule.period_s(),
            ack: config.rules.ack,
            patience: config.pair.map(|pair| pair.patience),
        },
        sells: false,
        recover_from: config.recover_from,
        control,
        logs: data.logs.clone(),
        streams: earlier.chain(streams).collect(),
        first_found: None,
    }))
}
