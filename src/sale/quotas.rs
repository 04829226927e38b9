//! The rules of quotas: how many items each user of one shard may reserve.
//!
//! An item counts against its user's quota from the claim on. It counts until the sale ends if it is bought, and else
//! until the quota is returned, after the record that ends the hold is flushed.

use crate::sale::ids::UserId;
use foldhash::fast::FixedState;
use std::collections::HashMap;

/// Largest number of users that a shard allocates memory for in advance. A table that grows during a rush would stall
/// the shard for milliseconds.
const PREALLOCATED_USERS_MAX: usize = 1 << 16;

/// The quotas of one shard's users. The entry of a user is removed when the last item is returned.
pub struct Quotas {
    limit: u32,
    taken: HashMap<UserId, u32, FixedState>,
}

impl Quotas {
    /// Creates quotas of `limit` items per user. Allocates memory for `users` users in advance, up to a maximum.
    pub fn new(limit: u32, users: usize) -> Self {
        let mut quotas = Quotas { limit, taken: HashMap::with_hasher(FixedState::default()) };
        quotas.allocate(users);
        quotas
    }

    /// Allocates memory for `users` users in advance, up to a maximum, if there is less.
    pub fn allocate(&mut self, users: usize) {
        self.taken.reserve(users.min(PREALLOCATED_USERS_MAX).saturating_sub(self.taken.len()));
    }

    /// Removes all users, keeps their memory, and sets another limit.
    pub fn clear(&mut self, limit: u32) {
        self.limit = limit;
        self.taken.clear();
    }

    /// Counts one more item for the user, unless the limit is reached. Returns whether the item was counted.
    pub fn claim(&mut self, user: UserId) -> bool {
        let taken = self.taken.entry(user).or_insert(0);
        let granted = *taken < self.limit;
        *taken += u32::from(granted);
        granted
    }

    /// Counts one more item for the user without checking the limit, for a checkout that is replayed. Streams are
    /// replayed one after the other, so a checkout can come before the release that made room for it.
    /// [`over_limit`](Self::over_limit) checks the limit at the end.
    pub fn restore(&mut self, user: UserId) {
        *self.taken.entry(user).or_insert(0) += 1;
    }

    /// Returns the user above the limit with the lowest id. After the replay of a complete log there is none.
    pub fn over_limit(&self) -> Option<UserId> {
        self.taken.iter().filter(|(_, taken)| **taken > self.limit).map(|(user, _)| *user).min()
    }

    /// Counts one item less for the user.
    pub fn release(&mut self, user: UserId) {
        let taken = self.taken.get_mut(&user).expect("a quota is released only after it was claimed");
        *taken -= 1;
        if *taken == 0 {
            self.taken.remove(&user);
        }
    }

    /// Returns how many items count against the user's quota.
    pub fn taken(&self, user: UserId) -> u32 {
        self.taken.get(&user).copied().unwrap_or(0)
    }

    /// Returns how many items count against the quotas of all users together.
    pub fn total(&self) -> u64 {
        self.taken.values().map(|&taken| u64::from(taken)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_count_up_to_the_limit_and_forget_the_idle() {
        let mut quotas = Quotas::new(2, 0);
        assert!(quotas.claim(UserId(1)) && quotas.claim(UserId(1)));
        assert!(!quotas.claim(UserId(1)));
        assert!(quotas.claim(UserId(2)));
        quotas.release(UserId(1));
        assert!(quotas.claim(UserId(1)));
        quotas.release(UserId(2));
        assert_eq!((quotas.total(), quotas.taken.len()), (2, 1));
        assert!(!Quotas::new(0, 0).claim(UserId(1)));
    }
}
