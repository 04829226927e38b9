//! The promises made to buyers, as their clients know them. Nothing here depends on how the server keeps them.

use crate::sale::checkout_key::{is_of_any, short};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, Moment, SaleId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The values that are the same in a checkout and its repetitions. A checkout of any item names none.
pub type CheckoutId = (Option<ItemId>, UserId, Uuid);

/// Returns the id of a checkout with this key that has got this item.
pub fn checkout_id(item: ItemId, user: UserId, key: Uuid) -> CheckoutId {
    ((!is_of_any(short(key))).then_some(item), user, key)
}

/// A reservation that a client has received.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub sale: SaleId,
    pub item: ItemId,
    pub user: UserId,
    /// Fingerprint of the checkout's key; nil if there is none.
    pub key: Uuid,
    /// End of the hold, as the first answer says.
    pub expires_unix_ms: u64,
    /// Number of the grant in its world.
    pub number: usize,
    /// Number of events that shards had applied when the first answer arrived.
    pub event: u64,
    /// Number of answers that have arrived.
    pub answers: u32,
    /// An extension of the hold was acknowledged.
    pub is_extended: bool,
    /// A client has asked to cancel the hold.
    pub is_cancel_requested: bool,
    /// The hold cannot expire before this: by the monotonic clock in the same run, by the wall clock in later runs of
    /// the same era.
    pub good_until: Moment,
    pub run: u32,
    pub clock_epoch: u32,
}

/// All promises.
#[derive(Default)]
pub struct Shadow {
    /// Reservations, by code.
    pub codes: BTreeMap<[u8; 16], Promise>,
    /// Acknowledged purchases, with their codes and keys.
    pub bought: BTreeMap<(SaleId, ItemId), (Code, Uuid)>,
    /// Codes of the holds whose release was acknowledged.
    pub released: BTreeSet<[u8; 16]>,
    /// Checkouts with a key that were answered as overdue: their clients have been asked to repeat them.
    pub overdue: BTreeSet<CheckoutId>,
}

impl Promise {
    /// Returns the id of the checkout.
    pub fn checkout_id(&self) -> CheckoutId {
        checkout_id(self.item, self.user, self.key)
    }
}

impl Shadow {
    /// Counts the acknowledged purchases of a user in a sale.
    pub fn bought_by(&self, user: UserId, sale: SaleId) -> usize {
        let codes = self.bought.iter().filter(|((of, _), _)| *of == sale).map(|(_, (code, _))| code);
        codes.filter(|code| self.codes[code.as_bytes()].user == user).count()
    }

    /// Removes the promises that a lost machine could not pass on: the purchases that `is_kept` denies, and all releases.
    pub fn forget(&mut self, is_kept: impl Fn(SaleId, ItemId, Code) -> bool) {
        self.bought.retain(|&(sale, item), &mut (code, _)| is_kept(sale, item, code));
        self.released.clear();
    }

    /// Ends the promises of the holds that were cancelled. The log of another machine does not have all of them.
    pub fn end_cancelled(&mut self, is_cancelled: impl Fn(&[u8; 16]) -> bool) {
        for (_, promise) in self.codes.iter_mut().filter(|(code, _)| is_cancelled(code)) {
            promise.good_until = Moment { monotonic_ms: 0, unix_ms: 0 };
        }
    }
}
