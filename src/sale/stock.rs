//! The rules of the stock: one shard's items, their states and holds.
//!
//! An item goes `Free → Claiming → Held → Committing → Sold`. `Claiming` waits for the user's owner,
//! `Committing` for the disk; neither can expire. `Held` returns to `Free` when its time is up or it is
//! released. Within a sale `Sold` is final.
//!
//! Invariant: nothing here awaits, reads a clock, draws randomness or depends on the order of a map.
//! Recovery replays the log through these same functions.

use crate::sale::code::Code;
use crate::sale::ids::UserId;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// No slot: the end of the queue of holds.
const NIL: u32 = u32::MAX;

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// To be had.
    Available,
    /// Held, or bought but not durably yet.
    Reserved,
    /// Bought.
    Sold,
}

impl From<ItemState> for Availability {
    fn from(state: ItemState) -> Self {
        match state {
            // Most claims are decided within the turn; readers hear of what came of it.
            ItemState::Free | ItemState::Claiming => Availability::Available,
            ItemState::Held | ItemState::Committing => Availability::Reserved,
            ItemState::Sold => Availability::Sold,
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
    state: ItemState,
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
    state: ItemState::Free,
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
    pub fn state(&self, slot: usize) -> ItemState {
        self.slots[slot].state
    }

    /// `Free → Claiming`.
    pub fn reserve(&mut self, slot: usize) -> Result<(), Unavailable> {
        let item = &mut self.slots[slot];
        match item.state {
            ItemState::Free => {
                item.state = ItemState::Claiming;
                self.counts.claiming += 1;
                Ok(())
            }
            ItemState::Sold => Err(Unavailable::Sold),
            // Not "sold" while committing: only what is durable is final.
            ItemState::Claiming | ItemState::Held | ItemState::Committing => Err(Unavailable::Reserved),
        }
    }

    /// `Claiming → Held`.
    pub fn grant(&mut self, slot: usize, hold: Hold) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Claiming, "only a claimed item can be granted");
        *item =
            Slot { state: ItemState::Held, user: hold.user, code: hold.code, expires_ms: hold.expires_ms, ..FREE_SLOT };
        self.counts.claiming -= 1;
        self.counts.held += 1;
        self.enqueue(slot as u32);
    }

    /// `Claiming → Free`.
    pub fn deny(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Claiming, "only a claimed item can be denied");
        item.state = ItemState::Free;
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
            ItemState::Free | ItemState::Claiming => Confirmation::Expired,
            ItemState::Held if item.expires_ms <= now_ms => Confirmation::Expired,
            ItemState::Held => {
                let hold = self.dequeue(slot as u32);
                let item = &mut self.slots[slot];
                item.state = ItemState::Committing;
                item.key = key;
                self.counts.held -= 1;
                self.counts.committing += 1;
                Confirmation::Bought(hold)
            }
            ItemState::Committing if same_request => Confirmation::Joined,
            ItemState::Sold if same_request => Confirmation::Replayed,
            ItemState::Committing if item.key.is_nil() && key.is_nil() => Confirmation::Repeated,
            ItemState::Committing => Confirmation::Preceded,
            ItemState::Sold => Confirmation::Used,
        }
    }

    /// `Committing → Sold`: the purchase is durable.
    pub fn sell(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Committing, "only a committing item can be sold");
        item.state = ItemState::Sold;
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
            ItemState::Free | ItemState::Claiming => Cancellation::Expired,
            ItemState::Held if item.expires_ms <= now_ms => Cancellation::Expired,
            ItemState::Held => Cancellation::Released(self.free(slot)),
            ItemState::Committing => Cancellation::Preceded,
            ItemState::Sold => Cancellation::Used,
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
        self.slots[slot].state = ItemState::Free;
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
