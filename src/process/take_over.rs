//! The new process's side of an upgrade: it prepares beside the old process, then receives its lock and sockets.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::{LogKind, StreamId};
use crate::log::data_dir::{DataDir, OpenDataDir};
use crate::log::segment::SegmentName;
use crate::operate::admin;
use crate::process::resume::{Resumed, UpgradeRecovery};
use crate::runtime::shard_thread::ShardSockets;
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::{host, listener};
use crate::upgrade::predecessor::{Handover, Predecessor};
use rustix::fd::OwnedFd;
use rustix::process::nice;
use std::net::TcpListener;
use std::{io, iter, thread};

/// Blocks in a new process's first segment in addition to those for holds, because the old process grants more holds
/// meanwhile.
const HOLDS_SLACK_BLOCKS: u32 = 256;
/// Nice value of the thread that prepares an upgrade: shards of the old process have priority.
const PREPARE_NICENESS: i32 = 10;

/// Everything that a process has after recovery.
pub struct StartState {
    /// The locked data directory.
    pub dir: DataDir,
    /// The listening socket of the admin port.
    pub admin: TcpListener,
    /// End of the predecessor's lease, in microseconds since boot, if it is one of two servers. No other server takes over
    /// before.
    pub lease_until_us: Option<u64>,
    /// The recovered sale.
    pub resumed: Resumed,
    /// Sockets for each shard. They are empty without a predecessor, because the shards have their sockets already.
    pub sockets: Vec<ShardSockets>,
    /// Duplicates of all listening sockets, which the main thread opens for connections when the process serves.
    pub listeners: Vec<OwnedFd>,
    /// Number of blocks of each shard's first segment, if the segment exists already.
    pub existing_blocks: Vec<Option<u32>>,
}

/// Takes over from the old process. The old process serves until everything can be handed over at once.
///
/// # Errors
/// Every reason for which this process cannot continue the sale. The old process then continues to serve.
pub fn take_over(
    config: &Config,
    predecessor: &Predecessor,
    partition: Partition,
    clock: &Clock,
    segment_blocks: u32,
) -> Result<StartState, Fatal> {
    // Prepare on a thread with low priority, because the old process needs the CPUs as long as it sells.
    let (ahead, existing_blocks) = thread::scope(|scope| {
        let prepare = scope.spawn(|| {
            let _ = nice(PREPARE_NICENESS);
            let was_fenced = predecessor.offer.settings.is_some_and(|settings| settings.waits_for_database);
            prepare(config, (predecessor.offer.epoch, was_fenced), partition, clock, segment_blocks)
        });
        prepare.join().expect("a panic ends the process")
    })?;
    // The old process listens on the address unless the setting has changed.
    let own_admin = (predecessor.offer.admin_listen != config.admin_listen).then(|| admin::listen(config.admin_listen));
    let own_admin = own_admin.transpose()?;
    tracing::info!("prepared: waiting for the old process to hand over");
    let Handover { lock, admin, lease_until_us, ends, mut listeners, clients } =
        predecessor.receive_handover(config.rules.schedule.longest_hold_ms())?;
    let dir = DataDir::adopt(&config.data_dir, lock);
    tracing::info!(listeners = listeners.len(), connections = clients.len(), "taking over");
    listener::extend(&mut listeners, partition.shards())?;
    let duplicates = listeners.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
    let duplicates = duplicates.map_err(host::no_descriptors)?;
    let mut sockets = distribute_listeners(listeners, partition.shards());
    for (shard, client, midway) in clients {
        sockets[usize::from(shard % partition.shards())].clients.push((client, midway));
    }
    let admin = own_admin.unwrap_or_else(|| TcpListener::from(admin));
    Ok(StartState {
        dir,
        admin,
        lease_until_us,
        resumed: ahead.finish(config, &ends)?,
        sockets,
        listeners: duplicates,
        existing_blocks,
    })
}

/// Distributes listening sockets over `shards` shards, in turn.
pub fn distribute_listeners(listeners: Vec<OwnedFd>, shards: u16) -> Vec<ShardSockets> {
    let mut sockets: Vec<_> = (0..shards).map(|_| ShardSockets::default()).collect();
    for (place, listener) in listeners.into_iter().enumerate() {
        sockets[place % usize::from(shards)].listeners.push(listener);
    }
    sockets
}

/// Reads the log, and creates the first segment of each shard, with room for the end of every hold.
fn prepare(
    config: &Config,
    (epoch, was_fenced): (u32, bool),
    partition: Partition,
    clock: &Clock,
    segment_blocks: u32,
) -> Result<(UpgradeRecovery, Vec<Option<u32>>), Fatal> {
    let mut ahead = UpgradeRecovery::read(config, (epoch, was_fenced), partition, clock)?;
    let OpenDataDir { logs, cluster, .. } = ahead.data();
    let mut existing_blocks = Vec::new();
    let held = ahead.held().into_iter().chain(iter::repeat(0));
    for (shard, held) in (0..partition.shards()).zip(held) {
        let stream = StreamId { cluster: *cluster, epoch, shard, log: LogKind::Purchases };
        let blocks = segment_blocks.max(held + held / 4 + HOLDS_SLACK_BLOCKS);
        let made = SegmentName::first(stream, blocks).make(logs);
        made.map_err(|error| Fatal::DataDir(format!("{}: {error}", logs.display())))?;
        existing_blocks.push(Some(blocks));
    }
    ahead.catch_up()?;
    Ok((ahead, existing_blocks))
}
