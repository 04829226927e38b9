//! Repeated checkouts that arrive while the claim of the first one is being decided. They wait for the same decision.
//!
//! Each waiting request is one connection, so the number of connections bounds this list.

use crate::sale::deferred::Waiter;
use crate::sale::message::Checkout;
use std::collections::BTreeMap;

/// The repeated checkouts that wait at one item owner, by the slot of their item.
#[derive(Debug, Default)]
pub struct Repetitions {
    waiters: BTreeMap<usize, Vec<(Waiter, Checkout)>>,
}

impl Repetitions {
    /// Adds a request that repeats the checkout whose claim is being decided for the item at `slot`.
    pub fn push(&mut self, slot: usize, waiter: Waiter, checkout: Checkout) {
        self.waiters.entry(slot).or_default().push((waiter, checkout));
    }

    /// Returns whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Removes and returns the requests that wait for the claim of the item at `slot`, in the order of their arrival.
    pub fn take(&mut self, slot: usize) -> Vec<(Waiter, Checkout)> {
        self.waiters.remove(&slot).unwrap_or_default()
    }

    /// Removes and returns all requests, because their sale has ended.
    pub fn take_all(&mut self) -> impl Iterator<Item = (Waiter, Checkout)> + use<> {
        std::mem::take(&mut self.waiters).into_values().flatten()
    }

    /// Removes a request for the item at `slot` whose client no longer waits. It looks at the repetitions of one claim:
    /// those that have arrived in the time of a message to the user's owner and back.
    pub fn withdraw(&mut self, slot: usize, gone: Waiter) {
        if let Some(waiters) = self.waiters.get_mut(&slot) {
            waiters.retain(|(waiter, _)| *waiter != gone);
            if waiters.is_empty() {
                self.waiters.remove(&slot);
            }
        }
    }
}
