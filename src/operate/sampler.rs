//! Samples of the published numbers for the dashboard, one per second. All viewers get the same samples.

use crate::http::bodies::{Doing, Postgres, SalePhase};
use crate::http::operation::{Answer, Operation};
use crate::http::problem::Problem;
use crate::operate::counters::Distribution;
use crate::operate::live_sales::{LiveSale, live_sales};
use crate::operate::status::Status;
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::ids::Moment;
use crate::sale::sale_schedule::SaleSchedule;
use crate::system::proc_stats::Process;
use serde::{Serialize, Serializer};
use std::array;
use std::sync::{Arc, atomic::Ordering};
use strum::{EnumCount, VariantArray, VariantNames};

/// Class of an answer, as the dashboard groups them. The names are those in the JSON of a sample.
#[derive(Clone, Copy, EnumCount, VariantNames)]
#[strum(serialize_all = "snake_case")]
enum AnswerClass {
    Reserved,
    Bought,
    Released,
    LookedUp,
    ItemSold,
    ItemReserved,
    UserLimit,
    CodeRefused,
    Invalid,
    Unavailable,
}

impl AnswerClass {
    fn of(operation: Operation, answer: Answer) -> Self {
        use Problem::{CodeExpired, CodeUnknown, CodeUsed, NotExtendable, SaleEnded};
        use Problem::{LogFull, NotOpen, NotReady, Overdue, TooManyConnections};
        match (operation, answer) {
            (Operation::Checkout, Answer::Ok) => AnswerClass::Reserved,
            (Operation::Purchase, Answer::Ok) => AnswerClass::Bought,
            (Operation::Cancel, Answer::NoContent) => AnswerClass::Released,
            (_, Answer::Ok | Answer::NoContent | Answer::Unchanged) => AnswerClass::LookedUp,
            (_, Answer::Refused(Problem::ItemSold | Problem::SoldOut)) => AnswerClass::ItemSold,
            (_, Answer::Refused(Problem::ItemReserved | Problem::AllReserved)) => AnswerClass::ItemReserved,
            (_, Answer::Refused(Problem::UserLimit)) => AnswerClass::UserLimit,
            (_, Answer::Refused(CodeUnknown | CodeExpired | CodeUsed | SaleEnded | NotExtendable)) => {
                AnswerClass::CodeRefused
            }
            (_, Answer::Unready | Answer::Refused(LogFull | NotOpen | NotReady | TooManyConnections | Overdue)) => {
                AnswerClass::Unavailable
            }
            _ => AnswerClass::Invalid,
        }
    }
}

/// Number of answers in each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct AnswerClasses([u64; AnswerClass::COUNT]);

impl Serialize for AnswerClasses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(<AnswerClass as VariantNames>::VARIANTS.iter().zip(self.0))
    }
}

/// State of the server at one moment, and its activity since the previous sample.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Time of the sample, in milliseconds since the Unix epoch.
    at_ms: u64,
    phase: Doing,
    sale_id: u32,
    /// When the sale closes, in milliseconds since the Unix epoch. `None` if it has closed.
    closes_ms: Option<u64>,
    /// When the next sale opens, in milliseconds since the Unix epoch. `None` if none follows.
    next_opens_ms: Option<u64>,
    items: u64,
    sold: u32,
    reserved: u32,
    available: u64,
    /// The live sales, in the order of their openings.
    sales: Vec<SaleSample>,
    /// Answers since the process started.
    answered: AnswerClasses,
    per_second: AnswerClasses,
    /// Latencies of the checkouts since the previous sample, in microseconds: p50, p99, p99.9. `None` without
    /// checkouts.
    checkout_us: Option<[u64; 3]>,
    /// The same for purchases.
    purchase_us: Option<[u64; 3]>,
    postgres: Option<Postgres>,
    shards: Vec<ShardSample>,
}

/// A live sale in a sample.
#[derive(Clone, Debug, Serialize)]
struct SaleSample {
    sale_id: u32,
    /// Name in the plan.
    name: Option<&'static str>,
    /// `open`, or `closing` if items are still reserved.
    phase: SalePhase,
    paused: bool,
    /// When the sale closes, in milliseconds since the Unix epoch.
    closes_ms: u64,
    items: u32,
    sold: u32,
    reserved: u32,
    available: u32,
}

impl SaleSample {
    fn new(sale: LiveSale, plan: Option<LoadedPlan>) -> Self {
        let (terms, counts) = (sale.terms, sale.counts);
        SaleSample {
            sale_id: terms.sale.0,
            name: plan.and_then(|plan| plan.sale(terms.sale)).map(|planned| planned.name.as_str()),
            phase: if sale.is_open { SalePhase::Open } else { SalePhase::Closing },
            paused: terms.is_paused,
            closes_ms: terms.closes_ms,
            items: terms.items,
            sold: counts.sold,
            reserved: counts.reserved,
            available: sale.available(),
        }
    }
}

/// One shard's part of a sample.
#[derive(Clone, Debug, Serialize)]
struct ShardSample {
    per_second: u64,
    connections: u64,
    /// Share of the time that the shard's threads spent on a CPU, from 0 to 1, between the last two readings.
    busy: f64,
}

/// Milliseconds between readings of the CPU times while nobody looks, and so five samples. The kernel has a file for each thread, and with many
/// shards, reading them is most of what an idle server does.
const BUSY_TIME_MS: u64 = 4_500;

/// Shares of the time that each shard's threads spent on a CPU.
struct BusyShares {
    read_ms: u64,
    cpu_s: Vec<f64>,
    shares: Vec<f64>,
}

impl BusyShares {
    fn new(shards: usize, now: Moment) -> Self {
        BusyShares { read_ms: now.monotonic_ms, cpu_s: Process::shards_cpu_s(shards), shares: vec![0.0; shards] }
    }

    fn update(&mut self, is_watched: bool, now: Moment, read: impl FnOnce(usize) -> Vec<f64>) {
        let passed_ms = (now.monotonic_ms - self.read_ms).max(1);
        if !is_watched && passed_ms < BUSY_TIME_MS {
            return;
        }
        let cpu_s = read(self.shares.len());
        let share = |(cpu_s, before_s): (&f64, &f64)| (1e3 * (cpu_s - before_s) / passed_ms as f64).clamp(0.0, 1.0);
        self.shares = cpu_s.iter().zip(&self.cpu_s).map(share).collect();
        (self.read_ms, self.cpu_s) = (now.monotonic_ms, cpu_s);
    }
}

/// Running totals at the time of a sample.
struct Totals {
    monotonic_ms: u64,
    answered: AnswerClasses,
    checkouts: Distribution,
    purchases: Distribution,
    requests: Vec<u64>,
}

impl Totals {
    fn read(status: &Status, now: Moment) -> Self {
        let mut answered = AnswerClasses::default();
        for &operation in Operation::VARIANTS {
            for answer in Answer::all() {
                let counts = status.shards.iter().map(|shard| shard.requests.answers(operation, answer).get());
                answered.0[AnswerClass::of(operation, answer) as usize] += counts.sum::<u64>();
            }
        }
        Totals {
            monotonic_ms: now.monotonic_ms,
            answered,
            checkouts: status.times(Operation::Checkout),
            purchases: status.times(Operation::Purchase),
            requests: status.shards.iter().map(|shard| shard.requests.count()).collect(),
        }
    }
}

/// Takes samples of a [`Status`] and keeps the totals of the previous one.
pub struct Sampler {
    status: Arc<Status>,
    schedule: SaleSchedule,
    plan: Option<LoadedPlan>,
    before: Totals,
    busy: BusyShares,
}

impl Sampler {
    /// Creates a sampler of `status`, for the sales of `schedule`, whose names are in `plan`. Its first sample covers the time
    /// since `now`.
    pub fn new(status: Arc<Status>, schedule: SaleSchedule, plan: Option<LoadedPlan>, now: Moment) -> Self {
        let (before, busy) = (Totals::read(&status, now), BusyShares::new(status.shards.len(), now));
        Sampler { status, schedule, plan, before, busy }
    }

    /// Returns a sample of the state at `now`, which somebody looks at or not.
    pub fn sample(&mut self, is_watched: bool, now: Moment) -> Sample {
        self.busy.update(is_watched, now, Process::shards_cpu_s);
        let totals = Totals::read(&self.status, now);
        let before = std::mem::replace(&mut self.before, totals);
        let (status, totals) = (&self.status, &self.before);
        let seconds = (totals.monotonic_ms - before.monotonic_ms).max(1) as f64 / 1000.0;
        let per_second = |total: u64, before: u64| ((total - before) as f64 / seconds).round() as u64;
        let quantiles = |of: &Distribution, before: &Distribution| {
            let within = of.clone().since(before);
            within.quantile(0.5).map(|_| [0.5, 0.99, 0.999].map(|share| within.quantile(share).unwrap_or(0.0) as u64))
        };
        let shards = status.shards.iter().enumerate().map(|(shard, numbers)| ShardSample {
            per_second: per_second(totals.requests[shard], before.requests[shard]),
            connections: numbers.connections.open.load(Ordering::Relaxed),
            busy: self.busy.shares[shard],
        });
        let sale = status.newest_sale();
        let (sales, items) = (status.sales(sale), status.items());
        let closes_ms = self.schedule.terms(sale).map(|terms| terms.closes_ms).filter(|at_ms| *at_ms > now.unix_ms);
        let next_opens_ms = self.schedule.next(sale).map(|next| next.opens_ms);
        let live = live_sales(status, now.unix_ms).into_iter();
        Sample {
            at_ms: now.unix_ms,
            phase: status.phase().into(),
            sale_id: sale.0,
            closes_ms,
            next_opens_ms,
            items,
            sold: sales.sold,
            reserved: sales.reserved,
            available: status.available(sales),
            sales: live.map(|sale| SaleSample::new(sale, self.plan)).collect(),
            answered: totals.answered,
            per_second: AnswerClasses(array::from_fn(|at| per_second(totals.answered.0[at], before.answered.0[at]))),
            checkout_us: quantiles(&totals.checkouts, &before.checkouts),
            purchase_us: quantiles(&totals.purchases, &before.purchases),
            postgres: status.postgres(),
            shards: shards.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::status::Phase;
    use crate::sale::ids::{SaleId, Terms};
    use crate::sale::published_stock::PublishedStock;

    #[test]
    fn successful_reads_are_counted_as_lookups() {
        for operation in Operation::VARIANTS.iter().copied().filter(|operation| operation.route().0 == "GET") {
            for answer in operation.answers() {
                let has_looked_up = matches!(AnswerClass::of(operation, answer), AnswerClass::LookedUp);
                assert_eq!(has_looked_up, answer.reason().is_empty(), "{operation:?} {answer:?}");
            }
        }
    }

    #[test]
    fn cpu_times_are_read_for_each_sample_only_if_somebody_looks() {
        let at = |monotonic_ms| Moment { monotonic_ms, unix_ms: 0 };
        let mut busy = BusyShares { read_ms: 0, cpu_s: vec![1.0], shares: vec![0.0] };
        let mut reads = 0;
        // A shard that is busy half of the time, and samples that come a little early.
        for second in 1..=20 {
            let now = at(second * 999);
            busy.update(second > 10, now, |_| {
                reads += 1;
                vec![1.0 + now.monotonic_ms as f64 / 2_000.0]
            });
            let share = if second < 5 { 0.0 } else { 0.5 };
            assert!((busy.shares[0] - share).abs() < 1e-9, "{:?} after {second} s", busy.shares);
        }
        assert_eq!(reads, 2 + 10);
    }

    #[test]
    fn each_live_sale_is_in_a_sample() {
        let status = Arc::new(Status::new(Phase::Serving, 1, 0, false));
        let terms = |id, closes_ms| Terms { sale: SaleId(id), items: 9, opens_ms: id.into(), closes_ms, ..Terms::NONE };
        status.add_begun_sale(terms(3, 2_000));
        status.add_begun_sale(Terms { is_paused: true, ..terms(4, 9_000) });
        let published = PublishedStock { sale: SaleId(3), sold: 2, reserved: 3, ..PublishedStock::default() };
        status.shards[0].publish_sales(published);
        let at = |unix_ms| Moment { monotonic_ms: unix_ms, unix_ms };
        let mut sampler = Sampler::new(status, SaleSchedule::Planned(&[]), None, at(0));
        let sale = |sale_id, phase, paused, closes_ms, [sold, reserved, available]: [u32; 3]| {
            let (name, items) = (serde_json::Value::Null, 9);
            serde_json::json!({
                "sale_id": sale_id, "name": name, "phase": phase, "paused": paused, "closes_ms": closes_ms, "items": items,
                "sold": sold, "reserved": reserved, "available": available
            })
        };
        let last = sale(4, "open", true, 9_000, [0, 0, 9]);
        for (unix_ms, phase) in [(1_999, "open"), (2_000, "closing")] {
            let sample = serde_json::to_value(sampler.sample(true, at(unix_ms))).unwrap();
            let first = sale(3, phase, false, 2_000, [2, 3, 4]);
            assert_eq!(sample["sales"], serde_json::json!([first, last]));
        }
    }

    #[test]
    fn a_sample_is_of_the_time_since_the_one_before() {
        let status = Arc::new(Status::new(Phase::Serving, 2, 0, false));
        let at = |monotonic_ms| Moment { monotonic_ms, unix_ms: 1_000_000 + monotonic_ms };
        let count = |shard: usize, operation, answer, requests| {
            status.shards[shard].requests.answers(operation, answer).add(requests);
        };
        count(0, Operation::Checkout, Answer::Ok, 7);
        let mut sampler = Sampler::new(status.clone(), SaleSchedule::Planned(&[]), None, at(0));
        count(1, Operation::Checkout, Answer::Ok, 10);
        count(0, Operation::Purchase, Answer::Refused(Problem::CodeUsed), 4);
        count(0, Operation::Unknown, Answer::Refused(Problem::TooManyConnections), 2);
        status.shards[0].requests.times(Operation::Checkout).record(300);
        let sample = serde_json::to_value(sampler.sample(true, at(2_000))).unwrap();
        assert_eq!(sample["at_ms"], 1_002_000);
        assert_eq!((&sample["answered"]["reserved"], &sample["per_second"]["reserved"]), (&17.into(), &5.into()));
        assert_eq!(
            (&sample["per_second"]["code_refused"], &sample["per_second"]["unavailable"]),
            (&2.into(), &1.into())
        );
        assert_eq!((&sample["shards"][0]["per_second"], &sample["shards"][1]["per_second"]), (&3.into(), &5.into()));
        assert!((200..=500).contains(&sample["checkout_us"][1].as_u64().unwrap()) && sample["purchase_us"].is_null());
        let quiet = serde_json::to_value(sampler.sample(true, at(3_000))).unwrap();
        assert_eq!((&quiet["answered"]["reserved"], &quiet["per_second"]["reserved"]), (&17.into(), &0.into()));
        assert!(quiet["checkout_us"].is_null());
    }
}
