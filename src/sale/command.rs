//! What clients ask of the sale, and what becomes of it.

use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, UserId};
use uuid::Uuid;

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
