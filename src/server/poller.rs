//! Which of a shard's sockets have something to do: one epoll set, edge-triggered.

use glommio::io::{PollState, PollableFd};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::task::{Context, Poll};

/// Sockets reported by one look.
const EVENTS_MAX: usize = 512;
/// Wakers that the executor may keep for one registration of the set.
const POLLS_MAX: u32 = 64;

/// The key of the listeners.
pub const LISTENER: u64 = u64::MAX;
/// The key of the doorbell.
const DOORBELL: u64 = u64::MAX - 1;

/// An epoll set.
pub struct Poller {
    set: PollableFd<OwnedFd>,
    poll: PollState,
    /// How often `poll` has been asked since it was new: the executor keeps one waker for each time.
    polls: u32,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// A set that `doorbell` wakes. Must be called on the executor that will wait for it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(doorbell: impl AsFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = Vec::with_capacity(EVENTS_MAX);
        let poller =
            Poller { set: PollableFd::new(set).map_err(io::Error::from)?, poll: PollState::new(), polls: 0, events };
        poller.add(doorbell, DOORBELL, EventFlags::IN)?;
        Ok(poller)
    }

    /// Watches one more, until it is closed.
    ///
    /// # Errors
    /// No memory is left.
    pub fn add(&self, socket: impl AsFd, key: u64, flags: EventFlags) -> io::Result<()> {
        epoll::add(self.set.get_ref(), socket, epoll::EventData::new_u64(key), flags | EventFlags::ET)?;
        Ok(())
    }

    /// Looks for sockets that are ready. Waits so long for one, or for the doorbell; the thread does nothing else then.
    pub fn look(&mut self, timeout_ms: u64) {
        self.events.clear();
        let timeout = Timespec { tv_sec: (timeout_ms / 1000) as i64, tv_nsec: (timeout_ms % 1000 * 1_000_000) as i64 };
        match epoll::wait(self.set.get_ref(), spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the epoll set cannot be read: {error}"),
        }
    }

    /// What the last look has found, by key.
    pub fn ready(&self) -> impl Iterator<Item = (u64, EventFlags)> {
        let events = self.events.iter().map(|event| (event.data, event.flags));
        events.map(|(data, flags)| (data.u64(), flags)).filter(|(key, _)| *key != DOORBELL)
    }

    /// Waits in the executor until a socket is ready or the doorbell rings. To be followed by a look.
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
