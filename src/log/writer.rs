//! Writer of one log of one shard: appends records to a buffer, flushes the buffer, and creates segments in advance.
//! The purchase log and the attempt log use the same writer. Disk space is not decided here, but in `retention`.
//!
//! Three rules hold. `appended >= flushed` always: an appended record has its place in the order, a flushed record is
//! durable. At most one flush is under way; it writes many buffered records in one operation. A failed flush is never
//! retried.

use crate::log::block::{BLOCK_BYTES, Chain, StreamId};
use crate::log::segment::{SegmentFile, SegmentName, lacks_descriptors};
use crate::log::stream::{End, Ending};
use crate::sale::ids::Seq;
use crate::sale::record::{BLOCK_RECORDS, RECORD_BYTES, Record};
use glommio::timer::sleep;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Maximum number of blocks that one flush writes.
const FLUSH_BLOCKS_MAX: usize = 64;

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
    file: Rc<SegmentFile>,
    name: SegmentName,
    used: u32,
}

impl Segment {
    fn free(&self) -> u32 {
        self.name.blocks - self.used
    }
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
    flush: Option<IoFuture<()>>,
    /// Start time and number of records of the current or last flush.
    flush_began: (Instant, u64),
    /// Copy of the records that the flush writes, with the number of the first one, if `wants_chunks` is set.
    flushing: Option<(Seq, Vec<u8>)>,
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
            flush: None,
            flush_began: (Instant::now(), 0),
            flushing: None,
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

    /// Keeps a copy of the records of each flush from now on, for [`LogWriter::take_chunk`].
    pub fn keep_chunks(&mut self) {
        self.wants_chunks = true;
    }

    /// Takes the records that the last flush has made durable. Returns `None` during a flush and on a second call.
    pub fn take_chunk(&mut self) -> Option<Chunk> {
        if self.flush.is_some() {
            return None;
        }
        let (first, records) = self.flushing.take()?;
        Some(Chunk { stream: self.stream, first, records })
    }

    /// Returns whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.flush.is_some()
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

    /// Starts a flush of buffered records: as many as fit into the current segment and into one flush. Does nothing if
    /// a flush is under way, if nothing is buffered, or if no segment has room.
    pub fn start_flush(&mut self) {
        self.flush_records(self.buffered());
    }

    /// Starts a flush like [`LogWriter::start_flush`], but leaves the records that do not fill a block.
    pub fn start_flush_of_full_blocks(&mut self) {
        self.flush_records(self.buffered() / BLOCK_RECORDS * BLOCK_RECORDS);
    }

    fn flush_records(&mut self, records: usize) {
        if self.flush.is_some() || records == 0 {
            return;
        }
        while self.segments.front().is_some_and(|segment| segment.free() == 0) {
            let full = self.segments.pop_front().expect("there is a front");
            self.finished.push((full.name, self.chain.records()));
            if let Ok(file) = Rc::try_unwrap(full.file) {
                glommio::spawn_local(file.close()).detach();
            }
        }
        let Some(segment) = self.segments.front_mut() else { return };
        let blocks = records.div_ceil(BLOCK_RECORDS).min(segment.free() as usize).min(FLUSH_BLOCKS_MAX);
        let records = records.min(blocks * BLOCK_RECORDS);
        let (file, offset) = (segment.file.clone(), u64::from(segment.used) * BLOCK_BYTES as u64);
        segment.used += blocks as u32;
        let encoded = &self.buffer[..records * RECORD_BYTES];
        self.flushing = self.wants_chunks.then(|| (self.chain.records() + 1, encoded.to_vec()));
        let mut bytes = file.allocate(blocks);
        self.chain.extend(bytes.as_bytes_mut(), encoded, self.flushed);
        self.buffer.drain(..records * RECORD_BYTES);
        self.flush_began = (Instant::now(), records as u64);
        self.flush = Some(Box::pin(async move { file.flush(bytes, offset).await }));
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

    /// Polls the flush and the creation of a segment that are under way. The result is ready when one of them has
    /// finished.
    ///
    /// # Errors
    /// An I/O error if a flush has failed, or if a segment could not be created for another reason than a full disk.
    /// The process must then end. A full disk is [`Progress::NoSegment`], not an error.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Progress>> {
        if let Some(flush) = &mut self.flush
            && let Poll::Ready(result) = flush.as_mut().poll(cx)
        {
            self.flush = None;
            result?;
            self.flushed = self.chain.records();
            let (began, records) = self.flush_began;
            return Poll::Ready(Ok(Progress::Flushed { time: began.elapsed(), records }));
        }
        if let Some((blocks, making)) = &mut self.making
            && let Poll::Ready(result) = making.as_mut().poll(cx)
        {
            let blocks = *blocks;
            self.making = None;
            return Poll::Ready(match result {
                Ok(segment) => {
                    self.next_segment += u64::from(segment.name.blocks);
                    self.segments.push_back(segment);
                    Ok(Progress::SegmentMade(blocks))
                }
                Err(error) if is_full(&error) => Ok(Progress::NoSegment(blocks)),
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
    let file = Rc::new(SegmentFile::open(&name.path(dir), direct).await?);
    Ok(Segment { file, name, used: 0 })
}

/// Work of a [`LogWriter`] that has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A flush has finished, and [`LogWriter::flushed`] has increased.
    Flushed {
        /// Duration of the flush.
        time: Duration,
        /// Number of records written.
        records: u64,
    },
    /// A segment with this number of blocks is ready.
    SegmentMade(u32),
    /// The disk is full: a segment with this number of blocks could not be created.
    NoSegment(u32),
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
