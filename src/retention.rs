//! The byte budget of a shard's logs: what is kept of ended sales, and what gives way when it is used up.
//!
//! In this order: attempts of ended sales are removed; then attempts are no longer recorded, because they may
//! use half the budget at most; then purchases of ended sales are removed, oldest first; then there is no new
//! segment, and the shard grants no hold that it could not let be bought. Nothing of the current sale is removed.

use crate::block::{BLOCK_BYTES, LogKind};
use crate::segment::SegmentName;
use crate::types::SaleId;
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
}

/// What one shard's logs use of the disk.
pub struct Retention {
    dir: PathBuf,
    budget: u64,
    /// Bytes of all segments: being written, ready and old.
    used: u64,
    /// Of these, bytes of the attempt log.
    used_by_attempts: u64,
    /// Oldest first.
    old: Vec<OldSegment>,
}

impl Retention {
    /// `budget` bytes for one shard, and the segments of earlier runs that it looks after.
    pub fn new(dir: &Path, budget: u64, old: Vec<OldSegment>) -> Self {
        let used = old.iter().map(|segment| segment.bytes).sum();
        let attempts = old.iter().filter(|segment| segment.name.stream.log == LogKind::Attempts);
        let used_by_attempts = attempts.map(|segment| segment.bytes).sum();
        Retention { dir: dir.to_owned(), budget, used, used_by_attempts, old }
    }

    /// The bytes that this shard's logs may use.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Allows one more segment of `bytes` bytes, or does not. If it does, these files must go first.
    pub fn allow(&mut self, log: LogKind, bytes: u64, current: SaleId) -> Option<Vec<PathBuf>> {
        let mut doomed = Vec::new();
        while self.lacks_room(log, bytes) {
            let victim = self.victim(log, current)?;
            doomed.push(self.forget(victim));
        }
        self.used += bytes;
        self.used_by_attempts += if log == LogKind::Attempts { bytes } else { 0 };
        Some(doomed)
    }

    /// The disk refused a segment that was allowed: takes it back, and names a file whose removal may help.
    pub fn refused(&mut self, log: LogKind, bytes: u64, current: SaleId) -> Option<PathBuf> {
        self.used -= bytes;
        self.used_by_attempts -= if log == LogKind::Attempts { bytes } else { 0 };
        self.victim(log, current).map(|victim| self.forget(victim))
    }

    /// A segment is full: from now on it is old.
    pub fn finished(&mut self, name: SegmentName, newest_sale: SaleId) {
        self.old.push(OldSegment { name, bytes: u64::from(name.blocks) * BLOCK_BYTES as u64, newest_sale });
    }

    fn lacks_room(&self, log: LogKind, bytes: u64) -> bool {
        let too_many_attempts = log == LogKind::Attempts && self.used_by_attempts + bytes > self.budget / 2;
        too_many_attempts || self.used + bytes > self.budget
    }

    /// The place in `old` of the segment to remove first: attempts before purchases, and never purchases for attempts.
    fn victim(&self, log: LogKind, current: SaleId) -> Option<usize> {
        let ended = |of| {
            let is_ended = move |segment: &OldSegment| segment.newest_sale < current && segment.name.stream.log == of;
            self.old.iter().position(is_ended)
        };
        let purchases = if log == LogKind::Purchases { ended(LogKind::Purchases) } else { None };
        ended(LogKind::Attempts).or(purchases)
    }

    fn forget(&mut self, place: usize) -> PathBuf {
        let segment = self.old.remove(place);
        self.used -= segment.bytes;
        self.used_by_attempts -= if segment.name.stream.log == LogKind::Attempts { segment.bytes } else { 0 };
        segment.name.path(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::StreamId;
    use uuid::Uuid;

    const NOW: SaleId = SaleId(10);

    fn name(log: LogKind, first_block: u64) -> SegmentName {
        SegmentName { stream: StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log }, first_block, blocks: 1 }
    }

    fn old(log: LogKind, first_block: u64, sale: u32) -> OldSegment {
        OldSegment { name: name(log, first_block), bytes: 4096, newest_sale: SaleId(sale) }
    }

    fn retention(blocks: u64, old: &[OldSegment]) -> Retention {
        Retention::new(Path::new(""), blocks * 4096, old.to_vec())
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
        assert!(kept.allow(Attempts, 4096, NOW).is_some());
        assert!(kept.allow(Attempts, 4096, NOW).is_some());
        assert!(kept.allow(Attempts, 4096, NOW).is_none());
        assert!(kept.allow(Purchases, 4096, NOW).is_some());
        let mut kept = retention(2, &[old(Purchases, 0, 8), old(Purchases, 1, 8)]);
        assert!(kept.allow(Attempts, 4096, NOW).is_none());
    }

    #[test]
    fn the_current_sale_is_never_removed() {
        let mut kept = retention(1, &[old(LogKind::Purchases, 0, 10)]);
        assert!(kept.allow(LogKind::Purchases, 4096, NOW).is_none());
        assert!(kept.allow(LogKind::Purchases, 4096, SaleId(11)).is_some());
    }

    #[test]
    fn a_full_disk_takes_old_segments_too() {
        let mut kept = retention(9, &[old(LogKind::Purchases, 0, 8)]);
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW), Some(vec![]));
        assert!(kept.refused(LogKind::Purchases, 4096, NOW).is_some());
        assert_eq!(kept.allow(LogKind::Purchases, 4096, NOW), Some(vec![]));
        assert!(kept.refused(LogKind::Purchases, 4096, NOW).is_none());
        assert_eq!(kept.used, 0);
    }
}
