//! What wakes a shard that sleeps.
//!
//! `tests/threads.rs` compiles this file with other atomics, which take every order that the memory model allows.

use crate::atomic::{AtomicBool, Ordering, fence};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::write;

/// Wakes a shard from any thread. Free while the shard is awake.
#[derive(Debug)]
pub struct Doorbell {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Doorbell {
    /// A doorbell that nobody has rung.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Doorbell { event, asleep: AtomicBool::new(false) })
    }

    /// Wakes the shard if it sleeps. To be called after leaving something for it.
    pub fn ring(&self) {
        // With the fence in `fall_asleep`: either the shard sees what was left, or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // Nobody reads the counter: each ring is an edge, and it is full after 2^64 of them.
            let _ = write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Says that the shard will sleep. It must look for work once more before it does.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that the shard is awake.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
