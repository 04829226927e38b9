//! The readiness of a shard's sockets, of its doorbell and of its disk ring: one edge-triggered epoll set. The shard waits for it either
//! directly or through the executor.

use glommio::io::{PollState, PollableFd};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::task::{Context, Poll};

/// Sockets that one poll reports at most.
const EVENTS_MAX: usize = 512;
/// Wakers that the executor may keep for one registration of the epoll set.
const POLLS_MAX: u32 = 64;

/// The key of the listeners in the epoll set.
pub const LISTENER: u64 = u64::MAX;
/// The key of the doorbell in the epoll set, and of the ring of the logs. They only end a wait.
const WAKERS: u64 = u64::MAX - 1;

/// The epoll set of one shard.
pub struct Poller {
    set: PollableFd<OwnedFd>,
    poll: PollState,
    /// Number of polls of `poll` since it was created: the executor keeps one waker for each.
    polls: u32,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// Creates an epoll set with `doorbell` in it. Call it on the executor that will wait for the set.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(doorbell: impl AsFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = Vec::with_capacity(EVENTS_MAX);
        let poller =
            Poller { set: PollableFd::new(set).map_err(io::Error::from)?, poll: PollState::new(), polls: 0, events };
        poller.add_waker(doorbell)?;
        Ok(poller)
    }

    /// Adds a descriptor that ends a wait when it becomes readable.
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn add_waker(&self, waker: impl AsFd) -> io::Result<()> {
        self.add(waker, WAKERS, EventFlags::IN)
    }

    /// Adds a socket to the epoll set, where it stays until it is closed.
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn add(&self, socket: impl AsFd, key: u64, flags: EventFlags) -> io::Result<()> {
        epoll::add(self.set.get_ref(), socket, epoll::EventData::new_u64(key), flags | EventFlags::ET)?;
        Ok(())
    }

    /// Adds a listener to the epoll set. Of several shards that share a listening socket, the kernel wakes only one that
    /// sleeps for a new connection (EPOLLEXCLUSIVE).
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn add_listener(&self, listener: impl AsFd) -> io::Result<()> {
        self.add(listener, LISTENER, EventFlags::IN | EventFlags::EXCLUSIVE)
    }

    /// Removes a listener from the epoll set, if it is there.
    pub fn remove_listener(&self, listener: impl AsFd) {
        // The only error is that it is not there.
        let _ = epoll::delete(self.set.get_ref(), listener);
    }

    /// Polls for sockets that are ready, and blocks the thread up to `timeout_ms` until there is one or the doorbell
    /// rings.
    pub fn poll(&mut self, timeout_ms: u64) {
        self.events.clear();
        let timeout = Timespec { tv_sec: (timeout_ms / 1000) as i64, tv_nsec: (timeout_ms % 1000 * 1_000_000) as i64 };
        match epoll::wait(self.set.get_ref(), spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the epoll set cannot be read: {error}"),
        }
    }

    /// Returns the sockets that the last poll has found ready, by key.
    pub fn ready(&self) -> impl Iterator<Item = (u64, EventFlags)> {
        let events = self.events.iter().map(|event| (event.data, event.flags));
        events.map(|(data, flags)| (data.u64(), flags)).filter(|(key, _)| *key != WAKERS)
    }

    /// Waits in the executor until a socket is ready or a waker is readable. Call `poll` afterwards.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.polls += 1;
        if self.polls > POLLS_MAX {
            (self.poll, self.polls) = (PollState::new(), 1);
        }
        match self.set.poll_readable(cx, &mut self.poll) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(error)) => panic!("the epoll set cannot be waited for: {error}"),
            Poll::Pending => Poll::Pending,
        }
    }
}
