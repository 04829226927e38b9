//! Generated names of items. A name depends only on the sale and the item, so it is the same for every reader and in
//! every run.

use crate::sale::ids::{ItemId, SaleId};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use std::fmt;

const QUALITIES: [&str; 16] = [
    "Amber", "Brisk", "Cobalt", "Dapper", "Electric", "Feral", "Golden", "Hushed", "Ivory", "Jolly", "Keen", "Lunar",
    "Mellow", "Northern", "Opal", "Polished",
];
const THINGS: [&str; 16] = [
    "Anvil", "Bicycle", "Compass", "Drum", "Easel", "Fiddle", "Globe", "Hammock", "Inkwell", "Jacket", "Kettle",
    "Lantern", "Mandolin", "Notebook", "Orrery", "Parasol",
];

/// The generated name of an item of a sale, for example "Cobalt Lantern 42".
#[derive(Clone, Copy, Debug, JsonSchema)]
#[schemars(with = "String", inline)]
pub struct ItemName(pub SaleId, pub ItemId);

impl ItemName {
    /// Returns the hash that the item's name and image are derived from. The name uses the upper eight bits.
    pub fn hash(&self) -> u64 {
        // Fibonacci hashing, so that consecutive items differ in both words of the name.
        (u64::from(self.0.0) << 32 | u64::from(self.1.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Returns the words of the name, which the item's number follows. They need no escaping in JSON.
    pub fn words(&self) -> [&'static str; 2] {
        [QUALITIES[self.quality()], THINGS[self.thing()]]
    }

    /// Returns the index of the name's first word, the quality, `0..16`.
    pub fn quality(&self) -> usize {
        (self.hash() >> 60) as usize
    }

    /// Returns the index of the name's second word, the thing, `0..16`.
    pub fn thing(&self) -> usize {
        (self.hash() >> 56 & 0xf) as usize
    }
}

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [quality, thing] = self.words();
        write!(f, "{quality} {thing} {}", self.1.0)
    }
}

impl Serialize for ItemName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The URL path of an item's image on this server.
#[derive(Clone, Copy, Debug, JsonSchema)]
#[schemars(with = "String", inline)]
pub struct ItemImage(pub ItemId);

impl fmt::Display for ItemImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/items/{}/image.svg", self.0.0)
    }
}

impl Serialize for ItemImage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_stable_and_distinct_within_a_sale() {
        let names = |sale| (0..1000).map(move |item| ItemName(SaleId(sale), ItemId(item)).to_string());
        assert_eq!(names(7).collect::<BTreeSet<_>>().len(), 1000);
        assert!(names(7).eq(names(7)) && !names(7).eq(names(8)));
        assert_eq!(ItemImage(ItemId(3)).to_string(), "/items/3/image.svg");
    }
}
