//! The search for any free item. A checkout that names no item asks one shard after the other:
//!
//! 1. The origin asks itself, then the other shards in the order of their ids, from its own on and around. It passes over
//!    those that have published that they have no free item.
//! 2. The owner takes the item that is free for longest, and goes on as with a checkout of that item. If it has none, it
//!    replies `NoneFree`, and the origin asks the next shard. Each shard is asked once at most.
//! 3. If no shard is left, the sale is sold out when the published numbers of sold items add up to the stock. They only
//!    rise, and an item is sold only when its purchase is durable, so this is true and final. Otherwise another client may
//!    lose its hold, and this one is told when the first hold ends.
//!
//! The requests and replies carry the state of the search: the shard that replies is the last one asked. So a search
//! whose client is gone leaves nothing behind, and the origin keeps no table.
//!
//! A checkout with a key goes to the user's owner first:
//!
//! 1. The origin sends `FindKey` to the user's owner. If the key has got an item (see `any_keys`), the user's owner sends
//!    `Repeat` to the item's owner, which answers with the hold, or when the claim is decided. Otherwise it replies
//!    `KeyUnknown`, and the origin begins the search.
//! 2. Two requests with the same key can search at the same time. The user's owner grants the claim of the first one. It
//!    refuses that of the second one as `Repeated`, and sends `Repeat` for it.
//! 3. A key has its item until the quota is returned, when the record that ends the hold is durable. A repetition that
//!    comes before is told to come back. If another item was granted under the key at once, and the record of the end were
//!    lost in a crash, the key would have two.
//!
//! A checkout can ask for any item of a product. It is the same search, in the queue of the product's free items and with
//! the published numbers of the product. So a product is sold out when the numbers of its sold items add up to its items.
//! When the first hold ends is known of the sale only: an owner has one queue of holds. The key of a checkout is one of its
//! product: the same key with another product, or with none, is another key.
//!
//! Published numbers are those of an earlier moment. A shard with a free item can have published that it has none: then
//! the client asks again. If it has published one that is gone, the search costs one message more.

use crate::sale::checkout_key::short;
use crate::sale::command::Outcome;
use crate::sale::deferred::Waiter;
use crate::sale::effects::Effects;
use crate::sale::ids::{ItemId, Moment, SaleId, ShardId, Ticket, UserId};
use crate::sale::message::{AnyCheckout, AnyUnit, Asked, Checkout, KeyScope, Reply, Request, Verdict};
use crate::sale::product_ranges::{ProductId, ProductIndex};
use crate::sale::product_stock::ProductCounts;
use crate::sale::published_stock::PublishedStock;
use crate::sale::record::{LogEvent, Record, RefusalReason};
use crate::sale::repetitions::RepeatedCheckout;
use crate::sale::shard::Shard;
use crate::sale::stock::Counts;
use uuid::Uuid;

/// Largest number of holds that a search ends at an owner: those that are over may be of other products. Beyond that, the
/// client is told to come back, and the next turns end the others.
const EXPIRIES_PER_SEARCH: usize = 64;

impl Shard {
    /// Returns what the shard publishes about its items of a sale, or of a product.
    pub fn stock_to_publish(&self, sale: SaleId, product: Option<ProductIndex>) -> PublishedStock {
        let none = PublishedStock { sale, product, ..PublishedStock::default() };
        let Some(part) = self.parts.get(sale) else { return none };
        let next_expiry_ms = part.stock.next_expiry_ms().unwrap_or(u64::MAX);
        let Counts { claiming, held, buying, sold } = part.stock.counts();
        let of_sale = ProductCounts { sold, reserved: claiming + held + buying };
        let ProductCounts { sold, reserved } = product.map_or(of_sale, |product| part.stock.product_counts(product));
        PublishedStock { sale, product, sold, reserved, next_expiry_ms }
    }

    /// Returns the products whose counts have changed since this was called last, with their sales. It returns none of a
    /// sale with one product or none, whose counts are those of the sale.
    pub fn take_changed_products(&mut self) -> impl Iterator<Item = (SaleId, ProductIndex, ProductCounts)> {
        self.parts.iter_mut().flat_map(|part| {
            let sale = part.terms.sale;
            let changed = std::iter::from_fn(|| part.stock.take_changed_product());
            changed.map(move |(product, counts)| (sale, product, counts))
        })
    }

    /// Returns the sale and the product of which a checkout of any item needs to know what the other shards have published,
    /// if there is one: not if all is sold. `named` is the sale that the client has named.
    pub fn needs_published(
        &self,
        named: Option<SaleId>,
        product: Option<ProductId>,
        now: Moment,
    ) -> Option<(SaleId, Option<ProductIndex>)> {
        let sale = self.choose(self.named(named), now).ok()?;
        let part = self.parts.get(sale)?;
        let product = part.place_of(product).ok()?;
        (!part.knows_sold_out(product)).then_some((sale, product))
    }

    // --- as origin ---

    pub(crate) fn checkout_any(&mut self, ticket: Ticket, any: AnyCheckout, now: Moment, effects: &mut Effects) {
        let AnyCheckout { named, product, user, key } = any;
        if key.is_nil() {
            return self.search(ticket, any, now, effects);
        }
        let scope = named.map_or(KeyScope::Every, KeyScope::One);
        let find = Request::FindKey { origin: self.id, ticket, user, key, scope, product };
        self.ask(self.partition.owner_of_user(user), find, now, effects);
    }

    /// Begins a search.
    pub(crate) fn search(&mut self, ticket: Ticket, any: AnyCheckout, now: Moment, effects: &mut Effects) {
        let AnyCheckout { named, product, user, key } = any;
        let sale = match self.choose(named, now) {
            Ok(sale) => sale,
            Err(outcome) => return effects.answers.push((ticket, outcome)),
        };
        let search = AnyUnit { ticket, sale, is_named: named.is_some(), product, user, key };
        let part = self.parts.of_open(sale);
        match part.place_of(product) {
            Err(outcome) => effects.answers.push((ticket, outcome)),
            Ok(place) if part.knows_sold_out(place) => self.refuse_any(search, place, now, effects),
            Ok(_) => self.ask_for_any(self.id, search, now, effects),
        }
    }

    fn ask_for_any(&mut self, owner: ShardId, search: AnyUnit, now: Moment, effects: &mut Effects) {
        let AnyUnit { ticket, sale, is_named, product, user, key } = search;
        self.ask(owner, Request::ReserveAny { ticket, sale, is_named, product, user, key }, now, effects);
    }

    /// Goes on with a search after `asked` has replied that it has no free item.
    pub(crate) fn search_on(&mut self, search: AnyUnit, asked: ShardId, now: Moment, effects: &mut Effects) {
        let AnyUnit { ticket, sale, product, .. } = search;
        if !self.parts.is_open(sale, now) {
            // A sale opens or closes between a `ReserveAny` and this reply, so the repetitions end.
            return self.checkout_any(ticket, search.checkout(), now, effects);
        }
        let place = match self.parts.of_open(sale).place_of(product) {
            Ok(place) => place,
            Err(outcome) => return effects.answers.push((ticket, outcome)),
        };
        let shards = self.partition.shards();
        let mut others =
            (1..shards).map(|step| ShardId((asked.0 + step) % shards)).take_while(|owner| *owner != self.id);
        match others.find(|owner| self.may_have_free(sale, place, *owner, now)) {
            Some(owner) => self.ask_for_any(owner, search, now, effects),
            None => self.refuse_any(search, place, now, effects),
        }
    }

    /// Returns whether the published numbers of a shard allow that it has a free item of `sale`, or of a product, or a hold
    /// that is over.
    fn may_have_free(&self, sale: SaleId, product: Option<ProductIndex>, owner: ShardId, now: Moment) -> bool {
        let published = self.published[usize::from(owner.0)];
        let PublishedStock { sold, reserved, next_expiry_ms, .. } = published;
        let items = self.parts.get(sale).map_or(0, |part| part.owned_by(owner, product));
        let is_of_them = (published.sale, published.product) == (sale, product);
        // A product of which the shard owns nothing has no hold there that is over.
        let has_ended = items > u64::from(sold) && next_expiry_ms <= now.monotonic_ms;
        !is_of_them || items > u64::from(sold) + u64::from(reserved) || has_ended
    }

    /// Refuses a search that has found nothing.
    fn refuse_any(&mut self, search: AnyUnit, product: Option<ProductIndex>, now: Moment, effects: &mut Effects) {
        let AnyUnit { ticket, sale, user, .. } = search;
        let (outcome, reason) = if self.is_sold_out(sale, product) {
            (Outcome::SoldOut { sale }, RefusalReason::ItemSold)
        } else {
            let retry_after_s = self.retry_after_s(sale, product, now);
            (Outcome::AllReserved { retry_after_s }, RefusalReason::ItemReserved)
        };
        let event = LogEvent::Refused { item: None, user, reason };
        effects.attempts.push(Record { sale, unix_ms: now.unix_ms, event });
        effects.answers.push((ticket, outcome));
    }

    /// Returns what all shards have published about `sale`, or a product, with the present numbers of this one.
    fn all_published(&self, sale: SaleId, product: Option<ProductIndex>) -> impl Iterator<Item = PublishedStock> {
        let (own, present) = (usize::from(self.id.0), self.stock_to_publish(sale, product));
        let all = (0..).zip(&self.published);
        let all = all.map(move |(shard, other)| if shard == own { present } else { *other });
        all.filter(move |numbers| (numbers.sale, numbers.product) == (sale, product))
    }

    fn is_sold_out(&mut self, sale: SaleId, product: Option<ProductIndex>) -> bool {
        let part = self.parts.of_open(sale);
        if part.knows_sold_out(product) {
            return true;
        }
        let items = part.items_of(product).len() as u64;
        let sold = self.all_published(sale, product).map(|numbers| u64::from(numbers.sold)).sum::<u64>();
        if sold == items {
            self.parts.of_open(sale).note_sold_out(product);
        }
        sold == items
    }

    /// Returns the time until the first hold of the sale ends, in seconds, at least 1. A claim or a purchase ends within a
    /// second.
    fn retry_after_s(&self, sale: SaleId, product: Option<ProductIndex>, now: Moment) -> u32 {
        let ends_ms = self.all_published(sale, product).map(|numbers| numbers.next_expiry_ms).min();
        let ends_ms = ends_ms.filter(|ends_ms| *ends_ms < u64::MAX);
        let seconds = ends_ms.map_or(0, |ends_ms| ends_ms.saturating_sub(now.monotonic_ms).div_ceil(1000));
        u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
    }

    /// Returns the product that a checkout which has got this item has asked for, if it has asked for one.
    pub(crate) fn product_asked(&self, asked: Asked, sale: SaleId, item: ItemId) -> Option<ProductId> {
        asked.of_product.then(|| self.rules.schedule.terms(sale)?.products.id_of(item.0)).flatten()
    }

    // --- as item owner ---

    pub(crate) fn reserve_any(&mut self, origin: ShardId, search: AnyUnit, now: Moment, effects: &mut Effects) {
        let AnyUnit { ticket, sale, is_named, product, user, key } = search;
        let waiter = Waiter { origin, ticket };
        let Some(slot) = self.take_any_free(sale, product, now, effects) else {
            let none = Reply::NoneFree { ticket, owner: self.id, sale, is_named, product, user, key };
            return self.answer(origin, none, now, effects);
        };
        if self.parts.of_open(sale).terms.is_paused {
            return self.answer_request(waiter, Outcome::Paused, now, effects);
        }
        if self.has_no_room() {
            return self.answer_request(waiter, Outcome::LogFull, now, effects);
        }
        self.parts.of_open(sale).stock.reserve(slot, user, key).expect("the item is free");
        let checkout = Checkout { sale, item: self.partition.item_at(self.id, slot), user, key };
        let claim = Request::Claim {
            origin,
            ticket,
            checkout,
            asked: Asked { is_any: true, of_product: product.is_some(), is_named },
        };
        self.ask(self.partition.owner_of_user(user), claim, now, effects);
    }

    /// Returns the slot of a free item of `sale`, or of a product, if the sale is open and this shard has one.
    fn take_any_free(
        &mut self,
        sale: SaleId,
        product: Option<ProductId>,
        now: Moment,
        effects: &mut Effects,
    ) -> Option<usize> {
        if !self.parts.is_open(sale, now) {
            return None;
        }
        let product = self.parts.of_open(sale).place_of(product).ok()?;
        // A turn ends a limited number of holds, so a hold can be over and not ended yet. It may be one of another product.
        for _ in 0..EXPIRIES_PER_SEARCH {
            let stock = &mut self.parts.of_open(sale).stock;
            if let Some(slot) = stock.any_free(product) {
                return Some(slot);
            }
            let (slot, hold) = stock.expire(now.monotonic_ms)?;
            self.expired(sale, slot, hold, now, effects);
        }
        self.parts.of_open(sale).stock.any_free(product)
    }

    /// Answers a checkout of any item with the hold that the same user and key have got, or when the claim is decided.
    #[cold]
    pub(crate) fn repeat_any(
        &mut self,
        waiter: Waiter,
        checkout: Checkout,
        is_named: bool,
        product: Option<ProductId>,
        now: Moment,
        effects: &mut Effects,
    ) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        let slot = self.partition.slot_of(item);
        let Some(part) = self.parts.get_mut(sale) else {
            // The sale that a client has named is over. Of the others, the key may have an item.
            if is_named {
                return self.answer_request(waiter, self.not_open_now(sale, now), now, effects);
            }
            let scope = KeyScope::EveryBut(sale);
            let find = Request::FindKey { origin, ticket, user, key, scope, product };
            return self.ask(self.partition.owner_of_user(user), find, now, effects);
        };
        if let Some(hold) = part.stock.same_checkout(slot, user, key) {
            return self.answer_again(waiter, (sale, item), hold, now, effects);
        }
        if part.stock.is_claimed_by(slot, user, key) {
            let asked = Asked { is_any: true, of_product: product.is_some(), is_named };
            return self.repetitions.push(slot, sale, RepeatedCheckout { waiter, checkout, asked });
        }
        // The hold has ended, and the key is free when its record is durable.
        let event = LogEvent::Refused { item: None, user, reason: RefusalReason::ItemReserved };
        effects.attempts.push(Record { sale, unix_ms: now.unix_ms, event });
        self.answer_request(waiter, Outcome::AllReserved { retry_after_s: 1 }, now, effects);
    }

    // --- as user owner ---

    /// Forwards a checkout of any item to the owner of the item that its key has got, or lets the origin begin the search.
    #[cold]
    pub(crate) fn find_key(
        &mut self,
        waiter: Waiter,
        (user, key): (UserId, Uuid),
        scope: KeyScope,
        product: Option<ProductId>,
        now: Moment,
        effects: &mut Effects,
    ) {
        if let KeyScope::EveryBut(forgotten) = scope
            && let Some(part) = self.parts.get_mut(forgotten)
            && let Some(item) = part.any_keys.find(user, short(key))
        {
            part.any_keys.forget(user, short(key), item);
        }
        let named = if let KeyScope::One(sale) = scope { Some(sale) } else { None };
        let Waiter { origin, ticket } = waiter;
        if !self.repeat_key(waiter, AnyCheckout { named, product, user, key }, now, effects) {
            self.answer(origin, Reply::KeyUnknown { ticket, user, key, named, product }, now, effects);
        }
    }

    /// Decides the claim of a checkout of any item with a key.
    #[cold]
    pub(crate) fn claim_any(
        &mut self,
        waiter: Waiter,
        checkout: &Checkout,
        asked: Asked,
        now: Moment,
        effects: &mut Effects,
    ) -> Verdict {
        let &Checkout { sale, item, user, key } = checkout;
        let (named, product) = (asked.is_named.then_some(sale), self.product_asked(asked, sale, item));
        if self.repeat_key(waiter, AnyCheckout { named, product, user, key }, now, effects) {
            return Verdict::Repeated;
        }
        let verdict = self.claim(checkout);
        if verdict == Verdict::Granted
            && let Some(part) = self.parts.get_mut(sale)
        {
            part.any_keys.note(user, short(key), item);
        }
        verdict
    }

    /// Forwards a checkout of any item to the owner of the item that its key has got, in the named sale or in any.
    /// Returns whether there is such an item.
    fn repeat_key(&mut self, waiter: Waiter, any: AnyCheckout, now: Moment, effects: &mut Effects) -> bool {
        let AnyCheckout { named, product, user, key } = any;
        let parts = self.parts.iter().filter(|part| named.is_none_or(|named| part.terms.sale == named));
        let found = { parts }.find_map(|part| Some((part.terms.sale, part.any_keys.find(user, short(key))?)));
        let Some((sale, item)) = found else { return false };
        let (Waiter { origin, ticket }, is_named) = (waiter, named.is_some());
        let checkout = Checkout { sale, item, user, key };
        let repeat = Request::Repeat { origin, ticket, checkout, is_named, product };
        self.ask(self.partition.owner_of_item(item), repeat, now, effects);
        true
    }
}
