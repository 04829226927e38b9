//! A vector whose items are all equal at first, and which needs memory only for those that were written: its blocks get
//! their memory with the first write to one of their items. So a stock of millions of items is there at once, and needs
//! memory only for what buyers have asked for.

use std::ops::{Index, IndexMut};

/// Items of one block. Fewer in unit tests, whose stocks have a few items.
pub const BLOCK_ITEMS: usize = if cfg!(test) { 4 } else { 64 };

/// The items of a block, which are written or left from an earlier content of the vector.
#[derive(Debug)]
struct LazyBlock<T> {
    /// The content of the vector in which an item of the block was written last.
    content: u32,
    items: Option<Box<[T; BLOCK_ITEMS]>>,
}

/// A vector of which each item is equal to `unwritten` until it is written.
#[derive(Debug)]
pub struct LazyVec<T> {
    unwritten: T,
    len: usize,
    /// Number of the present content: each reset begins a new one.
    content: u32,
    /// At least those of `len` items.
    blocks: Vec<LazyBlock<T>>,
}

impl<T: Copy> LazyVec<T> {
    /// Creates a vector without items.
    pub fn new(unwritten: T) -> Self {
        LazyVec { unwritten, len: 0, content: 0, blocks: Vec::new() }
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes this a vector of `len` items of which none is written. It keeps its memory, and does not look at it.
    pub fn reset(&mut self, len: usize) {
        self.len = len;
        self.content += 1;
        let blocks = len.div_ceil(BLOCK_ITEMS).max(self.blocks.len());
        self.blocks.resize_with(blocks, || LazyBlock { content: 0, items: None });
    }

    /// Allocates memory for `len` items of which none is written, if there is less.
    pub fn allocate(&mut self, len: usize) {
        self.blocks.reserve_exact(len.div_ceil(BLOCK_ITEMS).saturating_sub(self.blocks.len()));
    }
}

#[cold]
#[inline(never)]
fn fill<T: Copy>(block: &mut LazyBlock<T>, content: u32, unwritten: T) {
    block.content = content;
    block.items.get_or_insert_with(|| Box::new([unwritten; BLOCK_ITEMS])).fill(unwritten);
}

impl<T: Copy> Index<usize> for LazyVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        assert!(index < self.len, "the vector has no such item");
        match &self.blocks[index / BLOCK_ITEMS] {
            LazyBlock { content, items: Some(items) } if *content == self.content => &items[index % BLOCK_ITEMS],
            _ => &self.unwritten,
        }
    }
}

impl<T: Copy> IndexMut<usize> for LazyVec<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        assert!(index < self.len, "the vector has no such item");
        let block = &mut self.blocks[index / BLOCK_ITEMS];
        if block.content != self.content {
            fill(block, self.content, self.unwritten);
        }
        &mut block.items.as_mut().expect("a block of this content has items")[index % BLOCK_ITEMS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of items for which there is memory.
    fn room<T>(of: &LazyVec<T>) -> usize {
        of.blocks.iter().filter(|block| block.items.is_some()).count() * BLOCK_ITEMS
    }

    #[test]
    fn only_what_was_written_has_memory() {
        let mut numbers = LazyVec::new(7);
        assert!(numbers.is_empty());
        numbers.reset(1_000_000);
        assert_eq!((numbers[999_999], numbers.len(), room(&numbers)), (7, 1_000_000, 0));
        numbers[999_999] = 8;
        numbers[BLOCK_ITEMS] = 9;
        assert_eq!([BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1, 999_999].map(|at| numbers[at]), [7, 9, 7, 8]);
        assert_eq!(room(&numbers), 2 * BLOCK_ITEMS);
    }

    #[test]
    fn memory_is_used_again_and_forgets_what_it_had() {
        let mut numbers = LazyVec::new(7);
        for len in [3 * BLOCK_ITEMS, BLOCK_ITEMS, 2 * BLOCK_ITEMS, 3 * BLOCK_ITEMS] {
            numbers.reset(len);
            assert!((0..len).all(|at| numbers[at] == 7), "{len} items");
            numbers[0] = 1;
            assert_eq!([numbers[0], numbers[1]], [1, 7]);
            (0..len).for_each(|at| numbers[at] = at);
            assert!((0..len).all(|at| numbers[at] == at));
            assert_eq!(room(&numbers), 3 * BLOCK_ITEMS);
        }
    }

    #[test]
    #[should_panic(expected = "no such item")]
    fn no_item_is_beyond_the_last_one() {
        let mut numbers = LazyVec::new(7);
        numbers.reset(1);
        numbers[1] = 8;
    }
}
