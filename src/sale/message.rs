//! What shards say to each other: one variant for each step of the two-owner protocol.
//!
//! Every step carries the sale it belongs to, and every request carries what its answer needs to find
//! the way back, so no shard keeps a table of requests in flight.

use crate::sale::code::Code;
use crate::sale::command::Outcome;
use crate::sale::ids::{ItemId, SaleId, ShardId, Ticket, UserId};
use uuid::Uuid;

/// Asks an owner to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Origin → item owner: hold this item.
    Reserve {
        /// Names the client's request to the origin.
        ticket: Ticket,
        /// The sale meant.
        sale: SaleId,
        /// The item wanted.
        item: ItemId,
        /// The buyer.
        user: UserId,
    },
    /// Item owner → user owner: take one of the user's quota.
    Claim {
        /// Where the `Reserve` came from.
        origin: ShardId,
        /// The origin's ticket.
        ticket: Ticket,
        /// The sale meant.
        sale: SaleId,
        /// The item that waits in `Claiming`.
        item: ItemId,
        /// Whose quota.
        user: UserId,
    },
    /// Item owner → user owner: give one of the user's quota back.
    Release {
        /// The sale meant.
        sale: SaleId,
        /// Whose quota.
        user: UserId,
    },
    /// Origin → item owner: buy the item of this code.
    Confirm {
        /// Names the client's request to the origin.
        ticket: Ticket,
        /// The code presented.
        code: Code,
        /// Fingerprint of the idempotency key; nil when there is none.
        key: Uuid,
    },
    /// Origin → every owner: the client of this ticket is gone; whoever repeats its purchase may have its answer.
    Withdraw {
        /// The ticket.
        ticket: Ticket,
    },
    /// Origin → item owner: free the item of this code.
    Cancel {
        /// Names the client's request to the origin.
        ticket: Ticket,
        /// The code presented.
        code: Code,
    },
}

/// Answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// User owner → item owner: what became of a `Claim`.
    Claimed {
        /// Where the `Reserve` came from.
        origin: ShardId,
        /// The origin's ticket.
        ticket: Ticket,
        /// The sale of the claim.
        sale: SaleId,
        /// The item that waits in `Claiming`.
        item: ItemId,
        /// The user asked for.
        user: UserId,
        /// Whether there was quota left.
        granted: bool,
    },
    /// Item owner → origin: tell the client.
    Answer {
        /// The origin's ticket.
        ticket: Ticket,
        /// The decision.
        outcome: Outcome,
    },
    /// Item owner → origin: the sale of this `Reserve` is over; try again under the current one.
    Bounced {
        /// The origin's ticket.
        ticket: Ticket,
        /// The item wanted.
        item: ItemId,
        /// The buyer.
        user: UserId,
    },
}

/// What travels on a lane: the messages of one turn of one shard to one other.
#[derive(Debug)]
pub struct Batch<M> {
    /// The sender, checked on arrival.
    pub from: ShardId,
    /// The receiver, checked on arrival.
    pub to: ShardId,
    /// In the order they were sent.
    pub messages: Vec<M>,
}

const _: () = assert!(size_of::<Request>() <= 48, "requests are copied through lanes: keep them small");
const _: () = assert!(size_of::<Reply>() <= 56, "replies are copied through lanes: keep them small");
