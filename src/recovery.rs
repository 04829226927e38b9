//! From the data directory to what each shard starts with.
//!
//! Every stream of earlier runs is read to its end by the table of `stream.rs`; purchases are replayed through
//! the rules; streams without a seal get one. Nothing is changed before everything has been read and found good.

use crate::block::{LogKind, StreamId};
use crate::data_dir::Opened;
use crate::fatal::Fatal;
use crate::partition::Partition;
use crate::record::Record;
use crate::replay::{Found, Replay};
use crate::retention::OldSegment;
use crate::segment::{SegmentName, seal};
use crate::shard::{Inventory, Rules};
use crate::stream::{self, End, Ending, SegmentBytes};
use crate::types::{Moment, SaleId, Seq};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// What recovery brings back.
pub struct Recovered {
    /// For each shard of the new run.
    pub inventories: Vec<Inventory>,
    /// Segments of earlier runs, for retention to look after.
    pub old: Vec<OldSegment>,
    /// Streams of earlier runs, and how many records each has.
    pub earlier: Vec<(StreamId, Seq)>,
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
pub fn recover(data: &Opened, partition: Partition, rules: &Rules, now: Moment) -> Result<Recovered, Fatal> {
    let unreadable = |error: io::Error| Fatal::DataDir(format!("{}: {error}", data.logs.display()));
    let streams = list(data).map_err(unreadable)?;
    let mut replay = Replay::new(partition, now);
    let (mut records, mut torn) = (0, 0);
    let mut contradiction: Option<(SaleId, String)> = None;
    let mut ends = Vec::new();
    for (&(log, epoch, shard), names) in &streams {
        let stream = StreamId { cluster: data.cluster, epoch, shard, log };
        let end = match log {
            LogKind::Purchases => {
                let segments = load(data, names).map_err(unreadable)?;
                let visit = |seq, record: &Record| {
                    records += 1;
                    // Ended sales may have lost their beginning to retention, so judgement waits for which sale goes on.
                    if let Err(flaw) = replay.record(record)
                        && contradiction.as_ref().is_none_or(|(sale, _)| *sale < record.sale)
                    {
                        let (log, sale) = (log.name(), record.sale.0);
                        let place = format!("record {seq} of {log} of epoch {epoch}, shard {shard}, sale {sale}");
                        contradiction = Some((record.sale, format!("{place}: {flaw}")));
                    }
                    Ok(())
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
    let goes_on = inventories.first().map(|inventory| inventory.terms.sale);
    if let Some((_, text)) = contradiction.filter(|(sale, _)| Some(*sale) >= goes_on) {
        return Err(Fatal::Damaged(text));
    }
    let mut old = Vec::new();
    let mut earlier = Vec::new();
    for (names, end) in ends {
        earlier.push((names[0].stream, end.records));
        let left = if end.ending == Ending::Sealed {
            names.clone()
        } else {
            seal(&data.logs, names, &end).map_err(unreadable)?
        };
        // A segment with nothing but the seal is needed as long as what it seals.
        let mut newest_sale = SaleId(0);
        for name in left {
            let bytes = fs::metadata(name.path(&data.logs)).map_err(unreadable)?.len();
            let (sale, last) = name.newest(&data.logs).map_err(unreadable)?;
            newest_sale = sale.unwrap_or(newest_sale);
            old.push(OldSegment { name, bytes, newest_sale, last });
        }
    }
    old.sort_by_key(|segment| (segment.name.stream.epoch, segment.name.first_block));
    Ok(Recovered { inventories, old, earlier, found, records, torn })
}

fn damaged(damage: stream::Damage) -> Fatal {
    Fatal::Damaged(damage.to_string())
}

fn list(data: &Opened) -> io::Result<Streams> {
    let mut streams = Streams::new();
    for entry in fs::read_dir(&data.logs)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        if file_name.ends_with(".new") {
            fs::remove_file(entry.path())?;
        } else if let Some(name) = SegmentName::parse(&file_name, data.cluster) {
            if name.stream.epoch >= data.epoch {
                return Err(io::Error::other(format!(
                    "control.json is older than {file_name}; restore its latest version"
                )));
            }
            let StreamId { log, epoch, shard, .. } = name.stream;
            streams.entry((log, epoch, shard)).or_default().push(name);
        }
    }
    streams.values_mut().for_each(|names| names.sort_by_key(|name| name.first_block));
    Ok(streams)
}

fn load(data: &Opened, names: &[SegmentName]) -> io::Result<Vec<SegmentBytes>> {
    names.iter().map(|name| name.read(&data.logs)).collect()
}

/// Reads the last segments only: as many as it takes to find a good block in them.
fn end_of_attempts(data: &Opened, stream: &StreamId, names: &[SegmentName]) -> io::Result<Result<End, stream::Damage>> {
    for first in (0..names.len()).rev() {
        let segments = load(data, &names[first..])?;
        let end = stream::read(stream, &segments, |_, _| Ok(()));
        if first == 0 || matches!(&end, Ok(end) if end.blocks > names[first].first_block) {
            return Ok(end);
        }
    }
    unreachable!("a stream has a segment")
}
