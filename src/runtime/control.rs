//! What the main thread and the shards tell each other.

use crate::http::connection::Overdue;
use crate::log::retention::OldSegment;
use crate::sale::ids::ShardId;
use crate::sale::shard::EndedShare;
use crate::upgrade::protocol::{FromNew, UpgradeSocket};
use std::sync::Arc;

/// What the main thread is told.
#[derive(Debug)]
pub enum Notice {
    /// The shard can sell.
    Ready(ShardId),
    /// The shard's part of a sale is over.
    Ended(EndedShare),
    /// No hold is granted any more, for want of log space; or again.
    LogFull(ShardId, bool),
    /// Attempts are no longer recorded, for want of log space; or again.
    AttemptsLost(ShardId, bool),
    /// Requests were not decided in time.
    Overdue(ShardId, Overdue),
    /// Every request has been answered.
    Drained(ShardId),
    /// Paused: nobody waits for a decision of this shard's.
    Still(ShardId),
    /// Paused: the new process has got all that this shard had, or cannot get it.
    HandedOver(ShardId, Result<(), String>),
    /// The new process with this number says something, or is gone.
    Successor(u32, Option<FromNew>),
    /// The process whose place this one has taken is no more.
    Alone,
    /// A signal arrived.
    Signal(i32),
}

/// What a shard is told.
#[derive(Debug)]
pub enum Order {
    /// These segments of earlier runs are this shard's to look after.
    Keep(Vec<OldSegment>),
    /// Paused: everything is to be flushed, then listeners and clients go to another process.
    HandOver(Arc<UpgradeSocket>),
}
