//! The faults of the machine and of its clients.

use super::world::World;
use crate::sale::command::{Command, Withdrawal};
use crate::sale::ids::{ShardId, Ticket};
use crate::sale::sale_schedule::SaleSchedule;
use crate::sale::shard::ShardEvent;

impl World {
    /// Lets a client give up waiting for its answer.
    pub fn give_up(&mut self) {
        let place = self.traffic.usize(0..self.pending.len().max(1));
        if let Some(ticket) = self.pending.keys().nth(place).copied() {
            let pending = self.pending.remove(&ticket).expect("the ticket is one of `asked`");
            let reason = if self.sockets.bool() { Withdrawal::Disconnected } else { Withdrawal::Overdue };
            let item = pending.command.item();
            if let (Command::Checkout { user, key, .. } | Command::CheckoutAny { user, key, .. }, Withdrawal::Overdue) =
                (pending.command, reason)
                && !key.is_nil()
            {
                self.shadow.overdue.insert((item, user, key));
            }
            self.trace.note(format_args!("{} #{ticket} is withdrawn: {reason:?}", self.steps));
            let owner = item.map_or(ShardId(pending.shard), |item| self.partition.owner_of_item(item));
            self.withdrawals.gone(pending.shard, Ticket(ticket), pending.command, owner);
            if item.is_some() || pending.command.wants_a_hold() {
                self.apply(pending.shard, ShardEvent::Withdrawn(Ticket(ticket), item, reason));
            }
        }
    }

    /// Sets the wall clock back or forward by less than 5 s.
    pub fn jump(&mut self) {
        let (back, forth) = (self.faults.u64(0..5_000), self.faults.u64(0..5_000));
        self.now.unix_ms = self.now.unix_ms + forth - back;
        self.clock_epoch += 1;
        self.trace.note(format_args!("{} the wall clock is set to {}", self.steps, self.now.unix_ms));
    }

    /// Crashes the machine, which may have another number of shards and another stock afterwards.
    pub fn crash(&mut self) {
        let (kind, shards) = (self.faults.u32(0..4), self.faults.u16(1..5));
        let seals = if self.faults.bool() { Some(self.faults.usize(0..4)) } else { None };
        let mut sectors = self.faults.clone();
        self.faults.u64(..);
        self.now.monotonic_ms = 1 + self.faults.u64(0..1000);
        // The next run may have another stock, from its next sale on, unless there is a plan.
        self.sales.items = if self.faults.u32(0..4) == 0 { self.faults.u32(1..6) } else { self.sales.items };
        if let SaleSchedule::Periodic(_) = self.rules.schedule {
            self.rules.schedule = SaleSchedule::Periodic(self.sales);
        }
        // Keep all sectors, none, or each at random.
        self.crash_with(shards, seals, || kind == 0 || (kind > 1 && sectors.bool()));
    }

    /// Crashes all shards and starts `shards` new ones. `is_kept` says of each sector in flight whether it was written.
    /// With `seals`, a first recovery crashes too, after so many seals.
    pub fn crash_with(&mut self, shards: u16, seals: Option<usize>, is_kept: impl FnMut() -> bool) {
        self.trace.note(format_args!("{} crash", self.steps));
        self.disk.tear(is_kept);
        if let Some(most) = seals {
            self.disk.read().expect("a disk without damage can be read");
            self.disk.seal(most);
        }
        self.start(shards);
    }

    /// Damages the disk of a machine that has crashed.
    pub fn damage_disk(&mut self) {
        let faults = &mut self.faults;
        self.disk.tear(|| faults.bool());
        if self.disk.damage_disk(|below| faults.usize(0..below)) {
            assert!(self.disk.read().is_err(), "recovery does not detect the damage");
            self.trace.note(format_args!("{} refused: the disk is damaged", self.steps));
            self.refused = true;
        } else {
            let shards = self.partition.shards();
            self.start(shards);
        }
    }
}
