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
use crate::http::site::Site;
use crate::operate::exemplars::SampledRequest;
use crate::operate::request_timer::RequestTimer;
use crate::sale::code::Code;
use crate::sale::command::Withdrawal;
use crate::sale::ids::{ItemId, Moment, Ticket};
use crate::server::acceptor::Acceptor;
use crate::server::admission::Admission;
use crate::server::client::{ClientTable, LostClients, configure_event_stream};
use crate::server::item_pages::DRAWINGS_CHECKSUM;
use crate::server::poller::{LISTENER, Poller};
use crate::server::spare_buffers::SpareBuffers;
use crate::server::status_pages::Facts;
use crate::server::subscribers::Subscribers;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes that one read takes at most.
pub const READ_BYTES: usize = 16 * 1024;
/// Subscribers that one turn serves at most, so that many subscribers do not delay the buyers.
const EVENTS_PER_TURN: usize = 64;
/// Sockets and further requests that one turn reads at most, where 4 KiB of answers count as one request. With the answers
/// to all of them, a turn takes about 1 ms.
pub const WORK_PER_TURN: usize = 128;
/// Connections that one turn closes or answers at most because their deadline has passed.
const TIMEOUTS_PER_TURN: usize = 64;

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
        /// Item of the request, whose owner decides it. `None` if the client asks for any item.
        item: Option<ItemId>,
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
    pub(crate) admission: Admission,
    pub(crate) clients: ClientTable,
    /// Time after which a connection without a request is closed.
    pub(crate) idle_ms: u64,
    pub(crate) responder: Responder,
    pub(crate) request_timer: RequestTimer,
    /// Keys of clients to read, or whose kept bytes can be processed.
    pub(crate) ready: Vec<usize>,
    /// Work of this turn so far, in the unit of [`WORK_PER_TURN`].
    pub(crate) work: usize,
    /// Keys of clients whose sockets are not in the epoll set yet.
    pub(crate) newcomers: Vec<usize>,
    /// Keys of clients to write to or to close.
    pub(crate) dirty: Vec<usize>,
    /// This shard has closed as many connections in this turn as it may, and there are still too many.
    pub(crate) has_excess: bool,
    /// Monotonic time in ms from which on an eviction is logged again.
    pub(crate) next_line_ms: u64,
    pub(crate) overdue: Overdue,
    pub(crate) subscribers: Subscribers,
    pub(crate) spare_buffers: SpareBuffers,
    pub(crate) scratch: Vec<u8>,
    pub(crate) is_draining: bool,
}

impl Server {
    /// Creates a server for the clients that `admission` admits, whose doorbell wakes it from a wait. It records requests
    /// in `request_timer`. Web pages of these `origins` may use the API. `site` is what it offers. A connection without a
    /// request is closed after `idle_timeout`. Call it on the executor that will run the server.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(
        admission: Admission,
        request_timer: RequestTimer,
        origins: Origins,
        site: Site,
        idle_timeout: Duration,
    ) -> io::Result<Self> {
        // Now, so that no request waits for the drawings.
        LazyLock::force(&DRAWINGS_CHECKSUM);
        let idle_ms = idle_timeout.as_millis() as u64;
        Ok(Server {
            poller: Poller::new(admission.doorbell())?,
            acceptor: Acceptor::default(),
            clients: ClientTable::new(admission.shard(), idle_ms, admission.addresses().cloned()),
            admission,
            idle_ms,
            responder: Responder::new(origins, site, idle_timeout),
            request_timer,
            ready: Vec::new(),
            newcomers: Vec::new(),
            work: 0,
            dirty: Vec::new(),
            has_excess: false,
            next_line_ms: 0,
            overdue: Overdue::default(),
            subscribers: Subscribers::default(),
            spare_buffers: SpareBuffers::default(),
            scratch: vec![0; READ_BYTES],
            is_draining: false,
        })
    }

    /// Adds a listener to accept connections from.
    ///
    /// # Errors
    /// The kernel has no memory left for the epoll set.
    pub fn listen(&mut self, listener: OwnedFd) -> io::Result<()> {
        self.poller.add_listener(&listener)?;
        self.acceptor.add(listener);
        Ok(())
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.clients.count()
    }

    /// Lets `waker` end a wait when it becomes readable.
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn wake_by(&self, waker: impl AsFd) -> io::Result<()> {
        self.poller.add_waker(waker)
    }

    /// Polls for sockets that are ready, and blocks the thread up to `timeout_ms` until there is one or the doorbell
    /// rings.
    pub fn poll(&mut self, timeout_ms: u64) {
        self.register_newcomers();
        self.poller.poll(timeout_ms);
        for (key, flags) in self.poller.ready() {
            if key == LISTENER {
                self.acceptor.set_ready();
                continue;
            }
            let Some(client) = self.clients.get_mut(key as usize) else { continue };
            if flags.contains(EventFlags::ERR) {
                self.clients.remove(key as usize);
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

    /// Waits in the executor until a socket is ready or a waker is readable. Call `poll` afterwards.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.register_newcomers();
        self.poller.poll_ready(cx)
    }

    /// Returns whether there are sockets to read, to write or to close without waiting, or requests and answers that
    /// have lost their clients.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.clients.has_lost_none() || self.has_excess
    }

    /// Reads the readable sockets, accepts connections, and passes every complete request to `handler`.
    pub fn serve(&mut self, now: Moment, handler: &mut impl Handler) {
        self.responder.set_time(now.unix_ms);
        let mut ready = std::mem::take(&mut self.ready);
        let mut served = 0;
        self.work = 0;
        while served < ready.len() && self.work < WORK_PER_TURN {
            self.read(ready[served], now, handler);
            served += 1;
        }
        // The next turn continues with the sockets that are left.
        ready.drain(..served);
        ready.append(&mut self.ready);
        self.ready = ready;
        // After reading, so that a connection whose request has arrived does not count as idle.
        self.accept(now);
        self.read_newcomers(now, handler);
    }

    /// Reads the clients that this turn has accepted, as far as it may: most have sent their request already.
    fn read_newcomers(&mut self, now: Moment, handler: &mut impl Handler) {
        for place in 0..self.newcomers.len() {
            let key = self.newcomers[place];
            if self.work < WORK_PER_TURN
                && let Some(client) = self.clients.get_mut(key)
            {
                client.connection.readable = true;
                self.read(key, now, handler);
            }
        }
    }

    /// Adds a client, and returns its key.
    pub(crate) fn insert(&mut self, socket: OwnedFd, connection: Connection) -> usize {
        let key = self.clients.insert(socket, connection);
        self.newcomers.push(key);
        key
    }

    /// Adds the sockets of new clients to the epoll set, unless they are closed already: a client that sends one request
    /// is often answered and gone within one turn. What such a socket has received meanwhile is reported by the next poll.
    fn register_newcomers(&mut self) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        for key in self.newcomers.drain(..) {
            let client = self.clients.get_mut(key).filter(|client| !client.is_registered);
            let Some(client) = client else { continue };
            client.is_registered = true;
            // If the kernel has no memory left for the epoll set, the connection is closed.
            if self.poller.add(&client.socket, key as u64, flags).is_err() {
                self.clients.remove(key);
            }
        }
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
        let client = self.clients.of_ticket(ticket);
        let Some((key, client)) = client.filter(|(_, client)| client.connection.state == ConnectionState::Deciding)
        else {
            self.clients.lost().undelivered.extend(grant);
            return;
        };
        let connection = &mut client.connection;
        if connection.output.capacity() == 0 {
            connection.output = self.spare_buffers.take();
        }
        let style = Style { keep_alive: connection.style.keep_alive && !self.is_draining, ..connection.style };
        let trace = connection.trace.take();
        set_request(&mut self.responder, trace.as_deref());
        connection.unsent_grant = grant.map(|code| UnsentGrant { code, begins: connection.output.len() });
        let answer = write(style, &mut self.responder, &mut connection.output);
        self.request_timer.answered(connection.operation, answer, connection.began_us, sampled(trace.as_deref()));
        connection.state = if style.keep_alive { ConnectionState::Reading } else { ConnectionState::Closing };
        if !connection.input.is_empty() || connection.readable || connection.ended {
            client.queue(key, &mut self.ready);
        }
        self.schedule_write(key, now);
    }

    /// Serves the subscribers that are due.
    pub fn send_events(&mut self, facts: &Facts<'_>, now: Moment) {
        if self.subscribers.next_ms().is_none_or(|due_ms| now.monotonic_ms < due_ms) {
            return;
        }
        self.subscribers.events.update(facts);
        for _ in 0..EVENTS_PER_TURN {
            let Some(mut subscriber) = self.subscribers.next(now.monotonic_ms) else { return };
            let key = subscriber.key;
            let client = self.clients.get_mut(key);
            let Some(client) = client.filter(|client| client.generation == subscriber.generation) else { continue };
            if client.connection.state != ConnectionState::Listening {
                continue;
            }
            // A subscriber that has not read the last events is skipped. It gets the current state later.
            if client.connection.output.is_empty() || subscriber.sent.is_nothing() {
                let (sent, output) = (&mut subscriber.sent, &mut client.connection.output);
                self.subscribers.events.write(sent, now.monotonic_ms, output);
            }
            self.subscribers.requeue(subscriber, now.monotonic_ms);
            self.schedule_write(key, now);
        }
    }

    /// Returns the subscribers.
    pub fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Answers or closes connections whose deadline has passed, up to the limit of one turn, and frees buffers that are
    /// not needed. Call it about once per second, or in the next turn if it returns true, which means that there are
    /// more such connections.
    pub fn sweep(&mut self, now: Moment) -> bool {
        // The event of a shared listener can have gone to a process that has ended meanwhile.
        self.acceptor.set_ready();
        for _ in 0..TIMEOUTS_PER_TURN {
            let Some((key, awaits)) = self.clients.timeouts().due(now.monotonic_ms) else {
                self.spare_buffers.trim();
                return false;
            };
            self.time_out(key, awaits, now);
        }
        true
    }

    fn time_out(&mut self, key: usize, awaits: WaitingFor, now: Moment) {
        let problem = match awaits {
            WaitingFor::Request | WaitingFor::Write | WaitingFor::Event | WaitingFor::Close => {
                return self.clients.remove(key);
            }
            WaitingFor::Head | WaitingFor::Body => Problem::TimedOut,
            WaitingFor::Decision => Problem::Overdue,
        };
        let client = &mut self.clients[key];
        let (ticket, item) = (client.ticket(key), client.connection.item);
        let connection = &mut client.connection;
        let trace = connection.trace.take();
        set_request(&mut self.responder, trace.as_deref());
        let answer = self.responder.problem(problem, Style::default(), &mut connection.output);
        // Close the connection in any case, so that a late decision does not answer the next request.
        connection.state = ConnectionState::Closing;
        if awaits == WaitingFor::Decision {
            self.request_timer.answered(connection.operation, answer, connection.began_us, sampled(trace.as_deref()));
            self.overdue.count += 1;
            self.overdue.example = self.overdue.example.take().or(trace);
            self.clients.lost().withdrawn.push((ticket, item, Withdrawal::Overdue));
        } else {
            self.request_timer.refused(answer);
        }
        self.clients.set_deadline(key, now);
        self.schedule_write(key, now);
    }

    /// Starts the drain: accepts the connections that are waiting, closes the listeners, and ends subscriptions. Idle
    /// connections are closed, others after their answer. Requests that have arrived and are not read yet are still
    /// served.
    pub fn drain(&mut self, now: Moment) {
        self.is_draining = true;
        let mut acceptor = std::mem::take(&mut self.acceptor);
        acceptor.close(now, |socket| self.accept_client(socket, now));
        self.subscribers.clear();
        for (key, client) in self.clients.iter_mut() {
            if client.connection.state == ConnectionState::Listening {
                client.connection.state = ConnectionState::Closing;
            }
            client.connection.readable = true;
            client.queue(key, &mut self.ready);
        }
    }

    /// Reports whether no client waits for a decision, every answer is written as far as its client reads, and the shard
    /// knows of every lost client. It looks at all clients: call it only while paused.
    pub fn is_idle_now(&self) -> bool {
        self.dirty.is_empty()
            && self.clients.has_lost_none()
            && self.clients.iter().all(|(_, client)| client.connection.state != ConnectionState::Deciding)
    }

    /// Stops waiting for connections, because another process has the same listeners and accepts from them. A new
    /// connection wakes only one of two processes that wait.
    pub fn pause_listening(&self) {
        self.acceptor.listeners().iter().for_each(|listener| self.poller.remove_listener(listener));
    }

    /// Waits for connections again.
    pub fn resume_listening(&mut self) {
        self.acceptor.set_ready();
        self.pause_listening();
        // An error means that the kernel has no memory: then each sweep accepts.
        self.acceptor.listeners().iter().for_each(|listener| _ = self.poller.add_listener(listener));
    }

    /// Publishes the numbers of connections.
    pub fn publish(&self) {
        self.admission.numbers().publish(self.clients.count(), self.subscribers.count(), self.clients.idle_since());
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
    pub fn adopt(&mut self, socket: OwnedFd, midway: Option<ConnectionSnapshot>, now: Moment) {
        let mut connection = match midway {
            None => Connection::new(now.monotonic_ms, self.idle_ms),
            Some(midway) => Connection::resume(midway, now.monotonic_ms, self.idle_ms),
        };
        // The old process may have read requests from it.
        connection.is_used = true;
        let key = self.insert(socket, connection);
        let client = &mut self.clients[key];
        client.queue(key, &mut self.ready);
        if client.connection.state == ConnectionState::Listening {
            configure_event_stream(&client.socket);
            self.subscribers.add(key, client.generation);
        }
        self.schedule_write(key, now);
    }

    /// Returns the requests since the last call that were not decided in time, and were answered with
    /// [`Problem::Overdue`].
    pub fn overdue(&mut self) -> Option<Overdue> {
        (self.overdue.count > 0).then(|| std::mem::take(&mut self.overdue))
    }

    /// Returns the requests and answers that have lost their clients. The caller drains both lists.
    pub fn lost(&mut self) -> &mut LostClients {
        self.clients.lost()
    }

    /// Reports whether every request is answered, and every answer is written.
    pub fn is_drained(&self) -> bool {
        self.clients.timeouts().count(WaitingFor::Close) == self.clients.count()
    }
}

fn sampled(trace: Option<&TraceHeaders>) -> Option<SampledRequest> {
    SampledRequest::of(trace?.traceparent.as_deref()?)
}

/// Sets the request of the next response, whose head is no longer there.
fn set_request(responder: &mut Responder, trace: Option<&TraceHeaders>) {
    let request_id = trace.and_then(|trace| trace.request_id.as_deref());
    responder.set_request(request_id, trace.and_then(|trace| trace.origin.as_deref()));
}
