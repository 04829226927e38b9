//! The partition: which shard owns each item and each user, and the hash of users.

use crate::sale::ids::{ItemId, ShardId, UserId};
use std::fmt;
use std::ops::Range;

/// A hash of users with a secret key. Clients choose user ids: with a key that is known, they could choose many users of
/// one shard, or of one bucket of a hash table.
///
/// Multiply-shift hashing is strongly universal (Dietzfelbinger, "Universal hashing and k-wise independent random
/// variables via integer arithmetic without primes", STACS 1996): whichever two users are chosen, the keys under which
/// they agree in n bits of the hash are one in 2^n.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserHash {
    multiplier: u128,
    addend: u128,
}

impl UserHash {
    /// Creates the hash of a key. The key must come from the operating system, except in tests and where only the log is
    /// read.
    pub fn new(key: [u8; 32]) -> Self {
        let half = |at: usize| u128::from_le_bytes(std::array::from_fn(|byte| key[at + byte]));
        UserHash { multiplier: half(0), addend: half(16) }
    }

    /// Returns the hash of a user, of which all bits are equally good.
    #[inline]
    pub fn of(&self, user: UserId) -> u64 {
        // The finalizer of MurmurHash3, a permutation, so that ids with a pattern, such as consecutive ones, are not
        // multiples of the same number.
        let mut hash = user.0 as u64;
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        (self.multiplier.wrapping_mul(u128::from(hash)).wrapping_add(self.addend) >> 64) as u64
    }
}

impl fmt::Debug for UserHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserHash")
    }
}

/// The key of a partition that is not secret.
const KNOWN_KEY: [u8; 32] = *b"the key of tests and of log tool";

/// The distribution of items and users over the shards. It is the same on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    shards: u16,
    users: UserHash,
}

impl Partition {
    /// Creates a partition over `shards` shards, at least one, with a key that everyone knows: for tests, and for
    /// reading a log without a server.
    pub fn new(shards: u16) -> Self {
        Self::with_key(shards, KNOWN_KEY)
    }

    /// Creates a partition over `shards` shards, at least one, with a secret key. Nothing that outlives the process
    /// depends on the key: replay computes the owners of users again.
    pub fn with_key(shards: u16, key: [u8; 32]) -> Self {
        assert!(shards > 0, "a partition needs at least one shard");
        Partition { shards, users: UserHash::new(key) }
    }

    /// Returns the hash of users.
    pub fn user_hash(&self) -> UserHash {
        self.users
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Returns the owner of an item. Item ids are dense, so the remainder spreads them evenly.
    pub fn owner_of_item(&self, item: ItemId) -> ShardId {
        ShardId((item.0 % u32::from(self.shards)) as u16)
    }

    /// Returns the owner of a user: the range of the hash is divided evenly among the shards.
    pub fn owner_of_user(&self, user: UserId) -> ShardId {
        ShardId(((u128::from(self.users.of(user)) * u128::from(self.shards)) >> 64) as u16)
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

    /// Returns how many of the items with these numbers `owner` owns. They are consecutive slots of its stock, because its
    /// slots are in the order of its items, and the first one is [`owned_items`](Self::owned_items) of `items.start`.
    pub fn owned_in(&self, owner: ShardId, items: Range<u32>) -> usize {
        self.owned_items(owner, items.end) - self.owned_items(owner, items.start)
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
        fn consecutive_items_are_consecutive_slots(shards in 1u16..64, first in 0u32..500, count in 0u32..500) {
            let (partition, items) = (Partition::new(shards), first..first + count);
            for owner in (0..shards).map(ShardId) {
                let owned = items.clone().map(ItemId).filter(|item| partition.owner_of_item(*item) == owner);
                let slots: Vec<usize> = owned.map(|item| partition.slot_of(item)).collect();
                let begin = partition.owned_items(owner, first);
                prop_assert_eq!(slots, (begin..begin + partition.owned_in(owner, items.clone())).collect::<Vec<_>>());
            }
        }

        #[test]
        fn users_have_an_owner_that_exists(shards in 1u16..=256, user: i64, key: [u8; 32]) {
            prop_assert!(Partition::with_key(shards, key).owner_of_user(UserId(user)).0 < shards);
        }
    }

    fn random_key(seed: u64) -> [u8; 32] {
        let mut key = [0; 32];
        fastrand::Rng::with_seed(seed).fill(&mut key);
        key
    }

    /// Users that are all on one shard under one key are on all shards under another.
    #[test]
    fn the_owners_of_users_cannot_be_chosen_without_the_key() {
        let [known, secret] = [1, 2].map(|seed| Partition::with_key(8, random_key(seed)));
        let mut owned = [0u32; 8];
        for user in (0..).map(UserId).filter(|user| known.owner_of_user(*user) == ShardId(3)).take(8_000) {
            owned[usize::from(secret.owner_of_user(user).0)] += 1;
        }
        assert!(owned.iter().all(|&users| (800..1_200).contains(&users)), "{owned:?}");
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
