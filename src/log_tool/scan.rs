//! Reads the whole log of a data directory, also while a server writes it. Takes no lock and changes nothing.
//!
//! The log may change between two reads. A block that was not written yet when it was read looks lost, because a later
//! block proves that it was flushed. A file that retention removes looks missing. So a stream counts as damaged only if
//! a second pass, begun after the first, finds damage at the same block.

use crate::config::fatal::Fatal;
use crate::log::block::StreamId;
use crate::log::data_dir::{Control, DataDir};
use crate::log::manifest::Manifest;
use crate::log::recovery::{newer_than_control, unreadable};
use crate::log::segment::SegmentName;
use crate::log::stream::{Damage, End, Ending, StreamReading};
use crate::sale::ids::{SaleId, Seq};
use crate::sale::record::Record;
use crate::system::clock::Clock;
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
        Ok(LogScan { control, manifest, streams })
    }

    /// Returns the number of records that the log has.
    pub fn records(&self) -> Seq {
        self.streams.iter().map(|stream| stream.end.records - stream.first()).sum()
    }

    /// Returns the error with which a server would refuse to start, if a stream is damaged or missing.
    ///
    /// # Errors
    /// [`Fatal::Damaged`]: something durable is lost.
    pub fn judge(&self) -> Result<(), Fatal> {
        let current = SaleId::at(Clock::start().now().unix_ms, self.control.sale_period_s);
        let records = |key| self.streams.iter().find(|stream| stream.id.key() == key).map(|stream| stream.end.records);
        let damage = self.streams.iter().find_map(|stream| stream.damage.as_ref()).map(Damage::to_string);
        let lost = damage.or_else(|| self.manifest.missing(current, records));
        lost.map_or(Ok(()), |lost| Err(Fatal::Damaged(lost)))
    }
}

/// A stream and the state of its reading.
pub struct ScannedStream {
    /// Id of the stream.
    pub id: StreamId,
    /// Number of segments at the last pass.
    pub segments: usize,
    /// Damage after which nothing can be read.
    pub damage: Option<Damage>,
    logs: PathBuf,
    /// Number of records before the first one that was visited.
    first: Option<Seq>,
    end: End,
    /// State of the reading at the end of the last full segment.
    full: StreamReading,
    /// Number of the last visited record.
    seen: Seq,
}

impl ScannedStream {
    fn new(logs: &Path, id: StreamId) -> ScannedStream {
        let full = StreamReading::new(id);
        let end = *full.end();
        ScannedStream { id, segments: 0, damage: None, logs: logs.to_owned(), first: None, end, full, seen: 0 }
    }

    /// Returns the end of the stream, as of the last pass.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Returns the number of records that were removed from the beginning of the stream.
    pub fn first(&self) -> Seq {
        self.first.unwrap_or(self.end.records)
    }

    /// Reads the records that were not read before, segment by segment, and passes each record to `visit` once.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: a file cannot be read. Or the error of `visit`. Damage is no error; it is kept in `damage`.
    pub fn read<E: From<Fatal>>(
        &mut self,
        mut visit: impl FnMut(&StreamId, Seq, &Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut damaged_at = None;
        while self.end.ending != Ending::Sealed && self.damage.is_none() {
            match self.pass(&mut visit)? {
                Pass::Through => break,
                Pass::Removed => {}
                Pass::Damaged(damage) if damaged_at == Some(self.end.blocks) => self.damage = Some(damage),
                Pass::Damaged(_) => damaged_at = Some(self.end.blocks),
            }
        }
        Ok(())
    }

    fn pass<E: From<Fatal>>(
        &mut self,
        visit: &mut impl FnMut(&StreamId, Seq, &Record) -> Result<(), E>,
    ) -> Result<Pass, E> {
        let unreadable = |error| unreadable(&self.logs, error);
        let mut names = SegmentName::list(&self.logs, self.id.cluster).map_err(unreadable)?;
        names.retain(|name| name.stream == self.id);
        // Retention has removed the next segment: begin again at the first one that is left.
        if names.first().is_some_and(|name| name.first_block > self.full.end().blocks) {
            self.full = StreamReading::new(self.id);
        }
        let (mut reading, from) = (self.full.clone(), self.full.end().blocks);
        self.segments = names.len();
        for name in names.iter().filter(|name| name.first_block >= from) {
            let segment = match name.read(&self.logs) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Pass::Removed),
                read => read.map_err(unreadable)?,
            };
            let mut new = Vec::new();
            let read = reading.segment(&segment, |seq, record| {
                new.extend((seq > self.seen).then_some((seq, *record)));
                Ok(())
            });
            for (seq, record) in new {
                self.first.get_or_insert(seq - 1);
                self.seen = seq;
                visit(&self.id, seq, &record)?;
            }
            self.end = *reading.end();
            if let Err(damage) = read {
                return Ok(Pass::Damaged(damage));
            }
            if reading.is_whole() {
                self.full = reading.clone();
            }
        }
        Ok(reading.finish().map_or_else(Pass::Damaged, |_| Pass::Through))
    }
}

/// The result of one pass over the new part of a stream.
enum Pass {
    /// The stream was read to its end.
    Through,
    /// A file was removed after it was listed.
    Removed,
    /// The stream looks damaged.
    Damaged(Damage),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::{BLOCK_BYTES, Chain, LogKind};
    use crate::log::segment::seal;
    use crate::sale::ids::{ItemId, SaleId, UserId};
    use crate::sale::record::{LogEvent, RECORD_BYTES};
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use uuid::Uuid;

    const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log: LogKind::Purchases };
    const BLOCKS: u64 = 4;

    /// Writes a stream into segments of four blocks, with one record in each block.
    struct Writer {
        dir: tempfile::TempDir,
        chain: Chain,
    }

    impl Writer {
        fn new(blocks: usize) -> Writer {
            let mut writer = Writer { dir: tempfile::tempdir().unwrap(), chain: Chain::new(STREAM) };
            writer.write(blocks);
            writer
        }

        fn name(number: u64) -> SegmentName {
            SegmentName { stream: STREAM, first_block: number / BLOCKS * BLOCKS, blocks: BLOCKS as u32 }
        }

        fn write(&mut self, blocks: usize) {
            for _ in 0..blocks {
                let (number, flushed) = (self.chain.blocks(), self.chain.records());
                let (path, mut bytes) = (Self::name(number).path(self.dir.path()), vec![0; BLOCK_BYTES]);
                if number % BLOCKS == 0 {
                    fs::write(&path, vec![0; BLOCKS as usize * BLOCK_BYTES]).unwrap();
                }
                let event = LogEvent::Checkout {
                    item: ItemId(1),
                    user: UserId(1),
                    code: crate::sale::code::Code::NONE,
                    ttl_ms: 1,
                    key: Uuid::nil(),
                };
                let record = Record { sale: SaleId(1), unix_ms: number, event }.encode();
                self.chain.extend(&mut bytes, &record[..RECORD_BYTES], flushed);
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(&bytes, number % BLOCKS * BLOCK_BYTES as u64).unwrap();
            }
        }

        fn remove(&self, number: u64) {
            fs::remove_file(Self::name(number).path(self.dir.path())).unwrap();
        }
    }

    /// Reads the stream, and calls `meanwhile` at each record.
    fn read(writer: &mut Writer, mut meanwhile: impl FnMut(&mut Writer, Seq)) -> (ScannedStream, Vec<Seq>) {
        let mut stream = ScannedStream::new(writer.dir.path(), STREAM);
        let mut seqs = Vec::new();
        let read = stream.read(|_, seq, _| {
            seqs.push(seq);
            meanwhile(writer, seq);
            Ok::<(), Fatal>(())
        });
        read.unwrap();
        (stream, seqs)
    }

    #[test]
    fn what_is_written_meanwhile_is_no_damage() {
        // When the first segment is read, it is half full. It is full before the second segment is read.
        let mut writer = Writer::new(5);
        let half = fs::read(Writer::name(0).path(writer.dir.path())).unwrap();
        let first = Writer::name(0).path(writer.dir.path());
        fs::write(&first, [&half[..2 * BLOCK_BYTES], &vec![0; 2 * BLOCK_BYTES]].concat()).unwrap();
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 2 {
                fs::write(&first, &half).unwrap();
                writer.write(2);
            }
        });
        assert_eq!((stream.damage.clone(), seqs), (None, (1..=7).collect()));
        assert_eq!((stream.end().records, stream.first()), (7, 0));
    }

    #[test]
    fn what_stays_lost_is_damage() {
        let mut writer = Writer::new(9);
        let first = File::options().write(true).open(Writer::name(0).path(writer.dir.path())).unwrap();
        first.write_all_at(&[9], 2 * BLOCK_BYTES as u64 + 100).unwrap();
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert!(matches!(stream.damage, Some(Damage::Block { number: 2, .. })), "{:?}", stream.damage);
        assert_eq!((seqs, stream.end().records), (vec![1, 2], 2));
        let mut writer = Writer::new(13);
        writer.remove(4);
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert!(matches!(stream.damage, Some(Damage::Gap { expected: 4, .. })), "{:?}", stream.damage);
        assert_eq!(seqs, [1, 2, 3, 4]);
    }

    #[test]
    fn what_retention_removes_meanwhile_is_not_missed() {
        let mut writer = Writer::new(14);
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 4 {
                writer.remove(0);
                writer.remove(4);
            }
        });
        assert_eq!((stream.damage.clone(), seqs), (None, vec![1, 2, 3, 4, 9, 10, 11, 12, 13, 14]));
        let (stream, seqs) = read(&mut writer, |_, _| ());
        assert_eq!((stream.damage.clone(), stream.first(), seqs), (None, 8, (9..=14).collect()));
    }

    #[test]
    fn a_start_that_seals_the_stream_meanwhile_changes_nothing() {
        let mut writer = Writer::new(6);
        let mut sealed = ScannedStream::new(writer.dir.path(), STREAM);
        sealed.read(|_, _, _| Ok::<(), Fatal>(())).unwrap();
        let end = *sealed.end();
        let names = [0, 4].map(Writer::name);
        let (stream, seqs) = read(&mut writer, |writer, seq| {
            if seq == 2 {
                seal(writer.dir.path(), &names, &end).unwrap();
            }
        });
        assert_eq!((stream.damage.clone(), seqs.len(), stream.end().ending), (None, 6, Ending::Sealed));
        // A second reading finds no new records. The end was clean before, and is sealed now.
        sealed.read(|_, _, _| panic!("there is nothing new") as Result<(), Fatal>).unwrap();
        assert_eq!(sealed.end(), stream.end());
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let mut writer = Writer::new(3);
        let mut stream = ScannedStream::new(writer.dir.path(), STREAM);
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
