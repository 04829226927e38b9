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
use crate::postgres::{Database, Failure, Move, Owner, stream_name};
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
use std::time::Duration;
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
const DRAIN_TIME: Duration = Duration::from_secs(20);

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
    /// This run.
    pub owner: Owner,
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
}

impl Shipper {
    fn new(plan: Plan, chunks: Receiver<Chunk>, bell: Arc<Notify>, stop: Arc<AtomicBool>) -> Self {
        let shards = 0..plan.status.shards.len() as u16;
        let kinds = [LogKind::Purchases, LogKind::Attempts];
        let Owner { cluster, epoch, .. } = plan.owner;
        let of_this_run = shards.flat_map(|shard| kinds.map(|log| (StreamId { cluster, epoch, shard, log }, None)));
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
        Shipper { plan, chunks, bell, stop, tails }
    }

    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut is_away = false;
        loop {
            let drain_over = drain_over(self.stop.clone());
            let failure = tokio::select! {
                result = self.serve(&mut is_away, &mut backoff) => match result {
                    Ok(()) => return,
                    Err(failure) => failure,
                },
                () = drain_over => break,
            };
            let why = match failure {
                Failure::Final(fatal) => fatal.exit(),
                Failure::Passing(why) => why,
            };
            if !std::mem::replace(&mut is_away, true) {
                tracing::warn!(why, "the database is away: selling goes on, and the log keeps what it misses");
            }
            self.publish();
            if self.stop.load(Ordering::Acquire) && backoff == BACKOFF_MAX {
                break;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        tracing::warn!(records_behind = self.behind(), "stopping without the database: the log keeps what it misses");
    }

    /// Connects and ships until the process stops and everything is shipped.
    async fn serve(&mut self, is_away: &mut bool, backoff: &mut Duration) -> Result<(), Failure> {
        let connecting = tokio::time::timeout(CONNECT_TIME, self.connect());
        let mut database = connecting.await.map_err(|_| Failure::Passing("connecting took too long".into()))??;
        let mut is_proven = false;
        loop {
            // First this: what is flushed before the end is seen by what follows.
            let is_stopping = self.stop.load(Ordering::Acquire);
            let (rows, moves) = self.gather()?;
            if !moves.is_empty() {
                let shipping = tokio::time::timeout(SHIP_TIME, database.ship(&rows, &moves));
                shipping.await.map_err(|_| Failure::Passing("a transaction took too long".into()))??;
                moves.iter().for_each(|moved| self.arrived(moved.stream, moved.to));
                self.publish();
            }
            if !std::mem::replace(&mut is_proven, true) {
                // Only now: a database that takes connections but no rows is away.
                tracing::info!(records_behind = self.behind(), "the database is connected");
                (*is_away, *backoff) = (false, BACKOFF_MIN);
            }
            if moves.is_empty() {
                if is_stopping {
                    return Ok(());
                }
                let _ = tokio::time::timeout(IDLE_TIME, self.bell.notified()).await;
            }
        }
    }

    /// Connects, and finds out how far each stream has come.
    async fn connect(&mut self) -> Result<Database, Failure> {
        let database = Database::take_over(&self.plan.database, self.plan.owner).await?;
        let positions = database.positions().await?;
        for place in 0..self.tails.len() {
            let tail = &mut self.tails[place];
            let StreamId { epoch, shard, log, .. } = tail.stream;
            let known = positions.get(&(epoch, shard, log.name().to_owned())).copied();
            let first = tail.reader.first().map_err(lost)?;
            let position = known.unwrap_or(0).max(first);
            if known != Some(position) {
                if known.is_some() {
                    let (stream, from) = (stream_name(&tail.stream), known.unwrap_or(0));
                    tracing::warn!(
                        stream,
                        missing = first - from,
                        "records were removed from the log while no database was set"
                    );
                }
                database.begin(&tail.stream, position).await?;
            }
            if let Some(end) = tail.end.filter(|end| position > *end) {
                let stream = stream_name(&tail.stream);
                return Err(Failure::Final(Fatal::Database(format!(
                    "it has {position} records of {stream}, and this data directory has {end}: the data directory is older; restore its latest version"
                ))));
            }
            tail.rewind(position, &self.plan.logs);
            let stream = tail.stream;
            self.arrived(stream, position);
        }
        self.tails.retain(|tail| tail.end != Some(tail.position));
        self.publish();
        Ok(database)
    }

    /// Notes how much of a stream is in the database, and tells the shard that looks after it.
    fn arrived(&mut self, stream: StreamId, position: Seq) {
        let tail = self.tails.iter_mut().find(|tail| tail.stream == stream).expect("it was gathered from it");
        tail.position = position;
        let keeper = usize::from(stream.shard) % self.plan.shipped.len();
        // The shard may have stopped.
        let _ = self.plan.shipped[keeper].send((stream, position));
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
}

/// Comes back when the process has waited long enough for the database.
async fn drain_over(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Acquire) {
        tokio::time::sleep(IDLE_TIME).await;
    }
    tokio::time::sleep(DRAIN_TIME).await;
}

/// The log cannot be read back: it may be a passing fault of the disk, but nothing can be shipped before it is gone.
fn lost(error: std::io::Error) -> Failure {
    Failure::Final(Fatal::LogFailed(format!("it cannot be read for the database: {error}")))
}
