//! The numbers that the whole process publishes: its phase, the state of Postgres, and the numbers of each shard. The
//! admin port reads them, and so do the pages such as `/sale` and `/health`.
//!
//! Every number is one atomic with one writer, except the newest sale, which every shard can raise. The lists of the sales
//! that have opened and that have ended have a lock each, which only the main thread and the admin port take: no shard takes
//! a lock.

use crate::http::bodies::{Doing, OwnerHealth, Postgres};
use crate::http::operation::Operation;
use crate::http::problem::Problem;
use crate::log::block::LogKind;
use crate::log::budget::Budget;
use crate::operate::counters::{Bounds, Counter, Distribution, Histogram, TIMES_US};
use crate::operate::lease::Lease;
use crate::operate::shard_status::{LogStatus, Sales, ShardStatus};
use crate::sale::ids::{SaleId, ShardId, Terms};
use crate::sale::parts::ENDED_MAX;
use crate::sale::sale_schedule::OPEN_MAX;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strum::VariantArray;

/// Phase of the process. A later phase compares greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, VariantArray)]
pub enum Phase {
    /// Another server sells, or may sell: this one waits for its end, or is not known any more to be the owner of
    /// the database. Requests for items, purchases and events get 503.
    Standby,
    /// The process recovers its state from the log. Requests for items, purchases and events get 503.
    Recovering,
    /// The server sells.
    Serving,
    /// An upgrade is replacing one process with another: neither reads requests, and requests in flight are finished.
    Paused,
    /// The process received a signal to stop. It still sells but reports that it is not ready, so that load balancers
    /// can remove it before the drain begins.
    Leaving,
    /// The process accepts no connections and finishes the requests in flight.
    Draining,
    /// All shards are drained, or the time limit of the drain is over: the shards flush their logs and stop.
    Stopping,
}

impl Phase {
    /// Returns the refusal of a request for which the process must sell.
    pub fn refusal(self) -> Problem {
        if self == Phase::Standby { Problem::Standby } else { Problem::NotReady }
    }
}

/// Converts a phase to the status that clients see. All phases of a stop have the same status.
impl From<Phase> for Doing {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Standby => Doing::Standby,
            Phase::Recovering => Doing::Recovering,
            Phase::Serving => Doing::Serving,
            Phase::Paused => Doing::Paused,
            Phase::Leaving | Phase::Draining | Phase::Stopping => Doing::Draining,
        }
    }
}

/// Work done by the persistence thread.
#[derive(Debug)]
pub struct PersistenceCounters {
    /// Rows copied into each table: checkouts, purchases, releases, extensions.
    pub rows: [Counter; 4],
    /// Durations of the transactions, in microseconds.
    pub times: Histogram,
    /// Number of lost or failed connections to the database.
    pub retries: Counter,
    /// Partitions of each table, in the order of `rows`.
    pub partitions: [AtomicU64; 4],
    /// Partitions that were dropped: of whole sales, of refused checkouts only.
    pub dropped: [Counter; 2],
}

impl PersistenceCounters {
    /// Counts a transaction that is known to have committed. A transaction whose answer was lost is not counted; if it
    /// committed, its rows are not sent again.
    pub fn committed(&self, time: Duration, rows: [u64; 4]) {
        self.times.record(time.as_micros() as u64);
        self.rows.iter().zip(rows).for_each(|(counter, rows)| counter.add(rows));
    }
}

/// Result of an ended sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EndedSale {
    /// Id of the sale.
    pub sale_id: u32,
    /// When the sale opened, in milliseconds since the Unix epoch. `None` if the plan does not have it any more.
    pub opens_ms: Option<u64>,
    /// Items sold.
    pub sold: u32,
    /// Items in the sale.
    pub items: u32,
}

/// What a standby knows of the server that sells.
#[derive(Debug, Default)]
pub struct WatchedOwner {
    /// Epoch of its run. 0: none is known.
    epoch: AtomicU32,
    /// Time since the standby has seen a report of it, in milliseconds.
    silent_ms: AtomicU64,
}

impl WatchedOwner {
    /// Publishes what was seen.
    pub fn publish(&self, epoch: u32, silent: Duration) {
        self.epoch.store(epoch, Ordering::Relaxed);
        self.silent_ms.store(silent.as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns what was published last, or `None` if nothing was.
    pub fn owner(&self) -> Option<OwnerHealth> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let silent_seconds = self.silent_ms.load(Ordering::Relaxed) as f64 / 1000.0;
        (epoch > 0).then_some(OwnerHealth { epoch, silent_seconds })
    }
}

/// Maximum number of ended sales kept.
const ENDED_KEPT: usize = 12;
/// Maximum number of sales kept that have opened: as many as a shard knows.
const BEGUN_KEPT: usize = OPEN_MAX + 2 * ENDED_MAX as usize;

/// Numbers published by the whole process.
#[derive(Debug)]
pub struct Status {
    phase: AtomicU8,
    /// Until when this process may answer as the owner of the database.
    pub lease: Lease,
    /// What a standby knows of the server that sells.
    pub watched: WatchedOwner,
    newest_sale: AtomicU32,
    /// The terms of the sales that have opened. Only the main thread and the thread of the admin port take this lock.
    begun: Mutex<Vec<Terms>>,
    /// Numbers of each shard, by shard id.
    pub shards: Box<[ShardStatus]>,
    /// The disk space of the logs.
    pub log_budget: Arc<Budget>,
    /// Whether a database is configured.
    pub has_database: bool,
    /// Whether the database is connected.
    pub is_database_connected: AtomicBool,
    /// Durable records of earlier runs that are not in Postgres; `u64::MAX` until the database was reached once.
    pub earlier_behind: AtomicU64,
    /// Approximate time for which the oldest record that is not in Postgres has been durable, in milliseconds.
    pub behind_ms: AtomicU64,
    /// Rows sent to Postgres, and the transactions that sent them.
    pub shipped: PersistenceCounters,
    /// The last ended sales. Only the main thread and the thread of the admin port take this lock.
    ended: Mutex<VecDeque<EndedSale>>,
}

impl Status {
    /// Creates the status of a process with `shards` shards, whose logs may use `log_budget` bytes.
    pub fn new(phase: Phase, shards: u16, log_budget: u64, has_database: bool) -> Self {
        let log_budget = Arc::new(Budget::new(log_budget, shards));
        let shards = (0..shards).map(|_| ShardStatus::default()).collect();
        Status {
            phase: AtomicU8::new(phase as u8),
            lease: Lease::default(),
            watched: WatchedOwner::default(),
            newest_sale: AtomicU32::new(0),
            begun: Mutex::default(),
            shards,
            log_budget,
            has_database,
            is_database_connected: AtomicBool::new(false),
            earlier_behind: AtomicU64::new(u64::MAX),
            behind_ms: AtomicU64::new(0),
            shipped: PersistenceCounters {
                rows: Default::default(),
                times: Histogram::new(&TIMES_US),
                retries: Counter::default(),
                partitions: Default::default(),
                dropped: Default::default(),
            },
            ended: Mutex::default(),
        }
    }

    /// Returns the numbers of one shard.
    pub fn shard(&self, id: ShardId) -> &ShardStatus {
        &self.shards[usize::from(id.0)]
    }

    /// Returns the phase of the process: the last one that was set, or [`Phase::Standby`] if the process sells and its
    /// lease has expired.
    pub fn phase(&self) -> Phase {
        match self.entered_phase() {
            Phase::Serving | Phase::Leaving if self.lease.is_expired() => Phase::Standby,
            phase => phase,
        }
    }

    /// Returns the phase that was set last.
    pub fn entered_phase(&self) -> Phase {
        Phase::VARIANTS[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Sets the phase. The caller must wake the shards afterwards.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Returns the oldest sale in which an item is held on any shard, or the oldest open one.
    pub fn oldest_live_sale(&self) -> SaleId {
        let oldest = self.shards.iter().map(|shard| shard.oldest_live.load(Ordering::Acquire)).min();
        SaleId(oldest.expect("there is at least one shard"))
    }

    /// Returns the newest sale that any shard has begun. A client may have seen that sale in a response, so every shard
    /// enters it before it handles another request, even if the shard's clock is still before the start of the sale.
    pub fn newest_sale(&self) -> SaleId {
        SaleId(self.newest_sale.load(Ordering::Acquire))
    }

    /// Raises the newest sale to `sale`. A shard calls it before it sends the first response of that sale.
    pub fn note_sale(&self, sale: SaleId) {
        if sale > self.newest_sale() {
            self.newest_sale.fetch_max(sale.0, Ordering::Release);
        }
    }

    /// Adds a sale that has opened, and drops the oldest one that has closed if the list is full. Sales open in the order of
    /// their ids. Called by the main thread.
    pub fn add_begun_sale(&self, terms: Terms) {
        let mut begun = self.begun.lock().expect("a panic ends the process");
        if begun.len() >= BEGUN_KEPT
            && let Some(oldest) = begun.iter().position(|known| known.has_closed(terms.opens_ms))
        {
            begun.remove(oldest);
        }
        begun.push(terms);
    }

    /// Returns the terms of the last sales that have opened, in the order of their openings. Called by the admin port.
    pub fn begun_sales(&self) -> Vec<Terms> {
        self.begun.lock().expect("a panic ends the process").clone()
    }

    /// Adds an ended sale and drops the oldest one if the list is full. Called by the main thread.
    pub fn add_ended_sale(&self, sale: EndedSale) {
        let mut ended = self.ended.lock().expect("a panic ends the process");
        if ended.len() == ENDED_KEPT {
            ended.pop_front();
        }
        ended.push_back(sale);
    }

    /// Returns the last sales that ended during the life of this process, oldest first. Called by the admin port.
    pub fn ended_sales(&self) -> Vec<EndedSale> {
        self.ended.lock().expect("a panic ends the process").iter().copied().collect()
    }

    /// Returns two running totals: the durable records of this run, and the records in Postgres. Their difference is
    /// the number of durable records that are not in Postgres. The second total is reduced by the records of earlier
    /// runs that are not in Postgres, so it can be negative.
    pub fn records(&self) -> (i64, i64) {
        let sum = |of: fn(&LogStatus) -> &AtomicU64| {
            let logs = self.shards.iter().flat_map(|shard| LogKind::VARIANTS.iter().map(|log| shard.log(*log)));
            logs.map(|log| of(log).load(Ordering::Acquire) as i64).sum::<i64>()
        };
        // Read the persisted records first. A record is durable before it is persisted, so the total of durable
        // records, read later, cannot be smaller.
        let persisted = sum(|log| &log.persisted);
        let durable = sum(|log| &log.flushed);
        (durable, persisted - self.earlier_behind().unwrap_or(0) as i64)
    }

    fn earlier_behind(&self) -> Option<u64> {
        Some(self.earlier_behind.load(Ordering::Relaxed)).filter(|records| *records != u64::MAX)
    }

    /// Returns the number of durable records of all logs, including those of earlier runs, that are not in Postgres.
    /// Returns `None` until the database was reached once.
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

    /// Returns the available items of the newest sale, given the sold and reserved ones. The shards publish at
    /// different times, so the result can be off by the requests in flight.
    pub fn available(&self, sales: Sales) -> u64 {
        self.items().saturating_sub(u64::from(sales.sold + sales.reserved))
    }

    /// Returns the sum of one histogram over all shards. Its bounds must be `bounds`.
    pub fn total(&self, bounds: &'static Bounds, of: impl Fn(&ShardStatus) -> Distribution) -> Distribution {
        self.shards.iter().map(of).fold(Distribution::new(bounds), |total, shard| total.and(&shard))
    }

    /// Returns the latencies of an operation on all shards, in microseconds.
    pub fn times(&self, operation: Operation) -> Distribution {
        self.total(&TIMES_US, |shard| shard.requests.times(operation).read())
    }

    /// Returns the number of items in the sale.
    pub fn items(&self) -> u64 {
        self.shards.iter().map(|shard| shard.items.load(Ordering::Relaxed)).sum()
    }

    /// Returns the sold and reserved items of a sale over all shards.
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
    use crate::sale::published_stock::PublishedStock;

    #[test]
    fn a_server_without_a_lease_does_not_sell() {
        for (phase, expected) in [
            (Phase::Serving, Phase::Standby),
            (Phase::Leaving, Phase::Standby),
            (Phase::Recovering, Phase::Recovering),
            (Phase::Draining, Phase::Draining),
        ] {
            let status = Status::new(phase, 1, 0, true);
            assert_eq!(status.phase(), phase, "a server alone needs no lease");
            status.lease.require();
            assert_eq!((status.phase(), status.entered_phase()), (expected, phase));
        }
    }

    #[test]
    fn only_shards_in_the_sale_count() {
        let status = Status::new(Phase::Serving, 2, 0, false);
        let published =
            |sale| PublishedStock { sale: SaleId(sale), product: None, sold: 4, reserved: 6, next_expiry_ms: 9 };
        status.shards[0].publish_sales(published(70_000));
        status.shards[1].publish_sales(published(69_999));
        assert_eq!(status.sales(SaleId(70_000)), Sales { sold: 4, reserved: 6 });
    }
}
