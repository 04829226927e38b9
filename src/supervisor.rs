//! The running process, seen from its main thread: it logs what shards report, gives way to another process when it is
//! told to, and sees to an orderly end.

use crate::admin;
use crate::block::FORMAT_VERSION;
use crate::config::Config;
use crate::connection::Overdue;
use crate::data_dir::{ControlFile, DataDir, Opened};
use crate::doorbell::Doorbell;
use crate::fatal::Fatal;
use crate::handover::{FromNew, Offer, PROTOCOL};
use crate::lag::{Change, Lag};
use crate::listener;
use crate::notice::{Notice, Order};
use crate::persistence::{Persistence, Shipper};
use crate::predecessor::Predecessor;
use crate::recovery::Streams;
use crate::segment::remove_run;
use crate::service_manager::ServiceManager;
use crate::shard::Ended;
use crate::status::{Phase, SaleEnded, Status};
use crate::successor::{Stage, Successor};
use crate::types::{SaleId, ShardId};
use crate::waiting::Watermark;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::fd::{AsFd, OwnedFd};
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

impl Supervisor {
    /// Watches over the shards until the process ends, because it was told to or because another one has its place.
    ///
    /// # Errors
    /// What keeps it from becoming the server in the place of another.
    pub fn run(mut self) -> Result<(), Fatal> {
        let shards = self.threads.len();
        let (mut ready, mut drained) = (0, 0);
        let mut ended = BTreeMap::new();
        let mut stop: Option<Stop> = None;
        let mut lag = Lag::default();
        loop {
            let now = Instant::now();
            if self.status.phase() == Phase::Leaving && stop.is_some_and(|stop| stop.drains <= now) {
                tracing::info!("draining: no new connections, requests in flight finish");
                self.enter(Phase::Draining);
            }
            let next_step = stop.map(|stop| if stop.drains > now { stop.drains } else { stop.ends });
            let next_look = self.persistence.is_some().then(|| now + LOOK_TIME);
            let next_sign = self.manager.give_sign_of_life(&self.status, now);
            let upgrade_ends = self.successor.as_ref().map(Successor::deadline);
            let next = [next_step, next_look, next_sign, upgrade_ends].into_iter().flatten().min();
            let notice = match next {
                None => self.noticed.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(end) => self.noticed.recv_deadline(end),
            };
            if self.persistence.is_some() {
                self.look_at_postgres(&mut lag);
            }
            if upgrade_ends.is_some_and(|end| end <= Instant::now()) {
                self.call_off("it took too long");
            }
            match notice {
                Ok(Notice::Ready(_)) => {
                    ready += 1;
                    if ready == shards && stop.is_none() {
                        self.serve()?;
                    }
                }
                Ok(Notice::Alone) => {
                    // It may have written there to the last.
                    self.site.control.read_again()?;
                    self.unsettled.take().map_or(Ok(()), |unsettled| self.settle(unsettled))?;
                }
                Ok(Notice::Ended(part)) => {
                    if let Some(sale) = total(&mut ended, part, shards) {
                        let SaleEnded { sale_id, sold, items } = sale;
                        tracing::info!(sale = sale_id, sold, items, "sale over, the next one is open");
                        self.status.note_end(sale);
                    }
                }
                Ok(Notice::LogFull(shard, is_full)) => log_room(shard, is_full),
                Ok(Notice::AttemptsLost(shard, are_lost)) => log_attempts(shard, are_lost),
                Ok(Notice::Overdue(shard, overdue)) => log_overdue(shard, overdue),
                Ok(Notice::Signal(SIGUSR2)) => self.upgrade(),
                Ok(Notice::Signal(_)) if self.coming.is_some() => {
                    tracing::info!("told to stop: the server before goes on");
                    return Ok(());
                }
                Ok(Notice::Signal(signal)) if stop.is_none() => stop = Some(self.leave(signal)),
                Ok(Notice::Drained(_)) => drained += 1,
                Ok(Notice::Signal(signal)) => {
                    tracing::warn!(signal, "told to stop again: not waiting for requests in flight");
                    stop = Some(Stop { drains: Instant::now(), ends: Instant::now() });
                    break;
                }
                Ok(Notice::Still(_) | Notice::HandedOver(..) | Notice::Successor(..)) if self.successor.is_none() => {}
                Ok(Notice::Still(_)) => {
                    let still = self.all_are_still();
                    self.unless_failed(still);
                }
                Ok(Notice::HandedOver(_, handed_over)) => {
                    let successor = self.successor.as_mut().expect("there is one");
                    let passed = handed_over.and_then(|()| successor.shard_has_handed_over());
                    self.unless_failed(passed);
                }
                Ok(Notice::Successor(pid, said)) => {
                    if self.hear_successor(pid, said) {
                        return Ok(());
                    }
                }
                Err(_) if stop.is_none_or(|stop| Instant::now() < stop.ends) => {}
                Err(_) => {
                    tracing::warn!("some requests did not finish in time; --drain-timeout gives them more");
                    break;
                }
            }
            // What the end is to bring to Postgres may still wait for the end of the process before.
            if drained == shards && self.unsettled.is_none() {
                break;
            }
        }
        self.enter(Phase::Stopping);
        for thread in self.threads {
            // A panic has ended the process already.
            let _ = thread.join();
        }
        if let Some(persistence) = self.persistence {
            persistence.finish(stop.map_or_else(Instant::now, |stop| stop.ends));
        }
        Ok(())
    }

    /// Every shard can sell: this process becomes the server.
    fn serve(&mut self) -> Result<(), Fatal> {
        if let Some(Coming { predecessor, listeners, unsettled }) = self.coming.take() {
            predecessor.wait_for_its_word()?;
            let shards = self.threads.len() as u16;
            listener::open(&listeners, self.config.steers_by_cpu, shards)?;
            predecessor.watch_it_go(self.notices.clone())?;
            let admin = self.admin.try_clone();
            let admin = admin.map_err(|error| Fatal::Host(format!("no descriptor is left: {error}")))?;
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
            Some(Change::FellBehind) => tracing::warn!(records, "Postgres is behind: the log keeps what it misses"),
            Some(Change::CaughtUp) => tracing::info!(records, "Postgres has caught up"),
            None => {}
        }
    }

    fn enter(&self, phase: Phase) {
        self.status.set_phase(phase);
        self.ring();
    }

    /// Wakes every shard.
    pub fn ring(&self) {
        self.doorbells.iter().for_each(Doorbell::ring);
    }

    // --- an upgrade ---

    /// Starts a new process, which prepares itself while this one goes on.
    fn upgrade(&mut self) {
        let is_connected = self.status.is_database_connected.load(Ordering::Relaxed);
        let objection = match self.status.phase() {
            _ if self.successor.is_some() || self.unsettled.is_some() => Some("one is under way"),
            // Its end is the end of everything in the container.
            _ if std::process::id() == 1 => Some("this is the first process of a container"),
            Phase::Serving if self.config.rules.purchase_ack == Watermark::Persisted && !is_connected => {
                Some("buyers wait for the database, which is away")
            }
            Phase::Serving => None,
            _ => Some("this process does not serve"),
        };
        if let Some(why) = objection {
            return tracing::warn!(why, "no upgrade now");
        }
        let offer = self.site.control.raise_epoch().map(|epoch| Offer {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            log_format: FORMAT_VERSION,
            listen: self.config.listen,
            admin_listen: self.config.admin_listen,
            data_dir: self.config.data_dir.clone(),
            epoch,
        });
        match offer.and_then(|offer| Successor::start(offer, self.notices.clone())) {
            Ok(successor) => {
                tracing::info!(pid = successor.pid(), "upgrading: a new process prepares itself");
                self.manager.reloading();
                self.successor = Some(successor);
            }
            Err(error) => tracing::warn!(why = %error, "no upgrade now"),
        }
    }

    /// Goes on with an upgrade. Returns whether it is done: this process must end.
    fn hear_successor(&mut self, pid: u32, said: Option<FromNew>) -> bool {
        let Some(successor) = self.successor.as_mut().filter(|successor| successor.pid() == pid) else { return false };
        match (said, successor.stage()) {
            (Some(FromNew::Prepared { version }), Stage::Preparing) => {
                successor.pause(self.threads.len());
                self.enter(Phase::Paused);
                tracing::info!(version, "pausing: the new process is prepared, requests in flight finish");
            }
            (Some(FromNew::Ready), Stage::Passed) => {
                // It is the server as soon as it is told, and this process must not be missed.
                self.manager.main_is(pid);
                match successor.let_go() {
                    Ok(pause) => {
                        let ms = pause.as_secs_f64() * 1000.0;
                        tracing::info!(pid, ms, "handed over: the new process serves");
                        return true;
                    }
                    Err(error) => {
                        self.manager.main_is(std::process::id());
                        self.call_off(&error.to_string());
                    }
                }
            }
            (None, _) => self.call_off("it has ended"),
            (Some(_), _) => self.call_off("it is confused"),
        }
        false
    }

    /// One more shard has no requests in flight. After the last one, all hand over what they have.
    fn all_are_still(&mut self) -> Result<(), String> {
        let successor = self.successor.as_mut().expect("there is one");
        let line = successor.shard_is_still(self.threads.len(), self.site.dir.lock_descriptor(), self.admin.as_fd());
        if let Some(line) = line.map_err(|error| error.to_string())? {
            for orders in &self.orders {
                let _ = orders.send(Order::HandOver(line.clone()));
            }
            self.ring();
        }
        Ok(())
    }

    fn unless_failed(&mut self, step: Result<(), String>) {
        if let Err(why) = step {
            self.call_off(&why);
        }
    }

    /// Goes on as if nothing had happened, if there is an upgrade under way.
    fn call_off(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        let epoch = successor.epoch;
        let ended = successor.call_off();
        if self.status.phase() == Phase::Paused {
            self.enter(Phase::Serving);
        }
        // Nobody has been told of anything in it.
        if let Err(error) = remove_run(&self.site.data.logs, self.site.data.cluster, epoch) {
            tracing::warn!(%error, epoch, "what the new process has begun to write cannot be removed");
        }
        self.manager.ready();
        tracing::warn!(why, ended, "the upgrade is called off: this process goes on");
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
fn total(sales: &mut BTreeMap<SaleId, (usize, u32, u32)>, part: Ended, shards: usize) -> Option<SaleEnded> {
    let (parts, sold, items) = sales.entry(part.sale).or_default();
    *parts += 1;
    *sold += part.sold;
    *items += part.items;
    let (parts, sold, items) = (*parts, *sold, *items);
    (parts == shards).then(|| sales.remove(&part.sale))?;
    Some(SaleEnded { sale_id: part.sale.0, sold, items })
}
