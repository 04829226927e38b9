//! The machine and its database: claims, transactions, and what becomes of both when one of them is lost.

use super::disk::{CLUSTER, Disk, purchases_of, stream_of};
use super::fake_postgres::Fate;
use super::is_purchase;
use super::world::World;
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamKey;
use crate::log::ownership::{Memory, Owner, Run, judge_owner, judge_position};
use crate::sale::shard::ShardEvent;
use std::collections::BTreeMap;
use uuid::Uuid;

impl World {
    pub fn lose_touch(&mut self) {
        self.positions = None;
    }

    pub fn set_back(&mut self) {
        if self.database.restore() {
            self.trace.note(format_args!("{} the database is set back", self.steps));
            (self.is_set_back, self.positions) = (true, None);
        }
    }

    /// Connects and claims. The claim itself may be in doubt.
    fn connect(&mut self) {
        let found = self.database.tables.owner;
        if judge_owner(self.owner, self.memory, found, RecoverFrom::Auto).is_err() {
            assert!(self.is_set_back, "a false alarm about the owner");
            if judge_owner(self.owner, self.memory, found, RecoverFrom::Log).is_err() {
                // Set back to before a takeover: nothing but a later copy of it helps.
                self.refused = true;
                return;
            }
        }
        let mut positions = BTreeMap::new();
        let this_epoch = self.owner.run.epoch;
        for (key, records) in &self.archive {
            let end = (key.epoch < this_epoch).then_some(records.len() as u64);
            let known = self.database.tables.positions.get(key).copied();
            let at = judge_position(&stream_of(*key), (0, end), known, false, RecoverFrom::Auto);
            positions.insert(*key, at.expect("a false alarm about a position"));
        }
        self.memory = self.memory.claiming(found, self.owner.run);
        let fate = self.any_fate();
        if fate != Fate::Failed {
            self.database.tables.owner = Some(self.owner);
            self.database.tables.positions.extend(&positions);
        }
        if fate == Fate::Committed {
            self.positions = Some(positions.clone());
            positions.into_iter().for_each(|(key, position)| self.publish(key, position));
        }
    }

    fn publish(&mut self, key: StreamKey, position: u64) {
        if key.epoch == self.owner.run.epoch {
            self.apply(key.shard, ShardEvent::Persisted(position));
        }
    }

    fn any_fate(&mut self) -> Fate {
        match self.faults.u32(0..12) {
            0 => Fate::Failed,
            1 => Fate::Unheard,
            _ => Fate::Committed,
        }
    }

    /// One transaction of the persistence thread: the oldest streams first.
    pub fn ship(&mut self) {
        let Some(positions) = &self.positions else { return self.connect() };
        let mut room = self.faults.usize(1..12);
        let mut batch = Vec::new();
        for (key, from) in positions {
            let records = &self.archive[key][*from as usize..];
            let records = &records[..records.len().min(room)];
            room -= records.len();
            if !records.is_empty() {
                batch.push((*key, *from, records.to_vec()));
            }
        }
        let fate = self.any_fate();
        if !self.database.ship(self.owner, &batch, fate) {
            return self.lose_touch();
        }
        for (key, from, records) in batch {
            let position = from + records.len() as u64;
            self.positions.as_mut().expect("it is connected").insert(key, position);
            self.publish(key, position);
        }
        let positions = self.positions.as_ref().expect("it is connected");
        if self.archive.iter().all(|(key, records)| positions[key] == records.len() as u64) {
            self.is_set_back = false;
        }
    }

    /// The machine is lost; another one goes on from the database.
    pub fn take_over(&mut self) {
        let Some(owner) = self.database.tables.owner else { return };
        self.trace.note(format_args!("{} takeover", self.steps));
        let records = self.database.latest_sale();
        let run =
            Run { epoch: self.owner.run.epoch.max(owner.run.epoch) + 1, id: Uuid::from_u128(self.faults.u128(..)) };
        let key = purchases_of(run.epoch, 0);
        self.owner = Owner { cluster: CLUSTER, run };
        self.database.tables.owner = Some(self.owner);
        self.database.tables.positions.insert(key, records.len() as u64);
        self.memory = Memory { seen: Some(run), claiming: None, filled: Some(run) };
        self.disk = Disk::default();
        if !records.is_empty() {
            self.disk.create(key);
            self.disk.start_flush(key, &records, 3, 0);
            self.disk.finish_flush(key);
        }
        self.brought = Some(key);
        self.taken_over = records.first().map(|record| record.sale);
        let rows = &self.database.tables.rows;
        let is_kept = |sale, item, code| rows.iter().any(|(_, _, record)| is_purchase(record, sale, item, code));
        let before = self.shadow.bought.len();
        let latest = records.first().map(|record| record.sale);
        self.shadow.forget(is_kept);
        assert!(
            !self.promises_postgres() || self.shadow.bought.len() == before,
            "Postgres lacks what was acknowledged"
        );
        // Of earlier sales the new log knows nothing, and needs nothing.
        self.shadow.forget(|sale, _, _| Some(sale) == latest);
        (self.is_set_back, self.era) = (false, self.era + 1);
        let shards = self.faults.u16(1..5);
        self.now.monotonic_ms = 1 + self.faults.u64(0..1000);
        self.start(shards);
    }
}
