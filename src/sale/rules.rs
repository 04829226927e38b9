//! The settings that the rules of a sale need.

use crate::sale::deferred::Watermark;
use crate::sale::ids::{SaleId, Terms};
use std::time::Duration;
use strum::{Display, EnumString};

/// Maximum length of a sale.
pub const PERIOD_MAX: Duration = Duration::from_secs(366 * 86400);
/// Maximum of the duration of a hold together with its extension; each is at most half of it.
pub const HOLD_MAX: Duration = Duration::from_secs(2 * 86400);

/// What the answers that promise something wait for, in addition to the flush to the local disk. It is the value of
/// `--ack` and of the column `ack` in `clusters`.
#[derive(Clone, Copy, Debug, Display, EnumString, PartialEq, Eq)]
#[strum(serialize_all = "lowercase")]
pub enum Ack {
    /// Nothing.
    Local,
    /// A purchase waits for its transaction in Postgres.
    Postgres,
    /// Every promise waits for its transaction in Postgres, which a synchronous standby has as well.
    Replicated,
}

impl Ack {
    /// Returns the durability that a purchase must reach before an answer or another buyer depends on it.
    pub fn purchase(self) -> Watermark {
        match self {
            Ack::Local => Watermark::Flushed,
            Ack::Postgres | Ack::Replicated => Watermark::Persisted,
        }
    }

    /// Returns the durability that the grant, the extension or the end of a hold must reach before an answer or the quota
    /// of a user depends on it.
    pub fn hold(self) -> Watermark {
        match self {
            Ack::Local | Ack::Postgres => Watermark::Flushed,
            Ack::Replicated => Watermark::Persisted,
        }
    }

    /// Returns whether no purchase is acknowledged without the database.
    pub fn needs_database(self) -> bool {
        self.purchase() == Watermark::Persisted
    }
}

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
    /// What the answers that promise something wait for.
    pub ack: Ack,
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
