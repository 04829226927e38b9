//! What buyers do. A scenario says what the next buyer wants, and what a buyer does after an answer.

use clap::ValueEnum;

/// How often a buyer of a crowd looks for another item before leaving.
const ITEMS_TRIED: u8 = 3;
/// How often a retry-happy client sends the same request, whatever the answer.
const SAME_REQUEST: u8 = 4;
/// One request in so many is hung up on by retry-happy clients, as soon as it is sent.
const HANG_UPS: u32 = 16;

/// One request of a buyer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is asked.
    pub ask: Ask,
    /// How often that was asked before.
    pub times: u8,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Reserve this item for this user.
    Checkout {
        /// The buyer.
        user: i64,
        /// The item.
        item: u32,
    },
    /// Buy what was reserved: the place of the reservation in the ledger.
    Purchase(usize),
}

impl Ask {
    /// The operation's name.
    pub fn operation(self) -> &'static str {
        match self {
            Ask::Checkout { .. } => "checkout",
            Ask::Purchase(_) => "purchase",
        }
    }
}

/// What became of a step, as far as it matters to the buyer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The item is reserved: the place of the reservation in the ledger.
    Reserved(usize),
    /// The item is bought.
    Bought,
    /// No, and why.
    Refused(&'a str),
    /// Not now (503).
    Later,
    /// There was none: a timeout, or a connection that ended.
    Lost,
}

/// What a buyer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Is done.
    Leaves,
    /// Asks this at once.
    Asks(Step),
    /// Asks this after a rest.
    AsksLater(Step),
}

/// A kind of crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Checkout, then purchase: each item once, in any order; ends when all have been asked for
    Chain,
    /// Every user comes within one second, looks for an item up to three times, and buys it
    Crowd,
    /// Users reserve as much as they get, and never buy
    Hoarders,
    /// Every request again and again, purchases with the same Idempotency-Key, with clients that hang up and reconnect
    Retry,
    /// Everybody asks for any item and never buys: refusals, if the sale is sold out
    SoldOut,
    /// Buyers of any item at a low, steady rate
    Trickle,
}

impl Scenario {
    /// Whether purchases carry an `Idempotency-Key`.
    pub fn has_keys(self) -> bool {
        self == Scenario::Retry
    }

    /// Whether checkouts ask for JSON, which tells when a hold ends.
    pub fn wants_json(self) -> bool {
        self == Scenario::Hoarders
    }

    fn buys(self) -> bool {
        !matches!(self, Scenario::Hoarders | Scenario::SoldOut)
    }
}

/// Buyers, one after the other.
pub struct Buyers {
    scenario: Scenario,
    users: i64,
    items: u32,
    /// How many have come.
    arrived: i64,
    /// Items still to be asked for, in `Chain`.
    left: Vec<u32>,
    chance: fastrand::Rng,
}

impl Buyers {
    /// Buyers of `items` items, under as many names as `users`; the same ones for the same seed.
    pub fn new(scenario: Scenario, users: i64, items: u32, seed: u64) -> Buyers {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut left: Vec<u32> = if scenario == Scenario::Chain { (0..items).collect() } else { Vec::new() };
        chance.shuffle(&mut left);
        Buyers { scenario, users, items, arrived: 0, left, chance }
    }

    /// What the next buyer wants. `None` if nobody comes any more.
    pub fn arrive(&mut self) -> Option<Step> {
        // In turn where everybody comes once, or nobody should meet the limit.
        let in_turn = self.arrived % self.users;
        let (user, item) = match self.scenario {
            Scenario::Chain => (in_turn, self.left.pop()?),
            Scenario::Crowd if self.arrived == self.users => return None,
            Scenario::Crowd => (in_turn, self.wanted()),
            Scenario::Hoarders => (in_turn, self.any()),
            Scenario::Retry | Scenario::SoldOut | Scenario::Trickle => (self.chance.i64(0..self.users), self.any()),
        };
        self.arrived += 1;
        Some(Step { ask: Ask::Checkout { user, item }, times: 0 })
    }

    /// What the buyer does after this became of a step.
    pub fn next(&mut self, step: Step, answer: Answer<'_>) -> Next {
        let again = Step { times: step.times.saturating_add(1), ..step };
        let has_more_to_come = again.times < SAME_REQUEST;
        match (step.ask, answer) {
            (Ask::Checkout { user, .. }, Answer::Reserved(_)) if self.scenario == Scenario::Hoarders => {
                Next::Asks(Step { ask: Ask::Checkout { user, item: self.any() }, times: 0 })
            }
            (Ask::Checkout { .. }, Answer::Reserved(reservation)) if self.scenario.buys() => {
                Next::Asks(Step { ask: Ask::Purchase(reservation), times: 0 })
            }
            // Nobody knows what became of it.
            (Ask::Purchase(_), Answer::Later | Answer::Lost) => Next::AsksLater(again),
            _ if self.scenario == Scenario::Retry && has_more_to_come => match answer {
                Answer::Later | Answer::Lost => Next::AsksLater(again),
                _ => Next::Asks(again),
            },
            (Ask::Checkout { user, .. }, Answer::Refused("item-sold" | "item-reserved"))
                if self.scenario != Scenario::Retry && self.tries() > again.times =>
            {
                Next::Asks(Step { ask: Ask::Checkout { user, item: self.wanted() }, ..again })
            }
            _ => Next::Leaves,
        }
    }

    /// Whether this client does not wait for the answer.
    pub fn hangs_up(&mut self) -> bool {
        self.scenario == Scenario::Retry && self.chance.u32(0..HANG_UPS) == 0
    }

    fn tries(&self) -> u8 {
        match self.scenario {
            Scenario::Crowd | Scenario::Hoarders | Scenario::Trickle => ITEMS_TRIED,
            Scenario::Chain | Scenario::Retry | Scenario::SoldOut => 1,
        }
    }

    fn any(&mut self) -> u32 {
        self.chance.u32(0..self.items)
    }

    /// An item as crowds want them: some more than others. Half of the wishes are for the first quarter.
    fn wanted(&mut self) -> u32 {
        let chance = self.chance.f64();
        (chance * chance * f64::from(self.items)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: u32 = 100;

    fn buyers(scenario: Scenario) -> Buyers {
        Buyers::new(scenario, 40, ITEMS, 7)
    }

    fn checkout(step: Step) -> (i64, u32) {
        let Ask::Checkout { user, item } = step.ask else { panic!("{step:?}") };
        (user, item)
    }

    #[test]
    fn a_chain_asks_for_each_item_once_for_everybody_in_turn() {
        let mut buyers = buyers(Scenario::Chain);
        let asked: Vec<_> = std::iter::from_fn(|| buyers.arrive()).map(checkout).collect();
        let mut items: Vec<u32> = asked.iter().map(|(_, item)| *item).collect();
        assert_ne!(items, (0..ITEMS).collect::<Vec<_>>(), "in any order");
        items.sort_unstable();
        assert_eq!(items, (0..ITEMS).collect::<Vec<_>>());
        assert!((0..40).all(|user| asked.iter().filter(|(other, _)| *other == user).count() <= 3));
    }

    #[test]
    fn the_same_seed_brings_the_same_buyers_and_another_seed_others() {
        for scenario in Scenario::value_variants() {
            let first_of = |seed| {
                let mut buyers = Buyers::new(*scenario, 40, ITEMS, seed);
                let ten: Vec<_> = std::iter::from_fn(|| buyers.arrive()).take(10).collect();
                assert!(ten.iter().all(|step| checkout(*step).0 < 40 && checkout(*step).1 < ITEMS));
                ten
            };
            assert_eq!(first_of(1), first_of(1), "{scenario:?}");
            assert_ne!(first_of(1), first_of(2), "{scenario:?}");
        }
    }

    #[test]
    fn of_a_crowd_each_comes_once_looks_three_times_and_buys() {
        let mut buyers = buyers(Scenario::Crowd);
        let first = buyers.arrive().unwrap();
        let mut step = first;
        for _ in 1..ITEMS_TRIED {
            let Next::Asks(next) = buyers.next(step, Answer::Refused("item-sold")) else { panic!("left too soon") };
            assert_eq!(checkout(next).0, checkout(first).0, "the same user");
            step = next;
        }
        assert_eq!(buyers.next(step, Answer::Refused("item-reserved")), Next::Leaves);
        assert_eq!(buyers.next(first, Answer::Refused("user-limit")), Next::Leaves);
        let purchase = Step { ask: Ask::Purchase(3), times: 0 };
        assert_eq!(buyers.next(first, Answer::Reserved(3)), Next::Asks(purchase));
        assert_eq!(buyers.next(purchase, Answer::Bought), Next::Leaves);
        assert_eq!(std::iter::from_fn(|| buyers.arrive()).count(), 39);
    }

    #[test]
    fn some_items_are_wanted_more_and_all_are_wanted() {
        let mut buyers = buyers(Scenario::Crowd);
        let wanted: Vec<u32> = (0..10_000).map(|_| buyers.wanted()).collect();
        let first_quarter = wanted.iter().filter(|item| **item < ITEMS / 4).count();
        assert!((4_000..6_000).contains(&first_quarter), "{first_quarter}");
        assert!((0..ITEMS).all(|item| wanted.contains(&item)));
    }

    #[test]
    fn hoarders_go_on_until_refused_and_never_buy() {
        let mut buyers = buyers(Scenario::Hoarders);
        let first = buyers.arrive().unwrap();
        let Next::Asks(next) = buyers.next(first, Answer::Reserved(0)) else { panic!("content too soon") };
        assert_eq!((checkout(next).0, next.times), (checkout(first).0, 0));
        assert_eq!(buyers.next(next, Answer::Refused("user-limit")), Next::Leaves);
    }

    #[test]
    fn retry_happy_clients_send_the_same_whatever_the_answer_and_stop_some_time() {
        let mut buyers = buyers(Scenario::Retry);
        let purchase = Step { ask: Ask::Purchase(0), times: 0 };
        for (step, answer) in [
            (buyers.arrive().unwrap(), Answer::Refused("item-reserved")),
            (purchase, Answer::Bought),
            (purchase, Answer::Refused("code-expired")),
        ] {
            let (mut now, mut sent) = (step, 1);
            while let Next::Asks(next) = buyers.next(now, answer) {
                assert_eq!(next.ask, step.ask);
                (now, sent) = (next, sent + 1);
            }
            assert_eq!(sent, SAME_REQUEST);
        }
        assert!((1..1000).any(|_| buyers.hangs_up()));
    }

    #[test]
    fn a_purchase_without_an_answer_is_always_asked_again() {
        for scenario in Scenario::value_variants() {
            let step = Step { ask: Ask::Purchase(0), times: u8::MAX };
            for answer in [Answer::Lost, Answer::Later] {
                assert_eq!(buyers(*scenario).next(step, answer), Next::AsksLater(step));
            }
        }
    }

    #[test]
    fn in_front_of_a_sold_out_sale_nobody_buys() {
        let mut buyers = buyers(Scenario::SoldOut);
        let step = buyers.arrive().unwrap();
        assert_eq!(buyers.next(step, Answer::Reserved(0)), Next::Leaves);
        assert_eq!(buyers.next(step, Answer::Refused("item-sold")), Next::Leaves);
        assert!((1..1000).all(|_| !buyers.hangs_up()));
    }
}
