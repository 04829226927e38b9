//! The steps of a shard as item owner: it decides about its items, and logs its decisions.

use crate::sale::checkout_key::{is_of_any, short};
use crate::sale::code::Code;
use crate::sale::command::{Outcome, Withdrawal};
use crate::sale::deferred::{Deferred, Waiter};
use crate::sale::effects::Effects;
use crate::sale::ids::{ItemId, Moment, SaleId};
use crate::sale::item_state::{Availability, Cancellation, Confirmation, Extension, Hold, ItemState, Unavailable};
use crate::sale::message::{Checkout, Reply, Request, Verdict};
use crate::sale::part::Part;
use crate::sale::record::{LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::shard::Shard;
use uuid::Uuid;

impl Shard {
    // --- checkout ---

    pub(crate) fn reserve(&mut self, waiter: Waiter, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        if sale != self.terms().sale {
            return self.answer(origin, Reply::SaleChanged { ticket, item, user, key }, now, effects);
        }
        if !key.is_nil()
            && let Some((sale, hold)) = self.checkout_of_ended_sale(&checkout)
        {
            return self.answer_again(waiter, (sale, item), hold, now, effects);
        }
        if self.terms().has_closed(now.unix_ms) {
            return self.reserve_after_close(waiter, checkout, now, effects);
        }
        if item.0 >= self.terms().items {
            return self.answer_request(waiter, Outcome::NoSuchItem, now, effects);
        }
        let slot = self.partition.slot_of(item);
        // A turn ends a limited number of holds, so the hold of this item can be over and not ended yet.
        if let Some(hold) = self.parts.open_mut().stock.expire_item(slot, now.monotonic_ms) {
            self.expired(sale, slot, hold, now, effects);
        }
        let (outcome, reason) = match self.stock().state(slot) {
            ItemState::Free if self.has_no_room() => (Outcome::LogFull, None),
            _ => match self.parts.open_mut().stock.reserve(slot, user, key) {
                Ok(()) => {
                    let claim = Request::Claim { origin, ticket, checkout, is_any: false };
                    return self.ask(self.partition.owner_of_user(user), claim, now, effects);
                }
                Err(Unavailable::Sold) => (Outcome::ItemSold { sale, item }, Some(RefusalReason::ItemSold)),
                Err(Unavailable::Reserved) => (Outcome::ItemReserved, Some(RefusalReason::ItemReserved)),
                Err(Unavailable::SameCheckoutPending) => return self.repetitions.push(slot, waiter, checkout),
                Err(Unavailable::SameCheckout(hold)) => {
                    return self.answer_again(waiter, (sale, item), hold, now, effects);
                }
            },
        };
        if let Some(reason) = reason {
            self.log_refusal(&checkout, reason, false, now, effects);
        }
        self.answer(origin, Reply::Answer { ticket, outcome }, now, effects);
    }

    /// Refuses a checkout, because its sale has closed and none has opened since, unless it repeats another one.
    #[cold]
    fn reserve_after_close(&mut self, waiter: Waiter, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let Checkout { sale, item, user, key } = checkout;
        let slot = self.partition.slot_of(item);
        if !key.is_nil()
            && item.0 < self.terms().items
            && let Some(hold) = self.parts.open_mut().stock.same_checkout(slot, user, key)
        {
            return self.answer_again(waiter, (sale, item), hold, now, effects);
        }
        self.answer_request(waiter, self.not_open(now), now, effects);
    }

    /// Returns the sale and the hold of a checkout of an ended sale that this one repeats.
    #[cold]
    fn checkout_of_ended_sale(&mut self, checkout: &Checkout) -> Option<(SaleId, Hold)> {
        let &Checkout { item, user, key, .. } = checkout;
        let slot = self.partition.slot_of(item);
        let mut parts = self.parts.ended_mut().filter(|part| item.0 < part.terms.items);
        parts.find_map(|part| part.stock.same_checkout(slot, user, key).map(|hold| (part.terms.sale, hold)))
    }

    /// Answers a repeated checkout with the hold of the first one.
    pub(crate) fn answer_again(
        &mut self,
        waiter: Waiter,
        (sale, item): (SaleId, ItemId),
        hold: Hold,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Hold { code, expires_unix_ms, .. } = hold;
        let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
        self.answer_when_durable(waiter, outcome, now, effects);
    }

    /// Answers with an outcome that follows from the record of a hold: one of the records so far, or one of an earlier
    /// run.
    fn answer_when_durable(&mut self, waiter: Waiter, outcome: Outcome, now: Moment, effects: &mut Effects) {
        if self.are_holds_durable() {
            self.answer_request(waiter, outcome, now, effects);
        } else {
            self.defer_hold(Deferred::Answer(waiter, outcome));
        }
    }

    pub(crate) fn claimed(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        is_any: bool,
        verdict: Verdict,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Checkout { sale, item, user, key } = checkout;
        let has_closed = self.terms().has_closed(now.unix_ms);
        if sale != self.terms().sale || has_closed {
            return self.move_to_next_sale(waiter, checkout, is_any, verdict, now, effects);
        }
        let slot = self.partition.slot_of(item);
        if verdict != Verdict::Granted {
            self.parts.open_mut().stock.deny(slot);
            if verdict == Verdict::Repeated {
                return self.repeat_ended(slot, now, effects);
            }
            let repetitions = self.repetitions.take(slot).into_iter().map(|(waiter, _)| waiter);
            for waiter in std::iter::once(waiter).chain(repetitions) {
                self.log_refusal(&checkout, RefusalReason::UserLimit, is_any, now, effects);
                self.answer_request(waiter, Outcome::UserLimit, now, effects);
            }
            return;
        }
        let (code, ttl_ms) = (self.codes.mint(sale, item), self.terms().ttl_ms);
        let expires_ms = now.monotonic_ms + u64::from(ttl_ms);
        let expires_unix_ms = now.unix_ms + u64::from(ttl_ms);
        self.parts.open_mut().stock.grant(slot, Hold { user, code, expires_ms, expires_unix_ms });
        self.publish_change(sale, slot, Availability::Reserved, effects);
        let event = LogEvent::Checkout { item, user, code, ttl_ms, key };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
        self.defer_hold(Deferred::Answer(waiter, outcome));
        if !self.repetitions.is_empty() {
            self.repeat_grant(slot, now, effects);
        }
    }

    /// Ends a claim whose sale has ended meanwhile. The origin repeats the checkout in the new sale, if one has opened.
    #[cold]
    fn move_to_next_sale(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        is_any: bool,
        verdict: Verdict,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Checkout { sale, item, user, key } = checkout;
        let slot = self.partition.slot_of(item);
        self.parts.get_mut(sale).expect("a sale with a claim is not forgotten").stock.deny(slot);
        self.publish_change(sale, slot, Availability::Available, effects);
        if verdict == Verdict::Granted {
            let release = Request::Release { sale, item, user, key: short(key) };
            self.ask(self.partition.owner_of_user(user), release, now, effects);
        }
        // If a new sale has begun, its beginning has ended the repetitions that waited for this claim.
        if sale == self.terms().sale {
            for (waiter, checkout) in self.repetitions.take(slot) {
                self.bounce(waiter, checkout, is_of_any(short(checkout.key)), now, effects);
            }
        }
        if verdict != Verdict::Repeated {
            self.bounce(waiter, checkout, is_any, now, effects);
        }
    }

    /// Sends a checkout back, because its sale has ended. A checkout of any item with a key takes the way by the user's
    /// owner, so that it comes after the release of its claim.
    pub(crate) fn bounce(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        is_any: bool,
        now: Moment,
        effects: &mut Effects,
    ) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        if is_any && !key.is_nil() {
            let find = Request::FindKey { origin, ticket, user, key, forgotten: None };
            return self.ask(self.partition.owner_of_user(user), find, now, effects);
        }
        let bounced = match is_any {
            true => Reply::NoneFree { ticket, owner: self.id, sale, user, key },
            false => Reply::SaleChanged { ticket, item, user, key },
        };
        self.answer(origin, bounced, now, effects);
    }

    /// Answers the requests that wait for a claim of this item, after the claim was refused as `Repeated`: their key had got
    /// this same item before, by a hold that has ended.
    #[cold]
    fn repeat_ended(&mut self, slot: usize, now: Moment, effects: &mut Effects) {
        for (waiter, checkout) in self.repetitions.take(slot) {
            self.repeat_any(waiter, checkout, now, effects);
        }
    }

    #[cold]
    fn repeat_grant(&mut self, slot: usize, now: Moment, effects: &mut Effects) {
        for (waiter, checkout) in self.repetitions.take(slot) {
            self.reserve(waiter, checkout, now, effects);
        }
    }

    // --- answers that reach no client ---

    pub(crate) fn withdraw(
        &mut self,
        gone: Waiter,
        item: Option<ItemId>,
        reason: Withdrawal,
        now: Moment,
        effects: &mut Effects,
    ) {
        // A repeated checkout of any item waits only for the time of a message to the user's owner and back.
        if let Some(item) = item {
            self.repetitions.withdraw(self.partition.slot_of(item), gone);
        }
        let Some(code) = self.waiting.withdraw(gone) else { return };
        let Ok((part, _, slot)) = self.find(code) else { return };
        // The client of an overdue request with a key repeats it, and must get this hold.
        if reason == Withdrawal::Disconnected || part.stock.checkout_key(slot) == 0 {
            self.undelivered(code, now, effects);
        }
    }

    pub(crate) fn undelivered(&mut self, code: Code, now: Moment, effects: &mut Effects) {
        let Ok((part, place, slot)) = self.find(code) else { return };
        if let Some(hold) = part.stock.undelivered(slot, code, now.monotonic_ms) {
            self.cancelled(place, slot, hold, now, effects);
        }
    }

    // --- commands with a code ---

    /// Returns the part of the sale to which a code leads, the sale and the item, and the item's slot.
    ///
    /// # Errors
    /// The outcome with which the code is refused, if it leads to none.
    fn find(&mut self, code: Code) -> Result<(&mut Part, (SaleId, ItemId), usize), Outcome> {
        let (part, item) = self.parts.locate(code)?;
        debug_assert_eq!(self.partition.owner_of_item(item), self.id, "the origin reads the same item from the code");
        let sale = part.terms.sale;
        Ok((part, (sale, item), self.partition.slot_of(item)))
    }

    pub(crate) fn confirm(&mut self, waiter: Waiter, code: Code, key: Uuid, now: Moment, effects: &mut Effects) {
        let (part, (sale, item), slot) = match self.find(code) {
            Ok(found) => found,
            Err(outcome) => return self.answer_request(waiter, outcome, now, effects),
        };
        let purchased = Outcome::Purchased { sale, item };
        let outcome = match part.stock.confirm(slot, code, key, now.monotonic_ms) {
            Confirmation::Bought(Hold { user, .. }) => {
                part.last_purchase_ms = now.unix_ms;
                let event = LogEvent::Purchase { item, user, code, key };
                self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
                return self.defer_purchase(Deferred::FinishPurchase { sale, item, waiter: Some(waiter) });
            }
            Confirmation::SamePurchasePending => return self.defer_purchase(Deferred::Answer(waiter, purchased)),
            // This purchase, of an earlier run, may not be persisted yet.
            Confirmation::AlreadyBought if self.may_lack_earlier_purchases() => {
                return self.defer_purchase(Deferred::Answer(waiter, purchased));
            }
            Confirmation::AlreadyBought => purchased,
            // If no client waits for the first purchase any more, this repetition takes over its answer.
            Confirmation::KeylessPurchasePending if self.waiting.take_over_answer(sale, item, waiter) => return,
            // Any other request is refused as `CodeUsed`, which is certain only when the purchase is durable.
            Confirmation::KeylessPurchasePending | Confirmation::PurchasePending => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Confirmation::Used => Outcome::CodeUsed,
            Confirmation::Expired => Outcome::CodeExpired,
            Confirmation::Unknown => Outcome::CodeUnknown,
        };
        self.answer_request(waiter, outcome, now, effects);
    }

    pub(crate) fn cancel(&mut self, waiter: Waiter, code: Code, now: Moment, effects: &mut Effects) {
        let (part, place, slot) = match self.find(code) {
            Ok(found) => found,
            Err(outcome) => return self.answer_request(waiter, outcome, now, effects),
        };
        let outcome = match part.stock.release(slot, code, ReleaseReason::Cancelled, now.monotonic_ms) {
            Cancellation::Released(hold) => {
                self.cancelled(place, slot, hold, now, effects);
                return self.defer_hold(Deferred::Answer(waiter, Outcome::Released));
            }
            Cancellation::AlreadyReleased => return self.answer_when_durable(waiter, Outcome::Released, now, effects),
            Cancellation::PurchasePending => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Cancellation::Used => Outcome::CodeUsed,
            Cancellation::Expired => Outcome::CodeExpired,
            Cancellation::Unknown => Outcome::CodeUnknown,
        };
        self.answer_request(waiter, outcome, now, effects);
    }

    fn cancelled(&mut self, place: (SaleId, ItemId), slot: usize, hold: Hold, now: Moment, effects: &mut Effects) {
        self.publish_change(place.0, slot, Availability::Available, effects);
        self.log_release(place, hold, ReleaseReason::Cancelled, now, effects);
    }

    pub(crate) fn extend(&mut self, waiter: Waiter, code: Code, now: Moment, effects: &mut Effects) {
        // The log keeps a block for the end of each hold, and none for its extension.
        let is_full = self.has_no_room();
        let (part, (sale, item), slot) = match self.find(code) {
            Ok(found) => found,
            Err(outcome) => return self.answer_request(waiter, outcome, now, effects),
        };
        let by_ms = part.terms.extension_ms;
        let extended = |hold: Hold| Outcome::Extended { code, sale, item, expires_unix_ms: hold.expires_unix_ms };
        let outcome = match part.stock.extend(slot, code, if is_full { 0 } else { by_ms }, now.monotonic_ms) {
            Extension::Extended(hold) => {
                let event = LogEvent::Extended { item, user: hold.user, code, by_ms };
                self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
                return self.defer_hold(Deferred::Answer(waiter, extended(hold)));
            }
            Extension::AlreadyExtended(hold) => return self.answer_when_durable(waiter, extended(hold), now, effects),
            Extension::PurchasePending => return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed)),
            Extension::NotExtendable if by_ms > 0 => Outcome::LogFull,
            Extension::NotExtendable => Outcome::NotExtendable,
            Extension::Used => Outcome::CodeUsed,
            Extension::Expired => Outcome::CodeExpired,
            Extension::Unknown => Outcome::CodeUnknown,
        };
        self.answer_request(waiter, outcome, now, effects);
    }
}
