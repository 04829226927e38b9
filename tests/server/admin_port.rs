//! The admin port: the names under which it answers, and clients that use up connections.

use crate::harness::{Client, LONG_SALE, Server, assert_refused, stampede, wait_until};
use crate::metrics::scrape;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Descriptors that the server may have.
const DESCRIPTORS: u64 = 700;

/// Returns the status of a request with these header fields.
fn status(admin: SocketAddr, line: &str, fields: &str) -> u16 {
    let mut client = Client::connect(admin).unwrap();
    client.send(format!("{line}\r\n{fields}\r\n").as_bytes()).unwrap();
    client.read_head().unwrap().status
}

/// A page of another site can reach this port through the browser of an operator if its name points here. All paths
/// refuse such a name, also those that do not exist.
#[test]
fn only_known_names_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--admin-host", "shop-1.internal, Other"]].concat());
    let admin = server.admin;
    for path in ["/", "/dashboard.js", "/metrics", "/events"] {
        let line = format!("GET {path} HTTP/1.1");
        for host in
            ["localhost", "127.0.0.1", &admin.to_string(), "[::1]:99", "10.9.8.7", "shop-1.internal:8081", "other"]
        {
            assert_eq!(status(admin, &line, &format!("Host: {host}\r\n")), 200, "{path} {host}");
        }
        for fields in [
            "Host: evil.example\r\n",
            "Host: localhost.evil.example:8081\r\n",
            "Host: evil.example@127.0.0.1\r\n",
            "Host:\r\n",
            "Host: localhost\r\nHost: evil.example\r\n",
        ] {
            assert_eq!(status(admin, &line, fields), 421, "{path} {fields}");
        }
        assert_eq!(status(admin, &format!("GET http://evil.example{path} HTTP/1.1"), "Host: localhost\r\n"), 421);
        // No browser omits the field.
        assert_eq!(status(admin, &format!("GET {path} HTTP/1.0"), ""), 200);
    }
    assert_eq!(status(admin, "GET /none HTTP/1.1", "Host: evil.example\r\n"), 421);
    assert_eq!(status(admin, "POST /metrics HTTP/1.1", "Host: evil.example\r\n"), 421);
    let mut client = Client::connect(admin).unwrap();
    client.send(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").unwrap();
    assert!(client.read().unwrap().body.contains("--admin-host (ADMIN_HOST)"));
    assert_refused(dir.path(), &["--admin-host", "shop:8081"], 2, &["--admin-host", "without a port"]);
    server.kill();
}

/// Starts a server that may have `DESCRIPTORS` descriptors.
fn start_limited(dir: &Path, arguments: &[&str]) -> Server {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).expect("the test can have many sockets");
    let server = stampede(dir, &[&LONG_SALE[..], arguments].concat());
    let words = std::iter::once(server.get_program()).chain(server.get_args()).map(|word| word.to_str().unwrap());
    let script = format!("ulimit -n {DESCRIPTORS} && exec {}", words.collect::<Vec<_>>().join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).args(server.get_args()).env_clear().current_dir(dir).stderr(Stdio::piped());
    let server = Server::run(&mut command);
    server.wait_for_line("serving");
    server
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

/// Clients of the admin port that send nothing, half a head, or a head byte by byte, take no descriptor from buyers and
/// from the log. After a time limit, scrapes are answered again.
#[test]
fn connections_to_the_admin_port_cost_buyers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--shards", "1", "--items", "100000", "--user-limit", "100000", "--log-budget", "16MiB"];
    let server = start_limited(dir.path(), &arguments);
    let mut bad: Vec<TcpStream> = Vec::new();
    for number in 0..DESCRIPTORS {
        let mut stream = TcpStream::connect(server.admin).unwrap();
        match number % 3 {
            0 => {}
            1 => _ = std::io::Write::write(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: loc").unwrap(),
            _ => _ = std::io::Write::write(&mut stream, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET").unwrap(),
        }
        bad.push(stream);
    }
    server.wait_for_line("the admin port has its maximum of connections");
    // As many buyers as are allowed can connect, and the log can make segments. One more takes the place of the buyer
    // that has been idle longest.
    let mut buyers: Vec<Client> = Vec::new();
    loop {
        let mut client = server.connect();
        let open = client.request("GET /health").json()["shards"][0]["connections"].as_u64().unwrap();
        buyers.push(client);
        if buyers.len() as u64 > open {
            break;
        }
    }
    assert!(buyers.remove(0).is_closed());
    assert!(buyers.len() > 400, "{}", buyers.len());
    let blocks = || fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let before: u64 = blocks().sum();
    for item in 0..300 {
        let client = &mut buyers[item as usize];
        let code = client.reserve(1, item);
        assert_eq!(client.purchase(&code).status, 200);
    }
    assert!(blocks().sum::<u64>() > before, "the log has made segments");
    assert!(descriptors(&server) < DESCRIPTORS as usize);
    assert_eq!(server.times_said("the log waits"), 0);
    // The bad clients reconnect for as long as they like: a scrape waits for its place in the queue.
    let began = Instant::now();
    assert!(scrape(server.admin)["stampede_connections{shard=\"0\"}"] > 400.0);
    println!("a scrape behind {DESCRIPTORS} bad clients waited for {:?}", began.elapsed());
    drop(bad);
    wait_until("the connections of the admin port are closed", || descriptors(&server) < buyers.len() + 64);
    assert!(server.terminate().success());
}

/// A connection that is kept open between scrapes is closed after the time limit, and a stream of events is not.
#[test]
fn idle_connections_end_and_streams_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let (mut idle, mut half, mut slow) = (
        Client::connect(server.admin).unwrap(),
        Client::connect(server.admin).unwrap(),
        Client::connect(server.admin).unwrap(),
    );
    assert_eq!(idle.request("GET /metrics").status, 200);
    half.send(b"GET /met").unwrap();
    let mut viewer = Client::connect(server.admin).unwrap();
    viewer.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(viewer.read_head().unwrap().status, 200);
    let began = Instant::now();
    // A byte now and then does not extend the time.
    while slow.send(b"X").is_ok() && !slow.answers_within(Duration::from_millis(500)) {
        assert!(began.elapsed() < Duration::from_secs(8));
    }
    assert!(idle.is_closed());
    assert!(half.read().is_err() || half.is_closed());
    let waited = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&waited), "{waited:?}");
    // The samples of the last seconds, and then one more.
    assert!(viewer.answers_within(Duration::from_secs(5)));
    server.kill();
}
