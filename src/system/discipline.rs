//! The rule by which the server's time follows the system clock. The server's time is the time since the machine booted
//! plus an offset, and this rule decides when the offset changes. It reads no clock.
//!
//! - A difference of at most 1 s between the system clock and the server's time is a correction, such as NTP makes. The
//!   rule follows it at once.
//! - A larger difference is a step. The rule reports it, and ignores it until it has lasted for 30 s: a sale that opens
//!   is durable, so a clock that is wrong for a moment must not open one.
//! - A step that changes by more than 1 s is another step, and its time starts again. If the system clock returns to the
//!   server's time, the step is over.
//!
//! The time since boot includes the time in which the machine was suspended, so a suspend is not a step.

use serde::{Deserialize, Serialize};

/// Microseconds between two checks.
pub const CHECK_US: u64 = 1_000_000;
/// Largest correction that is followed at once, in microseconds.
const CORRECTION_US: u64 = 1_000_000;
/// Microseconds that a step must last before it is followed.
pub const STEP_LASTS_US: u64 = 30_000_000;
/// Longest time between two checks that counts, in microseconds. What happens in a longer gap is unknown, for example
/// while the process is stopped.
const GAP_MAX_US: u64 = 2 * CHECK_US;

/// The state of the rule. An upgrade hands it over, so that both processes have the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockDiscipline {
    /// The server's time minus the time since boot, in microseconds.
    offset_us: i64,
    /// Time since boot at the last check, in microseconds.
    checked_us: u64,
    step: Option<ClockStep>,
}

/// A step of the system clock that is not followed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClockStep {
    /// The system clock minus the time since boot, in microseconds.
    offset_us: i64,
    lasted_us: u64,
}

/// What a check has found. Times are in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockChange {
    /// The system clock has stepped. The server keeps its time.
    Stepped {
        /// The server's time.
        server_us: u64,
        /// The system clock.
        system_us: u64,
    },
    /// The system clock has returned to the server's time.
    Returned,
    /// The step has lasted long enough. The server follows the system clock.
    Followed {
        /// The server's time before.
        server_us: u64,
        /// The system clock, and the server's time from now on.
        system_us: u64,
    },
}

impl ClockDiscipline {
    /// Creates the state of a server that starts with the time of the system clock. `boot_us` is the time since boot.
    pub fn new(boot_us: u64, system_us: u64) -> Self {
        ClockDiscipline { offset_us: offset(boot_us, system_us), checked_us: boot_us, step: None }
    }

    /// Returns the server's time minus the time since boot, in microseconds.
    pub fn offset_us(&self) -> i64 {
        self.offset_us
    }

    /// Applies a reading of both clocks. Returns what an operator should know.
    pub fn apply(&mut self, boot_us: u64, system_us: u64) -> Option<ClockChange> {
        let passed_us = boot_us.saturating_sub(self.checked_us).min(GAP_MAX_US);
        self.checked_us = boot_us;
        let server_us = boot_us.saturating_add_signed(self.offset_us);
        let new_us = offset(boot_us, system_us);
        if new_us.abs_diff(self.offset_us) <= CORRECTION_US {
            self.offset_us = new_us;
            return self.step.take().map(|_| ClockChange::Returned);
        }
        match &mut self.step {
            Some(step) if new_us.abs_diff(step.offset_us) <= CORRECTION_US => {
                step.offset_us = new_us;
                step.lasted_us += passed_us;
                if step.lasted_us < STEP_LASTS_US {
                    return None;
                }
                (self.offset_us, self.step) = (new_us, None);
                Some(ClockChange::Followed { server_us, system_us })
            }
            step => {
                *step = Some(ClockStep { offset_us: new_us, lasted_us: 0 });
                Some(ClockChange::Stepped { server_us, system_us })
            }
        }
    }
}

fn offset(boot_us: u64, system_us: u64) -> i64 {
    system_us.wrapping_sub(boot_us) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const DAY: i64 = 86_400 * SECOND;
    /// Seconds since boot at the start, and the time of the system clock then.
    const BOOT_S: u64 = 5_000;
    const START_US: u64 = 1_800_000_000_000_000;

    /// Plays a clock. Each row is a number of checks, and how far the system clock is off during them, in microseconds.
    /// Returns the changes, each with its second, and how far the server's time is off at the end.
    fn play(rows: &[(u64, i64)]) -> (Vec<(u64, char)>, i64) {
        let boot_us = |second: u64| (BOOT_S + second) * SECOND as u64;
        let mut discipline = ClockDiscipline::new(boot_us(0), START_US);
        let (mut second, mut changes) = (0, Vec::new());
        for (checks, off_us) in rows {
            for _ in 0..*checks {
                second += 1;
                let system_us = (START_US + second * SECOND as u64).saturating_add_signed(*off_us);
                changes.extend(discipline.apply(boot_us(second), system_us).map(|change| (second, letter(change))));
            }
        }
        (changes, discipline.offset_us() - (START_US as i64 - boot_us(0) as i64))
    }

    fn letter(change: ClockChange) -> char {
        match change {
            ClockChange::Stepped { .. } => 's',
            ClockChange::Returned => 'r',
            ClockChange::Followed { .. } => 'f',
        }
    }

    #[test]
    fn a_step_is_followed_when_it_has_lasted() {
        /// What happens, the clock to play, the expected changes, and the expected error at the end.
        type Case<'a> = (&'a str, &'a [(u64, i64)], &'a [(u64, char)], i64);
        let rows: [Case<'_>; 10] = [
            ("nothing happens", &[(100, 0)], &[], 0),
            ("ahead for one second", &[(5, 0), (1, DAY), (100, 0)], &[(6, 's'), (7, 'r')], 0),
            ("ahead for 30 checks", &[(5, 0), (30, DAY), (100, 0)], &[(6, 's'), (36, 'r')], 0),
            ("ahead for 31 checks", &[(5, 0), (31, DAY)], &[(6, 's'), (36, 'f')], DAY),
            (
                "ahead for 2 minutes, then right again",
                &[(120, DAY), (120, 0)],
                &[(1, 's'), (31, 'f'), (121, 's'), (151, 'f')],
                0,
            ),
            ("back", &[(60, -DAY)], &[(1, 's'), (31, 'f')], -DAY),
            (
                "ahead for a second, twice in 30",
                &[(1, DAY), (20, 0), (1, DAY), (20, 0)],
                &[(1, 's'), (2, 'r'), (22, 's'), (23, 'r')],
                0,
            ),
            (
                "one step after another",
                &[(20, DAY), (20, 2 * DAY), (20, -DAY), (31, 3 * DAY)],
                &[(1, 's'), (21, 's'), (41, 's'), (61, 's'), (91, 'f')],
                3 * DAY,
            ),
            ("a correction of a second", &[(1, SECOND), (1, 0), (1, -SECOND)], &[], -SECOND),
            ("more than a correction", &[(1, SECOND + 1), (1, 0)], &[(1, 's'), (2, 'r')], 0),
        ];
        for (what, played, changes, off_us) in rows {
            assert_eq!(play(played), (changes.to_vec(), off_us), "{what}");
        }
    }

    #[test]
    fn slewing_is_followed_at_once() {
        let slewed: Vec<_> = (0..1000).map(|check| (1, check * SECOND / 10)).collect();
        assert_eq!(play(&slewed), (Vec::new(), 999 * SECOND / 10));
        // During a step, too: the step does not start again.
        let slewed: Vec<_> = (0..40).map(|check| (1, DAY + check * SECOND / 2)).collect();
        assert_eq!(play(&slewed), (vec![(1, 's'), (31, 'f')], DAY + 39 * SECOND / 2));
    }

    #[test]
    fn a_change_names_both_times() {
        let mut discipline = ClockDiscipline::new(1_000, START_US);
        let (server_us, system_us) = (START_US + 500, START_US + 7 * SECOND as u64);
        assert_eq!(discipline.apply(1_500, system_us), Some(ClockChange::Stepped { server_us, system_us }));
        assert_eq!(discipline.offset_us(), START_US as i64 - 1_000);
    }

    /// A suspended machine counts the time on both clocks, and a stopped process misses checks.
    #[test]
    fn a_suspend_is_no_step_and_a_gap_does_not_count_as_lasting() {
        let night_us = 8 * 3_600 * SECOND as u64;
        let mut discipline = ClockDiscipline::new(0, START_US);
        assert_eq!(discipline.apply(night_us, START_US + night_us), None);
        let at = |second: u64| night_us + second * SECOND as u64;
        let mut check = |second| discipline.apply(at(second), START_US + at(second) + DAY as u64).map(letter);
        assert_eq!(check(1), Some('s'));
        // An hour without a check, and the same step afterwards.
        assert!((3_600..3_628).all(|second| check(second).is_none()));
        assert_eq!(check(3_628), Some('f'));
    }

    #[test]
    fn a_new_process_continues_the_step() {
        let boot_us = |second: u64| second * SECOND as u64;
        let wall_us = |second: u64| START_US + boot_us(second) + DAY as u64;
        let mut old = ClockDiscipline::new(0, START_US);
        assert!((1..=20).filter_map(|second| old.apply(boot_us(second), wall_us(second))).count() == 1);
        let text = serde_json::to_string(&old).unwrap();
        let mut new: ClockDiscipline = serde_json::from_str(&text).unwrap();
        assert_eq!(new, old);
        assert!((21..=30).all(|second| new.apply(boot_us(second), wall_us(second)).is_none()));
        assert_eq!(new.apply(boot_us(31), wall_us(31)).map(letter), Some('f'));
    }

    #[test]
    fn clocks_at_their_ends_are_read() {
        let mut discipline = ClockDiscipline::new(u64::from(u32::MAX), 0);
        assert_eq!(discipline.apply(u64::from(u32::MAX), 0), None);
        let year_9999_us = 253_402_300_799_000_000;
        assert!(discipline.apply(1, year_9999_us).is_some());
    }
}
