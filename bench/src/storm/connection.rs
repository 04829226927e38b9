//! One keep-alive connection that has at most one request in flight, and never blocks.

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// More than any response that is expected; larger ones make the buffer grow.
const BUFFER: usize = 4096;

/// A response, where it was received.
#[derive(Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Its status code.
    pub status: u16,
    /// Head and body.
    pub bytes: &'a [u8],
    /// Its body.
    pub body: &'a [u8],
    /// The server closes the connection after it.
    pub is_last: bool,
}

/// A connection.
pub struct Connection {
    socket: Socket,
    received: Vec<u8>,
}

impl Connection {
    /// Begins to connect. `finish` tells whether that succeeded, once the socket is writable.
    ///
    /// # Errors
    /// Of the network.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(Connection { socket, received: Vec::with_capacity(BUFFER) }),
        }
    }

    /// For an epoll set.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether it is connected.
    ///
    /// # Errors
    /// Of the network: it never will be.
    pub fn finish(&self) -> io::Result<bool> {
        match self.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(self.socket.peer_addr().is_ok()),
        }
    }

    /// Sends a whole request. It is small, and nothing else is under way, so the socket takes it at once.
    ///
    /// # Errors
    /// Of the network.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.received.clear();
        let sent = send(&self.socket, bytes, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Reads what is there; a response, if it is whole. With `to_end`, the server has closed its side, or may have.
    ///
    /// # Errors
    /// Of the network; the server closed the connection without a response; what it sent is none.
    pub fn receive(&mut self, to_end: bool) -> io::Result<Option<Response<'_>>> {
        let mut has_ended = false;
        loop {
            if self.received.len() == self.received.capacity() {
                self.received.reserve(BUFFER);
            }
            let room = self.received.capacity() - self.received.len();
            match recv(&self.socket, spare_capacity(&mut self.received), RecvFlags::empty()) {
                Ok((0, _)) => has_ended = true,
                // A short read has taken all there was: no need to ask again and be told so.
                Ok((received, _)) if to_end || received == room => continue,
                Err(Errno::INTR) => continue,
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            break;
        }
        match parse(&self.received)? {
            None if has_ended => Err(ErrorKind::UnexpectedEof.into()),
            Some(response) => Ok(Some(Response { is_last: response.is_last || has_ended, ..response })),
            None => Ok(None),
        }
    }

    /// What has been received since the last request was sent.
    pub fn received(&self) -> &[u8] {
        &self.received
    }
}

/// The response that these bytes are, once it is whole.
///
/// # Errors
/// They are none, or more than one.
pub fn parse(bytes: &[u8]) -> io::Result<Option<Response<'_>>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
    let length = match head.parse(bytes).map_err(|error| bad(&error.to_string()))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => length,
    };
    let status = head.code.ok_or_else(|| bad("no status"))?;
    let (mut body, mut is_last) = (if status == 204 { Some(0) } else { None }, false);
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).ok();
            body = Some(text.and_then(|text| text.parse::<usize>().ok()).ok_or_else(|| bad("a bad content-length"))?);
        } else if header.name.eq_ignore_ascii_case("connection") {
            is_last = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let end = length + body.ok_or_else(|| bad("no content-length"))?;
    match bytes.len() {
        received if received < end => Ok(None),
        received if received > end => Err(bad("more than one answer to one request")),
        _ => Ok(Some(Response { status, bytes, body: &bytes[length..end], is_last })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\nDate: today\r\n\r\nsold";

    #[test]
    fn a_response_is_read_once_it_is_whole() {
        for end in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER[..end]).unwrap(), None, "the first {end} bytes");
        }
        let response = parse(ANSWER).unwrap().unwrap();
        assert_eq!((response.status, response.body, response.is_last), (409, &b"sold"[..], false));
    }

    #[test]
    fn the_end_of_a_connection_is_announced() {
        let response = parse(b"HTTP/1.1 503 x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert!(response.is_last);
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().body, b"");
    }

    #[test]
    fn what_is_no_single_response_is_an_error() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP",
        ] {
            assert_eq!(parse(bytes).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }
}
