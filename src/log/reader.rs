//! Reads flushed records of one stream from its segments, in order, while the stream is being written. The persistence
//! thread uses this for records that it did not receive from the shard.
//!
//! Two rules hold: a caller asks only for flushed records, and a segment that retention has removed since it was listed
//! is no error.

use crate::log::block::{self, BLOCK_BYTES, StreamId, StreamKey};
use crate::log::segment::SegmentName;
use crate::sale::ids::Seq;
use crate::sale::record::RECORD_BYTES;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Returns for each stream in a directory the number of records before the first one that is left, because retention may
/// have removed segments. Lists the directory once, whatever the number of its streams.
///
/// # Errors
/// An I/O error if the directory or a segment cannot be read.
pub fn first_records(dir: &Path, cluster: Uuid) -> io::Result<BTreeMap<StreamKey, Seq>> {
    'list: loop {
        let mut firsts = BTreeMap::new();
        for name in SegmentName::list(dir, cluster)? {
            if let Entry::Vacant(first) = firsts.entry(name.stream.key()) {
                let mut bytes = [0; BLOCK_BYTES];
                match File::open(name.path(dir)).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
                    Ok(()) => {
                        let header = block::parse(&bytes, &name.stream);
                        first.insert(header.map_or(0, |(header, _)| header.records_before));
                    }
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
    /// Segment that is being read, its open file, and the next block in it.
    segment: Option<(SegmentName, File, u32)>,
}

impl LogReader {
    /// Creates a reader at the first segment that the stream still has.
    pub fn new(dir: &Path, stream: StreamId) -> Self {
        LogReader { dir: dir.to_owned(), stream, segment: None }
    }

    /// Appends to `records` the records after number `after` up to number `until`, which must be flushed. Stops at the
    /// first block boundary at which `records` has `bytes_max` bytes or more. Returns the number of the last record
    /// appended.
    ///
    /// # Errors
    /// An I/O error if a segment cannot be read, or if a flushed record is missing.
    pub fn read(&mut self, after: Seq, until: Seq, bytes_max: usize, records: &mut Vec<u8>) -> io::Result<Seq> {
        let mut at = after;
        let mut bytes = [0; BLOCK_BYTES];
        while at < until && records.len() < bytes_max {
            let Some((name, file, next)) = &mut self.segment else {
                self.segment = Some(self.open_segment(0)?);
                continue;
            };
            if *next == name.blocks || u64::from(*next) * BLOCK_BYTES as u64 >= file.metadata()?.len() {
                let first_block = name.first_block + u64::from(*next);
                self.segment = Some(self.open_segment(first_block)?);
                continue;
            }
            file.read_exact_at(&mut bytes, u64::from(*next) * BLOCK_BYTES as u64)?;
            let missing =
                || io::Error::other(format!("record {} is not in {}", at + 1, name.path(&self.dir).display()));
            let (header, _) = block::parse(&bytes, &self.stream).ok_or_else(missing)?;
            let end = header.records_before + u64::from(header.records);
            if header.records_before > at {
                return Err(missing());
            }
            if end > at {
                let skipped = (at - header.records_before) as usize;
                let wanted = (end.min(until) - header.records_before) as usize;
                let taken = block::records(&bytes, header.records).take(wanted).skip(skipped);
                taken.for_each(|record| records.extend_from_slice(record));
                at = end.min(until);
            }
            if end <= until {
                *next += 1;
            }
        }
        debug_assert!(records.len().is_multiple_of(RECORD_BYTES));
        Ok(at)
    }

    /// Opens the first segment that holds `block` or a later block.
    fn open_segment(&self, block: u64) -> io::Result<(SegmentName, File, u32)> {
        loop {
            let name = self.names()?.into_iter().find(|name| name.first_block + u64::from(name.blocks) > block);
            let name =
                name.ok_or_else(|| io::Error::other(format!("no segment of {} has block {block}", self.stream)))?;
            match File::open(name.path(&self.dir)) {
                Ok(file) => return Ok((name, file, block.saturating_sub(name.first_block) as u32)),
                // Retention has removed the segment since it was listed: list again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Lists the segments of the stream, in order.
    fn names(&self) -> io::Result<Vec<SegmentName>> {
        let mut names = SegmentName::list(&self.dir, self.stream.cluster)?;
        names.retain(|name| name.stream == self.stream);
        Ok(names)
    }
}
