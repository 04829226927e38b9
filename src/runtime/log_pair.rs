//! A shard's two logs together: the disk space that they share, and the channel from them to Postgres. How a log is
//! written is in the folder `log`.
//!
//! The rule that must not break: the purchase log always has room for the end of every live hold, so that a client can
//! buy what it holds. Attempts get space only after that.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::retention::Retention;
use crate::log::writer::LogWriter;
use crate::postgres::feed::Feed;
use crate::sale::ids::Seq;
use crate::sale::parts::NeededSales;
use crate::upgrade::protocol::FromOld;
use crossbeam_channel::Receiver;

/// Attempts buffered in memory at most. Further attempts are not recorded.
pub const ATTEMPTS_MAX: usize = 16 * 1024;
/// Blocks of the purchase log reserved for the records that open sales. Holds cannot use them.
pub const LOG_SLACK_BLOCKS: u64 = 16;
/// Blocks of the purchase log kept free, in addition to one for each item, for records in flight during a rush.
const RUSH_BLOCKS: u64 = 1024;
/// Milliseconds between attempts to make a segment while the budget is used up or the disk is full.
const RETRY_MS: u64 = 500;

/// A shard's two logs, and the disk space that they may use.
pub struct LogPair {
    /// The purchase log: the records that recovery needs.
    pub purchases: LogWriter,
    /// The attempt log: refused checkouts.
    pub attempts: LogWriter,
    /// Byte budget of both logs.
    pub retention: Retention,
    /// Channels to and from the persistence thread, if there is a database.
    pub persistence: Option<PersistenceChannels>,
}

/// A shard's channels to and from the persistence thread.
pub struct PersistenceChannels {
    /// Flushed records, to the persistence thread.
    pub feed: Feed,
    /// Positions up to which Postgres has the streams that this shard retains, from the persistence thread.
    pub shipped: Receiver<(StreamId, Seq)>,
}

impl LogPair {
    /// Returns both logs with their kinds.
    pub fn both(&self) -> [(LogKind, &LogWriter); 2] {
        [(LogKind::Purchases, &self.purchases), (LogKind::Attempts, &self.attempts)]
    }

    /// Returns one log, and the channels to the persistence thread.
    pub fn log_mut(&mut self, kind: LogKind) -> (&mut LogWriter, Option<&PersistenceChannels>) {
        let log = if kind == LogKind::Purchases { &mut self.purchases } else { &mut self.attempts };
        (log, self.persistence.as_ref())
    }

    /// Returns the ends of both logs, for the new process of an upgrade.
    pub fn written(&self) -> FromOld {
        let StreamId { epoch, shard, .. } = self.purchases.stream();
        FromOld::Written { epoch, shard, purchases: self.purchases.end(), attempts: self.attempts.end() }
    }

    /// Returns whether a flush is in progress or a segment is being made.
    pub fn are_busy(&self) -> bool {
        [&self.purchases, &self.attempts].iter().any(|log| log.is_flushing() || log.is_making())
    }

    /// Returns whether nothing is left to write. Records for which the log has no room do not count: space may never
    /// become free, and no reply that depends on these records has been sent.
    pub fn have_nothing_to_write(&self) -> bool {
        let is_written = |log: &LogWriter| log.is_flushed() || log.room() == 0;
        is_written(&self.purchases) && is_written(&self.attempts) && !self.are_busy()
    }
}

/// Log space that a shard needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Blocks for the records that end live holds.
    pub holds: u64,
    /// Items that a rush can reserve at once.
    pub items: u64,
    /// The sales whose records the log must keep.
    pub needed: NeededSales,
}

impl Needs {
    /// Returns the free blocks that the purchase log needs. With fewer, the shard grants no new holds, and makes no
    /// segment for attempts.
    pub fn reserve(&self) -> u64 {
        self.holds + 2 * LOG_SLACK_BLOCKS
    }
}

/// The state of the log space of one shard: decides when to make the next segment of each log.
pub struct LogRoom {
    purchases_retry_ms: u64,
    attempts_retry_ms: u64,
    /// Blocks of the largest segment that is known to fit on the disk.
    fitting_blocks: u32,
    /// The purchase log has no room for new holds.
    pub is_full: bool,
    /// The attempt log has no room, so attempts are not recorded.
    pub is_losing_attempts: bool,
}

impl LogRoom {
    /// Creates the state for `logs`, before the first segment is made.
    pub fn new(logs: &LogPair) -> Self {
        LogRoom {
            purchases_retry_ms: 0,
            attempts_retry_ms: 0,
            fitting_blocks: logs.purchases.segment_blocks(),
            is_full: false,
            is_losing_attempts: false,
        }
    }

    /// Starts to make the segments that are missing, as far as the budget allows.
    pub fn extend(&mut self, logs: &mut LogPair, needs: Needs, now_ms: u64) {
        let (needed, reserve) = (needs.needed, needs.reserve());
        let LogPair { purchases, attempts, retention, persistence } = logs;
        let arrived = persistence.iter().flat_map(|shipping| shipping.shipped.try_iter());
        arrived.for_each(|(stream, position)| retention.shipped(stream, position));
        let full = purchases.segment_blocks();
        let half = u64::from(full) / 2;
        let rush = (needs.items + RUSH_BLOCKS).min(retention.budget() / BLOCK_BYTES as u64 / 4);
        let lacks_reserve = purchases.room() < reserve;
        let wants_purchases = purchases.room() < rush.max(reserve + half) && !purchases.is_making();
        if wants_purchases && now_ms >= self.purchases_retry_ms {
            self.purchases_retry_ms = now_ms + RETRY_MS;
            let fitting = if lacks_reserve { self.fitting_blocks } else { full };
            let blocks = purchases.existing_blocks().unwrap_or(fitting);
            if let Some(files_to_remove) = retention.allow(LogKind::Purchases, bytes(blocks), needed, lacks_reserve) {
                purchases.make_segment(blocks, files_to_remove);
            }
        }
        // Purchases come first: a client must be able to buy what it holds.
        let wants_attempts = attempts.room() < half && !attempts.is_making() && !lacks_reserve;
        if wants_attempts && now_ms >= self.attempts_retry_ms {
            self.attempts_retry_ms = now_ms + RETRY_MS;
            if let Some(files_to_remove) = retention.allow(LogKind::Attempts, bytes(full), needed, false) {
                attempts.make_segment(full, files_to_remove);
            }
        }
        // While a segment is being made, the room of the log is not known yet.
        if !purchases.is_making() {
            self.is_full = purchases.room() < reserve;
        }
        self.is_losing_attempts = attempts.room() == 0 && attempts.buffered() >= ATTEMPTS_MAX;
    }

    /// Notes that a segment of `blocks` blocks has been made, so that the next one is tried without a delay.
    pub fn made(&mut self, blocks: u32) {
        (self.purchases_retry_ms, self.attempts_retry_ms) = (0, 0);
        self.fitting_blocks = self.fitting_blocks.max(blocks);
    }

    /// Notes that the disk had no room for a segment of `blocks` blocks. If live holds need a segment, the next attempt
    /// follows at once with half the size, down to one block.
    pub fn refused(&mut self, logs: &mut LogPair, needs: Needs, kind: LogKind, blocks: u32) {
        logs.retention.refused(kind, bytes(blocks), needs.needed);
        if kind == LogKind::Purchases {
            self.fitting_blocks = if blocks > 1 { blocks / 2 } else { logs.purchases.segment_blocks() };
            if blocks > 1 && logs.purchases.room() < needs.reserve() {
                self.purchases_retry_ms = 0;
            }
        }
    }
}

/// Converts blocks to bytes.
fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES as u64
}
