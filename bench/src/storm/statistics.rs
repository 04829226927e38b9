//! Counts of outcomes, in total and over time, and histograms of latency.

use hdrhistogram::Histogram;
use std::time::Duration;

/// Width of the time steps in which outcomes are counted.
pub const STEP: Duration = Duration::from_millis(100);

/// Maximum latency that a histogram holds. Longer latencies count as this one.
const LATENCY_MAX: Duration = Duration::from_secs(300);

/// The kinds of request whose latencies are measured separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyKind {
    /// Successful checkout.
    Checkout,
    /// Acknowledged purchase.
    Purchase,
    /// Any other response.
    Refusal,
    /// No response: the time until the request failed.
    NoResponse,
}

impl LatencyKind {
    /// All kinds, in the order of their histograms.
    pub const ALL: [LatencyKind; 4] =
        [LatencyKind::Checkout, LatencyKind::Purchase, LatencyKind::Refusal, LatencyKind::NoResponse];

    /// Returns the name of the kind, as it appears in reports.
    pub fn name(self) -> &'static str {
        ["checkout", "purchase", "refusal", "lost"][self as usize]
    }
}

/// Number of times that an operation had an outcome.
#[derive(Clone, Debug)]
pub struct OutcomeCount {
    /// Name of the operation, or "connect".
    pub operation: &'static str,
    /// "200", the last part of the type of the problem, another status, or the reason why there was no response.
    pub name: String,
    /// Count over the whole run.
    pub count: u64,
    /// Count in each step of `STEP`.
    pub steps: Vec<u32>,
}

/// The counts and latencies of a run.
#[derive(Clone)]
pub struct RunStatistics {
    /// Number of requests sent.
    pub sent: u64,
    /// Outcomes, in the order of their first occurrence.
    pub outcomes: Vec<OutcomeCount>,
    latencies: [Histogram<u64>; 4],
    /// Latencies since the last reset, of all kinds.
    pub recent: Histogram<u64>,
    /// Time from the start to the last acknowledged purchase.
    pub last_purchase: Duration,
}

impl RunStatistics {
    /// Creates empty statistics.
    pub fn new() -> RunStatistics {
        let empty = || Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3).expect("the bounds are valid");
        RunStatistics {
            sent: 0,
            outcomes: Vec::new(),
            latencies: LatencyKind::ALL.map(|_| empty()),
            recent: empty(),
            last_purchase: Duration::ZERO,
        }
    }

    /// Counts an outcome that occurred `at` after the start.
    pub fn count(&mut self, operation: &'static str, name: &str, at: Duration) {
        let is_same = |outcome: &OutcomeCount| outcome.operation == operation && outcome.name == name;
        let place = self.outcomes.iter().position(is_same).unwrap_or_else(|| {
            self.outcomes.push(OutcomeCount { operation, name: name.to_owned(), count: 0, steps: Vec::new() });
            self.outcomes.len() - 1
        });
        let outcome = &mut self.outcomes[place];
        outcome.count += 1;
        let step = (at.as_micros() / STEP.as_micros()) as usize;
        if outcome.steps.len() <= step {
            outcome.steps.resize(step + 1, 0);
        }
        outcome.steps[step] += 1;
    }

    /// Records the latency of a request that completed `at` after the start.
    pub fn record(&mut self, kind: LatencyKind, latency: Duration, at: Duration) {
        let micros = latency.as_micros() as u64;
        self.latencies[kind as usize].saturating_record(micros);
        self.recent.saturating_record(micros);
        if kind == LatencyKind::Purchase {
            self.last_purchase = at;
        }
    }

    /// Returns the latencies of a kind, in microseconds.
    pub fn latencies(&self, kind: LatencyKind) -> &Histogram<u64> {
        &self.latencies[kind as usize]
    }

    /// Returns the number of responses.
    pub fn answers(&self) -> u64 {
        let answered = [LatencyKind::Checkout, LatencyKind::Purchase, LatencyKind::Refusal];
        answered.iter().map(|kind| self.latencies(*kind).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_in_total_and_over_time() {
        let mut statistics = RunStatistics::new();
        for at in [0, 99, 100, 350] {
            statistics.count("checkout", "200", Duration::from_millis(at));
        }
        statistics.count("purchase", "200", Duration::ZERO);
        statistics.count("checkout", "item-sold", Duration::ZERO);
        let counted: Vec<_> = statistics.outcomes.iter().map(|o| (o.operation, o.name.as_str(), o.count)).collect();
        assert_eq!(counted, [("checkout", "200", 4), ("purchase", "200", 1), ("checkout", "item-sold", 1)]);
        assert_eq!(statistics.outcomes[0].steps, [2, 1, 0, 1]);
    }

    #[test]
    fn latencies_are_kept_by_kind_and_failed_requests_are_not_answers() {
        let mut statistics = RunStatistics::new();
        let ms = Duration::from_millis;
        for latency in 1..=100 {
            statistics.record(LatencyKind::Refusal, ms(latency), ms(7));
        }
        statistics.record(LatencyKind::Purchase, ms(5), ms(800));
        statistics.record(LatencyKind::NoResponse, ms(1_000_000), ms(900));
        let refusals = statistics.latencies(LatencyKind::Refusal);
        assert!(refusals.equivalent(refusals.value_at_quantile(0.5), 50_000));
        assert!(refusals.equivalent(refusals.value_at_quantile(0.99), 99_000));
        let lost = statistics.latencies(LatencyKind::NoResponse);
        assert!(lost.equivalent(lost.max(), LATENCY_MAX.as_micros() as u64), "saturated, not dropped");
        assert_eq!((statistics.answers(), statistics.last_purchase, statistics.recent.len()), (101, ms(800), 102));
    }
}
