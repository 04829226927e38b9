//! One client's connection, without its socket: bytes in, requests out; deadlines; what is left to write.

use crate::http::body::Body;
use crate::http::head::{Head, Reject, parse_head};
use crate::http::operation::Operation;
use crate::http::response::Style;
use serde::{Deserialize, Serialize};

/// A connection with nothing to say is closed after this.
const IDLE_MS: u64 = 75_000;
/// A head must be complete this long after its first byte.
const HEAD_MS: u64 = 10_000;
/// A body must be complete this long after its head.
const BODY_MS: u64 = 30_000;
/// A decision must be there this long after the request.
const DECISION_MS: u64 = 10_000;
/// A client must take its answers this long after it stopped taking them.
const WRITE_MS: u64 = 30_000;
/// Longer than any process.
const FOREVER_MS: u64 = u64::MAX / 2;
/// A connection that is being closed must end after this.
const LINGER_MS: u64 = 2_000;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    /// Reading requests.
    #[default]
    Reading,
    /// Waiting for the decision on one.
    Deciding,
    /// Hearing of the sale. What the client says is not listened to any more.
    Listening,
    /// Writing the last answer.
    Closing,
    /// Everything is written; what the client still sends is dropped until it hangs up, lest a reset destroy the
    /// answer on its way.
    Lingering,
}

/// What a connection waits for, each with a deadline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// A request.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// A decision.
    Decision,
    /// Room to write.
    Write,
    /// News, which may take for ever.
    News,
    /// The client's end.
    HangUp,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Step<'a> {
    /// More bytes are needed.
    More,
    /// A part is done; there may be more in what is left.
    Again,
    /// The same, and the client waits to be told to go on.
    SayContinue,
    /// A whole request.
    Request(Head<'a>),
}

/// What a connection without a decision under way is in the middle of, for another process to go on with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Midway {
    /// What it is doing.
    pub state: ConnectionState,
    /// The head of the request whose body is being skipped.
    pub head: Vec<u8>,
    /// That body.
    pub body: Option<Body>,
    /// Bytes received and not yet understood.
    pub input: Vec<u8>,
    /// Bytes to be written.
    pub output: Vec<u8>,
    /// It hears of the sale. Its state says closing: a version that knows no such clients ends it in good order, and it
    /// comes again.
    #[serde(default)]
    pub listens: bool,
}

impl Midway {
    /// Bytes in it.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.input.len() + self.output.len()
    }
}

/// What a client or a proxy calls a request, for whoever reads logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceHeaders {
    /// Its `X-Request-Id`.
    pub request_id: Option<Box<[u8]>>,
    /// Its `traceparent`.
    pub traceparent: Option<Box<str>>,
}

impl TraceHeaders {
    /// Of a request that has any.
    pub fn of(head: &Head<'_>) -> Option<Box<TraceHeaders>> {
        let Head { request_id, traceparent, .. } = head;
        (request_id.is_some() || traceparent.is_some()).then(|| {
            Box::new(TraceHeaders { request_id: request_id.map(Into::into), traceparent: traceparent.map(Into::into) })
        })
    }
}

/// Requests that were not decided in time.
#[derive(Debug, Default)]
pub struct Overdue {
    /// How many.
    pub count: usize,
    /// What one of them is called, if any has a name.
    pub example: Option<Box<TraceHeaders>>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// What it is doing.
    pub state: ConnectionState,
    /// Bytes received and not yet understood. Empty, without memory, while idle.
    pub input: Vec<u8>,
    /// Bytes to be written.
    pub output: Vec<u8>,
    /// How many of them are written.
    pub written: usize,
    /// What is being decided.
    pub operation: Operation,
    /// When it was read, in microseconds.
    pub began_us: u64,
    /// What others call it.
    pub trace: Option<Box<TraceHeaders>>,
    /// How its answer must look.
    pub style: Style,
    /// The socket may have more to read.
    pub readable: bool,
    /// The client has said that it will send no more: no further event comes, so what is there must be read.
    pub hung_up: bool,
    /// The client has sent all it will send, and all of it has been read.
    pub ended: bool,
    head: Vec<u8>,
    body: Option<Body>,
    awaits: Awaits,
    deadline_ms: u64,
}

impl Connection {
    /// A new connection.
    pub fn new(now_ms: u64) -> Self {
        Connection {
            state: ConnectionState::Reading,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            operation: Operation::Unknown,
            began_us: 0,
            trace: None,
            style: Style::default(),
            readable: false,
            hung_up: false,
            ended: false,
            head: Vec::new(),
            body: None,
            awaits: Awaits::Request,
            deadline_ms: now_ms + IDLE_MS,
        }
    }

    /// A connection that goes on where another process has left it, with new deadlines.
    pub fn resume(midway: Midway, now_ms: u64) -> Self {
        let Midway { state, head, body, input, output, listens } = midway;
        let state = if listens { ConnectionState::Listening } else { state };
        let mut connection = Connection { state, head, body, input, output, ..Connection::new(now_ms) };
        connection.set_deadline(now_ms);
        connection
    }

    /// What another process needs to go on with it; nothing, if it is idle.
    pub fn midway(&self) -> Option<Midway> {
        assert!(self.state != ConnectionState::Deciding, "a decision belongs to the process that makes it");
        let midway = || Midway {
            state: if self.state == ConnectionState::Listening { ConnectionState::Closing } else { self.state },
            head: if self.body.is_some() { self.head.clone() } else { Vec::new() },
            body: self.body.clone(),
            input: self.input.clone(),
            output: self.output[self.written..].to_vec(),
            listens: self.state == ConnectionState::Listening,
        };
        (!self.is_idle()).then(midway)
    }

    /// Takes the next step in `bytes`; also says how many of them it used.
    ///
    /// # Errors
    /// The connection must end: nothing that follows can be understood.
    pub fn next<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Step<'a>), Reject> {
        if let Some(body) = &mut self.body {
            let used = body.skip(bytes)?;
            if !body.is_done() {
                return Ok((used, Step::More));
            }
            self.body = None;
            let head = parse_head(&self.head)?.expect("only a whole head is kept");
            return Ok((used, Step::Request(head)));
        }
        let Some(head) = parse_head(bytes)? else { return Ok((0, Step::More)) };
        let body = Body::new(head.framing)?;
        if body.is_done() {
            return Ok((head.bytes, Step::Request(head)));
        }
        // The bytes will be gone when the body ends.
        self.head.clear();
        self.head.extend_from_slice(&bytes[..head.bytes]);
        self.body = Some(body);
        let waits = head.expects_continue && bytes.len() == head.bytes;
        Ok((head.bytes, if waits { Step::SayContinue } else { Step::Again }))
    }

    /// Starts or goes on with the deadline for what the connection now waits for. A request begun earlier keeps
    /// the deadline it had: sending a byte now and then does not move it.
    pub fn set_deadline(&mut self, now_ms: u64) {
        let (awaits, time_ms) = match self.state {
            ConnectionState::Lingering => (Awaits::HangUp, LINGER_MS),
            _ if self.written < self.output.len() => (Awaits::Write, WRITE_MS),
            ConnectionState::Deciding => (Awaits::Decision, DECISION_MS),
            ConnectionState::Listening => (Awaits::News, FOREVER_MS),
            _ if self.body.is_some() => (Awaits::Body, BODY_MS),
            _ if !self.input.is_empty() => (Awaits::Head, HEAD_MS),
            _ => (Awaits::Request, IDLE_MS),
        };
        if awaits != self.awaits || awaits == Awaits::Request {
            self.awaits = awaits;
            self.deadline_ms = now_ms + time_ms;
        }
    }

    /// Ends the deadline of the request that has just been understood.
    pub fn understood(&mut self) {
        self.awaits = Awaits::Request;
    }

    /// What the connection has waited for too long.
    pub fn overdue(&self, now_ms: u64) -> Option<Awaits> {
        (self.deadline_ms <= now_ms).then_some(self.awaits)
    }

    /// Whether it waits for nothing but the next request.
    pub fn is_idle(&self) -> bool {
        self.state == ConnectionState::Reading && self.body.is_none() && self.input.is_empty() && self.output.is_empty()
    }

    /// Gives back memory that an idle connection does not need.
    pub fn shrink(&mut self) {
        self.head = Vec::new();
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST /checkout?user_id=1&item_id=2 HTTP/1.1\r\nHost: x\r\n";

    #[test]
    fn a_client_that_waits_is_told_to_go_on_once() {
        let mut connection = Connection::new(0);
        let head = format!("{HEAD}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        assert!(matches!(connection.next(head.as_bytes()), Ok((used, Step::SayContinue)) if used == head.len()));
        assert!(matches!(connection.next(b"o"), Ok((1, Step::More))));
        assert!(matches!(connection.next(b"k"), Ok((1, Step::Request(_)))));
        let with_body = format!("{head}ok");
        assert!(matches!(Connection::new(0).next(with_body.as_bytes()), Ok((_, Step::Again))));
    }

    /// Whatever it is in the middle of, what follows reads the same after it has changed hands.
    #[test]
    fn it_goes_on_where_another_process_has_left_it() {
        let request = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\nPOST");
        // What comes out, by the rules of a server: what is not understood is kept, and comes again with what follows.
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
            let (before, mut requests) = read(Connection::new(0), &request.as_bytes()[..cut]);
            let text = serde_json::to_string(&before.midway()).unwrap();
            let midway: Option<Midway> = serde_json::from_str(&text).unwrap();
            let (after, rest) = read(Connection::resume(midway.unwrap_or_default(), 7), &request.as_bytes()[cut..]);
            requests.extend(rest);
            assert_eq!((requests.len(), &after.input[..]), (1, &b"POST"[..]), "cut at {cut}");
        }
        let mut slow =
            Connection { output: b"abc".to_vec(), written: 1, state: ConnectionState::Closing, ..Connection::new(0) };
        let midway = slow.midway().unwrap();
        assert_eq!((&midway.output[..], midway.state), (&b"bc"[..], ConnectionState::Closing));
        slow.written = 3;
        assert!(slow.midway().is_some(), "the client has not hung up yet");
        assert_eq!(Connection::new(0).midway(), None);
        // An earlier version knows nobody who listens: to it this one is at its end.
        let listening = Connection { state: ConnectionState::Listening, ..Connection::new(0) }.midway().unwrap();
        assert_eq!(serde_json::to_value(&listening).unwrap()["state"], "Closing");
        assert_eq!(Connection::resume(listening, 7).state, ConnectionState::Listening);
        let earlier = r#"{"state":"Reading","head":[],"body":null,"input":[80],"output":[]}"#;
        assert_eq!(Connection::resume(serde_json::from_str(earlier).unwrap(), 7).state, ConnectionState::Reading);
    }

    #[test]
    fn deadlines_are_absolute() {
        let mut connection = Connection::new(0);
        assert_eq!(connection.overdue(IDLE_MS), Some(Awaits::Request));
        connection.input.push(b'P');
        connection.set_deadline(100);
        connection.input.push(b'O');
        connection.set_deadline(HEAD_MS);
        assert_eq!(connection.overdue(HEAD_MS + 99), None);
        assert_eq!(connection.overdue(HEAD_MS + 100), Some(Awaits::Head));
        connection.understood();
        connection.set_deadline(200);
        assert_eq!(connection.overdue(HEAD_MS + 100), None, "the next head has time of its own");
        assert!(matches!(connection.next(format!("{HEAD}Content-Length: 2\r\n\r\n").as_bytes()), Ok((_, Step::Again))));
        connection.set_deadline(250);
        assert!(matches!(connection.next(b"o"), Ok((1, Step::More))));
        connection.set_deadline(BODY_MS);
        assert_eq!(connection.overdue(BODY_MS + 250), Some(Awaits::Body), "a byte does not move it");
        connection.understood();
        connection.state = ConnectionState::Deciding;
        connection.set_deadline(300);
        assert_eq!(connection.overdue(DECISION_MS + 300), Some(Awaits::Decision));
    }
}
