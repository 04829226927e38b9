//! The numbers that one shard publishes. The shard is their only writer, except for the two numbers of persisted
//! records.

use crate::log::block::LogKind;
use crate::operate::counters::{Batches, Counter, Requests};
use crate::sale::ids::SaleId;
use crate::sale::record::{RefusalReason, ReleaseReason};
use crate::sale::stock::Counts;
use std::sync::atomic::{AtomicU64, Ordering};
use strum::EnumCount;

/// Sold and reserved items of one shard or of all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sales {
    /// Items sold.
    pub sold: u32,
    /// Items that are held, being claimed or being bought.
    pub reserved: u32,
}

/// One shard's numbers, aligned so that no two shards share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardStatus {
    /// Low 16 bits of the sale's id, then 24 bits sold, then 24 bits reserved. They share one word so that a reader
    /// gets values of the same moment.
    sales: AtomicU64,
    /// Items of the sale that this shard owns.
    pub items: AtomicU64,
    /// Open connections.
    pub connections: AtomicU64,
    /// Open connections that follow `/events`.
    pub subscribers: AtomicU64,
    /// Records appended to the purchase log.
    pub appended: AtomicU64,
    logs: [LogStatus; 2],
    /// Free blocks in the segments of the purchase log.
    pub log_room: AtomicU64,
    /// Refused checkouts that were not recorded because the buffer of the attempt log was full, by reason of the
    /// refusal.
    pub unrecorded: [Counter; RefusalReason::COUNT],
    /// Holds that ended without a purchase, by reason.
    pub released: [Counter; ReleaseReason::COUNT],
    /// Turns taken.
    pub turns: AtomicU64,
    /// Batches sent to other shards.
    pub lane_batches: AtomicU64,
    /// Messages in those batches.
    pub lane_messages: AtomicU64,
    /// Messages not sent yet, because the receiving shard has not read the earlier batches.
    pub lane_waiting: AtomicU64,
    /// Requests of the shard's clients.
    pub requests: Requests,
}

/// The numbers of one log of a shard, in this run.
#[derive(Debug, Default)]
pub struct LogStatus {
    /// Durable records.
    pub flushed: AtomicU64,
    /// Records that are in Postgres. Written by the persistence thread.
    pub persisted: AtomicU64,
    /// Flushes.
    pub flushes: Batches,
}

impl ShardStatus {
    /// Returns the numbers of one of the shard's logs.
    pub fn log(&self, log: LogKind) -> &LogStatus {
        &self.logs[log as usize]
    }

    /// Publishes the shard's sold and reserved items of `sale`.
    pub fn publish_sales(&self, sale: SaleId, counts: Counts) {
        let reserved = u64::from(counts.claiming + counts.held + counts.buying);
        let word = u64::from(sale.0 & 0xffff) << 48 | u64::from(counts.sold) << 24 | reserved;
        self.sales.store(word, Ordering::Release);
    }

    /// Returns the shard's sold and reserved items of `sale`: zero if the shard is in another sale.
    pub fn sales(&self, sale: SaleId) -> Sales {
        let word = self.sales.load(Ordering::Acquire);
        if word >> 48 != u64::from(sale.0 & 0xffff) {
            return Sales::default();
        }
        Sales { sold: (word >> 24 & 0xff_ffff) as u32, reserved: (word & 0xff_ffff) as u32 }
    }
}
