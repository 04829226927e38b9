//! Recovery: turns the streams of earlier runs in a data directory into the state that each shard starts with:
//!
//! 1. Read each stream to its end, by the decision table of `stream`, record by record. Of an attempt stream, only the
//!    end is read.
//! 2. Replay the purchase streams through the rules, in the order of runs.
//! 3. Judge the damage of purchase streams by `losses`. Of a damaged attempt stream, all readable blocks are kept.
//! 4. Set aside the damaged segments that are not needed, and seal each stream that has no seal.
//!
//! No segment is changed before every stream has been read and no needed record was found missing. A new process can
//! read a log ahead that another process still writes: [`Recovery::read_ahead`] reads most of it, and
//! [`Recovery::finish`] reads the few records that remain when the other process has stopped writing.

use crate::config::fatal::Fatal;
use crate::log::block::{LogKind, StreamId, StreamKey};
use crate::log::budget::Budget;
use crate::log::data_dir::OpenDataDir;
use crate::log::losses::{DamagedBeginning, Openings};
use crate::log::manifest::Manifest;
use crate::log::replay::{Replay, ReplayedItems};
use crate::log::retention::OldSegment;
use crate::log::segment::{SegmentName, seal};
use crate::log::stream::{End, Ending};
use crate::log::stream_files::{Losses, Stopped, StreamFiles};
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::ids::{Moment, SaleId, Seq};
use crate::sale::partition::Partition;
use crate::sale::rules::Rules;
use crate::sale::shard::Inventory;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Maximum number of tries of one read-ahead. A try can fail because the writer removes a file or writes a block.
const READ_AHEAD_TRIES: u32 = 20;

/// Result of a recovery.
pub struct Recovered {
    /// Initial state of each shard of the new run.
    pub inventories: Vec<Inventory>,
    /// Streams of earlier runs, to be sealed.
    pub streams: Streams,
    /// Streams of earlier runs, each with the number of records that damage has taken from its beginning, and the number
    /// of all its records.
    pub earlier: Vec<(StreamId, Seq, Seq)>,
    /// Sold and held items of the sale that continues.
    pub found: ReplayedItems,
    /// Number of records replayed.
    pub records: u64,
    /// Number of streams that ended in a torn tail.
    pub torn: usize,
}

/// The segments of each stream, oldest first.
type StreamNames = BTreeMap<StreamKey, Vec<SegmentName>>;

/// End of each stream, as read or as reported by its writer, in the order of replay: by log, epoch, shard.
pub type Ends = BTreeMap<StreamKey, End>;

/// Streams of earlier runs.
pub struct Streams {
    /// Segments and end of each stream.
    streams: Vec<(Vec<SegmentName>, End)>,
    openings: Openings,
    /// Damaged segments that are not needed.
    damaged: Vec<DamagedBeginning>,
    /// Damage of attempt streams, and the number of records that it has cost.
    damaged_attempts: Vec<(Losses, Seq)>,
}

/// Recovery that is in progress.
pub struct Recovery {
    data: OpenDataDir,
    plan: Option<LoadedPlan>,
    now: Box<dyn Fn() -> Moment + Send>,
    replay: Replay,
    ends: Ends,
    openings: Openings,
    /// The purchase streams.
    purchases: BTreeMap<StreamKey, StreamFiles>,
    /// Damage of attempt streams, and the number of records that it has cost.
    damaged_attempts: BTreeMap<StreamKey, (Losses, Seq)>,
    records: u64,
    /// Whether the log was read ahead. Then this run may have created segments of its own already.
    reads_ahead: bool,
}

impl Recovery {
    /// Creates a recovery of the logs in `data`, which has read nothing yet, for a run with these rules and the plan that
    /// they come from. `now` reads the clocks.
    pub fn new(
        data: OpenDataDir,
        partition: Partition,
        (rules, plan): (Rules, Option<LoadedPlan>),
        now: impl Fn() -> Moment + Send + 'static,
    ) -> Self {
        let earlier = (data.longest_hold_ms, data.sale_period_s);
        let (replay, now) = (Replay::new(partition, rules, earlier, now()), Box::new(now));
        Recovery {
            data,
            plan,
            now,
            replay,
            ends: Ends::new(),
            openings: Openings::default(),
            purchases: BTreeMap::new(),
            damaged_attempts: BTreeMap::new(),
            records: 0,
            reads_ahead: false,
        }
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
                // The writer may have removed a file of an ended sale since it was listed, so try again.
                Err(error) if error.kind() == ErrorKind::NotFound && tries_left > 0 => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        unreachable!("the last try returns")
    }

    /// Returns the damage of the records read so far, which concerns no sale that is needed.
    ///
    /// # Errors
    /// The reason to end the process, if a sale may be needed.
    pub fn damaged(&self) -> Result<Vec<DamagedBeginning>, Fatal> {
        let mut streams = self.list().map_err(|error| self.unreadable(error))?;
        self.take_damaged(&mut streams)
    }

    /// Checks the plan against the sales that have opened, according to the records read so far.
    ///
    /// # Errors
    /// [`Fatal::Plan`], or without a plan [`Fatal::DataDir`]: they contradict each other.
    pub fn check_plan(&self) -> Result<(), Fatal> {
        self.replay.contradiction().map_or(Ok(()), |contradiction| Err(contradiction.fatal(self.plan)))
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
            self.read(*key, names, reported.get(key)).map_err(|error| self.unreadable(error))?;
        }
        let mut left = streams.clone();
        let damaged = self.take_damaged(&mut left)?;
        let records = |key| streams.contains_key(&key).then(|| self.ends.get(&key).map_or(0, |end| end.records));
        if let Some(lost) = self.data.manifest.missing(|sale| self.replay.have_closed(sale), records) {
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
        self.check_plan()?;
        let (inventories, found) = self.replay.finish().map_err(Fatal::Damaged)?;
        let first = |id: &StreamId| damaged.iter().find(|beginning| beginning.id == *id).and_then(|it| it.last);
        left.retain(|_, names| !names.is_empty());
        let streams: Vec<_> = left.into_iter().map(|(key, names)| (names, self.ends[&key])).collect();
        let earlier = streams.iter().map(|(names, end)| (names[0].stream, end.records));
        let earlier = earlier.map(|(id, records)| (id, first(&id).unwrap_or(0), records)).collect();
        let torn = streams.iter().filter(|(_, end)| end.ending == Ending::Torn).count();
        let (openings, damaged_attempts) = (self.openings, self.damaged_attempts.into_values().collect());
        let streams = Streams { streams, openings, damaged, damaged_attempts };
        Ok(Recovered { inventories, streams, earlier, found, records: self.records, torn })
    }

    /// Takes the damaged segments out of `streams`.
    ///
    /// # Errors
    /// The reason to end the process, if a sale of theirs may be needed.
    fn take_damaged(&self, streams: &mut StreamNames) -> Result<Vec<DamagedBeginning>, Fatal> {
        let mut damaged = Vec::new();
        for (key, files) in &self.purchases {
            let (Some(losses), Some(names)) = (files.losses(), streams.get_mut(key)) else { continue };
            let (place, found) = ((&*self.data.logs, key.of_cluster(self.data.cluster)), (losses, files.end()));
            let (known, is_over) = ((&self.openings, &self.data.manifest), |sale| self.replay.is_over(sale));
            damaged.extend(DamagedBeginning::judge(place, found, names, known, is_over)?);
        }
        Ok(damaged)
    }

    fn list(&self) -> io::Result<StreamNames> {
        let mut streams = StreamNames::new();
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

    /// Reads the part of a stream that was not read before, up to the end that its writer has reported, if any. Damage is
    /// no error; [`Recovery::take_damaged`] judges it.
    fn read(&mut self, key: StreamKey, names: &[SegmentName], reported: Option<&End>) -> io::Result<()> {
        let known = self.ends.get(&key).copied();
        if known.is_some_and(|end| end.ending == Ending::Sealed) {
            return Ok(());
        }
        let end = match (key.log, reported) {
            (LogKind::Purchases, _) => self.read_purchases(key, names, reported)?,
            // No reply depended on a record of an attempt, and there may be very many records, so only the end is read.
            (LogKind::Attempts, Some(reported)) => {
                self.damaged_attempts.remove(&key);
                *reported
            }
            (LogKind::Attempts, None) => {
                let (end, damaged) = end_of_attempts(&self.data, key.of_cluster(self.data.cluster), names)?;
                self.damaged_attempts.extend(damaged.map(|damaged| (key, damaged)));
                end
            }
        };
        self.ends.insert(key, end);
        Ok(())
    }

    /// Reads and replays the records of a purchase stream that were not read before.
    fn read_purchases(&mut self, key: StreamKey, names: &[SegmentName], reported: Option<&End>) -> io::Result<End> {
        let (id, reads_ahead) = (key.of_cluster(self.data.cluster), self.reads_ahead);
        let mut names = names.to_vec();
        // Segments after the end are created but not written. To skip them, stop after the segment with the end.
        let is_enough = |end: &End, name: &SegmentName| {
            let is_the_end = end.blocks < name.end_block() && end.ending == Ending::Clean;
            reads_ahead && reported.map_or(is_the_end, |reported| end.blocks >= reported.blocks)
        };
        let mut suspected_block = None;
        loop {
            let Recovery { purchases, replay, openings, records, now, data, .. } = &mut *self;
            let files = purchases.entry(key).or_insert_with(|| StreamFiles::new(&data.logs, id));
            let passed = files.pass(&names, is_enough, |seq, record| {
                // No record may be newer than the time of the replay, or its hold would be shortened.
                if record.unix_ms > replay.now().unix_ms {
                    replay.at(now());
                }
                *records += 1;
                openings.note(key, seq, record);
                replay.add(&id, seq, record);
                Ok::<(), Infallible>(())
            });
            let end = *files.end();
            match passed {
                Ok(()) => return Ok(end),
                Err(Stopped::Unreadable(error)) => return Err(error),
                // The writer may have written the block since it was read, so look again.
                Err(Stopped::Damaged(_)) if reads_ahead && suspected_block != Some(end.blocks) => {
                    suspected_block = Some(end.blocks);
                    names = self.list()?.remove(&key).unwrap_or_default();
                }
                Err(Stopped::Damaged(damage)) => files.accept(damage),
                Err(Stopped::Refused(never)) => match never {},
            }
        }
    }

    fn unreadable(&self, error: io::Error) -> Fatal {
        unreadable(&self.data.logs, error)
    }
}

impl Streams {
    /// Returns the streams that the next recovery must find, if `oldest_open` is the oldest open sale.
    pub fn manifest(&self, oldest_open: SaleId) -> Manifest {
        let opens = |key: &StreamKey| self.openings.of(*key).iter().any(|(_, sale)| *sale >= oldest_open);
        let ends = self.streams.iter().filter_map(|(names, end)| Some((names.first()?.stream.key(), end.records)));
        let needed = ends.filter(|(key, _)| key.log == LogKind::Purchases && opens(key));
        let needed = needed.map(|(StreamKey { epoch, shard, .. }, records)| (epoch, shard, records));
        Manifest::new(oldest_open, needed.collect())
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

    /// Returns the damaged segments that no sale needs.
    pub fn damaged(&self) -> &[DamagedBeginning] {
        &self.damaged
    }

    /// Sets aside the damaged segments that are not needed, and seals every stream that has no seal yet, which frees
    /// space of `budget`. Returns the segments that remain, oldest first, for retention.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if a segment cannot be read or written.
    pub fn seal(self, data: &OpenDataDir, budget: &Budget) -> Result<Vec<OldSegment>, Fatal> {
        let unreadable = |error| unreadable(&data.logs, error);
        let before = Budget::new(0, 1);
        self.count(data, &before)?;
        self.damaged.iter().try_for_each(|beginning| beginning.set_aside(&data.logs)).map_err(unreadable)?;
        for (Losses { first: damage, .. }, records) in &self.damaged_attempts {
            let text =
                "refused attempts are lost in the log: the others are kept, and no sale needs them; check the disk";
            tracing::warn!(%damage, records, "{text}");
        }
        let mut old = Vec::new();
        for (names, end) in self.streams {
            let openings = names.first().map_or(&[][..], |name| self.openings.of(name.stream.key()));
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
                // Attempts that cannot be read are kept as long as the end of the stream.
                let last = last.unwrap_or(end.records);
                let opened = openings.iter().take_while(|(seq, _)| *seq <= last).map(|(_, sale)| *sale);
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

/// Finds the end of an attempt stream, and the damage before it in the same segment. Reads as many of the last segments
/// as are needed to find a good block, and only the seal if there is one. Continues behind any damage.
fn end_of_attempts(
    data: &OpenDataDir,
    id: StreamId,
    names: &[SegmentName],
) -> io::Result<(End, Option<(Losses, Seq)>)> {
    if let Some(seal) = names.last().map(|name| name.seal_at_end(&data.logs)).transpose()?.flatten() {
        return Ok((seal, None));
    }
    let (mut is_torn, mut damaged) = (false, None);
    for place in (0..names.len()).rev() {
        let mut files = StreamFiles::new(&data.logs, id);
        // No segment after this one has a good block.
        let name = std::slice::from_ref(&names[place]);
        loop {
            match files.pass(name, |_, _| false, |_, _| Ok::<(), Infallible>(())) {
                Ok(()) => break,
                Err(Stopped::Unreadable(error)) => return Err(error),
                Err(Stopped::Damaged(damage)) => files.accept(damage),
                Err(Stopped::Refused(never)) => match never {},
            }
        }
        let mut end = *files.end();
        damaged = files.losses().cloned().map(|losses| (losses, files.lost())).or(damaged);
        if place == 0 || end.records > 0 || end.ending == Ending::Sealed {
            end.ending = if is_torn && end.ending == Ending::Clean { Ending::Torn } else { end.ending };
            return Ok((end, damaged));
        }
        is_torn |= end.ending == Ending::Torn;
    }
    unreachable!("a stream has a segment")
}
