//! A hash table that grows by linear hashing (Litwin, "Linear hashing: a new tool for file and table addressing", VLDB
//! 1980): each entry above the largest number so far adds one bucket, which takes the entries that belong there from one
//! other. So no insertion rehashes the table, and the longest one takes a few steps more than the shortest. A table that
//! doubles stalls its shard for 100 ms at some millions of entries. The caller computes the hashes.

use crate::sale::chunked_vec::ChunkedVec;

/// Index of no entry. It marks the end of a chain.
pub const NIL: u32 = u32::MAX;

/// An entry of a table, with a link.
pub trait Chained: Copy {
    /// A place without an entry.
    const FREE: Self;

    /// Returns the next entry of the bucket, or the next place without an entry.
    fn next(&self) -> u32;

    /// Sets the link.
    fn set_next(&mut self, next: u32);
}

/// A table of entries, which `hash` of the caller distributes over the buckets.
pub struct LinearTable<E> {
    /// The first entry of each bucket. There are as many buckets as there were entries at most, and at least one.
    buckets: ChunkedVec<u32>,
    /// The smallest power of two that is not less than the number of buckets, minus one.
    mask: usize,
    entries: ChunkedVec<E>,
    /// The first place without an entry.
    free: u32,
    count: usize,
}

impl<E: Chained> Default for LinearTable<E> {
    fn default() -> Self {
        let (buckets, entries) = (ChunkedVec::default(), ChunkedVec::default());
        let mut table = LinearTable { buckets, mask: 0, entries, free: NIL, count: 0 };
        table.clear();
        table
    }
}

impl<E: Chained> LinearTable<E> {
    /// Allocates memory for `entries` entries in advance, if there is less.
    pub fn allocate(&mut self, entries: usize) {
        self.buckets.allocate(entries, NIL);
        self.entries.allocate(entries, E::FREE);
    }

    /// Removes all entries, and keeps their memory. It takes the same time for any number of entries.
    pub fn clear(&mut self) {
        (self.mask, self.free, self.count) = (0, NIL, 0);
        self.entries.clear();
        self.buckets.clear();
        self.buckets.push(NIL);
    }

    /// Returns the number of entries.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns all places, also those without an entry.
    pub fn places(&self) -> impl Iterator<Item = &E> {
        (0..self.entries.len()).map(|at| &self.entries[at])
    }

    /// Returns the first entry with this hash that `is_it` accepts. The latest one comes first.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(&E) -> bool) -> Option<&E> {
        self.place_of(self.bucket(hash), is_it).map(|at| &self.entries[at])
    }

    /// Returns the entry with this hash that `is_it` accepts, or adds `entry`. `hash_of` returns the hash of any entry.
    #[inline]
    pub fn find_or_add(
        &mut self,
        hash: u64,
        is_it: impl Fn(&E) -> bool,
        entry: E,
        hash_of: impl Fn(&E) -> u64,
    ) -> &mut E {
        let bucket = self.bucket(hash);
        let at = self.place_of(bucket, is_it).unwrap_or_else(|| self.add_to(bucket, entry, hash_of));
        &mut self.entries[at]
    }

    /// Adds an entry. `hash_of` returns the hash of any entry.
    pub fn add(&mut self, entry: E, hash_of: impl Fn(&E) -> u64) {
        self.add_to(self.bucket(hash_of(&entry)), entry, hash_of);
    }

    /// Calls `leaves` with the entry that has this hash and that `is_it` accepts, and removes it if the result is true.
    /// Returns whether there is such an entry.
    #[inline]
    pub fn remove_if(&mut self, hash: u64, is_it: impl Fn(&E) -> bool, leaves: impl Fn(&mut E) -> bool) -> bool {
        let bucket = self.bucket(hash);
        let (mut previous, mut at) = (NIL, self.buckets[bucket]);
        while at != NIL && !is_it(&self.entries[at as usize]) {
            (previous, at) = (at, self.entries[at as usize].next());
        }
        if at == NIL {
            return false;
        }
        let entry = &mut self.entries[at as usize];
        if leaves(entry) {
            let next = entry.next();
            *entry = E::FREE;
            entry.set_next(self.free);
            (self.free, self.count) = (at, self.count - 1);
            match previous {
                NIL => self.buckets[bucket] = next,
                previous => self.entries[previous as usize].set_next(next),
            }
        }
        true
    }

    #[inline]
    fn place_of(&self, bucket: usize, is_it: impl Fn(&E) -> bool) -> Option<usize> {
        let mut at = self.buckets[bucket];
        while at != NIL {
            let entry = &self.entries[at as usize];
            if is_it(entry) {
                return Some(at as usize);
            }
            at = entry.next();
        }
        None
    }

    /// Returns the bucket of a hash: its low bits, as many as number the buckets. A bucket that is not there yet is still
    /// part of the one without its highest bit.
    #[inline]
    fn bucket(&self, hash: u64) -> usize {
        let bucket = hash as usize & self.mask;
        if bucket < self.buckets.len() { bucket } else { bucket & self.mask >> 1 }
    }

    fn add_to(&mut self, bucket: usize, mut entry: E, hash_of: impl Fn(&E) -> u64) -> usize {
        entry.set_next(self.buckets[bucket]);
        let at = match self.free {
            NIL => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
            free => {
                let at = free as usize;
                self.free = self.entries[at].next();
                self.entries[at] = entry;
                at
            }
        };
        self.buckets[bucket] = at as u32;
        self.count += 1;
        if self.count > self.buckets.len() {
            self.split(hash_of);
        }
        at
    }

    /// Adds a bucket, and moves the entries there that belong to it. All of them are in one other bucket.
    fn split(&mut self, hash_of: impl Fn(&E) -> u64) {
        let added = self.buckets.len();
        let split = added - (1 << added.ilog2());
        self.buckets.push(NIL);
        self.mask |= added;
        let mut at = std::mem::replace(&mut self.buckets[split], NIL);
        while at != NIL {
            let entry = self.entries[at as usize];
            let bucket = self.bucket(hash_of(&entry));
            let first = std::mem::replace(&mut self.buckets[bucket], at);
            self.entries[at as usize].set_next(first);
            at = entry.next();
        }
    }

    /// Returns the number of buckets, for tests.
    #[cfg(test)]
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }
}
