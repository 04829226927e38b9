//! The persistence thread: every flushed record to Postgres, exactly once.
//!
//! One plain thread for all shards. Shards hand it what they have just flushed over a bounded channel and never wait;
//! what finds the channel full is read back from the log, which is the truth. Rows and positions move on in one
//! transaction. After any doubt the thread connects anew, asks how far it had come, and goes on from there.

use crate::config::fatal::Fatal;
use crate::log::block::{LogKind, StreamId};
use crate::operate::status::Status;
use crate::postgres::claim::{Claim, unreadable};
use crate::postgres::copy_rows::{CopyRows, Rows};
use crate::postgres::failure::Failure;
use crate::postgres::feed::{self, Feed, FeedReceiver};
use crate::postgres::restore::BEAT_TIME;
use crate::postgres::session::Database;
use crate::postgres::ship::PositionMove;
use crate::postgres::stream_tail::StreamTail;
use crate::sale::ids::Seq;
use crate::sale::record::{RECORD_BYTES, Record};
use crate::system::doorbell::Doorbell;
use crate::system::threads;
use crossbeam_channel::Sender;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{sleep, sleep_until, timeout};

/// Records of one transaction.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Records that are made rows at once, while the transaction before waits to be fed.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// How long one transaction may take.
const SHIP_TIME: Duration = Duration::from_secs(60);
/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The thread looks for work at least this often.
const IDLE_TIME: Duration = Duration::from_millis(500);
/// How long rows that nobody waits for may wait for more: each transaction costs CPU time that buyers need, too.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// How long a catalogue may wait until there is nothing else to do.
const CATALOGUE_TIME: Duration = Duration::from_secs(1);

/// What the thread starts with.
pub struct Plan {
    /// What to claim, and how.
    pub claim: Claim,
    /// What shards publish.
    pub status: Arc<Status>,
    /// Wakes each shard.
    pub doorbells: Arc<[Doorbell]>,
    /// To each shard: how much of the streams that it looks after is in the database.
    pub shipped: Vec<Sender<(StreamId, Seq)>>,
    /// Whether buyers wait for the database.
    pub is_awaited: bool,
}

/// The running thread.
pub struct Persistence {
    thread: thread::JoinHandle<()>,
    /// By when, once it is told to stop.
    stop: Arc<OnceLock<Instant>>,
    bell: Arc<Notify>,
}

impl Persistence {
    /// Waits until everything flushed is in the database, but not longer than until `deadline`.
    pub fn finish(self, deadline: Instant) {
        let _ = self.stop.set(deadline);
        self.bell.notify_one();
        // A panic has ended the process already.
        let _ = self.thread.join();
    }
}

/// What one transaction will bring.
#[derive(Default)]
struct PendingBatch {
    rows: Rows,
    /// Of the records that became rows.
    bytes: usize,
    /// When the first of them was gathered.
    since: Option<Instant>,
}

impl PendingBatch {
    /// How much longer it may wait for more rows, when nobody waits for those that it has.
    fn patience(&self) -> Duration {
        let is_full = self.bytes >= BATCH_BYTES_MAX;
        self.since.filter(|_| !is_full).map_or(Duration::ZERO, |since| GATHER_TIME.saturating_sub(since.elapsed()))
    }
}

/// What the thread does.
pub struct Shipper {
    plan: Plan,
    flushed: FeedReceiver,
    stop: Arc<OnceLock<Instant>>,
    /// Purchases before attempts, earlier runs before this one: a sale's opening comes before its rows.
    tails: Vec<StreamTail>,
    /// When to say next that this run lives.
    next_beat: Instant,
}

impl Shipper {
    /// A shipper and the way to it.
    pub fn new(plan: Plan) -> (Shipper, Feed) {
        let (feed, flushed) = feed::channel();
        let (stop, tails, next_beat) = (Arc::new(OnceLock::new()), Vec::new(), Instant::now());
        (Shipper { plan, flushed, stop, tails, next_beat }, feed)
    }

    /// Starts the thread: from now on the database is this run's.
    ///
    /// # Errors
    /// [`Fatal::Host`]: no thread can be had.
    pub fn start(self) -> Result<Persistence, Fatal> {
        let (stop, bell) = (self.stop.clone(), self.flushed.bell.clone());
        let runtime = threads::event_loop()?;
        let run = move || runtime.block_on(self.run());
        let thread = threads::spawn("persistence", run)?;
        Ok(Persistence { thread, stop, bell })
    }

    async fn run(mut self) {
        let stop = self.stop.clone();
        let is_finished = tokio::select! {
            () = self.ship_until_stopped() => true,
            () = patience_over(stop) => false,
        };
        if !is_finished {
            let records_behind = self.plan.status.records_behind();
            tracing::warn!(records_behind, "stopping without the database: the log keeps what it misses");
        }
    }

    async fn ship_until_stopped(&mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut is_away = false;
        loop {
            let why = match self.serve(&mut is_away, &mut backoff).await {
                Ok(()) => return,
                Err(Failure::Final(fatal)) => fatal.exit(),
                Err(Failure::Passing(why)) => why,
            };
            self.plan.status.shipped.retries.add(1);
            self.plan.status.is_database_connected.store(false, Ordering::Relaxed);
            if !std::mem::replace(&mut is_away, true) {
                let url = self.plan.claim.url.place();
                tracing::warn!(url, why, "the database is away: selling goes on, and the log keeps what it misses");
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Connects and ships until the process stops and everything is shipped.
    async fn serve(&mut self, is_away: &mut bool, backoff: &mut Duration) -> Result<(), Failure> {
        let connecting = timeout(CONNECT_TIME, self.connect());
        let mut database = connecting.await.map_err(|_| Failure::Passing("connecting took too long".into()))??;
        let owner = self.plan.claim.owner;
        let mut is_proven = false;
        // A connection may have ended with a catalogue half made.
        let mut lacks_catalogue = Some(Instant::now());
        let mut batch = PendingBatch::default();
        loop {
            // First this: what is flushed before the end is seen by what follows.
            let is_stopping = self.stop.get().is_some();
            self.gather(&mut batch).await?;
            let moves = self.moves();
            let is_awaited = self.plan.is_awaited && batch.rows.purchases.rows() > 0;
            let is_due = !moves.is_empty() && (is_awaited || is_stopping || batch.patience().is_zero());
            if is_due {
                let PendingBatch { rows, .. } = std::mem::take(&mut batch);
                let opens = !rows.opened.is_empty();
                let status = self.plan.status.clone();
                let shipping = async {
                    let copied = [&rows.checkouts, &rows.purchases, &rows.releases].map(CopyRows::rows);
                    let began = Instant::now();
                    in_time(database.ship(owner, rows, &moves)).await?;
                    status.shipped.committed(began.elapsed(), copied);
                    Ok(())
                };
                if self.is_behind() {
                    // Postgres need not wait for the next one. Else what comes meanwhile is better in one batch.
                    let (shipped, gathered) = tokio::join!(shipping, self.gather(&mut batch));
                    shipped.and(gathered)?;
                } else {
                    shipping.await?;
                }
                moves.iter().for_each(|moved| self.arrived(moved));
                self.publish();
                if opens {
                    lacks_catalogue = lacks_catalogue.or(Some(Instant::now()));
                }
            }
            // Buyers first, but not for ever.
            if lacks_catalogue.is_some_and(|since| !is_due || since.elapsed() > CATALOGUE_TIME) {
                let extended = in_time(database.extend_catalogue()).await?;
                lacks_catalogue = extended.then(Instant::now);
            }
            if Instant::now() >= self.next_beat {
                in_time(database.beat(owner)).await?;
                self.next_beat = Instant::now() + BEAT_TIME;
            }
            if !std::mem::replace(&mut is_proven, true) {
                // Only now: a database that takes connections but no rows is away.
                let records_behind = self.plan.status.records_behind();
                // Before the line: whoever reads it finds it so.
                self.plan.status.is_database_connected.store(true, Ordering::Relaxed);
                tracing::info!(url = self.plan.claim.url.place(), records_behind, "the database is connected");
                (*is_away, *backoff) = (false, BACKOFF_MIN);
            }
            if is_due || lacks_catalogue.is_some() {
                continue;
            }
            match (moves.is_empty(), self.plan.is_awaited) {
                (true, _) if is_stopping => return in_time(database.leave(owner)).await,
                (true, _) => drop(timeout(IDLE_TIME, self.flushed.bell.notified()).await),
                // A purchase may come.
                (false, true) => drop(timeout(batch.patience(), self.flushed.bell.notified()).await),
                (false, false) => sleep(batch.patience()).await,
            }
        }
    }

    /// Connects, and finds out how far each stream has come.
    async fn connect(&mut self) -> Result<Database, Failure> {
        let (database, streams) = self.plan.claim.make().await?;
        let ends: Vec<Option<Seq>> = self.plan.claim.streams.iter().map(|(_, end)| *end).collect();
        let before = std::mem::take(&mut self.tails);
        for ((stream, position), end) in streams.into_iter().zip(ends) {
            let before = before.iter().find(|before| before.stream == stream).map_or(0, |before| before.position);
            if let Some(again) = before.checked_sub(position).filter(|again| *again > 0) {
                tracing::warn!(%stream, again, "the database has lost records that it had committed: they are sent again");
            }
            self.tails.push(StreamTail::new(&self.plan.claim.logs, stream, position, end));
            self.tell_keeper(stream, position);
        }
        self.tails.sort_by_key(|tail| tail.stream.key());
        self.publish();
        Ok(database)
    }

    /// Tells the shard that looks after a stream how much of it is in the database.
    fn tell_keeper(&self, stream: StreamId, position: Seq) {
        let keeper = usize::from(stream.shard) % self.plan.shipped.len();
        // The shard may have stopped.
        let _ = self.plan.shipped[keeper].send((stream, position));
    }

    fn arrived(&mut self, moved: &PositionMove) {
        let tail = self.tails.iter_mut().find(|tail| tail.stream == moved.stream).expect("it was gathered from it");
        tail.position = moved.to;
        self.tell_keeper(moved.stream, moved.to);
    }

    /// Adds the next rows of all streams, as far as there is room.
    async fn gather(&mut self, batch: &mut PendingBatch) -> Result<(), Failure> {
        // First how far, then the chunks: what is flushed by then has been offered by then.
        let durable: Vec<Seq> = self.tails.iter().map(|tail| tail.durable(&self.plan.status)).collect();
        for chunk in self.flushed.take() {
            if let Some(tail) = self.tails.iter_mut().find(|tail| tail.stream == chunk.stream) {
                tail.keep(chunk);
            }
        }
        let mut records = Vec::new();
        for (tail, until) in self.tails.iter_mut().zip(durable) {
            while tail.gathered < until && batch.bytes < BATCH_BYTES_MAX {
                records.clear();
                tail.take(until, PIECE_BYTES_MAX, &mut records).map_err(unreadable)?;
                for bytes in records.as_chunks::<RECORD_BYTES>().0 {
                    let record =
                        Record::decode(bytes).map_err(|flaw| unreadable(std::io::Error::other(format!("{flaw:?}"))))?;
                    batch.rows.add(&record);
                }
                batch.bytes += records.len();
                batch.since = batch.since.or(Some(Instant::now()));
                // The batch before is on this thread, too.
                yield_now().await;
            }
        }
        Ok(())
    }

    /// What the batch that has been gathered moves.
    fn moves(&self) -> Vec<PositionMove> {
        let moves =
            self.tails.iter().map(|tail| PositionMove { stream: tail.stream, from: tail.position, to: tail.gathered });
        moves.filter(|moved| moved.from < moved.to).collect()
    }

    /// Whether there is a full batch to be gathered.
    fn is_behind(&self) -> bool {
        let records = |tail: &StreamTail| tail.durable(&self.plan.status).saturating_sub(tail.gathered);
        self.tails.iter().map(records).sum::<Seq>() >= (BATCH_BYTES_MAX / RECORD_BYTES) as Seq
    }

    /// Lets shards and readers of `/health` know.
    fn publish(&self) {
        let status = &self.plan.status;
        for tail in self.tails.iter().filter(|tail| tail.end.is_none()) {
            let shard = &status.shards[usize::from(tail.stream.shard)];
            let persisted = match tail.stream.log {
                LogKind::Purchases => &shard.persisted,
                LogKind::Attempts => &shard.attempts_persisted,
            };
            persisted.store(tail.position, Ordering::Release);
        }
        let earlier = self.tails.iter().filter_map(|tail| Some(tail.end?.saturating_sub(tail.position)));
        status.earlier_behind.store(earlier.sum(), Ordering::Relaxed);
        self.plan.doorbells.iter().for_each(Doorbell::ring);
    }
}

/// Waits for the database, but not for ever.
async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let result = timeout(SHIP_TIME, work).await;
    result.unwrap_or_else(|_| Err(Failure::Passing("the database took too long to answer".into())))
}

/// Comes back when a process that is to stop has waited long enough for the database.
async fn patience_over(stop: Arc<OnceLock<Instant>>) {
    loop {
        match stop.get() {
            Some(deadline) => return sleep_until((*deadline).into()).await,
            None => sleep(IDLE_TIME).await,
        }
    }
}
