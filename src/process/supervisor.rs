//! The supervisor: the main thread of the running process. It logs reports of the shards, handles signals, watches
//! Postgres and the watchdog, and stops the process in order. Upgrades are in [`crate::process::upgrading`].

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::connection::Overdue;
use crate::http::route::rfc3339;
use crate::log::data_dir::{ControlFile, DataDir, OpenDataDir};
use crate::log::manifest::Manifest;
use crate::log::recovery::Streams;
use crate::operate::admin;
use crate::operate::lag::{Lag, LagChange};
use crate::operate::status::{EndedSale, Phase, Status};
use crate::postgres::shipper::{Persistence, Shipper};
use crate::process::service_manager::ServiceManager;
use crate::runtime::control::{Notice, Order};
use crate::sale::effects::EndedShare;
use crate::sale::ids::{SaleId, ShardId, Terms};
use crate::sale::record::{LogEvent, Record, SaleTimes};
use crate::system::clock::Clock;
use crate::system::doorbell::Doorbell;
use crate::system::{host, listener};
use crate::upgrade::predecessor::Predecessor;
use crate::upgrade::successor::Successor;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, atomic::Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two looks at the backlog of Postgres.
const LAG_CHECK_TIME: Duration = Duration::from_millis(250);

/// The data directory of the running process.
pub struct OwnedDataDir {
    /// Locked data directory.
    pub dir: DataDir,
    /// Paths and identity of the data directory.
    pub data: OpenDataDir,
    /// `control.json` of the data directory.
    pub control: ControlFile,
}

/// The part of an upgrade that the new process still has to do.
pub struct PendingTakeover {
    /// Old process.
    pub predecessor: Predecessor,
    /// Listening sockets, to be opened when this process serves.
    pub listeners: Vec<OwnedFd>,
    /// Work for the time after the end of the old process.
    pub deferred_work: DeferredWork,
}

/// Work that waits until no earlier run writes any more.
pub struct DeferredWork {
    /// Streams of earlier runs, to be sealed.
    pub streams: Streams,
    /// The oldest sale that was open at the start of this run.
    pub oldest_open: SaleId,
    /// Persistence thread, to be started, or `None` without a database.
    pub shipper: Option<Shipper>,
}

/// The running shards, and the channels to and from them.
pub struct ShardHandles {
    /// Doorbell of each shard.
    pub doorbells: Arc<[Doorbell]>,
    /// Receiver of notices from all threads.
    pub notice_receiver: Receiver<Notice>,
    /// Sender of notices, to be cloned for further threads.
    pub notices: Sender<Notice>,
    /// Channel of orders to each shard.
    pub orders: Vec<Sender<Order>>,
    /// Threads of the shards.
    pub threads: Vec<thread::JoinHandle<()>>,
}

/// The state of the main thread.
pub struct Supervisor {
    /// Time at which the process was started.
    pub started: Instant,
    /// Clock of the server's time.
    pub clock: Clock,
    /// Settings.
    pub config: Arc<Config>,
    /// Numbers that all threads publish.
    pub status: Arc<Status>,
    /// The shards.
    pub shards: ShardHandles,
    /// Running persistence thread, if there is one.
    pub persistence: Option<Persistence>,
    /// Service manager.
    pub manager: ServiceManager,
    /// Listening socket of the admin port.
    pub admin: TcpListener,
    /// Data directory.
    pub site: OwnedDataDir,
    /// Set in the new process of an upgrade until it serves.
    pub pending_takeover: Option<PendingTakeover>,
    /// Set in the new process of an upgrade, from the time it serves until the old process has ended.
    pub deferred_work: Option<DeferredWork>,
    /// The streams of earlier runs that the next recovery must find.
    pub manifest: Manifest,
    /// New process of an upgrade, seen from the old one.
    pub successor: Option<Successor>,
    /// The newest sale that was open at the start, or whose opening is logged.
    pub newest_sale: SaleId,
}

/// The times of a stop: when the drain begins, and when the process must end.
#[derive(Clone, Copy)]
struct Stop {
    drains: Instant,
    ends: Instant,
}

/// The counts and decisions of the main thread.
#[derive(Default)]
struct SupervisorState {
    /// Number of shards that can sell.
    ready: usize,
    /// Number of drained shards: all their requests are answered.
    drained: usize,
    /// Sales that have ended on some shards, each with its number of shards, sold items and items.
    ended: BTreeMap<SaleId, (usize, u32, u32)>,
    /// Times of the stop, after the first signal to stop.
    stop: Option<Stop>,
    lag: Lag,
}

/// The next action of the main thread after a notice.
enum Next {
    /// Wait for the next notice.
    Continue,
    /// Flush and end.
    Stop,
    /// End at once, because another process serves.
    HandedOver,
}

impl Supervisor {
    /// Supervises the shards until the process ends, after a signal or after an upgrade.
    ///
    /// # Errors
    /// Every reason for which this process cannot take over from the old one, or cannot begin to persist.
    pub fn run(mut self) -> Result<(), Fatal> {
        let mut state = SupervisorState::default();
        loop {
            let next = match self.wait(&mut state) {
                Ok(notice) => self.handle(notice, &mut state)?,
                Err(_) if state.stop.is_none_or(|stop| Instant::now() < stop.ends) => Next::Continue,
                Err(_) => {
                    tracing::warn!(
                        "some requests did not finish within --drain-timeout; raise it to give them more time"
                    );
                    Next::Stop
                }
            };
            // The persistence thread starts when the old process has ended, and must still send its records.
            let is_drained = state.drained == self.shards.threads.len() && self.deferred_work.is_none();
            match next {
                Next::HandedOver => return Ok(()),
                Next::Continue if !is_drained => {}
                Next::Continue | Next::Stop => break,
            }
        }
        let ends = state.stop.map_or_else(Instant::now, |stop| stop.ends);
        self.manager.extend_end(ends.saturating_duration_since(Instant::now()));
        self.enter(Phase::Stopping);
        for thread in self.shards.threads {
            // A thread that panics ends the process, so the result is never an error.
            let _ = thread.join();
        }
        if let Some(persistence) = self.persistence {
            persistence.finish(ends);
        }
        Ok(())
    }

    /// Waits for a notice or for the next deadline. Begins the drain, notifies the watchdog, looks at Postgres and
    /// aborts a late upgrade when the time has come.
    fn wait(&mut self, state: &mut SupervisorState) -> Result<Notice, RecvTimeoutError> {
        let now = Instant::now();
        if self.status.entered_phase() == Phase::Leaving && state.stop.is_some_and(|stop| stop.drains <= now) {
            tracing::info!("draining: accepting no new connections, finishing requests in flight");
            self.enter(Phase::Draining);
        }
        let next_step = state.stop.map(|stop| if stop.drains > now { stop.drains } else { stop.ends });
        let next_look = self.persistence.is_some().then(|| now + LAG_CHECK_TIME);
        let next_notification = self.manager.notify_watchdog(&self.status, now);
        let next_extension = self.manager.extend_stop(now);
        let upgrade_ends = self.successor.as_ref().map(Successor::deadline);
        let next = [next_step, next_look, next_notification, next_extension, upgrade_ends].into_iter().flatten().min();
        let notice = match next {
            None => self.shards.notice_receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(end) => self.shards.notice_receiver.recv_deadline(end),
        };
        if self.persistence.is_some() {
            self.update_lag(&mut state.lag);
        }
        if upgrade_ends.is_some_and(|end| end <= Instant::now()) {
            self.abort_upgrade("a step took too long");
        }
        notice
    }

    fn handle(&mut self, notice: Notice, state: &mut SupervisorState) -> Result<Next, Fatal> {
        match notice {
            Notice::Ready(_) => {
                state.ready += 1;
                if state.ready == self.shards.threads.len() && state.stop.is_none() {
                    self.serve()?;
                }
            }
            Notice::PredecessorExited => {
                // The old process may have written to the control file until its end.
                self.site.control.reload_database()?;
                self.deferred_work.take().map_or(Ok(()), |deferred_work| self.finish_earlier_runs(deferred_work))?;
            }
            Notice::Opened(record) => self.note_opened(&record),
            Notice::Ended(part) => {
                if let Some(mut sale) = add_ended_share(&mut state.ended, part, self.shards.threads.len()) {
                    sale.opens_ms = self.config.rules.schedule.terms(part.sale).map(|terms| terms.opens_ms);
                    let EndedSale { sale_id, sold, items, .. } = sale;
                    tracing::info!(sale = sale_id, sold, items, "the sale has ended");
                    self.status.add_ended_sale(sale);
                }
            }
            Notice::LogFull(shard, is_full) => log_room(shard, is_full),
            Notice::AttemptsLost(shard, are_lost) => log_attempts(shard, are_lost),
            Notice::Overdue(shard, overdue) => log_overdue(shard, overdue),
            Notice::Drained(_) => state.drained += 1,
            Notice::Upgrade(signal) => self.upgrade(&signal),
            Notice::Stop(_) if self.pending_takeover.is_some() => {
                tracing::info!("received a signal to stop: the old process continues to serve");
                return Ok(Next::HandedOver);
            }
            Notice::Stop(signal) if state.stop.is_none() => state.stop = Some(self.begin_stop(&signal)),
            Notice::Stop(signal) => {
                tracing::warn!(signal, "received another signal to stop: not waiting for requests in flight");
                state.stop = Some(Stop { drains: Instant::now(), ends: Instant::now() });
                return Ok(Next::Stop);
            }
            Notice::Idle(_) | Notice::HandedOver(..) | Notice::Successor(..) => {
                return Ok(if self.advance_upgrade(notice) { Next::HandedOver } else { Next::Continue });
            }
        }
        Ok(Next::Continue)
    }

    /// Logs and publishes that a sale has opened, when the first shard begins it. Sales open in the order of their ids.
    fn note_opened(&mut self, record: &Record) {
        if let LogEvent::SaleOpened { items, user_limit, times: Some(times), .. } = record.event
            && record.sale > self.newest_sale
        {
            self.newest_sale = record.sale;
            let SaleTimes { opens_ms, closes_ms } = times;
            let planned = self.config.rules.schedule.terms(record.sale).unwrap_or(Terms::NONE);
            self.status.add_begun_sale(Terms { sale: record.sale, items, user_limit, opens_ms, closes_ms, ..planned });
            let [opens_at, closes_at] = [opens_ms, closes_ms].map(rfc3339);
            let name = self.config.plan.and_then(|plan| plan.sale(record.sale)).map(|sale| &*sale.name);
            let sale = record.sale.0;
            tracing::info!(sale, name, items, user_limit, opens_at, closes_at, "the sale has opened");
        }
    }

    /// Begins to serve, when every shard can sell. In an upgrade, waits until the old process hands over.
    fn serve(&mut self) -> Result<(), Fatal> {
        if let Some(PendingTakeover { predecessor, listeners, deferred_work }) = self.pending_takeover.take() {
            predecessor.wait_for_release()?;
            let shards = self.shards.threads.len() as u16;
            listener::open(&listeners, self.config.steers_by_cpu, shards)?;
            let notices = self.shards.notices.clone();
            predecessor.watch_exit(move || _ = notices.send(Notice::PredecessorExited))?;
            let admin = self.admin.try_clone().map_err(host::no_descriptors)?;
            admin::start(admin, self.status.clone(), self.clock.clone(), &self.config)?;
            self.deferred_work = Some(deferred_work);
        }
        if self.deferred_work.is_none() {
            self.site.control.store_manifest(self.manifest_of_run())?;
        }
        self.enter(Phase::Serving);
        self.manager.ready();
        tracing::info!(ms = self.started.elapsed().as_millis() as u64, "serving");
        Ok(())
    }

    /// Settles the work of earlier runs, when none of them writes any more: stores the manifest of their streams, seals
    /// these streams, gives the segments to the shards, and starts the persistence thread.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: the data directory cannot be written. [`Fatal::Host`]: the host provides no thread.
    pub fn finish_earlier_runs(&mut self, deferred_work: DeferredWork) -> Result<(), Fatal> {
        let DeferredWork { streams, oldest_open, shipper } = deferred_work;
        let shards = self.shards.orders.len();
        let mut old_of = vec![Vec::new(); shards];
        self.manifest = streams.manifest(oldest_open);
        // In an upgrade, the shards of this run sell already.
        let manifest =
            if self.status.entered_phase() >= Phase::Serving { self.manifest_of_run() } else { self.manifest.clone() };
        self.site.control.store_manifest(manifest)?;
        let old = streams.seal(&self.site.data, &self.status.log_budget)?.into_iter();
        // All segments of a stream go to one shard, so that retention removes them from the oldest on.
        old.for_each(|segment| old_of[usize::from(segment.name.stream.shard) % shards].push(segment));
        for (orders, old) in self.shards.orders.iter().zip(old_of) {
            let _ = orders.send(Order::Keep(old));
        }
        self.persistence = shipper.map(Shipper::start).transpose()?;
        Ok(())
    }

    /// Returns the manifest with the streams of this run, whose shards are ready.
    fn manifest_of_run(&self) -> Manifest {
        self.manifest.clone().with_run(self.site.data.epoch, self.shards.orders.len() as u16)
    }

    fn begin_stop(&mut self, signal: &str) -> Stop {
        self.abort_upgrade("this process received a signal to stop");
        self.manager.stopping(Instant::now());
        let is_selling = self.status.entered_phase() == Phase::Serving;
        let delay = if is_selling { self.config.drain_delay } else { Duration::ZERO };
        // Enter the phase before the log line, so that a reader of the line sees it in `/readyz`.
        self.enter(Phase::Leaving);
        let seconds = delay.as_secs_f64();
        tracing::info!(
            signal,
            seconds,
            "received a signal to stop: /readyz answers 503, selling continues until the drain begins"
        );
        let drains = Instant::now() + delay;
        Stop { drains, ends: drains + self.config.drain_timeout }
    }

    /// Publishes the lag of Postgres, and logs when a lag begins and ends.
    fn update_lag(&self, lag: &mut Lag) {
        let (durable, persisted) = self.status.records();
        let (behind, change) = lag.update(durable, persisted, self.started.elapsed());
        self.status.behind_ms.store(behind.as_millis() as u64, Ordering::Relaxed);
        let records = durable - persisted;
        match change {
            Some(LagChange::FellBehind) => tracing::warn!(records, "Postgres lags behind: the log keeps the backlog"),
            Some(LagChange::CaughtUp) => tracing::info!(records, "Postgres has caught up"),
            None => {}
        }
    }

    /// Changes the phase and wakes every shard.
    pub fn enter(&self, phase: Phase) {
        self.status.set_phase(phase);
        self.ring();
    }

    /// Wakes every shard.
    pub fn ring(&self) {
        self.shards.doorbells.iter().for_each(Doorbell::ring);
    }
}

fn log_room(ShardId(shard): ShardId, is_full: bool) {
    match is_full {
        true => tracing::warn!(
            shard,
            "the log is full: no more items are reserved until there is space; raise --log-budget or free disk space"
        ),
        false => tracing::info!(shard, "the log has space again"),
    }
}

fn log_attempts(ShardId(shard): ShardId, are_lost: bool) {
    match are_lost {
        true => tracing::warn!(
            shard,
            "refused attempts are not recorded until there is space; raise --log-budget or free disk space"
        ),
        false => tracing::info!(shard, "refused attempts are recorded again"),
    }
}

fn log_overdue(shard: ShardId, Overdue { count, example }: Overdue) {
    let request_id = example.as_ref().and_then(|trace| trace.request_id.as_deref()).map(String::from_utf8_lossy);
    let traceparent = example.as_ref().and_then(|trace| trace.traceparent.as_deref());
    tracing::warn!(
        shard = shard.0,
        requests = count,
        request_id = request_id.as_deref(),
        traceparent,
        "no decision in time: clients got 503 overdue; check the disk, and with --ack postgres the database"
    );
}

/// Number of ended sales of which not all shards have reported their parts, at most.
const UNREPORTED_MAX: usize = 512;

/// Adds one shard's part of an ended sale. Returns the sale when all shards have reported their parts.
fn add_ended_share(
    sales: &mut BTreeMap<SaleId, (usize, u32, u32)>,
    part: EndedShare,
    shards: usize,
) -> Option<EndedSale> {
    // A shard that has slept through a sale never reports it.
    while sales.len() > UNREPORTED_MAX {
        sales.pop_first();
    }
    let (parts, sold, items) = sales.entry(part.sale).or_default();
    *parts += 1;
    *sold += part.sold;
    *items += part.items;
    let (parts, sold, items) = (*parts, *sold, *items);
    (parts == shards).then(|| sales.remove(&part.sale))?;
    Some(EndedSale { sale_id: part.sale.0, opens_ms: None, sold, items })
}
