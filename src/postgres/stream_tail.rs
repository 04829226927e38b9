//! The part of one stream that is not yet in Postgres: chunks kept in memory, and a reader for the rest.

use crate::log::block::{LogKind, StreamId};
use crate::log::reader::LogReader;
use crate::log::writer::Chunk;
use crate::operate::status::Status;
use crate::sale::ids::Seq;
use crate::sale::record::RECORD_BYTES;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Bytes of one stream's records kept in memory ahead of their transaction.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// One stream, as far as it is shipped.
pub struct StreamTail {
    /// The stream.
    pub stream: StreamId,
    /// Records in the database.
    pub position: Seq,
    /// Records in the database or in a batch.
    pub gathered: Seq,
    /// Records that the stream ends with, if an earlier run wrote it.
    pub end: Option<Seq>,
    pending: VecDeque<Chunk>,
    pending_bytes: usize,
    reader: LogReader,
}

impl StreamTail {
    /// Creates the tail of `stream`, of which `position` records are in the database, and whose segments are in `logs`.
    pub fn new(logs: &Path, stream: StreamId, position: Seq, end: Option<Seq>) -> Self {
        let (pending, reader) = (VecDeque::new(), LogReader::new(logs, stream));
        StreamTail { stream, position, gathered: position, end, pending, pending_bytes: 0, reader }
    }

    /// Returns how many records of the stream are durable.
    pub fn durable(&self, status: &Status) -> Seq {
        let shard = &status.shards[usize::from(self.stream.shard) % status.shards.len()];
        let live = match self.stream.log {
            LogKind::Purchases => &shard.flushed,
            LogKind::Attempts => &shard.attempts_flushed,
        };
        self.end.unwrap_or_else(|| live.load(Ordering::Acquire))
    }

    /// Keeps a chunk in memory, if there is room for it.
    pub fn keep(&mut self, chunk: Chunk) {
        if self.pending_bytes < PENDING_BYTES_MAX {
            self.pending_bytes += chunk.records.len();
            self.pending.push_back(chunk);
        }
    }

    /// Appends records that are in no batch yet, up to `until`, from memory where they are there, else from the log.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn take(&mut self, until: Seq, bytes_max: usize, records: &mut Vec<u8>) -> io::Result<()> {
        while self.gathered < until && records.len() < bytes_max {
            let at = self.gathered;
            match self.pending.front() {
                Some(chunk) if end(chunk) <= at => {}
                Some(chunk) if chunk.first <= at + 1 => {
                    let skipped = (at + 1 - chunk.first) as usize * RECORD_BYTES;
                    records.extend_from_slice(&chunk.records[skipped..]);
                    self.gathered = end(chunk);
                }
                ahead => {
                    let gap_end = ahead.map_or(until, |chunk| until.min(chunk.first - 1));
                    self.gathered = self.reader.read(at, gap_end, bytes_max, records)?;
                    continue;
                }
            }
            let used = self.pending.pop_front().expect("there is a front");
            self.pending_bytes -= used.records.len();
        }
        Ok(())
    }
}

fn end(chunk: &Chunk) -> Seq {
    chunk.first - 1 + (chunk.records.len() / RECORD_BYTES) as Seq
}
