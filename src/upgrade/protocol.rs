//! The protocol of an upgrade in place: the messages between the old process and the new process, and the file
//! descriptors attached to them.
//!
//! The processes share one Unix socket that preserves message boundaries. Each message is JSON. A receiver ignores
//! fields that it does not know, so that the two versions can differ. The messages do not contain the sale: the new
//! process reads it from the log.
//!
//! 1. The old process starts the new process and sends `Offer`. The old process continues to serve.
//! 2. The new process checks everything that can fail, makes its first segments, reads the log as far as it is written,
//!    and sends `Prepared`.
//! 3. The old process pauses: it reads no more requests and finishes those in flight. Then it sends `Lock` and `Admin`.
//! 4. Each shard of the old process flushes its logs, and sends `Written`, one `Listener` for each of its listeners,
//!    and its clients in one or more `Clients`. After the last shard, the old process sends `Everything`.
//! 5. The new process reads the rest of the log, exactly to the ends in `Written`, and sends `Ready`.
//! 6. The old process sends `Yours` and ends. The new process serves.
//!
//! Failures:
//!
//! - Until it sends `Yours`, the old process can abort the upgrade: it kills the new process, removes the log that the
//!   new process has begun, and continues. It does so when the new process ends, when a step takes too long, and on
//!   a signal to stop.
//! - If the old process ends before `Everything`, the new process executes itself again and recovers, as after a crash.
//! - If the old process ends after `Everything`, the new process serves, as after `Yours`.

use crate::config::settings::Config;
use crate::http::connection::ConnectionSnapshot;
use crate::log::stream::End;
use crate::system::discipline::ClockDiscipline;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

/// Version of this protocol. It increases when the meaning of a message changes.
pub const PROTOCOL: u32 = 2;
/// File descriptors in one message at most. The kernel accepts 253 (unix(7)).
pub const DESCRIPTORS_MAX: usize = 250;
/// Bytes of connection state in one message, approximately: requests in progress and unsent answers. A client with more
/// state gets a message of its own.
pub const SNAPSHOT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the longest message. JSON writes a byte as one to six bytes; the kernel accepts 416 KiB by default.
const MESSAGE_BYTES_MAX: usize = 400 * 1024;
/// Time after which sending fails because the other process does not receive.
const SEND_TIME: Duration = Duration::from_secs(5);

/// A message from the old process to the new process.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromOld {
    /// The first message: what the old process offers.
    Offer(Offer),
    /// Attached: the locked descriptor of the data directory.
    Lock,
    /// Attached: the listener of the admin port.
    Admin,
    /// The old process is one of two servers, and has a lease.
    Lease {
        /// End of the lease, in microseconds since boot.
        until_us: u64,
    },
    /// Attached: one listener of the public port.
    Listener {
        /// Index of the listener in the order in which the listeners were opened.
        place: usize,
    },
    /// The ends of the logs of one shard. Everything before them is durable.
    Written {
        /// Run that wrote the logs.
        epoch: u32,
        /// Id of the shard.
        shard: u16,
        /// End of the purchase log.
        purchases: End,
        /// End of the attempt log.
        attempts: End,
    },
    /// Attached: sockets of clients of one shard.
    Clients {
        /// Id of the shard.
        shard: u16,
        /// State of each connection, in the order of the descriptors; `None` for an idle connection.
        midway: Vec<Option<ConnectionSnapshot>>,
    },
    /// The handover is complete. Neither process serves now.
    Everything,
    /// The last message: the new process is the server now.
    Yours,
}

/// What the old process offers. The new process compares it with its own version and settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// [`PROTOCOL`] of the old process.
    pub protocol: u32,
    /// Version of the old process, for log lines.
    pub version: String,
    /// Format version of the blocks of its log.
    pub log_format: u8,
    /// The setting `--listen` of the old process.
    pub listen: SocketAddr,
    /// The setting `--admin-listen` of the old process.
    pub admin_listen: SocketAddr,
    /// The setting `--data-dir` of the old process.
    pub data_dir: PathBuf,
    /// Number of the run that the new process will be.
    pub epoch: u32,
    /// Settings that the new process must not lose in silence. `None` if the version of the old process does not report
    /// them.
    #[serde(default)]
    pub settings: Option<KeptSettings>,
    /// How the old process follows the system clock. `None` if its version follows every step at once.
    #[serde(default)]
    pub clock: Option<ClockDiscipline>,
}

/// Settings of the old process that an upgrade must not lose in silence, for example because the env file is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSettings {
    /// Whether its env file set a variable.
    pub env_file: bool,
    /// Whether it has a database.
    pub database: bool,
    /// Whether it has `--ack postgres` or `--ack replicated`.
    pub waits_for_database: bool,
    /// Whether it has a plan.
    #[serde(default)]
    pub plan: bool,
}

impl KeptSettings {
    /// Returns these settings of `config`.
    pub fn of(config: &Config) -> KeptSettings {
        KeptSettings {
            env_file: config.has_env_file,
            database: config.database.is_some(),
            waits_for_database: config.rules.ack.needs_database(),
            plan: config.plan.is_some(),
        }
    }

    /// Returns the reason why a process with the settings `new` must not take over from a process with these.
    pub fn objection(&self, new: &Config) -> Option<String> {
        let now = KeptSettings::of(new);
        if self.env_file && !now.env_file {
            let file = &new.env_file;
            Some(format!("--env-file {file} is missing or empty, and the running server has read it; restore the file"))
        } else if self.database && !now.database {
            let what = "the running server has a database and the new settings have none";
            Some(format!("{what}; set DATABASE_URL or DB_HOST, as before"))
        } else if self.plan && !now.plan {
            Some("the running server has a plan and the new settings have none; set PLAN, as before".into())
        } else if self.waits_for_database && !now.waits_for_database && !new.is_ack_given {
            let what = "the running server waits for Postgres and the new settings do not set --ack";
            Some(format!(
                "{what}; set ACK=postgres or replicated as before, or set ACK=local to answer without waiting"
            ))
        } else {
            None
        }
    }
}

/// A message from the new process to the old process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNew {
    /// The new process has checked everything that it can check, and is waiting for the handover.
    Prepared {
        /// Version of the new process, for log lines.
        version: String,
        /// The longest time for which the new process will hold an item, in milliseconds. The old process writes it to
        /// `control.json`, because only one process may write that file.
        longest_hold_ms: u64,
    },
    /// The new process has everything and can serve at once.
    Ready,
}

/// One end of the socket between the two processes.
#[derive(Debug)]
pub struct UpgradeSocket(OwnedFd);

impl UpgradeSocket {
    /// Creates a connected pair: the end of the old process, and the end of the new process.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn pair() -> io::Result<(UpgradeSocket, UpgradeSocket)> {
        let (old, new) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&old, Timeout::Send, Some(SEND_TIME))?;
        Ok((UpgradeSocket::new(old)?, UpgradeSocket::new(new)?))
    }

    /// Wraps a descriptor that is one end of the socket.
    ///
    /// # Errors
    /// The descriptor is not a socket.
    pub fn new(socket: OwnedFd) -> io::Result<UpgradeSocket> {
        set_socket_send_buffer_size(&socket, 2 * MESSAGE_BYTES_MAX)?;
        set_socket_recv_buffer_size(&socket, 2 * MESSAGE_BYTES_MAX)?;
        Ok(UpgradeSocket(socket))
    }

    /// Returns the descriptor of the socket.
    pub fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Sends `message` with the descriptors attached. Afterwards both processes have the descriptors.
    ///
    /// # Errors
    /// The other process has ended, or does not receive in time.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        loop {
            let mut along = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !along.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            match sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut along, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // Too many descriptors are in flight. Each message that the other process receives makes room.
                Err(Errno::TOOMANYREFS) => sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next message, and receives it with its descriptors. Returns `None` if the other process has ended.
    ///
    /// # Errors
    /// The message is malformed, or this process may not have so many file descriptors.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut along, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // The other process has ended without reading all messages from this process.
                Err(Errno::CONNRESET) => return Ok(None),
                result => break result?,
            }
        };
        let mut descriptors = Vec::new();
        for message in along.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("not every file descriptor was received; raise LimitNOFILE or ulimit -n"));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fd::AsFd;

    #[test]
    fn descriptors_go_along_in_their_order() {
        let (old, new) = UpgradeSocket::pair().unwrap();
        let events: Vec<_> = (0..DESCRIPTORS_MAX as u32).map(|n| eventfd(n, EventfdFlags::empty()).unwrap()).collect();
        let borrowed: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        old.send(&FromOld::Listener { place: 3 }, &borrowed).unwrap();
        let (message, received) = new.receive::<FromOld>().unwrap().unwrap();
        assert!(matches!(message, FromOld::Listener { place: 3 }));
        for (number, event) in received.iter().enumerate().skip(1) {
            let mut count = [0; 8];
            rustix::io::read(event, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), number as u64);
        }
        drop(old);
        assert!(new.receive::<FromOld>().unwrap().is_none(), "the other process has ended");
    }

    #[test]
    fn the_largest_client_fits_and_what_is_unknown_is_ignored() {
        let (old, new) = UpgradeSocket::pair().unwrap();
        // The largest state of a connection: both buffers full, a head kept, and then the longest page.
        let output = [&b"~".repeat(16 << 10), crate::http::openapi::text().as_bytes()].concat();
        let (head, input) = (b"~".repeat(16 << 10), b"~".repeat(16 << 10));
        let bytes = output.len();
        let midway = ConnectionSnapshot { head, input, output, ..ConnectionSnapshot::default() };
        old.send(&FromOld::Clients { shard: 0, midway: vec![Some(midway)] }, &[]).unwrap();
        let Some((FromOld::Clients { midway, .. }, _)) = new.receive().unwrap() else { panic!("the message was sent") };
        assert_eq!(midway[0].as_ref().unwrap().output.len(), bytes);
        let later = serde_json::json!({ "Prepared": { "version": "99.0.0", "longest_hold_ms": 5, "mood": "good" } });
        new.send(&later, &[]).unwrap();
        let (message, _) = old.receive::<FromNew>().unwrap().unwrap();
        assert_eq!(message, FromNew::Prepared { version: "99.0.0".into(), longest_hold_ms: 5 });
    }
}
