//! All of a log, read beside whoever writes it. Nothing is locked, nothing is changed.
//!
//! What has been read may be out of date when what follows is read: a block that was being written looks lost once a
//! later one counts it as flushed; a file that retention removes looks missing. So damage is what is found at the same
//! place again, by a reading that began after that.

use crate::config::fatal::Fatal;
use crate::log::block::StreamId;
use crate::log::data_dir::{Control, DataDir};
use crate::log::recovery::{newer_than_control, unreadable};
use crate::log::segment::SegmentName;
use crate::log::stream::{Damage, End, Ending, Reading};
use crate::sale::ids::Seq;
use crate::sale::record::Record;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How often to look at what seems to be wrong.
const LOOKS: u32 = 3;

/// What is told, and what is wrong, if anything. `look` reads it all: it is asked again as long as something seems to be
/// wrong, because streams are read one after the other, and a server may have gone from one to the next meanwhile.
pub fn look(look: impl Fn(&mut String) -> Result<(), Fatal>) -> (String, Result<(), Fatal>) {
    let mut looks_left = LOOKS;
    loop {
        looks_left -= 1;
        let mut told = String::new();
        let verdict = look(&mut told);
        if verdict.is_ok() || looks_left == 0 {
            return (told, verdict);
        }
    }
}

/// So many of something.
pub fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A data directory, and the streams of its log: by run, shard and log.
pub struct LogScan {
    /// What is written beside the log.
    pub control: Control,
    /// As far as they have been read.
    pub streams: Vec<ScannedStream>,
}

impl LogScan {
    /// Finds out what there is. Nothing is read yet.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: there is no log, or it cannot be read.
    pub fn new(data_dir: &Path) -> Result<LogScan, Fatal> {
        let (logs, control) = DataDir::survey(data_dir)?;
        let names = SegmentName::list(&logs, control.cluster).map_err(|error| unreadable(&logs, error))?;
        // A run that has begun in between says so before it makes files.
        let (_, control) = DataDir::survey(data_dir)?;
        if let Some(name) = names.iter().find(|name| name.stream.epoch > control.epoch) {
            return Err(unreadable(&logs, newer_than_control(name)));
        }
        let mut streams: Vec<ScannedStream> = Vec::new();
        for name in names {
            if streams.last().is_none_or(|stream| stream.id != name.stream) {
                streams.push(ScannedStream::new(&logs, name.stream));
            }
        }
        Ok(LogScan { control, streams })
    }

    /// Records that are there.
    pub fn records(&self) -> Seq {
        self.streams.iter().map(|stream| stream.end.records - stream.first()).sum()
    }

    /// Whether something durable is lost: what a server says then.
    ///
    /// # Errors
    /// [`Fatal::Damaged`].
    pub fn judge(&self) -> Result<(), Fatal> {
        let damage = self.streams.iter().find_map(|stream| stream.damage.as_ref());
        damage.map_or(Ok(()), |damage| Err(Fatal::Damaged(damage.to_string())))
    }
}

/// A stream, read as far as it is there.
pub struct ScannedStream {
    /// Which.
    pub id: StreamId,
    /// Segments that were there.
    pub segments: usize,
    /// What keeps the rest from being read.
    pub damage: Option<Damage>,
    logs: PathBuf,
    /// Records before the first one that has been visited.
    first: Option<Seq>,
    end: End,
    /// Up to the end of the last segment that is full.
    full: Reading,
    /// Records that have been visited.
    seen: Seq,
}

impl ScannedStream {
    fn new(logs: &Path, id: StreamId) -> ScannedStream {
        let full = Reading::new(id);
        let end = *full.end();
        ScannedStream { id, segments: 0, damage: None, logs: logs.to_owned(), first: None, end, full, seen: 0 }
    }

    /// Where it ends, as far as it has been read.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Records before the first one that was left.
    pub fn first(&self) -> Seq {
        self.first.unwrap_or(self.end.records)
    }

    /// Reads what has not been read yet, one segment after the other, and hands each record to `visit`, once.
    ///
    /// # Errors
    /// Files cannot be read ([`Fatal::DataDir`]), or what `visit` says. Damage is no error: it is noted.
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
        // Retention has removed what comes next: what is left starts anew.
        if names.first().is_some_and(|name| name.first_block > self.full.end().blocks) {
            self.full = Reading::new(self.id);
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

/// What came of reading once.
enum Pass {
    /// All that is there has been read.
    Through,
    /// A file has been removed since it was listed.
    Removed,
    /// It looks damaged.
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

    /// A stream that is written block by block, each with one record, into segments of four.
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

    /// What is read when `meanwhile` happens at each record.
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
        // The first segment is read half full, the second one when the first is long full.
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
        // Read again, it is the same: what was clean before is sealed now.
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
