//! The clock of the turns, and the boot time of the machine. A turn reads the time once and passes it on as an
//! argument, so that the state machine reads no clock.

use crate::sale::ids::Moment;
use crate::system::discipline::{ClockChange, ClockDiscipline};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Longest time that a reading of both clocks may take, in microseconds. A thread that was interrupted between the
/// readings would see a difference that does not exist.
const READING_US_MAX: u64 = 10_000;
/// Number of tries to read both clocks.
const READING_TRIES: u32 = 10;

/// Returns the time at which this machine was started, in seconds since the Unix epoch. Reads clocks instead of
/// /proc/stat, which systemd can hide (ProcSubset=pid). Rounds to 10 ms, so that every call returns the same value.
pub fn boot_s() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    ((seconds(ClockId::Realtime) - seconds(ClockId::Boottime)) * 100.0).round() / 100.0
}

/// Returns the microseconds by which turns are measured: `clock_us` by the shard's [`Clock`], or the CPU time of this
/// thread with the feature `turn_cpu_time`, for a benchmark that measures the work of turns on a busy machine.
pub fn turn_us(clock_us: u64) -> u64 {
    if !cfg!(feature = "turn_cpu_time") {
        return clock_us;
    }
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// A source of [`Moment`]s: monotonic time, and the server's time, which follows the system clock by the rule of
/// [`ClockDiscipline`]. All clones return the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Time since boot at the start, in microseconds.
    start_us: u64,
    followed: Arc<FollowedClock>,
}

/// What all clones of a clock share.
#[derive(Debug)]
struct FollowedClock {
    /// The server's time minus the time since boot, in microseconds. A published number: only [`Clock::check`] writes it.
    offset_us: AtomicI64,
    /// The thread that checks and the main thread take this lock. No shard takes it.
    discipline: Mutex<ClockDiscipline>,
}

impl Clock {
    /// Creates a clock that trusts the system clock, and whose monotonic time starts at 1 ms.
    pub fn start() -> Self {
        let (boot_us, system_us) = read_both().unwrap_or_else(|reading| reading);
        Self::resume(ClockDiscipline::new(boot_us, system_us))
    }

    /// Creates a clock that continues the time of another process on this machine. Its monotonic time starts at 1 ms.
    pub fn resume(discipline: ClockDiscipline) -> Self {
        let offset_us = AtomicI64::new(discipline.offset_us());
        let followed = FollowedClock { offset_us, discipline: Mutex::new(discipline) };
        Clock { start_us: since_boot_us(), followed: Arc::new(followed) }
    }

    /// Returns the microseconds since the start, for measuring short durations.
    pub fn micros(&self) -> u64 {
        since_boot_us().saturating_sub(self.start_us)
    }

    /// Returns the current time.
    pub fn now(&self) -> Moment {
        self.read().0
    }

    /// Returns the current time, and the same time as [`Clock::micros`], from one reading.
    pub fn read(&self) -> (Moment, u64) {
        let boot_us = since_boot_us();
        let offset_us = self.followed.offset_us.load(Ordering::Relaxed);
        let micros = boot_us.saturating_sub(self.start_us);
        let unix_ms = boot_us.saturating_add_signed(offset_us) / 1000;
        (Moment { monotonic_ms: micros / 1000 + 1, unix_ms }, micros)
    }

    /// Compares the server's time with the system clock, and follows the system clock if the rule says so. Returns what
    /// an operator should know.
    pub fn check(&self) -> Option<ClockChange> {
        let Ok((boot_us, system_us)) = read_both() else { return None };
        let mut discipline = self.followed.discipline.lock().expect("a panic ends the process");
        let change = discipline.apply(boot_us, system_us);
        self.followed.offset_us.store(discipline.offset_us(), Ordering::Relaxed);
        change
    }

    /// Returns the state of the rule, for [`Clock::resume`] in another process.
    pub fn discipline(&self) -> ClockDiscipline {
        self.followed.discipline.lock().expect("a panic ends the process").clone()
    }
}

/// Returns the time since boot, including the time in which the machine was suspended, in microseconds.
pub fn since_boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Reads the time since boot and the system clock at the same moment, in microseconds. Returns the last reading as an
/// error if this thread was interrupted in each try.
fn read_both() -> Result<(u64, u64), (u64, u64)> {
    let mut reading = (0, 0);
    for _ in 0..READING_TRIES {
        let before_us = since_boot_us();
        let system = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let took_us = since_boot_us().saturating_sub(before_us);
        // A clock before 1970 counts as 1970. This is harmless, because the sale id never decreases.
        reading = (before_us + took_us / 2, system.map_or(0, |elapsed| elapsed.as_micros() as u64));
        if took_us <= READING_US_MAX {
            return Ok(reading);
        }
    }
    Err(reading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_time_and_a_check_keeps_it() {
        let clock = Clock::start();
        let system_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(clock.now().unix_ms.abs_diff(system_ms) < 1000);
        assert_eq!(clock.check(), None);
        let later = Clock::resume(clock.clone().discipline());
        assert!(later.now().unix_ms.abs_diff(clock.now().unix_ms) < 1000);
        assert!(later.now().monotonic_ms >= 1 && clock.now().monotonic_ms >= later.now().monotonic_ms);
    }
}
