//! Streams on disk for unit tests: segments of four blocks, with one record in each block. Only tests use this file.

use crate::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId};
use crate::log::segment::SegmentName;
use crate::log::stream::{End, Ending};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Terms, UserId};
use crate::sale::record::{LogEvent, Record};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use uuid::Uuid;

/// A purchase stream.
pub const PURCHASES: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log: LogKind::Purchases };
/// The attempt stream of the same shard and run.
pub const ATTEMPTS: StreamId = StreamId { log: LogKind::Attempts, ..PURCHASES };
/// Number of blocks in a segment.
pub const SEGMENT_BLOCKS: u64 = 4;

/// A stream in a directory of its own.
pub struct SampleStream {
    /// The directory of the segments.
    pub dir: tempfile::TempDir,
    id: StreamId,
    chain: Chain,
}

impl SampleStream {
    /// Creates a stream with this number of blocks. Each block is a flush of its own.
    pub fn new(id: StreamId, blocks: usize) -> SampleStream {
        let mut stream = SampleStream { dir: tempfile::tempdir().unwrap(), id, chain: Chain::new(id) };
        stream.write(blocks);
        stream
    }

    /// Returns the name of the segment with this block.
    pub fn name(stream: StreamId, number: u64) -> SegmentName {
        SegmentName { stream, first_block: number / SEGMENT_BLOCKS * SEGMENT_BLOCKS, blocks: SEGMENT_BLOCKS as u32 }
    }

    /// Returns the names of all segments.
    pub fn names(&self) -> Vec<SegmentName> {
        SegmentName::list(self.logs(), self.id.cluster).unwrap()
    }

    /// Writes more blocks, each with a checkout.
    pub fn write(&mut self, blocks: usize) {
        for _ in 0..blocks {
            let (item, user, unix_ms) = (ItemId(1), UserId(1), self.chain.blocks());
            let event = LogEvent::Checkout { item, user, code: Code::NONE, ttl_ms: 1, key: Uuid::nil() };
            self.add(&Record { sale: SaleId(1), unix_ms, event });
        }
    }

    /// Writes a block that opens a sale.
    pub fn open(&mut self, sale: u32) {
        let event = LogEvent::SaleOpened { items: 2, user_limit: 1, times: None, products: Terms::NO_PRODUCTS };
        self.add(&Record { sale: SaleId(sale), unix_ms: 0, event });
    }

    fn add(&mut self, record: &Record) {
        let (number, flushed, mut bytes) = (self.chain.blocks(), self.chain.records(), vec![0; BLOCK_BYTES]);
        self.chain.extend(&mut bytes, &record.encode(), flushed);
        self.put(number, &bytes);
    }

    /// Writes the seal and cuts the file after it.
    pub fn seal(&mut self) {
        let (blocks, records, checksum) = (self.chain.blocks(), self.chain.records(), self.chain.checksum());
        let end = End { ending: Ending::Clean, blocks, records, checksum };
        self.put(blocks, &end.seal(&self.id));
        self.file(blocks).set_len((blocks % SEGMENT_BLOCKS + 1) * BLOCK_BYTES as u64).unwrap();
    }

    fn put(&self, number: u64, bytes: &[u8]) {
        if number.is_multiple_of(SEGMENT_BLOCKS) {
            self.make(number);
        }
        self.file(number).write_all_at(bytes, number % SEGMENT_BLOCKS * BLOCK_BYTES as u64).unwrap();
    }

    /// Creates the segment with this block, full of zeros.
    pub fn make(&self, number: u64) {
        fs::write(self.path(number), vec![0; SEGMENT_BLOCKS as usize * BLOCK_BYTES]).unwrap();
    }

    /// Flips a bit of a block.
    pub fn spoil(&self, number: u64) {
        let (file, offset) = (self.file(number), number % SEGMENT_BLOCKS * BLOCK_BYTES as u64 + 100);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    /// Removes the segment with this block.
    pub fn remove(&self, number: u64) {
        fs::remove_file(self.path(number)).unwrap();
    }

    /// Returns the directory of the segments.
    pub fn logs(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, number: u64) -> std::path::PathBuf {
        Self::name(self.id, number).path(self.dir.path())
    }

    fn file(&self, number: u64) -> File {
        File::options().read(true).write(true).open(self.path(number)).unwrap()
    }
}
