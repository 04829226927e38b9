//! What waits for the log: answers, sales, quotas to be given back. Each for a record to be flushed, or for its
//! transaction in Postgres.

use crate::sale::command::Outcome;
use crate::sale::ids::{ItemId, SaleId, Seq, ShardId, Ticket, UserId};
use std::collections::VecDeque;

/// How far a record must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    /// On this machine's disk.
    Flushed,
    /// In Postgres.
    Persisted,
}

/// A client's request, and the shard that has the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The shard.
    pub origin: ShardId,
    /// Its ticket.
    pub ticket: Ticket,
}

/// What happens when the record has come that far.
#[derive(Debug)]
pub enum Deferred {
    /// Tell the client.
    Answer(Waiter, Outcome),
    /// The item is sold. Tell the client, if there still is one.
    Sell {
        /// In which sale.
        sale: SaleId,
        /// Which item.
        item: ItemId,
        /// Who is told.
        waiter: Option<Waiter>,
    },
    /// The quota can be used again.
    GiveBack {
        /// In which sale.
        sale: SaleId,
        /// Whose.
        user: UserId,
    },
}

/// Everything that waits, by watermark, in the order of the log.
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

    /// Waits for record `seq`, which is not before any that something else waits for.
    pub fn push(&mut self, watermark: Watermark, seq: Seq, deferred: Deferred) {
        self.queue(watermark).push_back((seq, deferred));
    }

    /// What waits no longer, now that `reached` has come that far; one at a time.
    pub fn pop(&mut self, watermark: Watermark, reached: Seq) -> Option<Deferred> {
        self.queue(watermark).pop_front_if(|(needs, _)| *needs <= reached).map(|(_, deferred)| deferred)
    }

    /// The client is gone: nobody is told, and somebody else may inherit.
    pub fn withdraw(&mut self, gone: Waiter) {
        for queue in [&mut self.flush, &mut self.persist] {
            queue.retain_mut(|(_, deferred)| match deferred {
                Deferred::Answer(waiter, _) => *waiter != gone,
                Deferred::Sell { waiter, .. } => {
                    waiter.take_if(|waiter| *waiter == gone);
                    true
                }
                Deferred::GiveBack { .. } => true,
            });
        }
    }

    /// Lets a repeated purchase be told in the place of one whose client is gone. Returns whether there was one.
    pub fn inherit(&mut self, sale: SaleId, item: ItemId, heir: Waiter) -> bool {
        for (_, deferred) in self.flush.iter_mut().chain(&mut self.persist) {
            if let Deferred::Sell { sale: of, item: what, waiter: waiter @ None } = deferred
                && (*of, *what) == (sale, item)
            {
                *waiter = Some(heir);
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

    fn told(waiting: &mut Waiting) -> Option<Waiter> {
        match waiting.pop(Watermark::Persisted, 1) {
            Some(Deferred::Sell { waiter, .. }) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_heir_takes_the_place_of_who_is_gone() {
        let mut waiting = Waiting::default();
        waiting.push(Watermark::Persisted, 1, Deferred::Sell { sale: SALE, item: ITEM, waiter: Some(waiter(1)) });
        assert!(!waiting.inherit(SALE, ITEM, waiter(2)), "the first is still there");
        waiting.withdraw(waiter(1));
        assert!(waiting.inherit(SALE, ITEM, waiter(2)));
        assert!(!waiting.inherit(SALE, ITEM, waiter(3)), "one answer, one buyer");
        assert!(waiting.pop(Watermark::Persisted, 0).is_none());
        assert_eq!(told(&mut waiting), Some(waiter(2)));
    }

    #[test]
    fn who_is_gone_leaves_nothing_behind() {
        let mut waiting = Waiting::default();
        for ticket in 0..1000 {
            waiting.push(Watermark::Persisted, 1, Deferred::Answer(waiter(ticket), Outcome::CodeUsed));
            waiting.withdraw(waiter(ticket));
        }
        assert!(waiting.persist.is_empty());
    }

    #[test]
    fn nobody_is_told_if_nobody_is_there() {
        let mut waiting = Waiting::default();
        waiting.push(Watermark::Persisted, 1, Deferred::Sell { sale: SALE, item: ITEM, waiter: Some(waiter(1)) });
        waiting.withdraw(waiter(1));
        assert!(waiting.pop(Watermark::Flushed, 9).is_none(), "flushed is not persisted");
        assert_eq!(told(&mut waiting), None);
    }
}
