//! Taking the database for this run, if it and the data directory fit together.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamId;
use crate::log::data_dir::ControlFile;
use crate::log::ownership::{Conflict, Memory, Owner, judge_owner, judge_position};
use crate::log::reader::LogReader;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{Positions, known_position};
use crate::postgres::session::Database;
use crate::sale::ids::Seq;
use std::path::PathBuf;

/// What this run writes to which database, by which right.
pub struct Claim {
    /// Where to connect.
    pub url: DatabaseUrl,
    /// This run.
    pub owner: Owner,
    /// The length of a sale.
    pub sale_period_s: u32,
    /// What wins in a contradiction.
    pub recover_from: RecoverFrom,
    /// What the data directory remembers of the database.
    pub control: ControlFile,
    /// Where the segments are.
    pub logs: PathBuf,
    /// Every stream of this directory, this run's too, and how many records each has in the end, if that is known.
    pub streams: Vec<(StreamId, Option<Seq>)>,
}

impl Claim {
    /// Connects, and takes the database for this run if the two fit together. Returns where each stream goes on.
    ///
    /// # Errors
    /// [`Failure::Final`]: they do not.
    pub async fn make(&mut self) -> Result<(Database, Vec<(StreamId, Seq)>), Failure> {
        let mut database = Database::connect(&self.url).await?;
        let (owner, period) = (self.owner, self.sale_period_s);
        let streams = database.claim(owner, period, |found, positions| self.judge(found, positions)).await?;
        Ok((database, streams))
    }

    fn judge(&mut self, found: Option<Owner>, positions: &Positions) -> Result<Vec<(StreamId, Seq)>, Failure> {
        let memory = self.control.database();
        let extents = self.streams.iter().map(|(stream, end)| {
            let first = LogReader::new(&self.logs, *stream).first().map_err(unreadable)?;
            Ok((*stream, first.or(*end).unwrap_or(0), *end))
        });
        let extents: Vec<_> = extents.collect::<Result<_, Failure>>()?;
        let streams = judge((self.owner, memory), (found, positions), &extents, self.recover_from).map_err(conflict)?;
        for (stream, at) in &streams {
            let missing = at.checked_sub(known_position(positions, stream).unwrap_or(0));
            if let Some(missing) = missing.filter(|missing| *missing > 0) {
                tracing::warn!(%stream, missing, "records that the log no longer has will be missing in the database");
            }
        }
        // Without this memory a claim in doubt could not be told from somebody else's.
        let remembered = self.control.remember(memory.claiming(found, self.owner.run));
        remembered.map_err(|error| Failure::Passing(format!("control.json cannot be written: {error}")))?;
        Ok(streams)
    }
}

/// Where each stream goes on, if the database that `found` owns, where streams have come to these positions, fits the
/// data directory of `this` run, with its memory. `extents` are the directory's streams: how many records each has lost
/// at its beginning, and how many it has in the end, if that is known.
///
/// # Errors
/// They do not fit together.
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
    let goes_on = |(stream, first, end): &(StreamId, Seq, Option<Seq>)| {
        let known = known_position(positions, stream);
        Ok((*stream, judge_position(stream, (*first, *end), known, is_new, from)?))
    };
    extents.iter().map(goes_on).collect()
}

fn conflict(conflict: Conflict) -> Failure {
    Failure::Final(fatal(&conflict))
}

/// The end that a conflict is, with the sentence for the operator.
pub fn fatal(conflict: &Conflict) -> Fatal {
    let text = conflict.text();
    match conflict {
        Conflict::Foreign(_) | Conflict::DirectoryOlder(_) => Fatal::DirectoryOlder(text),
        Conflict::DatabaseOlder(_) | Conflict::OlderThanTheLog => Fatal::Database(text),
    }
}

/// The log cannot be read back: it may be a passing fault of the disk, but nothing can be shipped before it is gone.
pub fn unreadable(error: std::io::Error) -> Failure {
    Failure::Final(Fatal::LogFailed(format!("it cannot be read for the database: {error}")))
}
