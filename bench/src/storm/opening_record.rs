//! What a crowd sees of the opening of a sale, by the clock of this machine. Pure: times are arguments, in nanoseconds
//! relative to the opening, so that times before it are negative.

use serde::Serialize;

/// Nanoseconds before the opening from which checkouts are sent densely.
pub const DENSE_NS: i64 = 5_000_000;
/// Nanoseconds between two checkouts in that time, and until the first one is served.
pub const SPACING_NS: i64 = 100_000;

/// The record of an opening. Times are in microseconds after the opening.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpeningRecord {
    /// Sale id.
    pub sale_id: u64,
    /// Time of the opening, in RFC 3339.
    pub opens_at: String,
    /// Checkouts that were refused with `not-open`.
    pub refused: u64,
    /// Checkouts whose 200 arrived before the opening. Must be 0 if server and client share a clock.
    pub served_before: u64,
    /// Checkouts that were served.
    pub served: u64,
    /// Time at which the checkout was due that was served first. It is negative if it waited for the opening.
    pub first_due_us: Option<i64>,
    /// Time at which the first 200 arrived.
    pub first_200_us: Option<i64>,
    /// Time at which the hundredth 200 arrived.
    pub hundredth_200_us: Option<i64>,
    /// Time at which the last 200 arrived.
    pub last_200_us: Option<i64>,
    /// Longest time without a checkout, from 5 ms before the opening until the first 200, in microseconds. If this is much
    /// more than 100 µs, the client was too slow.
    pub longest_gap_us: i64,
    /// Time at which the last checkout was sent, in nanoseconds.
    #[serde(skip)]
    sent_ns: Option<i64>,
}

impl OpeningRecord {
    /// Creates the record of the opening of a sale, before it.
    pub fn new(sale_id: u64, opens_at: String) -> OpeningRecord {
        OpeningRecord { sale_id, opens_at, ..OpeningRecord::default() }
    }

    /// Notes that a checkout was sent.
    pub fn sent(&mut self, at_ns: i64) {
        if self.served == 0 {
            self.note_gap(at_ns);
            self.sent_ns = Some(at_ns);
        }
    }

    /// Notes that the 200 to a checkout arrived, which was due at `due_ns`.
    pub fn served(&mut self, due_ns: i64, at_ns: i64) {
        if self.served == 0 {
            self.note_gap(at_ns);
            self.first_due_us = Some(due_ns.div_euclid(1000));
        }
        self.served += 1;
        self.served_before += u64::from(at_ns < 0);
        let at_us = Some(at_ns.div_euclid(1000));
        match self.served {
            1 => self.first_200_us = at_us,
            100 => self.hundredth_200_us = at_us,
            _ => {}
        }
        self.last_200_us = at_us;
    }

    /// Notes a time without a checkout, as far as it is in the dense part.
    fn note_gap(&mut self, at_ns: i64) {
        let from_ns = self.sent_ns.unwrap_or(i64::MIN).max(-DENSE_NS);
        self.longest_gap_us = self.longest_gap_us.max((at_ns - from_ns) / 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: i64 = 1000;

    #[test]
    fn the_first_the_hundredth_and_the_last_200_are_noted() {
        let mut record = OpeningRecord::default();
        for number in 0..150 {
            record.served(-40 * US + number, (700 + number * 10) * US);
        }
        assert_eq!((record.served, record.served_before, record.first_due_us), (150, 0, Some(-40)));
        let times = (record.first_200_us, record.hundredth_200_us, record.last_200_us);
        assert_eq!(times, (Some(700), Some(1690), Some(2190)));
    }

    #[test]
    fn who_is_served_before_the_opening_is_counted() {
        let mut record = OpeningRecord::default();
        record.served(-90 * US, -1);
        record.served(-90 * US, 0);
        assert_eq!((record.served_before, record.first_200_us), (1, Some(-1)));
    }

    #[test]
    fn the_longest_gap_counts_around_the_opening_only() {
        let mut record = OpeningRecord::default();
        record.sent(-900_000 * US);
        assert_eq!(record.longest_gap_us, 0);
        record.sent(-4_900 * US);
        assert_eq!(record.longest_gap_us, 100, "from 5 ms before the opening");
        record.sent(-4_700 * US);
        record.served(0, -4_400 * US);
        record.sent(9_000 * US);
        assert_eq!(record.longest_gap_us, 300, "until the first 200");
    }
}
