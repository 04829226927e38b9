//! The words that every other file uses: ids, times, terms.

/// A shard, numbered from 0. Not an executor id: the runtime numbers those itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// An item of a sale, `0..items`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub u32);

/// A buyer, `0..=i64::MAX`. Signed because that is what databases store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub i64);

/// A sale: `floor(unix_seconds / period_seconds)`. Never goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaleId(pub u32);

impl SaleId {
    /// Returns the sale that is current at `unix_ms`, for sales of `period_s` seconds.
    pub fn at(unix_ms: u64, period_s: u32) -> SaleId {
        SaleId(u32::try_from(unix_ms / 1000 / u64::from(period_s)).unwrap_or(u32::MAX))
    }
}

/// Counts the records of one log from 1. Zero is "nothing yet".
pub type Seq = u64;

/// Names a waiting request to the shard that accepted it. Opaque to everyone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// The time of one turn, read once by the pump and passed down as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic milliseconds since an arbitrary start. Holds live and die by it.
    pub monotonic_ms: u64,
    /// Wall clock, milliseconds since the Unix epoch. Decides the sale id and nothing else.
    pub unix_ms: u64,
}

/// What stays fixed while a sale lasts, whatever the settings become meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Which sale.
    pub sale: SaleId,
    /// The stock: items `0..items`.
    pub items: u32,
    /// How many items one user may hold and buy together.
    pub user_limit: u32,
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
