//! Which shards have sent something to a shard that it has not looked at yet: a bit for each sender. So a shard looks
//! only into the lanes that have messages, however many shards there are.
//!
//! A sender stores a message first, and then calls `note`. The receiver calls `take` first, and then looks for the messages
//! of the senders that it has got. So a message that arrives too late for the look has its bit set again.
//!
//! `tests/threads.rs` compiles this file with the atomics of loom, which try every order that the memory model allows.

use crate::atomic::{AtomicU64, Ordering};

/// Senders at most.
pub const SENDERS_MAX: usize = 256;
const WORDS: usize = SENDERS_MAX / 64;

/// The senders of messages to one shard. It has cache lines of its own, because others write to it while the shard works.
#[derive(Debug)]
#[repr(align(128))]
pub struct MailBitmap([AtomicU64; WORDS]);

impl Default for MailBitmap {
    fn default() -> Self {
        MailBitmap(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl MailBitmap {
    /// Notes that `sender` has sent something. Call it after the message is stored.
    pub fn note(&self, sender: u16) {
        let (word, bit) = place(sender);
        self.0[word].fetch_or(bit, Ordering::Release);
    }

    /// Returns whether nothing was noted since the last call of `take`.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Moves the senders to `senders`.
    pub fn take(&self, senders: &mut Senders) {
        for (word, taken) in self.0.iter().zip(&mut senders.0) {
            if word.load(Ordering::Relaxed) != 0 {
                *taken |= word.swap(0, Ordering::Acquire);
            }
        }
    }
}

/// A set of senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Senders([u64; WORDS]);

impl Senders {
    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Adds a sender.
    pub fn insert(&mut self, sender: u16) {
        let (word, bit) = place(sender);
        self.0[word] |= bit;
    }

    /// Returns the senders, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        let words = self.0;
        words.into_iter().enumerate().flat_map(|(number, word)| {
            let lowest = |bits: &u64| Some(bits & (bits - 1)).filter(|rest| *rest != 0);
            let left = std::iter::successors(Some(word).filter(|word| *word != 0), lowest);
            left.map(move |bits| (number * 64) as u16 + bits.trailing_zeros() as u16)
        })
    }
}

fn place(sender: u16) -> (usize, u64) {
    (usize::from(sender) / 64, 1 << (sender % 64))
}
