//! The claim: makes this run the owner of the database, if the database and the data directory fit together.
//!
//! The rules are in [`crate::log::ownership`]; the rows are in [`crate::postgres::owner_row`]. The data directory
//! remembers a claim before the database receives it, so that the next run can recognize a claim whose answer was lost.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamId;
use crate::log::data_dir::ControlFile;
use crate::log::ownership::{Conflict, Memory, Owner, judge_owner, judge_position};
use crate::log::reader::LogReader;
use crate::log::segment::lacks_descriptors;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{Positions, known_position};
use crate::postgres::session::Database;
use crate::sale::ids::Seq;
use std::path::PathBuf;

/// Everything that a claim needs: the database, this run, and what the data directory has.
pub struct Claim {
    /// Address and options of the database.
    pub url: DatabaseUrl,
    /// Installation and run of this process.
    pub owner: Owner,
    /// Length of a sale, in seconds.
    pub sale_period_s: u32,
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
}

impl Claim {
    /// Connects, and makes this run the owner of the database if the database fits the data directory. Returns for each
    /// stream the number of records that need not be sent any more.
    ///
    /// # Errors
    /// [`Failure::Final`]: the database does not fit the data directory, its schema is newer than this version, or the
    /// log cannot be read. [`Failure::Transient`]: the database or `control.json` failed; a later attempt may succeed.
    pub async fn make(&mut self) -> Result<(Database, Vec<(StreamId, Seq)>), Failure> {
        let mut database = Database::connect(&self.url).await?;
        let (owner, period) = (self.owner, self.sale_period_s);
        let streams = database.claim(owner, period, |found, positions| self.judge(found, positions)).await?;
        Ok((database, streams))
    }

    fn judge(&mut self, found: Option<Owner>, positions: &Positions) -> Result<Vec<(StreamId, Seq)>, Failure> {
        let memory = self.control.database();
        let extents = self.streams.iter().map(|(stream, lost, end)| {
            let first = LogReader::new(&self.logs, *stream).first().map_err(unreadable)?;
            Ok((*stream, first.or(*end).unwrap_or(0).max(*lost), *end))
        });
        let extents: Vec<_> = extents.collect::<Result<_, Failure>>()?;
        let streams =
            judge((self.owner, memory), (found, positions), &extents, self.recover_from).map_err(Fatal::from)?;
        for (stream, at) in &streams {
            let missing = at.checked_sub(known_position(positions, stream).unwrap_or(0));
            if let Some(missing) = missing.filter(|missing| *missing > 0) {
                tracing::warn!(%stream, missing, "records that the log no longer has will be missing in the database");
            }
        }
        // Remember the claim before it is sent: if its answer is lost, only this entry distinguishes it from the claim of
        // another data directory.
        let remembered = self.control.remember(memory.claiming(found, self.owner.run));
        remembered.map_err(|error| Failure::Transient(format!("control.json cannot be written: {error}")))?;
        Ok(streams)
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
        return Failure::Transient(format!("the log cannot be read: {error}; raise LimitNOFILE or ulimit -n"));
    }
    Failure::Final(Fatal::LogFailed(format!("its records cannot be read back for the database: {error}")))
}
