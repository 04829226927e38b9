//! The byte budget of a shard's logs: what is kept of ended sales, and what gives way when it is used up.
//!
//! In this order: attempts of ended sales are removed; then attempts are no longer recorded, because they may
//! use half the budget at most; then purchases of ended sales are removed, oldest first; then there is no new
//! segment, and the shard grants no hold that it could not let be bought. Nothing of the current sale is removed.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::segment::SegmentName;
use crate::sale::ids::{SaleId, Seq};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A segment that nobody writes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its size.
    pub bytes: u64,
    /// The newest sale in it. Nothing in it is needed once this has ended.
    pub newest_sale: SaleId,
    /// Records in the stream up to its end.
    pub last: Seq,
}

/// What one shard's logs use of the disk.
pub struct Retention {
    dir: PathBuf,
    budget: u64,
    /// Bytes of all segments: being written, ready and old.
    used: u64,
    /// Of these, bytes of the attempt log.
    used_by_attempts: u64,
    /// Oldest first. A stream's segments are all here, in order, so that it only ever loses its beginning.
    old: Vec<OldSegment>,
    /// Let go of, and to be removed with the next segment made.
    doomed: Vec<PathBuf>,
    /// With a database: how much of each stream is there. What is not there yet is not removed.
    shipped: Option<BTreeMap<(u32, u16, LogKind), Seq>>,
}

impl Retention {
    /// `budget` bytes for one shard, of which nothing is used.
    pub fn new(dir: &Path, budget: u64, has_database: bool) -> Self {
        Retention {
            dir: dir.to_owned(),
            budget,
            used: 0,
            used_by_attempts: 0,
            old: Vec::new(),
            doomed: Vec::new(),
            shipped: has_database.then(BTreeMap::new),
        }
    }

    /// Looks after these segments of earlier runs, too; oldest first.
    pub fn keep(&mut self, old: Vec<OldSegment>) {
        self.used += old.iter().map(|segment| segment.bytes).sum::<u64>();
        let attempts = old.iter().filter(|segment| segment.name.stream.log == LogKind::Attempts);
        self.used_by_attempts += attempts.map(|segment| segment.bytes).sum::<u64>();
        // What this run has finished meanwhile is younger.
        self.old.splice(0..0, old);
    }

    /// The bytes that this shard's logs may use.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Allows one more segment of `bytes` bytes, or does not. If it does, these files must go first. `ended_before` is
    /// the sale before which nothing is needed. A segment that live holds need is allowed at any price.
    pub fn allow(
        &mut self,
        log: LogKind,
        bytes: u64,
        ended_before: SaleId,
        at_any_price: bool,
    ) -> Option<Vec<PathBuf>> {
        let removable = self.removable(log, ended_before);
        let (all, attempts) = removable.fold((0, 0), |(all, attempts), segment| {
            let is_attempt = segment.name.stream.log == LogKind::Attempts;
            (all + segment.bytes, attempts + if is_attempt { segment.bytes } else { 0 })
        });
        if self.lacks_room(log, bytes, all, attempts) && !at_any_price {
            return None;
        }
        while self.lacks_room(log, bytes, 0, 0) {
            let Some(victim) = self.victim(log, ended_before) else { break };
            self.forget(victim);
        }
        self.used += bytes;
        self.used_by_attempts += if log == LogKind::Attempts { bytes } else { 0 };
        Some(std::mem::take(&mut self.doomed))
    }

    /// The disk refused a segment that was allowed: takes it back, and lets go of another if that may help.
    pub fn refused(&mut self, log: LogKind, bytes: u64, ended_before: SaleId) {
        self.used -= bytes;
        self.used_by_attempts -= if log == LogKind::Attempts { bytes } else { 0 };
        if let Some(victim) = self.victim(log, ended_before) {
            self.forget(victim);
        }
    }

    /// So many records of a stream are in the database.
    pub fn shipped(&mut self, stream: StreamId, position: Seq) {
        let streams = self.shipped.get_or_insert_default();
        streams.insert((stream.epoch, stream.shard, stream.log), position);
    }

    fn is_shipped(&self, segment: &OldSegment) -> bool {
        let StreamId { epoch, shard, log, .. } = segment.name.stream;
        let position = |streams: &BTreeMap<_, _>| streams.get(&(epoch, shard, log)).copied().unwrap_or(0);
        self.shipped.as_ref().is_none_or(|streams| position(streams) >= segment.last)
    }

    /// A segment is full: from now on it is old. `last` counts the records in its stream up to its end.
    pub fn finished(&mut self, name: SegmentName, newest_sale: SaleId, last: Seq) {
        self.old.push(OldSegment { name, bytes: u64::from(name.blocks) * BLOCK_BYTES as u64, newest_sale, last });
    }

    /// Whether `bytes` more are too much, even after removing so many bytes, so many of them attempts.
    fn lacks_room(&self, log: LogKind, bytes: u64, removed: u64, removed_attempts: u64) -> bool {
        let attempts = self.used_by_attempts - removed_attempts + bytes;
        (log == LogKind::Attempts && attempts > self.budget / 2) || self.used - removed + bytes > self.budget
    }

    /// What may be removed for a segment of `log`: never purchases for attempts.
    fn removable(&self, log: LogKind, ended_before: SaleId) -> impl Iterator<Item = &OldSegment> {
        let may_go = move |segment: &&OldSegment| {
            let kind = segment.name.stream.log;
            segment.newest_sale < ended_before
                && self.is_shipped(segment)
                && (kind == LogKind::Attempts || log == LogKind::Purchases)
        };
        self.old.iter().filter(may_go)
    }

    /// The place in `old` of the segment to remove first: attempts before purchases.
    fn victim(&self, log: LogKind, ended_before: SaleId) -> Option<usize> {
        let attempts = self.removable(log, ended_before).find(|segment| segment.name.stream.log == LogKind::Attempts);
        let victim = attempts.or_else(|| self.removable(log, ended_before).next())?;
        self.old.iter().position(|segment| segment == victim)
    }

    fn forget(&mut self, place: usize) {
        let segment = self.old.remove(place);
        self.used -= segment.bytes;
        self.used_by_attempts -= if segment.name.stream.log == LogKind::Attempts { segment.bytes } else { 0 };
        self.doomed.push(segment.name.path(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW: SaleId = SaleId(10);

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
        assert_eq!(kept.allow(LogKind::Purchases, 4096, SaleId(11), true).map(|doomed| doomed.len()), Some(1));
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
        assert_eq!((kept.old.len(), kept.doomed.len()), (2, 0));
    }

    #[test]
    fn a_full_disk_takes_old_segments_too() {
        let mut kept = retention(9, &[old(LogKind::Purchases, 0, 8)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, false), Some(vec![]));
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW, false).map(|doomed| doomed.len()), Some(1));
        kept.refused(LogKind::Purchases, 4096, NOW);
        assert_eq!((kept.used, kept.doomed.len()), (0, 0));
    }

    proptest! {
        /// Whatever is asked, the files that remain are those accounted for, and each stream loses only its beginning.
        #[test]
        fn streams_lose_only_their_beginning(asks in prop::collection::vec((any::<bool>(), 0u8..4), 1..200), blocks in 4u64..20) {
            let mut kept = retention(blocks, &[]);
            let mut files = std::collections::BTreeSet::new();
            let (mut sale, mut next) = (1, [0u64; 2]);
            for (is_attempt, advance) in asks {
                sale += u32::from(advance == 0);
                let log = if is_attempt { LogKind::Attempts } else { LogKind::Purchases };
                if let Some(doomed) = kept.allow(log, 4096, SaleId(sale), false) {
                    doomed.iter().for_each(|file| assert!(files.remove(file)));
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
