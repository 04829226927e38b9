//! Small worlds, tried exhaustively: every order of messages and flushes, and a crash at every point.

use super::number;
use super::world::World;
use crate::sale::checkout_key::mark_any;
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::ids::{ItemId, UserId};
use crate::sale::rules::Ack;
use std::thread;
use uuid::Uuid;

/// What buyer 0 sends with a key to both shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeats {
    Nothing,
    /// A checkout of its item.
    Item,
    /// A checkout of any item.
    Any,
}

const ALL: [Repeats; 3] = [Repeats::Nothing, Repeats::Item, Repeats::Any];

/// Buyers in a world of two shards. Buyer `n` sends its requests to shard `n / 2 % 2`, checks out item `n % items`, and
/// buys it once it is reserved. Buyer 0 may repeat its checkout.
struct Buyers {
    world: World,
    has_paid: Vec<bool>,
    repeats: Repeats,
    sales_to_begin: u32,
}

impl Buyers {
    fn new(buyers: u32, items: u32, repeats: Repeats, sales_to_begin: u32) -> Buyers {
        let mut world = World::small(items, 2, Ack::Local, sales_to_begin);
        world.any_buyers.publishes_late = false;
        for buyer in 0..buyers {
            let (item, user, key) = (ItemId(buyer % items), UserId(buyer.into()), Uuid::from_u128(1));
            let command = match repeats {
                Repeats::Item if buyer == 0 => Command::Checkout { sale: None, item, user, key },
                Repeats::Any if buyer == 0 => {
                    Command::CheckoutAny { sale: None, product: None, user, key: mark_any(key) }
                }
                _ => Command::Checkout { sale: None, item, user, key: Uuid::nil() },
            };
            world.command(buyer as u16 / 2 % 2, command);
            if buyer == 0 && repeats != Repeats::Nothing {
                world.command(1, command);
            }
        }
        Buyers { world, has_paid: vec![false; buyers as usize], repeats, sales_to_begin }
    }

    /// Makes the action happen that `choose` picks from the possible ones. Returns false if there are none.
    fn step(&mut self, choose: impl FnOnce(usize) -> usize) -> bool {
        let options = self.world.options();
        if options.is_empty() {
            return false;
        }
        self.world.make(options[choose(options.len())]);
        for (bytes, promise) in self.world.shadow.codes.clone() {
            if !std::mem::replace(&mut self.has_paid[promise.user.0 as usize], true) {
                let code = Code::from_bytes(bytes);
                self.world.command(promise.user.0 as u16 / 2 % 2, Command::Purchase { code, key: Uuid::nil() });
            }
        }
        self.world.check();
        true
    }

    /// Checks that the repetition got the same code, if buyer 0 got one. Of two searches for any item, one may find nothing
    /// while the other one is decided.
    fn check_repetition(&self) {
        let promises = self.world.shadow.codes.values().filter(|promise| promise.user == UserId(0));
        let answers: Vec<u32> = promises.map(|promise| promise.answers).collect();
        let is_same = match (self.repeats, &answers[..]) {
            (_, []) => true,
            (Repeats::Nothing, [answers]) => *answers == 1,
            (Repeats::Item, [answers]) => *answers == 2,
            (Repeats::Any, [answers]) => (1..=2).contains(answers),
            (_, _) => false,
        };
        assert!(is_same, "the repetition has another answer: {answers:?}");
    }
}

#[test]
fn every_order_of_messages_and_flushes() {
    let orders = [(2, 1), (3, 1), (3, 2)].map(|(buyers, items)| try_every_order(buyers, items, Repeats::Nothing, 0));
    let repeated = [(1, 1), (2, 1), (2, 2)].map(|(buyers, items)| try_every_order(buyers, items, Repeats::Item, 0));
    let any = [(1, 1), (1, 2), (2, 1)].map(|(buyers, items)| try_every_order(buyers, items, Repeats::Any, 0));
    assert!(any.iter().sum::<u64>() > 500, "{any:?}");
    assert!(repeated.iter().sum::<u64>() > 10_000, "{repeated:?}");
    assert!(orders.iter().sum::<u64>() > 200_000, "{orders:?}");
}

/// The next sale begins at every point of every order.
#[test]
fn every_order_of_messages_and_flushes_over_the_turn_of_the_hour() {
    // Two buyers of two items have millions of orders.
    let is_long = number("STAMPEDE_SIM_SEEDS", 20_000) > 20_000;
    let sizes = [(2, 1), (3, 1), (2, 2)].into_iter().filter(|size| is_long || *size != (2, 2));
    let orders: Vec<u64> = sizes.map(|(buyers, items)| try_every_order(buyers, items, Repeats::Nothing, 1)).collect();
    let repeated = [Repeats::Item, Repeats::Any].map(|repeats| try_every_order(1, 1, repeats, 1));
    assert!(
        orders.iter().sum::<u64>() > 1_000 && repeated.iter().all(|orders| *orders > 1_000),
        "{orders:?}, {repeated:?}"
    );
}

/// Tries every order of actions, those with the same first action on a thread of their own. Returns the number of orders.
fn try_every_order(buyers: u32, items: u32, repeats: Repeats, sales_to_begin: u32) -> u64 {
    let new = || Buyers::new(buyers, items, repeats, sales_to_begin);
    let firsts = new().world.options().len();
    thread::scope(|scope| {
        let tries: Vec<_> =
            (0..firsts).map(|first| scope.spawn(move || try_orders_from((first, firsts), items, &new))).collect();
        tries.into_iter().map(|tried| tried.join().expect("no order breaks a promise")).sum()
    })
}

/// Tries every order that begins with an action: its number, and that of the possible ones.
fn try_orders_from(first: (usize, usize), items: u32, new: &impl Fn() -> Buyers) -> u64 {
    let mut path: Vec<(usize, usize)> = vec![first];
    let mut orders = 0u64;
    loop {
        let mut crowd = new();
        let mut depth = 0;
        while crowd.step(|options| {
            if depth == path.len() {
                path.push((0, options));
            }
            assert_eq!(path[depth].1, options, "the same choices lead to another world");
            path[depth].0
        }) {
            depth += 1;
        }
        crowd.world.begin_everywhere();
        crowd.world.check_rest();
        crowd.check_repetition();
        // Every hold is live to the end, so every buyer that got one has bought, also after the end of the sale.
        let (bought, codes) = (crowd.world.shadow.bought.len(), crowd.world.shadow.codes.len());
        assert_eq!(bought, codes, "a hold was not bought");
        // Buyers of any item may take the one that another buyer names.
        let is_sold = bought == items as usize || crowd.repeats == Repeats::Any && bought > 0;
        assert!(crowd.sales_to_begin > 0 || is_sold, "not every item is sold once");
        orders += 1;
        while path.len() > 1 && path.pop_if(|(choice, options)| *choice + 1 == *options).is_some() {}
        match &mut path[1..] {
            [.., (choice, _)] => *choice += 1,
            [] => return orders,
        }
    }
}

#[test]
fn a_crash_at_every_point_and_in_recovery() {
    let mut crashes = 0;
    for (schedule, repeats) in (0..4usize).flat_map(|schedule| ALL.map(|repeats| (schedule, repeats))) {
        for point in 0.. {
            let choose = |options: usize| [0, options - 1, options / 2, schedule * 7 % options][schedule];
            let is_over = {
                let mut buyers = Buyers::new(2, 1, repeats, 0);
                !(0..point).all(|_| buyers.step(choose))
            };
            if is_over {
                break;
            }
            // Bit mask of the sectors in flight that are kept: all, none, every second, only the first, all but the
            // first.
            for kept in [u64::MAX, 0, 0x5555_5555_5555_5555, 1, !1] {
                for seals in [None, Some(0), Some(1), Some(2)] {
                    for shards in 1..4 {
                        let mut buyers = Buyers::new(2, 1, repeats, 0);
                        (0..point).for_each(|_| assert!(buyers.step(choose)));
                        let mut sector = 0;
                        buyers.world.crash_with(shards, seals, || {
                            sector += 1;
                            kept >> ((sector - 1) % 64) & 1 == 1
                        });
                        buyers.world.check();
                        buyers.world.settle();
                        buyers.world.sell_out();
                        crashes += 1;
                    }
                }
            }
        }
    }
    assert!(crashes > 1_000, "only {crashes} crashes were tried");
}
