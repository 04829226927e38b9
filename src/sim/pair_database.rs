//! What the process of a machine does with the database: it watches, takes over, claims and reports.
//!
//! The steps are those of `process::standing_by`, `postgres::{restore, claim, shipper}`, which await each statement. Here,
//! each statement and each answer is a step of the world. The verdicts are those of production: [`OwnerWatch::judge`],
//! [`judge`], [`remembered`], the lease, and the shards' rules about what waits for a commit.
//!
//! [`OwnerWatch::judge`]: crate::postgres::owner_watch::OwnerWatch::judge

use super::disk::{CLUSTER, purchases_of, stream_of};
use super::pair::Pair;
use super::pair_machine::{MachineProcess, PairMachine, TIMES};
use super::replicated_postgres::{Change, DatabaseReply, RowBatch, Statement};
use crate::config::settings::RecoverFrom;
use crate::log::block::StreamKey;
use crate::log::ownership::{Conflict, Memory, Owner, Run};
use crate::postgres::claim::{judge, remembered};
use crate::postgres::owner_row::{OwnerRow, Positions};
use crate::postgres::owner_watch::{OwnerState, patience_without_session};
use crate::sale::record::Record;
use crate::sale::shard::ShardEvent;
use uuid::Uuid;

/// Maximum number of claims of a process that was not the first one, as in `process::standing_by`.
const CLAIMS_MAX: u32 = 3;

/// The transaction of a process, and what it needs when the transaction is committed.
pub enum Task {
    /// Take over from this owner. The new owner and the records follow from what was read.
    TakeOver(OwnerRow, Option<(Owner, Vec<Record>)>),
    /// Make the run the owner. The position of each stream follows from what was read.
    Claim(Positions),
    /// Bring these rows, or none, and report.
    Report(RowBatch),
}

/// The connection of a process.
#[derive(Clone, Copy)]
pub struct Link {
    pub server: usize,
    pub session: u64,
}

/// The connection and the transaction of a machine's process.
#[derive(Default)]
pub struct DatabaseClient {
    pub link: Option<Link>,
    /// The transaction, and the time since boot at which it began, in microseconds.
    pub task: Option<(Task, u64)>,
}

impl Pair {
    /// Makes one step of the process of a machine with its database.
    pub fn database_step(&mut self, machine: usize) {
        if self.clients[machine].task.is_some() {
            return self.receive(machine);
        }
        match &mut self.machines[machine].process {
            MachineProcess::Down => {}
            MachineProcess::Standing(_) => self.look(machine),
            MachineProcess::Claiming(_) => self.begin_claim(machine),
            MachineProcess::Selling(run) if run.positions.is_none() => self.begin_claim(machine),
            MachineProcess::Selling(_) => self.begin_report(machine),
        }
    }

    // --- connections ---

    /// Opens a session on a server that the machine reaches and that accepts writes.
    fn connect(&mut self, machine: usize) -> Option<Link> {
        let may_use = |server: &usize| self.is_connected(machine, *server) && self.database.is_writable(*server);
        let servers: Vec<usize> = [0, 1].into_iter().filter(may_use).collect();
        if servers.is_empty() || self.database.is_emptied && self.database.is_synchronous {
            return None;
        }
        let server = servers[self.faults.usize(0..servers.len())];
        let session = self.database.open(server, machine);
        self.clients[machine].link = Some(Link { server, session });
        self.clients[machine].link
    }

    /// Returns whether the session of a process has ended without the process knowing it. The standby may then take over
    /// before the lease ends. A process learns of it with its next report, unless its network fails at the same time.
    pub fn is_cut_off(&self, machine: usize) -> bool {
        let is_gone = |link: Link| {
            let mut sessions = self.database.servers[link.server].sessions.iter();
            sessions.all(|session| session.id != link.session)
        };
        self.clients[machine].link.is_some_and(is_gone)
    }

    /// Closes the connection of a process. The server learns of it when the network lets it through.
    pub fn disconnect(&mut self, machine: usize) {
        self.clients[machine].task = None;
        if let Some(Link { server, session }) = self.clients[machine].link.take()
            && let Some(session) = self.database.servers[server].session(session)
        {
            session.is_closed = true;
        }
        if let Some(run) = self.machines[machine].selling() {
            run.positions = None;
            run.lease.shorten(run.confirmed_us + patience_without_session(TIMES).as_micros() as u64);
        }
    }

    fn send(&mut self, machine: usize, statement: Statement) {
        let Some(Link { server, session }) = self.clients[machine].link else { return };
        self.trace.note(format_args!("{} machine {machine} to server {server}: {}", self.steps, name(&statement)));
        if let Some(session) = self.database.servers[server].session(session) {
            session.inbox = Some(statement);
        }
    }

    fn begin(&mut self, machine: usize, task: Task, statement: Statement, began_us: u64) {
        self.clients[machine].task = Some((task, began_us));
        self.send(machine, statement);
    }

    /// Takes the answer to the statement in progress, if it has arrived. If the session has ended, or the wait is too long,
    /// the transaction is in doubt, and the connection is closed.
    fn receive(&mut self, machine: usize) {
        let Some(Link { server, session }) = self.clients[machine].link else { return self.disconnect(machine) };
        let is_heard = self.is_heard(server, machine);
        let reply = match self.database.servers[server].session(session) {
            _ if !is_heard => None,
            None => return self.disconnect(machine),
            Some(session) => session.outbox.take(),
        };
        let Some(reply) = reply else {
            let is_cut = !self.is_connected(machine, server);
            if !self.is_calm && self.faults.u32(0..if is_cut { 16 } else { 256 }) == 0 {
                self.disconnect(machine);
            }
            return;
        };
        self.trace.note(format_args!("{} machine {machine} hears {}", self.steps, reply_name(&reply)));
        let (task, began_us) = self.clients[machine].task.take().expect("an answer belongs to a transaction");
        match (task, reply) {
            (Task::TakeOver(found, None), DatabaseReply::Locked(row, _, tables)) if row == Some(found) => {
                let now = self.machines[machine].now(self.true_ms);
                let records = tables.needed_sales(&self.rules, now.unix_ms);
                let run = Run { epoch: found.owner.run.epoch + 1, id: self.new_id() };
                let owner = Owner { cluster: CLUSTER, run };
                let positions = vec![(purchases_of(run.epoch, 0), records.len() as u64)];
                let change = Change { owner, ack: self.rules.ack, seen_us: None, positions, rows: Vec::new() };
                self.begin(machine, Task::TakeOver(found, Some((owner, records))), Statement::Commit(change), began_us);
            }
            (Task::TakeOver(_, Some((owner, records))), DatabaseReply::Committed { counts }) if counts => {
                self.disconnect(machine);
                self.seen.takeovers += 1;
                self.machines[machine].fill(owner, &records);
                self.recover(machine);
            }
            (Task::Claim(_), DatabaseReply::Locked(row, positions, _)) => {
                self.judge_claim(machine, row, &positions, began_us);
            }
            (Task::Claim(positions), DatabaseReply::Committed { counts }) if counts => {
                self.claimed(machine, positions, began_us);
            }
            (Task::Report(rows), DatabaseReply::Fenced) => {
                let end = |(key, from, records): &(_, u64, Vec<Record>)| (*key, from + records.len() as u64);
                let (owner, positions) = (self.machines[machine].owner, rows.iter().map(end).collect());
                let (ack, seen_us) = (self.rules.ack, Some(0));
                let change = Change { owner, ack, seen_us, positions, rows: rows.clone() };
                self.begin(machine, Task::Report(rows), Statement::Commit(change), began_us);
            }
            (Task::Report(rows), DatabaseReply::Committed { counts }) if counts => {
                self.reported(machine, &rows, began_us);
            }
            (Task::Report(_), DatabaseReply::Superseded) => self.superseded(machine),
            _ => self.disconnect(machine),
        }
    }

    // --- the standby ---

    /// Looks at the database once, and does what the verdict demands.
    fn look(&mut self, machine: usize) {
        let instant = self.machines[machine].instant(self.start, self.true_ms);
        let MachineProcess::Standing(watch) = &mut self.machines[machine].process else { unreachable!() };
        // Without an answer, the time of silence begins anew.
        let seen = watch.take_seen();
        let Some(Link { server, session }) = self.clients[machine].link.or_else(|| self.connect(machine)) else {
            return;
        };
        let is_alive = self.database.servers[server].session(session).is_some();
        if !self.is_connected(machine, server) || !is_alive || self.database.is_emptied {
            return self.disconnect(machine);
        }
        let Some((found, is_locked)) = self.database.servers[server].look() else { return self.recover(machine) };
        let MachineProcess::Standing(watch) = &mut self.machines[machine].process else { unreachable!() };
        let state = watch.judge(seen, (found, is_locked), instant);
        match self.machines[machine].is_own(found.owner) {
            Some(true) => return self.recover(machine),
            Some(false) => {}
            None => return self.give_up(machine, "the database is older"),
        }
        if let OwnerState::Replaceable(found) = state {
            self.trace.note(format_args!("{} machine {machine} replaces {found:?}", self.steps));
            // A takeover has connections of its own, perhaps to another host.
            self.disconnect(machine);
            self.machines[machine].set_aside();
            let Some(Link { server, .. }) = self.connect(machine) else { return };
            self.database.servers[server].end_holder();
            self.begin(machine, Task::TakeOver(found, None), Statement::Lock, 0);
        }
    }

    /// Recovers from the log, and goes on to claim the database.
    fn recover(&mut self, machine: usize) {
        self.disconnect(machine);
        let (id, shards) = (self.new_id(), self.faults.u16(1..4));
        let now = self.machines[machine].now(self.true_ms);
        self.machines[machine].recover(self.rules, id, shards, now);
        let owner = self.machines[machine].owner;
        self.trace.note(format_args!("{} machine {machine} claims as {owner:?}", self.steps));
    }

    // --- claims ---

    fn begin_claim(&mut self, machine: usize) {
        let began_us = self.machines[machine].now(self.true_ms).monotonic_ms * 1000;
        if self.connect(machine).is_some() {
            self.begin(machine, Task::Claim(Positions::new()), Statement::Lock, began_us);
        }
    }

    /// Judges what a claim has read, as `postgres::claim` does.
    fn judge_claim(&mut self, machine: usize, row: Option<OwnerRow>, positions: &Positions, began_us: u64) {
        let PairMachine { owner, memory, archive, first_found, .. } = &self.machines[machine];
        let found = row.map(|row| row.owner);
        let is_kept = |key: &_| archive.contains_key(key);
        let memory = remembered(*memory, first_found.as_ref(), (*owner, found, positions), is_kept);
        let end = |(key, records): (&StreamKey, &Vec<Record>)| {
            (stream_of(*key), 0, (key.epoch < owner.run.epoch).then_some(records.len() as u64))
        };
        let extents: Vec<_> = archive.iter().map(end).collect();
        let (owner, ack) = (*owner, self.rules.ack);
        let streams = match judge((owner, memory), (found, positions), &extents, RecoverFrom::Auto) {
            Ok(streams) => streams,
            Err(Conflict::DirectoryOlder(_)) => return self.superseded(machine),
            Err(_) => {
                let first = first_found.as_ref().map(|(first, _)| first.run);
                self.check_refusal(first, owner.run, machine);
                return self.give_up(machine, "the database is older");
            }
        };
        let known = &mut self.machines[machine];
        if known.first_found.is_none() {
            known.first_found = found.map(|found| (found, positions.clone()));
        }
        known.memory = Memory { is_exclusive: false, ..memory.claiming(found, owner.run) };
        let positions: Positions = streams.into_iter().map(|(stream, at)| (stream.key(), at)).collect();
        let moved = positions.iter().map(|(key, at)| (*key, *at)).collect();
        let change = Change { owner, ack, seen_us: Some(0), positions: moved, rows: Vec::new() };
        self.begin(machine, Task::Claim(positions), Statement::Commit(change), began_us);
    }

    /// Checks that a process refuses the primary only if its first claim has found what the primary lacks: nothing, or a run
    /// that only an old primary has.
    fn check_refusal(&self, first: Option<Run>, own: Run, machine: usize) {
        let primary = self.database.primary();
        let is_old = self.clients[machine].link.is_none_or(|link| link.server != primary);
        let has_run = |run: Run| self.database.servers[primary].log.iter().any(|change| change.owner.run == run);
        let is_known = first.is_some_and(|first| first != own && has_run(first));
        assert!(is_old || !is_known, "machine {machine} refuses a database that it has claimed before");
    }

    fn claimed(&mut self, machine: usize, positions: Positions, began_us: u64) {
        let now = self.machines[machine].now(self.true_ms);
        if let MachineProcess::Claiming(_) = self.machines[machine].process {
            // The persistence thread makes the claim again.
            self.disconnect(machine);
            return self.machines[machine].begin(self.rules, now);
        }
        let Some(Link { server, session }) = self.clients[machine].link else { unreachable!() };
        let id = self.machines[machine].owner.run.id;
        if let Some(session) = self.database.servers[server].session(session) {
            session.run = Some(id);
        }
        self.confirmed(machine, began_us);
        let run = self.machines[machine].selling().expect("the process sells");
        run.report_ms = 0;
        run.positions = Some(positions.clone());
        positions.into_iter().for_each(|(key, at)| self.publish(machine, key, at));
    }

    /// Ends the claim or the run of a process whose database names another run.
    fn superseded(&mut self, machine: usize) {
        self.trace.note(format_args!("{} machine {machine} is superseded", self.steps));
        self.disconnect(machine);
        if self.machines[machine].selling().is_some() {
            // The program starts anew.
            self.seen.superseded += 1;
            self.end_process(machine);
        } else if self.machines[machine].waits >= CLAIMS_MAX {
            return self.give_up(machine, "the directory is older");
        } else if self.machines[machine].was_new {
            self.machines[machine].set_aside();
        }
        self.machines[machine].watch(self.rules);
    }

    /// Ends the process for good: an operator must decide. That is right if the database has lost what the directory had seen
    /// there, which may have been on an old primary only. It had taken over nothing that can be lost.
    fn give_up(&mut self, machine: usize, why: &str) {
        self.trace.note(format_args!("{} machine {machine} ends: {why}", self.steps));
        let log = &self.database.servers[self.database.primary()].log;
        let has_run = |run: Run| log.iter().any(|change| change.owner.run == run);
        let is_filled = self.machines[machine].memory.filled.is_none_or(has_run);
        assert!(is_filled, "machine {machine} has taken over what is lost");
        self.disconnect(machine);
        self.end_process(machine);
    }

    // --- reports ---

    /// Begins a transaction with the durable records that the database lacks, or a report if one is due.
    fn begin_report(&mut self, machine: usize) {
        let now = self.machines[machine].now(self.true_ms);
        let mut room = if self.is_calm { usize::MAX } else { self.faults.usize(1..=self.batch) };
        let PairMachine { process: MachineProcess::Selling(run), archive, owner, .. } = &self.machines[machine] else {
            return;
        };
        let (positions, mut rows) = (run.positions.as_ref().expect("the database is connected"), RowBatch::new());
        for (key, all) in archive {
            let from = positions.get(key).copied().unwrap_or(0);
            assert!(from <= all.len() as u64, "the database has more records of {key:?} than the log");
            let records = &all[from as usize..];
            let records = &records[..records.len().min(room)];
            room -= records.len();
            if !records.is_empty() {
                rows.push((*key, from, records.to_vec()));
            }
        }
        if rows.is_empty() && now.monotonic_ms < run.report_ms {
            return;
        }
        let from = rows.iter().map(|(key, from, _)| (*key, *from)).collect();
        let fence = Statement::Fence(*owner, from);
        self.begin(machine, Task::Report(rows), fence, now.monotonic_ms * 1000);
    }

    fn reported(&mut self, machine: usize, rows: &RowBatch, began_us: u64) {
        self.confirmed(machine, began_us);
        for (key, from, records) in rows {
            let at = from + records.len() as u64;
            let run = self.machines[machine].selling().expect("the process sells");
            run.positions.as_mut().expect("the database is connected").insert(*key, at);
            self.publish(machine, *key, at);
        }
    }

    fn confirmed(&mut self, machine: usize, began_us: u64) {
        let (now, epoch) = (self.machines[machine].now(self.true_ms), self.machines[machine].epoch);
        let run = self.machines[machine].selling().expect("the process sells");
        run.lease.extend(began_us, TIMES.patience);
        run.confirmed_us = began_us;
        run.report_ms = began_us / 1000 + TIMES.heartbeat.as_millis() as u64;
        if !run.lease.is_expired_at(now.monotonic_ms * 1000) {
            self.auditor.sells(epoch, self.steps);
        }
    }

    fn publish(&mut self, machine: usize, key: StreamKey, at: u64) {
        let now = self.machines[machine].now(self.true_ms);
        if key.epoch == self.machines[machine].epoch {
            let run = self.machines[machine].selling().expect("the process sells");
            run.apply(key.shard, ShardEvent::Persisted(at), now);
            self.answer(machine);
        }
    }

    fn new_id(&mut self) -> Uuid {
        Uuid::from_u128(self.faults.u128(..))
    }
}

fn name(statement: &Statement) -> &'static str {
    match statement {
        Statement::Lock => "lock",
        Statement::Fence(..) => "fence",
        Statement::Commit(_) => "commit",
    }
}

fn reply_name(reply: &DatabaseReply) -> &'static str {
    match reply {
        DatabaseReply::Locked(..) => "locked",
        DatabaseReply::Fenced => "fenced",
        DatabaseReply::Superseded => "superseded",
        DatabaseReply::Failed => "failed",
        DatabaseReply::Committed { counts: true } => "committed",
        DatabaseReply::Committed { counts: false } => "committed, not counted",
    }
}
