//! The settings that the rules of a sale need.

use crate::sale::deferred::Watermark;
use crate::sale::ids::{SaleId, Terms};

/// The settings that the rules need. `items` and `user_limit` apply from the next sale on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Length of a sale in seconds.
    pub period_s: u32,
    /// Number of items in the stock of the next sale.
    pub items: u32,
    /// Largest number of items per user in the next sale.
    pub user_limit: u32,
    /// Duration of a hold, in milliseconds.
    pub ttl_ms: u32,
    /// Time by which a client can extend its hold once, in milliseconds. With 0, holds are not extended.
    pub extension_ms: u32,
    /// Time for which the answers of an ended sale are remembered, in milliseconds.
    pub receipts_ms: u64,
    /// Durability that answers about a purchase wait for. All other effects that wait for the log wait for the flush.
    pub purchase_ack: Watermark,
}

impl Rules {
    /// Returns the terms of a sale that begins under these settings.
    pub fn terms(&self, sale: SaleId) -> Terms {
        Terms { sale, items: self.items, user_limit: self.user_limit }
    }

    /// Returns the start of a sale, in milliseconds since the Unix epoch.
    pub fn starts_ms(&self, sale: SaleId) -> u64 {
        u64::from(sale.0) * u64::from(self.period_s) * 1000
    }

    /// Returns the end of a sale, in milliseconds since the Unix epoch.
    pub fn ends_ms(&self, sale: SaleId) -> u64 {
        self.starts_ms(sale) + u64::from(self.period_s) * 1000
    }

    /// Returns when a sale is forgotten, in milliseconds since the Unix epoch, if nothing is held any more and nothing was
    /// bought after its end.
    pub fn forgotten_at_ms(&self, sale: SaleId) -> u64 {
        self.ends_ms(sale).saturating_add(self.receipts_ms)
    }

    /// Returns the longest time for which an item can be held, with the extension, in milliseconds.
    pub fn longest_hold_ms(&self) -> u64 {
        u64::from(self.ttl_ms) + u64::from(self.extension_ms)
    }
}
