//! Messages between shards: one variant for each step of the two-owner protocol, which `shard` describes.
//!
//! Messages of a checkout name their sale, and a code contains the low bits of its sale, so that the receiver finds the
//! part of that sale. Each request carries everything that its reply needs, so no shard keeps a
//! table of requests in flight.

use crate::sale::code::Code;
use crate::sale::command::{Outcome, Withdrawal};
use crate::sale::ids::{ItemId, SaleId, ShardId, Ticket, UserId};
use crate::sale::product_ranges::ProductId;
use uuid::Uuid;

/// A checkout: this user wants this item of this sale. A repetition has the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// Sale of the checkout.
    pub sale: SaleId,
    /// The requested item.
    pub item: ItemId,
    /// The buyer.
    pub user: UserId,
    /// Fingerprint of the idempotency key; nil if there is none.
    pub key: Uuid,
}

/// A checkout of any item, as its client has sent it.
#[derive(Clone, Copy, Debug)]
pub struct AnyCheckout {
    /// The sale that the client has named.
    pub named: Option<SaleId>,
    /// The product of which any item is asked for; `None` for any item of the sale.
    pub product: Option<ProductId>,
    /// The buyer.
    pub user: UserId,
    /// Fingerprint of the idempotency key; nil if there is none.
    pub key: Uuid,
}

/// A checkout of any item that searches in a sale.
#[derive(Clone, Copy, Debug)]
pub struct AnyUnit {
    /// Ticket of the client's request at the origin.
    pub ticket: Ticket,
    /// Sale of the checkout.
    pub sale: SaleId,
    /// The client has named the sale.
    pub is_named: bool,
    /// The product of which any item is asked for; `None` for any item of the sale.
    pub product: Option<ProductId>,
    /// The buyer.
    pub user: UserId,
    /// Fingerprint of the idempotency key; nil if there is none.
    pub key: Uuid,
}

impl AnyUnit {
    /// Returns the checkout as its client has sent it.
    pub fn checkout(&self) -> AnyCheckout {
        let &AnyUnit { sale, is_named, product, user, key, .. } = self;
        AnyCheckout { named: is_named.then_some(sale), product, user, key }
    }
}

/// The sales in which the key of a checkout may have got an item before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyScope {
    /// Any sale: the client has named none.
    Every,
    /// Any sale but this one, which the item's owner has forgotten.
    EveryBut(SaleId),
    /// The sale that the client has named.
    One(SaleId),
}

/// What the client of a checkout has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Any item: the item's owner has chosen this one.
    pub is_any: bool,
    /// Any item of the product of this one.
    pub of_product: bool,
    /// This sale: the client has named it.
    pub is_named: bool,
}

/// The result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The item was counted.
    Granted,
    /// The limit is reached, or the sale has ended.
    Denied,
    /// Another checkout with the same key has got an item. Its owner answers the client.
    Repeated,
}

/// A request to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Origin → item owner: hold this item for this user.
    Reserve {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// What the client asks for.
        checkout: Checkout,
        /// The client has named the sale.
        is_named: bool,
    },
    /// Origin → item owner: hold any free item for this user.
    ReserveAny {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// Sale of the checkout.
        sale: SaleId,
        /// The client has named the sale.
        is_named: bool,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the idempotency key; nil if there is none.
        key: Uuid,
    },
    /// Origin or item owner → user owner: a checkout of any item with this key. If it repeats another one, forward it to
    /// the owner of the item that the key has got. Else reply `KeyUnknown` to the origin.
    FindKey {
        /// Shard that has the client.
        origin: ShardId,
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the idempotency key.
        key: Uuid,
        /// The sales in which the key may have got an item.
        scope: KeyScope,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
    },
    /// User owner → item owner: this item was claimed for a checkout of any item with the same user and key. Repeat the
    /// answer.
    Repeat {
        /// Shard that has the client.
        origin: ShardId,
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The first checkout.
        checkout: Checkout,
        /// The client has named the sale.
        is_named: bool,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
    },
    /// Item owner → user owner: count one more item against the user's quota, if the limit allows it.
    Claim {
        /// Shard that sent the `Reserve`.
        origin: ShardId,
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The checkout. Its item waits in `Claiming`.
        checkout: Checkout,
        /// What the client has asked for.
        asked: Asked,
    },
    /// Item owner → user owner: count one item less against the user's quota.
    Release {
        /// Sale of the hold that ended.
        sale: SaleId,
        /// The item, which the key has not got any more.
        item: ItemId,
        /// User whose quota is returned.
        user: UserId,
        /// Short fingerprint of the key of the checkout; 0 if there is none.
        key: u64,
    },
    /// Origin → item owner: buy the item of this code.
    Confirm {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The presented code.
        code: Code,
        /// Fingerprint of the idempotency key; nil if there is none.
        key: Uuid,
    },
    /// Origin → item owner: no client waits for this ticket any more. A repetition of its purchase may take over the
    /// answer. If its checkout was granted, the answer is undelivered.
    Withdraw {
        /// The ticket.
        ticket: Ticket,
        /// Item of the request. `None` if it asks for any item: then each shard gets this.
        item: Option<ItemId>,
        /// Reason of the withdrawal.
        reason: Withdrawal,
    },
    /// Origin → item owner: an answer with this code reached no client.
    Undelivered {
        /// Code of the granted checkout.
        code: Code,
    },
    /// Origin → item owner: extend the hold of this code.
    Extend {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The presented code.
        code: Code,
    },
    /// Origin → item owner: free the item of this code.
    Cancel {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The presented code.
        code: Code,
    },
}

/// A reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// User owner → item owner: the result of a `Claim`.
    Claimed {
        /// Shard that sent the `Reserve`.
        origin: ShardId,
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The checkout. Its item waits in `Claiming`.
        checkout: Checkout,
        /// What the client has asked for.
        asked: Asked,
        /// The result.
        verdict: Verdict,
    },
    /// Item owner → origin: the outcome for the client.
    Answer {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The outcome.
        outcome: Outcome,
    },
    /// Item owner → origin: the sale of the `Reserve` has closed, and the client has not named it. The origin repeats the
    /// checkout in the sale that is open now.
    SaleChanged {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The requested item.
        item: ItemId,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the idempotency key; nil if there is none.
        key: Uuid,
    },
    /// Item owner → origin: the owner has no free item, or the sale of the `ReserveAny` has closed. The origin asks the next
    /// shard, or begins again in the sale that is open now.
    NoneFree {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The owner.
        owner: ShardId,
        /// Sale of the checkout.
        sale: SaleId,
        /// The client has named the sale.
        is_named: bool,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the idempotency key; nil if there is none.
        key: Uuid,
    },
    /// User owner → origin: a checkout of any item with this key repeats nothing. The origin begins the search.
    KeyUnknown {
        /// Ticket of the client's request at the origin.
        ticket: Ticket,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the idempotency key.
        key: Uuid,
        /// The sale that the client has named.
        named: Option<SaleId>,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
    },
}

/// Messages from one shard to another, as they travel on a lane: those of one turn, or of several if the lane had no
/// spare buffer.
#[derive(Debug)]
pub struct Batch<M> {
    /// The sender, checked on arrival.
    pub from: ShardId,
    /// The receiver, checked on arrival.
    pub to: ShardId,
    /// The messages, in the order in which they were sent.
    pub messages: Vec<M>,
}

const _: () = assert!(size_of::<Request>() <= 48, "requests are copied through lanes and may not exceed 48 bytes");
const _: () = assert!(size_of::<Reply>() <= 56, "replies are copied through lanes and may not exceed 56 bytes");
