//! What the shards publish about their items, for the search for any free one.

use crate::sale::ids::SaleId;

/// What a shard has published about its items of one sale.
#[derive(Clone, Copy, Debug)]
pub struct PublishedStock {
    /// The sale.
    pub sale: SaleId,
    /// Items sold.
    pub sold: u32,
    /// Items that are claimed, held or being bought.
    pub reserved: u32,
    /// Time at which the first hold of the open sale ends, in monotonic milliseconds; `u64::MAX` if nothing is held.
    pub next_expiry_ms: u64,
}

impl Default for PublishedStock {
    fn default() -> Self {
        PublishedStock { sale: SaleId(0), sold: 0, reserved: 0, next_expiry_ms: u64::MAX }
    }
}
