//! The machine: shards, lanes, logs, clocks and a database, with the steps and the faults that may happen to them.

use super::any_buyers::AnyBuyers;
use super::auditor::{GrantTime, Now, OpenRequest, audit, product_of, user_of};
use super::disk::{CLUSTER, Disk, purchases_of};
use super::fake_postgres::FakePostgres;
use super::plans;
use super::shadow::Shadow;
use super::trace::Trace;
use super::withdrawals::Withdrawals;
use super::workload;
use crate::log::block::StreamKey;
use crate::log::ownership::{Memory, Owner, Run};
use crate::log::replay::Replay;
use crate::operate::item_states::ItemStates;
use crate::sale::code::CodeGenerator;
use crate::sale::command::{Command, Outcome};
use crate::sale::effects::Effects;
use crate::sale::ids::{ItemId, Moment, SaleId, ShardId, Terms, Ticket, UserId};
use crate::sale::message::{Reply, Request};
use crate::sale::partition::Partition;
use crate::sale::record::{LogEvent, Record};
use crate::sale::rules::{Ack, Rules};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use crate::sale::shard::{Shard, ShardEvent};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uuid::Uuid;

/// Largest number of items per user.
pub const USER_LIMIT: u32 = 2;
/// Duration of a hold, in milliseconds. A plan may have shorter ones.
pub const TTL_MS: u32 = 100;
/// Time by which a hold can be extended, in milliseconds.
pub const EXTENSION_MS: u32 = 60;
/// Time of the wall clock at which a world begins.
pub const BEGIN_MS: u64 = 1_000_000;
/// Length of a sale, in milliseconds.
pub const PERIOD_MS: u64 = 2_000;

/// A message on its way.
#[derive(Debug)]
pub enum Message {
    Request(Request),
    Reply(Reply),
}

/// The smallest step of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A lane delivers its oldest message.
    Deliver((u16, u16, bool)),
    /// A log starts to flush its unflushed records.
    StartFlush(u16),
    /// The flush in progress of a log ends, and its records are durable.
    FinishFlush(u16),
    /// The next sale begins on the first shard.
    NextSale,
}

/// One shard's purchase log in this run.
#[derive(Default)]
pub struct WorldLog {
    pub records: Vec<Record>,
    /// Blocks that flushes may still take, in a world with small logs.
    pub room: u64,
    /// Number of records in the flush in progress.
    pub flushing: Option<usize>,
    pub flushed: usize,
}

/// The simulated machine, its clients and its database.
pub struct World {
    /// Sales of the next run. The schedule of `rules` has the same.
    pub sales: PeriodicSale,
    pub rules: Rules,
    pub partition: Partition,
    pub shards: Vec<Shard>,
    pub item_states: ItemStates,
    pub shadow: Shadow,
    pub database: FakePostgres,
    /// Durable records, by stream.
    pub archive: BTreeMap<StreamKey, Vec<Record>>,
    /// The stream that the latest takeover copied from the database. It is not shipped back.
    pub restored_stream: Option<StreamKey>,
    /// The sales that the latest takeover copied from the database. Users may exceed the limit in them.
    pub taken_over: BTreeSet<SaleId>,
    /// Requests without an answer, by ticket.
    pub pending: BTreeMap<u64, OpenRequest>,
    /// Event since which each free item has been free without interruption.
    pub items_free: BTreeMap<(SaleId, ItemId), u64>,
    /// Event since which each user below the limit has been below it without interruption.
    pub users_free: BTreeMap<(SaleId, UserId), u64>,
    pub steps: u64,
    /// Number of events that shards have applied. A step may apply several.
    pub events: u64,
    pub now: Moment,
    /// The latest time that the wall clock has shown.
    pub latest_unix_ms: u64,
    /// Number of sales that may still begin by [`Action::NextSale`].
    pub sales_to_begin: u32,
    /// Incremented when the wall clock jumps and when the machine is lost. Holds of an earlier era may end at any time.
    pub clock_epoch: u32,
    pub logs: Vec<WorldLog>,
    pub disk: Disk,
    /// Messages in each lane, by sender, receiver, and whether it is the lane for replies.
    pub lanes: BTreeMap<(u16, u16, bool), VecDeque<Message>>,
    /// Requests for which no client waits any more. Their answers may still arrive.
    pub withdrawals: Withdrawals,
    /// The failures of sockets before an answer is written, and the reasons of withdrawals.
    pub sockets: fastrand::Rng,
    /// Whether a shard may receive a message before it has ended the holds that are over, as if there were many of them.
    ends_holds_late: bool,
    /// The buyers that ask for any item.
    pub any_buyers: AnyBuyers,
    /// Whether sockets fail before the answers to granted checkouts are written.
    pub loses_answers: bool,
    /// The time of every grant, by code.
    granted: BTreeMap<[u8; 16], GrantTime>,
    tickets: u64,
    pub owner: Owner,
    pub memory: Memory,
    /// Position of each stream in the database; `None` while it is disconnected.
    pub positions: Option<BTreeMap<StreamKey, u64>>,
    /// The database was restored from its backup and does not have all records again yet.
    pub is_restored: bool,
    pub refused: bool,
    /// Each log has only a few blocks.
    pub has_small_logs: bool,
    /// Number of requests refused because a log was full.
    pub refused_as_full: u64,
    pub traffic: fastrand::Rng,
    pub faults: fastrand::Rng,
    pub trace: Trace,
}

impl World {
    /// Creates the world of `seed`. If `prints_trace`, its trace is printed.
    pub fn new(seed: u64, prints_trace: bool) -> Self {
        let mut faults = fastrand::Rng::with_seed(seed);
        let traffic = fastrand::Rng::with_seed(faults.u64(..));
        let ack = [Ack::Local, Ack::Postgres, Ack::Replicated][faults.usize(0..3)];
        let (items, shards) = (faults.u32(1..6), faults.u16(1..5));
        let schedule = |sales| plans::schedule(seed, sales);
        let mut world = Self::with((items, schedule), shards, ack, traffic, faults, prints_trace);
        (world.sockets, world.loses_answers) = (fastrand::Rng::with_seed(!seed), true);
        world.ends_holds_late = true;
        world.any_buyers = AnyBuyers::new(seed);
        world
    }

    /// Creates a world of the given size, for exhaustive tests.
    ///
    /// The first sale ends in 10 ms, and `sales_to_begin` sales may begin after it.
    pub fn small(items: u32, shards: u16, ack: Ack, sales_to_begin: u32) -> Self {
        let [traffic, faults] = [0, 1].map(fastrand::Rng::with_seed);
        let mut world = Self::with((items, SaleSchedule::Periodic), shards, ack, traffic, faults, false);
        world.now.unix_ms += PERIOD_MS - 10;
        world.sales_to_begin = sales_to_begin;
        world
    }

    fn with(
        (items, schedule): (u32, impl Fn(PeriodicSale) -> SaleSchedule),
        shards: u16,
        ack: Ack,
        traffic: fastrand::Rng,
        faults: fastrand::Rng,
        prints_trace: bool,
    ) -> Self {
        let sales = PeriodicSale {
            period_s: (PERIOD_MS / 1000) as u32,
            items,
            user_limit: USER_LIMIT,
            ttl_ms: TTL_MS,
            extension_ms: EXTENSION_MS,
        };
        let mut world = World {
            sales,
            rules: Rules { schedule: schedule(sales), receipts_ms: PERIOD_MS, ack },
            partition: Partition::new(1),
            shards: Vec::new(),
            item_states: ItemStates::new(Partition::new(1), schedule(sales), &[]),
            shadow: Shadow::default(),
            database: FakePostgres::default(),
            archive: BTreeMap::new(),
            restored_stream: None,
            taken_over: BTreeSet::new(),
            pending: BTreeMap::new(),
            items_free: BTreeMap::new(),
            users_free: BTreeMap::new(),
            steps: 0,
            events: 0,
            clock_epoch: 0,
            now: Moment { monotonic_ms: 1, unix_ms: BEGIN_MS },
            latest_unix_ms: 0,
            sales_to_begin: 0,
            logs: Vec::new(),
            disk: Disk::default(),
            lanes: BTreeMap::new(),
            withdrawals: Withdrawals::default(),
            sockets: fastrand::Rng::with_seed(0),
            ends_holds_late: false,
            any_buyers: AnyBuyers::new(0),
            loses_answers: false,
            granted: BTreeMap::new(),
            tickets: 0,
            owner: Owner { cluster: CLUSTER, run: Run { epoch: 0, id: Uuid::nil() } },
            memory: Memory::default(),
            positions: None,
            is_restored: false,
            refused: false,
            has_small_logs: false,
            refused_as_full: 0,
            traffic,
            faults,
            trace: Trace::new(prints_trace),
        };
        world.start(shards);
        world
    }

    /// Returns the actions that are possible now, apart from commands, time and faults.
    pub fn options(&self) -> Vec<Action> {
        let lanes = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(lane, _)| Action::Deliver(*lane));
        let logs = (0..).zip(&self.logs);
        let logs = logs.filter(|(_, log)| log.flushed < log.records.len()).map(|(shard, log)| match log.flushing {
            None => Action::StartFlush(shard),
            Some(_) => Action::FinishFlush(shard),
        });
        lanes.chain(logs).chain((self.sales_to_begin > 0).then_some(Action::NextSale)).collect()
    }

    /// Makes one of the possible actions happen.
    pub fn make(&mut self, made: Action) {
        self.steps += 1;
        match made {
            Action::Deliver(lane) => self.deliver(lane),
            Action::StartFlush(shard) => {
                let log = &self.logs[usize::from(shard)];
                self.start_flush(shard, log.records.len() - log.flushed, 1);
            }
            Action::FinishFlush(shard) => self.finish_flush(shard),
            Action::NextSale => {
                self.sales_to_begin -= 1;
                let left = PERIOD_MS - self.now.unix_ms % PERIOD_MS;
                self.now = Moment { monotonic_ms: self.now.monotonic_ms + left, unix_ms: self.now.unix_ms + left };
                self.apply(0, ShardEvent::Tick);
            }
        }
    }

    /// Draws the number of steps of this world.
    pub fn length(&mut self) -> u32 {
        self.faults.u32(1..250)
    }

    /// Returns whether the server has refused to continue, as it should.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Returns the hash of the trace.
    pub fn hash(&self) -> u64 {
        self.trace.hash()
    }

    /// Returns the newest sale of any shard.
    pub fn newest_sale(&self) -> SaleId {
        self.shards.iter().map(|shard| shard.newest().sale).max().expect("a world has at least one shard")
    }

    /// Returns the sales that are open on any shard.
    pub fn open_sales(&self) -> Vec<Terms> {
        let open = self.shards.iter().flat_map(|shard| shard.parts().open(self.now));
        open.map(|terms| (terms.sale, *terms)).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// Returns all durable records.
    pub fn durable(&self) -> impl Iterator<Item = &Record> {
        self.archive.values().flatten()
    }

    /// Returns whether every acknowledged purchase must be in the database.
    pub fn promises_postgres(&self) -> bool {
        self.rules.ack.needs_database() && !self.is_restored
    }

    /// Returns whether every promise must be in the database, so that the loss of the machine loses nothing.
    pub fn promises_replication(&self) -> bool {
        self.rules.ack == Ack::Replicated && !self.is_restored
    }

    // --- steps and faults ---

    /// Makes one random step or fault happen.
    pub fn step(&mut self) {
        self.steps += 1;
        match self.faults.u32(0..1000) {
            0..220 => {
                let newest = self.newest_sale();
                let command = workload::next(&mut self.traffic, &self.rules.schedule, newest, &self.shadow);
                let command = self.any_buyers.choose(command);
                let shard = self.traffic.u16(0..self.partition.shards());
                self.command(shard, command);
            }
            220..600 => self.deliver_any(),
            600..760 => self.flush_some(),
            760..860 => self.ship(),
            860..880 => self.give_up(),
            880..940 => self.wait(),
            940..950 => self.wait_for_the_hour(),
            950..960 => self.jump(),
            960..980 => self.crash(),
            980..990 => self.disconnect(),
            990..994 => self.database.back_up(),
            994..996 => self.restore_backup(),
            996..998 => self.take_over(),
            _ => self.damage_disk(),
        }
    }

    fn deliver_any(&mut self) {
        let busy: Vec<_> = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| *key).collect();
        if !busy.is_empty() {
            let lane = busy[self.faults.usize(0..busy.len())];
            self.deliver(lane);
        }
    }

    fn flush_some(&mut self) {
        let shard = self.faults.u16(0..self.partition.shards());
        let log = &self.logs[usize::from(shard)];
        match log.flushing {
            Some(_) => self.finish_flush(shard),
            None => {
                let waiting = log.records.len() - log.flushed;
                let (count, per_block) = (self.faults.usize(0..=waiting), self.faults.usize(1..4));
                self.start_flush(shard, count, per_block);
            }
        }
    }

    fn wait(&mut self) {
        let ms = if self.faults.u32(0..6) == 0 { self.faults.u64(900..1500) } else { self.faults.u64(0..60) };
        self.pass(ms);
    }

    /// Moves the clocks to the start of the next sale or 1 ms before it, when most buyers come.
    fn wait_for_the_hour(&mut self) {
        let left = PERIOD_MS - self.now.unix_ms % PERIOD_MS;
        let early = self.faults.u64(0..2);
        self.pass(left - early.min(left));
    }

    fn pass(&mut self, ms: u64) {
        self.now.monotonic_ms += ms;
        self.now.unix_ms += ms;
        // Only one shard has its turn now. The others learn of a new sale with their next message or command.
        let shard = self.faults.u16(0..self.partition.shards());
        self.apply(shard, ShardEvent::Tick);
    }

    // --- running ---

    /// Recovers from the disk and starts a run with `shards` shards.
    pub fn start(&mut self, shards: u16) {
        self.partition = Partition::new(shards);
        self.archive = self.disk.read().expect("a disk without damage can be read");
        self.archive.retain(|_, records| !records.is_empty());
        self.disk.seal(usize::MAX);
        let mut replay = Replay::new(self.partition, self.rules, (self.rules.schedule.longest_hold_ms(), 0), self.now);
        for record in self.archive.values().flatten() {
            replay.record(record).unwrap_or_else(|error| panic!("{record:?} cannot be replayed: {error}"));
        }
        let (inventories, found) = replay.finish().expect("the log is consistent");
        self.owner.run = Run { epoch: self.owner.run.epoch + 1, id: Uuid::from_u128(self.faults.u128(..)) };
        self.trace.note(format_args!("{} run {} with {shards} shards: {found:?}", self.steps, self.owner.run.epoch));
        self.lanes.clear();
        self.pending.clear();
        self.withdrawals = Withdrawals::default();
        self.any_buyers.numbers.clear();
        self.any_buyers.products.clear();
        self.shards.clear();
        self.items_free.clear();
        self.users_free.clear();
        self.positions = None;
        self.logs = (0..shards).map(|_| WorldLog::default()).collect();
        self.item_states = ItemStates::new(self.partition, self.rules.schedule, &inventories);
        for (id, inventory) in (0..).zip(inventories) {
            let key = purchases_of(self.owner.run.epoch, id);
            self.disk.create(key);
            self.archive.insert(key, Vec::new());
            let mut seed = [id as u8; 32];
            seed[..4].copy_from_slice(&self.owner.run.epoch.to_le_bytes());
            let mut effects = Effects::default();
            let codes = CodeGenerator::new(seed);
            let shard = Shard::new(ShardId(id), self.partition, self.rules, inventory, codes, self.now, &mut effects);
            self.shards.push(shard);
            self.carry_out(id, effects);
        }
        (0..shards).for_each(|shard| self.give_room(shard));
    }

    /// Sends a command to a shard, in a turn of that shard.
    pub fn command(&mut self, shard: u16, command: Command) {
        self.tickets += 1;
        self.any_buyers.note_sent(command);
        let pending = OpenRequest { shard, command, at: self.now, clock_epoch: self.clock_epoch, event: self.events };
        self.trace.note(format_args!("{} #{} at shard {shard}: {command:?}", self.steps, self.tickets));
        self.pending.insert(self.tickets, pending);
        if let Command::Cancel { code } = command
            && let Some(promise) = self.shadow.codes.get_mut(code.as_bytes())
        {
            promise.is_cancel_requested = true;
        }
        self.apply(shard, ShardEvent::Tick);
        self.shards[usize::from(shard)].prepare(self.now);
        self.apply(shard, ShardEvent::Sale(self.newest_sale()));
        self.apply(shard, ShardEvent::Command(Ticket(self.tickets), command));
    }

    /// Delivers the oldest message of a lane, in a turn of the receiver.
    pub fn deliver(&mut self, lane: (u16, u16, bool)) {
        let (from, to, _) = lane;
        let message = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front).expect("the lane has a message");
        self.trace.note(format_args!("{} {from} to {to}: {message:?}", self.steps));
        // Without a tick, the receiver has not ended the holds that are over.
        if !self.ends_holds_late || self.faults.bool() {
            self.apply(to, ShardEvent::Tick);
        }
        self.apply(to, ShardEvent::Sale(self.newest_sale()));
        if let Message::Request(Request::Withdraw { ticket, .. }) = message {
            self.withdrawals.arrives(ticket, ShardId(to));
        }
        match message {
            Message::Request(request) => self.apply(to, ShardEvent::Request(ShardId(from), request)),
            Message::Reply(reply) => self.apply(to, ShardEvent::Reply(reply)),
        }
    }

    /// Starts to flush `count` records of a log, with at most `per_block` in each block.
    pub fn start_flush(&mut self, shard: u16, count: usize, per_block: usize) {
        let (count, per_block) = if self.has_small_logs { self.take_room(shard) } else { (count, per_block) };
        let (key, log) = (purchases_of(self.owner.run.epoch, shard), &mut self.logs[usize::from(shard)]);
        if count > 0 && self.disk.has_room(key, count) {
            let records = &log.records[log.flushed..log.flushed + count];
            self.disk.start_flush(key, records, per_block, log.flushed as u64);
            log.flushing = Some(count);
        }
    }

    /// Ends the flush in progress of a log.
    pub fn finish_flush(&mut self, shard: u16) {
        let (key, log) = (purchases_of(self.owner.run.epoch, shard), &mut self.logs[usize::from(shard)]);
        self.disk.finish_flush(key);
        log.flushed += log.flushing.take().expect("a flush is in progress");
        self.archive.insert(key, log.records[..log.flushed].to_vec());
        if let Some(positions) = &mut self.positions {
            positions.entry(key).or_insert(0);
        }
        let seq = log.flushed as u64;
        self.trace.note(format_args!("{} shard {shard} flushed {seq}", self.steps));
        self.apply(shard, ShardEvent::Flushed(seq));
    }

    /// Applies an event to a shard, carries out its effects, and checks what readers see.
    pub fn apply(&mut self, shard: u16, event: ShardEvent) {
        let mut effects = Effects::default();
        self.latest_unix_ms = self.latest_unix_ms.max(self.now.unix_ms);
        if self.has_small_logs {
            let room = ShardEvent::LogRoom(self.logs[usize::from(shard)].room);
            self.shards[usize::from(shard)].apply(room, self.now, &mut effects);
        }
        self.give_published(shard, &event);
        self.shards[usize::from(shard)].apply(event, self.now, &mut effects);
        self.publish_stock(shard);
        self.events += 1;
        effects.changes.drain(..).for_each(|change| self.item_states.show(ShardId(shard), change));
        self.check_item_states();
        self.note_what_is_free();
        self.carry_out(shard, effects);
    }

    /// Gives a shard the published numbers before an event with which it chooses the shard to ask.
    fn give_published(&mut self, shard: u16, event: &ShardEvent) {
        let (named, product) = match *event {
            ShardEvent::Command(_, Command::CheckoutAny { sale, product, .. }) => (sale, product),
            ShardEvent::Reply(Reply::NoneFree { sale, is_named, product, .. }) => (is_named.then_some(sale), product),
            ShardEvent::Reply(Reply::KeyUnknown { named, product, .. }) => (named, product),
            _ => return,
        };
        let asking = &mut self.shards[usize::from(shard)];
        let Some((sale, product)) = asking.needs_published(named, product, self.now) else { return };
        for id in 0..self.partition.shards() {
            let published = ShardEvent::Published(ShardId(id), self.any_buyers.published(id, sale, product));
            asking.apply(published, self.now, &mut Effects::default());
        }
    }

    /// Returns the only sale that a checkout can have asked for: the one that it names, or the only one that is open.
    fn asked(&self, command: &Command) -> Option<SaleId> {
        let (Command::Checkout { sale, .. } | Command::CheckoutAny { sale, .. }) = command else { return None };
        let named = sale.filter(|_| matches!(self.rules.schedule, SaleSchedule::Planned(_)));
        let mut open = self.open_sales().into_iter();
        named.or(open.next().filter(|_| open.next().is_none()).map(|terms| terms.sale))
    }

    /// Publishes the numbers of a shard, or leaves the earlier ones.
    fn publish_stock(&mut self, shard: u16) {
        let AnyBuyers { publishes_late, numbers, products, chance, .. } = &mut self.any_buyers;
        if !*publishes_late || chance.u32(0..3) == 0 {
            let publishing = &mut self.shards[usize::from(shard)];
            let changed = publishing.take_changed_products();
            products.extend(changed.map(|(sale, product, counts)| ((shard, sale, product), counts)));
            let sales = publishing.parts().iter().map(|part| part.terms.sale);
            numbers.extend(sales.map(|sale| ((shard, sale), publishing.stock_to_publish(sale, None))));
        }
    }

    fn carry_out(&mut self, shard: u16, effects: Effects) {
        self.withdrawals.check(shard, &effects);
        for record in &effects.records {
            if let LogEvent::Checkout { code, .. } = record.event {
                let (number, run) = (self.granted.len(), self.owner.run.epoch);
                let time = GrantTime { number, at: self.now, run, clock_epoch: self.clock_epoch };
                let earlier = self.granted.insert(*code.as_bytes(), time);
                assert!(earlier.is_none(), "a code is issued twice");
                let terms = self.rules.schedule.terms(record.sale).expect("a sale of the schedule");
                assert!(!terms.has_closed(record.unix_ms), "a checkout is granted after its sale has closed");
                assert!(!terms.is_paused, "a checkout is granted in a sale that is paused");
            }
        }
        self.logs[usize::from(shard)].records.extend(effects.records);
        for (to, request) in effects.requests {
            self.lanes.entry((shard, to.0, false)).or_default().push_back(Message::Request(request));
        }
        for (to, reply) in effects.replies {
            self.lanes.entry((shard, to.0, true)).or_default().push_back(Message::Reply(reply));
        }
        for (ticket, outcome) in effects.answers {
            self.answered(shard, ticket, outcome);
        }
    }

    fn answered(&mut self, shard: u16, ticket: Ticket, outcome: Outcome) {
        self.trace.note(format_args!("{} #{}: {outcome:?}", self.steps, ticket.0));
        let granted = outcome.granted();
        let is_abandoned = self.withdrawals.answered(ticket);
        let is_lost = !is_abandoned && granted.is_some() && self.loses_answers && self.sockets.u32(0..16) == 0;
        if is_abandoned || is_lost {
            self.pending.remove(&ticket.0);
            if let Some(code) = granted {
                self.trace.note(format_args!("{} #{} is undelivered", self.steps, ticket.0));
                self.apply(shard, ShardEvent::Undelivered(code));
            }
            return;
        }
        let pending = self.pending.remove(&ticket.0).expect("each request is answered once");
        if self.has_small_logs && outcome == Outcome::LogFull {
            let is_new = pending.command.wants_a_hold();
            assert!(is_new || matches!(pending.command, Command::Extend { .. }), "{pending:?}");
            self.refused_as_full += 1;
            return;
        }
        assert_eq!(pending.shard, shard, "the answer comes from a shard that is not the origin");
        let item = match pending.command {
            Command::Checkout { item, .. } => Some(item),
            Command::CheckoutAny { .. } => None,
            Command::Purchase { code, .. } | Command::Cancel { code } | Command::Extend { code } => {
                self.shadow.codes.get(code.as_bytes()).map(|promise| promise.item)
            }
        };
        let asked = self.asked(&pending.command);
        let now = Now {
            sale: self.newest_sale(),
            asked,
            at: self.now,
            run: self.owner.run.epoch,
            clock_epoch: self.clock_epoch,
            event: self.events,
            rules: &self.rules,
            latest_unix_ms: self.latest_unix_ms,
            granted: granted.map(|code| self.granted[code.as_bytes()]),
            durable: &self.archive,
            replicated: self.promises_replication().then_some(&self.database.tables.rows),
            appended: &self.logs.iter().flat_map(|log| log.records.iter().copied()).collect::<Vec<_>>(),
            any_free_since: asked.and_then(|sale| self.any_free_since(sale, product_of(&pending.command))),
            is_repeated: self.any_buyers.is_repeated(pending.command),
            publishes_late: self.any_buyers.publishes_late,
            item_free_since: asked.zip(item).and_then(|place| self.items_free.get(&place).copied()),
            user_free_since: asked.zip(user_of(&pending.command)).and_then(|user| self.users_free.get(&user).copied()),
        };
        audit(&mut self.shadow, pending, outcome, &now);
    }
}
