//! Shards, lanes, logs and clocks, and the steps that move them.

use super::shadow::Shadow;
use crate::code::{Code, CodeGenerator};
use crate::command::Command;
use crate::message::{Reply, Request};
use crate::partition::Partition;
use crate::record::{Event as Logged, Record};
use crate::replay::Replay;
use crate::sale::State;
use crate::shard::{Effects, Event, Rules, Shard};
use crate::types::{ItemId, Moment, SaleId, ShardId, Ticket, UserId};
use crate::waiting::Watermark;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uuid::Uuid;

const USER_LIMIT: u32 = 2;

/// One move of the world.
#[derive(Clone, Debug)]
pub enum Step {
    /// A buyer reserves.
    Checkout { shard: u16, item: u32, user: i64 },
    /// A buyer buys with some code seen before; `key` 0 is none.
    Purchase { shard: u16, pick: Index, key: u8 },
    /// A buyer gives back.
    Cancel { shard: u16, pick: Index },
    /// Some lane delivers its oldest batch.
    Deliver { pick: Index },
    /// A log becomes durable.
    Flush { shard: u16 },
    /// What is durable of a log comes to Postgres.
    Persist { shard: u16 },
    /// A buyer stops waiting. Whether it bought anything, it cannot know.
    GiveUp { pick: Index },
    /// Time passes.
    Wait { ms: u64 },
    /// All shards die and `shards` start; of what was not flushed, the bits of `keep` decide how much each log kept.
    Crash { shards: u16, keep: u64 },
}

#[derive(Debug)]
enum Message {
    Request(Request),
    Reply(Reply),
}

/// One shard's log: what was appended in this run, and how much of it is durable.
#[derive(Default)]
struct Log {
    records: Vec<Record>,
    flushed: usize,
    persisted: usize,
}

/// The whole machine.
pub struct World {
    rules: Rules,
    partition: Partition,
    now: Moment,
    shards: Vec<Shard>,
    logs: Vec<Log>,
    /// Durable records of earlier runs, in order.
    history: Vec<Record>,
    /// By sender, receiver, and whether it is the lane for replies.
    lanes: BTreeMap<(u16, u16, bool), VecDeque<(SaleId, Message)>>,
    waiting: BTreeMap<u64, (u16, Command)>,
    /// Tickets of buyers who gave up: an answer may still be on its way.
    gave_up: BTreeSet<u64>,
    shadow: Shadow,
    tickets: u64,
    runs: u8,
}

impl World {
    pub fn new(shards: u16, items: u32, purchase_ack: Watermark) -> Self {
        let rules = Rules { period_s: 2, items, user_limit: USER_LIMIT, ttl_ms: 100, purchase_ack };
        let mut world = World {
            rules,
            partition: Partition::new(shards),
            now: Moment { monotonic_ms: 1, unix_ms: 1_000_000 },
            shards: Vec::new(),
            logs: Vec::new(),
            history: Vec::new(),
            lanes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            gave_up: BTreeSet::new(),
            shadow: Shadow::default(),
            tickets: 0,
            runs: 0,
        };
        world.start(shards);
        world
    }

    fn start(&mut self, shards: u16) {
        self.runs = self.runs.wrapping_add(1);
        self.partition = Partition::new(shards);
        let mut replay = Replay::new(self.partition, self.now);
        for record in &self.history {
            replay.record(record).unwrap_or_else(|error| panic!("{record:?} cannot be replayed: {error}"));
        }
        let (inventories, _) = replay.finish(&self.rules).expect("the log is consistent");
        self.lanes.clear();
        self.waiting.clear();
        self.gave_up.clear();
        self.shards.clear();
        self.logs = (0..shards).map(|_| Log::default()).collect();
        for (id, inventory) in (0..).zip(inventories) {
            let mut seed = [self.runs; 32];
            seed[0] = id as u8;
            let mut effects = Effects::default();
            let codes = CodeGenerator::new(seed);
            let shard = Shard::new(ShardId(id), self.partition, self.rules, inventory, codes, self.now, &mut effects);
            self.shards.push(shard);
            self.carry_out(id, effects);
            self.apply(id, Event::LogRoom(u64::MAX));
        }
    }

    pub fn step(&mut self, step: Step) {
        let shards = self.partition.shards();
        match step {
            Step::Checkout { shard, item, user } => {
                self.command(shard % shards, Command::Checkout { item: ItemId(item), user: UserId(user) });
            }
            Step::Purchase { shard, pick, key } => {
                let (code, key) = (self.some_code(pick), Uuid::from_u128(key.into()));
                self.command(shard % shards, Command::Purchase { code, key });
            }
            Step::Cancel { shard, pick } => {
                let code = self.some_code(pick);
                self.command(shard % shards, Command::Cancel { code });
            }
            Step::Deliver { pick } => {
                let busy: Vec<_> =
                    self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| *key).collect();
                if !busy.is_empty() {
                    self.deliver(busy[pick.index(busy.len())]);
                }
            }
            Step::Flush { shard } => self.flush(shard % shards),
            Step::Persist { shard } => self.persist(shard % shards),
            Step::GiveUp { pick } => {
                let ticket = self.waiting.keys().nth(pick.index(self.waiting.len().max(1))).copied();
                if let Some((ticket, (origin, _))) = ticket.and_then(|ticket| self.waiting.remove_entry(&ticket)) {
                    self.gave_up.insert(ticket);
                    self.apply(origin, Event::Withdrawn(Ticket(ticket)));
                }
            }
            Step::Wait { ms } => {
                self.now.monotonic_ms += ms;
                self.now.unix_ms += ms;
                // Not every shard gets a turn at once: the first one drags the others along by its messages.
                self.apply((ms % u64::from(shards)) as u16, Event::Tick);
            }
            Step::Crash { shards, keep } => {
                for (log, bits) in self.logs.iter().zip(0..) {
                    let torn = log.records.len() - log.flushed;
                    let kept = log.flushed + (keep >> (bits * 8) & 0xff) as usize % (torn + 1);
                    self.history.extend(&log.records[..kept]);
                }
                self.start(shards);
            }
        }
    }

    /// A code given out before, or an invented one.
    fn some_code(&self, pick: Index) -> Code {
        let known = self.shadow.codes.len();
        let place = pick.index(known + 1);
        self.shadow.codes.keys().nth(place).map_or(Code::from_bytes([0x88; 16]), |bytes| Code::from_bytes(*bytes))
    }

    fn command(&mut self, shard: u16, command: Command) {
        self.tickets += 1;
        self.waiting.insert(self.tickets, (shard, command));
        self.apply(shard, Event::Tick);
        self.apply(shard, Event::Command(Ticket(self.tickets), command));
    }

    fn deliver(&mut self, lane: (u16, u16, bool)) {
        let (from, to, _) = lane;
        let (sale, message) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front).expect("the lane is busy");
        self.apply(to, Event::Sale(sale));
        match message {
            Message::Request(request) => self.apply(to, Event::Request(ShardId(from), request)),
            Message::Reply(reply) => self.apply(to, Event::Reply(reply)),
        }
    }

    fn flush(&mut self, shard: u16) {
        let log = &mut self.logs[usize::from(shard)];
        log.flushed = log.records.len();
        let seq = log.flushed as u64;
        self.apply(shard, Event::Flushed(seq));
    }

    fn persist(&mut self, shard: u16) {
        let log = &mut self.logs[usize::from(shard)];
        log.persisted = log.flushed;
        let seq = log.persisted as u64;
        self.apply(shard, Event::Persisted(seq));
    }

    fn apply(&mut self, shard: u16, event: Event) {
        let mut effects = Effects::default();
        self.shards[usize::from(shard)].apply(event, self.now, &mut effects);
        self.carry_out(shard, effects);
    }

    fn carry_out(&mut self, shard: u16, effects: Effects) {
        self.logs[usize::from(shard)].records.extend(effects.records);
        let sale = self.shards[usize::from(shard)].terms().sale;
        for (to, request) in effects.requests {
            self.lanes.entry((shard, to.0, false)).or_default().push_back((sale, Message::Request(request)));
        }
        for (to, reply) in effects.replies {
            self.lanes.entry((shard, to.0, true)).or_default().push_back((sale, Message::Reply(reply)));
        }
        let newest = self.shards.iter().map(|shard| shard.terms().sale).max().expect("a world has shards");
        for (ticket, outcome) in effects.answers {
            if self.gave_up.remove(&ticket.0) {
                continue;
            }
            let (origin, command) = self.waiting.remove(&ticket.0).expect("each request is answered once");
            assert_eq!(origin, shard, "answered by a shard that was not asked");
            self.shadow.answered(command, outcome, newest);
        }
    }

    /// How much of a log a purchase may rest on.
    fn promised(&self, log: &Log) -> usize {
        if self.rules.purchase_ack == Watermark::Flushed { log.flushed } else { log.persisted }
    }

    /// The invariants, after every step.
    pub fn check(&self) {
        let durable: Vec<&Record> =
            self.history.iter().chain(self.logs.iter().flat_map(|log| &log.records[..self.promised(log)])).collect();
        for (&(sale, item), (code, _)) in &self.shadow.bought {
            let times = durable
                .iter()
                .filter(|record| record.sale == sale)
                .filter(|record| matches!(record.event, Logged::Purchase { item: of, code: by, .. } if of == item && by == *code))
                .count();
            assert_eq!(times, 1, "an acknowledged purchase of {item:?} is {times} times in the log");
        }
        let sale = self.shards.iter().map(|shard| shard.terms().sale).max().expect("a world has shards");
        let current = self.shards.iter().filter(|shard| shard.terms().sale == sale);
        let (mut taken, mut live) = (0, 0);
        for shard in current {
            let counts = shard.counts();
            taken += shard.quotas().total();
            live += u64::from(counts.held + counts.committing + counts.sold);
            assert!(counts.claiming + counts.held + counts.committing + counts.sold <= shard.stock().items() as u32);
        }
        if self.shards.iter().all(|shard| shard.terms().sale == sale) {
            assert!(live <= taken, "{live} items are taken on {taken} of quota");
        }
        for user in (0..4).map(UserId) {
            let owner = &self.shards[usize::from(self.partition.owner_of_user(user).0)];
            assert!(owner.quotas().taken(user) <= USER_LIMIT);
            assert!(self.shadow.bought_by(user, sale) <= USER_LIMIT as usize, "{user:?} bought too much");
        }
    }

    /// Lets everything in flight arrive. Then nobody waits, and the books balance.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            while let Some(lane) = self.lanes.iter().find(|(_, lane)| !lane.is_empty()).map(|(key, _)| *key) {
                self.deliver(lane);
            }
            (0..self.partition.shards()).for_each(|shard| self.flush(shard));
            (0..self.partition.shards()).for_each(|shard| self.persist(shard));
            (0..self.partition.shards()).for_each(|shard| self.apply(shard, Event::Tick));
            let quiet = self.lanes.values().all(VecDeque::is_empty)
                && self.logs.iter().all(|log| log.flushed == log.records.len());
            if quiet {
                break;
            }
        }
        assert!(self.waiting.is_empty(), "never answered: {:?}", self.waiting);
        let taken: u64 = self.shards.iter().map(|shard| shard.quotas().total()).sum();
        let counts = self.shards.iter().map(Shard::counts);
        let live: u32 =
            counts.map(|counts| counts.held + counts.sold + 1000 * (counts.claiming + counts.committing)).sum();
        assert_eq!(u64::from(live), taken, "the quotas are not what is held and sold");
    }

    /// Once all holds have run out, buyers can still buy exactly the whole stock.
    pub fn sell_out(&mut self) {
        self.now.monotonic_ms += 100;
        self.settle();
        let terms = *self.shards[0].terms();
        for item in (0..terms.items).map(ItemId) {
            let user = UserId(1_000 + i64::from(item.0));
            let shard = item.0 as u16 % self.partition.shards();
            self.command(shard, Command::Checkout { item, user });
            self.settle();
            let code = self.shadow.codes.iter().find(|(_, (sale, _, buyer))| (*sale, *buyer) == (terms.sale, user));
            if let Some(code) = code.map(|(bytes, _)| Code::from_bytes(*bytes)) {
                self.command(shard, Command::Purchase { code, key: Uuid::nil() });
                self.settle();
            }
        }
        let sold = self.shadow.bought.keys().filter(|(sale, _)| *sale == terms.sale).count();
        let lost =
            self.shards.iter().flat_map(|shard| (0..shard.stock().items()).map(|slot| shard.stock().state(slot)));
        assert!(lost.into_iter().all(|state| state == State::Sold), "an item was left over");
        assert!(sold <= terms.items as usize);
    }
}
