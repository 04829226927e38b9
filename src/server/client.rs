//! The clients of a shard: the socket, the connection and the deadline of each, and whether it is queued for reading or
//! writing. Also what a client leaves when it disconnects.

use crate::http::connection::{Connection, ConnectionState, UnsentGrant};
use crate::sale::code::Code;
use crate::sale::command::Withdrawal;
use crate::sale::ids::{ItemId, Moment, ShardId, Ticket};
use crate::server::addresses::{AddressHash, AddressLimit};
use crate::server::timeouts::Timeouts;
use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_socket_send_buffer_size;
use slab::Slab;
use socket2::SockRef;
use std::ops::{Index, IndexMut};
use std::sync::Arc;
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
    /// The socket is in the epoll set.
    pub is_registered: bool,
    /// The client is in the list of clients to read.
    pub is_ready: bool,
    /// The client is in the list of clients to write to.
    pub is_dirty: bool,
    /// The address for which the connection is counted.
    address: Option<AddressHash>,
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
    /// Tickets and items of requests whose clients do not wait any more. The item is `None` if the client asks for any.
    pub withdrawn: Vec<(Ticket, Option<ItemId>, Withdrawal)>,
    /// Codes of granted checkouts of whose answer no byte was sent.
    pub undelivered: Vec<Code>,
}

impl LostClients {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.withdrawn.is_empty() && self.undelivered.is_empty()
    }
}

/// The clients of one shard, by key.
pub struct ClientTable {
    shard: ShardId,
    clients: Slab<Client>,
    timeouts: Timeouts,
    /// Requests and answers that have lost their clients since the last turn.
    lost: LostClients,
    addresses: Option<Arc<AddressLimit>>,
    /// Distinguishes the last client from earlier ones with the same key.
    generation: u32,
}

impl ClientTable {
    /// Creates an empty table of `shard`. A connection may be without a request for `idle_ms`. If the connections of
    /// each address are limited, the table counts them in `addresses`.
    pub fn new(shard: ShardId, idle_ms: u64, addresses: Option<Arc<AddressLimit>>) -> Self {
        let (clients, timeouts, lost) = (Slab::new(), Timeouts::new(idle_ms), LostClients::default());
        ClientTable { shard, clients, timeouts, lost, addresses, generation: 0 }
    }

    /// Returns the number of clients.
    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// Adds a client, and returns its key.
    pub fn insert(&mut self, socket: OwnedFd, connection: Connection) -> usize {
        self.generation = self.generation.wrapping_add(1);
        let address = self.addresses.as_ref().and_then(|limit| {
            let address = limit.of_client(&socket)?;
            limit.add(self.shard, address).then_some(address)
        });
        let (generation, deadline) = (self.generation, connection.deadline());
        let (is_registered, is_ready, is_dirty) = (false, false, false);
        let client = Client { socket, generation, connection, is_registered, is_ready, is_dirty, address };
        let key = self.clients.insert(client);
        self.timeouts.set(key, deadline);
        key
    }

    /// Returns a client, if it is still connected.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut Client> {
        self.clients.get_mut(key)
    }

    /// Returns the client that has sent the request with this ticket, if it is still connected.
    pub fn of_ticket(&mut self, ticket: Ticket) -> Option<(usize, &mut Client)> {
        let key = (ticket.0 & 0xffff_ffff) as usize;
        let client = self.clients.get_mut(key).filter(|client| u64::from(client.generation) == ticket.0 >> 32);
        client.map(|client| (key, client))
    }

    /// Closes a client's connection. If a request of the client is being decided, or the answer to a granted checkout is
    /// not sent yet, it is added to the lost ones.
    pub fn remove(&mut self, key: usize) {
        drop(self.take(key));
    }

    /// Removes a client as `remove` does, and returns its socket.
    pub fn take(&mut self, key: usize) -> OwnedFd {
        let client = self.clients.remove(key);
        self.timeouts.remove(key);
        if let (Some(limit), Some(address)) = (&self.addresses, client.address) {
            limit.remove(self.shard, address);
        }
        let Connection { state, written, unsent_grant, item, .. } = client.connection;
        if state == ConnectionState::Deciding {
            self.lost.withdrawn.push((client.ticket(key), item, Withdrawal::Disconnected));
        }
        if let Some(UnsentGrant { code, begins }) = unsent_grant
            && written <= begins
        {
            self.lost.undelivered.push(code);
        }
        client.socket
    }

    /// Sets the deadline of a client for the event that its connection waits for now.
    pub fn set_deadline(&mut self, key: usize, now: Moment) {
        let connection = &mut self.clients[key].connection;
        if connection.set_deadline(now.monotonic_ms) {
            self.timeouts.set(key, connection.deadline());
        }
    }

    /// Sets the deadline of a client again that has taken a part of its answers.
    pub fn renew_write_deadline(&mut self, key: usize, now: Moment) {
        let connection = &mut self.clients[key].connection;
        connection.renew_write_deadline(now.monotonic_ms);
        self.timeouts.set(key, connection.deadline());
    }

    /// Returns the deadlines.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Returns the monotonic time in ms since when the longest idle client has been waited for, if one is idle.
    pub fn idle_since(&self) -> Option<u64> {
        self.timeouts.evictable().next().map(|(_, since_ms)| since_ms)
    }

    /// Returns the requests and answers that have lost their clients.
    pub fn lost(&mut self) -> &mut LostClients {
        &mut self.lost
    }

    /// Returns whether the shard knows of every request and answer that has lost its client.
    pub fn has_lost_none(&self) -> bool {
        self.lost.is_empty()
    }

    /// Returns all clients.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.clients.iter()
    }

    /// Returns all clients.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Client)> {
        self.clients.iter_mut()
    }
}

impl Index<usize> for ClientTable {
    type Output = Client;

    fn index(&self, key: usize) -> &Client {
        &self.clients[key]
    }
}

impl IndexMut<usize> for ClientTable {
    fn index_mut(&mut self, key: usize) -> &mut Client {
        &mut self.clients[key]
    }
}
