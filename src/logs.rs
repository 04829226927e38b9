//! A shard's two logs together: the disk that they share, their way to Postgres.

use crate::block::StreamId;
use crate::handover::FromOld;
use crate::persistence::Feed;
use crate::purchase_log::PurchaseLog;
use crate::retention::Retention;
use crate::types::Seq;
use crossbeam_channel::Receiver;

/// A shard's two logs, and the disk they may use.
pub struct Logs {
    /// What the rules need.
    pub purchases: PurchaseLog,
    /// Refused checkouts.
    pub attempts: PurchaseLog,
    /// The budget of both.
    pub retention: Retention,
    /// The way to Postgres, if there is one.
    pub persistence: Option<Shipping>,
}

/// A shard's two ends at the persistence thread.
pub struct Shipping {
    /// There: what has been flushed.
    pub feed: Feed,
    /// Back: how much of the streams that this shard looks after has arrived.
    pub shipped: Receiver<(StreamId, Seq)>,
}

impl Logs {
    /// Where they end, for whoever goes on with them.
    pub fn written(&self) -> FromOld {
        let StreamId { epoch, shard, .. } = self.purchases.stream();
        FromOld::Written { epoch, shard, purchases: self.purchases.end(), attempts: self.attempts.end() }
    }

    /// Whether anything is being written or made.
    pub fn are_busy(&self) -> bool {
        [&self.purchases, &self.attempts].iter().any(|log| log.is_flushing() || log.is_making())
    }

    /// Whether nothing is left to be written. What finds no room is not waited for: space may never come, and nobody
    /// has been told of it.
    pub fn are_at_rest(&self) -> bool {
        let is_written = |log: &PurchaseLog| log.is_flushed() || log.room() == 0;
        is_written(&self.purchases) && is_written(&self.attempts) && !self.are_busy()
    }
}
