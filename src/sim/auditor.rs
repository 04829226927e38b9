//! Checks every answer against what was asked, when, and what was promised before.

use super::shadow::{Promise, Shadow};
use crate::log::block::StreamKey;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, Moment, SaleId, UserId};
use crate::sale::record::{LogEvent, Record, ReleaseReason};
use std::collections::BTreeMap;

/// A request, and the world when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub shard: u16,
    pub command: Command,
    pub at: Moment,
    pub era: u32,
    /// How much had happened.
    pub event: u64,
}

/// The world when an answer comes.
pub struct Now<'a> {
    /// The newest sale of any shard.
    pub sale: SaleId,
    pub at: Moment,
    pub run: u32,
    pub era: u32,
    pub ttl_ms: u64,
    /// What is durable.
    pub durable: &'a BTreeMap<StreamKey, Vec<Record>>,
    /// What this run has appended, durable or not.
    pub appended: &'a [Record],
    /// Since which event the item, or the user's quota, has been free without a break.
    pub item_free_since: Option<u64>,
    pub user_free_since: Option<u64>,
}

impl Now<'_> {
    fn is_durable(&self, sale: SaleId, is_it: impl Fn(LogEvent) -> bool) -> bool {
        self.durable.values().flatten().any(|record| record.sale == sale && is_it(record.event))
    }

    fn is_reserved(&self, sale: SaleId, code: Code) -> bool {
        self.is_durable(sale, |event| matches!(event, LogEvent::Checkout { code: of, .. } if of == code))
    }

    fn is_sold(&self, sale: SaleId, item: ItemId) -> bool {
        self.is_durable(sale, |event| matches!(event, LogEvent::Purchase { item: of, .. } if of == item))
    }

    fn is_released(&self, sale: SaleId, code: Code) -> bool {
        self.is_durable(sale, |event| is_cancellation(event, code))
    }

    /// Whether the hold of this code must still be there: it was promised for longer, and nobody gave it back.
    fn must_hold(&self, promise: &Promise, code: Code) -> bool {
        let has_time = if promise.run == self.run {
            self.at.monotonic_ms < promise.good_until.monotonic_ms
        } else {
            // After a restart the wall clock says what is left.
            promise.era == self.era && self.at.unix_ms < promise.good_until.unix_ms
        };
        let is_cancelled = self.appended.iter().any(|record| is_cancellation(record.event, code));
        has_time && !is_cancelled && !self.is_released(promise.sale, code)
    }
}

fn is_cancellation(event: LogEvent, code: Code) -> bool {
    matches!(event, LogEvent::Released { code: of, reason: ReleaseReason::Cancelled, .. } if of == code)
}

/// Checks an answer, and remembers what it promises.
pub fn audit(shadow: &mut Shadow, asked: Asked, outcome: Outcome, now: &Now<'_>) {
    let Asked { command, at, era, event, .. } = asked;
    match (command, outcome) {
        (Command::Checkout { item, user }, Outcome::Reserved { code, sale, item: got, expires_unix_ms }) => {
            assert_eq!(item, got, "another item than asked for");
            let ends = at.unix_ms + now.ttl_ms..=now.at.unix_ms + now.ttl_ms;
            assert!(era != now.era || ends.contains(&expires_unix_ms), "a hold is told to end at another time");
            // The hold began after it was asked for. An answer may come so late that it is over already.
            let good_until = Moment { monotonic_ms: at.monotonic_ms + now.ttl_ms, unix_ms: at.unix_ms + now.ttl_ms };
            let promise = Promise { sale, item, user, good_until, run: now.run, era };
            assert!(now.is_reserved(sale, code), "reserved before it is durable");
            let earlier = shadow.codes.insert(*code.as_bytes(), promise);
            assert!(earlier.is_none(), "a code given out twice");
        }
        (Command::Checkout { item, .. }, Outcome::ItemSold { sale, item: of }) => {
            assert!(item == of && now.is_sold(sale, item), "{item:?} is called sold and is not");
        }
        (Command::Checkout { item, .. }, Outcome::ItemReserved) => {
            assert!(now.item_free_since.is_none_or(|since| since > event), "{item:?} was free all the time");
        }
        (Command::Checkout { user, .. }, Outcome::UserLimit) => {
            assert!(now.user_free_since.is_none_or(|since| since > event), "{user:?} was below the limit all the time");
        }
        (Command::Checkout { item, .. }, Outcome::NoSuchItem) => assert!(item.0 > 0, "item 0 always exists"),
        (Command::Purchase { code, key }, Outcome::Purchased { sale, item }) => {
            let &Promise { sale: of, item: promised, user, .. } =
                shadow.codes.get(code.as_bytes()).expect("an invented code bought something");
            assert_eq!((sale, item), (of, promised), "another item than reserved");
            assert!(!shadow.released.contains(code.as_bytes()), "a released hold was bought");
            assert!(now.is_sold(sale, item), "bought before it is durable");
            if let Some(before) = shadow.bought.insert((sale, item), (code, key)) {
                assert!(before == (code, key) && !key.is_nil(), "{item:?} sold twice, once to {user:?}");
            }
        }
        (Command::Cancel { code }, Outcome::Released) => {
            let &Promise { sale, item, .. } =
                shadow.codes.get(code.as_bytes()).expect("an invented code released something");
            assert!(shadow.bought.get(&(sale, item)).is_none_or(|(by, _)| *by != code), "a bought item was released");
            assert!(now.is_released(sale, code), "released before it is durable");
            assert!(shadow.released.insert(*code.as_bytes()), "a hold was released twice");
        }
        (Command::Purchase { code, .. } | Command::Cancel { code }, refusal) => refused(shadow, code, refusal, now),
        (_, other) => panic!("{command:?} answered {other:?}"),
    }
}

fn refused(shadow: &Shadow, code: Code, refusal: Outcome, now: &Now<'_>) {
    let promise = shadow.codes.get(code.as_bytes());
    match refusal {
        Outcome::SaleEnded => assert!(promise.is_none_or(|promise| promise.sale < now.sale), "the sale goes on"),
        Outcome::CodeExpired | Outcome::CodeUnknown => {
            assert!(!promise.is_some_and(|promise| now.must_hold(promise, code)), "a hold was shortened");
        }
        Outcome::CodeUsed => {
            let is_sold = promise.is_none_or(|promise| now.is_sold(promise.sale, promise.item));
            assert!(is_sold, "a code is called used, and its item is not sold");
        }
        other => panic!("{code:?} answered {other:?}"),
    }
}

/// The user who asks for an item, if one does.
pub fn user_of(command: &Command) -> Option<UserId> {
    match command {
        Command::Checkout { user, .. } => Some(*user),
        _ => None,
    }
}
