//! Counters and histograms of one writer each, for others to read: written by a load and a store, never by a
//! read-modify-write, so that counting costs a request what an addition costs.

use crate::http::operation::{Answer, Operation};
use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use strum::EnumCount;

/// Whether anything is counted while requests are served. Only a comparison of the cost has it otherwise.
const IS_METERED: bool = cfg!(not(feature = "unmetered"));

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts so many more. By its one writer.
    pub fn add(&self, more: u64) {
        if IS_METERED {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    /// How many it has counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bounds of a histogram's buckets.
pub type Bounds = [u64; 17];

/// Microseconds: from what memory takes to the longest deadline of a request.
pub const TIMES_US: Bounds = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];
/// Records of a batch.
pub const SIZES: Bounds = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// How often values fell between bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    /// One for each bound, with what is not above it; one for the rest.
    buckets: [Counter; 18],
    sum: Counter,
}

impl Histogram {
    /// A histogram with nothing in it.
    pub fn new(bounds: &'static Bounds) -> Self {
        Histogram { bounds, buckets: array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }

    /// Counts a value. By its one writer.
    pub fn record(&self, value: u64) {
        self.buckets[self.bounds.partition_point(|bound| *bound < value)].add(1);
        self.sum.add(value);
    }

    /// What it has counted by now.
    pub fn read(&self) -> Distribution {
        let buckets = array::from_fn(|place| self.buckets[place].get());
        Distribution { bounds: self.bounds, buckets, sum: self.sum.get() }
    }
}

/// What histograms have counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    bounds: &'static Bounds,
    buckets: [u64; 18],
    sum: u64,
}

impl Distribution {
    /// Nothing.
    pub fn new(bounds: &'static Bounds) -> Self {
        Distribution { bounds, buckets: [0; 18], sum: 0 }
    }

    /// What both have counted, with the same bounds.
    #[must_use]
    pub fn and(mut self, other: &Distribution) -> Self {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, more)| *bucket += more);
        self.sum += other.sum;
        self
    }

    /// What has been counted since `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Distribution) -> Self {
        self.buckets.iter_mut().zip(earlier.buckets).for_each(|(bucket, before)| *bucket -= before);
        self.sum -= earlier.sum;
        self
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Each bucket's upper bound, the last of which has none, and what is in that bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.bounds.iter().copied().map(Some).chain([None]).zip(self.buckets)
    }

    /// The value that `share` of all are not above, `0.0..=1.0`, as if values lay evenly within their bucket; the highest
    /// bound, if it is above that. `None`: there are no values.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let mut below = (0.0, 0);
        for (bound, count) in self.buckets().filter(|_| self.count() > 0) {
            let Some(bound) = bound else { return Some(below.0) };
            if count > 0 && (below.1 + count) as f64 >= rank {
                return Some(below.0 + (bound as f64 - below.0) * (rank - below.1 as f64) / count as f64);
            }
            below = (bound as f64, below.1 + count);
        }
        None
    }
}

/// What is done in batches.
#[derive(Debug)]
pub struct Batches {
    /// Microseconds that one takes.
    pub times: Histogram,
    /// Records in one.
    pub sizes: Histogram,
}

impl Default for Batches {
    fn default() -> Self {
        Batches { times: Histogram::new(&TIMES_US), sizes: Histogram::new(&SIZES) }
    }
}

impl Batches {
    /// Counts one. By its one writer.
    pub fn record(&self, time: Duration, records: u64) {
        self.times.record(time.as_micros() as u64);
        self.sizes.record(records);
    }
}

/// Answers of one shard.
#[derive(Debug)]
pub struct Requests {
    answers: [[Counter; Answer::COUNT]; Operation::COUNT],
    /// Microseconds from when a request was read to when its answer was written.
    times: [Histogram; Operation::COUNT],
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            answers: array::from_fn(|_| array::from_fn(|_| Counter::default())),
            times: array::from_fn(|_| Histogram::new(&TIMES_US)),
        }
    }
}

impl Requests {
    /// Of an operation, those with this answer.
    pub fn answers(&self, operation: Operation, answer: Answer) -> &Counter {
        &self.answers[operation as usize][answer.place()]
    }

    /// How long an operation took.
    pub fn times(&self, operation: Operation) -> &Histogram {
        &self.times[operation as usize]
    }

    /// All of them.
    pub fn count(&self) -> u64 {
        self.answers.iter().flatten().map(Counter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&SIZES);
        [0, 1, 2, 3, 4, 65_536, 65_537].iter().for_each(|value| histogram.record(*value));
        let read = histogram.read();
        let filled: Vec<_> = read.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(Some(1), 2), (Some(2), 1), (Some(4), 2), (Some(65_536), 1), (None, 1)]);
        assert_eq!((read.count(), read.sum()), (7, 131_083));
        assert_eq!(read.clone().and(&read).since(&read), read);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let histogram = Histogram::new(&TIMES_US);
        assert_eq!(histogram.read().quantile(0.5), None);
        (0..100).for_each(|_| histogram.record(150));
        assert_eq!(histogram.read().quantile(0.5), Some(150.0));
        assert_eq!(histogram.read().quantile(1.0), Some(200.0));
        histogram.record(u64::MAX / 2);
        assert_eq!(histogram.read().quantile(1.0), Some(10_000_000.0));
    }
}
