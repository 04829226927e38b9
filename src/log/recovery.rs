//! Recovery: turns the streams of earlier runs in a data directory into the state that each shard starts with:
//!
//! 1. Read each stream to its end, by the decision table of `stream`. Of an attempt stream, only the end is read.
//! 2. Replay the purchase streams through the rules, in the order of runs.
//! 3. Seal each stream that has no seal.
//!
//! No segment is changed before every stream has been read and no damage was found. A new process can read a log ahead
//! that another process still writes: [`Recovery::read_ahead`] reads most of it, and [`Recovery::finish`] reads the few
//! records that remain when the other process has stopped writing.

use crate::config::fatal::Fatal;
use crate::log::block::{LogKind, StreamId, StreamKey};
use crate::log::budget::Budget;
use crate::log::data_dir::OpenDataDir;
use crate::log::manifest::Manifest;
use crate::log::replay::{Replay, ReplayedItems};
use crate::log::retention::OldSegment;
use crate::log::segment::{SegmentName, seal};
use crate::log::stream::{self, End, Ending, SegmentBytes};
use crate::sale::ids::{Moment, SaleId, Seq};
use crate::sale::partition::Partition;
use crate::sale::record::{LogEvent, Record};
use crate::sale::rules::Rules;
use crate::sale::shard::Inventory;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use thiserror::Error;

/// Maximum number of tries of one read-ahead. A try can fail because the writer removes a file or writes a block.
const READ_AHEAD_TRIES: u32 = 20;

/// Result of a recovery.
pub struct Recovered {
    /// Initial state of each shard of the new run.
    pub inventories: Vec<Inventory>,
    /// Streams of earlier runs, to be sealed.
    pub streams: Streams,
    /// Streams of earlier runs, each with its number of records.
    pub earlier: Vec<(StreamId, Seq)>,
    /// Sold and held items of the sale that continues.
    pub found: ReplayedItems,
    /// Number of records replayed.
    pub records: u64,
    /// Number of streams that ended in a torn tail.
    pub torn: usize,
}

/// End of each stream, as read or as reported by its writer, in the order of replay: by log, epoch, shard.
pub type Ends = BTreeMap<StreamKey, End>;

/// Streams of earlier runs.
pub struct Streams {
    /// Segments and end of each stream.
    streams: Vec<(Vec<SegmentName>, End)>,
    openings: Openings,
}

/// The records that open a sale in each purchase stream, with their numbers. Records of a sale follow its opening, but
/// they can also follow the opening of the next sale.
type Openings = BTreeMap<StreamKey, Vec<(Seq, SaleId)>>;

/// Recovery that is in progress.
pub struct Recovery {
    data: OpenDataDir,
    rules: Rules,
    now: Box<dyn Fn() -> Moment + Send>,
    replay: Replay,
    ends: Ends,
    openings: Openings,
    records: u64,
    /// Whether the log was read ahead. Then this run may have created segments of its own already.
    reads_ahead: bool,
}

impl Recovery {
    /// Creates a recovery of the logs in `data`, which has read nothing yet. `now` reads the clocks.
    pub fn new(
        data: OpenDataDir,
        partition: Partition,
        rules: Rules,
        now: impl Fn() -> Moment + Send + 'static,
    ) -> Self {
        let (replay, now) = (Replay::new(partition, rules, data.longest_hold_ms, now()), Box::new(now));
        let (ends, openings) = (Ends::new(), Openings::new());
        Recovery { data, rules, now, replay, ends, openings, records: 0, reads_ahead: false }
    }

    /// Reads the records that exist now, while another process may write more. Returns the number of records that were
    /// not read before.
    ///
    /// # Errors
    /// The errors of [`Recovery::finish`], if all tries have failed.
    pub fn read_ahead(&mut self) -> Result<u64, Fatal> {
        self.reads_ahead = true;
        let before = self.records;
        for tries_left in (0..READ_AHEAD_TRIES).rev() {
            let streams = self.list().map_err(|error| self.unreadable(error))?;
            match streams.iter().try_for_each(|(key, names)| self.read(*key, names, None)) {
                Ok(()) => return Ok(self.records - before),
                // The writer may have removed a file of an ended sale since it was listed, or have written a block
                // since the block before it was read. Both look like damage and are not, so try again.
                Err(ReadError::Unreadable(error)) if error.kind() == ErrorKind::NotFound && tries_left > 0 => {}
                Err(ReadError::Damaged(_)) if tries_left > 0 => {}
                Err(unread) => return Err(self.fatal(unread)),
            }
        }
        unreachable!("the last try returns")
    }

    /// Returns the number of held items of each shard, according to the records read so far.
    pub fn held(&self) -> Vec<u32> {
        self.replay.held()
    }

    /// Reads the remaining records and returns the state of the sale. `reported` has the ends that the previous process has
    /// reported: each purchase stream that has blocks must end exactly there.
    ///
    /// # Errors
    /// [`Fatal::Damaged`] if a durable record is missing or a record contradicts the rules, [`Fatal::DataDir`] if files
    /// cannot be read.
    pub fn finish(mut self, reported: &Ends) -> Result<Recovered, Fatal> {
        self.replay.at((self.now)());
        remove_unfinished(&self.data).map_err(|error| self.unreadable(error))?;
        let streams = self.list().map_err(|error| self.unreadable(error))?;
        for (key, names) in &streams {
            self.read(*key, names, reported.get(key)).map_err(|unread| self.fatal(unread))?;
        }
        let current = SaleId::at((self.now)().unix_ms, self.rules.period_s);
        let records = |key| streams.contains_key(&key).then(|| self.ends.get(&key).map_or(0, |end| end.records));
        if let Some(lost) = self.data.manifest.missing(current, records) {
            return Err(Fatal::Damaged(lost));
        }
        // Retention may have removed every segment of an attempt stream, so only purchase streams are checked.
        let mut promised = reported.iter().filter(|(key, end)| key.log == LogKind::Purchases && end.blocks > 0);
        if let Some((key, end)) = promised.find(|(key, end)| self.ends.get(key) != Some(end)) {
            let StreamKey { log, epoch, shard } = key;
            let log = log.name();
            let (reported, found) = (end.records, self.ends.get(key).map_or(0, |end| end.records));
            return Err(Fatal::Damaged(format!(
                "the previous process has written {reported} records to {log} of epoch {epoch}, shard {shard}, \
                 but the stream in the data directory ends differently, after {found} records"
            )));
        }
        let (inventories, found) = self.replay.finish().map_err(Fatal::Damaged)?;
        let streams: Vec<_> = streams.into_iter().map(|(key, names)| (names, self.ends[&key])).collect();
        let earlier = streams.iter().map(|(names, end)| (names[0].stream, end.records)).collect();
        let torn = streams.iter().filter(|(_, end)| end.ending == Ending::Torn).count();
        let (streams, records) = (Streams { streams, openings: self.openings }, self.records);
        Ok(Recovered { inventories, streams, earlier, found, records, torn })
    }

    fn list(&self) -> io::Result<BTreeMap<StreamKey, Vec<SegmentName>>> {
        let mut streams: BTreeMap<StreamKey, Vec<SegmentName>> = BTreeMap::new();
        for name in SegmentName::list(&self.data.logs, self.data.cluster)? {
            let key = name.stream.key();
            if key.epoch == self.data.epoch && self.reads_ahead {
                continue;
            }
            if key.epoch >= self.data.epoch {
                return Err(newer_than_control(&name));
            }
            streams.entry(key).or_default().push(name);
        }
        Ok(streams)
    }

    /// Reads the part of a stream that was not read before, up to the end that its writer has reported, if any.
    fn read(&mut self, key: StreamKey, names: &[SegmentName], reported: Option<&End>) -> Result<(), ReadError> {
        let known = self.ends.get(&key).copied();
        if known.is_some_and(|end| end.ending == Ending::Sealed) {
            return Ok(());
        }
        let stream = key.of_cluster(self.data.cluster);
        match (key.log, reported) {
            // Segments after the end are created but not written. To skip them, read segment by segment up to the end.
            (LogKind::Purchases, _) if self.reads_ahead => {
                for (read, name) in (1..).zip(names) {
                    self.read_purchases(&stream, &names[..read])?;
                    let end = self.ends[&key].blocks;
                    let is_the_end = end < name.first_block + u64::from(name.blocks);
                    if reported.map_or(is_the_end, |reported| end >= reported.blocks) {
                        break;
                    }
                }
            }
            (LogKind::Purchases, _) => self.read_purchases(&stream, names)?,
            // No reply depended on a record of an attempt, and there may be very many records, so only the end is read.
            (LogKind::Attempts, Some(reported)) => drop(self.ends.insert(key, *reported)),
            (LogKind::Attempts, None) => {
                let end = end_of_attempts(&self.data, &stream, names)?;
                self.ends.insert(key, end);
            }
        }
        Ok(())
    }

    fn read_purchases(&mut self, stream: &StreamId, names: &[SegmentName]) -> Result<(), ReadError> {
        let key = stream.key();
        let known = self.ends.get(&key);
        // Start with the segment of the last block read, so that the chain of blocks is checked across the border.
        let last_block = known.map_or(0, |end| end.blocks.saturating_sub(1));
        let is_read = |name: &&SegmentName| name.first_block + u64::from(name.blocks) <= last_block;
        let before = known.map_or(0, |end| end.records);
        let unread = &names[names.iter().take_while(is_read).count()..];
        if unread.is_empty() {
            return Ok(());
        }
        let segments = load(&self.data, unread)?;
        // The clock is read after the segments, so no record in them is newer than this time.
        self.replay.at((self.now)());
        let (mut new, reads_ahead) = (Vec::new(), self.reads_ahead);
        let end = stream::read(stream, &segments, |seq, record| {
            match seq > before {
                // The read may fail and be repeated, so replay these records only after it has succeeded.
                true if reads_ahead => new.push((seq, *record)),
                true => {
                    self.records += 1;
                    note_opening(&mut self.openings, key, seq, record);
                    self.replay.add(stream, seq, record);
                }
                false => {}
            }
            Ok(())
        })?;
        self.records += new.len() as u64;
        for (seq, record) in &new {
            note_opening(&mut self.openings, key, *seq, record);
            self.replay.add(stream, *seq, record);
        }
        self.ends.insert(key, end);
        Ok(())
    }

    fn fatal(&self, unread: ReadError) -> Fatal {
        match unread {
            ReadError::Damaged(damage) => Fatal::Damaged(damage.to_string()),
            ReadError::Unreadable(error) => self.unreadable(error),
        }
    }

    fn unreadable(&self, error: io::Error) -> Fatal {
        unreadable(&self.data.logs, error)
    }
}

impl Streams {
    /// Returns the streams that the next recovery must find, if the sale `open` is open.
    pub fn manifest(&self, open: SaleId) -> Manifest {
        let opens =
            |key: &StreamKey| self.openings.get(key).is_some_and(|sales| sales.iter().any(|(_, sale)| *sale >= open));
        let ends = self.streams.iter().filter_map(|(names, end)| Some((names.first()?.stream.key(), end.records)));
        let needed = ends.filter(|(key, _)| key.log == LogKind::Purchases && opens(key));
        Manifest::new(open, needed.map(|(StreamKey { epoch, shard, .. }, records)| (epoch, shard, records)).collect())
    }

    /// Adds the sizes of all segments to `budget`.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the size of a segment cannot be read.
    pub fn count(&self, data: &OpenDataDir, budget: &Budget) -> Result<(), Fatal> {
        for name in self.streams.iter().flat_map(|(names, _)| names) {
            let file = fs::metadata(name.path(&data.logs)).map_err(|error| unreadable(&data.logs, error))?;
            budget.add(name.stream.log, file.len());
        }
        Ok(())
    }

    /// Seals every stream that has no seal yet, which frees space of `budget`. Returns the segments that remain, oldest
    /// first, for retention.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if a segment cannot be read or written.
    pub fn seal(self, data: &OpenDataDir, budget: &Budget) -> Result<Vec<OldSegment>, Fatal> {
        let unreadable = |error| unreadable(&data.logs, error);
        let before = Budget::new(0, 1);
        self.count(data, &before)?;
        let mut old = Vec::new();
        for (names, end) in self.streams {
            let openings = names.first().and_then(|name| self.openings.get(&name.stream.key()));
            let left = if end.ending == Ending::Sealed {
                names
            } else {
                seal(&data.logs, &names, &end).map_err(unreadable)?
            };
            // A segment that has only the seal is needed as long as the segment before it.
            let (mut newest_sale, of_stream) = (SaleId(0), old.len());
            for name in left {
                let bytes = fs::metadata(name.path(&data.logs)).map_err(unreadable)?.len();
                let (sale, last) = name.last_record(&data.logs).map_err(unreadable)?;
                let opened = openings.into_iter().flatten().take_while(|(seq, _)| *seq <= last).map(|(_, sale)| *sale);
                newest_sale = opened.chain(sale).fold(newest_sale, SaleId::max);
                old.push(OldSegment { name, bytes, newest_sale, last, ends_stream: false });
            }
            // A segment that has only the seal has the same last record as the one before it.
            let last = old[of_stream..].last().map_or(0, |segment: &OldSegment| segment.last);
            old[of_stream..].iter_mut().for_each(|segment| segment.ends_stream = segment.last == last);
        }
        let after: u64 = old.iter().map(|segment| segment.bytes).sum();
        budget.removed(before.used().saturating_sub(after));
        old.sort_by_key(|segment| (segment.name.stream.epoch, segment.name.first_block));
        Ok(old)
    }
}

fn note_opening(openings: &mut Openings, key: StreamKey, seq: Seq, record: &Record) {
    if let LogEvent::SaleOpened { .. } = record.event {
        openings.entry(key).or_default().push((seq, record.sale));
    }
}

/// Reason why a stream could not be read.
#[derive(Debug, Error)]
enum ReadError {
    #[error(transparent)]
    Damaged(#[from] stream::Damage),
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// Returns the reason to end the process if files in `logs` cannot be read or written.
pub fn unreadable(logs: &Path, error: io::Error) -> Fatal {
    Fatal::DataDir(format!("{}: {error}", logs.display()))
}

/// Returns the error for a segment of a run that is newer than the control file.
pub fn newer_than_control(name: &SegmentName) -> io::Error {
    let file = name.path(Path::new(""));
    io::Error::other(format!("control.json is older than {}; restore its latest version", file.display()))
}

/// Removes the segments that the previous run was creating when it ended.
fn remove_unfinished(data: &OpenDataDir) -> io::Result<()> {
    for entry in fs::read_dir(&data.logs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn load(data: &OpenDataDir, names: &[SegmentName]) -> io::Result<Vec<SegmentBytes>> {
    names.iter().map(|name| name.read(&data.logs)).collect()
}

/// Finds the end of an attempt stream. Reads only as many of the last segments as are needed to find a good block.
fn end_of_attempts(data: &OpenDataDir, stream: &StreamId, names: &[SegmentName]) -> Result<End, ReadError> {
    for first in (0..names.len()).rev() {
        let segments = load(data, &names[first..])?;
        let end = stream::read(stream, &segments, |_, _| Ok(()));
        if first == 0 || matches!(&end, Ok(end) if end.blocks > names[first].first_block) {
            return Ok(end?);
        }
    }
    unreachable!("a stream has a segment")
}
