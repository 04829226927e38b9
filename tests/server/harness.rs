//! Starts servers, sends HTTP requests to them, and ends them.
//!
//! When a server ends, its log, and after a clean stop Postgres, must agree with the history of its clients.

use crate::history::History;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use std::cell::RefCell;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Arguments for a sale that does not end during a test.
pub const LONG_SALE: [&str; 2] = ["--sale-period", "365days"];

/// Time limit for every wait of a test.
const PATIENCE: Duration = Duration::from_secs(40);
/// Time limit for the return of a place in the quota, which takes a few turns of two shards on an idle machine.
const QUOTA_RETURN_TIME: Duration = Duration::from_secs(5);

/// A running server, killed when dropped.
pub struct Server {
    /// Process of the server. An upgrade replaces it.
    pid: Pid,
    has_ended: bool,
    data_dir: PathBuf,
    database_url: Option<String>,
    history: Arc<History>,
    pub address: SocketAddr,
    /// Address of the admin port.
    pub admin: SocketAddr,
    lines: Receiver<String>,
    /// Lines received, but not yet waited for.
    seen: RefCell<Vec<serde_json::Value>>,
    /// Time from the start of the process to its log line "serving".
    pub start_time: Duration,
}

/// Returns a command for the binary, with an empty environment.
pub fn stampede(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stampede"));
    command.env_clear().current_dir(data_dir).args([
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--data-dir",
    ]);
    command.arg(data_dir).args(arguments).stderr(Stdio::piped()).stdout(Stdio::piped()).stdin(Stdio::null());
    command
}

impl Server {
    /// Starts a server on a free port and waits until it serves.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Server {
        let started = Instant::now();
        let mut server = Self::spawn(data_dir, arguments);
        server.wait_for_line("serving");
        server.start_time = started.elapsed();
        server
    }

    /// Starts a server on a free port and waits until it listens.
    pub fn spawn(data_dir: &Path, arguments: &[&str]) -> Server {
        Self::run(&mut stampede(data_dir, arguments))
    }

    /// Starts `command`, and waits until the server listens.
    #[expect(clippy::zombie_processes, reason = "after an upgrade it is another process that is waited for")]
    pub fn run(command: &mut Command) -> Server {
        let value = |flag: &str| command.get_args().skip_while(|argument| *argument != flag).nth(1);
        let data_dir = PathBuf::from(value("--data-dir").expect("every command has --data-dir"));
        let database_url = value("--database-url").map(|url| url.to_str().expect("the URL is UTF-8").to_owned());
        let history = History::of(&data_dir);
        // When a process ends, its children become children of the test process. The test process can then wait for
        // the new process of an upgrade.
        set_child_subreaper(Some(getpid())).expect("the test process can become a subreaper");
        let mut child = command.spawn().expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("standard error is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        let mut server = Server {
            pid: Pid::from_child(&child),
            has_ended: false,
            data_dir,
            database_url,
            history,
            address: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            lines,
            seen: RefCell::default(),
            start_time: Duration::ZERO,
        };
        server.starts_again();
        server
    }

    /// Waits until the process listens, after its start or after it has executed itself again.
    pub fn starts_again(&mut self) {
        let starting = self.wait_for_line("starting");
        let address = |name: &str| starting[name].as_str().expect("a string").parse().expect("an address");
        (self.address, self.admin) = (address("listen"), address("admin"));
        self.history.serves(self.address);
    }

    /// Waits for a log line whose message begins with `message`, and returns its fields. The line may have been logged
    /// already. Each line is returned once.
    pub fn wait_for_line(&self, message: &str) -> serde_json::Value {
        self.wait_for_one_of(&[message])
    }

    /// Waits for a log line whose message begins with one of `messages`, and returns its fields.
    pub fn wait_for_one_of(&self, messages: &[&str]) -> serde_json::Value {
        let end = Instant::now() + PATIENCE;
        let mut seen = self.seen.borrow_mut();
        let is_one = |fields: &serde_json::Value| {
            fields["message"].as_str().is_some_and(|text| messages.iter().any(|message| text.starts_with(message)))
        };
        loop {
            if let Some(place) = seen.iter().position(is_one) {
                return seen.remove(place);
            }
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("none of {messages:?} in {seen:#?}") };
            // Before the settings are read, the server does not know the log format, and writes plain text. The mistakes of
            // a plan have lines of their own.
            let is_early = ["stampede: ", "shop.toml:", "    "].iter().any(|beginning| line.starts_with(beginning));
            let fields =
                if is_early { Ok(serde_json::json!({ "message": line })) } else { serde_json::from_str(&line) };
            seen.push(fields.unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }

    /// Upgrades the server, and waits until the new process serves.
    pub fn upgrade(&mut self) {
        wait_until("the previous upgrade has ended", || {
            self.signal(Signal::USR2);
            let said = self.wait_for_one_of(&["upgrading", "the upgrade was refused"]);
            said["why"].is_null() || {
                assert_eq!(said["why"], "an upgrade is in progress");
                false
            }
        });
        let pid = self.wait_for_line("handed over")["pid"].as_i64().expect("the line has the process id");
        self.wait_for_line("serving");
        assert!(self.is_replaced_by(pid as i32).success());
    }

    /// Waits for the old process of an upgrade to end, and makes `pid` the process of the server. Returns the exit
    /// status of the old process.
    pub fn is_replaced_by(&mut self, pid: i32) -> ExitStatus {
        wait_for(std::mem::replace(&mut self.pid, Pid::from_raw(pid).expect("the process id is positive")))
    }

    /// Discards all log lines so far.
    pub fn forget_lines(&self) {
        self.lines.try_iter().for_each(drop);
        self.seen.borrow_mut().clear();
    }

    /// Returns the number of log lines with this message that no wait has returned.
    pub fn times_said(&self, message: &str) -> usize {
        let mut seen = self.seen.borrow_mut();
        seen.extend(self.lines.try_iter().filter_map(|line| serde_json::from_str(&line).ok()));
        seen.iter().filter(|fields| fields["message"].as_str().is_some_and(|text| text.starts_with(message))).count()
    }

    /// Opens a connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the server accepts")
    }

    /// Opens connections that the server cannot close in favour of others, because their clients do not read their
    /// answers. The answers to what is sent first are already more than the buffers of the two sockets hold (10 MB at
    /// most): a server that stands still for 200 ms must not look like one whose client is stuck.
    pub fn occupy(&self, connections: usize) -> Vec<Client> {
        let occupy = || {
            let mut client = self.connect();
            client.send_until_stuck(&b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_024));
            // The server may not have noticed yet that an earlier client has left its place.
            client.begins_with("HTTP/1.1 200").then_some(client)
        };
        std::iter::from_fn(|| Some(occupy())).flatten().take(connections).collect()
    }

    /// Returns the sum of a metric over all its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = Client::connect(self.admin).expect("the admin port accepts").request("GET /metrics").body;
        let samples =
            metrics.lines().filter_map(|line| line.split_once(['{', ' ']).filter(|(found, _)| *found == name));
        let values = samples.map(|(_, sample)| sample.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()));
        values.map(|value| value.expect("the sample has a value") as u64).sum()
    }

    /// Returns the metrics of connections, for the message of a test that fails.
    pub fn connections_by_shard(&self) -> String {
        let metrics = Client::connect(self.admin).expect("the admin port accepts").request("GET /metrics").body;
        metrics.lines().filter(|line| line.starts_with("stampede_connections")).collect::<Vec<_>>().join("; ")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the server can be signalled");
    }

    /// Ends the server with SIGKILL.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.end();
    }

    /// Waits for the server to end by itself. Returns the exit code and the last log message.
    pub fn last_words(mut self) -> (i32, String) {
        let end = Instant::now() + PATIENCE;
        let mut last = self.seen.take().pop();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => last = serde_json::from_str(&line).ok(),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the server does not end; its last line is {last:?}"),
            }
        }
        let status = self.end();
        let message = last.as_ref().and_then(|line| line["message"].as_str());
        (status.code().expect("no signal ended the server"), message.expect("the server logged a message").to_owned())
    }

    /// Waits for the server to end by itself.
    pub fn wait(mut self) -> ExitStatus {
        self.end()
    }

    /// Stops the server with SIGTERM, as an operator would.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for the server to end after a requested stop.
    pub fn end_by_itself(mut self) -> ExitStatus {
        self.end()
    }

    /// Waits for the process to end, and checks that the log explains every response to its clients.
    fn end(&mut self) -> ExitStatus {
        let status = wait_for(self.pid);
        self.has_ended = true;
        if !std::thread::panicking() {
            self.history.check(&self.data_dir);
            // A clean stop waits until every record is persisted, unless the server logs that it stops without the
            // database.
            if let Some(url) = self.database_url.as_ref().filter(|_| status.success()) {
                self.seen.borrow_mut().extend(self.lines.iter().filter_map(|line| serde_json::from_str(&line).ok()));
                if self.times_said("stopping without the database") == 0 {
                    self.history.check_rows(&self.data_dir, url);
                }
            }
        }
        status
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the resident memory of the server, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.proc_number("status", "VmRSS:")
    }

    /// Returns the most resident memory that the server has had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.proc_number("status", "VmHWM:")
    }

    fn proc_number(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid.as_raw_nonzero()))
            .expect("the server is running");
        let line = text.lines().find(|line| line.starts_with(name)).expect("the file has the line");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("the line has a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_ended {
            self.signal(Signal::KILL);
            self.end();
        }
    }
}

fn wait_for(pid: Pid) -> ExitStatus {
    let status = waitpid(Some(pid), WaitOptions::empty()).expect("the process can be waited for");
    ExitStatus::from_raw(status.expect("the process has ended").1.as_raw())
}

/// Returns a number from the environment, or the default. Long runs before a release set larger numbers.
pub fn how_many(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Runs the binary, which must end by itself. Returns the exit code and the output.
pub fn run_to_end(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = stampede(data_dir, arguments).output().expect("the binary starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (output.status.code().expect("an exit code"), text)
}

/// Checks that the binary refuses to run, with this exit code and all of `parts` in its output.
pub fn assert_refused(data_dir: &Path, arguments: &[&str], code: i32, parts: &[&str]) {
    let (actual, text) = run_to_end(data_dir, arguments);
    assert_eq!(actual, code, "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
}

/// Waits until `holds` returns true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the path of a file or directory of this repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads a file of this repository.
pub fn repository_text(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn copy_dir(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp starts").success());
}

/// Prints that a test cannot run on this machine. A skipped test proves nothing.
pub fn skipped(test: &str, why: impl fmt::Display) {
    // The test runner does not capture this output, so that a skipped test does not look like one that passed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// An HTTP response.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns whether the response asks the client to come back after 1, 2 or 3 seconds.
    pub fn asks_to_retry(&self) -> bool {
        matches!(self.header("retry-after"), Some("1" | "2" | "3"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the last part of the problem's type.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        json["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/")).expect("a problem has a type").to_owned()
    }

    /// Returns the status of a success, like "200", or the problem's name.
    pub fn outcome(&self) -> String {
        if self.status < 300 { self.status.to_string() } else { self.problem() }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.head, self.body)
    }
}

/// An HTTP/1.1 connection that stays open.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    history: Arc<History>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> std::io::Result<Client> {
        Self::of(TcpStream::connect(address)?, address)
    }

    /// Uses a connection to the server at `address`.
    pub fn of(stream: TcpStream, address: SocketAddr) -> std::io::Result<Client> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, received: Vec::new(), history: History::at(address) })
    }

    /// Sends bytes that the history does not record.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.history.leave_gap();
        self.stream.write_all(bytes)
    }

    /// Sends `bytes` again and again, until the server has accepted nothing for 200 ms.
    pub fn send_until_stuck(&mut self, bytes: &[u8]) {
        self.history.leave_gap();
        self.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("the connection is open");
        while self.stream.write_all(bytes).is_ok() {}
    }

    /// Returns whether a response, or the end of the connection, arrives within this time.
    pub fn answers_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).expect("the connection is open");
        let comes = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_read_timeout(Some(PATIENCE)).expect("the connection is open");
        comes
    }

    /// Returns whether this is the beginning of what the server has sent.
    fn begins_with(&self, beginning: &str) -> bool {
        let mut bytes = vec![0; beginning.len()];
        self.stream.peek(&mut bytes).is_ok_and(|count| &bytes[..count] == beginning.as_bytes())
    }

    /// Returns a second handle, so that one thread can read and another can write.
    pub fn another_handle(&self) -> Client {
        let stream = self.stream.try_clone().expect("the connection is open");
        Client { stream, received: Vec::new(), history: self.history.clone() }
    }

    /// Closes the sending side of the connection.
    pub fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }

    /// Reads one response, with its body if it has one.
    pub fn read(&mut self) -> std::io::Result<Response> {
        self.read_after(false)
    }

    pub fn read_head(&mut self) -> std::io::Result<Response> {
        self.read_after(true)
    }

    fn read_after(&mut self, head_only: bool) -> std::io::Result<Response> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            self.receive()?;
        };
        let head = String::from_utf8(self.received.drain(..end + 4).collect()).expect("heads are text");
        let head = head.trim_end().to_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("the head has a status");
        let mut response = Response { status, head, body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().expect("a number"));
        let length = if head_only { 0 } else { length };
        while self.received.len() < length {
            self.receive()?;
        }
        response.body = String::from_utf8(self.received.drain(..length).collect()).expect("bodies are text");
        Ok(response)
    }

    fn receive(&mut self) -> std::io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            // A signal may interrupt any thread of the tests, and the kernel does not restart a read with a timeout.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.receive(),
            Err(error) => Err(error),
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                self.received.extend_from_slice(&bytes[..received]);
                Ok(())
            }
        }
    }

    /// Returns whether the server has closed the connection without sending more.
    pub fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.receive().is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof)
    }

    pub fn try_request(&mut self, line: &str, fields: &str) -> std::io::Result<Response> {
        let number = self.history.begin(line, fields);
        self.stream.write_all(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes())?;
        let response = self.read()?;
        self.history.end(number, &response);
        Ok(response)
    }

    pub fn request(&mut self, line: &str) -> Response {
        self.try_request(line, "").unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    pub fn try_checkout(&mut self, user: i64, item: u32) -> std::io::Result<Response> {
        self.try_request(&format!("POST /checkout?user_id={user}&item_id={item}"), "")
    }

    /// Sends a checkout with an idempotency key. The response is JSON.
    pub fn checkout_with_key(&mut self, user: i64, item: u32, key: &str) -> Response {
        let line = format!("POST /checkout?user_id={user}&id={item}");
        self.try_request(&line, &format!("Idempotency-Key: {key}\r\n"))
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    pub fn checkout(&mut self, user: i64, item: u32) -> Response {
        self.try_checkout(user, item).unwrap_or_else(|error| panic!("checkout: {error}"))
    }

    /// Reserves an item, which must be available. Returns the code.
    pub fn reserve(&mut self, user: i64, item: u32) -> String {
        let response = self.checkout(user, item);
        assert_eq!(response.status, 200, "{response:?}");
        response.body
    }

    /// Reserves an item, which must be available, for a user whose place in the quota has just become free. The message
    /// that returns the place may reach the user's owner after the client has the answer to its release, so
    /// `user-limit` is asked again for a limited time. Every other refusal fails at once. Returns the code.
    pub fn reserve_after_release(&mut self, user: i64, item: u32) -> String {
        let end = Instant::now() + QUOTA_RETURN_TIME;
        loop {
            let response = self.checkout(user, item);
            if response.status == 200 {
                return response.body;
            }
            assert_eq!(response.problem(), "user-limit", "{response:?}");
            assert!(Instant::now() < end, "the quota was not returned");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn try_purchase(&mut self, code: &str) -> std::io::Result<Response> {
        self.try_request(&format!("POST /purchase?code={code}"), "")
    }

    pub fn purchase(&mut self, code: &str) -> Response {
        self.try_purchase(code).unwrap_or_else(|error| panic!("purchase: {error}"))
    }

    /// Waits until every durable record is persisted in Postgres.
    pub fn wait_for_postgres(&mut self) {
        let mut is_there = || self.request("GET /readyz").json()["postgres"]["records_behind"] == 0;
        wait_until("the database has caught up", &mut is_there);
    }

    pub fn sale(&mut self) -> serde_json::Value {
        self.request("GET /sale").json()
    }
}
