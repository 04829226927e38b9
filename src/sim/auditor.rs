//! Checks every answer against its request, the time of the request, and the promises made before.

use super::shadow::{Promise, Shadow};
use crate::log::block::StreamKey;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, Moment, SaleId, UserId};
use crate::sale::record::{LogEvent, Record, ReleaseReason};
use std::collections::BTreeMap;
use uuid::Uuid;

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

/// The time of a grant, and the clocks by which it was measured.
#[derive(Clone, Copy, Debug)]
pub struct GrantTime {
    /// Number of the grant in its world.
    pub number: usize,
    pub at: Moment,
    pub run: u32,
    pub clock_epoch: u32,
}

/// The state of the world when an answer arrives.
pub struct Now<'a> {
    /// The newest sale of any shard.
    pub sale: SaleId,
    pub at: Moment,
    pub run: u32,
    pub clock_epoch: u32,
    /// Number of events that shards have applied.
    pub event: u64,
    pub ttl_ms: u64,
    /// Time of the grant that is answered, if the answer is a reservation.
    pub granted: Option<GrantTime>,
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

    /// Returns the durable record of the checkout with this code.
    fn grant_of(&self, sale: SaleId, code: Code) -> Option<&Record> {
        let is_it = |event| matches!(event, LogEvent::Checkout { code: of, .. } if of == code);
        self.durable.values().flatten().find(|record| record.sale == sale && is_it(record.event))
    }

    fn is_sold(&self, sale: SaleId, item: ItemId) -> bool {
        self.is_durable(sale, |event| matches!(event, LogEvent::Purchase { item: of, .. } if of == item))
    }

    fn is_released(&self, sale: SaleId, code: Code) -> bool {
        self.is_durable(sale, |event| is_cancellation(event, code))
    }

    /// Returns whether the hold of this code must still be live: its promised time is not over, and it was not
    /// cancelled at the request of a client.
    fn must_hold(&self, promise: &Promise, code: Code) -> bool {
        let has_time = if promise.run == self.run {
            self.at.monotonic_ms < promise.good_until.monotonic_ms
        } else {
            // After a restart, the rest of a hold is computed from the wall clock.
            promise.clock_epoch == self.clock_epoch && self.at.unix_ms < promise.good_until.unix_ms
        };
        let is_cancelled = self.appended.iter().any(|record| is_cancellation(record.event, code));
        let is_cancelled = is_cancelled || self.is_released(promise.sale, code);
        has_time && !(promise.is_cancel_requested && is_cancelled)
    }
}

fn is_cancellation(event: LogEvent, code: Code) -> bool {
    matches!(event, LogEvent::Released { code: of, reason: ReleaseReason::Cancelled, .. } if of == code)
}

/// Checks an answer, and adds its promise to `shadow`.
pub fn audit(shadow: &mut Shadow, pending: OpenRequest, outcome: Outcome, now: &Now<'_>) {
    let OpenRequest { command, at, clock_epoch, event, .. } = pending;
    match (command, outcome) {
        (Command::Checkout { item, user, key }, Outcome::Reserved { code, sale, item: got, expires_unix_ms }) => {
            assert_eq!(item, got, "the answer names another item than the request");
            let ends = at.unix_ms + now.ttl_ms..=now.at.unix_ms + now.ttl_ms;
            assert!(
                !key.is_nil() || clock_epoch != now.clock_epoch || ends.contains(&expires_unix_ms),
                "the answer names a wrong end of the hold"
            );
            reserved(shadow, code, (sale, item, user, key), expires_unix_ms, now);
        }
        (
            Command::Checkout { item, user, key },
            Outcome::ItemSold { .. } | Outcome::ItemReserved | Outcome::UserLimit,
        ) if must_be_repeated(shadow, (now.sale, item, user, key), event, now) => {
            panic!("a repeated checkout of {item:?} by {user:?} is answered with {outcome:?}");
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

/// The values that are the same in a checkout and its repetitions.
type CheckoutId = (SaleId, ItemId, UserId, Uuid);

fn id_of(promise: &Promise) -> CheckoutId {
    (promise.sale, promise.item, promise.user, promise.key)
}

/// Checks a reservation, which may be a repetition, and adds its promise to `shadow`.
fn reserved(shadow: &mut Shadow, code: Code, id: CheckoutId, expires_unix_ms: u64, now: &Now<'_>) {
    let (sale, item, user, key) = id;
    let record = now.grant_of(sale, code).expect("a checkout is answered before it is durable");
    let LogEvent::Checkout { item: of, user: holder, key: with, ttl_ms, .. } = record.event else { unreachable!() };
    assert_eq!((of, holder, with), (item, user, key), "the answer is the hold of another checkout");
    assert_eq!(expires_unix_ms, record.unix_ms + u64::from(ttl_ms), "the answer names a wrong end of the hold");
    if let Some(promise) = shadow.codes.get_mut(code.as_bytes()) {
        assert!(!key.is_nil(), "a code is issued twice");
        assert_eq!(promise.expires_unix_ms, expires_unix_ms, "a repeated checkout has another end of the hold");
        promise.answers += 1;
        return;
    }
    let GrantTime { number, at, run, clock_epoch } = now.granted.expect("a reservation has the time of its grant");
    let is_earlier = |promise: &Promise| id_of(promise) == id && promise.number < number;
    for (bytes, promise) in shadow.codes.iter().filter(|(_, promise)| !key.is_nil() && is_earlier(promise)) {
        let earlier = Code::from_bytes(*bytes);
        assert!(!is_remembered(shadow, promise, earlier, now), "a repeated checkout gets another code");
    }
    // The hold may be over when the answer arrives.
    let good_until = Moment { monotonic_ms: at.monotonic_ms + now.ttl_ms, unix_ms: at.unix_ms + now.ttl_ms };
    let (answers, is_cancel_requested, event) = (1, false, now.event);
    shadow.codes.insert(
        *code.as_bytes(),
        Promise {
            sale,
            item,
            user,
            key,
            expires_unix_ms,
            number,
            event,
            answers,
            is_cancel_requested,
            good_until,
            run,
            clock_epoch,
        },
    );
}

/// Returns whether the server must remember the hold of this code, or its purchase.
fn is_remembered(shadow: &Shadow, promise: &Promise, code: Code, now: &Now<'_>) -> bool {
    let is_bought = shadow.bought.get(&(promise.sale, promise.item)).is_some_and(|(by, _)| *by == code);
    is_bought || now.must_hold(promise, code)
}

/// Returns whether a checkout that was sent after `event` repeats one whose hold or purchase must be remembered. The
/// first answer had arrived before.
fn must_be_repeated(shadow: &Shadow, id: CheckoutId, event: u64, now: &Now<'_>) -> bool {
    let (.., key) = id;
    let mut same = shadow.codes.iter().filter(|(_, promise)| id_of(promise) == id && promise.event <= event);
    !key.is_nil() && same.any(|(bytes, promise)| is_remembered(shadow, promise, Code::from_bytes(*bytes), now))
}

/// Returns the user of a checkout; `None` for other commands.
pub fn user_of(command: &Command) -> Option<UserId> {
    match command {
        Command::Checkout { user, .. } => Some(*user),
        _ => None,
    }
}
