//! Writing a log: records are appended to memory, and group commits flush them, one at a time.
//!
//! Watermarks: `appended ≥ flushed`. What is appended is ordered; what is flushed is durable.
//! Both logs of a shard, the purchases and the attempts, are of this one make.

use crate::log::block::{BLOCK_BYTES, Chain, StreamId};
use crate::log::segment::{SegmentFile, SegmentName};
use crate::log::stream::{End, Ending};
use crate::sale::ids::Seq;
use crate::sale::record::{BLOCK_RECORDS, RECORD_BYTES, Record};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Blocks that one flush writes at most.
const FLUSH_BLOCKS_MAX: usize = 64;

type Work<T> = Pin<Box<dyn Future<Output = io::Result<T>>>>;

/// Records that have just been flushed.
#[derive(Debug)]
pub struct Chunk {
    /// Of which stream.
    pub stream: StreamId,
    /// Number of the first one.
    pub first: Seq,
    /// As they are in the log.
    pub records: Vec<u8>,
}

/// A segment, and how much of it is used.
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

/// One log of one shard, being written.
pub struct LogWriter {
    stream: StreamId,
    dir: PathBuf,
    direct: bool,
    segment_blocks: u32,
    /// The first one is being written; the others wait.
    segments: VecDeque<Segment>,
    /// Segments that are full, for retention to know.
    finished: Vec<(SegmentName, Seq)>,
    /// Where the next segment to be made starts.
    next_segment: u64,
    /// Encoded records that no flush has taken yet.
    buffer: Vec<u8>,
    appended: Seq,
    /// What is durable, or on its way there.
    chain: Chain,
    flushed: Seq,
    flush: Option<Work<()>>,
    /// When that began, and of how many records it is.
    flush_began: (Instant, u64),
    /// What the flush under way writes, if somebody wants to know: the first record's number, and the records.
    flushing: Option<(Seq, Vec<u8>)>,
    wants_chunks: bool,
    /// With its blocks.
    making: Option<(u32, Work<Segment>)>,
    /// The first segment is on the disk already, with so many blocks.
    made_ahead: Option<u32>,
}

impl LogWriter {
    /// A log with nothing in it and no room. `make_segment` gives it some.
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
            made_ahead: None,
        }
    }

    /// Somebody has made [`SegmentName::first`] already, with so many blocks.
    pub fn first_is_made(&mut self, blocks: u32) {
        self.made_ahead = Some(blocks);
    }

    /// The blocks of a segment that need only be opened, if there is one.
    pub fn made_ahead(&self) -> Option<u32> {
        self.made_ahead
    }

    /// Adds a record to the end. It is not durable before `flushed` says so.
    pub fn append(&mut self, record: &Record) -> Seq {
        self.buffer.extend_from_slice(&record.encode());
        self.appended += 1;
        self.appended
    }

    /// Everything up to here has been appended.
    pub fn appended(&self) -> Seq {
        self.appended
    }

    /// Everything up to here is durable.
    pub fn flushed(&self) -> Seq {
        self.flushed
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Where it ends, when nothing is being flushed.
    pub fn end(&self) -> End {
        End {
            ending: Ending::Clean,
            blocks: self.chain.blocks(),
            records: self.chain.records(),
            checksum: self.chain.checksum(),
        }
    }

    /// Records that no flush has taken yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len() / RECORD_BYTES
    }

    /// Blocks that can still be written into the segments there are.
    pub fn room(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.free())).sum()
    }

    /// Blocks of a segment, unless there is no room for one that large.
    pub fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// Keeps a copy of what is being flushed, for `take_chunk`.
    pub fn keep_chunks(&mut self) {
        self.wants_chunks = true;
    }

    /// What the last flush has made durable, once.
    pub fn take_chunk(&mut self) -> Option<Chunk> {
        if self.flush.is_some() {
            return None;
        }
        let (first, records) = self.flushing.take()?;
        Some(Chunk { stream: self.stream, first, records })
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// Whether a segment is being made.
    pub fn is_making(&self) -> bool {
        self.making.is_some()
    }

    /// Whether everything appended is durable.
    pub fn is_flushed(&self) -> bool {
        self.flushed == self.appended
    }

    /// Segments that have become full since the last call, and the records in the stream up to their end.
    pub fn take_finished(&mut self) -> Vec<(SegmentName, Seq)> {
        std::mem::take(&mut self.finished)
    }

    /// Begins a group commit of what is buffered, unless one is under way or there is no room.
    pub fn start_flush(&mut self) {
        if self.flush.is_some() || self.buffer.is_empty() {
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
        let records = self.buffer.len() / RECORD_BYTES;
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

    /// Begins to make one more segment of so many blocks, after removing `doomed` files. One at a time.
    pub fn make_segment(&mut self, blocks: u32, doomed: Vec<PathBuf>) {
        assert!(self.making.is_none(), "segments are made one at a time");
        let name = SegmentName { stream: self.stream, first_block: self.next_segment, blocks };
        let (dir, direct) = (self.dir.clone(), self.direct);
        let is_made = self.made_ahead.take() == Some(blocks);
        let making: Work<Segment> = Box::pin(async move {
            let path = name.path(&dir);
            let made = glommio::executor().spawn_blocking(move || {
                doomed.iter().try_for_each(|path| remove(path))?;
                if is_made { Ok(()) } else { name.make(&dir) }
            });
            made.await?;
            let file = Rc::new(SegmentFile::open(&path, direct).await?);
            Ok(Segment { file, name, used: 0 })
        });
        self.making = Some((blocks, making));
    }

    /// Moves what is under way forward; ready when something came to its end.
    ///
    /// # Errors
    /// Of a flush: fatal. Of making a segment: see [`Progress::NoSegment`].
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

/// What came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A flush: `flushed` has moved.
    Flushed {
        /// How long it took.
        time: Duration,
        /// What it wrote.
        records: u64,
    },
    /// A segment of so many blocks: there is more room.
    SegmentMade(u32),
    /// The disk is full: no segment of so many blocks could be made.
    NoSegment(u32),
}

/// Removes a file that somebody else may have removed already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether an error means that the disk, or the user's part of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
