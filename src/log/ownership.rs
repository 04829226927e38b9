//! The ownership rules: whether a run may write to a database, and from which record each stream continues there. This
//! file only compares values; `postgres` reads and writes the owner row.
//!
//! The database names one run as its owner. A data directory remembers the last owner that it has seen in the database
//! (`seen`), the last run that it was about to write there (`claiming`), and the run as which it was filled from the
//! database (`filled`). The first row that applies decides:
//!
//! | the database names | verdict |
//! |---|---|
//! | another installation | refuse |
//! | this run, or the run in `seen` or `claiming` | accept: no other run has written in between |
//! | no owner, and `seen` is empty | accept |
//! | no owner, or an epoch below `seen` | refuse: the database is older; accept with `--recover-from log` (1) |
//! | any other run | refuse: that run may have sold items of which this directory does not know |
//!
//! (1) Refuse even then if the database names no owner or a run with an epoch below `filled`: the log starts with
//! records that came from a later state of the database, so it cannot supply the records before them.
//!
//! Then the position of each stream, which is the number of its records in the database, must lie within the log:
//!
//! | position | verdict |
//! |---|---|
//! | greater than the number of records of the stream | refuse: the data directory is older |
//! | less than the number of records removed from the start of the log | refuse: the database is older (2) |
//! | any other | accept: shipping continues after it |
//!
//! (2) Accept with `--recover-from log`, or if the directory never used a database: shipping continues with the first
//! record that the log still has.
//!
//! `--recover-from postgres` changes no verdict here. The caller sets the log aside if the database belongs to another
//! installation or if the data directory is the older one.

use crate::config::fatal::Fatal;
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamId;
use crate::sale::ids::Seq;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// One run of the server in an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Epoch, raised at each start.
    pub epoch: u32,
    /// Random id, because copies of one data directory reach the same epoch.
    pub id: Uuid,
}

/// Owner of a database: a run of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Installation.
    pub cluster: Uuid,
    /// Run of the installation.
    pub run: Run,
}

/// What a data directory remembers about the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Last run of this installation that the database was seen to name.
    pub seen: Option<Run>,
    /// Last run that was about to be written to the database as its owner. Whether the write succeeded may be unknown.
    pub claiming: Option<Run>,
    /// Run as which this directory was filled from the database, if it was. The log starts with records from the
    /// database, and these records cannot be sent to the database again.
    #[serde(default)]
    pub filled: Option<Run>,
    /// Whether the database is known to name a run of this directory that has not ended and has `--ack local`. No other
    /// machine replaces such a run without the word of an operator, so a run may then sell before it reaches the
    /// database.
    #[serde(default)]
    pub is_exclusive: bool,
}

impl Memory {
    /// Returns what the directory must remember before the database names `run` instead of `found`.
    pub fn claiming(self, found: Option<Owner>, run: Run) -> Memory {
        Memory { seen: found.map_or(self.seen, |owner| Some(owner.run)), claiming: Some(run), ..self }
    }

    fn knows(self, run: Run) -> bool {
        self.seen == Some(run) || self.claiming == Some(run)
    }
}

/// Reason why a database and a data directory do not fit together. The message follows the words "cannot use the
/// database: ".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    /// The database belongs to this other installation.
    #[error(
        "it belongs to another installation ({0}); set --database-url to another database, or continue the sale of that \
         installation with --recover-from postgres, which moves the log of this data directory to set-aside-N"
    )]
    OtherInstallation(Uuid),
    /// The database lacks records that it once had. The text says which.
    #[error(
        "{0}: it was restored from a backup, or is not the database used before; restore its latest version, or continue \
         with what the log still has: --recover-from log"
    )]
    DatabaseOlder(String),
    /// The database lacks records with which the log of this directory starts and which came from the database.
    #[error(
        "it is older than the sale that this data directory took over from it, so the log cannot supply the missing \
         records; restore a later version of the database"
    )]
    OlderThanFill,
    /// The data directory lacks records that the database has, or sales of another run. The text says which.
    #[error(
        "{0}: the data directory is older than the database; restore its latest version, or continue from the database \
         with --recover-from postgres, which moves the log of this data directory to set-aside-N"
    )]
    DirectoryOlder(String),
}

/// The reason to end that a conflict is.
impl From<Conflict> for Fatal {
    fn from(conflict: Conflict) -> Fatal {
        let text = conflict.to_string();
        match conflict {
            Conflict::OtherInstallation(_) | Conflict::DirectoryOlder(_) => Fatal::DirectoryOlder(text),
            Conflict::DatabaseOlder(_) | Conflict::OlderThanFill => Fatal::Database(text),
        }
    }
}

/// Decides whether `this` run, of a directory with this `memory`, may write to a database that names `found`.
///
/// # Errors
/// The [`Conflict`] of the first table above, unless `from` permits the run to continue.
pub fn judge_owner(this: Owner, memory: Memory, found: Option<Owner>, from: RecoverFrom) -> Result<(), Conflict> {
    let is_older = match (found, memory.seen) {
        (Some(owner), _) if owner.cluster != this.cluster => return Err(Conflict::OtherInstallation(owner.cluster)),
        (Some(owner), _) if owner == this || memory.knows(owner.run) => return Ok(()),
        (None, None) => return Ok(()),
        (found, Some(seen)) => found.is_none_or(|owner| owner.run.epoch < seen.epoch),
        (Some(_), None) => false,
    };
    let is_before = |filled: Run| found.is_none_or(|owner| owner.run.epoch < filled.epoch);
    match found {
        _ if is_older && memory.filled.is_some_and(is_before) => Err(Conflict::OlderThanFill),
        _ if is_older && from == RecoverFrom::Log => Ok(()),
        Some(owner) if is_older => {
            let (found, seen) = (owner.run.epoch, memory.seen.map_or(0, |run| run.epoch));
            Err(Conflict::DatabaseOlder(format!(
                "its last run has epoch {found}, but the data directory has seen epoch {seen} in it"
            )))
        }
        Some(owner) => Err(Conflict::DirectoryOlder(format!(
            "another run of this installation has taken it over (epoch {})",
            owner.run.epoch
        ))),
        None => Err(Conflict::DatabaseOlder("it is empty, but the data directory has used a database before".into())),
    }
}

/// Returns the number of records of `stream` after which shipping continues. The log no longer has the first `first`
/// records. The stream has `end` records, or still grows if that is `None`. The database has `position` records, `None`
/// if it does not know the stream. `is_new` means that this directory has never used a database.
///
/// # Errors
/// The [`Conflict`] of the second table above, unless `from` permits the run to continue.
pub fn judge_position(
    stream: &StreamId,
    (first, end): (Seq, Option<Seq>),
    position: Option<Seq>,
    is_new: bool,
    from: RecoverFrom,
) -> Result<Seq, Conflict> {
    let at = position.unwrap_or(0);
    if let Some(end) = end.filter(|end| at > *end) {
        return Err(Conflict::DirectoryOlder(format!("it has {at} records of {stream}, but the log has {end}")));
    }
    if at < first && !is_new && from != RecoverFrom::Log {
        return Err(Conflict::DatabaseOlder(format!(
            "it has {at} records of {stream}, but the log has removed the first {first}"
        )));
    }
    Ok(at.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::LogKind;

    const CLUSTER: Uuid = Uuid::from_u128(1);

    fn run(epoch: u32, id: u128) -> Run {
        Run { epoch, id: Uuid::from_u128(id) }
    }

    fn owner(run: Run) -> Owner {
        Owner { cluster: CLUSTER, run }
    }

    /// Returns a word for a verdict.
    fn word<T>(verdict: Result<T, Conflict>) -> &'static str {
        match verdict {
            Ok(_) => "take",
            Err(Conflict::OtherInstallation(_)) => "foreign",
            Err(Conflict::DatabaseOlder(_) | Conflict::OlderThanFill) => "database older",
            Err(Conflict::DirectoryOlder(_)) => "directory older",
        }
    }

    #[test]
    fn the_table_of_owners_holds() {
        let this = run(7, 70);
        let fresh = Memory::default();
        let used = Memory { seen: Some(run(5, 50)), claiming: Some(run(6, 60)), ..fresh };
        let unsure = Memory { seen: None, ..used };
        let filled = Memory { filled: Some(run(4, 40)), ..used };
        for (memory, found, expected) in [
            (fresh, None, "take"),
            (unsure, None, "take"),
            (used, None, "database older"),
            (fresh, Some(this), "take"),
            (used, Some(this), "take"),
            (used, Some(run(5, 50)), "take"),
            (used, Some(run(6, 60)), "take"),
            (unsure, Some(run(6, 60)), "take"),
            (used, Some(run(4, 40)), "database older"),
            (used, Some(run(5, 51)), "directory older"),
            (used, Some(run(6, 61)), "directory older"),
            (used, Some(run(8, 80)), "directory older"),
            (used, Some(run(7, 71)), "directory older"),
            (fresh, Some(run(1, 10)), "directory older"),
        ] {
            let verdict = |from| word(judge_owner(owner(this), memory, found.map(owner), from));
            assert_eq!(verdict(RecoverFrom::Auto), expected, "{memory:?} {found:?}");
            let with_log = if expected == "database older" { "take" } else { expected };
            assert_eq!(verdict(RecoverFrom::Log), with_log, "{memory:?} {found:?}");
            assert_eq!(verdict(RecoverFrom::Postgres), expected, "`process` sets the log aside");
        }
        for (found, expected) in [(run(3, 30), "database older"), (run(4, 41), "take"), (run(5, 50), "take")] {
            assert_eq!(word(judge_owner(owner(this), filled, Some(owner(found)), RecoverFrom::Log)), expected);
        }
        let stranger = Owner { cluster: Uuid::from_u128(2), run: run(5, 50) };
        assert_eq!(word(judge_owner(owner(this), used, Some(stranger), RecoverFrom::Log)), "foreign");
    }

    #[test]
    fn what_is_remembered_covers_a_claim_in_doubt() {
        let first = Memory::default().claiming(None, run(1, 10));
        // The next run may continue, whether or not the database accepted the claim.
        for found in [None, Some(owner(run(1, 10)))] {
            assert_eq!(word(judge_owner(owner(run(2, 20)), first, found, RecoverFrom::Auto)), "take");
            let second = first.claiming(found, run(2, 20));
            let next = found.into_iter().chain([owner(run(2, 20))]);
            for found in next {
                assert_eq!(word(judge_owner(owner(run(3, 30)), second, Some(found), RecoverFrom::Auto)), "take");
            }
        }
    }

    #[test]
    fn positions_must_lie_within_the_log() {
        let stream = StreamId { cluster: CLUSTER, epoch: 3, shard: 1, log: LogKind::Purchases };
        let judge = |first, end, position, is_new, from| judge_position(&stream, (first, end), position, is_new, from);
        let auto = RecoverFrom::Auto;
        assert_eq!(judge(0, Some(9), None, false, auto), Ok(0));
        assert_eq!(judge(4, Some(9), Some(6), false, auto), Ok(6));
        assert_eq!(judge(4, None, Some(600), false, auto), Ok(600), "the log of this run still grows");
        assert_eq!(judge(4, Some(9), None, true, auto), Ok(4), "the records were removed before the first database");
        assert_eq!(word(judge(4, Some(9), Some(10), false, auto)), "directory older");
        assert_eq!(word(judge(4, Some(9), Some(3), false, auto)), "database older");
        assert_eq!(word(judge(4, Some(9), None, false, auto)), "database older");
        assert_eq!(judge(4, Some(9), Some(3), false, RecoverFrom::Log), Ok(4));
        assert_eq!(word(judge(4, Some(9), Some(10), false, RecoverFrom::Log)), "directory older");
    }
}
