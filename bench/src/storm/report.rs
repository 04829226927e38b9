//! The report, as text and as JSON.

use crate::tally::{Kind, Tally};
use crate::verify::{Sale, Violation};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// So many violations are told in the text; JSON has them all.
const VIOLATIONS_TOLD: usize = 20;

/// Everything there is to say about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When it began, in RFC 3339.
    pub started: String,
    /// How it was called.
    pub settings: Settings,
    /// What took part.
    pub versions: Versions,
    /// From the start to the last answer.
    pub seconds: f64,
    /// It was stopped before its time.
    pub was_stopped: bool,
    /// Answers of any kind.
    pub answers: u64,
    /// Answers a second.
    pub answers_per_second: f64,
    /// CPU time of this process for each answer, user and system.
    pub storm_cpu_us_per_answer: f64,
    /// Reservations that were granted.
    pub reserved: u64,
    /// Purchases that were acknowledged.
    pub bought: u64,
    /// Purchases of which nobody knows.
    pub unknown: u64,
    /// When the last purchase was acknowledged, since the start.
    pub last_purchase_s: f64,
    /// By operation and outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// By kind of answer.
    pub latencies: BTreeMap<&'static str, Latencies>,
    /// How the sale stood before.
    pub before: Sale,
    /// How it stands, unless the server does not say any more.
    pub after: Option<Sale>,
    /// Answers that were not expected.
    pub unexpected: u64,
    /// Where they were saved.
    pub unexpected_file: Option<String>,
    /// What was compared.
    pub verified: Verified,
    /// Why it could not be verified.
    pub unverified: Option<String>,
    /// What must never happen.
    pub violations: Vec<Violation>,
}

/// How a run was called.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Where the sale is.
    pub address: String,
    /// What buyers did.
    pub scenario: String,
    /// Buyers a second; none in a closed loop.
    pub rate: Option<u32>,
    /// Their names.
    pub users: i64,
    /// Connections.
    pub connections: u32,
    /// Seconds in which buyers came, at most.
    pub duration_s: u64,
    /// Seconds after which they hung up.
    pub timeout_s: u64,
    /// The same seed, the same buyers.
    pub seed: u64,
}

/// What took part.
#[derive(Clone, Debug, Serialize)]
pub struct Versions {
    /// This program.
    pub storm: &'static str,
    /// The server, as it says.
    pub server: Option<String>,
    /// The kernel here.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
}

/// What the verification rests on.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Verified {
    /// Purchases that were asked for again.
    pub asked_again: usize,
    /// Rows of the database that were read.
    pub rows: Option<usize>,
    /// How long the last of them were waited for.
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

/// How often each operation had each outcome.
pub fn outcomes(tally: &Tally) -> BTreeMap<String, u64> {
    tally.outcomes.iter().map(|outcome| (format!("{} {}", outcome.operation, outcome.name), outcome.count)).collect()
}

/// Latencies of each kind that there was.
pub fn latencies(tally: &Tally) -> BTreeMap<&'static str, Latencies> {
    let all = Kind::ALL.map(|kind| (kind.name(), Latencies::of(tally.latencies(kind))));
    all.into_iter().filter(|(_, latencies)| latencies.count > 0).collect()
}

impl Report {
    /// Whether everything is as it was told, for all that could be found out.
    pub fn is_good(&self) -> bool {
        self.unverified.is_none() && self.violations.is_empty()
    }

    /// In how a buyer comes.
    pub fn pace(&self) -> String {
        match self.settings.rate {
            Some(rate) => format!("open loop, {} buyers a second", count(rate.into())),
            None => "closed loop".to_owned(),
        }
    }

    /// One line: whether it is verified, and by what.
    pub fn verdict(&self) -> String {
        if let Some(why) = &self.unverified {
            return format!("NOT VERIFIED: {why}");
        }
        if !self.violations.is_empty() {
            return format!("{} VIOLATIONS", count(self.violations.len() as u64));
        }
        let Verified { asked_again, rows, rows_waited_s } = self.verified;
        let (bought, again) = (count(self.bought), count(asked_again as u64));
        let mut text = format!("verified: {bought} purchases, GET /sale agrees, {again} confirmed when asked again");
        if let (Some(rows), Some(waited)) = (rows, rows_waited_s) {
            let _ = write!(text, ", {} rows in the database (the last after {waited:.1} s)", count(rows as u64));
        }
        text
    }

    /// What was set and what took part, name by name.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let Settings { address, scenario, users, connections, duration_s, timeout_s, seed, .. } = &self.settings;
        let Versions { storm, server, kernel, cpus } = &self.versions;
        let sale = |sale: Sale| {
            let Sale { sale_id, items_total, sold, reserved, available, user_limit } = sale;
            format!(
                "sale {sale_id}: {sold} sold, {reserved} held, {available} free of {items_total}; {user_limit} a user"
            )
        };
        vec![
            ("scenario", format!("{scenario}, {}", self.pace())),
            ("buyers", format!("{} users, {connections} connections, seed {seed}", count(*users as u64))),
            ("limits", format!("{duration_s} s, {timeout_s} s for an answer")),
            ("server", format!("{address}, version {}", server.as_deref().unwrap_or("unknown"))),
            ("here", format!("storm {storm}, Linux {kernel}, {cpus} CPUs")),
            ("started", self.started.clone()),
            ("before", sale(self.before)),
            ("after", self.after.map_or_else(|| "unknown".to_owned(), sale)),
        ]
    }

    /// What came of it, name by name.
    pub fn results(&self) -> Vec<(&'static str, String)> {
        let stopped = if self.was_stopped { " (stopped)" } else { "" };
        let mut results = vec![
            ("took", format!("{:.3} s{stopped}", self.seconds)),
            ("answers", format!("{}, {} a second", count(self.answers), count(self.answers_per_second.round() as u64))),
            ("reserved", count(self.reserved)),
            ("bought", format!("{}, the last after {:.3} s", count(self.bought), self.last_purchase_s)),
            ("unknown", format!("{} purchases", count(self.unknown))),
            ("storm's CPU", format!("{:.1} µs an answer", self.storm_cpu_us_per_answer)),
        ];
        if self.unexpected > 0 {
            let file = self.unexpected_file.as_deref().unwrap_or("nowhere");
            results.push(("unexpected", format!("{}, see {file}", count(self.unexpected))));
        }
        results
    }

    /// For people.
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
        for Violation { violation, detail } in self.violations.iter().take(VIOLATIONS_TOLD) {
            let _ = writeln!(text, "  {violation}: {detail}");
        }
        if self.violations.len() > VIOLATIONS_TOLD {
            let _ = writeln!(text, "  … all are in the report that --json writes");
        }
        text
    }
}

/// A count with commas.
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

/// Microseconds in a unit that fits.
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

    /// A report of a few answers, with a violation if so wished.
    pub fn example(violations: Vec<Violation>) -> Report {
        let mut tally = Tally::new();
        tally.count("checkout", "200", Duration::ZERO);
        tally.record(Kind::Checkout, Duration::from_micros(1500), Duration::ZERO);
        Report {
            started: "2026-11-21T20:00:00Z".to_owned(),
            settings: Settings {
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
            answers: tally.answers(),
            answers_per_second: 1e6,
            storm_cpu_us_per_answer: 5.25,
            reserved: 1,
            bought: 1234,
            unknown: 0,
            last_purchase_s: 0.5,
            outcomes: outcomes(&tally),
            latencies: latencies(&tally),
            before: Sale::default(),
            after: None,
            unexpected: 0,
            unexpected_file: None,
            verified: Verified { asked_again: 100, rows: Some(1234), rows_waited_s: Some(0.25) },
            unverified: None,
            violations,
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1500, 250_000, 1_500_000].map(latency), ["7 µs", "1.5 ms", "250 ms", "1.50 s"]);
    }

    #[test]
    fn the_verdict_says_what_it_rests_on_or_what_is_wrong() {
        let good = example(Vec::new());
        assert!(good.is_good());
        let text = good.text();
        assert!(text.contains("verified: 1,234 purchases") && text.contains("1,234 rows in the database"), "{text}");
        let violation = || Violation { violation: "item-sold-twice", detail: "item 7".to_owned() };
        let bad = example((0..21).map(|_| violation()).collect());
        assert!(!bad.is_good());
        let text = bad.text();
        assert!(text.contains("21 VIOLATIONS\n  item-sold-twice: item 7\n") && text.contains("--json"), "{text}");
        let unknown = Report { unverified: Some("the server is gone".to_owned()), ..example(Vec::new()) };
        assert!(!unknown.is_good() && unknown.text().contains("NOT VERIFIED: the server is gone"));
    }
}
