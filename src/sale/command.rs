//! Commands of clients, and their outcomes.

use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, UserId};
use crate::sale::product_ranges::ProductId;
use uuid::Uuid;

/// A command of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reserve an item.
    Checkout {
        /// The sale that the client has named. It has an effect only with a plan.
        sale: Option<SaleId>,
        /// The requested item. The sale may not have it.
        item: ItemId,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the `Idempotency-Key`; nil if the request has none.
        key: Uuid,
    },
    /// Reserve any free item.
    CheckoutAny {
        /// The sale that the client has named. It has an effect only with a plan.
        sale: Option<SaleId>,
        /// The product of which any item is asked for; `None` for any item of the sale.
        product: Option<ProductId>,
        /// The buyer.
        user: UserId,
        /// Fingerprint of the `Idempotency-Key`; nil if the request has none.
        key: Uuid,
    },
    /// Buy the reserved item.
    Purchase {
        /// The code that the checkout returned.
        code: Code,
        /// Fingerprint of the `Idempotency-Key`; nil if the request has none.
        key: Uuid,
    },
    /// Release the reserved item.
    Cancel {
        /// The code that the checkout returned.
        code: Code,
    },
    /// Extend the hold of the reserved item.
    Extend {
        /// The code that the checkout returned.
        code: Code,
    },
}

impl Command {
    /// Returns whether the command is a checkout.
    pub fn wants_a_hold(&self) -> bool {
        matches!(self, Command::Checkout { .. } | Command::CheckoutAny { .. })
    }

    /// Returns the item whose owner decides the command: that of the checkout or of the code. Returns `None` for a
    /// checkout of any item, and if the code leads to no item.
    pub fn item(&self) -> Option<ItemId> {
        match self {
            Command::Checkout { item, .. } => Some(*item),
            Command::CheckoutAny { .. } => None,
            Command::Purchase { code, .. } | Command::Cancel { code } | Command::Extend { code } => {
                code.place().map(|place| place.item)
            }
        }
    }
}

/// Reason why no client waits for the answer to a command any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The client has disconnected.
    Disconnected,
    /// The request was not decided in time. The client has been asked to repeat it.
    Overdue,
}

/// The outcome of a command. A checkout is refused with the first of these that applies: `NoSuchSale`, `NotOpen`,
/// `SaleUnnamed` or `SaleEnded`; then `NoSuchItem`, `Paused`, `ItemSold`, `ItemReserved`, `LogFull` and `UserLimit`, or, if
/// it asks for any item, `NoSuchProduct`, `SoldOut`, `Paused`, `AllReserved`, `LogFull` and `UserLimit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The item is held for the user, and the checkout is durable.
    Reserved {
        /// Code that buys or releases the item.
        code: Code,
        /// Sale of the item.
        sale: SaleId,
        /// The item held.
        item: ItemId,
        /// End of the hold, in milliseconds since the Unix epoch.
        expires_unix_ms: u64,
    },
    /// The item is bought, and the purchase is durable.
    Purchased {
        /// Sale of the item.
        sale: SaleId,
        /// The item bought.
        item: ItemId,
    },
    /// The hold is released, and the release is durable.
    Released,
    /// The hold is extended, and the extension is durable.
    Extended {
        /// Code that buys or releases the item.
        code: Code,
        /// Sale of the item.
        sale: SaleId,
        /// The item held.
        item: ItemId,
        /// New end of the hold, in milliseconds since the Unix epoch.
        expires_unix_ms: u64,
    },
    /// Refused: the item is sold. Final within the sale.
    ItemSold {
        /// Sale of the item.
        sale: SaleId,
        /// The item.
        item: ItemId,
    },
    /// Refused: the item is claimed, held, or being bought. It may become free again.
    ItemReserved,
    /// Refused: every item of the sale, or of the product that was asked for, is sold. Final within the sale.
    SoldOut {
        /// The sale.
        sale: SaleId,
    },
    /// Refused: no item of the sale, or of the product that was asked for, is free, but not all are sold.
    AllReserved {
        /// Time until the first hold of the sale ends, in seconds, at least 1.
        retry_after_s: u32,
    },
    /// Refused: no sale is open, or the sale that the client has named has not opened.
    NotOpen {
        /// Time until the next sale or that one opens, in seconds, at least 1, and one day if that is longer or none follows.
        retry_after_s: u32,
    },
    /// Refused: several sales are open, and the client has named none.
    SaleUnnamed,
    /// Refused: the plan has no sale with the id that the client has named.
    NoSuchSale,
    /// Refused: the sale is paused.
    Paused,
    /// Refused: the user's quota is used up. A hold that ended counts until its quota is returned.
    UserLimit,
    /// Refused: the sale has no such item.
    NoSuchItem,
    /// Refused: the sale has no such product.
    NoSuchProduct,
    /// Refused: the code was never issued, its sale is long over, or its item has been reserved again since its hold
    /// ended.
    CodeUnknown,
    /// Refused: the hold of this code expired or was cancelled.
    CodeExpired,
    /// Refused: another request has bought the item with this code.
    CodeUsed,
    /// Refused: the code belongs to a sale that is over and forgotten, or the sale that the client has named has closed.
    SaleEnded,
    /// Refused: holds are not extended on this server.
    NotExtendable,
    /// Not decided: the log has no room for another hold. The client may try again later.
    LogFull,
}

impl Outcome {
    /// Returns the code of the hold that this outcome gives to the client, if it is a reservation.
    pub fn granted(&self) -> Option<Code> {
        match self {
            Outcome::Reserved { code, .. } => Some(*code),
            _ => None,
        }
    }
}
