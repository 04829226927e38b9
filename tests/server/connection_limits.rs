//! Limits of connections: they count over all shards, and connections that only wait give their places to new ones.

use crate::harness::{Client, LONG_SALE, Server, how_many, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What silent clients send: nothing, a part of a head, or a part of a body.
const PARTS: [&str; 3] =
    ["", "POST /purchase?co", "POST /purchase?code=x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"];

fn start(dir: &tempfile::TempDir, arguments: &[&str]) -> Server {
    Server::start(dir.path(), &[&LONG_SALE[..], arguments].concat())
}

fn silent(address: SocketAddr, number: usize) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("the server accepts");
    client.write_all(PARTS[number % PARTS.len()].as_bytes()).expect("the connection is open");
    client.set_nonblocking(true).unwrap();
    client
}

/// Returns whether the server has closed the connection, to which it has sent nothing.
fn is_closed(mut client: &TcpStream) -> bool {
    !client.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Connects with another address of the loopback interface.
fn connect_from(address: &str, server: &Server) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{address}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    Client::of(socket.into(), server.address).unwrap()
}

fn open_connections(server: &Server) -> u64 {
    server.metric("stampede_connections")
}

#[test]
fn every_client_within_the_limit_is_served_with_any_number_of_shards() {
    for shards in ["1", "3", "8"] {
        let dir = tempfile::tempdir().unwrap();
        let server = start(&dir, &["--shards", shards, "--max-connections", "160"]);
        let mut clients: Vec<_> = (0..160).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
        for (user, client) in (0..).zip(&mut clients) {
            let code = client.reserve(user, user as u32);
            assert_eq!(client.purchase(&code).status, 200);
        }
        assert_eq!(open_connections(&server), 160);
        assert_eq!(server.metric("stampede_connections_evicted_total"), 0);
        drop(clients);
        assert!(server.terminate().success());
    }
}

/// Silent clients fill the server. Each newcomer is served, and takes the place of the client that has been silent for
/// the longest time, whichever shard has it. `STAMPEDE_SILENT=16384` is the default limit of the server.
#[test]
fn newcomers_take_the_places_of_those_who_are_silent_longest() {
    const NEWCOMERS: usize = 60;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let possible = maximum.map_or(u32::MAX, |maximum| maximum.saturating_sub(2_000) as u32);
    let count = how_many("STAMPEDE_SILENT", 600).min(possible) as usize;
    for shards in ["1", "2", "8"] {
        let dir = tempfile::tempdir().unwrap();
        let server =
            start(&dir, &["--shards", shards, "--max-connections", &count.to_string(), "--idle-timeout", "1h"]);
        let connected = |clients: u64| {
            wait_until("the server has accepted all", || open_connections(&server) == clients);
            // Those that connect later have waited less.
            thread::sleep(Duration::from_millis(20));
        };
        let oldest: Vec<_> = (0..NEWCOMERS).map(|number| silent(server.address, number)).collect();
        connected(NEWCOMERS as u64);
        let others: Vec<_> = (NEWCOMERS..count).map(|number| silent(server.address, number)).collect();
        connected(count as u64);
        let mut newcomers: Vec<_> = (0..NEWCOMERS).map(|_| server.connect()).collect();
        for (user, client) in (0..).zip(&mut newcomers) {
            let code = client.reserve(user, user as u32);
            assert_eq!(client.purchase(&code).status, 200);
        }
        wait_until("the oldest connections are closed", || oldest.iter().all(is_closed));
        assert_eq!(others.iter().filter(|client| is_closed(client)).count(), 0, "{shards} shards");
        wait_until("the limit is kept", || open_connections(&server) == count as u64);
        assert_eq!(server.metric("stampede_connections_evicted_total"), NEWCOMERS as u64);
        let lines = server.times_said("there are as many connections as --max-connections");
        assert!((1..=shards.parse().unwrap()).contains(&lines), "one line for each shard at most: {lines}");
        drop((oldest, others, newcomers));
        assert!(server.terminate().success());
    }
}

/// Clients that say nothing connect again and again, as many as the server accepts, while a buyer comes with a new
/// connection for each request.
#[test]
fn a_flood_of_silent_connections_keeps_no_buyer_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "2", "--max-connections", "64", "--user-limit", "1000"]);
    /// Ends the flood, also if the test fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&is_over);
        scope.spawn(|| {
            let mut flood = std::collections::VecDeque::new();
            for number in 0.. {
                flood.push_back(silent(server.address, number));
                if flood.len() > 256 {
                    flood.pop_front();
                }
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        wait_until("the server is full", || server.metric("stampede_connections_evicted_total") > 100);
        for item in 0..100 {
            let code = server.connect().reserve(1, item);
            assert_eq!(server.connect().purchase(&code).status, 200);
        }
    });
    assert_eq!(server.connect().sale()["sold"], 100);
    assert!(server.terminate().success());
}

/// Answers that are being written are written to their end, and newcomers are refused if there are no other
/// connections.
#[test]
fn a_connection_with_an_unread_answer_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "2", "--max-connections", "6"]);
    let mut occupied = server.occupy(5);
    // The last place goes from one newcomer to the next.
    for item in 0..10 {
        wait_until("the last one is idle", || server.connect().try_checkout(1, item).is_ok_and(|it| it.status == 200));
    }
    occupied.extend(server.occupy(1));
    for _ in 0..10 {
        let mut client = server.connect();
        let said = client.read().unwrap_or_else(|error| panic!("{error}: {}", server.connections_by_shard()));
        assert_eq!(said.problem(), "too-many-connections");
    }
    for client in &mut occupied {
        (0..64).for_each(|_| assert_eq!(client.read().unwrap().status, 200));
    }
    drop(occupied);
    assert!(server.terminate().success());
}

/// The number of connections that are closed in one turn is bounded. Their number divided by that of the turns is at
/// most this bound.
#[test]
fn a_crowd_that_times_out_is_closed_in_many_turns() {
    const CLIENTS: u64 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "1", "--idle-timeout", "4s"]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| silent(server.address, 0)).collect();
    wait_until("all are accepted", || open_connections(&server) == CLIENTS);
    let turns = server.metric("stampede_turns_total");
    wait_until("all are closed", || open_connections(&server) == 0);
    let turns = server.metric("stampede_turns_total") - turns;
    assert!(turns >= CLIENTS / 64, "{CLIENTS} connections in {turns} turns");
    // The kernel delivers the end of a connection in its own time, also on loopback.
    wait_until("the clients have noticed", || clients.iter().all(is_closed));
    assert!(server.terminate().success());
}

#[test]
fn connections_of_one_address_are_limited_over_all_shards() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "4", "--max-connections-per-address", "10"]);
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
    for _ in 0..10 {
        let mut client = server.connect();
        let refused = client.read().unwrap();
        assert_eq!((refused.problem().as_str(), refused.asks_to_retry()), ("too-many-connections", true));
        assert!(client.is_closed());
    }
    let mut others: Vec<_> = (0..10).map(|_| connect_from("127.0.0.2", &server)).collect();
    others.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
    assert_eq!(connect_from("127.0.0.2", &server).read().unwrap().problem(), "too-many-connections");
    clients.truncate(7);
    wait_until("the places are free", || open_connections(&server) == 17);
    clients.extend((0..3).map(|_| server.connect()));
    clients.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
    drop((clients, others));
    assert!(server.terminate().success());
}

/// Addresses are counted again in the new process of an upgrade.
#[test]
fn an_upgrade_counts_the_connections_of_an_address_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(&dir, &["--shards", "2", "--max-connections-per-address", "4"]);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
    server.upgrade();
    clients.iter_mut().for_each(|client| assert_eq!(client.request("GET /livez").status, 200));
    assert_eq!(server.connect().read().unwrap().problem(), "too-many-connections");
}

/// A lower limit applies to the connections that an upgrade keeps: the idle ones above it are closed.
#[test]
fn an_upgrade_to_a_lower_limit_keeps_the_connections_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let set = |limit| std::fs::write(dir.path().join(".env"), format!("MAX_CONNECTIONS={limit}\n")).unwrap();
    set(400);
    let mut server = start(&dir, &["--shards", "3"]);
    let idle: Vec<_> = (0..300).map(|_| silent(server.address, 0)).collect();
    let mut occupied = server.occupy(2);
    wait_until("all are accepted", || open_connections(&server) == 302);
    set(20);
    server.upgrade();
    wait_until("the limit is kept", || open_connections(&server) == 20);
    wait_until("the clients have noticed", || idle.iter().filter(|client| !is_closed(client)).count() <= 18);
    assert_eq!(idle.iter().filter(|client| !is_closed(client)).count(), 18);
    occupied.iter_mut().for_each(|client| assert_eq!(client.read().unwrap().status, 200));
    server.connect().reserve(1, 1);
}

/// The packaged socket unit passes one listening socket for all shards. Each connection wakes about one of them, and
/// all shards get connections.
#[test]
fn a_shared_socket_wakes_one_shard_for_each_connection() {
    const SHARDS: u64 = 8;
    const CLIENTS: u64 = 160;
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let limits = ["--shards", "8", "--max-connections", "160"];
    let stampede = crate::harness::stampede(dir.path(), &[&LONG_SALE[..], &limits].concat());
    // The shell passes the socket as systemd does, as descriptor 3 with two variables.
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(stampede.get_program()).args(stampede.get_args());
    command.env_clear().current_dir(dir.path()).stderr(Stdio::piped());
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let server = Server::run(&mut command);
    server.wait_for_line("serving");
    assert_eq!(server.address, listener.local_addr().unwrap());
    let wait_for_clients = |count| wait_until("all are accepted", || open_connections(&server) == count);

    // The shards still create their first segments and write their first records.
    let mut before = 0;
    wait_until("the shards have started", || {
        std::thread::sleep(Duration::from_millis(200));
        let turns = server.metric("stampede_turns_total");
        turns - std::mem::replace(&mut before, turns) <= SHARDS
    });
    let (turns, began) = (server.metric("stampede_turns_total"), Instant::now());
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|number| {
            let client = silent(server.address, 0);
            wait_for_clients(number);
            client
        })
        .collect();
    // Each shard takes a turn in a second besides.
    let turns = server.metric("stampede_turns_total") - turns;
    let turns = turns.saturating_sub((began.elapsed().as_secs() + 2) * SHARDS);
    println!("{turns} turns for {CLIENTS} connections");
    // A shard takes a turn to accept, and one or two others before it sleeps again.
    assert!(turns < CLIENTS * SHARDS / 2, "{turns} turns for {CLIENTS} connections");
    let health = Client::connect(server.address).unwrap().request("GET /health").json();
    let of_shards = health["shards"].as_array().unwrap().iter().map(|shard| shard["connections"].as_u64().unwrap());
    let of_shards: Vec<_> = of_shards.collect();
    assert!(of_shards.iter().all(|count| *count > 0), "each shard accepts some: {of_shards:?}");
    drop(clients);
    assert!(server.terminate().success());
}
