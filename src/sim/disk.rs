//! A disk that keeps what was flushed, tears a flush in progress at a crash, and can damage durable blocks.

use crate::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId, StreamKey};
use crate::log::damage::Damage;
use crate::log::stream::{self, Ending, SegmentBytes};
use crate::sale::record::Record;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The installation of every world.
pub const CLUSTER: Uuid = Uuid::from_u128(1);
const SECTOR_BYTES: usize = 512;
/// Blocks of a stream, which is a single segment.
const STREAM_BLOCKS: usize = 64;

/// Returns the key of a shard's purchase log in the run of `epoch`.
pub fn purchases_of(epoch: u32, shard: u16) -> StreamKey {
    StreamKey { log: LogKind::Purchases, epoch, shard }
}

/// Returns the stream with this key in the simulated installation.
pub fn stream_of(key: StreamKey) -> StreamId {
    key.of_cluster(CLUSTER)
}

struct DiskStream {
    chain: Chain,
    /// The segment, created full of zeros.
    segment: SegmentBytes,
    durable_blocks: usize,
    /// Number of blocks before the last finished flush. The blocks of that flush count them as flushed, which proves
    /// that they were durable.
    proven_blocks: usize,
    /// Blocks of the flush in progress.
    flight: Vec<u8>,
    is_sealed: bool,
}

/// All streams of one data directory.
#[derive(Default)]
pub struct Disk {
    streams: BTreeMap<StreamKey, DiskStream>,
}

impl Disk {
    /// Creates the segment of a new stream.
    pub fn create(&mut self, key: StreamKey) {
        let stream = DiskStream {
            chain: Chain::new(stream_of(key)),
            segment: SegmentBytes {
                first_block: 0,
                made_blocks: STREAM_BLOCKS as u64,
                bytes: vec![0; STREAM_BLOCKS * BLOCK_BYTES],
                name: format!("{key:?}"),
            },
            durable_blocks: 0,
            proven_blocks: 0,
            flight: Vec::new(),
            is_sealed: false,
        };
        assert!(self.streams.insert(key, stream).is_none(), "a stream is created once");
    }

    /// Starts to write `records`, `per_block` to a block. `flushed` is the number of records flushed before.
    pub fn start_flush(&mut self, key: StreamKey, records: &[Record], per_block: usize, flushed: u64) {
        let stream = self.streams.get_mut(&key).expect("the stream was created");
        for group in records.chunks(per_block) {
            let encoded: Vec<u8> = group.iter().flat_map(Record::encode).collect();
            let mut block = vec![0; BLOCK_BYTES];
            stream.chain.extend(&mut block, &encoded, flushed);
            stream.flight.extend(block);
        }
        assert!(stream.chain.blocks() as usize <= STREAM_BLOCKS, "the records do not fit on the simulated disk");
    }

    /// Makes the flush in progress durable.
    pub fn finish_flush(&mut self, key: StreamKey) {
        let stream = self.streams.get_mut(&key).expect("the stream was created");
        let at = stream.durable_blocks * BLOCK_BYTES;
        stream.segment.bytes[at..at + stream.flight.len()].copy_from_slice(&stream.flight);
        stream.proven_blocks = stream.durable_blocks;
        stream.durable_blocks += stream.flight.len() / BLOCK_BYTES;
        stream.flight.clear();
    }

    /// Returns whether a flush of `records` records fits, even with one record per block.
    pub fn has_room(&self, key: StreamKey, records: usize) -> bool {
        self.streams[&key].chain.blocks() as usize + records < STREAM_BLOCKS - 1
    }

    /// Crashes the machine. `is_kept` says of each sector in flight whether it was written.
    pub fn tear(&mut self, mut is_kept: impl FnMut() -> bool) {
        for stream in self.streams.values_mut() {
            let at = stream.durable_blocks * BLOCK_BYTES;
            for (place, sector) in (at..).step_by(SECTOR_BYTES).zip(stream.flight.chunks(SECTOR_BYTES)) {
                if is_kept() {
                    stream.segment.bytes[place..place + SECTOR_BYTES].copy_from_slice(sector);
                }
            }
            stream.flight.clear();
        }
    }

    /// Damages proven blocks: flips a bit of one, or swaps two. Returns whether there was a proven block; if so,
    /// recovery must detect the damage.
    pub fn damage_disk(&mut self, mut any: impl FnMut(usize) -> usize) -> bool {
        let proven = |stream: &DiskStream| if stream.is_sealed { stream.durable_blocks } else { stream.proven_blocks };
        let mut rich: Vec<&mut DiskStream> = self.streams.values_mut().filter(|stream| proven(stream) > 0).collect();
        if rich.is_empty() {
            return false;
        }
        let place = any(rich.len());
        let stream = &mut *rich[place];
        let (one, other) = (any(proven(stream)), any(proven(stream)));
        if one != other {
            let (low, high) = (one.min(other) * BLOCK_BYTES, one.max(other) * BLOCK_BYTES);
            let (front, back) = stream.segment.bytes.split_at_mut(high);
            front[low..low + BLOCK_BYTES].swap_with_slice(&mut back[..BLOCK_BYTES]);
        } else {
            let bit = any(BLOCK_BYTES * 8);
            stream.segment.bytes[one * BLOCK_BYTES + bit / 8] ^= 1 << (bit % 8);
        }
        true
    }

    /// Returns the records of all streams, without changing anything.
    ///
    /// # Errors
    /// The damage, if recovery detects one.
    pub fn read(&self) -> Result<BTreeMap<StreamKey, Vec<Record>>, Damage> {
        self.streams.iter().map(|(key, stream)| Ok((*key, read(*key, stream)?.0))).collect()
    }

    /// Seals the first `most` streams that have no seal. Streams without records are removed instead.
    pub fn seal(&mut self, most: usize) {
        let open: Vec<StreamKey> =
            self.streams.iter().filter(|(_, stream)| !stream.is_sealed).map(|(key, _)| *key).take(most).collect();
        for key in open {
            let stream = self.streams.get_mut(&key).expect("the stream was listed");
            let (records, end) = read(key, stream).expect("the stream was read before");
            if records.is_empty() {
                self.streams.remove(&key);
                continue;
            }
            let at = end.blocks as usize * BLOCK_BYTES;
            stream.segment.bytes.truncate(at);
            stream.segment.bytes.extend(end.seal(&stream_of(key)));
            stream.segment.made_blocks = end.blocks + 1;
            stream.durable_blocks = end.blocks as usize;
            stream.is_sealed = true;
        }
    }
}

fn read(key: StreamKey, stream: &DiskStream) -> Result<(Vec<Record>, stream::End), Damage> {
    let mut records = Vec::new();
    let end = stream::read(&stream_of(key), std::slice::from_ref(&stream.segment), |_, record| {
        records.push(*record);
        Ok(())
    })?;
    let is_whole = end.ending == Ending::Sealed || stream.durable_blocks == end.blocks as usize;
    assert!(is_whole || !stream.is_sealed, "recovery does not detect the damage");
    Ok((records, end))
}
