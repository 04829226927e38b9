//! Whose the database is: who may write to it, and whether it and the data directory fit together.
//!
//! The database names one run as its owner. A data directory remembers the last run that it has seen there, and the
//! one that it was about to put there. Together they tell every case apart:
//!
//! | the database names | verdict |
//! |---|---|
//! | nobody, and this directory remembers nobody | take it |
//! | this run, or one that the directory remembers | take it: nobody else was there in between |
//! | another installation | refuse: it is another shop's |
//! | nobody, or an unknown run that is older than the one seen | refuse: the database was set back; the log may win, unless it began with what came from there later |
//! | any other run | refuse: somebody went on elsewhere, and this directory lacks what was sold there |
//!
//! Then stream by stream: how far the database has come must lie within what the directory has.

use crate::config::settings::RecoverFrom;
use crate::log::block::StreamId;
use crate::sale::ids::Seq;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One run of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Raised at each start.
    pub epoch: u32,
    /// Random: copies of one data directory count to the same epoch.
    pub id: Uuid,
}

/// A run of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The installation.
    pub cluster: Uuid,
    /// Its run.
    pub run: Run,
}

/// What a data directory remembers of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The last run of this directory that the database was seen to name.
    pub seen: Option<Run>,
    /// The last run that was about to be put there: it may be there.
    pub claiming: Option<Run>,
    /// The run as which this directory was filled from the database, if it was: what its log begins with came from
    /// there, and cannot be sent there again.
    #[serde(default)]
    pub filled: Option<Run>,
}

impl Memory {
    /// What to remember before `run` is put in the place of `found`.
    pub fn claiming(self, found: Option<Owner>, run: Run) -> Memory {
        Memory { seen: found.map_or(self.seen, |owner| Some(owner.run)), claiming: Some(run), ..self }
    }

    fn knows(self, run: Run) -> bool {
        self.seen == Some(run) || self.claiming == Some(run)
    }
}

/// Why the two do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The database belongs to this other installation.
    Foreign(Uuid),
    /// The database lacks what it once had.
    DatabaseOlder(String),
    /// It lacks even what the log of this directory began with, which came from there.
    OlderThanTheLog,
    /// The data directory lacks what the database has, or what another run sold.
    DirectoryOlder(String),
}

impl Conflict {
    /// The sentence for the operator.
    pub fn text(&self) -> String {
        match self {
            Conflict::Foreign(other) => format!(
                "it belongs to another installation ({other}); give this one a database of its own, \
                 or go on with that one's sale by --recover-from postgres, which sets the log of this data directory aside"
            ),
            Conflict::DatabaseOlder(why) => format!(
                "{why}: it was restored from a copy, or is not the one used before; restore its latest version, \
                 or go on with what the log still has by --recover-from log"
            ),
            Conflict::OlderThanTheLog => "it is older than the sale that this data directory took over from it, \
                 so the log cannot bring it up to date; restore a later version"
                .into(),
            Conflict::DirectoryOlder(why) => format!(
                "{why}: the data directory is older than the database; restore its latest version, \
                 or go on from the database by --recover-from postgres, which sets the log of this data directory aside"
            ),
        }
    }
}

/// Whether `this` run, of a directory with this `memory`, may write to a database that names `found`.
///
/// # Errors
/// The conflict, unless `from` settles it.
pub fn judge_owner(this: Owner, memory: Memory, found: Option<Owner>, from: RecoverFrom) -> Result<(), Conflict> {
    let is_older = match (found, memory.seen) {
        (Some(owner), _) if owner.cluster != this.cluster => return Err(Conflict::Foreign(owner.cluster)),
        (Some(owner), _) if owner == this || memory.knows(owner.run) => return Ok(()),
        (None, None) => return Ok(()),
        (found, Some(seen)) => found.is_none_or(|owner| owner.run.epoch < seen.epoch),
        (Some(_), None) => false,
    };
    let is_before = |filled: Run| found.is_none_or(|owner| owner.run.epoch < filled.epoch);
    match found {
        _ if is_older && memory.filled.is_some_and(is_before) => Err(Conflict::OlderThanTheLog),
        _ if is_older && from == RecoverFrom::Log => Ok(()),
        Some(owner) if is_older => {
            let (found, seen) = (owner.run.epoch, memory.seen.map_or(0, |run| run.epoch));
            Err(Conflict::DatabaseOlder(format!(
                "its last run is {found}, and the data directory has seen {seen} there"
            )))
        }
        Some(owner) => Err(Conflict::DirectoryOlder(format!(
            "another run of this installation has taken it over ({})",
            owner.run.epoch
        ))),
        None => Err(Conflict::DatabaseOlder("it is empty, and the data directory has used one before".into())),
    }
}

/// Where a stream goes on, whose first `first` records are no longer in the log and that ends at `end`, if that is
/// known, when the database has it up to `position`. `is_new`: this directory has never used a database before.
///
/// # Errors
/// The conflict, unless `from` settles it.
pub fn judge_position(
    stream: &StreamId,
    (first, end): (Seq, Option<Seq>),
    position: Option<Seq>,
    is_new: bool,
    from: RecoverFrom,
) -> Result<Seq, Conflict> {
    let at = position.unwrap_or(0);
    if let Some(end) = end.filter(|end| at > *end) {
        return Err(Conflict::DirectoryOlder(format!("it has {at} records of {stream}, and the log has {end}")));
    }
    if at < first && !is_new && from != RecoverFrom::Log {
        return Err(Conflict::DatabaseOlder(format!(
            "it has {at} records of {stream}, and the log begins after {first}"
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

    /// A verdict, in a word.
    fn word<T>(verdict: Result<T, Conflict>) -> &'static str {
        match verdict {
            Ok(_) => "take",
            Err(Conflict::Foreign(_)) => "foreign",
            Err(Conflict::DatabaseOlder(_) | Conflict::OlderThanTheLog) => "database older",
            Err(Conflict::DirectoryOlder(_)) => "directory older",
        }
    }

    #[test]
    fn the_table_of_owners_holds() {
        let this = run(7, 70);
        let fresh = Memory::default();
        let used = Memory { seen: Some(run(5, 50)), claiming: Some(run(6, 60)), filled: None };
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
            assert_eq!(verdict(RecoverFrom::Postgres), expected, "the log is set aside elsewhere");
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
        // Whether or not the claim went through, the next run may go on.
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
        assert_eq!(judge(4, None, Some(600), false, auto), Ok(600), "this run's log is still growing");
        assert_eq!(judge(4, Some(9), None, true, auto), Ok(4), "removed before there was a database");
        assert_eq!(word(judge(4, Some(9), Some(10), false, auto)), "directory older");
        assert_eq!(word(judge(4, Some(9), Some(3), false, auto)), "database older");
        assert_eq!(word(judge(4, Some(9), None, false, auto)), "database older");
        assert_eq!(judge(4, Some(9), Some(3), false, RecoverFrom::Log), Ok(4));
        assert_eq!(word(judge(4, Some(9), Some(10), false, RecoverFrom::Log)), "directory older");
    }
}
