//! The measurement of the benchmarks: CPU time of the thread instead of wall-clock time, because the figures are for
//! one core and the machine may be shared. Runs are short.

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Returns the CPU time that this thread has used.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Measures the CPU time of the thread.
pub struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Returns a configuration with short runs.
pub fn briefly() -> Criterion<CpuTime> {
    let (warm_up, measurement) = (Duration::from_millis(200), Duration::from_millis(600));
    Criterion::default().sample_size(10).warm_up_time(warm_up).measurement_time(measurement).with_measurement(CpuTime)
}
