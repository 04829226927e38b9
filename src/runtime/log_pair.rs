//! A shard's two logs together: the disk that they share, their way to Postgres.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::retention::Retention;
use crate::log::writer::LogWriter;
use crate::postgres::feed::Feed;
use crate::sale::ids::{SaleId, Seq};
use crate::upgrade::protocol::FromOld;
use crossbeam_channel::Receiver;

/// Attempts waiting in memory beyond which further ones are not recorded.
pub const ATTEMPTS_MAX: usize = 16 * 1024;
/// Blocks of the purchase log that no hold may count on: for the records that open sales.
pub const LOG_SLACK_BLOCKS: u64 = 16;
/// Blocks of the purchase log kept free on top of one for each item, for what a rush has under way.
const RUSH_BLOCKS: u64 = 1024;
/// How long a used-up budget or a full disk is left alone before it is asked again.
const RETRY_MS: u64 = 500;

/// A shard's two logs, and the disk they may use.
pub struct LogPair {
    /// What the rules need.
    pub purchases: LogWriter,
    /// Refused checkouts.
    pub attempts: LogWriter,
    /// The budget of both.
    pub retention: Retention,
    /// The way to Postgres, if there is one.
    pub persistence: Option<Shipping>,
}

/// A shard's two ends at the persistence thread.
pub struct Shipping {
    /// There: what has been flushed.
    pub feed: Feed,
    /// Back: how much of the streams that this shard looks after has arrived.
    pub shipped: Receiver<(StreamId, Seq)>,
}

impl LogPair {
    /// Where they end, for whoever goes on with them.
    pub fn written(&self) -> FromOld {
        let StreamId { epoch, shard, .. } = self.purchases.stream();
        FromOld::Written { epoch, shard, purchases: self.purchases.end(), attempts: self.attempts.end() }
    }

    /// Whether anything is being written or made.
    pub fn are_busy(&self) -> bool {
        [&self.purchases, &self.attempts].iter().any(|log| log.is_flushing() || log.is_making())
    }

    /// Whether nothing is left to be written. What finds no room is not waited for: space may never come, and nobody
    /// has been told of it.
    pub fn are_at_rest(&self) -> bool {
        let is_written = |log: &LogWriter| log.is_flushed() || log.room() == 0;
        is_written(&self.purchases) && is_written(&self.attempts) && !self.are_busy()
    }
}

/// What room is for.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Blocks for the ends of live holds.
    pub holds: u64,
    /// Items that a rush may reserve at once.
    pub items: u64,
    /// The sale whose opening is durable: what came before it may be removed.
    pub durable_sale: SaleId,
}

impl Needs {
    /// Blocks that the purchase log must have free before it may grow for any other reason.
    pub fn reserve(&self) -> u64 {
        self.holds + 2 * LOG_SLACK_BLOCKS
    }
}

/// See the top of this file.
pub struct LogRoom {
    purchases_retry_ms: u64,
    attempts_retry_ms: u64,
    /// As large a segment as the disk has room for, as far as is known.
    fitting_blocks: u32,
    /// There is no room for more holds.
    pub is_full: bool,
    /// There is no room for more attempts.
    pub is_losing_attempts: bool,
}

impl LogRoom {
    /// Nothing is known yet of the disk of `logs`.
    pub fn new(logs: &LogPair) -> Self {
        LogRoom {
            purchases_retry_ms: 0,
            attempts_retry_ms: 0,
            fitting_blocks: logs.purchases.segment_blocks(),
            is_full: false,
            is_losing_attempts: false,
        }
    }

    /// Begins to make what is missing.
    pub fn extend(&mut self, logs: &mut LogPair, needs: Needs, now_ms: u64) {
        let (durable_sale, reserve) = (needs.durable_sale, needs.reserve());
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
            let blocks = purchases.made_ahead().unwrap_or(fitting);
            if let Some(doomed) = retention.allow(LogKind::Purchases, bytes(blocks), durable_sale, lacks_reserve) {
                purchases.make_segment(blocks, doomed);
            }
        }
        // Attempts come second: what is held must be bought.
        let wants_attempts = attempts.room() < half && !attempts.is_making() && !lacks_reserve;
        if wants_attempts && now_ms >= self.attempts_retry_ms {
            self.attempts_retry_ms = now_ms + RETRY_MS;
            if let Some(doomed) = retention.allow(LogKind::Attempts, bytes(full), durable_sale, false) {
                attempts.make_segment(full, doomed);
            }
        }
        // While a segment is being made, nobody knows.
        if !purchases.is_making() {
            self.is_full = purchases.room() < reserve;
        }
        self.is_losing_attempts = attempts.room() == 0 && attempts.buffered() >= ATTEMPTS_MAX;
    }

    /// A segment of so many blocks has been made: there may be more to make.
    pub fn made(&mut self, blocks: u32) {
        (self.purchases_retry_ms, self.attempts_retry_ms) = (0, 0);
        self.fitting_blocks = self.fitting_blocks.max(blocks);
    }

    /// The disk had no room for a segment of so many blocks. Where live holds need one, a smaller one will do, to the last
    /// block.
    pub fn refused(&mut self, logs: &mut LogPair, needs: Needs, kind: LogKind, blocks: u32) {
        logs.retention.refused(kind, bytes(blocks), needs.durable_sale);
        if kind == LogKind::Purchases {
            self.fitting_blocks = if blocks > 1 { blocks / 2 } else { logs.purchases.segment_blocks() };
            if blocks > 1 && logs.purchases.room() < needs.reserve() {
                self.purchases_retry_ms = 0;
            }
        }
    }
}

/// Bytes of so many blocks.
fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES as u64
}
