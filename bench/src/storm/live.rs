//! The report as a web page during the run, for `--live`.
//!
//! 1. Once a second, if a browser shows the page, the event loop sends a copy of its counts to the renderer. The copy
//!    is all that the page costs the event loop.
//! 2. The renderer, a thread, renders the copy as HTML.
//! 3. A thread for each connection writes the HTML as a server-sent event, and at the end the report.

use crate::page::{LiveSnapshot, progress_body, style_sheet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum number of connections. More are closed.
const CONNECTIONS_MAX: usize = 32;
/// Maximum length of a request head, in bytes.
const HEAD_MAX: usize = 8192;
/// Time limit for each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of comments on a stream without events, so that a browser that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Maximum time in which browsers receive the report before the process ends.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// No script, style or connection from anywhere but this page's own address.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const PAGE: &str = include_str!("live.html");
const SCRIPT: &str = include_str!("live.js");

/// The page of a run.
pub struct LivePage {
    address: SocketAddr,
    stream: Arc<EventStream>,
    snapshots: SyncSender<LiveSnapshot>,
}

impl LivePage {
    /// Listens on an address and serves the page until the process ends.
    ///
    /// # Errors
    /// Returns an I/O error if the address is in use or a thread cannot be started.
    pub fn open(address: SocketAddr) -> io::Result<LivePage> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stream = Arc::new(EventStream::default());
        // One snapshot waits at most. If the renderer is late, the event loop drops the next one.
        let (snapshots, received) = sync_channel(1);
        let rendered = Arc::clone(&stream);
        thread::Builder::new().name("renderer".to_owned()).spawn(move || render(&received, &rendered))?;
        let served = Arc::clone(&stream);
        thread::Builder::new().name("live page".to_owned()).spawn(move || accept(&listener, &served))?;
        Ok(LivePage { address, stream, snapshots })
    }

    /// Returns the address on which the page is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows the progress of the run, if a browser has the page open.
    pub fn show(&self, snapshot: impl FnOnce() -> LiveSnapshot) {
        if self.stream.state().viewers > 0 {
            // An error means that the renderer is late: the next snapshot contains all that this one does.
            let _ = self.snapshots.try_send(snapshot());
        }
    }

    /// Shows the report in place of the progress. Returns when every open page has received it, after 5 seconds at
    /// most.
    pub fn end(&self, report: &str) {
        self.stream.publish(&event("report", report), true);
        let state = self.stream.state();
        let _ = self.stream.changed.wait_timeout_while(state, REPORT_TIMEOUT, |state| state.viewers > 0);
    }
}

/// The latest event, and the number of its readers.
#[derive(Default)]
struct EventStream {
    state: Mutex<StreamState>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct StreamState {
    /// Number of events so far.
    number: u64,
    event: Arc<str>,
    /// Whether the event is the report: none follows.
    is_last: bool,
    viewers: usize,
}

impl EventStream {
    fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, event: &str, is_last: bool) {
        let mut state = self.state();
        if !state.is_last {
            (state.number, state.event, state.is_last) = (state.number + 1, event.into(), is_last);
            self.changed.notify_all();
        }
    }

    fn count_viewer(&self, count: impl FnOnce(usize) -> usize) {
        let mut state = self.state();
        state.viewers = count(state.viewers);
        self.changed.notify_all();
    }

    /// Writes each new event to a browser, until the last one or until the browser is gone.
    fn write_to(&self, connection: &mut TcpStream) -> io::Result<()> {
        let mut written = 0;
        loop {
            let state = self.state();
            let waited = self.changed.wait_timeout_while(state, KEEP_ALIVE, |state| state.number == written);
            let StreamState { number, event, is_last, .. } = waited.unwrap_or_else(PoisonError::into_inner).0.clone();
            let is_new = number != written;
            connection.write_all(if is_new { event.as_bytes() } else { b":\n\n" })?;
            if is_last {
                return Ok(());
            }
            written = number;
        }
    }
}

/// Returns a server-sent event. The HTML is a JSON string, because an event ends at an empty line.
fn event(name: &str, html: &str) -> String {
    format!("event: {name}\ndata: {}\n\n", serde_json::Value::from(html))
}

fn render(snapshots: &Receiver<LiveSnapshot>, stream: &EventStream) {
    for snapshot in snapshots {
        match progress_body(&snapshot) {
            Ok(body) => stream.publish(&event("progress", &body), false),
            Err(error) => eprintln!("storm: --live: {error}"),
        }
    }
}

fn accept(listener: &TcpListener, stream: &Arc<EventStream>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((mut connection, _)) = listener.accept() else {
            // Out of descriptors, for example.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (stream, is_served) = (Arc::clone(stream), Arc::clone(&open));
        let serving = thread::Builder::new().name("browser".to_owned()).spawn(move || {
            // An error means that the browser is gone or sends no request.
            let _ = serve(&mut connection, &stream);
            is_served.fetch_sub(1, Ordering::Relaxed);
        });
        if serving.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Reads one request and answers it.
fn serve(connection: &mut TcpStream, stream: &EventStream) -> io::Result<()> {
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    let (method, path) = read_request(connection)?;
    if !matches!(method.as_str(), "GET" | "HEAD") {
        let head = head("405 Method Not Allowed", "text/plain; charset=utf-8");
        return connection.write_all(format!("{head}allow: GET, HEAD\r\n\r\n").as_bytes());
    }
    let style;
    let (kind, body) = match path.as_str() {
        "/" => ("text/html; charset=utf-8", PAGE),
        "/live.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "/live.css" => {
            style = style_sheet();
            ("text/css; charset=utf-8", style.as_str())
        }
        "/events" => {
            connection.write_all(format!("{}\r\n", head("200 OK", "text/event-stream")).as_bytes())?;
            if method == "HEAD" {
                return Ok(());
            }
            stream.count_viewer(|viewers| viewers + 1);
            let written = stream.write_to(connection);
            stream.count_viewer(|viewers| viewers - 1);
            return written;
        }
        _ => {
            let head = head("404 Not Found", "text/plain; charset=utf-8");
            return connection.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes());
        }
    };
    let head = head("200 OK", kind);
    connection.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes())?;
    if method == "GET" { connection.write_all(body.as_bytes()) } else { Ok(()) }
}

/// Returns the status line and the fields of every response. More fields may follow.
fn head(status: &str, kind: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-security-policy: {POLICY}\r\n\
         x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-store\r\n\
         connection: close\r\n"
    )
}

/// Returns the method and the path of a request.
fn read_request(connection: &mut TcpStream) -> io::Result<(String, String)> {
    let (mut received, mut buffer) = (Vec::new(), [0; 1024]);
    while received.len() < HEAD_MAX {
        match connection.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => received.extend_from_slice(&buffer[..length]),
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        let is_whole = request.parse(&received).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if let (true, Some(method), Some(path)) = (is_whole.is_complete(), request.method, request.path) {
            return Ok((method.to_owned(), path.split('?').next().unwrap_or_default().to_owned()));
        }
    }
    Err(ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::RunStatistics;

    fn snapshot() -> LiveSnapshot {
        LiveSnapshot {
            what: "trickle, 127.0.0.1:8080".to_owned(),
            is_over: false,
            at: Duration::from_secs(3),
            responses_per_second: 1,
            reserved: 2,
            bought: 1,
            unexpected: 0,
            statistics: RunStatistics::new(),
            samples: Vec::new(),
        }
    }

    fn open() -> LivePage {
        LivePage::open(([127, 0, 0, 1], 0).into()).unwrap()
    }

    fn request(page: &LivePage, request: &str) -> TcpStream {
        let mut connection = TcpStream::connect(page.address()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        connection.write_all(format!("{request} HTTP/1.1\r\nHost: storm\r\n\r\n").as_bytes()).unwrap();
        connection
    }

    fn response(page: &LivePage, line: &str) -> String {
        io::read_to_string(request(page, line)).unwrap()
    }

    #[test]
    fn only_the_files_of_the_page_are_served() {
        let page = open();
        for (path, kind, body) in [
            ("/", "text/html", "<script src"),
            ("/live.js", "text/javascript", "EventSource"),
            ("/live.css", "text/css", "svg"),
        ] {
            let got = response(&page, &format!("GET {path}"));
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains(kind) && got.contains(body), "{got}");
            assert!(got.contains("script-src 'self'; style-src 'self'"), "{got}");
            let head = response(&page, &format!("HEAD {path}"));
            assert_eq!(head, got[..got.find("\r\n\r\n").unwrap() + 4], "the same fields without the body");
        }
        assert!(response(&page, "GET /etc/passwd").starts_with("HTTP/1.1 404 "));
        assert!(response(&page, "POST /").starts_with("HTTP/1.1 405 "));
        let mut long = request(&page, &format!("GET /{}", "a".repeat(HEAD_MAX)));
        assert!(!matches!(long.read(&mut [0]), Ok(1)), "too long: closed without a response");
    }

    #[test]
    fn a_page_that_nobody_shows_costs_no_snapshot() {
        let page = open();
        page.show(|| panic!("no browser shows the page"));
        page.end("");
    }

    #[test]
    fn a_browser_receives_the_progress_and_then_the_report() {
        let page = open();
        let mut events = request(&page, "GET /events");
        let mut received = String::new();
        let mut wait_for = |text: &str| {
            let mut buffer = [0; 4096];
            while !received.contains(text) {
                let length = events.read(&mut buffer).unwrap();
                assert!(length > 0, "{received}");
                received.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            received.clone()
        };
        wait_for("text/event-stream");
        while page.stream.state().viewers == 0 {
            thread::yield_now();
        }
        page.show(snapshot);
        wait_for("event: progress\ndata: \"");
        page.end("<p>the\n\nreport</p>");
        let all = wait_for("event: report");
        assert!(all.ends_with("event: report\ndata: \"<p>the\\n\\nreport</p>\"\n\n"), "{all}");
        assert_eq!(page.stream.state().viewers, 0, "the report is delivered before the process may end");
        page.stream.publish("late", false);
        assert_ne!(&*page.stream.state().event, "late", "nothing replaces the report");
    }
}
