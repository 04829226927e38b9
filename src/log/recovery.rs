//! From the data directory to what each shard starts with.
//!
//! Every stream of earlier runs is read to its end by the table of `stream.rs`; purchases are replayed through
//! the rules; streams without a seal get one. Nothing is changed before everything has been read and found good.
//!
//! A log that is still being written can be read ahead: what follows is read in a moment then, when its writer has
//! stopped.

use crate::config::fatal::Fatal;
use crate::log::block::{LogKind, StreamId, StreamKey};
use crate::log::data_dir::Opened;
use crate::log::replay::{Replay, ReplayedItems};
use crate::log::retention::OldSegment;
use crate::log::segment::{SegmentName, seal};
use crate::log::stream::{self, End, Ending, SegmentBytes};
use crate::sale::ids::{Moment, SaleId, Seq};
use crate::sale::partition::Partition;
use crate::sale::shard::{Inventory, Rules};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use thiserror::Error;

/// How often reading ahead begins anew because retention has removed something meanwhile.
const READ_AHEAD_TRIES: u32 = 20;

/// What recovery brings back.
pub struct Recovered {
    /// For each shard of the new run.
    pub inventories: Vec<Inventory>,
    /// Streams of earlier runs, to be sealed.
    pub streams: Streams,
    /// Streams of earlier runs, and how many records each has.
    pub earlier: Vec<(StreamId, Seq)>,
    /// What the sale that goes on had come to.
    pub found: ReplayedItems,
    /// Records replayed.
    pub records: u64,
    /// Streams that ended in a torn tail.
    pub torn: usize,
}

/// A stream's log, epoch and shard: in the order of replay.
/// Where streams end, as far as their writers have said so.
pub type Ends = BTreeMap<StreamKey, End>;

/// Every stream's segments, and where it ends.
pub struct Streams(Vec<(Vec<SegmentName>, End)>);

/// A recovery in progress.
pub struct Recovery {
    data: Opened,
    now: Box<dyn Fn() -> Moment + Send>,
    replay: Replay,
    ends: Ends,
    records: u64,
    /// Beside a writer: this run may have made files of its own in advance.
    is_ahead: bool,
}

impl Recovery {
    /// A recovery of the logs in `data`, of which nothing is read. `now` reads the clocks.
    pub fn new(data: Opened, partition: Partition, now: impl Fn() -> Moment + Send + 'static) -> Self {
        let (replay, now) = (Replay::new(partition, now()), Box::new(now));
        Recovery { data, now, replay, ends: Ends::new(), records: 0, is_ahead: false }
    }

    /// Reads what is there while another process writes more. Returns how many records were new.
    ///
    /// # Errors
    /// As for [`Recovery::finish`].
    pub fn read_ahead(&mut self) -> Result<u64, Fatal> {
        self.is_ahead = true;
        let before = self.records;
        for tries_left in (0..READ_AHEAD_TRIES).rev() {
            let streams = self.list().map_err(|error| self.unreadable(error))?;
            match streams.iter().try_for_each(|(key, names)| self.read(*key, names, None)) {
                Ok(()) => return Ok(self.records - before),
                // A file of an ended sale may have been removed since it was listed, and a block written since the one
                // before it was read: both only look like damage.
                Err(Unread::Unreadable(error)) if error.kind() == ErrorKind::NotFound && tries_left > 0 => {}
                Err(Unread::Damaged(_)) if tries_left > 0 => {}
                Err(unread) => return Err(self.fatal(unread)),
            }
        }
        unreachable!("the last try returns")
    }

    /// How many items of each shard are held, as far as it has read.
    pub fn held(&self) -> Vec<u32> {
        self.replay.held()
    }

    /// Reads the rest, and brings the sale back. What a writer has `told` of its streams must be there, and is all there is.
    ///
    /// # Errors
    /// [`Fatal::Damaged`] if something durable is missing, [`Fatal::DataDir`] if files cannot be read.
    pub fn finish(mut self, rules: &Rules, told: &Ends) -> Result<Recovered, Fatal> {
        self.replay.at((self.now)());
        remove_unfinished(&self.data).map_err(|error| self.unreadable(error))?;
        let streams = self.list().map_err(|error| self.unreadable(error))?;
        for (key, names) in &streams {
            self.read(*key, names, told.get(key)).map_err(|unread| self.fatal(unread))?;
        }
        // Attempts may have been removed to the last one.
        let mut promised = told.iter().filter(|(key, end)| key.log == LogKind::Purchases && end.blocks > 0);
        if let Some((key, end)) = promised.find(|(key, end)| self.ends.get(key) != Some(end)) {
            let StreamKey { log, epoch, shard } = key;
            let log = log.name();
            let (told, found) = (end.records, self.ends.get(key).map_or(0, |end| end.records));
            return Err(Fatal::Damaged(format!(
                "of {log} of epoch {epoch}, shard {shard}, {told} records were written, and {found} are there as written"
            )));
        }
        let (inventories, found) = self.replay.finish(rules).map_err(Fatal::Damaged)?;
        let streams: Vec<_> = streams.into_iter().map(|(key, names)| (names, self.ends[&key])).collect();
        let earlier = streams.iter().map(|(names, end)| (names[0].stream, end.records)).collect();
        let torn = streams.iter().filter(|(_, end)| end.ending == Ending::Torn).count();
        Ok(Recovered { inventories, streams: Streams(streams), earlier, found, records: self.records, torn })
    }

    fn list(&self) -> io::Result<BTreeMap<StreamKey, Vec<SegmentName>>> {
        let mut streams: BTreeMap<StreamKey, Vec<SegmentName>> = BTreeMap::new();
        for name in SegmentName::list(&self.data.logs, self.data.cluster)? {
            let key = name.stream.key();
            if key.epoch == self.data.epoch && self.is_ahead {
                continue;
            }
            if key.epoch >= self.data.epoch {
                return Err(newer_than_control(&name));
            }
            streams.entry(key).or_default().push(name);
        }
        Ok(streams)
    }

    /// Reads what is not read yet of a stream, up to where its writer has `told` that it ends, if it has.
    fn read(&mut self, key: StreamKey, names: &[SegmentName], told: Option<&End>) -> Result<(), Unread> {
        let known = self.ends.get(&key).copied();
        if known.is_some_and(|end| end.ending == Ending::Sealed) {
            return Ok(());
        }
        let stream = key.of_cluster(self.data.cluster);
        match (key.log, told) {
            // What is made and not yet written need not be read: segment by segment, up to the end.
            (LogKind::Purchases, _) if self.is_ahead => {
                for (read, name) in (1..).zip(names) {
                    self.read_purchases(&stream, &names[..read])?;
                    let end = self.ends[&key].blocks;
                    let is_the_end = end < name.first_block + u64::from(name.blocks);
                    if told.map_or(is_the_end, |told| end >= told.blocks) {
                        break;
                    }
                }
            }
            (LogKind::Purchases, _) => self.read_purchases(&stream, names)?,
            // Nobody was promised anything about attempts, and there may be very many: only their end matters.
            (LogKind::Attempts, Some(told)) => drop(self.ends.insert(key, *told)),
            (LogKind::Attempts, None) => {
                let end = end_of_attempts(&self.data, &stream, names)?;
                self.ends.insert(key, end);
            }
        }
        Ok(())
    }

    fn read_purchases(&mut self, stream: &StreamId, names: &[SegmentName]) -> Result<(), Unread> {
        let key = stream.key();
        let known = self.ends.get(&key);
        // From the last block known, so that what follows can be seen to follow it.
        let last_block = known.map_or(0, |end| end.blocks.saturating_sub(1));
        let is_read = |name: &&SegmentName| name.first_block + u64::from(name.blocks) <= last_block;
        let before = known.map_or(0, |end| end.records);
        let unread = &names[names.iter().take_while(is_read).count()..];
        if unread.is_empty() {
            return Ok(());
        }
        let segments = load(&self.data, unread)?;
        // Nothing in them is younger than this.
        self.replay.at((self.now)());
        let (mut new, is_ahead) = (Vec::new(), self.is_ahead);
        let end = stream::read(stream, &segments, |seq, record| {
            match seq > before {
                // It may have to be read again.
                true if is_ahead => new.push((seq, *record)),
                true => {
                    self.records += 1;
                    self.replay.add(stream, seq, record);
                }
                false => {}
            }
            Ok(())
        })?;
        self.records += new.len() as u64;
        new.iter().for_each(|(seq, record)| self.replay.add(stream, *seq, record));
        self.ends.insert(key, end);
        Ok(())
    }

    fn fatal(&self, unread: Unread) -> Fatal {
        match unread {
            Unread::Damaged(damage) => Fatal::Damaged(damage.to_string()),
            Unread::Unreadable(error) => self.unreadable(error),
        }
    }

    fn unreadable(&self, error: io::Error) -> Fatal {
        unreadable(&self.data.logs, error)
    }
}

impl Streams {
    /// Seals every stream that has no seal yet. Returns the segments that are left, for retention to look after.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: they cannot be written.
    pub fn seal(self, data: &Opened) -> Result<Vec<OldSegment>, Fatal> {
        let unreadable = |error| unreadable(&data.logs, error);
        let mut old = Vec::new();
        for (names, end) in self.0 {
            let left = if end.ending == Ending::Sealed {
                names
            } else {
                seal(&data.logs, &names, &end).map_err(unreadable)?
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
        Ok(old)
    }
}

/// Why a stream could not be read.
#[derive(Debug, Error)]
enum Unread {
    #[error(transparent)]
    Damaged(#[from] stream::Damage),
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// The files in `logs` cannot be read or written.
pub fn unreadable(logs: &Path, error: io::Error) -> Fatal {
    Fatal::DataDir(format!("{}: {error}", logs.display()))
}

/// A run wrote this of which the control file knows nothing.
pub fn newer_than_control(name: &SegmentName) -> io::Error {
    let file = name.path(Path::new(""));
    io::Error::other(format!("control.json is older than {}; restore its latest version", file.display()))
}

/// Removes what the run before was making when it died.
fn remove_unfinished(data: &Opened) -> io::Result<()> {
    for entry in fs::read_dir(&data.logs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn load(data: &Opened, names: &[SegmentName]) -> io::Result<Vec<SegmentBytes>> {
    names.iter().map(|name| name.read(&data.logs)).collect()
}

/// Reads the last segments only: as many as it takes to find a good block in them.
fn end_of_attempts(data: &Opened, stream: &StreamId, names: &[SegmentName]) -> Result<End, Unread> {
    for first in (0..names.len()).rev() {
        let segments = load(data, &names[first..])?;
        let end = stream::read(stream, &segments, |_, _| Ok(()));
        if first == 0 || matches!(&end, Ok(end) if end.blocks > names[first].first_block) {
            return Ok(end?);
        }
    }
    unreachable!("a stream has a segment")
}
