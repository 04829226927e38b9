//! The rules of the stock: one shard's items, their states and holds.
//!
//! An item goes `Free → Claiming → Held → Buying → Sold`:
//!
//! - `Claiming` lasts until the user's owner replies. If the claim is denied, the item becomes `Free` again.
//! - `Held` returns to `Free` when the hold expires or is cancelled. A hold can be extended once.
//! - `Buying` lasts until the purchase record is flushed, or persisted if [`ack`] says so.
//! - `Claiming` and `Buying` do not expire. Within a sale, `Sold` is final.
//!
//! From `Claiming` on, the slot remembers the user and the idempotency key of the checkout, so that a repetition gets
//! the same code and the same end of the hold. It also remembers that the hold was extended or cancelled, so that a
//! repetition of either gets the same answer.
//!
//! A slot has memory from its first checkout on. So a stock of millions of items is there at once.
//!
//! Invariant: nothing here awaits, reads a clock, draws randomness or depends on the order of a map.
//! Recovery replays the log through the same functions.
//!
//! [`ack`]: crate::sale::rules::Rules::ack

use crate::sale::checkout_key::short;
use crate::sale::code::Code;
use crate::sale::ids::UserId;
use crate::sale::item_state::{Cancellation, Confirmation, Extension, Hold, ItemState, Unavailable};
use crate::sale::lazy_vec::LazyVec;
use crate::sale::milliseconds::Milliseconds;
use crate::sale::product_ranges::ProductIndex;
use crate::sale::product_stock::{ProductCounts, ProductStock};
use crate::sale::record::ReleaseReason;
use crate::sale::slot_queue::{Linked, Links, SlotQueue};
use std::collections::BTreeSet;
use uuid::Uuid;

// Aligned, so that no slot is in two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot {
    state: ItemState,
    /// Number of answers that may have brought the code to a client. `u8::MAX` means that many or more; then the number
    /// stays. It has a meaning only in `Held`.
    answers: u8,
    /// The hold was extended. It has a meaning only in `Held`.
    is_extended: bool,
    /// The latest hold was cancelled. It has a meaning only in `Free` and `Claiming`.
    is_cancelled: bool,
    expires: Milliseconds,
    expires_unix: Milliseconds,
    /// Neighbours in the queue of holds, in `Held`, or in that of free items, in `Free`.
    links: Links,
    user: UserId,
    /// Code of the latest hold. It stays when the hold ends, so that a late request gets `Expired` and not `Unknown`.
    code: Code,
    /// Short fingerprints of the idempotency keys of the checkout and the purchase; 0 if there is none.
    checkout_key: u64,
    purchase_key: u64,
}

const _: () = assert!(size_of::<Slot>() == 64, "a slot is one cache line, and a stock of a million items is 64 MB");

const FREE_SLOT: Slot = Slot {
    state: ItemState::Free,
    answers: 0,
    is_extended: false,
    is_cancelled: false,
    expires: Milliseconds::ZERO,
    expires_unix: Milliseconds::ZERO,
    links: Links::ADJACENT,
    user: UserId(0),
    code: Code::NONE,
    checkout_key: 0,
    purchase_key: 0,
};

impl Linked for LazyVec<Slot> {
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self[slot as usize].links
    }
}

impl Slot {
    fn hold(&self) -> Hold {
        let (expires_ms, expires_unix_ms) = (self.expires_ms(), self.expires_unix.into());
        Hold { user: self.user, code: self.code, expires_ms, expires_unix_ms }
    }

    fn expires_ms(&self) -> u64 {
        self.expires.into()
    }

    /// Returns whether the latest checkout has this user and this key.
    fn is_of(&self, user: UserId, key: Uuid) -> bool {
        !key.is_nil() && self.checkout_key == short(key) && self.user == user
    }

    fn is_held_or_bought(&self) -> bool {
        matches!(self.state, ItemState::Held | ItemState::Buying | ItemState::Sold)
    }
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
    slots: LazyVec<Slot>,
    counts: Counts,
    /// The free items, by product.
    products: ProductStock,
    /// The holds, soonest end first.
    holds: SlotQueue,
    /// Holds that are not in the queue, by end and slot: each ended before the last hold of the queue when it was
    /// granted or extended. All holds of a run have the same duration, so these are the holds that were extended, and
    /// those of a run that follows one with longer holds.
    out_of_order: BTreeSet<(u64, u32)>,
}

impl Stock {
    /// Creates a stock of `items` free items.
    pub fn new(items: usize) -> Self {
        let (counts, products, holds, out_of_order) = Default::default();
        let mut stock = Stock { slots: LazyVec::new(FREE_SLOT), counts, products, holds, out_of_order };
        stock.reset(items, std::iter::empty());
        stock
    }

    /// Makes this a stock of `items` free items, with the first slot of each product. Without any, there is one product. It
    /// keeps its memory.
    pub fn reset(&mut self, items: usize, first_slots: impl Iterator<Item = u32>) {
        self.slots.reset(items);
        (self.counts, self.holds) = Default::default();
        self.out_of_order.clear();
        self.products.reset(items as u32, first_slots);
    }

    /// Allocates memory for a stock of `items` items and `products` products in which nothing is reserved, if there is
    /// less.
    pub fn allocate(&mut self, items: usize, products: usize) {
        self.slots.allocate(items);
        self.products.allocate(products);
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
        if let Some(hold) = self.same_checkout(slot, user, key) {
            return Err(Unavailable::SameCheckout(hold));
        }
        let item = &mut self.slots[slot];
        match item.state {
            ItemState::Free => {
                item.state = ItemState::Claiming;
                (item.user, item.checkout_key) = (user, short(key));
                self.products.take(&mut self.slots, slot as u32);
                self.counts.claiming += 1;
                Ok(())
            }
            ItemState::Claiming if item.is_of(user, key) => Err(Unavailable::SameCheckoutPending),
            ItemState::Sold => Err(Unavailable::Sold),
            // A purchase is final only when it is durable, so a `Buying` item does not count as sold.
            ItemState::Claiming | ItemState::Held | ItemState::Buying => Err(Unavailable::Reserved),
        }
    }

    /// Returns a free item of a product, or of the sale, if there is one.
    pub fn any_free(&self, product: Option<ProductIndex>) -> Option<usize> {
        self.products.any_free(product).map(|slot| slot as usize)
    }

    /// Returns how many items of a product are sold and reserved, if the sale has several products.
    pub fn product_counts(&self, product: ProductIndex) -> ProductCounts {
        self.products.counts(product)
    }

    /// Returns a product whose counts have changed since this was called for it last, if the sale has several products.
    pub fn take_changed_product(&mut self) -> Option<(ProductIndex, ProductCounts)> {
        self.products.take_changed()
    }

    /// Returns the short fingerprint of the key of the latest checkout of the item at `slot`; 0 if it had none.
    pub fn checkout_key(&self, slot: usize) -> u64 {
        self.slots[slot].checkout_key
    }

    /// Returns whether the item at `slot` is claimed by a checkout with this user and key.
    pub fn is_claimed_by(&self, slot: usize, user: UserId, key: Uuid) -> bool {
        let item = &self.slots[slot];
        item.state == ItemState::Claiming && item.is_of(user, key)
    }

    /// Returns the hold of the checkout with this user and key, if the item at `slot` is held or bought by it, and
    /// counts one more answer for it.
    pub fn same_checkout(&mut self, slot: usize, user: UserId, key: Uuid) -> Option<Hold> {
        let item = &self.slots[slot];
        (item.is_of(user, key) && item.is_held_or_bought()).then(|| {
            let item = &mut self.slots[slot];
            item.answers = item.answers.saturating_add(1);
            item.hold()
        })
    }

    /// Moves the item at `slot` from `Claiming` to `Held`.
    #[inline]
    pub fn grant(&mut self, slot: usize, hold: Hold) {
        let item = &mut self.slots[slot];
        assert_eq!(item.state, ItemState::Claiming, "only a claimed item can be granted");
        let Hold { user, code, expires_ms, expires_unix_ms } = hold;
        (item.state, item.answers, item.user, item.code) = (ItemState::Held, 1, user, code);
        (item.purchase_key, item.is_extended, item.is_cancelled) = (0, false, false);
        (item.expires, item.expires_unix) = (expires_ms.into(), expires_unix_ms.into());
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
        self.products.give_back(&mut self.slots, slot as u32);
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
            ItemState::Held if item.expires_ms() <= now_ms => Confirmation::Expired,
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
        self.products.sell(slot as u32);
    }

    /// Moves the item at `slot` from `Held` to `Free`, if `code` belongs to its hold and the hold is live at `now_ms`
    /// (monotonic).
    pub fn release(&mut self, slot: usize, code: Code, reason: ReleaseReason, now_ms: u64) -> Cancellation {
        let item = &self.slots[slot];
        if item.code != code {
            return Cancellation::Unknown;
        }
        match item.state {
            ItemState::Free | ItemState::Claiming if item.is_cancelled => Cancellation::AlreadyReleased,
            ItemState::Free | ItemState::Claiming => Cancellation::Expired,
            ItemState::Held if item.expires_ms() <= now_ms => Cancellation::Expired,
            ItemState::Held => Cancellation::Released(self.free(slot, reason)),
            ItemState::Buying => Cancellation::PurchasePending,
            ItemState::Sold => Cancellation::Used,
        }
    }

    /// Extends the hold of the item at `slot` by `by_ms`, once, if `code` belongs to it and it is live at `now_ms`
    /// (monotonic). With 0, no hold is extended any more.
    pub fn extend(&mut self, slot: usize, code: Code, by_ms: u32, now_ms: u64) -> Extension {
        let item = &self.slots[slot];
        if item.code != code {
            return Extension::Unknown;
        }
        match item.state {
            ItemState::Free | ItemState::Claiming => Extension::Expired,
            ItemState::Held if item.expires_ms() <= now_ms => Extension::Expired,
            ItemState::Held if item.is_extended => Extension::AlreadyExtended(item.hold()),
            ItemState::Held if by_ms == 0 => Extension::NotExtendable,
            ItemState::Held => {
                let Hold { expires_ms, expires_unix_ms, .. } = item.hold();
                let item = &mut self.slots[slot];
                (item.is_extended, item.expires_unix) = (true, (expires_unix_ms + u64::from(by_ms)).into());
                self.set_expiry(slot, expires_ms + u64::from(by_ms));
                Extension::Extended(self.slots[slot].hold())
            }
            ItemState::Buying => Extension::PurchasePending,
            ItemState::Sold => Extension::Used,
        }
    }

    /// Sets the end of the hold of the item at `slot`, in monotonic milliseconds. The item must be `Held`.
    pub fn set_expiry(&mut self, slot: usize, expires_ms: u64) {
        self.dequeue(slot as u32);
        self.slots[slot].expires = expires_ms.into();
        self.enqueue(slot as u32);
    }

    /// Counts an answer that reached no client, for the hold that `code` belongs to. If it was the last answer that may
    /// have reached a client, no client can know the code: then it cancels the hold, if it is live at `now_ms`
    /// (monotonic), and returns it.
    pub fn undelivered(&mut self, slot: usize, code: Code, now_ms: u64) -> Option<Hold> {
        let item = &self.slots[slot];
        if item.state != ItemState::Held || item.code != code || item.answers == u8::MAX {
            return None;
        }
        let item = &mut self.slots[slot];
        item.answers = item.answers.saturating_sub(1);
        if item.answers > 0 {
            return None;
        }
        match self.release(slot, code, ReleaseReason::Cancelled, now_ms) {
            Cancellation::Released(hold) => Some(hold),
            _ => None,
        }
    }

    /// Returns when the next hold ends, in monotonic milliseconds, if there is a hold.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.next_expiry().map(|(expires_ms, _)| expires_ms)
    }

    fn next_expiry(&self) -> Option<(u64, u32)> {
        let queued = self.holds.first().map(|slot| (self.slots[slot as usize].expires_ms(), slot));
        queued.into_iter().chain(self.out_of_order.first().copied()).min()
    }

    /// Moves the item whose hold ends first from `Held` to `Free`, if that hold has ended by `now_ms` (monotonic).
    /// Returns its slot and the hold.
    pub fn expire(&mut self, now_ms: u64) -> Option<(usize, Hold)> {
        let (expires_ms, slot) = self.next_expiry()?;
        (expires_ms <= now_ms).then(|| (slot as usize, self.free(slot as usize, ReleaseReason::Expired)))
    }

    /// Returns whether the item at `slot` is `Held` by a hold that has ended by `now_ms` (monotonic).
    #[inline]
    pub fn has_ended(&self, slot: usize, now_ms: u64) -> bool {
        let item = &self.slots[slot];
        item.state == ItemState::Held && item.expires_ms() <= now_ms
    }

    /// Moves the item at `slot` from `Held` to `Free`, if its hold has ended by `now_ms` (monotonic). Returns the hold.
    #[inline]
    pub fn expire_item(&mut self, slot: usize, now_ms: u64) -> Option<Hold> {
        self.has_ended(slot, now_ms).then(|| self.free(slot, ReleaseReason::Expired))
    }

    fn free(&mut self, slot: usize, reason: ReleaseReason) -> Hold {
        let hold = self.dequeue(slot as u32);
        let item = &mut self.slots[slot];
        (item.state, item.is_cancelled) = (ItemState::Free, reason == ReleaseReason::Cancelled);
        self.counts.held -= 1;
        self.products.give_back(&mut self.slots, slot as u32);
        hold
    }

    fn enqueue(&mut self, slot: u32) {
        let expires_ms = self.slots[slot as usize].expires_ms();
        if self.holds.last().is_some_and(|latest| self.slots[latest as usize].expires_ms() > expires_ms) {
            self.out_of_order.insert((expires_ms, slot));
        } else {
            self.holds.push(&mut self.slots, slot);
        }
    }

    fn dequeue(&mut self, slot: u32) -> Hold {
        let hold = self.slots[slot as usize].hold();
        if self.out_of_order.is_empty() || !self.out_of_order.remove(&(hold.expires_ms, slot)) {
            self.holds.remove(&mut self.slots, slot);
        }
        hold
    }

    /// Returns the users, keys and slots of all items that are held or bought with a key, for tests.
    #[cfg(test)]
    pub fn keyed(&self) -> impl Iterator<Item = (UserId, u64, usize)> {
        let keyed =
            (0..self.items()).filter(|at| self.slots[*at].is_held_or_bought() && self.slots[*at].checkout_key != 0);
        keyed.map(|at| (self.slots[at].user, self.slots[at].checkout_key, at))
    }

    /// Checks that the queues of free items have each of them exactly once, and no other item.
    #[cfg(test)]
    pub fn check_free(&self) {
        let state = |slot: u32| self.slots[slot as usize].state;
        let of = |slot| (state(slot) == ItemState::Free, state(slot) == ItemState::Sold);
        self.products.check(self.slots.len() as u32, |slot| self.slots[slot as usize].links, of);
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
        assert_eq!(stock.checkout_key(0), 0);
        stock.release(0, code(7), ReleaseReason::Cancelled, 0);
        stock.reserve(0, UserId(1), Uuid::max()).unwrap();
        stock.grant(0, hold(1, 8, 100));
        assert_eq!(stock.checkout_key(0), u64::MAX);
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
        assert_eq!(stock.release(0, code(7), ReleaseReason::Cancelled, 100), Cancellation::Expired);
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
        assert_eq!(stock.release(1, code(7), ReleaseReason::Cancelled, 99), Cancellation::PurchasePending);
        stock.deny(0);
        assert_eq!(stock.counts(), Counts { buying: 1, ..Counts::default() });
        assert_eq!(stock.any_free(None), Some(0));
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
                    prop_assert!(matches!(stock.release(slot, code(slot as u8 + 1), ReleaseReason::Cancelled, 0), Cancellation::Released(_)));
                } else {
                    expected.push((expires_ms, slot));
                }
            }
            expected.sort_unstable();
            let expired: Vec<_> = std::iter::from_fn(|| stock.expire(50)).map(|(slot, hold)| (hold.expires_ms, slot)).collect();
            prop_assert_eq!(expired, expected);
            prop_assert_eq!(stock.counts(), Counts::default());
            prop_assert_eq!(stock.holds, SlotQueue::EMPTY);
            stock.check_free();
        }
    }
}
