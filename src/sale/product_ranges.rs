//! The products of a sale: each is a range of its units. An item of these rules is a unit.

use std::num::NonZeroU32;
use std::ops::Range;

/// Maximum number of products in a sale.
pub const PRODUCTS_MAX: usize = 1024;

/// Number of a product's id among the ids of all products of the plan, from 1. Products of several sales with the same id
/// have the same number, so that a checkout by product that moves to the next sale finds its product there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(pub NonZeroU32);

impl ProductId {
    /// The first number.
    pub const FIRST: ProductId = ProductId(NonZeroU32::MIN);
}

/// Number of a product in its sale, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductIndex(pub u16);

/// A product of a sale.
#[derive(Clone, Copy, Debug)]
pub struct SaleProduct<'a> {
    /// Number of its id in the plan.
    pub id: ProductId,
    /// Its id.
    pub name: &'a str,
    /// Number of units, at least 1.
    pub units: u32,
    /// The names of the units in their order, if they have names.
    pub unit_names: &'a [String],
}

/// The ranges of the products of a sale. They are in the order of the units, and every unit belongs to one of them. A process
/// reads one plan, so they are never freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductRanges {
    /// Number of the first unit of each product, from 0. Empty if the sale has no products, so that all units are alike.
    firsts: &'static [u32],
    /// The ids of the products in their order, and the products in the order of their ids.
    ids: &'static [ProductId],
    by_id: &'static [(ProductId, ProductIndex)],
    fingerprint: u64,
}

impl ProductRanges {
    /// The ranges of a sale without products. Its fingerprint is 0, as in the records of a server without a plan.
    pub const NONE: ProductRanges = ProductRanges { firsts: &[], ids: &[], by_id: &[], fingerprint: 0 };

    /// Creates the ranges of a sale with these products, at most [`PRODUCTS_MAX`]. The memory is never freed.
    pub fn new<'a>(products: impl IntoIterator<Item = SaleProduct<'a>>) -> Self {
        let (mut firsts, mut ids, mut end, mut hash) = (Vec::new(), Vec::new(), 0u32, Fnv1a::default());
        for SaleProduct { id, name, units, unit_names } in products {
            firsts.push(end);
            ids.push(id);
            end = end.saturating_add(units);
            hash.add(&units.to_le_bytes());
            for text in [name].into_iter().chain(unit_names.iter().map(String::as_str)) {
                hash.add(&(text.len() as u32).to_le_bytes());
                hash.add(text.as_bytes());
            }
        }
        assert!(firsts.len() <= PRODUCTS_MAX, "a sale has at most {PRODUCTS_MAX} products");
        let mut by_id: Vec<_> = ids.iter().copied().zip((0..).map(ProductIndex)).collect();
        by_id.sort_unstable();
        ProductRanges { firsts: firsts.leak(), ids: ids.leak(), by_id: by_id.leak(), fingerprint: hash.0.max(1) }
    }

    /// Returns the ranges of a sale of which only the fingerprint is known: its plan is another one now.
    pub fn known_by(fingerprint: u64) -> Self {
        ProductRanges { fingerprint, ..ProductRanges::NONE }
    }

    /// Returns the fingerprint of the ids, the ranges and the names of units, so that two plans can be compared with 8 bytes:
    /// 64-bit FNV-1a of each product's number of units, its id, and the names of its units if they have names. Before each text
    /// is its length in bytes. Numbers have 32 bits and are little-endian.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns the number of products; 0 if the sale has none.
    pub fn count(&self) -> usize {
        self.firsts.len()
    }

    /// Returns the number of the first unit of each product.
    pub fn firsts(&self) -> &'static [u32] {
        self.firsts
    }

    /// Returns the product of a unit with this number, if the sale has products.
    pub fn of(&self, unit: u32) -> Option<ProductIndex> {
        let before = self.firsts.partition_point(|first| *first <= unit);
        before.checked_sub(1).map(|number| ProductIndex(number as u16))
    }

    /// Returns the product with this id, if the sale has it.
    pub fn find(&self, id: ProductId) -> Option<ProductIndex> {
        let place = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[place].1)
    }

    /// Returns the id of the product of a unit with this number, if the sale has products.
    pub fn id_of(&self, unit: u32) -> Option<ProductId> {
        self.of(unit).map(|ProductIndex(number)| self.ids[usize::from(number)])
    }

    /// Returns the units of a product in a sale with `items` items. The range is empty if there is no such product.
    pub fn units(&self, product: ProductIndex, items: u32) -> Range<u32> {
        let number = usize::from(product.0);
        let Some(&first) = self.firsts.get(number) else { return 0..0 };
        first.min(items)..self.firsts.get(number + 1).map_or(items, |next| items.min(*next))
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll and Vo, <http://www.isthe.com/chongo/tech/comp/fnv/>). It is the same in every
/// version of Stampede, because the log has fingerprints.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The ids of the products are in the opposite order.
    fn ranges(products: &[(&str, u32)]) -> ProductRanges {
        let ids = (1..=products.len() as u32).rev().filter_map(NonZeroU32::new).map(ProductId);
        let products = ids.zip(products).map(|(id, &(name, units))| SaleProduct { id, name, units, unit_names: &[] });
        ProductRanges::new(products)
    }

    #[test]
    fn the_hash_is_the_published_one() {
        let hash = |text: &str| {
            let mut hash = Fnv1a::default();
            hash.add(text.as_bytes());
            hash.0
        };
        let known = [hash(""), hash("a"), hash("foobar")];
        assert_eq!(known, [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8]);
    }

    /// Logs have fingerprints, so none may change.
    #[test]
    fn the_fingerprint_is_pinned_and_tells_plans_apart() {
        let of = |products: &[(&str, u32)]| ranges(products).fingerprint();
        let pinned = of(&[("aurora-38", 150), ("aurora-39", 250)]);
        assert_eq!(pinned, 0xa95b_3243_bebe_9104);
        for other in [
            [("aurora-38", 151), ("aurora-39", 249)],
            [("aurora-39", 150), ("aurora-38", 250)],
            [("aurora-38", 150), ("aurora-39", 251)],
            [("aurora-38a", 150), ("urora-39", 250)],
        ] {
            assert_ne!(of(&other), pinned, "{other:?}");
        }
        assert_ne!(of(&[("aurora-38", 400)]), pinned);
        let seats = |names: [&str; 2]| {
            let (id, unit_names) = (ProductId::FIRST, &names.map(str::to_owned));
            ProductRanges::new([SaleProduct { id, name: "seat", units: 2, unit_names }]).fingerprint()
        };
        assert_eq!(seats(["A1", "A2"]), 0xa112_c98c_db31_bb0f);
        assert_ne!(seats(["A2", "A1"]), seats(["A1", "A2"]), "a receipt would name another seat");
        assert_eq!(ProductRanges::NONE.fingerprint(), 0);
    }

    proptest! {
        #[test]
        fn every_unit_belongs_to_one_product(sizes in prop::collection::vec(1u32..9, 1..12)) {
            let items = sizes.iter().sum::<u32>();
            let sizes_of_x: Vec<_> = sizes.iter().map(|units| ("x", *units)).collect();
            let ranges = ranges(&sizes_of_x);
            let of: Vec<ProductIndex> = (0..items).map(|unit| ranges.of(unit).unwrap()).collect();
            let expected = (0..).map(ProductIndex).zip(&sizes).flat_map(|(product, units)| vec![product; *units as usize]);
            prop_assert_eq!(&of, &expected.collect::<Vec<_>>());
            for (product, units) in (0..).map(ProductIndex).zip(&sizes) {
                let range = ranges.units(product, items);
                prop_assert_eq!(range.len(), *units as usize);
                prop_assert!(range.clone().all(|unit| of[unit as usize] == product));
                let id = ranges.id_of(range.start).unwrap();
                prop_assert_eq!((ranges.find(id), id.0.get() as usize), (Some(product), sizes.len() - usize::from(product.0)));
            }
        }
    }

    #[test]
    fn a_sale_without_products_has_no_product() {
        let none = ProductRanges::NONE;
        assert_eq!((none.count(), none.of(3), none.units(ProductIndex(0), 9)), (0, None, 0..0));
    }
}
