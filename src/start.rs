//! Starting, in order: first what can fail for the operator's reasons, then the shards, which answer that they are not
//! ready yet, then recovery. A process that takes the place of another does the same beside it, and has its sockets last.

use crate::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::board::Board;
use crate::clock::Clock;
use crate::code::CodeGenerator;
use crate::config::Config;
use crate::connection::Midway;
use crate::data_dir::{DataDir, Opened};
use crate::database_url::DatabaseUrl;
use crate::doorbell::Doorbell;
use crate::fatal::Fatal;
use crate::logs::{Logs, Shipping};
use crate::mesh::{self, Endpoint};
use crate::meter::Meter;
use crate::notice::{Notice, Order};
use crate::outside::Outside;
use crate::partition::Partition;
use crate::persistence::{Feed, Plan, Shipper};
use crate::predecessor::{Inheritance, Predecessor};
use crate::pump::Pump;
use crate::purchase_log::PurchaseLog;
use crate::recovery::Recovered;
use crate::resume::{Ahead, Resumed, resume};
use crate::retention::Retention;
use crate::segment::SegmentName;
use crate::server::Server;
use crate::service_manager::ServiceManager;
use crate::shard::{Effects, Inventory, Shard};
use crate::status::{Phase, Status};
use crate::supervisor::{Coming, Site, Supervisor, Unsettled};
use crate::types::ShardId;
use crate::waiting::Watermark;
use crate::{admin, host, listener};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use glommio::io::PollableFd;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::process::nice;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::iter;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tracing::field::display;

/// A segment is at most this large; at a small budget a sixteenth of a shard's part.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Blocks in a new process's first segment beside those for holds: some are made while it prepares itself.
const HOLDS_SLACK_BLOCKS: u32 = 256;
/// How much nicer than the shards a thread is whose work nobody waits for.
const PATIENCE: i32 = 10;
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
    made_ahead: Option<u32>,
    plan: Arc<ShardPlan>,
    seed: [u8; 32],
    persistence: Option<Shipping>,
}

/// What all shards start with.
struct ShardPlan {
    config: Arc<Config>,
    partition: Partition,
    board: Arc<Board>,
    data: Opened,
    budget: u64,
    segment_blocks: u32,
}

/// What a process begins with.
struct Place {
    dir: DataDir,
    admin: TcpListener,
    resumed: Resumed,
    /// By shard; in a start without a predecessor, shards have theirs already.
    sockets: Vec<Sockets>,
    /// All of them once more, to be opened.
    listeners: Vec<OwnedFd>,
    /// Blocks of each shard's first segment, if it is there already.
    made_ahead: Vec<Option<u32>>,
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
    let (address, listeners, first) = match &predecessor {
        None => {
            let (address, listeners) = listener::listen(config.listen, shards)?;
            listener::steer(&listeners, config.steers_by_cpu, shards);
            let admin = admin::listen(config.admin_listen)?;
            (address, listeners, Some((DataDir::lock(&config.data_dir)?, admin)))
        }
        Some(predecessor) => {
            predecessor.check(&config)?;
            (config.listen, Vec::new(), None)
        }
    };
    let admin = first.as_ref().and_then(|(_, admin)| admin.local_addr().ok()).map(display);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), listen = %address, admin, shards, cpus = ?host::cpus(),
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
    let is_stopped =
        |wait| matches!(noticed.recv_timeout(wait), Ok(Notice::Signal(signal)) if [SIGTERM, SIGINT].contains(&signal));
    let Place { dir, admin, resumed, sockets, listeners, made_ahead } = match (first, &predecessor) {
        (Some((dir, admin)), _) => {
            admin::start(admin.try_clone().map_err(no_descriptors)?, status.clone(), config.rules.period_s)?;
            let Some(resumed) = resume(&config, &dir, partition, clock, is_stopped)? else { return Ok(None) };
            let sockets = deal(Vec::new(), Vec::new(), shards);
            Place { dir, admin, resumed, sockets, listeners: Vec::new(), made_ahead: vec![None; shards.into()] }
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
    let unsettled = Unsettled { streams, shipper };
    let config = Arc::new(config);
    // Before any shard sells: whoever asks one of them must find what all of them start with.
    let board = Arc::new(Board::new(partition, config.rules.items, &inventories));
    let plan = ShardPlan { config: config.clone(), partition, board, data: data.clone(), budget, segment_blocks };
    let plan = Arc::new(plan);
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
        admin,
        site: Site { dir, data, control },
        coming: None,
        unsettled: None,
        successor: None,
    };
    match predecessor {
        None => supervisor.settle(unsettled)?,
        Some(predecessor) => supervisor.coming = Some(Coming { predecessor, listeners, unsettled }),
    }
    let parts = inventories.into_iter().zip(sockets).zip(made_ahead).zip(returns);
    for (start, (((inventory, sockets), made_ahead), shipped)) in starts.into_iter().zip(parts) {
        let persistence = feed.clone().map(|feed: Feed| Shipping { feed, shipped });
        let (plan, seed) = (plan.clone(), host::random()?);
        let begin = Start { sockets, inventory, made_ahead, plan, seed, persistence };
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
) -> Result<Place, Fatal> {
    // On a thread that gives way to every other: the CPUs are the old process's as long as it sells.
    let (ahead, made_ahead) = thread::scope(|scope| {
        let prepare = scope.spawn(|| {
            let _ = nice(PATIENCE);
            prepare(config, predecessor.offer.epoch, partition, clock, segment_blocks)
        });
        prepare.join().expect("a panic ends the process")
    })?;
    // If it is the same address, the old process has it.
    let own_admin = (predecessor.offer.admin_listen != config.admin_listen).then(|| admin::listen(config.admin_listen));
    let own_admin = own_admin.transpose()?;
    tracing::info!("prepared: the server before may hand over");
    let Inheritance { lock, admin, ends, mut listeners, clients } = predecessor.take_everything()?;
    let dir = DataDir::adopt(&config.data_dir, lock);
    tracing::info!(listeners = listeners.len(), connections = clients.len(), "taking over");
    listener::extend(&mut listeners, partition.shards())?;
    let once_more = listeners.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>().map_err(no_descriptors)?;
    let sockets = deal(listeners, clients, partition.shards());
    let admin = own_admin.unwrap_or_else(|| TcpListener::from(admin));
    Ok(Place { dir, admin, resumed: ahead.finish(config, &ends)?, sockets, listeners: once_more, made_ahead })
}

/// Reads the log ahead, and makes each shard's first segment, with room for the end of every hold.
fn prepare(
    config: &Config,
    epoch: u32,
    partition: Partition,
    clock: Clock,
    segment_blocks: u32,
) -> Result<(Ahead, Vec<Option<u32>>), Fatal> {
    let mut ahead = Ahead::read(config, epoch, partition, clock)?;
    let Opened { logs, cluster, .. } = ahead.data();
    let mut made_ahead = Vec::new();
    let held = ahead.held().into_iter().chain(iter::repeat(0));
    for (shard, held) in (0..partition.shards()).zip(held) {
        let stream = StreamId { cluster: *cluster, epoch, shard, log: LogKind::Purchases };
        let blocks = segment_blocks.max(held + held / 4 + HOLDS_SLACK_BLOCKS);
        let made = SegmentName::first(stream, blocks).make(logs);
        made.map_err(|error| Fatal::DataDir(format!("{}: {error}", logs.display())))?;
        made_ahead.push(Some(blocks));
    }
    ahead.catch_up()?;
    Ok((ahead, made_ahead))
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
    let mut server =
        Server::new(mesh.doorbell(), clients_max, Meter::new(status.clone(), id, clock)).map_err(no_descriptors)?;
    serve(&mut server, sockets, clock)?;
    let always_ready = eventfd(1, EventfdFlags::CLOEXEC).map_err(io::Error::from);
    let always_ready = always_ready.and_then(|event| Ok(PollableFd::new(event)?)).map_err(no_descriptors)?;
    let mut outside = Outside { id, server, mesh, clock, status, notices, orders, always_ready };
    let mut start = None;
    outside.wait_for_recovery(|| {
        start = begun.try_recv().ok();
        start.is_some()
    });
    let Start { sockets, inventory, made_ahead, plan, seed, persistence } =
        start.expect("recovery is over when there is something to start with");
    serve(&mut outside.server, sockets, clock)?;
    let ShardPlan { config, partition, board, data, budget, segment_blocks } = &*plan;
    let log = |log| {
        let stream = StreamId { cluster: data.cluster, epoch: data.epoch, shard: id.0, log };
        PurchaseLog::new(stream, &data.logs, data.direct_io, *segment_blocks)
    };
    let retention = Retention::new(&data.logs, *budget, persistence.is_some());
    let (mut purchases, mut attempts) = (log(LogKind::Purchases), log(LogKind::Attempts));
    if let Some(blocks) = made_ahead {
        purchases.first_is_made(blocks);
    }
    if persistence.is_some() {
        purchases.keep_chunks();
        attempts.keep_chunks();
    }
    let logs = Logs { purchases, attempts, retention, persistence };
    let mut effects = Effects::default();
    let codes = CodeGenerator::new(seed);
    let shard = Shard::new(id, *partition, config.rules, inventory, codes, clock.now(), &mut effects);
    Pump::new(outside, shard, effects, logs, board.clone(), config.rules.period_s).run().await
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
