//! The doorbell of a shard: other threads ring it to wake the shard. A ring is cheap while the shard is awake.
//!
//! The protocol, which loses no wake-up:
//!
//! 1. A thread stores work for the shard (a batch in a lane, a published number, an order), and then calls `ring`.
//! 2. The shard calls `fall_asleep`, and then checks every place where work is stored. If it finds work, it does not
//!    sleep.
//! 3. Both functions have a fence, so at least one side sees the other: the shard sees the work in step 2, or `ring`
//!    sees that the shard is asleep. In the second case, `ring` writes the eventfd, which is in the shard's epoll set.
//! 4. The shard calls `wake_up`. Until the next `fall_asleep`, a ring is a fence and a load.
//!
//! `tests/threads.rs` compiles this file with the atomics of loom, which try every order that the memory model allows.

use crate::atomic::{AtomicBool, Ordering, fence};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::write;

/// Wakes one shard from any thread. It has cache lines of its own, because others read it while the shard writes.
#[derive(Debug)]
#[repr(align(128))]
pub struct Doorbell {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Doorbell {
    /// Creates a doorbell for a shard that is awake.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Doorbell { event, asleep: AtomicBool::new(false) })
    }

    /// Wakes the shard if it is asleep. Call it after the work for the shard is stored.
    pub fn ring(&self) {
        // Pairs with the fence in `fall_asleep`: either the shard sees the work, or this thread sees that it is asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // The set is edge-triggered, so each write is an event and the counter need not be read. It overflows only
            // after 2^64 writes.
            let _ = write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Marks the shard as asleep. The shard must check for work once more before it sleeps.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Marks the shard as awake.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
