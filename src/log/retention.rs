//! Retention: the disk budget of a shard's two logs, in bytes. This file decides which segments are removed and whether
//! a new one may be created; the writer removes and creates them. When the budget is used up, Stampede drops, in this
//! order:
//!
//! 1. Attempt segments of ended sales, oldest first.
//! 2. New attempts: they are no longer recorded. Attempt segments use at most half the budget, and no purchase segment
//!    is removed for them.
//! 3. Purchase segments of ended sales in which nothing is held any more, oldest first. The running server still
//!    answers for these sales, but not after a restart.
//! 4. New checkouts: there is no new segment, and the shard grants only holds whose purchase still fits into the log.
//!
//! Three rules hold. A purchase segment with a record of the open sale, or of a sale in which an item is held, is never
//! removed. With a database, a segment is
//! removed only after all its records are in the database. A segment that live holds need may exceed the budget.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::segment::SegmentName;
use crate::sale::ids::{SaleId, Seq};
use crate::sale::parts::NeededSales;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
}

/// Disk use of one shard's logs, and the segments that may be removed.
pub struct Retention {
    dir: PathBuf,
    budget: u64,
    /// Bytes of all segments: those being created or written, those ready, and the old ones.
    used: u64,
    /// Part of `used` that belongs to the attempt log.
    used_by_attempts: u64,
    /// Segments that are no longer written, oldest first. All segments of a stream are here in order, so a stream loses
    /// only its beginning.
    old: Vec<OldSegment>,
    /// Files that no longer count and are removed when the next segment is created.
    files_to_remove: Vec<PathBuf>,
    /// Number of records of each stream in the database, by epoch, shard and log. `None` without a database.
    shipped: Option<BTreeMap<(u32, u16, LogKind), Seq>>,
}

impl Retention {
    /// Creates the accounts of one shard, with `budget` bytes of which none is used.
    pub fn new(dir: &Path, budget: u64, has_database: bool) -> Self {
        Retention {
            dir: dir.to_owned(),
            budget,
            used: 0,
            used_by_attempts: 0,
            old: Vec::new(),
            files_to_remove: Vec::new(),
            shipped: has_database.then(BTreeMap::new),
        }
    }

    /// Adds segments of earlier runs, which must be ordered oldest first.
    pub fn keep(&mut self, old: Vec<OldSegment>) {
        self.used += old.iter().map(|segment| segment.bytes).sum::<u64>();
        let attempts = old.iter().filter(|segment| segment.name.stream.log == LogKind::Attempts);
        self.used_by_attempts += attempts.map(|segment| segment.bytes).sum::<u64>();
        // Segments that this run has finished meanwhile are newer, so they stay at the end.
        self.old.splice(0..0, old);
    }

    /// Returns the number of bytes that this shard's logs may use.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Permits one more segment of `bytes` bytes and returns the files that the caller must remove first. Returns
    /// `None` if the budget has no room; then nothing is removed. `needed` has the sales that may not be removed.
    /// `ignore_budget` permits the segment even over the budget, because live holds need it.
    pub fn allow(
        &mut self,
        log: LogKind,
        bytes: u64,
        needed: NeededSales,
        ignore_budget: bool,
    ) -> Option<Vec<PathBuf>> {
        let removable = self.removable(log, needed);
        let (all, attempts) = removable.fold((0, 0), |(all, attempts), segment| {
            let is_attempt = segment.name.stream.log == LogKind::Attempts;
            (all + segment.bytes, attempts + if is_attempt { segment.bytes } else { 0 })
        });
        if self.lacks_room(log, bytes, all, attempts) && !ignore_budget {
            return None;
        }
        while self.lacks_room(log, bytes, 0, 0) {
            let Some(first_to_remove) = self.first_to_remove(log, needed) else { break };
            self.remove(first_to_remove);
        }
        self.used += bytes;
        self.used_by_attempts += if log == LogKind::Attempts { bytes } else { 0 };
        Some(std::mem::take(&mut self.files_to_remove))
    }

    /// Subtracts a segment that was permitted but not created because the disk is full. Selects one old segment, if
    /// there is one, to be removed before the next creation.
    pub fn refused(&mut self, log: LogKind, bytes: u64, needed: NeededSales) {
        self.used -= bytes;
        self.used_by_attempts -= if log == LogKind::Attempts { bytes } else { 0 };
        if let Some(first_to_remove) = self.first_to_remove(log, needed) {
            self.remove(first_to_remove);
        }
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
        self.old.push(OldSegment { name, bytes: u64::from(name.blocks) * BLOCK_BYTES as u64, newest_sale, last });
    }

    /// Returns whether `bytes` more for `log` exceed the budget after the removal of `removed` bytes,
    /// `removed_attempts` of them in the attempt log.
    fn lacks_room(&self, log: LogKind, bytes: u64, removed: u64, removed_attempts: u64) -> bool {
        let attempts = self.used_by_attempts - removed_attempts + bytes;
        (log == LogKind::Attempts && attempts > self.budget / 2) || self.used - removed + bytes > self.budget
    }

    /// Returns the segments that may be removed for a segment of `log`. Purchases are never removed for attempts.
    fn removable(&self, log: LogKind, needed: NeededSales) -> impl Iterator<Item = &OldSegment> {
        let is_removable = move |segment: &&OldSegment| {
            let kind = segment.name.stream.log;
            let first_needed = if kind == LogKind::Attempts { needed.open } else { needed.oldest_live };
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
        self.used -= segment.bytes;
        self.used_by_attempts -= if segment.name.stream.log == LogKind::Attempts { segment.bytes } else { 0 };
        self.files_to_remove.push(segment.name.path(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW: NeededSales = NeededSales { open: SaleId(10), oldest_live: SaleId(10) };

    fn from(sale: u32) -> NeededSales {
        NeededSales { open: SaleId(sale), oldest_live: SaleId(sale) }
    }

    fn name(log: LogKind, first_block: u64) -> SegmentName {
        SegmentName { stream: StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log }, first_block, blocks: 1 }
    }

    fn old(log: LogKind, first_block: u64, sale: u32) -> OldSegment {
        OldSegment { name: name(log, first_block), bytes: 4096, newest_sale: SaleId(sale), last: first_block + 1 }
    }

    fn retention(blocks: u64, old: &[OldSegment]) -> Retention {
        let mut retention = Retention::new(Path::new(""), blocks * 4096, false);
        retention.keep(old.to_vec());
        retention
    }

    #[test]
    fn attempts_of_ended_sales_go_first_and_purchases_oldest_first() {
        use LogKind::{Attempts, Purchases};
        let mut kept = retention(3, &[old(Purchases, 0, 8), old(Purchases, 1, 9), old(Attempts, 0, 9)]);
        let allowed: Vec<_> = (0..4).map(|_| kept.allow(Purchases, 4096, NOW, false)).collect();
        let files = |log, block| Some(vec![name(log, block).path(Path::new(""))]);
        assert_eq!(allowed, [files(Attempts, 0), files(Purchases, 0), files(Purchases, 1), None]);
    }

    #[test]
    fn attempts_use_half_and_never_push_purchases_out() {
        use LogKind::{Attempts, Purchases};
        let mut kept = retention(4, &[]);
        let allowed = [Attempts, Attempts, Attempts, Purchases].map(|log| kept.allow(log, 4096, NOW, false).is_some());
        assert_eq!(allowed, [true, true, false, true]);
        let mut kept = retention(2, &[old(Purchases, 0, 8), old(Purchases, 1, 8)]);
        assert!(kept.allow(Attempts, 4096, NOW, false).is_none());
    }

    #[test]
    fn the_current_sale_is_never_removed_and_live_holds_get_their_room() {
        let mut kept = retention(1, &[old(LogKind::Purchases, 0, 10)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, false), None);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, true), Some(vec![]));
        assert_eq!(
            kept.allow(LogKind::Purchases, 4096, from(11), true).map(|files_to_remove| files_to_remove.len()),
            Some(1)
        );
    }

    #[test]
    fn purchases_of_a_sale_with_a_hold_are_kept_and_attempts_are_not() {
        let mut kept = retention(2, &[old(LogKind::Purchases, 0, 9), old(LogKind::Attempts, 0, 9)]);
        let needed = NeededSales { open: SaleId(10), oldest_live: SaleId(9) };
        assert!(kept.allow(LogKind::Purchases, 4096, needed, false).is_some(), "the attempts are removed");
        assert_eq!(kept.allow(LogKind::Purchases, 4096, needed, false), None);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW, false).is_some(), "nothing is held any more");
    }

    #[test]
    fn what_the_database_lacks_is_kept() {
        let segment = old(LogKind::Purchases, 0, 8);
        let mut kept = Retention::new(Path::new(""), 4096, true);
        kept.keep(vec![segment.clone()]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, false), None);
        kept.shipped(segment.name.stream, segment.last);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW, false).is_some());
    }

    #[test]
    fn what_would_not_be_enough_is_not_removed() {
        let mut kept = retention(4, &[old(LogKind::Purchases, 0, 8), old(LogKind::Purchases, 1, 10)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4 * 4096, NOW, false), None);
        assert_eq!((kept.old.len(), kept.files_to_remove.len()), (2, 0));
    }

    #[test]
    fn a_full_disk_takes_old_segments_too() {
        let mut kept = retention(9, &[old(LogKind::Purchases, 0, 8)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, false), Some(vec![]));
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!(
            kept.allow(LogKind::Purchases, 4096, NOW, false).map(|files_to_remove| files_to_remove.len()),
            Some(1)
        );
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!((kept.used, kept.files_to_remove.len()), (0, 0));
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
                if let Some(files_to_remove) = kept.allow(log, 4096, from(sale), false) {
                    files_to_remove.iter().for_each(|file| assert!(files.remove(file)));
                    let name = name(log, next[usize::from(is_attempt)]);
                    next[usize::from(is_attempt)] += 1;
                    files.insert(name.path(Path::new("")));
                    kept.finished(name, SaleId(sale), 0);
                }
                prop_assert!(kept.used <= kept.budget && kept.used == files.len() as u64 * 4096);
                for log in [LogKind::Purchases, LogKind::Attempts] {
                    let numbers = kept.old.iter().filter(|segment| segment.name.stream.log == log);
                    let numbers: Vec<u64> = numbers.map(|segment| segment.name.first_block).collect();
                    prop_assert!(numbers.is_sorted() && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
                }
            }
        }
    }
}
