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

/// An event loop for sockets and timers, which runs on the thread that calls `block_on`.
pub struct EventLoop(Option<Runtime>);

impl EventLoop {
    /// Runs a future to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.as_ref().expect("there is a runtime until the drop").block_on(future)
    }
}

/// Does not wait for threads that look up a name: the C library may try for minutes.
impl Drop for EventLoop {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Creates an event loop.
///
/// # Errors
/// [`Fatal::Host`]: the process has no file descriptors left.
pub fn event_loop() -> Result<EventLoop, Fatal> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map(|runtime| EventLoop(Some(runtime)))
        .map_err(|error| Fatal::Host(format!("cannot create an event loop: {error}")))
}
