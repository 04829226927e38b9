//! A single shard that searches for any item.

use super::alone::{NOW, SALES, apply, checkout, rules, shard_with};
use super::plans::product_id;
use crate::sale::checkout_key::mark_any;
use crate::sale::command::{Command, Outcome};
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, SaleId, ShardId, Terms, Ticket, UserId};
use crate::sale::message::{Reply, Request, Verdict};
use crate::sale::partition::Partition;
use crate::sale::product_ranges::{ProductRanges, SaleProduct};
use crate::sale::published_stock::PublishedStock;
use crate::sale::record::{LogEvent, Record, RefusalReason};
use crate::sale::rules::Rules;
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use crate::sale::shard::{Shard, ShardEvent};
use uuid::Uuid;

/// A sale is sold out when the last purchase is durable, and not before. Until then, the end of the first hold says when to
/// come back. Refusals are recorded without an item.
#[test]
fn a_checkout_of_any_item_learns_when_to_come_back() {
    let mut shard = shard_with(1, rules(PeriodicSale { items: 2, ttl_ms: 2_500, ..SALES }));
    let ask = |shard: &mut Shard| {
        apply(
            shard,
            ShardEvent::Command(
                Ticket(1),
                Command::CheckoutAny { sale: None, product: None, user: UserId(1), key: Uuid::nil() },
            ),
        )
    };
    let granted = |effects: Effects| match effects.answers[..] {
        [(_, Outcome::Reserved { code, .. })] => code,
        ref other => panic!("{other:?}"),
    };
    let buy = |code| ShardEvent::Command(Ticket(2), Command::Purchase { code, key: Uuid::nil() });
    ask(&mut shard);
    let first = granted(apply(&mut shard, ShardEvent::Flushed(2)));
    ask(&mut shard);
    let second = granted(apply(&mut shard, ShardEvent::Flushed(3)));
    let refused = ask(&mut shard);
    assert_eq!(refused.answers, [(Ticket(1), Outcome::AllReserved { retry_after_s: 3 })]);
    let event = LogEvent::Refused { item: None, user: UserId(1), reason: RefusalReason::ItemReserved };
    assert_eq!(refused.attempts, [Record { sale: SaleId(0), unix_ms: NOW.unix_ms, event }]);
    [first, second].into_iter().for_each(|code| _ = apply(&mut shard, buy(code)));
    assert_eq!(ask(&mut shard).answers, [(Ticket(1), Outcome::AllReserved { retry_after_s: 1 })]);
    apply(&mut shard, ShardEvent::Flushed(4));
    assert_eq!(ask(&mut shard).answers, [(Ticket(1), Outcome::AllReserved { retry_after_s: 1 })]);
    apply(&mut shard, ShardEvent::Flushed(5));
    assert_eq!(ask(&mut shard).answers, [(Ticket(1), Outcome::SoldOut { sale: SaleId(0) })]);
}

/// The origin passes over shards that have published that they have nothing, and asks each of the others once.
#[test]
fn each_shard_is_asked_once_for_any_item() {
    let mut shard = shard_with(4, rules(PeriodicSale { items: 4, ..SALES }));
    // User 1's claims stay on their way, so the only item of this shard is taken.
    checkout(&mut shard, 0);
    let published = |sold, next_expiry_ms| PublishedStock {
        sale: SaleId(0),
        product: None,
        sold,
        reserved: 1 - sold,
        next_expiry_ms,
    };
    for (other, numbers) in [(1, published(1, u64::MAX)), (2, published(0, 1)), (3, published(0, 1_001))] {
        apply(&mut shard, ShardEvent::Published(ShardId(other), numbers));
    }
    let (user, key) = (UserId(2), Uuid::nil());
    let asked = apply(
        &mut shard,
        ShardEvent::Command(Ticket(3), Command::CheckoutAny { sale: None, product: None, user, key }),
    )
    .requests;
    assert_eq!(
        asked,
        [(
            ShardId(2),
            Request::ReserveAny { ticket: Ticket(3), sale: SaleId(0), is_named: false, product: None, user, key }
        )]
    );
    let none = Reply::NoneFree {
        ticket: Ticket(3),
        owner: ShardId(2),
        sale: SaleId(0),
        is_named: false,
        product: None,
        user,
        key,
    };
    let refused = apply(&mut shard, ShardEvent::Reply(none));
    assert_eq!(refused.answers, [(Ticket(3), Outcome::AllReserved { retry_after_s: 1 })]);
    assert!(refused.requests.is_empty());
}

/// Two checkouts with one key search at the same time, and the claim of this shard's item is refused. A third one, which was
/// sent here meanwhile, must be answered all the same.
#[test]
fn a_repetition_hears_that_the_claim_it_waits_for_is_refused() {
    let mut shard = shard_with(2, rules(SALES));
    let user = (0..).map(UserId).find(|user| Partition::new(2).owner_of_user(*user) != ShardId(0)).unwrap();
    let (ticket, key) = (Ticket(1), mark_any(Uuid::from_u128(1)));
    let any = Request::ReserveAny { ticket, sale: SaleId(0), is_named: false, product: None, user, key };
    let claims = apply(&mut shard, ShardEvent::Request(ShardId(1), any)).requests;
    let [(_, Request::Claim { origin, checkout, asked, .. })] = claims[..] else { panic!("{claims:?}") };
    let repeat = Request::Repeat { origin, ticket: Ticket(2), checkout, is_named: false, product: None };
    assert!(apply(&mut shard, ShardEvent::Request(ShardId(1), repeat)).replies.is_empty());
    let refused = Reply::Claimed { origin, ticket, checkout, asked, verdict: Verdict::Repeated };
    let answer = Reply::Answer { ticket: Ticket(2), outcome: Outcome::AllReserved { retry_after_s: 1 } };
    assert_eq!(apply(&mut shard, ShardEvent::Reply(refused)).replies, [(ShardId(1), answer)]);
}

/// A search ends a limited number of holds that are over. Here those of another product are before the one that it needs.
#[test]
fn a_search_that_would_end_too_many_holds_is_told_to_come_back() {
    let products =
        [(1, 100), (2, 1)].map(|(id, units)| SaleProduct { id: product_id(id), name: "x", units, unit_names: &[] });
    let periodic = rules(SALES);
    let first = Terms {
        items: 101,
        user_limit: 101,
        products: ProductRanges::new(products),
        ..periodic.schedule.terms(SaleId(0)).unwrap()
    };
    let series = vec![SaleSeries { first, every_ms: 0, count: 1, layer: 0 }];
    let mut shard = shard_with(1, Rules { schedule: SaleSchedule::planned(series), ..periodic });
    let of = |number, user| {
        let product = Some(product_id(number));
        let any = Command::CheckoutAny { sale: None, product, user: UserId(user), key: Uuid::nil() };
        ShardEvent::Command(Ticket(1), any)
    };
    (0..100).for_each(|_| _ = apply(&mut shard, of(1, 1)));
    apply(&mut shard, of(2, 1));
    apply(&mut shard, ShardEvent::Flushed(102));
    let later = Moment { monotonic_ms: NOW.monotonic_ms + u64::from(SALES.ttl_ms), ..NOW };
    let mut search = |ends| {
        let mut effects = Effects::default();
        shard.apply(of(2, 2), later, &mut effects);
        assert_eq!(effects.changes.len(), ends);
        effects.answers
    };
    assert_eq!(search(64), [(Ticket(1), Outcome::AllReserved { retry_after_s: 1 })]);
    // The other 36 of the first product, that of the second one, and the checkout of its item.
    assert_eq!(search(36 + 1 + 1), []);
}
