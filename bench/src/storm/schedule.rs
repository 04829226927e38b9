//! The schedule of arrivals. Times count from the start of the run; nothing here reads a clock.

use std::time::Duration;

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
}

/// The sequence of arrivals.
pub struct Schedule {
    pace: Pace,
    arrived: u64,
}

impl Schedule {
    /// Creates a schedule. The first buyer of an open loop arrives at the start.
    pub fn new(pace: Pace) -> Schedule {
        Schedule { pace, arrived: 0 }
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

    /// Returns the time of the next arrival in an open loop, and `None` in a closed loop.
    pub fn next(&self) -> Option<Duration> {
        match self.pace {
            Pace::Closed => None,
            Pace::Open { rate } => {
                let nanos = u128::from(self.arrived) * 1_000_000_000 / u128::from(rate);
                Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_keeps_the_intended_times_through_a_stall() {
        let mut schedule = Schedule::new(Pace::Open { rate: 4 });
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
        let mut schedule = Schedule { pace: Pace::Open { rate: 3 }, arrived: 3 * 86_400 };
        assert_eq!(schedule.next(), Some(Duration::from_secs(86_400)));
        assert_eq!(schedule.arrival(Duration::from_secs(86_399)), None);
    }

    #[test]
    fn in_a_closed_loop_a_buyer_is_always_due() {
        let mut schedule = Schedule::new(Pace::Closed);
        let now = Duration::from_secs(5);
        assert_eq!((schedule.next(), schedule.arrival(now), schedule.arrival(now)), (None, Some(now), Some(now)));
    }
}
