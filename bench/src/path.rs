//! A request from its bytes to those of its answer, through the files of the server, without its sockets and its disk:
//! what one read brings is parsed, routed and applied; records are appended and put into blocks; answers are rendered.
//! The order is the pump's.

use crate::turns::{COMMANDS, NOW, Turns};
use stampede::block::{BLOCK_BYTES, BLOCK_RECORDS, Chain, LogKind, StreamId};
use stampede::command::Outcome;
use stampede::connection::{Connection, State, Step};
use stampede::http::Method;
use stampede::record::{RECORD_BYTES, Record};
use stampede::response::{Responder, Style};
use stampede::route::{Route, respond, route};
use stampede::types::Ticket;
use uuid::Uuid;

/// Attempts that are worth a flush, as in the pump.
const ATTEMPTS_FLUSH: usize = 1024;

/// A log whose disk takes no time.
struct Log {
    chain: Chain,
    buffer: Vec<u8>,
    blocks: Vec<u8>,
}

impl Log {
    fn new(log: LogKind) -> Log {
        let chain = Chain::new(StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log });
        Log { chain, buffer: Vec::new(), blocks: Vec::new() }
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
pub struct Path {
    turns: Turns,
    connections: Vec<Connection>,
    responder: Responder,
    purchases: Log,
    attempts: Log,
}

impl Path {
    /// A new sale of `items` items, and as many connections as one turn has commands.
    pub fn new(items: u32) -> Path {
        let mut responder = Responder::default();
        responder.set_time(NOW.unix_ms);
        Path {
            turns: Turns::new(1, items),
            connections: (0..COMMANDS).map(|_| Connection::new(NOW.monotonic_ms)).collect(),
            responder,
            purchases: Log::new(LogKind::Purchases),
            attempts: Log::new(LogKind::Attempts),
        }
    }

    /// One read of a connection's socket has brought `bytes`: whole requests.
    pub fn read(&mut self, place: usize, bytes: &[u8]) {
        let connection = &mut self.connections[place];
        let ticket = Ticket(place as u64);
        let mut out = std::mem::take(&mut connection.output);
        let mut at = 0;
        while connection.state == State::Reading && at < bytes.len() {
            let (used, step) = connection.next(&bytes[at..]).expect("the request is good");
            at += used;
            let Step::Request(head) = step else { panic!("the request is whole") };
            let style = Style {
                is_http10: head.is_http10,
                keep_alive: head.keep_alive,
                head_only: head.method == Method::Head,
                json: false,
            };
            let Route::Command(command, json) = route(&head).1 else { panic!("the request is for the sale") };
            let style = Style { json, ..style };
            let effects = self.turns.command(0, ticket, command);
            connection.understood();
            match effects.answers.pop_if(|(decided, _)| *decided == ticket) {
                Some((_, outcome)) => drop(respond(outcome, style, &mut self.responder, &mut out)),
                None => (connection.style, connection.state) = (style, State::Deciding),
            }
        }
        assert_eq!(at, bytes.len(), "requests behind one that waits are not for here");
        connection.output = out;
        connection.set_deadline(NOW.monotonic_ms);
    }

    /// The rest of the turn: what it noted is logged, and what the log before it held back is answered.
    pub fn turn(&mut self) {
        let Path { turns, connections, responder, purchases, attempts } = self;
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

    /// What a connection has to say, since it was last asked.
    pub fn write(&mut self, place: usize, send: impl FnOnce(&[u8])) {
        let connection = &mut self.connections[place];
        send(&connection.output);
        connection.output.clear();
        connection.set_deadline(NOW.monotonic_ms);
    }
}

fn answer(connection: &mut Connection, outcome: Outcome, responder: &mut Responder) {
    assert_eq!(connection.state, State::Deciding);
    respond(outcome, connection.style, responder, &mut connection.output);
    connection.state = State::Reading;
}

/// Buyers on a path: what they ask for, one kind of request at a time.
pub struct Crowd {
    path: Path,
    items: u32,
    asked: u32,
    bought: usize,
    codes: Vec<[u8; 36]>,
    request: Vec<u8>,
}

/// As short as a client's request can well be.
const HEAD_END: &[u8] = b" HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";

impl Crowd {
    /// A crowd for a new sale of `items` items.
    pub fn new(items: u32) -> Crowd {
        let codes = Vec::with_capacity(items as usize);
        Crowd { path: Path::new(items), items, asked: 0, bought: 0, codes, request: Vec::new() }
    }

    /// A crowd for a sale of `items` items, all of them sold.
    pub fn too_late(items: u32) -> Crowd {
        let mut crowd = Crowd::new(items);
        crowd.check_out(items as usize);
        crowd.buy(items as usize);
        crowd
    }

    /// So many checkouts of items that nobody has asked for yet, ten items to a user.
    pub fn check_out(&mut self, requests: usize) {
        self.rounds(requests, |crowd| {
            assert!(crowd.asked < crowd.items, "there are no more items");
            crowd.request_checkout();
        });
    }

    /// So many checkouts of items that are sold.
    pub fn be_refused(&mut self, requests: usize) {
        assert_eq!(self.path.turns.sold(), self.items, "the items are sold");
        self.rounds(requests, Crowd::request_checkout);
    }

    /// So many purchases of what was checked out.
    pub fn buy(&mut self, requests: usize) {
        self.rounds(requests, |crowd| {
            crowd.request.extend_from_slice(b"POST /purchase?code=");
            crowd.request.extend_from_slice(&crowd.codes[crowd.bought]);
            crowd.request.extend_from_slice(HEAD_END);
            crowd.bought += 1;
        });
    }

    /// Each item is asked for once before any is asked for again, in an order that is not that of memory.
    fn request_checkout(&mut self) {
        let (user, item) = (self.asked / 10, (u64::from(self.asked) * 7919 % u64::from(self.items)) as u32);
        self.asked = self.asked.wrapping_add(1);
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
            // One turn to log, one to answer what waited for that.
            self.path.turn();
            self.path.turn();
            for place in 0..round {
                self.path.write(place, |answer| match answer.get(9..12) {
                    // A bare code; a receipt is longer and ends otherwise.
                    Some(b"200") if !answer.ends_with(b"}") => {
                        self.codes.push(*answer.last_chunk().expect("an answer is longer than a code"));
                    }
                    Some(b"200" | b"409") => {}
                    _ => panic!("{}", String::from_utf8_lossy(answer)),
                });
            }
        }
    }
}

/// The decimal digits, at little cost: it is not the crowd that is measured.
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
    fn a_crowd_buys_everything_and_is_refused_from_then_on() {
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
