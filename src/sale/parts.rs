//! The sales that a shard knows, side by side. Each has a [`Part`]:
//!
//! 1. *Prepared*: the part of a sale that opens soon. When the sale opens, the part only takes its place.
//! 2. *Open*: from the opening of the sale to its closing. Only then it grants checkouts. Without a plan, one sale is open
//!    at any time. With a plan, several can be, or none ([`Terms::NONE`] before the first).
//! 3. *Closing*: the sale has closed, and items are still held. A hold can be bought, released and extended until it
//!    ends, as its checkout promised.
//! 4. *Closed*: nothing is held any more. Repeated requests still get their answers.
//! 5. *Forgotten*, after [`Rules::receipts_ms`]. The memory of the part is used again for a later sale.
//!
//! Usually there are two or three parts, so a linear scan from the newest one is the fastest lookup.

use crate::sale::code::{Code, SALES_BACK_MAX};
use crate::sale::command::Outcome;
use crate::sale::effects::EndedShare;
use crate::sale::ids::{ItemId, Moment, SaleId, ShardId, Terms};
use crate::sale::item_state::Hold;
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::rules::Rules;
use crate::sale::sale_schedule::OPEN_MAX;
use crate::sale::stock::Counts;
use std::collections::VecDeque;

/// Number of sale periods that holds may last at most, and receipts as well. So a shard knows at most twice as many ended
/// sales.
pub const ENDED_MAX: u16 = 256;

/// Parts whose memory is allocated at the start. With sales of one hour and receipts for one hour, three parts are in use
/// at once: the open one, a closed one, and the next one.
const SPARE_PARTS: usize = 2;
/// Milliseconds before a sale at which its part is prepared, or half the length of a sale, if that is shorter.
const PREPARATION_MS: u64 = 60_000;

/// The sales whose records the log must keep. Records of other sales are needed only for receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededSales {
    /// The newest sale.
    pub newest: SaleId,
    /// The oldest sale that is open, or the newest one.
    pub oldest_open: SaleId,
    /// The oldest sale that is open or in which an item is held, or the newest one.
    pub oldest_live: SaleId,
    /// The oldest sale whose receipts are needed by the clock, or `oldest_live` if that is older.
    pub oldest_remembered: SaleId,
}

impl NeededSales {
    /// Every sale.
    pub const ALL: NeededSales =
        NeededSales { newest: SaleId(0), oldest_open: SaleId(0), oldest_live: SaleId(0), oldest_remembered: SaleId(0) };
}

/// Returns when the part of a sale is prepared, in milliseconds since the Unix epoch.
fn preparation_due_ms(next: &Terms) -> u64 {
    next.opens_ms.saturating_sub(PREPARATION_MS.min((next.closes_ms - next.opens_ms) / 2))
}

fn latest_close_ms(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.terms.closes_ms).max().unwrap_or(0)
}

/// The sale of a checkout whose client has named none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnnamedSale {
    /// No sale is open.
    None,
    /// The one that is open.
    One(SaleId),
    /// Several are open, so the client must name one.
    Several,
}

/// The parts of all sales that a shard knows.
pub struct Parts {
    id: ShardId,
    partition: Partition,
    /// The part of the sale that has opened last.
    newest: Part,
    /// The other parts, newest first. Those of sales that overlap with the newest one are open.
    earlier: Vec<Part>,
    /// The latest closing time of an earlier sale, in milliseconds since the Unix epoch.
    earlier_close_ms: u64,
    /// The parts of the next sales, in their order.
    prepared: VecDeque<Part>,
    /// Parts without a sale, and those of forgotten sales, whose memory is used again. Their number never exceeds that of
    /// the parts known before, or [`SPARE_PARTS`].
    spare: Vec<Part>,
}

impl Parts {
    /// Creates the parts of shard `id` from those that it knows, oldest first.
    pub fn new(id: ShardId, partition: Partition, mut known: Vec<Part>) -> Self {
        let newest = known.pop().expect("a shard knows at least one sale");
        let earlier: Vec<_> = known.into_iter().rev().collect();
        let earlier_close_ms = latest_close_ms(&earlier);
        let (prepared, spare) = (VecDeque::with_capacity(OPEN_MAX), Vec::new());
        Parts { id, partition, newest, earlier, earlier_close_ms, prepared, spare }
    }

    /// Allocates the memory of the next sales that no buyer has touched, so that no turn does. Call it once, before the
    /// first turn.
    pub fn allocate(&mut self, rules: &Rules) {
        let Some(next) = rules.schedule.next(self.newest.terms.sale) else { return };
        let largest = Terms { items: rules.schedule.items_max(), products: rules.schedule.most_products(), ..next };
        self.spare.extend((0..SPARE_PARTS).map(|_| {
            let mut part = Part::empty(largest, self.partition, self.id);
            part.allocate();
            part
        }));
    }

    /// Returns the part of the sale that has opened last. It may have closed.
    pub fn newest(&self) -> &Part {
        &self.newest
    }

    /// Returns all parts but the prepared ones, newest first.
    #[inline]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Part> {
        std::iter::once(&self.newest).chain(&self.earlier)
    }

    /// Returns all parts but the prepared ones, newest first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        std::iter::once(&mut self.newest).chain(&mut self.earlier)
    }

    /// Returns the part of `sale`, if the shard knows it.
    #[inline]
    pub fn get(&self, sale: SaleId) -> Option<&Part> {
        if self.newest.terms.sale == sale { Some(&self.newest) } else { self.get_earlier(sale) }
    }

    #[cold]
    fn get_earlier(&self, sale: SaleId) -> Option<&Part> {
        self.earlier.iter().find(|part| part.terms.sale == sale)
    }

    /// Returns the part of `sale`, if the shard knows it.
    #[inline]
    pub fn get_mut(&mut self, sale: SaleId) -> Option<&mut Part> {
        if self.newest.terms.sale == sale {
            return Some(&mut self.newest);
        }
        self.earlier.iter_mut().find(|part| part.terms.sale == sale)
    }

    /// Returns the part of `sale`, which is open.
    #[inline]
    pub fn of_open(&mut self, sale: SaleId) -> &mut Part {
        self.get_mut(sale).expect("a shard knows the sales that are open")
    }

    // --- which sales are open ---

    /// Returns the time by which sales close: that of the clock, or the opening of the newest sale if that is later. A
    /// shard whose clock is ahead may have begun that sale, or the clock was set back. So a sale that closes when another
    /// one opens is never open beside it.
    fn closing_time_ms(&self, now: Moment) -> u64 {
        now.unix_ms.max(self.newest.terms.opens_ms)
    }

    /// Returns whether a sale that this shard knows is open.
    #[inline]
    pub fn is_open(&self, sale: SaleId, now: Moment) -> bool {
        if self.newest.terms.sale == sale {
            return !self.newest.terms.has_closed(now.unix_ms);
        }
        let closing_time_ms = self.closing_time_ms(now);
        self.get(sale).is_some_and(|part| !part.terms.has_closed(closing_time_ms))
    }

    /// Returns the terms of the open sales, newest first.
    pub fn open(&self, now: Moment) -> impl Iterator<Item = &Terms> {
        let closing_time_ms = self.closing_time_ms(now);
        self.iter().map(|part| &part.terms).filter(move |terms| !terms.has_closed(closing_time_ms))
    }

    /// Returns whether an earlier sale may be open beside the newest one.
    pub fn overlap(&self) -> bool {
        self.earlier_close_ms > self.newest.terms.opens_ms
    }

    /// Returns the terms of the newest sale, and of those that were open when it opened, oldest first.
    pub fn begun_last(&self) -> impl Iterator<Item = &Terms> {
        let terms = self.iter().rev().map(|part| &part.terms);
        terms.filter(|terms| !terms.has_closed(self.newest.terms.opens_ms))
    }

    /// Returns the sale of a checkout whose client has named none.
    #[inline(always)]
    pub fn unnamed(&self, now: Moment) -> UnnamedSale {
        let has_newest = !self.newest.terms.has_closed(now.unix_ms);
        if has_newest && !self.overlap() {
            return UnnamedSale::One(self.newest.terms.sale);
        }
        self.one_of_several(now)
    }

    #[cold]
    fn one_of_several(&self, now: Moment) -> UnnamedSale {
        let mut open = self.open(now);
        match (open.next(), open.next()) {
            (None, _) => UnnamedSale::None,
            (Some(terms), None) => UnnamedSale::One(terms.sale),
            (Some(_), Some(_)) => UnnamedSale::Several,
        }
    }

    /// Returns the part of the sale to which a code leads, and the item.
    ///
    /// # Errors
    /// The outcome with which the code is refused, if it leads to no item of a known sale.
    pub fn locate(&mut self, code: Code) -> Result<(&mut Part, ItemId), Outcome> {
        let place = code.place().ok_or(Outcome::CodeUnknown)?;
        let newest = self.newest.terms.sale;
        match self.iter_mut().find(|part| place.is_in(part.terms.sale)) {
            Some(part) if place.item.0 < part.terms.items => Ok((part, place.item)),
            Some(_) => Err(Outcome::CodeUnknown),
            None if place.sales_before(newest) <= SALES_BACK_MAX => Err(Outcome::SaleEnded),
            None => Err(Outcome::CodeUnknown),
        }
    }

    // --- from one sale to the next ---

    /// Begins the sale with `terms`, which is newer than all others.
    pub fn begin(&mut self, terms: Terms) {
        // If the clock was set forward, parts of earlier sales may have been prepared, which do not open any more.
        let mut prepared = None;
        while self.prepared.front().is_some_and(|part| part.terms.sale <= terms.sale) {
            self.spare.extend(std::mem::replace(&mut prepared, self.prepared.pop_front()));
        }
        let next = match prepared {
            Some(prepared) => prepared.meant_for(terms),
            None => self.build(terms),
        };
        self.earlier.insert(0, std::mem::replace(&mut self.newest, next));
        self.earlier_close_ms = latest_close_ms(&self.earlier);
    }

    /// Prepares a sale that opens soon, if one is due.
    pub fn prepare(&mut self, rules: &Rules, now: Moment) {
        let next = self.next_to_prepare(rules).filter(|next| preparation_due_ms(next) <= now.unix_ms);
        if let Some(next) = next {
            let part = self.build(next);
            self.prepared.push_back(part);
        }
    }

    /// Returns the largest number of this shard's items that are on sale together, now or when a prepared sale opens. The log
    /// must have room for them before that sale opens, because a segment that is made in its first moments delays the
    /// flushes, and until it is made, checkouts are refused with `log-full`.
    pub fn items_in_rush(&self) -> u64 {
        let items = |part: &Part| part.stock.items() as u64;
        if self.prepared.is_empty() && !self.overlap() {
            return items(&self.newest);
        }
        let is_open = |part: &Part, at_ms| part.terms.opens_ms <= at_ms && !part.terms.has_closed(at_ms);
        let all_open =
            |at_ms| self.iter().chain(&self.prepared).filter(move |part| is_open(part, at_ms)).map(items).sum();
        let openings = self.prepared.iter().chain([&self.newest]).map(|part| part.terms.opens_ms);
        openings.map(all_open).max().unwrap_or(0)
    }

    /// Returns the sale after those that are prepared, unless as many are prepared as can be open at once.
    fn next_to_prepare(&self, rules: &Rules) -> Option<Terms> {
        let last = self.prepared.back().unwrap_or(&self.newest).terms.sale;
        (self.prepared.len() < OPEN_MAX).then(|| rules.schedule.next(last)).flatten()
    }

    /// Builds the part of the sale with `terms`, in the memory of a forgotten sale if there is one.
    fn build(&mut self, terms: Terms) -> Part {
        let mut part = self.spare.pop().unwrap_or_else(|| Part::empty(terms, self.partition, self.id));
        part.reuse(terms);
        part
    }

    /// Returns the time from `now` until an open sale closes, the next one opens or, before that, a part is due, in
    /// milliseconds of Unix time. Returns `None` if none of these follows.
    pub fn time_to_next_sale_ms(&self, rules: &Rules, now: Moment) -> Option<u64> {
        let closes_ms = self.iter().map(|part| part.terms.closes_ms).filter(|closes_ms| *closes_ms > now.unix_ms);
        let opens_ms = rules.schedule.next(self.newest.terms.sale).map(|next| next.opens_ms);
        let due_ms = self.next_to_prepare(rules).map(|next| preparation_due_ms(&next));
        closes_ms.chain(opens_ms).chain(due_ms).min().map(|due_ms| due_ms.saturating_sub(now.unix_ms))
    }

    /// Returns the results of the sales that have closed and in which nothing is held any more, each once.
    pub fn close(&mut self, now: Moment) -> impl Iterator<Item = EndedShare> {
        let closing_time_ms = self.closing_time_ms(now);
        let over = self.iter_mut().filter(move |part| part.terms.has_closed(closing_time_ms));
        let closed = over.filter(|part| !part.is_reported && !part.is_live());
        closed.map(|part| {
            part.is_reported = true;
            let (sold, items) = (part.stock.counts().sold, part.stock.items() as u32);
            EndedShare { sale: part.terms.sale, sold, items }
        })
    }

    /// Forgets the closed sales whose receipts are not needed any more.
    pub fn forget(&mut self, rules: &Rules, now: Moment) {
        let is_over = |part: &mut Part| !part.is_live() && now.unix_ms >= part.forgotten_at_ms(rules);
        self.spare.extend(self.earlier.extract_if(.., is_over));
    }

    /// Returns the sales whose records the log must keep. A sale that overlaps with the newest one opens again if the clock
    /// is set back.
    pub fn needed(&self) -> NeededSales {
        let is_open = |part: &Part| !part.terms.has_closed(self.newest.terms.opens_ms);
        let oldest = |is_needed: &dyn Fn(&Part) -> bool| {
            let found = self.earlier.iter().rev().find(|part| is_needed(part));
            found.unwrap_or(&self.newest).terms.sale
        };
        NeededSales {
            newest: self.newest.terms.sale,
            oldest_open: oldest(&is_open),
            oldest_live: oldest(&|part| is_open(part) || part.is_live()),
            oldest_remembered: oldest(&|_| true),
        }
    }

    /// Frees an item whose hold has ended by `now_ms` (monotonic). Returns its sale, its slot and the hold.
    pub fn expire(&mut self, now_ms: u64) -> Option<(SaleId, usize, Hold)> {
        self.iter_mut().find_map(|part| {
            let (slot, hold) = part.stock.expire(now_ms)?;
            Some((part.terms.sale, slot, hold))
        })
    }

    /// Returns when the next hold ends, in monotonic milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.iter().filter_map(|part| part.stock.next_expiry_ms()).min()
    }

    /// Returns how many items of all sales are claimed, and how many are held.
    #[inline]
    pub fn claiming_and_held(&self) -> (u64, u64) {
        let (mut claims, mut holds) = (0, 0);
        for part in self.iter() {
            let Counts { claiming, held, .. } = part.stock.counts();
            claims += u64::from(claiming);
            holds += u64::from(held);
        }
        (claims, holds)
    }
}
