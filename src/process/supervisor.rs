//! The running process, seen from its main thread: it logs what shards report, gives way to another process when it is
//! told to, and sees to an orderly end.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::connection::Overdue;
use crate::log::data_dir::{ControlFile, DataDir, Opened};
use crate::log::recovery::Streams;
use crate::operate::admin;
use crate::operate::lag::{Lag, LagChange};
use crate::operate::status::{Phase, SaleEnded, Status};
use crate::postgres::shipper::{Persistence, Shipper};
use crate::process::service_manager::ServiceManager;
use crate::runtime::control::{Notice, Order};
use crate::sale::ids::{SaleId, ShardId};
use crate::sale::shard::EndedShare;
use crate::system::doorbell::Doorbell;
use crate::system::{host, listener};
use crate::upgrade::predecessor::Predecessor;
use crate::upgrade::successor::Successor;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::fd::OwnedFd;
use signal_hook::consts::SIGUSR2;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// How often main looks how far Postgres is behind.
const LOOK_TIME: Duration = Duration::from_millis(250);

/// The data directory of the running process.
pub struct Site {
    /// Its lock.
    pub dir: DataDir,
    /// Where things are in it.
    pub data: Opened,
    /// What is written there beside the log.
    pub control: ControlFile,
}

/// A process that is about to take the place of another.
pub struct Coming {
    /// That one.
    pub predecessor: Predecessor,
    /// To be opened.
    pub listeners: Vec<OwnedFd>,
    /// For later.
    pub unsettled: Unsettled,
}

/// What is left to do once no earlier run is there any more.
pub struct Unsettled {
    /// To be sealed.
    pub streams: Streams,
    /// To be started, if there is a database.
    pub shipper: Option<Shipper>,
}

/// See the top of this file.
pub struct Supervisor {
    /// When the process was started.
    pub started: Instant,
    /// The settings.
    pub config: Arc<Config>,
    /// What everyone publishes.
    pub status: Arc<Status>,
    /// Of each shard.
    pub doorbells: Arc<[Doorbell]>,
    /// From all threads.
    pub noticed: Receiver<Notice>,
    /// For one more thread.
    pub notices: Sender<Notice>,
    /// To each shard.
    pub orders: Vec<Sender<Order>>,
    /// The shards.
    pub threads: Vec<thread::JoinHandle<()>>,
    /// The way to Postgres, if there is one.
    pub persistence: Option<Persistence>,
    /// The service manager.
    pub manager: ServiceManager,
    /// Where operators come to.
    pub admin: TcpListener,
    /// The data directory.
    pub site: Site,
    /// How it becomes the server, if it takes the place of another.
    pub coming: Option<Coming>,
    /// What waits for the end of that one.
    pub unsettled: Option<Unsettled>,
    /// What is to take the place of this process.
    pub successor: Option<Successor>,
}

/// When selling ends, and when everything must.
#[derive(Clone, Copy)]
struct Stop {
    drains: Instant,
    ends: Instant,
}

/// What the main thread has counted and decided so far.
#[derive(Default)]
struct Watch {
    /// Shards that can sell.
    ready: usize,
    /// Shards that have answered every request.
    drained: usize,
    /// Sales that have ended on some shards.
    ended: BTreeMap<SaleId, (usize, u32, u32)>,
    /// Set once a signal has told the process to stop.
    stop: Option<Stop>,
    lag: Lag,
}

/// What follows a notice.
enum Next {
    Watch,
    /// Flush and end.
    Stop,
    /// Another process serves now: end at once.
    HandedOver,
}

impl Supervisor {
    /// Supervises the shards until the process ends, after a signal or after an upgrade.
    ///
    /// # Errors
    /// The reason why this process cannot take over from another one.
    pub fn run(mut self) -> Result<(), Fatal> {
        let mut watch = Watch::default();
        loop {
            let next = match self.wait(&mut watch) {
                Ok(notice) => self.handle(notice, &mut watch)?,
                Err(_) if watch.stop.is_none_or(|stop| Instant::now() < stop.ends) => Next::Watch,
                Err(_) => {
                    tracing::warn!("some requests did not finish in time; --drain-timeout gives them more");
                    Next::Stop
                }
            };
            // Records that are still to be sent to Postgres may wait for the end of the process before.
            let is_drained = watch.drained == self.threads.len() && self.unsettled.is_none();
            match next {
                Next::HandedOver => return Ok(()),
                Next::Watch if !is_drained => {}
                Next::Watch | Next::Stop => break,
            }
        }
        self.enter(Phase::Stopping);
        for thread in self.threads {
            // A panic has ended the process already.
            let _ = thread.join();
        }
        if let Some(persistence) = self.persistence {
            persistence.finish(watch.stop.map_or_else(Instant::now, |stop| stop.ends));
        }
        Ok(())
    }

    /// Waits for a notice or for the next deadline, and does what is due.
    fn wait(&mut self, watch: &mut Watch) -> Result<Notice, RecvTimeoutError> {
        let now = Instant::now();
        if self.status.phase() == Phase::Leaving && watch.stop.is_some_and(|stop| stop.drains <= now) {
            tracing::info!("draining: no new connections, requests in flight finish");
            self.enter(Phase::Draining);
        }
        let next_step = watch.stop.map(|stop| if stop.drains > now { stop.drains } else { stop.ends });
        let next_look = self.persistence.is_some().then(|| now + LOOK_TIME);
        let next_sign = self.manager.give_sign_of_life(&self.status, now);
        let upgrade_ends = self.successor.as_ref().map(Successor::deadline);
        let next = [next_step, next_look, next_sign, upgrade_ends].into_iter().flatten().min();
        let notice = match next {
            None => self.noticed.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(end) => self.noticed.recv_deadline(end),
        };
        if self.persistence.is_some() {
            self.look_at_postgres(&mut watch.lag);
        }
        if upgrade_ends.is_some_and(|end| end <= Instant::now()) {
            self.call_off("it took too long");
        }
        notice
    }

    fn handle(&mut self, notice: Notice, watch: &mut Watch) -> Result<Next, Fatal> {
        match notice {
            Notice::Ready(_) => {
                watch.ready += 1;
                if watch.ready == self.threads.len() && watch.stop.is_none() {
                    self.serve()?;
                }
            }
            Notice::Alone => {
                // The old process may have written to the control file until its end.
                self.site.control.read_again()?;
                self.unsettled.take().map_or(Ok(()), |unsettled| self.settle(unsettled))?;
            }
            Notice::Ended(part) => {
                if let Some(sale) = total(&mut watch.ended, part, self.threads.len()) {
                    let SaleEnded { sale_id, sold, items } = sale;
                    tracing::info!(sale = sale_id, sold, items, "sale over, the next one is open");
                    self.status.note_end(sale);
                }
            }
            Notice::LogFull(shard, is_full) => log_room(shard, is_full),
            Notice::AttemptsLost(shard, are_lost) => log_attempts(shard, are_lost),
            Notice::Overdue(shard, overdue) => log_overdue(shard, overdue),
            Notice::Drained(_) => watch.drained += 1,
            Notice::Signal(SIGUSR2) => self.upgrade(),
            Notice::Signal(_) if self.coming.is_some() => {
                tracing::info!("told to stop: the server before goes on");
                return Ok(Next::HandedOver);
            }
            Notice::Signal(signal) if watch.stop.is_none() => watch.stop = Some(self.leave(signal)),
            Notice::Signal(signal) => {
                tracing::warn!(signal, "told to stop again: not waiting for requests in flight");
                watch.stop = Some(Stop { drains: Instant::now(), ends: Instant::now() });
                return Ok(Next::Stop);
            }
            Notice::Still(_) | Notice::HandedOver(..) | Notice::Successor(..) => {
                return Ok(if self.go_on_upgrading(notice) { Next::HandedOver } else { Next::Watch });
            }
        }
        Ok(Next::Watch)
    }

    /// Every shard can sell: this process becomes the server.
    fn serve(&mut self) -> Result<(), Fatal> {
        if let Some(Coming { predecessor, listeners, unsettled }) = self.coming.take() {
            predecessor.wait_for_its_word()?;
            let shards = self.threads.len() as u16;
            listener::open(&listeners, self.config.steers_by_cpu, shards)?;
            let notices = self.notices.clone();
            predecessor.watch_it_go(move || _ = notices.send(Notice::Alone))?;
            let admin = self.admin.try_clone().map_err(host::no_descriptors)?;
            admin::start(admin, self.status.clone(), self.config.rules.period_s)?;
            self.unsettled = Some(unsettled);
        }
        self.enter(Phase::Serving);
        self.manager.ready();
        tracing::info!(ms = self.started.elapsed().as_millis() as u64, "serving");
        Ok(())
    }

    /// Ends what earlier runs have left open, now that none of them is there.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it cannot be written. [`Fatal::Host`]: no thread can be had.
    pub fn settle(&mut self, unsettled: Unsettled) -> Result<(), Fatal> {
        let Unsettled { streams, shipper } = unsettled;
        let shards = self.orders.len();
        let mut old_of = vec![Vec::new(); shards];
        // Whole streams, so that each loses only its beginning to retention.
        let old = streams.seal(&self.site.data)?.into_iter();
        old.for_each(|segment| old_of[usize::from(segment.name.stream.shard) % shards].push(segment));
        for (orders, old) in self.orders.iter().zip(old_of) {
            let _ = orders.send(Order::Keep(old));
        }
        self.persistence = shipper.map(Shipper::start).transpose()?;
        Ok(())
    }

    fn leave(&mut self, signal: i32) -> Stop {
        self.call_off("told to stop");
        self.manager.stopping();
        let is_selling = self.status.phase() == Phase::Serving;
        let delay = if is_selling { self.config.drain_delay } else { Duration::ZERO };
        // Before the line: whoever reads it finds it so.
        self.enter(Phase::Leaving);
        let seconds = delay.as_secs_f64();
        tracing::info!(signal, seconds, "told to stop: not ready any more, selling until the drain begins");
        let drains = Instant::now() + delay;
        Stop { drains, ends: drains + self.config.drain_timeout }
    }

    /// Publishes how far Postgres is behind, and logs when that begins and ends.
    fn look_at_postgres(&self, lag: &mut Lag) {
        let (durable, persisted) = self.status.records();
        let (behind, change) = lag.look(durable, persisted, self.started.elapsed());
        self.status.behind_ms.store(behind.as_millis() as u64, Ordering::Relaxed);
        let records = durable - persisted;
        match change {
            Some(LagChange::FellBehind) => tracing::warn!(records, "Postgres is behind: the log keeps what it misses"),
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
        self.doorbells.iter().for_each(Doorbell::ring);
    }
}

fn log_room(ShardId(shard): ShardId, is_full: bool) {
    match is_full {
        true => tracing::warn!(
            shard,
            "the log is full: no more items are reserved until there is space; raise --log-budget or free disk"
        ),
        false => tracing::info!(shard, "the log has space again"),
    }
}

fn log_attempts(ShardId(shard): ShardId, are_lost: bool) {
    match are_lost {
        true => tracing::warn!(
            shard,
            "refused attempts are not recorded until there is space; raise --log-budget or free disk"
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
        "no decision in time: clients were told to ask again; look at the disk, and with --ack postgres at the database"
    );
}

/// Adds one shard's part of a sale that is over. The sale, when all parts are there.
fn total(sales: &mut BTreeMap<SaleId, (usize, u32, u32)>, part: EndedShare, shards: usize) -> Option<SaleEnded> {
    let (parts, sold, items) = sales.entry(part.sale).or_default();
    *parts += 1;
    *sold += part.sold;
    *items += part.items;
    let (parts, sold, items) = (*parts, *sold, *items);
    (parts == shards).then(|| sales.remove(&part.sale))?;
    Some(SaleEnded { sale_id: part.sale.0, sold, items })
}
