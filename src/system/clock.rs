//! The only file that reads a clock.

use crate::sale::ids::Moment;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Instant, SystemTime};

/// When this machine was started, in seconds since the Unix epoch. Asks no file: systemd may hide /proc/stat
/// (ProcSubset=pid). Rounded, so that it says the same each time.
pub fn boot_s() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    ((seconds(ClockId::Realtime) - seconds(ClockId::Boottime)) * 100.0).round() / 100.0
}

/// Reads both clocks at once.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time starts at 1 ms. Copies agree with each other.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Microseconds since the start: what short times are measured by.
    pub fn micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Now.
    pub fn now(&self) -> Moment {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Moment {
            monotonic_ms: self.start.elapsed().as_millis() as u64 + 1,
            // A clock before 1970 counts as 1970: the sale id never goes backwards anyway.
            unix_ms: unix.map_or(0, |elapsed| elapsed.as_millis() as u64),
        }
    }
}
