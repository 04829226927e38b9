//! Tests without free descriptors, and with too many connections: the server serves accepted clients and does not spin;
//! new clients wait in the backlog or are refused, and the log waits.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

/// Returns the limit on descriptors that leaves `left` free to the server.
fn limit_that_leaves(server: &Server, left: usize) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let open: BTreeSet<u64> = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    (0..).filter(|descriptor| !open.contains(descriptor)).nth(left).expect("the range is unbounded")
}

/// Returns the CPU time of the server, in ticks of a hundredth of a second.
fn ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn newcomers_wait_until_somebody_leaves() {
    const INSIDE: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    // After this pause, the log has created its segments, and needs no descriptor during the test.
    assert_eq!(server.connect().request("GET /livez").status, 200);
    thread::sleep(Duration::from_millis(300));
    let limit = Some(limit_that_leaves(&server, INSIDE));
    let limit = Rlimit { current: limit, maximum: limit };
    prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();

    let mut inside: Vec<Client> = Vec::new();
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..2 * INSIDE {
        let mut client = server.connect();
        client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        if client.answers_within(Duration::from_millis(200)) {
            assert_eq!(client.read().unwrap().status, 200);
            inside.push(client);
        } else {
            waiting.push(client);
        }
    }
    assert!(inside.len() >= 10 && waiting.len() >= 10, "{} inside, {} waiting", inside.len(), waiting.len());

    // A busy loop would use all available CPU time. Trying to accept at intervals uses almost none.
    let before = ticks(&server);
    thread::sleep(Duration::from_secs(2));
    let spent = ticks(&server) - before;
    println!("{spent} hundredths of a second in two");
    assert!(spent < 20, "{spent} hundredths of a second of CPU time in two seconds");
    for (item, client) in (0..).zip(&mut inside) {
        let code = client.reserve(1 + i64::from(item), item);
        assert_eq!(client.purchase(&code).status, 200);
    }
    assert_eq!(server.times_said("new connections wait"), 1);
    let sold = inside.len();
    // Each client that disconnects makes room for a waiting one, until all have been served.
    while !waiting.is_empty() {
        let room = inside.len().min(waiting.len());
        inside.clear();
        for mut client in waiting.drain(..room) {
            assert_eq!(client.read().unwrap().status, 200);
            inside.push(client);
        }
    }
    assert_eq!(inside[0].sale()["sold"], sold);
    assert!(server.terminate().success());
}

/// The log cannot make a segment without a descriptor. It waits, and the server refuses only the checkouts for which
/// the log has no room.
#[test]
fn a_log_without_descriptors_waits() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--shards", "1", "--items", "100000", "--user-limit", "100000", "--log-budget", "16MiB"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat());
    let mut client = server.connect();
    let usual = getrlimit(Resource::Nofile);
    for round in 0..2 {
        let held = client.reserve(1, 80_000 + round);
        let mut item = round * 40_000;
        let refusal = loop {
            // Each time, because a full segment is closed, and would leave its descriptor to the next one.
            let none_left = Some(limit_that_leaves(&server, 0));
            prlimit(Some(server.pid()), Resource::Nofile, Rlimit { current: none_left, ..usual }).unwrap();
            let answer = client.checkout(1, item);
            if answer.status != 200 {
                break answer.problem();
            }
            assert_eq!(client.purchase(&answer.body).status, 200);
            item += 1;
        };
        assert_eq!(refusal, "log-full", "after {item} items");
        assert_eq!(client.purchase(&held).status, 200, "a held item can be bought");
        thread::sleep(Duration::from_millis(500));
        // Each log announces it once a minute: the purchase log, and perhaps the attempt log.
        let times = server.times_said("the log waits for a file descriptor");
        assert!((1..=2).contains(&times), "{times}");
        prlimit(Some(server.pid()), Resource::Nofile, usual).unwrap();
        wait_until("the server sells again", || client.checkout(1, item).status == 200);
    }
    assert!(server.terminate().success());
}

/// The persistence thread cannot read the records of an earlier run without a descriptor. It waits, and the server sells.
#[test]
fn persistence_without_descriptors_waits() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let arguments = [&LONG_SALE[..], &["--shards", "1"]].concat();
    let server = Server::start(dir.path(), &arguments);
    let mut client = server.connect();
    for item in 0..3 {
        let code = client.reserve(i64::from(item), item);
        assert_eq!(client.purchase(&code).status, 200);
        assert_eq!(client.checkout(9, item).problem(), "item-sold");
    }
    wait_until("attempts are durable", || client.request("GET /health").json()["shards"][0]["attempts_durable"] == 3);
    drop(client);
    server.kill();
    cluster.kill();
    let url = cluster.url();
    // No other machine has sold this sale, so the start does not wait for the database.
    let database = ["--database-url", &url, "--recover-from", "log"];
    let server = Server::start(dir.path(), &[&arguments[..], &database].concat());
    let mut client = server.connect();
    assert_eq!(client.sale()["sold"], 3);
    let usual = getrlimit(Resource::Nofile);
    // One descriptor is for the connection to the database, and one for one of the two streams.
    for (left, said) in [(1, "the database is unavailable"), (2, "the persistence thread waits for a file descriptor")]
    {
        // After this pause, the log has created its segments, and needs no descriptor during the test.
        thread::sleep(Duration::from_millis(500));
        let limit = Some(limit_that_leaves(&server, left));
        // Each new reason is logged once, and until now the reason was that the database is down.
        server.forget_lines();
        prlimit(Some(server.pid()), Resource::Nofile, Rlimit { current: limit, ..usual }).unwrap();
        cluster.go_on();
        server.wait_for_line(said);
        let item = 10 + left as u32;
        let code = client.reserve(1, item);
        assert_eq!(client.purchase(&code).status, 200);
        thread::sleep(Duration::from_millis(500));
        assert_eq!(server.times_said(said), 0, "the line is not repeated");
        if left == 1 {
            // Before the thread has read everything.
            cluster.kill();
        }
        prlimit(Some(server.pid()), Resource::Nofile, usual).unwrap();
    }
    client.wait_for_postgres();
    assert_eq!(cluster.count("select count(*) from purchases"), 5);
    assert_eq!(cluster.count("select count(*) from checkouts where outcome > 0"), 3);
    drop(client);
    assert!(server.terminate().success());
}

#[test]
fn more_connections_than_wanted_are_told_so() {
    const INSIDE: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1", "--max-connections", "8"]].concat());
    let mut inside: Vec<Client> = server.occupy(INSIDE);
    for _ in 0..2 * INSIDE {
        let mut client = server.connect();
        let refused = client.read().unwrap();
        assert_eq!((refused.problem().as_str(), refused.asks_to_retry()), ("too-many-connections", true));
        assert!(client.is_closed());
    }
    inside.iter_mut().for_each(|client| assert_eq!(client.read().unwrap().status, 200));
    inside.clear();
    // Each client that disconnected makes room for a new one.
    while inside.len() < INSIDE {
        let mut client = server.connect();
        match client.try_request("GET /livez", "") {
            Ok(response) if response.status == 200 => inside.push(client),
            // The server has not yet noticed that the others have disconnected.
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
    assert!(server.terminate().success());
}
