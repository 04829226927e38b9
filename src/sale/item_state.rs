//! The states of an item, its hold, and the results of attempts to change its state. The rules are in `stock`.

use crate::sale::code::Code;
use crate::sale::ids::UserId;
use schemars::JsonSchema;
use serde::Serialize;

/// The state of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// The item can be reserved.
    Free,
    /// A checkout is being decided: the user's owner has not replied to the claim.
    Claiming,
    /// Reserved until the hold ends.
    Held,
    /// Bought, but the purchase still waits for the log.
    Buying,
    /// Bought. Final within the sale.
    Sold,
}

/// The availability of an item, as readers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// The item can be reserved, or a checkout of it is being decided.
    Available,
    /// The item is held, or its purchase is not acknowledged yet.
    Reserved,
    /// The item is bought.
    Sold,
}

impl From<ItemState> for Availability {
    fn from(state: ItemState) -> Self {
        match state {
            // A claim takes at most one exchange with the user's owner, so readers see only its result.
            ItemState::Free | ItemState::Claiming => Availability::Available,
            ItemState::Held | ItemState::Buying => Availability::Reserved,
            ItemState::Sold => Availability::Sold,
        }
    }
}

/// A reservation of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// User who holds the item.
    pub user: UserId,
    /// Code that buys or releases the item.
    pub code: Code,
    /// End of the hold, in monotonic milliseconds.
    pub expires_ms: u64,
    /// End of the hold as its client knows it, in milliseconds since the Unix epoch: time of the record plus duration.
    /// It is kept and not computed from `expires_ms`, because the difference of the two clocks is not constant.
    pub expires_unix_ms: u64,
}

/// Reason why an item cannot be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The item is sold. Final within the sale.
    Sold,
    /// The item is claimed, held, or being bought. It may become free again.
    Reserved,
    /// The item is claimed by a checkout with the same user and key.
    SameCheckoutPending,
    /// A checkout with the same user and key has been granted, and its hold or its purchase is remembered. This is the
    /// hold.
    SameCheckout(Hold),
}

/// The result of an attempt to buy an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The hold was live, and the item is now `Buying`.
    Bought(Hold),
    /// A purchase with the same code and key waits for the log. This request gets the same answer.
    SamePurchasePending,
    /// The item was bought before with the same code and key.
    AlreadyBought,
    /// A purchase with the same code waits for the log, and neither request has a key. They may come from the same
    /// client or from two.
    KeylessPurchasePending,
    /// A purchase with the same code, but not the same key, waits for the log.
    PurchasePending,
    /// The item was bought with this code, and this request has another key or none.
    Used,
    /// The hold of this code expired or was cancelled.
    Expired,
    /// The slot stores another code.
    Unknown,
}

/// The result of an attempt to release an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The item is free again. This was its hold.
    Released(Hold),
    /// The hold of this code was cancelled before.
    AlreadyReleased,
    /// A purchase with this code waits for the log.
    PurchasePending,
    /// The item was bought with this code.
    Used,
    /// The hold of this code expired.
    Expired,
    /// The slot stores another code.
    Unknown,
}

/// The result of an attempt to extend a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The hold lasts longer now. This is the hold with its new end.
    Extended(Hold),
    /// The hold was extended before, and a hold is extended once. This is the hold.
    AlreadyExtended(Hold),
    /// Holds are not extended.
    NotExtendable,
    /// A purchase with this code waits for the log.
    PurchasePending,
    /// The item was bought with this code.
    Used,
    /// The hold of this code expired or was cancelled.
    Expired,
    /// The slot stores another code.
    Unknown,
}
