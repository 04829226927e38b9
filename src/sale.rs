//! The rules of a sale: one shard's part of the stock, and of the users' quotas.
//!
//! An item goes `Free → Claiming → Held → Committing → Sold`. `Claiming` waits for the user's owner,
//! `Committing` for the disk; neither can expire. `Held` returns to `Free` when its time is up or it is
//! released. Within a sale `Sold` is final.
//!
//! Invariant: nothing here awaits, reads a clock, draws randomness or depends on the order of a map.
//! Recovery replays the log through these same functions.

use crate::code::Code;
use crate::types::{SaleId, UserId};
use foldhash::fast::FixedState;
use std::collections::HashMap;
use uuid::Uuid;

/// No slot: the end of the queue of holds.
const NIL: u32 = u32::MAX;

/// Users that a shard has room for before the first one comes: growing in the middle of a rush takes milliseconds.
const ROOM_USERS_MAX: usize = 1 << 16;

/// The sale that is current at `unix_ms`, for sales of `period_s` seconds.
pub fn sale_at(unix_ms: u64, period_s: u32) -> SaleId {
    SaleId(u32::try_from(unix_ms / 1000 / u64::from(period_s)).unwrap_or(u32::MAX))
}

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be had.
    Free,
    /// Promised to a user whose quota is being asked.
    Claiming,
    /// Reserved until the hold expires.
    Held,
    /// Bought, but not durably yet.
    Committing,
    /// Bought.
    Sold,
}

/// Where an item stands, as readers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// To be had.
    Available,
    /// Held, or bought but not durably yet.
    Reserved,
    /// Bought.
    Sold,
}

impl From<State> for Availability {
    fn from(state: State) -> Self {
        match state {
            // Most claims are decided within the turn; readers hear of what came of it.
            State::Free | State::Claiming => Availability::Available,
            State::Held | State::Committing => Availability::Reserved,
            State::Sold => Availability::Sold,
        }
    }
}

/// A reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Who holds the item.
    pub user: UserId,
    /// What buys it.
    pub code: Code,
    /// When it ends, in monotonic milliseconds.
    pub expires_ms: u64,
}

/// Why an item cannot be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// For good.
    Sold,
    /// For now.
    Reserved,
}

/// What a purchase meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The hold is live and now `Committing`.
    Bought(Hold),
    /// The same request as the one being written: it gets the same answer.
    Joined,
    /// The item was bought with this code and this idempotency key before.
    Replayed,
    /// The same request without a key: it may be the same buyer, or may not.
    Repeated,
    /// Another request with this code is being written: the item will be bought.
    Preceded,
    /// The item was bought with this code.
    Used,
    /// The hold of this code is over.
    Expired,
    /// The slot holds no such code.
    Unknown,
}

/// What a cancellation meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The item is free again; this was its hold.
    Released(Hold),
    /// A purchase with this code is being written: the item will be bought.
    Preceded,
    /// The item was bought with this code.
    Used,
    /// The hold of this code is over.
    Expired,
    /// The slot holds no such code.
    Unknown,
}

#[derive(Clone)]
struct Slot {
    state: State,
    /// Neighbours in the queue of holds, while `Held`.
    previous: u32,
    next: u32,
    user: UserId,
    /// Of the last hold: kept when it ends, so that its holder hears "expired" and not "unknown".
    code: Code,
    /// Fingerprint of the purchase's idempotency key; nil when there was none.
    key: Uuid,
    expires_ms: u64,
}

const FREE_SLOT: Slot = Slot {
    state: State::Free,
    previous: NIL,
    next: NIL,
    user: UserId(0),
    code: Code::NONE,
    key: Uuid::nil(),
    expires_ms: 0,
};

/// How many items are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In `Claiming`.
    pub claiming: u32,
    /// In `Held`.
    pub held: u32,
    /// In `Committing`.
    pub committing: u32,
    /// In `Sold`.
    pub sold: u32,
}

/// One shard's part of the stock. Slots are numbered from 0.
pub struct Stock {
    slots: Vec<Slot>,
    counts: Counts,
    /// Ends of the queue of holds, a doubly linked list through the slots, soonest expiry first.
    soonest: u32,
    latest: u32,
}

impl Stock {
    /// `items` free items.
    pub fn new(items: usize) -> Self {
        Stock { slots: vec![FREE_SLOT; items], counts: Counts::default(), soonest: NIL, latest: NIL }
    }

    /// How many items are in each state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many items there are.
    pub fn items(&self) -> usize {
        self.slots.len()
    }

    /// Where the item at `slot` stands.
    pub fn state(&self, slot: usize) -> State {
        self.slots[slot].state
    }

    /// `Free → Claiming`.
    pub fn reserve(&mut self, slot: usize) -> Result<(), Unavailable> {
        let item = &mut self.slots[slot];
        match item.state {
            State::Free => {
                item.state = State::Claiming;
                self.counts.claiming += 1;
                Ok(())
            }
            State::Sold => Err(Unavailable::Sold),
            // Not "sold" while committing: only what is durable is final.
            State::Claiming | State::Held | State::Committing => Err(Unavailable::Reserved),
        }
    }

    /// `Claiming → Held`.
    pub fn grant(&mut self, slot: usize, hold: Hold) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, State::Claiming, "only a claimed item can be granted");
        *item = Slot { state: State::Held, user: hold.user, code: hold.code, expires_ms: hold.expires_ms, ..FREE_SLOT };
        self.counts.claiming -= 1;
        self.counts.held += 1;
        self.enqueue(slot as u32);
    }

    /// `Claiming → Free`.
    pub fn deny(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, State::Claiming, "only a claimed item can be denied");
        item.state = State::Free;
        self.counts.claiming -= 1;
    }

    /// `Held → Committing`, if `code` opens a hold that is live at `now_ms` (monotonic).
    pub fn confirm(&mut self, slot: usize, code: Code, key: Uuid, now_ms: u64) -> Confirmation {
        let item = &self.slots[slot];
        if item.code != code {
            return Confirmation::Unknown;
        }
        let same_request = !key.is_nil() && item.key == key;
        match item.state {
            State::Free | State::Claiming => Confirmation::Expired,
            State::Held if item.expires_ms <= now_ms => Confirmation::Expired,
            State::Held => {
                let hold = self.dequeue(slot as u32);
                let item = &mut self.slots[slot];
                item.state = State::Committing;
                item.key = key;
                self.counts.held -= 1;
                self.counts.committing += 1;
                Confirmation::Bought(hold)
            }
            State::Committing if same_request => Confirmation::Joined,
            State::Sold if same_request => Confirmation::Replayed,
            State::Committing if item.key.is_nil() && key.is_nil() => Confirmation::Repeated,
            State::Committing => Confirmation::Preceded,
            State::Sold => Confirmation::Used,
        }
    }

    /// `Committing → Sold`: the purchase is durable.
    pub fn sell(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, State::Committing, "only a committing item can be sold");
        item.state = State::Sold;
        self.counts.committing -= 1;
        self.counts.sold += 1;
    }

    /// `Held → Free` on the holder's wish.
    pub fn cancel(&mut self, slot: usize, code: Code, now_ms: u64) -> Cancellation {
        let item = &self.slots[slot];
        if item.code != code {
            return Cancellation::Unknown;
        }
        match item.state {
            State::Free | State::Claiming => Cancellation::Expired,
            State::Held if item.expires_ms <= now_ms => Cancellation::Expired,
            State::Held => Cancellation::Released(self.free(slot)),
            State::Committing => Cancellation::Preceded,
            State::Sold => Cancellation::Used,
        }
    }

    /// When the next hold ends, if there is one.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        (self.soonest != NIL).then(|| self.slots[self.soonest as usize].expires_ms)
    }

    /// `Held → Free` for the hold that ended first, if one has ended by `now_ms`.
    pub fn expire(&mut self, now_ms: u64) -> Option<(usize, Hold)> {
        let slot = self.soonest as usize;
        (self.next_expiry_ms()? <= now_ms).then(|| (slot, self.free(slot)))
    }

    fn free(&mut self, slot: usize) -> Hold {
        let hold = self.dequeue(slot as u32);
        self.slots[slot].state = State::Free;
        self.counts.held -= 1;
        hold
    }

    /// All holds of a run share one time to live, so the place is nearly always at the end; after a
    /// restart with a shorter one the search walks past the holds of the run before.
    fn enqueue(&mut self, slot: u32) {
        let expires_ms = self.slots[slot as usize].expires_ms;
        let mut after = self.latest;
        while after != NIL && self.slots[after as usize].expires_ms > expires_ms {
            after = self.slots[after as usize].previous;
        }
        let before = if after == NIL { self.soonest } else { self.slots[after as usize].next };
        self.slots[slot as usize].previous = after;
        self.slots[slot as usize].next = before;
        *self.link_after(after) = slot;
        *self.link_before(before) = slot;
    }

    fn dequeue(&mut self, slot: u32) -> Hold {
        let item = &self.slots[slot as usize];
        let hold = Hold { user: item.user, code: item.code, expires_ms: item.expires_ms };
        let (previous, next) = (item.previous, item.next);
        *self.link_after(previous) = next;
        *self.link_before(next) = previous;
        hold
    }

    fn link_after(&mut self, slot: u32) -> &mut u32 {
        if slot == NIL { &mut self.soonest } else { &mut self.slots[slot as usize].next }
    }

    fn link_before(&mut self, slot: u32) -> &mut u32 {
        if slot == NIL { &mut self.latest } else { &mut self.slots[slot as usize].previous }
    }
}

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
    use proptest::prelude::*;

    fn code(tag: u8) -> Code {
        Code::from_bytes([tag; 16])
    }

    fn hold(user: i64, tag: u8, expires_ms: u64) -> Hold {
        Hold { user: UserId(user), code: code(tag), expires_ms }
    }

    fn held(stock: &mut Stock, slot: usize, hold: Hold) {
        stock.reserve(slot).unwrap();
        stock.grant(slot, hold);
    }

    #[test]
    fn an_item_is_sold_once() {
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert_eq!(stock.reserve(0), Err(Unavailable::Reserved));
        assert_eq!(stock.confirm(0, code(8), Uuid::nil(), 50), Confirmation::Unknown);
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::Bought(hold(1, 7, 100)));
        assert_eq!(stock.reserve(0), Err(Unavailable::Reserved), "not final before it is durable");
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::Repeated);
        assert_eq!(stock.confirm(0, code(7), Uuid::max(), 50), Confirmation::Preceded);
        stock.sell(0);
        assert_eq!(stock.reserve(0), Err(Unavailable::Sold));
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::Used);
        assert_eq!(stock.counts(), Counts { sold: 1, ..Counts::default() });
    }

    #[test]
    fn the_same_key_gets_the_same_answer() {
        let key = Uuid::from_u128(5);
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert!(matches!(stock.confirm(0, code(7), key, 0), Confirmation::Bought(_)));
        assert_eq!(stock.confirm(0, code(7), key, 0), Confirmation::Joined);
        assert_eq!(stock.confirm(0, code(7), Uuid::from_u128(6), 0), Confirmation::Preceded);
        stock.sell(0);
        assert_eq!(stock.confirm(0, code(7), key, 0), Confirmation::Replayed);
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 0), Confirmation::Used);
    }

    #[test]
    fn a_hold_ends_at_its_millisecond() {
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert_eq!(stock.expire(99), None);
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 100), Confirmation::Expired);
        assert_eq!(stock.cancel(0, code(7), 100), Cancellation::Expired);
        assert_eq!(stock.expire(100), Some((0, hold(1, 7, 100))));
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 0), Confirmation::Expired);
        assert_eq!(stock.reserve(0), Ok(()));
    }

    #[test]
    fn what_is_claimed_or_committing_never_expires() {
        let mut stock = Stock::new(2);
        stock.reserve(0).unwrap();
        held(&mut stock, 1, hold(1, 7, 100));
        stock.confirm(1, code(7), Uuid::nil(), 99);
        assert_eq!(stock.expire(u64::MAX), None);
        assert_eq!(stock.cancel(1, code(7), 99), Cancellation::Preceded);
        stock.deny(0);
        assert_eq!(stock.counts(), Counts { committing: 1, ..Counts::default() });
    }

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

    #[test]
    fn the_sale_changes_on_the_period() {
        assert_eq!(sale_at(3_599_999, 3600), SaleId(0));
        assert_eq!(sale_at(3_600_000, 3600), SaleId(1));
    }

    proptest! {
        /// Holds with any expiry, ended in any way, leave the queue in order of expiry.
        #[test]
        fn holds_expire_in_order(expiries in prop::collection::vec(0u64..50, 1..40), cancelled in prop::collection::vec(any::<bool>(), 40)) {
            let mut stock = Stock::new(expiries.len());
            for (slot, &expires_ms) in expiries.iter().enumerate() {
                held(&mut stock, slot, hold(1, slot as u8 + 1, expires_ms));
            }
            let mut expected = Vec::new();
            for (slot, &expires_ms) in expiries.iter().enumerate() {
                if cancelled[slot] && expires_ms > 0 {
                    prop_assert!(matches!(stock.cancel(slot, code(slot as u8 + 1), 0), Cancellation::Released(_)));
                } else {
                    expected.push((expires_ms, slot));
                }
            }
            expected.sort_unstable();
            let expired: Vec<_> = std::iter::from_fn(|| stock.expire(50)).map(|(slot, hold)| (hold.expires_ms, slot)).collect();
            prop_assert_eq!(expired, expected);
            prop_assert_eq!(stock.counts(), Counts::default());
            prop_assert_eq!((stock.soonest, stock.latest), (NIL, NIL));
        }
    }
}
