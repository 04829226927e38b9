//! The buyers of scenario `plan`: they wait for the next sale, buy from each open sale by product and by any unit, and go
//! on with the next one after its closing.

use crate::sale_calendar::{SaleCalendar, UnitRequest};
use crate::scenario::{Arrival, BuyerAction, BuyerStep, NextStep, StepResult};
use std::rc::Rc;

/// One of this many buyers, on average, requests a sale that is closed, or not open yet.
const OUT_OF_PHASE: u32 = 64;

/// The buyers of every sale of a calendar.
pub struct PlannedBuyers {
    calendar: Rc<SaleCalendar>,
    users: i64,
    arrived: i64,
    /// Buyers who wait for an opening, and their maximum number.
    waiting: u32,
    waiting_max: u32,
    is_ending: bool,
}

impl PlannedBuyers {
    /// Creates buyers with `users` user ids. At most `waiting_max` of them wait for an opening at the same time.
    pub fn new(calendar: Rc<SaleCalendar>, users: i64, waiting_max: u32) -> PlannedBuyers {
        PlannedBuyers { calendar, users, arrived: 0, waiting: 0, waiting_max, is_ending: false }
    }

    /// Returns the first step of the next buyer at this time, in seconds since the Unix epoch.
    pub fn arrive(&mut self, unix_s: u64, chance: &mut fastrand::Rng) -> Arrival {
        let calendar = Rc::clone(&self.calendar);
        let open: Vec<usize> = calendar.open_in(unix_s).collect();
        let next = calendar.next_after(unix_s);
        let closed = calendar.closed_by(unix_s);
        let other = match chance.u32(0..2 * OUT_OF_PHASE) {
            0 => next.or(closed),
            1 => closed.or(next),
            _ => None,
        };
        let (sale, is_named, waits) = match (other, next) {
            (Some(other), _) if !open.is_empty() => (other, true, false),
            _ if !open.is_empty() => {
                let sale = open[self.arrived as usize % open.len()];
                (sale, calendar.must_name(unix_s) || chance.bool(), false)
            }
            (_, Some(_)) if self.waiting >= self.waiting_max => return Arrival::Later,
            (_, Some(next)) => {
                let opens_s = calendar.sales[next].opens_s;
                (next, calendar.open_in(opens_s).count() > 1 || chance.bool(), true)
            }
            (_, None) => return Arrival::Never,
        };
        let products = calendar.sales[sale].products.len();
        let product = if products > 0 && chance.bool() { Some(chance.usize(0..products)) } else { None };
        let request = UnitRequest { user: self.arrived % self.users, sale, product, is_named, waits };
        self.arrived += 1;
        self.waiting += u32::from(waits);
        Arrival::Buyer(BuyerStep { action: BuyerAction::UnitCheckout(request), repeats: 0 })
    }

    /// Returns what a buyer does after this result of a checkout.
    pub fn next(&mut self, request: UnitRequest, step: BuyerStep, result: StepResult<'_>) -> NextStep {
        if request.waits {
            if result == StepResult::Refused("not-open") && !self.is_ending {
                return NextStep::SendLater(BuyerStep { repeats: step.repeats.saturating_add(1), ..step });
            }
            self.waiting -= 1;
        }
        match result {
            StepResult::Reserved(reservation) => NextStep::purchase(reservation),
            _ => NextStep::Leave,
        }
    }

    /// Ends the waiting: buyers who are refused with `not-open` leave from now on.
    pub fn end(&mut self) {
        self.is_ending = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale_calendar::tests::calendar;

    fn buyers() -> (PlannedBuyers, fastrand::Rng) {
        (PlannedBuyers::new(Rc::new(calendar()), 40, 3), fastrand::Rng::with_seed(7))
    }

    fn request(arrival: Arrival) -> Option<(BuyerStep, UnitRequest)> {
        let Arrival::Buyer(step) = arrival else { return None };
        let BuyerAction::UnitCheckout(request) = step.action else { panic!("{step:?}") };
        Some((step, request))
    }

    /// Returns a thousand requests in this second.
    fn thousand(unix_s: u64) -> Vec<UnitRequest> {
        let (mut buyers, mut chance) = buyers();
        (0..1000).map(|_| request(buyers.arrive(unix_s, &mut chance)).unwrap().1).collect()
    }

    #[test]
    fn buyers_request_every_open_sale_by_product_and_by_any_unit() {
        let requests = thousand(170);
        for sale in [0, 1] {
            for product in [None, Some(0), Some(1)] {
                let count =
                    requests.iter().filter(|request| (request.sale, request.product) == (sale, product)).count();
                assert!(count > 50, "sale {sale}, product {product:?}: {count}");
            }
        }
        assert!(requests.iter().all(|request| request.is_named && !request.waits), "two sales are open");
        let early = requests.iter().filter(|request| request.sale == 2).count();
        assert!((1..50).contains(&early), "some request the next sale: {early}");
        let alone = thousand(225);
        assert!(alone.iter().any(|request| request.is_named) && alone.iter().any(|request| !request.is_named));
        assert!(thousand(350).iter().any(|request| request.sale == 0), "some request a closed sale");
    }

    #[test]
    fn buyers_wait_for_the_next_sale_and_end_after_the_last() {
        let (mut buyers, mut chance) = buyers();
        let mut waiting: Vec<_> = (0..3).map(|_| request(buyers.arrive(99, &mut chance)).unwrap()).collect();
        assert!(waiting.iter().all(|(_, request)| request.sale == 0 && request.waits));
        assert_eq!(buyers.arrive(99, &mut chance), Arrival::Later, "three wait at most");
        let refused = StepResult::Refused("not-open");
        let (step, asked) = waiting.pop().unwrap();
        let again = BuyerStep { repeats: 1, ..step };
        assert_eq!(buyers.next(asked, step, refused), NextStep::SendLater(again));
        assert_eq!(buyers.next(asked, again, StepResult::Reserved(5)), NextStep::purchase(5));
        assert!(request(buyers.arrive(99, &mut chance)).is_some(), "one has been served");
        buyers.end();
        assert_eq!(buyers.next(asked, again, refused), NextStep::Leave);
        assert_eq!(buyers.arrive(400, &mut chance), Arrival::Never);
    }

    #[test]
    fn a_buyer_who_requests_a_sale_out_of_its_phase_leaves() {
        let (mut buyers, _) = buyers();
        let request = crate::sale_calendar::tests::request(2, true);
        let step = BuyerStep { action: BuyerAction::UnitCheckout(request), repeats: 0 };
        for refusal in ["not-open", "sale-ended", "sold-out", "user-limit"] {
            assert_eq!(buyers.next(request, step, StepResult::Refused(refusal)), NextStep::Leave);
        }
    }
}
