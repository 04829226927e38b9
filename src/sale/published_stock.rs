//! What the shards publish about their items, for the search for any free one.

use crate::sale::ids::SaleId;
use crate::sale::product_ranges::ProductIndex;

/// What a shard has published about its items of one sale, or of a product of it.
#[derive(Clone, Copy, Debug)]
pub struct PublishedStock {
    /// The sale.
    pub sale: SaleId,
    /// The product, of which the numbers of items are; `None` for the whole sale.
    pub product: Option<ProductIndex>,
    /// Items sold.
    pub sold: u32,
    /// Items that are claimed, held or being bought.
    pub reserved: u32,
    /// Time at which the first hold of the open sale ends, in monotonic milliseconds; `u64::MAX` if nothing is held.
    pub next_expiry_ms: u64,
}

impl Default for PublishedStock {
    fn default() -> Self {
        PublishedStock { sale: SaleId(0), product: None, sold: 0, reserved: 0, next_expiry_ms: u64::MAX }
    }
}
