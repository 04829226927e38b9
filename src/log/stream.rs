//! Reading a stream back: where it ends, and whether anything is missing before that.
//!
//! The decision table, for the first block that is not the expected one (*bad* below):
//!
//! | bad block | a later genuine block counts it as flushed | verdict |
//! |---|---|---|
//! | all zero | no | clean end |
//! | anything else | no | torn tail: nobody was told of it, drop it |
//! | anything | yes | damage: it was durable once, refuse to start |
//! | whole, but not in its place or of another stream | — | damage: no torn write does that |
//! | the file is shorter than it was made | — | damage |
//!
//! Recovery ends every stream with a seal, a block that counts everything before it as flushed. So once a
//! process has recovered from a stream, any later damage to it is proven.

use crate::log::block::{self, BLOCK_BYTES, Header, StreamId};
use crate::sale::record::{NoRecord, Record};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One segment file of a stream, in memory.
pub struct SegmentBytes {
    /// Number of its first block.
    pub first_block: u64,
    /// How many blocks it was made with. A sealed stream's last segment has been cut to what it holds.
    pub made_blocks: u64,
    /// The file's content.
    pub bytes: Vec<u8>,
    /// The name, for messages.
    pub name: String,
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// With a seal: recovered from before.
    Sealed,
    /// With nothing after the last block.
    Clean,
    /// With blocks that were being written when the process died.
    Torn,
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How.
    pub ending: Ending,
    /// Blocks before the end (and before the seal).
    pub blocks: u64,
    /// Records before the end.
    pub records: u64,
    /// Checksum of the last block.
    pub checksum: u32,
}

impl End {
    /// The block that ends `stream` here for good: it counts everything before it as flushed.
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

/// A stream that lost something once durable, or that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// A block is bad that a later one counts as flushed.
    #[error("block {number} at byte {offset} of {file} is damaged; block {proven_by} proves that it was once durable")]
    Block {
        /// The file it is in.
        file: String,
        /// Its number in the stream.
        number: u64,
        /// Its offset in the file.
        offset: u64,
        /// The later block that proves it.
        proven_by: u64,
    },
    /// A genuine block lies where another belongs.
    #[error("in {file}, block {found} or one that only looks like it lies where block {number} belongs")]
    Misplaced {
        /// The file it is in.
        file: String,
        /// The block that belongs there.
        number: u64,
        /// The block that lies there.
        found: u64,
    },
    /// A whole block of another stream lies here.
    #[error("in {file}, a block of another log or installation lies where block {number} belongs")]
    Foreign {
        /// The file it is in.
        file: String,
        /// The block that belongs there.
        number: u64,
    },
    /// A file is shorter than it was made.
    #[error("{file} has {bytes} bytes and was made with {expected}")]
    Short {
        /// The file.
        file: String,
        /// Its bytes.
        bytes: usize,
        /// The bytes it was made with.
        expected: u64,
    },
    /// Another version wrote this.
    #[error("{file} is written in log format {version}; this version reads {expected}", expected = block::FORMAT_VERSION)]
    Version {
        /// The file.
        file: String,
        /// The version found.
        version: u8,
    },
    /// A record makes no sense.
    #[error("record {seq} in {file}: {flaw}")]
    Record {
        /// The file.
        file: String,
        /// Its number in the stream, from 1.
        seq: u64,
        /// What is wrong.
        flaw: String,
    },
    /// Blocks are missing between two segment files.
    #[error("{file} starts with block {found}, but block {expected} comes next: a segment is missing")]
    Gap {
        /// The file after the gap.
        file: String,
        /// The block that was expected at its start.
        expected: u64,
        /// The block it starts with.
        found: u64,
    },
}

/// Reads `segments` in order and hands every record before the end to `visit`, with its number from 1.
///
/// `visit` may refuse a record; that is damage too.
pub fn read(
    stream: &StreamId,
    segments: &[SegmentBytes],
    mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
) -> Result<End, Damage> {
    let mut reading = Reading::new(*stream);
    segments.iter().try_for_each(|segment| reading.segment(segment, &mut visit))?;
    reading.finish()
}

/// A stream of which so much is read, for one that is larger than memory.
#[derive(Clone)]
pub struct Reading {
    stream: StreamId,
    /// Of the first segment.
    first_block: Option<u64>,
    end: End,
    bad: Option<Bad>,
    short: Option<Damage>,
}

/// The first block that is not the expected one.
#[derive(Clone)]
struct Bad {
    file: String,
    number: u64,
    offset: u64,
    /// Records known to be flushed; unknown where the beginning is.
    known: Option<u64>,
}

impl Reading {
    /// Of nothing so far.
    pub fn new(stream: StreamId) -> Reading {
        let end = End { ending: Ending::Clean, blocks: 0, records: 0, checksum: 0 };
        Reading { stream, first_block: None, end, bad: None, short: None }
    }

    /// Where the stream ends, as far as it is read.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Whether every block so far was as expected, so that more may follow.
    pub fn is_whole(&self) -> bool {
        self.bad.is_none() && self.short.is_none() && self.end.ending == Ending::Clean
    }

    /// Reads the next segment. What follows a seal is not looked at.
    ///
    /// # Errors
    /// What is damaged.
    pub fn segment(
        &mut self,
        segment: &SegmentBytes,
        mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
    ) -> Result<(), Damage> {
        if self.first_block.is_none() {
            (self.first_block, self.end.blocks) = (Some(segment.first_block), segment.first_block);
        }
        for (number, block) in (segment.first_block..).zip(segment.bytes.chunks(BLOCK_BYTES)) {
            if self.end.ending == Ending::Sealed {
                return Ok(());
            }
            let is_next = self.bad.is_none() && number == self.end.blocks;
            match block::parse(block, &self.stream).filter(|_| is_next) {
                Some((header, checksum)) => self.follow(segment, block, &header, checksum, &mut visit)?,
                None => self.look_for_proof(segment, number, block)?,
            }
        }
        let (bytes, expected) = (segment.bytes.len(), segment.made_blocks * BLOCK_BYTES as u64);
        if bytes as u64 != expected && self.short.is_none() {
            self.short = Some(Damage::Short { file: segment.name.clone(), bytes, expected });
        }
        Ok(())
    }

    /// There is nothing more.
    ///
    /// # Errors
    /// A file is shorter than it was made.
    pub fn finish(self) -> Result<End, Damage> {
        self.short.filter(|_| self.end.ending != Ending::Sealed).map_or(Ok(self.end), Err)
    }

    /// A whole block, where one is expected.
    fn follow(
        &mut self,
        segment: &SegmentBytes,
        block: &[u8],
        header: &Header,
        checksum: u32,
        mut visit: impl FnMut(u64, &Record) -> Result<(), String>,
    ) -> Result<(), Damage> {
        let (number, end) = (self.end.blocks, &mut self.end);
        // The oldest segments of a stream may be gone for good; what is left starts the chain anew.
        let starts = Some(number) == self.first_block && number > 0;
        let follows = header.records_before == end.records && header.previous_checksum == end.checksum;
        if header.number != number || !(starts || follows) {
            return Err(Damage::Misplaced { file: segment.name.clone(), number, found: header.number });
        }
        if starts {
            end.records = header.records_before;
        }
        if header.seals {
            end.ending = Ending::Sealed;
            return Ok(());
        }
        for bytes in block::records(block, header.records) {
            end.records += 1;
            let flaw = match Record::decode(bytes) {
                Ok(record) => visit(end.records, &record).err(),
                Err(NoRecord { kind, reason }) => Some(format!("unknown kind {kind} with reason {reason}")),
            };
            if let Some(flaw) = flaw {
                return Err(Damage::Record { file: segment.name.clone(), seq: end.records, flaw });
            }
        }
        end.blocks += 1;
        end.checksum = checksum;
        Ok(())
    }

    /// A block that is not the expected one, or one after it: it may prove that something was durable once.
    fn look_for_proof(&mut self, segment: &SegmentBytes, number: u64, block: &[u8]) -> Result<(), Damage> {
        let (end, file) = (&mut self.end, || segment.name.clone());
        if self.bad.is_none() {
            if let Some(version) = block::version(block).filter(|&version| version != block::FORMAT_VERSION) {
                return Err(Damage::Version { file: file(), version });
            }
            let is_beginning_unknown = end.blocks > 0 && self.first_block == Some(end.blocks);
            let (offset, known) = ((number - segment.first_block) * BLOCK_BYTES as u64, end.records);
            let known = (!is_beginning_unknown).then_some(known);
            self.bad = Some(Bad { file: file(), number, offset, known });
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
        let Bad { file, number, offset, known } = self.bad.as_mut().expect("there is one by now");
        // Blocks of one flight say the same; without a beginning, only a second flight proves the first.
        let known = *known.get_or_insert(header.flushed);
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

/// Whether a block is as it was made. Compared whole: most of a new segment is.
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
        let event = LogEvent::Refused { item: ItemId(1), user: UserId(seq as i64), reason: RefusalReason::ItemSold };
        Record { sale: SaleId(1), unix_ms: seq, event }
    }

    /// A stream written in group commits of the given block counts; a block holds `number + 1` records.
    fn log(groups: &[u64], sealed: bool) -> Vec<SegmentBytes> {
        let (mut bytes, mut number, mut records, mut checksum) = (Vec::new(), 0u64, 0u64, 0);
        let mut add = |count: u64, flushed: &mut u64, seals: bool| {
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
            *flushed = records;
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

    /// All 2^8 fates of the eight sectors of each block in flight: the flushed records stay, whole.
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
                // Sectors past the last record are zero anyway: losing those loses nothing.
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
        // As many records and blocks, all genuine: only the checksum of the block before tells the two apart.
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
        let end = read(&STREAM, &segments, |_, _| panic!("nothing is left")).unwrap();
        assert_eq!((end.ending, end.blocks), (Ending::Torn, 4));
        let mut segments = log(&[4, 1, 1, 1], false);
        segments.remove(0);
        segments[0].bytes[..BLOCK_BYTES].fill(0);
        assert!(matches!(read(&STREAM, &segments, |_, _| Ok(())), Err(Damage::Block { number: 4, .. })));
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
