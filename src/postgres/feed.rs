//! The bounded channel on which shards pass flushed records to the persistence thread.
//!
//! 1. A shard offers the chunk of each flush, and never waits: if the channel is full, the chunk is dropped.
//! 2. The shard publishes its durable position, and then rings the bell.
//! 3. The persistence thread wakes, and takes the chunks. It reads the records of dropped chunks from the log.

use crate::log::writer::Chunk;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Maximum number of chunks in the channel. Each chunk is one flush of one log.
const CHUNKS_MAX: usize = 1024;
/// Maximum number of bytes in the channel. Several shards can exceed it by one chunk each.
const CHANNEL_BYTES_MAX: usize = 16 << 20;

/// The sending end of the channel, one clone per shard.
#[derive(Clone)]
pub struct Feed {
    chunks: Sender<Chunk>,
    /// Bytes in the channel. Written once per flush, never per request.
    bytes: Arc<AtomicUsize>,
    bell: Arc<Notify>,
}

/// The receiving end of the channel, for the persistence thread.
pub struct FeedReceiver {
    chunks: Receiver<Chunk>,
    bytes: Arc<AtomicUsize>,
    /// Wakes the persistence thread.
    pub bell: Arc<Notify>,
}

/// Creates a channel from all shards to the persistence thread.
pub fn channel() -> (Feed, FeedReceiver) {
    let (sender, chunks) = bounded(CHUNKS_MAX);
    let (bell, bytes) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    (Feed { chunks: sender, bytes: bytes.clone(), bell: bell.clone() }, FeedReceiver { chunks, bytes, bell })
}

impl Feed {
    /// Offers flushed records. If the channel is full, drops the chunk: the persistence thread then finds the gap and
    /// reads the records from the log.
    pub fn offer(&self, chunk: Chunk) {
        let bytes = chunk.records.len();
        if self.bytes.load(Ordering::Relaxed) < CHANNEL_BYTES_MAX {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            if self.chunks.try_send(chunk).is_err() {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Wakes the persistence thread. The caller publishes the durable position first, because the thread reads it when
    /// it wakes.
    pub fn ring(&self) {
        self.bell.notify_one();
    }
}

impl FeedReceiver {
    /// Takes all chunks out of the channel.
    pub fn take(&self) -> impl Iterator<Item = Chunk> {
        self.chunks.try_iter().inspect(|chunk| _ = self.bytes.fetch_sub(chunk.records.len(), Ordering::Relaxed))
    }
}
