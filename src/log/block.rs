//! Blocks: the units of 4 KiB in which a log is written. A block is written once and never rewritten.
//!
//! This file has the byte layout, the checksum and the chain of blocks. Files are in `segment`, and the rules for bad
//! blocks are in `stream`. All integers are little-endian.
//!
//! ```text
//! offset  0  u32  magic "STMP"
//!         4  u8   format version
//!         5  u8   log: 1 purchases, 2 attempts
//!         6  u8   records in this block, 0..=63
//!         7  u8   1 if this block seals its stream, else 0
//!         8  u16  shard
//!        10  u16  0
//!        12  u32  epoch: the run
//!        16  [16] cluster id: the installation
//!        32  u64  number of this block in its stream, from 0
//!        40  u64  records in the stream before this block
//!        48  u64  records known to be flushed when this block was written
//!        56  u32  checksum of the block before (0 for block 0)
//!        60  u32  checksum: CRC-32C of the block without these four bytes
//!        64       records, then zeros
//! ```
//!
//! Together, these fields detect a torn, stale, swapped, misplaced or foreign block. The count of flushed records lets
//! a later block prove that an earlier block was durable.

use crate::sale::record::{BLOCK_RECORDS, RECORD_BYTES};
use std::fmt;
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

/// Size of one block in bytes.
pub const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
const _: () = assert!(HEADER_BYTES + BLOCK_RECORDS * RECORD_BYTES == BLOCK_BYTES);

/// Exclusive upper bound of the counts in a header. No stream reaches it, so a block with a larger count is not valid,
/// and sums of counts do not overflow.
pub const COUNT_MAX: u64 = 1 << 62;

/// Format version that this version of Stampede writes, and the only one that it reads.
pub const FORMAT_VERSION: u8 = 2;
const MAGIC: u32 = u32::from_le_bytes(*b"STMP");

/// One of the two logs of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum LogKind {
    /// Everything that the rules need: openings of sales, granted checkouts, releases, purchases.
    Purchases,
    /// Refused checkouts. No reply waits for these records, and they are dropped first.
    Attempts,
}

impl LogKind {
    /// Returns the name that is used in file names and log lines.
    pub fn name(self) -> &'static str {
        self.into()
    }

    fn tag(self) -> u8 {
        self as u8 + 1
    }
}

/// Key of a stream within its installation. Keys are ordered by log, run, shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Log of the shard.
    pub log: LogKind,
    /// Run of the server. The epoch is raised at each start.
    pub epoch: u32,
    /// Shard of that run.
    pub shard: u16,
}

impl StreamKey {
    /// Returns the stream with this key in installation `cluster`.
    pub fn of_cluster(self, cluster: Uuid) -> StreamId {
        let StreamKey { log, epoch, shard } = self;
        StreamId { cluster, epoch, shard, log }
    }
}

/// Identity of a stream: one log of one shard in one run of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    /// Installation.
    pub cluster: Uuid,
    /// Run of the server. The epoch is raised at each start.
    pub epoch: u32,
    /// Shard of that run.
    pub shard: u16,
    /// Log of the shard.
    pub log: LogKind,
}

impl StreamId {
    /// Returns the key of the stream in its installation.
    pub fn key(&self) -> StreamKey {
        StreamKey { log: self.log, epoch: self.epoch, shard: self.shard }
    }
}

/// The form that log lines and messages use.
impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of epoch {}, shard {}", self.log.name(), self.epoch, self.shard)
    }
}

/// Decoded header of a block, without the fields that identify its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Records in this block.
    pub records: u8,
    /// Whether this block is the seal, which recovery writes after the last block. No block follows a seal.
    pub seals: bool,
    /// Number of this block in its stream.
    pub number: u64,
    /// Records in the stream before this block.
    pub records_before: u64,
    /// Records known to be flushed when this block was written.
    pub flushed: u64,
    /// Checksum of the block before, 0 for block 0.
    pub previous_checksum: u32,
}

/// Writes the header and the checksum of a block whose records are already in place and whose other bytes are zero.
/// Returns the checksum, which the header of the next block repeats.
pub fn finish(block: &mut [u8], stream: &StreamId, header: &Header) -> u32 {
    assert_eq!(block.len(), BLOCK_BYTES);
    block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    block[4..8].copy_from_slice(&[FORMAT_VERSION, stream.log.tag(), header.records, u8::from(header.seals)]);
    block[8..10].copy_from_slice(&stream.shard.to_le_bytes());
    block[10..12].fill(0);
    block[12..16].copy_from_slice(&stream.epoch.to_le_bytes());
    block[16..32].copy_from_slice(stream.cluster.as_bytes());
    block[32..40].copy_from_slice(&header.number.to_le_bytes());
    block[40..48].copy_from_slice(&header.records_before.to_le_bytes());
    block[48..56].copy_from_slice(&header.flushed.to_le_bytes());
    block[56..60].copy_from_slice(&header.previous_checksum.to_le_bytes());
    let checksum = checksum(block);
    block[60..64].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Writing state of a stream: the counts and the checksum that the header of its next block needs.
pub struct Chain {
    stream: StreamId,
    next_block: u64,
    records: u64,
    checksum: u32,
}

impl Chain {
    /// Creates the chain of `stream`, which has no block yet.
    pub fn new(stream: StreamId) -> Chain {
        Chain { stream, next_block: 0, records: 0, checksum: 0 }
    }

    /// Returns the number of records in the stream so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns the number of blocks in the stream so far.
    pub fn blocks(&self) -> u64 {
        self.next_block
    }

    /// Returns the checksum of the last block, 0 if there is none.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Writes encoded records into zeroed blocks. `blocks` must have exactly the blocks that the records need.
    /// `flushed` is the number of records of the stream that are durable.
    pub fn extend(&mut self, blocks: &mut [u8], records: &[u8], flushed: u64) {
        let groups = records.chunks(BLOCK_RECORDS * RECORD_BYTES);
        assert_eq!(blocks.len(), groups.len() * BLOCK_BYTES);
        for (block, group) in blocks.chunks_mut(BLOCK_BYTES).zip(groups) {
            records_mut(block)[..group.len()].copy_from_slice(group);
            let header = Header {
                records: (group.len() / RECORD_BYTES) as u8,
                seals: false,
                number: self.next_block,
                records_before: self.records,
                flushed,
                previous_checksum: self.checksum,
            };
            self.checksum = finish(block, &self.stream, &header);
            self.next_block += 1;
            self.records += u64::from(header.records);
        }
    }
}

/// Returns the part of a block that holds its records, [`BLOCK_RECORDS`] at most.
pub fn records_mut(block: &mut [u8]) -> &mut [u8] {
    &mut block[HEADER_BYTES..]
}

/// Returns the first `count` records of a block.
pub fn records(block: &[u8], count: u8) -> impl Iterator<Item = &[u8; RECORD_BYTES]> {
    let bytes = &block[HEADER_BYTES..HEADER_BYTES + usize::from(count) * RECORD_BYTES];
    bytes.as_chunks().0.iter()
}

/// Returns the header and the checksum of a valid block of `stream`: its checksum is right, and its identity and counts
/// are possible. Returns `None` for any other bytes.
pub fn parse(block: &[u8], stream: &StreamId) -> Option<(Header, u32)> {
    if block.len() != BLOCK_BYTES {
        return None;
    }
    let sum = u32::from_le_bytes(field(block, 60));
    let genuine = u32::from_le_bytes(field(block, 0)) == MAGIC
        && block[4] == FORMAT_VERSION
        && block[5] == stream.log.tag()
        && usize::from(block[6]) <= BLOCK_RECORDS
        && block[7] <= 1
        && u16::from_le_bytes(field(block, 8)) == stream.shard
        && u32::from_le_bytes(field(block, 12)) == stream.epoch
        && field(block, 16) == *stream.cluster.as_bytes()
        && checksum(block) == sum;
    if !genuine {
        return None;
    }
    let header = Header {
        records: block[6],
        seals: block[7] == 1,
        number: u64::from_le_bytes(field(block, 32)),
        records_before: u64::from_le_bytes(field(block, 40)),
        flushed: u64::from_le_bytes(field(block, 48)),
        previous_checksum: u32::from_le_bytes(field(block, 56)),
    };
    let counts = [header.number, header.records_before, header.flushed];
    counts.iter().all(|count| *count < COUNT_MAX).then_some((header, sum))
}

/// Returns whether these bytes are a complete block of any stream. A torn write never produces a complete block.
pub fn is_whole(block: &[u8]) -> bool {
    version(block).is_some() && checksum(block) == u32::from_le_bytes(field(block, 60))
}

/// Returns the format version of a block of any stream, or `None` if the size or the magic is wrong.
pub fn version(block: &[u8]) -> Option<u8> {
    (block.len() == BLOCK_BYTES && block[0..4] == MAGIC.to_le_bytes()).then(|| block[4])
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..60]), &block[64..])
}

/// Returns the `N` bytes at `offset`.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the range has N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(7), epoch: 3, shard: 1, log: LogKind::Purchases };
    const HEADER: Header =
        Header { records: 63, seals: false, number: 9, records_before: 100, flushed: 90, previous_checksum: 5 };

    fn block() -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        records_mut(&mut block).fill(0xab);
        finish(&mut block, &STREAM, &HEADER);
        block
    }

    #[test]
    fn a_block_is_read_back() {
        let block = block();
        assert_eq!(parse(&block, &STREAM).unwrap().0, HEADER);
        assert!(records(&block, 63).all(|record| record == &[0xab; RECORD_BYTES]));
        assert_eq!(records(&block, 63).count(), 63);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut block = block();
        for bit in 0..BLOCK_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&block, &STREAM), None, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_missing_sector_is_noticed() {
        for missing in 1u32..256 {
            let mut block = block();
            for sector in (0..8).filter(|sector| missing >> sector & 1 == 1) {
                block[sector * 512..][..512].fill(0);
            }
            assert_eq!(parse(&block, &STREAM), None, "sectors {missing:08b}");
        }
    }

    #[test]
    fn a_count_that_no_stream_reaches_is_not_genuine() {
        let far = COUNT_MAX;
        for header in [
            Header { number: far, ..HEADER },
            Header { records_before: far, ..HEADER },
            Header { flushed: far, ..HEADER },
        ] {
            let mut block = block();
            finish(&mut block, &STREAM, &header);
            assert_eq!(parse(&block, &STREAM), None);
        }
    }

    #[test]
    fn a_block_of_another_stream_is_foreign() {
        let block = block();
        for stream in [
            StreamId { cluster: Uuid::from_u128(8), ..STREAM },
            StreamId { epoch: 4, ..STREAM },
            StreamId { shard: 0, ..STREAM },
            StreamId { log: LogKind::Attempts, ..STREAM },
        ] {
            assert_eq!(parse(&block, &stream), None);
            assert!(is_whole(&block));
        }
    }
}
