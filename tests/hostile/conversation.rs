//! A connection without sockets: what a server makes of bytes, in whatever pieces they come.

use stampede::command::Command;
use stampede::connection::{Connection, State, Step};
use stampede::http::{Framing, Head, Method};
use stampede::problem::Problem;
use stampede::route::{Route, route};

/// What a request or a failure to make one is answered with. The interim 100 is not recorded: whether it is said
/// depends on whether the body is already there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The sale was asked: the one thing that hostile bytes must not bring about.
    Asked(Command),
    /// Something to be read was shown.
    Shown,
    /// Refused, without asking anyone.
    Refused(Problem),
}

/// A request, as far as two parsers can agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// How the body's end is known.
    pub framing: Framing,
    /// Where the request ends in the bytes of the connection.
    pub end: usize,
}

/// One connection's requests and answers so far.
pub struct Conversation {
    connection: Connection,
    heard: usize,
    pub requests: Vec<Request>,
    pub answers: Vec<Answer>,
}

impl Conversation {
    pub fn new() -> Conversation {
        Conversation { connection: Connection::new(0), heard: 0, requests: Vec::new(), answers: Vec::new() }
    }

    /// What becomes of `bytes` when they come in pieces of these lengths, and then the rest.
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

    /// Receives a piece, as the server does when it has read one.
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
                    self.answers.push(Answer::Refused(reject.into()));
                    self.connection.state = State::Closing;
                }
                Ok((used, Step::More)) => {
                    at += used;
                    break;
                }
                Ok((used, Step::Again | Step::SayContinue)) => at += used,
                Ok((used, Step::Request(head))) => {
                    at += used;
                    self.requests.push(request(&head, self.heard + at));
                    self.answers.push(match route(&head).1 {
                        Route::Command(command, _) => Answer::Asked(command),
                        Route::Page(_) | Route::Events => Answer::Shown,
                        Route::Refused(problem) => Answer::Refused(problem),
                    });
                    if !head.keep_alive {
                        self.connection.state = State::Closing;
                    }
                    self.connection.understood();
                }
            }
        }
        self.heard += at;
        input.drain(..at);
        self.connection.input = input;
    }

    /// Nothing more is read.
    pub fn is_closed(&self) -> bool {
        self.connection.state == State::Closing
    }

    /// It ends at the end of a request, and another may follow.
    pub fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }
}

fn request(head: &Head<'_>, end: usize) -> Request {
    let mark = if head.query.is_empty() { "" } else { "?" };
    let target = format!("{}{mark}{}", head.path, head.query);
    Request { method: head.method, target, framing: head.framing, end }
}
