//! A shard's listeners, and who waits at them.

use crate::sale::ids::Moment;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

/// Connections accepted in one turn, so that a crowd at the door does not stop the service inside.
const ACCEPTS_PER_TURN: usize = 128;
/// How long accepting rests when no descriptor is left.
const ACCEPT_REST_MS: u64 = 50;

/// Listeners.
#[derive(Default)]
pub struct Acceptor {
    /// One; more after an upgrade to fewer shards, because to close one would reset who waits in its queue.
    listeners: Vec<OwnedFd>,
    /// Somebody waits, as far as is known.
    is_ready: bool,
    again_ms: u64,
}

impl Acceptor {
    /// Accepts from `listener`, too.
    pub fn add(&mut self, listener: OwnedFd) {
        self.listeners.push(listener);
        self.is_ready = true;
    }

    /// Somebody may wait.
    pub fn is_called(&mut self) {
        self.is_ready = true;
    }

    /// The listeners.
    pub fn listeners(&self) -> &[OwnedFd] {
        &self.listeners
    }

    /// Hands those who wait to `welcome`, but not too many at once.
    pub fn accept(&mut self, now: Moment, mut welcome: impl FnMut(OwnedFd)) {
        if !self.is_ready || now.monotonic_ms < self.again_ms {
            return;
        }
        let Acceptor { listeners, again_ms, .. } = self;
        let from = |more, listener| accept_from(listener, now, again_ms, &mut welcome) | more;
        self.is_ready = listeners.iter().fold(false, from);
    }

    /// When accepting goes on, if it rests or there is more to accept.
    pub fn again_ms(&self) -> Option<u64> {
        (!self.listeners.is_empty() && self.is_ready).then_some(self.again_ms)
    }

    /// Accepts who already waits, then nobody.
    pub fn close(&mut self, now: Moment, mut welcome: impl FnMut(OwnedFd)) {
        self.is_ready = true;
        while self.is_ready && now.monotonic_ms >= self.again_ms {
            self.accept(now, &mut welcome);
        }
        self.listeners.clear();
    }
}

/// Returns whether somebody may be left there.
fn accept_from(listener: &OwnedFd, now: Moment, again_ms: &mut u64, welcome: &mut impl FnMut(OwnedFd)) -> bool {
    for _ in 0..ACCEPTS_PER_TURN {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => welcome(socket),
            Err(Errno::AGAIN) => return false,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                *again_ms = now.monotonic_ms + ACCEPT_REST_MS;
                return true;
            }
            // The client has gone, or the network says something about it: the next one may be fine.
            Err(_) => {}
        }
    }
    true
}
