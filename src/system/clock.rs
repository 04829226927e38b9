//! The clock of the turns, and the boot time of the machine. A turn reads the time once and passes it on as an
//! argument, so that the state machine reads no clock.

use crate::sale::ids::Moment;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Instant, SystemTime};

/// Returns the time at which this machine was started, in seconds since the Unix epoch. Reads clocks instead of
/// /proc/stat, which systemd can hide (ProcSubset=pid). Rounds to 10 ms, so that every call returns the same value.
pub fn boot_s() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    ((seconds(ClockId::Realtime) - seconds(ClockId::Boottime)) * 100.0).round() / 100.0
}

/// A source of [`Moment`]s: monotonic time and wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Creates a clock whose monotonic time starts at 1 ms. Copies of a clock return the same time.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Returns the microseconds since the start, for measuring short durations.
    pub fn micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Returns the current time.
    pub fn now(&self) -> Moment {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Moment {
            monotonic_ms: self.start.elapsed().as_millis() as u64 + 1,
            // A clock before 1970 counts as 1970. This is harmless, because the sale id never decreases.
            unix_ms: unix.map_or(0, |elapsed| elapsed.as_millis() as u64),
        }
    }
}
