//! How long Postgres has been behind the log.

use std::time::Duration;

/// Behind by more than this is worth a line in the log.
const LAG_TIME: Duration = Duration::from_secs(1);

/// Watches two running totals: records that are durable, and records that are in Postgres.
#[derive(Debug, Default)]
pub struct Lag {
    /// How many were durable when it was first seen that not all of them were in Postgres, and when that was.
    waiting_for: Option<(i64, Duration)>,
    is_behind: bool,
}

/// What is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LagChange {
    /// Postgres has fallen behind.
    FellBehind,
    /// Postgres has caught up.
    CaughtUp,
}

impl Lag {
    /// Looks at the totals at `now`, a time since any fixed moment. Returns for how long Postgres has been behind,
    /// and whether that is news.
    pub fn look(&mut self, durable: i64, persisted: i64, now: Duration) -> (Duration, Option<LagChange>) {
        if self.waiting_for.is_some_and(|(total, _)| persisted >= total) {
            self.waiting_for = None;
        }
        if self.waiting_for.is_none() && persisted < durable {
            self.waiting_for = Some((durable, now));
        }
        let behind = self.waiting_for.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since));
        let is_behind = behind > LAG_TIME;
        let change = if is_behind { LagChange::FellBehind } else { LagChange::CaughtUp };
        let is_news = std::mem::replace(&mut self.is_behind, is_behind) != is_behind;
        (behind, is_news.then_some(change))
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
                lag.look(i64::from(10 * tick + 5), i64::from(10 * tick), Duration::from_millis(300) * tick);
            assert_eq!((change, behind <= Duration::from_millis(300)), (None, true));
        }
    }

    #[test]
    fn standing_still_is_one_and_catching_up_ends_it() {
        let mut lag = Lag::default();
        let mut look = |durable, persisted, ms| lag.look(durable, persisted, Duration::from_millis(ms)).1;
        assert_eq!(look(5, 5, 0), None);
        assert_eq!(look(6, 5, 1_000), None);
        assert_eq!(look(9, 5, 2_000), None);
        assert_eq!(look(9, 5, 2_001), Some(LagChange::FellBehind));
        assert_eq!(look(99, 5, 9_000), None);
        assert_eq!(look(99, 6, 9_100), Some(LagChange::CaughtUp), "what is left has not been seen for long");
        assert_eq!(look(99, 98, 10_200), Some(LagChange::FellBehind));
        assert_eq!(look(99, 99, 10_300), Some(LagChange::CaughtUp));
    }
}
