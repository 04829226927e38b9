//! The `stampede` program: settings, start-up in order, watching over the shards, the end.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use glommio::io::PollableFd;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use stampede::block::{BLOCK_BYTES, LogKind, StreamId};
use stampede::clock::Clock;
use stampede::code::CodeGenerator;
use stampede::config::{Config, SETTINGS, Sources};
use stampede::data_dir::DataDir;
use stampede::database_url::DatabaseUrl;
use stampede::doorbell::Doorbell;
use stampede::fatal::{self, Fatal};
use stampede::lag::{Change, Lag};
use stampede::mesh::{self, Endpoint};
use stampede::partition::Partition;
use stampede::persistence::{Persistence, Plan};
use stampede::pump::{Logs, Notice, Outside, Pump, Shipping};
use stampede::purchase_log::PurchaseLog;
use stampede::recovery::Recovered;
use stampede::resume::{Resumed, resume};
use stampede::retention::{OldSegment, Retention};
use stampede::server::Server;
use stampede::service_manager::ServiceManager;
use stampede::shard::{Effects, Ended, Inventory, Rules, Shard};
use stampede::status::{Phase, Status};
use stampede::types::{SaleId, ShardId};
use stampede::waiting::Watermark;
use stampede::{host, listener, logging, manual};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// How often main looks how far Postgres is behind.
const LOOK_TIME: Duration = Duration::from_millis(250);
/// A segment is at most this large; at a small budget a sixteenth of a shard's part.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The least that a shard's logs can work with.
const SHARD_BUDGET_MIN: u64 = 1 << 20;

fn main() {
    let arguments = manual::command().get_matches();
    if let Some(text) = manual::asked_for(&arguments) {
        return print!("{text}");
    }
    let flags = SETTINGS.iter().map(|setting| setting.flag);
    let flags = flags.filter_map(|flag| Some((flag, arguments.get_one::<String>(flag)?.clone()))).collect();
    let sources = dotenv().map(|dotenv| Sources { flags, environment: &|name| std::env::var(name).ok(), dotenv });
    let config = sources.and_then(|sources| Config::new(&sources).map_err(|bad| Fatal::Settings(bad.to_string())));
    let config = config.unwrap_or_else(|reason| {
        eprintln!("stampede: {reason}");
        std::process::exit(reason.exit_code());
    });
    if arguments.get_flag("check-config") {
        return println!("{config}");
    }
    logging::start(config.log_format);
    fatal::exit_on_panic();
    let ended = Process::start(config).and_then(|process| process.map_or(Ok(()), Process::supervise));
    match ended {
        Ok(()) => tracing::info!(exit_code = 0, "stopped"),
        Err(reason) => reason.exit(),
    }
}

/// The variables in `.env`, if there is one.
fn dotenv() -> Result<BTreeMap<String, String>, Fatal> {
    let mut variables = BTreeMap::new();
    let mut place = "at its beginning".to_owned();
    for line in dotenvy::dotenv_iter().into_iter().flatten() {
        // The line may hold a password: it is never repeated.
        let (name, value) = line.map_err(|_| {
            Fatal::Settings(format!(".env has a line that cannot be read, {place}; put values with blanks in quotes"))
        })?;
        place = format!("after {name}");
        variables.insert(name, value);
    }
    Ok(variables)
}

/// What a shard's thread needs to begin selling.
struct Start {
    inventory: Inventory,
    old: Vec<OldSegment>,
    rules: Rules,
    partition: Partition,
    cluster: uuid::Uuid,
    epoch: u32,
    logs: PathBuf,
    direct_io: bool,
    budget: u64,
    seed: [u8; 32],
    persistence: Option<Shipping>,
}

/// The running process, seen from its main thread.
struct Process {
    started: Instant,
    status: Arc<Status>,
    doorbells: Arc<[Doorbell]>,
    notices: Receiver<Notice>,
    threads: Vec<thread::JoinHandle<()>>,
    persistence: Option<Persistence>,
    manager: ServiceManager,
    drain_delay: Duration,
    drain_timeout: Duration,
    _data: DataDir,
}

impl Process {
    /// Starts everything: first what can fail for the operator's reasons, then the shards, which answer that they
    /// are not ready yet, then recovery. Nothing, if it was told to stop meanwhile.
    fn start(config: Config) -> Result<Option<Process>, Fatal> {
        let started = Instant::now();
        let clock = Clock::start();
        let shards = config.shards.unwrap_or_else(host::default_shards);
        let connections = host::connections_max(config.max_connections, shards)?;
        let budget = config.log_budget / u64::from(shards);
        if budget < SHARD_BUDGET_MIN {
            return Err(Fatal::Settings(format!(
                "--log-budget is too small for {shards} shards; give at least {shards}MiB"
            )));
        }
        host::check_io_uring()?;
        let (address, listeners) = listener::listen(config.listen, shards)?;
        if config.steers_by_cpu {
            steer(&listeners);
        }
        let dir = DataDir::lock(&config.data_dir)?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), listen = %address, shards, cpus = ?host::cpus(),
            data_dir = %config.data_dir.display(), items = config.rules.items, user_limit = config.rules.user_limit,
            sale_period_s = config.rules.period_s, reservation_ttl_ms = config.rules.ttl_ms,
            log_budget = config.log_budget, max_connections = connections,
            database = config.database.as_ref().map(DatabaseUrl::place), "starting"
        );

        let status = Arc::new(Status::new(shards, config.database.is_some()));
        let doorbells: Result<Arc<[Doorbell]>, _> = (0..shards).map(|_| Doorbell::new()).collect();
        let doorbells = doorbells.map_err(no_descriptors)?;
        let (notices, noticed) = unbounded();
        let clients_max = connections.div_ceil(u32::from(shards)) as usize;
        let mut starts = Vec::new();
        let mut threads = Vec::new();
        let places = host::placements(shards).into_iter().zip(listeners).zip(mesh::connect(&doorbells));
        for (id, ((placement, listener), mesh)) in (0..shards).map(ShardId).zip(places) {
            let (start, begun) = bounded(1);
            starts.push(start);
            let status = status.clone();
            let notices = notices.clone();
            let door = Door { id, listener, mesh, clients_max, clock, status, notices };
            threads.push(spawn(door, placement, begun)?);
        }
        listen_to_signals(notices)?;

        let partition = Partition::new(shards);
        let is_stopped = |wait| matches!(noticed.recv_timeout(wait), Ok(Notice::Signal(_)));
        let Some(resumed) = resume(&config, &dir, partition, clock.now(), is_stopped)? else { return Ok(None) };
        let Resumed { data, recovered, claim } = resumed;
        let Recovered { inventories, old, found, records, torn, .. } = recovered;
        let sale = inventories.first().map(|inventory| inventory.terms.sale.0);
        tracing::info!(
            epoch = data.epoch,
            records,
            sold = found.sold,
            held = found.held,
            torn_tails = torn,
            sale,
            ms = started.elapsed().as_millis() as u64,
            "recovered"
        );
        if !data.direct_io {
            tracing::warn!(
                "the file system of the data directory has no direct I/O: the log goes through the page cache"
            );
        }
        let mut old_of = vec![Vec::new(); usize::from(shards)];
        // Whole streams, so that each loses only its beginning to retention.
        old.into_iter().for_each(|segment| old_of[usize::from(segment.name.stream.shard % shards)].push(segment));
        let (ways, returns): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let persistence = claim.map(|claim| {
            let (status, doorbells) = (status.clone(), doorbells.clone());
            let is_awaited = config.rules.purchase_ack == Watermark::Persisted;
            Persistence::start(Plan { claim, status, doorbells, shipped: ways, is_awaited })
        });
        let (persistence, feed) = persistence.transpose()?.unzip();
        for (((start, inventory), old), shipped) in starts.into_iter().zip(inventories).zip(old_of).zip(returns) {
            let seed = host::random()?;
            let (rules, cluster, epoch, logs) = (config.rules, data.cluster, data.epoch, data.logs.clone());
            let direct_io = data.direct_io;
            let persistence = feed.clone().map(|feed| Shipping { feed, shipped });
            let begin =
                Start { inventory, old, rules, partition, cluster, epoch, logs, direct_io, budget, seed, persistence };
            // A shard that cannot receive this has ended the process.
            let _ = start.send(begin);
        }
        doorbells.iter().for_each(Doorbell::ring);
        let (drain_delay, drain_timeout, manager) = (config.drain_delay, config.drain_timeout, ServiceManager::new());
        Ok(Some(Process {
            started,
            status,
            doorbells,
            notices: noticed,
            threads,
            persistence,
            manager,
            drain_delay,
            drain_timeout,
            _data: dir,
        }))
    }

    /// Logs what the shards report, and sees to an orderly end.
    fn supervise(mut self) -> Result<(), Fatal> {
        let shards = self.threads.len();
        let (mut ready, mut drained) = (0, 0);
        let mut ended = BTreeMap::new();
        // When selling ends, and when everything must.
        let mut stop: Option<(Instant, Instant)> = None;
        let mut lag = Lag::default();
        loop {
            let now = Instant::now();
            if self.status.phase() == Phase::Leaving && stop.is_some_and(|(drains, _)| drains <= now) {
                tracing::info!("draining: no new connections, requests in flight finish");
                self.enter(Phase::Draining);
            }
            let next_step = stop.map(|(drains, ends)| if drains > now { drains } else { ends });
            let next_look = self.persistence.is_some().then(|| now + LOOK_TIME);
            let next_sign = self.manager.give_sign_of_life(&self.status, now);
            let notice = match [next_step, next_look, next_sign].into_iter().flatten().min() {
                None => self.notices.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(end) => self.notices.recv_deadline(end),
            };
            if self.persistence.is_some() {
                self.look_at_postgres(&mut lag);
            }
            match notice {
                Ok(Notice::Ready(_)) => {
                    ready += 1;
                    if ready == shards && self.status.phase() == Phase::Recovering {
                        self.enter(Phase::Serving);
                        self.manager.ready();
                        tracing::info!(ms = self.started.elapsed().as_millis() as u64, "serving");
                    }
                }
                Ok(Notice::Ended(part)) => log_ended(&mut ended, part, shards),
                Ok(Notice::LogFull(ShardId(shard), true)) => tracing::warn!(
                    shard,
                    "the log is full: no more items are reserved until there is space; raise --log-budget or free disk"
                ),
                Ok(Notice::LogFull(ShardId(shard), false)) => tracing::info!(shard, "the log has space again"),
                Ok(Notice::AttemptsLost(ShardId(shard), true)) => {
                    tracing::warn!(
                        shard,
                        "refused attempts are not recorded until there is space; raise --log-budget or free disk"
                    );
                }
                Ok(Notice::AttemptsLost(ShardId(shard), false)) => {
                    tracing::info!(shard, "refused attempts are recorded again")
                }
                Ok(Notice::Signal(signal)) if stop.is_none() => {
                    self.manager.stopping();
                    let is_selling = self.status.phase() == Phase::Serving;
                    let delay = if is_selling { self.drain_delay } else { Duration::ZERO };
                    let seconds = delay.as_secs_f64();
                    // Before the line: whoever reads it finds it so.
                    self.enter(Phase::Leaving);
                    tracing::info!(signal, seconds, "told to stop: not ready any more, selling until the drain begins");
                    let drains = Instant::now() + delay;
                    stop = Some((drains, drains + self.drain_timeout));
                }
                Ok(Notice::Drained(_)) => {
                    drained += 1;
                    if drained == shards {
                        break;
                    }
                }
                Ok(Notice::Signal(signal)) => {
                    tracing::warn!(signal, "told to stop again: not waiting for requests in flight");
                    stop = Some((Instant::now(), Instant::now()));
                    break;
                }
                Err(_) if stop.is_none_or(|(_, ends)| Instant::now() < ends) => {}
                Err(_) => {
                    tracing::warn!("some requests did not finish in time; --drain-timeout gives them more");
                    break;
                }
            }
        }
        self.enter(Phase::Stopping);
        for thread in self.threads {
            // A panic has ended the process already.
            let _ = thread.join();
        }
        if let Some(persistence) = self.persistence {
            persistence.finish(stop.map_or_else(Instant::now, |(_, ends)| ends));
        }
        Ok(())
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
        self.doorbells.iter().for_each(Doorbell::ring);
    }
}

/// Has connections stay on the CPU where they arrive, if that can be done.
fn steer(listeners: &[OwnedFd]) {
    let cpus = host::cpus();
    let steered = match cpus.get(..listeners.len()) {
        Some(cpus) => listener::steer_by_cpu(&listeners[0], cpus).map_err(|error| error.to_string()),
        None => Err(format!("there are {} CPUs for {} shards", cpus.len(), listeners.len())),
    };
    if let Err(why) = steered {
        tracing::warn!(why, "connections cannot be steered by CPU: they are spread by hash");
    }
}

/// What a shard's thread serves clients with before it can sell.
struct Door {
    id: ShardId,
    listener: OwnedFd,
    mesh: Endpoint,
    clients_max: usize,
    clock: Clock,
    status: Arc<Status>,
    notices: Sender<Notice>,
}

/// Starts a shard's thread. Whatever goes wrong on it ends the process.
fn spawn(door: Door, placement: Placement, begun: Receiver<Start>) -> Result<thread::JoinHandle<()>, Fatal> {
    let builder = thread::Builder::new().name(format!("shard-{}", door.id.0));
    let run = move || {
        let executor = LocalExecutorBuilder::new(placement).io_memory(host::IO_MEMORY).make();
        let executor = executor.unwrap_or_else(|error| host::refusal(error).exit());
        executor.run(sell(door, begun)).unwrap_or_else(|reason| reason.exit());
    };
    builder.spawn(run).map_err(|error| Fatal::Host(format!("no thread for a shard: {error}")))
}

async fn sell(door: Door, begun: Receiver<Start>) -> Result<(), Fatal> {
    let Door { id, listener, mesh, clients_max, clock, status, notices } = door;
    let server = Server::new(listener, mesh.doorbell(), clients_max).map_err(no_descriptors)?;
    let always_ready = eventfd(1, EventfdFlags::CLOEXEC).map_err(io::Error::from);
    let always_ready = always_ready.and_then(|event| Ok(PollableFd::new(event)?)).map_err(no_descriptors)?;
    let mut outside = Outside { id, server, mesh, clock, status, notices, always_ready };
    let mut start = None;
    outside.wait_for_recovery(|| {
        start = begun.try_recv().ok();
        start.is_some()
    });
    let Start { inventory, old, rules, partition, cluster, epoch, logs, direct_io, budget, seed, persistence } =
        start.expect("recovery is over when there is something to start with");
    let segment_bytes = (budget / 16).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let log = |log| {
        let stream = StreamId { cluster, epoch, shard: id.0, log };
        PurchaseLog::new(stream, &logs, direct_io, (segment_bytes / BLOCK_BYTES as u64) as u32)
    };
    let retention = Retention::new(&logs, budget, old, persistence.is_some());
    let (mut purchases, mut attempts) = (log(LogKind::Purchases), log(LogKind::Attempts));
    if persistence.is_some() {
        purchases.keep_chunks();
        attempts.keep_chunks();
    }
    let logs = Logs { purchases, attempts, retention, persistence };
    let mut effects = Effects::default();
    let codes = CodeGenerator::new(seed);
    let shard = Shard::new(id, partition, rules, inventory, codes, clock.now(), &mut effects);
    Pump::new(outside, shard, effects, logs, rules.period_s).run().await
}

fn no_descriptors(error: io::Error) -> Fatal {
    Fatal::Host(format!("no descriptors are left: {error}; raise LimitNOFILE or ulimit -n"))
}

fn listen_to_signals(notices: Sender<Notice>) -> Result<(), Fatal> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| Fatal::Host(format!("no signals: {error}")))?;
    let forward = move || signals.forever().all(|signal| notices.send(Notice::Signal(signal)).is_ok());
    let thread = thread::Builder::new().name("signals".into()).spawn(forward);
    thread.map(drop).map_err(|error| Fatal::Host(format!("no thread for signals: {error}")))
}

/// Adds one shard's part of a sale that is over, and logs the sale when all parts are there.
fn log_ended(sales: &mut BTreeMap<SaleId, (usize, u32, u32)>, part: Ended, shards: usize) {
    let (parts, sold, items) = sales.entry(part.sale).or_default();
    *parts += 1;
    *sold += part.sold;
    *items += part.items;
    if *parts == shards {
        tracing::info!(sale = part.sale.0, sold = *sold, items = *items, "sale over, the next one is open");
        sales.remove(&part.sale);
    }
}
