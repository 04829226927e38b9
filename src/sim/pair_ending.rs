//! The end of a pair: nothing goes wrong any more, so one machine sells, has everything that was promised, and sells the rest.

use super::pair::Pair;
use super::pair_auditor::buys;
use super::pair_machine::MachineProcess;
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::ids::{ItemId, UserId};
use crate::sale::record::LogEvent;
use crate::sale::rules::Ack;
use uuid::Uuid;

/// Rounds of 50 ms after which a machine must sell: more than 15 s, after which a standby replaces an owner that it never saw
/// to hold its lock, by a
/// slow clock.
const ROUNDS_MAX: u32 = 800;

impl Pair {
    /// Ends all faults.
    pub fn calm(&mut self) {
        self.is_calm = true;
        self.cuts = Default::default();
        self.machines.iter_mut().for_each(|machine| machine.is_stopped = false);
        self.database.stop_other();
        self.database.rejoin();
        self.database.set_emptied(false);
        // Sessions of lost machines end by their time limits.
        let used = [0, 1].map(|machine: usize| self.clients[machine].link.map(|link| link.session));
        for server in &mut self.database.servers {
            let ids: Vec<u64> = server.sessions.iter().map(|session| session.id).collect();
            ids.into_iter().filter(|id| !used.contains(&Some(*id))).for_each(|id| server.end_session(id));
        }
        self.trace.note(format_args!("{} all faults end", self.steps));
    }

    /// Lets 50 ms pass, and everything happen that can.
    fn round(&mut self) {
        self.steps += 1;
        self.true_ms += 50;
        self.start_processes();
        for _ in 0..6 {
            for machine in 0..2 {
                while let Some(step) = self.machines[machine].selling().and_then(|run| run.steps().first().copied()) {
                    self.make(machine, step);
                }
                self.tick(machine);
                self.database_step(machine);
            }
            for link in self.ready_sessions() {
                self.database.execute(link.server, link.session);
            }
            while self.database.replicate() {}
        }
    }

    fn tick(&mut self, machine: usize) {
        use crate::sale::shard::ShardEvent::Tick;
        let now = self.machines[machine].now(self.true_ms);
        if let Some(run) = self.machines[machine].selling() {
            (0..run.partition.shards()).for_each(|shard| run.apply(shard, Tick, now));
        }
        self.answer(machine);
    }

    /// Returns the machine that sells, if its lease is live and the database has all its records.
    fn seller(&mut self) -> Option<usize> {
        let true_ms = self.true_ms;
        let sells = |machine: usize| {
            let machine = &self.machines[machine];
            let MachineProcess::Selling(run) = &machine.process else { return false };
            let is_live = !run.lease.is_expired_at(machine.now(true_ms).monotonic_ms * 1000);
            let has_arrived = run.positions.as_ref().is_some_and(|positions| {
                machine.archive.iter().all(|(key, records)| positions.get(key) == Some(&(records.len() as u64)))
            });
            is_live && has_arrived && run.steps().is_empty()
        };
        let sellers: Vec<usize> = [0, 1].into_iter().filter(|machine| sells(*machine)).collect();
        (sellers.len() == 1).then(|| sellers[0])
    }

    /// Waits until one machine sells, and checks the database. Returns the machine.
    pub fn settle(&mut self) -> usize {
        for _ in 0..ROUNDS_MAX {
            self.round();
            if let Some(seller) = self.seller().filter(|_| self.pending.is_empty()) {
                self.check_database();
                return seller;
            }
        }
        panic!("no faults are left, but nobody sells, or requests are not answered: {:?}", self.pending);
    }

    /// Checks that every acknowledged purchase is in the database.
    fn check_database(&self) {
        for (item, code) in &self.auditor.bought {
            let times = self.database.servers[self.database.primary()].tables.rows.iter();
            let times = times.filter(|(_, _, record)| buys(record.event, *item, *code)).count();
            assert_eq!(times, 1, "Postgres has {times} rows of an acknowledged purchase of {item:?}");
        }
    }

    /// Buys everything that was reserved. What must be held can be bought, and nobody gets more than the limit.
    pub fn buy_what_is_held(&mut self) {
        let codes: Vec<Code> = self.auditor.promises.keys().map(|bytes| Code::from_bytes(*bytes)).collect();
        for code in codes {
            let seller = self.settle();
            // The clock of the wall is at most this far when the purchase is decided.
            let latest_ms =
                self.machines.iter().map(|machine| machine.now(self.true_ms).unix_ms).max().unwrap_or(0) + 150;
            let is_exact = self.auditor.has_true_clocks && self.rules.ack == Ack::Replicated;
            let must_hold = is_exact && self.auditor.must_hold(code, latest_ms);
            self.command(seller, Command::Purchase { code, key: Uuid::nil() });
            self.settle();
            let item = self.auditor.promises[code.as_bytes()].item;
            // The answer to an earlier purchase may be lost.
            let is_bought = self.database.has_row(|record| buys(record.event, item, code));
            assert!(is_bought || !must_hold, "an acknowledged hold of {item:?} cannot be bought");
        }
    }

    /// Lets all holds end, and checks that new buyers can buy every item that is left.
    pub fn sell_out(&mut self) {
        self.settle();
        let slowest = self.machines.iter().map(|machine| machine.clock.rate).min().unwrap_or(1000);
        self.true_ms += self.rules.schedule.longest_hold_ms() * 1000 / slowest;
        let (items, limit) = (self.sales.items, self.sales.user_limit);
        for item in (0..items).map(ItemId) {
            let (user, seller) = (UserId(1_000 + i64::from(item.0 / limit)), self.settle());
            self.command(seller, Command::Checkout { sale: None, item, user, key: Uuid::nil() });
            self.settle();
            let mut codes =
                self.auditor.promises.iter().filter(|(_, promise)| (promise.user, promise.item) == (user, item));
            if let Some(code) = codes.next().map(|(bytes, _)| Code::from_bytes(*bytes)) {
                self.command(seller, Command::Purchase { code, key: Uuid::nil() });
                self.settle();
            }
            let is_sold = |event| matches!(event, LogEvent::Purchase { item: of, .. } if of == item);
            assert!(self.database.has_row(|record| is_sold(record.event)), "{item:?} cannot be sold");
        }
    }
}
