//! The numbers of sold and reserved items of each product for readers: one word per product and shard, written only by the
//! shard.
//!
//! Sales that overlap in time have layers of words of their own, as the states of items have. A word contains a part of the id
//! of its sale. A shard writes all words of a layer when it begins a sale, so the id of a word is never so old that this
//! part repeats.

use crate::operate::counts_word::CountsWord;
use crate::sale::ids::{SaleId, ShardId};
use crate::sale::product_ranges::ProductIndex;
use crate::sale::product_stock::ProductCounts;
use crate::sale::sale_schedule::SaleSchedule;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers of all products, readable from any thread.
#[derive(Debug)]
pub struct ProductNumbers {
    schedule: SaleSchedule,
    /// By layer and shard.
    words: Box<[Box<[ShardWords]>]>,
}

/// The words of one layer of one shard.
#[derive(Debug)]
struct ShardWords {
    /// The newest sale of which the shard has published numbers.
    newest: AtomicU32,
    /// By product.
    words: Box<[CountsWord]>,
}

impl ProductNumbers {
    /// Creates the words for the sales of `schedule` on `shards` shards.
    pub fn new(shards: u16, schedule: SaleSchedule) -> Self {
        // The counts of a single product are those of its sale.
        let products = Some(schedule.most_products().count()).filter(|products| *products > 1).unwrap_or(0);
        let layers = if products > 0 { schedule.layers().len() } else { 0 };
        let of_shard =
            |_| ShardWords { newest: AtomicU32::new(0), words: (0..products).map(|_| CountsWord::default()).collect() };
        let words = (0..layers).map(|_| (0..shards).map(of_shard).collect()).collect();
        ProductNumbers { schedule, words }
    }

    fn of(
        &self,
        shard: ShardId,
        sale: SaleId,
        ProductIndex(number): ProductIndex,
    ) -> Option<(&AtomicU32, &CountsWord)> {
        let ShardWords { newest, words } = &self.words.get(self.schedule.layer(sale)?)?[usize::from(shard.0)];
        Some((newest, words.get(usize::from(number))?))
    }

    /// Publishes the counts of a product, unless a newer sale has the words of its sale already. Only the thread of the shard
    /// may call it. It must publish all products of a sale when it begins the sale.
    pub fn publish(&self, shard: ShardId, sale: SaleId, product: ProductIndex, counts: ProductCounts) {
        // A sale of an earlier run may have had more products than any sale from now on, or not be in the plan any more.
        let Some((newest, word)) = self.of(shard, sale, product) else { return };
        if newest.load(Ordering::Relaxed) <= sale.0 {
            newest.store(sale.0, Ordering::Relaxed);
            word.store(sale.0, counts);
        }
    }

    /// Returns the counts of a product at a shard: zero if the shard has not published them.
    pub fn read(&self, shard: ShardId, sale: SaleId, product: ProductIndex) -> ProductCounts {
        self.of(shard, sale, product).and_then(|(_, word)| word.load(sale.0)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::code::ITEMS_MAX;
    use crate::sale::ids::Terms;
    use crate::sale::product_ranges::{ProductId, ProductRanges, SaleProduct};
    use crate::sale::sale_schedule::SaleSeries;
    use std::num::NonZeroU32;

    const NONE: ProductCounts = ProductCounts { sold: 0, reserved: 0 };

    /// Sale 5 is repeated for ever, and sale 4 is open beside its first repetitions.
    fn schedule() -> SaleSchedule {
        let product = |number| SaleProduct {
            id: ProductId(NonZeroU32::new(number).unwrap()),
            name: "x",
            units: 2,
            unit_names: &[],
        };
        let products = ProductRanges::new([1, 2, 3].map(product));
        let series = |sale, every_ms, closes_ms, count| {
            let first = Terms { sale: SaleId(sale), items: 6, closes_ms, products, ..Terms::NONE };
            SaleSeries { first, every_ms, count, layer: 0 }
        };
        SaleSchedule::planned(vec![series(4, 0, 100, 1), series(5, 10, 10, u32::MAX - 5)])
    }

    #[test]
    fn numbers_belong_to_one_sale_product_and_shard() {
        let numbers = ProductNumbers::new(2, schedule());
        let (here, last) = (ShardId(1), ProductIndex(2));
        let counts = ProductCounts { sold: ITEMS_MAX, reserved: 3 };
        numbers.publish(here, SaleId(5), last, counts);
        assert_eq!(numbers.read(here, SaleId(5), last), counts);
        let others = [(ShardId(0), 5, last), (here, 4, last), (here, 6, last), (here, 5, ProductIndex(1))];
        assert!(others.into_iter().all(|(shard, sale, product)| numbers.read(shard, SaleId(sale), product) == NONE));
        numbers.publish(here, SaleId(4), last, ProductCounts { sold: 1, reserved: 0 });
        assert_eq!(numbers.read(here, SaleId(5), last), counts, "sales that overlap have words of their own");
        numbers.publish(here, SaleId(5), ProductIndex(3), counts);
        assert_eq!(numbers.read(here, SaleId(5), ProductIndex(3)), NONE, "there is no such product");
    }

    /// The ids of the two sales differ by a multiple of 2^14, so their words look alike.
    #[test]
    fn a_new_sale_begins_with_zeros_and_an_ended_one_changes_nothing() {
        let numbers = ProductNumbers::new(1, schedule());
        let (here, product, later) = (ShardId(0), ProductIndex(0), SaleId(5 + (1 << 14)));
        let sold = ProductCounts { sold: 2, reserved: 0 };
        numbers.publish(here, SaleId(5), product, sold);
        numbers.publish(here, later, product, NONE);
        assert_eq!(numbers.read(here, later, product), NONE);
        numbers.publish(here, SaleId(5), product, sold);
        assert_eq!(numbers.read(here, later, product), NONE, "a purchase in an ended sale counts in the next one");
    }
}
