//! Writer of one log of one shard: appends records to a buffer, flushes the buffer, and creates segments in advance.
//! The purchase log and the attempt log use the same writer. Disk space is not decided here, but in `retention`.
//!
//! Three rules hold. `appended >= flushed` always: an appended record has its place in the order, a flushed record is
//! durable. At most [`FLUSHES_MAX`] flushes are under way; each one writes many buffered records in one operation, and
//! they count in their order. A failed flush is never retried.

use crate::log::block::{BLOCK_BYTES, Chain, StreamId};
use crate::log::segment::{self, SegmentName};
use crate::log::stream::{End, Ending};
use crate::sale::ids::Seq;
use crate::sale::record::{BLOCK_RECORDS, RECORD_BYTES, Record};
use crate::system::disk_ring::{DiskRing, PAGE_BYTES, WriteKey};
use crate::system::host::lacks_descriptors;
use glommio::timer::sleep;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Maximum number of blocks that one flush writes.
const FLUSH_BLOCKS_MAX: usize = 64;
/// Flushes of one log that are under way at most.
const FLUSHES_MAX: usize = 2;
const _: () = assert!(BLOCK_BYTES == PAGE_BYTES);

/// Pause before a segment is tried again, after no file descriptor was left.
const DESCRIPTOR_RETRY_TIME: Duration = Duration::from_millis(100);
/// Time between two log lines about a lack of file descriptors.
const WAIT_LINE_TIME: Duration = Duration::from_secs(60);

type IoFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>>>>;

/// Records that a flush has just made durable.
#[derive(Debug)]
pub struct Chunk {
    /// Stream of the records.
    pub stream: StreamId,
    /// Number of the first record in the stream, from 1.
    pub first: Seq,
    /// Encoded records, as in the log.
    pub records: Vec<u8>,
}

/// Open segment, and the number of its blocks that are used.
struct Segment {
    file: Rc<File>,
    name: SegmentName,
    used: u32,
}

impl Segment {
    fn free(&self) -> u32 {
        self.name.blocks - self.used
    }
}

/// Flush that is under way, or that has completed before an earlier one.
struct Flush {
    key: WriteKey,
    began: Instant,
    /// Number of records that it writes, and of the last one of them.
    records: u64,
    last: Seq,
    /// Copy of the records, if `wants_chunks` is set.
    encoded: Option<Vec<u8>>,
    is_complete: bool,
}

/// Records that a flush has made durable.
#[derive(Debug)]
pub struct Flushed {
    /// Duration of the flush.
    pub time: Duration,
    /// Number of records written.
    pub records: u64,
    /// The records, if the writer keeps them: see [`LogWriter::keep_chunks`].
    pub chunk: Option<Chunk>,
}

/// Log of a shard that is being written.
pub struct LogWriter {
    stream: StreamId,
    dir: PathBuf,
    direct: bool,
    segment_blocks: u32,
    /// Open segments. The first one is being written; the others are ready.
    segments: VecDeque<Segment>,
    /// Full segments that retention does not know yet, each with the number of records up to its end.
    finished: Vec<(SegmentName, Seq)>,
    /// Number of the first block of the next segment to be created.
    next_segment: u64,
    /// Encoded records that no flush has taken yet.
    buffer: Vec<u8>,
    appended: Seq,
    /// Blocks that are durable or being flushed.
    chain: Chain,
    flushed: Seq,
    /// The flushes under way, in the order of their records.
    flushes: VecDeque<Flush>,
    wants_chunks: bool,
    /// Creation of a segment that is under way, with the number of its blocks.
    making: Option<(u32, IoFuture<Segment>)>,
    /// Number of blocks of the first segment, if that exists already and is not open yet.
    existing_blocks: Option<u32>,
    /// Time of the last log line about a lack of file descriptors.
    last_wait_line: Rc<Cell<Option<Instant>>>,
}

impl LogWriter {
    /// Creates a writer of an empty log without segments. [`LogWriter::make_segment`] gives it room.
    pub fn new(stream: StreamId, dir: &Path, direct: bool, segment_blocks: u32) -> Self {
        LogWriter {
            stream,
            dir: dir.to_owned(),
            direct,
            segment_blocks,
            segments: VecDeque::new(),
            finished: Vec::new(),
            next_segment: 0,
            buffer: Vec::new(),
            appended: 0,
            chain: Chain::new(stream),
            flushed: 0,
            flushes: VecDeque::with_capacity(FLUSHES_MAX),
            wants_chunks: false,
            making: None,
            existing_blocks: None,
            last_wait_line: Rc::default(),
        }
    }

    /// Notes that the file of [`SegmentName::first`] exists already, with `blocks` blocks.
    pub fn use_existing_segment(&mut self, blocks: u32) {
        self.existing_blocks = Some(blocks);
    }

    /// Returns the number of blocks of a segment that exists already and only needs to be opened, if there is one.
    pub fn existing_blocks(&self) -> Option<u32> {
        self.existing_blocks
    }

    /// Appends a record and returns its number. The record is durable when [`LogWriter::flushed`] has reached this
    /// number.
    pub fn append(&mut self, record: &Record) -> Seq {
        self.buffer.extend_from_slice(&record.encode());
        self.appended += 1;
        self.appended
    }

    /// Returns the number of the last record appended.
    pub fn appended(&self) -> Seq {
        self.appended
    }

    /// Returns the number of the last record that is durable.
    pub fn flushed(&self) -> Seq {
        self.flushed
    }

    /// Returns the stream that is written.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Returns the end of the stream on disk. The value is correct only while no flush is under way.
    pub fn end(&self) -> End {
        End {
            ending: Ending::Clean,
            blocks: self.chain.blocks(),
            records: self.chain.records(),
            checksum: self.chain.checksum(),
        }
    }

    /// Returns the number of records that no flush has taken yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len() / RECORD_BYTES
    }

    /// Returns the number of blocks that still fit into the existing segments.
    pub fn room(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.free())).sum()
    }

    /// Returns the usual number of blocks of a segment. A segment has fewer if the disk has no room for that many.
    pub fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// Keeps a copy of the records of each flush from now on, for [`Flushed::chunk`].
    pub fn keep_chunks(&mut self) {
        self.wants_chunks = true;
    }

    /// Returns whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        !self.flushes.is_empty()
    }

    /// Returns whether a segment is being created.
    pub fn is_making(&self) -> bool {
        self.making.is_some()
    }

    /// Returns whether all appended records are durable.
    pub fn is_flushed(&self) -> bool {
        self.flushed == self.appended
    }

    /// Takes the segments that have become full since the last call, each with the number of records up to its end.
    pub fn take_finished(&mut self) -> Vec<(SegmentName, Seq)> {
        std::mem::take(&mut self.finished)
    }

    /// Starts a flush of buffered records: as many as fit into the current segment and into one flush. While another
    /// flush is under way, only of records that fill a block, because the rest would take a block for few records. Does
    /// nothing if [`FLUSHES_MAX`] flushes are under way, if nothing is buffered, or if no segment has room.
    ///
    /// # Errors
    /// The kernel takes no write. The process must then end.
    pub fn start_flush(&mut self, ring: &mut DiskRing) -> io::Result<()> {
        if self.is_flushing() {
            return self.start_flush_of_full_blocks(ring);
        }
        self.flush_records(self.buffered(), ring)
    }

    /// Starts a flush like [`LogWriter::start_flush`], but leaves the records that do not fill a block.
    ///
    /// # Errors
    /// As [`LogWriter::start_flush`].
    pub fn start_flush_of_full_blocks(&mut self, ring: &mut DiskRing) -> io::Result<()> {
        self.flush_records(self.buffered() / BLOCK_RECORDS * BLOCK_RECORDS, ring)
    }

    fn flush_records(&mut self, records: usize, ring: &mut DiskRing) -> io::Result<()> {
        if self.flushes.len() == FLUSHES_MAX || records == 0 {
            return Ok(());
        }
        while self.segments.front().is_some_and(|segment| segment.free() == 0) {
            let full = self.segments.pop_front().expect("there is a front");
            self.finished.push((full.name, self.chain.records()));
        }
        let Some(segment) = self.segments.front_mut() else { return Ok(()) };
        let blocks = records.div_ceil(BLOCK_RECORDS).min(segment.free() as usize).min(FLUSH_BLOCKS_MAX);
        let records = records.min(blocks * BLOCK_RECORDS);
        let offset = u64::from(segment.used) * BLOCK_BYTES as u64;
        segment.used += blocks as u32;
        let encoded = &self.buffer[..records * RECORD_BYTES];
        let mut pages = ring.pages(blocks);
        self.chain.extend(pages.as_mut_bytes(), encoded, self.flushed);
        let kept = self.wants_chunks.then(|| encoded.to_vec());
        self.buffer.drain(..records * RECORD_BYTES);
        let began = Instant::now();
        let key = ring.write(&segment.file, pages, offset)?;
        let (records, last) = (records as u64, self.chain.records());
        self.flushes.push_back(Flush { key, began, records, last, encoded: kept, is_complete: false });
        Ok(())
    }

    /// Notes that the write with this key has completed. Returns false if it is none of this log.
    pub fn note_completed(&mut self, key: WriteKey) -> bool {
        let flush = self.flushes.iter_mut().find(|flush| flush.key == key && !flush.is_complete);
        flush.map(|flush| flush.is_complete = true).is_some()
    }

    /// Takes the records of the next flush, in the order of the records, if it and all flushes before it have completed.
    pub fn take_flushed(&mut self) -> Option<Flushed> {
        let Flush { began, records, last, encoded, .. } = self.flushes.pop_front_if(|flush| flush.is_complete)?;
        self.flushed = last;
        let first = last - records + 1;
        let chunk = encoded.map(|records| Chunk { stream: self.stream, first, records });
        Some(Flushed { time: began.elapsed(), records, chunk })
    }

    /// Starts to create a segment of `blocks` blocks, after removing the `files_to_remove` files. Only one segment is
    /// created at a time. If no file descriptor is left, the creation waits for one.
    pub fn make_segment(&mut self, blocks: u32, files_to_remove: Vec<PathBuf>) {
        assert!(self.making.is_none(), "segments are created one at a time");
        let name = SegmentName { stream: self.stream, first_block: self.next_segment, blocks };
        let (dir, direct, last_wait_line) = (self.dir.clone(), self.direct, self.last_wait_line.clone());
        let mut is_made = self.existing_blocks.take() == Some(blocks);
        let making: IoFuture<Segment> = Box::pin(async move {
            let removed = move || remove_files(&files_to_remove);
            glommio::executor().spawn_blocking(removed).await?;
            loop {
                match make_and_open(name, &dir, direct, &mut is_made).await {
                    // Nothing is wrong with the log: other parts of the process, or other processes, use all
                    // descriptors. Holds are granted as long as the existing segments have room.
                    Err(error) if lacks_descriptors(&error) => {
                        if last_wait_line.get().is_none_or(|last| last.elapsed() > WAIT_LINE_TIME) {
                            last_wait_line.set(Some(Instant::now()));
                            let (log, shard) = (name.stream.log.name(), name.stream.shard);
                            let text = "the log waits for a file descriptor: raise LimitNOFILE or ulimit -n";
                            tracing::warn!(log, shard, %error, "{text}");
                        }
                        sleep(DESCRIPTOR_RETRY_TIME).await;
                    }
                    made => return made,
                }
            }
        });
        self.making = Some((blocks, making));
    }

    /// Polls the creation of a segment that is under way.
    ///
    /// # Errors
    /// An I/O error if the segment could not be created for another reason than a full disk. The process must then end.
    /// A full disk is [`Made::NoRoom`], not an error.
    pub fn poll_making(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Made>> {
        if let Some((blocks, making)) = &mut self.making
            && let Poll::Ready(result) = making.as_mut().poll(cx)
        {
            let blocks = *blocks;
            self.making = None;
            return Poll::Ready(match result {
                Ok(segment) => {
                    self.next_segment += u64::from(segment.name.blocks);
                    self.segments.push_back(segment);
                    Ok(Made::Segment(blocks))
                }
                Err(error) if is_full(&error) => Ok(Made::NoRoom(blocks)),
                Err(error) => Err(error),
            });
        }
        Poll::Pending
    }
}

/// Creates the segment unless `is_made` is set, sets it, and opens the segment.
async fn make_and_open(name: SegmentName, dir: &Path, direct: bool, is_made: &mut bool) -> io::Result<Segment> {
    if !*is_made {
        let dir = dir.to_owned();
        glommio::executor().spawn_blocking(move || name.make(&dir)).await?;
        *is_made = true;
    }
    let path = name.path(dir);
    let file = glommio::executor().spawn_blocking(move || segment::open_durable(&path, direct)).await?;
    Ok(Segment { file: Rc::new(file), name, used: 0 })
}

/// The end of a creation of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// A segment with this number of blocks is ready.
    Segment(u32),
    /// The disk is full: a segment with this number of blocks could not be created.
    NoRoom(u32),
}

/// Removes files. It is no error if a file does not exist.
///
/// # Errors
/// An I/O error if a file cannot be removed.
pub fn remove_files(files: &[PathBuf]) -> io::Result<()> {
    files.iter().try_for_each(|path| match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    })
}

/// Returns whether an error means that the disk is full or the disk quota of the user is used up.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::LogKind;
    use crate::sale::ids::{SaleId, Terms};
    use crate::sale::record::LogEvent;
    use uuid::Uuid;

    /// Returns a log with a segment of 8 blocks in `dir`.
    fn log_in(dir: &Path) -> LogWriter {
        let stream = StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log: LogKind::Purchases };
        let mut log = LogWriter::new(stream, dir, false, 8);
        let name = SegmentName::first(stream, 8);
        name.make(dir).unwrap();
        let file = Rc::new(segment::open_durable(&name.path(dir), false).unwrap());
        log.segments.push_back(Segment { file, name, used: 0 });
        log
    }

    fn append(log: &mut LogWriter, records: usize) {
        let event = LogEvent::SaleOpened { items: 2, user_limit: 1, times: None, products: Terms::NO_PRODUCTS };
        (0..records).for_each(|_| _ = log.append(&Record { sale: SaleId(1), unix_ms: 0, event }));
    }

    /// The second of two flushes that are under way completes first: its records are not durable until the first one has
    /// completed, because recovery would not reach them.
    #[test]
    fn flushes_count_in_the_order_of_their_records() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut ring) = (log_in(dir.path()), DiskRing::new().unwrap());
        log.keep_chunks();
        append(&mut log, 3);
        log.start_flush(&mut ring).unwrap();
        append(&mut log, BLOCK_RECORDS);
        log.start_flush(&mut ring).unwrap();
        let [first, second] = [0, 1].map(|place| log.flushes[place].key);
        assert!(log.note_completed(second));
        assert!(log.take_flushed().is_none());
        assert_eq!(log.flushed(), 0);
        assert!(log.note_completed(first));
        let [first, second] = [(); 2].map(|()| log.take_flushed().unwrap().chunk.unwrap());
        assert_eq!((first.first, first.records.len() / RECORD_BYTES), (1, 3));
        assert_eq!((second.first, second.records.len() / RECORD_BYTES), (4, BLOCK_RECORDS));
        assert_eq!((log.flushed(), log.is_flushing()), (3 + BLOCK_RECORDS as u64, false));
    }

    /// Two flushes are under way at most, and a second one only for records that fill a block.
    #[test]
    fn a_second_flush_needs_a_full_block() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut ring) = (log_in(dir.path()), DiskRing::new().unwrap());
        let mut flushes_after = |records| {
            append(&mut log, records);
            log.start_flush(&mut ring).unwrap();
            (log.flushes.len(), log.buffered())
        };
        assert_eq!(flushes_after(1), (1, 0));
        assert_eq!(flushes_after(BLOCK_RECORDS - 1), (1, BLOCK_RECORDS - 1));
        assert_eq!(flushes_after(2), (2, 1));
        assert_eq!(flushes_after(BLOCK_RECORDS), (2, BLOCK_RECORDS + 1));
    }
}
