//! The messages between the main thread and the shards: notices from shards and other threads to the main thread, and
//! orders from the main thread to a shard. Messages between shards are in `mesh`.

use crate::http::connection::Overdue;
use crate::log::retention::OldSegment;
use crate::sale::effects::EndedShare;
use crate::sale::ids::ShardId;
use crate::sale::record::Record;
use crate::upgrade::protocol::{FromNew, UpgradeSocket};
use std::sync::Arc;

/// A message to the main thread, from a shard or from another thread.
#[derive(Debug)]
pub enum Notice {
    /// The shard is ready to sell.
    Ready(ShardId),
    /// The shard has begun the sale of this record.
    Opened(Record),
    /// A sale has ended on the shard.
    Ended(EndedShare),
    /// The shard grants no new holds because the log has no room (`true`), or grants them again (`false`).
    LogFull(ShardId, bool),
    /// The shard does not record attempts because the log has no room (`true`), or records them again (`false`).
    AttemptsLost(ShardId, bool),
    /// Requests on the shard's connections were not decided in time.
    Overdue(ShardId, Overdue),
    /// The shard drains, and every request on its connections is answered.
    Drained(ShardId),
    /// Upgrade, old process: the shard is paused, and none of its clients waits for a decision.
    Idle(ShardId),
    /// Upgrade, old process: the shard has sent its sockets to the new process, or could not send them.
    HandedOver(ShardId, Result<(), String>),
    /// Upgrade, old process: the new process with this process id has sent a message, or has ended (`None`).
    Successor(u32, Option<FromNew>),
    /// Upgrade, new process: the old process has ended.
    PredecessorExited,
    /// The process has received this signal to stop.
    Stop(String),
    /// The process has received this signal to upgrade.
    Upgrade(String),
}

/// An order from the main thread to a shard.
#[derive(Debug)]
pub enum Order {
    /// Apply retention to these segments of earlier runs.
    Keep(Vec<OldSegment>),
    /// Upgrade, old process: flush both logs, then send the listeners and the clients to the new process.
    HandOver(Arc<UpgradeSocket>),
}
