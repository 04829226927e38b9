//! What the service manager hears, if there is one: ready, alive, giving way to another process, stopping (sd_notify(3); systemd's `Type=notify`).

use crate::operate::status::Status;
use sd_notify::NotifyState;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The service manager, or nobody.
pub struct ServiceManager {
    /// It wants a sign of life this often, and would end the process without one.
    period: Option<Duration>,
    next_sign: Option<Instant>,
    /// Turns of each shard at the last sign.
    turns: Vec<u64>,
}

impl ServiceManager {
    /// Whom the environment names.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> Self {
        // Twice in the time that it waits, as its manual asks.
        let period = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        ServiceManager { period, next_sign: None, turns: Vec::new() }
    }

    /// Says that the process serves. From now on it wants signs of life.
    pub fn ready(&mut self) {
        // A sign of life, too: the one before may be of another process, and old.
        tell(&[NotifyState::Ready, NotifyState::Status("selling"), NotifyState::Watchdog]);
        self.next_sign = self.period.map(|period| Instant::now() + period);
    }

    /// Says that another process may take the place of this one. Readiness, of either, ends that.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
        tell(&[NotifyState::Reloading, now, NotifyState::Status("upgrading")]);
    }

    /// Says which process is the server from now on.
    pub fn main_is(&self, pid: u32) {
        tell(&[NotifyState::MainPid(pid)]);
    }

    /// Says that the process ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }

    /// Gives a sign of life if it is time for one, and if every shard has taken a turn since the last: they do at least
    /// each second. Returns when the next one is due.
    pub fn give_sign_of_life(&mut self, status: &Status, now: Instant) -> Option<Instant> {
        let period = self.period?;
        if self.next_sign.is_some_and(|due| due <= now) {
            let turns: Vec<u64> = status.shards.iter().map(|shard| shard.turns.load(Ordering::Relaxed)).collect();
            let stuck = turns.iter().zip(&self.turns).position(|(turns, before)| turns == before);
            match stuck {
                None => tell(&[NotifyState::Watchdog]),
                Some(shard) => {
                    tracing::error!(shard, "a shard takes no turns any more: the watchdog gets no sign of life")
                }
            }
            self.turns = turns;
            self.next_sign = Some(now + period);
        }
        self.next_sign
    }
}

/// A manager that cannot be told is no reason to stop selling.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
