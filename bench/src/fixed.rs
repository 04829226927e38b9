//! What the floors have in common: their settings, and the one answer that they give to everything.

use clap::Parser;
use stampede::problem::Problem;
use stampede::response::{Responder, Style};
use std::net::SocketAddr;

/// Answers every request with the same refusal. For clients that send whole requests.
#[derive(Parser)]
pub struct Settings {
    /// Where to listen
    pub address: SocketAddr,
    /// Threads, each with a listener of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
}

/// Answers to requests, ready to be sent.
pub struct Answers {
    /// One after the other.
    repeated: Vec<u8>,
    bytes_each: usize,
}

impl Answers {
    /// As many as one read of `read_bytes` can ask for. To the byte what Stampede says when an item is sold.
    pub fn new(read_bytes: usize) -> Answers {
        let mut answer = Vec::new();
        let style = Style { keep_alive: true, ..Style::default() };
        Responder::default().problem(Problem::ItemSold, style, &mut answer);
        // "GET / HTTP/1.1" with its empty line: nothing that asks is shorter.
        Answers { repeated: answer.repeat(read_bytes / 18 + 1), bytes_each: answer.len() }
    }

    /// One for each head that ends in `bytes`.
    pub fn to(&self, bytes: &[u8]) -> &[u8] {
        let requests = memchr::memmem::find_iter(bytes, b"\r\n\r\n").count();
        &self.repeated[..requests * self.bytes_each]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_gets_one_answer() {
        let answers = Answers::new(100);
        assert!(answers.to(b"GET / HTTP/1.1\r\nHost: x\r\n").is_empty());
        let one = answers.to(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(one.starts_with(b"HTTP/1.1 409 Conflict\r\n") && one.ends_with(b"}"));
        assert_eq!(answers.to(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"), one.repeat(2));
    }
}
