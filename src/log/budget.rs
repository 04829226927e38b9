//! The log budget: the disk space that the logs of all shards may use together. It is a limit on the sum, so no shard
//! is full while another one has space that it does not need.
//!
//! The counters are shared between shards, because the disk is. They change when a segment is created or removed, never
//! in the path of a request. Bytes of files that are to be removed count until they are removed.

use crate::log::block::LogKind;
use std::sync::atomic::{AtomicU64, Ordering};

/// Disk space of all logs, in bytes.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    shards: u16,
    used: AtomicU64,
    /// Bytes of attempt logs that are not selected to be removed.
    used_by_attempts: AtomicU64,
    /// Bytes that a shard lacks for its purchase log and for its attempt log, 0 if none.
    wanted: [AtomicU64; 2],
}

impl Budget {
    /// Creates the budget of `shards` shards, `total` bytes of which none is used.
    pub fn new(total: u64, shards: u16) -> Budget {
        let (used, used_by_attempts, wanted) = Default::default();
        Budget { total, shards, used, used_by_attempts, wanted }
    }

    /// Returns an equal part of the budget, in bytes. A shard creates so much space in advance that it fits this part.
    pub fn share(&self) -> u64 {
        self.total / u64::from(self.shards)
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the limit, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Counts `bytes` more for `log`, of files that exist already or that live holds need. The sum may exceed the limit.
    pub fn add(&self, log: LogKind, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if log == LogKind::Attempts {
            self.used_by_attempts.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts `bytes` more for `log`, if that is within the limit after `removed` bytes of files are removed, which the
    /// caller does before it creates a file. Returns whether the bytes are counted.
    pub fn take(&self, log: LogKind, bytes: u64, removed: u64) -> bool {
        let more_within = |limit: u64| move |used: u64| (used + bytes <= limit).then_some(used + bytes);
        let take = |counter: &AtomicU64, limit| {
            counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more_within(limit)).is_ok()
        };
        if log == LogKind::Attempts && !take(&self.used_by_attempts, self.total / 2) {
            return false;
        }
        let is_taken = take(&self.used, self.total + removed);
        if !is_taken {
            self.select(log, bytes);
        }
        is_taken
    }

    /// Returns whether [`Budget::take`] would succeed after the removal of `removed` bytes, `removed_attempts` of them
    /// of attempt logs.
    pub fn has_room(&self, log: LogKind, bytes: u64, removed: u64, removed_attempts: u64) -> bool {
        let attempts = self.used_by_attempts.load(Ordering::Relaxed) + bytes;
        (log == LogKind::Purchases || attempts <= self.total / 2 + removed_attempts)
            && self.used() + bytes <= self.total + removed
    }

    /// Notes that `bytes` of `log` are selected to be removed. They count as used until [`Budget::removed`].
    pub fn select(&self, log: LogKind, bytes: u64) {
        if log == LogKind::Attempts {
            self.used_by_attempts.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Subtracts `bytes` of files that are removed or were not created.
    pub fn removed(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that a shard lacks `bytes` for `log`, or that it lacks nothing any more if `bytes` is 0. The other shards
    /// then remove segments that nobody needs.
    pub fn want(&self, log: LogKind, bytes: u64) {
        self.wanted[log as usize].store(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes that a shard lacks for `log`, 0 if none.
    pub fn wanted(&self, log: LogKind) -> u64 {
        self.wanted[log as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn attempts_get_half() {
        let budget = Budget::new(8, 2);
        assert_eq!([3, 2, 1].map(|bytes| budget.take(LogKind::Attempts, bytes, 0)), [true, false, true]);
        assert_eq!([5, 4].map(|bytes| budget.take(LogKind::Purchases, bytes, 0)), [false, true]);
        assert!(!budget.take(LogKind::Purchases, 2, 1) && budget.take(LogKind::Purchases, 1, 1));
        budget.removed(1);
        assert_eq!((budget.used(), budget.share()), (8, 4));
    }

    /// Threads that take and give back at the same time never exceed the limit, and attempts never exceed half of it.
    #[test]
    fn the_sum_of_all_shards_is_limited() {
        for (log, limit) in [(LogKind::Purchases, 10), (LogKind::Attempts, 5)] {
            try_limit(log, limit);
        }
    }

    fn try_limit(log: LogKind, limit: u64) {
        let budget = Budget::new(10, 4);
        thread::scope(|scope| {
            for bytes in 1..=4 {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        if budget.take(log, bytes, 0) {
                            assert!(budget.used() <= limit);
                            budget.removed(bytes);
                            budget.select(log, bytes);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
