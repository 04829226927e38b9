//! Reads the whole log of a data directory, also while a server writes it. Takes no lock and changes nothing.
//!
//! The log may change between two reads. A block that was not written yet when it was read looks lost, because a later
//! block proves that it was flushed. A file that retention removes looks missing. So a stream counts as damaged only if
//! a second pass, begun after the first, finds damage at the same block. What can be read behind the damage is read.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::{LogKind, StreamId};
use crate::log::data_dir::{Control, DataDir};
use crate::log::losses::{DamagedBeginning, Openings, Persisted};
use crate::log::manifest::Manifest;
use crate::log::recovery::{newer_than_control, unreadable};
use crate::log::replay::Replay;
use crate::log::segment::{SET_ASIDE, SegmentName};
use crate::log::stream::End;
use crate::log::stream_files::{Losses, Stopped, StreamFiles};
use crate::sale::ids::{Moment, SaleId, Seq};
use crate::sale::partition::Partition;
use crate::sale::record::{LogEvent, Record};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Maximum number of attempts before an error is reported.
const ATTEMPTS_MAX: u32 = 3;

/// Runs `look`, which reads everything and writes a report, and repeats it up to three times while it fails. Streams
/// are read one after the other, so a server that writes meanwhile can cause a false error. Returns the last report and
/// its result.
pub fn look(look: impl Fn(&mut String) -> Result<(), Fatal>) -> (String, Result<(), Fatal>) {
    let mut looks_left = ATTEMPTS_MAX;
    loop {
        looks_left -= 1;
        let mut report = String::new();
        let verdict = look(&mut report);
        if verdict.is_ok() || looks_left == 0 {
            return (report, verdict);
        }
    }
}

/// Returns the number with its noun, in the singular or plural.
pub fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A data directory and the streams of its log, in the order of run, shard and log.
pub struct LogScan {
    /// Content of `control.json`.
    pub control: Control,
    /// The purchase streams that must exist, as of the time before the streams were listed.
    manifest: Manifest,
    /// Streams, each with the state of its reading.
    pub streams: Vec<ScannedStream>,
    /// Segments that a start has set aside, because they are damaged and not needed.
    pub set_aside: Vec<String>,
    logs: PathBuf,
    openings: Openings,
    /// A record that opens each sale.
    opened: BTreeMap<SaleId, Record>,
}

impl LogScan {
    /// Lists the streams of the data directory. Reads no records.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: there is no log, or it cannot be read.
    pub fn new(data_dir: &Path) -> Result<LogScan, Fatal> {
        let (logs, Control { cluster, manifest, .. }) = DataDir::open_read_only(data_dir)?;
        let names = SegmentName::list(&logs, cluster).map_err(|error| unreadable(&logs, error))?;
        // Read the control file again: a run that has begun meanwhile raises the epoch before it creates files.
        let (_, control) = DataDir::open_read_only(data_dir)?;
        if let Some(name) = names.iter().find(|name| name.stream.epoch > control.epoch) {
            return Err(unreadable(&logs, newer_than_control(name)));
        }
        let mut streams: Vec<ScannedStream> = Vec::new();
        for name in names {
            if streams.last().is_none_or(|stream| stream.id != name.stream) {
                streams.push(ScannedStream::new(&logs, name.stream));
            }
        }
        let entries = fs::read_dir(&logs).map_err(|error| unreadable(&logs, error))?.filter_map(Result::ok);
        let files = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut set_aside: Vec<_> = files.filter(|name| name.contains(SET_ASIDE)).collect();
        set_aside.sort();
        Ok(LogScan {
            control,
            manifest,
            streams,
            set_aside,
            logs,
            openings: Openings::default(),
            opened: BTreeMap::new(),
        })
    }

    /// Reads the records that were not read before, and passes each to `visit` once.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: a file cannot be read. Or the error of `visit`. Damage is no error; it is kept.
    pub fn read<E: From<Fatal>>(
        &mut self,
        mut visit: impl FnMut(&StreamId, Seq, &Record) -> Result<(), E>,
    ) -> Result<(), E> {
        for stream in &mut self.streams {
            stream.read(|id, seq, record| {
                if id.log == LogKind::Purchases {
                    self.openings.note(id.key(), seq, record);
                    if let LogEvent::SaleOpened { .. } = record.event {
                        self.opened.insert(record.sale, *record);
                    }
                }
                visit(id, seq, record)
            })?;
        }
        Ok(())
    }

    /// Returns whether attempts are lost in the log.
    pub fn lacks_attempts(&self) -> bool {
        let is_damaged = |stream: &ScannedStream| stream.id.log == LogKind::Attempts && stream.losses().is_some();
        self.streams.iter().any(is_damaged)
    }

    /// Returns the number of records that the log has.
    pub fn records(&self) -> Seq {
        self.streams.iter().map(|stream| stream.end().records - stream.first() - stream.lost()).sum()
    }

    /// Judges the damage of the purchase streams at the time `now`, as a start would. Returns the damage that concerns
    /// nothing that is needed.
    ///
    /// # Errors
    /// The error with which a server would refuse to start, if a stream is damaged or missing.
    pub fn judge(&self, config: &Config, now: Moment, persisted: &Persisted) -> Result<Vec<DamagedBeginning>, Fatal> {
        let rules = config.rules.with_period(self.control.sale_period_s);
        let Control { longest_hold_ms, sale_period_s, .. } = self.control;
        let mut replay = Replay::new(Partition::new(1), rules, (longest_hold_ms, sale_period_s), now);
        // A sale of a plan is known only by its records.
        self.opened.values().for_each(|opened| _ = replay.record(opened));
        let mut damaged = Vec::new();
        for stream in self.streams.iter().filter(|stream| stream.id.log == LogKind::Purchases) {
            let Some(losses) = stream.losses() else { continue };
            let is_over = |sale| replay.is_over(sale);
            let mut names = stream.names.clone();
            let place = (&*self.logs, stream.id);
            damaged.extend(DamagedBeginning::judge(
                place,
                (losses, stream.end()),
                &mut names,
                (&self.openings, &self.manifest),
                is_over,
            )?);
        }
        damaged.iter().try_for_each(|beginning| beginning.require_persisted(&self.logs, persisted))?;
        let records =
            |key| self.streams.iter().find(|stream| stream.id.key() == key).map(|stream| stream.end().records);
        match self.manifest.missing(|sale| replay.have_closed(sale), records) {
            Some(lost) => Err(Fatal::Damaged(lost)),
            None => Ok(damaged),
        }
    }
}

/// A stream and the state of its reading.
pub struct ScannedStream {
    /// Id of the stream.
    pub id: StreamId,
    /// Segments at the last pass, oldest first.
    pub names: Vec<SegmentName>,
    logs: PathBuf,
    files: StreamFiles,
}

impl ScannedStream {
    fn new(logs: &Path, id: StreamId) -> ScannedStream {
        let files = StreamFiles::new(logs, id);
        ScannedStream { id, names: Vec::new(), logs: logs.to_owned(), files }
    }

    /// Returns the end of the stream, as of the last pass.
    pub fn end(&self) -> &End {
        self.files.end()
    }

    /// Returns the damage of the stream, if there is any.
    pub fn losses(&self) -> Option<&Losses> {
        self.files.losses()
    }

    /// Returns the number of records that damage has cost, as far as later blocks show it.
    pub fn lost(&self) -> Seq {
        self.files.lost()
    }

    /// Returns the number of records that were removed from the beginning of the stream.
    pub fn first(&self) -> Seq {
        self.files.first().unwrap_or(self.end().records)
    }

    /// Reads the records that were not read before, and passes each record to `visit` once.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: a file cannot be read. Or the error of `visit`. Damage is no error; it is kept in `losses`.
    pub fn read<E: From<Fatal>>(
        &mut self,
        mut visit: impl FnMut(&StreamId, Seq, &Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut suspected_block = None;
        loop {
            let unreadable = |error| unreadable(&self.logs, error);
            let mut names = SegmentName::list(&self.logs, self.id.cluster).map_err(unreadable)?;
            names.retain(|name| name.stream == self.id);
            self.names = names;
            let id = self.id;
            let passed = self.files.pass(&self.names, |_, _| false, |seq, record| visit(&id, seq, record));
            match passed {
                Ok(()) => return Ok(()),
                Err(Stopped::Refused(error)) => return Err(error),
                // Retention has removed the file after it was listed.
                Err(Stopped::Unreadable(error)) if error.kind() == ErrorKind::NotFound => {}
                Err(Stopped::Unreadable(error)) => Err(unreadable(error))?,
                Err(Stopped::Damaged(damage)) if suspected_block == Some(self.end().blocks) => {
                    self.files.accept(damage)
                }
                Err(Stopped::Damaged(_)) => suspected_block = Some(self.end().blocks),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::BLOCK_BYTES;
    use crate::log::damage::Damage;
    use crate::log::sample::{PURCHASES, SampleStream};
    use crate::log::segment::seal;
    use crate::log::stream::Ending;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    /// Reads the stream, and calls `meanwhile` at each record.
    fn read(writer: &mut SampleStream, mut meanwhile: impl FnMut(&mut SampleStream, Seq)) -> (ScannedStream, Vec<Seq>) {
        let mut stream = ScannedStream::new(writer.dir.path(), PURCHASES);
        let mut seqs = Vec::new();
        let read = stream.read(|_, seq, _| {
            seqs.push(seq);
            meanwhile(writer, seq);
            Ok::<(), Fatal>(())
        });
        read.unwrap();
        (stream, seqs)
    }

    fn damage(stream: &ScannedStream) -> Option<Damage> {
        stream.losses().map(|losses| losses.first.clone())
    }

    #[test]
    fn what_is_written_meanwhile_is_no_damage() {
        // When the first segment is read, it is half full. It is full before the second segment is read.
        let mut writer = SampleStream::new(PURCHASES, 5);
        let half = fs::read(SampleStream::name(PURCHASES, 0).path(writer.dir.path())).unwrap();
        let first = SampleStream::name(PURCHASES, 0).path(writer.dir.path());
        fs::write(&first, [&half[..2 * BLOCK_BYTES], &vec![0; 2 * BLOCK_BYTES]].concat()).unwrap();
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 2 {
                fs::write(&first, &half).unwrap();
                writer.write(2);
            }
        });
        assert_eq!((damage(&stream), seqs), (None, (1..=7).collect()));
        assert_eq!((stream.end().records, stream.first()), (7, 0));
    }

    #[test]
    fn what_stays_lost_is_damage() {
        let mut writer = SampleStream::new(PURCHASES, 9);
        let first = File::options().write(true).open(SampleStream::name(PURCHASES, 0).path(writer.dir.path())).unwrap();
        first.write_all_at(&[9], 2 * BLOCK_BYTES as u64 + 100).unwrap();
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert!(matches!(damage(&stream), Some(Damage::Block { number: 2, .. })), "{:?}", stream.losses());
        assert_eq!((seqs, stream.end().records, stream.lost()), (vec![1, 2, 4, 5, 6, 7, 8, 9], 9, 1));
        let mut writer = SampleStream::new(PURCHASES, 13);
        writer.remove(4);
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert!(matches!(damage(&stream), Some(Damage::Gap { expected: 4, .. })), "{:?}", stream.losses());
        assert_eq!((seqs, stream.lost()), (vec![1, 2, 3, 4, 9, 10, 11, 12, 13], 4));
    }

    #[test]
    fn what_retention_removes_meanwhile_is_not_missed() {
        let mut writer = SampleStream::new(PURCHASES, 14);
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 4 {
                writer.remove(0);
                writer.remove(4);
            }
        });
        assert_eq!((damage(&stream), seqs), (None, vec![1, 2, 3, 4, 9, 10, 11, 12, 13, 14]));
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert_eq!((damage(&stream), stream.first(), seqs), (None, 8, (9..=14).collect()));
    }

    #[test]
    fn a_start_that_seals_the_stream_meanwhile_changes_nothing() {
        let mut writer = SampleStream::new(PURCHASES, 6);
        let mut sealed = ScannedStream::new(writer.dir.path(), PURCHASES);
        sealed.read(|_, _, _| Ok::<(), Fatal>(())).unwrap();
        let end = *sealed.end();
        let names = [0, 4].map(|number| SampleStream::name(PURCHASES, number));
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 2 {
                seal(writer.dir.path(), &names, &end).unwrap();
            }
        });
        assert_eq!((damage(&stream), seqs.len(), stream.end().ending), (None, 6, Ending::Sealed));
        // A second reading finds no new records. The end was clean before, and is sealed now.
        sealed.read(|_, _, _| panic!("there is nothing new") as Result<(), Fatal>).unwrap();
        assert_eq!(sealed.end(), stream.end());
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let mut writer = SampleStream::new(PURCHASES, 3);
        let mut stream = ScannedStream::new(writer.dir.path(), PURCHASES);
        stream.read(|_, _, _| Ok::<(), Fatal>(())).unwrap();
        writer.write(4);
        let mut seqs = Vec::new();
        let read = stream.read(|_, seq, _| {
            seqs.push(seq);
            Ok::<(), Fatal>(())
        });
        read.unwrap();
        assert_eq!(seqs, [4, 5, 6, 7]);
    }
}
