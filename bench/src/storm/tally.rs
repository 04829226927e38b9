//! What came of it: outcomes, latencies, purchases.

use crate::connection::Response;
use crate::scenario::Step;
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Everything that was answered.
pub struct Tally {
    /// How often each outcome came: "checkout 200", "checkout item-sold".
    pub outcomes: BTreeMap<String, u64>,
    /// Latencies in microseconds, by kind: "checkout", "purchase", "refusal".
    pub latencies: BTreeMap<&'static str, Histogram<u64>>,
    /// Who bought which item with which code.
    pub bought: HashMap<u32, (i64, String)>,
    /// What must never happen.
    pub violations: Vec<String>,
    /// When the last purchase was acknowledged, since the start.
    pub last_purchase: Duration,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        let empty = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are sound");
        Tally {
            outcomes: BTreeMap::new(),
            latencies: ["checkout", "purchase", "refusal"].map(|kind| (kind, empty())).into(),
            bought: HashMap::new(),
            violations: Vec::new(),
            last_purchase: Duration::ZERO,
        }
    }

    /// Counts an answer that came `at` since the start, `latency` after it was wanted.
    pub fn count(&mut self, step: &Step, response: &Response, at: Duration, latency: Duration) {
        let operation = match step {
            Step::Checkout { .. } => "checkout",
            Step::Purchase { .. } => "purchase",
        };
        let outcome = if response.status == 200 { "200".to_owned() } else { problem(response) };
        *self.outcomes.entry(format!("{operation} {outcome}")).or_default() += 1;
        let kind = if response.status == 200 { operation } else { "refusal" };
        let histogram = self.latencies.get_mut(kind).expect("every kind is there");
        histogram.saturating_record(latency.as_micros() as u64);
        if let Step::Purchase { user, item, code } = step
            && response.status == 200
        {
            self.last_purchase = at;
            if let Some((other, _)) = self.bought.insert(*item, (*user, code.clone())) {
                self.violations.push(format!("item {item} was sold to {other} and to {user}"));
            }
        }
    }

    /// How many answers there were.
    pub fn answers(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// The last part of a refusal's type, else its status.
fn problem(response: &Response) -> String {
    let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let kind = json["type"].as_str().and_then(|kind| kind.rsplit('/').next());
    kind.map_or_else(|| response.status.to_string(), str::to_owned)
}
