//! The rules of quotas: how many items each of one shard's users holds and has bought.

use crate::sale::ids::UserId;
use foldhash::fast::FixedState;
use std::collections::HashMap;

/// Users that a shard has room for before the first one comes: growing in the middle of a rush takes milliseconds.
const ROOM_USERS_MAX: usize = 1 << 16;

/// One shard's users: how many items each holds and has bought. A user with none takes no memory.
pub struct Quotas {
    limit: u32,
    taken: HashMap<UserId, u32, FixedState>,
}

impl Quotas {
    /// `limit` items for each user. There is room at once for the `users` that are expected.
    pub fn new(limit: u32, users: usize) -> Self {
        let room = users.min(ROOM_USERS_MAX);
        Quotas { limit, taken: HashMap::with_capacity_and_hasher(room, FixedState::default()) }
    }

    /// Takes one of the user's quota, if there is one left.
    pub fn claim(&mut self, user: UserId) -> bool {
        let taken = self.taken.entry(user).or_insert(0);
        let granted = *taken < self.limit;
        *taken += u32::from(granted);
        granted
    }

    /// Takes one that was granted in an earlier run. Streams are replayed one after the other, so a claim can come
    /// before the release that made room for it: the limit is checked at the end, by [`over_limit`](Self::over_limit).
    pub fn restore(&mut self, user: UserId) {
        *self.taken.entry(user).or_insert(0) += 1;
    }

    /// The first user who has more than the limit allows: only a log that lost something can do that.
    pub fn over_limit(&self) -> Option<UserId> {
        self.taken.iter().filter(|(_, taken)| **taken > self.limit).map(|(user, _)| *user).min()
    }

    /// Gives one back.
    pub fn release(&mut self, user: UserId) {
        let taken = self.taken.get_mut(&user).expect("only what was claimed is released");
        *taken -= 1;
        if *taken == 0 {
            self.taken.remove(&user);
        }
    }

    /// How many items the user holds and has bought.
    pub fn taken(&self, user: UserId) -> u32 {
        self.taken.get(&user).copied().unwrap_or(0)
    }

    /// The sum over all users.
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
