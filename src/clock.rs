//! The only file that reads a clock.

use crate::types::Moment;
use std::time::{Instant, SystemTime};

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
