//! The settings that the rules of a sale need.

use crate::sale::deferred::Watermark;
use crate::sale::ids::SaleId;
use crate::sale::sale_schedule::SaleSchedule;
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

/// The settings that the rules need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which sale opens when, and under which terms.
    pub schedule: SaleSchedule,
    /// Time for which the answers of an ended sale are remembered, in milliseconds.
    pub receipts_ms: u64,
    /// What the answers that promise something wait for.
    pub ack: Ack,
}

impl Rules {
    /// Returns these rules with another length of each sale, if sales have one length.
    pub fn with_period(self, period_s: u32) -> Rules {
        Rules { schedule: self.schedule.with_period(period_s), ..self }
    }

    /// Returns the end of a sale, in milliseconds since the Unix epoch. Of a sale that is not in the schedule nothing is
    /// known, so it has no end.
    pub fn ends_ms(&self, sale: SaleId) -> u64 {
        self.schedule.terms(sale).map_or(u64::MAX, |terms| terms.closes_ms)
    }

    /// Returns when a sale is forgotten, in milliseconds since the Unix epoch, if nothing is held any more and nothing was
    /// bought after its end.
    pub fn forgotten_at_ms(&self, sale: SaleId) -> u64 {
        self.ends_ms(sale).saturating_add(self.receipts_ms)
    }
}
