//! A shard's listeners and its clients' sockets: one epoll set, read in batches.
//!
//! Sockets are registered once, edge-triggered. One read per readable socket and turn, into a buffer that all
//! share; a connection keeps bytes of its own only while a request is incomplete. One write per connection and
//! turn. What a request means is the handler's business.

use crate::http::connection::{Awaits, Connection, ConnectionState, Midway, Overdue};
use crate::http::head::Head;
use crate::http::operation::{Answer, Operation};
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::operate::request_timer::RequestTimer;
use crate::sale::ids::{Moment, Ticket};
use crate::server::acceptor::Acceptor;
use crate::server::client::{Client, remove, will_listen};
use crate::server::poller::{LISTENER, Poller};
use crate::server::subscribers::{Subscribers, Told};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use slab::Slab;
use std::io;
use std::task::{Context, Poll};

/// Bytes of one read.
pub const READ_BYTES: usize = 16 * 1024;
/// Clients that listen which are told something in one turn, so that a crowd of them does not hold up who buys.
const TOLD_PER_TURN: usize = 64;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// Its answer is written.
    Answered(Operation, Answer),
    /// Its answer will come by `answer`. The flag asks for JSON.
    Deciding {
        /// What was asked.
        operation: Operation,
        /// The answer must be JSON.
        json: bool,
    },
    /// Its client shall hear of the sale from now on, if one more may.
    Listening(Operation),
}

/// Decides what a request means: gets the ticket, the request and the style, and where to write.
pub trait Handler: FnMut(Ticket, &Head<'_>, Style, &mut Responder, &mut Vec<u8>) -> Handled {}
impl<H: FnMut(Ticket, &Head<'_>, Style, &mut Responder, &mut Vec<u8>) -> Handled> Handler for H {}

/// The listeners and the sockets of one shard.
pub struct Server {
    pub(crate) poller: Poller,
    pub(crate) acceptor: Acceptor,
    pub(crate) clients: Slab<Client>,
    pub(crate) clients_max: usize,
    pub(crate) generation: u32,
    pub(crate) responder: Responder,
    pub(crate) meter: RequestTimer,
    /// Clients to be read or gone on with.
    pub(crate) ready: Vec<usize>,
    /// Clients with something to write, or to be closed.
    pub(crate) dirty: Vec<usize>,
    /// Tickets that no client waits with any more.
    pub(crate) withdrawn: Vec<Ticket>,
    pub(crate) overdue: Overdue,
    pub(crate) subscribers: Subscribers,
    pub(crate) spare_buffers: Vec<Vec<u8>>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) is_draining: bool,
}

impl Server {
    /// Serves `clients_max` clients at once and counts in `meter`; `doorbell` wakes it too. Must be called on the executor
    /// that will run it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(doorbell: impl AsFd, clients_max: usize, meter: RequestTimer) -> io::Result<Self> {
        Ok(Server {
            poller: Poller::new(doorbell)?,
            acceptor: Acceptor::default(),
            clients: Slab::new(),
            clients_max,
            generation: 0,
            responder: Responder::default(),
            meter,
            ready: Vec::new(),
            dirty: Vec::new(),
            withdrawn: Vec::new(),
            overdue: Overdue::default(),
            // The others are for who buys.
            subscribers: Subscribers::new(clients_max / 2),
            spare_buffers: Vec::new(),
            scratch: vec![0; READ_BYTES],
            is_draining: false,
        })
    }

    /// Accepts from `listener`, too.
    ///
    /// # Errors
    /// No memory is left for the set.
    pub fn listen(&mut self, listener: OwnedFd) -> io::Result<()> {
        self.poller.add(&listener, LISTENER, EventFlags::IN)?;
        self.acceptor.add(listener);
        Ok(())
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Looks for sockets that are ready. Waits so long for one, or for the doorbell; the thread does nothing else then.
    pub fn look(&mut self, timeout_ms: u64) {
        self.poller.look(timeout_ms);
        for (key, flags) in self.poller.ready() {
            if key == LISTENER {
                self.acceptor.is_called();
                continue;
            }
            let Some(client) = self.clients.get_mut(key as usize) else { continue };
            if flags.contains(EventFlags::ERR) {
                remove(&mut self.clients, &mut self.withdrawn, key as usize);
                continue;
            }
            let connection = &mut client.connection;
            connection.hung_up |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            connection.readable |= flags.contains(EventFlags::IN) || connection.hung_up;
            client.queue(key as usize, &mut self.ready);
            let is_writable = flags.contains(EventFlags::OUT);
            if is_writable && !client.connection.output.is_empty() && !client.is_dirty {
                client.is_dirty = true;
                self.dirty.push(key as usize);
            }
        }
    }

    /// Waits in the executor until a socket is ready or the doorbell rings. To be followed by a look.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poller.poll_ready(cx)
    }

    /// Whether there is something to do without waiting.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty()
    }

    /// Accepts, reads what is readable and hands every whole request to `handler`. Returns whether there was any.
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

    /// Lets in who has come.
    fn accept(&mut self, now: Moment) {
        let mut acceptor = std::mem::take(&mut self.acceptor);
        acceptor.accept(now, |socket| self.welcome(socket, now));
        self.acceptor = acceptor;
    }

    fn welcome(&mut self, socket: OwnedFd, now: Moment) {
        if self.clients.len() < self.clients_max {
            // Out of memory for the set: the client hears it by the closing of its connection.
            let _ = self.insert(socket, Connection::new(now.monotonic_ms));
            return;
        }
        let mut refusal = Vec::new();
        self.responder.set_request_id(None);
        self.meter.refused(self.responder.problem(Problem::TooManyConnections, Style::default(), &mut refusal));
        // One try each: a client that is not served is not waited for either.
        let _ = send(&socket, &refusal, SendFlags::NOSIGNAL);
        let _ = shutdown(&socket, Shutdown::Write);
        let _ = recv(&socket, &mut self.scratch[..], RecvFlags::empty());
    }

    /// Takes a client in; returns its key.
    fn insert(&mut self, socket: OwnedFd, connection: Connection) -> io::Result<usize> {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        self.poller.add(&socket, key as u64, flags)?;
        entry.insert(Client { socket, generation: self.generation, connection, is_ready: false, is_dirty: false });
        Ok(key)
    }

    /// When accepting goes on, if it rests or there is more to accept.
    pub fn accepts_again_ms(&self) -> Option<u64> {
        self.acceptor.again_ms()
    }

    /// Gives a decided request its answer, unless the client has gone. `write` writes it.
    pub fn answer(
        &mut self,
        ticket: Ticket,
        now: Moment,
        write: impl FnOnce(Style, &mut Responder, &mut Vec<u8>) -> Answer,
    ) {
        self.responder.set_time(now.unix_ms);
        let key = (ticket.0 & 0xffff_ffff) as usize;
        let Some(client) = self.clients.get_mut(key) else { return };
        let connection = &mut client.connection;
        if u64::from(client.generation) != ticket.0 >> 32 || connection.state != ConnectionState::Deciding {
            return;
        }
        if connection.output.capacity() == 0 {
            connection.output = self.spare_buffers.pop().unwrap_or_default();
        }
        let style = Style { keep_alive: connection.style.keep_alive && !self.is_draining, ..connection.style };
        let trace = connection.trace.take();
        self.responder.set_request_id(trace.as_ref().and_then(|trace| trace.request_id.as_deref()));
        let answer = write(style, &mut self.responder, &mut connection.output);
        self.meter.answered(connection.operation, answer, connection.began_us);
        connection.state = if style.keep_alive { ConnectionState::Reading } else { ConnectionState::Closing };
        if !connection.input.is_empty() || connection.readable || connection.ended {
            client.queue(key, &mut self.ready);
        }
        self.conclude(key, now);
    }

    /// Tells clients that listen, and whose turn it is, what is new to them; `write` writes it.
    pub fn tell_subscribers(&mut self, now: Moment, mut write: impl FnMut(&mut Told, &mut Vec<u8>)) {
        for _ in 0..TOLD_PER_TURN {
            let Some(mut subscriber) = self.subscribers.next(now.monotonic_ms) else { return };
            let key = subscriber.key;
            let is_it = |client: &&mut Client| client.generation == subscriber.generation;
            let Some(client) = self.clients.get_mut(key).filter(is_it) else { continue };
            if client.connection.state != ConnectionState::Listening {
                continue;
            }
            // Who has not taken the last news hears how things stand when it has.
            if client.connection.output.is_empty() || subscriber.told.is_nothing() {
                write(&mut subscriber.told, &mut client.connection.output);
            }
            self.subscribers.go_on(subscriber, now.monotonic_ms);
            self.conclude(key, now);
        }
    }

    /// Clients that listen to the sale.
    pub fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Ends what has waited too long. To be called about once a second.
    pub fn sweep(&mut self, now: Moment) {
        let overdue = |(key, client): (usize, &mut Client)| {
            client.connection.overdue(now.monotonic_ms).map(|awaits| (key, awaits))
        };
        let overdue: Vec<_> = self.clients.iter_mut().filter_map(overdue).collect();
        for (key, awaits) in overdue {
            let problem = match awaits {
                Awaits::Request | Awaits::Write | Awaits::News | Awaits::HangUp => {
                    remove(&mut self.clients, &mut self.withdrawn, key);
                    continue;
                }
                Awaits::Head | Awaits::Body => Problem::TimedOut,
                Awaits::Decision => Problem::Overdue,
            };
            if awaits == Awaits::Decision {
                self.withdrawn.push(self.clients[key].ticket(key));
            }
            let connection = &mut self.clients[key].connection;
            let trace = connection.trace.take();
            self.responder.set_request_id(trace.as_ref().and_then(|trace| trace.request_id.as_deref()));
            let answer = self.responder.problem(problem, Style::default(), &mut connection.output);
            match awaits {
                Awaits::Decision => {
                    self.meter.answered(connection.operation, answer, connection.began_us);
                    self.overdue.count += 1;
                    self.overdue.example = self.overdue.example.take().or(trace);
                }
                _ => self.meter.refused(answer),
            }
            // Closed in any case: a late decision must not meet the next request.
            connection.state = ConnectionState::Closing;
            self.conclude(key, now);
        }
        self.clients
            .iter_mut()
            .filter(|(_, client)| client.connection.is_idle())
            .for_each(|(_, client)| client.connection.shrink());
    }

    /// Accepts who already waits, then nobody; lets go of idle connections, and of the others after their answer.
    /// Whoever has sent something that was not read yet is still served.
    pub fn drain(&mut self, now: Moment) {
        self.is_draining = true;
        let mut acceptor = std::mem::take(&mut self.acceptor);
        acceptor.close(now, |socket| self.welcome(socket, now));
        self.subscribers.clear();
        for (key, client) in &mut self.clients {
            if client.connection.state == ConnectionState::Listening {
                client.connection.state = ConnectionState::Closing;
            }
            client.connection.readable = true;
            client.queue(key, &mut self.ready);
        }
    }

    /// Whether nobody waits for a decision, and every answer is written as far as its client takes it.
    pub fn is_still(&self) -> bool {
        self.dirty.is_empty()
            && self.clients.iter().all(|(_, client)| client.connection.state != ConnectionState::Deciding)
    }

    /// The listeners.
    pub fn listeners(&self) -> &[OwnedFd] {
        self.acceptor.listeners()
    }

    /// The clients, none of which may wait for a decision, and what each is in the middle of.
    pub fn clients(&self) -> impl Iterator<Item = (&OwnedFd, Option<Midway>)> {
        self.clients.iter().map(|(_, client)| (&client.socket, client.connection.midway()))
    }

    /// Goes on with a client of another process.
    ///
    /// # Errors
    /// No memory is left for the set.
    pub fn adopt(&mut self, socket: OwnedFd, midway: Option<Midway>, now: Moment) -> io::Result<()> {
        let connection = match midway {
            None => Connection::new(now.monotonic_ms),
            Some(midway) => Connection::resume(midway, now.monotonic_ms),
        };
        let key = self.insert(socket, connection)?;
        let client = &mut self.clients[key];
        client.queue(key, &mut self.ready);
        if client.connection.state == ConnectionState::Listening {
            will_listen(&client.socket);
            self.subscribers.add(key, client.generation);
        }
        self.conclude(key, now);
        Ok(())
    }

    /// Requests that were told to ask again, since the last call.
    pub fn overdue(&mut self) -> Option<Overdue> {
        (self.overdue.count > 0).then(|| std::mem::take(&mut self.overdue))
    }

    /// Tickets of requests whose clients have gone, or were told to ask again, since the last call.
    pub fn withdrawn(&mut self) -> impl Iterator<Item = Ticket> {
        self.withdrawn.drain(..)
    }

    /// Whether every request has its answer, and every answer is written.
    pub fn is_drained(&self) -> bool {
        self.clients.iter().all(|(_, client)| client.connection.state == ConnectionState::Lingering)
    }
}
