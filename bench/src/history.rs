//! Logs of any length: a sale in which every item is checked out, and bought a little later.

use crate::turns::{NOW, rules};
use stampede::block::{BLOCK_BYTES, BLOCK_RECORDS, Chain, LogKind, StreamId};
use stampede::code::{CodeGenerator, CodeSpace};
use stampede::record::{Event, RECORD_BYTES, Record};
use stampede::sale::sale_at;
use stampede::segment::SegmentName;
use stampede::stream::SegmentBytes;
use stampede::types::{ItemId, UserId};
use std::io;
use std::path::Path;
use uuid::Uuid;

/// The stream that is made.
pub const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log: LogKind::Purchases };
/// As large as the server makes them.
const SEGMENT_BLOCKS: u32 = 1024;
/// Checkouts between an item's checkout and its purchase.
const DELAY: u32 = 200;

/// The sale's records: its opening, then two for each of `items` items. Ten items to a user, in no order of memory.
pub fn records(items: u32) -> impl Iterator<Item = Record> {
    let rules = rules(items);
    let terms = rules.terms(sale_at(NOW.unix_ms, rules.period_s));
    let record = move |event| Record { sale: terms.sale, unix_ms: NOW.unix_ms, event };
    let space = CodeSpace::new(&terms);
    // The same codes twice: when they are given out, and when they come back.
    let (mut given, mut presented) = (CodeGenerator::new([1; 32]), CodeGenerator::new([1; 32]));
    let buyer = move |turn| (ItemId((u64::from(turn) * 7919 % u64::from(items)) as u32), UserId(i64::from(turn) / 10));
    let both = (0..items + DELAY).flat_map(move |turn| {
        let checkout = (turn < items).then(|| {
            let (item, user) = buyer(turn);
            record(Event::Checkout { item, user, code: given.mint(&space, item), ttl_ms: rules.ttl_ms })
        });
        let purchase = turn.checked_sub(DELAY).map(|turn| {
            let (item, user) = buyer(turn);
            record(Event::Purchase { item, user, code: presented.mint(&space, item), key: Uuid::nil() })
        });
        checkout.into_iter().chain(purchase)
    });
    std::iter::once(Record::sale_opened(&terms, NOW.unix_ms)).chain(both)
}

/// The records in full blocks, in segments of the usual size.
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
/// Of the file system.
pub fn write(segments: &[SegmentBytes], dir: &Path) -> io::Result<()> {
    segments.iter().try_for_each(|segment| {
        let name = SegmentName { stream: STREAM, first_block: segment.first_block, blocks: SEGMENT_BLOCKS };
        std::fs::write(name.path(dir), &segment.bytes)
    })
}
