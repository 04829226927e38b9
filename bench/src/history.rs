//! Generates logs of any length: a sale in which every item is reserved, and purchased a fixed number of checkouts
//! later.

use crate::turns::{NOW, rules};
use stampede::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId};
use stampede::log::segment::SegmentName;
use stampede::log::stream::SegmentBytes;
use stampede::sale::code::CodeGenerator;
use stampede::sale::ids::{ItemId, UserId};
use stampede::sale::record::{BLOCK_RECORDS, LogEvent, RECORD_BYTES, Record};
use std::io;
use std::path::Path;
use uuid::Uuid;

/// The id of the generated stream.
pub const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log: LogKind::Purchases };
/// Blocks of a segment: the size that the server uses.
const SEGMENT_BLOCKS: u32 = 1024;
/// Number of checkouts between an item's checkout and its purchase.
const DELAY: u32 = 200;

/// Returns the records of a sale: its opening, then two for each of `items` items. Each user buys ten items. The order
/// of the items is not their order in memory.
pub fn records(items: u32) -> impl Iterator<Item = Record> {
    let terms = rules(items).schedule.latest(NOW.unix_ms).expect("one sale follows another");
    let record = move |event| Record { sale: terms.sale, unix_ms: NOW.unix_ms, event };
    // Two generators with the same seed: the codes of the checkouts, and the same codes for the purchases.
    let (mut given, mut presented) = (CodeGenerator::new([1; 32]), CodeGenerator::new([1; 32]));
    let buyer = move |turn| (ItemId((u64::from(turn) * 7919 % u64::from(items)) as u32), UserId(i64::from(turn) / 10));
    let both = (0..items + DELAY).flat_map(move |turn| {
        let checkout = (turn < items).then(|| {
            let (item, user) = buyer(turn);
            let (code, key) = (given.mint(terms.sale, item), Uuid::nil());
            record(LogEvent::Checkout { item, user, code, ttl_ms: terms.ttl_ms, key })
        });
        let purchase = turn.checked_sub(DELAY).map(|turn| {
            let (item, user) = buyer(turn);
            record(LogEvent::Purchase { item, user, code: presented.mint(terms.sale, item), key: Uuid::nil() })
        });
        checkout.into_iter().chain(purchase)
    });
    std::iter::once(Record::sale_opened(&terms, NOW.unix_ms)).chain(both)
}

/// Returns the records in full blocks, in segments of the size that the server uses.
pub fn segments(items: u32) -> Vec<SegmentBytes> {
    let encoded: Vec<u8> = records(items).flat_map(|record| record.encode()).collect();
    let blocks = encoded.len().div_ceil(BLOCK_RECORDS * RECORD_BYTES);
    let mut bytes = vec![0; blocks.next_multiple_of(SEGMENT_BLOCKS as usize) * BLOCK_BYTES];
    Chain::new(STREAM).extend(&mut bytes[..blocks * BLOCK_BYTES], &encoded, 0);
    let numbers = (0..).step_by(SEGMENT_BLOCKS as usize);
    let parts = bytes.chunks(SEGMENT_BLOCKS as usize * BLOCK_BYTES).zip(numbers);
    parts
        .map(|(bytes, first_block)| SegmentBytes {
            first_block,
            made_blocks: SEGMENT_BLOCKS.into(),
            bytes: bytes.to_vec(),
            name: format!("from block {first_block}"),
        })
        .collect()
}

/// Writes the segments to a directory of logs.
///
/// # Errors
/// Returns an I/O error if a file cannot be written.
pub fn write(segments: &[SegmentBytes], dir: &Path) -> io::Result<()> {
    segments.iter().try_for_each(|segment| {
        let name = SegmentName { stream: STREAM, first_block: segment.first_block, blocks: SEGMENT_BLOCKS };
        std::fs::write(name.path(dir), &segment.bytes)
    })
}
