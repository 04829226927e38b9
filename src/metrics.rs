//! What Prometheus reads: the numbers that shards publish, summed or by shard, at the moment of the scrape.

use crate::status::{Phase, ShardStatus, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The type of the text, for the answer's head (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is published, for scraping.
#[derive(Debug)]
pub struct Metrics(Arc<Status>);

/// A family with a value for each shard, and the log that it is about if there are two.
type OfShard = (&'static str, &'static str, Option<&'static str>, fn(&ShardStatus) -> &AtomicU64);

const COUNTERS: &[OfShard] = &[
    ("log_records_appended", "Records appended to the purchase log", None, |shard| &shard.appended),
    ("turns", "Turns that a shard has taken", None, |shard| &shard.turns),
    ("attempts_unrecorded", "Refused checkouts not recorded, for want of room", None, |shard| &shard.unrecorded),
    ("log_records_durable", "Records on this machine's disk", Some("purchases"), |shard| &shard.flushed),
    ("log_records_durable", "Records on this machine's disk", Some("attempts"), |shard| &shard.attempts_flushed),
    ("postgres_records", "Records of this run in Postgres", Some("purchases"), |shard| &shard.persisted),
    ("postgres_records", "Records of this run in Postgres", Some("attempts"), |shard| &shard.attempts_persisted),
];

const GAUGES: &[OfShard] = &[
    ("connections", "Open connections", None, |shard| &shard.connections),
    ("log_free_blocks", "Blocks of 4 KiB that the purchase log can still take", None, |shard| &shard.log_room),
];

impl Metrics {
    /// The text, for what `status` says now.
    pub fn text(status: &Arc<Status>) -> String {
        let mut registry = Registry::with_prefix("stampede");
        registry.register_collector(Box::new(Metrics(status.clone())));
        let mut text = String::new();
        encode(&mut text, &registry).expect("memory takes whatever is written to it");
        text
    }

    fn of_shards(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        families: &[OfShard],
        kind: MetricType,
        write: impl Fn(u64, MetricEncoder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for same in families.chunk_by(|one, other| one.0 == other.0) {
            let (name, help, ..) = same[0];
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (shard, numbers) in self.0.shards.iter().enumerate() {
                for (_, _, log, number) in same {
                    let (shard, value) = (shard.to_string(), number(numbers).load(Ordering::Relaxed));
                    match log {
                        None => write(value, family.encode_family(&[("shard", shard.as_str())])?)?,
                        Some(log) => write(value, family.encode_family(&[("shard", shard.as_str()), ("log", log)])?)?,
                    }
                }
            }
        }
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let status = &self.0;
        let gauge = |value: f64, encoder: MetricEncoder<'_>| ConstGauge::new(value).encode(encoder);
        let mut family = encoder.encode_descriptor("build_info", "The version", None, MetricType::Gauge)?;
        gauge(1.0, family.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?)?;
        let is_ready = f64::from(u8::from(status.phase() == Phase::Serving));
        gauge(is_ready, encoder.encode_descriptor("ready", "Whether it sells", None, MetricType::Gauge)?)?;

        let sale = status.newest_sale();
        let help = "The sale: whole periods since 1970";
        gauge(f64::from(sale.0), encoder.encode_descriptor("sale_id", help, None, MetricType::Gauge)?)?;
        let (sales, items) = (status.sales(sale), status.items());
        let available = items.saturating_sub(u64::from(sales.sold + sales.reserved));
        let help = "Items of the sale, by state";
        let mut family = encoder.encode_descriptor("sale_items", help, None, MetricType::Gauge)?;
        for (state, items) in
            [("sold", sales.sold.into()), ("reserved", sales.reserved.into()), ("available", available)]
        {
            gauge(items as f64, family.encode_family(&[("state", state)])?)?;
        }

        self.of_shards(&mut encoder, COUNTERS, MetricType::Counter, |value, encoder| {
            ConstCounter::new(value).encode(encoder)
        })?;
        self.of_shards(&mut encoder, GAUGES, MetricType::Gauge, |value, encoder| gauge(value as f64, encoder))?;

        if status.has_database {
            let is_connected = f64::from(u8::from(status.is_database_connected.load(Ordering::Relaxed)));
            let help = "Whether the database answers";
            gauge(is_connected, encoder.encode_descriptor("postgres_connected", help, None, MetricType::Gauge)?)?;
            if let Some(records) = status.records_behind() {
                let help = "Durable records that are not in Postgres";
                let encoder = encoder.encode_descriptor("postgres_behind_records", help, None, MetricType::Gauge)?;
                gauge(records as f64, encoder)?;
            }
            let behind = status.behind_ms.load(Ordering::Relaxed) as f64 / 1000.0;
            let help = "For how long the oldest record that is not in Postgres has been durable";
            let encoder =
                encoder.encode_descriptor("postgres_behind", help, Some(&Unit::Seconds), MetricType::Gauge)?;
            gauge(behind, encoder)?;
        }
        Ok(())
    }
}
