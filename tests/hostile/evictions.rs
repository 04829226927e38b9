//! More connections than a shard may have: which one is closed in favour of a new one. And more deadlines in one moment
//! than a turn takes.

use crate::single_shard::{SingleShard, at, is_open};
use stampede::http::operation::{Answer, Operation};
use stampede::http::response::{Responder, Style};
use stampede::sale::ids::{ItemId, Ticket};
use stampede::server::sockets::Handled;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
/// Connections that a turn closes at most because of their deadlines.
const TIMEOUTS_PER_TURN: usize = 64;

/// A shard with a listening socket.
struct ListeningShard {
    shard: SingleShard,
    address: SocketAddr,
    /// Requests that wait for their decision.
    undecided: Vec<Ticket>,
    now_ms: u64,
}

impl ListeningShard {
    fn run(connections_max: usize, test: impl FnOnce(ListeningShard) + Send + 'static) {
        SingleShard::run_with(connections_max, |mut shard| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            shard.server.listen(listener.into()).unwrap();
            test(ListeningShard { shard, address, undecided: Vec::new(), now_ms: 0 });
        });
    }

    /// Connects a client, without a turn.
    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Connects a client, and makes the turn that accepts it.
    fn accepted(&mut self) -> TcpStream {
        let client = self.connect();
        self.turn();
        client
    }

    fn turn(&mut self) {
        self.shard.server.poll(0);
        self.turn_without_poll();
    }

    /// Makes a turn, 1 ms after the last. No request is decided.
    fn turn_without_poll(&mut self) {
        self.now_ms += 1;
        let undecided = &mut self.undecided;
        self.shard.server.serve(at(self.now_ms), &mut |ticket, _, _, _, _| {
            undecided.push(ticket);
            Handled::Deciding { operation: Operation::Live, json: false, item: Some(ItemId(0)) }
        });
        self.shard.server.write_replies(at(self.now_ms));
    }

    /// Decides the oldest undecided request.
    fn decide(&mut self) {
        let ticket = self.undecided.remove(0);
        let write =
            |style: Style, responder: &mut Responder, out: &mut Vec<u8>| responder.text(Answer::Ok, "yes", style, out);
        self.shard.server.answer(ticket, at(self.now_ms), None, write);
        self.shard.server.write_replies(at(self.now_ms));
    }
}

/// What has become of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Answered(u16),
    Closed,
}

/// The fate of a client without a request: it is told why its connection is closed.
const REFUSED: Fate = Fate::Answered(503);

fn fate(mut client: &TcpStream) -> Fate {
    let mut text = [0; 4096];
    match client.read(&mut text) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Fate::Open,
        Ok(bytes) if bytes > 0 => Fate::Answered(std::str::from_utf8(&text[9..12]).unwrap().parse().unwrap()),
        _ => Fate::Closed,
    }
}

#[test]
fn the_longest_idle_connection_is_closed_and_never_one_with_a_request() {
    ListeningShard::run(3, |mut shard| {
        let mut deciding = shard.accepted();
        deciding.write_all(REQUEST).unwrap();
        shard.turn();
        let mut in_use = shard.accepted();
        let idle = shard.accepted();
        // The older of the two has just had an answer.
        in_use.write_all(REQUEST).unwrap();
        shard.turn();
        shard.undecided.rotate_left(1);
        shard.decide();
        assert_eq!(fate(&in_use), Fate::Answered(200));
        shard.now_ms += 1_000;
        in_use.write_all(REQUEST).unwrap();
        shard.turn();
        shard.undecided.rotate_left(1);
        shard.decide();
        assert_eq!(fate(&in_use), Fate::Answered(200));

        let mut third = shard.accepted();
        assert_eq!([&deciding, &in_use, &idle, &third].map(fate), [Fate::Open, Fate::Open, REFUSED, Fate::Open]);
        let mut fourth = shard.accepted();
        assert_eq!([&deciding, &in_use, &third, &fourth].map(fate), [Fate::Open, Fate::Closed, Fate::Open, Fate::Open]);
        [&mut third, &mut fourth].into_iter().for_each(|client| client.write_all(REQUEST).unwrap());
        shard.turn();
        // Now each connection has a request that is being decided.
        assert_eq!(fate(&shard.accepted()), Fate::Answered(503));
        (0..3).for_each(|_| shard.decide());
        assert_eq!(
            [&deciding, &third, &fourth].map(fate),
            [Fate::Answered(200), Fate::Answered(200), Fate::Answered(200)]
        );
        assert_eq!(shard.shard.server.connections(), 3);
    });
}

/// A request that arrives after the poll of a turn is not read in this turn, but its connection is not idle.
#[test]
fn a_connection_whose_request_has_arrived_is_not_closed() {
    ListeningShard::run(1, |mut shard| {
        let mut client = shard.accepted();
        let newcomer = shard.connect();
        shard.shard.server.poll(0);
        client.write_all(REQUEST).unwrap();
        shard.turn_without_poll();
        assert_eq!((fate(&client), fate(&newcomer)), (Fate::Open, Fate::Open), "for a moment, both have a place");
        shard.turn();
        assert_eq!((fate(&client), fate(&newcomer)), (Fate::Open, REFUSED));
        shard.decide();
        assert_eq!(fate(&client), Fate::Answered(200));
    });
}

/// Single bytes do not make a connection younger: the time counts from the first byte of a head, and from its end.
#[test]
fn slow_requests_give_their_places_too() {
    ListeningShard::run(3, |mut shard| {
        let (mut head, mut body) = (shard.accepted(), shard.accepted());
        head.write_all(b"GET").unwrap();
        shard.turn();
        body.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n").unwrap();
        shard.turn();
        let silent = shard.accepted();
        for _ in 0..10 {
            shard.now_ms += 100;
            head.write_all(b"T").unwrap();
            body.write_all(b"x").unwrap();
            shard.turn();
        }
        let first = shard.accepted();
        assert_eq!([&head, &body, &silent, &first].map(fate), [REFUSED, Fate::Open, Fate::Open, Fate::Open]);
        let second = shard.accepted();
        assert_eq!([&body, &silent, &first, &second].map(fate), [REFUSED, Fate::Open, Fate::Open, Fate::Open]);
        let third = shard.accepted();
        assert_eq!([&silent, &first, &second, &third].map(fate), [REFUSED, Fate::Open, Fate::Open, Fate::Open]);
    });
}

#[test]
fn a_turn_closes_a_bounded_number_of_connections() {
    const CLIENTS: usize = 1_000;
    SingleShard::run_with(CLIENTS, |mut shard| {
        let clients: Vec<UnixStream> = (0..CLIENTS).map(|_| shard.connect()).collect();
        shard.turn(0);
        assert_eq!(shard.server.connections(), CLIENTS);
        let mut left = CLIENTS;
        while left > 0 {
            let is_unfinished = shard.server.sweep(at(80_000));
            let closed = left - shard.server.connections();
            assert_eq!((closed, is_unfinished), (left.min(TIMEOUTS_PER_TURN), left >= TIMEOUTS_PER_TURN));
            left -= closed;
            // Those that have waited longest are closed first.
            let closed = CLIENTS - left;
            assert!(!is_open(&clients[closed - 1]) && clients.get(closed).is_none_or(is_open));
        }
    });
}

/// After an upgrade to a lower limit there can be thousands of connections too many.
#[test]
fn connections_above_the_limit_are_closed_in_several_turns() {
    SingleShard::run_with(10, |mut shard| {
        let clients: Vec<UnixStream> = (0..200).map(|_| shard.connect()).collect();
        let mut left = vec![clients.len()];
        while left.len() == 1 || shard.server.has_work() {
            shard.turn(1);
            left.push(shard.server.connections());
        }
        assert_eq!(left, [200, 136, 72, 10]);
        assert!(clients[190..].iter().all(is_open) && !clients[..190].iter().any(is_open));
    });
}
