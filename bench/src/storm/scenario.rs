//! The behaviour of buyers. A scenario determines what the next buyer requests, and what a buyer does after each
//! response.

use crate::opening_crowd::OpeningCrowd;
use crate::planned_buyers::PlannedBuyers;
use crate::sale_calendar::UnitRequest;
use clap::ValueEnum;

/// Number of items that a buyer of a crowd tries before leaving.
const ITEMS_TRIED: u8 = 3;
/// Number of times that a client in `Retry` sends each request, whatever the response.
const SAME_REQUEST: u8 = 4;
/// A client in `Retry` disconnects right after one of this many requests, on average.
const HANG_UPS: u32 = 16;

/// One step of a buyer: a request and its repeat count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuyerStep {
    /// Requested operation.
    pub action: BuyerAction,
    /// Number of times that this step was taken before.
    pub repeats: u8,
}

/// An operation that a buyer requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuyerAction {
    /// Reserves an item.
    Checkout {
        /// User id.
        user: i64,
        /// Item id.
        item: u32,
    },
    /// Reserves any free unit of a sale of the calendar, or of one of its products.
    UnitCheckout(UnitRequest),
    /// Purchases a reserved item: the index of the reservation in the ledger.
    Purchase(usize),
}

impl BuyerAction {
    /// Returns the name of the operation, as it appears in reports.
    pub fn operation(self) -> &'static str {
        match self {
            BuyerAction::Checkout { .. } | BuyerAction::UnitCheckout(_) => "checkout",
            BuyerAction::Purchase(_) => "purchase",
        }
    }
}

/// What checkouts ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The item that the buyer has chosen.
    Item,
    /// Any free unit of the sale.
    AnyUnit,
    /// Any free unit of the product with this id.
    Product(String),
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepResult<'a> {
    /// The item is reserved: the index of the reservation in the ledger.
    Reserved(usize),
    /// The item is bought.
    Bought,
    /// The request is refused: the last part of the problem's type, or a status.
    Refused(&'a str),
    /// The server is unavailable (503).
    Unavailable,
    /// There is no response: the request timed out or the connection failed.
    NoResponse,
}

/// What a buyer does after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Leaves.
    Leave,
    /// Takes this step at once.
    Send(BuyerStep),
    /// Takes this step after a pause.
    SendLater(BuyerStep),
}

impl NextStep {
    /// Returns the purchase of the reservation with this index in the ledger.
    pub fn purchase(reservation: usize) -> NextStep {
        NextStep::Send(BuyerStep { action: BuyerAction::Purchase(reservation), repeats: 0 })
    }
}

/// The arrival of a buyer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A buyer takes this step.
    Buyer(BuyerStep),
    /// No buyer arrives now, but others will.
    Later,
    /// No buyer arrives any more.
    Never,
}

/// Buyers whose requests depend on the time: they follow the calendar of the server.
pub enum CalendarBuyers {
    /// Buyers of all sales.
    All(PlannedBuyers),
    /// A crowd that waits for one opening.
    Crowd(OpeningCrowd),
}

/// A load scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Checkout, then purchase: each item once, in random order; ends after the last item
    Chain,
    /// All users arrive within one second; each tries up to three items and buys one
    Crowd,
    /// Users reserve as many items as the server allows, and never buy
    Hoarders,
    /// Clients repeat every request, purchases with the same Idempotency-Key; some disconnect and reconnect
    Retry,
    /// Checkouts of random items, without purchases: only refusals if the sale is sold out
    SoldOut,
    /// Buyers of random items at a low, constant rate
    Trickle,
    /// Buyers follow the server's sales: wait for the next one, buy by product and by any unit until it closes, go on
    Plan,
    /// A crowd, one buyer for each connection, waits for the next sale and buys at its opening, which is measured
    Opening,
}

impl Scenario {
    /// Returns the name of the scenario, as on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |name| name.get_name().to_owned())
    }

    /// Returns whether purchases carry an `Idempotency-Key`.
    pub fn has_keys(self) -> bool {
        self == Scenario::Retry
    }

    /// Returns whether checkouts request JSON, which contains the expiry of the hold.
    pub fn wants_json(self) -> bool {
        self == Scenario::Hoarders
    }

    /// Returns whether the buyers need the calendar of the server.
    pub fn has_calendar(self) -> bool {
        matches!(self, Scenario::Plan | Scenario::Opening)
    }

    fn buys(self) -> bool {
        !matches!(self, Scenario::Hoarders | Scenario::SoldOut)
    }
}

/// The simulated buyers of a run.
pub struct VirtualBuyers {
    scenario: Scenario,
    users: i64,
    items: u32,
    /// Number of buyers who have arrived.
    arrived: i64,
    /// Items that no buyer has requested yet, in `Chain`.
    left: Vec<u32>,
    /// Buyers who follow the calendar, in `Plan` and `Opening`.
    followers: Option<CalendarBuyers>,
    chance: fastrand::Rng,
}

impl VirtualBuyers {
    /// Creates buyers of `items` items with `users` user ids. The same seed gives the same buyers.
    pub fn new(scenario: Scenario, users: i64, items: u32, seed: u64) -> VirtualBuyers {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut left: Vec<u32> = if scenario == Scenario::Chain { (0..items).collect() } else { Vec::new() };
        chance.shuffle(&mut left);
        VirtualBuyers { scenario, users, items, arrived: 0, left, followers: None, chance }
    }

    /// Sets the buyers who follow the calendar.
    pub fn follow(&mut self, followers: CalendarBuyers) {
        self.followers = Some(followers);
    }

    /// Returns the first step of the next buyer at this time, in seconds since the Unix epoch.
    pub fn arrive(&mut self, unix_s: u64) -> Arrival {
        match &mut self.followers {
            Some(CalendarBuyers::All(buyers)) => buyers.arrive(unix_s, &mut self.chance),
            Some(CalendarBuyers::Crowd(crowd)) => crowd.arrive(),
            None => self.next_buyer().map_or(Arrival::Never, Arrival::Buyer),
        }
    }

    /// Ends the arrivals. Buyers who wait for an opening leave.
    pub fn end(&mut self) {
        match &mut self.followers {
            Some(CalendarBuyers::All(buyers)) => buyers.end(),
            Some(CalendarBuyers::Crowd(crowd)) => crowd.end(),
            None => {}
        }
    }

    /// Returns the first step of the next buyer of a scenario without a calendar, or `None` if there are no more.
    fn next_buyer(&mut self) -> Option<BuyerStep> {
        // User ids are assigned in turn where each user arrives once, or where no user may exceed the limit.
        let in_turn = self.arrived % self.users;
        let (user, item) = match self.scenario {
            Scenario::Chain => (in_turn, self.left.pop()?),
            Scenario::Crowd if self.arrived == self.users => return None,
            Scenario::Crowd => (in_turn, self.popular_item()),
            Scenario::Hoarders => (in_turn, self.any_item()),
            Scenario::Retry | Scenario::SoldOut | Scenario::Trickle => {
                (self.chance.i64(0..self.users), self.any_item())
            }
            Scenario::Plan | Scenario::Opening => return None,
        };
        self.arrived += 1;
        Some(BuyerStep { action: BuyerAction::Checkout { user, item }, repeats: 0 })
    }

    /// Returns what the buyer does after this result of a step.
    pub fn next(&mut self, step: BuyerStep, result: StepResult<'_>) -> NextStep {
        let again = BuyerStep { repeats: step.repeats.saturating_add(1), ..step };
        let may_repeat = again.repeats < SAME_REQUEST;
        match (step.action, result) {
            (BuyerAction::UnitCheckout(request), _) => match &mut self.followers {
                Some(CalendarBuyers::All(buyers)) => buyers.next(request, step, result),
                Some(CalendarBuyers::Crowd(crowd)) => crowd.next(request, result),
                None => NextStep::Leave,
            },
            (BuyerAction::Checkout { user, .. }, StepResult::Reserved(_)) if self.scenario == Scenario::Hoarders => {
                NextStep::Send(BuyerStep { action: BuyerAction::Checkout { user, item: self.any_item() }, repeats: 0 })
            }
            (BuyerAction::Checkout { .. }, StepResult::Reserved(reservation)) if self.scenario.buys() => {
                NextStep::purchase(reservation)
            }
            // The result of the purchase is unknown, so the buyer repeats it until it is known.
            (BuyerAction::Purchase(_), StepResult::Unavailable | StepResult::NoResponse) => NextStep::SendLater(again),
            _ if self.scenario == Scenario::Retry && may_repeat => match result {
                StepResult::Unavailable | StepResult::NoResponse => NextStep::SendLater(again),
                _ => NextStep::Send(again),
            },
            (BuyerAction::Checkout { user, .. }, StepResult::Refused("item-sold" | "item-reserved"))
                if self.scenario != Scenario::Retry && self.tries() > again.repeats =>
            {
                NextStep::Send(BuyerStep { action: BuyerAction::Checkout { user, item: self.popular_item() }, ..again })
            }
            _ => NextStep::Leave,
        }
    }

    /// Returns whether the client disconnects without waiting for the response.
    pub fn hangs_up(&mut self) -> bool {
        self.scenario == Scenario::Retry && self.chance.u32(0..HANG_UPS) == 0
    }

    fn tries(&self) -> u8 {
        match self.scenario {
            Scenario::Crowd | Scenario::Hoarders | Scenario::Trickle => ITEMS_TRIED,
            _ => 1,
        }
    }

    fn any_item(&mut self) -> u32 {
        self.chance.u32(0..self.items)
    }

    /// Returns a random item, with a preference: half of the requests are for the first quarter of the items.
    fn popular_item(&mut self) -> u32 {
        let chance = self.chance.f64();
        (chance * chance * f64::from(self.items)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: u32 = 100;

    fn buyers(scenario: Scenario) -> VirtualBuyers {
        VirtualBuyers::new(scenario, 40, ITEMS, 7)
    }

    fn checkout(step: BuyerStep) -> (i64, u32) {
        let BuyerAction::Checkout { user, item } = step.action else { panic!("{step:?}") };
        (user, item)
    }

    #[test]
    fn a_chain_requests_each_item_once_for_each_user_in_turn() {
        let mut buyers = buyers(Scenario::Chain);
        let asked: Vec<_> = std::iter::from_fn(|| buyers.next_buyer()).map(checkout).collect();
        let mut items: Vec<u32> = asked.iter().map(|(_, item)| *item).collect();
        assert_ne!(items, (0..ITEMS).collect::<Vec<_>>(), "in random order");
        items.sort_unstable();
        assert_eq!(items, (0..ITEMS).collect::<Vec<_>>());
        assert!((0..40).all(|user| asked.iter().filter(|(other, _)| *other == user).count() <= 3));
    }

    #[test]
    fn buyers_depend_on_the_seed() {
        for scenario in Scenario::value_variants().iter().filter(|scenario| !scenario.has_calendar()) {
            let first_of = |seed| {
                let mut buyers = VirtualBuyers::new(*scenario, 40, ITEMS, seed);
                let ten: Vec<_> = std::iter::from_fn(|| buyers.next_buyer()).take(10).collect();
                assert!(ten.iter().all(|step| checkout(*step).0 < 40 && checkout(*step).1 < ITEMS));
                ten
            };
            assert_eq!(first_of(1), first_of(1), "{scenario:?}");
            assert_ne!(first_of(1), first_of(2), "{scenario:?}");
        }
    }

    #[test]
    fn buyers_of_a_crowd_arrive_once_try_three_items_and_buy() {
        let mut buyers = buyers(Scenario::Crowd);
        let first = buyers.next_buyer().unwrap();
        let mut step = first;
        for _ in 1..ITEMS_TRIED {
            let NextStep::Send(next) = buyers.next(step, StepResult::Refused("item-sold")) else {
                panic!("the buyer left too early")
            };
            assert_eq!(checkout(next).0, checkout(first).0, "the same user");
            step = next;
        }
        assert_eq!(buyers.next(step, StepResult::Refused("item-reserved")), NextStep::Leave);
        assert_eq!(buyers.next(first, StepResult::Refused("user-limit")), NextStep::Leave);
        let purchase = BuyerStep { action: BuyerAction::Purchase(3), repeats: 0 };
        assert_eq!(buyers.next(first, StepResult::Reserved(3)), NextStep::Send(purchase));
        assert_eq!(buyers.next(purchase, StepResult::Bought), NextStep::Leave);
        assert_eq!(std::iter::from_fn(|| buyers.next_buyer()).count(), 39);
        assert_eq!(buyers.arrive(0), Arrival::Never);
    }

    #[test]
    fn some_items_are_more_popular_and_all_are_requested() {
        let mut buyers = buyers(Scenario::Crowd);
        let requested: Vec<u32> = (0..10_000).map(|_| buyers.popular_item()).collect();
        let first_quarter = requested.iter().filter(|item| **item < ITEMS / 4).count();
        assert!((4_000..6_000).contains(&first_quarter), "{first_quarter}");
        assert!((0..ITEMS).all(|item| requested.contains(&item)));
    }

    #[test]
    fn hoarders_reserve_until_refused_and_never_buy() {
        let mut buyers = buyers(Scenario::Hoarders);
        let first = buyers.next_buyer().unwrap();
        let NextStep::Send(next) = buyers.next(first, StepResult::Reserved(0)) else {
            panic!("the buyer left too early")
        };
        assert_eq!((checkout(next).0, next.repeats), (checkout(first).0, 0));
        assert_eq!(buyers.next(next, StepResult::Refused("user-limit")), NextStep::Leave);
    }

    #[test]
    fn retrying_clients_repeat_each_request_a_limited_number_of_times() {
        let mut buyers = buyers(Scenario::Retry);
        let purchase = BuyerStep { action: BuyerAction::Purchase(0), repeats: 0 };
        for (step, result) in [
            (buyers.next_buyer().unwrap(), StepResult::Refused("item-reserved")),
            (purchase, StepResult::Bought),
            (purchase, StepResult::Refused("code-expired")),
        ] {
            let (mut now, mut sent) = (step, 1);
            while let NextStep::Send(next) = buyers.next(now, result) {
                assert_eq!(next.action, step.action);
                (now, sent) = (next, sent + 1);
            }
            assert_eq!(sent, SAME_REQUEST);
        }
        assert!((1..1000).any(|_| buyers.hangs_up()));
    }

    #[test]
    fn a_purchase_without_a_response_is_always_repeated() {
        for scenario in Scenario::value_variants() {
            let step = BuyerStep { action: BuyerAction::Purchase(0), repeats: u8::MAX };
            for result in [StepResult::NoResponse, StepResult::Unavailable] {
                assert_eq!(buyers(*scenario).next(step, result), NextStep::SendLater(step));
            }
        }
    }

    #[test]
    fn buyers_of_a_sold_out_sale_do_not_purchase() {
        let mut buyers = buyers(Scenario::SoldOut);
        let step = buyers.next_buyer().unwrap();
        assert_eq!(buyers.next(step, StepResult::Reserved(0)), NextStep::Leave);
        assert_eq!(buyers.next(step, StepResult::Refused("item-sold")), NextStep::Leave);
        assert!((1..1000).all(|_| !buyers.hangs_up()));
    }
}
