//! Starts threads and event loops.

use crate::config::fatal::Fatal;
use std::thread::{self, JoinHandle};
use tokio::runtime::{Builder, Runtime};

/// Starts a thread.
///
/// # Errors
/// [`Fatal::Host`]: the process has reached a limit on threads or memory.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Fatal> {
    let spawned = thread::Builder::new().name(name.into()).spawn(body);
    spawned.map_err(|error| Fatal::Host(format!("the thread `{name}` cannot be started: {error}")))
}

/// Creates an event loop for sockets and timers, which runs on the thread that calls `block_on`.
///
/// # Errors
/// [`Fatal::Host`]: the process has no file descriptors left.
pub fn event_loop() -> Result<Runtime, Fatal> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(|error| Fatal::Host(format!("cannot create an event loop: {error}")))
}
