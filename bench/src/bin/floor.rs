//! The floor: the least that any server on these sockets must do. One thread, one epoll set, one read, one fixed
//! answer of the size of a refusal. It parses nothing and decides nothing.
//!
//! `floor 127.0.0.1:8090`

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::net::SocketAddr;

const ANSWER: &[u8] = b"HTTP/1.1 409 Conflict\r\ncontent-type: application/problem+json\r\ncontent-length: 70\r\n\
    date: Sat, 21 Nov 2026 20:40:54 GMT\r\n\r\n\
    {\"status\":409,\"title\":\"The item is sold\",\"type\":\"/problems/item-sold\"}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: floor ADDRESS:PORT")?.parse()?;
    let listener = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.set_nonblocking(true)?;
    listener.set_tcp_nodelay(true)?;
    listener.bind(&address.into())?;
    listener.listen(4096)?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, &listener, EventData::new_u64(u64::MAX), EventFlags::IN)?;
    let mut clients: HashMap<u64, OwnedFd> = HashMap::new();
    let mut events = Vec::with_capacity(512);
    let mut buffer = vec![0; 64 * 1024];
    let mut next = 0;
    loop {
        events.clear();
        epoll::wait(&set, spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if key == u64::MAX {
                while let Ok(socket) = accept_with(&listener, SocketFlags::NONBLOCK) {
                    epoll::add(&set, &socket, EventData::new_u64(next), EventFlags::IN | EventFlags::ET)?;
                    clients.insert(next, socket);
                    next += 1;
                }
                continue;
            }
            let client = &clients[&key];
            let answered = match recv(client, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => false,
                Ok(_) => send(client, ANSWER, SendFlags::NOSIGNAL).is_ok(),
                Err(error) => error == Errno::AGAIN,
            };
            if !answered {
                clients.remove(&key);
            }
        }
    }
}
