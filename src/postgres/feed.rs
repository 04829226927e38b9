//! The way of flushed records from the shards to the persistence thread. A shard offers each flush and never waits; the
//! thread reads from the log what found the channel full.

use crate::log::writer::Chunk;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Chunks in the channel. Each is one flush of one log.
const CHUNKS_MAX: usize = 1024;
/// Bytes in the channel.
const CHANNEL_BYTES_MAX: usize = 16 << 20;

/// A shard's end of the channel.
#[derive(Clone)]
pub struct Feed {
    chunks: Sender<Chunk>,
    /// Bytes in the channel. Written once for each flush, never for a request.
    bytes: Arc<AtomicUsize>,
    bell: Arc<Notify>,
}

/// The persistence thread's end of the channel.
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
    /// Offers what has been flushed. If the channel is full, drops the chunk: the thread finds the gap and reads the log.
    pub fn offer(&self, chunk: Chunk) {
        let bytes = chunk.records.len();
        if self.bytes.load(Ordering::Relaxed) < CHANNEL_BYTES_MAX {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            if self.chunks.try_send(chunk).is_err() {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Wakes the thread. Call it after the position that the thread shall see has been published.
    pub fn ring(&self) {
        self.bell.notify_one();
    }
}

impl FeedReceiver {
    /// Takes the chunks that are in the channel.
    pub fn take(&self) -> impl Iterator<Item = Chunk> {
        self.chunks.try_iter().inspect(|chunk| _ = self.bytes.fetch_sub(chunk.records.len(), Ordering::Relaxed))
    }
}
