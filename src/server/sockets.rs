//! A shard's listeners and its clients' sockets: one epoll set, read in batches. The handler decides what a request
//! means.
//!
//! Each socket is registered once, edge-triggered. A turn reads each readable socket once, into a buffer that all
//! connections share, and writes to each connection once. A connection has a buffer of its own only while a request is
//! incomplete.

use crate::http::connection::{
    Connection, ConnectionSnapshot, ConnectionState, Overdue, TraceHeaders, UnsentGrant, WaitingFor,
};
use crate::http::head::Head;
use crate::http::operation::{Answer, Operation};
use crate::http::origin::Origins;
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::operate::request_timer::RequestTimer;
use crate::sale::code::Code;
use crate::sale::command::Withdrawal;
use crate::sale::ids::{ItemId, Moment, Ticket};
use crate::server::acceptor::Acceptor;
use crate::server::client::{Client, LostClients, configure_event_stream, remove};
use crate::server::item_pages::DRAWINGS_CHECKSUM;
use crate::server::poller::{LISTENER, Poller};
use crate::server::subscribers::{SentState, Subscribers};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use slab::Slab;
use std::io;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes that one read takes at most.
pub const READ_BYTES: usize = 16 * 1024;
/// Subscribers that one turn serves at most, so that many subscribers do not delay the buyers.
const EVENTS_PER_TURN: usize = 64;

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The answer is written.
    Answered(Operation, Answer),
    /// The answer is written, and grants a checkout with this code.
    Granted(Operation, Answer, Code),
    /// The answer follows by a call of `answer`.
    Deciding {
        /// Kind of the request.
        operation: Operation,
        /// The answer must be JSON.
        json: bool,
        /// Item of the request, whose owner decides it.
        item: ItemId,
    },
    /// The client subscribes to `/events`, unless there are too many subscribers.
    Listening(Operation),
}

/// A function that decides what a request means. It gets the ticket, the request, the style of the answer, and the
/// buffer for the answer.
pub trait Handler: FnMut(Ticket, &Head<'_>, Style, &mut Responder, &mut Vec<u8>) -> Handled {}
impl<H: FnMut(Ticket, &Head<'_>, Style, &mut Responder, &mut Vec<u8>) -> Handled> Handler for H {}

/// The listeners and the clients of one shard.
pub struct Server {
    pub(crate) poller: Poller,
    pub(crate) acceptor: Acceptor,
    pub(crate) clients: Slab<Client>,
    pub(crate) clients_max: usize,
    /// Time after which a connection without a request is closed.
    pub(crate) idle_ms: u64,
    pub(crate) generation: u32,
    pub(crate) responder: Responder,
    pub(crate) request_timer: RequestTimer,
    /// Keys of clients to read, or whose kept bytes can be processed.
    pub(crate) ready: Vec<usize>,
    /// Keys of clients to write to or to close.
    pub(crate) dirty: Vec<usize>,
    /// Requests and answers that have lost their clients since the last turn.
    pub(crate) lost: LostClients,
    pub(crate) overdue: Overdue,
    pub(crate) subscribers: Subscribers,
    pub(crate) spare_buffers: Vec<Vec<u8>>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) is_draining: bool,
}

impl Server {
    /// Creates a server for `clients_max` clients, which records requests in `request_timer`. `doorbell` wakes it from
    /// a wait. Web pages of these `origins` may use the API. A connection without a request is closed after
    /// `idle_timeout`. Call it on the executor that will run the server.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(
        doorbell: impl AsFd,
        clients_max: usize,
        request_timer: RequestTimer,
        origins: Origins,
        idle_timeout: Duration,
    ) -> io::Result<Self> {
        // Now, so that no request waits for the drawings.
        LazyLock::force(&DRAWINGS_CHECKSUM);
        Ok(Server {
            poller: Poller::new(doorbell)?,
            acceptor: Acceptor::default(),
            clients: Slab::new(),
            clients_max,
            idle_ms: idle_timeout.as_millis() as u64,
            generation: 0,
            responder: Responder::new(origins, idle_timeout),
            request_timer,
            ready: Vec::new(),
            dirty: Vec::new(),
            lost: LostClients::default(),
            overdue: Overdue::default(),
            // The other half of the connections is reserved for buyers.
            subscribers: Subscribers::new(clients_max / 2),
            spare_buffers: Vec::new(),
            scratch: vec![0; READ_BYTES],
            is_draining: false,
        })
    }

    /// Adds a listener to accept connections from.
    ///
    /// # Errors
    /// The kernel has no memory left for the epoll set.
    pub fn listen(&mut self, listener: OwnedFd) -> io::Result<()> {
        self.poller.add(&listener, LISTENER, EventFlags::IN)?;
        self.acceptor.add(listener);
        Ok(())
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Polls for sockets that are ready, and blocks the thread up to `timeout_ms` until there is one or the doorbell
    /// rings.
    pub fn poll(&mut self, timeout_ms: u64) {
        self.poller.poll(timeout_ms);
        for (key, flags) in self.poller.ready() {
            if key == LISTENER {
                self.acceptor.set_ready();
                continue;
            }
            let Some(client) = self.clients.get_mut(key as usize) else { continue };
            if flags.contains(EventFlags::ERR) {
                remove(&mut self.clients, &mut self.lost, key as usize);
                continue;
            }
            let connection = &mut client.connection;
            connection.peer_closed |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            connection.readable |= flags.contains(EventFlags::IN) || connection.peer_closed;
            client.queue(key as usize, &mut self.ready);
            let is_writable = flags.contains(EventFlags::OUT);
            if is_writable && !client.connection.output.is_empty() && !client.is_dirty {
                client.is_dirty = true;
                self.dirty.push(key as usize);
            }
        }
    }

    /// Waits in the executor until a socket is ready or the doorbell rings. Call `look` afterwards.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poller.poll_ready(cx)
    }

    /// Returns whether there are sockets to read or to write without waiting, or requests and answers that have lost
    /// their clients.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.lost.is_empty()
    }

    /// Accepts connections, reads the readable sockets, and passes every complete request to `handler`. Returns whether
    /// any socket was readable.
    pub fn serve(&mut self, now: Moment, handler: &mut impl Handler) -> bool {
        self.responder.set_time(now.unix_ms);
        self.accept(now);
        let ready = std::mem::take(&mut self.ready);
        for &key in &ready {
            self.read(key, now, handler);
        }
        let any = !ready.is_empty();
        // Keep the larger of the two allocations.
        let mut ready = ready;
        ready.clear();
        ready.append(&mut self.ready);
        self.ready = ready;
        any
    }

    /// Accepts waiting connections.
    fn accept(&mut self, now: Moment) {
        let mut acceptor = std::mem::take(&mut self.acceptor);
        acceptor.accept(now, |socket| self.accept_client(socket, now));
        self.acceptor = acceptor;
    }

    fn accept_client(&mut self, socket: OwnedFd, now: Moment) {
        if self.clients.len() < self.clients_max {
            // If the kernel has no memory left for the epoll set, the connection is closed.
            let _ = self.insert(socket, Connection::new(now.monotonic_ms, self.idle_ms));
            return;
        }
        let mut refusal = Vec::new();
        self.responder.set_request(None, None);
        self.request_timer.refused(self.responder.problem(Problem::TooManyConnections, Style::default(), &mut refusal));
        // Try each call once: the server does not wait for a client that it refuses.
        let _ = send(&socket, &refusal, SendFlags::NOSIGNAL);
        let _ = shutdown(&socket, Shutdown::Write);
        let _ = recv(&socket, &mut self.scratch[..], RecvFlags::empty());
    }

    /// Adds a client, and returns its key.
    fn insert(&mut self, socket: OwnedFd, connection: Connection) -> io::Result<usize> {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        self.poller.add(&socket, key as u64, flags)?;
        entry.insert(Client { socket, generation: self.generation, connection, is_ready: false, is_dirty: false });
        Ok(key)
    }

    /// Returns the monotonic time in ms at which to accept again, if connections may be waiting.
    pub fn accepts_again_ms(&self) -> Option<u64> {
        self.acceptor.again_ms()
    }

    /// Answers a request that has been decided. `write` writes the answer. `grant` is the code if the answer grants a
    /// checkout. If the client has disconnected or has been answered, such an answer is undelivered.
    pub fn answer(
        &mut self,
        ticket: Ticket,
        now: Moment,
        grant: Option<Code>,
        write: impl FnOnce(Style, &mut Responder, &mut Vec<u8>) -> Answer,
    ) {
        self.responder.set_time(now.unix_ms);
        let key = (ticket.0 & 0xffff_ffff) as usize;
        let waits = |client: &&mut Client| {
            u64::from(client.generation) == ticket.0 >> 32 && client.connection.state == ConnectionState::Deciding
        };
        let Some(client) = self.clients.get_mut(key).filter(waits) else {
            self.lost.undelivered.extend(grant);
            return;
        };
        let connection = &mut client.connection;
        if connection.output.capacity() == 0 {
            connection.output = self.spare_buffers.pop().unwrap_or_default();
        }
        let style = Style { keep_alive: connection.style.keep_alive && !self.is_draining, ..connection.style };
        let trace = connection.trace.take();
        set_request(&mut self.responder, trace.as_deref());
        connection.unsent_grant = grant.map(|code| UnsentGrant { code, begins: connection.output.len() });
        let answer = write(style, &mut self.responder, &mut connection.output);
        self.request_timer.answered(connection.operation, answer, connection.began_us);
        connection.state = if style.keep_alive { ConnectionState::Reading } else { ConnectionState::Closing };
        if !connection.input.is_empty() || connection.readable || connection.ended {
            client.queue(key, &mut self.ready);
        }
        self.schedule_write(key, now);
    }

    /// Serves the subscribers that are due. `write` writes the event, if there is one.
    pub fn send_events(&mut self, now: Moment, mut write: impl FnMut(&mut SentState, &mut Vec<u8>)) {
        for _ in 0..EVENTS_PER_TURN {
            let Some(mut subscriber) = self.subscribers.next(now.monotonic_ms) else { return };
            let key = subscriber.key;
            let is_it = |client: &&mut Client| client.generation == subscriber.generation;
            let Some(client) = self.clients.get_mut(key).filter(is_it) else { continue };
            if client.connection.state != ConnectionState::Listening {
                continue;
            }
            // A subscriber that has not read the last event is skipped. It gets the current state later.
            if client.connection.output.is_empty() || subscriber.sent.is_nothing() {
                write(&mut subscriber.sent, &mut client.connection.output);
            }
            self.subscribers.requeue(subscriber, now.monotonic_ms);
            self.schedule_write(key, now);
        }
    }

    /// Returns the subscribers.
    pub fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Answers or closes connections whose deadline has passed, and frees memory of idle ones. Call it about once per
    /// second.
    pub fn sweep(&mut self, now: Moment) {
        let overdue = |(key, client): (usize, &mut Client)| {
            client.connection.overdue(now.monotonic_ms).map(|awaits| (key, awaits))
        };
        let overdue: Vec<_> = self.clients.iter_mut().filter_map(overdue).collect();
        for (key, awaits) in overdue {
            let problem = match awaits {
                WaitingFor::Request | WaitingFor::Write | WaitingFor::Event | WaitingFor::Close => {
                    remove(&mut self.clients, &mut self.lost, key);
                    continue;
                }
                WaitingFor::Head | WaitingFor::Body => Problem::TimedOut,
                WaitingFor::Decision => Problem::Overdue,
            };
            if awaits == WaitingFor::Decision {
                let client = &self.clients[key];
                self.lost.withdrawn.push((client.ticket(key), client.connection.item, Withdrawal::Overdue));
            }
            let connection = &mut self.clients[key].connection;
            let trace = connection.trace.take();
            set_request(&mut self.responder, trace.as_deref());
            let answer = self.responder.problem(problem, Style::default(), &mut connection.output);
            match awaits {
                WaitingFor::Decision => {
                    self.request_timer.answered(connection.operation, answer, connection.began_us);
                    self.overdue.count += 1;
                    self.overdue.example = self.overdue.example.take().or(trace);
                }
                _ => self.request_timer.refused(answer),
            }
            // Close the connection in any case, so that a late decision does not answer the next request.
            connection.state = ConnectionState::Closing;
            self.schedule_write(key, now);
        }
        self.clients
            .iter_mut()
            .filter(|(_, client)| client.connection.is_idle())
            .for_each(|(_, client)| client.connection.shrink());
    }

    /// Starts the drain: accepts the connections that are waiting, closes the listeners, and ends subscriptions. Idle
    /// connections are closed, others after their answer. Requests that have arrived and are not read yet are still
    /// served.
    pub fn drain(&mut self, now: Moment) {
        self.is_draining = true;
        let mut acceptor = std::mem::take(&mut self.acceptor);
        acceptor.close(now, |socket| self.accept_client(socket, now));
        self.subscribers.clear();
        for (key, client) in &mut self.clients {
            if client.connection.state == ConnectionState::Listening {
                client.connection.state = ConnectionState::Closing;
            }
            client.connection.readable = true;
            client.queue(key, &mut self.ready);
        }
    }

    /// Reports whether no client waits for a decision, every answer is written as far as its client reads, and the shard
    /// knows of every lost client.
    pub fn is_idle_now(&self) -> bool {
        self.dirty.is_empty()
            && self.lost.is_empty()
            && self.clients.iter().all(|(_, client)| client.connection.state != ConnectionState::Deciding)
    }

    /// Returns the listeners.
    pub fn listeners(&self) -> &[OwnedFd] {
        self.acceptor.listeners()
    }

    /// Returns the clients, each with the state of its connection unless it is idle. No client may wait for a decision.
    pub fn clients(&self) -> impl Iterator<Item = (&OwnedFd, Option<ConnectionSnapshot>)> {
        self.clients.iter().map(|(_, client)| (&client.socket, client.connection.midway()))
    }

    /// Adds a client of the old process of an upgrade, and continues its connection.
    ///
    /// # Errors
    /// The kernel has no memory left for the epoll set.
    pub fn adopt(&mut self, socket: OwnedFd, midway: Option<ConnectionSnapshot>, now: Moment) -> io::Result<()> {
        let connection = match midway {
            None => Connection::new(now.monotonic_ms, self.idle_ms),
            Some(midway) => Connection::resume(midway, now.monotonic_ms, self.idle_ms),
        };
        let key = self.insert(socket, connection)?;
        let client = &mut self.clients[key];
        client.queue(key, &mut self.ready);
        if client.connection.state == ConnectionState::Listening {
            configure_event_stream(&client.socket);
            self.subscribers.add(key, client.generation);
        }
        self.schedule_write(key, now);
        Ok(())
    }

    /// Returns the requests since the last call that were not decided in time, and were answered with
    /// [`Problem::Overdue`].
    pub fn overdue(&mut self) -> Option<Overdue> {
        (self.overdue.count > 0).then(|| std::mem::take(&mut self.overdue))
    }

    /// Returns the requests and answers that have lost their clients. The caller drains both lists.
    pub fn lost(&mut self) -> &mut LostClients {
        &mut self.lost
    }

    /// Reports whether every request is answered, and every answer is written.
    pub fn is_drained(&self) -> bool {
        self.clients.iter().all(|(_, client)| client.connection.state == ConnectionState::Lingering)
    }
}

/// Sets the request of the next response, whose head is no longer there.
fn set_request(responder: &mut Responder, trace: Option<&TraceHeaders>) {
    let request_id = trace.and_then(|trace| trace.request_id.as_deref());
    responder.set_request(request_id, trace.and_then(|trace| trace.origin.as_deref()));
}
