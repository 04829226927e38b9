//! The buyers of scenario `opening`: one for each connection. Each requests a unit of the next sale, again and again, until
//! it is decided.

use crate::sale_calendar::UnitRequest;
use crate::scenario::{Arrival, BuyerAction, BuyerStep, NextStep, StepResult};
use std::collections::VecDeque;

/// A crowd that waits for the opening of one sale.
pub struct OpeningCrowd {
    /// The request of each buyer, except for its user.
    request: UnitRequest,
    /// Users who are not served yet and have no request in flight.
    waiting: VecDeque<i64>,
    /// Users with a checkout in flight.
    asking: u32,
    is_ending: bool,
}

impl OpeningCrowd {
    /// Creates a crowd of `users` buyers, who send this request, each with a user id of its own.
    pub fn new(request: UnitRequest, users: u32) -> OpeningCrowd {
        OpeningCrowd { request, waiting: (0..users.into()).collect(), asking: 0, is_ending: false }
    }

    /// Returns the checkout of the buyer who waits for longest.
    pub fn arrive(&mut self) -> Arrival {
        match self.waiting.pop_front() {
            Some(user) => {
                self.asking += 1;
                let action = BuyerAction::UnitCheckout(UnitRequest { user, ..self.request });
                Arrival::Buyer(BuyerStep { action, repeats: 0 })
            }
            None if self.asking == 0 => Arrival::Never,
            None => Arrival::Later,
        }
    }

    /// Returns what a buyer does after this result of a checkout. A buyer who is refused with `not-open` waits on.
    pub fn next(&mut self, request: UnitRequest, result: StepResult<'_>) -> NextStep {
        self.asking -= 1;
        match result {
            StepResult::Reserved(reservation) => return NextStep::purchase(reservation),
            StepResult::Refused("not-open") if !self.is_ending => self.waiting.push_back(request.user),
            _ => {}
        }
        NextStep::Leave
    }

    /// Ends the waiting.
    pub fn end(&mut self) {
        self.is_ending = true;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale_calendar::tests::request;

    fn user(arrival: Arrival) -> UnitRequest {
        let Arrival::Buyer(BuyerStep { action: BuyerAction::UnitCheckout(request), .. }) = arrival else {
            panic!("{arrival:?}")
        };
        request
    }

    #[test]
    fn each_buyer_asks_until_it_is_decided() {
        let mut crowd = OpeningCrowd::new(request(0, false), 2);
        let (first, second) = (user(crowd.arrive()), user(crowd.arrive()));
        assert_eq!((first.user, second.user, crowd.arrive()), (0, 1, Arrival::Later));
        assert_eq!(crowd.next(second, StepResult::Refused("not-open")), NextStep::Leave);
        assert_eq!(crowd.next(first, StepResult::Refused("not-open")), NextStep::Leave);
        assert_eq!((user(crowd.arrive()).user, user(crowd.arrive()).user), (1, 0), "who waits for longest comes first");
        assert_eq!(crowd.next(second, StepResult::Reserved(4)), NextStep::purchase(4));
        assert_eq!(crowd.next(first, StepResult::Refused("sold-out")), NextStep::Leave);
        assert_eq!(crowd.arrive(), Arrival::Never);
    }

    #[test]
    fn nobody_waits_after_the_end() {
        let mut crowd = OpeningCrowd::new(request(0, false), 3);
        let first = user(crowd.arrive());
        crowd.end();
        crowd.next(first, StepResult::Refused("not-open"));
        assert_eq!(crowd.arrive(), Arrival::Never);
    }
}
