//! The numbers that one shard publishes. The shard is their only writer.

use crate::operate::counters::{Batches, Counter, Requests};
use crate::sale::ids::SaleId;
use crate::sale::record::{RefusalReason, ReleaseReason};
use crate::sale::stock::Counts;
use std::sync::atomic::{AtomicU64, Ordering};
use strum::EnumCount;

/// Items of one shard or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sales {
    /// Bought.
    pub sold: u32,
    /// Held, or on the way to be or to be bought.
    pub reserved: u32,
}

/// One shard's numbers, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardStatus {
    /// Low 16 bits of the sale, then 24 bits sold, then 24 bits reserved: one word, so that they belong together.
    sales: AtomicU64,
    /// Items of the sale that are this shard's.
    pub items: AtomicU64,
    /// Open connections.
    pub connections: AtomicU64,
    /// Those of them that listen to the sale.
    pub subscribers: AtomicU64,
    /// Records appended to the purchase log.
    pub appended: AtomicU64,
    /// Records of it that are durable.
    pub flushed: AtomicU64,
    /// Records of the attempt log that are durable.
    pub attempts_flushed: AtomicU64,
    /// Records of the purchase log that are in Postgres.
    pub persisted: AtomicU64,
    /// Records of the attempt log that are in Postgres.
    pub attempts_persisted: AtomicU64,
    /// Blocks that the purchase log can still take.
    pub log_room: AtomicU64,
    /// Refused checkouts that were not recorded, for want of room, by the reason of their refusal.
    pub unrecorded: [Counter; RefusalReason::COUNT],
    /// Holds that ended without a purchase, by reason.
    pub released: [Counter; ReleaseReason::COUNT],
    /// Turns taken.
    pub turns: AtomicU64,
    /// Flushes of the purchase log.
    pub purchase_flushes: Batches,
    /// Flushes of the attempt log.
    pub attempt_flushes: Batches,
    /// Batches sent to other shards.
    pub lane_batches: AtomicU64,
    /// Messages in them.
    pub lane_messages: AtomicU64,
    /// Messages that wait for a peer to read what it has.
    pub lane_waiting: AtomicU64,
    /// Requests of its clients.
    pub requests: Requests,
}

impl ShardStatus {
    /// Publishes how the sale stands.
    pub fn publish_sales(&self, sale: SaleId, counts: Counts) {
        let reserved = u64::from(counts.claiming + counts.held + counts.committing);
        let word = u64::from(sale.0 & 0xffff) << 48 | u64::from(counts.sold) << 24 | reserved;
        self.sales.store(word, Ordering::Release);
    }

    /// How the sale stands here; nothing sold, if this shard has not begun it yet.
    pub fn sales(&self, sale: SaleId) -> Sales {
        let word = self.sales.load(Ordering::Acquire);
        if word >> 48 != u64::from(sale.0 & 0xffff) {
            return Sales::default();
        }
        Sales { sold: (word >> 24 & 0xff_ffff) as u32, reserved: (word & 0xff_ffff) as u32 }
    }
}
