//! A word with the numbers of the sold and the reserved items of a sale, or of a product, at one shard.

use crate::sale::code::ITEMS_MAX;
use crate::sale::product_stock::ProductCounts;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a number of items, which can be as large as the largest stock.
const COUNT_BITS: u32 = 25;
const _: () = assert!(ITEMS_MAX < 1 << COUNT_BITS);

/// Both numbers with a tag that says of which sale they are: 14 bits of the tag, then 25 bits sold, then 25 bits reserved. They
/// share one word so that a reader gets values of the same moment.
#[derive(Debug, Default)]
pub struct CountsWord(AtomicU64);

impl CountsWord {
    /// Stores the numbers. Only one thread may write a word.
    pub fn store(&self, tag: u32, ProductCounts { sold, reserved }: ProductCounts) {
        // The shift drops the bits of the tag that the word has no room for.
        let word = u64::from(tag) << (2 * COUNT_BITS) | u64::from(sold) << COUNT_BITS | u64::from(reserved);
        self.0.store(word, Ordering::Release);
    }

    /// Returns the numbers, if those of the last `store` had this tag, or one that the word does not tell from it.
    pub fn load(&self, tag: u32) -> Option<ProductCounts> {
        let word = self.0.load(Ordering::Acquire);
        let count = |word: u64| (word & ((1 << COUNT_BITS) - 1)) as u32;
        let is_of_it = word >> (2 * COUNT_BITS) == u64::from(tag) << (2 * COUNT_BITS) >> (2 * COUNT_BITS);
        is_of_it.then(|| ProductCounts { sold: count(word >> COUNT_BITS), reserved: count(word) })
    }
}
