//! Loom tests of data that crosses threads outside channels, in every order that the memory model allows.

use loom::sync::Arc;
use loom::sync::atomic::{self, AtomicBool, Ordering};
use loom::thread;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[path = "../src/system/doorbell.rs"]
#[allow(dead_code, reason = "only what may go wrong is tried")]
mod doorbell;

#[path = "../src/system/mail_bitmap.rs"]
#[allow(dead_code, reason = "only what may go wrong is tried")]
mod mail_bitmap;

use doorbell::Doorbell;
use mail_bitmap::{MailBitmap, Senders};

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

/// No message is overlooked: when the shard has a sender's bit, it sees the message, and a message that it does not see
/// has its bit set for the next look.
#[test]
fn a_noted_message_is_seen_or_noted_still() {
    loom::model(|| {
        let mail = Arc::new(MailBitmap::default());
        let lanes = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let senders = [0, 1].map(|sender| {
            let (mail, lane) = (mail.clone(), lanes[sender].clone());
            thread::spawn(move || {
                lane.store(true, Ordering::Relaxed);
                mail.note(sender as u16);
            })
        });
        let mut taken = Senders::default();
        mail.take(&mut taken);
        let early: Vec<u16> = taken.iter().collect();
        for sender in &early {
            assert!(lanes[usize::from(*sender)].load(Ordering::Relaxed), "the message of a noted sender is not there");
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        mail.take(&mut taken);
        assert_eq!(taken.iter().collect::<Vec<_>>(), [0, 1], "taken before: {early:?}");
    });
}

#[test]
fn senders_are_taken_once_and_in_order() {
    loom::model(|| {
        let (mail, mut senders) = (MailBitmap::default(), Senders::default());
        assert!(mail.is_empty() && senders.is_empty());
        [255, 0, 64, 63, 64].into_iter().for_each(|sender| mail.note(sender));
        assert!(!mail.is_empty());
        mail.take(&mut senders);
        assert!(mail.is_empty());
        assert_eq!(senders.iter().collect::<Vec<_>>(), [0, 63, 64, 255]);
        senders.insert(5);
        mail.note(64);
        mail.take(&mut senders);
        assert_eq!(senders.iter().collect::<Vec<_>>(), [0, 5, 63, 64, 255]);
    });
}
