//! Taking the database for this run, if it and the data directory fit together.

use crate::block::StreamId;
use crate::data_dir::ControlFile;
use crate::database_url::DatabaseUrl;
use crate::fatal::Fatal;
use crate::log_reader::LogReader;
use crate::ownership::{Conflict, Owner, RecoverFrom, judge_owner, judge_position};
use crate::postgres::{Database, Failure, Positions, known_position};
use crate::types::Seq;
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
        judge_owner(self.owner, memory, found, self.recover_from).map_err(conflict)?;
        let has_logs = self.streams.iter().any(|(_, end)| end.is_some());
        let is_known = positions.iter().any(|((epoch, ..), at)| *epoch < self.owner.run.epoch && *at > 0);
        if is_known && !has_logs {
            let why = "it has records of this installation, and the log of this data directory is empty";
            return Err(conflict(Conflict::DirectoryOlder(why.into())));
        }
        let mut streams = Vec::new();
        for (stream, end) in &self.streams {
            let first = LogReader::new(&self.logs, *stream).first().map_err(unreadable)?.or(*end).unwrap_or(0);
            let known = known_position(positions, stream);
            let is_new = memory.seen.is_none();
            let at = judge_position(stream, (first, *end), known, is_new, self.recover_from).map_err(conflict)?;
            if let Some(missing) = at.checked_sub(known.unwrap_or(0)).filter(|missing| *missing > 0) {
                tracing::warn!(%stream, missing, "records that the log no longer has will be missing in the database");
            }
            streams.push((*stream, at));
        }
        // Without this memory a claim in doubt could not be told from somebody else's.
        let remembered = self.control.remember(memory.claiming(found, self.owner.run));
        remembered.map_err(|error| Failure::Passing(format!("control.json cannot be written: {error}")))?;
        Ok(streams)
    }
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
