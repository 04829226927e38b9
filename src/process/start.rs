//! Start-up, in order: what can fail for the operator's reasons, then the shards, which answer that the server is not
//! ready, then recovery. In an upgrade the same happens beside the old process, and the sockets come last.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::BLOCK_BYTES;
use crate::log::data_dir::DataDir;
use crate::log::recovery::Recovered;
use crate::operate::admin;
use crate::operate::item_states::ItemStates;
use crate::operate::status::{Phase, Status};
use crate::postgres::shipper::{Plan, Shipper};
use crate::process::resume::{Resumed, resume};
use crate::process::service_manager::ServiceManager;
use crate::process::signals;
use crate::process::supervisor::{Coming, Site, Supervisor, Unsettled};
use crate::process::take_over::{Foundation, deal, take_over};
use crate::runtime::control::{Notice, Order};
use crate::runtime::log_pair::Shipping;
use crate::runtime::mesh;
use crate::runtime::shard_thread::{ShardSetup, ShardStart, ShardThread};
use crate::sale::deferred::Watermark;
use crate::sale::ids::ShardId;
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::doorbell::Doorbell;
use crate::system::{host, listener};
use crate::upgrade::predecessor::Predecessor;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::fd::OwnedFd;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use tracing::field::display;

/// Bytes of a segment at most. At a small budget, a segment is a sixteenth of a shard's part.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Bytes of log budget that a shard needs at least.
const SHARD_BUDGET_MIN: u64 = 1 << 20;

/// Numbers derived from the settings and the machine.
struct Sizes {
    shards: u16,
    connections: u32,
    /// Bytes of log for one shard.
    budget: u64,
    segment_blocks: u32,
}

/// What a process without a predecessor opens first.
struct Opening {
    dir: DataDir,
    admin: TcpListener,
}

/// The running threads of the shards, and the main thread's channels to and from them.
struct Shards {
    doorbells: Arc<[Doorbell]>,
    noticed: Receiver<Notice>,
    notices: Sender<Notice>,
    starts: Vec<Sender<ShardStart>>,
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts everything. Returns `None` if a signal stopped the process meanwhile.
///
/// # Errors
/// Every reason to refuse to start that an operator can remove.
pub fn start(config: Config) -> Result<Option<Supervisor>, Fatal> {
    let (started, clock) = (Instant::now(), Clock::start());
    let sizes = Sizes::of(&config)?;
    host::check_io_uring()?;
    let predecessor = Predecessor::find()?;
    let (address, listeners, opening) = open(&config, sizes.shards, predecessor.as_ref())?;
    log_start(&config, &sizes, address, opening.as_ref(), predecessor.as_ref());
    let phase = if predecessor.is_some() { Phase::Paused } else { Phase::Recovering };
    let status = Arc::new(Status::new(phase, sizes.shards, config.database.is_some()));
    let shards = Shards::spawn(&sizes, listeners, &status, clock)?;
    signals::forward(shards.notices.clone())?;

    let partition = Partition::new(sizes.shards);
    let foundation = match (opening, &predecessor) {
        (Some(Opening { dir, admin }), _) => {
            admin::start(admin.try_clone().map_err(host::no_descriptors)?, status.clone(), config.rules.period_s)?;
            let is_stopped = |wait| {
                let notice = shards.noticed.recv_timeout(wait);
                matches!(notice, Ok(Notice::Signal(signal)) if [SIGTERM, SIGINT].contains(&signal))
            };
            let Some(resumed) = resume(&config, &dir, partition, clock, is_stopped)? else { return Ok(None) };
            let (sockets, made_ahead) = (deal(Vec::new(), sizes.shards), vec![None; sizes.shards.into()]);
            Foundation { dir, admin, resumed, sockets, listeners: Vec::new(), made_ahead }
        }
        (None, Some(predecessor)) => take_over(&config, predecessor, partition, clock, sizes.segment_blocks)?,
        (None, None) => unreachable!("a process without a predecessor opens the data directory"),
    };
    log_recovered(&foundation.resumed, started);
    begin(started, config, sizes, status, shards, foundation, predecessor).map(Some)
}

impl Sizes {
    fn of(config: &Config) -> Result<Sizes, Fatal> {
        let shards = config.shards.unwrap_or_else(host::default_shards);
        let connections = host::connections_max(config.max_connections, shards)?;
        let budget = config.log_budget / u64::from(shards);
        if budget < SHARD_BUDGET_MIN {
            return Err(Fatal::Settings(format!(
                "--log-budget is too small for {shards} shards; give at least {shards}MiB"
            )));
        }
        let segment_bytes = (budget / 16).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        Ok(Sizes { shards, connections, budget, segment_blocks: (segment_bytes / BLOCK_BYTES as u64) as u32 })
    }
}

/// Opens the ports and the data directory, unless another process has them.
fn open(
    config: &Config,
    shards: u16,
    predecessor: Option<&Predecessor>,
) -> Result<(SocketAddr, Vec<OwnedFd>, Option<Opening>), Fatal> {
    if let Some(predecessor) = predecessor {
        predecessor.check(config)?;
        return Ok((config.listen, Vec::new(), None));
    }
    let (address, listeners) = listener::listen(config.listen, shards)?;
    listener::steer(&listeners, config.steers_by_cpu, shards);
    let admin = admin::listen(config.admin_listen)?;
    Ok((address, listeners, Some(Opening { dir: DataDir::lock(&config.data_dir)?, admin })))
}

fn log_start(
    config: &Config,
    sizes: &Sizes,
    address: SocketAddr,
    opening: Option<&Opening>,
    predecessor: Option<&Predecessor>,
) {
    let admin = opening.and_then(|opening| opening.admin.local_addr().ok()).map(display);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), listen = %address, admin, shards = sizes.shards, cpus = ?host::cpus(),
        data_dir = %config.data_dir.display(), items = config.rules.items, user_limit = config.rules.user_limit,
        sale_period_s = config.rules.period_s, reservation_ttl_ms = config.rules.ttl_ms,
        log_budget = config.log_budget, max_connections = sizes.connections,
        database = config.database.as_ref().map(DatabaseUrl::place),
        in_place_of = predecessor.map(|predecessor| &predecessor.offer.version), "starting"
    );
}

fn log_recovered(resumed: &Resumed, started: Instant) {
    let Resumed { data, recovered, .. } = resumed;
    let Recovered { inventories, found, records, torn, .. } = recovered;
    let sale = inventories.first().map(|inventory| inventory.terms.sale.0);
    let (epoch, ms) = (data.epoch, started.elapsed().as_millis() as u64);
    tracing::info!(epoch, records, sold = found.sold, held = found.held, torn_tails = torn, sale, ms, "recovered");
    if !data.direct_io {
        tracing::warn!("the file system of the data directory has no direct I/O: the log goes through the page cache");
    }
}

impl Shards {
    /// Starts the threads. They answer that the server is not ready until they receive a [`ShardStart`].
    fn spawn(sizes: &Sizes, listeners: Vec<OwnedFd>, status: &Arc<Status>, clock: Clock) -> Result<Shards, Fatal> {
        let count = sizes.shards;
        let doorbells: Result<Arc<[Doorbell]>, _> = (0..count).map(|_| Doorbell::new()).collect();
        let doorbells = doorbells.map_err(host::no_descriptors)?;
        let (notices, noticed) = unbounded();
        let clients_max = sizes.connections.div_ceil(u32::from(count)) as usize;
        let ends = mesh::connect(&doorbells);
        let (starts, orders, threads) = (Vec::new(), Vec::new(), Vec::new());
        let mut shards = Shards { doorbells, noticed, notices, starts, orders, threads };
        let places = host::placements(count).into_iter().zip(deal(listeners, count)).zip(ends);
        for (id, ((placement, sockets), mesh)) in (0..count).map(ShardId).zip(places) {
            let (start, begun) = bounded(1);
            let (order, orders) = unbounded();
            shards.starts.push(start);
            shards.orders.push(order);
            let (status, notices) = (status.clone(), shards.notices.clone());
            let thread = ShardThread { id, sockets, mesh, clients_max, clock, status, notices, orders };
            shards.threads.push(thread.spawn(placement, begun)?);
        }
        Ok(shards)
    }
}

/// Gives each shard what it sells, and makes the main thread's supervisor.
fn begin(
    started: Instant,
    config: Config,
    sizes: Sizes,
    status: Arc<Status>,
    shards: Shards,
    foundation: Foundation,
    predecessor: Option<Predecessor>,
) -> Result<Supervisor, Fatal> {
    let Foundation { dir, admin, resumed, sockets, listeners, made_ahead } = foundation;
    let Resumed { data, control, recovered: Recovered { inventories, streams, .. }, claim } = resumed;
    let Shards { doorbells, noticed, notices, starts, orders, threads } = shards;
    let (senders, returns): (Vec<_>, Vec<_>) = starts.iter().map(|_| unbounded()).unzip();
    let (shipper, feed) = claim
        .map(|claim| {
            let (status, doorbells) = (status.clone(), doorbells.clone());
            let is_awaited = config.rules.purchase_ack == Watermark::Persisted;
            Shipper::new(Plan { claim, status, doorbells, shipped: senders, is_awaited })
        })
        .unzip();
    let (unsettled, config) = (Unsettled { streams, shipper }, Arc::new(config));
    // Before any shard sells: the states that a client reads from one shard include what recovery gave to all of them.
    let partition = Partition::new(sizes.shards);
    let board = Arc::new(ItemStates::new(partition, config.rules.items, &inventories));
    let Sizes { budget, segment_blocks, .. } = sizes;
    let setup = ShardSetup { config: config.clone(), partition, board, data: data.clone(), budget, segment_blocks };
    let (setup, site) = (Arc::new(setup), Site { dir, data, control });
    let manager = ServiceManager::new();
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
        manager,
        admin,
        site,
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
        let persistence = feed.clone().map(|feed| Shipping { feed, shipped });
        let (setup, seed) = (setup.clone(), host::random()?);
        // A shard that cannot receive this has ended the process.
        let _ = start.send(ShardStart { sockets, inventory, made_ahead, setup, seed, persistence });
    }
    supervisor.ring();
    Ok(supervisor)
}
