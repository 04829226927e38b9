//! Drives requests from their bytes to the bytes of their responses, through the server's code but without its sockets
//! and disk. The order is that of the server's turn:
//!
//! 1. Parse, route and apply the requests of one read.
//! 2. Append the records and encode them in blocks.
//! 3. Render the responses.

use crate::turns::{COMMANDS, NOW, Turns};
use stampede::http::connection::{Connection, ConnectionState, Step};
use stampede::http::head::Method;
use stampede::http::origin::Origins;
use stampede::http::response::{Responder, Style};
use stampede::http::route::{Route, respond, route};
use stampede::http::site::Site;
use stampede::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId};
use stampede::sale::command::Outcome;
use stampede::sale::ids::Ticket;
use stampede::sale::record::{BLOCK_RECORDS, RECORD_BYTES, Record};
use uuid::Uuid;

/// Idle timeout of the connections, as in the server by default.
const IDLE_MS: u64 = 75_000;
/// Number of buffered attempts that triggers a flush, as in the server's turn.
const ATTEMPTS_FLUSH: usize = 1024;

/// A log without a disk: a flush encodes the blocks in memory.
struct MemoryLog {
    chain: Chain,
    buffer: Vec<u8>,
    blocks: Vec<u8>,
}

impl MemoryLog {
    fn new(log: LogKind) -> MemoryLog {
        let chain = Chain::new(StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log });
        MemoryLog { chain, buffer: Vec::new(), blocks: Vec::new() }
    }

    fn append(&mut self, record: &Record) {
        self.buffer.extend_from_slice(&record.encode());
    }

    fn buffered(&self) -> usize {
        self.buffer.len() / RECORD_BYTES
    }

    fn flush(&mut self) {
        self.blocks.clear();
        self.blocks.resize(self.buffered().div_ceil(BLOCK_RECORDS) * BLOCK_BYTES, 0);
        let flushed = self.chain.records();
        self.chain.extend(&mut self.blocks, &self.buffer, flushed);
        self.buffer.clear();
    }
}

/// One shard with its connections.
pub struct RequestPath {
    turns: Turns,
    connections: Vec<Connection>,
    responder: Responder,
    purchases: MemoryLog,
    attempts: MemoryLog,
}

impl RequestPath {
    /// Creates a new sale of `items` items, and as many connections as a turn has commands.
    pub fn new(items: u32) -> RequestPath {
        let mut responder = Responder::default();
        responder.set_time(NOW.unix_ms);
        RequestPath {
            turns: Turns::new(1, items),
            connections: (0..COMMANDS).map(|_| Connection::new(NOW.monotonic_ms, IDLE_MS)).collect(),
            responder,
            purchases: MemoryLog::new(LogKind::Purchases),
            attempts: MemoryLog::new(LogKind::Attempts),
        }
    }

    /// Handles the bytes of one read of a connection's socket. They must be whole requests.
    pub fn read(&mut self, place: usize, bytes: &[u8]) {
        let connection = &mut self.connections[place];
        let ticket = Ticket(place as u64);
        let mut out = std::mem::take(&mut connection.output);
        let mut at = 0;
        while connection.state == ConnectionState::Reading && at < bytes.len() {
            let (used, step) = connection.next(&bytes[at..]).expect("the request is valid");
            at += used;
            let Step::Request(head) = step else { panic!("the request is whole") };
            let style = Style { keep_alive: head.keep_alive, head_only: head.method == Method::Head, json: false };
            let Route::Command(command, json) = route(&head, &Origins::None, Site::default()).1 else {
                panic!("the request is for the sale")
            };
            let style = Style { json, ..style };
            let effects = self.turns.command(0, ticket, command);
            connection.end_request();
            match effects.answers.pop_if(|(decided, _)| *decided == ticket) {
                Some((_, outcome)) => drop(respond(outcome, style, &mut self.responder, &mut out)),
                None => (connection.style, connection.state) = (style, ConnectionState::Deciding),
            }
        }
        assert_eq!(at, bytes.len(), "a request behind one that waits for a flush is not supported here");
        connection.output = out;
        connection.set_deadline(NOW.monotonic_ms);
    }

    /// Ends the turn: appends its records, and responds to the requests that waited for the previous turn's flush.
    pub fn turn(&mut self) {
        let RequestPath { turns, connections, responder, purchases, attempts } = self;
        turns.turn(|_, effects| {
            effects.records.drain(..).for_each(|record| purchases.append(&record));
            effects.attempts.drain(..).for_each(|record| attempts.append(&record));
            purchases.flush();
            if attempts.buffered() >= ATTEMPTS_FLUSH {
                attempts.flush();
            }
            for (Ticket(place), outcome) in effects.answers.drain(..) {
                answer(&mut connections[place as usize], outcome, responder);
            }
        });
    }

    /// Passes the pending output of a connection to `send` and clears it.
    pub fn write(&mut self, place: usize, send: impl FnOnce(&[u8])) {
        let connection = &mut self.connections[place];
        send(&connection.output);
        connection.output.clear();
        connection.set_deadline(NOW.monotonic_ms);
    }
}

fn answer(connection: &mut Connection, outcome: Outcome, responder: &mut Responder) {
    assert_eq!(connection.state, ConnectionState::Deciding);
    respond(outcome, connection.style, responder, &mut connection.output);
    connection.state = ConnectionState::Reading;
}

/// A crowd of buyers that sends one kind of request at a time.
pub struct Crowd {
    path: RequestPath,
    items: u32,
    requested: u32,
    bought: usize,
    codes: Vec<[u8; 36]>,
    request: Vec<u8>,
}

/// The end of each request head, with as few headers as HTTP allows.
const HEAD_END: &[u8] = b" HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";

impl Crowd {
    /// Creates a crowd for a new sale of `items` items.
    pub fn new(items: u32) -> Crowd {
        let codes = Vec::with_capacity(items as usize);
        Crowd { path: RequestPath::new(items), items, requested: 0, bought: 0, codes, request: Vec::new() }
    }

    /// Creates a crowd for a sale of `items` items that are all sold.
    pub fn sold_out(items: u32) -> Crowd {
        let mut crowd = Crowd::new(items);
        crowd.check_out(items as usize);
        crowd.buy(items as usize);
        crowd
    }

    /// Sends this many checkouts of items that have not been requested yet, ten items for each user.
    pub fn check_out(&mut self, requests: usize) {
        self.rounds(requests, |crowd| {
            assert!(crowd.requested < crowd.items, "the sale has more items");
            crowd.request_checkout();
        });
    }

    /// Sends this many checkouts of sold items.
    pub fn be_refused(&mut self, requests: usize) {
        assert_eq!(self.path.turns.sold(), self.items, "the items are sold");
        self.rounds(requests, Crowd::request_checkout);
    }

    /// Sends this many purchases of reserved items.
    pub fn buy(&mut self, requests: usize) {
        self.rounds(requests, |crowd| {
            crowd.request.extend_from_slice(b"POST /purchase?code=");
            crowd.request.extend_from_slice(&crowd.codes[crowd.bought]);
            crowd.request.extend_from_slice(HEAD_END);
            crowd.bought += 1;
        });
    }

    /// Requests each item once before any item is requested again, in an order that is not the order in memory.
    fn request_checkout(&mut self) {
        let (user, item) = (self.requested / 10, (u64::from(self.requested) * 7919 % u64::from(self.items)) as u32);
        self.requested = self.requested.wrapping_add(1);
        self.request.extend_from_slice(b"POST /checkout?user_id=");
        push_digits(&mut self.request, user);
        self.request.extend_from_slice(b"&item_id=");
        push_digits(&mut self.request, item);
        self.request.extend_from_slice(HEAD_END);
    }

    fn rounds(&mut self, mut requests: usize, mut ask: impl FnMut(&mut Crowd)) {
        while requests > 0 {
            let round = requests.min(COMMANDS);
            requests -= round;
            for place in 0..round {
                self.request.clear();
                ask(self);
                self.path.read(place, &self.request);
            }
            // The first turn flushes. The second sends the responses that waited for the flush.
            self.path.turn();
            self.path.turn();
            for place in 0..round {
                self.path.write(place, |answer| match answer.get(9..12) {
                    // A bare code. A receipt is JSON and ends with a brace.
                    Some(b"200") if !answer.ends_with(b"}") => {
                        self.codes.push(*answer.last_chunk().expect("a response is longer than a code"));
                    }
                    Some(b"200" | b"409") => {}
                    _ => panic!("{}", String::from_utf8_lossy(answer)),
                });
            }
        }
    }
}

/// Appends the decimal digits of a number. Faster than `write!`, because the cost of the crowd should not be measured.
fn push_digits(out: &mut Vec<u8>, mut number: u32) {
    let mut digits = [0; 10];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[first..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_buys_all_items_and_is_refused_afterwards() {
        let mut crowd = Crowd::new(1000);
        crowd.check_out(1000);
        assert_eq!((crowd.codes.len(), crowd.path.turns.sold()), (1000, 0));
        crowd.buy(1000);
        assert_eq!(crowd.path.turns.sold(), 1000);
        crowd.be_refused(3000);
        assert_eq!((crowd.codes.len(), crowd.path.turns.sold()), (1000, 1000));
        assert!(crowd.path.attempts.chain.records() >= 2000, "refusals are recorded");
        assert_eq!(crowd.path.purchases.chain.records(), 2000);
    }
}
