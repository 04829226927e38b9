//! Notifications to the service manager, if there is one: ready, watchdog, reloading, main process id, stopping. The
//! protocol is sd_notify(3), for `Type=notify` of systemd.

use crate::operate::status::Status;
use sd_notify::NotifyState;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The service manager that the environment names, if it names one.
pub struct ServiceManager {
    /// Time between two watchdog notifications, or `None` without a watchdog. Without them the service manager ends the
    /// process.
    period: Option<Duration>,
    /// Time of the next watchdog notification.
    next_notification: Option<Instant>,
    /// Turns of each shard at the last watchdog notification.
    turns: Vec<u64>,
}

impl ServiceManager {
    /// Creates the connection to the service manager, from the environment variables that it has set.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> Self {
        // Half of the watchdog's time, as sd_watchdog_enabled(3) recommends.
        let period = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        ServiceManager { period, next_notification: None, turns: Vec::new() }
    }

    /// Reports that the process serves. Watchdog notifications begin now.
    pub fn ready(&mut self) {
        // Notify the watchdog at once: after an upgrade, the last notification is from the old process.
        notify(&[NotifyState::Ready, NotifyState::Status("selling"), NotifyState::Watchdog]);
        self.next_notification = self.period.map(|period| Instant::now() + period);
    }

    /// Reports that an upgrade has begun. It ends when either process reports that it is ready.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
        notify(&[NotifyState::Reloading, now, NotifyState::Status("upgrading")]);
    }

    /// Reports the process id of the server.
    pub fn set_main_pid(&self, pid: u32) {
        notify(&[NotifyState::MainPid(pid)]);
    }

    /// Reports that the process stops.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }

    /// Notifies the watchdog if a notification is due and every shard has taken a turn since the last one. A healthy
    /// shard takes at least one turn per second. Returns the time of the next notification.
    pub fn notify_watchdog(&mut self, status: &Status, now: Instant) -> Option<Instant> {
        let period = self.period?;
        if self.next_notification.is_some_and(|due| due <= now) {
            let turns: Vec<u64> = status.shards.iter().map(|shard| shard.turns.load(Ordering::Relaxed)).collect();
            let stuck = turns.iter().zip(&self.turns).position(|(turns, before)| turns == before);
            match stuck {
                None => notify(&[NotifyState::Watchdog]),
                Some(shard) => {
                    tracing::error!(shard, "a shard takes no turns any more: the watchdog is not notified")
                }
            }
            self.turns = turns;
            self.next_notification = Some(now + period);
        }
        self.next_notification
    }
}

/// Sends a notification. A failure is logged and does not stop the server.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}
