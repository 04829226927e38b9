//! The state of one client connection without its socket: received bytes, deadlines, and bytes to be written.
//!
//! The server passes received bytes to [`Connection::next`], which returns one step at a time. The state that an
//! upgrade in place hands to the next process is [`ConnectionSnapshot`].

use crate::http::body::Body;
use crate::http::byte_text;
use crate::http::head::{Head, parse_head};
use crate::http::operation::Operation;
use crate::http::problem::Problem;
use crate::http::response::Style;
use crate::sale::code::Code;
use crate::sale::ids::ItemId;
use serde::{Deserialize, Serialize};
use strum::{EnumCount, VariantArray};

/// Time limit for a head, from its first byte.
const HEAD_MS: u64 = 10_000;
/// Time limit for a body, from the end of its head.
const BODY_MS: u64 = 30_000;
/// Time limit for a decision, from the request.
const DECISION_MS: u64 = 10_000;
/// A client that does not read its answers is disconnected after this time, from the last byte that it has taken.
const WRITE_MS: u64 = 30_000;
/// No time limit: longer than the life of any process.
const NO_LIMIT_MS: u64 = u64::MAX / 2;
/// Time limit for the client to close, from the moment when the server has closed its direction.
const LINGER_MS: u64 = 2_000;
/// The deadline of a connection that waits for a request is set again at most once in this time, so that most requests
/// leave it as it is. An idle connection lives longer by this time at most, and never shorter.
const RENEWAL_MS: u64 = 250;

/// Activity of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    /// Reading requests.
    #[default]
    Reading,
    /// Waiting for the decision on a request. Later requests wait in the input.
    Deciding,
    /// Receiving an event stream. Input from the client is discarded.
    Listening,
    /// Writing the last answer.
    Closing,
    /// Everything is written. Further input is discarded until the client closes, because closing a socket with unread
    /// input would send a reset, which can destroy the answer in transit.
    Lingering,
}

/// Event that a connection waits for. Each has its own time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum WaitingFor {
    /// The first byte of a request.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// The decision on a request.
    Decision,
    /// Space in the socket to write.
    Write,
    /// The next event of a stream, without a time limit.
    Event,
    /// The close by the client.
    Close,
}

impl WaitingFor {
    /// Returns the time limit for the event in milliseconds, if a connection may be without a request for `idle_ms`.
    pub const fn limit_ms(self, idle_ms: u64) -> u64 {
        match self {
            WaitingFor::Request => idle_ms + RENEWAL_MS,
            WaitingFor::Head => HEAD_MS,
            WaitingFor::Body => BODY_MS,
            WaitingFor::Decision => DECISION_MS,
            WaitingFor::Write => WRITE_MS,
            WaitingFor::Event => NO_LIMIT_MS,
            WaitingFor::Close => LINGER_MS,
        }
    }

    /// Returns whether the server may close the connection early, in favour of a new one: it waits only for its client,
    /// and no answer is lost.
    pub fn is_evictable(self) -> bool {
        matches!(self, WaitingFor::Request | WaitingFor::Head | WaitingFor::Body | WaitingFor::Close)
    }
}

/// Result of reading the next bytes of a connection.
#[derive(Debug)]
pub enum Step<'a> {
    /// More bytes are needed.
    More,
    /// A head was read, and its body follows: call [`Connection::next`] again.
    Again,
    /// As `Again`, and the client waits for `100 Continue` before it sends the body.
    SayContinue,
    /// A complete request, with its body skipped.
    Request(Head<'a>),
}

/// State of a connection that an upgrade in place hands to the next process.
///
/// A connection that waits for a decision has none: the process that received the request answers it first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionSnapshot {
    /// Activity of the connection.
    pub state: ConnectionState,
    /// Head of the request whose body is being skipped.
    #[serde(with = "byte_text")]
    pub head: Vec<u8>,
    /// Body that is being skipped.
    pub body: Option<Body>,
    /// Bytes received and not parsed yet.
    #[serde(with = "byte_text")]
    pub input: Vec<u8>,
    /// Bytes to be written.
    #[serde(with = "byte_text")]
    pub output: Vec<u8>,
    /// Whether the connection is an event stream. Its `state` is then `Closing`, so that a version without event
    /// streams closes the connection in an orderly way, and the client reconnects.
    #[serde(default)]
    pub listens: bool,
}

impl ConnectionSnapshot {
    /// Returns the number of bytes in the head, the input and the output.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.input.len() + self.output.len()
    }
}

/// Fields of a request that outlive it until its decision. The identifiers appear in log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceHeaders {
    /// The `X-Request-Id` header.
    pub request_id: Option<Box<[u8]>>,
    /// The `traceparent` header.
    pub traceparent: Option<Box<str>>,
    /// The `Origin` header, for the header lines of the answer.
    pub origin: Option<Box<[u8]>>,
}

impl TraceHeaders {
    /// Returns the fields of a request, or `None` if it has none of them.
    pub fn of(head: &Head<'_>) -> Option<Box<TraceHeaders>> {
        let Head { request_id, traceparent, origin, .. } = head;
        (request_id.is_some() || traceparent.is_some() || origin.is_some()).then(|| {
            let (request_id, origin) = (request_id.map(Into::into), origin.map(Into::into));
            Box::new(TraceHeaders { request_id, traceparent: traceparent.map(Into::into), origin })
        })
    }
}

/// Requests that reached the time limit for their decision.
#[derive(Debug, Default)]
pub struct Overdue {
    /// Number of requests.
    pub count: usize,
    /// Identifiers of one of the requests, if any request had some.
    pub example: Option<Box<TraceHeaders>>,
}

/// An answer to a granted checkout that is not completely written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsentGrant {
    /// Code of the hold.
    pub code: Code,
    /// Position of the first byte of the answer in the output.
    pub begins: usize,
}

/// State of a client connection.
#[derive(Debug)]
pub struct Connection {
    /// Activity of the connection.
    pub state: ConnectionState,
    /// Bytes received and not parsed yet. Empty and without allocated memory while the connection is idle.
    pub input: Vec<u8>,
    /// Bytes to be written.
    pub output: Vec<u8>,
    /// Number of bytes of `output` that are written.
    pub written: usize,
    /// The granted checkout whose answer is in `output`. The next request waits until it is written, so there is one at
    /// most.
    pub unsent_grant: Option<UnsentGrant>,
    /// Operation of the request that waits for its decision.
    pub operation: Operation,
    /// Item of that request, whose owner decides it. `None` if the client asks for any item.
    pub item: Option<ItemId>,
    /// Time at which that request was read, in microseconds.
    pub began_us: u64,
    /// Identifiers of that request.
    pub trace: Option<Box<TraceHeaders>>,
    /// Form of the answer to that request.
    pub style: Style,
    /// Whether the socket may have more bytes to read.
    pub readable: bool,
    /// Whether the client has closed its sending direction. The poller reports no further event for this socket, so the
    /// server must read until the end.
    pub peer_closed: bool,
    /// Whether the end of the client's data has been read.
    pub ended: bool,
    /// Whether a request has been read.
    pub is_used: bool,
    head: Vec<u8>,
    body: Option<Body>,
    awaits: WaitingFor,
    deadline_ms: u64,
    /// Time limit without a request.
    idle_ms: u64,
}

impl Connection {
    /// Creates a connection that was accepted at `now_ms`. Without a request, it is closed after `idle_ms`.
    pub fn new(now_ms: u64, idle_ms: u64) -> Self {
        Connection {
            state: ConnectionState::Reading,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            unsent_grant: None,
            operation: Operation::Unknown,
            item: None,
            began_us: 0,
            trace: None,
            style: Style::default(),
            readable: false,
            peer_closed: false,
            ended: false,
            is_used: false,
            head: Vec::new(),
            body: None,
            awaits: WaitingFor::Request,
            deadline_ms: now_ms + WaitingFor::Request.limit_ms(idle_ms),
            idle_ms,
        }
    }

    /// Restores a connection from the state that another process handed over. Its time limits begin again at `now_ms`,
    /// and `idle_ms` is that of this process.
    pub fn resume(midway: ConnectionSnapshot, now_ms: u64, idle_ms: u64) -> Self {
        let ConnectionSnapshot { state, head, body, input, output, listens } = midway;
        let state = if listens { ConnectionState::Listening } else { state };
        let mut connection = Connection { state, head, body, input, output, ..Connection::new(now_ms, idle_ms) };
        connection.set_deadline(now_ms);
        connection
    }

    /// Returns the state that another process needs to continue the connection, or `None` if it is idle.
    ///
    /// Panics if the connection waits for a decision.
    pub fn midway(&self) -> Option<ConnectionSnapshot> {
        assert!(self.state != ConnectionState::Deciding, "a decision belongs to the process that makes it");
        let midway = || ConnectionSnapshot {
            state: if self.state == ConnectionState::Listening { ConnectionState::Closing } else { self.state },
            head: if self.body.is_some() { self.head.clone() } else { Vec::new() },
            body: self.body.clone(),
            input: self.input.clone(),
            output: self.output[self.written..].to_vec(),
            listens: self.state == ConnectionState::Listening,
        };
        (!self.is_idle()).then(midway)
    }

    /// Parses the next part of `bytes`. Returns the number of bytes used, and the result.
    ///
    /// # Errors
    /// The reason to refuse the request. The connection must be closed, because the bytes that follow cannot be parsed.
    pub fn next<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Step<'a>), Problem> {
        if let Some(body) = &mut self.body {
            let used = body.skip(bytes)?;
            if !body.is_done() {
                return Ok((used, Step::More));
            }
            self.body = None;
            let head = parse_head(&self.head)?.expect("a stored head is complete");
            return Ok((used, Step::Request(head)));
        }
        let Some(head) = parse_head(bytes)? else { return Ok((0, Step::More)) };
        let body = Body::new(head.framing)?;
        if body.is_done() {
            return Ok((head.bytes, Step::Request(head)));
        }
        // Keep a copy of the head: its bytes are no longer available when the body ends.
        self.head.clear();
        self.head.extend_from_slice(&bytes[..head.bytes]);
        self.body = Some(body);
        let waits = head.expects_continue && bytes.len() == head.bytes;
        Ok((head.bytes, if waits { Step::SayContinue } else { Step::Again }))
    }

    /// Returns the event that the connection waits for now.
    pub fn awaits(&self) -> WaitingFor {
        match self.state {
            ConnectionState::Lingering => WaitingFor::Close,
            _ if self.written < self.output.len() => WaitingFor::Write,
            ConnectionState::Deciding => WaitingFor::Decision,
            ConnectionState::Listening => WaitingFor::Event,
            _ if self.body.is_some() => WaitingFor::Body,
            _ if !self.input.is_empty() => WaitingFor::Head,
            _ => WaitingFor::Request,
        }
    }

    /// Sets the deadline for the event that the connection waits for now, and returns whether it has changed. If the
    /// connection already waits for this event, its deadline stays, so that a client cannot extend the time for a
    /// request by sending single bytes. Only an idle connection gets a new deadline with each call, unless the last one
    /// is recent.
    pub fn set_deadline(&mut self, now_ms: u64) -> bool {
        let awaits = self.awaits();
        let deadline_ms = now_ms + awaits.limit_ms(self.idle_ms);
        let is_new =
            awaits != self.awaits || awaits == WaitingFor::Request && deadline_ms >= self.deadline_ms + RENEWAL_MS;
        if is_new {
            (self.awaits, self.deadline_ms) = (awaits, deadline_ms);
        }
        is_new
    }

    /// Forgets the deadline and the head of the request that has just been processed. The next request gets a deadline
    /// of its own. The deadline for writing stays: a client that sends requests without reading answers does not extend
    /// it.
    pub fn end_request(&mut self) {
        (self.head, self.is_used) = (Vec::new(), true);
        if matches!(self.awaits, WaitingFor::Head | WaitingFor::Body) {
            (self.awaits, self.deadline_ms) = (WaitingFor::Request, 0);
        }
    }

    /// Sets the deadline for writing the rest of the output again, because the client has taken a part of it.
    pub fn renew_write_deadline(&mut self, now_ms: u64) {
        (self.awaits, self.deadline_ms) = (WaitingFor::Write, now_ms + WRITE_MS);
    }

    /// Returns the event of the last deadline that was set, and that deadline.
    pub fn deadline(&self) -> (WaitingFor, u64) {
        (self.awaits, self.deadline_ms)
    }

    /// Returns whether the connection waits only for the next request.
    pub fn is_idle(&self) -> bool {
        self.state == ConnectionState::Reading && self.body.is_none() && self.input.is_empty() && self.output.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST /checkout?user_id=1&item_id=2 HTTP/1.1\r\nHost: x\r\n";
    const IDLE_MS: u64 = 75_000;

    #[test]
    fn a_client_that_waits_is_told_to_go_on_once() {
        let mut connection = Connection::new(0, IDLE_MS);
        let head = format!("{HEAD}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        assert!(matches!(connection.next(head.as_bytes()), Ok((used, Step::SayContinue)) if used == head.len()));
        assert!(matches!(connection.next(b"o"), Ok((1, Step::More))));
        assert!(matches!(connection.next(b"k"), Ok((1, Step::Request(_)))));
        let with_body = format!("{head}ok");
        assert!(matches!(Connection::new(0, IDLE_MS).next(with_body.as_bytes()), Ok((_, Step::Again))));
    }

    /// A handover at any byte of a request does not change how the rest is parsed.
    #[test]
    fn it_goes_on_where_another_process_has_left_it() {
        let request = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n5 ;x=\"y\"\r\nhello\r\n0\r\nA: b\r\n\r\nPOST");
        // Parses like the server: bytes that are not parsed yet are kept and parsed again with the bytes that follow.
        let read = |mut connection: Connection, bytes: &[u8]| {
            let mut input = std::mem::take(&mut connection.input);
            input.extend_from_slice(bytes);
            let (mut at, mut requests) = (0, Vec::new());
            loop {
                match connection.next(&input[at..]).unwrap() {
                    (used, Step::More) => {
                        connection.input = input[at + used..].to_vec();
                        return (connection, requests);
                    }
                    (used, Step::Again | Step::SayContinue) => at += used,
                    (used, Step::Request(head)) => {
                        at += used;
                        requests.push(head.path.to_owned());
                    }
                }
            }
        };
        for cut in 0..request.len() {
            let (before, mut requests) = read(Connection::new(0, IDLE_MS), &request.as_bytes()[..cut]);
            let text = serde_json::to_string(&before.midway()).unwrap();
            let midway: Option<ConnectionSnapshot> = serde_json::from_str(&text).unwrap();
            let (after, rest) =
                read(Connection::resume(midway.unwrap_or_default(), 7, IDLE_MS), &request.as_bytes()[cut..]);
            requests.extend(rest);
            assert_eq!((requests.len(), &after.input[..]), (1, &b"POST"[..]), "cut at {cut}");
        }
        let mut slow = Connection {
            output: b"abc".to_vec(),
            written: 1,
            state: ConnectionState::Closing,
            ..Connection::new(0, IDLE_MS)
        };
        let midway = slow.midway().unwrap();
        assert_eq!((&midway.output[..], midway.state), (&b"bc"[..], ConnectionState::Closing));
        slow.written = 3;
        assert!(slow.midway().is_some(), "the client has not closed the connection yet");
        assert_eq!(Connection::new(0, IDLE_MS).midway(), None);
        // An earlier version has no event streams. It sees a connection that is closing.
        let listening =
            Connection { state: ConnectionState::Listening, ..Connection::new(0, IDLE_MS) }.midway().unwrap();
        assert_eq!(serde_json::to_value(&listening).unwrap()["state"], "Closing");
        assert_eq!(Connection::resume(listening, 7, IDLE_MS).state, ConnectionState::Listening);
        let earlier = r#"{"state":"Reading","head":"","body":null,"input":"P","output":""}"#;
        assert_eq!(
            Connection::resume(serde_json::from_str(earlier).unwrap(), 7, IDLE_MS).state,
            ConnectionState::Reading
        );
    }

    #[test]
    fn deadlines_are_absolute() {
        let mut connection = Connection::new(0, IDLE_MS);
        assert_eq!(connection.deadline(), (WaitingFor::Request, IDLE_MS + RENEWAL_MS));
        connection.input.push(b'P');
        assert!(connection.set_deadline(100));
        connection.input.push(b'O');
        assert!(!connection.set_deadline(HEAD_MS));
        assert_eq!(connection.deadline(), (WaitingFor::Head, HEAD_MS + 100));
        connection.end_request();
        assert!(connection.set_deadline(200), "the next head has its own deadline");
        assert!(matches!(connection.next(format!("{HEAD}Content-Length: 2\r\n\r\n").as_bytes()), Ok((_, Step::Again))));
        connection.set_deadline(250);
        assert!(matches!(connection.next(b"o"), Ok((1, Step::More))));
        assert!(!connection.set_deadline(BODY_MS), "a byte does not move the deadline");
        assert_eq!(connection.deadline(), (WaitingFor::Body, BODY_MS + 250));
        connection.end_request();
        connection.state = ConnectionState::Deciding;
        assert!(connection.set_deadline(300));
        assert_eq!(connection.deadline(), (WaitingFor::Decision, DECISION_MS + 300));
    }

    /// A connection that is in use gets a new deadline a few times in a second, and is never closed too early.
    #[test]
    fn idle_time_begins_with_the_last_request() {
        let mut connection = Connection::new(0, IDLE_MS);
        for now_ms in 1..10_000 {
            let is_new = connection.set_deadline(now_ms);
            assert_eq!(is_new, now_ms % RENEWAL_MS == 0, "at {now_ms}");
            let (awaits, deadline_ms) = connection.deadline();
            assert_eq!(awaits, WaitingFor::Request);
            assert!((now_ms + IDLE_MS + 1..=now_ms + IDLE_MS + RENEWAL_MS).contains(&deadline_ms));
            connection.end_request();
        }
        // A body has ended: its deadline is not that of the idle connection.
        let mut connection = Connection::new(0, 1_000);
        connection.input.push(b'P');
        connection.set_deadline(10);
        connection.input.clear();
        connection.end_request();
        assert!(connection.set_deadline(20));
        assert_eq!(connection.deadline(), (WaitingFor::Request, 1_020 + RENEWAL_MS));
    }
}
