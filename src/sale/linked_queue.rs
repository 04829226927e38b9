//! A queue whose entries have keys, by which they are found and removed from any place. Every operation takes the same
//! time for any length.

use crate::sale::chunked_vec::ChunkedVec;

/// Key of no entry. It marks the ends of the queue and of the list of free nodes.
const NIL: u32 = u32::MAX;

/// An entry, or a free node.
#[derive(Clone, Copy, Debug)]
struct Node<T> {
    /// `None` in a free node.
    entry: Option<T>,
    previous: u32,
    /// The next entry, or the next free node.
    next: u32,
}

/// A queue of entries with keys. Memory of removed entries is used again, and not given back: at most as much as the
/// longest queue needed.
#[derive(Debug)]
pub struct LinkedQueue<T> {
    nodes: ChunkedVec<Node<T>>,
    first: u32,
    last: u32,
    free: u32,
}

impl<T> Default for LinkedQueue<T> {
    fn default() -> Self {
        LinkedQueue { nodes: ChunkedVec::default(), first: NIL, last: NIL, free: NIL }
    }
}

impl<T: Copy> LinkedQueue<T> {
    /// Adds an entry at the end, and returns its key. A key becomes the key of another entry after the removal of its
    /// entry.
    pub fn push(&mut self, entry: T) -> u32 {
        let node = Node { entry: Some(entry), previous: self.last, next: NIL };
        let key = match self.free {
            NIL => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            key => {
                self.free = self.nodes[key as usize].next;
                self.nodes[key as usize] = node;
                key
            }
        };
        *self.link_after(self.last) = key;
        self.last = key;
        key
    }

    /// Returns the first entry.
    pub fn first(&self) -> Option<&T> {
        self.nodes.get(self.first as usize)?.entry.as_ref()
    }

    /// Returns the entry with this key.
    pub fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.nodes.get(key as usize)?;
        self.nodes[key as usize].entry.as_mut()
    }

    /// Removes and returns the first entry.
    pub fn pop(&mut self) -> Option<T> {
        self.remove(self.first)
    }

    /// Removes and returns the entry with this key.
    pub fn remove(&mut self, key: u32) -> Option<T> {
        self.nodes.get(key as usize)?;
        let node = &mut self.nodes[key as usize];
        let entry = node.entry.take()?;
        let (previous, next) = (node.previous, std::mem::replace(&mut node.next, self.free));
        self.free = key;
        *self.link_after(previous) = next;
        *self.link_before(next) = previous;
        Some(entry)
    }

    fn link_after(&mut self, key: u32) -> &mut u32 {
        if key == NIL { &mut self.first } else { &mut self.nodes[key as usize].next }
    }

    fn link_before(&mut self, key: u32) -> &mut u32 {
        if key == NIL { &mut self.last } else { &mut self.nodes[key as usize].previous }
    }

    /// Returns the number of entries for which the queue has memory.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The queue behaves like a plain list, whichever entries are removed.
        #[test]
        fn it_is_a_list(steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..200)) {
            let mut queue = LinkedQueue::default();
            let mut list: Vec<(u32, usize)> = Vec::new();
            let mut longest = 0;
            for (number, (kind, which)) in steps.into_iter().enumerate() {
                match kind {
                    0 | 1 => list.push((queue.push(number), number)),
                    2 => prop_assert_eq!(queue.pop(), (!list.is_empty()).then(|| list.remove(0).1)),
                    _ if list.is_empty() => prop_assert_eq!(queue.remove(0), None),
                    _ => {
                        let (key, entry) = list.remove(which.index(list.len()));
                        prop_assert_eq!(queue.get_mut(key).copied(), Some(entry));
                        prop_assert_eq!((queue.remove(key), queue.remove(key)), (Some(entry), None));
                    }
                }
                longest = longest.max(list.len());
                prop_assert_eq!(queue.first().copied(), list.first().map(|(_, entry)| *entry));
                prop_assert_eq!(queue.capacity(), longest);
            }
            let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
            prop_assert_eq!(rest, list.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>());
        }
    }
}
