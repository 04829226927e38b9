//! The partition: which shard owns each item and each user.

use crate::sale::ids::{ItemId, ShardId, UserId};

/// The distribution of items and users over the shards. It is the same on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    shards: u16,
}

impl Partition {
    /// Creates a partition over `shards` shards, at least one.
    pub fn new(shards: u16) -> Self {
        assert!(shards > 0, "a partition needs at least one shard");
        Partition { shards }
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Returns the owner of an item. Item ids are dense, so the remainder spreads them evenly.
    pub fn owner_of_item(&self, item: ItemId) -> ShardId {
        ShardId((item.0 % u32::from(self.shards)) as u16)
    }

    /// Returns the owner of a user. User ids may have any pattern, so they are hashed first, with the finalizer of
    /// MurmurHash3.
    pub fn owner_of_user(&self, user: UserId) -> ShardId {
        let mut hash = user.0 as u64;
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        ShardId(((u128::from(hash) * u128::from(self.shards)) >> 64) as u16)
    }

    /// Returns the slot of an item in its owner's stock.
    pub fn slot_of(&self, item: ItemId) -> usize {
        (item.0 / u32::from(self.shards)) as usize
    }

    /// Returns the item at `slot` of `owner`'s stock.
    pub fn item_at(&self, owner: ShardId, slot: usize) -> ItemId {
        ItemId(slot as u32 * u32::from(self.shards) + u32::from(owner.0))
    }

    /// Returns how many of `items` items `owner` owns.
    pub fn owned_items(&self, owner: ShardId, items: u32) -> usize {
        let shards = u32::from(self.shards);
        (items / shards + u32::from(u32::from(owner.0) < items % shards)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_item_has_one_slot(shards in 1u16..64, items in 1u32..5000) {
            let partition = Partition::new(shards);
            let mut owned = vec![0; usize::from(shards)];
            for item in (0..items).map(ItemId) {
                let owner = partition.owner_of_item(item);
                prop_assert_eq!(partition.slot_of(item), owned[usize::from(owner.0)]);
                prop_assert_eq!(partition.item_at(owner, partition.slot_of(item)), item);
                owned[usize::from(owner.0)] += 1;
            }
            for shard in 0..shards {
                prop_assert_eq!(partition.owned_items(ShardId(shard), items), owned[usize::from(shard)]);
            }
        }

        #[test]
        fn users_have_an_owner_that_exists(shards in 1u16..=256, user: i64) {
            prop_assert!(Partition::new(shards).owner_of_user(UserId(user)).0 < shards);
        }
    }

    #[test]
    fn consecutive_users_are_spread_evenly() {
        let partition = Partition::new(8);
        let mut owned = [0u32; 8];
        for user in 0..80_000 {
            owned[usize::from(partition.owner_of_user(UserId(user)).0)] += 1;
        }
        assert!(owned.iter().all(|&users| (9_500..10_500).contains(&users)), "{owned:?}");
    }
}
