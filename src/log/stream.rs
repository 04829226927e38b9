//! Reads a stream and decides where it ends and whether a durable record is missing before the end. This file works on
//! bytes in memory; `stream_files` reads the files.
//!
//! A block is the expected one if it is valid, belongs to the stream, and continues the chain: number, count of records
//! and checksum of the block before. The *bad* block is the first one that is not expected. A *proof* is a later valid
//! block that counts more records as flushed than the stream has before the bad block. The decision table:
//!
//! | bad block | proof | verdict |
//! |---|---|---|
//! | all zero, like everything after it | no | clean end |
//! | anything else | no | torn tail: no reply depended on its records, drop it |
//! | anything | yes | damage: it was durable, refuse to start |
//! | valid, but it does not continue the chain | — | damage: a torn write does not produce it |
//! | complete, but of another stream | — | damage: a torn write does not produce it |
//! | of another format version | — | damage: this version cannot read it |
//! | none, but a record is not valid | — | damage |
//! | any or none, but the file does not have its length at creation | — | damage, unless the stream is sealed |
//! | any or none, but a segment between two others is missing | — | damage, unless the stream is sealed before it |
//!
//! A block after the bad one is also damage if it is complete and of another stream, or valid and not at its place.
//! Recovery ends every stream with a seal, a block that counts all records before it as flushed. So after recovery, any
//! later damage to the stream has a proof.

use crate::log::block::{self, BLOCK_BYTES, Header, StreamId};
use crate::log::damage::Damage;
use crate::sale::record::{Record, UnknownRecord};
use serde::{Deserialize, Serialize};

/// Content of a segment, in memory.
pub struct SegmentBytes {
    /// Number of the segment's first block in the stream.
    pub first_block: u64,
    /// Number of blocks at creation. The last segment of a sealed stream has been cut after the seal.
    pub made_blocks: u64,
    /// Content of the file.
    pub bytes: Vec<u8>,
    /// File name, for messages.
    pub name: String,
}

/// Place of a segment in its stream.
pub struct SegmentExtent {
    /// Number of the segment's first block in the stream.
    pub first_block: u64,
    /// Number of blocks at creation. The last segment of a sealed stream has been cut after the seal.
    pub made_blocks: u64,
    /// File name, for messages.
    pub name: String,
}

/// Kind of the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Seal: a process has recovered from the stream before.
    Sealed,
    /// Only zeros after the last block.
    Clean,
    /// Torn tail: blocks that were being written when the process ended.
    Torn,
}

/// End of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Kind of the end.
    pub ending: Ending,
    /// Number of blocks before the end, without the seal.
    pub blocks: u64,
    /// Number of records before the end.
    pub records: u64,
    /// Checksum of the last block before the end, 0 if there is none.
    pub checksum: u32,
}

impl End {
    /// Returns the block that seals `stream` at this end. The seal counts all records before it as flushed.
    pub fn seal(&self, stream: &StreamId) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        let header = Header {
            records: 0,
            seals: true,
            number: self.blocks,
            records_before: self.records,
            flushed: self.records,
            previous_checksum: self.checksum,
        };
        block::finish(&mut bytes, stream, &header);
        bytes
    }
}

/// Reads `segments` in order and passes every record before the end to `visit`, with its number from 1.
///
/// # Errors
/// The [`Damage`], also if `visit` refuses a record.
pub fn read(
    stream: &StreamId,
    segments: &[SegmentBytes],
    mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
) -> Result<End, Damage> {
    let mut reading = StreamReading::new(*stream);
    for SegmentBytes { first_block, made_blocks, bytes, name } in segments {
        let segment = SegmentExtent { first_block: *first_block, made_blocks: *made_blocks, name: name.clone() };
        reading.begin(&segment)?;
        reading.blocks(&segment, *first_block, bytes, &mut visit)?;
        reading.close(&segment, bytes.len());
    }
    reading.finish()
}

/// State of reading a stream piece by piece, for a stream that is larger than memory:
///
/// 1. [`StreamReading::begin`] with the next segment.
/// 2. [`StreamReading::blocks`] with its blocks, in one or more pieces.
/// 3. [`StreamReading::close`]. The next segment follows.
/// 4. [`StreamReading::finish`] after the last segment.
///
/// After a damage, [`StreamReading::resume`] continues behind the lost records.
pub struct StreamReading {
    stream: StreamId,
    /// Number of the block that starts the chain: the first one of the first segment, or the first one after a damage.
    first_block: Option<u64>,
    /// Number of the first block of the next segment, if a segment was read to its end.
    next_segment: Option<u64>,
    end: End,
    bad: Option<BadBlock>,
    short: Option<Damage>,
    /// Whether the file with another length than at creation lacks nothing but its last block, the seal.
    lacks_only_seal: bool,
    /// Number of the block at which reading can continue after the last damage.
    resume_at: u64,
    /// Number of records that were removed from the beginning of the stream, as soon as it is known.
    first: Option<u64>,
    /// Number of records that damage has cost so far.
    lost: u64,
}

/// First block that is not the expected one.
struct BadBlock {
    file: String,
    number: u64,
    offset: u64,
    /// Number of records before the block. `None` until it is known, if the oldest segments were removed.
    known: Option<u64>,
    /// Number of the first valid block at its place from here on.
    next_valid: Option<u64>,
}

impl StreamReading {
    /// Creates a reading of `stream` that has read nothing yet.
    pub fn new(stream: StreamId) -> StreamReading {
        StreamReading {
            stream,
            first_block: None,
            next_segment: None,
            end: End { ending: Ending::Clean, blocks: 0, records: 0, checksum: 0 },
            bad: None,
            short: None,
            lacks_only_seal: false,
            resume_at: 0,
            first: None,
            lost: 0,
        }
    }

    /// Returns the end of the stream, according to the blocks read so far.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Returns the number of records that were removed from the beginning of the stream, if it is known.
    pub fn first(&self) -> Option<u64> {
        self.first
    }

    /// Returns the number of records that damage has cost, as far as blocks after it show.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns whether the damage that [`StreamReading::finish`] reports concerns no record: the file was cut after the
    /// seal, and only the seal is bad.
    pub fn lacks_only_seal(&self) -> bool {
        self.lacks_only_seal
    }

    /// Forgets everything after the last expected block, so that reading can continue there: the writer may have
    /// written more since.
    pub fn rewind(&mut self) {
        (self.bad, self.short, self.next_segment) = (None, None, None);
        if self.end.ending == Ending::Torn {
            self.end.ending = Ending::Clean;
        }
    }

    /// Prepares to continue after the last damage. The next valid block starts the chain anew.
    pub fn resume(&mut self) {
        self.rewind();
        (self.end.blocks, self.first_block) = (self.resume_at, Some(self.resume_at));
    }

    /// Begins to read a segment. After [`StreamReading::rewind`] or [`StreamReading::resume`], the segment must contain
    /// the block at which reading continues.
    ///
    /// # Errors
    /// [`Damage::Gap`] if a segment is missing before this one. Segments are created in their order, and retention
    /// removes only the oldest ones.
    pub fn begin(&mut self, segment: &SegmentExtent) -> Result<(), Damage> {
        let found = segment.first_block;
        if self.first_block.is_none() {
            (self.first_block, self.end.blocks) = (Some(found), found);
            self.first = (found == 0).then_some(0);
        }
        let (expected, is_there) = match self.next_segment {
            Some(next) => (next, found == next),
            None => (self.end.blocks, found <= self.end.blocks),
        };
        if is_there {
            return Ok(());
        }
        // Two segments can overlap only if someone has copied or renamed one.
        self.resume_at = found.max(expected);
        Err(Damage::Gap { file: segment.name.clone(), expected, found })
    }

    /// Reads the next blocks of the segment, from block `first` of the stream on, and passes their records to `visit`.
    /// Blocks after a seal are not read.
    ///
    /// # Errors
    /// The [`Damage`] that the blocks have or prove, also if `visit` refuses a record.
    pub fn blocks(
        &mut self,
        segment: &SegmentExtent,
        first: u64,
        bytes: &[u8],
        mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
    ) -> Result<(), Damage> {
        for (number, block) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            if self.end.ending == Ending::Sealed {
                return Ok(());
            }
            let is_next = self.bad.is_none() && number == self.end.blocks;
            let checked = match block::parse(block, &self.stream).filter(|_| is_next) {
                Some((header, checksum)) => self.follow(segment, block, &header, checksum, &mut visit),
                None => self.check_unexpected_block(segment, number, block),
            };
            if checked.is_err() {
                self.resume_at = self.bad.as_ref().and_then(|bad| bad.next_valid).unwrap_or(number + 1);
                return checked;
            }
        }
        Ok(())
    }

    /// Returns the damage of block `number`, which the disk cannot read. Reading can continue `blocks` blocks later.
    pub fn unreadable(&mut self, segment: &SegmentExtent, number: u64, blocks: u64, why: String) -> Damage {
        self.resume_at = number + blocks;
        let offset = number.saturating_sub(segment.first_block) * BLOCK_BYTES as u64;
        Damage::Unreadable { file: segment.name.clone(), number, offset, why }
    }

    /// Ends a segment, whose file has `bytes` bytes.
    pub fn close(&mut self, segment: &SegmentExtent, bytes: usize) {
        let expected = segment.made_blocks * BLOCK_BYTES as u64;
        if bytes as u64 != expected && self.short.is_none() {
            let last = segment.first_block + (bytes / BLOCK_BYTES) as u64;
            let is_last = |bad: &BadBlock| bad.number + 1 == last && bytes.is_multiple_of(BLOCK_BYTES);
            self.lacks_only_seal = (bytes as u64) < expected && self.bad.as_ref().is_some_and(is_last);
            self.short = Some(Damage::Short { file: segment.name.clone(), bytes, expected });
        }
        self.next_segment = Some(segment.first_block + segment.made_blocks);
    }

    /// Finishes the reading after the last segment, and returns the end of the stream.
    ///
    /// # Errors
    /// [`Damage::Short`] if a file does not have its length at creation and the stream has no seal.
    pub fn finish(&self) -> Result<End, Damage> {
        self.short.clone().filter(|_| self.end.ending != Ending::Sealed).map_or(Ok(self.end), Err)
    }

    /// Checks that a valid block continues the chain, and visits its records.
    fn follow(
        &mut self,
        segment: &SegmentExtent,
        block: &[u8],
        header: &Header,
        checksum: u32,
        mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
    ) -> Result<(), Damage> {
        let (number, end) = (self.end.blocks, &mut self.end);
        // Retention may have removed the oldest segments. Then the first remaining block starts the chain.
        let starts = Some(number) == self.first_block && number > 0 && header.records_before >= end.records;
        let follows = header.records_before == end.records && header.previous_checksum == end.checksum;
        if header.number != number || !(starts || follows) {
            return Err(Damage::Misplaced { file: segment.name.clone(), number, found: header.number });
        }
        if starts {
            // Records that retention has removed are not lost.
            match self.first {
                Some(_) => self.lost += header.records_before - end.records,
                None => self.first = Some(header.records_before),
            }
            end.records = header.records_before;
        }
        if header.seals {
            end.ending = Ending::Sealed;
            return Ok(());
        }
        for bytes in block::records(block, header.records) {
            let seq = end.records + 1;
            let flaw = match Record::decode(bytes) {
                Ok(record) => visit(seq, &record).err(),
                Err(UnknownRecord { kind, reason }) => Some(format!("unknown kind {kind} with reason {reason}")),
            };
            if let Some(flaw) = flaw {
                return Err(Damage::Record { file: segment.name.clone(), seq, flaw });
            }
            end.records = seq;
        }
        end.blocks += 1;
        end.checksum = checksum;
        Ok(())
    }

    /// Notes the bad block, and checks whether this block, which is the bad one or a later one, is a proof.
    fn check_unexpected_block(&mut self, segment: &SegmentExtent, number: u64, block: &[u8]) -> Result<(), Damage> {
        let (end, file) = (&mut self.end, || segment.name.clone());
        if self.bad.is_none() {
            if let Some(version) = block::version(block).filter(|&version| version != block::FORMAT_VERSION) {
                return Err(Damage::Version { file: file(), version });
            }
            let is_beginning_unknown = end.blocks > 0 && self.first_block == Some(end.blocks);
            let (offset, known) = ((number - segment.first_block) * BLOCK_BYTES as u64, end.records);
            let known = (!is_beginning_unknown).then_some(known);
            self.bad = Some(BadBlock { file: file(), number, offset, known, next_valid: None });
        }
        if !is_blank(block) {
            end.ending = Ending::Torn;
        }
        let Some((header, _)) = block::parse(block, &self.stream) else {
            return if block::is_whole(block) { Err(Damage::Foreign { file: file(), number }) } else { Ok(()) };
        };
        if header.number != number {
            return Err(Damage::Misplaced { file: file(), number, found: header.number });
        }
        let BadBlock { file, number, offset, known, next_valid } = self.bad.as_mut().expect("it is noted above");
        next_valid.get_or_insert(header.number);
        // If the number of records before the bad block is not known, a block is a proof if it counts every record before
        // the first valid block. A smaller count may end before the bad block, as two flushes can be under way.
        let known = *known.get_or_insert(header.records_before.saturating_sub(1));
        if header.flushed > known {
            let (file, number, offset, expected) = (file.clone(), *number, *offset, end.blocks);
            return Err(if number == expected {
                Damage::Block { file, number, offset, proven_by: header.number }
            } else {
                Damage::Gap { file, expected, found: number }
            });
        }
        Ok(())
    }
}

/// Returns whether a block is all zeros. One comparison of all bytes is fast, and most blocks of a new segment are
/// zeros.
fn is_blank(block: &[u8]) -> bool {
    const BLANK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    block == &BLANK[..block.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::LogKind;
    use crate::sale::ids::{ItemId, SaleId, UserId};
    use crate::sale::record::BLOCK_RECORDS;
    use crate::sale::record::{LogEvent, RECORD_BYTES, RefusalReason};
    use uuid::Uuid;

    const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 2, shard: 0, log: LogKind::Purchases };
    const SEGMENT_BLOCKS: u64 = 4;
    const SEGMENT_BYTES: usize = SEGMENT_BLOCKS as usize * BLOCK_BYTES;

    fn record(seq: u64) -> Record {
        let event =
            LogEvent::Refused { item: Some(ItemId(1)), user: UserId(seq as i64), reason: RefusalReason::ItemSold };
        Record { sale: SaleId(1), unix_ms: seq, event }
    }

    /// Returns a stream written by flushes of the given block counts. Block `number` holds `number + 1` records.
    fn log(groups: &[u64], sealed: bool) -> Vec<SegmentBytes> {
        log_of_flights(groups, sealed, false)
    }

    /// As `log`. With `overlap`, each flush has started when the one before it was still under way.
    fn log_of_flights(groups: &[u64], sealed: bool, overlap: bool) -> Vec<SegmentBytes> {
        let (mut bytes, mut number, mut records, mut checksum) = (Vec::new(), 0u64, 0u64, 0);
        let mut add = |count: u64, flushed: &mut u64, seals: bool| {
            let before = records;
            for _ in 0..count {
                let mut block = vec![0; BLOCK_BYTES];
                let fill = if seals { 0 } else { (number as usize + 1).min(BLOCK_RECORDS) };
                for (index, place) in block::records_mut(&mut block).chunks_mut(RECORD_BYTES).take(fill).enumerate() {
                    place.copy_from_slice(&record(records + index as u64 + 1).encode());
                }
                let header = Header {
                    records: fill as u8,
                    seals,
                    number,
                    records_before: records,
                    flushed: *flushed,
                    previous_checksum: checksum,
                };
                checksum = block::finish(&mut block, &STREAM, &header);
                records += fill as u64;
                number += 1;
                bytes.extend(block);
            }
            *flushed = if overlap { before } else { records };
        };
        let mut flushed = 0;
        groups.iter().for_each(|&count| add(count, &mut flushed, false));
        if sealed {
            add(1, &mut flushed, true);
        }
        bytes.resize(bytes.len().next_multiple_of(SEGMENT_BYTES), 0);
        split(&bytes)
    }

    fn split(bytes: &[u8]) -> Vec<SegmentBytes> {
        let numbers = (0..).step_by(SEGMENT_BLOCKS as usize);
        let segments = bytes.chunks(SEGMENT_BYTES).zip(numbers);
        segments
            .map(|(bytes, first_block)| SegmentBytes {
                first_block,
                made_blocks: SEGMENT_BLOCKS,
                bytes: bytes.to_vec(),
                name: format!("b{first_block}"),
            })
            .collect()
    }

    fn join(segments: &[SegmentBytes]) -> Vec<u8> {
        segments.iter().flat_map(|segment| segment.bytes.clone()).collect()
    }

    fn read_all(segments: &[SegmentBytes]) -> Result<End, Damage> {
        let mut expected = 0;
        read(&STREAM, segments, |seq, read| {
            expected += 1;
            assert_eq!((seq, read), (expected, &record(expected)));
            Ok(())
        })
    }

    #[test]
    fn a_clean_log_is_read_to_its_end() {
        let end = read_all(&log(&[1, 2, 3], false)).unwrap();
        assert_eq!((end.ending, end.blocks, end.records), (Ending::Clean, 6, 21));
        let end = read_all(&log(&[1, 2, 3], true)).unwrap();
        assert_eq!((end.ending, end.blocks, end.records), (Ending::Sealed, 6, 21));
        let end = read_all(&[]).unwrap();
        assert_eq!((end.ending, end.blocks, end.records), (Ending::Clean, 0, 0));
    }

    /// Tries all 2^8 outcomes of writing the eight sectors of each block of a flush. Every flushed record remains.
    #[test]
    fn any_torn_tail_is_dropped() {
        let good = join(&log(&[1, 2, 3], false));
        for torn in 0..256u32 {
            for block in 3..6 {
                let mut bytes = good.clone();
                for sector in (0..8).filter(|sector| torn >> sector & 1 == 0) {
                    bytes[block * BLOCK_BYTES + sector * 512..][..512].fill(0);
                }
                let end = read_all(&split(&bytes)).unwrap();
                // Sectors after the last record are zero, so the block is complete without them.
                let whole = if bytes == good { 6 } else { block as u64 };
                assert_eq!(end.blocks, whole, "block {block}, sectors {torn:08b}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_in_a_proven_block_is_refused() {
        let good = join(&log(&[1, 1, 1], false));
        for bit in 0..2 * BLOCK_BYTES * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let damage = read_all(&split(&bytes)).unwrap_err();
            assert!(matches!(damage, Damage::Block { .. } | Damage::Version { .. }), "bit {bit}: {damage}");
        }
    }

    #[test]
    fn after_the_seal_every_block_is_proven() {
        let good = join(&log(&[1, 1, 3], true));
        for block in 0..5 {
            let mut bytes = good.clone();
            bytes[block * BLOCK_BYTES + 700] ^= 1;
            let damage = read_all(&split(&bytes)).unwrap_err();
            assert!(matches!(damage, Damage::Block { number, .. } if number == block as u64), "{damage}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = join(&log(&[1, 2, 2], false));
        for length in (0..bytes.len()).step_by(97).chain([0, 4095, 4096, bytes.len() - 1]) {
            let mut segments = split(&bytes[..length]);
            if segments.is_empty() {
                segments = split(&[0]);
            }
            assert!(read_all(&segments).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn swapped_and_missing_blocks_are_noticed() {
        let good = join(&log(&[1, 1, 1, 4], false));
        for (a, b) in (0..7).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let mut bytes = good.clone();
            let (front, back) = bytes.split_at_mut(a * BLOCK_BYTES);
            front[b * BLOCK_BYTES..][..BLOCK_BYTES].swap_with_slice(&mut back[..BLOCK_BYTES]);
            let damage = read_all(&split(&bytes)).unwrap_err();
            assert!(matches!(damage, Damage::Misplaced { .. }), "{a} and {b}: {damage}");
        }
        let mut segments = log(&[4, 4, 4], false);
        segments.remove(1);
        assert!(matches!(read_all(&segments), Err(Damage::Gap { expected: 4, found: 8, .. })));
    }

    #[test]
    fn a_block_of_another_past_is_noticed() {
        // Both streams have the same number of valid blocks and records. Only the checksum of the block before differs.
        let (one, mut other) = (log(&[1, 1, 1], false), log(&[1, 1, 1], false));
        let block = &mut other[0].bytes[..BLOCK_BYTES];
        block::records_mut(block)[..RECORD_BYTES].copy_from_slice(&record(99).encode());
        let (header, _) = block::parse(&one[0].bytes[..BLOCK_BYTES], &STREAM).unwrap();
        block::finish(block, &STREAM, &header);
        let read = read(&STREAM, &other, |_, _| Ok(()));
        assert_eq!(read, Err(Damage::Misplaced { file: "b0".into(), number: 1, found: 1 }));
    }

    #[test]
    fn a_stream_may_have_lost_its_oldest_segments_to_retention() {
        let mut segments = log(&[4, 3], true);
        segments.remove(0);
        let mut seqs = Vec::new();
        let end = read(&STREAM, &segments, |seq, _| {
            seqs.push(seq);
            Ok(())
        });
        assert_eq!(end.unwrap().records, 28);
        assert_eq!(seqs, (11..=28).collect::<Vec<_>>());
    }

    #[test]
    fn a_torn_flight_at_an_unknown_beginning_is_a_torn_tail() {
        let mut segments = log(&[4, 3], false);
        segments.remove(0);
        segments[0].bytes[..BLOCK_BYTES].fill(0);
        let end = read(&STREAM, &segments, |_, _| panic!("no record is left")).unwrap();
        assert_eq!((end.ending, end.blocks), (Ending::Torn, 4));
        let mut segments = log(&[4, 1, 1, 1], false);
        segments.remove(0);
        segments[0].bytes[..BLOCK_BYTES].fill(0);
        assert!(matches!(read(&STREAM, &segments, |_, _| Ok(())), Err(Damage::Block { number: 4, .. })));
    }

    /// Two flushes of two blocks are under way when the machine fails, and any of their blocks is on disk.
    #[test]
    fn any_outcome_of_two_flights_is_a_torn_tail() {
        for written in 0..16u32 {
            let mut segments = log_of_flights(&[4, 2, 2], false, true);
            for block in (0..4).filter(|block| written >> block & 1 == 0) {
                segments[1].bytes[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
            }
            let whole = 4 + u64::from(written.trailing_ones());
            for beginning in [0, 1] {
                let end = read(&STREAM, &segments[beginning..], |_, _| Ok(()));
                assert_eq!(end.map(|end| end.blocks), Ok(whole), "blocks {written:04b} from segment {beginning}");
            }
        }
    }

    #[test]
    fn a_foreign_block_is_no_torn_tail() {
        let other = StreamId { cluster: Uuid::from_u128(2), ..STREAM };
        let damage = read(&other, &log(&[1, 2], false), |_, _| Ok(())).unwrap_err();
        assert_eq!(damage, Damage::Foreign { file: "b0".into(), number: 0 });
    }

    #[test]
    fn another_format_is_named() {
        let mut segments = log(&[1], false);
        segments[0].bytes[4] = 9;
        assert_eq!(read_all(&segments), Err(Damage::Version { file: "b0".into(), version: 9 }));
    }
}
