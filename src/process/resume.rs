//! What a run goes on with: the log of its data directory or, if that is new, the sale that the database knows; in an
//! upgrade, the log that another process is still writing.

use crate::config::fatal::Fatal;
use crate::config::settings::{Config, RecoverFrom};
use crate::log::block::{LogKind, StreamId};
use crate::log::data_dir::{ControlFile, DataDir, Opened};
use crate::log::ownership::{Owner, Run, judge_owner};
use crate::log::recovery::{Ends, Recovered, Recovery};
use crate::postgres::claim::{Claim, fatal};
use crate::postgres::failure::Failure;
use crate::postgres::restore::{Attempt, Listener};
use crate::postgres::snapshot::Snapshot;
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::host;
use crate::system::threads::event_loop;
use std::time::Duration;

/// How long a start waits for the database to say whether it fits the log. If it is away, selling goes on without.
const CLAIM_TIME: Duration = Duration::from_secs(3);
/// How long between two attempts to take a sale over.
const RETRY_TIME: Duration = Duration::from_millis(500);
/// How long one attempt may take.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);

/// Records that are read in a moment.
const CLOSE_ENOUGH: u64 = 2_000;
/// How often a run reads on that has not come that close. Its writer may be faster.
const CATCH_UP_TRIES: u32 = 20;

/// A run, about to begin.
pub struct Resumed {
    /// Its data directory.
    pub data: Opened,
    /// What is written there beside the log.
    pub control: ControlFile,
    /// Where the sale stands.
    pub recovered: Recovered,
    /// What it persists to.
    pub claim: Option<Claim>,
}

/// Finds out what to go on with. `is_stopped` sleeps, and says whether the process has been told to stop; then there
/// is nothing to go on with.
///
/// # Errors
/// Whatever an operator has to see to: a damaged log, a database that contradicts it.
pub fn resume(
    config: &Config,
    dir: &DataDir,
    partition: Partition,
    clock: Clock,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<Option<Resumed>, Fatal> {
    let runtime = event_loop()?;
    let fill = |conflict| runtime.block_on(fill(config, dir, conflict, &is_stopped));
    if dir.is_new() && config.recover_from != RecoverFrom::Log && !fill(None)? {
        return Ok(None);
    }
    let go_on = || runtime.block_on(go_on(config, dir, partition, clock));
    match go_on() {
        Err(why @ (Fatal::Damaged(_) | Fatal::DirectoryOlder(_))) if config.recover_from == RecoverFrom::Postgres => {
            if fill(Some(why))? {
                go_on().map(Some)
            } else {
                Ok(None)
            }
        }
        result => result.map(Some),
    }
}

/// Fills a new data directory from the database, if there is one, however long it takes to reach it: the sale may be
/// there. So it does with a directory whose log is in `conflict`, which is set aside first, but only for something
/// better. Returns whether that is settled; not, if the process has been told to stop.
async fn fill(
    config: &Config,
    dir: &DataDir,
    conflict: Option<Fatal>,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<bool, Fatal> {
    let Some(url) = &config.database else { return conflict.map_or(Ok(true), Err) };
    let mut listener = Listener::default();
    let mut said = String::new();
    loop {
        let make_new = || {
            if let Some(why) = conflict.as_ref().filter(|_| !dir.is_new()) {
                let aside = dir.set_aside()?;
                tracing::warn!(%why, aside = %aside.display(), "the log is set aside: the sale goes on from the database");
            }
            Ok(())
        };
        let attempt = listener.attempt(url, dir, config.rules.period_s, make_new);
        let attempt = tokio::time::timeout(ATTEMPT_TIME, attempt).await;
        let trouble = match attempt.unwrap_or_else(|_| Err(Failure::Passing("it took too long to answer".into()))) {
            Ok(Attempt::NothingThere) => return conflict.map_or(Ok(true), Err),
            Ok(Attempt::TakenOver(taken_over)) => {
                let (epoch, records) = (taken_over.owner.run.epoch, taken_over.records.len());
                tracing::info!(url = url.place(), epoch, records, "the sale is taken over from the database");
                return Ok(true);
            }
            Ok(Attempt::Alive) => {
                let text = "another server is running on it; stop that one, or give this one a database of its own";
                return Err(Fatal::Database(text.into()));
            }
            Ok(Attempt::Listening) => "another server was on it: it must be silent for 15 s first".to_owned(),
            Err(Failure::Passing(why)) => why,
            Err(Failure::Final(why)) => return Err(why),
        };
        if trouble != said {
            tracing::warn!(
                url = url.place(),
                why = trouble,
                "waiting for the database: the sale may be there; if it was never used, --recover-from log begins without it"
            );
            said = trouble;
        }
        if is_stopped(RETRY_TIME) {
            return Ok(false);
        }
    }
}

/// Recovers from the log, and asks the database whether it agrees, if it answers.
async fn go_on(config: &Config, dir: &DataDir, partition: Partition, clock: Clock) -> Result<Resumed, Fatal> {
    let (data, control) = dir.open(config.rules.period_s)?;
    let recovered = Recovery::new(data.clone(), partition, move || clock.now()).finish(&config.rules, &Ends::new())?;
    let mut claim = claim(config, &data, control.clone(), &recovered, partition)?;
    if let Some(claim) = &mut claim {
        // The persistence thread does this again: here it is only to find out before anything is sold.
        match tokio::time::timeout(CLAIM_TIME, claim.make()).await {
            Ok(Err(Failure::Final(why))) => return Err(why),
            Ok(Ok(_)) | Ok(Err(Failure::Passing(_))) | Err(_) => {}
        }
    }
    Ok(Resumed { data, control, recovered, claim })
}

/// A run that is to go on in the place of one that still sells.
pub struct Ahead {
    data: Opened,
    control: ControlFile,
    recovery: Recovery,
    partition: Partition,
}

impl Ahead {
    /// Reads what that run has written so far, and finds out what could keep this one, run `epoch`, from going on. It
    /// changes nothing.
    ///
    /// # Errors
    /// As for [`resume`].
    pub fn read(config: &Config, epoch: u32, partition: Partition, clock: Clock) -> Result<Ahead, Fatal> {
        let (data, control) = DataDir::look_into(&config.data_dir, config.rules.period_s, epoch)?;
        let mut recovery = Recovery::new(data.clone(), partition, move || clock.now());
        recovery.read_ahead()?;
        if let Some(url) = &config.database {
            let owner = Owner { cluster: data.cluster, run: Run { epoch, id: host::new_id()? } };
            let found = event_loop()?.block_on(async { tokio::time::timeout(CLAIM_TIME, Snapshot::take(url)).await });
            // What that run has put there, it has remembered before.
            control.read_again()?;
            match found {
                Ok(Err(Failure::Final(why))) => return Err(why),
                Ok(Ok(found)) => {
                    let judged = judge_owner(owner, control.database(), found.owner, config.recover_from);
                    judged.map_err(|why| fatal(&why))?;
                }
                // If it is away, selling goes on without, as it does with the run before.
                Ok(Err(Failure::Passing(_))) | Err(_) => {}
            }
        }
        Ok(Ahead { data, control, recovery, partition })
    }

    /// Reads on, until it has come close enough to what that run is writing.
    ///
    /// # Errors
    /// As for [`Ahead::read`].
    pub fn catch_up(&mut self) -> Result<(), Fatal> {
        for _ in 0..CATCH_UP_TRIES {
            if self.recovery.read_ahead()? < CLOSE_ENOUGH {
                break;
            }
        }
        Ok(())
    }

    /// How many items of each shard are held, as far as it has read.
    pub fn held(&self) -> Vec<u32> {
        self.recovery.held()
    }

    /// The data directory.
    pub fn data(&self) -> &Opened {
        &self.data
    }

    /// Reads the rest, when that run has stopped writing and told where its streams end.
    ///
    /// # Errors
    /// [`Fatal::Damaged`], [`Fatal::DataDir`].
    pub fn finish(self, config: &Config, told: &Ends) -> Result<Resumed, Fatal> {
        let Ahead { data, control, recovery, partition } = self;
        let recovered = recovery.finish(&config.rules, told)?;
        let claim = claim(config, &data, control.clone(), &recovered, partition)?;
        Ok(Resumed { data, control, recovered, claim })
    }
}

/// What this run is to claim, if there is a database.
fn claim(
    config: &Config,
    data: &Opened,
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
        recover_from: config.recover_from,
        control,
        logs: data.logs.clone(),
        streams: earlier.chain(streams).collect(),
    }))
}
