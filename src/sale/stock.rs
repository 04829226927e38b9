//! The rules of the stock: one shard's items, their states and holds.
//!
//! An item goes `Free → Claiming → Held → Buying → Sold`:
//!
//! - `Claiming` lasts until the user's owner replies. If the claim is denied, the item becomes `Free` again.
//! - `Held` returns to `Free` when the hold expires or is cancelled.
//! - `Buying` lasts until the purchase record is flushed, or persisted if [`purchase_ack`] says so.
//! - `Claiming` and `Buying` do not expire. Within a sale, `Sold` is final.
//!
//! From `Claiming` on, the slot remembers the user and the idempotency key of the checkout, so that a repetition gets
//! the same code and the same end of the hold.
//!
//! Invariant: nothing here awaits, reads a clock, draws randomness or depends on the order of a map.
//! Recovery replays the log through the same functions.
//!
//! [`purchase_ack`]: crate::sale::shard::Rules::purchase_ack

use crate::sale::code::Code;
use crate::sale::ids::UserId;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// Index of no slot. It marks the ends of the queue of holds.
const NIL: u32 = u32::MAX;

/// The state of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// The item can be reserved.
    Free,
    /// A checkout is being decided: the user's owner has not replied to the claim.
    Claiming,
    /// Reserved until the hold ends.
    Held,
    /// Bought, but the purchase still waits for the log.
    Buying,
    /// Bought. Final within the sale.
    Sold,
}

/// The availability of an item, as readers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// The item can be reserved, or a checkout of it is being decided.
    Available,
    /// The item is held, or its purchase is not acknowledged yet.
    Reserved,
    /// The item is bought.
    Sold,
}

impl From<ItemState> for Availability {
    fn from(state: ItemState) -> Self {
        match state {
            // A claim takes at most one exchange with the user's owner, so readers see only its result.
            ItemState::Free | ItemState::Claiming => Availability::Available,
            ItemState::Held | ItemState::Buying => Availability::Reserved,
            ItemState::Sold => Availability::Sold,
        }
    }
}

/// A reservation of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// User who holds the item.
    pub user: UserId,
    /// Code that buys or releases the item.
    pub code: Code,
    /// End of the hold, in monotonic milliseconds.
    pub expires_ms: u64,
    /// End of the hold as its client knows it, in milliseconds since the Unix epoch: time of the record plus duration.
    /// It is kept and not computed from `expires_ms`, because the difference of the two clocks is not constant.
    pub expires_unix_ms: u64,
}

/// Reason why an item cannot be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The item is sold. Final within the sale.
    Sold,
    /// The item is claimed, held, or being bought. It may become free again.
    Reserved,
    /// The item is claimed by a checkout with the same user and key.
    SameCheckoutPending,
    /// A checkout with the same user and key has been granted, and its hold or its purchase is remembered. This is the
    /// hold.
    SameCheckout(Hold),
}

/// The result of an attempt to buy an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The hold was live, and the item is now `Buying`.
    Bought(Hold),
    /// A purchase with the same code and key waits for the log. This request gets the same answer.
    SamePurchasePending,
    /// The item was bought before with the same code and key.
    AlreadyBought,
    /// A purchase with the same code waits for the log, and neither request has a key. They may come from the same
    /// client or from two.
    KeylessPurchasePending,
    /// A purchase with the same code, but not the same key, waits for the log.
    PurchasePending,
    /// The item was bought with this code, and this request has another key or none.
    Used,
    /// The hold of this code expired or was cancelled.
    Expired,
    /// The slot stores another code.
    Unknown,
}

/// The result of an attempt to release an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The item is free again. This was its hold.
    Released(Hold),
    /// A purchase with this code waits for the log.
    PurchasePending,
    /// The item was bought with this code.
    Used,
    /// The hold of this code expired or was cancelled.
    Expired,
    /// The slot stores another code.
    Unknown,
}

#[derive(Clone)]
struct Slot {
    state: ItemState,
    /// Number of answers that may have brought the code to a client. `u8::MAX` means that many or more; then the number
    /// stays. It has a meaning only in `Held`.
    answers: u8,
    /// The lower 48 bits of `Hold::expires_unix_ms`, which reach beyond the year 9999, in two parts.
    expires_unix_high: u16,
    expires_unix_low: u32,
    /// Neighbours in the queue of holds. They have a meaning only in `Held`.
    previous: u32,
    next: u32,
    user: UserId,
    /// Code of the latest hold. It stays when the hold ends, so that a late request gets `Expired` and not `Unknown`.
    code: Code,
    /// Short fingerprints of the idempotency keys of the checkout and the purchase; 0 if there is none.
    checkout_key: u64,
    purchase_key: u64,
    expires_ms: u64,
}

const _: () = assert!(size_of::<Slot>() == 64, "a slot is one cache line, and a stock of a million items is 64 MB");

const FREE_SLOT: Slot = Slot {
    state: ItemState::Free,
    answers: 0,
    expires_unix_high: 0,
    expires_unix_low: 0,
    previous: NIL,
    next: NIL,
    user: UserId(0),
    code: Code::NONE,
    checkout_key: 0,
    purchase_key: 0,
    expires_ms: 0,
};

impl Slot {
    fn hold(&self) -> Hold {
        let expires_unix_ms = u64::from(self.expires_unix_high) << 32 | u64::from(self.expires_unix_low);
        Hold { user: self.user, code: self.code, expires_ms: self.expires_ms, expires_unix_ms }
    }
}

/// Returns the part of a fingerprint that a slot keeps: its last 64 bits, of which 62 come from the hash. The other
/// two are the UUID's variant, always 10, so a fingerprint differs from 0, "no key".
///
/// 62 bits are enough: the key is compared only with that of the same item and user (checkout), or of the same code
/// (purchase). So another client cannot cause a collision without the code. Two keys of one client collide by chance
/// once in 2^62 repetitions, and a client that searches for a collision gets an answer that belongs to itself. The
/// record has all 128 bits.
fn short(key: Uuid) -> u64 {
    key.as_u128() as u64
}

/// Numbers of items by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items in `Claiming`.
    pub claiming: u32,
    /// Items in `Held`.
    pub held: u32,
    /// Items in `Buying`.
    pub buying: u32,
    /// Items in `Sold`.
    pub sold: u32,
}

/// One shard's part of the stock. Slots are numbered from 0.
pub struct Stock {
    slots: Vec<Slot>,
    counts: Counts,
    /// Ends of the queue of holds: a doubly linked list through the slots, soonest end first.
    soonest: u32,
    latest: u32,
}

impl Stock {
    /// Creates a stock of `items` free items.
    pub fn new(items: usize) -> Self {
        Stock { slots: vec![FREE_SLOT; items], counts: Counts::default(), soonest: NIL, latest: NIL }
    }

    /// Returns how many items are in each state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the number of items.
    pub fn items(&self) -> usize {
        self.slots.len()
    }

    /// Returns the state of the item at `slot`.
    pub fn state(&self, slot: usize) -> ItemState {
        self.slots[slot].state
    }

    /// Moves the item at `slot` from `Free` to `Claiming`. `key` is the fingerprint of the request's idempotency key;
    /// nil if there is none.
    ///
    /// # Errors
    /// In any other state but `Free`: [`Unavailable::SameCheckoutPending`] or [`Unavailable::SameCheckout`] if the item
    /// is claimed, held or bought by a checkout with the same user and key. Otherwise [`Unavailable::Sold`] if the item
    /// is `Sold`, or else [`Unavailable::Reserved`].
    pub fn reserve(&mut self, slot: usize, user: UserId, key: Uuid) -> Result<(), Unavailable> {
        let item = &mut self.slots[slot];
        let same_checkout = !key.is_nil() && item.checkout_key == short(key) && item.user == user;
        match item.state {
            ItemState::Free => {
                item.state = ItemState::Claiming;
                (item.user, item.checkout_key) = (user, short(key));
                self.counts.claiming += 1;
                Ok(())
            }
            ItemState::Claiming if same_checkout => Err(Unavailable::SameCheckoutPending),
            ItemState::Held | ItemState::Buying | ItemState::Sold if same_checkout => {
                item.answers = item.answers.saturating_add(1);
                Err(Unavailable::SameCheckout(item.hold()))
            }
            ItemState::Sold => Err(Unavailable::Sold),
            // A purchase is final only when it is durable, so a `Buying` item does not count as sold.
            ItemState::Claiming | ItemState::Held | ItemState::Buying => Err(Unavailable::Reserved),
        }
    }

    /// Moves the item at `slot` from `Claiming` to `Held`.
    pub fn grant(&mut self, slot: usize, hold: Hold) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Claiming, "only a claimed item can be granted");
        let Hold { user, code, expires_ms, expires_unix_ms } = hold;
        (item.state, item.answers, item.user, item.code) = (ItemState::Held, 1, user, code);
        (item.purchase_key, item.expires_ms) = (0, expires_ms);
        (item.expires_unix_high, item.expires_unix_low) = ((expires_unix_ms >> 32) as u16, expires_unix_ms as u32);
        self.counts.claiming -= 1;
        self.counts.held += 1;
        self.enqueue(slot as u32);
    }

    /// Moves the item at `slot` from `Claiming` to `Free`.
    pub fn deny(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Claiming, "only a claimed item can be denied");
        item.state = ItemState::Free;
        self.counts.claiming -= 1;
    }

    /// Moves the item at `slot` from `Held` to `Buying`, if `code` belongs to its hold and the hold is live at
    /// `now_ms` (monotonic). `key` is the fingerprint of the request's idempotency key; nil if there is none.
    pub fn confirm(&mut self, slot: usize, code: Code, key: Uuid, now_ms: u64) -> Confirmation {
        let item = &self.slots[slot];
        if item.code != code {
            return Confirmation::Unknown;
        }
        let same_request = !key.is_nil() && item.purchase_key == short(key);
        match item.state {
            ItemState::Free | ItemState::Claiming => Confirmation::Expired,
            ItemState::Held if item.expires_ms <= now_ms => Confirmation::Expired,
            ItemState::Held => {
                let hold = self.dequeue(slot as u32);
                let item = &mut self.slots[slot];
                item.state = ItemState::Buying;
                item.purchase_key = short(key);
                self.counts.held -= 1;
                self.counts.buying += 1;
                Confirmation::Bought(hold)
            }
            ItemState::Buying if same_request => Confirmation::SamePurchasePending,
            ItemState::Sold if same_request => Confirmation::AlreadyBought,
            ItemState::Buying if item.purchase_key == 0 && key.is_nil() => Confirmation::KeylessPurchasePending,
            ItemState::Buying => Confirmation::PurchasePending,
            ItemState::Sold => Confirmation::Used,
        }
    }

    /// Moves the item at `slot` from `Buying` to `Sold`, when its purchase no longer waits for the log.
    pub fn sell(&mut self, slot: usize) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Buying, "only an item that is being bought can be sold");
        item.state = ItemState::Sold;
        self.counts.buying -= 1;
        self.counts.sold += 1;
    }

    /// Moves the item at `slot` from `Held` to `Free` for its holder, if `code` belongs to its hold and the hold is
    /// live at `now_ms` (monotonic).
    pub fn cancel(&mut self, slot: usize, code: Code, now_ms: u64) -> Cancellation {
        let item = &self.slots[slot];
        if item.code != code {
            return Cancellation::Unknown;
        }
        match item.state {
            ItemState::Free | ItemState::Claiming => Cancellation::Expired,
            ItemState::Held if item.expires_ms <= now_ms => Cancellation::Expired,
            ItemState::Held => Cancellation::Released(self.free(slot)),
            ItemState::Buying => Cancellation::PurchasePending,
            ItemState::Sold => Cancellation::Used,
        }
    }

    /// Counts an answer that reached no client, for the hold that `code` belongs to. If it was the last answer that may
    /// have reached a client, no client can know the code: then it cancels the hold, if it is live at `now_ms`
    /// (monotonic), and returns it.
    pub fn undelivered(&mut self, slot: usize, code: Code, now_ms: u64) -> Option<Hold> {
        let item = &mut self.slots[slot];
        if item.state != ItemState::Held || item.code != code || item.answers == u8::MAX {
            return None;
        }
        item.answers = item.answers.saturating_sub(1);
        if item.answers > 0 {
            return None;
        }
        match self.cancel(slot, code, now_ms) {
            Cancellation::Released(hold) => Some(hold),
            _ => None,
        }
    }

    /// Returns whether the latest checkout of the item at `slot` has an idempotency key, so that its client can repeat
    /// it.
    pub fn is_repeatable(&self, slot: usize) -> bool {
        self.slots[slot].checkout_key != 0
    }

    /// Returns when the next hold ends, in monotonic milliseconds, if there is a hold.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        (self.soonest != NIL).then(|| self.slots[self.soonest as usize].expires_ms)
    }

    /// Moves the item whose hold ends first from `Held` to `Free`, if that hold has ended by `now_ms` (monotonic).
    /// Returns its slot and the hold.
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

    /// All holds of a run have the same duration, so a new hold nearly always belongs at the end. After a restart with
    /// a shorter duration, the search passes the holds of the earlier run.
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
        let hold = item.hold();
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
        Hold { user: UserId(user), code: code(tag), expires_ms, expires_unix_ms: 1_800_000_000_000 + expires_ms }
    }

    fn reserve(stock: &mut Stock, slot: usize) -> Result<(), Unavailable> {
        stock.reserve(slot, UserId(1), Uuid::nil())
    }

    fn held(stock: &mut Stock, slot: usize, hold: Hold) {
        stock.reserve(slot, hold.user, Uuid::nil()).unwrap();
        stock.grant(slot, hold);
    }

    #[test]
    fn an_item_is_sold_once() {
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Reserved));
        assert_eq!(stock.confirm(0, code(8), Uuid::nil(), 50), Confirmation::Unknown);
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::Bought(hold(1, 7, 100)));
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Reserved), "a purchase is not final before it is durable");
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::KeylessPurchasePending);
        assert_eq!(stock.confirm(0, code(7), Uuid::max(), 50), Confirmation::PurchasePending);
        stock.sell(0);
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Sold));
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 50), Confirmation::Used);
        assert_eq!(stock.counts(), Counts { sold: 1, ..Counts::default() });
    }

    #[test]
    fn the_same_key_gets_the_same_answer() {
        let key = Uuid::from_u128(5);
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert!(matches!(stock.confirm(0, code(7), key, 0), Confirmation::Bought(_)));
        assert_eq!(stock.confirm(0, code(7), key, 0), Confirmation::SamePurchasePending);
        assert_eq!(stock.confirm(0, code(7), Uuid::from_u128(6), 0), Confirmation::PurchasePending);
        stock.sell(0);
        assert_eq!(stock.confirm(0, code(7), key, 0), Confirmation::AlreadyBought);
        assert_eq!(stock.confirm(0, code(7), Uuid::nil(), 0), Confirmation::Used);
    }

    #[test]
    fn a_repeated_checkout_gets_the_same_hold() {
        let (key, other) = (Uuid::from_u128(5), Uuid::from_u128(6));
        let mut stock = Stock::new(1);
        stock.reserve(0, UserId(1), key).unwrap();
        assert_eq!(stock.reserve(0, UserId(1), key), Err(Unavailable::SameCheckoutPending));
        assert_eq!(stock.reserve(0, UserId(2), key), Err(Unavailable::Reserved));
        stock.grant(0, hold(1, 7, 100));
        let same = Err(Unavailable::SameCheckout(hold(1, 7, 100)));
        assert_eq!(stock.reserve(0, UserId(1), key), same);
        assert_eq!(stock.reserve(0, UserId(1), other), Err(Unavailable::Reserved));
        assert_eq!(stock.reserve(0, UserId(2), key), Err(Unavailable::Reserved));
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Reserved));
        stock.confirm(0, code(7), Uuid::nil(), 50);
        assert_eq!(stock.reserve(0, UserId(1), key), same);
        stock.sell(0);
        assert_eq!(stock.reserve(0, UserId(1), key), same);
        assert_eq!(stock.reserve(0, UserId(1), other), Err(Unavailable::Sold));
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Sold));
    }

    /// Two checkouts without a key are never the same request, and an ended hold is not remembered.
    #[test]
    fn without_a_key_and_after_its_end_no_checkout_is_repeated() {
        let mut stock = Stock::new(1);
        held(&mut stock, 0, hold(1, 7, 100));
        assert_eq!(reserve(&mut stock, 0), Err(Unavailable::Reserved));
        assert!(!stock.is_repeatable(0));
        stock.cancel(0, code(7), 0);
        stock.reserve(0, UserId(1), Uuid::max()).unwrap();
        stock.grant(0, hold(1, 8, 100));
        assert!(stock.is_repeatable(0));
        stock.expire(100).unwrap();
        assert_eq!(stock.reserve(0, UserId(1), Uuid::max()), Ok(()));
    }

    #[test]
    fn a_hold_is_cancelled_when_none_of_its_answers_has_arrived() {
        let key = Uuid::max();
        let mut stock = Stock::new(1);
        stock.reserve(0, UserId(1), key).unwrap();
        stock.grant(0, hold(1, 7, 100));
        assert!(stock.reserve(0, UserId(1), key).is_err());
        assert_eq!(stock.undelivered(0, code(8), 0), None, "the code is of another hold");
        assert_eq!(stock.undelivered(0, code(7), 0), None, "the other answer may have arrived");
        assert_eq!(stock.undelivered(0, code(7), 0), Some(hold(1, 7, 100)));
        assert_eq!(stock.state(0), ItemState::Free);
        held(&mut stock, 0, hold(2, 9, 100));
        stock.confirm(0, code(9), Uuid::nil(), 0);
        assert_eq!(stock.undelivered(0, code(9), 0), None, "a client that buys has the code");
        assert_eq!(stock.state(0), ItemState::Buying);

        let mut stock = Stock::new(1);
        stock.reserve(0, UserId(1), key).unwrap();
        stock.grant(0, hold(1, 7, 100));
        (0..300).for_each(|_| assert!(stock.reserve(0, UserId(1), key).is_err()));
        assert!((0..300).all(|_| stock.undelivered(0, code(7), 0).is_none()), "the number of answers is unknown");
        assert_eq!(stock.state(0), ItemState::Held);
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
        assert_eq!(reserve(&mut stock, 0), Ok(()));
    }

    #[test]
    fn claimed_and_bought_items_never_expire() {
        let mut stock = Stock::new(2);
        reserve(&mut stock, 0).unwrap();
        held(&mut stock, 1, hold(1, 7, 100));
        stock.confirm(1, code(7), Uuid::nil(), 99);
        assert_eq!(stock.expire(u64::MAX), None);
        assert_eq!(stock.cancel(1, code(7), 99), Cancellation::PurchasePending);
        stock.deny(0);
        assert_eq!(stock.counts(), Counts { buying: 1, ..Counts::default() });
    }

    proptest! {
        /// Holds expire in the order of their ends, whichever of them are cancelled before.
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
