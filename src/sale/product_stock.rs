//! The free units of a stock by product, and the counts of each product.
//!
//! The free units of a product are a queue through their slots, and the products with free units are a queue as well. So any
//! unit of a product and any unit of the sale are found without a search, whatever the number of products. The product of a
//! slot is found by a binary search among the first slots of at most [`PRODUCTS_MAX`] products; a slot has no room for it.
//!
//! - Of a product, the unit that is free for longest comes first, so that the code of an ended hold is known for long.
//! - Of the products, the one of which no unit was reserved for longest comes first. So the buyers that take any unit spread
//!   over the products, and leave those that others ask for.
//!
//! A stock with one product, as without a plan, has no queue of products, and the counts of its product are those of the
//! stock.
//!
//! [`PRODUCTS_MAX`]: crate::sale::product_ranges::PRODUCTS_MAX

use crate::sale::product_ranges::ProductIndex;
use crate::sale::slot_queue::{Linked, Links, SlotQueue};
use std::ops::Range;

/// Numbers of units of one product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProductCounts {
    /// Units sold.
    pub sold: u32,
    /// Units that are claimed, held or being bought.
    pub reserved: u32,
}

/// The units of one product.
#[derive(Clone, Copy)]
struct ProductUnits {
    /// First slot of the product.
    first: u32,
    /// Free units, those that are free for longest first.
    free: SlotQueue,
    /// Neighbours in the queue of the products with free units.
    links: Links,
    counts: ProductCounts,
    /// The counts are in the list of changed ones.
    is_changed: bool,
}

impl Linked for Vec<ProductUnits> {
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self[slot as usize].links
    }
}

impl ProductUnits {
    /// Creates the units of a product, all of them free.
    fn new(units: Range<u32>) -> Self {
        let (first, links) = (units.start, Links::ADJACENT);
        ProductUnits { first, free: SlotQueue::of(units), links, counts: ProductCounts::default(), is_changed: false }
    }
}

/// The units of a stock by product.
pub struct ProductStock {
    /// At least one.
    products: Vec<ProductUnits>,
    /// The products with free units, if there are several products.
    with_free: SlotQueue,
    /// The products whose counts have changed since they were taken, each once, if there are several products.
    changed: Vec<ProductIndex>,
}

impl Default for ProductStock {
    fn default() -> Self {
        ProductStock { products: vec![ProductUnits::new(0..0)], with_free: SlotQueue::EMPTY, changed: Vec::new() }
    }
}

impl ProductStock {
    /// Allocates memory for `products` products, if there is less.
    pub fn allocate(&mut self, products: usize) {
        self.products.reserve_exact(products.saturating_sub(self.products.len()));
        self.changed.reserve_exact(products.saturating_sub(self.changed.len()));
    }

    /// Makes this a stock of `slots` free units, whose links are [`Links::ADJACENT`], with the first slot of each product.
    /// Without any, all slots are those of one product. The counts of all products count as changed.
    pub fn reset(&mut self, slots: u32, mut first_slots: impl Iterator<Item = u32>) {
        let ProductStock { products, with_free, changed } = self;
        *with_free = SlotQueue::EMPTY;
        changed.clear();
        products.clear();
        let mut first = first_slots.next().unwrap_or(0);
        for next in first_slots.chain([slots]) {
            products.push(ProductUnits::new(first..next));
            first = next;
        }
        if products.len() > 1 {
            for number in 0..products.len() {
                products[number].is_changed = true;
                changed.push(ProductIndex(number as u16));
                if products[number].free.first().is_some() {
                    with_free.push(products, number as u32);
                }
            }
        }
    }

    /// Returns a free unit of a product, or of the sale, if there is one.
    pub fn any_free(&self, product: Option<ProductIndex>) -> Option<u32> {
        let number = match product {
            Some(ProductIndex(number)) => number.into(),
            None if self.products.len() == 1 => 0,
            None => self.with_free.first()? as usize,
        };
        self.products.get(number)?.free.first()
    }

    /// Returns the counts of a product; zero if there is no such product or only one.
    pub fn counts(&self, product: ProductIndex) -> ProductCounts {
        self.products.get(usize::from(product.0)).map(|units| units.counts).unwrap_or_default()
    }

    /// Returns a product whose counts have changed since this was called for it last, and its counts. It returns none if there
    /// is only one product.
    pub fn take_changed(&mut self) -> Option<(ProductIndex, ProductCounts)> {
        let product = self.changed.pop()?;
        let units = &mut self.products[usize::from(product.0)];
        units.is_changed = false;
        Some((product, units.counts))
    }

    /// Takes a unit from the free ones.
    pub fn take(&mut self, slots: &mut impl Linked, slot: u32) {
        let number = self.number_of(slot);
        let units = &mut self.products[number];
        units.free.remove(slots, slot);
        if self.products.len() > 1 {
            self.products[number].counts.reserved += 1;
            self.note_changed(number);
            self.with_free.remove(&mut self.products, number as u32);
            if self.products[number].free.first().is_some() {
                self.with_free.push(&mut self.products, number as u32);
            }
        }
    }

    /// Returns a unit that was taken to the free ones.
    pub fn give_back(&mut self, slots: &mut impl Linked, slot: u32) {
        let number = self.number_of(slot);
        let units = &mut self.products[number];
        let was_empty = units.free.first().is_none();
        units.free.push(slots, slot);
        if self.products.len() > 1 {
            if was_empty {
                self.with_free.push(&mut self.products, number as u32);
            }
            self.products[number].counts.reserved -= 1;
            self.note_changed(number);
        }
    }

    /// Counts a unit that was taken as sold.
    pub fn sell(&mut self, slot: u32) {
        if self.products.len() > 1 {
            let number = self.number_of(slot);
            let ProductCounts { sold, reserved } = &mut self.products[number].counts;
            (*sold, *reserved) = (*sold + 1, *reserved - 1);
            self.note_changed(number);
        }
    }

    #[inline]
    fn number_of(&self, slot: u32) -> usize {
        // Of several products with the same first slot, the last one has it: the others have no unit at this shard.
        if self.products.len() == 1 { 0 } else { self.products.partition_point(|units| units.first <= slot) - 1 }
    }

    fn note_changed(&mut self, number: usize) {
        let units = &mut self.products[number];
        if !std::mem::replace(&mut units.is_changed, true) {
            self.changed.push(ProductIndex(number as u16));
        }
    }

    /// Checks that the queues have the free units of each product exactly once, and no other unit, and that the counts are
    /// right. `at` returns the links of a slot, and `state` whether it is free and whether it is sold.
    #[cfg(test)]
    pub fn check(&self, slots: u32, at: impl Fn(u32) -> Links, state: impl Fn(u32) -> (bool, bool)) {
        let ends = self.products[1..].iter().map(|units| units.first).chain([slots]);
        for (number, (units, end)) in self.products.iter().zip(ends).enumerate() {
            let mut queued = units.free.walk(&at);
            queued.sort_unstable();
            let of_product = units.first.min(slots)..end.min(slots);
            let free: Vec<u32> = of_product.clone().filter(|slot| state(*slot).0).collect();
            assert_eq!(queued, free, "the queue of the free units of product {number} and their states differ");
            let sold = of_product.clone().filter(|slot| state(*slot).1).count();
            let reserved = of_product.len() - sold - free.len();
            let counts = ProductCounts { sold: sold as u32, reserved: reserved as u32 };
            assert!(self.products.len() == 1 || units.counts == counts, "{:?} of product {number}", units.counts);
        }
        if self.products.len() > 1 {
            let mut queued = self.with_free.walk(|number| self.products[number as usize].links);
            queued.sort_unstable();
            let with_free = (0..).zip(&self.products).filter(|(_, units)| units.free.first().is_some());
            assert_eq!(queued, with_free.map(|(number, _)| number).collect::<Vec<u32>>(), "products with free units");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Places([Links; 6]);

    impl Linked for Places {
        fn links(&mut self, slot: u32) -> &mut Links {
            &mut self.0[slot as usize]
        }
    }

    /// Products with two, no, one and three units.
    fn stock() -> (ProductStock, Places) {
        let mut stock = ProductStock::default();
        stock.reset(6, [0, 2, 2, 3].into_iter());
        (stock, Places([Links::ADJACENT; 6]))
    }

    #[test]
    fn any_unit_is_taken_from_the_products_in_turn() {
        let (mut stock, mut slots) = stock();
        let taken = std::iter::from_fn(|| {
            let slot = stock.any_free(None)?;
            stock.take(&mut slots, slot);
            Some(slot)
        });
        assert_eq!(taken.collect::<Vec<_>>(), [0, 2, 3, 1, 4, 5]);
        // The product that has a free unit again first, and in it the unit that is free for longest.
        for slot in [5, 1, 3] {
            stock.give_back(&mut slots, slot);
        }
        assert_eq!(stock.any_free(None), Some(5));
        stock.take(&mut slots, 5);
        assert_eq!([stock.any_free(None), stock.any_free(Some(ProductIndex(3)))], [Some(1), Some(3)]);
    }

    #[test]
    fn a_unit_of_a_product_is_one_of_its_range() {
        let (mut stock, mut slots) = stock();
        let any = |stock: &ProductStock| [0, 1, 2, 3, 4].map(|number| stock.any_free(Some(ProductIndex(number))));
        assert_eq!(any(&stock), [Some(0), None, Some(2), Some(3), None]);
        [0, 2].into_iter().for_each(|slot| stock.take(&mut slots, slot));
        assert_eq!(any(&stock), [Some(1), None, None, Some(3), None]);
    }

    #[test]
    fn changed_counts_are_taken_once() {
        let (mut stock, mut slots) = stock();
        assert_eq!(std::iter::from_fn(|| stock.take_changed()).count(), 4, "a new sale begins with zeros");
        for slot in [3, 4, 5, 1] {
            stock.take(&mut slots, slot);
        }
        stock.sell(4);
        stock.give_back(&mut slots, 3);
        let mut changed: Vec<_> = std::iter::from_fn(|| stock.take_changed()).collect();
        changed.sort_unstable_by_key(|(product, _)| *product);
        let counts = |sold, reserved| ProductCounts { sold, reserved };
        assert_eq!(changed, [(ProductIndex(0), counts(0, 1)), (ProductIndex(3), counts(1, 1))]);
        assert_eq!(stock.counts(ProductIndex(3)), counts(1, 1));
    }
}
