//! One keep-alive connection that has at most one request in flight.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// A response.
#[derive(Debug)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
}

impl Connection {
    /// Connects, and waits for that.
    ///
    /// # Errors
    /// Of the network.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.connect(&address.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Connection { socket: socket.into(), received: Vec::new() })
    }

    /// For an epoll set.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a whole request. It is small, and nothing else is under way, so the socket takes it at once.
    ///
    /// # Errors
    /// Of the network.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(&self.socket, bytes, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Reads what is there; a response, if it is whole.
    ///
    /// # Errors
    /// Of the network; the server closed the connection; what it sent is no response.
    pub fn receive(&mut self) -> io::Result<Option<Response>> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((_, received)) => {
                    self.received.extend_from_slice(&buffer[..received]);
                    if received < buffer.len() {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.parse()
    }

    fn parse(&mut self) -> io::Result<Option<Response>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let length = match head.parse(&self.received).map_err(|error| bad(&error.to_string()))? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => length,
        };
        let body = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body = body.map_or("0", |header| std::str::from_utf8(header.value).unwrap_or("no number"));
        let end = length + body.parse::<usize>().map_err(|_| bad("no content-length"))?;
        if self.received.len() < end {
            return Ok(None);
        }
        let status = head.code.ok_or_else(|| bad("no status"))?;
        let response = Response { status, body: self.received[length..end].to_vec() };
        self.received.drain(..end);
        Ok(Some(response))
    }
}
