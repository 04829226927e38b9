//! Notifications to the service manager, if there is one: ready, watchdog, reloading, main process id, stopping, more
//! time to stop. The protocol is sd_notify(3), for `Type=notify` of systemd.

use crate::operate::status::Status;
use sd_notify::NotifyState;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time for which one notification extends the stop timeout of the service manager.
const EXTENSION: Duration = Duration::from_secs(30);
/// Time between two such notifications.
const EXTENSION_PERIOD: Duration = Duration::from_secs(10);

/// The service manager that the environment names, if it names one.
pub struct ServiceManager {
    /// Time between two watchdog notifications, or `None` without a watchdog. Without them the service manager ends the
    /// process.
    period: Option<Duration>,
    /// Time of the next watchdog notification.
    next_notification: Option<Instant>,
    /// Time of the next extension of the stop timeout, or `None` before the stop.
    next_extension: Option<Instant>,
    /// Turns of each shard at the last watchdog notification.
    turns: Vec<u64>,
}

impl ServiceManager {
    /// Creates the connection to the service manager, from the environment variables that it has set.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> Self {
        // Half of the watchdog's time, as sd_watchdog_enabled(3) recommends.
        let period = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        ServiceManager { period, next_notification: None, next_extension: None, turns: Vec::new() }
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

    /// Reports that the process stops. From now on, [`ServiceManager::extend_stop`] asks for the time that the settings
    /// allow, which may be more than the service manager's own stop timeout.
    pub fn stopping(&mut self, now: Instant) {
        notify(&[NotifyState::Stopping, NotifyState::Status("draining"), extension(EXTENSION)]);
        self.next_extension = Some(now + EXTENSION_PERIOD);
    }

    /// Extends the stop timeout if that is due. Returns the time of the next extension.
    pub fn extend_stop(&mut self, now: Instant) -> Option<Instant> {
        if self.next_extension? <= now {
            notify(&[extension(EXTENSION)]);
            self.next_extension = Some(now + EXTENSION_PERIOD);
        }
        self.next_extension
    }

    /// Extends the stop timeout for the last time, for the work that ends in `left`.
    pub fn extend_end(&self, left: Duration) {
        if self.next_extension.is_some() {
            notify(&[extension(left + EXTENSION)]);
        }
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

/// Reports that the process waits for the end of another server. Call it about once a second, because the watchdog
/// expects notifications from now on.
pub fn notify_standby() {
    notify(&[NotifyState::Ready, NotifyState::Status("standby"), NotifyState::Watchdog]);
}

fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// Sends a notification. A failure is logged and does not stop the server.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}
