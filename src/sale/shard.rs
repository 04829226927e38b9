//! One shard's state machine: the two-owner protocol around the rules of `sale.rs`.
//!
//! A shard plays three roles. As *origin* it takes a client's command and asks the owners. As *item owner* it
//! decides over its items and writes what it decided to its log. As *user owner* it counts what each of its
//! users holds and has bought. Messages to itself are applied at once.
//!
//! `apply(event, now, effects)` never awaits, reads no clock, touches no file or socket. What must be durable
//! before anyone hears of it waits in `waiting` until the log reports it flushed, or Postgres has it:
//! an answer to a buyer, and also the return of a quota, because another shard may log a grant that rests on it.

use crate::sale::code::{Code, CodeGenerator, CodeSpace, Destination};
use crate::sale::command::{Command, Outcome};
use crate::sale::deferred::{Deferred, Waiter, Waiting, Watermark};
use crate::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Terms, Ticket, UserId};
use crate::sale::message::{Reply, Request};
use crate::sale::partition::Partition;
use crate::sale::quotas::Quotas;
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::stock::{Availability, Cancellation, Confirmation, Counts, Hold, ItemState, Stock, Unavailable};
use uuid::Uuid;

/// Holds that one turn ends at most, so that a full stock running out at once does not stall the turn.
const EXPIRIES_PER_TURN: usize = 1024;

/// The settings that the rules need. `items` and `user_limit` apply from the next sale on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Length of a sale in seconds.
    pub period_s: u32,
    /// Stock of the next sale.
    pub items: u32,
    /// Items per user in the next sale.
    pub user_limit: u32,
    /// How long a hold lasts, in milliseconds.
    pub ttl_ms: u32,
    /// How far a purchase must have come before its 200 leaves. Everything else waits for the flush.
    pub purchase_ack: Watermark,
}

impl Rules {
    /// The terms of a sale that begins under these settings.
    pub fn terms(&self, sale: SaleId) -> Terms {
        Terms { sale, items: self.items, user_limit: self.user_limit }
    }
}

/// What happens to a shard.
#[derive(Debug)]
pub enum ShardEvent {
    /// Time passes. Once at the start of each turn.
    Tick,
    /// A client of this shard asks.
    Command(Ticket, Command),
    /// Another shard asks.
    Request(ShardId, Request),
    /// Another shard answers.
    Reply(Reply),
    /// Some shard is in this sale.
    Sale(SaleId),
    /// The purchase log is durable up to here.
    Flushed(Seq),
    /// The purchase log is in Postgres up to here.
    Persisted(Seq),
    /// The client that waited with this ticket is gone, or has been told to ask again.
    Withdrawn(Ticket),
    /// The purchase log can take this many more blocks.
    LogRoom(u64),
}

/// What a shard wants done. Filled by `apply`, drained by the pump, its buffers used again.
#[derive(Debug, Default)]
pub struct Effects {
    /// To append to the purchase log, in order.
    pub records: Vec<Record>,
    /// To append to the attempt log, if it has room.
    pub attempts: Vec<Record>,
    /// To send to other shards.
    pub requests: Vec<(ShardId, Request)>,
    /// To send to other shards.
    pub replies: Vec<(ShardId, Reply)>,
    /// To tell clients of this shard.
    pub answers: Vec<(Ticket, Outcome)>,
    /// This shard's part of a sale that is over.
    pub ended: Vec<EndedShare>,
    /// To show to readers, in order.
    pub changes: Vec<ItemChange>,
}

/// An item of this shard has become available, reserved or sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemChange {
    /// The sale.
    pub sale: SaleId,
    /// The item's place among this shard's.
    pub slot: u32,
    /// What it is now.
    pub to: Availability,
}

/// One shard's part of a sale that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedShare {
    /// The sale.
    pub sale: SaleId,
    /// Items sold by this shard.
    pub sold: u32,
    /// Items of this shard.
    pub items: u32,
}

/// What recovery found, and a new shard starts with.
pub struct Inventory {
    /// The sale that goes on.
    pub terms: Terms,
    /// This shard's items.
    pub stock: Stock,
    /// This shard's users.
    pub quotas: Quotas,
}

/// A shard.
pub struct Shard {
    id: ShardId,
    partition: Partition,
    rules: Rules,
    terms: Terms,
    code_space: CodeSpace,
    stock: Stock,
    quotas: Quotas,
    /// Items that this shard, as origin, has been told are sold. "Sold" is final, so it may remember.
    known_sold: Vec<u64>,
    codes: CodeGenerator,
    appended: Seq,
    flushed: Seq,
    /// Not 0 before everything of earlier runs is in Postgres: streams are shipped in their order.
    persisted: Seq,
    waiting: Waiting,
    log_room: u64,
}

impl Shard {
    /// A shard that goes on with `inventory`. Its first record opens the sale in its new stream.
    pub fn new(
        id: ShardId,
        partition: Partition,
        rules: Rules,
        inventory: Inventory,
        codes: CodeGenerator,
        now: Moment,
        effects: &mut Effects,
    ) -> Self {
        let Inventory { terms, stock, quotas } = inventory;
        let known_sold = Self::nothing_sold(&terms);
        let waiting = Waiting::default();
        let (appended, flushed, persisted, log_room) = (0, 0, 0, 0);
        let mut shard = Shard {
            id,
            partition,
            rules,
            terms,
            code_space: CodeSpace::new(&terms),
            stock,
            quotas,
            known_sold,
            codes,
            appended,
            flushed,
            persisted,
            waiting,
            log_room,
        };
        shard.append(Record::sale_opened(&terms, now.unix_ms), effects);
        shard
    }

    /// Applies one event.
    pub fn apply(&mut self, event: ShardEvent, now: Moment, effects: &mut Effects) {
        match event {
            ShardEvent::Tick => self.tick(now, effects),
            ShardEvent::Command(ticket, command) => self.command(ticket, command, now, effects),
            ShardEvent::Request(from, request) => self.request(from, request, now, effects),
            ShardEvent::Reply(reply) => self.reply(reply, now, effects),
            ShardEvent::Sale(sale) => self.catch_up(sale, now, effects),
            ShardEvent::Flushed(seq) => {
                debug_assert!(self.flushed <= seq && seq <= self.appended);
                self.flushed = seq;
                self.reached(Watermark::Flushed, seq, now, effects);
            }
            ShardEvent::Persisted(seq) => {
                self.persisted = seq;
                self.reached(Watermark::Persisted, seq, now, effects);
            }
            ShardEvent::Withdrawn(ticket) => {
                // Which owner it waits at, nobody has kept: this is rare.
                for owner in (0..self.partition.shards()).map(ShardId) {
                    self.ask(owner, Request::Withdraw { ticket }, now, effects);
                }
            }
            ShardEvent::LogRoom(blocks) => self.log_room = blocks,
        }
    }

    /// The current sale.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How many of this shard's items are in each state.
    pub fn counts(&self) -> Counts {
        self.stock.counts()
    }

    /// This shard's items.
    pub fn stock(&self) -> &Stock {
        &self.stock
    }

    /// This shard's users.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// When `Tick` has something to do next, in monotonic milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.stock.next_expiry_ms()
    }

    /// Blocks that must stay free in the log for records yet to come: one for the end of each live hold, whatever
    /// it is, and for each claim one more for the checkout itself. Each may come alone and need a whole block.
    pub fn log_reserve(&self) -> u64 {
        let Counts { claiming, held, .. } = self.stock.counts();
        u64::from(held) + 2 * u64::from(claiming)
    }

    // --- time ---

    fn tick(&mut self, now: Moment, effects: &mut Effects) {
        self.catch_up(SaleId::at(now.unix_ms, self.rules.period_s), now, effects);
        for _ in 0..EXPIRIES_PER_TURN {
            let Some((slot, hold)) = self.stock.expire(now.monotonic_ms) else { break };
            self.note(slot, Availability::Available, effects);
            let item = self.partition.item_at(self.id, slot);
            self.log_release(item, hold, ReleaseReason::Expired, now, effects);
        }
    }

    /// Begins `sale` if it is newer. The old sale is forgotten at once: purchases that wait for the log are
    /// answered all the same, everything else of it is refused.
    fn catch_up(&mut self, sale: SaleId, now: Moment, effects: &mut Effects) {
        if sale <= self.terms.sale {
            return;
        }
        let Counts { committing, sold, .. } = self.stock.counts();
        effects.ended.push(EndedShare {
            sale: self.terms.sale,
            sold: sold + committing,
            items: self.stock.items() as u32,
        });
        self.terms = self.rules.terms(sale);
        self.code_space = CodeSpace::new(&self.terms);
        self.stock = Stock::new(self.partition.owned_items(self.id, self.terms.items));
        self.quotas = Quotas::new(self.terms.user_limit, self.stock.items());
        self.known_sold = Self::nothing_sold(&self.terms);
        self.append(Record::sale_opened(&self.terms, now.unix_ms), effects);
    }

    // --- as origin ---

    fn command(&mut self, ticket: Ticket, command: Command, now: Moment, effects: &mut Effects) {
        let (code, request) = match command {
            Command::Checkout { item, user } => return self.checkout(ticket, item, user, now, effects),
            Command::Purchase { code, key } => (code, Request::Confirm { ticket, code, key }),
            Command::Cancel { code } => (code, Request::Cancel { ticket, code }),
        };
        match code.destination(&self.code_space) {
            Destination::Item(item) => self.ask(self.partition.owner_of_item(item), request, now, effects),
            Destination::EndedSale => effects.answers.push((ticket, Outcome::SaleEnded)),
            Destination::Nowhere => effects.answers.push((ticket, Outcome::CodeUnknown)),
        }
    }

    fn checkout(&mut self, ticket: Ticket, item: ItemId, user: UserId, now: Moment, effects: &mut Effects) {
        let sale = self.terms.sale;
        if item.0 >= self.terms.items {
            return effects.answers.push((ticket, Outcome::NoSuchItem));
        }
        if self.known_sold[item.0 as usize / 64] >> (item.0 % 64) & 1 == 1 {
            self.log_refusal(item, user, RefusalReason::ItemSold, now, effects);
            return effects.answers.push((ticket, Outcome::ItemSold { sale, item }));
        }
        self.ask(self.partition.owner_of_item(item), Request::Reserve { ticket, sale, item, user }, now, effects);
    }

    #[inline(always)]
    fn reply(&mut self, reply: Reply, now: Moment, effects: &mut Effects) {
        match reply {
            Reply::Claimed { origin, ticket, sale, item, user, granted } => {
                self.claimed(Waiter { origin, ticket }, sale, item, user, granted, now, effects);
            }
            Reply::Answer { ticket, outcome } => self.decided(ticket, outcome, effects),
            // Each bounce takes the turn of a sale, so this ends.
            Reply::Bounced { ticket, item, user } => self.checkout(ticket, item, user, now, effects),
        }
    }

    fn decided(&mut self, ticket: Ticket, outcome: Outcome, effects: &mut Effects) {
        if let Outcome::ItemSold { sale, item } | Outcome::Purchased { sale, item } = outcome
            && sale == self.terms.sale
        {
            self.known_sold[item.0 as usize / 64] |= 1 << (item.0 % 64);
        }
        effects.answers.push((ticket, outcome));
    }

    // --- as owner ---

    #[inline(always)]
    fn request(&mut self, from: ShardId, request: Request, now: Moment, effects: &mut Effects) {
        match request {
            Request::Reserve { ticket, sale, item, user } => {
                self.reserve(Waiter { origin: from, ticket }, sale, item, user, now, effects);
            }
            Request::Claim { origin, ticket, sale, item, user } => {
                self.claim(from, Waiter { origin, ticket }, sale, item, user, now, effects);
            }
            Request::Release { sale, user } => {
                if sale == self.terms.sale {
                    self.quotas.release(user);
                }
            }
            Request::Confirm { ticket, code, key } => {
                self.confirm(Waiter { origin: from, ticket }, code, key, now, effects);
            }
            Request::Withdraw { ticket } => self.waiting.withdraw(Waiter { origin: from, ticket }),
            Request::Cancel { ticket, code } => self.cancel(Waiter { origin: from, ticket }, code, now, effects),
        }
    }

    fn reserve(
        &mut self,
        Waiter { origin, ticket }: Waiter,
        sale: SaleId,
        item: ItemId,
        user: UserId,
        now: Moment,
        effects: &mut Effects,
    ) {
        if sale != self.terms.sale {
            return self.answer(origin, Reply::Bounced { ticket, item, user }, now, effects);
        }
        let slot = self.partition.slot_of(item);
        let (outcome, reason) = match self.stock.state(slot) {
            ItemState::Free if self.has_no_room() => (Outcome::LogFull, None),
            _ => match self.stock.reserve(slot) {
                Ok(()) => {
                    let claim = Request::Claim { origin, ticket, sale, item, user };
                    return self.ask(self.partition.owner_of_user(user), claim, now, effects);
                }
                Err(Unavailable::Sold) => (Outcome::ItemSold { sale, item }, Some(RefusalReason::ItemSold)),
                Err(Unavailable::Reserved) => (Outcome::ItemReserved, Some(RefusalReason::ItemReserved)),
            },
        };
        if let Some(reason) = reason {
            self.log_refusal(item, user, reason, now, effects);
        }
        self.answer(origin, Reply::Answer { ticket, outcome }, now, effects);
    }

    #[expect(clippy::too_many_arguments, reason = "a message's fields, taken apart")]
    fn claim(
        &mut self,
        from: ShardId,
        Waiter { origin, ticket }: Waiter,
        sale: SaleId,
        item: ItemId,
        user: UserId,
        now: Moment,
        effects: &mut Effects,
    ) {
        // Of another sale: denied, and the item's owner, whose sale is over too, bounces the buyer.
        let granted = sale == self.terms.sale && self.quotas.claim(user);
        self.answer(from, Reply::Claimed { origin, ticket, sale, item, user, granted }, now, effects);
    }

    #[expect(clippy::too_many_arguments, reason = "a message's fields, taken apart")]
    fn claimed(
        &mut self,
        Waiter { origin, ticket }: Waiter,
        sale: SaleId,
        item: ItemId,
        user: UserId,
        granted: bool,
        now: Moment,
        effects: &mut Effects,
    ) {
        // The slot and the quota went with the old sale.
        if sale != self.terms.sale {
            return self.answer(origin, Reply::Bounced { ticket, item, user }, now, effects);
        }
        let slot = self.partition.slot_of(item);
        if !granted {
            self.stock.deny(slot);
            self.log_refusal(item, user, RefusalReason::UserLimit, now, effects);
            return self.answer(origin, Reply::Answer { ticket, outcome: Outcome::UserLimit }, now, effects);
        }
        let (code, ttl_ms) = (self.codes.mint(&self.code_space, item), self.rules.ttl_ms);
        let expires_ms = now.monotonic_ms + u64::from(ttl_ms);
        self.stock.grant(slot, Hold { user, code, expires_ms });
        self.note(slot, Availability::Reserved, effects);
        let event = LogEvent::Checkout { item, user, code, ttl_ms };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        let expires_unix_ms = now.unix_ms + u64::from(ttl_ms);
        let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
        self.defer(Deferred::Answer(Waiter { origin, ticket }, outcome));
    }

    /// Finds the item and slot that a code leads to in the current sale, or the outcome that refuses the code.
    fn find(&self, code: Code) -> Result<(ItemId, usize), Outcome> {
        match code.destination(&self.code_space) {
            Destination::Nowhere => Err(Outcome::CodeUnknown),
            // The origin read the code under the terms of an earlier sale.
            Destination::Item(item) if self.partition.owner_of_item(item) != self.id => Err(Outcome::SaleEnded),
            Destination::EndedSale => Err(Outcome::SaleEnded),
            Destination::Item(item) => Ok((item, self.partition.slot_of(item))),
        }
    }

    fn confirm(&mut self, waiter: Waiter, code: Code, key: Uuid, now: Moment, effects: &mut Effects) {
        let sale = self.terms.sale;
        let (item, slot) = match self.find(code) {
            Ok(found) => found,
            Err(outcome) => return self.tell(waiter, outcome, now, effects),
        };
        let outcome = match self.stock.confirm(slot, code, key, now.monotonic_ms) {
            Confirmation::Bought(Hold { user, .. }) => {
                let event = LogEvent::Purchase { item, user, code, key };
                self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
                return self.defer_purchase(Deferred::Sell { sale, item, waiter: Some(waiter) });
            }
            Confirmation::Joined => {
                let outcome = Outcome::Purchased { sale, item };
                return self.defer_purchase(Deferred::Answer(waiter, outcome));
            }
            // Bought in an earlier run, of which not everything is in Postgres yet: it may be this one.
            Confirmation::Replayed if self.rules.purchase_ack == Watermark::Persisted && self.persisted == 0 => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::Purchased { sale, item }));
            }
            Confirmation::Replayed => Outcome::Purchased { sale, item },
            // Whoever repeats the purchase of a client that is gone is told in its place.
            Confirmation::Repeated if self.waiting.inherit(sale, item, waiter) => return,
            // Anybody else hears that the code is used, but not before that is certain.
            Confirmation::Repeated | Confirmation::Preceded => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Confirmation::Used => Outcome::CodeUsed,
            Confirmation::Expired => Outcome::CodeExpired,
            Confirmation::Unknown => Outcome::CodeUnknown,
        };
        self.tell(waiter, outcome, now, effects);
    }

    fn cancel(&mut self, waiter: Waiter, code: Code, now: Moment, effects: &mut Effects) {
        let (item, slot) = match self.find(code) {
            Ok(found) => found,
            Err(outcome) => return self.tell(waiter, outcome, now, effects),
        };
        let outcome = match self.stock.cancel(slot, code, now.monotonic_ms) {
            Cancellation::Released(hold) => {
                self.note(slot, Availability::Available, effects);
                self.log_release(item, hold, ReleaseReason::Cancelled, now, effects);
                return self.defer(Deferred::Answer(waiter, Outcome::Released));
            }
            Cancellation::Preceded => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Cancellation::Used => Outcome::CodeUsed,
            Cancellation::Expired => Outcome::CodeExpired,
            Cancellation::Unknown => Outcome::CodeUnknown,
        };
        self.tell(waiter, outcome, now, effects);
    }

    // --- the log ---

    fn reached(&mut self, watermark: Watermark, seq: Seq, now: Moment, effects: &mut Effects) {
        while let Some(deferred) = self.waiting.pop(watermark, seq) {
            match deferred {
                Deferred::Answer(waiter, outcome) => self.tell(waiter, outcome, now, effects),
                Deferred::Sell { sale, item, waiter } => {
                    if sale == self.terms.sale {
                        self.stock.sell(self.partition.slot_of(item));
                        self.note(self.partition.slot_of(item), Availability::Sold, effects);
                    }
                    if let Some(waiter) = waiter {
                        self.tell(waiter, Outcome::Purchased { sale, item }, now, effects);
                    }
                }
                Deferred::GiveBack { sale, user } => {
                    let owner = self.partition.owner_of_user(user);
                    self.ask(owner, Request::Release { sale, user }, now, effects);
                }
            }
        }
    }

    fn note(&self, slot: usize, to: Availability, effects: &mut Effects) {
        effects.changes.push(ItemChange { sale: self.terms.sale, slot: slot as u32, to });
    }

    fn append(&mut self, record: Record, effects: &mut Effects) {
        self.appended += 1;
        effects.records.push(record);
    }

    /// Waits until everything appended so far is flushed.
    fn defer(&mut self, deferred: Deferred) {
        self.waiting.push(Watermark::Flushed, self.appended, deferred);
    }

    /// Waits until everything appended so far has come as far as a purchase must.
    fn defer_purchase(&mut self, deferred: Deferred) {
        self.waiting.push(self.rules.purchase_ack, self.appended, deferred);
    }

    fn log_release(&mut self, item: ItemId, hold: Hold, reason: ReleaseReason, now: Moment, effects: &mut Effects) {
        let Hold { user, code, .. } = hold;
        let sale = self.terms.sale;
        let event = LogEvent::Released { item, user, code, reason };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        self.defer(Deferred::GiveBack { sale, user });
    }

    fn log_refusal(&self, item: ItemId, user: UserId, reason: RefusalReason, now: Moment, effects: &mut Effects) {
        let event = LogEvent::Refused { item, user, reason };
        effects.attempts.push(Record { sale: self.terms.sale, unix_ms: now.unix_ms, event });
    }

    /// Whether one more hold could leave a live one without the block that its purchase needs.
    fn has_no_room(&self) -> bool {
        // What is appended already goes together, in one flush or in the one after it.
        let pending = (self.appended - self.flushed).div_ceil(BLOCK_RECORDS as u64) + 1;
        pending + self.log_reserve() + 2 > self.log_room
    }

    // --- messages ---
    //
    // `ask`, `answer`, `request` and `reply` are inlined wherever the message is known: then a message to oneself is the
    // call of its step, and nothing is packed and unpacked.

    #[inline(always)]
    fn ask(&mut self, owner: ShardId, request: Request, now: Moment, effects: &mut Effects) {
        if owner == self.id {
            self.request(owner, request, now, effects);
        } else {
            effects.requests.push((owner, request));
        }
    }

    #[inline(always)]
    fn tell(&mut self, waiter: Waiter, outcome: Outcome, now: Moment, effects: &mut Effects) {
        self.answer(waiter.origin, Reply::Answer { ticket: waiter.ticket, outcome }, now, effects);
    }

    #[inline(always)]
    fn answer(&mut self, to: ShardId, reply: Reply, now: Moment, effects: &mut Effects) {
        if to == self.id {
            self.reply(reply, now, effects);
        } else {
            effects.replies.push((to, reply));
        }
    }

    fn nothing_sold(terms: &Terms) -> Vec<u64> {
        vec![0; (terms.items as usize).div_ceil(64)]
    }
}
