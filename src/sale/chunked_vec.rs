//! A vector in chunks. It grows without moving what it has, so that no push takes longer than filling one chunk: a
//! vector that doubles would stall its shard for milliseconds during a rush.

use std::ops::{Index, IndexMut};

/// Items of one chunk. Fewer in unit tests: the simulator creates hundreds of thousands of shards with a few items.
pub const CHUNK_ITEMS: usize = if cfg!(test) { 64 } else { 1024 };

/// A vector that grows by [`CHUNK_ITEMS`] items at a time.
#[derive(Debug)]
pub struct ChunkedVec<T> {
    chunks: Vec<Box<[T; CHUNK_ITEMS]>>,
    len: usize,
}

impl<T> Default for ChunkedVec<T> {
    fn default() -> Self {
        ChunkedVec { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Copy> ChunkedVec<T> {
    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item at the end.
    pub fn push(&mut self, item: T) {
        if self.len == self.chunks.len() * CHUNK_ITEMS {
            self.allocate(self.len + 1, item);
        }
        self.chunks[self.len / CHUNK_ITEMS][self.len % CHUNK_ITEMS] = item;
        self.len += 1;
    }

    /// Allocates the memory of `items` items, if there is less, and fills it with `filler`, so that pushes up to that
    /// length allocate nothing and the kernel has provided the memory.
    pub fn allocate(&mut self, items: usize, filler: T) {
        while self.chunks.len() * CHUNK_ITEMS < items {
            let chunk = vec![filler; CHUNK_ITEMS].try_into();
            self.chunks.push(chunk.unwrap_or_else(|_| unreachable!("the vector has the length of a chunk")));
        }
    }

    /// Removes all items, and keeps their memory. It takes the same time for any number of items.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Returns the item at `index`, if there is one.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        (index < self.len).then(|| &self[index])
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        #[cfg(test)]
        ACCESSES.set(ACCESSES.get() + 1);
        debug_assert!(index < self.len);
        &self.chunks[index / CHUNK_ITEMS][index % CHUNK_ITEMS]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        #[cfg(test)]
        ACCESSES.set(ACCESSES.get() + 1);
        debug_assert!(index < self.len);
        &mut self.chunks[index / CHUNK_ITEMS][index % CHUNK_ITEMS]
    }
}

#[cfg(test)]
thread_local! {
    /// Number of accesses to items of all vectors on this thread, for tests that bound the steps of an operation.
    pub static ACCESSES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Returns the number of accesses to items while `work` runs.
#[cfg(test)]
pub fn accesses(work: impl FnOnce()) -> u64 {
    let before = ACCESSES.get();
    work();
    ACCESSES.get() - before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_are_and_memory_is_used_again() {
        let mut numbers = ChunkedVec::default();
        numbers.push(0);
        let first: *const usize = &numbers[0];
        (1..5 * CHUNK_ITEMS).for_each(|number| numbers.push(number));
        assert!((0..5 * CHUNK_ITEMS).all(|number| numbers[number] == number));
        assert_eq!((numbers.get(5 * CHUNK_ITEMS), numbers.len()), (None, 5 * CHUNK_ITEMS));
        numbers.clear();
        assert_eq!((numbers.get(0), numbers.is_empty(), numbers.chunks.len()), (None, true, 5));
        numbers.push(7);
        assert_eq!((&raw const numbers[0], numbers[0], numbers.chunks.len()), (first, 7, 5));
    }
}
