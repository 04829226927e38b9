//! What buyers do. A scenario says what the next buyer wants, and what a buyer does after an answer.

use clap::ValueEnum;

/// One request of a buyer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reserve this item for this user.
    Checkout {
        /// The buyer.
        user: i64,
        /// The item.
        item: u32,
    },
    /// Buy what this code holds.
    Purchase {
        /// The buyer.
        user: i64,
        /// The item.
        item: u32,
        /// The code.
        code: String,
    },
}

impl Step {
    /// The request line, without the method's blank.
    pub fn target(&self) -> String {
        match self {
            Step::Checkout { user, item } => format!("/checkout?user_id={user}&item_id={item}"),
            Step::Purchase { code, .. } => format!("/purchase?code={code}"),
        }
    }
}

/// A kind of crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Each item is reserved and bought once, in any order: ends when all are sold
    Chain,
    /// Everybody asks for any item, and buys what is to be had: ends when time is up
    Crowd,
    /// Everybody asks for any item and never buys: mostly refusals, ends when time is up
    SoldOut,
}

/// Buyers, one after the other.
pub struct Buyers {
    scenario: Scenario,
    users: i64,
    items: u32,
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
        Buyers { scenario, users, items, left, chance }
    }

    /// What the next buyer wants. `None` if there is nothing left to want.
    pub fn arrive(&mut self) -> Option<Step> {
        let user = self.chance.i64(0..self.users);
        match self.scenario {
            // Everybody in turn, so that nobody meets the limit.
            Scenario::Chain => {
                self.left.pop().map(|item| Step::Checkout { user: self.left.len() as i64 % self.users, item })
            }
            Scenario::Crowd | Scenario::SoldOut => Some(Step::Checkout { user, item: self.chance.u32(0..self.items) }),
        }
    }

    /// What the buyer does after a step that was answered with `status` and `body`.
    pub fn answered(&mut self, step: Step, status: u16, body: &[u8]) -> Option<Step> {
        match step {
            Step::Checkout { user, item } if status == 200 && self.scenario != Scenario::SoldOut => {
                Some(Step::Purchase { user, item, code: String::from_utf8_lossy(body).into_owned() })
            }
            // Nobody knows what became of it: ask again.
            Step::Purchase { .. } if status == 503 => Some(step),
            Step::Checkout { .. } | Step::Purchase { .. } => None,
        }
    }
}
