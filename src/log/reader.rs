//! Reads flushed records of one stream from its segments, in order, while the stream is being written. The persistence
//! thread uses this for records that it did not receive from the shard.
//!
//! Three rules hold. A caller asks only for flushed records. A segment that retention has removed since it was listed is
//! no error. A block that cannot be read is an error in a purchase stream, if one of the requested records was in it. In
//! an attempt stream, reading continues with the next valid block.

use crate::log::block::{self, BLOCK_BYTES, Header, LogKind, StreamId, StreamKey};
use crate::log::damage::is_of_disk;
use crate::log::segment::SegmentName;
use crate::sale::ids::Seq;
use crate::sale::record::RECORD_BYTES;
use rustix::fs::{Advice, fadvise};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Returns for each stream in a directory the number of records before the first one that is left, because retention may
/// have removed segments. If that block cannot be read, the number is 0. Lists the directory once, whatever the number of
/// its streams.
///
/// # Errors
/// An I/O error if the directory or a segment cannot be read now.
pub fn first_records(dir: &Path, cluster: Uuid) -> io::Result<BTreeMap<StreamKey, Seq>> {
    'list: loop {
        let mut firsts = BTreeMap::new();
        for name in SegmentName::list(dir, cluster)? {
            if let Entry::Vacant(first) = firsts.entry(name.stream.key()) {
                match name.records_before(dir) {
                    Ok(before) => _ = first.insert(before.unwrap_or(0)),
                    // Retention has removed the segment since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue 'list,
                    Err(error) => return Err(error),
                }
            }
        }
        return Ok(firsts);
    }
}

/// Reading position in the segments of a stream.
pub struct LogReader {
    dir: PathBuf,
    stream: StreamId,
    place: Option<ReadPosition>,
    /// Number of records that could not be read, since the last call of [`LogReader::take_lost`], and the first place
    /// of one.
    lost: Option<(Seq, String)>,
}

/// The next block to be read.
struct ReadPosition {
    name: SegmentName,
    /// The segment's file, or `None` if the disk cannot open it.
    file: Option<File>,
    /// Number of the block in the segment.
    block: u64,
}

impl ReadPosition {
    /// Returns whether the segment has this block. A segment of a sealed stream was cut after the seal.
    fn is_within(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(self.block < u64::from(self.name.blocks)) };
        Ok(self.block < u64::from(self.name.blocks) && self.block * (BLOCK_BYTES as u64) < file.metadata()?.len())
    }

    /// Returns the number of the block in the stream.
    fn number(&self) -> u64 {
        self.name.first_block + self.block
    }

    fn describe(&self) -> String {
        let offset = self.block * BLOCK_BYTES as u64;
        format!("block {} at byte {offset} of {}", self.number(), self.name.file_name())
    }

    /// Reads the block. Returns `None` if it is not valid or the disk has lost it.
    fn read(&self) -> io::Result<Option<(Header, [u8; BLOCK_BYTES])>> {
        self.file.as_ref().map_or(Ok(None), |file| self.name.block(file, self.block))
    }
}

impl LogReader {
    /// Creates a reader at the first segment that the stream still has.
    pub fn new(dir: &Path, stream: StreamId) -> Self {
        LogReader { dir: dir.to_owned(), stream, place: None, lost: None }
    }

    /// Appends to `records` the records after number `after` up to number `until`, which must be flushed. Stops at the
    /// first block boundary at which `records` has `bytes_max` bytes or more. Returns the number of the last record
    /// appended or, of an attempt stream, of the last one that is appended or lost.
    ///
    /// # Errors
    /// An I/O error if a segment cannot be read now, or if a flushed record of a purchase stream is lost. Nothing is
    /// appended then.
    pub fn read(&mut self, after: Seq, until: Seq, bytes_max: usize, records: &mut Vec<u8>) -> io::Result<Seq> {
        let mut at = after;
        while at < until && records.len() < bytes_max {
            match self.next_records(at, until, records) {
                Ok(next) => at = next,
                Err(error) if at == after => return Err(error),
                // The next call returns the error again.
                Err(_) => break,
            }
        }
        debug_assert!(records.len().is_multiple_of(RECORD_BYTES));
        Ok(at)
    }

    /// Returns the number of records of an attempt stream that were lost since the last call, and the file and block of
    /// the first one.
    pub fn take_lost(&mut self) -> Option<(Seq, String)> {
        self.lost.take()
    }

    /// Reads the next block, and appends those of its records that are after number `at`, up to number `until`. Returns
    /// the number of the last one.
    fn next_records(&mut self, at: Seq, until: Seq, records: &mut Vec<u8>) -> io::Result<Seq> {
        if self.place.is_none() {
            self.place = self.segment_of(at)?;
        }
        let Some(place) = &mut self.place else { return self.lose(at, until, "its segments") };
        if !place.is_within()? {
            let next = place.number();
            self.place = self.find_segment(next)?;
            return if self.place.is_some() { Ok(at) } else { self.lose(at, until, &format!("block {next}")) };
        }
        let Some((header, bytes)) = place.read()?.filter(|(header, _)| header.records_before <= at) else {
            return self.skip_unreadable(at, until);
        };
        let end = header.records_before + u64::from(header.records);
        if end <= until {
            place.block += 1;
        }
        if end <= at {
            return Ok(at);
        }
        let (skipped, wanted) = ((at - header.records_before) as usize, end.min(until) - header.records_before);
        let taken = block::records(&bytes, header.records).take(wanted as usize).skip(skipped);
        taken.for_each(|record| records.extend_from_slice(record));
        Ok(end.min(until))
    }

    /// Moves on to the next valid block, if there is one. Returns the number of the last record before it, at most
    /// `until`.
    fn skip_unreadable(&mut self, at: Seq, until: Seq) -> io::Result<Seq> {
        let mut ahead = self.place.take().expect("a block was read");
        let (first, what) = (ahead.number(), ahead.describe());
        let next = loop {
            if !ahead.is_within()? {
                match self.find_segment(ahead.number())? {
                    Some(place) => ahead = place,
                    None => break None,
                }
            } else if let Some((header, _)) = ahead.read()? {
                break Some(header.records_before);
            } else {
                ahead.block += 1;
            }
        };
        let reached = self.lose(at, next.unwrap_or(until).clamp(at, until), &what)?;
        // The writer may not have written a valid block yet. Then the next call begins at the same block again.
        self.place = match next {
            Some(_) => Some(ahead),
            None => self.find_segment(first)?,
        };
        Ok(reached)
    }

    /// Notes that the records after number `at` up to number `until` are lost with `what`, and returns `until`.
    ///
    /// # Errors
    /// The error of a purchase stream, if there is such a record.
    fn lose(&mut self, at: Seq, until: Seq, what: &str) -> io::Result<Seq> {
        if until == at {
            return Ok(until);
        }
        if self.stream.log == LogKind::Purchases {
            return Err(io::Error::other(format!("record {} of {} is lost with {what}", at + 1, self.stream)));
        }
        let (before, first) = self.lost.take().unwrap_or((0, what.to_owned()));
        self.lost = Some((before + until - at, first));
        Ok(until)
    }

    /// Opens the last segment that certainly begins before record `at + 1`, or else the first one, if there is one.
    fn segment_of(&self, at: Seq) -> io::Result<Option<ReadPosition>> {
        let names = self.names()?;
        let (mut low, mut high) = (0, names.len());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let first = match names[middle].records_before(&self.dir) {
                // Retention has removed the segment since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
                first => first?,
            };
            if first.is_some_and(|first| first <= at) {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.find_segment(names.get(low).map_or(0, |name| name.first_block))
    }

    /// Opens the first segment that holds `block` or a later block, if there is one.
    fn find_segment(&self, block: u64) -> io::Result<Option<ReadPosition>> {
        loop {
            let Some(name) = self.names()?.into_iter().find(|name| name.end_block() > block) else { return Ok(None) };
            let file = match File::open(name.path(&self.dir)) {
                Ok(file) => {
                    // The log was written past the page cache. Read the segment ahead while its first blocks are sent.
                    let _ = fadvise(&file, 0, None, Advice::WillNeed);
                    Some(file)
                }
                // Retention has removed the segment since it was listed: list again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_of_disk(&error) => None,
                Err(error) => return Err(error),
            };
            return Ok(Some(ReadPosition { name, file, block: block.saturating_sub(name.first_block) }));
        }
    }

    /// Lists the segments of the stream, in order.
    fn names(&self) -> io::Result<Vec<SegmentName>> {
        let mut names = SegmentName::list(&self.dir, self.stream.cluster)?;
        names.retain(|name| name.stream == self.stream);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::sample::{ATTEMPTS, PURCHASES, SampleStream};

    /// Reads records `after + 1` to `until`. Returns the number reached, the number of records read, and of those lost.
    fn read(sample: &SampleStream, stream: StreamId, after: Seq, until: Seq) -> io::Result<(Seq, usize, Seq)> {
        let (mut reader, mut count, mut at) = (LogReader::new(sample.logs(), stream), 0, after);
        while at < until {
            let mut records = Vec::new();
            at = reader.read(at, until, 1, &mut records)?;
            assert!(at <= until);
            count += records.len() / RECORD_BYTES;
        }
        Ok((at, count, reader.take_lost().map_or(0, |(lost, _)| lost)))
    }

    #[test]
    fn attempts_that_cannot_be_read_are_skipped_and_purchases_are_missed() {
        for damaged in 0..10 {
            let [purchases, attempts] = [PURCHASES, ATTEMPTS].map(|stream| SampleStream::new(stream, 10));
            [&purchases, &attempts].into_iter().for_each(|sample| sample.spoil(damaged));
            assert_eq!(read(&attempts, ATTEMPTS, 0, 10).unwrap(), (10, 9, 1), "block {damaged}");
            let error = read(&purchases, PURCHASES, 0, 10).unwrap_err().to_string();
            assert!(error.starts_with(&format!("record {} of purchases", damaged + 1)), "{error}");
            // Records before the position are not needed, so their blocks are not missed.
            for after in damaged + 1..10 {
                let left = (10 - after) as usize;
                assert_eq!(read(&purchases, PURCHASES, after, 10).unwrap(), (10, left, 0), "{damaged} {after}");
                assert_eq!(read(&attempts, ATTEMPTS, after, 10).unwrap(), (10, left, 0), "{damaged} {after}");
            }
        }
    }

    #[test]
    fn reading_goes_on_when_the_stream_has_grown() {
        let mut sample = SampleStream::new(ATTEMPTS, 5);
        sample.spoil(4);
        let (mut reader, mut records) = (LogReader::new(sample.logs(), ATTEMPTS), Vec::new());
        // The last flushed block cannot be read, and no block follows yet.
        assert_eq!(reader.read(0, 5, usize::MAX, &mut records).unwrap(), 5);
        assert_eq!((records.len() / RECORD_BYTES, reader.take_lost().unwrap().0), (4, 1));
        sample.write(6);
        assert_eq!(reader.read(5, 11, usize::MAX, &mut records).unwrap(), 11);
        assert_eq!((records.len() / RECORD_BYTES, reader.take_lost()), (10, None));
        // A file that is gone counts like one that cannot be read.
        let sample = SampleStream::new(ATTEMPTS, 12);
        sample.remove(4);
        assert_eq!(read(&sample, ATTEMPTS, 0, 12).unwrap(), (12, 8, 4));
        sample.remove(8);
        assert_eq!(read(&sample, ATTEMPTS, 0, 12).unwrap(), (12, 4, 8));
    }
}
