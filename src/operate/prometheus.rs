//! The text of `/metrics` for Prometheus: the published numbers at the moment of the scrape, by shard or summed.

use crate::http::operation::Operation;
use crate::log::block::LogKind;
use crate::operate::counters::{Batches, Bounds, Counter, Distribution, Histogram, SIZES, TIMES_US};
use crate::operate::exemplars::{self, Annotation};
use crate::operate::live_sales::{LiveSale, live_sales};
use crate::operate::shard_status::{LogStatus, ShardStatus};
use crate::operate::status::{Phase, Status};
use crate::sale::record::{RefusalReason, ReleaseReason};
use crate::system::proc_stats::Process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use strum::VariantArray;

/// Content type of the text (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Name of the histogram of the latencies.
const REQUEST_SECONDS: &str = "stampede_request_seconds";

/// The tables of [`crate::operate::status::PersistenceCounters::rows`].
const TABLES: [&str; 4] = ["checkouts", "purchases", "releases", "extensions"];

/// Returns the text of `/metrics` for the values of `status` at `unix_ms`.
pub fn text(status: &Arc<Status>, unix_ms: u64) -> String {
    let mut registry = Registry::default();
    let process = Process::read(status.shards.len());
    registry.register_collector(Box::new(Scrape { status: status.clone(), unix_ms, process }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to memory does not fail");
    let annotations = timed_operations().map(|operation| {
        let (method, path) = operation.route();
        let exemplars = exemplars::newest(status.shards.iter().map(|shard| &shard.exemplars), operation);
        Annotation { labels: format!("method=\"{method}\",route=\"{path}\""), exemplars }
    });
    exemplars::annotate(&text, REQUEST_SECONDS, &annotations.collect::<Vec<_>>())
}

/// Returns the operations whose latencies are shown.
fn timed_operations() -> impl Iterator<Item = Operation> {
    Operation::VARIANTS.iter().copied().filter(|operation| *operation != Operation::Unknown)
}

/// Source of the values of one scrape.
#[derive(Debug)]
struct Scrape {
    status: Arc<Status>,
    unix_ms: u64,
    process: Process,
}

/// The value of a sample.
enum Value {
    Counter(f64),
    Gauge(f64),
    /// A histogram, and the number of its units in one unit of the metric.
    Histogram(Distribution, f64),
}

impl Value {
    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> Result<(), Error> {
        match self {
            Value::Counter(count) => encoder.encode_counter::<NoLabelSet, _, u64>(count, None),
            Value::Gauge(number) => encoder.encode_gauge(number),
            Value::Histogram(of, unit) => {
                let bound = |bound: Option<u64>| bound.map_or(f64::INFINITY, |bound| bound as f64 / unit);
                let buckets: Vec<_> = of.buckets().map(|(limit, count)| (bound(limit), count)).collect();
                encoder.encode_histogram::<NoLabelSet>(of.sum() as f64 / unit, of.count(), &buckets, None)
            }
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// A metric and its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<(Labels, Value)>,
}

impl Family {
    fn new(name: &'static str, help: &'static str, samples: impl IntoIterator<Item = (Labels, Value)>) -> Self {
        Family { name, help, samples: samples.into_iter().collect() }
    }

    fn one(name: &'static str, help: &'static str, value: Value) -> Self {
        Family::new(name, help, [(Labels::new(), value)])
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some((_, first)) = self.samples.first() else { return Ok(()) };
        let kind = match first {
            Value::Counter(_) => MetricType::Counter,
            Value::Gauge(_) => MetricType::Gauge,
            Value::Histogram(..) => MetricType::Histogram,
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (labels, value) in &self.samples {
            match &labels[..] {
                [] => value.encode(&mut family)?,
                _ => value.encode(&mut family.encode_family(labels)?)?,
            }
        }
        Ok(())
    }
}

fn read(number: &AtomicU64) -> f64 {
    number.load(Ordering::Relaxed) as f64
}

fn flag(is_so: bool) -> Value {
    Value::Gauge(f64::from(u8::from(is_so)))
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.map(|(name, value)| (name, value.to_owned())).into()
}

fn seconds(times: Distribution) -> Value {
    Value::Histogram(times, 1e6)
}

impl Scrape {
    fn sum(&self, counter: impl Fn(&ShardStatus) -> &Counter) -> Value {
        Value::Counter(self.status.shards.iter().map(|shard| counter(shard).get()).sum::<u64>() as f64)
    }

    fn by_shard(&self, value: impl Fn(&ShardStatus) -> Value) -> Vec<(Labels, Value)> {
        let samples = self.status.shards.iter().enumerate();
        samples.map(|(shard, numbers)| (labels([("shard", &shard.to_string())]), value(numbers))).collect()
    }

    fn by_log(&self, of: fn(&LogStatus) -> &AtomicU64) -> Vec<(Labels, Value)> {
        let with_log = |log: &LogKind| {
            let (log, samples) = (*log, self.by_shard(|shard| Value::Counter(read(of(shard.log(*log))))));
            samples.into_iter().map(move |(shard, value)| ([shard, labels([("log", log.name())])].concat(), value))
        };
        LogKind::VARIANTS.iter().flat_map(with_log).collect()
    }

    /// Histograms of flushes by log, over all shards.
    fn flushes(&self, of: fn(&Batches) -> &Histogram, bounds: &'static Bounds, unit: f64) -> Vec<(Labels, Value)> {
        let sample = |log: &LogKind| {
            let total = self.status.total(bounds, |shard| of(&shard.log(*log).flushes).read());
            (labels([("log", log.name())]), Value::Histogram(total, unit))
        };
        LogKind::VARIANTS.iter().map(sample).collect()
    }

    #[rustfmt::skip]
    fn sale(&self) -> [Family; 4] {
        let status = &self.status;
        let sale = status.newest_sale();
        let sales = status.sales(sale);
        let available = status.available(sales);
        let states = [("sold", sales.sold.into()), ("reserved", sales.reserved.into()), ("available", available)];
        let items = states.map(|(state, items)| (labels([("state", state)]), Value::Gauge(items as f64)));
        let version = (labels([("version", env!("CARGO_PKG_VERSION"))]), Value::Gauge(1.0));
        [
            Family::new("stampede_build_info", "Version of the server; always 1", [version]),
            Family::one("stampede_ready", "1 while the server is ready, 0 while it recovers, pauses or stops",
                flag(status.phase() == Phase::Serving)),
            Family::one("stampede_sale_id", "Newest sale that has opened; 0 before the first one",
                Value::Gauge(sale.0.into())),
            Family::new("stampede_sale_items", "Items of the current sale, by state", items),
        ]
    }

    /// Gauges of each open sale: at most [`crate::sale::sale_schedule::OPEN_MAX`].
    fn open_sales(&self) -> [Family; 4] {
        let live = live_sales(&self.status, self.unix_ms).into_iter();
        let open: Vec<_> = live.filter(|sale| sale.is_open).collect();
        let of = |sale: &LiveSale| labels([("sale_id", &sale.terms.sale.0.to_string())]);
        let each = |value: fn(&LiveSale) -> Value| open.iter().map(move |sale| (of(sale), value(sale)));
        let items = open.iter().flat_map(|sale| {
            let states =
                [("sold", sale.counts.sold), ("reserved", sale.counts.reserved), ("available", sale.available())];
            let labels = move |state| [of(sale), labels([("state", state)])].concat();
            states.map(|(state, items)| (labels(state), Value::Gauge(items.into())))
        });
        [
            Family::new("stampede_open_sale_items", "Items of each open sale, by state", items),
            Family::new(
                "stampede_open_sale_start_timestamp_seconds",
                "Time at which the open sale has opened, in seconds since the Unix epoch",
                each(|sale| Value::Gauge(sale.terms.opens_ms as f64 / 1000.0)),
            ),
            Family::new(
                "stampede_open_sale_end_timestamp_seconds",
                "Time at which the open sale closes, in seconds since the Unix epoch",
                each(|sale| Value::Gauge(sale.terms.closes_ms as f64 / 1000.0)),
            ),
            Family::new(
                "stampede_open_sale_paused",
                "1 while the plan pauses the open sale, 0 otherwise",
                each(|sale| flag(sale.terms.is_paused)),
            ),
        ]
    }

    #[rustfmt::skip]
    fn requests(&self) -> [Family; 5] {
        let route = |operation: Operation| {
            let (method, path) = operation.route();
            labels([("method", method), ("route", path)])
        };
        let answered = Operation::VARIANTS
            .iter()
            .flat_map(|&operation| operation.answers().into_iter().map(move |answer| (operation, answer)));
        // Problems that differ only in their details have the same labels: add their counts.
        let mut counts: Vec<(Labels, u64)> = Vec::new();
        for (operation, answer) in answered {
            let (status, reason) = (&answer.status()[..3], answer.reason());
            let labels = [route(operation), labels([("status", status), ("reason", reason)])].concat();
            let count = self.status.shards.iter().map(|shard| shard.requests.answers(operation, answer).get()).sum();
            match counts.iter_mut().find(|(known, _)| *known == labels) {
                Some((_, sum)) => *sum += count,
                None => counts.push((labels, count)),
            }
        }
        let counts = counts.into_iter().map(|(labels, count)| (labels, Value::Counter(count as f64)));
        let times = timed_operations().map(|operation| (route(operation), seconds(self.status.times(operation))));
        let released = ReleaseReason::VARIANTS
            .iter()
            .map(|&reason| (labels([("reason", reason.name())]), self.sum(|shard| &shard.released[reason as usize])));
        let unrecorded = RefusalReason::VARIANTS
            .iter()
            .map(|&reason| (labels([("reason", reason.name())]), self.sum(|shard| &shard.unrecorded[reason as usize])));
        [
            Family::new("stampede_requests",
                "Answered requests; reason is the last part of the problem type, such as item-sold", counts),
            Family::new(REQUEST_SECONDS, "Time from reading a request to writing its answer", times),
            Family::new("stampede_holds_released", "Holds that ended without a purchase, by reason", released),
            Family::new("stampede_attempts_unrecorded",
                "Refused checkouts not recorded because the attempt log had no room, by reason", unrecorded),
            Family::new("stampede_shard_requests", "Requests answered by the shard",
                self.by_shard(|shard| Value::Counter(shard.requests.count() as f64))),
        ]
    }

    #[rustfmt::skip]
    fn shards(&self) -> [Family; 11] {
        let counters = |name, help, of: fn(&ShardStatus) -> &AtomicU64| {
            Family::new(name, help, self.by_shard(|shard| Value::Counter(read(of(shard)))))
        };
        let gauges = |name, help, of: fn(&ShardStatus) -> &AtomicU64| {
            Family::new(name, help, self.by_shard(|shard| Value::Gauge(read(of(shard)))))
        };
        let cpu = self.process.shards_cpu_s.iter().enumerate();
        let cpu = cpu.map(|(shard, cpu_s)| (labels([("shard", &shard.to_string())]), Value::Counter(*cpu_s)));
        [
            Family::new("stampede_shard_cpu_seconds", "CPU time of the shard's thread", cpu),
            counters("stampede_turns", "Turns taken by the shard", |shard| &shard.turns),
            Family::new("stampede_turn_seconds", "Duration of a turn, without the wait for work",
                self.by_shard(|shard| seconds(shard.turn_times.all.read()))),
            Family::new("stampede_longest_turn_seconds", "Duration of the longest turn since the process started",
                self.by_shard(|shard| Value::Gauge(read(&shard.turn_times.longest_us) / 1e6))),
            gauges("stampede_connections", "Open connections", |shard| &shard.connections.open),
            gauges("stampede_subscribers", "Connections that follow /events", |shard| &shard.connections.subscribers),
            Family::new("stampede_connections_evicted",
                "Idle connections closed in favour of new ones, because there were as many as --max-connections",
                self.by_shard(|shard| Value::Counter(shard.connections.evicted.get() as f64))),
            counters("stampede_lane_batches", "Batches of messages sent to other shards", |shard| &shard.lane_batches),
            counters("stampede_lane_messages", "Messages sent to other shards", |shard| &shard.lane_messages),
            gauges("stampede_lane_waiting_messages", "Messages not sent yet, because the receiving shard has not read the earlier ones", |shard| &shard.lane_waiting),
            gauges("stampede_log_free_blocks", "Free blocks of 4 KiB in the segments of the purchase log", |shard| {
                &shard.log_room
            }),
        ]
    }

    #[rustfmt::skip]
    fn log(&self) -> [Family; 6] {
        let budget = &self.status.log_budget;
        [
            Family::one("stampede_log_bytes", "Disk space of all segments", Value::Gauge(budget.used() as f64)),
            Family::one("stampede_log_budget_bytes", "Disk space that all segments may use", Value::Gauge(budget.total() as f64)),
            Family::new("stampede_log_records_appended", "Records appended to the purchase log",
                self.by_shard(|shard| Value::Counter(read(&shard.appended)))),
            Family::new("stampede_log_records_durable", "Records flushed to disk", self.by_log(|log| &log.flushed)),
            Family::new("stampede_log_flush_seconds", "Duration of a flush",
                self.flushes(|batches| &batches.times, &TIMES_US, 1e6)),
            Family::new("stampede_log_flush_records", "Records in a flush",
                self.flushes(|batches| &batches.sizes, &SIZES, 1.0)),
        ]
    }

    #[rustfmt::skip]
    fn postgres(&self) -> Vec<Family> {
        let status = &self.status;
        let is_so = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let rows = TABLES.into_iter().zip(&status.shipped.rows);
        let rows = rows.map(|(table, rows)| (labels([("table", table)]), Value::Counter(rows.get() as f64)));
        let partitions = TABLES.into_iter().zip(&status.shipped.partitions);
        let partitions = partitions.map(|(table, count)| (labels([("table", table)]), Value::Gauge(read(count))));
        let dropped = ["sales", "attempts"].into_iter().zip(&status.shipped.dropped);
        let dropped = dropped.map(|(kind, count)| (labels([("kind", kind)]), Value::Counter(count.get() as f64)));
        let behind = status.records_behind().map(|records| {
            let help = "Durable records that are not in Postgres";
            Family::one("stampede_postgres_behind_records", help, Value::Gauge(records as f64))
        });
        let families = [
            Family::one("stampede_postgres_connected", "1 while the database is connected, 0 otherwise",
                flag(is_so(&status.is_database_connected))),
            Family::one("stampede_postgres_behind_seconds",
                "Time for which the oldest record that is not in Postgres has been durable", Value::Gauge(read(&status.behind_ms) / 1000.0)),
            Family::new("stampede_postgres_records", "Records of this run that are in Postgres",
                self.by_log(|log| &log.persisted)),
            Family::new("stampede_postgres_rows", "Rows copied, by table", rows),
            Family::one("stampede_postgres_transaction_seconds", "Duration of a transaction, from BEGIN to COMMIT",
                seconds(status.shipped.times.read())),
            Family::one("stampede_postgres_retries", "Lost or failed connections to the database",
                Value::Counter(status.shipped.retries.get() as f64)),
            Family::new("stampede_postgres_partitions", "Partitions, by table", partitions),
            Family::new("stampede_postgres_partitions_dropped", "Partitions dropped by --keep-sales and --keep-attempts",
                dropped),
        ];
        families.into_iter().chain(behind).collect()
    }

    /// Numbers of the process, under the names that Prometheus client libraries use.
    #[rustfmt::skip]
    fn process(&self) -> [Family; 7] {
        let Process { cpu_s, resident_bytes, virtual_bytes, threads, open_fds, max_fds, started_s, .. } = self.process;
        let gauge = |name, help, value: u64| Family::one(name, help, Value::Gauge(value as f64));
        [
            Family::one("process_cpu_seconds", "CPU time used by the process", Value::Counter(cpu_s)),
            gauge("process_resident_memory_bytes", "Resident memory of the process", resident_bytes),
            gauge("process_virtual_memory_bytes", "Virtual memory of the process", virtual_bytes),
            gauge("process_threads", "Threads of the process", threads),
            gauge("process_open_fds", "Open file descriptors", open_fds),
            gauge("process_max_fds", "Limit on open file descriptors", max_fds),
            Family::one("process_start_time_seconds", "Start time of the process, in seconds since the Unix epoch",
                Value::Gauge(started_s)),
        ]
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let postgres = if self.status.has_database { self.postgres() } else { Vec::new() };
        let families = self
            .sale()
            .into_iter()
            .chain(self.open_sales())
            .chain(self.requests())
            .chain(self.shards())
            .chain(self.log());
        let mut families = families.chain(postgres).chain(self.process());
        families.try_for_each(|family| family.encode(&mut encoder))
    }
}
