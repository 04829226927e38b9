//! The effects of a shard's events: records, messages and answers, which the turn carries out.

use crate::sale::command::Outcome;
use crate::sale::ids::{SaleId, ShardId, Ticket};
use crate::sale::item_state::Availability;
use crate::sale::message::{Reply, Request};
use crate::sale::record::Record;

/// The effects of events. `apply` adds them, the turn carries them out, and the buffers are reused.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records to append to the purchase log, in order.
    pub records: Vec<Record>,
    /// Records to append to the attempt log, if it has room.
    pub attempts: Vec<Record>,
    /// Requests to send to other shards.
    pub requests: Vec<(ShardId, Request)>,
    /// Replies to send to other shards.
    pub replies: Vec<(ShardId, Reply)>,
    /// Outcomes for clients of this shard.
    pub answers: Vec<(Ticket, Outcome)>,
    /// Results of this shard's parts of sales that are over, in which nothing is held any more.
    pub ended: Vec<EndedShare>,
    /// Changes to publish to readers, in order.
    pub changes: Vec<ItemChange>,
}

/// A change of an item's availability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemChange {
    /// Sale of the item.
    pub sale: SaleId,
    /// Slot of the item in its owner's stock.
    pub slot: u32,
    /// The new availability.
    pub to: Availability,
}

/// One shard's part of a sale that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedShare {
    /// The sale.
    pub sale: SaleId,
    /// Items of this shard that were bought.
    pub sold: u32,
    /// Number of items of this shard.
    pub items: u32,
}
