//! Queues of slots: doubly linked lists through the slots of a stock, so that a slot is added, found and removed without
//! an allocation or a search. A stock has two, its holds and its free items. A slot is in one of them at most, so one
//! pair of links is enough for both.
//!
//! Links are distances. So adjacent slots that no queue has moved all have the same links, and a queue of millions of them
//! is there without a write to any.

use std::ops::Range;

/// Index of no slot. It stands for the ends of an empty queue.
const NIL: u32 = u32::MAX;

/// The distances from a slot to its neighbours in its queue. They have a meaning only while the slot is in a queue and has
/// such a neighbour.
#[derive(Clone, Copy)]
pub struct Links {
    previous: i32,
    next: i32,
}

impl Links {
    /// The links of a slot whose neighbours are those beside it.
    pub const ADJACENT: Links = Links { previous: -1, next: 1 };
}

/// Slots with links.
pub trait Linked {
    /// Returns the links of a slot.
    fn links(&mut self, slot: u32) -> &mut Links;
}

/// A queue of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotQueue {
    first: u32,
    last: u32,
}

impl Default for SlotQueue {
    fn default() -> Self {
        SlotQueue::EMPTY
    }
}

impl SlotQueue {
    /// A queue without slots.
    pub const EMPTY: SlotQueue = SlotQueue { first: NIL, last: NIL };

    /// Creates a queue of adjacent slots, whose links are [`Links::ADJACENT`], in their order.
    pub fn of(slots: Range<u32>) -> Self {
        if slots.is_empty() { SlotQueue::EMPTY } else { SlotQueue { first: slots.start, last: slots.end - 1 } }
    }

    /// Returns the first slot, if there is one.
    pub fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// Returns the last slot, if there is one.
    pub fn last(&self) -> Option<u32> {
        (self.last != NIL).then_some(self.last)
    }

    /// Adds a slot that is in no queue at the end.
    pub fn push(&mut self, slots: &mut impl Linked, slot: u32) {
        match self.last {
            NIL => self.first = slot,
            last => link(slots, last, slot),
        }
        self.last = slot;
    }

    /// Removes a slot of this queue.
    pub fn remove(&mut self, slots: &mut impl Linked, slot: u32) {
        let Links { previous, next } = *slots.links(slot);
        let (previous, next) = (slot.wrapping_add_signed(previous), slot.wrapping_add_signed(next));
        match (self.first == slot, self.last == slot) {
            (true, true) => *self = SlotQueue::EMPTY,
            (true, false) => self.first = next,
            (false, true) => self.last = previous,
            (false, false) => link(slots, previous, next),
        }
    }

    /// Returns the slots of the queue in order, for tests. `at` returns the links of a slot.
    #[cfg(test)]
    pub fn walk(&self, at: impl Fn(u32) -> Links) -> Vec<u32> {
        let mut walked: Vec<u32> = self.first().into_iter().collect();
        while let Some(&slot) = walked.last().filter(|slot| **slot != self.last) {
            let next = slot.wrapping_add_signed(at(slot).next);
            assert_eq!(next.wrapping_add_signed(at(next).previous), slot, "slot {next} has a wrong link back");
            walked.push(next);
        }
        assert_eq!(walked.is_empty(), self.last == NIL, "the queue has a wrong end");
        walked
    }
}

/// Makes two slots neighbours. Slots are numbered with 24 bits.
fn link(slots: &mut impl Linked, slot: u32, next: u32) {
    let distance = next.wrapping_sub(slot) as i32;
    slots.links(slot).next = distance;
    slots.links(next).previous = -distance;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Places([Links; 8]);

    impl Linked for Places {
        fn links(&mut self, slot: u32) -> &mut Links {
            &mut self.0[slot as usize]
        }
    }

    proptest! {
        /// A queue does what a list does, whichever slots it has at first and whichever are removed.
        #[test]
        fn a_queue_is_a_list(at_first in 0u32..8, steps in prop::collection::vec(0u32..8, 0..60)) {
            let mut queue = SlotQueue::of(0..at_first);
            let (mut places, mut list) = (Places([Links::ADJACENT; 8]), Vec::from_iter(0..at_first));
            for slot in steps {
                if let Some(at) = list.iter().position(|known| *known == slot) {
                    list.remove(at);
                    queue.remove(&mut places, slot);
                } else {
                    list.push(slot);
                    queue.push(&mut places, slot);
                }
                prop_assert_eq!(queue.walk(|slot| places.0[slot as usize]), list.clone());
                prop_assert_eq!((queue.first(), queue.last()), (list.first().copied(), list.last().copied()));
            }
        }
    }
}
