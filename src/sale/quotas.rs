//! The rules of quotas: how many items each user of one shard may reserve.
//!
//! An item counts against its user's quota from the claim on. It counts until the sale ends if it is bought, and else
//! until the quota is returned, after the record that ends the hold is flushed.
//!
//! The users are in a hash table that never stalls its shard. Its hash has a secret key: see [`UserHash`].

use crate::sale::ids::UserId;
use crate::sale::linear_table::{Chained, LinearTable, NIL};
use crate::sale::partition::UserHash;

/// Largest number of users that a shard allocates memory for in advance: 1.3 MB.
const PREALLOCATED_USERS_MAX: usize = 1 << 16;

/// A user with an item, or an entry that no user has.
#[derive(Clone, Copy)]
struct QuotaEntry {
    user: UserId,
    /// Number of items that count; 0 if no user has the entry.
    taken: u32,
    /// The next entry of the bucket, or the next entry that no user has.
    next: u32,
}

impl Chained for QuotaEntry {
    const FREE: QuotaEntry = QuotaEntry { user: UserId(0), taken: 0, next: NIL };

    #[inline]
    fn next(&self) -> u32 {
        self.next
    }

    #[inline]
    fn set_next(&mut self, next: u32) {
        self.next = next;
    }
}

/// The quotas of one shard's users. The entry of a user is removed when the last item is returned.
pub struct Quotas {
    limit: u32,
    hash: UserHash,
    table: LinearTable<QuotaEntry>,
}

impl Quotas {
    /// Creates quotas of `limit` items per user. Allocates memory for `users` users in advance, up to a maximum.
    pub fn new(limit: u32, hash: UserHash, users: usize) -> Self {
        let mut quotas = Quotas { limit, hash, table: LinearTable::default() };
        quotas.allocate(users);
        quotas
    }

    /// Allocates memory for `users` users in advance, up to a maximum, if there is less.
    pub fn allocate(&mut self, users: usize) {
        self.table.allocate(users.min(PREALLOCATED_USERS_MAX));
    }

    /// Removes all users, keeps their memory, and sets another limit. It takes the same time for any number of users.
    pub fn clear(&mut self, limit: u32) {
        self.limit = limit;
        self.table.clear();
    }

    /// Counts one more item for the user, unless the limit is reached. Returns whether the item was counted.
    pub fn claim(&mut self, user: UserId) -> bool {
        let limit = self.limit;
        let taken = self.taken_mut(user);
        let granted = *taken < limit;
        *taken += u32::from(granted);
        granted
    }

    /// Counts one more item for the user without checking the limit, for a checkout that is replayed. Streams are
    /// replayed one after the other, so a checkout can come before the release that made room for it.
    /// [`over_limit`](Self::over_limit) checks the limit at the end.
    pub fn restore(&mut self, user: UserId) {
        *self.taken_mut(user) += 1;
    }

    /// Returns the user above the limit with the lowest id. After the replay of a complete log there is none.
    pub fn over_limit(&self) -> Option<UserId> {
        self.table.places().filter(|entry| entry.taken > self.limit).map(|entry| entry.user).min()
    }

    /// Counts one item less for the user.
    pub fn release(&mut self, user: UserId) {
        let was_counted = self.table.remove_if(
            self.hash.of(user),
            |entry| entry.user == user,
            |entry| {
                entry.taken -= 1;
                entry.taken == 0
            },
        );
        assert!(was_counted, "a quota is released only after it was claimed");
    }

    /// Returns how many items count against the user's quota.
    pub fn taken(&self, user: UserId) -> u32 {
        self.table.find(self.hash.of(user), |entry| entry.user == user).map_or(0, |entry| entry.taken)
    }

    /// Returns how many items count against the quotas of all users together.
    pub fn total(&self) -> u64 {
        self.table.places().map(|entry| u64::from(entry.taken)).sum()
    }

    /// Returns the number of items that count against the user's quota. Adds an entry if there is none.
    fn taken_mut(&mut self, user: UserId) -> &mut u32 {
        let (hash, entry) = (self.hash, QuotaEntry { user, ..QuotaEntry::FREE });
        let hash_of = |entry: &QuotaEntry| hash.of(entry.user);
        &mut self.table.find_or_add(hash.of(user), |entry| entry.user == user, entry, hash_of).taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::chunked_vec::accesses;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn random_hash(seed: u64) -> UserHash {
        let mut key = [0; 32];
        fastrand::Rng::with_seed(seed).fill(&mut key);
        UserHash::new(key)
    }

    fn quotas(limit: u32) -> Quotas {
        Quotas::new(limit, random_hash(7), 0)
    }

    #[test]
    fn quotas_count_up_to_the_limit_and_forget_the_idle() {
        let mut quotas = quotas(2);
        assert!(quotas.claim(UserId(1)) && quotas.claim(UserId(1)));
        assert!(!quotas.claim(UserId(1)));
        assert!(quotas.claim(UserId(2)));
        quotas.release(UserId(1));
        assert!(quotas.claim(UserId(1)));
        quotas.release(UserId(2));
        assert_eq!((quotas.total(), quotas.table.count(), quotas.taken(UserId(2))), (2, 1, 0));
        assert!(!self::quotas(0).claim(UserId(1)));
    }

    proptest! {
        /// The table behaves like a map, also when it is cleared and used again.
        #[test]
        fn quotas_are_a_map(steps in prop::collection::vec((0u8..16, 0i64..60), 1..400), key: [u8; 32]) {
            let (limit, mut quotas) = (3, Quotas::new(3, UserHash::new(key), 0));
            let mut map: BTreeMap<i64, u32> = BTreeMap::new();
            for (kind, id) in steps {
                match kind {
                    0 => {
                        quotas.clear(limit);
                        map.clear();
                    }
                    1..8 if map.contains_key(&id) => {
                        quotas.release(UserId(id));
                        map.entry(id).and_modify(|taken| *taken -= 1);
                        map.retain(|_, taken| *taken > 0);
                    }
                    8 => {
                        quotas.restore(UserId(id));
                        *map.entry(id).or_default() += 1;
                    }
                    _ => {
                        let granted = map.get(&id).is_none_or(|taken| *taken < limit);
                        prop_assert_eq!(quotas.claim(UserId(id)), granted);
                        *map.entry(id).or_default() += u32::from(granted);
                    }
                }
                prop_assert_eq!((quotas.table.count(), quotas.total()), (map.len(), map.values().map(|&taken| u64::from(taken)).sum()));
                let over = map.iter().find(|(_, taken)| **taken > limit).map(|(id, _)| UserId(*id));
                prop_assert_eq!(quotas.over_limit(), over);
            }
            for id in 0..60 {
                prop_assert_eq!(quotas.taken(UserId(id)), map.get(&id).copied().unwrap_or(0));
            }
        }
    }

    /// Returns the largest number of steps of a claim by each of these users, as their first.
    fn most_steps(quotas: &mut Quotas, users: impl Iterator<Item = i64>) -> u64 {
        users.map(|user| accesses(|| assert!(quotas.claim(UserId(user))))).max().unwrap()
    }

    /// Makes the first claim of each of these users. Fails at the first claim that takes many steps.
    fn claim_in_few_steps(quotas: &mut Quotas, users: impl Iterator<Item = i64>) {
        for user in users {
            let steps = most_steps(quotas, std::iter::once(user));
            assert!(steps < 100, "{steps} steps of the claim of user {user}, with {} users", quotas.table.count());
        }
    }

    /// The longest claim moves a few entries, whether the table has ten users or a million, and the table is cleared in a
    /// few steps.
    #[test]
    fn a_table_of_a_million_users_grows_in_small_steps() {
        let mut quotas = quotas(1);
        for _ in 0..2 {
            claim_in_few_steps(&mut quotas, 0..1_000_000);
            assert_eq!((quotas.table.count(), quotas.table.buckets()), (1_000_000, 1_000_000));
            assert!(accesses(|| quotas.clear(1)) < 10);
        }
        // The largest ids, and ids that differ only in their high bits.
        claim_in_few_steps(&mut quotas, (0..100_000).map(|user| i64::MAX - user));
        claim_in_few_steps(&mut quotas, (1..100_000).map(|user| user << 40));
    }

    /// A client that knew the key could choose users that are all in one bucket. Under another key, they are not.
    #[test]
    fn users_that_collide_under_one_key_do_not_under_another() {
        const CHOSEN: usize = 2_000;
        let [known, secret] = [1, 2].map(random_hash);
        let chosen: Vec<i64> = (0..).filter(|user| known.of(UserId(*user)) & 0x7ff == 0).take(CHOSEN).collect();
        let steps = |hash| most_steps(&mut Quotas::new(1, hash, 0), chosen.iter().copied());
        let (attacked, safe) = (steps(known), steps(secret));
        assert!(attacked > CHOSEN as u64 && safe < 100, "{attacked} steps with the known key, {safe} with the other");
    }
}
