//! The thread that compares the server's time with the system clock once a second, and logs each step. The rule is in
//! `system/discipline.rs`.

use crate::config::fatal::Fatal;
use crate::http::route::rfc3339;
use crate::system::clock::Clock;
use crate::system::discipline::{CHECK_US, ClockChange, STEP_LASTS_US};
use crate::system::threads;
use std::thread::sleep;
use std::time::Duration;

/// Starts the thread, which runs until the process ends.
///
/// # Errors
/// [`Fatal::Host`]: the thread cannot be started.
pub fn start(clock: Clock) -> Result<(), Fatal> {
    let keep_time = move || {
        loop {
            sleep(Duration::from_micros(CHECK_US));
            if let Some(change) = clock.check() {
                log(change);
            }
        }
    };
    threads::spawn("clock", keep_time).map(drop)
}

fn log(change: ClockChange) {
    let time = |us: u64| rfc3339(us / 1000);
    match change {
        ClockChange::Stepped { server_us, system_us } => tracing::warn!(
            server = time(server_us),
            system = time(system_us),
            seconds = STEP_LASTS_US / 1_000_000,
            "the system clock has stepped: the server keeps its own time, and follows if the step lasts"
        ),
        ClockChange::Returned => {
            tracing::info!("the system clock has returned to the server's time: the step had no effect");
        }
        ClockChange::Followed { server_us, system_us } => tracing::warn!(
            from = time(server_us),
            to = time(system_us),
            "the step of the system clock has lasted: the server follows it"
        ),
    }
}
