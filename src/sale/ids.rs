//! Ids, times and the terms of a sale, which the other files of this folder use.

use crate::sale::product_ranges::ProductRanges;

/// Number of a shard, from 0. It is not the id of the shard's executor, which the async runtime assigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Number of an item of a sale, `0..items`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub u32);

/// Id of a buyer, `0..=i64::MAX`. It is signed because Postgres stores it as a `bigint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub i64);

/// Number of a sale: `floor(unix_seconds / period_seconds)`, or its id in a plan. The current sale of a shard never decreases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaleId(pub u32);

impl SaleId {
    /// Returns the sale that is current at `unix_ms`, for sales of `period_s` seconds.
    pub fn at(unix_ms: u64, period_s: u32) -> SaleId {
        SaleId(u32::try_from(unix_ms / 1000 / u64::from(period_s)).unwrap_or(u32::MAX))
    }
}

/// Number of a record in its stream (one log of one shard in one run), from 1. 0 means that there is no record yet.
pub type Seq = u64;

/// Id of a client's request at the shard that accepted it: the client's place there in the low 32 bits, and above them a
/// number that distinguishes the client from earlier ones in the same place. A shard assigns the lowest places that are
/// free, and a client waits for one request at a time, so other shards can index what they know of a request by its shard
/// and place. Apart from that, they only compare a ticket and pass it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Returns the place of the client at its shard.
    pub fn client(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// The time of one turn. The turn reads the clocks once and passes the time down as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic milliseconds since an arbitrary start, with the time of a suspend. They decide when a hold expires.
    pub monotonic_ms: u64,
    /// The server's time, in milliseconds since the Unix epoch. It decides which sale is current, and is written into
    /// records and answers. Replay computes from it how long a restored hold still lasts.
    pub unix_ms: u64,
}

/// The terms of a sale. The times, the stock, the limit and the products are fixed when the sale opens; changed settings
/// apply from the next sale on. The duration of holds and of extensions applies to those that begin under it. Ids
/// increase in the order in which sales open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The sale.
    pub sale: SaleId,
    /// Number of items in the stock: `0..items`.
    pub items: u32,
    /// Largest number of items that one user may hold and have bought, together.
    pub user_limit: u32,
    /// Opening time, in milliseconds since the Unix epoch.
    pub opens_ms: u64,
    /// Closing time, in milliseconds since the Unix epoch.
    pub closes_ms: u64,
    /// Duration of a hold, in milliseconds.
    pub ttl_ms: u32,
    /// Time by which a client can extend its hold once, in milliseconds. With 0, holds are not extended.
    pub extension_ms: u32,
    /// Whether checkouts are refused for now.
    pub is_paused: bool,
    /// The products, fixed when the sale opens.
    pub products: ProductRanges,
}

impl Terms {
    /// The terms before the first sale of a plan has opened: nothing is on sale. No sale of a plan has the id 0.
    pub const NONE: Terms = Terms {
        sale: SaleId(0),
        items: 0,
        user_limit: 0,
        opens_ms: 0,
        closes_ms: 0,
        ttl_ms: 0,
        extension_ms: 0,
        is_paused: false,
        products: ProductRanges::NONE,
    };
    /// The fingerprint of the products of a sale without products, or of one whose products are not known.
    pub const NO_PRODUCTS: u64 = 0;

    /// Returns whether the sale has closed by `unix_ms`, or there is none.
    pub fn has_closed(&self, unix_ms: u64) -> bool {
        unix_ms >= self.closes_ms
    }

    /// Returns the longest time for which an item can be held, with the extension, in milliseconds.
    pub fn longest_hold_ms(&self) -> u64 {
        u64::from(self.ttl_ms) + u64::from(self.extension_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sale_changes_on_the_period() {
        assert_eq!(SaleId::at(3_599_999, 3600), SaleId(0));
        assert_eq!(SaleId::at(3_600_000, 3600), SaleId(1));
    }
}
