//! The report of a run, as text and as JSON.

use crate::opening_record::OpeningRecord;
use crate::statistics::{LatencyKind, RunStatistics};
use crate::verification::{SaleSnapshot, Violation};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Maximum number of violations in the text. The JSON contains all of them.
const TEXT_VIOLATIONS_MAX: usize = 20;

/// The report of a run. The fields are those of the JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Start of the run, in RFC 3339.
    pub started: String,
    /// Options of the run.
    pub settings: ReportOptions,
    /// Versions of the programs and the machine.
    pub versions: Versions,
    /// Duration of the run, in seconds.
    pub seconds: f64,
    /// Whether a signal stopped the run early.
    pub was_stopped: bool,
    /// Number of responses.
    pub answers: u64,
    /// Responses per second.
    pub answers_per_second: f64,
    /// CPU time of `storm` per response, user and system, in microseconds.
    pub storm_cpu_us_per_answer: f64,
    /// Granted reservations.
    pub reserved: u64,
    /// Acknowledged purchases.
    pub bought: u64,
    /// Purchases whose result is unknown.
    pub unknown: u64,
    /// Time from the start to the last acknowledged purchase, in seconds.
    pub last_purchase_s: f64,
    /// Counts by operation and outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Latencies by kind of request.
    pub latencies: BTreeMap<&'static str, Latencies>,
    /// State of the sale before the run.
    pub before: SaleSnapshot,
    /// State of the sale after the run. `None` if the server did not respond.
    pub after: Option<SaleSnapshot>,
    /// The sales of the calendar, if the run follows one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sales: Vec<SaleResult>,
    /// The opening that the run measured, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opening: Option<OpeningRecord>,
    /// Number of unexpected responses.
    pub unexpected: u64,
    /// File of unexpected responses, if there are any.
    pub unexpected_file: Option<String>,
    /// Scope of the verification.
    pub verified: VerificationScope,
    /// Reason why the run could not be verified.
    pub unverified: Option<String>,
    /// Violations that the verification found.
    pub violations: Vec<Violation>,
}

/// The result of a sale of the calendar.
#[derive(Clone, Debug, Serialize)]
pub struct SaleResult {
    /// Name of the sale.
    pub name: String,
    /// Time of the opening, in RFC 3339.
    pub opens_at: String,
    /// Time of the closing, in RFC 3339.
    pub closes_at: String,
    /// Granted reservations.
    pub reserved: u64,
    /// Acknowledged purchases.
    pub bought: u64,
    /// State before the run.
    pub before: SaleSnapshot,
    /// State after the run. `None` if it could not be read.
    pub after: Option<SaleSnapshot>,
}

impl SaleResult {
    fn text(&self) -> String {
        let SaleResult { name, opens_at, closes_at, reserved, bought, before, after } = self;
        let sold = after.map_or_else(|| "unknown".to_owned(), |after| count(after.sold.into()));
        format!(
            "{} ({name}), {opens_at} to {closes_at}: {} reserved, {} bought; {sold} of {} are sold",
            before.sale_id,
            count(*reserved),
            count(*bought),
            count(before.items_total.into()),
        )
    }
}

/// The options of a run.
#[derive(Clone, Debug, Serialize)]
pub struct ReportOptions {
    /// Address of the server.
    pub address: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Buyers per second; `None` in a closed loop.
    pub rate: Option<u32>,
    /// Number of user ids.
    pub users: i64,
    /// Number of connections.
    pub connections: u32,
    /// Maximum time in which buyers arrive, in seconds.
    pub duration_s: u64,
    /// Timeout of a request, in seconds.
    pub timeout_s: u64,
    /// Seed of the random choices.
    pub seed: u64,
}

/// Versions of the programs and the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Versions {
    /// Version of `storm`.
    pub storm: &'static str,
    /// Version of the server, if it returns one.
    pub server: Option<String>,
    /// Release of the kernel on which `storm` runs.
    pub kernel: String,
    /// Number of CPUs that `storm` may use.
    pub cpus: usize,
}

/// The scope of the verification.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct VerificationScope {
    /// Number of purchases that were repeated at the end.
    pub asked_again: usize,
    /// Number of rows read from the database.
    pub rows: Option<usize>,
    /// Time until the last row was in the database, in seconds.
    pub rows_waited_s: Option<f64>,
}

/// Latencies in microseconds, by percentile.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    pub count: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latencies {
    fn of(histogram: &Histogram<u64>) -> Latencies {
        let at = |quantile| histogram.value_at_quantile(quantile);
        let (count, max_us) = (histogram.len(), histogram.max());
        Latencies { count, p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), max_us }
    }
}

/// Returns the number of times that each operation had each outcome.
pub fn outcomes(statistics: &RunStatistics) -> BTreeMap<String, u64> {
    statistics
        .outcomes
        .iter()
        .map(|outcome| (format!("{} {}", outcome.operation, outcome.name), outcome.count))
        .collect()
}

/// Returns the latencies of each kind of request that occurred.
pub fn latencies(statistics: &RunStatistics) -> BTreeMap<&'static str, Latencies> {
    let all = LatencyKind::ALL.map(|kind| (kind.name(), Latencies::of(statistics.latencies(kind))));
    all.into_iter().filter(|(_, latencies)| latencies.count > 0).collect()
}

impl Report {
    /// Returns whether the run could be verified and has no violation.
    pub fn is_good(&self) -> bool {
        self.unverified.is_none() && self.violations.is_empty()
    }

    /// Returns a description of the pace of arrivals.
    pub fn pace(&self) -> String {
        match self.settings.rate {
            _ if self.opening.is_some() => "all connections at the opening of a sale".to_owned(),
            Some(rate) => format!("open loop, {} buyers per second", count(rate.into())),
            None => "closed loop".to_owned(),
        }
    }

    /// Returns one line that says whether the run is verified, and by what.
    pub fn verdict(&self) -> String {
        if let Some(why) = &self.unverified {
            return format!("NOT VERIFIED: {why}");
        }
        if !self.violations.is_empty() {
            return format!("{} VIOLATIONS", count(self.violations.len() as u64));
        }
        let VerificationScope { asked_again, rows, rows_waited_s } = self.verified;
        let (bought, again) = (count(self.bought), count(asked_again as u64));
        let page = if self.sales.is_empty() { "GET /sale" } else { "GET /sales" };
        let mut text =
            format!("verified: {bought} purchases, consistent with {page}, {again} confirmed by a repeated request");
        if let (Some(rows), Some(waited)) = (rows, rows_waited_s) {
            let _ = write!(text, ", {} rows in the database (the last after {waited:.1} s)", count(rows as u64));
        }
        text
    }

    /// Returns the options, versions and states of the sale, as names and values.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let ReportOptions { address, scenario, users, connections, duration_s, timeout_s, seed, .. } = &self.settings;
        let Versions { storm, server, kernel, cpus } = &self.versions;
        let sale = |sale: SaleSnapshot| {
            let SaleSnapshot { sale_id, items_total, sold, reserved, available, user_limit } = sale;
            format!(
                "sale {sale_id}: {sold} sold, {reserved} held, {available} available of {items_total}; \
                 {user_limit} per user"
            )
        };
        vec![
            ("scenario", format!("{scenario}, {}", self.pace())),
            ("buyers", format!("{} users, {connections} connections, seed {seed}", count(*users as u64))),
            ("limits", format!("{duration_s} s of arrivals, timeout {timeout_s} s")),
            ("server", format!("{address}, version {}", server.as_deref().unwrap_or("unknown"))),
            ("client", format!("storm {storm}, Linux {kernel}, {cpus} CPUs")),
            ("started", self.started.clone()),
            ("before", sale(self.before)),
            ("after", self.after.map_or_else(|| "unknown".to_owned(), sale)),
        ]
    }

    /// Returns the results, as names and values.
    pub fn results(&self) -> Vec<(&'static str, String)> {
        let stopped = if self.was_stopped { " (stopped)" } else { "" };
        let mut results = vec![
            ("duration", format!("{:.3} s{stopped}", self.seconds)),
            (
                "responses",
                format!("{}, {} per second", count(self.answers), count(self.answers_per_second.round() as u64)),
            ),
            ("reserved", count(self.reserved)),
            ("bought", format!("{}, the last after {:.3} s", count(self.bought), self.last_purchase_s)),
            ("unknown", format!("{} purchases", count(self.unknown))),
            ("storm CPU", format!("{:.1} µs per response", self.storm_cpu_us_per_answer)),
        ];
        results.extend(self.sales.iter().map(|sale| ("sale", sale.text())));
        if let Some(opening) = &self.opening {
            results.extend(opening_results(opening));
        }
        if self.unexpected > 0 {
            let file = self.unexpected_file.as_deref().unwrap_or("no file");
            results.push(("unexpected", format!("{}, see {file}", count(self.unexpected))));
        }
        results
    }

    /// Renders the report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, fact) in self.facts().into_iter().chain(self.results()) {
            let _ = writeln!(text, "{name:<12} {fact}");
        }
        let _ = writeln!(
            text,
            "\n{:<12} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency", "count", "p50", "p90", "p99", "p99.9", "max"
        );
        for (kind, l) in &self.latencies {
            let [p50, p90, p99, p999, max] = [l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us].map(latency);
            let _ = writeln!(text, "{kind:<12} {:>10} {p50:>9} {p90:>9} {p99:>9} {p999:>9} {max:>9}", count(l.count));
        }
        let _ = writeln!(text, "\n{:<32} {:>12}", "outcome", "count");
        for (outcome, times) in &self.outcomes {
            let _ = writeln!(text, "{outcome:<32} {:>12}", count(*times));
        }
        let _ = writeln!(text, "\n{}", self.verdict());
        for Violation { violation, detail } in self.violations.iter().take(TEXT_VIOLATIONS_MAX) {
            let _ = writeln!(text, "  {violation}: {detail}");
        }
        if self.violations.len() > TEXT_VIOLATIONS_MAX {
            let _ = writeln!(text, "  … the report of --json lists all violations");
        }
        text
    }
}

/// Returns the results of an opening, as names and values.
fn opening_results(opening: &OpeningRecord) -> [(&'static str, String); 3] {
    let after = |micros: Option<i64>| match micros {
        Some(micros) => format!("{:.3} ms", micros as f64 / 1e3),
        None => "never".to_owned(),
    };
    let OpeningRecord { sale_id, opens_at, refused, served_before, served, longest_gap_us, .. } = opening;
    [
        ("opening", format!("sale {sale_id} at {opens_at}, {} refused with not-open", count(*refused))),
        (
            "served",
            format!(
                "{}, {} before the opening; the first after {}, the 100th after {}, the last after {}",
                count(*served),
                count(*served_before),
                after(opening.first_200_us),
                after(opening.hundredth_200_us),
                after(opening.last_200_us)
            ),
        ),
        (
            "density",
            format!(
                "first served: due after {}; longest time without a checkout {}",
                after(opening.first_due_us),
                latency((*longest_gap_us).unsigned_abs())
            ),
        ),
    ]
}

/// Formats a count with commas.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats microseconds in a suitable unit.
pub fn latency(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{:.1} ms", micros as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::time::Duration;

    /// Returns a report of one response, with these violations.
    pub fn example(violations: Vec<Violation>) -> Report {
        let mut statistics = RunStatistics::new();
        statistics.count("checkout", "200", Duration::ZERO);
        statistics.record(LatencyKind::Checkout, Duration::from_micros(1500), Duration::ZERO);
        Report {
            started: "2026-11-21T20:00:00Z".to_owned(),
            settings: ReportOptions {
                address: "<sale>".to_owned(),
                scenario: "crowd".to_owned(),
                rate: Some(100_000),
                users: 100_000,
                connections: 64,
                duration_s: 10,
                timeout_s: 15,
                seed: 1,
            },
            versions: Versions { storm: "0", server: None, kernel: "6".to_owned(), cpus: 2 },
            seconds: 1.5,
            was_stopped: false,
            answers: statistics.answers(),
            answers_per_second: 1e6,
            storm_cpu_us_per_answer: 5.25,
            reserved: 1,
            bought: 1234,
            unknown: 0,
            last_purchase_s: 0.5,
            outcomes: outcomes(&statistics),
            latencies: latencies(&statistics),
            before: SaleSnapshot::default(),
            after: None,
            sales: Vec::new(),
            opening: None,
            unexpected: 0,
            unexpected_file: None,
            verified: VerificationScope { asked_again: 100, rows: Some(1234), rows_waited_s: Some(0.25) },
            unverified: None,
            violations,
        }
    }

    #[test]
    fn numbers_are_formatted_for_reading() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1500, 250_000, 1_500_000].map(latency), ["7 µs", "1.5 ms", "250 ms", "1.50 s"]);
    }

    #[test]
    fn the_verdict_names_its_scope_or_the_violations() {
        let good = example(Vec::new());
        assert!(good.is_good());
        let text = good.text();
        assert!(text.contains("verified: 1,234 purchases") && text.contains("1,234 rows in the database"), "{text}");
        let violation = || Violation { violation: "item-sold-twice", detail: "item 7".to_owned() };
        let bad = example((0..21).map(|_| violation()).collect());
        assert!(!bad.is_good());
        let text = bad.text();
        assert!(text.contains("21 VIOLATIONS\n  item-sold-twice: item 7\n") && text.contains("--json"), "{text}");
        let (name, opens_at, closes_at) = ("Night".to_owned(), "18:00".to_owned(), "20:00".to_owned());
        let before = SaleSnapshot { sale_id: 7, items_total: 2000, ..SaleSnapshot::default() };
        let after = Some(SaleSnapshot { sold: 1500, ..before });
        let sale = SaleResult { name, opens_at, closes_at, reserved: 1600, bought: 1500, before, after };
        let mut opening = OpeningRecord::new(7, "18:00".to_owned());
        opening.served(0, 1_234_000);
        let planned = Report { sales: vec![sale], opening: Some(opening), ..example(Vec::new()) }.text();
        for part in [
            "sale         7 (Night), 18:00 to 20:00: 1,600 reserved, 1,500 bought; 1,500 of 2,000 are sold\n",
            "the first after 1.234 ms, the 100th after never",
            "consistent with GET /sales,",
        ] {
            assert!(planned.contains(part), "{planned}");
        }
        let unknown = Report { unverified: Some("the server is gone".to_owned()), ..example(Vec::new()) };
        assert!(!unknown.is_good() && unknown.text().contains("NOT VERIFIED: the server is gone"));
    }
}
