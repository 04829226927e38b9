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
//! 5. When the record is flushed or persisted, as `ack` says, the item's owner sends `Answer` to the origin, which answers
//!    the client.
//!
//! A purchase or a cancellation:
//!
//! 1. The origin sends `Confirm` or `Cancel` to the item's owner.
//! 2. The item's owner moves the item to `Buying` or `Free` and appends a record to its purchase log.
//! 3. When the record is flushed or persisted, as `ack` says, a bought item becomes `Sold`, and the item's owner sends
//!    `Answer`.
//!
//! A bought item stays counted. When a hold expires or is cancelled, the item becomes `Free` at once, and:
//!
//! 1. The item's owner appends the release to its purchase log.
//! 2. When the record is flushed or persisted, as `ack` says, it sends `Release` to the user's owner, which counts one
//!    item less.
//!
//! A checkout with an idempotency key that is repeated with the same user, item and key gets the answer of the first,
//! also after the end of its sale: it waits with the first one while that is being decided, and until the grant is
//! durable.
//! A checkout of any item asks one shard after the other, and one with a key the user's owner first (see `any_unit`).
//! A granted checkout whose answer reaches no client is cancelled. The origin reports each such answer to the item's
//! owner, which cancels the hold unless another answer with the same code may have arrived.
//!
//! Sales live side by side (see `parts`). Each message names its sale, directly or by a code, and the owner looks the
//! part up. The origin chooses the sale of a checkout whose client has named none. If that sale closes while the checkout
//! is being decided, the checkout moves to the sale that is open then.
//!
//! `deferred` explains why these effects wait for the log. The steps of the origin are in `origin_steps`, those of the
//! item's owner in `owner_steps`.
//! `apply(event, now, effects)` never awaits, reads no clock, and uses no file or socket.

use crate::sale::code::{Code, CodeGenerator};
use crate::sale::command::{Command, Outcome, Withdrawal};
use crate::sale::deferred::{Deferred, Waiter, Waiting, Watermark};
use crate::sale::effects::{Effects, ItemChange};
use crate::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Terms, Ticket, UserId};
use crate::sale::item_state::{Availability, Hold};
use crate::sale::message::{AnyCheckout, AnyUnit, Checkout, Reply, Request, Verdict};
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::parts::{NeededSales, Parts};
use crate::sale::published_stock::PublishedStock;
use crate::sale::quotas::Quotas;
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::repetitions::Repetitions;
use crate::sale::rules::Rules;
use crate::sale::stock::Stock;

/// Largest number of holds that expire in one turn, so that a whole stock of holds that end together does not stall it.
/// Until its turn comes, a hold that is over can be neither bought nor extended, and a checkout of its item ends it.
const EXPIRIES_PER_TURN: usize = 1024;
/// Number of records that are not flushed yet from which on no hold expires, so that a slow disk does not fill the memory
/// with releases: 1 MiB of records.
const UNFLUSHED_MAX: u64 = 16 * 1024;

/// Largest number of effects that one event releases, so that it does not stall the turn when the database has persisted
/// all purchases of a rush at once.
const DEFERRED_PER_EVENT: usize = 1024;

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
    /// This run's stream of the purchase log is flushed up to this record. Apply it again, in the next turn, as long as
    /// [`Shard::has_due_effects`].
    Flushed(Seq),
    /// This run's stream of the purchase log is persisted in Postgres up to this record. As `Flushed`.
    Persisted(Seq),
    /// What a shard has published about its items. Apply it before a command or a reply that [`needs_published`] says.
    ///
    /// [`needs_published`]: Shard::needs_published
    Published(ShardId, PublishedStock),
    /// No client waits for this ticket any more. Its command has this item, or asks for any.
    Withdrawn(Ticket, Option<ItemId>, Withdrawal),
    /// An answer with this code could not be sent to its client.
    Undelivered(Code),
    /// Free blocks of the purchase log that records of holds may use.
    LogRoom(u64),
}

/// The state that recovery restores and a shard starts with.
pub struct Inventory {
    /// The shard's parts of all sales that it knows, oldest first.
    pub parts: Vec<Part>,
}

impl Inventory {
    /// Returns the part of the sale that has opened last.
    pub fn newest(&self) -> &Part {
        self.parts.last().expect("a shard knows at least one sale")
    }

    /// Returns the oldest sale that was open when the newest one opened, or the newest one.
    pub fn oldest_open(&self) -> SaleId {
        let newest = self.newest().terms;
        let open = self.parts.iter().find(|part| !part.terms.has_closed(newest.opens_ms));
        open.map_or(newest.sale, |part| part.terms.sale)
    }
}

/// The state machine of one shard.
pub struct Shard {
    pub(crate) id: ShardId,
    pub(crate) partition: Partition,
    pub(crate) rules: Rules,
    pub(crate) parts: Parts,
    pub(crate) codes: CodeGenerator,
    appended: Seq,
    flushed: Seq,
    /// Position of this run's stream in Postgres. Earlier runs are shipped first, so it is 0 until they are persisted.
    persisted: Seq,
    pub(crate) waiting: Waiting,
    pub(crate) repetitions: Repetitions,
    /// What the shards have published, by shard.
    pub(crate) published: Vec<PublishedStock>,
    log_room: u64,
}

impl Shard {
    /// Creates a shard that continues with `inventory`. Its first records open the newest sale in its new stream, and
    /// those that overlap with it.
    pub fn new(
        id: ShardId,
        partition: Partition,
        rules: Rules,
        inventory: Inventory,
        codes: CodeGenerator,
        now: Moment,
        effects: &mut Effects,
    ) -> Self {
        let mut parts = Parts::new(id, partition, inventory.parts);
        parts.allocate(&rules);
        let begun_last: Vec<Terms> = parts.begun_last().copied().collect();
        let (waiting, repetitions) = (Waiting::default(), Repetitions::default());
        let mut shard = Shard {
            id,
            partition,
            rules,
            parts,
            codes,
            appended: 0,
            flushed: 0,
            persisted: 0,
            waiting,
            repetitions,
            published: vec![PublishedStock::default(); partition.shards().into()],
            log_room: 0,
        };
        // Before the first sale of a plan, nothing has opened.
        for terms in begun_last {
            shard.append(Record::sale_opened(&terms, now.unix_ms), effects);
        }
        shard
    }

    /// Applies one event, and adds its effects to `effects`.
    pub fn apply(&mut self, event: ShardEvent, now: Moment, effects: &mut Effects) {
        match event {
            ShardEvent::Tick => self.tick(now, effects),
            ShardEvent::Command(ticket, command) => self.command(ticket, command, now, effects),
            ShardEvent::Request(from, request) => self.request(from, request, now, effects),
            ShardEvent::Reply(reply) => self.reply(reply, now, effects),
            ShardEvent::Sale(sale) if sale > self.newest().sale => {
                let terms = self.rules.schedule.terms(sale).expect("all shards have the same schedule");
                self.begin_sales(terms, now, effects);
            }
            ShardEvent::Sale(_) => {}
            ShardEvent::Flushed(seq) => {
                debug_assert!(self.flushed <= seq && seq <= self.appended);
                self.flushed = seq;
                self.apply_deferred(Watermark::Flushed, seq, now, effects);
            }
            ShardEvent::Persisted(seq) => {
                self.persisted = seq;
                self.apply_deferred(Watermark::Persisted, seq, now, effects);
            }
            ShardEvent::Published(shard, numbers) => self.published[usize::from(shard.0)] = numbers,
            ShardEvent::Withdrawn(ticket, item, reason) => {
                let request = Request::Withdraw { ticket, item, reason };
                match item {
                    Some(item) => self.ask(self.partition.owner_of_item(item), request, now, effects),
                    // Any shard may have the answer.
                    None => (0..self.partition.shards()).for_each(|id| self.ask(ShardId(id), request, now, effects)),
                }
            }
            ShardEvent::Undelivered(code) => {
                let place = code.place().expect("the code was minted here");
                self.ask(self.partition.owner_of_item(place.item), Request::Undelivered { code }, now, effects);
            }
            ShardEvent::LogRoom(blocks) => self.log_room = blocks,
        }
    }

    /// Returns whether effects still wait whose records are flushed or persisted already, because one event releases a
    /// limited number of them.
    pub fn has_due_effects(&self) -> bool {
        self.waiting.is_due(Watermark::Flushed, self.flushed)
            || self.waiting.is_due(Watermark::Persisted, self.persisted)
    }

    /// Prepares a sale that opens soon, if one is due. Call it once per turn.
    pub fn prepare(&mut self, now: Moment) {
        self.parts.prepare(&self.rules, now);
    }

    /// Returns the terms of the sale that has opened last. It may have closed.
    pub fn newest(&self) -> &Terms {
        &self.parts.newest().terms
    }

    /// Returns this shard's items of the sale that has opened last.
    pub fn stock(&self) -> &Stock {
        &self.parts.newest().stock
    }

    /// Returns the quotas of this shard's users in the sale that has opened last.
    pub fn quotas(&self) -> &Quotas {
        &self.parts.newest().quotas
    }

    /// Returns the parts of all sales that this shard knows, newest first.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Returns the sales whose records the log must keep.
    pub fn needed_sales(&self) -> NeededSales {
        self.parts.needed()
    }

    /// Returns the time until a sale opens or closes, or the next one must be prepared, in milliseconds, if one does.
    pub fn time_to_next_sale_ms(&self, now: Moment) -> Option<u64> {
        self.parts.time_to_next_sale_ms(&self.rules, now)
    }

    /// Returns when the next hold ends, in monotonic milliseconds. `Tick` then has something to do.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.parts.next_expiry_ms().filter(|_| !self.waits_for_flush())
    }

    /// Returns whether so many records wait for a flush that no hold expires before the next one has ended.
    fn waits_for_flush(&self) -> bool {
        self.appended - self.flushed >= UNFLUSHED_MAX
    }

    /// Returns how many blocks of the purchase log must stay free: one for the end of each hold, and two for each
    /// claim, for the checkout and the end of its hold. A record that is flushed alone takes a whole block.
    pub fn log_reserve(&self) -> u64 {
        let (claiming, held) = self.parts.claiming_and_held();
        held + 2 * claiming
    }

    // --- time ---

    fn tick(&mut self, now: Moment, effects: &mut Effects) {
        let latest = self.rules.schedule.latest(now.unix_ms);
        if let Some(newer) = latest.filter(|latest| latest.sale > self.newest().sale) {
            self.begin_sales(newer, now, effects);
        }
        let expiries = if self.waits_for_flush() { 0 } else { EXPIRIES_PER_TURN };
        for _ in 0..expiries {
            let Some((sale, slot, hold)) = self.parts.expire(now.monotonic_ms) else { break };
            self.expired(sale, slot, hold, now, effects);
        }
        self.close_and_forget(now, effects);
    }

    /// Publishes and logs the end of a hold whose time is over.
    pub(crate) fn expired(&mut self, sale: SaleId, slot: usize, hold: Hold, now: Moment, effects: &mut Effects) {
        self.publish_change(sale, slot, Availability::Available, effects);
        let item = self.partition.item_at(self.id, slot);
        self.log_release((sale, item), hold, ReleaseReason::Expired, now, effects);
    }

    fn close_and_forget(&mut self, now: Moment, effects: &mut Effects) {
        effects.ended.extend(self.parts.close(now));
        self.parts.forget(&self.rules, now);
    }

    /// Begins the sale with the terms `newest`, and before it those that open earlier and are open beside it. All shards
    /// begin the same sales in the same order, whatever their clocks say.
    fn begin_sales(&mut self, newest: Terms, now: Moment, effects: &mut Effects) {
        for terms in self.rules.schedule.open_with(newest, self.newest().sale) {
            self.parts.begin(terms);
            self.append(Record::sale_opened(self.newest(), now.unix_ms), effects);
        }
        self.close_and_forget(now, effects);
    }

    // --- messages ---
    //
    // `ask`, `answer`, `request` and `reply` are inlined: where the kind of a message is known, a message to the own
    // shard becomes a direct call, and no enum is built and matched.

    #[inline(always)]
    pub(crate) fn ask(&mut self, owner: ShardId, request: Request, now: Moment, effects: &mut Effects) {
        if owner == self.id {
            self.request(owner, request, now, effects);
        } else {
            effects.requests.push((owner, request));
        }
    }

    #[inline(always)]
    pub(crate) fn answer_request(&mut self, waiter: Waiter, outcome: Outcome, now: Moment, effects: &mut Effects) {
        self.answer(waiter.origin, Reply::Answer { ticket: waiter.ticket, outcome }, now, effects);
    }

    #[inline(always)]
    pub(crate) fn answer(&mut self, to: ShardId, reply: Reply, now: Moment, effects: &mut Effects) {
        if to == self.id {
            self.reply(reply, now, effects);
        } else {
            effects.replies.push((to, reply));
        }
    }

    #[inline(always)]
    fn reply(&mut self, reply: Reply, now: Moment, effects: &mut Effects) {
        match reply {
            Reply::Claimed { origin, ticket, checkout, asked, verdict } => {
                self.claimed(Waiter { origin, ticket }, checkout, asked, verdict, now, effects);
            }
            Reply::Answer { ticket, outcome } => self.answer_client(ticket, outcome, effects),
            // A sale closes between a `Reserve` and its bounce, and this shard sees it in its next turn at the latest, so
            // the repetitions end.
            Reply::SaleChanged { ticket, item, user, key } => {
                self.checkout(ticket, None, (item, user, key), now, effects);
            }
            Reply::NoneFree { ticket, owner, sale, is_named, product, user, key } => {
                self.search_on(AnyUnit { ticket, sale, is_named, product, user, key }, owner, now, effects);
            }
            Reply::KeyUnknown { ticket, user, key, named, product } => {
                self.search(ticket, AnyCheckout { named, product, user, key }, now, effects);
            }
        }
    }

    #[inline(always)]
    fn request(&mut self, from: ShardId, request: Request, now: Moment, effects: &mut Effects) {
        match request {
            Request::Reserve { ticket, checkout, is_named } => {
                self.reserve(Waiter { origin: from, ticket }, checkout, is_named, now, effects);
            }
            Request::ReserveAny { ticket, sale, is_named, product, user, key } => {
                self.reserve_any(from, AnyUnit { ticket, sale, is_named, product, user, key }, now, effects);
            }
            Request::FindKey { origin, ticket, user, key, scope, product } => {
                self.find_key(Waiter { origin, ticket }, (user, key), scope, product, now, effects);
            }
            Request::Repeat { origin, ticket, checkout, is_named, product } => {
                self.repeat_any(Waiter { origin, ticket }, checkout, is_named, product, now, effects);
            }
            Request::Claim { origin, ticket, checkout, asked } => {
                let verdict = match asked.is_any && !checkout.key.is_nil() {
                    true => self.claim_any(Waiter { origin, ticket }, &checkout, asked, now, effects),
                    false => self.claim(&checkout),
                };
                self.answer(from, Reply::Claimed { origin, ticket, checkout, asked, verdict }, now, effects);
            }
            Request::Release { sale, item, user, key } => self.return_quota(sale, item, user, key),
            Request::Confirm { ticket, code, key } => {
                self.confirm(Waiter { origin: from, ticket }, code, key, now, effects);
            }
            Request::Withdraw { ticket, item, reason } => {
                self.withdraw(Waiter { origin: from, ticket }, item, reason, now, effects);
            }
            Request::Undelivered { code } => self.undelivered(code, now, effects),
            Request::Cancel { ticket, code } => self.cancel(Waiter { origin: from, ticket }, code, now, effects),
            Request::Extend { ticket, code } => self.extend(Waiter { origin: from, ticket }, code, now, effects),
        }
    }

    // --- as user owner ---

    /// Counts the item of a checkout against its user's quota, if the limit allows it. Whether the sale is open is for the
    /// item's owner to decide.
    #[inline(always)]
    pub(crate) fn claim(&mut self, checkout: &Checkout) -> Verdict {
        let is_counted = self.parts.get_mut(checkout.sale).is_some_and(|part| part.quotas.claim(checkout.user));
        if is_counted { Verdict::Granted } else { Verdict::Denied }
    }

    fn return_quota(&mut self, sale: SaleId, item: ItemId, user: UserId, key: u64) {
        if let Some(part) = self.parts.get_mut(sale) {
            part.quotas.release(user);
            part.any_keys.forget(user, key, item);
        }
    }

    // --- the log ---

    fn apply_deferred(&mut self, watermark: Watermark, seq: Seq, now: Moment, effects: &mut Effects) {
        for _ in 0..DEFERRED_PER_EVENT {
            let Some(deferred) = self.waiting.pop(watermark, seq) else { return };
            match deferred {
                Deferred::Answer(waiter, outcome) => self.answer_request(waiter, outcome, now, effects),
                Deferred::FinishPurchase { sale, item, waiter } => {
                    let slot = self.partition.slot_of(item);
                    let part = self.parts.get_mut(sale).expect("a sale with an unfinished purchase is not forgotten");
                    part.stock.sell(slot);
                    self.publish_change(sale, slot, Availability::Sold, effects);
                    if let Some(waiter) = waiter {
                        self.answer_request(waiter, Outcome::Purchased { sale, item }, now, effects);
                    }
                }
                Deferred::ReturnQuota { sale, item, user, key } => {
                    let owner = self.partition.owner_of_user(user);
                    self.ask(owner, Request::Release { sale, item, user, key }, now, effects);
                }
            }
        }
    }

    pub(crate) fn publish_change(&self, sale: SaleId, slot: usize, to: Availability, effects: &mut Effects) {
        effects.changes.push(ItemChange { sale, slot: slot as u32, to });
    }

    pub(crate) fn append(&mut self, record: Record, effects: &mut Effects) {
        self.appended += 1;
        effects.records.push(record);
    }

    /// Returns whether the holds of all records, those of earlier runs included, are as durable as an answer needs.
    pub(crate) fn are_holds_durable(&self) -> bool {
        let reached = match self.rules.ack.hold() {
            Watermark::Flushed => self.flushed,
            // The first record of this run is persisted after all records of earlier runs.
            Watermark::Persisted => self.persisted,
        };
        reached == self.appended
    }

    /// Returns whether Postgres may lack purchases of earlier runs. Records of this run are persisted after them.
    pub(crate) fn may_lack_earlier_purchases(&self) -> bool {
        self.rules.ack.purchase() == Watermark::Persisted && self.persisted == 0
    }

    /// Defers an effect of a hold until everything appended so far is as durable as holds must be.
    pub(crate) fn defer_hold(&mut self, deferred: Deferred) {
        self.waiting.push(self.rules.ack.hold(), self.appended, deferred);
    }

    /// Defers an effect of a purchase until everything appended so far is as durable as purchases must be.
    pub(crate) fn defer_purchase(&mut self, deferred: Deferred) {
        self.waiting.push(self.rules.ack.purchase(), self.appended, deferred);
    }

    pub(crate) fn log_release(
        &mut self,
        (sale, item): (SaleId, ItemId),
        hold: Hold,
        reason: ReleaseReason,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Hold { user, code, .. } = hold;
        let event = LogEvent::Released { item, user, code, reason };
        self.append(Record { sale, unix_ms: now.unix_ms, event }, effects);
        let slot = self.partition.slot_of(item);
        let key = self.parts.get(sale).map_or(0, |part| part.stock.checkout_key(slot));
        self.defer_hold(Deferred::ReturnQuota { sale, item, user, key });
    }

    /// Logs a refused checkout. With `is_any`, the client has not asked for this item, but for any.
    pub(crate) fn log_refusal(
        &self,
        checkout: &Checkout,
        reason: RefusalReason,
        is_any: bool,
        now: Moment,
        effects: &mut Effects,
    ) {
        let Checkout { sale, item, user, .. } = *checkout;
        let event = LogEvent::Refused { item: (!is_any).then_some(item), user, reason };
        effects.attempts.push(Record { sale, unix_ms: now.unix_ms, event });
    }

    /// Returns whether one more hold could leave a live hold without the block that its end needs.
    pub(crate) fn has_no_room(&self) -> bool {
        // The first flush in progress and the one after all of them may each end with a partial block, hence one more.
        let pending = (self.appended - self.flushed).div_ceil(BLOCK_RECORDS as u64) + 1;
        pending + self.log_reserve() + 2 > self.log_room
    }
}
