//! Checks every answer against its request, the time of the request, and the promises made before.

use super::shadow::{Promise, Shadow};
use crate::log::block::StreamKey;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, Moment, SaleId, UserId};
use crate::sale::record::{LogEvent, Record, ReleaseReason};
use std::collections::BTreeMap;

/// A request, and the state of the world when it was sent.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    pub shard: u16,
    pub command: Command,
    pub at: Moment,
    pub clock_epoch: u32,
    /// Number of events that shards had applied.
    pub event: u64,
}

/// The state of the world when an answer arrives.
pub struct Now<'a> {
    /// The newest sale of any shard.
    pub sale: SaleId,
    pub at: Moment,
    pub run: u32,
    pub clock_epoch: u32,
    pub ttl_ms: u64,
    /// Durable records, by stream.
    pub durable: &'a BTreeMap<StreamKey, Vec<Record>>,
    /// Records that this run has appended, durable or not.
    pub appended: &'a [Record],
    /// Event since which the requested item has been free without interruption; `None` if it is not free, or there is
    /// none.
    pub item_free_since: Option<u64>,
    /// Event since which the user has been below the limit without interruption; `None` if the user is not, or there is
    /// none.
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

    /// Returns whether the hold of this code must still be live: its promised time is not over, and it was not
    /// cancelled.
    fn must_hold(&self, promise: &Promise, code: Code) -> bool {
        let has_time = if promise.run == self.run {
            self.at.monotonic_ms < promise.good_until.monotonic_ms
        } else {
            // After a restart, the rest of a hold is computed from the wall clock.
            promise.clock_epoch == self.clock_epoch && self.at.unix_ms < promise.good_until.unix_ms
        };
        let is_cancelled = self.appended.iter().any(|record| is_cancellation(record.event, code));
        has_time && !is_cancelled && !self.is_released(promise.sale, code)
    }
}

fn is_cancellation(event: LogEvent, code: Code) -> bool {
    matches!(event, LogEvent::Released { code: of, reason: ReleaseReason::Cancelled, .. } if of == code)
}

/// Checks an answer, and adds its promise to `shadow`.
pub fn audit(shadow: &mut Shadow, pending: OpenRequest, outcome: Outcome, now: &Now<'_>) {
    let OpenRequest { command, at, clock_epoch, event, .. } = pending;
    match (command, outcome) {
        (Command::Checkout { item, user }, Outcome::Reserved { code, sale, item: got, expires_unix_ms }) => {
            assert_eq!(item, got, "the answer names another item than the request");
            let ends = at.unix_ms + now.ttl_ms..=now.at.unix_ms + now.ttl_ms;
            assert!(
                clock_epoch != now.clock_epoch || ends.contains(&expires_unix_ms),
                "the answer names a wrong end of the hold"
            );
            // The hold began when the request was sent or later. It may be over when the answer arrives.
            let good_until = Moment { monotonic_ms: at.monotonic_ms + now.ttl_ms, unix_ms: at.unix_ms + now.ttl_ms };
            let promise = Promise { sale, item, user, good_until, run: now.run, clock_epoch };
            assert!(now.is_reserved(sale, code), "a checkout is answered before it is durable");
            let earlier = shadow.codes.insert(*code.as_bytes(), promise);
            assert!(earlier.is_none(), "a code is issued twice");
        }
        (Command::Checkout { item, .. }, Outcome::ItemSold { sale, item: of }) => {
            assert!(item == of && now.is_sold(sale, item), "{item:?} is refused as sold, but is not");
        }
        (Command::Checkout { item, .. }, Outcome::ItemReserved) => {
            assert!(
                now.item_free_since.is_none_or(|since| since > event),
                "{item:?} is refused as reserved, but was free"
            );
        }
        (Command::Checkout { user, .. }, Outcome::UserLimit) => {
            assert!(
                now.user_free_since.is_none_or(|since| since > event),
                "{user:?} is refused, but was below the limit"
            );
        }
        (Command::Checkout { item, .. }, Outcome::NoSuchItem) => assert!(item.0 > 0, "item 0 always exists"),
        (Command::Purchase { code, key }, Outcome::Purchased { sale, item }) => {
            let &Promise { sale: of, item: promised, user, .. } =
                shadow.codes.get(code.as_bytes()).expect("a purchase with an invented code succeeds");
            assert_eq!((sale, item), (of, promised), "the purchase is of another item than the reservation");
            assert!(!shadow.released.contains(code.as_bytes()), "an item is bought with the code of a released hold");
            assert!(now.is_sold(sale, item), "a purchase is answered before it is durable");
            if let Some(before) = shadow.bought.insert((sale, item), (code, key)) {
                assert!(before == (code, key) && !key.is_nil(), "{item:?} is sold twice, once to {user:?}");
            }
        }
        (Command::Cancel { code }, Outcome::Released) => {
            let &Promise { sale, item, .. } =
                shadow.codes.get(code.as_bytes()).expect("a cancellation with an invented code succeeds");
            assert!(shadow.bought.get(&(sale, item)).is_none_or(|(by, _)| *by != code), "a bought item is released");
            assert!(now.is_released(sale, code), "a cancellation is answered before it is durable");
            assert!(shadow.released.insert(*code.as_bytes()), "a hold is released twice");
        }
        (Command::Purchase { code, .. } | Command::Cancel { code }, refusal) => refused(shadow, code, refusal, now),
        (_, other) => panic!("{command:?} is answered with {other:?}"),
    }
}

fn refused(shadow: &Shadow, code: Code, refusal: Outcome, now: &Now<'_>) {
    let promise = shadow.codes.get(code.as_bytes());
    match refusal {
        Outcome::SaleEnded => assert!(
            promise.is_none_or(|promise| promise.sale < now.sale),
            "a code of the current sale is refused with `SaleEnded`"
        ),
        Outcome::CodeExpired | Outcome::CodeUnknown => {
            assert!(!promise.is_some_and(|promise| now.must_hold(promise, code)), "a hold ended too early");
        }
        Outcome::CodeUsed => {
            let is_sold = promise.is_none_or(|promise| now.is_sold(promise.sale, promise.item));
            assert!(is_sold, "a code is refused as used, but the purchase is not durable");
        }
        other => panic!("{code:?} is answered with {other:?}"),
    }
}

/// Returns the user of a checkout; `None` for other commands.
pub fn user_of(command: &Command) -> Option<UserId> {
    match command {
        Command::Checkout { user, .. } => Some(*user),
        _ => None,
    }
}
