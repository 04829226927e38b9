//! Measures how long Postgres has been behind the log.

use std::time::Duration;

/// Lag above which Postgres counts as behind, and a warning is logged.
const LAG_TIME: Duration = Duration::from_secs(1);

/// Measures the lag from two running totals: the durable records, and the records that are in Postgres.
#[derive(Debug, Default)]
pub struct Lag {
    /// Set while Postgres lacks records: the total of durable records when the lack was first observed, and the time of
    /// that observation. Cleared when Postgres has reached that total.
    waiting_for: Option<(i64, Duration)>,
    is_behind: bool,
}

/// Change of the lag that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LagChange {
    /// Postgres has fallen behind.
    FellBehind,
    /// Postgres has caught up.
    CaughtUp,
}

impl Lag {
    /// Updates the lag from the totals at `now`, a time since any fixed moment. Returns how long Postgres has been
    /// behind, and a change if Postgres has just fallen behind or caught up.
    pub fn update(&mut self, durable: i64, persisted: i64, now: Duration) -> (Duration, Option<LagChange>) {
        if self.waiting_for.is_some_and(|(total, _)| persisted >= total) {
            self.waiting_for = None;
        }
        if self.waiting_for.is_none() && persisted < durable {
            self.waiting_for = Some((durable, now));
        }
        let behind = self.waiting_for.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since));
        let is_behind = behind > LAG_TIME;
        let change = if is_behind { LagChange::FellBehind } else { LagChange::CaughtUp };
        let has_changed = std::mem::replace(&mut self.is_behind, is_behind) != is_behind;
        (behind, has_changed.then_some(change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_trickle_is_no_lag() {
        let mut lag = Lag::default();
        for tick in 0..100u32 {
            let (behind, change) =
                lag.update(i64::from(10 * tick + 5), i64::from(10 * tick), Duration::from_millis(300) * tick);
            assert_eq!((change, behind <= Duration::from_millis(300)), (None, true));
        }
    }

    #[test]
    fn standing_still_is_one_and_catching_up_ends_it() {
        let mut lag = Lag::default();
        let mut look = |durable, persisted, ms| lag.update(durable, persisted, Duration::from_millis(ms)).1;
        assert_eq!(look(5, 5, 0), None);
        assert_eq!(look(6, 5, 1_000), None);
        assert_eq!(look(9, 5, 2_000), None);
        assert_eq!(look(9, 5, 2_001), Some(LagChange::FellBehind));
        assert_eq!(look(99, 5, 9_000), None);
        assert_eq!(look(99, 6, 9_100), Some(LagChange::CaughtUp), "the remaining records were first observed just now");
        assert_eq!(look(99, 98, 10_200), Some(LagChange::FellBehind));
        assert_eq!(look(99, 99, 10_300), Some(LagChange::CaughtUp));
    }
}
