//! The persistence thread: sends every flushed record of all shards to Postgres, exactly once.
//!
//! Shards pass the records of each flush over the bounded channel of [`crate::postgres::feed`] and never wait. Records
//! for which the channel has no room are read back from the log. The transaction, and what the thread does after a lost
//! answer, are described in [`crate::postgres::ship`].
//!
//! One round of the loop:
//!
//! 1. Gather records of all streams into a batch, up to 8 MiB. If answers wait for the database (`--ack postgres` or
//!    `replicated`), 256 KiB of it are refused checkouts.
//! 2. Send the batch if it is due: it is full, its first record was gathered 20 ms ago, an answer waits for it, or the
//!    process stops. If another full batch is durable already, gather it meanwhile, and send it in the same transaction,
//!    for 0.5 s at most and only if no answer waits for the commit.
//! 3. Publish the new positions, and ring the shards.
//! 4. Report that this run is alive, every 2 s, and start [`crate::postgres::maintenance`], every hour.
//! 5. If nothing was sent: report the end of this run and return, if the process stops and no record is left. Otherwise
//!    sleep until a shard rings or a wait ends.

use crate::config::fatal::Fatal;
use crate::config::logging;
use crate::config::settings::{Keep, PairTimes};
use crate::log::block::{LogKind, StreamId};
use crate::operate::status::Status;
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::claim::{Claim, unreadable};
use crate::postgres::copy_rows::{CopyRows, Rows};
use crate::postgres::failure::{Failure, LoggedReasons, Reason};
use crate::postgres::feed::{self, Feed, FeedReceiver};
use crate::postgres::limits::in_time;
use crate::postgres::maintenance::{MAINTENANCE_TIME, Maintenance};
use crate::postgres::owner_watch;
use crate::postgres::session::Database;
use crate::postgres::ship::PositionMove;
use crate::postgres::stream_tail::StreamTail;
use crate::sale::ids::{Seq, ShardId};
use crate::sale::record::{RECORD_BYTES, Record};
use crate::sale::rules::{Ack, Rules};
use crate::system::clock::since_boot_us;
use crate::system::doorbell::Doorbell;
use crate::system::host::lacks_descriptors;
use crate::system::restart::restart;
use crate::system::threads;
use crossbeam_channel::Sender;
use std::sync::{Arc, OnceLock, atomic::Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{sleep, sleep_until, timeout};

/// Bytes of records at which a batch is full.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Bytes of refused checkouts in a transaction if answers wait for the database. An answer waits for the transaction that
/// runs and for its own, and both may have as many.
const AWAITED_ATTEMPT_BYTES_MAX: usize = 256 << 10;
/// Bytes of records that are turned into rows at once. The previous transaction is served between two pieces.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Time between two reports to the database, unless this is one of two servers.
const HEARTBEAT_TIME: Duration = Duration::from_secs(2);
/// Time after which a transaction takes no further batch.
const TRANSACTION_TIME: Duration = Duration::from_millis(500);
/// Maximum duration of sending a batch, and of a commit.
const SHIP_TIME: Duration = Duration::from_secs(60);
/// Wait before the first attempt to connect again. Each further wait is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the thread waits for a ring before it looks for work by itself.
const IDLE_TIME: Duration = Duration::from_millis(500);
/// How long a batch may wait for more records if no buyer waits for it. Fewer transactions leave more CPU time for
/// buyers.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Pause before the log is read again, after no file descriptor was left.
const DESCRIPTOR_RETRY_TIME: Duration = Duration::from_millis(100);
/// Time between two log lines about a lack of file descriptors.
const WAIT_LINE_TIME: Duration = Duration::from_secs(60);

/// Everything that the persistence thread needs to start.
pub struct Plan {
    /// Claim on the database.
    pub claim: Claim,
    /// Settings of the sales.
    pub rules: Rules,
    /// The plan of the sales, which has their products, if there is one.
    pub sales: Option<LoadedPlan>,
    /// How long rows are kept.
    pub keep: Keep,
    /// Times of a pair of servers, if this is one of two.
    pub pair: Option<PairTimes>,
    /// Numbers that the shards publish, and the thread's own.
    pub status: Arc<Status>,
    /// Doorbells that wake the shards.
    pub doorbells: Arc<[Doorbell]>,
    /// Channel to each shard, for the positions of the streams whose segments that shard removes.
    pub shipped: Vec<Sender<(StreamId, Seq)>>,
}

/// The running persistence thread.
pub struct Persistence {
    thread: thread::JoinHandle<()>,
    /// Deadline of the stop. Empty until the process stops.
    stop: Arc<OnceLock<Instant>>,
    bell: Arc<Notify>,
}

impl Persistence {
    /// Stops the thread, and waits until all flushed records are in the database or `deadline` has passed.
    pub fn finish(self, deadline: Instant) {
        let _ = self.stop.set(deadline);
        self.bell.notify_one();
        // A thread that panics ends the process, so the result is never an error.
        let _ = self.thread.join();
    }
}

/// The rows of the next transaction.
#[derive(Default)]
struct PendingBatch {
    rows: Rows,
    /// Size of the records that became these rows, and of the refused checkouts among them.
    bytes: usize,
    attempt_bytes: usize,
    /// Whether durable records are left for the next batch.
    is_full: bool,
    /// Time at which the first record was gathered.
    since: Option<Instant>,
}

impl PendingBatch {
    /// Returns how much longer the batch may wait for more records if no buyer waits for it.
    fn remaining_wait(&self) -> Duration {
        self.since.filter(|_| !self.is_full).map_or(Duration::ZERO, |since| GATHER_TIME.saturating_sub(since.elapsed()))
    }
}

/// The state of the persistence thread.
pub struct Shipper {
    plan: Plan,
    flushed: FeedReceiver,
    stop: Arc<OnceLock<Instant>>,
    /// All streams: purchases before attempts, earlier runs before this one. So the row of a sale is written before the
    /// rows that belong to it.
    tails: Vec<StreamTail>,
    /// Time of the next report to the database that this run is alive.
    next_heartbeat: Instant,
    /// Beginning of the latest transaction that has found this run to be the owner, in microseconds since boot.
    confirmed_us: u64,
    descriptors: DescriptorWait,
    /// Whether the latest gathering took every record that was durable.
    is_caught_up: bool,
    /// Time of the next maintenance of the partitions, and the one that runs.
    next_maintenance: Instant,
    maintenance: Option<JoinHandle<()>>,
}

/// The log lines about a lack of file descriptors.
#[derive(Default)]
struct DescriptorWait {
    last_line: Option<Instant>,
}

impl DescriptorWait {
    /// Logs that `stream` cannot be read now, once a minute.
    fn warn(&mut self, stream: StreamId, error: &std::io::Error) {
        if self.last_line.is_none_or(|last| last.elapsed() > WAIT_LINE_TIME) {
            self.last_line = Some(Instant::now());
            let text = "the persistence thread waits for a file descriptor: raise LimitNOFILE or ulimit -n";
            tracing::warn!(%stream, %error, "{text}");
        }
    }
}

impl Shipper {
    /// Creates the thread's state, and the sending end of its channel for the shards.
    pub fn new(plan: Plan) -> (Shipper, Feed) {
        let (feed, flushed) = feed::channel();
        let now = Instant::now();
        let claim = Claim { sells: true, ..plan.claim };
        // In an upgrade, the lease is that of the old process.
        let patience_us = plan.pair.map_or(0, |pair| pair.patience.as_micros() as u64);
        let confirmed_us = plan.status.lease.until_us().saturating_sub(patience_us);
        let shipper = Shipper {
            plan: Plan { claim, ..plan },
            flushed,
            stop: Arc::new(OnceLock::new()),
            tails: Vec::new(),
            next_heartbeat: now,
            confirmed_us,
            descriptors: DescriptorWait::default(),
            is_caught_up: false,
            next_maintenance: now,
            maintenance: None,
        };
        (shipper, feed)
    }

    /// Starts the thread, which then claims the database for this run.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the host provides no thread.
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
            () = stop_deadline_passed(stop) => false,
        };
        if !is_finished {
            let records_behind = self.plan.status.records_behind();
            tracing::warn!(
                records_behind,
                "stopping without the database: the log keeps the records that Postgres lacks"
            );
        }
    }

    async fn ship_until_stopped(&mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut reasons = LoggedReasons::default();
        loop {
            let why = match self.serve(&mut reasons, &mut backoff).await {
                Ok(()) => return,
                // What the database lacks was not promised, so this server can become the standby of the other one.
                Err(Failure::Final(why @ Fatal::DirectoryOlder(_))) if self.plan.pair.is_some() => become_standby(&why),
                Err(Failure::Final(fatal)) => fatal.exit(),
                Err(Failure::Transient(why)) => why,
            };
            if let Some(pair) = self.plan.pair {
                // The session may have ended, so the standby waits for a shorter time.
                let patience = owner_watch::patience_without_session(pair);
                self.plan.status.lease.shorten(self.confirmed_us + patience.as_micros() as u64);
            }
            self.plan.status.shipped.retries.add(1);
            self.plan.status.is_database_connected.store(false, Ordering::Relaxed);
            self.log_reason(why, &mut reasons);
            sleep(backoff).await;
            // One of two servers must report before the other one takes over.
            backoff = (backoff * 2).min(self.plan.pair.map_or(BACKOFF_MAX, |pair| pair.heartbeat));
        }
    }

    /// Logs a reason, unless it has been logged since the database was connected last.
    fn log_reason(&self, reason: Reason, logged: &mut LoggedReasons) {
        if !logged.insert(&reason) {
            return;
        }
        let (url, why) = (self.plan.claim.url.place(), &reason.text);
        if reason.is_refusal {
            tracing::warn!(
                url,
                why,
                "the database refuses the records until this is repaired: they stay in the log, and with --ack local \
                 selling continues"
            );
        } else {
            tracing::warn!(
                url,
                why,
                "the database is unavailable: records stay in the log, and with --ack local selling continues"
            );
        }
    }

    /// Connects, and sends batches until the process stops and all records are in the database. Empties `reasons` when
    /// the database is connected.
    async fn serve(&mut self, reasons: &mut LoggedReasons, backoff: &mut Duration) -> Result<(), Failure> {
        let mut database = self.connect().await?;
        let (owner, is_awaited) = (self.plan.claim.owner, self.plan.claim.terms.ack.needs_database());
        let mut is_verified = false;
        // Report at once: the database may accept connections and refuse changes.
        self.next_heartbeat = Instant::now();
        let mut batch = PendingBatch::default();
        loop {
            // Read this before gathering: all records that were flushed before the stop are gathered after it.
            let is_stopping = self.stop.get().is_some();
            let is_waiting = self.gather(&mut batch).await?;
            let moves = self.moves();
            let is_urgent = is_urgent(self.plan.claim.terms.ack, &batch, &moves);
            let is_due = !moves.is_empty() && (is_urgent || is_stopping || batch.remaining_wait().is_zero());
            if is_due {
                self.ship(&mut database, &mut batch, &moves).await?;
                *backoff = BACKOFF_MIN;
            }
            if Instant::now() >= self.next_heartbeat {
                let began_us = since_boot_us();
                in_time(SHIP_TIME, database.heartbeat(owner)).await?;
                self.confirmed(began_us);
            }
            self.maintain();
            // The database may accept a report and refuse rows, so what waits for a batch must have arrived.
            let has_arrived = moves.is_empty() || is_due;
            if has_arrived && !std::mem::replace(&mut is_verified, true) {
                self.log_connected(&database.place);
                (*reasons, *backoff) = (LoggedReasons::default(), BACKOFF_MIN);
            }
            if is_due {
                continue;
            }
            match (moves.is_empty(), is_awaited) {
                (true, _) if is_waiting => sleep(DESCRIPTOR_RETRY_TIME).await,
                (true, _) if is_stopping => return in_time(SHIP_TIME, self.plan.claim.leave(&database)).await,
                (true, _) => drop(timeout(self.idle_time(), self.flushed.bell.notified()).await),
                // A record that an answer waits for may arrive, and is sent at once.
                (false, true) => drop(timeout(batch.remaining_wait(), self.flushed.bell.notified()).await),
                (false, false) => sleep(batch.remaining_wait()).await,
            }
        }
    }

    /// Sends the batch in one transaction, together with full ones that are gathered meanwhile, and publishes the new
    /// positions. A commit waits for the disk of the database, so a backlog is sent in few of them.
    async fn ship(
        &mut self,
        database: &mut Database,
        batch: &mut PendingBatch,
        moves: &[PositionMove],
    ) -> Result<(), Failure> {
        let (owner, began, began_us) = (self.plan.claim.owner, Instant::now(), since_boot_us());
        let mut next_moves = Some(moves.to_vec());
        let (mut copied, mut is_first) = ([0; 4], true);
        while let Some(moves) = next_moves {
            let PendingBatch { rows, .. } = std::mem::take(batch);
            let of_batch = [&rows.checkouts, &rows.purchases, &rows.releases, &rows.extensions].map(CopyRows::rows);
            copied.iter_mut().zip(of_batch).for_each(|(sum, rows)| *sum += rows);
            let (schedule, plan) = (self.plan.rules.schedule, self.plan.sales);
            let sending = in_time(SHIP_TIME, database.send(owner, rows, &moves, is_first, (&schedule, plan)));
            if self.is_behind() {
                // Gather a full batch meanwhile. Fewer records wait, so that they form one batch.
                let (sent, gathered) = tokio::join!(sending, self.gather(batch));
                sent.and(gathered.map(drop))?;
            } else {
                sending.await?;
            }
            self.tails.iter_mut().for_each(|tail| {
                tail.sent = moves.iter().find(|moved| moved.stream == tail.stream).map_or(tail.sent, |moved| moved.to);
            });
            is_first = false;
            next_moves = self.may_continue(batch, began).then(|| self.moves());
        }
        in_time(SHIP_TIME, database.commit()).await?;
        self.plan.status.shipped.committed(began.elapsed(), copied);
        self.arrived();
        self.publish();
        // A transaction is a report, too.
        self.confirmed(began_us);
        Ok(())
    }

    /// Returns whether the transaction that began at `began` may take the next batch as well: it is full, and nobody waits
    /// for the commit.
    fn may_continue(&self, batch: &PendingBatch, began: Instant) -> bool {
        let is_awaited = self.plan.claim.terms.ack.needs_database() || self.stop.get().is_some();
        batch.is_full && !is_awaited && began.elapsed() < TRANSACTION_TIME
    }

    /// Notes that a transaction that began at `began_us` has found this run to be the owner.
    fn confirmed(&mut self, began_us: u64) {
        if let Some(pair) = self.plan.pair {
            self.plan.status.lease.extend(began_us, pair.patience);
        }
        self.confirmed_us = began_us;
        // Count from the beginning of the transaction, as the lease does: it must not end before the next report.
        let elapsed = Duration::from_micros(since_boot_us().saturating_sub(began_us));
        self.next_heartbeat = Instant::now() + self.heartbeat_time().saturating_sub(elapsed);
    }

    /// Returns how long the thread may wait for a ring.
    fn idle_time(&self) -> Duration {
        self.next_heartbeat.saturating_duration_since(Instant::now()).min(IDLE_TIME)
    }

    fn heartbeat_time(&self) -> Duration {
        self.plan.pair.map_or(HEARTBEAT_TIME, |pair| pair.heartbeat)
    }

    /// Logs that the database is connected.
    fn log_connected(&self, place: &str) {
        let records_behind = self.plan.status.records_behind();
        // Publish the state before the log line, so that a reader of the line sees it in `/readyz`.
        self.plan.status.is_database_connected.store(true, Ordering::Relaxed);
        tracing::info!(url = place, records_behind, "the database is connected");
    }

    /// Connects, claims the database, and reads the position of each stream.
    async fn connect(&mut self) -> Result<Database, Failure> {
        let began_us = since_boot_us();
        let (database, streams) = self.plan.claim.make().await?;
        self.confirmed(began_us);
        if self.plan.pair.is_some() {
            in_time(SHIP_TIME, owner_watch::lock(&database.client, self.plan.claim.owner)).await?;
        }
        let ends: Vec<Option<Seq>> = self.plan.claim.streams.iter().map(|(.., end)| *end).collect();
        let before = std::mem::take(&mut self.tails);
        for ((stream, position), end) in streams.into_iter().zip(ends) {
            let before = before.iter().find(|before| before.stream == stream).map_or(0, |before| before.position);
            if let Some(again) = before.checked_sub(position).filter(|again| *again > 0) {
                tracing::warn!(%stream, again, "the database has lost committed records: they are sent again");
            }
            self.tails.push(StreamTail::new(&self.plan.claim.logs, stream, position, end));
            self.send_position(stream, position);
        }
        self.tails.sort_by_key(|tail| tail.stream.key());
        self.publish();
        Ok(database)
    }

    /// Starts the maintenance of the partitions, if it is due. Not in a backlog: partitions are dropped that it would make
    /// again.
    fn maintain(&mut self) {
        let runs = self.maintenance.as_ref().is_some_and(|maintenance| !maintenance.is_finished());
        if !self.is_caught_up || runs || Instant::now() < self.next_maintenance {
            return;
        }
        self.next_maintenance = Instant::now() + MAINTENANCE_TIME;
        let Plan { claim, rules, keep, status, .. } = &self.plan;
        let maintenance = Maintenance {
            url: claim.url.clone(),
            owner: claim.owner,
            rules: *rules,
            keep: *keep,
            status: status.clone(),
        };
        self.maintenance = Some(tokio::spawn(maintenance.run()));
    }

    /// Sends the position of a stream to the shard that removes its segments.
    fn send_position(&self, stream: StreamId, position: Seq) {
        let keeper = usize::from(stream.shard) % self.plan.shipped.len();
        // Sending fails if the shard has stopped. It then removes no segments.
        let _ = self.plan.shipped[keeper].send((stream, position));
    }

    /// Notes that everything that was sent is in the database.
    fn arrived(&mut self) {
        for place in 0..self.tails.len() {
            let StreamTail { stream, position, sent, .. } = self.tails[place];
            if position < sent {
                self.tails[place].position = sent;
                self.send_position(stream, sent);
            }
        }
    }

    /// Adds the next records of all streams to the batch, until the batch is full. Returns whether a stream waits for a
    /// file descriptor.
    async fn gather(&mut self, batch: &mut PendingBatch) -> Result<bool, Failure> {
        // Read the durable positions before the chunks: a shard offers a chunk before it publishes its position, so the
        // channel has every chunk up to these positions that was not dropped.
        let durable: Vec<Seq> = self.tails.iter().map(|tail| tail.durable(&self.plan.status)).collect();
        for chunk in self.flushed.take() {
            if let Some(tail) = self.tails.iter_mut().find(|tail| tail.stream == chunk.stream) {
                tail.keep(chunk);
            }
        }
        batch.is_full = false;
        let is_awaited = self.plan.claim.terms.ack.needs_database();
        let attempt_bytes_max = if is_awaited { AWAITED_ATTEMPT_BYTES_MAX } else { BATCH_BYTES_MAX };
        let (mut records, mut is_waiting) = (Vec::new(), false);
        for (tail, until) in self.tails.iter_mut().zip(durable) {
            let is_attempts = tail.stream.log == LogKind::Attempts;
            while tail.gathered < until {
                if batch.bytes >= BATCH_BYTES_MAX || is_attempts && batch.attempt_bytes >= attempt_bytes_max {
                    batch.is_full = true;
                    break;
                }
                records.clear();
                match tail.take(until, PIECE_BYTES_MAX, &mut records) {
                    // Nothing is wrong with the log: other parts of the process, or other processes, use all
                    // descriptors. The records are read in a later round.
                    Err(error) if lacks_descriptors(&error) => {
                        self.descriptors.warn(tail.stream, &error);
                        // Records of this run rest on those of earlier runs, and must not arrive before them.
                        if tail.end.is_some() && !is_attempts {
                            return Ok(true);
                        }
                        is_waiting = true;
                        break;
                    }
                    taken => taken.map_err(unreadable)?,
                }
                if let Some((records, first)) = tail.take_lost() {
                    let text =
                        "refused attempts cannot be read back and will be missing in the database: check the disk";
                    tracing::warn!(stream = %tail.stream, records, first, "{text}");
                }
                for bytes in records.as_chunks::<RECORD_BYTES>().0 {
                    match Record::decode(bytes) {
                        Ok(record) => batch.rows.add(&record),
                        Err(flaw) if is_attempts => {
                            tracing::warn!(stream = %tail.stream, ?flaw, "an attempt will be missing in the database");
                        }
                        Err(flaw) => return Err(unreadable(std::io::Error::other(format!("{flaw:?}")))),
                    }
                }
                batch.bytes += records.len();
                batch.attempt_bytes += if is_attempts { records.len() } else { 0 };
                batch.since = batch.since.or(Some(Instant::now()));
                // The previous transaction runs on this thread, too.
                yield_now().await;
            }
        }
        self.is_caught_up = !batch.is_full;
        Ok(is_waiting)
    }

    /// Returns the moves of the positions for the gathered batch.
    fn moves(&self) -> Vec<PositionMove> {
        let moves =
            self.tails.iter().map(|tail| PositionMove { stream: tail.stream, from: tail.sent, to: tail.gathered });
        moves.filter(|moved| moved.from < moved.to).collect()
    }

    /// Returns whether enough records for a full batch are durable and not gathered.
    fn is_behind(&self) -> bool {
        let records = |tail: &StreamTail| tail.durable(&self.plan.status).saturating_sub(tail.gathered);
        self.tails.iter().map(records).sum::<Seq>() >= (BATCH_BYTES_MAX / RECORD_BYTES) as Seq
    }

    /// Publishes the positions for shards and status pages, and rings the shards.
    fn publish(&self) {
        let status = &self.plan.status;
        for tail in self.tails.iter().filter(|tail| tail.end.is_none()) {
            let shard = status.shard(ShardId(tail.stream.shard));
            shard.log(tail.stream.log).persisted.store(tail.position, Ordering::Release);
        }
        let earlier = self.tails.iter().filter_map(|tail| Some(tail.end?.saturating_sub(tail.position)));
        status.earlier_behind.store(earlier.sum(), Ordering::Relaxed);
        self.plan.doorbells.iter().for_each(Doorbell::ring);
    }
}

/// Returns whether an answer waits for the batch.
fn is_urgent(ack: Ack, batch: &PendingBatch, moves: &[PositionMove]) -> bool {
    match ack {
        Ack::Local => false,
        Ack::Postgres => batch.rows.purchases.rows() > 0,
        // Grants, extensions, releases and purchases.
        Ack::Replicated => moves.iter().any(|moved| moved.stream.log == LogKind::Purchases),
    }
}

/// Starts this program anew, as the standby of the server that has taken over.
fn become_standby(why: &Fatal) -> ! {
    tracing::warn!(%why, "another server has taken over: this one starts again, as its standby");
    logging::flush();
    let error = restart();
    Fatal::Host(format!("cannot start as a standby: {error}")).exit()
}

/// Returns when the process stops and the deadline of its stop has passed.
async fn stop_deadline_passed(stop: Arc<OnceLock<Instant>>) {
    loop {
        match stop.get() {
            Some(deadline) => return sleep_until((*deadline).into()).await,
            None => sleep(IDLE_TIME).await,
        }
    }
}
