//! Retention: the segments of a shard's two logs that may be removed. This file decides which segments are removed and
//! whether a new one may be created; the writer removes and creates them. When the log budget is used up, Stampede drops,
//! in this order:
//!
//! 1. Attempt segments that the database has, or of ended sales without a database, oldest first.
//! 2. New attempts: they are no longer recorded. Attempt segments use at most half the budget, and no purchase segment
//!    is removed for them.
//! 3. Purchase segments of ended sales in which nothing is held any more, oldest first. The running server still
//!    answers for these sales, but not after a restart.
//! 4. New checkouts: there is no new segment, and the shard grants only holds whose purchase still fits into the log.
//!
//! These rules hold. A purchase segment with a record of the open sale, or of a sale in which an item is held, is never
//! removed. The last records of a purchase stream stay as long as their sale is remembered. With a database, a segment
//! is removed only after all its records are in the database. The budget is a limit of all shards together: a shard
//! removes what it does not need also when another shard lacks space.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::budget::Budget;
use crate::log::segment::SegmentName;
use crate::sale::ids::{SaleId, Seq};
use crate::sale::parts::NeededSales;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use strum::VariantArray;

/// Segment that is no longer written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldSegment {
    /// Name of the segment.
    pub name: SegmentName,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Newest sale that was open when the segment was written. Records of ended sales may follow its opening.
    pub newest_sale: SaleId,
    /// Number of records in the stream up to the end of the segment.
    pub last: Seq,
    /// The segment has the last records of a stream of an earlier run. Recovery needs them to see that the records
    /// before them are missing.
    pub ends_stream: bool,
}

/// The old segments of one shard's logs, and its part of the log budget.
pub struct Retention {
    dir: PathBuf,
    budget: Arc<Budget>,
    /// Segments that are no longer written, oldest first. All segments of a stream are here in order, so a stream loses
    /// only its beginning.
    old: Vec<OldSegment>,
    to_remove: Removal,
    /// Bytes by which the files being removed exceed the segment being created, for each log: both can create one at the
    /// same time.
    surplus: [u64; LogKind::VARIANTS.len()],
    /// Number of records of each stream in the database, by epoch, shard and log. `None` without a database.
    shipped: Option<BTreeMap<(u32, u16, LogKind), Seq>>,
}

/// Files that are to be removed. They count as used until they are removed.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Paths of the files.
    pub files: Vec<PathBuf>,
    /// Size of the files in bytes.
    pub bytes: u64,
}

impl Retention {
    /// Creates the accounts of one shard, which has no segment.
    pub fn new(dir: &Path, budget: Arc<Budget>, has_database: bool) -> Self {
        Retention {
            dir: dir.to_owned(),
            budget,
            old: Vec::new(),
            to_remove: Removal::default(),
            surplus: Default::default(),
            shipped: has_database.then(BTreeMap::new),
        }
    }

    /// Adds segments of earlier runs, which must be ordered oldest first. The budget counts them already.
    pub fn keep(&mut self, old: Vec<OldSegment>) {
        // Segments that this run has finished meanwhile are newer, so they stay at the end.
        self.old.splice(0..0, old);
    }

    /// Returns the log budget.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Permits one more segment of `bytes` bytes and returns the files that the caller must remove first. The caller
    /// then calls [`Retention::created`] or [`Retention::refused`]. Returns `None` if the budget has no room. `needed`
    /// has the sales that may not be removed.
    pub fn allow(&mut self, log: LogKind, bytes: u64, needed: NeededSales) -> Option<Vec<PathBuf>> {
        let of_attempts = |segment: &&OldSegment| segment.name.stream.log == LogKind::Attempts;
        let size = |segment: &OldSegment| segment.bytes;
        let removable = self.to_remove.bytes + self.removable(log, needed).map(size).sum::<u64>();
        let attempts = self.removable(log, needed).filter(of_attempts).map(size).sum();
        // What would not be enough is not removed.
        if !self.budget.has_room(log, bytes, removable, attempts) {
            self.budget.want(log, bytes);
            return None;
        }
        while !self.budget.take(log, bytes, self.to_remove.bytes) {
            // Another shard can have taken the space meanwhile. What is removed then stays selected.
            let first_to_remove = self.first_to_remove(log, needed)?;
            self.remove(first_to_remove);
        }
        self.budget.want(log, 0);
        Some(self.begin(log, bytes))
    }

    /// Permits one more segment of `bytes` bytes, even over the budget: it exists already, or recovered holds need it.
    pub fn force(&mut self, log: LogKind, bytes: u64) -> Vec<PathBuf> {
        self.budget.add(log, bytes);
        self.begin(log, bytes)
    }

    /// Hands out the files to remove. Their bytes are counted for the new segment, and `surplus` has the rest.
    fn begin(&mut self, log: LogKind, bytes: u64) -> Vec<PathBuf> {
        let Removal { files, bytes: removed } = std::mem::take(&mut self.to_remove);
        // With the new segment, the budget now counts both. The files are gone before the segment is there.
        let surplus = removed.saturating_sub(bytes);
        self.surplus[log as usize] = surplus;
        self.budget.removed(removed - surplus);
        files
    }

    /// Notes that the permitted segment of `log` is created, and that the files before it are removed.
    pub fn created(&mut self, log: LogKind) {
        self.budget.removed(std::mem::take(&mut self.surplus[log as usize]));
    }

    /// Notes that a segment was permitted but not created because the disk is full. Selects one old segment, if there
    /// is one, to be removed before the next creation.
    pub fn refused(&mut self, log: LogKind, bytes: u64, needed: NeededSales) {
        self.created(log);
        self.budget.select(log, bytes);
        self.budget.removed(bytes);
        if let Some(first_to_remove) = self.first_to_remove(log, needed) {
            self.remove(first_to_remove);
        }
    }

    /// Selects the segments to be removed because another shard lacks space. The caller removes the files, and then
    /// subtracts their bytes from the budget.
    pub fn relieve(&mut self, needed: NeededSales) -> Removal {
        for &log in LogKind::VARIANTS {
            let wanted = self.budget.wanted(log);
            while self.to_remove.bytes < wanted
                && let Some(first_to_remove) = self.first_to_remove(log, needed)
            {
                self.remove(first_to_remove);
            }
            if wanted > 0 && self.to_remove.bytes >= wanted {
                // If this is not enough, the other shard wants more within half a second.
                self.budget.want(log, 0);
            }
        }
        std::mem::take(&mut self.to_remove)
    }

    /// Notes that the database has the first `position` records of `stream`.
    pub fn shipped(&mut self, stream: StreamId, position: Seq) {
        let streams = self.shipped.get_or_insert_default();
        streams.insert((stream.epoch, stream.shard, stream.log), position);
    }

    fn is_shipped(&self, segment: &OldSegment) -> bool {
        let StreamId { epoch, shard, log, .. } = segment.name.stream;
        let position = |streams: &BTreeMap<_, _>| streams.get(&(epoch, shard, log)).copied().unwrap_or(0);
        self.shipped.as_ref().is_none_or(|streams| position(streams) >= segment.last)
    }

    /// Adds a full segment to the old ones. `last` is the number of records in its stream up to its end.
    pub fn finished(&mut self, name: SegmentName, newest_sale: SaleId, last: Seq) {
        let (bytes, ends_stream) = (u64::from(name.blocks) * BLOCK_BYTES as u64, false);
        self.old.push(OldSegment { name, bytes, newest_sale, last, ends_stream });
    }

    /// Returns the segments that may be removed for a segment of `log`. Purchases are never removed for attempts.
    fn removable(&self, log: LogKind, needed: NeededSales) -> impl Iterator<Item = &OldSegment> {
        let is_removable = move |segment: &&OldSegment| {
            let kind = segment.name.stream.log;
            let first_needed = match kind {
                // Recovery does not need attempts.
                LogKind::Attempts if self.shipped.is_some() => SaleId(u32::MAX),
                LogKind::Attempts => needed.oldest_open,
                LogKind::Purchases if segment.ends_stream => needed.oldest_remembered,
                LogKind::Purchases => needed.oldest_live,
            };
            segment.newest_sale < first_needed
                && self.is_shipped(segment)
                && (kind == LogKind::Attempts || log == LogKind::Purchases)
        };
        self.old.iter().filter(is_removable)
    }

    /// Returns the index in `old` of the segment to remove first: attempts before purchases, oldest first.
    fn first_to_remove(&self, log: LogKind, needed: NeededSales) -> Option<usize> {
        let attempts = self.removable(log, needed).find(|segment| segment.name.stream.log == LogKind::Attempts);
        let first_to_remove = attempts.or_else(|| self.removable(log, needed).next())?;
        self.old.iter().position(|segment| segment == first_to_remove)
    }

    fn remove(&mut self, place: usize) {
        let segment = self.old.remove(place);
        self.budget.select(segment.name.stream.log, segment.bytes);
        self.to_remove.bytes += segment.bytes;
        self.to_remove.files.push(segment.name.path(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW: NeededSales = NeededSales {
        newest: SaleId(10),
        oldest_open: SaleId(10),
        oldest_live: SaleId(10),
        oldest_remembered: SaleId(10),
    };

    fn from(sale: u32) -> NeededSales {
        NeededSales {
            newest: SaleId(sale),
            oldest_open: SaleId(sale),
            oldest_live: SaleId(sale),
            oldest_remembered: SaleId(sale),
        }
    }

    fn name(log: LogKind, first_block: u64) -> SegmentName {
        SegmentName { stream: StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log }, first_block, blocks: 1 }
    }

    fn old(log: LogKind, first_block: u64, sale: u32) -> OldSegment {
        let (name, bytes, newest_sale, last) = (name(log, first_block), 4096, SaleId(sale), first_block + 1);
        OldSegment { name, bytes, newest_sale, last, ends_stream: false }
    }

    fn retention(blocks: u64, old: &[OldSegment]) -> Retention {
        kept(Arc::new(Budget::new(blocks * 4096, 1)), old, false)
    }

    fn kept(budget: Arc<Budget>, old: &[OldSegment], has_database: bool) -> Retention {
        old.iter().for_each(|segment| budget.add(segment.name.stream.log, segment.bytes));
        let mut retention = Retention::new(Path::new(""), budget, has_database);
        retention.keep(old.to_vec());
        retention
    }

    #[test]
    fn attempts_of_ended_sales_go_first_and_purchases_oldest_first() {
        use LogKind::{Attempts, Purchases};
        let mut kept = retention(3, &[old(Purchases, 0, 8), old(Purchases, 1, 9), old(Attempts, 0, 9)]);
        let allowed: Vec<_> = (0..4).map(|_| kept.allow(Purchases, 4096, NOW)).collect();
        let files = |log, block| Some(vec![name(log, block).path(Path::new(""))]);
        assert_eq!(allowed, [files(Attempts, 0), files(Purchases, 0), files(Purchases, 1), None]);
    }

    #[test]
    fn attempts_use_half_and_never_push_purchases_out() {
        use LogKind::{Attempts, Purchases};
        let mut kept = retention(4, &[]);
        let allowed = [Attempts, Attempts, Attempts, Purchases].map(|log| kept.allow(log, 4096, NOW).is_some());
        assert_eq!(allowed, [true, true, false, true]);
        let mut kept = retention(2, &[old(Purchases, 0, 8), old(Purchases, 1, 8)]);
        assert!(kept.allow(Attempts, 4096, NOW).is_none());
    }

    #[test]
    fn the_current_sale_is_never_removed_and_recovered_holds_get_their_room() {
        let mut kept = retention(1, &[old(LogKind::Purchases, 0, 10)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW), None);
        assert_eq!(kept.force(LogKind::Purchases, 4096), [] as [PathBuf; 0]);
        let files = kept.allow(LogKind::Purchases, 4096, from(11));
        assert_eq!(files, None, "the budget is exceeded already, and one segment is not enough");
        assert_eq!(kept.budget.used(), 2 * 4096);
    }

    #[test]
    fn purchases_of_a_sale_with_a_hold_are_kept_and_attempts_are_not() {
        let mut kept = retention(2, &[old(LogKind::Purchases, 0, 9), old(LogKind::Attempts, 0, 9)]);
        let needed = NeededSales { oldest_live: SaleId(9), oldest_remembered: SaleId(9), ..NOW };
        assert!(kept.allow(LogKind::Purchases, 4096, needed).is_some(), "the attempts are removed");
        assert_eq!(kept.allow(LogKind::Purchases, 4096, needed), None);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW).is_some(), "nothing is held any more");
    }

    /// If all segments of a stream were removed, recovery could not see that it lacks records of a sale.
    #[test]
    fn the_last_records_of_a_stream_are_kept_as_long_as_their_sale_is_remembered() {
        let last = OldSegment { ends_stream: true, ..old(LogKind::Purchases, 1, 9) };
        let mut kept = retention(2, &[old(LogKind::Purchases, 0, 9), last]);
        let needed = NeededSales { oldest_remembered: SaleId(9), ..NOW };
        assert!(kept.allow(LogKind::Purchases, 4096, needed).is_some());
        assert_eq!(kept.allow(LogKind::Purchases, 4096, needed), None);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW).is_some());
    }

    #[test]
    fn what_the_database_lacks_is_kept() {
        let segment = old(LogKind::Purchases, 0, 8);
        let mut kept = kept(Arc::new(Budget::new(4096, 1)), std::slice::from_ref(&segment), true);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW), None);
        kept.shipped(segment.name.stream, segment.last);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW).is_some());
    }

    /// Both logs create a segment at the same time, and the first one frees more than it takes.
    #[test]
    fn what_is_removed_for_one_log_is_not_forgotten_for_the_other() {
        use LogKind::{Attempts, Purchases};
        let large = OldSegment { bytes: 3 * 4096, ..old(Purchases, 0, 8) };
        let mut kept = retention(3, &[large]);
        assert_eq!(kept.allow(Purchases, 4096, NOW).map(|files| files.len()), Some(1));
        assert_eq!(kept.allow(Attempts, 4096, NOW), None, "the file is not removed yet");
        assert_eq!(kept.force(Attempts, 4096), [] as [PathBuf; 0]);
        assert_eq!(kept.budget.used(), 4 * 4096);
        kept.created(Attempts);
        assert_eq!(kept.budget.used(), 4 * 4096, "the file of the other log may still be there");
        kept.created(Purchases);
        assert_eq!(kept.budget.used(), 2 * 4096);
    }

    #[test]
    fn attempts_in_the_database_go_at_once() {
        let of_open_sale = old(LogKind::Attempts, 0, 10);
        let mut kept = kept(Arc::new(Budget::new(2 * 4096, 1)), std::slice::from_ref(&of_open_sale), true);
        assert_eq!(kept.allow(LogKind::Attempts, 4096, NOW), None);
        kept.shipped(of_open_sale.name.stream, of_open_sale.last);
        assert_eq!(kept.allow(LogKind::Attempts, 4096, NOW).map(|files| files.len()), Some(1));
    }

    /// After a restart with another number of shards, one shard can have all segments that nobody needs.
    #[test]
    fn a_shard_removes_its_segments_for_another_one() {
        use LogKind::{Attempts, Purchases};
        let budget = Arc::new(Budget::new(3 * 4096, 2));
        let old = [old(Purchases, 0, 8), old(Purchases, 1, 10), old(Attempts, 0, 9)];
        let (mut owner, mut other) = (kept(budget.clone(), &old, false), kept(budget.clone(), &[], false));
        assert_eq!(owner.relieve(NOW), Removal::default(), "no shard lacks space");
        for (log, place) in [(Attempts, 2), (Purchases, 0)] {
            assert_eq!(other.allow(log, 4096, NOW), None);
            let removal = owner.relieve(NOW);
            assert_eq!(removal, Removal { files: vec![old[place].name.path(Path::new(""))], bytes: 4096 });
            assert_eq!(other.allow(log, 4096, NOW), None, "the file is still there");
            budget.removed(removal.bytes);
            assert_eq!(other.allow(log, 4096, NOW), Some(vec![]));
        }
        assert_eq!((other.allow(Purchases, 4096, NOW), owner.relieve(NOW)), (None, Removal::default()));
        assert_eq!(budget.used(), budget.total());
    }

    #[test]
    fn what_would_not_be_enough_is_not_removed() {
        let mut kept = retention(4, &[old(LogKind::Purchases, 0, 8), old(LogKind::Purchases, 1, 10)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4 * 4096, NOW), None);
        assert_eq!((kept.old.len(), kept.to_remove), (2, Removal::default()));
    }

    #[test]
    fn a_full_disk_takes_old_segments_too() {
        let mut kept = retention(9, &[old(LogKind::Purchases, 0, 8)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW), Some(vec![]));
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW).map(|files_to_remove| files_to_remove.len()), Some(1));
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!((kept.budget.used(), kept.to_remove), (0, Removal::default()));
    }

    proptest! {
        /// For any sequence of requests, the remaining files are those that are accounted for, and each stream loses
        /// only its beginning.
        #[test]
        fn streams_lose_only_their_beginning(asks in prop::collection::vec((any::<bool>(), 0u8..4), 1..200), blocks in 4u64..20) {
            let mut kept = retention(blocks, &[]);
            let mut files = std::collections::BTreeSet::new();
            let (mut sale, mut next) = (1, [0u64; 2]);
            for (is_attempt, advance) in asks {
                sale += u32::from(advance == 0);
                let log = if is_attempt { LogKind::Attempts } else { LogKind::Purchases };
                if let Some(files_to_remove) = kept.allow(log, 4096, from(sale)) {
                    files_to_remove.iter().for_each(|file| assert!(files.remove(file)));
                    let name = name(log, next[usize::from(is_attempt)]);
                    next[usize::from(is_attempt)] += 1;
                    files.insert(name.path(Path::new("")));
                    kept.created(log);
                    kept.finished(name, SaleId(sale), 0);
                }
                prop_assert!(kept.budget.used() <= blocks * 4096 && kept.budget.used() == files.len() as u64 * 4096);
                for log in [LogKind::Purchases, LogKind::Attempts] {
                    let numbers = kept.old.iter().filter(|segment| segment.name.stream.log == log);
                    let numbers: Vec<u64> = numbers.map(|segment| segment.name.first_block).collect();
                    prop_assert!(numbers.is_sorted() && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
                }
            }
        }
    }
}
