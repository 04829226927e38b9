//! Keeps room ahead in a shard's two logs, as far as their budget and the disk allow: enough for a crowd that reserves a
//! whole new stock at once, because making segments takes longer than that.

use crate::block::{BLOCK_BYTES, LogKind};
use crate::logs::Logs;
use crate::types::SaleId;

/// Attempts waiting in memory beyond which further ones are not recorded.
pub const ATTEMPTS_MAX: usize = 16 * 1024;
/// Blocks of the purchase log that no hold may count on: for the records that open sales.
pub const LOG_SLACK_BLOCKS: u64 = 16;
/// Blocks of the purchase log kept free on top of one for each item, for what a rush has under way.
const RUSH_BLOCKS: u64 = 1024;
/// How long a used-up budget or a full disk is left alone before it is asked again.
const RETRY_MS: u64 = 500;

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
    pub fn new(logs: &Logs) -> Self {
        LogRoom {
            purchases_retry_ms: 0,
            attempts_retry_ms: 0,
            fitting_blocks: logs.purchases.segment_blocks(),
            is_full: false,
            is_losing_attempts: false,
        }
    }

    /// Begins to make what is missing.
    pub fn extend(&mut self, logs: &mut Logs, needs: Needs, now_ms: u64) {
        let (durable_sale, reserve) = (needs.durable_sale, needs.reserve());
        let Logs { purchases, attempts, retention, persistence } = logs;
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
    pub fn refused(&mut self, logs: &mut Logs, needs: Needs, kind: LogKind, blocks: u32) {
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
