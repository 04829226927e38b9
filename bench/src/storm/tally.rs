//! Counts: outcomes and latencies, over all and over time.

use hdrhistogram::Histogram;
use std::time::Duration;

/// Outcomes are counted over time in steps of this.
pub const STEP: Duration = Duration::from_millis(100);

/// Latencies beyond this count as this.
const LATENCY_MAX: Duration = Duration::from_secs(300);

/// What kinds of latency are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A checkout that was granted.
    Checkout,
    /// A purchase that was acknowledged.
    Purchase,
    /// Any other answer.
    Refusal,
    /// No answer: until it was given up.
    Lost,
}

impl Kind {
    /// All, in order.
    pub const ALL: [Kind; 4] = [Kind::Checkout, Kind::Purchase, Kind::Refusal, Kind::Lost];

    /// Its name.
    pub fn name(self) -> &'static str {
        ["checkout", "purchase", "refusal", "lost"][self as usize]
    }
}

/// How often something came.
#[derive(Debug)]
pub struct Outcome {
    /// What was asked.
    pub operation: &'static str,
    /// "200", the last part of the problem's type, or what else happened.
    pub name: String,
    /// How often.
    pub count: u64,
    /// How often in each `STEP`.
    pub steps: Vec<u32>,
}

/// What has been counted.
pub struct Tally {
    /// In the order in which they first came.
    pub outcomes: Vec<Outcome>,
    latencies: [Histogram<u64>; 4],
    /// Every latency since this was last reset.
    pub lately: Histogram<u64>,
    /// When the last purchase was acknowledged, since the start.
    pub last_purchase: Duration,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        let empty = || Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3).expect("the bounds are sound");
        Tally {
            outcomes: Vec::new(),
            latencies: Kind::ALL.map(|_| empty()),
            lately: empty(),
            last_purchase: Duration::ZERO,
        }
    }

    /// Counts an outcome that came `at` since the start.
    pub fn count(&mut self, operation: &'static str, name: &str, at: Duration) {
        let is_it = |outcome: &Outcome| outcome.operation == operation && outcome.name == name;
        let place = self.outcomes.iter().position(is_it).unwrap_or_else(|| {
            self.outcomes.push(Outcome { operation, name: name.to_owned(), count: 0, steps: Vec::new() });
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

    /// Records how long something took that was over `at` since the start.
    pub fn record(&mut self, kind: Kind, latency: Duration, at: Duration) {
        let micros = latency.as_micros() as u64;
        self.latencies[kind as usize].saturating_record(micros);
        self.lately.saturating_record(micros);
        if kind == Kind::Purchase {
            self.last_purchase = at;
        }
    }

    /// Latencies of a kind, in microseconds.
    pub fn latencies(&self, kind: Kind) -> &Histogram<u64> {
        &self.latencies[kind as usize]
    }

    /// How many answers there were.
    pub fn answers(&self) -> u64 {
        let answered = [Kind::Checkout, Kind::Purchase, Kind::Refusal];
        answered.iter().map(|kind| self.latencies(*kind).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_over_all_and_over_time() {
        let mut tally = Tally::new();
        for at in [0, 99, 100, 350] {
            tally.count("checkout", "200", Duration::from_millis(at));
        }
        tally.count("purchase", "200", Duration::ZERO);
        tally.count("checkout", "item-sold", Duration::ZERO);
        let counted: Vec<_> = tally.outcomes.iter().map(|o| (o.operation, o.name.as_str(), o.count)).collect();
        assert_eq!(counted, [("checkout", "200", 4), ("purchase", "200", 1), ("checkout", "item-sold", 1)]);
        assert_eq!(tally.outcomes[0].steps, [2, 1, 0, 1]);
    }

    #[test]
    fn latencies_are_kept_by_kind_and_what_was_lost_is_no_answer() {
        let mut tally = Tally::new();
        let ms = Duration::from_millis;
        for latency in 1..=100 {
            tally.record(Kind::Refusal, ms(latency), ms(7));
        }
        tally.record(Kind::Purchase, ms(5), ms(800));
        tally.record(Kind::Lost, ms(1_000_000), ms(900));
        let refusals = tally.latencies(Kind::Refusal);
        assert!(refusals.equivalent(refusals.value_at_quantile(0.5), 50_000));
        assert!(refusals.equivalent(refusals.value_at_quantile(0.99), 99_000));
        let lost = tally.latencies(Kind::Lost);
        assert!(lost.equivalent(lost.max(), LATENCY_MAX.as_micros() as u64), "saturated, not dropped");
        assert_eq!((tally.answers(), tally.last_purchase, tally.lately.len()), (101, ms(800), 102));
    }
}
