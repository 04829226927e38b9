//! The raw floor: the minimum of work that any server on these sockets must do. Each thread has one epoll set. For each
//! readable socket there is one read, and one write with a fixed response for each request. There is no parsing and no
//! state. With `--close`, each connection is accepted, read, answered and closed, without an epoll set for it if its
//! request is there already.
//!
//! `floor 127.0.0.1:8090 --threads 2`

use bench::fixed::{FixedResponses, FloorOptions};
use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use slab::Slab;
use std::io;

const READ_BYTES: usize = 16 * 1024;
const LISTENER: u64 = u64::MAX;

fn main() {
    let FloorOptions { address, threads, close } = FloorOptions::parse();
    let (_, listeners) = stampede::system::listener::listen(address, threads, false).unwrap_or_else(|reason| {
        eprintln!("floor: {reason}");
        std::process::exit(1)
    });
    std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || serve(listener, close).expect("the sockets can be created"));
        }
    });
}

fn serve(listener: OwnedFd, close: bool) -> io::Result<()> {
    let responses = FixedResponses::new(READ_BYTES);
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut clients: Slab<OwnedFd> = Slab::new();
    let mut events = Vec::with_capacity(512);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        events.clear();
        match epoll::wait(&set, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                while let Ok(socket) = accept_with(&listener, SocketFlags::NONBLOCK) {
                    if close && let Ok((_, bytes)) = recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                        let _ = send(&socket, responses.to(&buffer[..bytes]), SendFlags::NOSIGNAL);
                        continue;
                    }
                    let entry = clients.vacant_entry();
                    let data = EventData::new_u64(entry.key() as u64);
                    epoll::add(&set, &socket, data, EventFlags::IN | EventFlags::ET)?;
                    entry.insert(socket);
                }
                continue;
            }
            let client = &clients[key as usize];
            let is_open = match recv(client, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => false,
                Ok((_, bytes)) => send(client, responses.to(&buffer[..bytes]), SendFlags::NOSIGNAL).is_ok() && !close,
                Err(error) => error == Errno::AGAIN,
            };
            if !is_open {
                clients.remove(key as usize);
            }
        }
    }
}
