//! Start-up, in this order:
//!
//! 1. Check everything that an operator may have to correct: sizes, io_uring, ports, data directory.
//! 2. Start the shards. They answer that the server is not ready.
//! 3. Recover the sale.
//! 4. Send each shard its part of the sale, and create the supervisor.
//!
//! In an upgrade the new process does the same beside the old process, and receives ports and connections last.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::logging;
use crate::config::settings::Config;
use crate::http::origin::Origins;
use crate::http::route::rfc3339;
use crate::http::shop::Shop;
use crate::http::site::Site;
use crate::log::block::BLOCK_BYTES;
use crate::log::data_dir::DataDir;
use crate::log::manifest::Manifest;
use crate::log::recovery::Recovered;
use crate::log::replay::ReplayedItems;
use crate::operate::admin;
use crate::operate::item_states::ItemStates;
use crate::operate::status::{Phase, Status};
use crate::plan::catalogue::Catalogue;
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::shipper::{Plan, Shipper};
use crate::process::resume::{Resumed, resume};
use crate::process::service_manager::ServiceManager;
use crate::process::signals::CaughtSignals;
use crate::process::standing_by::Standby;
use crate::process::supervisor::{DeferredWork, OwnedDataDir, PendingTakeover, ShardHandles, Supervisor};
use crate::process::take_over::{StartState, distribute_listeners, take_over};
use crate::process::{timekeeping, upgrading};
use crate::runtime::control::Notice;
use crate::runtime::log_pair::PersistenceChannels;
use crate::runtime::mesh;
use crate::runtime::shard_thread::{ShardSetup, ShardStart, ShardThread};
use crate::sale::ids::ShardId;
use crate::sale::partition::Partition;
use crate::sale::shard::Inventory;
use crate::server::addresses::AddressLimit;
use crate::server::admission::Admission;
use crate::system::clock::Clock;
use crate::system::doorbell::Doorbell;
use crate::system::{host, listener};
use crate::upgrade::predecessor::Predecessor;
use crossbeam_channel::{Sender, bounded, unbounded};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::process::umask;
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::field::display;

/// Largest segment, in bytes. With a small log budget, a segment has a sixteenth of the shard's part of it.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
/// Smallest segment, in bytes.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Smallest log budget of a shard, in bytes.
const SHARD_BUDGET_MIN: u64 = 1 << 20;

/// Sizes that follow from the settings and the machine.
struct Sizes {
    shards: u16,
    connections: u32,
    segment_blocks: u32,
}

/// Resources that a process without a predecessor opens first.
struct OpenedPorts {
    dir: DataDir,
    admin: TcpListener,
}

/// Starts everything. Returns `None` if a signal stopped the process meanwhile.
///
/// # Errors
/// Every reason to refuse the start that an operator can remove.
pub fn start(config: Config, signals: CaughtSignals) -> Result<Option<Supervisor>, Fatal> {
    let started = Instant::now();
    // The files of the data directory contain live codes.
    umask(Mode::RWXG | Mode::RWXO);
    let sizes = Sizes::of(&config)?;
    host::check_io_uring()?;
    let predecessor = Predecessor::find()?;
    let discipline = predecessor.as_ref().and_then(|predecessor| predecessor.offer.clock.clone());
    let clock = discipline.map_or_else(Clock::start, Clock::resume);
    timekeeping::start(clock.clone())?;
    let (address, listeners, opening) = open(&config, sizes.shards, predecessor.as_ref())?;
    log_start(&config, &sizes, address, opening.as_ref(), predecessor.as_ref());
    let phase = if predecessor.is_some() { Phase::Paused } else { Phase::Recovering };
    let status = Arc::new(Status::new(phase, sizes.shards, config.log_budget, config.database.is_some()));
    if config.pair.is_some() {
        status.lease.require();
    }
    let (shards, starts) = spawn_shards(&config, &sizes, listeners, &status, &clock)?;
    signals.forward(shards.notices.clone())?;

    let partition = Partition::with_key(sizes.shards, host::random()?);
    let foundation = match (opening, &predecessor) {
        (Some(OpenedPorts { dir, admin }), _) => {
            let duplicate = admin.try_clone().map_err(host::no_descriptors)?;
            admin::start(duplicate, status.clone(), clock.clone(), &config)?;
            let reload = Cell::new(None);
            let is_stopped = |wait| {
                let notice = shards.notice_receiver.recv_timeout(wait);
                match &notice {
                    Ok(Notice::Upgrade(signal)) if config.plan.is_some() && status.phase() == Phase::Standby => {
                        reload.set(Some(signal.clone()));
                    }
                    Ok(Notice::Upgrade(signal)) => upgrading::refuse(signal, "this process is not serving"),
                    _ => {}
                }
                matches!(notice, Ok(Notice::Stop(_)))
            };
            let resumed = match (config.pair, &config.database) {
                (Some(times), Some(url)) => {
                    let (config, dir, clock, status) = (&config, &dir, &clock, &status);
                    let (doorbells, reload) = (&*shards.doorbells, &reload);
                    let standby = Standby { config, dir, partition, clock, status, doorbells, reload };
                    standby.resume(times, url, is_stopped)?
                }
                _ => resume(&config, &dir, partition, &clock, is_stopped)?,
            };
            let Some(resumed) = resumed else { return Ok(None) };
            let (sockets, existing_blocks) =
                (distribute_listeners(Vec::new(), sizes.shards), vec![None; sizes.shards.into()]);
            StartState { dir, admin, lease_until_us: None, resumed, sockets, listeners: Vec::new(), existing_blocks }
        }
        (None, Some(predecessor)) => take_over(&config, predecessor, partition, &clock, sizes.segment_blocks)?,
        (None, None) => unreachable!("a process without a predecessor opens the data directory"),
    };
    if let Some(until_us) = foundation.lease_until_us {
        status.lease.extend(until_us, Duration::ZERO);
    }
    log_recovered(&foundation.resumed, started);
    if let Some(plan) = config.plan {
        log_plan(plan, clock.now().unix_ms);
    }
    let (is_upgrade, has_shop) = (predecessor.is_some(), config.has_shop);
    let supervisor =
        begin((started, clock), config, (sizes, partition), status, (shards, starts), foundation, predecessor)?;
    if let (false, Ok(admin)) = (is_upgrade, supervisor.admin.local_addr()) {
        logging::show(&pages(has_shop.then_some(address), admin));
    }
    Ok(Some(supervisor))
}

/// Returns where to open the shop, if there is one, and the dashboard.
fn pages(shop: Option<SocketAddr>, dashboard: SocketAddr) -> String {
    let url = |address: SocketAddr| match address.ip() {
        ip if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => format!("http://localhost:{}/", address.port()),
        _ => format!("http://{address}/"),
    };
    let shop = shop.map_or(String::new(), |shop| format!("  Shop:      {}\n", url(shop)));
    format!("\n{shop}  Dashboard: {}\n\n", url(dashboard))
}

impl Sizes {
    fn of(config: &Config) -> Result<Sizes, Fatal> {
        let shards = config.shards.unwrap_or_else(host::default_shards);
        let connections = host::connections_max(config.max_connections, shards)?;
        let budget = config.log_budget / u64::from(shards);
        if budget < SHARD_BUDGET_MIN {
            return Err(Fatal::Settings(format!(
                "--log-budget is too small for {shards} shards; set it to at least {shards}MiB"
            )));
        }
        let segment_bytes = (budget / 16).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        host::check_limits(shards, segment_bytes)?;
        Ok(Sizes { shards, connections, segment_blocks: (segment_bytes / BLOCK_BYTES as u64) as u32 })
    }
}

/// Opens the ports and the data directory, unless a predecessor passes them over later.
fn open(
    config: &Config,
    shards: u16,
    predecessor: Option<&Predecessor>,
) -> Result<(SocketAddr, Vec<OwnedFd>, Option<OpenedPorts>), Fatal> {
    if let Some(predecessor) = predecessor {
        predecessor.check(config)?;
        return Ok((config.listen, Vec::new(), None));
    }
    let (address, listeners) = listener::listen(config.listen, shards, config.pair.is_some())?;
    listener::steer(&listeners, config.steers_by_cpu, shards);
    let admin = admin::listen(config.admin_listen)?;
    Ok((address, listeners, Some(OpenedPorts { dir: DataDir::lock(&config.data_dir)?, admin })))
}

fn log_start(
    config: &Config,
    sizes: &Sizes,
    address: SocketAddr,
    opening: Option<&OpenedPorts>,
    predecessor: Option<&Predecessor>,
) {
    let admin = opening.and_then(|opening| opening.admin.local_addr().ok()).map(display);
    let sales = Some(config.sales).filter(|_| config.plan.is_none());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), listen = %address, admin, shards = sizes.shards, cpus = ?host::cpus(),
        data_dir = %config.data_dir.display(), plan = config.plan.map(|plan| plan.file),
        items = sales.map(|sales| sales.items), user_limit = sales.map(|sales| sales.user_limit),
        sale_period_s = sales.map(|sales| sales.period_s), reservation_ttl_ms = sales.map(|sales| sales.ttl_ms),
        extension_ms = sales.map(|sales| sales.extension_ms), receipts_ms = config.rules.receipts_ms,
        log_budget = config.log_budget, max_connections = sizes.connections,
        database = config.database.as_ref().map(DatabaseUrl::place),
        in_place_of = predecessor.map(|predecessor| &predecessor.offer.version), "starting"
    );
}

/// Logs which sales of the plan are open at `now_ms`, and which one opens next.
fn log_plan(plan: LoadedPlan, now_ms: u64) {
    let latest = plan.series.iter().filter_map(|series| series.latest(now_ms));
    let open: Vec<u32> = latest.filter(|terms| !terms.has_closed(now_ms)).map(|terms| terms.sale.0).collect();
    let next = plan.series.iter().filter_map(|series| series.next(now_ms)).min_by_key(|terms| terms.opens_ms);
    let (next_sale, opens_at) = (next.map(|next| next.sale.0), next.map(|next| rfc3339(next.opens_ms)));
    tracing::info!(plan = plan.file, sales = plan.plan.sales.len(), ?open, next_sale, opens_at, "the plan is in force");
}

fn log_recovered(resumed: &Resumed, started: Instant) {
    let Resumed { data, recovered, .. } = resumed;
    let Recovered { inventories, found, records, torn, .. } = recovered;
    let sale = of_first_shard(inventories).newest().terms.sale.0;
    let (epoch, ms) = (data.epoch, started.elapsed().as_millis() as u64);
    let ReplayedItems { sold, held, held_in_ended } = *found;
    tracing::info!(epoch, records, sold, held, held_in_ended, torn_tails = torn, sale, ms, "recovered");
    if !data.direct_io {
        tracing::warn!(
            "the data directory's file system does not support direct I/O: the log is written through the page cache"
        );
    }
}

/// Returns the inventory of the first shard. All shards know the same sales.
fn of_first_shard(inventories: &[Inventory]) -> &Inventory {
    inventories.first().expect("there is at least one shard")
}

/// Starts the threads of the shards. They answer that the server is not ready until they receive a [`ShardStart`].
fn spawn_shards(
    config: &Config,
    sizes: &Sizes,
    listeners: Vec<OwnedFd>,
    status: &Arc<Status>,
    clock: &Clock,
) -> Result<(ShardHandles, Vec<Sender<ShardStart>>), Fatal> {
    let doorbells: Result<Arc<[Doorbell]>, _> = (0..sizes.shards).map(|_| Doorbell::new()).collect();
    let doorbells = doorbells.map_err(host::no_descriptors)?;
    let (notices, notice_receiver) = unbounded();
    let connections_max = sizes.connections as usize;
    let addresses = AddressLimit::new(config.max_connections_per_address, sizes.shards, sizes.connections);
    let addresses = addresses.map(Arc::new);
    let sockets = distribute_listeners(listeners, sizes.shards);
    let plan = config.plan.map(|loaded| loaded.plan);
    let catalogue = plan.map(|plan| &*Box::leak(Box::new(Catalogue::new(plan))));
    let site = Site { shop: config.has_shop.then(|| &*Box::leak(Box::new(Shop::new(plan)))), catalogue };
    let places = host::placements(sizes.shards).into_iter().zip(sockets).zip(mesh::connect(&doorbells));
    let (mut starts, mut senders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for (id, ((placement, sockets), mesh)) in (0..sizes.shards).map(ShardId).zip(places) {
        let (start, begun) = bounded(1);
        let (sender, orders) = unbounded();
        starts.push(start);
        senders.push(sender);
        let (status, notices, clock) = (status.clone(), notices.clone(), clock.clone());
        let (origins, idle_timeout) = (Origins::new(&config.cors_origins), config.idle_timeout);
        let admission = Admission::new(id, status.clone(), doorbells.clone(), connections_max, addresses.clone());
        let thread =
            ShardThread { id, sockets, mesh, admission, origins, site, idle_timeout, clock, status, notices, orders };
        threads.push(thread.spawn(placement, begun)?);
    }
    Ok((ShardHandles { doorbells, notice_receiver, notices, orders: senders, threads }, starts))
}

/// Sends each shard its part of the sale, and creates the supervisor for the main thread.
fn begin(
    (started, clock): (Instant, Clock),
    config: Config,
    (sizes, partition): (Sizes, Partition),
    status: Arc<Status>,
    (shards, starts): (ShardHandles, Vec<Sender<ShardStart>>),
    foundation: StartState,
    predecessor: Option<Predecessor>,
) -> Result<Supervisor, Fatal> {
    let StartState { dir, admin, resumed, sockets, listeners, existing_blocks, .. } = foundation;
    let Resumed { data, control, recovered: Recovered { inventories, streams, .. }, claim } = resumed;
    let (senders, returns): (Vec<_>, Vec<_>) = starts.iter().map(|_| unbounded()).unzip();
    let (shipper, feed) = claim
        .map(|claim| {
            let (status, doorbells) = (status.clone(), shards.doorbells.clone());
            let (rules, sales, keep, pair) = (config.rules, config.plan, config.keep, config.pair);
            Shipper::new(Plan { claim, rules, sales, keep, pair, status, doorbells, shipped: senders })
        })
        .unzip();
    // Count the segments of earlier runs before a shard creates one.
    streams.count(&data, &status.log_budget)?;
    let known = of_first_shard(&inventories);
    let (newest_sale, oldest_open) = (known.newest().terms.sale, known.oldest_open());
    let begun = known.parts.iter().map(|part| part.terms).filter(|terms| terms.items > 0);
    begun.for_each(|terms| status.add_begun_sale(terms));
    let (deferred_work, config) = (DeferredWork { streams, oldest_open, shipper }, Arc::new(config));
    // Create this before any shard sells: each shard answers with the states of all items, also those of other shards.
    let item_states = Arc::new(ItemStates::new(partition, config.rules.schedule, &inventories));
    let Sizes { segment_blocks, .. } = sizes;
    let setup = ShardSetup { config: config.clone(), partition, item_states, data: data.clone(), segment_blocks };
    let (setup, site) = (Arc::new(setup), OwnedDataDir { dir, data, control });
    let manager = ServiceManager::new();
    let mut supervisor = Supervisor {
        started,
        clock,
        config,
        status,
        shards,
        persistence: None,
        manager,
        admin,
        site,
        pending_takeover: None,
        deferred_work: None,
        manifest: Manifest::default(),
        successor: None,
        newest_sale,
    };
    match predecessor {
        None => supervisor.finish_earlier_runs(deferred_work)?,
        Some(predecessor) => {
            supervisor.pending_takeover = Some(PendingTakeover { predecessor, listeners, deferred_work })
        }
    }
    let parts = inventories.into_iter().zip(sockets).zip(existing_blocks).zip(returns);
    for (start, (((inventory, sockets), existing_blocks), shipped)) in starts.into_iter().zip(parts) {
        let persistence = feed.clone().map(|feed| PersistenceChannels { feed, shipped });
        let (setup, seed) = (setup.clone(), host::random()?);
        // Sending fails only if the shard has panicked, which ends the process.
        let _ = start.send(ShardStart { sockets, inventory, existing_blocks, setup, seed, persistence });
    }
    supervisor.ring();
    Ok(supervisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_addresses_that_a_browser_can_open() {
        let address = |text: &str| text.parse().unwrap();
        let text = pages(Some(address("0.0.0.0:8080")), address("127.0.0.1:8081"));
        assert_eq!(text, "\n  Shop:      http://localhost:8080/\n  Dashboard: http://localhost:8081/\n\n");
        let text = pages(Some(address("[::]:80")), address("[fd00::1]:8081"));
        assert_eq!(text, "\n  Shop:      http://localhost:80/\n  Dashboard: http://[fd00::1]:8081/\n\n");
        assert_eq!(pages(None, address("192.0.2.1:1")), "\n  Dashboard: http://192.0.2.1:1/\n\n");
    }
}
