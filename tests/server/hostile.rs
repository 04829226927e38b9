//! Tests with hostile clients, during which the server must continue to serve a normal client.

#[path = "../hostile/cases/mod.rs"]
mod cases;

use crate::harness::{Client, LONG_SALE, Server};
use crate::history::History;
use crate::load::{connect, crowd};
use cases::{COVETED, Case, Then, cases};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

fn start(dir: &tempfile::TempDir, shards: &str) -> Server {
    Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", shards]].concat())
}

/// Runs `attack`, and a normal client on a connection of its own until the attack has ended.
fn while_selling(server: &Server, attack: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let mut client = server.connect();
        let attack = scope.spawn(attack);
        for user in 1_000.. {
            let code = client.reserve(user, 1);
            assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
            if attack.is_finished() {
                break;
            }
        }
        attack.join().expect("every assertion of the attack holds");
    });
}

fn sum(health: &serde_json::Value, name: &str) -> u64 {
    health["shards"].as_array().expect("a list").iter().map(|shard| shard[name].as_u64().expect("a number")).sum()
}

#[test]
fn every_case_has_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, "2");
    let address = server.address;
    while_selling(&server, || {
        for case in cases() {
            tell(address, &case, case.bytes.len().max(1));
            // One byte at a time, or at most 1,000 pieces if the case is long.
            tell(address, &case, case.bytes.len().div_ceil(1_000).max(1));
        }
    });
    server.connect().reserve(COVETED.into(), COVETED);
}

fn tell(address: SocketAddr, case: &Case, piece_bytes: usize) {
    let mut client = connect(address);
    let is_head = case.bytes.starts_with(b"HEAD");
    for piece in case.bytes.chunks(piece_bytes) {
        client.send(piece).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
    for expected in case.answers {
        let answer = loop {
            let answer = if is_head { client.read_head() } else { client.read() };
            match answer.unwrap_or_else(|error| panic!("{}: {error} instead of {expected}", case.name)) {
                interim if interim.status == 100 => {}
                answer => break answer,
            }
        };
        assert_eq!(answer.outcome(), *expected, "{}", case.name);
    }
    match case.then {
        Then::Closes => {}
        Then::GoesOn => assert_eq!(client.request("GET /livez").status, 200, "{}", case.name),
        Then::Waits => client.finish(),
    }
    if case.then != Then::GoesOn {
        assert!(client.is_closed(), "{}", case.name);
    }
}

/// A client cannot extend the time limit of its request by sending a byte now and then.
#[test]
fn who_dawdles_is_told_that_time_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, "1");
    let address = server.address;
    let beginnings = ["", "GE", "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n"];
    while_selling(&server, || {
        crowd(30, |number| {
            let mut client = connect(address);
            let mut writer = client.another_handle();
            writer.send(beginnings[number as usize % beginnings.len()].as_bytes()).unwrap();
            thread::scope(|scope| {
                let answer = scope.spawn(move || {
                    assert_eq!(client.read().unwrap().problem(), "request-timeout");
                    assert!(client.is_closed());
                });
                while !answer.is_finished() {
                    // The write fails after the server has closed the connection, as the test expects.
                    let _ = writer.send(b"a");
                    thread::sleep(Duration::from_millis(100));
                }
            });
        });
    });
    server.connect().reserve(COVETED.into(), COVETED);
}

/// A client that sends without end is answered, and costs a bounded amount of memory.
#[test]
fn what_has_no_end_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, "1");
    let (address, before) = (server.address, server.resident_kib());
    let post = "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n";
    let endless = [
        ("header-too-large", format!("{post}A: ")),
        ("body-too-large", format!("{post}Content-Length: 1073741824\r\n\r\n")),
        ("body-too-large", format!("{post}Transfer-Encoding: chunked\r\n\r\n40000000\r\n")),
    ];
    while_selling(&server, || {
        crowd(12, |number| {
            let (problem, beginning) = &endless[number as usize % endless.len()];
            let mut client = connect(address);
            let mut writer = client.another_handle();
            writer.send(beginning.as_bytes()).unwrap();
            thread::scope(|scope| {
                scope.spawn(move || assert_eq!(client.read().unwrap().problem(), *problem));
                let piece = vec![b'a'; 64 * 1024];
                // One gigabyte, if the server accepted all of it.
                let taken = (0..16 * 1024).take_while(|_| writer.send(&piece).is_ok()).count();
                assert!(taken < 16 * 1024, "the server never closes the connection");
            });
        });
    });
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 12 * 200, "{grown} KiB for 12 clients");
    server.connect().reserve(COVETED.into(), COVETED);
}

/// Connections that are reset at any stage leave no resources behind.
#[test]
fn resets_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, "2");
    let address = server.address;
    History::at(address).leave_gap();
    let reads = "GET /sale HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    while_selling(&server, || {
        crowd(8, |number| {
            for turn in 0..300 {
                let mut stream = TcpStream::connect(address).unwrap();
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                let item = 100 + number * 300 + turn;
                let checkout = format!("POST /checkout?user_id={item}&item_id={item} HTTP/1.1\r\nHost: x\r\n\r\n");
                let (bytes, reads_some) = match turn % 5 {
                    0 => (&b""[..], false),
                    1 => (&checkout.as_bytes()[..checkout.len() - 2], false),
                    2 => (checkout.as_bytes(), false),
                    3 => (reads.as_bytes(), false),
                    _ => (reads.as_bytes(), true),
                };
                stream.write_all(bytes).unwrap();
                if reads_some {
                    assert!(stream.read(&mut [0; 10]).unwrap() > 0);
                }
                // Dropping the stream resets the connection, because its linger time is zero.
            }
        });
    });
    let mut client = server.connect();
    let alone = (0..500).find_map(|_| {
        thread::sleep(Duration::from_millis(20));
        let health = client.request("GET /health").json();
        (sum(&health, "connections") == 1).then_some(health)
    });
    assert!(alone.is_some(), "connections are left over: {}", client.request("GET /health").json());
    let sale = client.sale();
    let [reserved, available] = ["reserved", "available"].map(|name| sale[name].as_u64().unwrap());
    assert!(sale["sold"] == 0 && reserved + available == 10_000 && reserved <= 8 * 60, "{sale}");
}

/// Items that all belong to one owner can be sold like any others.
#[test]
fn one_shard_may_have_to_do_all_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, "4");
    let address = server.address;
    while_selling(&server, || {
        crowd(16, |number| {
            let mut client: Client = connect(address);
            for turn in 0..50 {
                let item = 4 * (100 + number * 50 + turn);
                let code = client.reserve(item.into(), item);
                assert_eq!(client.purchase(&code).status, 200);
            }
        });
    });
    assert_eq!(server.connect().sale()["sold"], 16 * 50);
}
