//! A single shard: the effects of each event.

use crate::sale::code::{Code, CodeGenerator};
use crate::sale::command::{Command, Outcome, Withdrawal};
use crate::sale::effects::{Effects, EndedShare};
use crate::sale::ids::{ItemId, Moment, SaleId, ShardId, Terms, Ticket, UserId};
use crate::sale::message::{Asked, Checkout, Reply, Request, Verdict};
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::parts::Parts;
use crate::sale::record::{LogEvent, Record, RefusalReason, ReleaseReason};
use crate::sale::rules::{Ack, Rules};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use crate::sale::shard::{Inventory, Shard, ShardEvent};
use uuid::Uuid;

/// The time of all events, unless a test says otherwise.
pub const NOW: Moment = Moment { monotonic_ms: 1, unix_ms: 1_000 };
/// The sales of a shard, unless a test has others.
pub const SALES: PeriodicSale =
    PeriodicSale { period_s: 10, items: 200, user_limit: 10, ttl_ms: 100, extension_ms: 50 };
/// A checkout of an item, in the sale that is open.
const ASKED: Asked = Asked { is_any: false, of_product: false, is_named: false };
const RULES: Rules = Rules { schedule: SaleSchedule::Periodic(SALES), receipts_ms: 10_000, ack: Ack::Local };

/// Returns [`RULES`] with other sales.
pub fn rules(sales: PeriodicSale) -> Rules {
    Rules { schedule: SaleSchedule::Periodic(sales), ..RULES }
}

/// Returns the first of `shards` shards, with nothing sold and unlimited room in the log.
fn shard(shards: u16) -> Shard {
    shard_with(shards, RULES)
}

/// Returns the first of `shards` shards, with nothing sold and unlimited room in the log.
pub fn shard_with(shards: u16, rules: Rules) -> Shard {
    let (partition, id) = (Partition::new(shards), ShardId(0));
    let inventory = Inventory { parts: vec![Part::new(rules.schedule.terms(SaleId(0)).unwrap(), partition, id)] };
    let (codes, mut effects) = (CodeGenerator::new([0; 32]), Effects::default());
    let mut shard = Shard::new(id, partition, rules, inventory, codes, NOW, &mut effects);
    shard.apply(ShardEvent::LogRoom(u64::MAX), NOW, &mut effects);
    shard
}

/// Applies an event, and returns its effects.
pub fn apply(shard: &mut Shard, event: ShardEvent) -> Effects {
    let mut effects = Effects::default();
    shard.apply(event, NOW, &mut effects);
    effects
}

/// Sends a checkout of an item, and returns the effects.
pub fn checkout(shard: &mut Shard, item: u32) -> Effects {
    let command = Command::Checkout { sale: None, item: ItemId(item), user: UserId(1), key: Uuid::nil() };
    apply(shard, ShardEvent::Command(Ticket(7), command))
}

#[test]
fn what_is_known_to_be_sold_is_not_asked_again() {
    for item in [1, 63, 65, 127, 199].map(ItemId) {
        let mut shard = shard(2);
        assert_eq!(checkout(&mut shard, item.0).requests.len(), 1);
        let outcome = Outcome::ItemSold { sale: SaleId(0), item };
        apply(&mut shard, ShardEvent::Reply(Reply::Answer { ticket: Ticket(7), outcome }));
        assert_eq!(checkout(&mut shard, item.0).answers, [(Ticket(7), outcome)]);
        let asks = |other| checkout(&mut shard, other).requests.len() == 1;
        assert!((1..200).step_by(2).filter(|other| *other != item.0).all(asks));
    }
}

#[test]
fn the_log_has_room_set_aside_for_every_hold_and_two_for_every_claim() {
    let mut shard = shard(1);
    (0..3).for_each(|item| _ = checkout(&mut shard, item));
    assert_eq!((shard.log_reserve(), shard.next_expiry_ms()), (3, Some(101)));

    let mut shard = self::shard(2);
    let user = (0..).map(UserId).find(|user| Partition::new(2).owner_of_user(*user) != ShardId(0)).unwrap();
    for item in [0, 2, 4].map(ItemId) {
        let reserve = Request::Reserve {
            is_named: false,
            ticket: Ticket(7),
            checkout: Checkout { sale: SaleId(0), item, user, key: Uuid::nil() },
        };
        apply(&mut shard, ShardEvent::Request(ShardId(1), reserve));
    }
    assert_eq!((shard.log_reserve(), shard.next_expiry_ms()), (6, None));
}

#[test]
fn without_room_in_the_log_nothing_is_reserved() {
    // One block for the record that opened the sale and is not flushed yet, one for the next flush, two for this hold.
    for (room, answers) in [(4, vec![]), (3, vec![(Ticket(7), Outcome::LogFull)])] {
        let mut shard = shard(1);
        apply(&mut shard, ShardEvent::LogRoom(room));
        assert_eq!(checkout(&mut shard, 0).answers, answers);
    }
}

#[test]
fn without_room_in_the_log_no_hold_is_extended() {
    // One block for the next flush, one for the end of the hold, two that a new hold would need.
    for (room, records, answers) in [(4, 1, vec![]), (3, 0, vec![(Ticket(9), Outcome::LogFull)])] {
        let mut shard = shard(1);
        checkout(&mut shard, 0);
        let flushed = apply(&mut shard, ShardEvent::Flushed(2));
        let [(_, Outcome::Reserved { code, .. })] = flushed.answers[..] else { panic!() };
        apply(&mut shard, ShardEvent::LogRoom(room));
        let extended = apply(&mut shard, ShardEvent::Command(Ticket(9), Command::Extend { code }));
        assert_eq!((extended.records.len(), extended.answers), (records, answers), "with {room} blocks");
    }
}

#[test]
fn what_is_flushed_needs_no_more_room() {
    let mut shard = shard(1);
    for item in 0..64 {
        let command = Command::Checkout { sale: None, item: ItemId(item), user: UserId(item.into()), key: Uuid::nil() };
        apply(&mut shard, ShardEvent::Command(Ticket(1), command));
    }
    apply(&mut shard, ShardEvent::Flushed(65));
    // One block for the next flush, 64 for the ends of the 64 holds, two for this hold.
    apply(&mut shard, ShardEvent::LogRoom(1 + 64 + 2));
    assert_eq!(checkout(&mut shard, 100).answers, []);
    assert_eq!(checkout(&mut shard, 101).answers, [(Ticket(7), Outcome::LogFull)]);
}

#[test]
fn the_result_of_a_sale_is_final() {
    let mut shard = shard(1);
    checkout(&mut shard, 0);
    let [(_, Outcome::Reserved { code, .. })] = apply(&mut shard, ShardEvent::Flushed(2)).answers[..] else { panic!() };
    assert_eq!(apply(&mut shard, ShardEvent::Sale(SaleId(1))).ended, []);
    purchase(&mut shard, 8, code, Uuid::nil());
    assert_eq!(apply(&mut shard, ShardEvent::Tick).ended, [], "the purchase is not durable");
    let bought = Outcome::Purchased { sale: SaleId(0), item: ItemId(0) };
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(4)).answers, [(Ticket(8), bought)]);
    assert_eq!(apply(&mut shard, ShardEvent::Tick).ended, [EndedShare { sale: SaleId(0), sold: 1, items: 200 }]);
    assert_eq!(apply(&mut shard, ShardEvent::Tick).ended, []);
    assert_eq!(
        apply(&mut shard, ShardEvent::Sale(SaleId(2))).ended,
        [EndedShare { sale: SaleId(1), sold: 0, items: 200 }]
    );
}

/// The next sale is there before it opens, and memory is used again.
#[test]
fn the_next_sale_is_prepared_and_memory_is_used_again() {
    let rules = Rules { receipts_ms: 0, ..rules(PeriodicSale { items: 20_000, ..SALES }) };
    let (partition, id) = (Partition::new(1), ShardId(0));
    let mut parts = Parts::new(id, partition, vec![Part::new(rules.schedule.terms(SaleId(0)).unwrap(), partition, id)]);
    for sale in 1..5 {
        let at = |before_ms| Moment { monotonic_ms: 1, unix_ms: u64::from(sale) * 10_000 - before_ms };
        let to_next_sale_ms = |parts: &Parts| parts.time_to_next_sale_ms(&rules, at(5_001));
        parts.prepare(&rules, at(5_001));
        assert_eq!(to_next_sale_ms(&parts), Some(1), "it is too early");
        parts.prepare(&rules, at(5_000));
        assert_eq!(to_next_sale_ms(&parts), Some(5_001), "it is prepared");
        parts.begin(rules.schedule.terms(SaleId(sale)).unwrap());
        assert_eq!(parts.close(at(0)).count(), 1);
        parts.forget(&rules, at(0));
        assert_eq!((parts.newest().stock.items(), parts.iter().count()), (20_000, 1));
    }
}

/// Before the first sale of a plan nothing is on sale, so the prepared sale alone says how much room the log needs. A sale that
/// opens beside another one needs room as well.
#[test]
fn the_log_needs_room_for_the_items_that_will_be_on_sale_together() {
    let sale = |(id, items, opens_s, closes_s): (u32, u32, u64, u64)| {
        let first = Terms { items, opens_ms: opens_s * 1_000, closes_ms: closes_s * 1_000, ..SALES.terms(SaleId(id)) };
        SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
    };
    let sales = [(1, 20_000, 10, 20), (2, 3, 15, 30), (3, 4, 30, 40)];
    let rules = Rules { schedule: SaleSchedule::planned(sales.map(sale).to_vec()), ..RULES };
    let (partition, id) = (Partition::new(1), ShardId(0));
    let mut parts = Parts::new(id, partition, vec![Part::empty(Terms::NONE, partition, id)]);
    let mut needed = |unix_ms, begins: Option<u32>| {
        begins.into_iter().for_each(|sale| parts.begin(rules.schedule.terms(SaleId(sale)).unwrap()));
        (0..3).for_each(|_| parts.prepare(&rules, Moment { monotonic_ms: 1, unix_ms }));
        parts.items_in_rush()
    };
    assert_eq!([needed(0, None), needed(9_000, None), needed(10_000, Some(1))], [0, 20_003, 20_003]);
    assert_eq!([needed(14_000, None), needed(15_000, Some(2)), needed(30_000, Some(3))], [20_003, 20_003, 4]);
}

/// Everything about a hold works after the end of its sale, until the hold ends.
#[test]
fn a_hold_outlives_its_sale() {
    let mut shard = shard(1);
    let [first, second, third] = [0, 1, 2].map(|item| {
        let command = Command::Checkout { sale: None, item: ItemId(item), user: UserId(1), key: Uuid::max() };
        apply(&mut shard, ShardEvent::Command(Ticket(1), command));
        let answers = apply(&mut shard, ShardEvent::Flushed(2 + u64::from(item))).answers;
        let [(_, Outcome::Reserved { code, .. })] = answers[..] else { panic!("{answers:?}") };
        code
    });
    apply(&mut shard, ShardEvent::Sale(SaleId(1)));
    assert_eq!(shard.needed_sales().oldest_live, SaleId(0));
    let mut ask = |command| apply(&mut shard, ShardEvent::Command(Ticket(9), command));
    let records = |effects: Effects| effects.records.iter().map(|record| record.sale).collect::<Vec<_>>();
    assert_eq!(records(ask(Command::Purchase { code: first, key: Uuid::nil() })), [SaleId(0)]);
    assert_eq!(records(ask(Command::Extend { code: second })), [SaleId(0)]);
    assert_eq!(records(ask(Command::Cancel { code: third })), [SaleId(0)]);
    // The same key gets the hold of the ended sale, another key an item of the open one.
    assert_eq!(records(ask(Command::Checkout { sale: None, item: ItemId(1), user: UserId(1), key: Uuid::max() })), []);
    let other = Command::Checkout { sale: None, item: ItemId(1), user: UserId(1), key: Uuid::from_u128(1) };
    assert_eq!(records(ask(other)), [SaleId(1)]);
    let answers = apply(&mut shard, ShardEvent::Flushed(9)).answers;
    let sales = answers.iter().map(|(_, outcome)| match outcome {
        Outcome::Reserved { sale, .. } | Outcome::Extended { sale, .. } | Outcome::Purchased { sale, .. } => sale.0,
        Outcome::Released => 0,
        other => panic!("{other:?}"),
    });
    assert_eq!(sales.collect::<Vec<_>>(), [0, 0, 0, 0, 1]);
    let later = Moment { monotonic_ms: 151, unix_ms: 10_150 };
    let mut effects = Effects::default();
    shard.apply(ShardEvent::Tick, later, &mut effects);
    assert_eq!((effects.records.len(), shard.stock().counts().held), (2, 0), "the holds of both sales end");
    assert_eq!(shard.needed_sales().oldest_live, SaleId(1));
}

/// A hold that outlives the receipts of its sale is bought, and its own receipt is remembered for as long as any other.
#[test]
fn the_receipts_of_a_late_purchase_count_from_the_purchase() {
    let mut shard = shard(1);
    let (code, key) = (reserve(&mut shard, 0), Uuid::max());
    let mut ask = |unix_ms, flushed| {
        let (now, mut effects) = (Moment { monotonic_ms: 50, unix_ms }, Effects::default());
        shard.apply(ShardEvent::Tick, now, &mut effects);
        shard.apply(ShardEvent::Command(Ticket(3), Command::Purchase { code, key }), now, &mut effects);
        shard.apply(ShardEvent::Flushed(flushed), now, &mut effects);
        effects.answers
    };
    let bought = vec![(Ticket(3), Outcome::Purchased { sale: SaleId(0), item: ItemId(0) })];
    // The sale ends at 10 s, and its receipts at 20 s.
    assert_eq!((ask(25_000, 4), ask(34_999, 5)), (bought.clone(), bought));
    assert_eq!(ask(35_000, 5), [(Ticket(3), Outcome::SaleEnded)]);
}

#[test]
fn a_hold_is_extended_once() {
    let mut shard = shard(1);
    let code = reserve(&mut shard, 0);
    let extend = |shard: &mut Shard| apply(shard, ShardEvent::Command(Ticket(2), Command::Extend { code }));
    let effects = extend(&mut shard);
    assert_eq!((effects.records.len(), effects.answers), (1, vec![]), "the answer waits for the log");
    let outcome = Outcome::Extended { code, sale: SaleId(0), item: ItemId(0), expires_unix_ms: 1_150 };
    assert_eq!(extend(&mut shard).records, []);
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(3)).answers, [(Ticket(2), outcome), (Ticket(2), outcome)]);
    assert_eq!((extend(&mut shard).answers, shard.next_expiry_ms()), (vec![(Ticket(2), outcome)], Some(151)));
    // A full log keeps the block for the end of the hold.
    let mut full = self::shard(1);
    let code = reserve(&mut full, 0);
    apply(&mut full, ShardEvent::LogRoom(3));
    let refused = apply(&mut full, ShardEvent::Command(Ticket(2), Command::Extend { code }));
    assert_eq!((refused.records, refused.answers), (vec![], vec![(Ticket(2), Outcome::LogFull)]));
}

#[test]
fn a_repeated_release_gets_the_same_answer() {
    let mut shard = shard(1);
    let code = reserve(&mut shard, 0);
    let release = |shard: &mut Shard| apply(shard, ShardEvent::Command(Ticket(2), Command::Cancel { code }));
    assert_eq!((release(&mut shard).records.len(), release(&mut shard).records.len()), (1, 0));
    let released = (Ticket(2), Outcome::Released);
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(3)).answers, [released, released]);
    assert_eq!(release(&mut shard).answers, [released]);
    assert_eq!(purchase(&mut shard, 3, code, Uuid::nil()), [(Ticket(3), Outcome::CodeExpired)]);
}

/// Reserves an item after `item` others, and flushes its record. Returns its code.
fn reserve_at(shard: &mut Shard, item: u32) -> Code {
    checkout(shard, item);
    let answers = apply(shard, ShardEvent::Flushed(2 + u64::from(item))).answers;
    let [(_, Outcome::Reserved { code, .. })] = answers[..] else { panic!("{answers:?}") };
    code
}

/// Reserves an item. Returns its code.
fn reserve(shard: &mut Shard, item: u32) -> Code {
    checkout(shard, item);
    let answers = apply(shard, ShardEvent::Flushed(2)).answers;
    let Some((_, Outcome::Reserved { code, .. })) = answers.last() else { panic!("{answers:?}") };
    *code
}

fn purchase(shard: &mut Shard, ticket: u64, code: Code, key: Uuid) -> Vec<(Ticket, Outcome)> {
    apply(shard, ShardEvent::Command(Ticket(ticket), Command::Purchase { code, key })).answers
}

#[test]
fn a_key_that_has_bought_gets_its_answer_at_once() {
    let (mut shard, key) = (shard(1), Uuid::from_u128(5));
    let code = reserve(&mut shard, 0);
    let bought = Outcome::Purchased { sale: SaleId(0), item: ItemId(0) };
    assert_eq!(purchase(&mut shard, 1, code, key), []);
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(3)).answers, [(Ticket(1), bought)]);
    assert_eq!(purchase(&mut shard, 2, code, key), [(Ticket(2), bought)]);
}

#[test]
fn who_repeats_a_purchase_of_a_client_that_is_gone_is_told_in_its_place() {
    let mut shard = shard(1);
    let code = reserve(&mut shard, 0);
    purchase(&mut shard, 1, code, Uuid::nil());
    apply(&mut shard, ShardEvent::Withdrawn(Ticket(1), Some(ItemId(0)), Withdrawal::Disconnected));
    assert_eq!(purchase(&mut shard, 2, code, Uuid::nil()), []);
    let bought = Outcome::Purchased { sale: SaleId(0), item: ItemId(0) };
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(3)).answers, [(Ticket(2), bought)]);
}

/// A withdrawal concerns one shard, whatever the command.
#[test]
fn a_withdrawal_is_sent_to_the_owner_of_the_request() {
    let (mut shard, partition) = (shard(16), Partition::new(16));
    for item in (0..200).map(ItemId) {
        let gone = ShardEvent::Withdrawn(Ticket(item.0.into()), Some(item), Withdrawal::Disconnected);
        let sent = apply(&mut shard, gone).requests;
        let to: Vec<_> = sent.iter().map(|(to, _)| *to).collect();
        let owner = partition.owner_of_item(item);
        assert_eq!(to, if owner == ShardId(0) { vec![] } else { vec![owner] }, "{item:?}");
    }
}

/// When the database has persisted all purchases of a rush at once, each turn answers a part of them, in their order.
#[test]
fn answers_that_become_due_together_leave_in_several_turns() {
    const PURCHASES: u32 = 2_500;
    let sales = PeriodicSale { items: PURCHASES, user_limit: PURCHASES, ..SALES };
    let rules = Rules { ack: Ack::Postgres, ..rules(sales) };
    let mut shard = shard_with(1, rules);
    let codes: Vec<Code> = (0..PURCHASES).map(|item| reserve_at(&mut shard, item)).collect();
    (0..).zip(codes).for_each(|(ticket, code)| assert_eq!(purchase(&mut shard, ticket, code, Uuid::nil()), []));
    let persisted = u64::from(1 + 2 * PURCHASES);
    let mut answers = Vec::new();
    apply(&mut shard, ShardEvent::Flushed(persisted));
    assert!(!shard.has_due_effects());
    let first = apply(&mut shard, ShardEvent::Persisted(persisted)).answers;
    assert!(first.len() <= 1024 && shard.has_due_effects(), "{} answers in one turn", first.len());
    answers.extend(first);
    while shard.has_due_effects() {
        answers.extend(apply(&mut shard, ShardEvent::Persisted(persisted)).answers);
    }
    let tickets: Vec<_> = answers.iter().map(|(ticket, _)| ticket.0).collect();
    assert_eq!(tickets, (0..u64::from(PURCHASES)).collect::<Vec<_>>());
    assert_eq!(shard.stock().counts().sold, PURCHASES);
}

/// A whole stock of holds ends in the same millisecond. Each turn frees a part of it and does not sleep before the next,
/// and what is left is over all the same: it is not bought, not extended, and does not stand in the way of a checkout.
#[test]
fn holds_that_end_together_expire_in_several_turns() {
    const HOLDS: u32 = 3_000;
    let rules = rules(PeriodicSale { items: HOLDS + 1, user_limit: 2 * HOLDS, ..SALES });
    let mut shard = shard_with(1, rules);
    let codes: Vec<Code> = (0..HOLDS).map(|item| reserve_at(&mut shard, item)).collect();
    let (end, mut effects) = (Moment { monotonic_ms: 101, unix_ms: 1_100 }, Effects::default());
    shard.apply(ShardEvent::Tick, end, &mut effects);
    assert_eq!(effects.records.len(), 1024);
    let held = shard.stock().counts().held;
    assert_eq!((held, shard.next_expiry_ms()), (HOLDS - 1024, Some(101)), "the next turn has work");
    let last = codes[HOLDS as usize - 1];
    for command in [Command::Purchase { code: last, key: Uuid::nil() }, Command::Extend { code: last }] {
        let mut effects = Effects::default();
        shard.apply(ShardEvent::Command(Ticket(1), command), end, &mut effects);
        assert_eq!(effects.answers, [(Ticket(1), Outcome::CodeExpired)]);
    }
    let (mut effects, item) = (Effects::default(), ItemId(HOLDS - 1));
    let again = Command::Checkout { sale: None, item, user: UserId(2), key: Uuid::nil() };
    shard.apply(ShardEvent::Command(Ticket(1), again), end, &mut effects);
    let [
        LogEvent::Released { item: released, code, reason: ReleaseReason::Expired, .. },
        LogEvent::Checkout { item: reserved, user: UserId(2), .. },
    ] = effects.records.iter().map(|record| record.event).collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", effects.records)
    };
    assert_eq!((released, reserved, code), (item, item, last));
    for left in [HOLDS - 2 * 1024, 1, 1] {
        shard.apply(ShardEvent::Tick, end, &mut Effects::default());
        assert_eq!(shard.stock().counts().held, left, "the new hold stays");
    }
}

/// While the disk is slow, holds that are over wait for it, and the turns sleep until a flush has ended.
#[test]
fn no_more_holds_expire_than_the_log_can_take() {
    const HOLDS: u32 = 20_000;
    let rules = rules(PeriodicSale { items: HOLDS, user_limit: HOLDS, ..SALES });
    let mut shard = shard_with(1, rules);
    (0..HOLDS).for_each(|item| _ = reserve_at(&mut shard, item));
    let (end, mut effects) = (Moment { monotonic_ms: 101, unix_ms: 1_100 }, Effects::default());
    (0..20).for_each(|_| shard.apply(ShardEvent::Tick, end, &mut effects));
    assert_eq!(shard.next_expiry_ms(), None, "the next turn has no work before the flush");
    let ended = effects.records.len();
    assert!((16 * 1024..18 * 1024).contains(&ended), "{ended} holds have ended");
    shard.apply(ShardEvent::Flushed(u64::from(1 + HOLDS) + ended as u64), end, &mut effects);
    (0..20).for_each(|_| shard.apply(ShardEvent::Tick, end, &mut effects));
    assert_eq!((effects.records.len(), shard.stock().counts().held), (HOLDS as usize, 0));
}

/// A code leads to its sale whatever the stock of the sales since then, and after the receipts to no sale.
#[test]
fn the_age_of_a_code_decides_what_is_said_about_it() {
    let mut shard = shard(1);
    apply(&mut shard, ShardEvent::Sale(SaleId(40_000)));
    let mut ask = |sale, item| {
        let code = CodeGenerator::new([1; 32]).mint(SaleId(sale), ItemId(item));
        let [(_, outcome)] = purchase(&mut shard, 1, code, Uuid::nil())[..] else { panic!() };
        outcome
    };
    assert_eq!(ask(40_000, 199), Outcome::CodeUnknown, "never issued");
    assert_eq!(ask(40_000, 200), Outcome::CodeUnknown, "the sale has no such item");
    assert_eq!(ask(39_999, 200), Outcome::SaleEnded);
    assert_eq!(ask(40_000 - 32_768, 5), Outcome::SaleEnded);
    assert_eq!(ask(40_000 - 32_769, 5), Outcome::CodeUnknown);
    assert_eq!(ask(40_001, 5), Outcome::CodeUnknown, "a sale to come");
    assert_eq!(ask(0, 5), Outcome::CodeUnknown, "known, and never issued");
}

#[test]
fn every_refused_checkout_is_recorded_with_its_reason() {
    let mut shard = shard(1);
    let code = reserve(&mut shard, 0);
    purchase(&mut shard, 1, code, Uuid::nil());
    apply(&mut shard, ShardEvent::Flushed(3));
    (1..10).for_each(|item| assert!(checkout(&mut shard, item).attempts.is_empty()));
    // The origin refuses both checkouts of item 0: it knows from the purchase's answer that the item is sold.
    let reasons =
        [RefusalReason::ItemSold, RefusalReason::ItemSold, RefusalReason::ItemReserved, RefusalReason::UserLimit];
    for (item, reason) in [0, 0, 1, 10].map(ItemId).into_iter().zip(reasons) {
        let attempts = checkout(&mut shard, item.0).attempts;
        let events: Vec<_> = attempts.iter().map(|record| record.event).collect();
        assert_eq!(events, [LogEvent::Refused { item: Some(item), user: UserId(1), reason }]);
    }
}

/// Sends two checkouts with the same key from shard 1, and then the reply to the claim of the first one.
fn claimed_twice(shard: &mut Shard, verdict: Verdict) -> (Effects, UserId) {
    let user = (0..).map(UserId).find(|user| Partition::new(2).owner_of_user(*user) != ShardId(0)).unwrap();
    let checkout = Checkout { sale: SaleId(0), item: ItemId(0), user, key: Uuid::from_u128(1) };
    for ticket in [1, 2].map(Ticket) {
        let effects =
            apply(shard, ShardEvent::Request(ShardId(1), Request::Reserve { ticket, checkout, is_named: false }));
        assert_eq!(effects.requests.len(), usize::from(ticket == Ticket(1)), "one claim is sent");
        assert!(effects.replies.is_empty(), "the repetition waits for the claim");
    }
    let reply = Reply::Claimed { origin: ShardId(1), ticket: Ticket(1), checkout, asked: ASKED, verdict };
    (apply(shard, ShardEvent::Reply(reply)), user)
}

#[test]
fn a_repetition_gets_the_answer_of_the_claim() {
    let mut shard = shard(2);
    let (effects, _) = claimed_twice(&mut shard, Verdict::Denied);
    let refused = |ticket| (ShardId(1), Reply::Answer { ticket: Ticket(ticket), outcome: Outcome::UserLimit });
    assert_eq!((effects.replies, effects.attempts.len()), (vec![refused(1), refused(2)], 2));

    let (effects, user) = claimed_twice(&mut shard, Verdict::Granted);
    assert!(effects.replies.is_empty(), "the grant is not durable");
    let [.., Record { event: LogEvent::Checkout { code, key, .. }, .. }] = effects.records[..] else { panic!() };
    assert_eq!(key, Uuid::from_u128(1));
    let outcome = Outcome::Reserved { code, sale: SaleId(0), item: ItemId(0), expires_unix_ms: 1_100 };
    let granted = |ticket| (ShardId(1), Reply::Answer { ticket: Ticket(ticket), outcome });
    assert_eq!(apply(&mut shard, ShardEvent::Flushed(2)).replies, [granted(1), granted(2)]);
    // A later repetition is answered at once, because the grant is durable.
    let checkout = Checkout { sale: SaleId(0), item: ItemId(0), user, key };
    let reserve = Request::Reserve { ticket: Ticket(3), checkout, is_named: false };
    assert_eq!(apply(&mut shard, ShardEvent::Request(ShardId(1), reserve)).replies, [granted(3)]);
}

#[test]
fn repetitions_of_a_claim_move_to_the_next_sale() {
    let mut shard = shard(2);
    let user = (0..).map(UserId).find(|user| Partition::new(2).owner_of_user(*user) != ShardId(0)).unwrap();
    let checkout = Checkout { sale: SaleId(0), item: ItemId(0), user, key: Uuid::from_u128(1) };
    for ticket in [1, 2, 3].map(Ticket) {
        apply(&mut shard, ShardEvent::Request(ShardId(1), Request::Reserve { ticket, checkout, is_named: false }));
    }
    let gone = Request::Withdraw { ticket: Ticket(2), item: Some(ItemId(0)), reason: Withdrawal::Disconnected };
    apply(&mut shard, ShardEvent::Request(ShardId(1), gone));
    assert_eq!(apply(&mut shard, ShardEvent::Sale(SaleId(1))).replies, [], "they wait for the decision of the claim");
    let (ticket, verdict) = (Ticket(1), Verdict::Granted);
    let claimed = Reply::Claimed { origin: ShardId(1), ticket, checkout, asked: ASKED, verdict };
    let effects = apply(&mut shard, ShardEvent::Reply(claimed));
    let moved = |ticket| (ShardId(1), Reply::SaleChanged { ticket, item: ItemId(0), user, key: Uuid::from_u128(1) });
    assert_eq!(effects.replies, [moved(Ticket(3)), moved(Ticket(1))]);
    assert!(matches!(effects.requests[..], [(_, Request::Release { .. })]), "the quota is returned");
}

#[test]
fn a_grant_that_no_client_receives_is_cancelled() {
    let key = Uuid::max();
    let ask = |shard: &mut Shard, ticket, key| {
        apply(
            shard,
            ShardEvent::Command(
                Ticket(ticket),
                Command::Checkout { sale: None, item: ItemId(0), user: UserId(1), key },
            ),
        )
    };
    let withdraw = |shard: &mut Shard, ticket, reason| {
        let records = apply(shard, ShardEvent::Withdrawn(Ticket(ticket), Some(ItemId(0)), reason)).records;
        let is_release =
            |record: &Record| matches!(record.event, LogEvent::Released { reason: ReleaseReason::Cancelled, .. });
        assert!(records.iter().all(is_release));
        records.len()
    };
    for (key, reason, releases) in [
        (Uuid::nil(), Withdrawal::Disconnected, 1),
        (Uuid::nil(), Withdrawal::Overdue, 1),
        (key, Withdrawal::Disconnected, 1),
        // The client of an overdue request repeats it with its key.
        (key, Withdrawal::Overdue, 0),
    ] {
        let mut shard = shard(1);
        ask(&mut shard, 1, key);
        assert_eq!(withdraw(&mut shard, 1, reason), releases, "{key} {reason:?}");
        assert_eq!(shard.stock().counts().held, 1 - releases as u32);
        assert_eq!(apply(&mut shard, ShardEvent::Flushed(2)).answers, []);
    }
    // A second request has the same code: the hold ends when both are gone.
    let mut shard = shard(1);
    ask(&mut shard, 1, key);
    ask(&mut shard, 2, key);
    assert_eq!(withdraw(&mut shard, 1, Withdrawal::Disconnected), 0);
    let answers = apply(&mut shard, ShardEvent::Flushed(2)).answers;
    let [(Ticket(2), Outcome::Reserved { code, .. })] = answers[..] else { panic!("{answers:?}") };
    assert_eq!(apply(&mut shard, ShardEvent::Undelivered(code)).records.len(), 1);
    assert_eq!(
        (shard.stock().counts().held, shard.quotas().taken(UserId(1))),
        (0, 1),
        "the quota waits for the record"
    );
    apply(&mut shard, ShardEvent::Flushed(3));
    assert_eq!(shard.quotas().taken(UserId(1)), 0);
}

/// The origin knows that the item is sold, and asks the owner nevertheless.
#[test]
fn a_checkout_is_repeated_after_its_purchase() {
    let (mut shard, key) = (shard(1), Uuid::max());
    let ask = |shard: &mut Shard, key| {
        apply(
            shard,
            ShardEvent::Command(Ticket(1), Command::Checkout { sale: None, item: ItemId(0), user: UserId(1), key }),
        )
        .answers
    };
    ask(&mut shard, key);
    let granted = apply(&mut shard, ShardEvent::Flushed(2)).answers;
    let [(_, Outcome::Reserved { code, .. })] = granted[..] else { panic!("{granted:?}") };
    purchase(&mut shard, 2, code, Uuid::nil());
    apply(&mut shard, ShardEvent::Flushed(3));
    assert_eq!(ask(&mut shard, key), granted);
    let sold = Outcome::ItemSold { sale: SaleId(0), item: ItemId(0) };
    assert_eq!(ask(&mut shard, Uuid::nil()), [(Ticket(1), sold)]);
    assert_eq!(ask(&mut shard, Uuid::from_u128(1)), [(Ticket(1), sold)]);
}
