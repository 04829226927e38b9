//! Blocks: what a log is written in, 4 KiB each, never rewritten.
//!
//! ```text
//! offset  0  u32  magic "STMP"
//!         4  u8   format version
//!         5  u8   log: 1 purchases, 2 attempts
//!         6  u8   records in this block, 0..=63
//!         7  u8   1 if this block seals its stream, else 0
//!         8  u16  shard
//!        10  u16  0
//!        12  u32  epoch
//!        16  [16] cluster id
//!        32  u64  number of this block in its stream, from 0
//!        40  u64  records in the stream before this block
//!        48  u64  records known to be flushed when this block was written
//!        56  u32  checksum of the block before (0 for block 0)
//!        60  u32  checksum: CRC-32C of the block without these four bytes
//!        64       records, then zeros
//! ```
//!
//! Together the fields catch a torn, stale, swapped, misplaced or foreign block, and the count of flushed
//! records lets a later block prove that an earlier one was once durable.

use crate::sale::record::{BLOCK_RECORDS, RECORD_BYTES, field};
use std::fmt;
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

/// Bytes of one block.
pub const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
const _: () = assert!(HEADER_BYTES + BLOCK_RECORDS * RECORD_BYTES == BLOCK_BYTES);

/// No stream has as many blocks or records, so what claims to is not genuine, and all the others can be added up.
pub const COUNT_MAX: u64 = 1 << 62;

/// The format this version writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"STMP");

/// Which of a shard's two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum LogKind {
    /// Everything the rules need: checkouts granted, releases, purchases.
    Purchases,
    /// Refused checkouts: recorded, never waited for, the first to give way.
    Attempts,
}

impl LogKind {
    /// As in file names and log lines.
    pub fn name(self) -> &'static str {
        self.into()
    }

    fn tag(self) -> u8 {
        match self {
            LogKind::Purchases => 1,
            LogKind::Attempts => 2,
        }
    }
}

/// Names one log of one shard in one run of an installation. Ordered by log, run, shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Which of the shard's logs.
    pub log: LogKind,
    /// Which run: raised at each start.
    pub epoch: u32,
    /// Which shard of that run.
    pub shard: u16,
}

impl StreamKey {
    /// Returns the stream with this key in installation `cluster`.
    pub fn of_cluster(self, cluster: Uuid) -> StreamId {
        let StreamKey { log, epoch, shard } = self;
        StreamId { cluster, epoch, shard, log }
    }
}

/// One log of one shard in one run of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    /// Which installation.
    pub cluster: Uuid,
    /// Which run: raised at each start.
    pub epoch: u32,
    /// Which shard of that run.
    pub shard: u16,
    /// Which of its logs.
    pub log: LogKind,
}

/// As in log lines.
impl StreamId {
    /// Returns the key of the stream in its installation.
    pub fn key(&self) -> StreamKey {
        StreamKey { log: self.log, epoch: self.epoch, shard: self.shard }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of epoch {}, shard {}", self.log.name(), self.epoch, self.shard)
    }
}

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Records in this block.
    pub records: u8,
    /// Nothing follows in this stream: recovery wrote this block after its end.
    pub seals: bool,
    /// Number of this block in its stream.
    pub number: u64,
    /// Records in the stream before this block.
    pub records_before: u64,
    /// Records known to be flushed when this block was written.
    pub flushed: u64,
    /// Checksum of the block before.
    pub previous_checksum: u32,
}

/// Writes the header and the checksum of a block whose records are already in place, and whose other
/// bytes are zero. Returns the checksum, for the next block.
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

/// The writing end of a stream: what its next block says of those before it.
pub struct Chain {
    stream: StreamId,
    next_block: u64,
    records: u64,
    checksum: u32,
}

impl Chain {
    /// At the beginning of `stream`.
    pub fn new(stream: StreamId) -> Chain {
        Chain { stream, next_block: 0, records: 0, checksum: 0 }
    }

    /// Records in the stream so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Blocks in the stream so far.
    pub fn blocks(&self) -> u64 {
        self.next_block
    }

    /// Checksum of the last block.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Writes encoded records into zeroed blocks, just as many as they need. `flushed` of the stream are durable.
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

/// Where the records of a block go, `BLOCK_RECORDS` of them.
pub fn records_mut(block: &mut [u8]) -> &mut [u8] {
    &mut block[HEADER_BYTES..]
}

/// The first `count` records of a block.
pub fn records(block: &[u8], count: u8) -> impl Iterator<Item = &[u8; RECORD_BYTES]> {
    let bytes = &block[HEADER_BYTES..HEADER_BYTES + usize::from(count) * RECORD_BYTES];
    bytes.as_chunks().0.iter()
}

/// Reads the header of a whole and genuine block of `stream`, and its checksum. `None` for anything else.
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

/// Whether this is a whole block, of whichever stream. No torn write makes one.
pub fn is_whole(block: &[u8]) -> bool {
    version(block).is_some() && checksum(block) == u32::from_le_bytes(field(block, 60))
}

/// The format version of a block that has the right magic, whoever wrote it.
pub fn version(block: &[u8]) -> Option<u8> {
    (block.len() == BLOCK_BYTES && block[0..4] == MAGIC.to_le_bytes()).then(|| block[4])
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..60]), &block[64..])
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
