//! A shard's thread: it answers that the server is not ready, waits for recovery, and then takes turns until the end.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::connection::Midway;
use crate::log::block::{LogKind, StreamId};
use crate::log::data_dir::Opened;
use crate::log::retention::Retention;
use crate::log::writer::LogWriter;
use crate::operate::item_states::ItemStates;
use crate::operate::request_timer::RequestTimer;
use crate::operate::status::Status;
use crate::runtime::control::{Notice, Order};
use crate::runtime::log_pair::{LogPair, Shipping};
use crate::runtime::mesh::Endpoint;
use crate::runtime::shard_io::ShardIo;
use crate::runtime::turn::Pump;
use crate::sale::code::CodeGenerator;
use crate::sale::ids::ShardId;
use crate::sale::partition::Partition;
use crate::sale::shard::{Effects, Inventory, Shard};
use crate::server::sockets::Server;
use crate::system::clock::Clock;
use crate::system::{host, threads};
use crossbeam_channel::{Receiver, Sender};
use glommio::io::PollableFd;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The sockets of one shard.
#[derive(Default)]
pub struct ShardSockets {
    /// Listening sockets of the public port.
    pub listeners: Vec<OwnedFd>,
    /// Connections that another process has accepted, with the state of a request in progress.
    pub clients: Vec<(OwnedFd, Option<Midway>)>,
}

/// What a shard's thread answers clients with before recovery has ended.
pub struct ShardThread {
    /// The shard.
    pub id: ShardId,
    /// Its sockets. Empty in an upgrade: they arrive with [`ShardStart`].
    pub sockets: ShardSockets,
    /// Its lanes to the other shards.
    pub mesh: Endpoint,
    /// Connections that it may have open.
    pub clients_max: usize,
    /// The clock of its turns.
    pub clock: Clock,
    /// The published numbers.
    pub status: Arc<Status>,
    /// Notices to the main thread.
    pub notices: Sender<Notice>,
    /// Orders from the main thread.
    pub orders: Receiver<Order>,
}

/// What a shard needs to begin to sell.
pub struct ShardStart {
    /// Sockets of another process, in an upgrade.
    pub sockets: ShardSockets,
    /// The recovered stock and quotas.
    pub inventory: Inventory,
    /// Blocks of the first segment, if it has been made already.
    pub made_ahead: Option<u32>,
    /// What is the same for all shards.
    pub setup: Arc<ShardSetup>,
    /// Seed of the generator of codes.
    pub seed: [u8; 32],
    /// The shard's channels to and from the persistence thread, if there is a database.
    pub persistence: Option<Shipping>,
}

/// What all shards begin with.
pub struct ShardSetup {
    /// The settings.
    pub config: Arc<Config>,
    /// The owners of items and users.
    pub partition: Partition,
    /// The published state of each item.
    pub board: Arc<ItemStates>,
    /// The opened data directory.
    pub data: Opened,
    /// Bytes that one shard's logs may use.
    pub budget: u64,
    /// Blocks of one segment.
    pub segment_blocks: u32,
}

impl ShardThread {
    /// Starts the thread. An error on it ends the process.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the thread cannot be started.
    pub fn spawn(self, placement: Placement, start: Receiver<ShardStart>) -> Result<JoinHandle<()>, Fatal> {
        threads::spawn(&format!("shard-{}", self.id.0), move || {
            let executor = LocalExecutorBuilder::new(placement).io_memory(host::IO_MEMORY).make();
            let executor = executor.unwrap_or_else(|error| host::refusal(error).exit());
            executor.run(self.sell(start)).unwrap_or_else(|reason| reason.exit());
        })
    }

    async fn sell(self, start: Receiver<ShardStart>) -> Result<(), Fatal> {
        let ShardThread { id, sockets, mesh, clients_max, clock, status, notices, orders } = self;
        let meter = RequestTimer::new(status.clone(), id, clock);
        let mut server = Server::new(mesh.doorbell(), clients_max, meter).map_err(host::no_descriptors)?;
        adopt(&mut server, sockets, clock)?;
        let always_ready = eventfd(1, EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let always_ready = always_ready.and_then(|event| Ok(PollableFd::new(event)?)).map_err(host::no_descriptors)?;
        let mut outside = ShardIo { id, server, mesh, clock, status, notices, orders, always_ready };
        let mut received = None;
        outside.wait_for_recovery(|| {
            received = start.try_recv().ok();
            received.is_some()
        });
        let ShardStart { sockets, inventory, made_ahead, setup, seed, persistence } =
            received.expect("recovery has ended, so the start has arrived");
        adopt(&mut outside.server, sockets, clock)?;
        let ShardSetup { config, partition, board, .. } = &*setup;
        let logs = open_logs(id, &setup, made_ahead, persistence);
        let mut effects = Effects::default();
        let codes = CodeGenerator::new(seed);
        let shard = Shard::new(id, *partition, config.rules, inventory, codes, clock.now(), &mut effects);
        Pump::new(outside, shard, effects, logs, board.clone(), config.rules.period_s).run().await
    }
}

fn open_logs(id: ShardId, setup: &ShardSetup, made_ahead: Option<u32>, persistence: Option<Shipping>) -> LogPair {
    let ShardSetup { data, budget, segment_blocks, .. } = setup;
    let log = |log| {
        let stream = StreamId { cluster: data.cluster, epoch: data.epoch, shard: id.0, log };
        LogWriter::new(stream, &data.logs, data.direct_io, *segment_blocks)
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
    LogPair { purchases, attempts, retention, persistence }
}

fn adopt(server: &mut Server, sockets: ShardSockets, clock: Clock) -> Result<(), Fatal> {
    let now = clock.now();
    let ShardSockets { listeners, clients } = sockets;
    listeners.into_iter().try_for_each(|listener| server.listen(listener)).map_err(host::no_descriptors)?;
    let mut clients = clients.into_iter();
    clients.try_for_each(|(client, midway)| server.adopt(client, midway, now)).map_err(host::no_descriptors)
}
