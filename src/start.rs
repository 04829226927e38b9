//! Starting, in order: first what can fail for the operator's reasons, then the shards, which answer that they are not
//! ready yet, then recovery. A process that takes the place of another does the same beside it, and has its sockets last.

use crate::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::clock::Clock;
use crate::code::CodeGenerator;
use crate::config::Config;
use crate::connection::Midway;
use crate::data_dir::{DataDir, Opened};
use crate::database_url::DatabaseUrl;
use crate::doorbell::Doorbell;
use crate::fatal::Fatal;
use crate::mesh::{self, Endpoint};
use crate::notice::{Notice, Order};
use crate::outside::Outside;
use crate::partition::Partition;
use crate::persistence::{Feed, Plan, Shipper};
use crate::predecessor::{Inheritance, Predecessor};
use crate::pump::{Logs, Pump, Shipping};
use crate::purchase_log::PurchaseLog;
use crate::recovery::Recovered;
use crate::resume::{Ahead, Resumed, resume};
use crate::retention::Retention;
use crate::segment::SegmentName;
use crate::server::Server;
use crate::service_manager::ServiceManager;
use crate::shard::{Effects, Inventory, Shard};
use crate::status::{Phase, Status};
use crate::supervisor::{Site, Supervisor, Unsettled};
use crate::types::ShardId;
use crate::waiting::Watermark;
use crate::{host, listener};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use glommio::io::PollableFd;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A segment is at most this large; at a small budget a sixteenth of a shard's part.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The least that a shard's logs can work with.
const SHARD_BUDGET_MIN: u64 = 1 << 20;

/// A shard's listeners, and clients that another process has accepted.
#[derive(Default)]
struct Sockets {
    listeners: Vec<OwnedFd>,
    clients: Vec<(OwnedFd, Option<Midway>)>,
}

/// What a shard's thread serves clients with before it can sell.
struct Door {
    id: ShardId,
    sockets: Sockets,
    mesh: Endpoint,
    clients_max: usize,
    clock: Clock,
    status: Arc<Status>,
    notices: Sender<Notice>,
    orders: Receiver<Order>,
}

/// What a shard's thread needs to begin selling.
struct Start {
    sockets: Sockets,
    inventory: Inventory,
    plan: Arc<ShardPlan>,
    seed: [u8; 32],
    persistence: Option<Shipping>,
}

/// What all shards start with.
struct ShardPlan {
    config: Arc<Config>,
    partition: Partition,
    data: Opened,
    budget: u64,
    segment_blocks: u32,
    /// Each shard's first segment is there already.
    is_first_made: bool,
}

/// Starts everything. Nothing, if it was told to stop meanwhile.
///
/// # Errors
/// Whatever an operator has to see to.
pub fn start(config: Config) -> Result<Option<Supervisor>, Fatal> {
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
    let segment_bytes = (budget / 16).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let segment_blocks = (segment_bytes / BLOCK_BYTES as u64) as u32;
    host::check_io_uring()?;
    let predecessor = Predecessor::find()?;
    let (address, listeners, dir) = match &predecessor {
        None => {
            let (address, listeners) = listener::listen(config.listen, shards)?;
            steer(&config, &listeners, shards);
            (address, listeners, Some(DataDir::lock(&config.data_dir)?))
        }
        Some(predecessor) => {
            predecessor.check(&config)?;
            (config.listen, Vec::new(), None)
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), listen = %address, shards, cpus = ?host::cpus(),
        data_dir = %config.data_dir.display(), items = config.rules.items, user_limit = config.rules.user_limit,
        sale_period_s = config.rules.period_s, reservation_ttl_ms = config.rules.ttl_ms,
        log_budget = config.log_budget, max_connections = connections,
        database = config.database.as_ref().map(DatabaseUrl::place),
        in_place_of = predecessor.as_ref().map(|predecessor| &predecessor.offer.version), "starting"
    );

    let phase = if predecessor.is_some() { Phase::Paused } else { Phase::Recovering };
    let status = Arc::new(Status::new(phase, shards, config.database.is_some()));
    let doorbells: Result<Arc<[Doorbell]>, _> = (0..shards).map(|_| Doorbell::new()).collect();
    let doorbells = doorbells.map_err(no_descriptors)?;
    let (notices, noticed) = unbounded();
    let clients_max = connections.div_ceil(u32::from(shards)) as usize;
    let (mut starts, mut orders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    let sockets = deal(listeners, Vec::new(), shards);
    let places = host::placements(shards).into_iter().zip(sockets).zip(mesh::connect(&doorbells));
    for (id, ((placement, sockets), mesh)) in (0..shards).map(ShardId).zip(places) {
        let (start, begun) = bounded(1);
        let (order, ordered) = unbounded();
        starts.push(start);
        orders.push(order);
        let (status, notices) = (status.clone(), notices.clone());
        let door = Door { id, sockets, mesh, clients_max, clock, status, notices, orders: ordered };
        threads.push(spawn(door, placement, begun)?);
    }
    listen_to_signals(notices.clone())?;

    let partition = Partition::new(shards);
    let is_stopped = |wait| matches!(noticed.recv_timeout(wait), Ok(Notice::Signal(_)));
    let (dir, resumed, sockets) = match (dir, &predecessor) {
        (Some(dir), _) => {
            let Some(resumed) = resume(&config, &dir, partition, clock.now(), is_stopped)? else { return Ok(None) };
            (dir, resumed, (0..shards).map(|_| Sockets::default()).collect())
        }
        (None, Some(predecessor)) => take_over(&config, predecessor, partition, clock, segment_blocks)?,
        (None, None) => unreachable!("who has no predecessor locks the directory"),
    };
    let Resumed { data, control, recovered, claim } = resumed;
    let Recovered { inventories, streams, found, records, torn, .. } = recovered;
    let sale = inventories.first().map(|inventory| inventory.terms.sale.0);
    let (epoch, ms) = (data.epoch, started.elapsed().as_millis() as u64);
    tracing::info!(epoch, records, sold = found.sold, held = found.held, torn_tails = torn, sale, ms, "recovered");
    if !data.direct_io {
        tracing::warn!("the file system of the data directory has no direct I/O: the log goes through the page cache");
    }
    let (ways, returns): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
    let (shipper, feed) = claim
        .map(|claim| {
            let (status, doorbells) = (status.clone(), doorbells.clone());
            let is_awaited = config.rules.purchase_ack == Watermark::Persisted;
            Shipper::new(Plan { claim, status, doorbells, shipped: ways, is_awaited })
        })
        .unzip();
    let unsettled = Unsettled { data: data.clone(), streams, shipper };
    let config = Arc::new(config);
    let plan = Arc::new(ShardPlan {
        config: config.clone(),
        partition,
        data: data.clone(),
        budget,
        segment_blocks,
        is_first_made: predecessor.is_some(),
    });
    let mut supervisor = Supervisor {
        started,
        config,
        status,
        doorbells,
        noticed,
        notices,
        orders,
        threads,
        persistence: None,
        manager: ServiceManager::new(),
        site: Site { dir, data, control },
        predecessor: None,
        successor: None,
    };
    match predecessor {
        None => supervisor.settle(unsettled)?,
        Some(predecessor) => supervisor.predecessor = Some((predecessor, unsettled)),
    }
    for (((start, inventory), sockets), shipped) in starts.into_iter().zip(inventories).zip(sockets).zip(returns) {
        let persistence = feed.clone().map(|feed: Feed| Shipping { feed, shipped });
        let begin = Start { sockets, inventory, plan: plan.clone(), seed: host::random()?, persistence };
        // A shard that cannot receive this has ended the process.
        let _ = start.send(begin);
    }
    supervisor.ring();
    Ok(Some(supervisor))
}

/// Goes on with what another process has, which serves until all of it can be had in one go.
fn take_over(
    config: &Config,
    predecessor: &Predecessor,
    partition: Partition,
    clock: Clock,
    segment_blocks: u32,
) -> Result<(DataDir, Resumed, Vec<Sockets>), Fatal> {
    let ahead = Ahead::read(config, predecessor.offer.epoch, partition, clock.now())?;
    let Opened { logs, cluster, epoch, .. } = ahead.data();
    for shard in 0..partition.shards() {
        let stream = StreamId { cluster: *cluster, epoch: *epoch, shard, log: LogKind::Purchases };
        let made = SegmentName::first(stream, segment_blocks).make(logs);
        made.map_err(|error| Fatal::DataDir(format!("{}: {error}", logs.display())))?;
    }
    tracing::info!("prepared: the server before may hand over");
    let Inheritance { lock, ends, mut listeners, clients } = predecessor.take_everything()?;
    let dir = DataDir::adopt(&config.data_dir, lock);
    tracing::info!(listeners = listeners.len(), connections = clients.len(), "taking over");
    listener::extend(&mut listeners, partition.shards())?;
    steer(config, &listeners, partition.shards());
    let sockets = deal(listeners, clients, partition.shards());
    Ok((dir, ahead.finish(config, &ends)?, sockets))
}

/// Gives out sockets to `shards` shards: listeners one by one, clients by the shards that they were with.
fn deal(listeners: Vec<OwnedFd>, clients: Vec<(u16, OwnedFd, Option<Midway>)>, shards: u16) -> Vec<Sockets> {
    let mut sockets: Vec<_> = (0..shards).map(|_| Sockets::default()).collect();
    for (place, listener) in listeners.into_iter().enumerate() {
        sockets[place % usize::from(shards)].listeners.push(listener);
    }
    for (shard, client, midway) in clients {
        sockets[usize::from(shard % shards)].clients.push((client, midway));
    }
    sockets
}

/// Has connections stay on the CPU where they arrive, if that is wanted and can be done.
fn steer(config: &Config, listeners: &[OwnedFd], shards: u16) {
    if !config.steers_by_cpu {
        // Those of a server before this one may still be; others never were.
        let _ = listener::steer_by_cpu(&listeners[0], &[]);
        return;
    }
    let cpus = host::cpus();
    let steered = match cpus.get(..usize::from(shards)) {
        Some(cpus) => listener::steer_by_cpu(&listeners[0], cpus).map_err(|error| error.to_string()),
        None => Err(format!("there are {} CPUs for {shards} shards", cpus.len())),
    };
    if let Err(why) = steered {
        tracing::warn!(why, "connections cannot be steered by CPU: they are spread by hash");
    }
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
    let Door { id, sockets, mesh, clients_max, clock, status, notices, orders } = door;
    let mut server = Server::new(mesh.doorbell(), clients_max).map_err(no_descriptors)?;
    serve(&mut server, sockets, clock)?;
    let always_ready = eventfd(1, EventfdFlags::CLOEXEC).map_err(io::Error::from);
    let always_ready = always_ready.and_then(|event| Ok(PollableFd::new(event)?)).map_err(no_descriptors)?;
    let mut outside = Outside { id, server, mesh, clock, status, notices, orders, always_ready };
    let mut start = None;
    outside.wait_for_recovery(|| {
        start = begun.try_recv().ok();
        start.is_some()
    });
    let Start { sockets, inventory, plan, seed, persistence } =
        start.expect("recovery is over when there is something to start with");
    serve(&mut outside.server, sockets, clock)?;
    let ShardPlan { config, partition, data, budget, segment_blocks, is_first_made } = &*plan;
    let log = |log| {
        let stream = StreamId { cluster: data.cluster, epoch: data.epoch, shard: id.0, log };
        PurchaseLog::new(stream, &data.logs, data.direct_io, *segment_blocks)
    };
    let retention = Retention::new(&data.logs, *budget, persistence.is_some());
    let (mut purchases, mut attempts) = (log(LogKind::Purchases), log(LogKind::Attempts));
    if *is_first_made {
        purchases.first_is_made();
    }
    if persistence.is_some() {
        purchases.keep_chunks();
        attempts.keep_chunks();
    }
    let logs = Logs { purchases, attempts, retention, persistence };
    let mut effects = Effects::default();
    let codes = CodeGenerator::new(seed);
    let shard = Shard::new(id, *partition, config.rules, inventory, codes, clock.now(), &mut effects);
    Pump::new(outside, shard, effects, logs, config.rules.period_s).run().await
}

fn serve(server: &mut Server, sockets: Sockets, clock: Clock) -> Result<(), Fatal> {
    let now = clock.now();
    let Sockets { listeners, clients } = sockets;
    listeners.into_iter().try_for_each(|listener| server.listen(listener)).map_err(no_descriptors)?;
    let mut clients = clients.into_iter();
    clients.try_for_each(|(client, midway)| server.adopt(client, midway, now)).map_err(no_descriptors)
}

fn no_descriptors(error: io::Error) -> Fatal {
    Fatal::Host(format!("no descriptors are left: {error}; raise LimitNOFILE or ulimit -n"))
}

fn listen_to_signals(notices: Sender<Notice>) -> Result<(), Fatal> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR2]);
    let mut signals = signals.map_err(|error| Fatal::Host(format!("no signals: {error}")))?;
    let forward = move || signals.forever().all(|signal| notices.send(Notice::Signal(signal)).is_ok());
    let thread = thread::Builder::new().name("signals".into()).spawn(forward);
    thread.map(drop).map_err(|error| Fatal::Host(format!("no thread for signals: {error}")))
}
