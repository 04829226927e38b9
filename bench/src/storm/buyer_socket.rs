//! One non-blocking keep-alive connection with at most one request in flight, and the parser of its responses.

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// Initial capacity of the receive buffer, in bytes. Expected responses are smaller; larger ones grow the buffer.
const BUFFER: usize = 4096;

/// A whole response, borrowed from the receive buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// HTTP status code.
    pub status: u16,
    /// Head and body.
    pub bytes: &'a [u8],
    /// Body.
    pub body: &'a [u8],
    /// Value of the header `Date`. Empty if there is none.
    pub date: &'a [u8],
    /// Whether the server closes the connection after this response.
    pub is_last: bool,
}

/// A connection of a buyer to the server.
pub struct BuyerSocket {
    socket: Socket,
    received: Vec<u8>,
}

impl BuyerSocket {
    /// Starts to connect. Call [`BuyerSocket::is_connected`] when the socket becomes writable.
    ///
    /// # Errors
    /// Returns an I/O error if the socket cannot be created or the connection is refused at once.
    pub fn open(address: SocketAddr) -> io::Result<BuyerSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(BuyerSocket { socket, received: Vec::with_capacity(BUFFER) }),
        }
    }

    /// Returns the socket, for registration in an epoll set.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Returns whether the connection is established.
    ///
    /// # Errors
    /// Returns the socket's error if the connection failed.
    pub fn is_connected(&self) -> io::Result<bool> {
        match self.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(self.socket.peer_addr().is_ok()),
        }
    }

    /// Sends a whole request in one call. A request is small and the send buffer is empty, so a short write counts as
    /// an error.
    ///
    /// # Errors
    /// Returns an I/O error if the connection failed or the write was short.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.received.clear();
        let sent = send(&self.socket, bytes, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Reads the bytes that have arrived, and returns the response if it is whole. `to_end` is set if the server may
    /// have closed its side: then the socket is read up to the end of the stream.
    ///
    /// # Errors
    /// Returns an I/O error if the connection failed, if the server closed it before a whole response arrived
    /// (`UnexpectedEof`), or if the bytes are not one HTTP response (`InvalidData`).
    pub fn receive(&mut self, to_end: bool) -> io::Result<Option<Response<'_>>> {
        let mut has_ended = false;
        loop {
            if self.received.len() == self.received.capacity() {
                self.received.reserve(BUFFER);
            }
            let room = self.received.capacity() - self.received.len();
            match recv(&self.socket, spare_capacity(&mut self.received), RecvFlags::empty()) {
                Ok((0, _)) => has_ended = true,
                // A short read has emptied the socket, so a second read would only return EAGAIN.
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

    /// Returns the bytes received since the last request was sent.
    pub fn received(&self) -> &[u8] {
        &self.received
    }
}

/// Parses a response. Returns `None` if the response is not whole yet.
///
/// # Errors
/// Returns `InvalidData` if the bytes are not an HTTP response with a length, or continue after the response.
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
    let mut date: &[u8] = &[];
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).ok();
            body = Some(text.and_then(|text| text.parse::<usize>().ok()).ok_or_else(|| bad("invalid content-length"))?);
        } else if header.name.eq_ignore_ascii_case("connection") {
            is_last = header.value.eq_ignore_ascii_case(b"close");
        } else if header.name.eq_ignore_ascii_case("date") {
            date = header.value;
        }
    }
    let end = length + body.ok_or_else(|| bad("no content-length"))?;
    match bytes.len() {
        received if received < end => Ok(None),
        received if received > end => Err(bad("more than one response to one request")),
        _ => Ok(Some(Response { status, bytes, body: &bytes[length..end], date, is_last })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\nDate: today\r\n\r\nsold";

    #[test]
    fn a_response_is_returned_once_it_is_whole() {
        for end in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER[..end]).unwrap(), None, "the first {end} bytes");
        }
        let response = parse(ANSWER).unwrap().unwrap();
        assert_eq!((response.status, response.body, response.is_last), (409, &b"sold"[..], false));
        assert_eq!(response.date, b"today");
    }

    #[test]
    fn connection_close_marks_the_last_response() {
        let response = parse(b"HTTP/1.1 503 x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert!(response.is_last);
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().body, b"");
    }

    #[test]
    fn bytes_that_are_not_one_response_are_an_error() {
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
