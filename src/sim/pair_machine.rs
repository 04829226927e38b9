//! A machine of a pair: its clocks, its disk, and the process that runs on it, with production shards, blocks and replay.

use super::disk::{CLUSTER, Disk, purchases_of};
use super::replicated_postgres::PATIENCE;
use super::world::{Message, WorldLog};
use crate::config::settings::{PairTimes, RecoverFrom};
use crate::log::block::StreamKey;
use crate::log::ownership::{Memory, Owner, Run, judge_owner};
use crate::log::replay::Replay;
use crate::operate::lease::Lease;
use crate::postgres::owner_row::Positions;
use crate::postgres::owner_watch::OwnerWatch;
use crate::sale::code::CodeGenerator;
use crate::sale::command::{Command, Outcome};
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, ShardId, Ticket};
use crate::sale::partition::Partition;
use crate::sale::record::Record;
use crate::sale::rules::Rules;
use crate::sale::shard::{Inventory, Shard, ShardEvent};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The defaults of `--standby-heartbeat` and `--standby-patience`.
pub const TIMES: PairTimes = PairTimes { heartbeat: Duration::from_millis(500), patience: PATIENCE };

/// The clocks of a machine, computed from the true time.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock {
    pub boot_ms: u64,
    /// Milliseconds that the monotonic clock counts in a second.
    pub rate: u64,
    /// Milliseconds by which the wall clock is ahead.
    pub ahead_ms: u64,
}

impl MachineClock {
    /// Returns what the clocks show.
    pub fn read(&self, true_ms: u64) -> Moment {
        Moment {
            monotonic_ms: self.boot_ms + true_ms * self.rate / 1000,
            unix_ms: 1_000_000_000_000 + true_ms + self.ahead_ms,
        }
    }
}

/// What the process of a machine does.
pub enum MachineProcess {
    /// There is none.
    Down,
    /// It watches the other one.
    Standing(Box<OwnerWatch>),
    /// It has recovered from its log, and claims the database before it sells.
    Claiming(Vec<Inventory>),
    /// It sells, if it has a lease.
    Selling(Box<SellingRun>),
}

/// The shards of a process that sells, their lanes and logs, and its requests.
pub struct SellingRun {
    pub partition: Partition,
    pub shards: Vec<Shard>,
    pub lanes: BTreeMap<(u16, u16, bool), VecDeque<Message>>,
    pub logs: Vec<WorldLog>,
    /// Requests that have arrived and were not read.
    pub backlog: VecDeque<(Ticket, Command)>,
    /// Answers that leave with the end of the turn.
    pub answers: Vec<(Ticket, Outcome)>,
    pub lease: Lease,
    /// Position of each stream in the database; `None` while it is disconnected.
    pub positions: Option<Positions>,
    /// Beginning of the latest transaction that has found this run to be the owner, in microseconds since boot.
    pub confirmed_us: u64,
    /// Time of the next report.
    pub report_ms: u64,
}

/// A machine.
pub struct PairMachine {
    pub clock: MachineClock,
    pub disk: Disk,
    /// The data directory is new.
    pub is_new: bool,
    /// What `control.json` has: the epoch of the latest run, and the memory of the database.
    pub epoch: u32,
    pub memory: Memory,
    pub process: MachineProcess,
    /// The process is stopped by SIGSTOP.
    pub is_stopped: bool,
    /// The latest run. Its epoch is that of `control.json` as soon as it has recovered.
    pub owner: Owner,
    /// Durable records, by stream.
    pub archive: BTreeMap<StreamKey, Vec<Record>>,
    /// The owner and the positions that the process found at its first claim.
    pub first_found: Option<(Owner, Positions)>,
    /// Number of times that the process has waited for the other one.
    pub waits: u32,
    /// The data directory was new before the latest wait.
    pub was_new: bool,
}

impl PairMachine {
    /// Creates a machine with an empty disk, on which nothing runs.
    pub fn new(clock: MachineClock) -> Self {
        PairMachine {
            clock,
            disk: Disk::default(),
            is_new: true,
            epoch: 0,
            memory: Memory::default(),
            process: MachineProcess::Down,
            is_stopped: false,
            owner: Owner { cluster: CLUSTER, run: Run { epoch: 0, id: Uuid::nil() } },
            archive: BTreeMap::new(),
            first_found: None,
            waits: 0,
            was_new: true,
        }
    }

    /// Returns the run that sells.
    pub fn selling(&mut self) -> Option<&mut SellingRun> {
        match &mut self.process {
            MachineProcess::Selling(run) => Some(run),
            _ => None,
        }
    }

    /// Makes the data directory new.
    pub fn set_aside(&mut self) {
        (self.disk, self.is_new, self.epoch, self.memory) = (Disk::default(), true, 0, Memory::default());
    }

    /// Starts to watch the other machine, as `process::standing_by` does. A process does so at its start, and when the other
    /// machine has claimed the database first.
    pub fn watch(&mut self, rules: Rules) {
        (self.waits, self.was_new) = (self.waits + 1, self.is_new);
        self.process = MachineProcess::Standing(Box::new(OwnerWatch::new(rules, RecoverFrom::Auto, Some(TIMES))));
    }

    /// Ends the process. `is_kept` says of each sector in flight whether it was written.
    pub fn end(&mut self, is_kept: impl FnMut() -> bool) {
        self.disk.tear(is_kept);
        (self.process, self.is_stopped, self.waits, self.first_found) = (MachineProcess::Down, false, 0, None);
    }

    /// Fills the new data directory with the records of a takeover, as `postgres::restore` does.
    pub fn fill(&mut self, owner: Owner, records: &[Record]) {
        let run = owner.run;
        assert!(self.is_new, "a takeover fills a new data directory");
        (self.is_new, self.epoch) = (false, run.epoch);
        self.memory = Memory { seen: Some(run), filled: Some(run), ..Memory::default() };
        let key = purchases_of(run.epoch, 0);
        if !records.is_empty() {
            self.disk.create(key);
            self.disk.start_flush(key, records, 63, 0);
            self.disk.finish_flush(key);
        }
    }

    /// Returns whether the next run of the data directory may continue after `found`. `None`: an operator must decide.
    pub fn is_own(&self, found: Owner) -> Option<bool> {
        use crate::log::ownership::Conflict;
        let next = Owner { cluster: CLUSTER, run: Run { epoch: self.epoch + 1, id: Uuid::nil() } };
        match judge_owner(next, self.memory, Some(found), RecoverFrom::Auto) {
            _ if self.is_new => Some(false),
            Ok(()) => Some(true),
            Err(Conflict::DirectoryOlder(_)) => Some(false),
            Err(_) => None,
        }
    }

    /// Recovers from the disk, as the run with this id.
    pub fn recover(&mut self, rules: Rules, id: Uuid, shards: u16, now: Moment) {
        self.archive = self.disk.read().expect("a disk without damage can be read");
        self.archive.retain(|_, records| !records.is_empty());
        self.disk.seal(usize::MAX);
        let mut replay = Replay::new(Partition::new(shards), rules, (rules.schedule.longest_hold_ms(), 0), now);
        for record in self.archive.values().flatten() {
            replay.record(record).unwrap_or_else(|error| panic!("{record:?} cannot be replayed: {error}"));
        }
        let (inventories, _) = replay.finish().expect("the log is consistent");
        (self.is_new, self.epoch) = (false, self.epoch + 1);
        (self.owner.run, self.first_found) = (Run { epoch: self.epoch, id }, None);
        self.process = MachineProcess::Claiming(inventories);
    }

    /// Starts the shards, after the claim.
    pub fn begin(&mut self, rules: Rules, now: Moment) {
        let MachineProcess::Claiming(inventories) = std::mem::replace(&mut self.process, MachineProcess::Down) else {
            panic!("a process sells only after its claim");
        };
        let partition = Partition::new(inventories.len() as u16);
        let mut run = SellingRun {
            partition,
            shards: Vec::new(),
            lanes: BTreeMap::new(),
            logs: inventories.iter().map(|_| WorldLog::default()).collect(),
            backlog: VecDeque::new(),
            answers: Vec::new(),
            lease: Lease::default(),
            positions: None,
            confirmed_us: 0,
            report_ms: 0,
        };
        run.lease.require();
        for (id, inventory) in (0..).zip(inventories) {
            let key = purchases_of(self.epoch, id);
            self.disk.create(key);
            self.archive.insert(key, Vec::new());
            let mut seed = [0; 32];
            seed[..16].copy_from_slice(self.owner.run.id.as_bytes());
            seed[16] = id as u8;
            let mut effects = Effects::default();
            let codes = CodeGenerator::new(seed);
            run.shards.push(Shard::new(ShardId(id), partition, rules, inventory, codes, now, &mut effects));
            run.carry_out(id, effects);
        }
        self.process = MachineProcess::Selling(Box::new(run));
    }

    /// Reads the clocks.
    pub fn now(&self, true_ms: u64) -> Moment {
        self.clock.read(true_ms)
    }

    /// Returns the time for the watch, of which only differences count.
    pub fn instant(&self, start: Instant, true_ms: u64) -> Instant {
        start + Duration::from_millis(self.now(true_ms).monotonic_ms)
    }
}

/// A step of the shards.
#[derive(Clone, Copy, Debug)]
pub enum ShardStep {
    /// A request is read from its socket.
    Serve,
    Deliver((u16, u16, bool)),
    StartFlush(u16),
    FinishFlush(u16),
}

impl SellingRun {
    /// Returns the steps that are possible now.
    pub fn steps(&self) -> Vec<ShardStep> {
        let lanes = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(lane, _)| ShardStep::Deliver(*lane));
        let logs = (0..).zip(&self.logs).filter(|(_, log)| log.flushed < log.records.len());
        let logs = logs.map(|(shard, log)| match log.flushing {
            None => ShardStep::StartFlush(shard),
            Some(_) => ShardStep::FinishFlush(shard),
        });
        (!self.backlog.is_empty()).then_some(ShardStep::Serve).into_iter().chain(lanes).chain(logs).collect()
    }

    /// Applies an event to a shard.
    pub fn apply(&mut self, shard: u16, event: ShardEvent, now: Moment) {
        let mut effects = Effects::default();
        self.shards[usize::from(shard)].apply(ShardEvent::LogRoom(u64::MAX), now, &mut effects);
        self.shards[usize::from(shard)].apply(event, now, &mut effects);
        self.carry_out(shard, effects);
    }

    /// Delivers the oldest message of a lane.
    pub fn deliver(&mut self, lane: (u16, u16, bool), now: Moment) {
        let message = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front).expect("the lane has a message");
        let (from, to, _) = lane;
        self.apply(to, ShardEvent::Tick, now);
        match message {
            Message::Request(request) => self.apply(to, ShardEvent::Request(ShardId(from), request), now),
            Message::Reply(reply) => self.apply(to, ShardEvent::Reply(reply), now),
        }
    }

    fn carry_out(&mut self, shard: u16, effects: Effects) {
        self.logs[usize::from(shard)].records.extend(effects.records);
        for (to, request) in effects.requests {
            self.lanes.entry((shard, to.0, false)).or_default().push_back(Message::Request(request));
        }
        for (to, reply) in effects.replies {
            self.lanes.entry((shard, to.0, true)).or_default().push_back(Message::Reply(reply));
        }
        self.answers.extend(effects.answers);
    }
}
