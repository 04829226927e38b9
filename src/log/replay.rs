//! Replay: turns records back into the state of the sales, by the same rules in `sale` that the live server applies.
//!
//! - Streams must be replayed in the order of epochs. Within an epoch, any order is correct, because all records of one
//!   item in one epoch are in one stream.
//! - A sale is kept as long as the live server remembers it, or as long as one of its holds may last. Records of earlier
//!   sales are ignored.
//! - A record that contradicts the rules shows that a record before it is missing.

use crate::log::block::{StreamId, StreamKey};
use crate::log::opened_sales::{Contradiction, OpenedSales};
use crate::sale::checkout_key::short;
use crate::sale::code::ITEMS_MAX;
use crate::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Terms};
use crate::sale::item_state::{Cancellation, Confirmation, Extension, Hold};
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::product_ranges::ProductRanges;
use crate::sale::record::{LogEvent, Record};
use crate::sale::rules::Rules;
use crate::sale::shard::Inventory;
use crate::sale::stock::{Counts, Stock};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds for which a shard may still grant checkouts in flight after the end of their sale, while an upgrade
/// pauses it: more than the longest pause.
const LATE_GRANTS_MS: u64 = 60_000;

/// Replay that is in progress.
pub struct Replay {
    partition: Partition,
    rules: Rules,
    /// Milliseconds after its end for which a sale may be needed.
    needed_ms: u64,
    now: Moment,
    /// The sales that have opened, also those that are over.
    opened: OpenedSales,
    /// The newest sale so far, if it is over. It is kept until a newer one has opened.
    newest_over: Option<SaleId>,
    /// The sales replayed, each with its part of every shard.
    sales: BTreeMap<SaleId, Vec<Part>>,
    /// Sales that were taken over from Postgres. A release may be missing there, so a user may exceed the limit.
    taken_over: BTreeSet<SaleId>,
    /// The first contradiction in each sale.
    contradictions: BTreeMap<SaleId, String>,
    /// Retention may have removed records of the sales before this one.
    complete_from: SaleId,
    /// The stream that is read.
    reading: Option<(StreamKey, StreamProgress)>,
    /// The streams that were read before. An upgrade reads each stream in several parts.
    read_before: BTreeMap<StreamKey, StreamProgress>,
}

/// How far a stream was replayed.
#[derive(Clone, Copy, Default)]
struct StreamProgress {
    /// Number of the last record.
    last: Seq,
    /// Records before it are missing, and no record since has opened a sale.
    lacks_records: bool,
}

/// Sold and held items of the sales that continue after a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayedItems {
    /// Number of items sold.
    pub sold: u32,
    /// Number of items held.
    pub held: u32,
    /// Number of items held in ended sales.
    pub held_in_ended: u32,
}

impl Replay {
    /// Creates a replay without records. `partition` and `rules` are those of the new run; earlier runs may have had
    /// others. No earlier run has granted holds of more than `longest_hold_ms`, with their extension. Sales without a plan
    /// last `period_s` seconds; 0 if there were none.
    pub fn new(partition: Partition, rules: Rules, (longest_hold_ms, period_s): (u64, u32), now: Moment) -> Self {
        assert!(now.monotonic_ms > 0, "replay confirms at time zero, which must be before the end of every hold");
        Replay {
            partition,
            rules,
            needed_ms: rules.receipts_ms + longest_hold_ms + LATE_GRANTS_MS,
            now,
            opened: OpenedSales::new(rules.schedule, period_s, longest_hold_ms),
            newest_over: None,
            sales: BTreeMap::new(),
            taken_over: BTreeSet::new(),
            contradictions: BTreeMap::new(),
            complete_from: SaleId(0),
            reading: None,
            read_before: BTreeMap::new(),
        }
    }

    /// Sets the current time, up to which the records that follow may have been recorded.
    pub fn at(&mut self, now: Moment) {
        self.now = now;
    }

    /// Returns the current time as it was last set.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Returns the number of held items of each shard, in all sales.
    pub fn held(&self) -> Vec<u32> {
        let of = |shard: u16| self.sales.values().map(|parts| parts[usize::from(shard)].stock.counts().held).sum();
        (0..self.partition.shards()).map(of).collect()
    }

    /// Replays one record of a stream. If the record contradicts those before it, the contradiction is noted and replay
    /// continues: retention may have removed the beginning of an ended sale, and only [`Replay::finish`] knows which
    /// sales continue.
    pub fn add(&mut self, stream: &StreamId, seq: Seq, record: &Record) {
        self.note_missing(stream.key(), seq, record);
        if let Err(flaw) = self.record(record) {
            let place = format!("record {seq} of {stream}, sale {}", record.sale.0);
            self.contradictions.entry(record.sale).or_insert(format!("{place}: {flaw}"));
        }
    }

    /// Notes which sales may lack records, if records of this stream are missing, because retention has removed them or
    /// because they were damaged and not needed: all sales before the first one that the rest of the stream opens.
    fn note_missing(&mut self, key: StreamKey, seq: Seq, record: &Record) {
        let progress = match self.reading {
            Some((reading, progress)) if reading == key => progress,
            other => {
                self.read_before.extend(other);
                self.read_before.get(&key).copied().unwrap_or_default()
            }
        };
        let lacks_records = progress.lacks_records || seq > progress.last + 1;
        let opens = matches!(record.event, LogEvent::SaleOpened { .. });
        if lacks_records {
            let complete = if opens { record.sale } else { SaleId(record.sale.0.saturating_add(1)) };
            self.complete_from = self.complete_from.max(complete);
        }
        self.reading = Some((key, StreamProgress { last: seq, lacks_records: lacks_records && !opens }));
    }

    /// Replays one record.
    ///
    /// # Errors
    /// A description, if the record contradicts those before it.
    pub fn record(&mut self, record: &Record) -> Result<(), String> {
        if let LogEvent::SaleOpened { items, user_limit, times, products } = record.event {
            let products = ProductRanges::known_by(products);
            let opened = Terms { sale: record.sale, items, user_limit, products, ..Terms::NONE };
            let terms = self.opened.note(opened, times, self.now.unix_ms)?;
            return self.open(terms);
        }
        if self.sales.contains_key(&record.sale) {
            return self.apply(record);
        }
        let is_over = self.opened.end_ms(record.sale).map(|end_ms| self.is_past(end_ms));
        let is_old = is_over.unwrap_or_else(|| self.is_over(record.sale))
            || self.sale().is_some_and(|newest| record.sale < newest);
        if is_old { Ok(()) } else { Err(format!("it belongs to sale {}, which no record opens", record.sale.0)) }
    }

    /// Returns whether no hold of this sale and of all sales before can be live any more, and their receipts are not
    /// needed. Their records are ignored.
    pub fn is_over(&self, sale: SaleId) -> bool {
        self.is_past(self.opened.all_ended_ms(sale)) && !self.is_newest(sale)
    }

    /// Returns whether nothing of sales that have closed by `end_ms` is needed any more.
    fn is_past(&self, end_ms: u64) -> bool {
        end_ms.saturating_add(self.needed_ms) <= self.now.unix_ms
    }

    /// Returns whether no newer sale has opened. Of a plan, the newest sale is remembered until the next one opens.
    fn is_newest(&self, sale: SaleId) -> bool {
        let due = self.rules.schedule.latest(self.now.unix_ms).map(|newest| newest.sale);
        due.max(self.opened.newest()) <= Some(sale)
    }

    /// Returns whether this sale and all sales before it have closed: by the clock, or because a sale has opened since then.
    pub fn have_closed(&self, until: SaleId) -> bool {
        let newest_opens_ms = self.sales.last_key_value().map_or(0, |(_, parts)| parts[0].terms.opens_ms);
        match self.opened.known_end_ms(until) {
            Some(end_ms) => end_ms <= self.now.unix_ms.max(newest_opens_ms),
            // Neither the log nor the plan has any of these sales. A plan that lacks an open sale is refused.
            None => !self.is_newest(until),
        }
    }

    /// Returns a contradiction between the schedule and the sales that have opened, if there is one.
    pub fn contradiction(&self) -> Option<Contradiction> {
        self.opened.contradiction(self.now.unix_ms)
    }

    fn open(&mut self, terms: Terms) -> Result<(), String> {
        if let Some(current) = self.sales.get(&terms.sale).map(|parts| parts[0].terms) {
            let same = terms == current;
            return if same { Ok(()) } else { Err(format!("it opens {terms:?}, but the sale is open as {current:?}")) };
        }
        let is_past = self.opened.end_ms(terms.sale).is_some_and(|end_ms| self.is_past(end_ms));
        if is_past && !self.is_newest(terms.sale) {
            return Ok(());
        }
        if let Some(older) = self.newest_over.filter(|older| *older < terms.sale) {
            self.sales.remove(&older);
            self.newest_over = None;
        }
        if is_past {
            self.newest_over = Some(terms.sale);
        }
        if !(1..=ITEMS_MAX).contains(&terms.items) {
            return Err(format!("it opens a sale of {} items", terms.items));
        }
        self.sales.insert(terms.sale, self.fresh(terms));
        Ok(())
    }

    /// Begins the sales that have opened by the clock since the newest one of the log. Returns the terms of the newest sale.
    fn begin_due(&mut self) -> Terms {
        let latest = self.rules.schedule.latest(self.now.unix_ms).unwrap_or(Terms::NONE);
        let known = self.sales.last_key_value().map(|(_, parts)| parts[0].terms);
        if let Some(known) = known.filter(|known| known.sale >= latest.sale) {
            return known;
        }
        for terms in self.rules.schedule.open_with(latest, known.map_or(SaleId(0), |known| known.sale)) {
            self.sales.insert(terms.sale, self.fresh(terms));
        }
        latest
    }

    fn fresh(&self, terms: Terms) -> Vec<Part> {
        (0..self.partition.shards()).map(|shard| Part::new(terms, self.partition, ShardId(shard))).collect()
    }

    fn apply(&mut self, record: &Record) -> Result<(), String> {
        let (sale, now) = (record.sale, self.now);
        match record.event {
            LogEvent::Checkout { item, user, code, ttl_ms, key } => {
                if code.place().is_none_or(|place| !place.is_in(sale) || place.item != item) {
                    return Err(format!("the code of item {} is not one of this item and sale", item.0));
                }
                // Use wall-clock time, because the monotonic clock starts again with the machine. Limit the rest to the
                // TTL, because the wall clock may have been set back.
                let ends_unix_ms = record.unix_ms.saturating_add(u64::from(ttl_ms));
                let left_ms = ends_unix_ms.saturating_sub(now.unix_ms).min(u64::from(ttl_ms));
                let expires_ms = now.monotonic_ms + left_ms;
                let (stock, slot) = self.place(sale, item)?;
                stock.reserve(slot, user, key).map_err(|_| format!("item {} is checked out twice", item.0))?;
                stock.grant(slot, Hold { user, code, expires_ms, expires_unix_ms: ends_unix_ms });
                let part = self.part(sale, self.partition.owner_of_user(user));
                part.quotas.restore(user);
                part.any_keys.note(user, short(key), item);
                Ok(())
            }
            LogEvent::Extended { item, code, by_ms, .. } => {
                let (stock, slot) = self.place(sale, item)?;
                match stock.extend(slot, code, by_ms, 0) {
                    Extension::Extended(hold) => {
                        // The rest of the hold was computed without the extension, and may have been limited to 0.
                        let left_ms = hold.expires_unix_ms.saturating_sub(now.unix_ms);
                        stock.set_expiry(slot, hold.expires_ms.min(now.monotonic_ms + left_ms));
                        Ok(())
                    }
                    other => Err(format!("item {} is extended, but the state of its code is {other:?}", item.0)),
                }
            }
            LogEvent::Purchase { item, code, key, .. } => {
                let (stock, slot) = self.place(sale, item)?;
                match stock.confirm(slot, code, key, 0) {
                    Confirmation::Bought(_) => {
                        stock.sell(slot);
                        let part = self.part(sale, self.partition.owner_of_item(item));
                        part.last_purchase_ms = part.last_purchase_ms.max(record.unix_ms);
                        Ok(())
                    }
                    other => Err(format!("item {} is bought, but the state of its code is {other:?}", item.0)),
                }
            }
            LogEvent::Released { item, code, reason, .. } => {
                let (stock, slot) = self.place(sale, item)?;
                match stock.release(slot, code, reason, 0) {
                    Cancellation::Released(Hold { user, .. }) => {
                        let key = stock.checkout_key(slot);
                        let part = self.part(sale, self.partition.owner_of_user(user));
                        part.quotas.release(user);
                        part.any_keys.forget(user, key, item);
                        Ok(())
                    }
                    other => Err(format!("item {} is released, but the state of its code is {other:?}", item.0)),
                }
            }
            LogEvent::RestoredFromPostgres => {
                self.taken_over.insert(sale);
                Ok(())
            }
            LogEvent::SaleOpened { .. } | LogEvent::Refused { .. } => Ok(()),
        }
    }

    fn part(&mut self, sale: SaleId, owner: ShardId) -> &mut Part {
        &mut self.sales.get_mut(&sale).expect("records are applied to an open sale")[usize::from(owner.0)]
    }

    fn place(&mut self, sale: SaleId, item: ItemId) -> Result<(&mut Stock, usize), String> {
        let slot = self.partition.slot_of(item);
        let part = self.part(sale, self.partition.owner_of_item(item));
        if item.0 >= part.terms.items {
            return Err(format!("item {} is not in the stock of {} items", item.0, part.terms.items));
        }
        Ok((&mut part.stock, slot))
    }

    /// Returns the newest sale replayed, if any.
    pub fn sale(&self) -> Option<SaleId> {
        self.sales.last_key_value().map(|(sale, _)| *sale)
    }

    /// Returns the initial state of each shard: the replayed sales, and those that have opened since by the clock. An ended sale in which no item is held is forgotten if its receipts are not needed, or if records of it are
    /// missing: a shorter `--receipts` of an earlier run may have removed them.
    ///
    /// # Errors
    /// A description, if a user of a sale that is not forgotten exceeds the limit, or if a record of that sale or a newer
    /// one contradicts those before it.
    pub fn finish(mut self) -> Result<(Vec<Inventory>, ReplayedItems), String> {
        let newest = self.begin_due();
        let (rules, now, complete_from, flaws) = (self.rules, self.now, self.complete_from, &self.contradictions);
        self.sales.retain(|&sale, parts| {
            let is_live = parts.iter().any(Part::is_live);
            // The result of a sale that has closed was reported by an earlier run.
            let has_closed = parts[0].terms.has_closed(now.unix_ms.max(newest.opens_ms));
            parts.iter_mut().for_each(|part| part.is_reported = has_closed && !is_live);
            let is_due = |part: &Part| now.unix_ms < part.forgotten_at_ms(&rules);
            let has_receipts = parts.iter().any(is_due) && !flaws.contains_key(&sale);
            // Retention removes no record of a sale in which an item is held on any shard.
            sale == newest.sale || sale >= complete_from && (!has_closed || is_live || has_receipts)
        });
        let is_known = |sale: SaleId| sale > newest.sale || self.sales.contains_key(&sale);
        if let Some((_, text)) = self.contradictions.iter().find(|(sale, _)| is_known(**sale)) {
            return Err(text.clone());
        }
        let mut found = ReplayedItems::default();
        for (sale, part) in self.sales.iter().flat_map(|(sale, parts)| parts.iter().map(move |part| (*sale, part))) {
            if let Some(user) = part.quotas.over_limit().filter(|_| !self.taken_over.contains(&sale)) {
                let limit = part.terms.user_limit;
                return Err(format!("user {} has more than {limit} items of sale {}", user.0, sale.0));
            }
            let Counts { sold, held, .. } = part.stock.counts();
            if !part.terms.has_closed(now.unix_ms.max(newest.opens_ms)) {
                found.sold += sold;
                found.held += held;
            } else {
                found.held_in_ended += held;
            }
        }
        let mut inventories: Vec<_> =
            (0..self.partition.shards()).map(|_| Inventory { parts: Vec::with_capacity(self.sales.len()) }).collect();
        for parts in self.sales.into_values() {
            inventories.iter_mut().zip(parts).for_each(|(inventory, part)| inventory.parts.push(part));
        }
        Ok((inventories, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::LogKind;
    use crate::sale::code::{Code, CodeGenerator};
    use crate::sale::ids::UserId;
    use crate::sale::record::{ReleaseReason, SaleTimes};
    use crate::sale::rules::Ack;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};
    use uuid::Uuid;

    const NOW: Moment = Moment { monotonic_ms: 1_000, unix_ms: 3_600_000 * 500 };
    const SALES: PeriodicSale = PeriodicSale { period_s: 3600, items: 4, user_limit: 1, ttl_ms: 100, extension_ms: 0 };
    const RULES: Rules = Rules { schedule: SaleSchedule::Periodic(SALES), receipts_ms: 3_600_000, ack: Ack::Local };

    fn record(event: LogEvent) -> Record {
        Record { sale: SaleId(500), unix_ms: NOW.unix_ms - 40, event }
    }

    fn opened() -> Record {
        record(LogEvent::SaleOpened { items: 4, user_limit: 1, times: None, products: Terms::NO_PRODUCTS })
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
        CodeGenerator::new([item as u8; 32]).mint(SaleId(500), ItemId(item))
    }

    fn replay(records: &[Record]) -> Result<Replay, String> {
        let mut replay = Replay::new(Partition::new(2), RULES, (0, 0), NOW);
        records.iter().try_for_each(|record| replay.record(record))?;
        Ok(replay)
    }

    #[test]
    fn holds_keep_their_end() {
        let (inventories, found) = replay(&[opened(), checkout(1, 7)]).unwrap().finish().unwrap();
        assert_eq!(found, ReplayedItems { sold: 0, held: 1, held_in_ended: 0 });
        assert_eq!(inventories[1].newest().stock.next_expiry_ms(), Some(1_060));
    }

    /// A hold that is granted while the log is being read keeps its whole time.
    #[test]
    fn holds_that_are_younger_than_the_replay_keep_their_end() {
        let mut replay =
            Replay::new(Partition::new(2), RULES, (0, 0), Moment { monotonic_ms: 400, unix_ms: NOW.unix_ms - 600 });
        replay.record(&opened()).unwrap();
        replay.at(NOW);
        replay.record(&checkout(1, 7)).unwrap();
        assert_eq!(replay.held(), [0, 1]);
        let (inventories, _) = replay.finish().unwrap();
        assert_eq!(inventories[1].newest().stock.next_expiry_ms(), Some(1_060));
    }

    #[test]
    fn a_sale_that_is_over_is_not_taken_over() {
        let mut old = opened();
        old.sale = SaleId(498);
        let (inventories, found) = replay(&[old]).unwrap().finish().unwrap();
        assert_eq!((inventories[0].newest().terms, found), (SALES.terms(SaleId(500)), ReplayedItems::default()));
        assert_eq!(inventories[0].parts.len(), 1);
    }

    /// Retention has removed the stream of the run that granted a hold, and not that of the run that sold the item.
    #[test]
    fn a_closed_sale_that_lost_a_stream_is_forgotten() {
        let of = |sale, record: Record| Record { sale: SaleId(sale), ..record };
        let code = CodeGenerator::new([1; 32]).mint(SaleId(499), ItemId(1));
        let bought = record(LogEvent::Purchase { item: ItemId(1), user: UserId(7), code, key: Uuid::nil() });
        let stream = StreamId { cluster: Uuid::nil(), epoch: 2, shard: 0, log: LogKind::Purchases };
        let mut replay = Replay::new(Partition::new(2), RULES, (0, 0), NOW);
        (1..).zip([of(499, opened()), of(499, bought), opened()]).for_each(|(seq, record)| {
            replay.add(&stream, seq, &record);
        });
        let (inventories, _) = replay.finish().unwrap();
        assert_eq!(inventories[0].parts.len(), 1, "only the open sale is known");
    }

    /// Damage that nobody needs, or a file that retention removes during an upgrade, leaves a gap.
    #[test]
    fn an_ended_sale_with_a_gap_in_its_records_is_forgotten() {
        let stream = StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log: LogKind::Purchases };
        let old = Record { sale: SaleId(499), ..opened() };
        for (seq, known) in [(2, 2), (3, 1)] {
            let mut replay = Replay::new(Partition::new(2), RULES, (0, 0), NOW);
            [(1, old), (seq, opened())].iter().for_each(|(seq, record)| replay.add(&stream, *seq, record));
            assert_eq!(replay.finish().unwrap().0[0].parts.len(), known, "record {seq}");
        }
    }

    /// An upgrade reads the rest of a stream after the beginning of others.
    #[test]
    fn a_stream_that_is_read_in_parts_has_its_beginning() {
        let stream = |shard| StreamId { cluster: Uuid::nil(), epoch: 1, shard, log: LogKind::Purchases };
        let old = Record { sale: SaleId(499), ..opened() };
        let mut replay = Replay::new(Partition::new(2), RULES, (0, 0), NOW);
        for (shard, seq, record) in
            [(0, 1, old), (1, 1, old), (0, 2, opened()), (1, 2, opened()), (0, 3, checkout(0, 1))]
        {
            replay.add(&stream(shard), seq, &record);
        }
        assert_eq!(replay.finish().unwrap().0[0].parts.len(), 2, "the ended sale is still known");
    }

    /// An earlier run has reported the results of closed sales, and no run that of the open one.
    #[test]
    fn the_result_of_the_open_sale_is_still_to_be_reported() {
        let old = Record { sale: SaleId(499), ..opened() };
        for records in [vec![], vec![opened()], vec![old, opened()]] {
            let (inventories, _) = replay(&records).unwrap().finish().unwrap();
            let reported: Vec<_> = inventories[0].parts.iter().map(|part| part.is_reported).collect();
            assert_eq!(reported, [&[true][..], &[false]].concat()[2 - reported.len()..], "{records:?}");
        }
    }

    #[test]
    fn the_sale_never_goes_backwards() {
        let mut future = opened();
        future.sale = SaleId(600);
        let (inventories, _) = replay(&[future, opened()]).unwrap().finish().unwrap();
        assert_eq!(inventories[0].newest().terms.sale, SaleId(600));
    }

    #[test]
    fn a_sale_is_not_over_because_another_one_has_opened() {
        let open = |sale: u32, opens_ms, closes_ms| {
            let times = Some(SaleTimes { opens_ms, closes_ms });
            let event = LogEvent::SaleOpened { items: 4, user_limit: 1, times, products: Terms::NO_PRODUCTS };
            Record { sale: SaleId(sale), ..record(event) }
        };
        let now_ms = NOW.unix_ms;
        let rules = Rules { schedule: SaleSchedule::Planned(&[]), ..RULES };
        let mut replay = Replay::new(Partition::new(2), rules, (0, 0), NOW);
        for record in [open(2, 100, now_ms), open(3, 200, now_ms + 9), open(4, 300, now_ms + 1)] {
            replay.record(&record).unwrap();
        }
        assert_eq!([1, 2, 3, 4].map(|sale| replay.have_closed(SaleId(sale))), [true, true, false, false]);
        replay.at(Moment { unix_ms: now_ms - 1, ..NOW });
        assert!(!replay.have_closed(SaleId(2)), "the clock was set back");
        replay.record(&open(5, now_ms + 5, now_ms + 7)).unwrap();
        assert_eq!([2, 3, 4].map(|sale| replay.have_closed(SaleId(sale))), [true, false, false]);
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
        let (times, products) = (None, Terms::NO_PRODUCTS);
        let sale_of = |items| record(LogEvent::SaleOpened { items, user_limit: 1, times, products });
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
        let error = replay(&[opened(), checkout(0, 1), checkout(1, 1)]).unwrap().finish().err().unwrap();
        assert!(error.contains("user 1 has more than 1"), "{error}");
        let taken_over = record(LogEvent::RestoredFromPostgres);
        let lagging = [opened(), taken_over, checkout(0, 1), checkout(1, 1)];
        assert_eq!(
            replay(&lagging).unwrap().finish().unwrap().1.held,
            2,
            "a release is missing, so the limit is not checked"
        );
        assert!(replay(&[opened(), checkout(0, 7), released(0), checkout(0, 7), bought(0, 7)]).is_ok());
    }
}
