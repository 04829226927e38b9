//! Starts servers, speaks HTTP to them, ends them.

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

/// A sale that no test lives to see the end of.
pub const LONG_SALE: [&str; 2] = ["--sale-period", "365days"];

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running server.
pub struct Server {
    /// Which process is the server: after an upgrade, another one than was started.
    pid: Pid,
    has_ended: bool,
    data_dir: PathBuf,
    database_url: Option<String>,
    history: Arc<History>,
    pub address: SocketAddr,
    /// Its port for operators.
    pub admin: SocketAddr,
    lines: Receiver<String>,
    /// Lines read, but not yet waited for.
    seen: RefCell<Vec<serde_json::Value>>,
    /// From the start of the process to its "serving".
    pub start_time: Duration,
}

/// A command for the binary, free of the settings of whoever runs the tests.
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

    /// Starts what `command` says, and waits until it listens.
    #[expect(clippy::zombie_processes, reason = "after an upgrade it is another process that is waited for")]
    pub fn run(command: &mut Command) -> Server {
        let value = |flag: &str| command.get_args().skip_while(|argument| *argument != flag).nth(1);
        let data_dir = PathBuf::from(value("--data-dir").expect("every command says where"));
        let database_url = value("--database-url").map(|url| url.to_str().expect("text").to_owned());
        let history = History::of(&data_dir);
        // What a process that ends leaves behind is this one's child then.
        set_child_subreaper(Some(getpid())).expect("it can be had");
        let mut child = command.spawn().expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
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
        let starting = server.wait_for_line("starting");
        let address = |name: &str| starting[name].as_str().expect("it says where").parse().expect("an address");
        (server.address, server.admin) = (address("listen"), address("admin"));
        server.history.serves(server.address);
        server
    }

    /// Waits for a log line with this message, past or to come, and returns its fields. Each line is found once.
    pub fn wait_for_line(&self, message: &str) -> serde_json::Value {
        self.wait_for_one_of(&[message])
    }

    /// Waits for a log line with one of these messages.
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
            // Before the settings are known, nobody has said in which format lines shall be.
            let is_early = line.starts_with("stampede: ");
            let fields =
                if is_early { Ok(serde_json::json!({ "message": line })) } else { serde_json::from_str(&line) };
            seen.push(fields.unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }

    /// Has another process go on in its place, and waits until it serves.
    pub fn upgrade(&mut self) {
        wait_until("the upgrade before is over", || {
            self.signal(Signal::USR2);
            let said = self.wait_for_one_of(&["upgrading", "no upgrade now"]);
            said["why"].is_null() || {
                assert_eq!(said["why"], "one is under way");
                false
            }
        });
        let pid = self.wait_for_line("handed over")["pid"].as_i64().expect("it says which");
        self.wait_for_line("serving");
        assert!(self.is_replaced_by(pid as i32).success());
    }

    /// The process has ended, or is about to, and another one goes on. Returns how it has ended.
    pub fn is_replaced_by(&mut self, pid: i32) -> ExitStatus {
        wait_for(std::mem::replace(&mut self.pid, Pid::from_raw(pid).expect("a number")))
    }

    /// Whatever has been said so far, nobody will wait for it.
    pub fn forget_lines(&self) {
        self.lines.try_iter().for_each(drop);
        self.seen.borrow_mut().clear();
    }

    /// How many lines with this message have come and have not been waited for.
    pub fn times_said(&self, message: &str) -> usize {
        let mut seen = self.seen.borrow_mut();
        seen.extend(self.lines.try_iter().filter_map(|line| serde_json::from_str(&line).ok()));
        seen.iter().filter(|fields| fields["message"].as_str().is_some_and(|text| text.starts_with(message))).count()
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the server accepts")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the server can be signalled");
    }

    /// Ends it without any warning.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.end();
    }

    /// Waits for it to end by itself; returns the exit code and the last thing it said.
    pub fn last_words(mut self) -> (i32, String) {
        let end = Instant::now() + PATIENCE;
        let mut last = self.seen.take().pop();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => last = serde_json::from_str(&line).ok(),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; it last said {last:?}"),
            }
        }
        let status = self.end();
        let message = last.as_ref().and_then(|line| line["message"].as_str());
        (status.code().expect("it ended by itself"), message.expect("it said something").to_owned())
    }

    /// Waits for it to end by itself.
    pub fn wait(mut self) -> ExitStatus {
        self.end()
    }

    /// Ends it as an operator would.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for it to end, as it has been told to.
    pub fn end_by_itself(mut self) -> ExitStatus {
        self.end()
    }

    /// When it has ended, its log must explain what its clients were told.
    fn end(&mut self) -> ExitStatus {
        let status = wait_for(self.pid);
        self.has_ended = true;
        if !std::thread::panicking() {
            self.history.check(&self.data_dir);
            // It has waited until everything had arrived, or said that it did not.
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

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.proc_number("status", "VmRSS:")
    }

    fn proc_number(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid.as_raw_nonzero())).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel says");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
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
    let status = waitpid(Some(pid), WaitOptions::empty()).expect("it can be waited for");
    ExitStatus::from_raw(status.expect("it has ended").1.as_raw())
}

/// A number from the environment: how much to try before a release, or the default.
pub fn how_many(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Runs to its end, which is to come by itself: the exit code and everything it said.
pub fn run_to_end(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = stampede(data_dir, arguments).output().expect("the binary starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (output.status.code().expect("an exit code"), text)
}

/// Runs to its end, which is to be a refusal that says all of `parts`.
pub fn assert_refused(data_dir: &Path, arguments: &[&str], code: i32, parts: &[&str]) {
    let (actual, text) = run_to_end(data_dir, arguments);
    assert_eq!(actual, code, "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
}

/// Waits for what will be true soon.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file or directory of this repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of this repository.
pub fn repository_text(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn copy_dir(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp starts").success());
}

/// Says that a test could not be made here. Nothing has been shown then.
pub fn skipped(test: &str, why: impl fmt::Display) {
    // Past the capture of the test runner: a test that did not run must not look like one that passed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// A response.
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

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The last part of the problem's type.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        json["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/")).expect("a type").to_owned()
    }

    /// "200", or the problem's name.
    pub fn outcome(&self) -> String {
        if self.status < 300 { self.status.to_string() } else { self.problem() }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.head, self.body)
    }
}

/// One keep-alive connection.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    history: Arc<History>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, received: Vec::new(), history: History::at(address) })
    }

    /// Sends what is not noted in the history.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.history.leave_gap();
        self.stream.write_all(bytes)
    }

    /// Sends `bytes` over and over, until nothing more has been taken for a while.
    pub fn send_until_stuck(&mut self, bytes: &[u8]) {
        self.history.leave_gap();
        self.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("it is open");
        while self.stream.write_all(bytes).is_ok() {}
    }

    /// Whether an answer, or the end, comes in this time.
    pub fn answers_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).expect("it is open");
        let comes = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_read_timeout(Some(PATIENCE)).expect("it is open");
        comes
    }

    /// For reading here and writing there.
    pub fn another_handle(&self) -> Client {
        let stream = self.stream.try_clone().expect("it is open");
        Client { stream, received: Vec::new(), history: self.history.clone() }
    }

    /// No more will be sent.
    pub fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    }

    /// Reads one response; its body only if there is one.
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
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let mut response = Response { status, head, body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().expect("a length"));
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
            // A signal may come to any thread of the tests, and a read with a time limit is not taken up again.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.receive(),
            Err(error) => Err(error),
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                self.received.extend_from_slice(&bytes[..received]);
                Ok(())
            }
        }
    }

    /// Whether the server has closed the connection and said nothing more.
    pub fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.receive().is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof)
    }

    pub fn try_request(&mut self, line: &str, fields: &str) -> std::io::Result<Response> {
        let number = self.history.begin(line);
        self.stream.write_all(format!("{line} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n").as_bytes())?;
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

    pub fn checkout(&mut self, user: i64, item: u32) -> Response {
        self.try_checkout(user, item).unwrap_or_else(|error| panic!("checkout: {error}"))
    }

    /// Reserves an item that must be free, and returns the code.
    pub fn reserve(&mut self, user: i64, item: u32) -> String {
        let response = self.checkout(user, item);
        assert_eq!(response.status, 200, "{response:?}");
        response.body
    }

    pub fn try_purchase(&mut self, code: &str) -> std::io::Result<Response> {
        self.try_request(&format!("POST /purchase?code={code}"), "")
    }

    pub fn purchase(&mut self, code: &str) -> Response {
        self.try_purchase(code).unwrap_or_else(|error| panic!("purchase: {error}"))
    }

    /// Waits until all that is durable is in Postgres, too.
    pub fn wait_for_postgres(&mut self) {
        let mut is_there = || self.request("GET /readyz").json()["postgres"]["records_behind"] == 0;
        wait_until("the database has caught up", &mut is_there);
    }

    pub fn sale(&mut self) -> serde_json::Value {
        self.request("GET /sale").json()
    }
}
