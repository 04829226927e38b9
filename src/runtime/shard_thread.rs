//! The start of a shard's thread: the thread answers clients that the server is not ready, waits for the result of
//! recovery, and then runs turns until the process stops. Recovery itself runs on the main thread.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::connection::ConnectionSnapshot;
use crate::http::origin::Origins;
use crate::http::site::Site;
use crate::log::block::{LogKind, StreamId};
use crate::log::budget::Budget;
use crate::log::data_dir::OpenDataDir;
use crate::log::retention::Retention;
use crate::log::writer::LogWriter;
use crate::operate::item_states::ItemStates;
use crate::operate::request_timer::RequestTimer;
use crate::operate::status::Status;
use crate::runtime::control::{Notice, Order};
use crate::runtime::log_pair::{LogPair, PersistenceChannels};
use crate::runtime::mesh::Endpoint;
use crate::runtime::shard_io::ShardIo;
use crate::runtime::turn::TurnLoop;
use crate::sale::code::CodeGenerator;
use crate::sale::effects::Effects;
use crate::sale::ids::ShardId;
use crate::sale::partition::Partition;
use crate::sale::shard::{Inventory, Shard};
use crate::server::admission::Admission;
use crate::server::sockets::Server;
use crate::system::clock::Clock;
use crate::system::disk_ring::DiskRing;
use crate::system::{host, threads};
use crossbeam_channel::{Receiver, Sender};
use glommio::Placement;
use glommio::io::PollableFd;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The sockets of one shard.
#[derive(Default)]
pub struct ShardSockets {
    /// Listening sockets of the public port.
    pub listeners: Vec<OwnedFd>,
    /// Connections that another process has accepted, each with the state of its request in progress.
    pub clients: Vec<(OwnedFd, Option<ConnectionSnapshot>)>,
}

/// What a shard's thread has from the start: enough to answer clients until recovery has ended.
pub struct ShardThread {
    /// The shard.
    pub id: ShardId,
    /// Its sockets. Empty in an upgrade: they arrive with [`ShardStart`].
    pub sockets: ShardSockets,
    /// Its lanes to the other shards.
    pub mesh: Endpoint,
    /// Decides which connections the shard accepts.
    pub admission: Admission,
    /// Origins of web pages that may use the API.
    pub origins: Origins,
    /// What the server offers.
    pub site: Site,
    /// Time after which a connection without a request is closed.
    pub idle_timeout: Duration,
    /// The clock of its turns.
    pub clock: Clock,
    /// The published numbers.
    pub status: Arc<Status>,
    /// Notices to the main thread.
    pub notices: Sender<Notice>,
    /// Orders from the main thread.
    pub orders: Receiver<Order>,
}

/// What a shard needs to begin to sell. Recovery produces it.
pub struct ShardStart {
    /// Sockets of another process, in an upgrade.
    pub sockets: ShardSockets,
    /// The recovered stock and quotas.
    pub inventory: Inventory,
    /// Blocks of the first segment, if it exists already.
    pub existing_blocks: Option<u32>,
    /// Settings and resources that all shards share.
    pub setup: Arc<ShardSetup>,
    /// Seed of the code generator.
    pub seed: [u8; 32],
    /// The shard's channels to and from the persistence thread, if there is a database.
    pub persistence: Option<PersistenceChannels>,
}

/// The settings and resources that all shards share.
pub struct ShardSetup {
    /// The settings.
    pub config: Arc<Config>,
    /// The owners of items and users.
    pub partition: Partition,
    /// The published state of each item.
    pub item_states: Arc<ItemStates>,
    /// The opened data directory.
    pub data: OpenDataDir,
    /// Blocks of one segment.
    pub segment_blocks: u32,
}

impl ShardThread {
    /// Starts the thread, which waits for `start`. An error on the thread ends the process.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the thread cannot be started.
    pub fn spawn(self, placement: Placement, start: Receiver<ShardStart>) -> Result<JoinHandle<()>, Fatal> {
        threads::spawn(&format!("shard-{}", self.id.0), move || {
            let executor = host::executor(placement).unwrap_or_else(|error| host::refusal(error).exit());
            executor.run(self.sell(start)).unwrap_or_else(|reason| reason.exit());
        })
    }

    async fn sell(self, start: Receiver<ShardStart>) -> Result<(), Fatal> {
        let ShardThread { id, sockets, mesh, admission, origins, site, idle_timeout, clock, status, notices, orders } =
            self;
        let request_timer = RequestTimer::new(status.clone(), id, clock.clone());
        let server = Server::new(admission, request_timer, origins, site, idle_timeout);
        let mut server = server.map_err(host::no_descriptors)?;
        adopt(&mut server, sockets, &clock)?;
        let always_ready = eventfd(1, EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let always_ready = always_ready.and_then(|event| Ok(PollableFd::new(event)?)).map_err(host::no_descriptors)?;
        let mut shard_io = ShardIo { id, server, mesh, clock, status, notices, orders, always_ready };
        let mut received = None;
        shard_io.wait_for_recovery(|| {
            received = start.try_recv().ok();
            received.is_some()
        });
        let ShardStart { sockets, inventory, existing_blocks, setup, seed, persistence } =
            received.expect("recovery has ended, so the start has arrived");
        adopt(&mut shard_io.server, sockets, &shard_io.clock)?;
        let ShardSetup { config, partition, item_states, .. } = &*setup;
        let budget = shard_io.status.log_budget.clone();
        let ring = DiskRing::new().map_err(host::no_ring)?;
        shard_io.server.wake_by(&ring).map_err(host::no_descriptors)?;
        let logs = open_logs(id, &setup, ring, budget, existing_blocks, persistence);
        let mut effects = Effects::default();
        let codes = CodeGenerator::new(seed);
        let shard = Shard::new(id, *partition, config.rules, inventory, codes, shard_io.clock.now(), &mut effects);
        TurnLoop::new(shard_io, shard, effects, logs, item_states.clone()).run().await
    }
}

fn open_logs(
    id: ShardId,
    setup: &ShardSetup,
    ring: DiskRing,
    budget: Arc<Budget>,
    existing_blocks: Option<u32>,
    persistence: Option<PersistenceChannels>,
) -> LogPair {
    let ShardSetup { data, segment_blocks, .. } = setup;
    let log = |log| {
        let stream = StreamId { cluster: data.cluster, epoch: data.epoch, shard: id.0, log };
        LogWriter::new(stream, &data.logs, data.direct_io, *segment_blocks)
    };
    let retention = Retention::new(&data.logs, budget, persistence.is_some());
    let (mut purchases, mut attempts) = (log(LogKind::Purchases), log(LogKind::Attempts));
    if let Some(blocks) = existing_blocks {
        purchases.use_existing_segment(blocks);
    }
    if persistence.is_some() {
        purchases.keep_chunks();
        attempts.keep_chunks();
    }
    LogPair::new(ring, purchases, attempts, retention, persistence)
}

fn adopt(server: &mut Server, sockets: ShardSockets, clock: &Clock) -> Result<(), Fatal> {
    let now = clock.now();
    let ShardSockets { listeners, clients } = sockets;
    listeners.into_iter().try_for_each(|listener| server.listen(listener)).map_err(host::no_descriptors)?;
    clients.into_iter().for_each(|(client, midway)| server.adopt(client, midway, now));
    Ok(())
}
