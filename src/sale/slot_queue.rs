//! Queues of slots: doubly linked lists through the slots of a stock, so that a slot is added, found and removed without
//! an allocation or a search. A stock has two, its holds and its free items. A slot is in one of them at most, so one
//! pair of links is enough for both.

/// Index of no slot. It marks the ends of a queue.
const NIL: u32 = u32::MAX;

/// The neighbours of a slot in its queue. They have a meaning only while the slot is in a queue.
#[derive(Clone, Copy)]
pub struct Links {
    previous: u32,
    next: u32,
}

impl Links {
    /// The links of a slot that is in no queue.
    pub const NONE: Links = Links { previous: NIL, next: NIL };
}

/// A slot with links.
pub trait Linked {
    /// Returns the links of the slot.
    fn links(&mut self) -> &mut Links;
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

    /// Returns the first slot, if there is one.
    pub fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// Returns the last slot, if there is one.
    pub fn last(&self) -> Option<u32> {
        (self.last != NIL).then_some(self.last)
    }

    /// Adds a slot that is in no queue at the end.
    pub fn push<S: Linked>(&mut self, slots: &mut [S], slot: u32) {
        *slots[slot as usize].links() = Links { previous: self.last, next: NIL };
        match self.last {
            NIL => self.first = slot,
            last => slots[last as usize].links().next = slot,
        }
        self.last = slot;
    }

    /// Removes a slot of this queue.
    pub fn remove<S: Linked>(&mut self, slots: &mut [S], slot: u32) {
        let Links { previous, next } = *slots[slot as usize].links();
        match previous {
            NIL => self.first = next,
            previous => slots[previous as usize].links().next = next,
        }
        match next {
            NIL => self.last = previous,
            next => slots[next as usize].links().previous = previous,
        }
    }

    /// Returns the slots of the queue in order, for tests. `at` returns the links of a slot.
    #[cfg(test)]
    pub fn walk(&self, at: impl Fn(u32) -> Links) -> Vec<u32> {
        let (mut walked, mut previous, mut slot) = (Vec::new(), NIL, self.first);
        while slot != NIL {
            let links = at(slot);
            assert_eq!(links.previous, previous, "slot {slot} has a wrong link back");
            walked.push(slot);
            (previous, slot) = (slot, links.next);
        }
        assert_eq!(self.last, previous, "the queue has a wrong end");
        walked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy)]
    struct Place(Links);

    impl Linked for Place {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    proptest! {
        /// A queue does what a list does, whichever slots are removed.
        #[test]
        fn a_queue_is_a_list(steps in prop::collection::vec(0u32..8, 0..60)) {
            let (mut queue, mut places, mut list) = (SlotQueue::EMPTY, [Place(Links::NONE); 8], Vec::new());
            for slot in steps {
                if let Some(at) = list.iter().position(|known| *known == slot) {
                    list.remove(at);
                    queue.remove(&mut places, slot);
                } else {
                    list.push(slot);
                    queue.push(&mut places, slot);
                }
                prop_assert_eq!(queue.walk(|slot| places[slot as usize].0), list.clone());
                prop_assert_eq!((queue.first(), queue.last()), (list.first().copied(), list.last().copied()));
            }
        }
    }
}
