//! What a run goes on with: the log of its data directory or, if that is new, the sale that the database knows.

use crate::claim::Claim;
use crate::config::Config;
use crate::data_dir::{DataDir, Opened};
use crate::fatal::Fatal;
use crate::host;
use crate::ownership::{Owner, RecoverFrom, Run};
use crate::partition::Partition;
use crate::postgres::Failure;
use crate::recovery::{Recovered, recover};
use crate::takeover::{self, Attempt};
use crate::types::Moment;
use std::time::Duration;
use uuid::Uuid;

/// How long a start waits for the database to say whether it fits the log. If it is away, selling goes on without.
const CLAIM_TIME: Duration = Duration::from_secs(3);
/// How long between two attempts to take a sale over.
const RETRY_TIME: Duration = Duration::from_millis(500);
/// How long one attempt may take.
const ATTEMPT_TIME: Duration = Duration::from_secs(30);

/// A run, about to begin.
pub struct Resumed {
    /// Its data directory.
    pub data: Opened,
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
    now: Moment,
    is_stopped: impl Fn(Duration) -> bool,
) -> Result<Option<Resumed>, Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fatal::Host(format!("no event loop: {error}")))?;
    let mut is_set_aside = false;
    loop {
        if dir.is_new() && config.recover_from != RecoverFrom::Log {
            let is_filled = runtime.block_on(fill(config, dir, &is_stopped))?;
            if !is_filled {
                return Ok(None);
            }
        }
        match runtime.block_on(go_on(config, dir, partition, now)) {
            Err(why @ (Fatal::Damaged(_) | Fatal::DirectoryOlder(_)))
                if config.recover_from == RecoverFrom::Postgres && !is_set_aside =>
            {
                is_set_aside = true;
                let aside = dir.set_aside()?;
                tracing::warn!(%why, aside = %aside.display(), "the log is set aside: the sale goes on from the database");
            }
            result => return result.map(Some),
        }
    }
}

/// Fills a new data directory from the database, if there is one, however long it takes to reach it: the sale may be
/// there. Returns whether that is settled; not, if the process has been told to stop.
async fn fill(config: &Config, dir: &DataDir, is_stopped: impl Fn(Duration) -> bool) -> Result<bool, Fatal> {
    let Some(url) = &config.database else { return Ok(true) };
    let mut said = String::new();
    let mut last_silence = Duration::ZERO;
    loop {
        let attempt = takeover::attempt(url, dir, config.rules.period_s);
        let attempt = tokio::time::timeout(ATTEMPT_TIME, attempt).await;
        let trouble = match attempt.unwrap_or_else(|_| Err(Failure::Passing("it took too long to answer".into()))) {
            Ok(Attempt::NothingThere) => return Ok(true),
            Ok(Attempt::TakenOver(taken_over)) => {
                let (epoch, records) = (taken_over.owner.run.epoch, taken_over.records.len());
                tracing::info!(url = url.place(), epoch, records, "the sale is taken over from the database");
                return Ok(true);
            }
            Ok(Attempt::NotSilent(silence)) if silence < last_silence => {
                return Err(Fatal::Database(format!(
                    "another server is running on it, heard of {} ms ago; stop that one, or give this one a database of its own",
                    silence.as_millis()
                )));
            }
            Ok(Attempt::NotSilent(silence)) => {
                last_silence = silence;
                "another server was heard of a moment ago: it must be silent for 10 s first".to_owned()
            }
            Err(Failure::Passing(why)) => why,
            Err(Failure::Final(why)) => return Err(why),
        };
        if trouble != said {
            tracing::warn!(
                url = url.place(),
                why = trouble,
                "waiting for the database: this data directory is empty, and the sale may be there; --recover-from log begins anew"
            );
            said = trouble;
        }
        if is_stopped(RETRY_TIME) {
            return Ok(false);
        }
    }
}

/// Recovers from the log, and asks the database whether it agrees, if it answers.
async fn go_on(config: &Config, dir: &DataDir, partition: Partition, now: Moment) -> Result<Resumed, Fatal> {
    let sale_period_s = config.rules.period_s;
    let (data, control) = dir.open(sale_period_s)?;
    let mut recovered = recover(&data, partition, &config.rules, now)?;
    let Some(url) = config.database.clone() else { return Ok(Resumed { data, recovered, claim: None }) };
    let run = Run { epoch: data.epoch, id: Uuid::from_bytes(host::random()?) };
    let mut claim = Claim {
        url,
        owner: Owner { cluster: data.cluster, run },
        sale_period_s,
        recover_from: config.recover_from,
        control,
        logs: data.logs.clone(),
        earlier: std::mem::take(&mut recovered.earlier),
    };
    // The persistence thread does this again: here it is only to find out before anything is sold.
    match tokio::time::timeout(CLAIM_TIME, claim.make()).await {
        Ok(Err(Failure::Final(why))) => Err(why),
        Ok(Ok(_)) | Ok(Err(Failure::Passing(_))) | Err(_) => Ok(Resumed { data, recovered, claim: Some(claim) }),
    }
}
