//! A vector whose items are all equal at first, and which needs memory only for those that were written: its blocks get
//! their memory with the first write to one of their items. So a stock of millions of items is there at once, and costs
//! what buyers have touched of it.

use std::ops::{Index, IndexMut};

/// Items of one block: those of a stock fill a page of memory. Fewer in unit tests, whose stocks have a few items.
pub const BLOCK_ITEMS: usize = if cfg!(test) { 4 } else { 64 };

type Block<T> = Box<[T; BLOCK_ITEMS]>;

/// A vector of which each item is equal to `unwritten` until it is written.
#[derive(Debug)]
pub struct LazyVec<T> {
    unwritten: T,
    len: usize,
    /// `None` if no item of the block was written.
    blocks: Vec<Option<Block<T>>>,
    /// Blocks that had items once, whose memory is used again.
    spare: Vec<Block<T>>,
}

impl<T: Copy> LazyVec<T> {
    /// Creates a vector without items.
    pub fn new(unwritten: T) -> Self {
        LazyVec { unwritten, len: 0, blocks: Vec::new(), spare: Vec::new() }
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes this a vector of `len` items of which none is written. It keeps its memory.
    pub fn reset(&mut self, len: usize) {
        self.spare.extend(self.blocks.iter_mut().filter_map(Option::take));
        self.len = len;
        self.blocks.clear();
        self.blocks.resize_with(len.div_ceil(BLOCK_ITEMS), || None);
    }

    /// Allocates memory for `len` items of which none is written, if there is less.
    pub fn allocate(&mut self, len: usize) {
        self.blocks.reserve_exact(len.div_ceil(BLOCK_ITEMS).saturating_sub(self.blocks.len()));
    }

    /// Gives the blocks that no items have to `other`.
    pub fn give_spare_to(&mut self, other: &mut Self) {
        other.spare.append(&mut self.spare);
    }

    /// Returns the number of items for which there is memory.
    #[cfg(test)]
    fn room(&self) -> usize {
        (self.blocks.iter().flatten().count() + self.spare.len()) * BLOCK_ITEMS
    }
}

#[cold]
#[inline(never)]
fn new_block<T: Copy>(spare: &mut Vec<Block<T>>, unwritten: T) -> Block<T> {
    let Some(mut block) = spare.pop() else { return Box::new([unwritten; BLOCK_ITEMS]) };
    block.fill(unwritten);
    block
}

impl<T: Copy> Index<usize> for LazyVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        debug_assert!(index < self.len);
        match &self.blocks[index / BLOCK_ITEMS] {
            Some(block) => &block[index % BLOCK_ITEMS],
            None => &self.unwritten,
        }
    }
}

impl<T: Copy> IndexMut<usize> for LazyVec<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        debug_assert!(index < self.len);
        let block = &mut self.blocks[index / BLOCK_ITEMS];
        &mut block.get_or_insert_with(|| new_block(&mut self.spare, self.unwritten))[index % BLOCK_ITEMS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_has_memory() {
        let mut numbers = LazyVec::new(7);
        assert!(numbers.is_empty());
        numbers.reset(1_000_000);
        assert_eq!((numbers[999_999], numbers.len(), numbers.room()), (7, 1_000_000, 0));
        numbers[999_999] = 8;
        numbers[BLOCK_ITEMS] = 9;
        assert_eq!([BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1, 999_999].map(|at| numbers[at]), [7, 9, 7, 8]);
        assert_eq!(numbers.room(), 2 * BLOCK_ITEMS);
    }

    #[test]
    fn memory_is_used_again_and_forgets_what_it_had() {
        let mut numbers = LazyVec::new(7);
        numbers.reset(3 * BLOCK_ITEMS);
        (0..3 * BLOCK_ITEMS).for_each(|at| numbers[at] = at);
        numbers.reset(2 * BLOCK_ITEMS);
        assert!((0..2 * BLOCK_ITEMS).all(|at| numbers[at] == 7));
        numbers[0] = 1;
        assert_eq!([numbers[0], numbers[1], numbers.room()], [1, 7, 3 * BLOCK_ITEMS]);

        let mut next = LazyVec::new(7);
        next.reset(BLOCK_ITEMS);
        numbers.give_spare_to(&mut next);
        next[1] = 2;
        assert_eq!([numbers.room(), next.room()], [BLOCK_ITEMS, 2 * BLOCK_ITEMS]);
        assert_eq!([next[0], next[1]], [7, 2]);
    }
}
