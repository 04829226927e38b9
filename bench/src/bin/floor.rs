//! The floor: the least that any server on these sockets must do. On each thread one epoll set, one read for each
//! readable socket, one write of a fixed answer for each request in it. It parses nothing and decides nothing.
//!
//! `floor 127.0.0.1:8090 --threads 2`

use bench::fixed::{Answers, Settings};
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
    let Settings { address, threads } = Settings::parse();
    let (_, listeners) = stampede::listener::listen(address, threads).unwrap_or_else(|reason| {
        eprintln!("floor: {reason}");
        std::process::exit(1)
    });
    std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(|| serve(listener).expect("the kernel gives what a server needs"));
        }
    });
}

fn serve(listener: OwnedFd) -> io::Result<()> {
    let answers = Answers::new(READ_BYTES);
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
                    let entry = clients.vacant_entry();
                    let data = EventData::new_u64(entry.key() as u64);
                    epoll::add(&set, &socket, data, EventFlags::IN | EventFlags::ET)?;
                    entry.insert(socket);
                }
                continue;
            }
            let client = &clients[key as usize];
            let is_there = match recv(client, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => false,
                Ok((_, bytes)) => send(client, answers.to(&buffer[..bytes]), SendFlags::NOSIGNAL).is_ok(),
                Err(error) => error == Errno::AGAIN,
            };
            if !is_there {
                clients.remove(key as usize);
            }
        }
    }
}
