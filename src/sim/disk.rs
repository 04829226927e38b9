//! A disk that keeps what was flushed, tears what was not, and sometimes rots.

use crate::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId, StreamKey};
use crate::log::stream::{self, Damage, Ending, SegmentBytes};
use crate::sale::record::Record;
use std::collections::BTreeMap;
use uuid::Uuid;

pub const CLUSTER: Uuid = Uuid::from_u128(1);
const SECTOR_BYTES: usize = 512;
/// A stream is one segment, made this large.
const STREAM_BLOCKS: usize = 64;

pub fn purchases_of(epoch: u32, shard: u16) -> StreamKey {
    StreamKey { log: LogKind::Purchases, epoch, shard }
}

pub fn stream_of(key: StreamKey) -> StreamId {
    key.of_cluster(CLUSTER)
}

struct DiskStream {
    chain: Chain,
    /// Zero after what is durable, as a segment is made.
    segment: SegmentBytes,
    durable_blocks: usize,
    /// Where the last flush began: what is before is proven by it.
    proven_blocks: usize,
    flight: Vec<u8>,
    is_sealed: bool,
}

/// All streams of one data directory.
#[derive(Default)]
pub struct Disk {
    streams: BTreeMap<StreamKey, DiskStream>,
}

impl Disk {
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
        assert!(self.streams.insert(key, stream).is_none(), "a stream is made once");
    }

    /// Begins to write `records`, `per_block` to a block.
    pub fn start_flush(&mut self, key: StreamKey, records: &[Record], per_block: usize, flushed: u64) {
        let stream = self.streams.get_mut(&key).expect("it was made");
        for group in records.chunks(per_block) {
            let encoded: Vec<u8> = group.iter().flat_map(Record::encode).collect();
            let mut block = vec![0; BLOCK_BYTES];
            stream.chain.extend(&mut block, &encoded, flushed);
            stream.flight.extend(block);
        }
        assert!(stream.chain.blocks() as usize <= STREAM_BLOCKS, "the world is too long for its disk");
    }

    pub fn finish_flush(&mut self, key: StreamKey) {
        let stream = self.streams.get_mut(&key).expect("it was made");
        let at = stream.durable_blocks * BLOCK_BYTES;
        stream.segment.bytes[at..at + stream.flight.len()].copy_from_slice(&stream.flight);
        stream.proven_blocks = stream.durable_blocks;
        stream.durable_blocks += stream.flight.len() / BLOCK_BYTES;
        stream.flight.clear();
    }

    /// Room for another flush of so many records in the worst case.
    pub fn has_room(&self, key: StreamKey, records: usize) -> bool {
        self.streams[&key].chain.blocks() as usize + records < STREAM_BLOCKS - 1
    }

    /// The machine dies: of what was in flight, each sector is there or not.
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

    /// Something durable goes bad: a bit, or two blocks swapped. Returns whether there was anything, and then recovery
    /// must find it.
    pub fn rot(&mut self, mut any: impl FnMut(usize) -> usize) -> bool {
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

    /// Reads everything back. Changes nothing.
    pub fn read(&self) -> Result<BTreeMap<StreamKey, Vec<Record>>, Damage> {
        self.streams.iter().map(|(key, stream)| Ok((*key, read(*key, stream)?.0))).collect()
    }

    /// Seals the first `most` streams that have no seal; streams with nothing in them go.
    pub fn seal(&mut self, most: usize) {
        let open: Vec<StreamKey> =
            self.streams.iter().filter(|(_, stream)| !stream.is_sealed).map(|(key, _)| *key).take(most).collect();
        for key in open {
            let stream = self.streams.get_mut(&key).expect("it was listed");
            let (records, end) = read(key, stream).expect("it has been read");
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
    assert!(is_whole || !stream.is_sealed, "what rotted goes unseen");
    Ok((records, end))
}
