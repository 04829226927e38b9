//! Reading: turns the bytes of a socket into requests, and passes the requests to the handler. Parsing is in the folder
//! `http`.

use crate::http::connection::{Connection, ConnectionState, Step, TraceHeaders, UnsentGrant};
use crate::http::head::{HEAD_BYTES_MAX, Head, Method};
use crate::http::operation::Answer;
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::operate::exemplars::SampledRequest;
use crate::operate::request_timer::RequestTimer;
use crate::sale::ids::{Moment, Ticket};
use crate::server::admission::Admission;
use crate::server::client::{Client, configure_event_stream};
use crate::server::replies::OUTPUT_BYTES_MAX;
use crate::server::sockets::{Handled, Handler, READ_BYTES, Server};
use crate::server::subscribers::Subscribers;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Bytes of one connection that are kept at most until a request is complete.
const AHEAD_BYTES_MAX: usize = HEAD_BYTES_MAX;
/// Requests of one connection that one turn processes at most, so that a client that pipelines many small requests does
/// not delay the others.
pub const REQUESTS_PER_TURN: usize = 64;
/// Bytes of answers that count as much as a request in the work of a turn.
const WORK_BYTES: usize = 4 * 1024;

impl Server {
    /// Reads one socket once, and passes every complete request to the handler.
    pub(crate) fn read(&mut self, key: usize, now: Moment, handler: &mut impl Handler) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.is_ready = false;
        self.work += 1;
        let connection = &mut client.connection;
        // Bound the memory of a connection: a complete head fits, and bodies are not kept.
        let limit = AHEAD_BYTES_MAX.saturating_sub(connection.input.len()).min(READ_BYTES);
        let mut received = 0;
        if connection.readable && !connection.ended && limit > 0 {
            match recv(&client.socket, &mut self.scratch[..limit], RecvFlags::empty()) {
                Ok((_, 0)) => connection.ended = true,
                Ok((_, bytes)) => {
                    received = bytes;
                    connection.readable = bytes == limit || connection.peer_closed;
                }
                Err(Errno::AGAIN) => connection.readable = false,
                Err(Errno::INTR) => {}
                Err(_) => return self.clients.remove(key),
            }
        }
        let mut is_cut = false;
        match connection.state {
            ConnectionState::Reading if received > 0 || !connection.input.is_empty() => {
                is_cut = self.parse_requests(key, received, handler);
            }
            ConnectionState::Deciding => connection.input.extend_from_slice(&self.scratch[..received]),
            _ => {}
        }
        let client = &mut self.clients[key];
        let connection = &mut client.connection;
        let has_output_room = has_output_room(connection, &connection.output);
        if (connection.state == ConnectionState::Reading && has_output_room && !is_cut
            || connection.state == ConnectionState::Listening)
            && connection.ended
        {
            // The client sends no more, so the remaining bytes never become a complete request.
            connection.state = ConnectionState::Closing;
        }
        let may_read_more = match connection.state {
            ConnectionState::Reading => has_output_room,
            ConnectionState::Deciding | ConnectionState::Lingering => connection.input.len() < AHEAD_BYTES_MAX,
            ConnectionState::Listening => true,
            ConnectionState::Closing => false,
        };
        if is_cut || connection.readable && !connection.ended && may_read_more {
            client.queue(key, &mut self.ready);
        }
        self.schedule_write(key, now);
    }

    /// Passes the complete requests in the kept and the new bytes of a connection to the handler. Returns whether bytes
    /// are left for the next turn, because this turn has processed as many requests as it may.
    fn parse_requests(&mut self, key: usize, received: usize, handler: &mut impl Handler) -> bool {
        let Server { clients, responder, request_timer, subscribers, spare_buffers, scratch, admission, .. } = self;
        let is_draining = self.is_draining;
        let mut requests = RequestParts { responder, request_timer, subscribers, admission, is_draining };
        let client = &mut clients[key];
        let mut out = std::mem::take(&mut client.connection.output);
        if out.capacity() == 0 {
            out = spare_buffers.take();
        }
        let mut kept = std::mem::take(&mut client.connection.input);
        let bytes = if kept.is_empty() {
            &scratch[..received]
        } else {
            kept.extend_from_slice(&scratch[..received]);
            &kept[..]
        };
        let ticket = client.ticket(key);
        let (before, mut at, mut count) = (out.len(), 0, 0);
        while client.connection.state == ConnectionState::Reading
            && has_output_room(&client.connection, &out)
            && count < REQUESTS_PER_TURN
        {
            let step = match client.connection.next(&bytes[at..]) {
                Ok((used, step)) => {
                    at += used;
                    step
                }
                Err(problem) => {
                    requests.reject(problem, &mut out);
                    client.connection.state = ConnectionState::Closing;
                    break;
                }
            };
            let begins = out.len();
            let handled = match step {
                Step::More => break,
                Step::Again => continue,
                Step::SayContinue => {
                    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    continue;
                }
                Step::Request(head) => requests.ask(ticket, &head, handler, &mut out),
            };
            if let Handled::Granted(_, _, code) = handled.handled {
                client.connection.unsent_grant = Some(UnsentGrant { code, begins });
            }
            requests.apply_result(key, client, handled, &mut out);
            count += 1;
        }
        let connection = &mut client.connection;
        let is_cut = count == REQUESTS_PER_TURN && at < bytes.len() && connection.state == ConnectionState::Reading;
        if at < bytes.len() && matches!(connection.state, ConnectionState::Reading | ConnectionState::Deciding) {
            if kept.is_empty() {
                kept.extend_from_slice(&scratch[at..received]);
            } else {
                kept.drain(..at);
            }
            connection.input = kept;
        }
        self.work += count.saturating_sub(1) + (out.len() - before) / WORK_BYTES;
        connection.output = out;
        is_cut
    }
}

/// Returns whether a connection may process its next request. `output` is its output.
fn has_output_room(connection: &Connection, output: &[u8]) -> bool {
    connection.unsent_grant.is_none() && output.len() < OUTPUT_BYTES_MAX
}

/// The parts of the server that a request needs besides its connection.
struct RequestParts<'a> {
    responder: &'a mut Responder,
    request_timer: &'a mut RequestTimer,
    subscribers: &'a mut Subscribers,
    admission: &'a Admission,
    is_draining: bool,
}

/// A request that the handler has processed.
struct HandledRequest {
    style: Style,
    handled: Handled,
    began_us: u64,
    trace: Option<Box<TraceHeaders>>,
    sampled: Option<SampledRequest>,
}

impl RequestParts<'_> {
    fn reject(&mut self, problem: Problem, out: &mut Vec<u8>) {
        self.responder.set_request(None, None);
        self.request_timer.refused(self.responder.problem(problem, Style::default(), out));
    }

    fn ask(
        &mut self,
        ticket: Ticket,
        head: &Head<'_>,
        handler: &mut impl Handler,
        out: &mut Vec<u8>,
    ) -> HandledRequest {
        let style = Style {
            keep_alive: head.keep_alive && !self.is_draining,
            head_only: head.method == Method::Head,
            json: false,
        };
        let began_us = self.request_timer.began();
        self.responder.set_request(head.request_id, head.origin);
        let handled = handler(ticket, head, style, self.responder, out);
        let trace = matches!(handled, Handled::Deciding { .. }).then(|| TraceHeaders::of(head)).flatten();
        let sampled = head.traceparent.and_then(SampledRequest::of);
        HandledRequest { style, handled, began_us, trace, sampled }
    }

    /// Sets the state of the connection according to the result of its request.
    fn apply_result(&mut self, key: usize, client: &mut Client, asked: HandledRequest, out: &mut Vec<u8>) {
        let HandledRequest { style, handled, began_us, trace, sampled } = asked;
        let connection = &mut client.connection;
        connection.end_request();
        connection.state = match handled {
            Handled::Answered(operation, answer) | Handled::Granted(operation, answer, _) => {
                self.request_timer.answered(operation, answer, began_us, sampled);
                if style.keep_alive { ConnectionState::Reading } else { ConnectionState::Closing }
            }
            Handled::Listening(operation) => {
                let last = Style { keep_alive: false, ..style };
                let answer = match self.admission.has_place_to_subscribe(self.subscribers.count()) {
                    _ if self.is_draining => self.responder.problem(Problem::NotReady, last, out),
                    true => self.responder.event_stream(style, out),
                    false => self.responder.problem(Problem::TooManyConnections, last, out),
                };
                self.request_timer.answered(operation, answer, began_us, sampled);
                if answer == Answer::Ok && !style.head_only {
                    configure_event_stream(&client.socket);
                    self.subscribers.add(key, client.generation);
                    self.admission.publish_subscribers(self.subscribers.count());
                    ConnectionState::Listening
                } else {
                    ConnectionState::Closing
                }
            }
            Handled::Deciding { operation, json, item } => {
                (connection.operation, connection.item, connection.began_us) = (operation, item, began_us);
                connection.trace = trace;
                connection.style = Style { json, ..style };
                ConnectionState::Deciding
            }
        };
    }
}
