//! Repeated checkouts that arrive while the claim of the first one is being decided. They wait for the same decision.
//!
//! Each waiting request is one connection, so the number of connections bounds this list.

use crate::sale::deferred::Waiter;
use crate::sale::ids::SaleId;
use crate::sale::message::{Asked, Checkout};
use std::collections::BTreeMap;

/// A repeated checkout that waits.
#[derive(Clone, Copy, Debug)]
pub struct RepeatedCheckout {
    /// Its client.
    pub waiter: Waiter,
    /// The checkout.
    pub checkout: Checkout,
    /// What its client has asked for.
    pub asked: Asked,
}

/// The repeated checkouts that wait at one item owner, by the slot and the sale of their item.
#[derive(Debug, Default)]
pub struct Repetitions {
    waiting: BTreeMap<(usize, SaleId), Vec<RepeatedCheckout>>,
}

impl Repetitions {
    /// Adds a request that repeats the checkout whose claim is being decided for the item at `slot` of `sale`.
    pub fn push(&mut self, slot: usize, sale: SaleId, repetition: RepeatedCheckout) {
        self.waiting.entry((slot, sale)).or_default().push(repetition);
    }

    /// Returns whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Removes and returns the requests that wait for the claim of the item at `slot` of `sale`, in the order of their
    /// arrival.
    pub fn take(&mut self, slot: usize, sale: SaleId) -> Vec<RepeatedCheckout> {
        self.waiting.remove(&(slot, sale)).unwrap_or_default()
    }

    /// Removes a request for the item at `slot` whose client no longer waits. It looks at the repetitions of one claim in
    /// each sale: those that have arrived in the time of a message to the user's owner and back.
    pub fn withdraw(&mut self, slot: usize, gone: Waiter) {
        let of_slot = (slot, SaleId(0))..=(slot, SaleId(u32::MAX));
        for (_, waiting) in self.waiting.range_mut(of_slot.clone()) {
            waiting.retain(|repetition| repetition.waiter != gone);
        }
        let is_empty = |_: &(usize, SaleId), waiting: &mut Vec<RepeatedCheckout>| waiting.is_empty();
        self.waiting.extract_if(of_slot, is_empty).for_each(drop);
    }
}
