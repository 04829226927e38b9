//! The claim: makes this run the owner of the database, if the database and the data directory fit together.
//!
//! The rules are in [`crate::log::ownership`]; the rows are in [`crate::postgres::owner_row`]. The data directory
//! remembers a claim before the database receives it, so that the next run can recognize a claim whose answer was lost.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::RecoverFrom;
use crate::log::block::{StreamId, StreamKey};
use crate::log::data_dir::ControlFile;
use crate::log::ownership::{Conflict, Memory, Owner, judge_owner, judge_position};
use crate::log::reader::first_records;
use crate::postgres::failure::Failure;
use crate::postgres::limits::in_time;
use crate::postgres::owner_row::{OwnerRow, OwnerTerms, Positions, known_position};
use crate::postgres::session::Database;
use crate::sale::ids::Seq;
use crate::system::host::lacks_descriptors;
use std::path::PathBuf;
use std::time::Duration;

/// Limit for the transaction of a claim. It is longer than `lock_timeout`.
const CLAIM_TIME: Duration = Duration::from_secs(15);

/// Everything that a claim needs: the database, this run, and what the data directory has.
pub struct Claim {
    /// Address and options of the database.
    pub url: DatabaseUrl,
    /// Installation and run of this process.
    pub owner: Owner,
    /// What the database is told about this run.
    pub terms: OwnerTerms,
    /// Whether this process serves clients already. It then waits for a database that cannot be used until a person has
    /// repaired it, and does not end.
    pub sells: bool,
    /// Side that is used if the database and the data directory contradict each other.
    pub recover_from: RecoverFrom,
    /// `control.json`, with what the data directory remembers of the database.
    pub control: ControlFile,
    /// Directory of the segments.
    pub logs: PathBuf,
    /// Every stream of the data directory, those of this run included, with the number of records that it has lost at its
    /// beginning, and the number of all its records. The latter is `None` for the streams of this run, because they still
    /// grow.
    pub streams: Vec<(StreamId, Seq, Option<Seq>)>,
    /// The owner and the positions that this process found at its first claim, if the database had an owner.
    pub first_found: Option<(Owner, Positions)>,
}

impl Claim {
    /// Connects, and makes this run the owner of the database if the database fits the data directory. Returns for each
    /// stream the number of records that need not be sent any more.
    ///
    /// # Errors
    /// [`Failure::Final`]: the database does not fit the data directory, its schema is newer than this version, it
    /// does not replicate and this process does not serve clients yet, or the log cannot be read. [`Failure::Transient`]:
    /// the database or `control.json` failed; a later attempt may succeed.
    pub async fn make(&mut self) -> Result<(Database, Vec<(StreamId, Seq)>), Failure> {
        let memory = self.control.database();
        // The schema of an earlier version may belong to a server that is running. Only its successor may change it.
        let may_migrate = |found| {
            let judged = judge_owner(self.owner, memory, found, self.recover_from);
            judged.map(drop).map_err(|conflict| Failure::Final(conflict.into()))
        };
        // One of two servers waits, too: the other one may sell.
        let OwnerTerms { ack, patience, .. } = self.terms;
        let waits = self.sells || patience.is_some();
        let mut database = Database::connect(&self.url, (ack, waits), may_migrate).await?;
        // The run that has taken over may hold its locks for a long time, and this one must learn of it meanwhile.
        let judged = judge_owner(self.owner, memory, database.owner().await?, self.recover_from);
        if let Err(conflict @ Conflict::DirectoryOlder(_)) = judged {
            return Err(Failure::Final(conflict.into()));
        }
        let (owner, terms) = (self.owner, self.terms);
        let claiming = database.claim(owner, terms, |found, positions| self.judge(found, positions));
        let streams = in_time(CLAIM_TIME, claiming).await?;
        self.set_exclusive(!ack.needs_database())?;
        Ok((database, streams))
    }

    /// Returns whether the shards may sell before the database names this run: another machine then cannot sell the same
    /// items. Either no purchase is acknowledged without the database, or no other machine replaces the run that the
    /// database names, or an operator has chosen the log. One of two servers never does: the other one may sell.
    pub fn may_precede(&self) -> bool {
        if self.terms.patience.is_some() {
            return false;
        }
        self.terms.ack.needs_database() || self.control.database().is_exclusive || self.recover_from == RecoverFrom::Log
    }

    /// Reports that this run has ended and that all its records are in the database, so that another run can take over
    /// at once. The data directory remembers this first, so that its next run does not sell before it has claimed the
    /// database again.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over the database. [`Failure::Transient`]: `control.json` or the
    /// database failed.
    pub async fn leave(&self, database: &Database) -> Result<(), Failure> {
        self.set_exclusive(false)?;
        database.leave(self.owner).await
    }

    fn set_exclusive(&self, is_exclusive: bool) -> Result<(), Failure> {
        self.remember(Memory { is_exclusive, ..self.control.database() })
    }

    fn remember(&self, memory: Memory) -> Result<(), Failure> {
        let remembered = self.control.remember(memory);
        remembered.map_err(|error| Failure::Transient(format!("control.json cannot be written: {error}").into()))
    }

    fn judge(&mut self, row: Option<OwnerRow>, positions: &Positions) -> Result<Vec<(StreamId, Seq)>, Failure> {
        let found = row.map(|row| row.owner);
        let is_kept = |stream: &StreamKey| self.streams.iter().any(|(kept, ..)| kept.key() == *stream);
        let memory = self.control.database();
        let memory = remembered(memory, self.first_found.as_ref(), (self.owner, found, positions), is_kept);
        let firsts = first_records(&self.logs, self.owner.cluster).map_err(unreadable)?;
        let extents = self.streams.iter().map(|(stream, lost, end)| {
            let first = firsts.get(&stream.key()).copied();
            (*stream, first.or(*end).unwrap_or(0).max(*lost), *end)
        });
        let extents: Vec<_> = extents.collect();
        let streams =
            judge((self.owner, memory), (found, positions), &extents, self.recover_from).map_err(Fatal::from)?;
        if self.first_found.is_none() {
            self.first_found = found.map(|found| (found, positions.clone()));
        }
        for (stream, at) in &streams {
            let missing = at.checked_sub(known_position(positions, stream).unwrap_or(0));
            if let Some(missing) = missing.filter(|missing| *missing > 0) {
                tracing::warn!(%stream, missing, "records that the log no longer has will be missing in the database");
            }
        }
        // Remember the claim before it is sent: if its answer is lost, only this entry distinguishes it from the claim of
        // another data directory.
        // The answer may be lost, so the run is exclusive only if the row is so before and after the claim.
        let is_exclusive = row.is_some_and(|row| row.is_exclusive()) && !self.terms.ack.needs_database();
        self.remember(Memory { is_exclusive, ..memory.claiming(found, self.owner.run) })?;
        Ok(streams)
    }
}

/// Returns what the data directory of `this` run must remember when it has found this owner and these positions. If the
/// database was restored to a state before the first claim of this process, and has as much as then of the streams that
/// this directory no longer had, the log can supply everything else. `is_kept` says of a stream whether the log has it.
pub fn remembered(
    memory: Memory,
    first_found: Option<&(Owner, Positions)>,
    (this, found, positions): (Owner, Option<Owner>, &Positions),
    is_kept: impl Fn(&StreamKey) -> bool,
) -> Memory {
    let is_before = |(first, _): &&(Owner, Positions)| Some(*first) == found && *first != this;
    match first_found.filter(is_before) {
        Some((first, before)) if before.iter().all(|(key, at)| is_kept(key) || positions.get(key) >= Some(at)) => {
            Memory { seen: Some(first.run), ..memory }
        }
        _ => memory,
    }
}

/// Returns the position from which each stream is sent. `this` run and `memory` belong to the data directory; `found`
/// (the owner) and `positions` come from the database. `extents` lists the streams of the data directory: the number of
/// records removed from the beginning of each, and the number of its records, or `None` if the stream still grows.
///
/// # Errors
/// The conflict, if the database and the data directory do not fit together and `from` does not settle it.
pub fn judge(
    (this, memory): (Owner, Memory),
    (found, positions): (Option<Owner>, &Positions),
    extents: &[(StreamId, Seq, Option<Seq>)],
    from: RecoverFrom,
) -> Result<Vec<(StreamId, Seq)>, Conflict> {
    judge_owner(this, memory, found, from)?;
    let has_logs = extents.iter().any(|(_, _, end)| end.is_some());
    let is_known = positions.iter().any(|(key, at)| key.epoch < this.run.epoch && *at > 0);
    if is_known && !has_logs {
        let why = "it has records of this installation, and the log of this data directory is empty";
        return Err(Conflict::DirectoryOlder(why.into()));
    }
    let is_new = memory.seen.is_none();
    let start_position = |(stream, first, end): &(StreamId, Seq, Option<Seq>)| {
        let known = known_position(positions, stream);
        Ok((*stream, judge_position(stream, (*first, *end), known, is_new, from)?))
    };
    extents.iter().map(start_position).collect()
}

/// Returns the failure for a log that cannot be read back. It is final: without the log nothing can be sent, and the
/// next start reads the log again. Only a lack of file descriptors passes.
pub fn unreadable(error: std::io::Error) -> Failure {
    if lacks_descriptors(&error) {
        return Failure::Transient(format!("the log cannot be read: {error}; raise LimitNOFILE or ulimit -n").into());
    }
    Failure::Final(Fatal::LogFailed(format!("its records cannot be read back for the database: {error}")))
}
