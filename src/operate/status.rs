//! What shards publish for others to read: numbers, no more. Each has one writer, but for the newest sale; only that one is
//! read on the way of a request. Beside them, for the admin port alone: the sales that the main thread has seen end.

use crate::http::bodies::{Doing, Postgres};
use crate::http::operation::Operation;
use crate::operate::counters::{Bounds, Counter, Distribution, Histogram, TIMES_US};
use crate::operate::shard_status::{Sales, ShardStatus};
use crate::sale::ids::{SaleId, ShardId};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use strum::VariantArray;

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, VariantArray)]
pub enum Phase {
    /// Reading the log. Asks are answered 503.
    Recovering,
    /// Selling.
    Serving,
    /// One process goes on in the place of another: neither reads anything, what is in flight is finished.
    Paused,
    /// Told to stop: still selling, but not ready any more, until whoever sends clients here has noticed.
    Leaving,
    /// No new connections, what is in flight is finished.
    Draining,
    /// Every shard has finished, or time is up: flush and end.
    Stopping,
}

/// The word for a phase in answers. The phases of the end look the same from outside.
impl From<Phase> for Doing {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Recovering => Doing::Recovering,
            Phase::Serving => Doing::Serving,
            Phase::Paused => Doing::Paused,
            Phase::Leaving | Phase::Draining | Phase::Stopping => Doing::Draining,
        }
    }
}

/// What the persistence thread has done.
#[derive(Debug)]
pub struct Shipped {
    /// Rows copied, by table: checkouts, purchases, releases.
    pub rows: [Counter; 3],
    /// Microseconds that a transaction took.
    pub times: Histogram,
    /// How often it lost the database, or did not reach it, and tried again.
    pub retries: Counter,
}

impl Shipped {
    /// A transaction is known to have committed. (One whose answer is lost is not counted; its rows are not sent again.)
    pub fn committed(&self, time: Duration, rows: [u64; 3]) {
        self.times.record(time.as_micros() as u64);
        self.rows.iter().zip(rows).for_each(|(counter, rows)| counter.add(rows));
    }
}

/// How a sale ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SaleEnded {
    /// Which sale: whole periods since 1970.
    pub sale_id: u32,
    /// Items sold.
    pub sold: u32,
    /// Items that there were.
    pub items: u32,
}

/// Ended sales that are remembered.
const ENDED_KEPT: usize = 12;

/// What the whole process publishes.
#[derive(Debug)]
pub struct Status {
    phase: AtomicU8,
    newest_sale: AtomicU32,
    /// By shard.
    pub shards: Box<[ShardStatus]>,
    /// Whether there is a database to persist to.
    pub has_database: bool,
    /// Whether it answers.
    pub is_database_connected: AtomicBool,
    /// Durable records of earlier runs that are not in Postgres; `u64::MAX` until it has been asked.
    pub earlier_behind: AtomicU64,
    /// For how long the oldest record that is not in Postgres has been durable, in milliseconds, about.
    pub behind_ms: AtomicU64,
    /// What has been brought to it.
    pub shipped: Shipped,
    /// Between the main thread and the admin port's: no shard takes a lock.
    ended: Mutex<VecDeque<SaleEnded>>,
}

impl Status {
    /// For `shards` shards; with or without a database.
    pub fn new(phase: Phase, shards: u16, has_database: bool) -> Self {
        let shards = (0..shards).map(|_| ShardStatus::default()).collect();
        Status {
            phase: AtomicU8::new(phase as u8),
            newest_sale: AtomicU32::new(0),
            shards,
            has_database,
            is_database_connected: AtomicBool::new(false),
            earlier_behind: AtomicU64::new(u64::MAX),
            behind_ms: AtomicU64::new(0),
            shipped: Shipped {
                rows: Default::default(),
                times: Histogram::new(&TIMES_US),
                retries: Counter::default(),
            },
            ended: Mutex::default(),
        }
    }

    /// Returns the numbers of one shard.
    pub fn shard(&self, id: ShardId) -> &ShardStatus {
        &self.shards[usize::from(id.0)]
    }

    /// What the process is doing.
    pub fn phase(&self) -> Phase {
        Phase::VARIANTS[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Moves on. The caller wakes the shards.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The newest sale that any shard has begun. All are to follow before they say anything more, whatever the clock says:
    /// a client may have heard of it.
    pub fn newest_sale(&self) -> SaleId {
        SaleId(self.newest_sale.load(Ordering::Acquire))
    }

    /// A shard is in this sale. To be called before anyone can hear of it.
    pub fn note_sale(&self, sale: SaleId) {
        if sale > self.newest_sale() {
            self.newest_sale.fetch_max(sale.0, Ordering::Release);
        }
    }

    /// A sale is over. For the main thread.
    pub fn note_end(&self, sale: SaleEnded) {
        let mut ended = self.ended.lock().expect("a panic ends the process");
        if ended.len() == ENDED_KEPT {
            ended.pop_front();
        }
        ended.push_back(sale);
    }

    /// The last sales that ended while this process sold, in order. For the admin port's thread.
    pub fn sales_ended(&self) -> Vec<SaleEnded> {
        self.ended.lock().expect("a panic ends the process").iter().copied().collect()
    }

    /// Running totals of what is durable and of what is in Postgres; their difference is what is not. The second one
    /// starts below zero if earlier runs left something that is known of.
    pub fn records(&self) -> (i64, i64) {
        let sum = |ofs: [fn(&ShardStatus) -> &AtomicU64; 2]| {
            let numbers = self.shards.iter().flat_map(|shard| ofs.map(|of| of(shard).load(Ordering::Acquire) as i64));
            numbers.sum::<i64>()
        };
        // What is in Postgres first: it never overtakes what is durable.
        let persisted = sum([|shard| &shard.persisted, |shard| &shard.attempts_persisted]);
        let durable = sum([|shard| &shard.flushed, |shard| &shard.attempts_flushed]);
        (durable, persisted - self.earlier_behind().unwrap_or(0) as i64)
    }

    fn earlier_behind(&self) -> Option<u64> {
        Some(self.earlier_behind.load(Ordering::Relaxed)).filter(|records| *records != u64::MAX)
    }

    /// Durable records of all logs, earlier runs' too, that are not in Postgres. `None` until it has been asked.
    pub fn records_behind(&self) -> Option<u64> {
        self.earlier_behind()?;
        let (durable, persisted) = self.records();
        Some((durable - persisted).max(0) as u64)
    }

    /// Returns how far Postgres is behind, or `None` if there is no database.
    pub fn postgres(&self) -> Option<Postgres> {
        self.has_database.then(|| Postgres {
            connected: self.is_database_connected.load(Ordering::Relaxed),
            records_behind: self.records_behind(),
            seconds_behind: self.behind_ms.load(Ordering::Relaxed) as f64 / 1000.0,
        })
    }

    /// Items of the newest sale that can be had, when so many cannot. Shards publish one after the other, so the sum may be
    /// ahead by what is under way.
    pub fn available(&self, stands: Sales) -> u64 {
        self.items().saturating_sub(u64::from(stands.sold + stands.reserved))
    }

    /// What histograms of these bounds have counted, on all shards.
    pub fn total(&self, bounds: &'static Bounds, of: impl Fn(&ShardStatus) -> Distribution) -> Distribution {
        self.shards.iter().map(of).fold(Distribution::new(bounds), |total, shard| total.and(&shard))
    }

    /// How long an operation took, on all shards.
    pub fn times(&self, operation: Operation) -> Distribution {
        self.total(&TIMES_US, |shard| shard.requests.times(operation).read())
    }

    /// Items of the sale.
    pub fn items(&self) -> u64 {
        self.shards.iter().map(|shard| shard.items.load(Ordering::Relaxed)).sum()
    }

    /// How a sale stands over all shards.
    pub fn sales(&self, sale: SaleId) -> Sales {
        self.shards.iter().map(|shard| shard.sales(sale)).fold(Sales::default(), |sum, shard| Sales {
            sold: sum.sold + shard.sold,
            reserved: sum.reserved + shard.reserved,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::stock::Counts;

    #[test]
    fn only_shards_in_the_sale_count() {
        let status = Status::new(Phase::Serving, 2, false);
        let counts = Counts { claiming: 1, held: 2, committing: 3, sold: 4 };
        status.shards[0].publish_sales(SaleId(70_000), counts);
        status.shards[1].publish_sales(SaleId(69_999), counts);
        assert_eq!(status.sales(SaleId(70_000)), Sales { sold: 4, reserved: 6 });
    }
}
