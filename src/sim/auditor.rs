//! Checks every answer against its request, the time of the request, and the promises made before.

use super::shadow::{Promise, Shadow, checkout_id};
use crate::log::block::StreamKey;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, Moment, SaleId, Terms, UserId};
use crate::sale::product_ranges::ProductId;
use crate::sale::record::{LogEvent, Record, ReleaseReason};
use crate::sale::rules::Rules;
use crate::sale::sale_schedule::SaleSchedule;
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
    /// The only sale that a checkout can have asked for.
    pub asked: Option<SaleId>,
    pub at: Moment,
    pub run: u32,
    pub clock_epoch: u32,
    /// Number of events that shards have applied.
    pub event: u64,
    pub rules: &'a Rules,
    /// The latest time that the wall clock has shown.
    pub latest_unix_ms: u64,
    /// Time of the grant that is answered, if the answer is a reservation.
    pub granted: Option<GrantTime>,
    /// Durable records, by stream.
    pub durable: &'a BTreeMap<StreamKey, Vec<Record>>,
    /// The rows of the database with their streams and numbers, if every promise must be there.
    pub replicated: Option<&'a Vec<(StreamKey, u64, Record)>>,
    /// Records that this run has appended, durable or not.
    pub appended: &'a [Record],
    /// Event since which one of the items of that sale has been free without interruption.
    pub any_free_since: Option<u64>,
    /// Another checkout of any item with the same user and key was sent.
    pub is_repeated: bool,
    /// Shards publish their numbers late, so that a free item may not be found.
    pub publishes_late: bool,
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

    /// Checks that the record of a promise is in the database, if it must be.
    fn check_replicated(&self, sale: SaleId, promise: &str, is_it: impl Fn(LogEvent) -> bool) {
        let has = |rows: &Vec<(StreamKey, u64, Record)>| {
            rows.iter().any(|(_, _, record)| record.sale == sale && is_it(record.event))
        };
        assert!(self.replicated.is_none_or(has), "{promise} is acknowledged before it is in the database");
    }

    /// Returns the durable record of the checkout with this code.
    fn grant_of(&self, sale: SaleId, code: Code) -> Option<&Record> {
        let is_it = |event| matches!(event, LogEvent::Checkout { code: of, .. } if of == code);
        self.durable.values().flatten().find(|record| record.sale == sale && is_it(record.event))
    }

    /// Returns the terms of a sale.
    fn terms(&self, sale: SaleId) -> Terms {
        self.rules.schedule.terms(sale).expect("a sale of the schedule")
    }

    /// Returns the sales that were open at some time from `from_ms` to `to_ms`, and a few more that were not, in the order
    /// of their openings.
    fn latest_sales(&self, to_ms: u64) -> impl Iterator<Item = Terms> {
        let latest = self.rules.schedule.latest(to_ms).map_or(0, |latest| latest.sale.0);
        (latest.saturating_sub(8)..=latest).filter_map(|sale| self.rules.schedule.terms(SaleId(sale)))
    }

    /// Returns whether no sale was open at some time from `from_ms` to `to_ms`.
    fn has_gap(&self, from_ms: u64, to_ms: u64) -> bool {
        let mut covered_ms = from_ms;
        for sale in self.latest_sales(to_ms).filter(|sale| sale.closes_ms > from_ms) {
            if sale.opens_ms > covered_ms {
                return true;
            }
            covered_ms = covered_ms.max(sale.closes_ms);
        }
        covered_ms <= to_ms
    }

    /// Returns whether several sales were open at some time from `from_ms` to `to_ms`, or one closed and another one opened.
    fn had_several(&self, from_ms: u64, to_ms: u64) -> bool {
        self.latest_sales(to_ms).filter(|sale| sale.closes_ms > from_ms).nth(1).is_some()
    }

    /// Returns whether the same two sales were open all the time from `from_ms` to `to_ms`.
    fn always_had_several(&self, from_ms: u64, to_ms: u64) -> bool {
        let was_open = |sale: &Terms| sale.opens_ms <= from_ms && sale.closes_ms > to_ms;
        self.latest_sales(to_ms).filter(was_open).nth(1).is_some()
    }

    /// Returns by how many milliseconds the hold of this code was extended, durably.
    fn extended_ms(&self, sale: SaleId, code: Code) -> u64 {
        let is_it = |event| matches!(event, LogEvent::Extended { code: of, .. } if of == code);
        if self.is_durable(sale, is_it) { self.terms(sale).extension_ms.into() } else { 0 }
    }

    /// Returns whether the answers of a sale must still be remembered. The wall clock may have been set back since then.
    fn remembers(&self, sale: SaleId) -> bool {
        sale >= self.sale || self.latest_unix_ms < self.rules.forgotten_at_ms(sale)
    }

    fn is_sold(&self, sale: SaleId, item: ItemId) -> bool {
        self.is_durable(sale, |event| matches!(event, LogEvent::Purchase { item: of, .. } if of == item))
    }

    /// Returns the number of items of a sale.
    fn items_of(&self, sale: SaleId) -> Option<u32> {
        let mut of_sale = self.durable.values().flatten().filter(|record| record.sale == sale);
        of_sale.find_map(|record| match record.event {
            LogEvent::SaleOpened { items, .. } => Some(items),
            _ => None,
        })
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

    /// Returns whether the server must remember the purchase with this code or, if there is none, the hold.
    fn must_remember(&self, promise: &Promise, code: Code) -> bool {
        let is_it = |event| matches!(event, LogEvent::Purchase { code: by, .. } if by == code);
        let mut records = self.durable.values().flatten().chain(self.appended);
        match records.find(|record| record.sale == promise.sale && is_it(record.event)) {
            Some(Record { unix_ms, .. }) => {
                self.remembers(promise.sale) || self.latest_unix_ms < unix_ms + self.rules.receipts_ms
            }
            None => self.must_hold(promise, code),
        }
    }

    /// Returns whether the server must repeat the checkout with this code. The keys of checkouts of any item are at another
    /// shard than the holds: it does not know that a hold lasts longer because the wall clock was set forward.
    fn must_repeat(&self, promise: &Promise, code: Code) -> bool {
        let granted_ms = promise.expires_unix_ms - u64::from(self.terms(promise.sale).ttl_ms);
        let is_in_time = promise.clock_epoch == self.clock_epoch && granted_ms <= self.rules.ends_ms(promise.sale);
        let is_known = is_in_time || self.latest_unix_ms < self.rules.forgotten_at_ms(promise.sale);
        self.must_remember(promise, code) && (is_known || promise.checkout_id().0.is_some())
    }
}

/// Returns whether this is the cancellation of the hold with this code.
pub fn is_cancellation(event: LogEvent, code: Code) -> bool {
    matches!(event, LogEvent::Released { code: of, reason: ReleaseReason::Cancelled, .. } if of == code)
}

/// Checks an answer, and adds its promise to `shadow`.
pub fn audit(shadow: &mut Shadow, pending: OpenRequest, outcome: Outcome, now: &Now<'_>) {
    match (pending.command, outcome) {
        (Command::Checkout { .. } | Command::CheckoutAny { .. }, outcome) => {
            audit_checkout(shadow, pending, outcome, now);
        }
        (Command::Purchase { code, key }, Outcome::Purchased { sale, item }) => {
            let &Promise { sale: of, item: promised, user, .. } =
                shadow.codes.get(code.as_bytes()).expect("a purchase with an invented code succeeds");
            assert_eq!((sale, item), (of, promised), "the purchase is of another item than the reservation");
            assert!(!shadow.released.contains(code.as_bytes()), "an item is bought with the code of a released hold");
            assert!(now.is_sold(sale, item), "a purchase is answered before it is durable");
            check_in_time(&shadow.codes[code.as_bytes()], code, now);
            if let Some(before) = shadow.bought.insert((sale, item), (code, key)) {
                assert!(before == (code, key) && !key.is_nil(), "{item:?} is sold twice, once to {user:?}");
            }
        }
        (Command::Cancel { code }, Outcome::Released) => {
            let &Promise { sale, item, .. } =
                shadow.codes.get(code.as_bytes()).expect("a cancellation with an invented code succeeds");
            assert!(shadow.bought.get(&(sale, item)).is_none_or(|(by, _)| *by != code), "a bought item is released");
            assert!(now.is_released(sale, code), "a cancellation is answered before it is durable");
            now.check_replicated(sale, "a release", |event| is_cancellation(event, code));
            shadow.released.insert(*code.as_bytes());
        }
        (Command::Extend { code }, Outcome::Extended { code: of, sale, item, expires_unix_ms }) => {
            assert_eq!(of, code, "the extension is of another hold");
            extended(shadow, code, (sale, item), expires_unix_ms, now);
        }
        (Command::Purchase { code, .. } | Command::Cancel { code } | Command::Extend { code }, refusal) => {
            refused(shadow, code, refusal, now);
        }
    }
}

fn audit_checkout(shadow: &mut Shadow, pending: OpenRequest, outcome: Outcome, now: &Now<'_>) {
    let OpenRequest { command, at, clock_epoch, event, .. } = pending;
    let may_be_new = matches!(outcome, Outcome::Reserved { .. } | Outcome::NoSuchItem | Outcome::NoSuchSale);
    let is_repeated = !may_be_new && must_be_repeated(shadow, &command, event, now);
    assert!(!is_repeated, "a repeated {command:?} is answered with {outcome:?}");
    match (command, outcome) {
        (
            Command::Checkout { sale: named, user, key, .. } | Command::CheckoutAny { sale: named, user, key, .. },
            Outcome::Reserved { code, sale, item: got, expires_unix_ms },
        ) => {
            let is_named = named.is_some() && matches!(now.rules.schedule, SaleSchedule::Planned(_));
            assert!(!is_named || named == Some(sale), "the answer names another sale than the request");
            // With a key, it may repeat one of a time when there was no choice.
            let had_choice = clock_epoch == now.clock_epoch && now.always_had_several(at.unix_ms, now.latest_unix_ms);
            assert!(is_named || !key.is_nil() || !had_choice, "the server has chosen one of several sales");
            assert!(command.item().is_none_or(|item| item == got), "the answer names another item than the request");
            let product = product_of(&command);
            let is_of_product = product.is_none() || now.terms(sale).products.id_of(got.0) == product;
            assert!(is_of_product, "the answer has an item of another product than the request");
            let ttl_ms = u64::from(now.terms(sale).ttl_ms);
            let ends = at.unix_ms + ttl_ms..=now.at.unix_ms + ttl_ms;
            assert!(
                !key.is_nil() || clock_epoch != now.clock_epoch || ends.contains(&expires_unix_ms),
                "the answer names a wrong end of the hold"
            );
            reserved(shadow, code, (sale, got, user, key), is_named, expires_unix_ms, now);
        }
        (
            _,
            Outcome::NotOpen { .. } | Outcome::SaleEnded | Outcome::NoSuchSale | Outcome::SaleUnnamed | Outcome::Paused,
        ) => audit_choice(pending, outcome, now),
        (
            Command::CheckoutAny { product, .. },
            Outcome::SoldOut { .. } | Outcome::AllReserved { .. } | Outcome::NoSuchProduct,
        ) => audit_search(pending, product, outcome, now),
        (Command::Checkout { item, .. }, Outcome::ItemSold { sale, item: of }) => {
            assert!(item == of && now.is_sold(sale, item), "{item:?} is refused as sold, but is not");
        }
        (Command::Checkout { item, .. }, Outcome::ItemReserved) => {
            assert!(
                now.item_free_since.is_none_or(|since| since > event),
                "{item:?} is refused as reserved, but was free"
            );
        }
        (Command::Checkout { user, key, .. } | Command::CheckoutAny { user, key, .. }, Outcome::UserLimit) => {
            assert!(
                // A repetition gets the answer of the first request, which was sent before it.
                !key.is_nil() || now.user_free_since.is_none_or(|since| since > event),
                "{user:?} is refused, but was below the limit"
            );
        }
        (Command::Checkout { item, .. }, Outcome::NoSuchItem) => {
            assert!(item.0 > 0, "item 0 always exists")
        }
        (_, other) => panic!("{command:?} is answered with {other:?}"),
    }
}

/// Checks the refusal of a checkout for which no sale could be chosen, or whose sale is paused.
fn audit_choice(pending: OpenRequest, outcome: Outcome, now: &Now<'_>) {
    let OpenRequest { command, at, clock_epoch, .. } = pending;
    match (command, outcome) {
        (
            Command::Checkout { sale: Some(named), .. } | Command::CheckoutAny { sale: Some(named), .. },
            outcome @ (Outcome::NotOpen { .. } | Outcome::SaleEnded | Outcome::NoSuchSale),
        ) if matches!(now.rules.schedule, SaleSchedule::Planned(_)) => {
            let Some(terms) = now.rules.schedule.terms(named) else { return assert_eq!(outcome, Outcome::NoSuchSale) };
            let is_right = match outcome {
                Outcome::NotOpen { retry_after_s } => retry_after_s > 0 && at.unix_ms < terms.opens_ms,
                // Another sale that opens when this one closes may have begun before.
                _ => outcome == Outcome::SaleEnded && now.latest_unix_ms >= terms.closes_ms,
            };
            assert!(is_right || clock_epoch != now.clock_epoch, "{terms:?} was open all the time");
        }
        (_, Outcome::SaleUnnamed) => {
            let had_several = clock_epoch != now.clock_epoch || now.had_several(at.unix_ms, now.latest_unix_ms);
            assert!(had_several, "one sale was open all the time");
        }
        (_, Outcome::Paused) => {
            let mut sales = now.latest_sales(now.latest_unix_ms).filter(|terms| terms.is_paused);
            let is_paused = |asked| now.terms(asked).is_paused;
            assert!(now.asked.is_some_and(is_paused) || sales.next().is_some(), "no sale is paused");
        }
        (_, Outcome::NotOpen { retry_after_s }) => {
            let has_gap = clock_epoch != now.clock_epoch || now.has_gap(at.unix_ms, now.at.unix_ms);
            assert!(retry_after_s > 0 && has_gap, "a sale was open all the time");
        }
        (command, other) => panic!("{command:?} is answered with {other:?}"),
    }
}

/// Checks the answer to a checkout of any item, or of any item of a product, that has found nothing.
fn audit_search(pending: OpenRequest, product: Option<ProductId>, outcome: Outcome, now: &Now<'_>) {
    let OpenRequest { at, clock_epoch, event, .. } = pending;
    match outcome {
        Outcome::SoldOut { sale } => {
            let items = now.items_of(sale).expect("a sale that is sold out was opened");
            let products = now.terms(sale).products;
            let mut asked = (0..items).filter(|item| product.is_none() || products.id_of(*item) == product);
            assert!(
                asked.all(|item| now.is_sold(sale, ItemId(item))),
                "{product:?} of {sale:?} is refused as sold out, but is not"
            );
        }
        Outcome::NoSuchProduct => {
            let product = product.expect("the checkout names a product");
            let has_it = |sale| now.terms(sale).products.find(product).is_some();
            // Another sale may have been open when the request was decided.
            assert!(
                clock_epoch != now.clock_epoch
                    || !now.asked.is_some_and(has_it)
                    || at.unix_ms < now.terms(now.sale).opens_ms,
                "{product:?} is on sale"
            );
        }
        Outcome::AllReserved { retry_after_s } => {
            assert!(
                retry_after_s > 0 && u64::from(retry_after_s) * 1000 < 1_000 + now.rules.schedule.longest_hold_ms()
            );
            let was_free = now.any_free_since.is_some_and(|since| since <= event);
            // A repetition is refused until the end of its hold is durable, and while a claim of an ended sale is undone.
            assert!(
                now.is_repeated || now.publishes_late || !was_free,
                "a checkout of any item finds none, but one was free"
            );
        }
        _ => unreachable!("the other outcomes are not those of a search"),
    }
}

/// Checks an extension, and adds it to its promise.
fn extended(shadow: &mut Shadow, code: Code, place: (SaleId, ItemId), expires_unix_ms: u64, now: &Now<'_>) {
    let promise = shadow.codes.get_mut(code.as_bytes()).expect("an invented code is extended");
    let by_ms = now.extended_ms(promise.sale, code);
    assert!(by_ms > 0, "an extension is answered before it is durable");
    let is_it = |event| matches!(event, LogEvent::Extended { code: of, .. } if of == code);
    now.check_replicated(promise.sale, "an extension", is_it);
    assert_eq!(place, (promise.sale, promise.item), "the extension is of another hold");
    assert_eq!(expires_unix_ms, promise.expires_unix_ms + by_ms, "the answer names a wrong end of the hold");
    if !std::mem::replace(&mut promise.is_extended, true) {
        promise.good_until.monotonic_ms += by_ms;
        promise.good_until.unix_ms += by_ms;
    }
}

fn refused(shadow: &Shadow, code: Code, refusal: Outcome, now: &Now<'_>) {
    let promise = shadow.codes.get(code.as_bytes());
    match refusal {
        Outcome::SaleEnded => assert!(
            // A takeover may have lost the whole sale.
            promise.is_none_or(|promise| {
                let is_same_era = promise.clock_epoch == now.clock_epoch;
                !(now.must_remember(promise, code) || is_same_era && now.remembers(promise.sale))
            }),
            "a code of a sale that is not forgotten is refused with `SaleEnded`"
        ),
        Outcome::CodeExpired | Outcome::CodeUnknown => {
            assert!(!promise.is_some_and(|promise| now.must_remember(promise, code)), "a hold ended too early");
        }
        Outcome::CodeUsed => {
            let is_sold = promise.is_none_or(|promise| now.is_sold(promise.sale, promise.item));
            assert!(is_sold, "a code is refused as used, but the purchase is not durable");
        }
        Outcome::NotExtendable => {
            let by_ms = promise.map_or(0, |promise| now.terms(promise.sale).extension_ms);
            assert_eq!(by_ms, 0, "a hold is not extended, but the sale allows it");
        }
        other => panic!("{code:?} is answered with {other:?}"),
    }
}

/// Checks that the item was not bought after the end of its hold, to the millisecond. In a later run, and after the wall
/// clock was set, the end is another one.
fn check_in_time(promise: &Promise, code: Code, now: &Now<'_>) {
    let is_it = |event| matches!(event, LogEvent::Purchase { code: by, .. } if by == code);
    let mut of_sale = now.durable.values().flatten().filter(|record| record.sale == promise.sale);
    let bought = of_sale.find(|record| is_it(record.event)).expect("the purchase is durable");
    let end = promise.expires_unix_ms + now.extended_ms(promise.sale, code);
    let is_same = (promise.run, promise.clock_epoch) == (now.run, now.clock_epoch);
    assert!(!is_same || bought.unix_ms < end, "an item is bought after the end of its hold");
}

/// Checks a reservation, which may be a repetition, and adds its promise to `shadow`.
fn reserved(
    shadow: &mut Shadow,
    code: Code,
    (sale, item, user, key): (SaleId, ItemId, UserId, Uuid),
    is_named: bool,
    expires_unix_ms: u64,
    now: &Now<'_>,
) {
    let record = now.grant_of(sale, code).expect("a checkout is answered before it is durable");
    let is_it = |event| matches!(event, LogEvent::Checkout { code: of, .. } if of == code);
    now.check_replicated(sale, "a checkout", is_it);
    let LogEvent::Checkout { item: of, user: holder, key: with, ttl_ms, .. } = record.event else { unreachable!() };
    assert_eq!((of, holder, with), (item, user, key), "the answer is the hold of another checkout");
    let (end, extended) = (record.unix_ms + u64::from(ttl_ms), now.extended_ms(sale, code));
    assert!([end, end + extended].contains(&expires_unix_ms), "the answer names a wrong end of the hold");
    if let Some(promise) = shadow.codes.get_mut(code.as_bytes()) {
        assert!(!key.is_nil(), "a code is issued twice");
        assert_eq!(promise.expires_unix_ms, end, "a repeated checkout has another end of the hold");
        promise.answers += 1;
        return;
    }
    let GrantTime { number, at, run, clock_epoch } = now.granted.expect("a reservation has the time of its grant");
    let id = checkout_id(item, user, key);
    let is_same = |promise: &Promise| promise.checkout_id() == id && (!is_named || promise.sale == sale);
    let is_earlier = |promise: &Promise| is_same(promise) && promise.number < number;
    for (bytes, promise) in shadow.codes.iter().filter(|(_, promise)| !key.is_nil() && is_earlier(promise)) {
        let earlier = Code::from_bytes(*bytes);
        assert!(!now.must_repeat(promise, earlier), "a repeated checkout gets another code");
    }
    // The hold may be over when the answer arrives.
    let good_until =
        Moment { monotonic_ms: at.monotonic_ms + u64::from(ttl_ms), unix_ms: at.unix_ms + u64::from(ttl_ms) };
    let (answers, is_extended, is_cancel_requested, event) = (1, false, false, now.event);
    shadow.codes.insert(
        *code.as_bytes(),
        Promise {
            sale,
            item,
            user,
            key,
            expires_unix_ms: end,
            number,
            event,
            answers,
            is_extended,
            is_cancel_requested,
            good_until,
            run,
            clock_epoch,
        },
    );
}

/// Returns whether a checkout that was sent after `event` repeats one, in the sale that it names or in any, whose hold or
/// purchase must be remembered. The first answer had arrived before.
fn must_be_repeated(shadow: &Shadow, command: &Command, event: u64, now: &Now<'_>) -> bool {
    let (sale, id) = match *command {
        Command::Checkout { sale, item, user, key } => (sale, (Some(item), user, key)),
        Command::CheckoutAny { sale, user, key, .. } => (sale, (None, user, key)),
        _ => return false,
    };
    let (.., key) = id;
    let named = sale.filter(|_| matches!(now.rules.schedule, SaleSchedule::Planned(_)));
    let is_same = |promise: &Promise| promise.checkout_id() == id && named.is_none_or(|named| promise.sale == named);
    let mut same = shadow.codes.iter().filter(|(_, promise)| is_same(promise) && promise.event <= event);
    !key.is_nil() && same.any(|(bytes, promise)| now.must_repeat(promise, Code::from_bytes(*bytes)))
}

/// Returns the product of which a command asks for any item.
pub fn product_of(command: &Command) -> Option<ProductId> {
    if let Command::CheckoutAny { product, .. } = command { *product } else { None }
}

/// Returns the user of a checkout; `None` for other commands.
pub fn user_of(command: &Command) -> Option<UserId> {
    match command {
        Command::Checkout { user, .. } | Command::CheckoutAny { user, .. } => Some(*user),
        _ => None,
    }
}
