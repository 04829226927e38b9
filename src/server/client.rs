//! The state of one client: its socket, its connection, and whether it is queued for reading or writing. Also what a
//! client leaves when it disconnects.

use crate::http::connection::{Connection, ConnectionState, UnsentGrant};
use crate::sale::code::Code;
use crate::sale::command::Withdrawal;
use crate::sale::ids::{ItemId, Ticket};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_socket_send_buffer_size;
use slab::Slab;
use socket2::SockRef;
use std::time::Duration;

/// Bytes of the send buffer in the kernel for a client of `/events`.
const LISTENER_BUFFER_BYTES: usize = 8 * 1024;
/// Time after which the kernel closes the connection of a client of `/events` that does not acknowledge data.
const LISTENER_PATIENCE: Duration = Duration::from_secs(30);

/// One client of a shard.
pub struct Client {
    /// The socket of the client.
    pub socket: OwnedFd,
    /// Distinguishes the client from an earlier one with the same key.
    pub generation: u32,
    /// The HTTP connection on the socket.
    pub connection: Connection,
    /// The client is in the list of clients to read.
    pub is_ready: bool,
    /// The client is in the list of clients to write to.
    pub is_dirty: bool,
}

impl Client {
    /// Returns the ticket of the client's request: generation and key.
    pub fn ticket(&self, key: usize) -> Ticket {
        Ticket(u64::from(self.generation) << 32 | key as u64)
    }

    /// Adds the client to the list of clients to read, unless it is there already.
    pub fn queue(&mut self, key: usize, ready: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.is_ready, true) {
            ready.push(key);
        }
    }
}

/// Configures the socket of a client that subscribes to `/events`: a small send buffer, and a time limit for
/// acknowledgements, after which the kernel closes the connection of a client that has disappeared. If an option cannot
/// be set, the subscription continues without it.
pub fn configure_event_stream(socket: &OwnedFd) {
    let _ = set_socket_send_buffer_size(socket, LISTENER_BUFFER_BYTES);
    let _ = SockRef::from(socket).set_tcp_user_timeout(Some(LISTENER_PATIENCE));
}

/// The requests and answers that have lost their clients.
#[derive(Debug, Default)]
pub struct LostClients {
    /// Tickets and items of requests whose clients do not wait any more.
    pub withdrawn: Vec<(Ticket, ItemId, Withdrawal)>,
    /// Codes of granted checkouts of whose answer no byte was sent.
    pub undelivered: Vec<Code>,
}

impl LostClients {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.withdrawn.is_empty() && self.undelivered.is_empty()
    }
}

/// Closes a client's connection. If a request of the client is being decided, or the answer to a granted checkout is not
/// sent yet, adds it to `lost`.
pub fn remove(clients: &mut Slab<Client>, lost: &mut LostClients, key: usize) {
    let client = clients.remove(key);
    let Connection { state, written, unsent_grant, item, .. } = client.connection;
    if state == ConnectionState::Deciding {
        lost.withdrawn.push((client.ticket(key), item, Withdrawal::Disconnected));
    }
    if let Some(UnsentGrant { code, begins }) = unsent_grant
        && written <= begins
    {
        lost.undelivered.push(code);
    }
}
