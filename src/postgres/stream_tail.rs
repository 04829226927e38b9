//! The part of one stream that is not in Postgres yet: chunks in memory, and a reader of the log for all other records.

use crate::log::block::StreamId;
use crate::log::reader::LogReader;
use crate::log::writer::Chunk;
use crate::operate::status::Status;
use crate::sale::ids::Seq;
use crate::sale::record::RECORD_BYTES;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Maximum number of bytes of one stream's records in memory before they are put into a batch, give or take one chunk.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// A stream and its progress to the database.
pub struct StreamTail {
    /// Id of the stream.
    pub stream: StreamId,
    /// Number of records in the database.
    pub position: Seq,
    /// Number of records in the database or in its open transaction.
    pub sent: Seq,
    /// Number of records in the database or in a batch.
    pub gathered: Seq,
    /// Number of records of the complete stream, or `None` if this run writes it.
    pub end: Option<Seq>,
    pending: VecDeque<Chunk>,
    pending_bytes: usize,
    reader: LogReader,
}

impl StreamTail {
    /// Creates the tail of `stream`. The database has `position` of its records; its segments are in `logs`.
    pub fn new(logs: &Path, stream: StreamId, position: Seq, end: Option<Seq>) -> Self {
        let (pending, reader) = (VecDeque::new(), LogReader::new(logs, stream));
        StreamTail { stream, position, sent: position, gathered: position, end, pending, pending_bytes: 0, reader }
    }

    /// Returns the number of durable records of the stream.
    pub fn durable(&self, status: &Status) -> Seq {
        let shard = &status.shards[usize::from(self.stream.shard) % status.shards.len()];
        self.end.unwrap_or_else(|| shard.log(self.stream.log).flushed.load(Ordering::Acquire))
    }

    /// Keeps a chunk in memory, or drops it if `PENDING_BYTES_MAX` is reached: its records are then read from the
    /// log.
    pub fn keep(&mut self, chunk: Chunk) {
        if self.pending_bytes < PENDING_BYTES_MAX {
            self.pending_bytes += chunk.records.len();
            self.pending.push_back(chunk);
        }
    }

    /// Returns the number of attempts that could not be read since the last call, and the file and block of the first one.
    pub fn take_lost(&mut self) -> Option<(Seq, String)> {
        self.reader.take_lost()
    }

    /// Appends the next records up to `until` to `records`, and stops when `records` has `bytes_max` bytes or more.
    /// Takes them from memory, or from the log if they are not in memory. Attempts that cannot be read are skipped.
    ///
    /// # Errors
    /// The I/O error, if the log cannot be read. Then nothing is appended, and the next call begins at the same record.
    pub fn take(&mut self, until: Seq, bytes_max: usize, records: &mut Vec<u8>) -> io::Result<()> {
        while self.gathered < until && records.len() < bytes_max {
            let at = self.gathered;
            match self.pending.front() {
                Some(chunk) if end(chunk) <= at => {}
                Some(chunk) if chunk.first <= at + 1 => {
                    let skipped = (at + 1 - chunk.first) as usize * RECORD_BYTES;
                    let rest = &chunk.records[skipped..];
                    let taken = &rest[..rest.len().min((bytes_max - records.len()).next_multiple_of(RECORD_BYTES))];
                    records.extend_from_slice(taken);
                    self.gathered += (taken.len() / RECORD_BYTES) as Seq;
                    if taken.len() < rest.len() {
                        continue;
                    }
                }
                ahead => {
                    let gap_end = ahead.map_or(until, |chunk| until.min(chunk.first - 1));
                    match self.reader.read(at, gap_end, bytes_max, records) {
                        // The caller needs the records so far, and the next call returns the error again.
                        Err(_) if !records.is_empty() => return Ok(()),
                        read => self.gathered = read?,
                    }
                    continue;
                }
            }
            let used = self.pending.pop_front().expect("the queue has a front");
            self.pending_bytes -= used.records.len();
        }
        Ok(())
    }
}

fn end(chunk: &Chunk) -> Seq {
    chunk.first - 1 + (chunk.records.len() / RECORD_BYTES) as Seq
}
