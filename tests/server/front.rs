//! Tests of `tuning/nginx.conf`, with the real nginx in front of the real server.

use crate::harness::{LONG_SALE, Response, Server, repository_text, skipped, wait_until};
use crate::history::History;
use crate::planned::{PLAN, now_s, product, sale, write};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

/// Limits of the configuration for one address: requests in a burst, requests per second, requests in flight.
const BURST: u64 = 40;
const RATE: u64 = 20;
const IN_FLIGHT: usize = 20;

/// A running nginx with this configuration, except for addresses and paths.
struct Front {
    nginx: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
    history: Arc<History>,
}

impl Front {
    /// Starts nginx in front of `upstream`. Returns `None`, and prints that the test is skipped, if nginx or curl is
    /// missing.
    fn start(upstream: SocketAddr) -> Option<Front> {
        let is_there = |program: &str, flag: &str| Command::new(program).arg(flag).output().is_ok();
        if !is_there("nginx", "-v") || !is_there("curl", "--version") {
            skipped("nginx in front", "no nginx, or no curl");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(path("certificate.pem"), certified.cert.pem()).unwrap();
        fs::write(path("key.pem"), certified.signing_key.serialize_pem()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut text = repository_text("tuning/nginx.conf");
        // The user of the tests may not write to the package's directories for bodies.
        let bodies = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let bodies: String = bodies.iter().map(|kind| format!("{kind}_temp_path {};\n", path(kind))).collect();
        for (here, there) in [
            ("http {", format!("http {{\n{bodies}")),
            ("listen 443", format!("listen {address}")),
            // Not every machine has IPv6.
            ("listen [::]:443", format!("# {address}")),
            ("server 127.0.0.1:8080", format!("server {upstream}")),
            ("/etc/ssl/stampede", path("")),
            ("/var/log/nginx", path("")),
            ("/run/nginx.pid", path("pid")),
        ] {
            assert!(text.contains(here), "tuning/nginx.conf has no {here}");
            text = text.replace(here, &there);
        }
        fs::write(path("nginx.conf"), text).unwrap();
        let command = || {
            let mut command = Command::new("nginx");
            command.args(["-e", "stderr", "-p", &path(""), "-c", &path("nginx.conf"), "-g", "daemon off;"]);
            command
        };
        let tried = command().arg("-t").output().unwrap();
        let said = String::from_utf8(tried.stderr).unwrap();
        assert!(tried.status.success(), "{said}");
        // Two warnings depend on the machine: only root can set a user, and the limit on open files cannot be raised
        // above the hard limit.
        let is_of_this_machine = |line: &&str| line.contains("\"user\" directive") || line.contains("open file");
        let warnings: Vec<_> = said.lines().filter(|line| line.contains("[warn]")).collect();
        assert!(warnings.iter().all(is_of_this_machine), "{said}");
        let nginx = command().stderr(Stdio::null()).spawn().unwrap();
        let front = Front { nginx, dir, address, history: History::at(upstream) };
        wait_until("nginx listens", || TcpStream::connect(address).is_ok());
        Some(front)
    }

    /// Returns a curl command that trusts the certificate.
    fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.env_clear().args(["--silent", "--show-error", "--http2", "--max-time", "60", "--cacert"]);
        command.arg(self.dir.path().join("certificate.pem"));
        command
    }

    fn url(&self, target: &str) -> String {
        format!("https://{}{target}", self.address)
    }

    /// Sends a request on a connection of its own.
    fn ask(&self, line: &str) -> Response {
        let number = self.history.begin(line, "");
        let (method, target) = line.split_once(' ').unwrap();
        let said = text_of(self.curl().args(["--include", "--request", method, &self.url(target)]));
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{line}: {said}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("the head has a status");
        let response = Response { status, head: head.to_owned(), body: body.to_owned() };
        self.history.end(number, &response);
        response
    }

    /// Reserves items 1 to `requests` on one connection, at most `at_once` at a time. Returns each status.
    fn flood(&self, requests: usize, at_once: usize) -> Vec<String> {
        self.history.leave_gap();
        let mut command = self.curl();
        command.args(["--parallel", "--parallel-max", &at_once.to_string(), "--output", "/dev/null"]);
        command.args(["--write-out", "%{http_code} %{http_version}\n", "--request", "POST"]);
        let said = text_of(command.arg(self.url(&format!("/checkout?user_id=1&item_id=[1-{requests}]"))));
        let statuses = said.lines().map(|line| line.strip_suffix(" 2").expect("the version is HTTP/2").to_owned());
        statuses.collect()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // SIGTERM lets nginx stop its workers. SIGKILL would leave them running.
        let _ = kill_process(Pid::from_child(&self.nginx), Signal::TERM);
        let _ = self.nginx.wait();
    }
}

fn text_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn count(statuses: &[String], status: &str) -> usize {
    statuses.iter().filter(|each| *each == status).count()
}

#[test]
fn buyers_are_served_through_tls_on_connections_that_stay_open() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let Some(front) = Front::start(server.address) else { return };
    let mut direct = server.connect();
    let reserve = |item: u32| front.ask(&format!("POST /checkout?user_id={item}&item_id={item}"));
    let codes: Vec<String> = (0..10).map(|item| reserve(item).body).collect();
    let bought = front.ask(&format!("POST /purchase?code={}", codes[0]));
    assert!(bought.status == 200 && bought.head.starts_with("HTTP/2 "), "{bought:?}");
    assert_eq!(front.ask(&format!("DELETE /checkout?code={}", codes[1])).status, 204);
    assert_eq!(front.ask("GET /sale").json()["sold"], 1);
    assert_eq!(reserve(2).problem(), "item-reserved");
    // These paths are not public. An unknown path may contain a code, which must not be logged.
    for path in ["/health", "/readyz", "/livez", "/", &format!("/purchase%3Fcode={}", codes[2])] {
        assert_eq!(front.ask(&format!("GET {path}")).problem(), "not-found", "{path}");
    }
    let health = direct.request("GET /health").json();
    let connections: u64 =
        health["shards"].as_array().unwrap().iter().map(|s| s["connections"].as_u64().unwrap()).sum();
    // Each worker of nginx needs one connection for sequential requests.
    let workers = std::thread::available_parallelism().unwrap().get() as u64;
    assert!((1 + 1..=1 + workers).contains(&connections), "{connections} with {workers} workers");

    wait_until("the access log has every request", || front.log("access.log").lines().count() == 14);
    let log = front.log("access.log");
    assert!(
        log.lines().any(|line| line.starts_with("127.0.0.1 ") && line.contains(" POST /purchase 200 200 ")),
        "{log}"
    );
    assert!(codes.iter().all(|code| !log.contains(code)), "the log contains a code: {log}");
    assert!(server.terminate().success());
}

/// Sends the requests of a shop's page: fifty items, images in parallel, and the events of the stock.
#[test]
fn a_shop_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let Some(front) = Front::start(server.address) else { return };
    let items = front.ask("GET /items");
    assert_eq!(items.json()["items"].as_array().unwrap().len(), 50);
    assert_eq!(items.header("x-request-id").map(str::len), Some(32), "{items:?}");
    assert_eq!(front.ask("GET /items/7").json(), server.connect().request("GET /items/7").json());
    assert_eq!(front.ask("GET /openapi.json").json()["openapi"], "3.1.0");
    let mut command = front.curl();
    command.args(["--parallel", "--parallel-max", "15", "--output", "/dev/null", "--write-out", "%{http_code}\n"]);
    let statuses = text_of(command.arg(front.url("/items/[0-199]/image.svg")));
    assert_eq!(statuses.lines().filter(|status| *status == "200").count(), 200, "{statuses}");
    let mut listening =
        front.curl().args(["--no-buffer", &front.url("/events")]).stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = BufReader::new(listening.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut hear = |event: &str| heard.find(|line| line == event).expect("the stream continues");
    hear("event: sale");
    server.connect().reserve(1, 1);
    hear("event: stock");
    listening.kill().unwrap();
    listening.wait().unwrap();
}

/// Sends the requests of a page that sells by a plan. The shop in the binary stays behind nginx.
#[test]
fn the_products_of_a_plan_are_shown() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    write(dir.path(), &[sale(7, (now - 5, now + 3600), "user_limit = 1", &product("low-4.5", 3))]);
    let server = Server::start(dir.path(), &PLAN);
    let Some(front) = Front::start(server.address) else { return };
    for page in
        ["/sales", "/sales/7", "/products", "/products?sale_id=7", "/products/low-4.5", "/items?product_id=low-4.5"]
    {
        let shown = front.ask(&format!("GET {page}"));
        assert_eq!(
            (shown.status, shown.json()),
            (200, server.connect().request(&format!("GET {page}")).json()),
            "{page}"
        );
    }
    for page in ["/", "/shop.js", "/shop/words.js", "/products/", "/products/a/b"] {
        assert_eq!(front.ask(&format!("GET {page}")).status, 404, "{page}");
    }
}

#[test]
fn one_address_cannot_ask_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--user-limit", "10000"]].concat());
    let Some(front) = Front::start(server.address) else { return };
    let started = Instant::now();
    let statuses = front.flood(2000, IN_FLIGHT / 2);
    let allowed = 1 + BURST + RATE * (1 + started.elapsed().as_secs());
    let let_in = count(&statuses, "200");
    assert_eq!(let_in + count(&statuses, "429"), 2000, "{statuses:?}");
    assert!((BURST as usize..=allowed as usize).contains(&let_in), "{let_in} were let in, {allowed} are allowed");
    assert_eq!(server.connect().sale()["reserved"], let_in, "refused requests do not reach the server");
    // A client at another address is served at the same time.
    let mut other = front.curl();
    other.args(["--interface", "127.0.0.2", "--request", "POST", &front.url("/checkout?user_id=2&item_id=9999")]);
    let code = text_of(&mut other);
    assert_eq!(server.connect().purchase(&code).status, 200, "{code}");
}

#[test]
fn one_address_cannot_pile_up_requests_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--user-limit", "10000"]].concat());
    let Some(front) = Front::start(server.address) else { return };
    server.signal(Signal::STOP);
    let statuses = std::thread::scope(|scope| {
        let flood = scope.spawn(|| front.flood(IN_FLIGHT + 10, IN_FLIGHT + 10));
        wait_until("requests above the limit are refused", || front.log("access.log").matches(" 429 ").count() == 10);
        let refused = front.ask("POST /checkout?user_id=1&item_id=9999");
        assert_eq!((refused.status, refused.problem().as_str()), (429, "too-many-requests"));
        assert_eq!(refused.header("retry-after"), Some("1"));
        server.signal(Signal::CONT);
        flood.join().unwrap()
    });
    assert_eq!((count(&statuses, "200"), count(&statuses, "429")), (IN_FLIGHT, 10), "{statuses:?}");
}

/// Starts a server that answers its first request and disconnects without an answer on every later one. Returns its
/// address and the heads that it receives.
fn dropping_server() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (sender, heads)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        let mut is_first = true;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            loop {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).is_ok_and(|bytes| bytes > 0) {}
                if head.is_empty() || sender.send(head).is_err() || !std::mem::take(&mut is_first) {
                    break;
                }
                stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
        }
    });
    (address, heads)
}

/// A request that was sent may have taken effect, so that nginx must not send it again. The client receives 503 with
/// the problem `overdue`: the outcome is unknown, and the client may try again.
#[test]
fn nothing_is_sent_twice() {
    let (upstream, heads) = dropping_server();
    let Some(front) = Front::start(upstream) else { return };
    let mut command = front.curl();
    // The second request uses a connection that nginx has kept open. With its default settings, nginx would send the
    // request again on another connection when that one is closed.
    command.args(["--include", "--header", "X-Forwarded-For: 192.0.2.1", "--request", "DELETE"]);
    let said = text_of(command.arg(front.url("/checkout?code=a-code-[1-2]")));
    assert!(said.starts_with("HTTP/2 204") && said.contains("HTTP/2 503"), "{said}");
    assert!(said.contains("\nretry-after: ") && said.ends_with(r#""type":"/problems/overdue"}"#), "{said}");
    let heads: Vec<String> = heads.try_iter().collect();
    assert_eq!(heads.len(), 2, "{heads:?}");
    for head in heads {
        let (line, fields) = head.split_once("\r\n").unwrap();
        assert!(line.starts_with("DELETE /checkout?code=a-code-") && line.ends_with("HTTP/1.1"), "{head}");
        assert!(fields.contains("X-Forwarded-For: 127.0.0.1\r\n") && !fields.contains("192.0.2.1"), "{head}");
        assert!(!fields.to_lowercase().contains("connection:"), "{head}");
    }
    wait_until("the access log has every request", || front.log("access.log").lines().count() == 2);
    assert!(!front.log("access.log").contains("a-code") && !front.log("error.log").contains("a-code"));
}
