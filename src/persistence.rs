//! The persistence thread: every flushed record to Postgres, exactly once.
//!
//! One plain thread for all shards. Shards hand it what they have just flushed over a bounded channel and never wait;
//! what finds the channel full is read back from the log, which is the truth. Rows and positions move on in one
//! transaction. After any doubt the thread connects anew, asks how far it had come, and goes on from there.

use crate::block::{LogKind, StreamId};
use crate::copy_rows::Rows;
use crate::fatal::Fatal;
use crate::log_reader::LogReader;
use crate::mesh::Doorbell;
use crate::postgres::{Database, Failure, Move, stream_name};
use crate::purchase_log::Chunk;
use crate::record::{RECORD_BYTES, Record};
use crate::status::Status;
use crate::types::Seq;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_postgres::Config;

/// Chunks on their way; each is one flush of one log.
const CHUNKS_MAX: usize = 1024;
/// Records of one stream kept in memory ahead of their transaction.
const PENDING_BYTES_MAX: usize = 8 << 20;
/// Records of one transaction.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long one transaction may take.
const SHIP_TIME: Duration = Duration::from_secs(60);
/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The thread looks for work at least this often.
const IDLE_TIME: Duration = Duration::from_millis(500);
/// How long the end of the process waits for a database that takes what there is.
const DRAIN_TIME: Duration = Duration::from_secs(30);

fn end(chunk: &Chunk) -> Seq {
    chunk.first - 1 + (chunk.records.len() / RECORD_BYTES) as Seq
}

/// A shard's way to the thread.
#[derive(Clone)]
pub struct Feed {
    chunks: Sender<Chunk>,
    bell: Arc<Notify>,
}

impl Feed {
    /// Hands over a chunk, or leaves it to be read from the log. Never waits.
    pub fn offer(&self, chunk: Chunk) {
        // Full: the thread is behind, and will notice that it has missed something.
        let _ = self.chunks.try_send(chunk);
        self.bell.notify_one();
    }
}

/// What the thread starts with.
pub struct Plan {
    /// Where to connect.
    pub database: Config,
    /// This run; the shard and log in it mean nothing.
    pub owner: StreamId,
    /// Where the segments are.
    pub logs: PathBuf,
    /// What shards publish.
    pub status: Arc<Status>,
    /// Streams of earlier runs, and how many records each has.
    pub earlier: Vec<(StreamId, Seq)>,
    /// Wakes each shard.
    pub doorbells: Arc<[Doorbell]>,
    /// To each shard: how much of the streams that it looks after is in the database.
    pub shipped: Vec<Sender<(StreamId, Seq)>>,
}

/// The running thread.
pub struct Persistence {
    thread: thread::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    bell: Arc<Notify>,
}

impl Persistence {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Fatal::Host`]: no thread can be had.
    pub fn start(plan: Plan) -> Result<(Persistence, Feed), Fatal> {
        let (chunks, received) = bounded(CHUNKS_MAX);
        let (bell, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let shipper = Shipper::new(plan, received, bell.clone(), stop.clone());
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|error| Fatal::Host(format!("no event loop: {error}")).exit());
            runtime.block_on(shipper.run());
        };
        let thread = thread::Builder::new().name("persistence".into()).spawn(run);
        let thread = thread.map_err(|error| Fatal::Host(format!("no thread for persistence: {error}")))?;
        Ok((Persistence { thread, stop, bell: bell.clone() }, Feed { chunks, bell }))
    }

    /// Waits until everything flushed is in the database, as long as the database takes it.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        self.bell.notify_one();
        // A panic has ended the process already.
        let _ = self.thread.join();
    }
}

/// One stream, as far as it is shipped.
struct Tail {
    stream: StreamId,
    /// Records in the database.
    position: Seq,
    /// How many there will ever be, for a stream of an earlier run.
    end: Option<Seq>,
    pending: VecDeque<Chunk>,
    pending_bytes: usize,
    reader: LogReader,
}

impl Tail {
    fn durable(&self, status: &Status) -> Seq {
        let shard = &status.shards[usize::from(self.stream.shard) % status.shards.len()];
        let live = match self.stream.log {
            LogKind::Purchases => &shard.flushed,
            LogKind::Attempts => &shard.attempts_flushed,
        };
        self.end.unwrap_or_else(|| live.load(Ordering::Acquire))
    }

    fn keep(&mut self, chunk: Chunk) {
        if self.pending_bytes < PENDING_BYTES_MAX {
            self.pending_bytes += chunk.records.len();
            self.pending.push_back(chunk);
        }
    }

    /// Forgets what is in memory and begins again after `position`.
    fn rewind(&mut self, position: Seq, logs: &std::path::Path) {
        self.position = position;
        self.pending.clear();
        self.pending_bytes = 0;
        self.reader = LogReader::new(logs, self.stream);
    }

    /// Appends records after the position, up to `until`, from memory where they are there, else from the log.
    fn take(&mut self, until: Seq, bytes_max: usize, records: &mut Vec<u8>) -> std::io::Result<Seq> {
        let mut at = self.position;
        while at < until && records.len() < bytes_max {
            match self.pending.front() {
                Some(chunk) if end(chunk) <= at => {}
                Some(chunk) if chunk.first <= at + 1 => {
                    let skipped = (at + 1 - chunk.first) as usize * RECORD_BYTES;
                    records.extend_from_slice(&chunk.records[skipped..]);
                    at = end(chunk);
                }
                ahead => {
                    let gap_end = ahead.map_or(until, |chunk| until.min(chunk.first - 1));
                    at = self.reader.read(at, gap_end, bytes_max, records)?;
                    continue;
                }
            }
            let used = self.pending.pop_front().expect("there is a front");
            self.pending_bytes -= used.records.len();
        }
        Ok(at)
    }
}

struct Shipper {
    plan: Plan,
    chunks: Receiver<Chunk>,
    bell: Arc<Notify>,
    stop: Arc<AtomicBool>,
    /// Purchases before attempts, earlier runs before this one: a sale's opening comes before its rows.
    tails: Vec<Tail>,
    stop_seen: Option<Instant>,
}

impl Shipper {
    fn new(plan: Plan, chunks: Receiver<Chunk>, bell: Arc<Notify>, stop: Arc<AtomicBool>) -> Self {
        let shards = 0..plan.status.shards.len() as u16;
        let kinds = [LogKind::Purchases, LogKind::Attempts];
        let of_this_run = shards.flat_map(|shard| kinds.map(|log| (StreamId { shard, log, ..plan.owner }, None)));
        let earlier = plan.earlier.iter().map(|(stream, end)| (*stream, Some(*end)));
        let mut tails: Vec<Tail> = earlier
            .chain(of_this_run)
            .map(|(stream, end)| Tail {
                stream,
                position: 0,
                end,
                pending: VecDeque::new(),
                pending_bytes: 0,
                reader: LogReader::new(&plan.logs, stream),
            })
            .collect();
        tails.sort_by_key(|tail| (tail.stream.log, tail.stream.epoch, tail.stream.shard));
        Shipper { plan, chunks, bell, stop, tails, stop_seen: None }
    }

    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut is_away = false;
        while !self.must_give_up() {
            let failure = match self.connect().await {
                Ok(mut database) => {
                    tracing::info!(records_behind = self.behind(), "the database is connected");
                    (is_away, backoff) = (false, BACKOFF_MIN);
                    match self.ship(&mut database).await {
                        Ok(()) => return,
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            let why = match failure {
                Failure::Final(fatal) => fatal.exit(),
                Failure::Passing(why) => why,
            };
            if !std::mem::replace(&mut is_away, true) {
                tracing::warn!(why, "the database is away: selling goes on, and the log keeps what it misses");
            }
            self.publish();
            let _ = tokio::time::timeout(backoff, self.stopping()).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        tracing::warn!(records_behind = self.behind(), "stopping without the database: the log keeps what it misses");
    }

    /// Connects, and finds out how far each stream has come.
    async fn connect(&mut self) -> Result<Database, Failure> {
        let connecting = tokio::time::timeout(CONNECT_TIME, Database::take_over(&self.plan.database, self.plan.owner));
        let database = connecting.await.map_err(|_| Failure::Passing("connecting took too long".into()))??;
        for tail in &mut self.tails {
            let first = tail.reader.first().map_err(lost)?;
            let position = database.position(&tail.stream, first).await?;
            if tail.end.is_some_and(|end| position > end) {
                let (stream, end) = (stream_name(&tail.stream), tail.end.unwrap_or_default());
                return Err(Failure::Final(Fatal::Database(format!(
                    "it has {position} records of {stream}, and this data directory has {end}: the data directory is older; restore its latest version"
                ))));
            }
            tail.rewind(position, &self.plan.logs);
        }
        self.publish();
        Ok(database)
    }

    /// Ships until the process stops and everything is shipped.
    async fn ship(&mut self, database: &mut Database) -> Result<(), Failure> {
        loop {
            let (rows, moves) = self.gather()?;
            if moves.is_empty() {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                let _ = tokio::time::timeout(IDLE_TIME, self.bell.notified()).await;
                continue;
            }
            let shipping = tokio::time::timeout(SHIP_TIME, database.ship(&rows, &moves));
            shipping.await.map_err(|_| Failure::Passing("a transaction took too long".into()))??;
            for Move { stream, to, .. } in moves {
                let tail = self.tails.iter_mut().find(|tail| tail.stream == stream).expect("it was gathered from it");
                tail.position = to;
                let keeper = usize::from(stream.shard) % self.plan.shipped.len();
                // The shard may have stopped.
                let _ = self.plan.shipped[keeper].send((stream, to));
            }
            self.publish();
            self.tails.retain(|tail| tail.end != Some(tail.position));
            if self.must_give_up() {
                return Err(Failure::Passing("the process stops".into()));
            }
        }
    }

    /// The next rows of all streams, and how far they move on.
    fn gather(&mut self) -> Result<(Rows, Vec<Move>), Failure> {
        // First how far, then the chunks: what is flushed by then has been offered by then.
        let durable: Vec<Seq> = self.tails.iter().map(|tail| tail.durable(&self.plan.status)).collect();
        for chunk in self.chunks.try_iter() {
            if let Some(tail) = self.tails.iter_mut().find(|tail| tail.stream == chunk.stream) {
                tail.keep(chunk);
            }
        }
        let (mut rows, mut moves, mut records) = (Rows::default(), Vec::new(), Vec::new());
        let mut bytes_left = BATCH_BYTES_MAX;
        for (tail, until) in self.tails.iter_mut().zip(durable) {
            records.clear();
            let to = tail.take(until, bytes_left, &mut records).map_err(lost)?;
            if to > tail.position {
                for bytes in records.as_chunks::<RECORD_BYTES>().0 {
                    let record =
                        Record::decode(bytes).map_err(|flaw| lost(std::io::Error::other(format!("{flaw:?}"))))?;
                    rows.add(&record);
                }
                moves.push(Move { stream: tail.stream, from: tail.position, to });
            }
            bytes_left = bytes_left.saturating_sub(records.len());
        }
        Ok((rows, moves))
    }

    /// Lets shards and readers of `/health` know.
    fn publish(&self) {
        for tail in self.tails.iter().filter(|tail| tail.end.is_none()) {
            let shard = &self.plan.status.shards[usize::from(tail.stream.shard)];
            if tail.stream.log == LogKind::Purchases {
                shard.persisted.store(tail.position, Ordering::Release);
            }
        }
        self.plan.doorbells.iter().for_each(Doorbell::ring);
        self.plan.status.records_behind.store(self.behind(), Ordering::Relaxed);
    }

    /// Flushed records that are not in the database.
    fn behind(&self) -> u64 {
        self.tails.iter().map(|tail| tail.durable(&self.plan.status).saturating_sub(tail.position)).sum()
    }

    fn must_give_up(&mut self) -> bool {
        let is_stopping = self.stop.load(Ordering::Acquire);
        if is_stopping && self.stop_seen.is_none() {
            self.stop_seen = Some(Instant::now());
        }
        self.stop_seen.is_some_and(|seen| seen.elapsed() > DRAIN_TIME)
    }

    /// Comes back when the process stops.
    async fn stopping(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.bell.notified().await;
        }
        // Without a database there is little to wait for.
        tokio::time::sleep(BACKOFF_MAX).await;
    }
}

/// The log cannot be read back: it may be a passing fault of the disk, but nothing can be shipped before it is gone.
fn lost(error: std::io::Error) -> Failure {
    Failure::Final(Fatal::LogFailed(format!("it cannot be read for the database: {error}")))
}
