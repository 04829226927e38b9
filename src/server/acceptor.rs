//! Accepting connections: a shard's listeners, how many connections one turn accepts, and the pause when no file
//! descriptor is left. What happens to an accepted socket is in `sockets`.

use crate::sale::ids::Moment;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

/// Connections that one turn accepts at most, so that a burst of new connections does not delay the clients that are
/// connected.
const ACCEPTS_PER_TURN: usize = 64;
/// Accepted connections after which another shard that shares the listening sockets has its turn.
const ACCEPTS_PER_SHARD: usize = 16;
/// Turns of accepting in which a drain accepts the connections that are waiting: as many as the longest accept queue
/// has, so that a drain ends although clients keep connecting.
const CLOSING_TURNS: usize = 16 * 1024 / ACCEPTS_PER_TURN;
/// Milliseconds without accepting while idle connections are closed in favour of new ones.
const WAIT_MS: u64 = 1;
/// Milliseconds without accepting after no file descriptor or memory was left.
const ACCEPT_RETRY_MS: u64 = 50;
/// Milliseconds between two log lines about that.
const LINE_MS: u64 = 60_000;

/// The listeners of one shard.
#[derive(Default)]
pub struct Acceptor {
    /// One listener; more after an upgrade to fewer shards, because closing a listener resets the connections in its
    /// accept queue.
    listeners: Vec<OwnedFd>,
    /// A connection may be waiting: the accept queues are not known to be empty.
    is_ready: bool,
    /// Connections accepted since another shard had its turn.
    accepted: usize,
    pause: AcceptPause,
}

/// The pause after no file descriptor or memory was left.
#[derive(Default)]
struct AcceptPause {
    /// Monotonic time of its end.
    again_ms: u64,
    /// Monotonic time from which on a pause is logged again.
    next_line_ms: u64,
}

impl AcceptPause {
    fn begin(&mut self, now: Moment, error: Errno) {
        self.again_ms = now.monotonic_ms + ACCEPT_RETRY_MS;
        if now.monotonic_ms >= self.next_line_ms {
            self.next_line_ms = now.monotonic_ms + LINE_MS;
            tracing::warn!(%error, "new connections wait: raise LimitNOFILE or ulimit -n, or lower --max-connections");
        }
    }
}

impl Acceptor {
    /// Adds a listener to accept from.
    pub fn add(&mut self, listener: OwnedFd) {
        self.listeners.push(listener);
        self.is_ready = true;
    }

    /// Notes that a connection may be waiting.
    pub fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// Returns the listeners.
    pub fn listeners(&self) -> &[OwnedFd] {
        &self.listeners
    }

    /// Accepts waiting connections, up to the limit of one turn, and passes each socket to `accept_client`, which returns
    /// whether to accept another one from the same listener.
    pub fn accept(&mut self, now: Moment, mut accept_client: impl FnMut(OwnedFd) -> bool) {
        if !self.is_ready || now.monotonic_ms < self.pause.again_ms {
            return;
        }
        let Acceptor { listeners, accepted, pause, .. } = self;
        let limit = (ACCEPTS_PER_TURN / listeners.len().max(1)).max(1);
        let mut accept_client = |socket| {
            *accepted += 1;
            accept_client(socket)
        };
        let from = |more, listener| accept_from(listener, limit, now, pause, &mut accept_client) | more;
        self.is_ready = listeners.iter().fold(false, from);
    }

    /// Lets new connections wait in the accept queue for a moment.
    pub fn wait(&mut self, now: Moment) {
        self.pause.again_ms = self.pause.again_ms.max(now.monotonic_ms + WAIT_MS);
    }

    /// Returns whether another shard that shares the listening sockets should have its turn.
    pub fn must_yield(&mut self) -> bool {
        let must_yield = self.accepted >= ACCEPTS_PER_SHARD;
        self.accepted *= usize::from(!must_yield);
        must_yield
    }

    /// Returns the monotonic time in ms at which to accept again, if connections may be waiting.
    pub fn again_ms(&self) -> Option<u64> {
        (!self.listeners.is_empty() && self.is_ready).then_some(self.pause.again_ms)
    }

    /// Accepts the connections that are waiting, then closes the listeners.
    pub fn close(&mut self, now: Moment, mut accept_client: impl FnMut(OwnedFd) -> bool) {
        self.is_ready = true;
        for _ in 0..CLOSING_TURNS * self.listeners.len() {
            self.accept(now, &mut accept_client);
            if !self.is_ready || now.monotonic_ms < self.pause.again_ms {
                break;
            }
        }
        self.listeners.clear();
    }
}

/// Accepts connections from one listener, at most `limit`. Returns whether more may be waiting.
fn accept_from(
    listener: &OwnedFd,
    limit: usize,
    now: Moment,
    pause: &mut AcceptPause,
    accept_client: &mut impl FnMut(OwnedFd) -> bool,
) -> bool {
    for _ in 0..limit {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => {
                if !accept_client(socket) {
                    pause.again_ms = now.monotonic_ms + WAIT_MS;
                    return true;
                }
            }
            Err(Errno::AGAIN) => return false,
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                pause.begin(now, error);
                return true;
            }
            // The error concerns only this connection, for example because the client has reset it.
            Err(_) => {}
        }
    }
    true
}
