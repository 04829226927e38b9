//! From the data directory to what each shard starts with.
//!
//! Every stream of earlier runs is read to its end by the table of `stream.rs`; purchases are replayed through
//! the rules; streams without a seal get one. Nothing is changed before everything has been read and found good.

use crate::block::{LogKind, StreamId};
use crate::data_dir::DataDir;
use crate::fatal::Fatal;
use crate::partition::Partition;
use crate::replay::{Found, Replay};
use crate::retention::OldSegment;
use crate::segment::{SegmentName, seal};
use crate::shard::{Inventory, Rules};
use crate::stream::{self, End, Ending, SegmentBytes};
use crate::types::{Moment, SaleId};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// What recovery brings back.
pub struct Recovered {
    /// For each shard of the new run.
    pub inventories: Vec<Inventory>,
    /// Segments of earlier runs, for retention to look after.
    pub old: Vec<OldSegment>,
    /// What the sale that goes on had come to.
    pub found: Found,
    /// Records replayed.
    pub records: u64,
    /// Streams that ended in a torn tail.
    pub torn: u32,
}

/// Streams in the order of replay: by epoch, then by shard.
type Streams = BTreeMap<(LogKind, u32, u16), Vec<SegmentName>>;

/// Reads, replays and seals the logs in `data`.
///
/// # Errors
/// [`Fatal::Damaged`] if something durable is missing, [`Fatal::DataDir`] if files cannot be read or sealed.
pub fn recover(data: &DataDir, partition: Partition, rules: &Rules, now: Moment) -> Result<Recovered, Fatal> {
    let unreadable = |error: io::Error| Fatal::DataDir(format!("{}: {error}", data.logs.display()));
    let streams = list(data).map_err(unreadable)?;
    let mut replay = Replay::new(partition, now);
    let (mut records, mut torn) = (0, 0);
    let mut ends = Vec::new();
    for (&(log, epoch, shard), names) in &streams {
        let stream = StreamId { cluster: data.cluster, epoch, shard, log };
        let end = match log {
            LogKind::Purchases => {
                let segments = load(data, names).map_err(unreadable)?;
                let visit = |_, record: &_| {
                    records += 1;
                    replay.record(record)
                };
                stream::read(&stream, &segments, visit).map_err(damaged)?
            }
            // Nobody was promised anything about attempts, and there may be very many: only their end matters.
            LogKind::Attempts => match end_of_attempts(data, &stream, names).map_err(unreadable)? {
                Ok(end) => end,
                Err(damage) => return Err(damaged(damage)),
            },
        };
        torn += u32::from(end.ending == Ending::Torn);
        ends.push((names, end));
    }
    let (inventories, found) = replay.finish(rules).map_err(Fatal::Damaged)?;
    let mut old = Vec::new();
    for (names, end) in ends {
        let left = if end.ending == Ending::Sealed {
            names.clone()
        } else {
            seal(&data.logs, names, &end).map_err(unreadable)?
        };
        for name in left {
            let bytes = fs::metadata(name.path(&data.logs)).map_err(unreadable)?.len();
            let newest_sale = name.newest_sale(&data.logs).map_err(unreadable)?.unwrap_or(SaleId(0));
            old.push(OldSegment { name, bytes, newest_sale });
        }
    }
    old.sort_by_key(|segment| (segment.name.stream.epoch, segment.name.first_block));
    Ok(Recovered { inventories, old, found, records, torn })
}

fn damaged(damage: stream::Damage) -> Fatal {
    Fatal::Damaged(damage.to_string())
}

fn list(data: &DataDir) -> io::Result<Streams> {
    let mut streams = Streams::new();
    for entry in fs::read_dir(&data.logs)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        if file_name.ends_with(".new") {
            fs::remove_file(entry.path())?;
        } else if let Some(name) = SegmentName::parse(&file_name, data.cluster) {
            let StreamId { log, epoch, shard, .. } = name.stream;
            streams.entry((log, epoch, shard)).or_default().push(name);
        }
    }
    streams.values_mut().for_each(|names| names.sort_by_key(|name| name.first_block));
    Ok(streams)
}

fn load(data: &DataDir, names: &[SegmentName]) -> io::Result<Vec<SegmentBytes>> {
    names.iter().map(|name| name.read(&data.logs)).collect()
}

/// Reads the last segments only: as many as it takes to find one that has a block in it.
fn end_of_attempts(
    data: &DataDir,
    stream: &StreamId,
    names: &[SegmentName],
) -> io::Result<Result<End, stream::Damage>> {
    for first in (0..names.len()).rev() {
        let segments = load(data, &names[first..])?;
        let end = stream::read(stream, &segments, |_, _| Ok(()));
        if first == 0 || !matches!(&end, Ok(end) if end.blocks == names[first].first_block) {
            return Ok(end);
        }
    }
    unreachable!("a stream has a segment")
}
