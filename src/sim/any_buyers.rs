//! Buyers that ask for any item, and the numbers that shards publish for them.

use crate::sale::checkout_key::{is_of_any, mark_any, short};
use crate::sale::command::Command;
use crate::sale::ids::{SaleId, UserId};
use crate::sale::published_stock::PublishedStock;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Whether buyers ask for any item, and what shards have published.
pub struct AnyBuyers {
    /// The share of the checkouts that ask for any item, of 4.
    share: u32,
    /// Shards publish their numbers after some of their events only, as at the end of a turn.
    pub publishes_late: bool,
    /// The latest published numbers, by shard and sale.
    pub numbers: BTreeMap<(u16, SaleId), PublishedStock>,
    /// The number of checkouts so far, by user and key.
    sent: BTreeMap<(UserId, Uuid), u32>,
    pub chance: fastrand::Rng,
}

impl AnyBuyers {
    /// Creates the buyers of the world of `seed`. In half of the worlds, every item is asked for by its number.
    pub fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xa11);
        let (share, publishes_late) = (chance.u32(0..8).saturating_sub(3), chance.bool());
        AnyBuyers { share, publishes_late, numbers: BTreeMap::new(), sent: BTreeMap::new(), chance }
    }

    /// Returns whether some buyers ask for any item.
    pub fn exist(&self) -> bool {
        self.share > 0
    }

    /// Turns some checkouts into checkouts of any item, and the repetitions of such checkouts.
    pub fn choose(&mut self, command: Command) -> Command {
        match command {
            Command::Checkout { sale, user, key, .. }
                if is_of_any(short(key)) || self.chance.u32(0..4) < self.share =>
            {
                Command::CheckoutAny { sale, user, key: mark_any(key) }
            }
            command => command,
        }
    }

    /// Notes that a command is sent.
    pub fn note_sent(&mut self, command: Command) {
        if let Command::CheckoutAny { user, key, .. } = command {
            *self.sent.entry((user, key)).or_default() += 1;
        }
    }

    /// Returns whether a command is one of several checkouts of any item with one key.
    pub fn is_repeated(&self, command: Command) -> bool {
        matches!(command, Command::CheckoutAny { user, key, .. } if !key.is_nil() && self.sent[&(user, key)] > 1)
    }

    /// Returns what a shard has published of a sale.
    pub fn published(&self, shard: u16, sale: SaleId) -> PublishedStock {
        let none = PublishedStock { sale, ..PublishedStock::default() };
        self.numbers.get(&(shard, sale)).copied().unwrap_or(none)
    }
}
