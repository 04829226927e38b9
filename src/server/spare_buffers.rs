//! Buffers of answers that are kept for the next answers, so that a busy shard does not allocate. Their number and
//! their size are bounded, and buffers that are not needed any more are freed.

/// Buffers kept at most.
const SPARE_BUFFERS_MAX: usize = 1024;
/// Bytes of all kept buffers at most.
const SPARE_BYTES_MAX: usize = 1 << 20;
/// Buffers freed at most by one call of [`SpareBuffers::trim`].
const TRIMMED_MAX: usize = 256;

/// The kept buffers of one shard. All are empty.
#[derive(Debug, Default)]
pub struct SpareBuffers {
    buffers: Vec<Vec<u8>>,
    /// Sum of their capacities.
    bytes: usize,
    /// The smallest number of buffers since the last call of `trim`: so many were not needed.
    unneeded: usize,
}

impl SpareBuffers {
    /// Returns a kept buffer, or one without allocated memory.
    pub fn take(&mut self) -> Vec<u8> {
        let Some(buffer) = self.buffers.pop() else { return Vec::new() };
        self.bytes -= buffer.capacity();
        self.unneeded = self.unneeded.min(self.buffers.len());
        buffer
    }

    /// Keeps a buffer, unless there are enough.
    pub fn put(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if bytes > 0 && self.buffers.len() < SPARE_BUFFERS_MAX && self.bytes + bytes <= SPARE_BYTES_MAX {
            buffer.clear();
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }

    /// Frees buffers that were not needed since the last call, and all other memory when none is left.
    pub fn trim(&mut self) {
        for buffer in self.buffers.drain(..self.unneeded.min(TRIMMED_MAX)) {
            self.bytes -= buffer.capacity();
        }
        if self.buffers.is_empty() {
            self.buffers = Vec::new();
        }
        self.unneeded = self.buffers.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_bytes_are_bounded() {
        let mut spare = SpareBuffers::default();
        (0..2 * SPARE_BUFFERS_MAX).for_each(|_| spare.put(Vec::with_capacity(64)));
        assert_eq!(spare.buffers.len(), SPARE_BUFFERS_MAX);
        let mut spare = SpareBuffers::default();
        (0..1000).for_each(|_| spare.put(vec![1; 16 * 1024]));
        assert_eq!((spare.bytes, spare.buffers.len()), (SPARE_BYTES_MAX, 64));
        spare.put(Vec::with_capacity(1));
        spare.put(Vec::new());
        assert_eq!(spare.buffers.len(), 64);
        let buffer = spare.take();
        assert!(buffer.is_empty() && buffer.capacity() == 16 * 1024);
        assert_eq!(spare.bytes, SPARE_BYTES_MAX - 16 * 1024);
    }

    #[test]
    fn buffers_in_use_stay_and_others_are_freed() {
        let mut spare = SpareBuffers::default();
        (0..600).for_each(|_| spare.put(Vec::with_capacity(64)));
        spare.trim();
        assert_eq!(spare.buffers.len(), 600, "they are new");
        for _ in 0..10 {
            let taken: Vec<_> = (0..100).map(|_| spare.take()).collect();
            taken.into_iter().for_each(|buffer| spare.put(buffer));
            let before = spare.buffers.len();
            spare.trim();
            assert!(before - spare.buffers.len() <= TRIMMED_MAX);
        }
        assert_eq!(spare.buffers.len(), 100);
        spare.trim();
        assert_eq!((spare.buffers.len(), spare.buffers.capacity(), spare.bytes), (0, 0, 0));
        assert_eq!(spare.take().capacity(), 0);
    }
}
