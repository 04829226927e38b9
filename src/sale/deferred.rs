//! Effects that wait for the log: answers to clients, sales of items, returns of quotas. Each waits until a record of
//! the purchase log is flushed, or persisted in Postgres. Without this, a crash could contradict them:
//!
//! - An answer promises a hold, a purchase or a release. If it left before its record is durable and the record were
//!   lost, recovery could not keep the promise.
//! - `Sold` is final, and other clients are refused with it. If the purchase record were lost, recovery would find the
//!   item still held.
//! - A returned quota can be claimed at once for an item of another shard, whose log is flushed and persisted separately.
//!   If the release were lost and the new checkout were not, recovery would find the user above the limit. So would a
//!   takeover from Postgres: with `--ack replicated`, where a takeover must lose nothing, the quota waits until the
//!   release is persisted. A transaction may have the checkout without the release, because a batch that is full leaves
//!   out the records of some shards.
//!
//! A released item itself need not wait: its next checkout follows the release in the same log, and Postgres has each log
//! up to a position, so neither recovery nor a takeover can find the checkout without the release.
//!
//! [`Ack`](crate::sale::rules::Ack) has the watermark of each kind of effect.

use crate::sale::chunked_vec::ChunkedVec;
use crate::sale::code::Code;
use crate::sale::command::Outcome;
use crate::sale::ids::{ItemId, SaleId, Seq, ShardId, Ticket, UserId};
use crate::sale::linked_queue::LinkedQueue;
use std::collections::BTreeMap;

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
#[derive(Clone, Copy, Debug)]
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
        /// The item.
        item: ItemId,
        /// Short fingerprint of the key of the checkout; 0 if there is none.
        key: u64,
        /// User whose quota is returned.
        user: UserId,
    },
}

/// The place of an effect: its queue, and its key there.
#[derive(Clone, Copy, Debug)]
struct QueuePlace {
    watermark: Watermark,
    key: u32,
}

/// The place in which a client has no effect.
const NOWHERE: QueuePlace = QueuePlace { watermark: Watermark::Flushed, key: u32::MAX };

/// All effects that wait, by watermark, in the order of their records.
///
/// A client that no longer waits is found by index, because it may be one of many thousands: see
/// [`withdraw`](Self::withdraw).
#[derive(Debug, Default)]
pub struct Waiting {
    /// By watermark.
    queues: [LinkedQueue<(Seq, Deferred)>; 2],
    /// The place of the latest effect for each client, by shard and by the client's place there. The effect may be gone,
    /// and another one in its place.
    clients: Vec<ChunkedVec<QueuePlace>>,
    /// The purchases whose clients no longer wait.
    abandoned: BTreeMap<(SaleId, ItemId), QueuePlace>,
}

impl Waiting {
    fn queue(&mut self, watermark: Watermark) -> &mut LinkedQueue<(Seq, Deferred)> {
        &mut self.queues[watermark as usize]
    }

    /// Adds an effect that waits until record `seq` has reached `watermark`. The effects of a watermark must be added
    /// in the order of their records.
    pub fn push(&mut self, watermark: Watermark, seq: Seq, deferred: Deferred) {
        let key = self.queue(watermark).push((seq, deferred));
        if let Deferred::Answer(waiter, _) | Deferred::FinishPurchase { waiter: Some(waiter), .. } = deferred {
            self.note(waiter, QueuePlace { watermark, key });
        }
    }

    /// Notes the place of the effect for which a client waits.
    fn note(&mut self, Waiter { origin, ticket }: Waiter, place: QueuePlace) {
        let (origin, client) = (usize::from(origin.0), ticket.client());
        if origin >= self.clients.len() {
            self.clients.resize_with(origin + 1, ChunkedVec::default);
        }
        let places = &mut self.clients[origin];
        while places.len() <= client {
            places.push(NOWHERE);
        }
        places[client] = place;
    }

    /// Returns whether the record of an effect has reached `watermark`. `reached` is the last record that has reached
    /// it.
    pub fn is_due(&self, watermark: Watermark, reached: Seq) -> bool {
        self.queues[watermark as usize].first().is_some_and(|(needs, _)| *needs <= reached)
    }

    /// Removes and returns the first effect whose record has reached `watermark`, if there is one. `reached` is the
    /// last record that has reached it.
    pub fn pop(&mut self, watermark: Watermark, reached: Seq) -> Option<Deferred> {
        let queue = self.queue(watermark);
        queue.first().filter(|(needs, _)| *needs <= reached)?;
        let (_, deferred) = queue.pop()?;
        if let Deferred::FinishPurchase { sale, item, waiter: None } = deferred {
            self.abandoned.remove(&(sale, item));
        }
        Some(deferred)
    }

    /// Removes the answer to a request whose client no longer waits. A purchase still becomes final, and a repetition
    /// can take over its answer by [`take_over_answer`](Self::take_over_answer). If the answer grants a checkout,
    /// returns its code.
    pub fn withdraw(&mut self, gone: Waiter) -> Option<Code> {
        let Waiter { origin, ticket } = gone;
        let place = *self.clients.get(usize::from(origin.0))?.get(ticket.client())?;
        let queue = &mut self.queues[place.watermark as usize];
        let (_, deferred) = queue.get_mut(place.key)?;
        match deferred {
            Deferred::Answer(waiter, outcome) if *waiter == gone => {
                let granted = outcome.granted();
                queue.remove(place.key);
                granted
            }
            Deferred::FinishPurchase { sale, item, waiter } if *waiter == Some(gone) => {
                self.abandoned.insert((*sale, *item), place);
                *waiter = None;
                None
            }
            // The answer has left, and another effect is in its place.
            Deferred::Answer(..) | Deferred::FinishPurchase { .. } | Deferred::ReturnQuota { .. } => None,
        }
    }

    /// Assigns the answer of a purchase whose client no longer waits to `repetition`, a repetition of that purchase. Returns
    /// whether there was such a purchase.
    pub fn take_over_answer(&mut self, sale: SaleId, item: ItemId, repetition: Waiter) -> bool {
        let Some(place) = self.abandoned.remove(&(sale, item)) else { return false };
        let Some((_, Deferred::FinishPurchase { waiter, .. })) = self.queue(place.watermark).get_mut(place.key) else {
            return false;
        };
        *waiter = Some(repetition);
        self.note(repetition, place);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::chunked_vec::accesses;

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
        assert!(!waiting.is_due(Watermark::Persisted, 1));
        assert_eq!(waiting.queues[1].capacity(), 1, "the memory of a withdrawn answer is used again");
    }

    /// While the database is away, many thousand purchases wait. Each withdrawal takes the same few steps.
    #[test]
    fn a_withdrawal_takes_the_same_steps_for_any_number_of_waiters() {
        const WAITERS: u64 = 16_000;
        let mut waiting = Waiting::default();
        let item = |ticket| ItemId(ticket as u32);
        for ticket in 0..WAITERS {
            let deferred = match ticket % 2 {
                0 => Deferred::Answer(waiter(ticket), Outcome::CodeUsed),
                _ => Deferred::FinishPurchase { sale: SALE, item: item(ticket), waiter: Some(waiter(ticket)) },
            };
            waiting.push(Watermark::Persisted, ticket, deferred);
        }
        for ticket in (0..WAITERS).step_by(7) {
            let steps = accesses(|| _ = waiting.withdraw(waiter(ticket)));
            assert!(steps <= 8, "{steps} steps to withdraw one of {WAITERS}");
            if ticket % 2 == 1 {
                let steps = accesses(|| assert!(waiting.take_over_answer(SALE, item(ticket), waiter(ticket))));
                assert!(steps <= 8, "{steps} steps to take over one of {WAITERS} answers");
            }
        }
        let left = std::iter::from_fn(|| waiting.pop(Watermark::Persisted, WAITERS)).count() as u64;
        assert_eq!(left, WAITERS - WAITERS.div_ceil(14), "a withdrawn answer is gone, a purchase is not");
    }

    /// The answer to a client's first request has left. Its place belongs to another client, and so do the answer and the
    /// purchase there.
    #[test]
    fn a_place_that_is_used_again_is_not_taken_for_the_first() {
        let mut waiting = Waiting::default();
        let purchase = |waiter| Deferred::FinishPurchase { sale: SALE, item: ITEM, waiter };
        for other in [Deferred::Answer(waiter(2), Outcome::CodeUsed), purchase(Some(waiter(2)))] {
            waiting.push(Watermark::Persisted, 1, Deferred::Answer(waiter(1), Outcome::CodeUsed));
            assert!(waiting.pop(Watermark::Persisted, 1).is_some());
            waiting.push(Watermark::Persisted, 1, other);
            assert_eq!(waiting.withdraw(waiter(1)), None);
            assert!(!waiting.take_over_answer(SALE, ITEM, waiter(3)), "{other:?} has its client");
            assert!(waiting.pop(Watermark::Persisted, 1).is_some(), "{other:?} is still there");
        }
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
