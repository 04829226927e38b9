//! The keys with which users have got any item, at the shard that counts the items of these users.
//!
//! A repeated checkout of any item names no item. So the user's owner remembers which item each key has got, from the
//! claim on, and as long as the item counts in the quota of the user: the quota bounds the number of keys. The owner of
//! the item then decides whether the checkout is a repetition: it has the hold. Replay restores the keys with the quotas.

use crate::sale::checkout_key::is_of_any;
use crate::sale::ids::{ItemId, UserId};
use crate::sale::linear_table::{Chained, LinearTable, NIL};
use crate::sale::partition::UserHash;

/// A key that has got an item, or a place without one.
#[derive(Clone, Copy)]
struct AnyKey {
    user: UserId,
    /// Short fingerprint of the key; 0 if there is none.
    key: u64,
    item: ItemId,
    next: u32,
}

impl Chained for AnyKey {
    const FREE: AnyKey = AnyKey { user: UserId(0), key: 0, item: ItemId(0), next: NIL };

    fn next(&self) -> u32 {
        self.next
    }

    fn set_next(&mut self, next: u32) {
        self.next = next;
    }
}

/// The keys of one shard's users in one sale.
pub struct AnyKeys {
    table: LinearTable<AnyKey>,
    hash: UserHash,
}

impl AnyKeys {
    /// Creates a table without keys.
    pub fn new(hash: UserHash) -> Self {
        AnyKeys { table: LinearTable::default(), hash }
    }

    /// Removes all keys, and keeps their memory.
    pub fn clear(&mut self) {
        self.table.clear();
    }

    /// Returns whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.table.count() == 0
    }

    /// Returns the item that this key of the user has got. After a takeover from Postgres, which may lack the end of a
    /// hold, there can be two.
    pub fn find(&self, user: UserId, key: u64) -> Option<ItemId> {
        let is_it = |entry: &AnyKey| entry.key == key && entry.user == user;
        self.table.find(self.hash_of(key), is_it).map(|entry| entry.item)
    }

    /// Adds the key of a counted item, if it is one of a checkout of any item.
    pub fn note(&mut self, user: UserId, key: u64, item: ItemId) {
        if is_of_any(key) {
            let hash = self.hash;
            self.table.add(AnyKey { user, key, item, next: NIL }, |entry| hash.of(UserId(entry.key as i64)));
        }
    }

    /// Removes the key of an item that does not count any more, if it is one of a checkout of any item.
    pub fn forget(&mut self, user: UserId, key: u64, item: ItemId) {
        if is_of_any(key) {
            let is_it = |entry: &AnyKey| (entry.key, entry.user, entry.item) == (key, user, item);
            self.table.remove_if(self.hash_of(key), is_it, |_| true);
        }
    }

    /// Returns all keys with their users and items, for tests.
    #[cfg(test)]
    pub fn all(&self) -> impl Iterator<Item = (UserId, u64, ItemId)> {
        self.table.places().filter(|entry| entry.key != 0).map(|entry| (entry.user, entry.key, entry.item))
    }

    /// The key is a hash already, but one that a client can choose.
    fn hash_of(&self, key: u64) -> u64 {
        self.hash.of(UserId(key as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::checkout_key::{mark_any, short};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use uuid::Uuid;

    proptest! {
        /// The table behaves like a set, also when it is cleared and used again. Keys of checkouts with an item are not in it.
        #[test]
        fn keys_are_a_set(steps in prop::collection::vec((0u8..20, 0i64..3, 1u128..40, 0u32..3), 1..300), secret: [u8; 32]) {
            let (mut keys, mut set) = (AnyKeys::new(UserHash::new(secret)), BTreeSet::new());
            for (kind, user, key, item) in steps {
                let (user, item, named) = (UserId(user), ItemId(item), Uuid::from_u128(key));
                let key = short(mark_any(named));
                keys.note(user, short(named), item);
                if kind == 0 {
                    keys.clear();
                    set.clear();
                } else if set.remove(&(user, key, item)) {
                    keys.forget(user, key, item);
                } else {
                    keys.note(user, key, item);
                    set.insert((user, key, item));
                }
                prop_assert_eq!(keys.all().collect::<BTreeSet<_>>(), set.clone());
                prop_assert_eq!(keys.is_empty(), set.is_empty());
                let found = keys.find(user, key);
                prop_assert_eq!(found.is_some(), set.iter().any(|known| (known.0, known.1) == (user, key)));
                prop_assert!(found.is_none_or(|item| set.contains(&(user, key, item))));
            }
        }
    }
}
