//! The steps of a shard as item owner: it decides about its items, and logs its decisions.

use crate::sale::checkout_key::short;
use crate::sale::code::Code;
use crate::sale::command::{Outcome, Withdrawal};
use crate::sale::deferred::{Deferred, Waiter};
use crate::sale::effects::Effects;
use crate::sale::ids::{ItemId, Moment, SaleId};
use crate::sale::item_state::{Availability, Cancellation, Confirmation, Extension, Hold, ItemState, Unavailable};
use crate::sale::message::{Asked, Checkout, KeyScope, Reply, Request, Verdict};
use crate::sale::part::Part;
use crate::sale::parts::UnnamedSale;
use crate::sale::record::{LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::repetitions::RepeatedCheckout;
use crate::sale::shard::Shard;
use uuid::Uuid;

impl Shard {
    // --- checkout ---

    pub(crate) fn reserve(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        is_named: bool,
        now: Moment,
        effects: &mut Effects,
    ) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        let asked = Asked { is_any: false, of_product: false, is_named };
        if !key.is_nil() {
            if let Some((sale, hold)) = self.earlier_checkout(&checkout, is_named, now) {
                return self.answer_again(waiter, (sale, item), hold, now, effects);
            }
            if !is_named && self.parts.unnamed(now) == UnnamedSale::Several {
                return self.repeat_or_refuse(waiter, checkout, now, effects);
            }
        }
        if !self.parts.is_open(sale, now) {
            return self.bounce(waiter, checkout, asked, now, effects);
        }
        let (slot, mut part) = (self.partition.slot_of(item), self.parts.of_open(sale));
        if item.0 >= part.terms.items {
            return self.answer_request(waiter, Outcome::NoSuchItem, now, effects);
        }
        // A turn ends a limited number of holds, so the hold of this item can be over and not ended yet.
        if let Some(hold) = part.stock.expire_item(slot, now.monotonic_ms) {
            self.expired(sale, slot, hold, now, effects);
        }
        let has_no_room = self.has_no_room();
        part = self.parts.of_open(sale);
        let is_paused = part.terms.is_paused;
        let (outcome, reason) = match part.stock.state(slot) {
            ItemState::Free if is_paused => (Outcome::Paused, None),
            ItemState::Free if has_no_room => (Outcome::LogFull, None),
            _ => match part.stock.reserve(slot, user, key) {
                Ok(()) => {
                    let claim = Request::Claim { origin, ticket, checkout, asked };
                    return self.ask(self.partition.owner_of_user(user), claim, now, effects);
                }
                Err(Unavailable::Sold) => (Outcome::ItemSold { sale, item }, Some(RefusalReason::ItemSold)),
                Err(Unavailable::Reserved) => (Outcome::ItemReserved, Some(RefusalReason::ItemReserved)),
                Err(Unavailable::SameCheckoutPending) => {
                    return self.repetitions.push(slot, sale, RepeatedCheckout { waiter, checkout, asked });
                }
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

    /// Decides a checkout that names no sale while several are open: its client may have had no choice at the first attempt.
    #[cold]
    fn repeat_or_refuse(&mut self, waiter: Waiter, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let Checkout { item, user, key, .. } = checkout;
        let slot = self.partition.slot_of(item);
        let is_first = |part: &&Part| item.0 < part.terms.items && part.stock.is_claimed_by(slot, user, key);
        let first = self.parts.iter().find(is_first).map(|part| part.terms.sale);
        match first {
            Some(sale) => {
                let asked = Asked { is_any: false, of_product: false, is_named: false };
                self.repetitions.push(
                    slot,
                    sale,
                    RepeatedCheckout { waiter, checkout: Checkout { sale, ..checkout }, asked },
                );
            }
            None => self.answer_request(waiter, Outcome::SaleUnnamed, now, effects),
        }
    }

    /// Returns the sale and the hold of a checkout that this one repeats, in its sale or, if its client has named none, in
    /// any. A hold that is over and not ended yet is not repeated.
    #[cold]
    fn earlier_checkout(&mut self, checkout: &Checkout, is_named: bool, now: Moment) -> Option<(SaleId, Hold)> {
        let &Checkout { sale, item, user, key } = checkout;
        let slot = self.partition.slot_of(item);
        let may_repeat = |part: &&mut Part| {
            let is_asked = !is_named || part.terms.sale == sale;
            is_asked && item.0 < part.terms.items && !part.stock.has_ended(slot, now.monotonic_ms)
        };
        let mut parts = self.parts.iter_mut().filter(may_repeat);
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
        asked: Asked,
        verdict: Verdict,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Checkout { sale, item, user, key } = checkout;
        if !self.parts.is_open(sale, now) {
            return self.undo_claim(waiter, checkout, asked, verdict, now, effects);
        }
        let (slot, part) = (self.partition.slot_of(item), self.parts.of_open(sale));
        if verdict != Verdict::Granted {
            part.stock.deny(slot);
            let repetitions = self.repetitions.take(slot, sale);
            if verdict == Verdict::Repeated {
                return self.repeat_ended(repetitions, now, effects);
            }
            let waiters = repetitions.into_iter().map(|repetition| repetition.waiter);
            for waiter in std::iter::once(waiter).chain(waiters) {
                self.log_refusal(&checkout, RefusalReason::UserLimit, asked.is_any, now, effects);
                self.answer_request(waiter, Outcome::UserLimit, now, effects);
            }
            return;
        }
        let (code, ttl_ms) = (self.codes.mint(sale, item), part.terms.ttl_ms);
        let expires_ms = now.monotonic_ms + u64::from(ttl_ms);
        let expires_unix_ms = now.unix_ms + u64::from(ttl_ms);
        part.stock.grant(slot, Hold { user, code, expires_ms, expires_unix_ms });
        self.publish_change(sale, slot, Availability::Reserved, effects);
        let event = LogEvent::Checkout { item, user, code, ttl_ms, key };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
        self.defer_hold(Deferred::Answer(waiter, outcome));
        if !self.repetitions.is_empty() {
            self.repeat_grant(slot, sale, now, effects);
        }
    }

    /// Ends a claim whose sale has closed meanwhile.
    #[cold]
    fn undo_claim(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        asked: Asked,
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
        for RepeatedCheckout { waiter, checkout, asked } in self.repetitions.take(slot, sale) {
            self.bounce(waiter, checkout, asked, now, effects);
        }
        if verdict != Verdict::Repeated {
            self.bounce(waiter, checkout, asked, now, effects);
        }
    }

    /// Refuses a checkout, because its sale has closed. If its client has not named that sale, and another one is open, the
    /// checkout goes back to the origin. One of any item with a key takes the way by the user's owner, so that it comes
    /// after the release of its claim.
    #[cold]
    pub(crate) fn bounce(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        asked: Asked,
        now: Moment,
        effects: &mut Effects,
    ) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        if asked.is_named {
            return self.answer_request(waiter, self.not_open_now(sale, now), now, effects);
        }
        let product = self.product_asked(asked, sale, item);
        if asked.is_any && !key.is_nil() {
            let find = Request::FindKey { origin, ticket, user, key, scope: KeyScope::Every, product };
            return self.ask(self.partition.owner_of_user(user), find, now, effects);
        }
        if self.parts.unnamed(now) == UnnamedSale::None {
            return self.answer_request(waiter, self.not_open(now), now, effects);
        }
        let bounced = match asked.is_any {
            true => Reply::NoneFree { ticket, owner: self.id, sale, is_named: false, product, user, key },
            false => Reply::SaleChanged { ticket, item, user, key },
        };
        self.answer(origin, bounced, now, effects);
    }

    /// Answers the requests that wait for a claim of an item, after the claim was refused as `Repeated`: their key had got
    /// this same item before, by a hold that has ended.
    #[cold]
    fn repeat_ended(&mut self, repetitions: Vec<RepeatedCheckout>, now: Moment, effects: &mut Effects) {
        for RepeatedCheckout { waiter, checkout, asked } in repetitions {
            let product = self.product_asked(asked, checkout.sale, checkout.item);
            self.repeat_any(waiter, checkout, asked.is_named, product, now, effects);
        }
    }

    #[cold]
    fn repeat_grant(&mut self, slot: usize, sale: SaleId, now: Moment, effects: &mut Effects) {
        for RepeatedCheckout { waiter, checkout, asked } in self.repetitions.take(slot, sale) {
            self.reserve(waiter, checkout, asked.is_named, now, effects);
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
