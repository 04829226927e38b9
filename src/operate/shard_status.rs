//! The numbers that one shard publishes. The shard is their only writer, except for the two numbers of persisted
//! records.

use crate::log::block::LogKind;
use crate::operate::counters::{Batches, Counter, Histogram, Requests, TIMES_US};
use crate::operate::counts_word::CountsWord;
use crate::operate::exemplars::Exemplars;
use crate::sale::ids::SaleId;
use crate::sale::parts::ENDED_MAX;
use crate::sale::product_stock::ProductCounts;
use crate::sale::published_stock::PublishedStock;
use crate::sale::record::{RefusalReason, ReleaseReason};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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
    /// Counts of the latest sales, by the low bits of the sale's id.
    sales: SalesWords,
    /// The oldest sale that is open or in which an item is held on this shard, or the newest one, as of the last durable
    /// record. 0 before the first one.
    pub oldest_live: AtomicU32,
    /// Items of the sale that this shard owns.
    pub items: AtomicU64,
    /// Numbers of connections.
    pub connections: ConnectionNumbers,
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
    /// Durations of the turns.
    pub turn_times: TurnTimes,
    /// Batches sent to other shards.
    pub lane_batches: AtomicU64,
    /// Messages in those batches.
    pub lane_messages: AtomicU64,
    /// Messages not sent yet, because the receiving shard has not read the earlier batches.
    pub lane_waiting: AtomicU64,
    /// Requests of the shard's clients.
    pub requests: Requests,
    /// Examples of the latencies of those requests.
    pub exemplars: Exemplars,
}

/// The durations of a shard's turns: from the end of the wait for work until the shard waits again.
#[derive(Debug)]
pub struct TurnTimes {
    /// All turns, in microseconds.
    pub all: Histogram,
    /// The longest turn since the process started, in microseconds.
    pub longest_us: AtomicU64,
}

impl Default for TurnTimes {
    fn default() -> Self {
        TurnTimes { all: Histogram::new(&TIMES_US), longest_us: AtomicU64::new(0) }
    }
}

impl TurnTimes {
    /// Counts a turn of `micros` microseconds. Only the shard may call it.
    pub fn record(&self, micros: u64) {
        self.all.record(micros);
        if micros > self.longest_us.load(Ordering::Relaxed) {
            self.longest_us.store(micros, Ordering::Relaxed);
        }
    }
}

/// The numbers of a shard's connections. Each shard reads those of all others in each turn, so they have a cache line
/// of their own, which is written only if a number changes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ConnectionNumbers {
    /// Open connections.
    pub open: AtomicU64,
    /// Open connections that follow `/events`.
    pub subscribers: AtomicU64,
    /// Monotonic time in ms since when the longest idle connection has waited for its client; 0 if there is none.
    idle_since_ms: AtomicU64,
    /// Connections that were closed at the limit in favour of new ones.
    pub evicted: Counter,
}

impl ConnectionNumbers {
    /// Publishes the open connections, those that follow `/events`, and since when the longest idle one has waited.
    pub fn publish(&self, open: usize, subscribers: usize, idle_since_ms: Option<u64>) {
        // A time of 0 does not occur: the clocks of the turns start at 1 ms.
        let idle_since_ms = idle_since_ms.map_or(0, |since_ms| since_ms.max(1));
        let numbers =
            [(&self.open, open as u64), (&self.subscribers, subscribers as u64), (&self.idle_since_ms, idle_since_ms)];
        for (number, value) in numbers {
            if number.load(Ordering::Relaxed) != value {
                number.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Returns the monotonic time in ms since when the longest idle connection has waited for its client, if there is
    /// one.
    pub fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since_ms.load(Ordering::Relaxed)).filter(|since_ms| *since_ms > 0)
    }
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

    /// Publishes what the shard has sold and reserved of a sale.
    pub fn publish_sales(&self, stock: PublishedStock) {
        let PublishedStock { sale, sold, reserved, next_expiry_ms, .. } = stock;
        let (words, tag) = self.sales.of(sale);
        words.next_expiry_ms.store(next_expiry_ms, Ordering::Relaxed);
        words.counts.store(tag, ProductCounts { sold, reserved });
    }

    /// Returns what the shard has published of `sale`: nothing sold and nothing reserved if it has not.
    pub fn published(&self, sale: SaleId) -> PublishedStock {
        let (words, tag) = self.sales.of(sale);
        let Some(ProductCounts { sold, reserved }) = words.counts.load(tag) else {
            return PublishedStock { sale, ..PublishedStock::default() };
        };
        let next_expiry_ms = words.next_expiry_ms.load(Ordering::Relaxed);
        PublishedStock { sale, product: None, sold, reserved, next_expiry_ms }
    }

    /// Returns the shard's sold and reserved items of `sale`.
    pub fn sales(&self, sale: SaleId) -> Sales {
        let PublishedStock { sold, reserved, .. } = self.published(sale);
        Sales { sold, reserved }
    }
}

/// Number of sales whose counts are published, by the low bits of their ids: a power of two above the number of sales that
/// a shard knows. The ids of sales that are known at once must not differ by a multiple of it.
pub const SALES_PUBLISHED: usize = 1024;
const _: () = assert!(SALES_PUBLISHED > 2 * ENDED_MAX as usize);

/// What is published of the latest sales.
#[derive(Debug)]
struct SalesWords(Box<[SaleWords]>);

/// What is published of one sale.
#[derive(Debug, Default)]
struct SaleWords {
    counts: CountsWord,
    /// Time at which the first hold ends, in monotonic milliseconds; `u64::MAX` if nothing is held.
    next_expiry_ms: AtomicU64,
}

impl Default for SalesWords {
    fn default() -> Self {
        SalesWords((0..SALES_PUBLISHED).map(|_| SaleWords::default()).collect())
    }
}

impl SalesWords {
    /// Returns the words of `sale`, and their tag: the bits of the sale's id that do not select the words.
    fn of(&self, sale: SaleId) -> (&SaleWords, u32) {
        (&self.0[sale.0 as usize % SALES_PUBLISHED], sale.0 / SALES_PUBLISHED as u32)
    }
}
