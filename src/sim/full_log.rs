//! Worlds with little space in the logs: each shard's purchase log gets a few blocks for a run, and never more. A flush
//! takes whole blocks. What is held can be bought all the same.

use super::world::World;
use super::{is_purchase, number};
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record};
use crate::sale::shard::ShardEvent;
use std::panic::{AssertUnwindSafe, catch_unwind};
use uuid::Uuid;

/// Blocks that `records` take.
fn blocks(records: &[Record]) -> u64 {
    (records.len() as u64).div_ceil(BLOCK_RECORDS as u64)
}

fn opens_a_sale(record: &Record) -> bool {
    matches!(record.event, LogEvent::SaleOpened { .. })
}

impl World {
    /// Creates the world of `seed` with little space in the logs.
    fn with_small_logs(seed: u64) -> Self {
        let mut world = Self::new(seed, false);
        world.has_small_logs = true;
        world.start(world.partition.shards());
        world
    }

    /// Gives the log of a new run its space: as at a real start, for what was recovered, and some blocks more.
    pub fn give_room(&mut self, shard: u16) {
        let log = &mut self.logs[usize::from(shard)];
        let recovered = self.shards[usize::from(shard)].log_reserve() + blocks(&log.records);
        log.room = if self.has_small_logs { recovered + self.faults.u64(0..12) } else { u64::MAX };
        let room = log.room;
        self.apply(shard, ShardEvent::LogRoom(room));
    }

    /// Takes the blocks of a flush from the space of a shard's log. The writer fills its blocks. The records that open
    /// sales have space of their own, unless they share a block. Returns the number of records to flush, and how many a
    /// block holds.
    pub fn take_room(&mut self, shard: u16) -> (usize, usize) {
        let log = &mut self.logs[usize::from(shard)];
        let flushed = &log.records[log.flushed..];
        if !flushed.iter().all(opens_a_sale) {
            let left = log.room.checked_sub(blocks(flushed));
            log.room = left.expect("the log has room for every record that a shard has appended");
        }
        (flushed.len(), BLOCK_RECORDS)
    }

    /// Checks that each log has room for the records that wait and for the ends of the live holds after them.
    pub fn check_room(&self) {
        for (shard, log) in self.shards.iter().zip(&self.logs) {
            let waiting = &log.records[log.flushed + log.flushing.unwrap_or(0)..];
            let needed = if waiting.iter().all(opens_a_sale) { 0 } else { blocks(waiting) } + shard.log_reserve();
            assert!(needed <= log.room, "a log needs {needed} blocks and has {}", log.room);
        }
    }

    /// Buys everything that is held and has not been asked to be cancelled, in the full logs.
    fn buy_what_is_held(&mut self) {
        let promises: Vec<_> = self.shadow.codes.iter().map(|(bytes, promise)| (*bytes, *promise)).collect();
        for (bytes, promise) in promises {
            let is_live =
                promise.run == self.owner.run.epoch && self.now.monotonic_ms < promise.good_until.monotonic_ms;
            if is_live && !promise.is_cancel_requested {
                let code = Code::from_bytes(bytes);
                self.command(0, Command::Purchase { code, key: Uuid::nil() });
                self.settle();
                let mut durable = self.durable();
                let is_bought = durable.any(|record| is_purchase(record, promise.sale, promise.item, code));
                assert!(is_bought || self.is_refused(), "a held item is not bought: {promise:?}");
            }
        }
    }
}

/// Lives through the world of a seed. Returns how often a request was refused because a log was full.
fn live(seed: u64) -> u64 {
    let mut world = World::with_small_logs(seed);
    for _ in 0..world.length() {
        if world.is_refused() {
            return world.refused_as_full;
        }
        world.step();
        world.check();
        world.check_room();
    }
    if !world.is_refused() {
        world.settle();
        world.buy_what_is_held();
        world.check_room();
    }
    world.refused_as_full
}

#[test]
fn no_log_needs_more_than_it_has_and_what_is_held_can_be_bought() {
    let first = number("STAMPEDE_SIM_FIRST", 0);
    let mut refused = 0;
    for seed in first..first + number("STAMPEDE_SIM_SEEDS", 20_000) / 4 {
        let lived = catch_unwind(AssertUnwindSafe(|| live(seed)));
        refused += lived.unwrap_or_else(|_| panic!("seed {seed} breaks a promise: set STAMPEDE_SIM_FIRST={seed}"));
    }
    assert!(refused > 0, "no log was full");
}
