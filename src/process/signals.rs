//! The thread that forwards signals to the main thread, as notices.

use crate::config::fatal::Fatal;
use crate::runtime::control::Notice;
use crate::system::threads;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

/// Forwards SIGTERM, SIGINT and SIGUSR2 from a thread of its own.
///
/// # Errors
/// [`Fatal::Host`]: the handlers or the thread cannot be installed.
pub fn forward(notices: Sender<Notice>) -> Result<(), Fatal> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR2]);
    let mut signals = signals.map_err(|error| Fatal::Host(format!("signal handlers cannot be installed: {error}")))?;
    threads::spawn("signals", move || signals.forever().all(|signal| notices.send(Notice::Signal(signal)).is_ok()))
        .map(drop)
}
