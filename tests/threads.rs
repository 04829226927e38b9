//! Loom tests of data that crosses threads outside channels, in every order that the memory model allows.

use loom::sync::Arc;
use loom::sync::atomic::{self, AtomicBool, Ordering};
use loom::thread;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[path = "../src/system/doorbell.rs"]
#[allow(dead_code, reason = "only what may go wrong is tried")]
mod doorbell;

use doorbell::Doorbell;

fn has_rung(bell: &Doorbell) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&at_once)).unwrap() == 1
}

/// The doorbell loses no wake-up:
///
/// 1. Two threads each set a flag and ring the doorbell.
/// 2. The shard calls `fall_asleep`, and then checks both flags.
/// 3. If the shard misses a flag, it sleeps, and the doorbell must wake it.
#[test]
fn nobody_sleeps_through_what_was_left() {
    loom::model(|| {
        let bell = Arc::new(Doorbell::new().unwrap());
        let left = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let visitors = left.clone().map(|left| {
            let bell = bell.clone();
            thread::spawn(move || {
                left.store(true, Ordering::Relaxed);
                bell.ring();
            })
        });
        bell.fall_asleep();
        let seen = left.each_ref().map(|left| left.load(Ordering::Relaxed));
        visitors.into_iter().for_each(|visitor| visitor.join().unwrap());
        assert!(seen == [true; 2] || has_rung(&bell), "the shard never wakes up; it has seen {seen:?}");
    });
}
