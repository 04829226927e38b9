//! The promises of both machines of a pair, as clients know them, and the checks of each answer.

use super::replicated_postgres::ReplicatedPostgres;
use crate::log::block::StreamKey;
use crate::log::ownership::Run;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, UserId};
use crate::sale::record::{LogEvent, Record};
use crate::sale::rules::Ack;
use std::collections::BTreeMap;

/// A request of a buyer.
#[derive(Clone, Copy, Debug)]
pub struct PairRequest {
    pub machine: usize,
    pub shard: u16,
    pub command: Command,
    pub step: u64,
}

/// A reservation that a client has received.
#[derive(Clone, Copy, Debug)]
pub struct PairPromise {
    pub item: ItemId,
    pub user: UserId,
    /// End of the hold, by the wall clock of the machine that has granted it.
    pub expires_unix_ms: u64,
    /// A client has asked to release it.
    pub is_cancel_requested: bool,
    pub is_released: bool,
}

/// What the clients of both machines know.
#[derive(Default)]
pub struct PairAuditor {
    /// Reservations, by code.
    pub promises: BTreeMap<[u8; 16], PairPromise>,
    /// The code of each acknowledged purchase.
    pub bought: BTreeMap<ItemId, Code>,
    /// The step at which each epoch began to sell.
    selling_since: BTreeMap<u32, u64>,
    /// The run that has promised something in each epoch.
    promised_by: BTreeMap<u32, Run>,
    /// Whether the clocks of both machines count alike, so that a lease ends before a takeover and holds end in time.
    pub has_true_clocks: bool,
}

/// The state of the world when an answer arrives.
pub struct AnswerTime<'a> {
    /// The run that answers.
    pub run: Run,
    /// The earliest and the latest time that a wall clock can show.
    pub unix_ms: (u64, u64),
    pub ack: Ack,
    /// Largest number of items of a user.
    pub user_limit: u32,
    pub database: &'a ReplicatedPostgres,
    /// The session of the run has ended, and its process does not know it yet.
    pub is_cut_off: bool,
    /// The durable records of the machine, by stream, and the stream that a takeover has copied from the database.
    pub archive: &'a BTreeMap<StreamKey, Vec<Record>>,
    pub restored: Option<StreamKey>,
}

impl AnswerTime<'_> {
    fn is_replicated(&self) -> bool {
        self.ack == Ack::Replicated
    }

    /// Returns whether the machine's own runs have logged such an event.
    fn has_own(&self, is_it: impl Fn(LogEvent) -> bool) -> bool {
        let own = self.archive.iter().filter(|(key, _)| Some(**key) != self.restored);
        own.flat_map(|(_, records)| records).any(|record| is_it(record.event))
    }

    /// Checks that the record of a promise cannot be lost any more.
    fn check_row(&self, what: &str, is_it: impl Fn(LogEvent) -> bool) {
        let has_row = self.database.has_row(|record: &Record| is_it(record.event));
        assert!(has_row, "{what} is acknowledged before it is replicated");
    }
}

/// Returns whether this is the event of the purchase of an item with a code.
pub fn buys(event: LogEvent, item: ItemId, code: Code) -> bool {
    matches!(event, LogEvent::Purchase { item: of, code: by, .. } if (of, by) == (item, code))
}

impl PairAuditor {
    /// Creates the auditor of a world that has promised nothing.
    pub fn new(has_true_clocks: bool) -> Self {
        PairAuditor { has_true_clocks, ..PairAuditor::default() }
    }

    /// Notes that the run of this epoch sells.
    pub fn sells(&mut self, epoch: u32, step: u64) {
        self.selling_since.entry(epoch).or_insert(step);
    }

    /// Returns whether the hold of a code must be live until `unix_ms`, by the wall clock of any machine.
    pub fn must_hold(&self, code: Code, unix_ms: u64) -> bool {
        let is_live = |promise: &PairPromise| !promise.is_cancel_requested && unix_ms < promise.expires_unix_ms;
        let promise = self.promises.get(code.as_bytes());
        promise.is_some_and(|promise| is_live(promise) && !self.bought.contains_key(&promise.item))
    }

    /// Counts the items that a user has bought.
    pub fn bought_by(&self, user: UserId) -> usize {
        let codes = self.bought.values().filter(|code| self.promises[code.as_bytes()].user == user);
        codes.count()
    }

    /// Checks an answer, and adds its promise.
    pub fn audit(&mut self, request: PairRequest, outcome: Outcome, now: &AnswerTime<'_>) {
        let is_later = |(epoch, step): (&u32, &u64)| *epoch > now.run.epoch && *step < request.step;
        assert!(
            !self.has_true_clocks || now.is_cut_off || !self.selling_since.iter().any(is_later),
            "epoch {} answers {request:?} with {outcome:?}, but a later one sold before the request",
            now.run.epoch
        );
        match (request.command, outcome) {
            (_, Outcome::Reserved { code, item, expires_unix_ms, .. }) => {
                self.reserved(request, (code, item, expires_unix_ms), now);
            }
            (_, Outcome::Purchased { item, .. }) => self.purchased(request, item, now),
            (Command::Cancel { code }, Outcome::Released) => {
                self.promised(now.run);
                let is_it = |event| matches!(event, LogEvent::Released { code: of, .. } if of == code);
                if now.is_replicated() {
                    now.check_row("a release", is_it);
                }
                self.promises.get_mut(code.as_bytes()).expect("the code was granted").is_released = true;
            }
            (_, Outcome::Extended { code, expires_unix_ms, .. }) => {
                self.promised(now.run);
                let is_it = |event| matches!(event, LogEvent::Extended { code: of, .. } if of == code);
                if now.is_replicated() {
                    now.check_row("an extension", is_it);
                }
                let promise = self.promises.get_mut(code.as_bytes()).expect("the code was granted");
                promise.expires_unix_ms = promise.expires_unix_ms.max(expires_unix_ms);
            }
            (Command::Checkout { sale: None, item, .. }, Outcome::ItemSold { .. }) => {
                let sells = |event| matches!(event, LogEvent::Purchase { item: of, .. } if of == item);
                // A purchase of an earlier run of this machine, whose answer the client may still wait for, counts already.
                if !now.has_own(sells) {
                    now.check_row("a refusal as sold", sells);
                }
            }
            (
                Command::Purchase { code, .. } | Command::Cancel { code } | Command::Extend { code },
                Outcome::CodeExpired | Outcome::CodeUnknown,
            ) => {
                let must_hold = now.is_replicated() && self.has_true_clocks && self.must_hold(code, now.unix_ms.1);
                assert!(!must_hold, "an acknowledged hold is lost: {request:?} is answered with {outcome:?}");
            }
            _ => {}
        }
    }

    /// Checks that no other run has promised something in the epoch of this one.
    fn promised(&mut self, run: Run) {
        let first = *self.promised_by.entry(run.epoch).or_insert(run);
        assert_eq!(first, run, "two runs promise something in one epoch");
    }

    fn reserved(&mut self, request: PairRequest, hold: (Code, ItemId, u64), now: &AnswerTime<'_>) {
        let (code, item, expires_unix_ms) = hold;
        let Command::Checkout { user, .. } = request.command else { panic!("{request:?} is answered with a hold") };
        self.promised(now.run);
        if now.is_replicated() {
            let is_it = |event| matches!(event, LogEvent::Checkout { code: of, .. } if of == code);
            now.check_row("a checkout", is_it);
        }
        if self.promises.contains_key(code.as_bytes()) {
            return;
        }
        // The hold may be over when its answer arrives.
        if now.is_replicated() && self.has_true_clocks && now.unix_ms.1 < expires_unix_ms {
            let others = self.promises.iter().filter(|(_, promise)| promise.item == item);
            let mut others = others.map(|(bytes, _)| Code::from_bytes(*bytes));
            let is_held = others.any(|other| self.must_hold(other, now.unix_ms.1));
            assert!(!is_held, "{item:?} is promised to two buyers at once");
        }
        let (is_cancel_requested, is_released) = (false, false);
        let promise = PairPromise { item, user, expires_unix_ms, is_cancel_requested, is_released };
        self.promises.insert(*code.as_bytes(), promise);
    }

    fn purchased(&mut self, request: PairRequest, item: ItemId, now: &AnswerTime<'_>) {
        let Command::Purchase { code, .. } = request.command else { panic!("{request:?} is answered with a purchase") };
        self.promised(now.run);
        let promise = self.promises.get(code.as_bytes()).expect("the code was granted");
        assert_eq!(promise.item, item, "the purchase is of another item than the reservation");
        assert!(!now.is_replicated() || !promise.is_released, "an item is bought with the code of a released hold");
        now.check_row("a purchase", |event| buys(event, item, code));
        let user = promise.user;
        let before = self.bought.insert(item, code);
        assert!(before.is_none_or(|before| before == code), "{item:?} is sold twice");
        let is_within = self.bought_by(user) <= now.user_limit as usize;
        assert!(!now.is_replicated() || is_within, "{user:?} has bought more than the limit");
    }
}
