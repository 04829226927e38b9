//! The state machine of one shard: the two-owner protocol around the rules of `stock` and `quotas`.
//!
//! A shard has three roles. As *origin*, it receives a client's command. As *item owner*, it decides about its items
//! and logs its decisions. As *user owner*, it counts its users' items. Messages to itself are applied at once.
//!
//! A checkout:
//!
//! 1. The origin sends `Reserve` to the item's owner.
//! 2. The item's owner moves the item from `Free` to `Claiming` and sends `Claim` to the user's owner.
//! 3. The user's owner counts the item, if the user's quota allows it, and replies `Claimed`.
//! 4. If the claim is granted, the item's owner mints a code, moves the item to `Held` and appends a record to its
//!    purchase log.
//! 5. When the record is flushed, the item's owner sends `Answer` to the origin, which answers the client.
//!
//! A purchase or a cancellation:
//!
//! 1. The origin sends `Confirm` or `Cancel` to the item's owner.
//! 2. The item's owner moves the item to `Buying` or `Free` and appends a record to its purchase log.
//! 3. When the record is flushed (for a purchase: or persisted, if `purchase_ack` says so), a bought item becomes
//!    `Sold`, and the item's owner sends `Answer`.
//!
//! A bought item stays counted. When a hold expires or is cancelled, the item becomes `Free` at once, and:
//!
//! 1. The item's owner appends the release to its purchase log.
//! 2. When the record is flushed, it sends `Release` to the user's owner, which counts one item less.
//!
//! A checkout with an idempotency key that is repeated with the same user, item and key gets the answer of the first:
//! it waits with the first one while that is being decided, and until the grant is durable.
//! A granted checkout whose answer reaches no client is cancelled. The origin reports each such answer to the item's
//! owner, which cancels the hold unless another answer with the same code may have arrived.
//!
//! `deferred` explains why these effects wait for the log.
//! `apply(event, now, effects)` never awaits, reads no clock, and uses no file or socket.

use crate::sale::code::{Code, CodeGenerator, CodeSpace, Destination};
use crate::sale::command::{Command, Outcome, Withdrawal};
use crate::sale::deferred::{Deferred, Waiter, Waiting, Watermark};
use crate::sale::effects::{Effects, EndedShare, ItemChange};
use crate::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Terms, Ticket, UserId};
use crate::sale::message::{Checkout, Reply, Request};
use crate::sale::partition::Partition;
use crate::sale::quotas::Quotas;
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::repetitions::Repetitions;
use crate::sale::stock::{Availability, Cancellation, Confirmation, Counts, Hold, ItemState, Stock, Unavailable};
use uuid::Uuid;

/// Largest number of holds that expire in one turn, so that a whole stock of holds that end together does not stall it.
const EXPIRIES_PER_TURN: usize = 1024;

/// The settings that the rules need. `items` and `user_limit` apply from the next sale on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Length of a sale in seconds.
    pub period_s: u32,
    /// Number of items in the stock of the next sale.
    pub items: u32,
    /// Largest number of items per user in the next sale.
    pub user_limit: u32,
    /// Duration of a hold, in milliseconds.
    pub ttl_ms: u32,
    /// Durability that answers about a purchase wait for. All other effects that wait for the log wait for the flush.
    pub purchase_ack: Watermark,
}

impl Rules {
    /// Returns the terms of a sale that begins under these settings.
    pub fn terms(&self, sale: SaleId) -> Terms {
        Terms { sale, items: self.items, user_limit: self.user_limit }
    }
}

/// An event that a shard applies.
#[derive(Debug)]
pub enum ShardEvent {
    /// Time has passed. Applied at most once per turn, before the other events of the turn.
    Tick,
    /// A client of this shard sends a command.
    Command(Ticket, Command),
    /// Another shard sends a request.
    Request(ShardId, Request),
    /// Another shard replies.
    Reply(Reply),
    /// A shard has begun this sale.
    Sale(SaleId),
    /// This run's stream of the purchase log is flushed up to this record.
    Flushed(Seq),
    /// This run's stream of the purchase log is persisted in Postgres up to this record.
    Persisted(Seq),
    /// No client waits for this ticket any more.
    Withdrawn(Ticket, Withdrawal),
    /// An answer with this code could not be sent to its client.
    Undelivered(Code),
    /// Free blocks of the purchase log that records of holds may use.
    LogRoom(u64),
}

/// The state that recovery restores and a shard starts with.
pub struct Inventory {
    /// Terms of the current sale.
    pub terms: Terms,
    /// This shard's items.
    pub stock: Stock,
    /// Quotas of this shard's users.
    pub quotas: Quotas,
}

/// The state machine of one shard.
pub struct Shard {
    id: ShardId,
    partition: Partition,
    rules: Rules,
    terms: Terms,
    code_space: CodeSpace,
    stock: Stock,
    quotas: Quotas,
    /// Bitmap of the items that this shard, as origin, knows to be sold in this sale. `Sold` is final.
    known_sold: Vec<u64>,
    codes: CodeGenerator,
    appended: Seq,
    flushed: Seq,
    /// Position of this run's stream in Postgres. Earlier runs are shipped first, so it is 0 until they are persisted.
    persisted: Seq,
    waiting: Waiting,
    repetitions: Repetitions,
    log_room: u64,
}

impl Shard {
    /// Creates a shard that continues with `inventory`. Its first record opens the sale in its new stream.
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
        let (waiting, repetitions) = (Waiting::default(), Repetitions::default());
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
            repetitions,
            log_room,
        };
        shard.append(Record::sale_opened(&terms, now.unix_ms), effects);
        shard
    }

    /// Applies one event, and adds its effects to `effects`.
    pub fn apply(&mut self, event: ShardEvent, now: Moment, effects: &mut Effects) {
        match event {
            ShardEvent::Tick => self.tick(now, effects),
            ShardEvent::Command(ticket, command) => self.command(ticket, command, now, effects),
            ShardEvent::Request(from, request) => self.request(from, request, now, effects),
            ShardEvent::Reply(reply) => self.reply(reply, now, effects),
            ShardEvent::Sale(sale) => self.begin_sale_if_newer(sale, now, effects),
            ShardEvent::Flushed(seq) => {
                debug_assert!(self.flushed <= seq && seq <= self.appended);
                self.flushed = seq;
                self.apply_deferred(Watermark::Flushed, seq, now, effects);
            }
            ShardEvent::Persisted(seq) => {
                self.persisted = seq;
                self.apply_deferred(Watermark::Persisted, seq, now, effects);
            }
            ShardEvent::Withdrawn(ticket, reason) => {
                // The origin does not record which owner has the request, so all are asked. Withdrawals are rare.
                for owner in (0..self.partition.shards()).map(ShardId) {
                    self.ask(owner, Request::Withdraw { ticket, reason }, now, effects);
                }
            }
            ShardEvent::Undelivered(code) => {
                if let Destination::Item(item) = code.destination(&self.code_space) {
                    self.ask(self.partition.owner_of_item(item), Request::Undelivered { code }, now, effects);
                }
            }
            ShardEvent::LogRoom(blocks) => self.log_room = blocks,
        }
    }

    /// Returns the terms of the current sale.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Returns how many of this shard's items are in each state.
    pub fn counts(&self) -> Counts {
        self.stock.counts()
    }

    /// Returns this shard's items.
    pub fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Returns the quotas of this shard's users.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Returns when the next hold ends, in monotonic milliseconds. `Tick` then has something to do.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.stock.next_expiry_ms()
    }

    /// Returns how many blocks of the purchase log must stay free: one for the end of each hold, and two for each
    /// claim, for the checkout and the end of its hold. A record that is flushed alone takes a whole block.
    pub fn log_reserve(&self) -> u64 {
        let Counts { claiming, held, .. } = self.stock.counts();
        u64::from(held) + 2 * u64::from(claiming)
    }

    // --- time ---

    fn tick(&mut self, now: Moment, effects: &mut Effects) {
        self.begin_sale_if_newer(SaleId::at(now.unix_ms, self.rules.period_s), now, effects);
        for _ in 0..EXPIRIES_PER_TURN {
            let Some((slot, hold)) = self.stock.expire(now.monotonic_ms) else { break };
            self.publish_change(slot, Availability::Available, effects);
            let item = self.partition.item_at(self.id, slot);
            self.log_release(item, hold, ReleaseReason::Expired, now, effects);
        }
    }

    /// Begins `sale` if it is newer, and drops the stock and the quotas of the old sale. Answers that wait for the log
    /// are still sent; messages of the old sale that arrive later are bounced, refused or ignored.
    fn begin_sale_if_newer(&mut self, sale: SaleId, now: Moment, effects: &mut Effects) {
        if sale <= self.terms.sale {
            return;
        }
        let Counts { buying, sold, .. } = self.stock.counts();
        effects.ended.push(EndedShare { sale: self.terms.sale, sold: sold + buying, items: self.stock.items() as u32 });
        self.terms = self.rules.terms(sale);
        self.code_space = CodeSpace::new(&self.terms);
        self.stock = Stock::new(self.partition.owned_items(self.id, self.terms.items));
        self.quotas = Quotas::new(self.terms.user_limit, self.stock.items());
        self.known_sold = Self::nothing_sold(&self.terms);
        self.append(Record::sale_opened(&self.terms, now.unix_ms), effects);
        for (Waiter { origin, ticket }, Checkout { item, user, key, .. }) in self.repetitions.take_all() {
            self.answer(origin, Reply::SaleChanged { ticket, item, user, key }, now, effects);
        }
    }

    // --- as origin ---

    fn command(&mut self, ticket: Ticket, command: Command, now: Moment, effects: &mut Effects) {
        let (code, request) = match command {
            Command::Checkout { item, user, key } => {
                let checkout = Checkout { sale: self.terms.sale, item, user, key };
                return self.checkout(ticket, checkout, now, effects);
            }
            Command::Purchase { code, key } => (code, Request::Confirm { ticket, code, key }),
            Command::Cancel { code } => (code, Request::Cancel { ticket, code }),
        };
        match code.destination(&self.code_space) {
            Destination::Item(item) => self.ask(self.partition.owner_of_item(item), request, now, effects),
            Destination::EndedSale => effects.answers.push((ticket, Outcome::SaleEnded)),
            Destination::Unknown => effects.answers.push((ticket, Outcome::CodeUnknown)),
        }
    }

    fn checkout(&mut self, ticket: Ticket, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let Checkout { sale, item, user, key } = checkout;
        if item.0 >= self.terms.items {
            return effects.answers.push((ticket, Outcome::NoSuchItem));
        }
        // With a key, the owner of the item decides: the checkout may repeat that of the buyer.
        if key.is_nil() && self.known_sold[item.0 as usize / 64] >> (item.0 % 64) & 1 == 1 {
            self.log_refusal(item, user, RefusalReason::ItemSold, now, effects);
            return effects.answers.push((ticket, Outcome::ItemSold { sale, item }));
        }
        self.ask(self.partition.owner_of_item(item), Request::Reserve { ticket, checkout }, now, effects);
    }

    #[inline(always)]
    fn reply(&mut self, reply: Reply, now: Moment, effects: &mut Effects) {
        match reply {
            Reply::Claimed { origin, ticket, checkout, granted } => {
                self.claimed(Waiter { origin, ticket }, checkout, granted, now, effects);
            }
            Reply::Answer { ticket, outcome } => self.answer_client(ticket, outcome, effects),
            // A sale must begin between a `Reserve` and its bounce, so the repetitions end.
            Reply::SaleChanged { ticket, item, user, key } => {
                self.checkout(ticket, Checkout { sale: self.terms.sale, item, user, key }, now, effects);
            }
        }
    }

    fn answer_client(&mut self, ticket: Ticket, outcome: Outcome, effects: &mut Effects) {
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
            Request::Reserve { ticket, checkout } => {
                self.reserve(Waiter { origin: from, ticket }, checkout, now, effects);
            }
            Request::Claim { origin, ticket, checkout } => {
                let granted = checkout.sale == self.terms.sale && self.quotas.claim(checkout.user);
                // A claim of an old sale is denied: the item's owner begins the new sale before it reads this, and bounces.
                self.answer(from, Reply::Claimed { origin, ticket, checkout, granted }, now, effects);
            }
            Request::Release { sale, user } => {
                if sale == self.terms.sale {
                    self.quotas.release(user);
                }
            }
            Request::Confirm { ticket, code, key } => {
                self.confirm(Waiter { origin: from, ticket }, code, key, now, effects);
            }
            Request::Withdraw { ticket, reason } => {
                self.withdraw(Waiter { origin: from, ticket }, reason, now, effects);
            }
            Request::Undelivered { code } => self.undelivered(code, now, effects),
            Request::Cancel { ticket, code } => self.cancel(Waiter { origin: from, ticket }, code, now, effects),
        }
    }

    fn reserve(&mut self, waiter: Waiter, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        if sale != self.terms.sale {
            return self.answer(origin, Reply::SaleChanged { ticket, item, user, key }, now, effects);
        }
        let slot = self.partition.slot_of(item);
        let (outcome, reason) = match self.stock.state(slot) {
            ItemState::Free if self.has_no_room() => (Outcome::LogFull, None),
            _ => match self.stock.reserve(slot, user, key) {
                Ok(()) => {
                    let claim = Request::Claim { origin, ticket, checkout };
                    return self.ask(self.partition.owner_of_user(user), claim, now, effects);
                }
                Err(Unavailable::Sold) => (Outcome::ItemSold { sale, item }, Some(RefusalReason::ItemSold)),
                Err(Unavailable::Reserved) => (Outcome::ItemReserved, Some(RefusalReason::ItemReserved)),
                Err(Unavailable::SameCheckoutPending) => return self.repetitions.push(slot, waiter, checkout),
                Err(Unavailable::SameCheckout(Hold { code, expires_unix_ms, .. })) => {
                    let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
                    // The grant is one of the records so far, or of an earlier run and durable.
                    if self.flushed < self.appended {
                        return self.defer(Deferred::Answer(waiter, outcome));
                    }
                    (outcome, None)
                }
            },
        };
        if let Some(reason) = reason {
            self.log_refusal(item, user, reason, now, effects);
        }
        self.answer(origin, Reply::Answer { ticket, outcome }, now, effects);
    }

    fn claimed(&mut self, waiter: Waiter, checkout: Checkout, granted: bool, now: Moment, effects: &mut Effects) {
        let (Waiter { origin, ticket }, Checkout { sale, item, user, key }) = (waiter, checkout);
        // The slot and the quota were dropped with the old sale.
        if sale != self.terms.sale {
            return self.answer(origin, Reply::SaleChanged { ticket, item, user, key }, now, effects);
        }
        let slot = self.partition.slot_of(item);
        if !granted {
            self.stock.deny(slot);
            let repetitions = self.repetitions.take(slot).into_iter().map(|(waiter, _)| waiter);
            for waiter in std::iter::once(waiter).chain(repetitions) {
                self.log_refusal(item, user, RefusalReason::UserLimit, now, effects);
                self.answer_request(waiter, Outcome::UserLimit, now, effects);
            }
            return;
        }
        let (code, ttl_ms) = (self.codes.mint(&self.code_space, item), self.rules.ttl_ms);
        let expires_ms = now.monotonic_ms + u64::from(ttl_ms);
        let expires_unix_ms = now.unix_ms + u64::from(ttl_ms);
        self.stock.grant(slot, Hold { user, code, expires_ms, expires_unix_ms });
        self.publish_change(slot, Availability::Reserved, effects);
        let event = LogEvent::Checkout { item, user, code, ttl_ms, key };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };
        self.defer(Deferred::Answer(waiter, outcome));
        if !self.repetitions.is_empty() {
            self.repeat_grant(slot, now, effects);
        }
    }

    #[cold]
    fn repeat_grant(&mut self, slot: usize, now: Moment, effects: &mut Effects) {
        for (waiter, checkout) in self.repetitions.take(slot) {
            self.reserve(waiter, checkout, now, effects);
        }
    }

    fn withdraw(&mut self, gone: Waiter, reason: Withdrawal, now: Moment, effects: &mut Effects) {
        self.repetitions.withdraw(gone);
        let Some(code) = self.waiting.withdraw(gone) else { return };
        // The client of an overdue request with a key repeats it, and must get this hold.
        let is_repeated = |slot| reason == Withdrawal::Overdue && self.stock.is_repeatable(slot);
        if self.locate(code).is_ok_and(|(_, slot)| !is_repeated(slot)) {
            self.undelivered(code, now, effects);
        }
    }

    fn undelivered(&mut self, code: Code, now: Moment, effects: &mut Effects) {
        let Ok((item, slot)) = self.locate(code) else { return };
        if let Some(hold) = self.stock.undelivered(slot, code, now.monotonic_ms) {
            self.cancelled(item, slot, hold, now, effects);
        }
    }

    /// Returns the item and slot that a code leads to in the current sale.
    ///
    /// # Errors
    /// The outcome with which the code is refused, if it leads to none.
    fn locate(&self, code: Code) -> Result<(ItemId, usize), Outcome> {
        match code.destination(&self.code_space) {
            Destination::Item(item) if self.partition.owner_of_item(item) == self.id => {
                Ok((item, self.partition.slot_of(item)))
            }
            // If this shard does not own the item, the origin has read the code under the terms of an earlier sale.
            Destination::Item(_) | Destination::EndedSale => Err(Outcome::SaleEnded),
            Destination::Unknown => Err(Outcome::CodeUnknown),
        }
    }

    /// Returns the item and slot that a code leads to in the current sale. Otherwise it refuses the code, and returns
    /// `None`.
    fn find(&mut self, waiter: Waiter, code: Code, now: Moment, effects: &mut Effects) -> Option<(ItemId, usize)> {
        let found = self.locate(code);
        if let Err(outcome) = found {
            self.answer_request(waiter, outcome, now, effects);
        }
        found.ok()
    }

    fn confirm(&mut self, waiter: Waiter, code: Code, key: Uuid, now: Moment, effects: &mut Effects) {
        let sale = self.terms.sale;
        let Some((item, slot)) = self.find(waiter, code, now, effects) else { return };
        let outcome = match self.stock.confirm(slot, code, key, now.monotonic_ms) {
            Confirmation::Bought(Hold { user, .. }) => {
                let event = LogEvent::Purchase { item, user, code, key };
                self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
                return self.defer_purchase(Deferred::FinishPurchase { sale, item, waiter: Some(waiter) });
            }
            Confirmation::SamePurchasePending => {
                let outcome = Outcome::Purchased { sale, item };
                return self.defer_purchase(Deferred::Answer(waiter, outcome));
            }
            // This purchase, of an earlier run, may not be persisted yet. Records of this run are persisted after it.
            Confirmation::AlreadyBought if self.rules.purchase_ack == Watermark::Persisted && self.persisted == 0 => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::Purchased { sale, item }));
            }
            Confirmation::AlreadyBought => Outcome::Purchased { sale, item },
            // If no client waits for the first purchase any more, this repetition takes over its answer.
            Confirmation::KeylessPurchasePending if self.waiting.take_over_answer(sale, item, waiter) => return,
            // Any other request is refused as `CodeUsed`, which is certain only when the purchase is durable.
            Confirmation::KeylessPurchasePending | Confirmation::PurchasePending => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Confirmation::Used => Outcome::CodeUsed,
            Confirmation::Expired => Outcome::CodeExpired,
            Confirmation::Unknown => Outcome::CodeUnknown,
        };
        self.answer_request(waiter, outcome, now, effects);
    }

    fn cancel(&mut self, waiter: Waiter, code: Code, now: Moment, effects: &mut Effects) {
        let Some((item, slot)) = self.find(waiter, code, now, effects) else { return };
        let outcome = match self.stock.cancel(slot, code, now.monotonic_ms) {
            Cancellation::Released(hold) => {
                self.cancelled(item, slot, hold, now, effects);
                return self.defer(Deferred::Answer(waiter, Outcome::Released));
            }
            Cancellation::PurchasePending => {
                return self.defer_purchase(Deferred::Answer(waiter, Outcome::CodeUsed));
            }
            Cancellation::Used => Outcome::CodeUsed,
            Cancellation::Expired => Outcome::CodeExpired,
            Cancellation::Unknown => Outcome::CodeUnknown,
        };
        self.answer_request(waiter, outcome, now, effects);
    }

    fn cancelled(&mut self, item: ItemId, slot: usize, hold: Hold, now: Moment, effects: &mut Effects) {
        self.publish_change(slot, Availability::Available, effects);
        self.log_release(item, hold, ReleaseReason::Cancelled, now, effects);
    }

    // --- the log ---

    fn apply_deferred(&mut self, watermark: Watermark, seq: Seq, now: Moment, effects: &mut Effects) {
        while let Some(deferred) = self.waiting.pop(watermark, seq) {
            match deferred {
                Deferred::Answer(waiter, outcome) => self.answer_request(waiter, outcome, now, effects),
                Deferred::FinishPurchase { sale, item, waiter } => {
                    if sale == self.terms.sale {
                        self.stock.sell(self.partition.slot_of(item));
                        self.publish_change(self.partition.slot_of(item), Availability::Sold, effects);
                    }
                    if let Some(waiter) = waiter {
                        self.answer_request(waiter, Outcome::Purchased { sale, item }, now, effects);
                    }
                }
                Deferred::ReturnQuota { sale, user } => {
                    let owner = self.partition.owner_of_user(user);
                    self.ask(owner, Request::Release { sale, user }, now, effects);
                }
            }
        }
    }

    fn publish_change(&self, slot: usize, to: Availability, effects: &mut Effects) {
        effects.changes.push(ItemChange { sale: self.terms.sale, slot: slot as u32, to });
    }

    fn append(&mut self, record: Record, effects: &mut Effects) {
        self.appended += 1;
        effects.records.push(record);
    }

    /// Defers an effect until everything appended so far is flushed.
    fn defer(&mut self, deferred: Deferred) {
        self.waiting.push(Watermark::Flushed, self.appended, deferred);
    }

    /// Defers an effect until everything appended so far has reached `purchase_ack`.
    fn defer_purchase(&mut self, deferred: Deferred) {
        self.waiting.push(self.rules.purchase_ack, self.appended, deferred);
    }

    fn log_release(&mut self, item: ItemId, hold: Hold, reason: ReleaseReason, now: Moment, effects: &mut Effects) {
        let Hold { user, code, .. } = hold;
        let sale = self.terms.sale;
        let event = LogEvent::Released { item, user, code, reason };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        self.defer(Deferred::ReturnQuota { sale, user });
    }

    fn log_refusal(&self, item: ItemId, user: UserId, reason: RefusalReason, now: Moment, effects: &mut Effects) {
        let event = LogEvent::Refused { item, user, reason };
        effects.attempts.push(Record { sale: self.terms.sale, unix_ms: now.unix_ms, event });
    }

    /// Returns whether one more hold could leave a live hold without the block that its end needs.
    fn has_no_room(&self) -> bool {
        // The flush in progress and the one after it may each end with a partial block, hence one block more.
        let pending = (self.appended - self.flushed).div_ceil(BLOCK_RECORDS as u64) + 1;
        pending + self.log_reserve() + 2 > self.log_room
    }

    // --- messages ---
    //
    // `ask`, `answer`, `request` and `reply` are inlined: where the kind of a message is known, a message to the own
    // shard becomes a direct call, and no enum is built and matched.

    #[inline(always)]
    fn ask(&mut self, owner: ShardId, request: Request, now: Moment, effects: &mut Effects) {
        if owner == self.id {
            self.request(owner, request, now, effects);
        } else {
            effects.requests.push((owner, request));
        }
    }

    #[inline(always)]
    fn answer_request(&mut self, waiter: Waiter, outcome: Outcome, now: Moment, effects: &mut Effects) {
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
