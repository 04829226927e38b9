//! A shard's part of one sale: its items, the quotas of its users, and what it knows of the items of other shards.

use crate::sale::any_keys::AnyKeys;
use crate::sale::command::Outcome;
use crate::sale::ids::{ItemId, ShardId, Terms};
use crate::sale::partition::Partition;
use crate::sale::product_ranges::{PRODUCTS_MAX, ProductId, ProductIndex};
use crate::sale::quotas::Quotas;
use crate::sale::rules::Rules;
use crate::sale::stock::{Counts, Stock};
use std::ops::Range;

/// A shard's part of one sale.
pub struct Part {
    shard: ShardId,
    partition: Partition,
    /// Terms of the sale.
    pub terms: Terms,
    /// The shard's items.
    pub stock: Stock,
    /// Quotas of the shard's users.
    pub quotas: Quotas,
    /// Keys with which the shard's users have got any item.
    pub any_keys: AnyKeys,
    /// Bitmap of the items that this shard, as origin, knows to be sold. `Sold` is final.
    known_sold: Vec<u64>,
    /// This shard, as origin, knows that every item of the sale is sold. That is final.
    is_sold_out: bool,
    /// Bitmap of the products of which this shard, as origin, knows that every item is sold. That is final.
    sold_out: [u64; PRODUCTS_MAX / 64],
    /// Time of the last purchase of one of the shard's items, in milliseconds since the Unix epoch; 0 if there is none.
    pub last_purchase_ms: u64,
    /// The result of the sale has been reported, or there is no sale.
    pub is_reported: bool,
}

impl Part {
    /// Creates the part that `shard` has of a sale in which nothing is reserved.
    pub fn new(terms: Terms, partition: Partition, shard: ShardId) -> Self {
        let mut part = Part::empty(terms, partition, shard);
        part.reuse(terms);
        part
    }

    /// Creates a part of `shard` for a sale with `terms`, still without items.
    pub fn empty(terms: Terms, partition: Partition, shard: ShardId) -> Self {
        let (stock, quotas) = (Stock::new(0), Quotas::new(terms.user_limit, partition.user_hash(), 0));
        Part {
            shard,
            partition,
            terms,
            stock,
            quotas,
            any_keys: AnyKeys::new(partition.user_hash()),
            known_sold: Vec::new(),
            is_sold_out: false,
            sold_out: [0; PRODUCTS_MAX / 64],
            last_purchase_ms: 0,
            is_reported: terms.items == 0,
        }
    }

    /// Returns how many items of the sale the shard owns.
    fn owned_items(&self) -> usize {
        self.partition.owned_items(self.shard, self.terms.items)
    }

    /// Allocates the memory of a sale with the present terms in which nothing is reserved.
    pub fn allocate(&mut self) {
        let (items, words) = (self.owned_items(), (self.terms.items as usize).div_ceil(64));
        self.stock.allocate(items, self.terms.products.count());
        self.known_sold.reserve_exact(words.saturating_sub(self.known_sold.len()));
        self.quotas.allocate(items);
    }

    /// Makes this the part of a sale with `terms` in which nothing is reserved. It keeps its memory.
    pub fn reuse(&mut self, terms: Terms) {
        (self.terms, self.last_purchase_ms) = (terms, 0);
        self.allocate();
        let items = self.owned_items();
        let Part { shard, partition, stock, quotas, any_keys, known_sold, .. } = self;
        (self.is_sold_out, self.sold_out) = (false, [0; PRODUCTS_MAX / 64]);
        self.is_reported = terms.items == 0;
        let first_slot = |first: &u32| partition.owned_items(*shard, *first) as u32;
        stock.reset(items, terms.products.firsts().iter().map(first_slot));
        quotas.clear(terms.user_limit);
        any_keys.clear();
        known_sold.clear();
        known_sold.resize((terms.items as usize).div_ceil(64), 0);
    }

    /// Returns this part, in which nothing was ever reserved, for a sale with `terms`. It may have been built for an earlier
    /// sale, if the clock was set forward.
    pub fn meant_for(mut self, terms: Terms) -> Self {
        let stock_of = |terms: &Terms| (terms.items, terms.products, terms.user_limit);
        match stock_of(&self.terms) == stock_of(&terms) {
            true => self.terms = terms,
            false => self.reuse(terms),
        }
        self
    }

    /// Returns whether this shard, as origin, knows that the item is sold.
    pub fn knows_sold(&self, item: ItemId) -> bool {
        self.known_sold[item.0 as usize / 64] >> (item.0 % 64) & 1 == 1
    }

    /// Notes, as origin, that the item is sold.
    pub fn note_sold(&mut self, item: ItemId) {
        self.known_sold[item.0 as usize / 64] |= 1 << (item.0 % 64);
    }

    /// Returns the place of a product in this sale: `None` if every item of the sale is one of it, so that a search for any
    /// item is the same.
    ///
    /// # Errors
    /// The outcome with which a checkout is refused, if the sale has no such product.
    pub fn place_of(&self, product: Option<ProductId>) -> Result<Option<ProductIndex>, Outcome> {
        let Some(product) = product else { return Ok(None) };
        let place = self.terms.products.find(product).ok_or(Outcome::NoSuchProduct)?;
        Ok(Some(place).filter(|_| self.terms.products.count() > 1))
    }

    /// Returns how many items of the sale, or of a product, `owner` owns.
    pub fn owned_by(&self, owner: ShardId, product: Option<ProductIndex>) -> u64 {
        self.partition.owned_in(owner, self.items_of(product)) as u64
    }

    /// Returns the items of the sale, or of a product.
    pub fn items_of(&self, product: Option<ProductIndex>) -> Range<u32> {
        let Terms { items, products, .. } = self.terms;
        product.map_or(0..items, |product| products.units(product, items))
    }

    /// Returns whether this shard, as origin, knows that every item of the sale, or of a product, is sold.
    pub fn knows_sold_out(&self, product: Option<ProductIndex>) -> bool {
        let is_bit_set = |ProductIndex(at): ProductIndex| self.sold_out[usize::from(at / 64)] >> (at % 64) & 1 == 1;
        self.is_sold_out || product.is_some_and(is_bit_set)
    }

    /// Notes, as origin, that every item of the sale, or of a product, is sold.
    pub fn note_sold_out(&mut self, product: Option<ProductIndex>) {
        match product {
            Some(ProductIndex(at)) => self.sold_out[usize::from(at / 64)] |= 1 << (at % 64),
            None => self.is_sold_out = true,
        }
    }

    /// Returns when the part is forgotten if nothing is held any more, in milliseconds since the Unix epoch. A hold can be
    /// bought after the end of its sale, and its receipt is remembered for as long as any other. Another shard has the
    /// holds of the keys in this part, so these are remembered until the longest hold has ended.
    pub fn forgotten_at_ms(&self, rules: &Rules) -> u64 {
        let holds_ms = if self.any_keys.is_empty() { 0 } else { self.terms.longest_hold_ms() };
        let forgotten_ms = self.terms.closes_ms.saturating_add(rules.receipts_ms).saturating_add(holds_ms);
        forgotten_ms.max(self.last_purchase_ms.saturating_add(rules.receipts_ms))
    }

    /// Returns whether an item is claimed, held or being bought, so that the number of sold items can still rise after
    /// the end of the sale.
    pub fn is_live(&self) -> bool {
        let Counts { claiming, held, buying, .. } = self.stock.counts();
        claiming + held + buying > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::checkout_key::{mark_any, short};
    use crate::sale::ids::{SaleId, UserId};
    use crate::sale::rules::Ack;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};
    use uuid::Uuid;

    const SALES: PeriodicSale = PeriodicSale { period_s: 10, items: 4, user_limit: 1, ttl_ms: 100, extension_ms: 50 };
    const RULES: Rules = Rules { schedule: SaleSchedule::Periodic(SALES), receipts_ms: 1_000, ack: Ack::Local };

    #[test]
    fn a_part_with_keys_is_remembered_until_the_longest_hold_has_ended() {
        let mut part = Part::new(SALES.terms(SaleId(2)), Partition::new(1), ShardId(0));
        assert_eq!(part.forgotten_at_ms(&RULES), 31_000);
        part.any_keys.note(UserId(1), short(mark_any(Uuid::from_u128(1))), ItemId(0));
        assert_eq!(part.forgotten_at_ms(&RULES), 31_150);
    }
}
