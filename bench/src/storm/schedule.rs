//! The schedule of arrivals. Times count from the start of the run; nothing here reads a clock.

use crate::opening_record::{DENSE_NS, SPACING_NS};
use std::time::Duration;

/// Time before an opening at which its crowd connects.
const CONNECT: Duration = Duration::from_secs(10);
/// Time before an opening in which each connection sends its first checkout.
const EARLY: Duration = Duration::from_millis(1500);
/// Time before an opening at which the last connection has sent its first checkout.
const EARLY_END: Duration = Duration::from_millis(100);

/// How arrivals are paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A buyer arrives when another buyer leaves.
    Closed,
    /// Buyers arrive at a constant rate, regardless of responses.
    Open {
        /// Buyers per second, at least one.
        rate: u32,
    },
    /// A crowd waits for an opening. Each connection sends a checkout before it, at known times. From 5 ms before it one is
    /// sent every 100 µs until the first is served, and then all others at once.
    Opening {
        /// Time of the opening.
        opens_at: Duration,
        /// Number of connections.
        connections: u32,
    },
}

/// The sequence of arrivals.
pub struct Schedule {
    pace: Pace,
    /// Time of the last arrival, at most.
    end: Duration,
    arrived: u64,
}

impl Schedule {
    /// Creates a schedule with arrivals until `end`. The first buyer of an open loop arrives at the start.
    pub fn new(pace: Pace, end: Duration) -> Schedule {
        Schedule { pace, end, arrived: 0 }
    }

    /// Returns the time of the last arrival, at most.
    pub fn end(&self) -> Duration {
        self.end
    }

    /// Returns the time at which the connections are opened.
    pub fn connects_at(&self) -> Duration {
        match self.pace {
            Pace::Opening { opens_at, .. } => opens_at.saturating_sub(CONNECT),
            Pace::Closed | Pace::Open { .. } => Duration::ZERO,
        }
    }

    /// Returns whether a crowd waits for an opening.
    pub fn is_crowd(&self) -> bool {
        matches!(self.pace, Pace::Opening { .. })
    }

    /// Lets all buyers who wait for an opening arrive at once, because the first one is served.
    pub fn rush(&mut self) {
        self.pace = Pace::Closed;
    }

    /// Takes the next arrival if it is due at `now`, and returns its time. In an open loop this is the intended time,
    /// even if the call is late. In a closed loop, a buyer is always due.
    pub fn arrival(&mut self, now: Duration) -> Option<Duration> {
        let at = self.next().unwrap_or(now);
        (at <= now).then(|| {
            self.arrived += 1;
            at
        })
    }

    /// Returns the time of the next arrival. Returns `None` in a closed loop.
    pub fn next(&self) -> Option<Duration> {
        match self.pace {
            Pace::Closed => None,
            Pace::Open { rate } => {
                let nanos = u128::from(self.arrived) * 1_000_000_000 / u128::from(rate);
                Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
            Pace::Opening { opens_at, connections } => Some(match self.arrived.checked_sub(connections.into()) {
                None => (opens_at + (EARLY - EARLY_END) * self.arrived as u32 / connections).saturating_sub(EARLY),
                Some(dense) => (opens_at + Duration::from_nanos(dense * SPACING_NS as u64))
                    .saturating_sub(Duration::from_nanos(DENSE_NS as u64)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_keeps_the_intended_times_through_a_stall() {
        let mut schedule = Schedule::new(Pace::Open { rate: 4 }, Duration::MAX);
        let ms = Duration::from_millis;
        assert_eq!(schedule.arrival(ms(0)), Some(ms(0)));
        assert_eq!(schedule.arrival(ms(249)), None);
        assert_eq!(schedule.next(), Some(ms(250)));
        // A stall of almost a second: the late arrivals keep their intended times.
        let late: Vec<Duration> = std::iter::from_fn(|| schedule.arrival(ms(1000))).collect();
        assert_eq!(late, [ms(250), ms(500), ms(750), ms(1000)]);
    }

    #[test]
    fn a_rate_is_kept_for_hours_without_drift() {
        let mut schedule = Schedule { arrived: 3 * 86_400, ..Schedule::new(Pace::Open { rate: 3 }, Duration::MAX) };
        assert_eq!(schedule.next(), Some(Duration::from_secs(86_400)));
        assert_eq!(schedule.arrival(Duration::from_secs(86_399)), None);
    }

    #[test]
    fn in_a_closed_loop_a_buyer_is_always_due() {
        let mut schedule = Schedule::new(Pace::Closed, Duration::MAX);
        let now = Duration::from_secs(5);
        assert_eq!((schedule.next(), schedule.arrival(now), schedule.arrival(now)), (None, Some(now), Some(now)));
    }

    #[test]
    fn a_crowd_asks_once_before_an_opening_and_densely_around_it() {
        let opens_at = Duration::from_secs(20);
        let mut schedule = Schedule::new(Pace::Opening { opens_at, connections: 1000 }, Duration::MAX);
        assert_eq!((schedule.connects_at(), schedule.is_crowd()), (Duration::from_secs(10), true));
        let ms = Duration::from_millis;
        let mut arrivals = Vec::new();
        while let Some(at) = schedule.arrival(opens_at + ms(1)) {
            arrivals.push(at);
        }
        assert!(arrivals.is_sorted());
        let (early, dense) = arrivals.split_at(1000);
        assert_eq!((early[0], early[1] - early[0]), (opens_at - ms(1500), Duration::from_micros(1400)));
        assert!(early[999] < opens_at - ms(100));
        assert_eq!((dense[0], dense[1] - dense[0]), (opens_at - ms(5), Duration::from_micros(100)));
        assert_eq!((dense[50], dense.len()), (opens_at, 61));
        schedule.rush();
        assert_eq!((schedule.next(), schedule.arrival(ms(7)), schedule.is_crowd()), (None, Some(ms(7)), false));
    }
}
