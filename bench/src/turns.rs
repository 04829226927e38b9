//! Drives the state machine in the order of the server's turn: commands in batches, messages over the mesh, one flush
//! for each turn. There is no log: the records of a turn count as flushed at the start of the next turn.

use stampede::log::replay::Replay;
use stampede::operate::item_states::ItemStates;
use stampede::runtime::mesh::{self, Delivery, Endpoint};
use stampede::sale::code::CodeGenerator;
use stampede::sale::command::Command;
use stampede::sale::effects::Effects;
use stampede::sale::ids::{Moment, Seq, ShardId, Ticket};
use stampede::sale::partition::Partition;
use stampede::sale::rules::{Ack, Rules};
use stampede::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use stampede::sale::shard::{Shard, ShardEvent};
use stampede::system::doorbell::Doorbell;
use std::sync::Arc;

/// Commands of one turn: about as many as arrive together on a busy set of sockets.
pub const COMMANDS: usize = 64;

/// The constant time of the benchmarks: no hold expires, and the sale does not end.
pub const NOW: Moment = Moment { monotonic_ms: 1, unix_ms: 1_800_000_000_000 };

/// Returns sales of `items` items, without a limit for each user.
pub fn sales(items: u32) -> PeriodicSale {
    PeriodicSale { period_s: 3600, items, user_limit: u32::MAX, ttl_ms: u32::MAX, extension_ms: 0 }
}

/// Returns the rules of a sale of `items` items, without a limit for each user.
pub fn rules(items: u32) -> Rules {
    Rules { schedule: SaleSchedule::Periodic(sales(items)), receipts_ms: 3_600_000, ack: Ack::Local }
}

/// A shard, its effects, its end of the mesh and its number of appended records.
struct LocalShard {
    shard: Shard,
    effects: Effects,
    mesh: Endpoint,
    appended: Seq,
}

/// The shards of a sale, on one thread.
pub struct Turns {
    local_shards: Vec<LocalShard>,
    item_states: ItemStates,
}

impl Turns {
    /// Creates a new sale of `items` items on `shards` shards.
    pub fn new(shards: u16, items: u32) -> Turns {
        let (partition, rules) = (Partition::new(shards), rules(items));
        let (inventories, _) =
            Replay::new(partition, rules, (0, 0), NOW).finish().expect("an empty log has no contradiction");
        let item_states = ItemStates::new(partition, rules.schedule, &inventories);
        let doorbells: Arc<[Doorbell]> = (0..shards).map(|_| Doorbell::new().expect("a descriptor")).collect();
        let local_shards = (0..shards).map(ShardId).zip(inventories).zip(mesh::connect(&doorbells));
        let local_shards = local_shards.map(|((id, inventory), mesh)| {
            let mut effects = Effects::default();
            let codes = CodeGenerator::new([id.0 as u8; 32]);
            let shard = Shard::new(id, partition, rules, inventory, codes, NOW, &mut effects);
            LocalShard { shard, effects, mesh, appended: 0 }
        });
        let mut turns = Turns { local_shards: local_shards.collect(), item_states };
        turns.turn(|_, effects| effects.records.clear());
        turns
    }

    /// Applies a command to the shard at `index`. Returns the effects of its current turn so far.
    pub fn command(&mut self, index: usize, ticket: Ticket, command: Command) -> &mut Effects {
        let LocalShard { shard, effects, .. } = &mut self.local_shards[index];
        // The server's turn does the same before each command, with the latest sale that a shard has published.
        shard.apply(ShardEvent::Sale(shard.newest().sale), NOW, effects);
        shard.apply(ShardEvent::Command(ticket, command), NOW, effects);
        effects
    }

    /// Ends the turn of each shard and starts the next one. `take` must drain the records, attempts and answers.
    pub fn turn(&mut self, mut take: impl FnMut(usize, &mut Effects)) {
        for (place, LocalShard { shard, effects, mesh, appended }) in self.local_shards.iter_mut().enumerate() {
            *appended += effects.records.len() as u64;
            take(place, effects);
            effects.changes.drain(..).for_each(|change| self.item_states.show(ShardId(place as u16), change));
            effects.requests.drain(..).for_each(|(to, request)| mesh.request(to, request));
            effects.replies.drain(..).for_each(|(to, reply)| mesh.reply(to, reply));
            mesh.dispatch();

            shard.apply(ShardEvent::Tick, NOW, effects);
            shard.apply(ShardEvent::Flushed(*appended), NOW, effects);
            shard.apply(ShardEvent::LogRoom(u64::MAX), NOW, effects);
            mesh.receive(|delivery| {
                shard.apply(ShardEvent::Sale(shard.newest().sale), NOW, effects);
                let event = match delivery {
                    Delivery::Request(from, request) => ShardEvent::Request(from, request),
                    Delivery::Reply(reply) => ShardEvent::Reply(reply),
                };
                shard.apply(event, NOW, effects);
            });
        }
    }

    /// Runs turns until there are no more effects and messages.
    pub fn settle(&mut self, mut take: impl FnMut(usize, &mut Effects)) {
        let is_busy = |LocalShard { effects, mesh, .. }: &LocalShard| {
            let Effects { records, requests, replies, answers, .. } = effects;
            !(records.is_empty() && requests.is_empty() && replies.is_empty() && answers.is_empty())
                || mesh.has_messages()
        };
        while self.local_shards.iter().any(is_busy) {
            self.turn(&mut take);
        }
    }

    /// Returns the number of sold items.
    pub fn sold(&self) -> u32 {
        self.local_shards.iter().map(|local_shard| local_shard.shard.stock().counts().sold).sum()
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> usize {
        self.local_shards.len()
    }
}
