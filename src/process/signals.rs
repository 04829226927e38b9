//! Signals: their effects, the state that the parent process has left, and the thread that forwards them to the main
//! thread.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | stop in order |
//! | SIGHUP, SIGUSR2 | upgrade in place |
//! | SIGCHLD | none, but it must not be ignored, because then the exit status of a new process would be lost |
//! | SIGPIPE | ignored, by Rust's runtime |
//! | SIGXFSZ | ignored: a log line about it could be the write that causes the next one |
//! | SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP | the default: they report a bug, with a core dump |
//! | SIGTSTP, SIGTTIN, SIGTTOU | the default: the process is stopped until SIGCONT |
//! | every other signal that would end the process | one log line |

use crate::config::fatal::Fatal;
use crate::runtime::control::Notice;
use crate::system::threads;
use crossbeam_channel::Sender;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{
    SIGABRT, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSEGV, SIGSTOP,
    SIGSYS, SIGTERM, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGUSR2, SIGWINCH, SIGXFSZ,
};
use signal_hook::iterator::Signals;

/// Signals that must have a handler.
const HANDLED: [i32; 6] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR2, SIGCHLD];
/// Signals whose disposition does not change.
const UNTOUCHED: [i32; 16] = [
    SIGKILL, SIGSTOP, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP,
    SIGPIPE, SIGURG, SIGWINCH,
];

/// The caught signals, which wait until [`CaughtSignals::forward`] is called.
pub struct CaughtSignals(Signals);

/// Catches signals, and unblocks all signals. A parent process may have left signals ignored or blocked; a handler
/// replaces an ignored one. The calling thread must be the only one, because other threads keep their masks.
///
/// # Errors
/// [`Fatal::Host`]: the handlers cannot be installed.
pub fn catch() -> Result<CaughtSignals, Fatal> {
    let signals = Signals::new(HANDLED);
    let signals = signals.map_err(|error| Fatal::Host(format!("signal handlers cannot be installed: {error}")))?;
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| !HANDLED.contains(signal) && !UNTOUCHED.contains(signal)) {
        // The C library and tools such as valgrind keep some real-time signals for themselves.
        let _ = signals.add_signal(signal);
    }
    // This fails only for arguments that do not exist.
    let _ = SigSet::all().thread_unblock();
    Ok(CaughtSignals(signals))
}

impl CaughtSignals {
    /// Forwards the signals from a thread of its own, also those that have arrived already.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the thread cannot be started.
    pub fn forward(mut self, notices: Sender<Notice>) -> Result<(), Fatal> {
        let forward = move || {
            self.0.forever().all(|signal| match signal {
                SIGCHLD | SIGXFSZ => true,
                SIGTERM | SIGINT | SIGQUIT => notices.send(Notice::Stop(name(signal))).is_ok(),
                SIGHUP | SIGUSR2 => notices.send(Notice::Upgrade(name(signal))).is_ok(),
                _ => {
                    tracing::warn!(signal = name(signal), "the signal is ignored: nothing uses it");
                    true
                }
            })
        };
        threads::spawn("signals", forward).map(drop)
    }
}

/// Returns the name of a signal, such as `SIGUSR1` or `SIGRTMIN+3`.
fn name(signal: i32) -> String {
    let of_real_time = || format!("SIGRTMIN+{}", signal - libc::SIGRTMIN());
    Signal::try_from(signal).map_or_else(|_| of_real_time(), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name() {
        assert_eq!([1, 30, 34, 64].map(name), ["SIGHUP", "SIGPWR", "SIGRTMIN+0", "SIGRTMIN+30"]);
    }
}
