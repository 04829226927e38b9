//! When buyers come. Times count from the start of the run; nothing here reads a clock.

use std::time::Duration;

/// How fast buyers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One when another leaves.
    Closed,
    /// So many a second, evenly, whatever becomes of them.
    Open {
        /// Buyers a second, at least one.
        rate: u32,
    },
}

/// Arrivals, one after the other.
pub struct Schedule {
    pace: Pace,
    arrived: u64,
}

impl Schedule {
    /// From the start on.
    pub fn new(pace: Pace) -> Schedule {
        Schedule { pace, arrived: 0 }
    }

    /// Whether the next buyer has come at `now`, and then when: in an open loop the time that was intended, however
    /// late it is taken notice of. In a closed loop somebody always stands at the door.
    pub fn arrival(&mut self, now: Duration) -> Option<Duration> {
        let at = self.next().unwrap_or(now);
        (at <= now).then(|| {
            self.arrived += 1;
            at
        })
    }

    /// When the next buyer comes, if that is not up to the others.
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
    fn an_open_loop_keeps_its_times_through_a_stall() {
        let mut schedule = Schedule::new(Pace::Open { rate: 4 });
        let ms = Duration::from_millis;
        assert_eq!(schedule.arrival(ms(0)), Some(ms(0)));
        assert_eq!(schedule.arrival(ms(249)), None);
        assert_eq!(schedule.next(), Some(ms(250)));
        // Nobody looked for a second: everyone who came meanwhile came when they meant to.
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
    fn in_a_closed_loop_somebody_always_waits() {
        let mut schedule = Schedule::new(Pace::Closed);
        let now = Duration::from_secs(5);
        assert_eq!((schedule.next(), schedule.arrival(now), schedule.arrival(now)), (None, Some(now), Some(now)));
    }
}
