//! A client: a socket, the connection on it, and whether it is to be read or written to in this turn.

use crate::http::connection::{Connection, ConnectionState};
use crate::sale::ids::Ticket;
use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_socket_send_buffer_size;
use slab::Slab;
use socket2::SockRef;
use std::time::Duration;

/// Bytes that the kernel keeps of what a client that listens has not taken.
const LISTENER_BUFFER_BYTES: usize = 8 * 1024;
/// How long a client that listens may leave it unconfirmed.
const LISTENER_PATIENCE: Duration = Duration::from_secs(30);

/// A client.
pub struct Client {
    /// Its socket.
    pub socket: OwnedFd,
    /// Tells it from an earlier one with the same key.
    pub generation: u32,
    /// What has been said on it.
    pub connection: Connection,
    /// It is in the list of those to be read.
    pub is_ready: bool,
    /// It is in the list of those to be written to.
    pub is_dirty: bool,
}

impl Client {
    /// The ticket of its request.
    pub fn ticket(&self, key: usize) -> Ticket {
        Ticket(u64::from(self.generation) << 32 | key as u64)
    }

    /// Puts the client into the list of those to be read, once.
    pub fn queue(&mut self, key: usize, ready: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.is_ready, true) {
            ready.push(key);
        }
    }
}

/// Its client hears of the sale from now on. Of what it does not take, the kernel keeps little, and not for long: who is
/// gone without a word is noticed when an event is not confirmed. A socket that cannot be told so goes on without.
pub fn will_listen(socket: &OwnedFd) {
    let _ = set_socket_send_buffer_size(socket, LISTENER_BUFFER_BYTES);
    let _ = SockRef::from(socket).set_tcp_user_timeout(Some(LISTENER_PATIENCE));
}

/// Closes a client's connection. A request of it that is being decided has nobody to hear of it any more.
pub fn remove(clients: &mut Slab<Client>, withdrawn: &mut Vec<Ticket>, key: usize) {
    let client = clients.remove(key);
    if client.connection.state == ConnectionState::Deciding {
        withdrawn.push(client.ticket(key));
    }
}
