//! The clock of a run: the time since its start, and the same time by the system clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest time that a reading of both clocks may take. A thread that is interrupted between the readings would see a
/// difference that does not exist.
const READING_MAX: Duration = Duration::from_micros(20);
/// Number of tries to read both clocks.
const READING_TRIES: u32 = 20;

/// The clock of a run. NTP slews both clocks alike, so only a step of the system clock changes their difference.
#[derive(Clone, Copy, Debug)]
pub struct RunClock {
    started: Instant,
    /// Time of the start since the Unix epoch.
    unix: Duration,
}

impl RunClock {
    /// Starts a run now.
    pub fn start() -> RunClock {
        let mut reading = read_both();
        for _ in 1..READING_TRIES {
            if reading.1 <= READING_MAX {
                break;
            }
            reading = read_both();
        }
        reading.0
    }

    /// Returns the time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the system time `at` after the start.
    pub fn system_time(&self, at: Duration) -> SystemTime {
        UNIX_EPOCH + self.unix + at
    }

    /// Returns the time since the Unix epoch, `at` after the start.
    pub fn unix(&self, at: Duration) -> Duration {
        self.unix + at
    }

    /// Returns the time from the start until `unix_s` seconds since the Unix epoch. Zero if that is over.
    pub fn until(&self, unix_s: u64) -> Duration {
        Duration::from_secs(unix_s).saturating_sub(self.unix)
    }

    /// Returns by how much the system clock was stepped since the start.
    pub fn step(&self) -> Duration {
        let now = RunClock::start();
        now.unix.abs_diff(self.unix + (now.started - self.started))
    }
}

/// Reads both clocks, and returns how long that took.
fn read_both() -> (RunClock, Duration) {
    let before = Instant::now();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let took = before.elapsed();
    (RunClock { started: before + took / 2, unix }, took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_converted_and_a_step_is_noticed() {
        let clock = RunClock { started: Instant::now(), unix: Duration::from_millis(1_500) };
        assert_eq!((clock.until(4), clock.until(1)), (Duration::from_millis(2_500), Duration::ZERO));
        assert_eq!(clock.unix(Duration::from_millis(500)), Duration::from_secs(2));
        assert_eq!(clock.system_time(Duration::ZERO), UNIX_EPOCH + Duration::from_millis(1_500));
        assert!(clock.step() > Duration::from_secs(1_000_000), "from 1970 to now");
        let now = RunClock::start();
        let stepped = RunClock { unix: now.unix + Duration::from_secs(9), ..now };
        assert!(stepped.step().abs_diff(Duration::from_secs(9)) < Duration::from_secs(1));
    }
}
