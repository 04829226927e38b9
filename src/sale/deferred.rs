//! Effects that wait for the log: answers to clients, sales of items, returns of quotas. Each waits until a record of
//! the purchase log is flushed, or persisted in Postgres. Without this, a crash could contradict them:
//!
//! - An answer promises a hold, a purchase or a release. If it left before its record is durable and the record were
//!   lost, recovery could not keep the promise.
//! - `Sold` is final, and other clients are refused with it. If the purchase record were lost, recovery would find the
//!   item still held.
//! - A returned quota can be claimed at once for an item of another shard, whose log is flushed separately. If the
//!   release were lost and the new checkout were not, recovery would find the user above the limit.
//!
//! A released item itself need not wait: its next checkout follows the release in the same log, so recovery cannot find
//! the checkout without the release.

use crate::sale::code::Code;
use crate::sale::command::Outcome;
use crate::sale::ids::{ItemId, SaleId, Seq, ShardId, Ticket, UserId};
use std::collections::VecDeque;

/// The durability that an effect waits for its record to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    /// The record is on this machine's disk.
    Flushed,
    /// The record is in Postgres.
    Persisted,
}

/// A client's request that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Shard that has the client.
    pub origin: ShardId,
    /// Ticket of the request at that shard.
    pub ticket: Ticket,
}

/// An effect that waits for a record.
#[derive(Debug)]
pub enum Deferred {
    /// Answer the client.
    Answer(Waiter, Outcome),
    /// Mark the item as sold, and answer the client.
    FinishPurchase {
        /// Sale of the purchase.
        sale: SaleId,
        /// The bought item.
        item: ItemId,
        /// Request to answer. `None` if its client no longer waits and no repetition has taken its place.
        waiter: Option<Waiter>,
    },
    /// Return the user's quota.
    ReturnQuota {
        /// Sale of the hold that ended.
        sale: SaleId,
        /// User whose quota is returned.
        user: UserId,
    },
}

/// All effects that wait, by watermark, in the order of their records.
#[derive(Debug, Default)]
pub struct Waiting {
    flush: VecDeque<(Seq, Deferred)>,
    persist: VecDeque<(Seq, Deferred)>,
}

impl Waiting {
    fn queue(&mut self, watermark: Watermark) -> &mut VecDeque<(Seq, Deferred)> {
        match watermark {
            Watermark::Flushed => &mut self.flush,
            Watermark::Persisted => &mut self.persist,
        }
    }

    /// Adds an effect that waits until record `seq` has reached `watermark`. The effects of a watermark must be added
    /// in the order of their records.
    pub fn push(&mut self, watermark: Watermark, seq: Seq, deferred: Deferred) {
        self.queue(watermark).push_back((seq, deferred));
    }

    /// Removes and returns the first effect whose record has reached `watermark`, if there is one. `reached` is the
    /// last record that has reached it.
    pub fn pop(&mut self, watermark: Watermark, reached: Seq) -> Option<Deferred> {
        self.queue(watermark).pop_front_if(|(needs, _)| *needs <= reached).map(|(_, deferred)| deferred)
    }

    /// Removes the answer to a request whose client no longer waits. A purchase still becomes final, and a repetition
    /// can take over its answer by [`take_over_answer`](Self::take_over_answer). If the answer grants a checkout,
    /// returns its code.
    pub fn withdraw(&mut self, gone: Waiter) -> Option<Code> {
        let mut granted = None;
        for queue in [&mut self.flush, &mut self.persist] {
            queue.retain_mut(|(_, deferred)| match deferred {
                Deferred::Answer(waiter, outcome) if *waiter == gone => {
                    granted = outcome.granted();
                    false
                }
                Deferred::Answer(..) | Deferred::ReturnQuota { .. } => true,
                Deferred::FinishPurchase { waiter, .. } => {
                    waiter.take_if(|waiter| *waiter == gone);
                    true
                }
            });
        }
        granted
    }

    /// Assigns the answer of a purchase whose client no longer waits to `repetition`, a repetition of that purchase. Returns
    /// whether there was such a purchase.
    pub fn take_over_answer(&mut self, sale: SaleId, item: ItemId, repetition: Waiter) -> bool {
        for (_, deferred) in self.flush.iter_mut().chain(&mut self.persist) {
            if let Deferred::FinishPurchase { sale: of, item: what, waiter: waiter @ None } = deferred
                && (*of, *what) == (sale, item)
            {
                *waiter = Some(repetition);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALE: SaleId = SaleId(1);
    const ITEM: ItemId = ItemId(2);

    fn waiter(ticket: u64) -> Waiter {
        Waiter { origin: ShardId(0), ticket: Ticket(ticket) }
    }

    fn answered_waiter(waiting: &mut Waiting) -> Option<Waiter> {
        match waiting.pop(Watermark::Persisted, 1) {
            Some(Deferred::FinishPurchase { waiter, .. }) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repetition_takes_over_an_abandoned_answer() {
        let mut waiting = Waiting::default();
        waiting.push(
            Watermark::Persisted,
            1,
            Deferred::FinishPurchase { sale: SALE, item: ITEM, waiter: Some(waiter(1)) },
        );
        assert!(!waiting.take_over_answer(SALE, ITEM, waiter(2)), "the first client still waits");
        waiting.withdraw(waiter(1));
        assert!(waiting.take_over_answer(SALE, ITEM, waiter(2)));
        assert!(!waiting.take_over_answer(SALE, ITEM, waiter(3)), "only one request takes over the answer");
        assert!(waiting.pop(Watermark::Persisted, 0).is_none());
        assert_eq!(answered_waiter(&mut waiting), Some(waiter(2)));
    }

    #[test]
    fn withdrawn_answers_are_removed() {
        let mut waiting = Waiting::default();
        for ticket in 0..1000 {
            waiting.push(Watermark::Persisted, 1, Deferred::Answer(waiter(ticket), Outcome::CodeUsed));
            waiting.withdraw(waiter(ticket));
        }
        assert!(waiting.persist.is_empty());
    }

    #[test]
    fn a_sale_without_a_client_sends_no_answer() {
        let mut waiting = Waiting::default();
        waiting.push(
            Watermark::Persisted,
            1,
            Deferred::FinishPurchase { sale: SALE, item: ITEM, waiter: Some(waiter(1)) },
        );
        waiting.withdraw(waiter(1));
        assert!(waiting.pop(Watermark::Flushed, 9).is_none(), "flushed is not persisted");
        assert_eq!(answered_waiter(&mut waiting), None);
    }
}
