//! New connections: a shard accepts them, closes idle connections in their favour when there are too many, or refuses
//! them. The rule is in `admission`.

use crate::http::connection::{Connection, ConnectionState};
use crate::http::problem::Problem;
use crate::http::response::Style;
use crate::sale::ids::Moment;
use crate::server::admission::Admitted;
use crate::server::sockets::Server;
use rustix::fd::OwnedFd;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// Connections that one turn closes at most because there are too many, besides those for the connections that it
/// accepts.
const EVICTIONS_PER_TURN: usize = 64;
/// Idle connections that are considered for one new connection.
const CANDIDATES_MAX: usize = 8;
/// Milliseconds between two log lines about evictions.
const LINE_MS: u64 = 60_000;

impl Server {
    /// Closes idle connections if there are too many, and accepts waiting ones.
    pub(crate) fn accept(&mut self, now: Moment) {
        self.admission.follow_others(self.clients.count(), now.monotonic_ms);
        self.close_excess(now);
        let mut acceptor = std::mem::take(&mut self.acceptor);
        if self.must_wait() {
            acceptor.wait(now);
        }
        acceptor.accept(now, |socket| self.accept_client(socket, now));
        let must_yield = acceptor.must_yield();
        self.acceptor = acceptor;
        if must_yield {
            // The kernel wakes the shard that has waited longest since it was added.
            self.resume_listening();
        }
    }

    fn must_wait(&self) -> bool {
        self.admission.must_wait(self.clients.count(), self.clients.idle_since().is_some())
    }

    /// Adds a client for a new connection, or refuses it. Returns whether this turn may accept another one.
    pub(crate) fn accept_client(&mut self, socket: OwnedFd, now: Moment) -> bool {
        if let Some(limit) = self.admission.addresses()
            && let Some(address) = limit.of_client(&socket)
            && !limit.has_place(address)
        {
            self.refuse(&socket);
            return true;
        }
        let place = self.admission.place(self.clients.count(), self.clients.idle_since());
        if place.is_none() {
            self.refuse(&socket);
            return true;
        }
        // If the clients of all candidates have sent something, one is closed in the next turn, which reads it first.
        let is_early = place == Some(Admitted::OfOwnIdle) && !self.evict(now);
        self.insert(socket, Connection::new(now.monotonic_ms, self.idle_ms));
        self.publish();
        if let Some(Admitted::OfIdleOn(shard)) = place {
            self.admission.wake(shard);
        }
        !is_early && !self.must_wait()
    }

    /// Returns whether there are too many connections, and this shard must close one.
    pub fn must_evict(&mut self) -> bool {
        if !self.admission.is_near_limit(self.clients.count()) {
            return false;
        }
        self.admission.read_others();
        self.excess() > 0
    }

    fn excess(&self) -> usize {
        self.admission.excess(self.clients.count(), self.clients.idle_since())
    }

    /// Closes connections of this shard as long as there are too many, and the longest idle one is here.
    fn close_excess(&mut self, now: Moment) {
        self.has_excess = false;
        for _ in 0..EVICTIONS_PER_TURN {
            if self.excess() == 0 || !self.evict(now) {
                return;
            }
        }
        self.has_excess = self.excess() > 0;
    }

    /// Closes the connection that has waited longest for its client. Returns whether there is one. A connection whose
    /// client has sent something is not closed. If it has had no request, its client is told why: when all others are
    /// in use, it is the newest one.
    fn evict(&mut self, now: Moment) -> bool {
        let candidates: [Option<usize>; CANDIDATES_MAX] = {
            let mut evictable = self.clients.timeouts().evictable();
            std::array::from_fn(|_| evictable.next().map(|(key, _)| key))
        };
        for key in candidates.into_iter().flatten() {
            let client = &mut self.clients[key];
            let is_queued = client.is_ready || client.is_dirty;
            if is_queued || !client.connection.awaits().is_evictable() {
                continue;
            }
            // The last poll can have been before the request arrived. What a lingering client sends is discarded.
            if client.connection.state != ConnectionState::Lingering
                && recv(&client.socket, &mut [0], RecvFlags::PEEK).is_ok_and(|(_, bytes)| bytes > 0)
            {
                client.connection.readable = true;
                client.queue(key, &mut self.ready);
                continue;
            }
            let is_refused = !client.connection.is_used && client.connection.state == ConnectionState::Reading;
            let socket = self.clients.take(key);
            if is_refused {
                self.refuse(&socket);
            }
            self.admission.numbers().evicted.add(1);
            if now.monotonic_ms >= self.next_line_ms {
                self.next_line_ms = now.monotonic_ms + LINE_MS;
                tracing::warn!(
                    "there are as many connections as --max-connections: the longest idle one is closed for each new one"
                );
            }
            return true;
        }
        false
    }

    fn refuse(&mut self, socket: &OwnedFd) {
        let mut refusal = Vec::new();
        self.responder.set_request(None, None);
        self.request_timer.refused(self.responder.problem(Problem::TooManyConnections, Style::default(), &mut refusal));
        // Try each call once: the server does not wait for a client that it refuses.
        let _ = send(socket, &refusal, SendFlags::NOSIGNAL);
        let _ = shutdown(socket, Shutdown::Write);
        let _ = recv(socket, &mut self.scratch[..], RecvFlags::empty());
    }
}
