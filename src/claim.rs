//! Taking the database for this run, if it and the data directory fit together.

use crate::block::StreamId;
use crate::data_dir::ControlFile;
use crate::database_url::DatabaseUrl;
use crate::fatal::Fatal;
use crate::log_reader::LogReader;
use crate::ownership::{Conflict, Owner, RecoverFrom, judge_owner, judge_position};
use crate::postgres::{Database, Failure, Positions};
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
    /// Streams of earlier runs, and how many records each has.
    pub earlier: Vec<(StreamId, Seq)>,
}

impl Claim {
    /// Connects, and takes the database for this run if the two fit together.
    ///
    /// # Errors
    /// [`Failure::Final`]: they do not.
    pub async fn make(&mut self) -> Result<(Database, Positions), Failure> {
        let mut database = Database::connect(&self.url).await?;
        let (owner, period) = (self.owner, self.sale_period_s);
        let positions = database.claim(owner, period, |found, positions| self.judge(found, positions)).await?;
        Ok((database, positions))
    }

    fn judge(&mut self, found: Option<Owner>, positions: &Positions) -> Result<(), Failure> {
        let memory = self.control.database();
        judge_owner(self.owner, memory, found, self.recover_from).map_err(conflict)?;
        if found.is_some()
            && self.earlier.is_empty()
            && positions.keys().any(|(epoch, ..)| *epoch < self.owner.run.epoch)
        {
            let why = "it has records of this installation, and the log of this data directory is empty";
            return Err(conflict(Conflict::DirectoryOlder(why.into())));
        }
        for (stream, end) in &self.earlier {
            let first = LogReader::new(&self.logs, *stream).first().map_err(unreadable)?;
            self.judge_position(stream, (first.unwrap_or(*end), Some(*end)), positions)?;
        }
        let remembered = self.control.remember(memory.claiming(found, self.owner.run));
        remembered.map_err(|error| Failure::Final(Fatal::DataDir(format!("control.json cannot be written: {error}"))))
    }

    /// Where the stream goes on.
    ///
    /// # Errors
    /// [`Failure::Final`]: the two do not fit together.
    pub fn judge_position(
        &self,
        stream: &StreamId,
        ends: (Seq, Option<Seq>),
        positions: &Positions,
    ) -> Result<Seq, Failure> {
        let is_new = self.control.database().seen.is_none();
        let known = known(positions, stream);
        judge_position(stream, ends, known, is_new, self.recover_from).map_err(conflict)
    }
}

/// How much of a stream the database has, if it knows it.
pub fn known(positions: &Positions, stream: &StreamId) -> Option<Seq> {
    positions.get(&(stream.epoch, stream.shard, stream.log.name().to_owned())).copied()
}

fn conflict(conflict: Conflict) -> Failure {
    let text = conflict.text();
    Failure::Final(match conflict {
        Conflict::Foreign(_) | Conflict::DirectoryOlder(_) => Fatal::DirectoryOlder(text),
        Conflict::DatabaseOlder(_) => Fatal::Database(text),
    })
}

/// The log cannot be read back: it may be a passing fault of the disk, but nothing can be shipped before it is gone.
pub fn unreadable(error: std::io::Error) -> Failure {
    Failure::Final(Fatal::LogFailed(format!("it cannot be read for the database: {error}")))
}
