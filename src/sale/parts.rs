//! The sales that a shard knows, side by side. Each has a [`Part`]:
//!
//! 1. *Prepared*: the part of the next sale, built ahead in slices, because memory for millions of items takes longer
//!    to fill than a turn may last.
//! 2. *Open*: the newest sale, until it closes. Only this one grants checkouts. With a plan, it can close before the next
//!    one opens, and there may be none yet ([`Terms::NONE`]).
//! 3. *Closing*: the sale has ended, and items are still held. A hold can be bought, released and extended until it
//!    ends, as its checkout promised.
//! 4. *Closed*: nothing is held any more. Repeated requests still get their answers.
//! 5. *Forgotten*, after [`Rules::receipts_ms`]. The memory of the part is used again for the next sale.
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
use crate::sale::stock::Counts;

/// Number of sale periods that holds may last at most, and receipts as well. So a shard knows at most twice as many ended
/// sales.
pub const ENDED_MAX: u16 = 256;

/// Items that one turn builds of the next sale: 256 KiB, which take less than 0.1 ms.
const SLICE_ITEMS: usize = 4096;
/// Parts whose memory is allocated at the start. With sales of one hour and receipts for one hour, three parts are in use
/// at once: the open one, a closed one, and the next one.
const SPARE_PARTS: usize = 2;
/// Milliseconds before a sale at which its part begins to be built, or half the length of a sale, if that is shorter.
const PREPARATION_MS: u64 = 60_000;

/// The sales whose records the log must keep. Records of other sales are needed only for receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededSales {
    /// The open sale.
    pub open: SaleId,
    /// The oldest sale in which an item is held, or the open one.
    pub oldest_live: SaleId,
    /// The oldest sale whose receipts are needed by the clock, or `oldest_live` if that is older.
    pub oldest_remembered: SaleId,
}

impl NeededSales {
    /// Every sale.
    pub const ALL: NeededSales = NeededSales { open: SaleId(0), oldest_live: SaleId(0), oldest_remembered: SaleId(0) };
}

/// Returns when the part of a sale begins to be built, in milliseconds since the Unix epoch.
fn preparation_due_ms(next: &Terms) -> u64 {
    next.opens_ms.saturating_sub(PREPARATION_MS.min((next.closes_ms - next.opens_ms) / 2))
}

/// The parts of all sales that a shard knows.
pub struct Parts {
    id: ShardId,
    partition: Partition,
    open: Part,
    /// Parts of ended sales, newest first.
    ended: Vec<Part>,
    /// The part of the next sale, while it is built and when it is ready.
    prepared: Option<Part>,
    is_ready: bool,
    /// Parts without a sale, and those of forgotten sales, whose memory is used again. Their number never exceeds that of
    /// the parts known before, or [`SPARE_PARTS`].
    spare: Vec<Part>,
}

impl Parts {
    /// Creates the parts of shard `id` from those that it knows, oldest first. The last one is open.
    pub fn new(id: ShardId, partition: Partition, mut known: Vec<Part>) -> Self {
        let open = known.pop().expect("a shard knows at least one sale");
        let ended = known.into_iter().rev().collect();
        Parts { id, partition, open, ended, prepared: None, is_ready: false, spare: Vec::new() }
    }

    /// Allocates the memory of the next sales, so that no turn does. Call it once, before the first turn.
    pub fn allocate(&mut self, rules: &Rules) {
        let Some(next) = rules.schedule.next(self.open.terms.sale) else { return };
        let largest = Terms { items: rules.schedule.items_max(), ..next };
        self.spare.extend((0..SPARE_PARTS).map(|_| {
            let mut part = Part::empty(largest, self.partition);
            part.allocate(self.partition.owned_items(self.id, largest.items));
            part
        }));
    }

    /// Returns the part of the open sale.
    pub fn open(&self) -> &Part {
        &self.open
    }

    /// Returns the part of the open sale.
    pub fn open_mut(&mut self) -> &mut Part {
        &mut self.open
    }

    /// Returns all parts but the prepared one, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.open).chain(&self.ended)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        std::iter::once(&mut self.open).chain(&mut self.ended)
    }

    /// Returns the parts of ended sales, newest first.
    pub fn ended_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        self.ended.iter_mut()
    }

    /// Returns the part of `sale`, if the shard knows it.
    pub fn get(&self, sale: SaleId) -> Option<&Part> {
        self.iter().find(|part| part.terms.sale == sale)
    }

    /// Returns the part of `sale`, if the shard knows it.
    pub fn get_mut(&mut self, sale: SaleId) -> Option<&mut Part> {
        if self.open.terms.sale == sale {
            return Some(&mut self.open);
        }
        self.ended.iter_mut().find(|part| part.terms.sale == sale)
    }

    /// Returns the part of the sale to which a code leads, and the item.
    ///
    /// # Errors
    /// The outcome with which the code is refused, if it leads to no item of a known sale.
    pub fn locate(&mut self, code: Code) -> Result<(&mut Part, ItemId), Outcome> {
        let place = code.place().ok_or(Outcome::CodeUnknown)?;
        let open = self.open.terms.sale;
        match self.iter_mut().find(|part| place.is_in(part.terms.sale)) {
            Some(part) if place.item.0 < part.terms.items => Ok((part, place.item)),
            Some(_) => Err(Outcome::CodeUnknown),
            None if place.sales_before(open) <= SALES_BACK_MAX => Err(Outcome::SaleEnded),
            None => Err(Outcome::CodeUnknown),
        }
    }

    /// Begins the sale with `terms`, which is newer than all others.
    pub fn begin(&mut self, terms: Terms) {
        let mut next = match self.prepared.take() {
            Some(prepared) => prepared.meant_for(terms),
            None => self.start_to_build(terms),
        };
        // Nothing is left to do if the sale was prepared in time.
        next.build(self.partition.owned_items(self.id, terms.items), usize::MAX);
        self.is_ready = false;
        self.ended.insert(0, std::mem::replace(&mut self.open, next));
    }

    /// Builds a slice of the next sale, if it is due. Returns whether another slice is due.
    pub fn prepare(&mut self, rules: &Rules, now: Moment) -> bool {
        let Some(next) = rules.schedule.next(self.open.terms.sale) else { return false };
        if self.is_ready || now.unix_ms < preparation_due_ms(&next) {
            return false;
        }
        let mut part = self.prepared.take().unwrap_or_else(|| self.start_to_build(next));
        self.is_ready = part.build(self.partition.owned_items(self.id, next.items), SLICE_ITEMS);
        self.prepared = Some(part);
        !self.is_ready
    }

    /// Returns a part without items for the sale with `terms`, in the memory of a forgotten sale if there is one.
    fn start_to_build(&mut self, terms: Terms) -> Part {
        let mut part = self.spare.pop().unwrap_or_else(|| Part::empty(terms, self.partition));
        part.reuse(terms);
        part
    }

    /// Returns the time from `now` until the open sale closes, the next one begins or, before that, its part must be built,
    /// in milliseconds of Unix time. Returns `None` if none of these follows.
    pub fn time_to_next_sale_ms(&self, rules: &Rules, now: Moment) -> Option<u64> {
        let closes_ms = Some(self.open.terms.closes_ms).filter(|closes_ms| *closes_ms > now.unix_ms);
        let next = rules.schedule.next(self.open.terms.sale);
        let due_ms = next.map(|next| if self.is_ready { next.opens_ms } else { preparation_due_ms(&next) });
        closes_ms.into_iter().chain(due_ms).min().map(|due_ms| due_ms.saturating_sub(now.unix_ms))
    }

    /// Returns the results of the sales that have closed and in which nothing is held any more, each once.
    pub fn close(&mut self, now: Moment) -> impl Iterator<Item = EndedShare> {
        let newest = Some(&mut self.open).filter(|part| part.terms.has_closed(now.unix_ms));
        let over = newest.into_iter().chain(&mut self.ended);
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
        while let Some(oldest) = self.ended.pop_if(is_over) {
            self.spare.push(oldest);
        }
    }

    /// Returns the sales whose records the log must keep.
    pub fn needed(&self, rules: &Rules, now: Moment) -> NeededSales {
        let oldest_live = self.ended.iter().rev().find(|part| part.is_live()).unwrap_or(&self.open).terms.sale;
        let receipts_since = rules.schedule.latest(now.unix_ms.saturating_sub(rules.receipts_ms));
        let oldest_remembered = oldest_live.min(receipts_since.map_or(SaleId(0), |terms| terms.sale));
        NeededSales { open: self.open.terms.sale, oldest_live, oldest_remembered }
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
    pub fn claiming_and_held(&self) -> (u64, u64) {
        let Counts { claiming, held, .. } = self.open.stock.counts();
        let (mut claims, mut holds) = (u64::from(claiming), u64::from(held));
        for part in &self.ended {
            let Counts { claiming, held, .. } = part.stock.counts();
            claims += u64::from(claiming);
            holds += u64::from(held);
        }
        (claims, holds)
    }
}
