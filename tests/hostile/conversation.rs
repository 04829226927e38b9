//! A connection without sockets: parses and routes bytes as the server does, in pieces of any length.

use stampede::http::connection::{Connection, ConnectionState, Step};
use stampede::http::head::{Framing, Head, Method};
use stampede::http::origin::Origins;
use stampede::http::problem::Problem;
use stampede::http::route::{Route, route};
use stampede::http::shop::Shop;
use stampede::http::site::Site;
use stampede::sale::command::Command;
use std::sync::LazyLock;

/// The shop of a server without a plan.
static SHOP: LazyLock<Shop> = LazyLock::new(|| Shop::new(None));

/// The response to a request, or to bytes that are not a request. The interim response 100 is not recorded, because it
/// depends on whether the body has already arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request reaches the sale, which hostile bytes must not do.
    Asked(Command),
    /// The response is a page or the event stream.
    Shown,
    /// The response has the methods of a path.
    Listed,
    /// The request is refused before it reaches the sale.
    Refused(Problem),
}

/// The parts of a request that two parsers must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// How the end of the body is determined.
    pub framing: Framing,
    /// Offset of the end of the request, in the bytes of the connection.
    pub end: usize,
}

/// The requests and responses of one connection so far.
pub struct Conversation {
    connection: Connection,
    heard: usize,
    pub requests: Vec<Request>,
    pub answers: Vec<Answer>,
}

impl Conversation {
    pub fn new() -> Conversation {
        Conversation { connection: Connection::new(0, 75_000), heard: 0, requests: Vec::new(), answers: Vec::new() }
    }

    /// Receives `bytes` in pieces of these lengths, and then the rest.
    pub fn with(bytes: &[u8], pieces: impl IntoIterator<Item = usize>) -> Conversation {
        let mut conversation = Conversation::new();
        let mut rest = bytes;
        for length in pieces {
            let (piece, later) = rest.split_at(length.min(rest.len()));
            conversation.hear(piece);
            rest = later;
        }
        conversation.hear(rest);
        conversation
    }

    /// Receives a piece, as the server does after a read.
    pub fn hear(&mut self, piece: &[u8]) {
        if self.is_closed() {
            return;
        }
        let mut input = std::mem::take(&mut self.connection.input);
        input.extend_from_slice(piece);
        let mut at = 0;
        while !self.is_closed() {
            match self.connection.next(&input[at..]) {
                Err(reject) => {
                    self.answers.push(Answer::Refused(reject));
                    self.connection.state = ConnectionState::Closing;
                }
                Ok((used, Step::More)) => {
                    at += used;
                    break;
                }
                Ok((used, Step::Again | Step::SayContinue)) => at += used,
                Ok((used, Step::Request(head))) => {
                    at += used;
                    self.requests.push(request(&head, self.heard + at));
                    let site = Site { shop: Some(&SHOP), catalogue: None };
                    self.answers.push(match route(&head, &Origins::None, site).1 {
                        Route::Command(command, _) => Answer::Asked(command),
                        Route::Page(_) | Route::Events => Answer::Shown,
                        Route::Options(_) => Answer::Listed,
                        Route::Refused(problem) => Answer::Refused(problem),
                    });
                    if !head.keep_alive {
                        self.connection.state = ConnectionState::Closing;
                    }
                    self.connection.end_request();
                }
            }
        }
        self.heard += at;
        input.drain(..at);
        self.connection.input = input;
    }

    /// Returns whether the connection reads no more bytes.
    pub fn is_closed(&self) -> bool {
        self.connection.state == ConnectionState::Closing
    }

    /// Returns whether the bytes so far end at the end of a request and another request may follow.
    pub fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }
}

fn request(head: &Head<'_>, end: usize) -> Request {
    let mark = if head.query.is_empty() { "" } else { "?" };
    let target = format!("{}{mark}{}", head.path, head.query);
    Request { method: head.method, target, framing: head.framing, end }
}
