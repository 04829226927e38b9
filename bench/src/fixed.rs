//! The part that the floor servers share: their options, and the fixed response to every request.

use clap::Parser;
use stampede::http::problem::Problem;
use stampede::http::response::{Responder, Style};
use std::net::SocketAddr;

/// Responds to every request with the same refusal; clients must send whole requests
#[derive(Parser)]
pub struct FloorOptions {
    /// Address to listen on
    pub address: SocketAddr,
    /// Number of threads, each with its own listener
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// Close each connection after its first response
    #[arg(long)]
    pub close: bool,
}

/// A buffer of rendered responses.
pub struct FixedResponses {
    /// Many copies of the response.
    repeated: Vec<u8>,
    bytes_each: usize,
}

impl FixedResponses {
    /// Renders as many responses as one read of `read_bytes` bytes can request. Each is identical to Stampede's refusal
    /// of a sold item.
    pub fn new(read_bytes: usize) -> FixedResponses {
        let mut answer = Vec::new();
        let style = Style { keep_alive: true, ..Style::default() };
        Responder::default().problem(Problem::ItemSold, style, &mut answer);
        // The shortest request is "GET / HTTP/1.1" with an empty line: 18 bytes.
        FixedResponses { repeated: answer.repeat(read_bytes / 18 + 1), bytes_each: answer.len() }
    }

    /// Returns one response for each request head that ends in `bytes`.
    pub fn to(&self, bytes: &[u8]) -> &[u8] {
        let requests = memchr::memmem::find_iter(bytes, b"\r\n\r\n").count();
        &self.repeated[..requests * self.bytes_each]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_gets_one_response() {
        let responses = FixedResponses::new(100);
        assert!(responses.to(b"GET / HTTP/1.1\r\nHost: x\r\n").is_empty());
        let one = responses.to(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(one.starts_with(b"HTTP/1.1 409 Conflict\r\n") && one.ends_with(b"}"));
        assert_eq!(responses.to(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"), one.repeat(2));
    }
}
