//! A simulated Postgres. Its transactions are atomic, may fail, and may be committed although the answer is lost. It
//! can be restored from a backup.

use crate::log::block::StreamKey;
use crate::log::ownership::Owner;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::record::{LogEvent, Record};
use crate::sale::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// The result of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionResult {
    /// Committed and acknowledged.
    Committed,
    /// Rolled back.
    Failed,
    /// Committed, but the acknowledgement is lost.
    AcknowledgementLost,
}

/// The content of the tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub owner: Option<Owner>,
    pub positions: BTreeMap<StreamKey, u64>,
    /// Rows with their stream and their number in it. The real tables lack the number; here it reveals duplicate rows.
    pub rows: Vec<(StreamKey, u64, Record)>,
    purchases: BTreeSet<(SaleId, ItemId)>,
}

impl Tables {
    /// Inserts rows.
    pub fn insert(&mut self, batch: &[(StreamKey, u64, Vec<Record>)]) {
        for (key, from, records) in batch {
            for (seq, record) in (from + 1..).zip(records) {
                if let LogEvent::Purchase { item, .. } = record.event {
                    assert!(self.purchases.insert((record.sale, item)), "{item:?} is sold twice in Postgres");
                }
                self.rows.push((*key, seq, *record));
            }
        }
    }

    /// Returns the records that a takeover copies: of the latest sale, and of each ended sale whose receipts are due or
    /// in which an item is held.
    pub fn needed_sales(&self, rules: &Rules, now_ms: u64) -> Vec<Record> {
        let rows = self.rows.iter().map(|(_, _, record)| record);
        let sales: BTreeSet<SaleId> = rows.map(|record| record.sale).collect();
        let is_needed = |sale: SaleId, records: &[Record]| {
            Some(&sale) == sales.last() || now_ms < rules.forgotten_at_ms(sale) || has_promises(records, rules, now_ms)
        };
        let restored = sales.iter().map(|sale| (*sale, self.sale_records(*sale)));
        restored.filter(|(sale, records)| is_needed(*sale, records)).flat_map(|(_, records)| records).collect()
    }

    /// Returns the records of one sale: its opening, the latest hold of each item, and the purchases.
    fn sale_records(&self, sale: SaleId) -> Vec<Record> {
        let (mut opened, mut items) = (None, BTreeMap::<ItemId, Vec<Record>>::new());
        for (_, _, record) in self.rows.iter().filter(|(_, _, record)| record.sale == sale) {
            match record.event {
                LogEvent::SaleOpened { .. } => opened = Some(*record),
                LogEvent::Checkout { item, .. } => _ = items.insert(item, vec![*record]),
                LogEvent::Purchase { item, .. } | LogEvent::Extended { item, .. } | LogEvent::Released { item, .. } => {
                    items.get_mut(&item).expect("a checkout precedes").push(*record);
                }
                LogEvent::RestoredFromPostgres | LogEvent::Refused { .. } => {}
            }
        }
        let Some(opened) = opened else { return Vec::new() };
        let mark = Record { event: LogEvent::RestoredFromPostgres, ..opened };
        [opened, mark].into_iter().chain(items.into_values().flatten()).collect()
    }
}

/// The database and its backup.
#[derive(Default)]
pub struct FakePostgres {
    pub tables: Tables,
    backup: Option<Tables>,
}

impl FakePostgres {
    /// Runs one transaction: inserts rows of streams, and moves each position from exactly where the rows begin to
    /// where they end. Returns whether it was acknowledged.
    pub fn ship(&mut self, owner: Owner, batch: &[(StreamKey, u64, Vec<Record>)], fate: TransactionResult) -> bool {
        if fate == TransactionResult::Failed {
            return false;
        }
        assert_eq!(self.tables.owner, Some(owner), "a stale owner ships records");
        for (key, from, records) in batch {
            assert_eq!(self.tables.positions.get(key), Some(from), "the rows do not begin at the stream's position");
            self.tables.positions.insert(*key, from + records.len() as u64);
        }
        self.tables.insert(batch);
        fate == TransactionResult::Committed
    }

    /// Makes a backup, which replaces the one before.
    pub fn back_up(&mut self) {
        self.backup = Some(self.tables.clone());
    }

    /// Restores the backup. Returns whether there was one.
    pub fn restore(&mut self) -> bool {
        let Some(backup) = self.backup.clone() else { return false };
        self.tables = backup;
        true
    }
}

/// Returns whether an item is held at `now_ms`, or was bought so late that its receipt is still due, according to the
/// records of the latest hold of each item.
fn has_promises(records: &[Record], rules: &Rules, now_ms: u64) -> bool {
    let mut ends = BTreeMap::new();
    for record in records {
        match record.event {
            LogEvent::Checkout { item, ttl_ms, .. } => _ = ends.insert(item, record.unix_ms + u64::from(ttl_ms)),
            LogEvent::Extended { item, by_ms, .. } => *ends.entry(item).or_default() += u64::from(by_ms),
            LogEvent::Purchase { item, .. } => _ = ends.insert(item, record.unix_ms + rules.receipts_ms),
            LogEvent::Released { item, .. } => _ = ends.remove(&item),
            LogEvent::SaleOpened { .. } | LogEvent::RestoredFromPostgres | LogEvent::Refused { .. } => {}
        }
    }
    ends.into_values().any(|end| end > now_ms)
}
