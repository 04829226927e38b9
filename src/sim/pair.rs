//! Worlds of a pair: two machines with `--standby` on one database with a synchronous standby. Networks are cut in one
//! direction or in both, processes are stopped and killed, machines are lost, the database fails over, commits come late,
//! vanish, or are seen only on the old primary. Each machine has production shards, blocks and replay; `pair_database`
//! says what is modelled.
//!
//! The owner answers only under its lease. With true clocks, no run answers a request that was sent after a later run has
//! begun to sell. With clocks that count at different speeds, refusals may be wrong, promises may not.

use super::disk::purchases_of;
use super::number;
use super::pair_auditor::{AnswerTime, PairAuditor, PairRequest};
use super::pair_database::{DatabaseClient, Link};
use super::pair_machine::{MachineClock, MachineProcess, PairMachine, ShardStep};
use super::replicated_postgres::{PERIOD_S, ReplicatedPostgres};
use super::trace::Trace;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, Ticket, UserId};
use crate::sale::record::LogEvent;
use crate::sale::rules::{Ack, Rules};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use crate::sale::shard::ShardEvent;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use uuid::Uuid;

/// Number of kinds of faults.
const FAULTS: u32 = 24;
/// Most milliseconds by which a wall clock is ahead.
const AHEAD_MS_MAX: u64 = 20;

/// How often something has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occurrences {
    pub takeovers: u64,
    pub superseded: u64,
    pub vanished: u64,
    pub late: u64,
    /// Requests refused for lack of a lease.
    pub without_lease: u64,
    pub promises: u64,
    pub purchases: u64,
}

/// Two machines and their database.
pub struct Pair {
    /// The sale.
    pub sales: PeriodicSale,
    pub rules: Rules,
    pub machines: [PairMachine; 2],
    pub clients: [DatabaseClient; 2],
    pub database: ReplicatedPostgres,
    /// Whether packets are lost: from each machine to each server, and back.
    pub cuts: [[[bool; 2]; 2]; 2],
    pub auditor: PairAuditor,
    pub pending: BTreeMap<u64, PairRequest>,
    tickets: u64,
    pub true_ms: u64,
    pub steps: u64,
    /// A time from which the watches count. Only differences matter.
    pub start: Instant,
    /// How slowly the processes work with the database, and the largest number of records in a transaction.
    delay: u32,
    pub batch: usize,
    /// Number of faults in 1,000 steps.
    fault_share: u32,
    /// Nothing goes wrong now.
    pub is_calm: bool,
    pub seen: Occurrences,
    pub traffic: fastrand::Rng,
    pub faults: fastrand::Rng,
    pub trace: Trace,
}

impl Pair {
    /// Creates the pair of `seed`. If `prints_trace`, its trace is printed.
    pub fn new(seed: u64, prints_trace: bool) -> Self {
        let mut faults = fastrand::Rng::with_seed(seed ^ 0x9a17);
        let traffic = fastrand::Rng::with_seed(faults.u64(..));
        let ack = if faults.u32(0..4) == 0 { Ack::Postgres } else { Ack::Replicated };
        let has_true_clocks = faults.u32(0..4) > 0;
        let mut clock = || MachineClock {
            boot_ms: faults.u64(1..100_000),
            rate: if has_true_clocks { 1000 } else { faults.u64(700..1400) },
            ahead_ms: faults.u64(0..=AHEAD_MS_MAX),
        };
        let machines = [clock(), clock()].map(PairMachine::new);
        let sales = PeriodicSale {
            period_s: PERIOD_S,
            items: faults.u32(1..6),
            user_limit: faults.u32(1..3),
            ttl_ms: [800, 3_000, 600_000][faults.usize(0..3)],
            extension_ms: 1_000,
        };
        let mut pair = Pair {
            sales,
            rules: Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms: 1_000, ack },
            machines,
            clients: Default::default(),
            database: ReplicatedPostgres::new(ack == Ack::Replicated),
            cuts: Default::default(),
            auditor: PairAuditor::new(has_true_clocks),
            pending: BTreeMap::new(),
            tickets: 0,
            true_ms: 0,
            steps: 0,
            start: Instant::now(),
            delay: 1,
            batch: 12,
            fault_share: 0,
            is_calm: true,
            seen: Occurrences::default(),
            traffic,
            faults,
            trace: Trace::new(prints_trace),
        };
        pair.fault_share = [3, 10, 30][pair.faults.usize(0..3)];
        (pair.delay, pair.batch) = (pair.faults.u32(1..6), [1, 3, 12][pair.faults.usize(0..3)]);
        pair.start_processes();
        pair
    }

    /// Starts a process on each machine that has none.
    pub fn start_processes(&mut self) {
        for machine in 0..2 {
            if let MachineProcess::Down = self.machines[machine].process {
                self.machines[machine].watch(self.rules);
            }
        }
    }

    // --- the network ---

    /// Returns whether packets of a server reach a machine.
    pub fn is_heard(&self, server: usize, machine: usize) -> bool {
        !self.cuts[machine][server][1]
    }

    /// Returns whether packets get through in both directions.
    pub fn is_connected(&self, machine: usize, server: usize) -> bool {
        self.cuts[machine][server] == [false; 2]
    }

    // --- steps ---

    /// Makes one random step or fault happen.
    pub fn step(&mut self) {
        self.steps += 1;
        let machine = self.faults.usize(0..2);
        match self.faults.u32(0..985 + self.fault_share) {
            0..120 => self.buyer(),
            120..400 => self.shard_step(machine),
            400..680 if !self.machines[machine].is_stopped && self.faults.u32(0..self.delay) == 0 => {
                self.database_step(machine);
            }
            680..940 => self.server_step(),
            940..970 => self.wait(),
            970..985 => self.repair(machine),
            985.. => self.fault(machine),
            _ => {}
        }
    }

    fn wait(&mut self) {
        self.true_ms += if self.faults.u32(0..10) == 0 { self.faults.u64(300..2_000) } else { self.faults.u64(1..100) };
        for machine in 0..2 {
            let now = self.machines[machine].now(self.true_ms);
            if let Some(run) = self.machines[machine].selling() {
                (0..run.partition.shards()).for_each(|shard| run.apply(shard, ShardEvent::Tick, now));
            }
            self.answer(machine);
        }
    }

    /// Sends the command of a buyer, mostly to a machine that sells.
    fn buyer(&mut self) {
        let (items, chance) = (self.sales.items, &mut self.traffic);
        let known = self.auditor.promises.len();
        let code = self.auditor.promises.keys().nth(chance.usize(0..=known));
        let code = code.map_or(Code::from_bytes([0x88; 16]), |bytes| Code::from_bytes(*bytes));
        let key = Uuid::from_u128(chance.u128(0..3));
        let (item, user) = (ItemId(chance.u32(0..items)), UserId(chance.i64(0..3)));
        let command = match chance.u32(0..16) {
            0..8 => Command::Checkout { sale: None, item, user, key },
            8..11 => Command::Purchase { code, key },
            11..15 => Command::Cancel { code },
            _ => Command::Extend { code },
        };
        let first = chance.usize(0..2);
        let insists = chance.u32(0..4) == 0;
        let machine = if self.machines[first].selling().is_some() { first } else { 1 - first };
        let now_us = self.machines[machine].now(self.true_ms).monotonic_ms * 1000;
        // Most clients know which machine sells.
        let is_refused = self.machines[machine].selling().is_none_or(|run| run.lease.is_expired_at(now_us));
        if insists || !is_refused {
            self.command(machine, command);
        }
    }

    /// Sends a command to a machine. A machine that does not sell refuses it.
    pub fn command(&mut self, machine: usize, command: Command) {
        self.tickets += 1;
        let (ticket, step) = (self.tickets, self.steps);
        let Some(run) = self.machines[machine].selling() else { return };
        run.backlog.push_back((Ticket(ticket), command));
        let shard = ticket as u16 % run.partition.shards();
        self.trace.note(format_args!("{step} #{ticket} at machine {machine}: {command:?}"));
        self.pending.insert(ticket, PairRequest { machine, shard, command, step });
        if let Command::Cancel { code } = command
            && let Some(promise) = self.auditor.promises.get_mut(code.as_bytes())
        {
            promise.is_cancel_requested = true;
        }
    }

    /// Makes a step of the shards of a machine.
    fn shard_step(&mut self, machine: usize) {
        let PairMachine { process: MachineProcess::Selling(run), is_stopped: false, .. } = &self.machines[machine]
        else {
            return;
        };
        let steps = run.steps();
        if !steps.is_empty() {
            let step = steps[self.faults.usize(0..steps.len())];
            self.make(machine, step);
        }
    }

    /// Makes this step of the shards of a machine.
    pub fn make(&mut self, machine: usize, step: ShardStep) {
        let now = self.machines[machine].now(self.true_ms);
        let PairMachine { process: MachineProcess::Selling(run), disk, archive, epoch, .. } =
            &mut self.machines[machine]
        else {
            unreachable!("only a process that sells has steps");
        };
        match step {
            ShardStep::Serve => {
                let (ticket, command) = run.backlog.pop_front().expect("a request waits");
                if run.lease.is_expired_at(now.monotonic_ms * 1000) {
                    // 503, type `standby`.
                    self.pending.remove(&ticket.0);
                    self.seen.without_lease += 1;
                } else {
                    let shard = self.pending[&ticket.0].shard;
                    run.apply(shard, ShardEvent::Tick, now);
                    run.apply(shard, ShardEvent::Command(ticket, command), now);
                }
            }
            ShardStep::Deliver(lane) => run.deliver(lane, now),
            ShardStep::StartFlush(shard) => {
                let (log, key) = (&mut run.logs[usize::from(shard)], purchases_of(*epoch, shard));
                let records = &log.records[log.flushed..];
                let count = if self.is_calm { records.len() } else { self.faults.usize(1..=records.len()) };
                assert!(disk.has_room(key, count), "the world is too long for the simulated disk");
                disk.start_flush(key, &records[..count], 63, log.flushed as u64);
                log.flushing = Some(count);
            }
            ShardStep::FinishFlush(shard) => {
                let (log, key) = (&mut run.logs[usize::from(shard)], purchases_of(*epoch, shard));
                disk.finish_flush(key);
                log.flushed += log.flushing.take().expect("a flush is in progress");
                archive.insert(key, log.records[..log.flushed].to_vec());
                let flushed = log.flushed as u64;
                run.apply(shard, ShardEvent::Flushed(flushed), now);
            }
        }
        self.answer(machine);
    }

    /// Makes a step of the servers: a statement arrives, or a change arrives at the standby.
    fn server_step(&mut self) {
        let ready = self.ready_sessions();
        match self.faults.usize(0..=ready.len()) {
            place if place < ready.len() => self.database.execute(ready[place].server, ready[place].session),
            _ => _ = self.database.replicate(),
        }
        self.check_restorable();
    }

    /// Returns the sessions at which something arrives now.
    pub fn ready_sessions(&self) -> Vec<Link> {
        let of = |server: usize| self.database.servers[server].sessions.iter().map(move |session| (server, session));
        let ready = [0, 1].into_iter().flat_map(of).filter(|(server, session)| {
            !self.cuts[session.machine][*server][0] && (session.inbox.is_some() || session.is_closed)
        });
        ready.map(|(server, session)| Link { server, session: session.id }).collect()
    }

    /// Checks the answers that leave a machine.
    pub fn answer(&mut self, machine: usize) {
        let is_cut_off = self.is_cut_off(machine);
        let Some(run) = self.machines[machine].selling() else { return };
        let answers = std::mem::take(&mut run.answers);
        let PairMachine { owner, archive, memory, .. } = &self.machines[machine];
        let earliest = MachineClock { boot_ms: 0, rate: 0, ahead_ms: 0 }.read(self.true_ms).unix_ms;
        let now = AnswerTime {
            run: owner.run,
            unix_ms: (earliest, earliest + AHEAD_MS_MAX),
            ack: self.rules.ack,
            user_limit: self.sales.user_limit,
            database: &self.database,
            archive,
            is_cut_off,
            restored: memory.filled.map(|run| purchases_of(run.epoch, 0)),
        };
        for (ticket, outcome) in answers {
            self.trace.note(format_args!("{} #{}: {outcome:?}", self.steps, ticket.0));
            let request = self.pending.remove(&ticket.0).expect("each request is answered once");
            assert_eq!(request.machine, machine, "another machine answers");
            self.seen.promises += u64::from(!self.is_calm && matches!(outcome, Outcome::Reserved { .. }));
            self.seen.purchases += u64::from(!self.is_calm && matches!(outcome, Outcome::Purchased { .. }));
            self.auditor.audit(request, outcome, &now);
        }
    }

    /// Checks that a takeover would restore no user with more items than the limit: no checkout is in the database before the
    /// release that it rests on.
    pub fn check_restorable(&self) {
        if self.rules.ack != Ack::Replicated {
            return;
        }
        let tables = &self.database.servers[self.database.primary()].tables;
        let mut taken = BTreeMap::<ItemId, UserId>::new();
        for record in tables.needed_sales(&self.rules, 0) {
            match record.event {
                LogEvent::Checkout { item, user, .. } => _ = taken.insert(item, user),
                LogEvent::Released { item, .. } => _ = taken.remove(&item),
                _ => {}
            }
        }
        for user in taken.values() {
            let items = taken.values().filter(|of| *of == user).count();
            assert!(items <= self.sales.user_limit as usize, "{user:?} has {items} items in the database");
        }
    }

    // --- faults ---

    fn fault(&mut self, machine: usize) {
        let server = self.faults.usize(0..2);
        let kind = self.faults.u32(0..FAULTS);
        self.make_fault(kind, machine, server);
    }

    fn make_fault(&mut self, kind: u32, machine: usize, server: usize) {
        self.trace.note(format_args!("{} fault {kind} of machine {machine}, server {server}", self.steps));
        match kind {
            0..5 => self.cuts[machine][server] = [self.faults.bool(), self.faults.bool()],
            5..7 => self.cuts[machine] = [[true; 2]; 2],
            7..10 => self.machines[machine].is_stopped = true,
            10..12 => {
                self.disconnect(machine);
                self.end_process(machine);
            }
            12 => self.lose(machine),
            13..16 => _ = self.database.fail_over(),
            16 => self.database.stop_other(),
            17 => self.database.servers[server].end_sessions(),
            18 => self.database.servers[server].end_holder(),
            19 => self.database.servers[server].cancel_wait(),
            20 => {
                self.database.servers[server].cancel_wait();
                self.database.fail_over();
            }
            21..23 => {
                // A firewall resets the connections of a machine, and lets none of its packets through.
                self.database.servers[server].end_sessions_of(machine);
                self.cuts[machine][server] = [true, false];
            }
            _ => self.database.set_emptied(true),
        }
    }

    fn repair(&mut self, machine: usize) {
        let kind = self.faults.u32(0..9);
        self.trace.note(format_args!("{} repair {kind} of machine {machine}", self.steps));
        match kind {
            0..2 => self.cuts[machine] = Default::default(),
            2..4 => self.machines[machine].is_stopped = false,
            4..6 => self.start_processes(),
            6 => self.database.set_emptied(false),
            _ if self.database.is_writable(1 - self.database.primary()) => self.database.stop_other(),
            _ => self.database.rejoin(),
        }
    }

    /// Ends the process of a machine.
    pub fn end_process(&mut self, machine: usize) {
        let keeps = self.faults.u32(0..3);
        let mut sectors = self.faults.fork();
        self.machines[machine].end(|| keeps == 0 || keeps == 1 && sectors.bool());
        self.pending.retain(|_, request| request.machine != machine);
    }

    /// Cuts the power of a machine. No connection is closed. Its disk may be lost, too.
    fn lose(&mut self, machine: usize) {
        self.clients[machine] = DatabaseClient::default();
        self.end_process(machine);
        if self.faults.bool() {
            self.machines[machine].set_aside();
        }
    }

    /// Draws the number of steps.
    fn length(&mut self) -> u32 {
        self.faults.u32(1..900)
    }
}

/// Runs the pair of one seed to its end. Returns the hash of its trace, and what has happened.
fn live(seed: u64, prints_trace: bool) -> (u64, Occurrences) {
    let mut pair = Pair::new(seed, prints_trace);
    if pair.faults.u32(0..4) > 0 {
        pair.settle();
    }
    pair.is_calm = false;
    for _ in 0..pair.length() {
        pair.step();
    }
    pair.calm();
    pair.settle();
    pair.buy_what_is_held();
    pair.sell_out();
    let (vanished, late) = (pair.database.vanished, pair.database.late);
    (pair.trace.hash(), Occurrences { vanished, late, ..pair.seen })
}

/// Every pair keeps all promises, and gives the same trace each time.
#[test]
fn every_pair_keeps_the_promises() {
    let first = number("STAMPEDE_SIM_FIRST", 0);
    let seeds = number("STAMPEDE_SIM_SEEDS", 20_000) / 2;
    let mut sum = Occurrences::default();
    for seed in first..first + seeds {
        let result = catch_unwind(AssertUnwindSafe(|| (live(seed, false), live(seed, false).0)));
        let command = "cargo test --profile tests --workspace --lib sim::pair::one_pair -- --ignored --nocapture";
        let again = format!("STAMPEDE_SIM_FIRST={seed} {command}");
        let Ok(((one, seen), other)) = result else { panic!("seed {seed} breaks a promise; replay it with: {again}") };
        assert_eq!(one, other, "seed {seed} gives two traces: {again}");
        sum.takeovers += seen.takeovers;
        sum.superseded += seen.superseded;
        sum.vanished += seen.vanished;
        sum.late += seen.late;
        sum.without_lease += seen.without_lease;
        sum.promises += seen.promises;
        sum.purchases += seen.purchases;
    }
    println!("{sum:?}");
    let Occurrences { takeovers, superseded, vanished, late, without_lease, promises, purchases } = sum;
    let counts = [takeovers, superseded, vanished, late, without_lease, promises, purchases];
    assert!(seeds < 1_000 || counts.iter().all(|count| *count > seeds / 100), "{sum:?}");
}

/// A fault of each kind at every second point of some runs that are otherwise good, and another one soon after it.
#[test]
fn every_pair_of_faults_at_every_point() {
    let runs = number("STAMPEDE_SIM_SEEDS", 20_000) / 10_000;
    let (mut faults, mut promises) = (0, 0);
    for (seed, kind) in (0..runs.max(1)).flat_map(|seed| (0..FAULTS).map(move |kind| (seed, kind))) {
        for point in (0..300).step_by(2) {
            let mut pair = Pair::new(seed, false);
            pair.settle();
            (pair.is_calm, pair.fault_share, pair.delay, pair.batch) = (false, 0, 1, 12);
            let seller = usize::from(pair.machines[0].selling().is_none());
            let server = pair.database.primary();
            for step in 0..point + 200 {
                pair.step();
                match step {
                    _ if step == point => pair.make_fault(kind, seller, server),
                    _ if step == point + 20 => pair.make_fault((point as u32 + kind) % FAULTS, seller, server),
                    _ => {}
                }
            }
            pair.calm();
            pair.settle();
            pair.buy_what_is_held();
            pair.sell_out();
            (faults, promises) = (faults + 2, promises + pair.seen.promises);
        }
    }
    assert!(promises > faults / 4, "{promises} promises, {faults} faults");
}

/// Replays the pair of the seed in `STAMPEDE_SIM_FIRST` and prints its trace.
#[test]
#[ignore = "replays one seed"]
fn one_pair() {
    live(number("STAMPEDE_SIM_FIRST", 0), true);
}
