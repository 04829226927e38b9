//! Writing: the answers of each connection, once per turn, and the orderly end of connections.

use crate::http::connection::ConnectionState;
use crate::sale::ids::Moment;
use crate::server::client::remove;
use crate::server::sockets::Server;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

/// Bytes of unsent answers from which on a connection's further requests wait.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;
/// Answer buffers kept for reuse, and the bytes of one at most. So a shard keeps 1 MiB at most.
const SPARE_BUFFERS_MAX: usize = 512;
const SPARE_BUFFER_BYTES_MAX: usize = 2 * 1024;

impl Server {
    /// Sets the deadline of a connection, and queues the connection if it has something to write or must be closed. To
    /// be called after every change of a connection.
    pub(crate) fn schedule_write(&mut self, key: usize, now: Moment) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let connection = &mut client.connection;
        if self.is_draining && connection.is_idle() && !connection.readable {
            connection.state = ConnectionState::Closing;
        }
        connection.set_deadline(now.monotonic_ms);
        let has_work = !connection.output.is_empty()
            || connection.state == ConnectionState::Closing
            || connection.state == ConnectionState::Lingering && connection.ended;
        if has_work && !client.is_dirty {
            client.is_dirty = true;
            self.dirty.push(key);
        }
    }

    /// Writes the answers, once for each connection, and closes connections that are at their end.
    pub fn write_replies(&mut self, now: Moment) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            self.write(key, now);
        }
        self.dirty = dirty;
        self.request_timer.written();
    }

    fn write(&mut self, key: usize, now: Moment) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.is_dirty = false;
        let connection = &mut client.connection;
        let before = connection.written;
        while connection.written < connection.output.len() {
            match send(&client.socket, &connection.output[connection.written..], SendFlags::NOSIGNAL) {
                Ok(bytes) => connection.written += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if connection.written > before => {
                    return connection.renew_write_deadline(now.monotonic_ms);
                }
                Err(Errno::AGAIN) => return connection.set_deadline(now.monotonic_ms),
                Err(_) => {
                    remove(&mut self.clients, &mut self.lost, key);
                    return;
                }
            }
        }
        (connection.written, connection.unsent_grant) = (0, None);
        keep(&mut self.spare_buffers, std::mem::take(&mut connection.output));
        if self.is_draining && connection.is_idle() && !connection.readable {
            connection.state = ConnectionState::Closing;
        }
        match connection.state {
            ConnectionState::Closing if !connection.ended => {
                connection.state = ConnectionState::Lingering;
                connection.input = Vec::new();
                // Fails only if the client has reset the connection, which the next read reports, too.
                let _ = shutdown(&client.socket, Shutdown::Write);
                client.queue(key, &mut self.ready);
            }
            ConnectionState::Closing => {
                remove(&mut self.clients, &mut self.lost, key);
                return;
            }
            ConnectionState::Lingering if connection.ended => {
                remove(&mut self.clients, &mut self.lost, key);
                return;
            }
            // Requests were waiting until the answers were sent.
            ConnectionState::Reading if !connection.input.is_empty() || connection.readable || connection.ended => {
                client.queue(key, &mut self.ready);
            }
            _ => {}
        }
        self.clients[key].connection.set_deadline(now.monotonic_ms);
    }
}

/// Keeps a buffer for reuse, unless it is large or there are enough.
fn keep(spares: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if (1..=SPARE_BUFFER_BYTES_MAX).contains(&buffer.capacity()) && spares.len() < SPARE_BUFFERS_MAX {
        buffer.clear();
        spares.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_kept_after_a_rush_is_bounded() {
        let mut spares = Vec::new();
        for number in 0..20_000 {
            keep(&mut spares, Vec::with_capacity(number % (2 * OUTPUT_BYTES_MAX)));
        }
        let kept: usize = spares.iter().map(Vec::capacity).sum();
        assert!(spares.len() > 100 && kept <= 1 << 20, "{kept} bytes in {} buffers", spares.len());
    }
}
