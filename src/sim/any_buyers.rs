//! Buyers that ask for any item, and the numbers that shards publish for them.

use super::world::World;
use crate::sale::any_unit::PublishedStock;
use crate::sale::command::Command;
use crate::sale::effects::Effects;
use crate::sale::ids::ShardId;
use crate::sale::message::Reply;
use crate::sale::shard::ShardEvent;
use uuid::Uuid;

/// Whether buyers ask for any item, and what shards have published.
pub struct AnyBuyers {
    /// The share of the checkouts that ask for any item, of 4.
    share: u32,
    /// Shards publish their numbers after some of their events only, as at the end of a turn.
    pub publishes_late: bool,
    /// The latest published numbers, by shard.
    numbers: Vec<PublishedStock>,
    chance: fastrand::Rng,
}

impl AnyBuyers {
    /// Creates the buyers of the world of `seed`. In half of the worlds, every item is asked for by its number.
    pub fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xa11);
        let (share, publishes_late) = (chance.u32(0..8).saturating_sub(3), chance.bool());
        AnyBuyers { share, publishes_late, numbers: Vec::new(), chance }
    }

    /// Returns whether some buyers ask for any item.
    pub fn exist(&self) -> bool {
        self.share > 0
    }

    /// Turns some checkouts into checkouts of any item. They have no key, because it would not be remembered.
    pub fn choose(&mut self, command: Command) -> Command {
        match command {
            Command::Checkout { user, .. } if self.chance.u32(0..4) < self.share => {
                Command::CheckoutAny { user, key: Uuid::nil() }
            }
            command => command,
        }
    }

    /// Begins a run with `shards` shards, which have published nothing.
    pub fn restart(&mut self, shards: u16) {
        self.numbers = vec![PublishedStock::default(); shards.into()];
    }
}

impl World {
    /// Gives a shard the published numbers before an event with which it chooses the shard to ask.
    pub fn give_published(&mut self, shard: u16, event: &ShardEvent) {
        if matches!(
            event,
            ShardEvent::Command(_, Command::CheckoutAny { .. }) | ShardEvent::Reply(Reply::NoneFree { .. })
        ) {
            for (id, numbers) in (0..).map(ShardId).zip(self.any_buyers.numbers.clone()) {
                let shard = &mut self.shards[usize::from(shard)];
                shard.apply(ShardEvent::Published(id, numbers), self.now, &mut Effects::default());
            }
        }
    }

    /// Returns the event since which one of the items of the newest sale has been free without interruption.
    pub fn any_free_since(&self) -> Option<u64> {
        let terms = self.shards.iter().map(|shard| shard.terms()).max_by_key(|terms| terms.sale);
        let items = terms.map_or(0, |terms| terms.items);
        self.items_free.iter().filter(|(item, _)| item.0 < items).map(|(_, since)| *since).min()
    }

    /// Publishes the numbers of a shard, or leaves the earlier ones.
    pub fn publish_stock(&mut self, shard: u16) {
        let AnyBuyers { publishes_late, numbers, chance, .. } = &mut self.any_buyers;
        if !*publishes_late || chance.u32(0..3) == 0 {
            numbers[usize::from(shard)] = self.shards[usize::from(shard)].stock_to_publish();
        }
    }
}
