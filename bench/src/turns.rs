//! The state machine, driven as the pump drives it: commands in batches, messages over the mesh, one flush a turn. The
//! log is elsewhere and takes no time: what one turn appends, the next one finds flushed.

use stampede::board::Board;
use stampede::code::CodeGenerator;
use stampede::command::Command;
use stampede::doorbell::Doorbell;
use stampede::mesh::{self, Delivery, Endpoint};
use stampede::partition::Partition;
use stampede::replay::Replay;
use stampede::shard::{Effects, Event, Rules, Shard};
use stampede::types::{Moment, Seq, ShardId, Ticket};
use stampede::waiting::Watermark;
use std::sync::Arc;

/// Commands of one turn: as many as come in together from a busy set of sockets.
pub const COMMANDS: usize = 64;

/// It is always this time: nothing expires, and the sale never ends.
pub const NOW: Moment = Moment { monotonic_ms: 1, unix_ms: 1_800_000_000_000 };

/// A sale of so many items, without a limit for a user.
pub fn rules(items: u32) -> Rules {
    Rules { period_s: 3600, items, user_limit: u32::MAX, ttl_ms: u32::MAX, purchase_ack: Watermark::Flushed }
}

struct Seat {
    shard: Shard,
    effects: Effects,
    mesh: Endpoint,
    appended: Seq,
}

/// Shards that take turns on one thread.
pub struct Turns {
    seats: Vec<Seat>,
    board: Board,
}

impl Turns {
    /// A new sale of `items` items on so many shards.
    pub fn new(shards: u16, items: u32) -> Turns {
        let (partition, rules) = (Partition::new(shards), rules(items));
        let (inventories, _) = Replay::new(partition, NOW).finish(&rules).expect("nothing contradicts nothing");
        let board = Board::new(partition, items, &inventories);
        let doorbells: Arc<[Doorbell]> = (0..shards).map(|_| Doorbell::new().expect("a descriptor")).collect();
        let seats = (0..shards).map(ShardId).zip(inventories).zip(mesh::connect(&doorbells));
        let seats = seats.map(|((id, inventory), mesh)| {
            let mut effects = Effects::default();
            let codes = CodeGenerator::new([id.0 as u8; 32]);
            let shard = Shard::new(id, partition, rules, inventory, codes, NOW, &mut effects);
            Seat { shard, effects, mesh, appended: 0 }
        });
        let mut turns = Turns { seats: seats.collect(), board };
        turns.turn(|_, effects| effects.records.clear());
        turns
    }

    /// A client of the shard at `seat` asks. Returns what has been decided and noted there so far in this turn.
    pub fn command(&mut self, seat: usize, ticket: Ticket, command: Command) -> &mut Effects {
        let Seat { shard, effects, .. } = &mut self.seats[seat];
        // As the pump does, which has it from what shards publish.
        shard.apply(Event::Sale(shard.terms().sale), NOW, effects);
        shard.apply(Event::Command(ticket, command), NOW, effects);
        effects
    }

    /// Ends the turn of each shard, and begins the next. `take` drains its records, attempts and answers.
    pub fn turn(&mut self, mut take: impl FnMut(usize, &mut Effects)) {
        for (place, Seat { shard, effects, mesh, appended }) in self.seats.iter_mut().enumerate() {
            *appended += effects.records.len() as u64;
            take(place, effects);
            effects.changes.drain(..).for_each(|change| self.board.show(ShardId(place as u16), change));
            effects.requests.drain(..).for_each(|(to, request)| mesh.request(to, request));
            effects.replies.drain(..).for_each(|(to, reply)| mesh.reply(to, reply));
            mesh.dispatch();

            shard.apply(Event::Tick, NOW, effects);
            shard.apply(Event::Flushed(*appended), NOW, effects);
            shard.apply(Event::LogRoom(u64::MAX), NOW, effects);
            mesh.receive(|delivery| {
                shard.apply(Event::Sale(shard.terms().sale), NOW, effects);
                let event = match delivery {
                    Delivery::Request(from, request) => Event::Request(from, request),
                    Delivery::Reply(reply) => Event::Reply(reply),
                };
                shard.apply(event, NOW, effects);
            });
        }
    }

    /// Turns until nothing is on its way any more.
    pub fn settle(&mut self, mut take: impl FnMut(usize, &mut Effects)) {
        let is_busy = |Seat { effects, mesh, .. }: &Seat| {
            let Effects { records, requests, replies, answers, .. } = effects;
            !(records.is_empty() && requests.is_empty() && replies.is_empty() && answers.is_empty()) || mesh.has_mail()
        };
        while self.seats.iter().any(is_busy) {
            self.turn(&mut take);
        }
    }

    /// Items sold.
    pub fn sold(&self) -> u32 {
        self.seats.iter().map(|seat| seat.shard.counts().sold).sum()
    }

    /// Shards.
    pub fn shards(&self) -> usize {
        self.seats.len()
    }
}
