//! Counters and histograms with one writer each, which any thread can read.
//!
//! The writer loads a value, adds, and stores it. Because there is only one writer, no atomic read-modify-write is
//! needed, so counting costs a request little more than an addition.

use crate::http::operation::{Answer, Operation};
use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use strum::EnumCount;

/// Whether counters count. The feature `unmetered` disables them, for a benchmark that measures the cost of counting.
const IS_METERED: bool = cfg!(not(feature = "unmetered"));

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `more`. Only the one writer may call it.
    pub fn add(&self, more: u64) {
        if IS_METERED {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    /// Returns the current count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Inclusive upper bounds of a histogram's buckets, ascending.
pub type Bounds = [u64; 17];

/// Bounds in microseconds: from a request served from memory to the longest deadline of a request, 10 s.
pub const TIMES_US: Bounds = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];
/// 5 ms is a bound, because a turn that takes longer delays every client of its shard too much.
const _: () = assert!(TIMES_US[6] == 5_000);
/// Bounds in records per batch.
pub const SIZES: Bounds = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// Histogram of values with fixed bounds and one writer.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    /// One bucket per bound, for the values up to it and above the previous bound, and one for all larger values.
    buckets: [Counter; 18],
    sum: Counter,
}

impl Histogram {
    /// Creates an empty histogram.
    pub fn new(bounds: &'static Bounds) -> Self {
        Histogram { bounds, buckets: array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }

    /// Counts a value. Only the one writer may call it.
    pub fn record(&self, value: u64) {
        self.buckets[self.bounds.partition_point(|bound| *bound < value)].add(1);
        self.sum.add(value);
    }

    /// Returns a copy of the current counts.
    pub fn read(&self) -> Distribution {
        let buckets = array::from_fn(|place| self.buckets[place].get());
        Distribution { bounds: self.bounds, buckets, sum: self.sum.get() }
    }
}

/// Counts of a histogram at one moment, or the sum or difference of several such counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    bounds: &'static Bounds,
    buckets: [u64; 18],
    sum: u64,
}

impl Distribution {
    /// Creates an empty distribution.
    pub fn new(bounds: &'static Bounds) -> Self {
        Distribution { bounds, buckets: [0; 18], sum: 0 }
    }

    /// Adds the counts of `other`, which must have the same bounds.
    #[must_use]
    pub fn and(mut self, other: &Distribution) -> Self {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, more)| *bucket += more);
        self.sum += other.sum;
        self
    }

    /// Subtracts the counts of `earlier`, a previous reading of the same histograms.
    #[must_use]
    pub fn since(mut self, earlier: &Distribution) -> Self {
        self.buckets.iter_mut().zip(earlier.buckets).for_each(|(bucket, before)| *bucket -= before);
        self.sum -= earlier.sum;
        self
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of the values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns each bucket's upper bound, `None` for the last bucket, and the number of values in that bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.bounds.iter().copied().map(Some).chain([None]).zip(self.buckets)
    }

    /// Returns the quantile `share`, from 0.0 to 1.0: the value that this share of the values does not exceed. The
    /// values of a bucket are taken to be spread evenly over it. A quantile above the highest bound is returned as that
    /// bound. Returns `None` if there are no values.
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

/// Durations and sizes of the batches of one kind of work.
#[derive(Debug)]
pub struct Batches {
    /// Duration of a batch, in microseconds.
    pub times: Histogram,
    /// Records in a batch.
    pub sizes: Histogram,
}

impl Default for Batches {
    fn default() -> Self {
        Batches { times: Histogram::new(&TIMES_US), sizes: Histogram::new(&SIZES) }
    }
}

impl Batches {
    /// Counts a batch. Only the one writer may call it.
    pub fn record(&self, time: Duration, records: u64) {
        self.times.record(time.as_micros() as u64);
        self.sizes.record(records);
    }
}

/// Answers of one shard, and the latencies of its requests.
#[derive(Debug)]
pub struct Requests {
    answers: [[Counter; Answer::COUNT]; Operation::COUNT],
    /// Microseconds from reading a request to writing its answer.
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
    /// Returns the counter of the requests for `operation` that got `answer`.
    pub fn answers(&self, operation: Operation, answer: Answer) -> &Counter {
        &self.answers[operation as usize][answer.index()]
    }

    /// Returns the latencies of `operation`, in microseconds.
    pub fn times(&self, operation: Operation) -> &Histogram {
        &self.times[operation as usize]
    }

    /// Returns the number of all answers.
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
