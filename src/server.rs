//! A shard's listeners and its clients' sockets: one epoll set, read in batches.
//!
//! Sockets are registered once, edge-triggered. One read per readable socket and turn, into a buffer that all
//! share; a connection keeps bytes of its own only while a request is incomplete. One write per connection and
//! turn. What a request means is the handler's business.

use crate::acceptor::Acceptor;
use crate::client::{Client, remove, will_listen};
use crate::connection::{Awaits, Connection, Midway, Overdue, State, Step, Trace};
use crate::http::{HEAD_BYTES_MAX, Head, Method};
use crate::meter::Meter;
use crate::operation::{Answer, Operation};
use crate::poller::{LISTENER, Poller};
use crate::problem::Problem;
use crate::response::{Responder, Style};
use crate::subscribers::{Subscribers, Told};
use crate::types::{Moment, Ticket};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use slab::Slab;
use std::io;
use std::task::{Context, Poll};

/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// Bytes of one connection that are kept until they can be understood.
const AHEAD_BYTES_MAX: usize = 2 * HEAD_BYTES_MAX;
/// Unsent answers beyond which a connection's further requests wait.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;
/// Clients that listen which are told something in one turn, so that a crowd of them does not hold up who buys.
const TOLD_PER_TURN: usize = 64;
/// Answer buffers kept for use again.
const SPARE_BUFFERS_MAX: usize = 1024;

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
    poller: Poller,
    acceptor: Acceptor,
    clients: Slab<Client>,
    clients_max: usize,
    generation: u32,
    responder: Responder,
    meter: Meter,
    /// Clients to be read or gone on with.
    ready: Vec<usize>,
    /// Clients with something to write, or to be closed.
    dirty: Vec<usize>,
    /// Tickets that no client waits with any more.
    withdrawn: Vec<Ticket>,
    overdue: Overdue,
    subscribers: Subscribers,
    spare_buffers: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    is_draining: bool,
}

impl Server {
    /// Serves `clients_max` clients at once and counts in `meter`; `doorbell` wakes it too. Must be called on the executor
    /// that will run it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(doorbell: impl AsFd, clients_max: usize, meter: Meter) -> io::Result<Self> {
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

    fn read(&mut self, key: usize, now: Moment, handler: &mut impl Handler) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.is_ready = false;
        let connection = &mut client.connection;
        // However much is on its way, only so much is kept: whole heads fit, and bodies are not kept at all.
        let limit = AHEAD_BYTES_MAX.saturating_sub(connection.input.len()).min(READ_BYTES);
        let mut received = 0;
        if connection.readable && !connection.ended && limit > 0 {
            match recv(&client.socket, &mut self.scratch[..limit], RecvFlags::empty()) {
                Ok((_, 0)) => connection.ended = true,
                Ok((_, bytes)) => {
                    received = bytes;
                    connection.readable = bytes == limit || connection.hung_up;
                }
                Err(Errno::AGAIN) => connection.readable = false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    remove(&mut self.clients, &mut self.withdrawn, key);
                    return;
                }
            }
        }
        match connection.state {
            State::Reading if received > 0 || !connection.input.is_empty() => self.understand(key, received, handler),
            State::Deciding => connection.input.extend_from_slice(&self.scratch[..received]),
            _ => {}
        }
        let client = &mut self.clients[key];
        let connection = &mut client.connection;
        let has_output_room = connection.output.len() < OUTPUT_BYTES_MAX;
        if (connection.state == State::Reading && has_output_room || connection.state == State::Listening)
            && connection.ended
        {
            // Whatever is left is no whole request and never will be.
            connection.state = State::Closing;
        }
        let may_read_more = match connection.state {
            State::Reading => has_output_room,
            State::Deciding | State::Lingering => connection.input.len() < AHEAD_BYTES_MAX,
            State::Listening => true,
            State::Closing => false,
        };
        if connection.readable && !connection.ended && may_read_more {
            client.queue(key, &mut self.ready);
        }
        self.conclude(key, now);
    }

    /// Hands on every whole request in what the connection has kept and has just received.
    fn understand(&mut self, key: usize, received: usize, handler: &mut impl Handler) {
        let client = &mut self.clients[key];
        let ticket = client.ticket(key);
        let connection = &mut client.connection;
        let mut out = std::mem::take(&mut connection.output);
        if out.capacity() == 0 {
            out = self.spare_buffers.pop().unwrap_or_default();
        }
        let mut kept = std::mem::take(&mut connection.input);
        let bytes = if kept.is_empty() {
            &self.scratch[..received]
        } else {
            kept.extend_from_slice(&self.scratch[..received]);
            &kept[..]
        };
        let mut at = 0;
        let is_draining = self.is_draining;
        while connection.state == State::Reading && out.len() < OUTPUT_BYTES_MAX {
            let step = match connection.next(&bytes[at..]) {
                Ok((used, step)) => {
                    at += used;
                    step
                }
                Err(reject) => {
                    self.responder.set_request_id(None);
                    self.meter.refused(self.responder.problem(reject.into(), Style::default(), &mut out));
                    connection.state = State::Closing;
                    break;
                }
            };
            let (style, handled, began_us, trace) = match step {
                Step::More => break,
                Step::Again => continue,
                Step::SayContinue => {
                    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    continue;
                }
                Step::Request(head) => {
                    let style = Style {
                        is_http10: head.is_http10,
                        keep_alive: head.keep_alive && !is_draining,
                        head_only: head.method == Method::Head,
                        json: false,
                    };
                    let began_us = self.meter.began();
                    self.responder.set_request_id(head.request_id);
                    let handled = handler(ticket, &head, style, &mut self.responder, &mut out);
                    let trace = matches!(handled, Handled::Deciding { .. }).then(|| Trace::of(&head)).flatten();
                    (style, handled, began_us, trace)
                }
            };
            connection.understood();
            connection.state = match handled {
                Handled::Answered(operation, answer) => {
                    self.meter.answered(operation, answer, began_us);
                    if style.keep_alive { State::Reading } else { State::Closing }
                }
                Handled::Listening(operation) => {
                    let last = Style { keep_alive: false, ..style };
                    let answer = match self.subscribers.have_room() {
                        _ if is_draining => self.responder.problem(Problem::NotReady, last, &mut out),
                        true => self.responder.event_stream(style, &mut out),
                        false => self.responder.problem(Problem::TooManyConnections, last, &mut out),
                    };
                    self.meter.answered(operation, answer, began_us);
                    if answer == Answer::Ok && !style.head_only {
                        will_listen(&client.socket);
                        self.subscribers.add(key, client.generation);
                        State::Listening
                    } else {
                        State::Closing
                    }
                }
                Handled::Deciding { operation, json } => {
                    (connection.operation, connection.began_us) = (operation, began_us);
                    connection.trace = trace;
                    connection.style = Style { json, ..style };
                    State::Deciding
                }
            };
        }
        if at < bytes.len() && matches!(connection.state, State::Reading | State::Deciding) {
            if kept.is_empty() {
                kept.extend_from_slice(&self.scratch[at..received]);
            } else {
                kept.drain(..at);
            }
            connection.input = kept;
        }
        connection.output = out;
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
        if u64::from(client.generation) != ticket.0 >> 32 || connection.state != State::Deciding {
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
        connection.state = if style.keep_alive { State::Reading } else { State::Closing };
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
            if client.connection.state != State::Listening {
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

    /// After anything has happened to a connection: sets its deadline, and marks it if it has something to write
    /// or is to be closed.
    fn conclude(&mut self, key: usize, now: Moment) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let connection = &mut client.connection;
        if self.is_draining && connection.is_idle() && !connection.readable {
            connection.state = State::Closing;
        }
        connection.set_deadline(now.monotonic_ms);
        let has_work = !connection.output.is_empty()
            || connection.state == State::Closing
            || connection.state == State::Lingering && connection.ended;
        if has_work && !client.is_dirty {
            client.is_dirty = true;
            self.dirty.push(key);
        }
    }

    /// Writes every answer that may leave, once for each connection.
    pub fn write_replies(&mut self, now: Moment) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            self.write(key, now);
        }
        self.dirty = dirty;
        self.meter.written();
    }

    fn write(&mut self, key: usize, now: Moment) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.is_dirty = false;
        let connection = &mut client.connection;
        while connection.written < connection.output.len() {
            match send(&client.socket, &connection.output[connection.written..], SendFlags::NOSIGNAL) {
                Ok(bytes) => connection.written += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return connection.set_deadline(now.monotonic_ms),
                Err(_) => {
                    remove(&mut self.clients, &mut self.withdrawn, key);
                    return;
                }
            }
        }
        connection.written = 0;
        let mut buffer = std::mem::take(&mut connection.output);
        if buffer.capacity() > 0
            && buffer.capacity() <= OUTPUT_BYTES_MAX
            && self.spare_buffers.len() < SPARE_BUFFERS_MAX
        {
            buffer.clear();
            self.spare_buffers.push(buffer);
        }
        if self.is_draining && connection.is_idle() && !connection.readable {
            connection.state = State::Closing;
        }
        match connection.state {
            State::Closing if !connection.ended => {
                connection.state = State::Lingering;
                connection.input = Vec::new();
                // Fails only if the client has reset the connection, which the next read says too.
                let _ = shutdown(&client.socket, Shutdown::Write);
                client.queue(key, &mut self.ready);
            }
            State::Closing => {
                remove(&mut self.clients, &mut self.withdrawn, key);
                return;
            }
            State::Lingering if connection.ended => {
                remove(&mut self.clients, &mut self.withdrawn, key);
                return;
            }
            // What waited for room to write.
            State::Reading if !connection.input.is_empty() || connection.readable || connection.ended => {
                client.queue(key, &mut self.ready);
            }
            _ => {}
        }
        self.clients[key].connection.set_deadline(now.monotonic_ms);
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
            connection.state = State::Closing;
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
            if client.connection.state == State::Listening {
                client.connection.state = State::Closing;
            }
            client.connection.readable = true;
            client.queue(key, &mut self.ready);
        }
    }

    /// Whether nobody waits for a decision, and every answer is written as far as its client takes it.
    pub fn is_still(&self) -> bool {
        self.dirty.is_empty() && self.clients.iter().all(|(_, client)| client.connection.state != State::Deciding)
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
        if client.connection.state == State::Listening {
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
        self.clients.iter().all(|(_, client)| client.connection.state == State::Lingering)
    }
}
