//! A Postgres that takes transactions whole or not at all, loses answers, goes away and comes back older.

use crate::log::block::StreamKey;
use crate::log::ownership::Owner;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::record::{LogEvent, Record};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Committed,
    /// It never happened.
    Failed,
    /// It happened, and nobody was told.
    Unheard,
}

/// What is in the tables.
#[derive(Clone, Default)]
pub struct Tables {
    pub owner: Option<Owner>,
    pub positions: BTreeMap<StreamKey, u64>,
    /// By stream and number; the number is not in the real tables, and is what shows a row twice.
    pub rows: Vec<(StreamKey, u64, Record)>,
    purchases: BTreeSet<(SaleId, ItemId)>,
}

/// The database, and its backups.
#[derive(Default)]
pub struct FakePostgres {
    pub tables: Tables,
    backup: Option<Tables>,
}

impl FakePostgres {
    /// One transaction: rows of streams, and their positions from exactly here to there. Returns whether the answer
    /// came.
    pub fn ship(&mut self, owner: Owner, batch: &[(StreamKey, u64, Vec<Record>)], fate: Fate) -> bool {
        if fate == Fate::Failed {
            return false;
        }
        assert_eq!(self.tables.owner, Some(owner), "the fence lets a stale owner through");
        for (key, from, records) in batch {
            assert_eq!(self.tables.positions.get(key), Some(from), "a position jumps");
            for (seq, record) in (from + 1..).zip(records) {
                if let LogEvent::Purchase { item, .. } = record.event {
                    assert!(self.tables.purchases.insert((record.sale, item)), "{item:?} is sold twice in Postgres");
                }
                self.tables.rows.push((*key, seq, *record));
            }
            self.tables.positions.insert(*key, from + records.len() as u64);
        }
        fate == Fate::Committed
    }

    pub fn back_up(&mut self) {
        self.backup = Some(self.tables.clone());
    }

    /// Returns whether there was a backup.
    pub fn restore(&mut self) -> bool {
        let Some(backup) = self.backup.clone() else { return false };
        self.tables = backup;
        true
    }

    /// What a takeover finds of the latest sale: what is held and what is sold.
    pub fn latest_sale(&self) -> Vec<Record> {
        let rows = self.tables.rows.iter().map(|(_, _, record)| record);
        let Some(sale) = rows.clone().map(|record| record.sale).max() else { return Vec::new() };
        let (mut opened, mut items) = (None, BTreeMap::<ItemId, Vec<Record>>::new());
        for record in rows.filter(|record| record.sale == sale) {
            match record.event {
                LogEvent::SaleOpened { .. } => opened = Some(*record),
                LogEvent::Checkout { item, .. } => _ = items.insert(item, vec![*record]),
                LogEvent::Purchase { item, .. } => items.get_mut(&item).expect("it was checked out").push(*record),
                LogEvent::Released { item, .. } => _ = items.remove(&item),
                LogEvent::TakenOver | LogEvent::Refused { .. } => {}
            }
        }
        let Some(opened) = opened else { return Vec::new() };
        let mark = Record { event: LogEvent::TakenOver, ..opened };
        [opened, mark].into_iter().chain(items.into_values().flatten()).collect()
    }
}
