//! A client: a socket, the connection on it, and whether it is to be read or written to in this turn.

use crate::connection::{Connection, State};
use crate::types::Ticket;
use rustix::fd::OwnedFd;
use slab::Slab;

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

/// Closes a client's connection. A request of it that is being decided has nobody to hear of it any more.
pub fn remove(clients: &mut Slab<Client>, withdrawn: &mut Vec<Ticket>, key: usize) {
    let client = clients.remove(key);
    if client.connection.state == State::Deciding {
        withdrawn.push(client.ticket(key));
    }
}
