//! Replay: turns records back into the state of a sale, by the same rules in `sale` that the live server applies.
//!
//! - Streams must be replayed in the order of epochs. Within an epoch, any order is correct, because all records of one
//!   item in one epoch are in one stream.
//! - Only the newest sale is kept. Records of earlier sales are ignored.
//! - A record that contradicts the rules shows that a record before it is missing.

use crate::log::block::StreamId;
use crate::sale::code::ITEMS_MAX;
use crate::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Terms, UserId};
use crate::sale::partition::Partition;
use crate::sale::quotas::Quotas;
use crate::sale::record::{LogEvent, Record};
use crate::sale::shard::{Inventory, Rules};
use crate::sale::stock::{Cancellation, Confirmation, Hold, Stock};

/// Replay that is in progress.
pub struct Replay {
    partition: Partition,
    now: Moment,
    sale: Option<(Terms, Vec<(Stock, Quotas)>)>,
    /// Sale that was taken over from Postgres, if any. A release may be missing there, so a user may exceed the limit.
    taken_over: Option<SaleId>,
    /// First contradiction in the newest sale that has one.
    contradiction: Option<(SaleId, String)>,
}

/// Sold and held items of the sale that continues after a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayedItems {
    /// Number of items sold.
    pub sold: u32,
    /// Number of items held.
    pub held: u32,
}

impl Replay {
    /// Creates a replay without records. `partition` is that of the new run; earlier runs may have had another one.
    pub fn new(partition: Partition, now: Moment) -> Self {
        assert!(now.monotonic_ms > 0, "replay confirms at time zero, which must be before the end of every hold");
        Replay { partition, now, sale: None, taken_over: None, contradiction: None }
    }

    /// Sets the current time, up to which the records that follow may have been recorded.
    pub fn at(&mut self, now: Moment) {
        self.now = now;
    }

    /// Returns the number of held items of each shard.
    pub fn held(&self) -> Vec<u32> {
        let shards = self.sale.iter().flat_map(|(_, shards)| shards);
        shards.map(|(stock, _)| stock.counts().held).collect()
    }

    /// Replays one record of a stream. If the record contradicts those before it, the contradiction is noted and replay
    /// continues: retention may have removed the beginning of an ended sale, and only [`Replay::finish`] knows which
    /// sale continues.
    pub fn add(&mut self, stream: &StreamId, seq: Seq, record: &Record) {
        if let Err(flaw) = self.record(record)
            && self.contradiction.as_ref().is_none_or(|(sale, _)| *sale < record.sale)
        {
            let place = format!("record {seq} of {stream}, sale {}", record.sale.0);
            self.contradiction = Some((record.sale, format!("{place}: {flaw}")));
        }
    }

    /// Replays one record.
    ///
    /// # Errors
    /// A description, if the record contradicts those before it.
    pub fn record(&mut self, record: &Record) -> Result<(), String> {
        if let LogEvent::SaleOpened { items, user_limit } = record.event {
            return self.open(Terms { sale: record.sale, items, user_limit });
        }
        match self.sale.as_ref().map(|(terms, _)| terms.sale) {
            Some(sale) if record.sale < sale => Ok(()),
            Some(sale) if record.sale == sale => self.apply(record),
            _ => Err(format!("it belongs to sale {}, which no record opens", record.sale.0)),
        }
    }

    fn open(&mut self, terms: Terms) -> Result<(), String> {
        match &self.sale {
            Some((current, _)) if terms.sale < current.sale => Ok(()),
            Some((current, _)) if terms.sale == current.sale => {
                let same = terms == *current;
                if same { Ok(()) } else { Err(format!("it opens {terms:?}, but the sale is open as {current:?}")) }
            }
            _ if !(1..=ITEMS_MAX).contains(&terms.items) => Err(format!("it opens a sale of {} items", terms.items)),
            _ => {
                self.sale = Some((terms, Self::fresh(self.partition, &terms)));
                Ok(())
            }
        }
    }

    fn fresh(partition: Partition, terms: &Terms) -> Vec<(Stock, Quotas)> {
        (0..partition.shards())
            .map(|shard| {
                let items = partition.owned_items(ShardId(shard), terms.items);
                (Stock::new(items), Quotas::new(terms.user_limit, items))
            })
            .collect()
    }

    fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record.event {
            LogEvent::Checkout { item, user, code, ttl_ms, key } => {
                // Use wall-clock time, because the monotonic clock starts again with the machine. Limit the rest to the
                // TTL, because the wall clock may have been set back.
                let ends_unix_ms = record.unix_ms.saturating_add(u64::from(ttl_ms));
                let left_ms = ends_unix_ms.saturating_sub(self.now.unix_ms).min(u64::from(ttl_ms));
                let expires_ms = self.now.monotonic_ms + left_ms;
                let (stock, slot) = self.place(item)?;
                stock.reserve(slot, user, key).map_err(|_| format!("item {} is checked out twice", item.0))?;
                stock.grant(slot, Hold { user, code, expires_ms, expires_unix_ms: ends_unix_ms });
                self.quotas(user).restore(user);
                Ok(())
            }
            LogEvent::Purchase { item, code, key, .. } => {
                let (stock, slot) = self.place(item)?;
                match stock.confirm(slot, code, key, 0) {
                    Confirmation::Bought(_) => {
                        stock.sell(slot);
                        Ok(())
                    }
                    other => Err(format!("item {} is bought, but the state of its code is {other:?}", item.0)),
                }
            }
            LogEvent::Released { item, code, .. } => {
                let (stock, slot) = self.place(item)?;
                match stock.cancel(slot, code, 0) {
                    Cancellation::Released(hold) => {
                        self.quotas(hold.user).release(hold.user);
                        Ok(())
                    }
                    other => Err(format!("item {} is released, but the state of its code is {other:?}", item.0)),
                }
            }
            LogEvent::RestoredFromPostgres => {
                self.taken_over = Some(record.sale);
                Ok(())
            }
            LogEvent::SaleOpened { .. } | LogEvent::Refused { .. } => Ok(()),
        }
    }

    fn place(&mut self, item: ItemId) -> Result<(&mut Stock, usize), String> {
        let (terms, shards) = self.sale.as_mut().expect("records are applied to an open sale");
        if item.0 >= terms.items {
            return Err(format!("item {} is not in the stock of {} items", item.0, terms.items));
        }
        let (stock, _) = &mut shards[usize::from(self.partition.owner_of_item(item).0)];
        Ok((stock, self.partition.slot_of(item)))
    }

    fn quotas(&mut self, user: UserId) -> &mut Quotas {
        let (_, shards) = self.sale.as_mut().expect("records are applied to an open sale");
        &mut shards[usize::from(self.partition.owner_of_user(user).0)].1
    }

    /// Returns the newest sale replayed, if any.
    pub fn sale(&self) -> Option<SaleId> {
        self.sale.as_ref().map(|(terms, _)| terms.sale)
    }

    /// Returns the initial state of each shard: the replayed sale, or a new sale if the replayed one has ended by the
    /// clock.
    ///
    /// # Errors
    /// A description, if a user of the sale that continues exceeds the limit, or if a record of that sale or a newer
    /// one contradicts those before it.
    pub fn finish(self, rules: &Rules) -> Result<(Vec<Inventory>, ReplayedItems), String> {
        let current = SaleId::at(self.now.unix_ms, rules.period_s);
        let (terms, shards) = match self.sale {
            Some((terms, shards)) if terms.sale >= current => (terms, shards),
            _ => {
                let terms = rules.terms(current);
                (terms, Self::fresh(self.partition, &terms))
            }
        };
        let mut found = ReplayedItems::default();
        for (stock, quotas) in &shards {
            if let Some(user) = quotas.over_limit().filter(|_| self.taken_over != Some(terms.sale)) {
                return Err(format!(
                    "user {} has more than {} items of sale {}",
                    user.0, terms.user_limit, terms.sale.0
                ));
            }
            found.sold += stock.counts().sold;
            found.held += stock.counts().held;
        }
        if let Some((_, text)) = self.contradiction.filter(|(sale, _)| *sale >= terms.sale) {
            return Err(text);
        }
        let inventories = shards.into_iter().map(|(stock, quotas)| Inventory { terms, stock, quotas }).collect();
        Ok((inventories, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::code::Code;
    use crate::sale::deferred::Watermark;
    use crate::sale::record::ReleaseReason;
    use uuid::Uuid;

    const NOW: Moment = Moment { monotonic_ms: 1_000, unix_ms: 3_600_000 * 500 };
    const RULES: Rules =
        Rules { period_s: 3600, items: 4, user_limit: 1, ttl_ms: 100, purchase_ack: Watermark::Flushed };

    fn record(event: LogEvent) -> Record {
        Record { sale: SaleId(500), unix_ms: NOW.unix_ms - 40, event }
    }

    fn opened() -> Record {
        record(LogEvent::SaleOpened { items: 4, user_limit: 1 })
    }

    fn checkout(item: u32, user: i64) -> Record {
        record(LogEvent::Checkout {
            item: ItemId(item),
            user: UserId(user),
            code: code(item),
            ttl_ms: 100,
            key: Uuid::nil(),
        })
    }

    fn code(item: u32) -> Code {
        Code::from_bytes([item as u8 + 1; 16])
    }

    fn replay(records: &[Record]) -> Result<Replay, String> {
        let mut replay = Replay::new(Partition::new(2), NOW);
        records.iter().try_for_each(|record| replay.record(record))?;
        Ok(replay)
    }

    #[test]
    fn holds_keep_their_end() {
        let (inventories, found) = replay(&[opened(), checkout(1, 7)]).unwrap().finish(&RULES).unwrap();
        assert_eq!(found, ReplayedItems { sold: 0, held: 1 });
        assert_eq!(inventories[1].stock.next_expiry_ms(), Some(1_060));
    }

    /// A hold that is granted while the log is being read keeps its whole time.
    #[test]
    fn holds_that_are_younger_than_the_replay_keep_their_end() {
        let mut replay = Replay::new(Partition::new(2), Moment { monotonic_ms: 400, unix_ms: NOW.unix_ms - 600 });
        replay.record(&opened()).unwrap();
        replay.at(NOW);
        replay.record(&checkout(1, 7)).unwrap();
        assert_eq!(replay.held(), [0, 1]);
        let (inventories, _) = replay.finish(&RULES).unwrap();
        assert_eq!(inventories[1].stock.next_expiry_ms(), Some(1_060));
    }

    #[test]
    fn a_sale_that_is_over_is_not_taken_over() {
        let mut old = opened();
        old.sale = SaleId(499);
        let (inventories, found) = replay(&[old]).unwrap().finish(&RULES).unwrap();
        assert_eq!((inventories[0].terms, found), (RULES.terms(SaleId(500)), ReplayedItems::default()));
    }

    #[test]
    fn the_sale_never_goes_backwards() {
        let mut future = opened();
        future.sale = SaleId(600);
        let (inventories, _) = replay(&[future, opened()]).unwrap().finish(&RULES).unwrap();
        assert_eq!(inventories[0].terms.sale, SaleId(600));
    }

    #[test]
    fn contradictions_are_refused() {
        let bought = |item: u32, user| {
            record(LogEvent::Purchase { item: ItemId(item), user: UserId(user), code: code(item), key: Uuid::nil() })
        };
        let released = |item: u32| {
            let (user, reason) = (UserId(7), ReleaseReason::Expired);
            record(LogEvent::Released { item: ItemId(item), user, code: code(item), reason })
        };
        let sale_of = |items| record(LogEvent::SaleOpened { items, user_limit: 1 });
        let other = sale_of(5);
        for (records, message) in [
            (vec![checkout(0, 1)], "which no record opens"),
            (vec![opened(), checkout(0, 1), checkout(0, 2)], "checked out twice"),
            (vec![opened(), bought(0, 1)], "is bought, but"),
            (vec![opened(), released(0)], "is released, but"),
            (vec![opened(), checkout(9, 1)], "not in the stock"),
            (vec![opened(), other], "but the sale is open as"),
            (vec![sale_of(0)], "a sale of 0 items"),
            (vec![sale_of(u32::MAX)], "a sale of 4294967295 items"),
        ] {
            let error = replay(&records).err().unwrap();
            assert!(error.contains(message), "{error}");
        }
        let error = replay(&[opened(), checkout(0, 1), checkout(1, 1)]).unwrap().finish(&RULES).err().unwrap();
        assert!(error.contains("user 1 has more than 1"), "{error}");
        let taken_over = record(LogEvent::RestoredFromPostgres);
        let lagging = [opened(), taken_over, checkout(0, 1), checkout(1, 1)];
        assert_eq!(
            replay(&lagging).unwrap().finish(&RULES).unwrap().1.held,
            2,
            "a release is missing, so the limit is not checked"
        );
        assert!(replay(&[opened(), checkout(0, 7), released(0), checkout(0, 7), bought(0, 7)]).is_ok());
    }
}
