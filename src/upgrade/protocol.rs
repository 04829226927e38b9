//! What two processes say to each other in an upgrade, and the descriptors that go along with it.
//!
//! One Unix socket that keeps messages apart, JSON in each. Only the messages are the two versions' common ground: what
//! one of them does not know in a message it ignores. The sale itself goes by way of the log.
//!
//! | the old process | the new one |
//! |---|---|
//! | `Offer` | |
//! | | reads the log ahead, checks all that can fail; `Prepared` |
//! | stops reading, finishes what is in flight, flushes; `Lock`, `Admin`, `Written`, `Listener`, `Clients`, `Everything` | |
//! | | reads the rest of the log, makes its own; `Ready` |
//! | `Yours`; ends | |
//! | | serves |
//!
//! Up to `Yours` the old process can go on as if nothing had happened: it ends the new one and removes what that one has
//! written. Whoever finds the other one gone after `Everything`, or before, knows what to do by this table, too.

use crate::http::connection::Midway;
use crate::log::stream::End;
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

/// Raised when a message changes its meaning.
pub const PROTOCOL: u32 = 1;
/// Tells a new process whose place it takes: its standard input is the socket.
pub const VARIABLE: &str = "STAMPEDE_TAKES_OVER_FROM";
/// The kernel takes 253 descriptors with a message (unix(7)).
pub const DESCRIPTORS_MAX: usize = 250;
/// Bytes of half-done requests and answers in one message, about; of one client that has more, a message of its own.
pub const MIDWAY_BYTES_MAX: usize = 64 * 1024;
/// The longest message. Bytes are written in decimal numbers, and the kernel takes 416 KiB unless it is told otherwise.
const MESSAGE_BYTES_MAX: usize = 400 * 1024;
/// The other process may be busy for a while, but not for ever.
const SEND_TIME: Duration = Duration::from_secs(5);

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromOld {
    /// What there is to take over.
    Offer(Offer),
    /// With one descriptor, which holds the data directory.
    Lock,
    /// With the listener of the admin port.
    Admin,
    /// With a listener.
    Listener {
        /// Where it is in the order in which they were opened.
        place: usize,
    },
    /// What a shard has written, all of it durable.
    Written {
        /// Of which run.
        epoch: u32,
        /// The shard.
        shard: u16,
        /// Where its purchases end.
        purchases: End,
        /// Where its attempts end.
        attempts: End,
    },
    /// With clients of a shard, and what each of them is in the middle of.
    Clients {
        /// The shard.
        shard: u16,
        /// In the order of the descriptors; nothing for who is idle.
        midway: Vec<Option<Midway>>,
    },
    /// Nothing is missing, and nobody is served now.
    Everything,
    /// The new process is the server.
    Yours,
}

/// What there is to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// [`PROTOCOL`] of the old process.
    pub protocol: u32,
    /// Its version, for people.
    pub version: String,
    /// Of the blocks of its log.
    pub log_format: u8,
    /// Where it was told to listen.
    pub listen: SocketAddr,
    /// Where it was told to listen for operators.
    pub admin_listen: SocketAddr,
    /// Where its log is.
    pub data_dir: PathBuf,
    /// The run that the new process is.
    pub epoch: u32,
}

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNew {
    /// It has checked all that it can check, and will go on in a moment once it gets everything.
    Prepared {
        /// Its version, for people.
        version: String,
    },
    /// It could serve at once.
    Ready,
}

/// One end of the socket between the two.
#[derive(Debug)]
pub struct UpgradeSocket(OwnedFd);

impl UpgradeSocket {
    /// Both ends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pair() -> io::Result<(UpgradeSocket, UpgradeSocket)> {
        let (old, new) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&old, Timeout::Send, Some(SEND_TIME))?;
        Ok((UpgradeSocket::new(old)?, UpgradeSocket::new(new)?))
    }

    /// The end that `socket` is.
    ///
    /// # Errors
    /// It is no socket.
    pub fn new(socket: OwnedFd) -> io::Result<UpgradeSocket> {
        set_socket_send_buffer_size(&socket, 2 * MESSAGE_BYTES_MAX)?;
        set_socket_recv_buffer_size(&socket, 2 * MESSAGE_BYTES_MAX)?;
        Ok(UpgradeSocket(socket))
    }

    /// The socket itself.
    pub fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Says `message`, and passes the descriptors: both processes have them then.
    ///
    /// # Errors
    /// The other process is gone, or does not listen.
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
                // As many descriptors are on their way as may be: the other process takes them out one message at a time.
                Err(Errno::TOOMANYREFS) => sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for what the other process says next. `None`: it is gone.
    ///
    /// # Errors
    /// It makes no sense, or this process may not have so many descriptors.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut along, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // Without a farewell, with something of this process unread.
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
            return Err(io::Error::other("not every descriptor could be taken over; raise LimitNOFILE or ulimit -n"));
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
        assert!(new.receive::<FromOld>().unwrap().is_none(), "it is gone");
    }

    #[test]
    fn the_largest_client_fits_and_what_is_unknown_is_ignored() {
        let (old, new) = UpgradeSocket::pair().unwrap();
        // Both buffers full, a head kept, and then the longest page.
        let output = [&b"~".repeat(16 << 10), crate::http::openapi::text().as_bytes()].concat();
        let (head, input) = (b"~".repeat(8 << 10), b"~".repeat(16 << 10));
        let bytes = output.len();
        let midway = Midway { head, input, output, ..Midway::default() };
        old.send(&FromOld::Clients { shard: 0, midway: vec![Some(midway)] }, &[]).unwrap();
        let Some((FromOld::Clients { midway, .. }, _)) = new.receive().unwrap() else { panic!("it was sent") };
        assert_eq!(midway[0].as_ref().unwrap().output.len(), bytes);
        let later = serde_json::json!({ "Prepared": { "version": "99.0.0", "mood": "good" } });
        new.send(&later, &[]).unwrap();
        let (message, _) = old.receive::<FromNew>().unwrap().unwrap();
        assert_eq!(message, FromNew::Prepared { version: "99.0.0".into() });
    }
}
