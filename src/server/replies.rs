//! Writing: the answers of each connection, once per turn, and the orderly end of connections.

use crate::http::connection::ConnectionState;
use crate::sale::ids::Moment;
use crate::server::sockets::Server;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

/// Bytes of unsent answers from which on a connection's further requests wait.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;

impl Server {
    /// Queues a connection if it has something to write or must be closed, and otherwise sets its deadline. To be called
    /// after every change of a connection. The deadline of a queued connection is set when it is written.
    pub(crate) fn schedule_write(&mut self, key: usize, now: Moment) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let connection = &mut client.connection;
        if self.is_draining && connection.is_idle() && !connection.readable {
            connection.state = ConnectionState::Closing;
        }
        let has_work = !connection.output.is_empty()
            || connection.state == ConnectionState::Closing
            || connection.state == ConnectionState::Lingering && connection.ended;
        if !has_work {
            self.clients.set_deadline(key, now);
        } else if !client.is_dirty {
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
        // Connections whose answer is written are idle.
        self.publish();
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
                    return self.clients.renew_write_deadline(key, now);
                }
                Err(Errno::AGAIN) => return self.clients.set_deadline(key, now),
                Err(_) => return self.clients.remove(key),
            }
        }
        (connection.written, connection.unsent_grant) = (0, None);
        let buffer = std::mem::take(&mut connection.output);
        if buffer.capacity() <= OUTPUT_BYTES_MAX {
            self.spare_buffers.put(buffer);
        }
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
            ConnectionState::Closing => return self.clients.remove(key),
            ConnectionState::Lingering if connection.ended => return self.clients.remove(key),
            // Requests were waiting until the answers were sent.
            ConnectionState::Reading if !connection.input.is_empty() || connection.readable || connection.ended => {
                client.queue(key, &mut self.ready);
            }
            _ => {}
        }
        self.clients.set_deadline(key, now);
    }
}
