//! Tests with ten thousand clients that are idle, slow or lost without notice: they use little memory, and a
//! well-behaved client is served at the same time.

use crate::harness::{LONG_SALE, Server, how_many};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Descriptors left for the other tests in this process.
const OTHERS: u64 = 2_000;

/// Limit on the server's resident memory with all clients connected, in KiB.
const RESIDENT_KIB_MAX: u64 = 40 * 1024;

/// Returns the number of clients: as many as STAMPEDE_CROWD says, or as the limit on descriptors allows.
fn clients() -> u32 {
    let wanted = how_many("STAMPEDE_CROWD", 10_000);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit can be raised");
    let possible = maximum.unwrap_or(u64::MAX).saturating_sub(OTHERS);
    if possible < wanted.into() {
        println!("only {possible} clients: the hard limit on descriptors allows no more");
    }
    wanted.min(possible as u32)
}

/// The bytes that a bad client sends.
struct Habit {
    /// Bytes sent at once.
    first: &'static str,
    /// Byte sent every second after that.
    then: Option<u8>,
}

const HABITS: [Habit; 5] = [
    // Idle from the beginning, and idle after a request.
    Habit { first: "", then: None },
    Habit { first: "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", then: None },
    // A head and a body that arrive one byte at a time.
    Habit { first: "POST /checkout?user_id=1&item_id=1 HTTP/1.1\r\nHost: x\r\nSlow: ", then: Some(b'a') },
    Habit { first: "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", then: Some(b'b') },
    // Lost in the middle of a head, without a FIN or a reset.
    Habit { first: "POST /purchase?code=52", then: None },
];

fn connect(address: SocketAddr, number: usize) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("the server accepts");
    client.write_all(HABITS[number % HABITS.len()].first.as_bytes()).expect("the connection is open");
    client
}

#[test]
fn ten_thousand_bad_clients_cost_little_and_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2", "--user-limit", "10000"]].concat());
    let address = server.address;
    let before = server.resident_kib();
    let mut bad: Vec<TcpStream> = (0..clients() as usize).map(|number| connect(address, number)).collect();
    let mut client = server.connect();
    let end = Instant::now() + Duration::from_secs(20);
    let connections = |client: &mut crate::harness::Client| {
        let health = client.request("GET /health").json();
        let shards = health["shards"].as_array().expect("the shards are a list").clone();
        shards.iter().map(|shard| shard["connections"].as_u64().unwrap()).sum::<u64>()
    };
    while connections(&mut client) <= bad.len() as u64 {
        assert!(Instant::now() < end, "only {} connections of {}", connections(&mut client), bad.len());
        thread::sleep(Duration::from_millis(20));
    }
    let with_all = server.resident_kib();

    let (is_over, bought) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for item in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let code = client.reserve(1, item);
                assert_eq!(client.purchase(&code).status, 200);
                bought.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        for _ in 0..how_many("STAMPEDE_CROWD_SECONDS", 4) {
            let begin = Instant::now();
            for (number, client) in bad.iter_mut().enumerate() {
                let Some(byte) = HABITS[number % HABITS.len()].then else { continue };
                // The server has timed this client out: connect again.
                if client.write_all(&[byte]).is_err() {
                    *client = connect(address, number);
                }
            }
            thread::sleep(Duration::from_secs(1).saturating_sub(begin.elapsed()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let in_the_end = server.resident_kib();
    println!("{} clients: {before} KiB before, {with_all} with all, {in_the_end} in the end", bad.len());
    assert!(with_all.max(in_the_end) < RESIDENT_KIB_MAX, "{with_all} KiB, {in_the_end} in the end");
    assert!(bought.into_inner() > 0);
    drop(bad);
    assert!(server.terminate().success());
}
