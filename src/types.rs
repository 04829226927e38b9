//! The words that every other file uses: ids, commands and outcomes.

use crate::code::Code;
use uuid::Uuid;

/// A shard, numbered from 0. Not an executor id: glommio numbers those itself.
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

/// What a client asks of the sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reserve an item.
    Checkout {
        /// The item wanted, if the sale has it.
        item: ItemId,
        /// The buyer.
        user: UserId,
    },
    /// Buy the reserved item.
    Purchase {
        /// The code that the checkout returned.
        code: Code,
        /// Fingerprint of the `Idempotency-Key`; nil when there was none.
        key: Uuid,
    },
    /// Give the reserved item back.
    Cancel {
        /// The code that the checkout returned.
        code: Code,
    },
}

/// What became of a command. Refusals of a checkout are listed in their precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The item is held for the user.
    Reserved {
        /// Buys the item.
        code: Code,
        /// The sale it belongs to.
        sale: SaleId,
        /// The item held.
        item: ItemId,
        /// When the hold ends, milliseconds since the Unix epoch.
        expires_unix_ms: u64,
    },
    /// The item is bought, durably.
    Purchased {
        /// The sale it belonged to.
        sale: SaleId,
        /// The item bought.
        item: ItemId,
    },
    /// The hold is released, durably.
    Released,
    /// Refused: the item is sold. Final within the sale.
    ItemSold {
        /// The sale it is sold in.
        sale: SaleId,
        /// The item.
        item: ItemId,
    },
    /// Refused for now: somebody holds the item.
    ItemReserved,
    /// Refused: the user holds and has bought as many items as one may.
    UserLimit,
    /// Refused: the sale has no such item.
    NoSuchItem,
    /// Refused: no hold has this code.
    CodeUnknown,
    /// Refused: the hold of this code ran out or was cancelled.
    CodeExpired,
    /// Refused: the item of this code is already bought with it.
    CodeUsed,
    /// Refused: the code belongs to a sale that is over.
    SaleEnded,
    /// Not decided: the log has no room for another hold. Try again later.
    LogFull,
}
