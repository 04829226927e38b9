//! The machine and its database: claims, transactions, restored backups and takeovers.

use super::auditor::is_cancellation;
use super::disk::{CLUSTER, Disk, purchases_of, stream_of};
use super::fake_postgres::TransactionResult;
use super::is_purchase;
use super::world::World;
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamKey;
use crate::log::ownership::{Memory, Owner, Run, judge_owner, judge_position};
use crate::sale::code::Code;
use crate::sale::shard::ShardEvent;
use std::collections::BTreeMap;
use uuid::Uuid;

impl World {
    /// Disconnects the database.
    pub fn disconnect(&mut self) {
        self.positions = None;
    }

    /// Restores the database from its backup, if it has one.
    pub fn restore_backup(&mut self) {
        if self.database.restore() {
            self.trace.note(format_args!("{} the database is restored from its backup", self.steps));
            (self.is_restored, self.positions) = (true, None);
        }
    }

    /// Connects to the database and claims it. The answer to the claim may be lost.
    fn connect(&mut self) {
        let found = self.database.tables.owner;
        if judge_owner(self.owner, self.memory, found, RecoverFrom::Auto).is_err() {
            assert!(self.is_restored, "the owner is refused although the database was not restored from a backup");
            if judge_owner(self.owner, self.memory, found, RecoverFrom::Log).is_err() {
                // The backup is older than the takeover that this log began with, so the log cannot bring it up to
                // date.
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
            positions.insert(*key, at.expect("a correct position is refused"));
        }
        self.memory = self.memory.claiming(found, self.owner.run);
        let fate = self.any_fate();
        if fate != TransactionResult::Failed {
            self.database.tables.owner = Some(self.owner);
            self.database.tables.positions.extend(&positions);
        }
        if fate == TransactionResult::Committed {
            self.positions = Some(positions.clone());
            positions.into_iter().for_each(|(key, position)| self.publish(key, position));
        }
    }

    fn publish(&mut self, key: StreamKey, position: u64) {
        if key.epoch == self.owner.run.epoch {
            self.apply(key.shard, ShardEvent::Persisted(position));
        }
    }

    fn any_fate(&mut self) -> TransactionResult {
        match self.faults.u32(0..12) {
            0 => TransactionResult::Failed,
            1 => TransactionResult::AcknowledgementLost,
            _ => TransactionResult::Committed,
        }
    }

    /// Runs one transaction of the persistence thread, with the oldest streams first; connects if there is no
    /// connection.
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
            return self.disconnect();
        }
        for (key, from, records) in batch {
            let position = from + records.len() as u64;
            self.positions.as_mut().expect("the database is connected").insert(key, position);
            self.publish(key, position);
        }
        let positions = self.positions.as_ref().expect("the database is connected");
        if self.archive.iter().all(|(key, records)| positions[key] == records.len() as u64) {
            self.is_restored = false;
        }
    }

    /// Loses the machine, if the database has an owner. Another machine continues the sales in the database.
    pub fn take_over(&mut self) {
        let Some(owner) = self.database.tables.owner else { return };
        self.trace.note(format_args!("{} takeover", self.steps));
        let records = self.database.tables.needed_sales(&self.rules, self.now.unix_ms);
        let run =
            Run { epoch: self.owner.run.epoch.max(owner.run.epoch) + 1, id: Uuid::from_u128(self.faults.u128(..)) };
        let key = purchases_of(run.epoch, 0);
        self.owner = Owner { cluster: CLUSTER, run };
        self.database.tables.owner = Some(self.owner);
        self.database.tables.positions.insert(key, records.len() as u64);
        self.memory = Memory { seen: Some(run), filled: Some(run), ..Memory::default() };
        self.disk = Disk::default();
        if !records.is_empty() {
            self.disk.create(key);
            self.disk.start_flush(key, &records, 3, 0);
            self.disk.finish_flush(key);
        }
        self.restored_stream = Some(key);
        self.taken_over = records.iter().map(|record| record.sale).collect();
        // Nothing that was acknowledged is lost then, and holds end when they should.
        let is_lossless = self.promises_replication();
        let rows = &self.database.tables.rows;
        let is_kept = |sale, item, code| rows.iter().any(|(_, _, record)| is_purchase(record, sale, item, code));
        let before = self.shadow.bought.len();
        let cancelled =
            |code: &[u8; 16]| rows.iter().any(|(_, _, record)| is_cancellation(record.event, Code::from_bytes(*code)));
        assert!(!is_lossless || self.shadow.released.iter().all(cancelled), "Postgres lacks an acknowledged release");
        self.shadow.end_cancelled(cancelled);
        self.shadow.forget(is_kept);
        assert!(
            !self.promises_postgres() || self.shadow.bought.len() == before,
            "Postgres lacks an acknowledged purchase"
        );
        // The new log has no records of forgotten sales, so their promises are removed.
        let taken_over = &self.taken_over;
        self.shadow.forget(|sale, _, _| taken_over.contains(&sale));
        // Users are within the limit, because no checkout is in the database before the release that it rests on.
        self.taken_over.retain(|_| !is_lossless);
        (self.is_restored, self.clock_epoch) = (false, self.clock_epoch + u32::from(!is_lossless));
        let shards = self.faults.u16(1..5);
        self.now.monotonic_ms = 1 + self.faults.u64(0..1000);
        self.start(shards);
    }
}
