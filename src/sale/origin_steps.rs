//! The steps of a shard as origin, which has the client: it sends the client's command to the item's owner, and the
//! outcome to the client.

use crate::sale::command::{Command, Outcome};
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, Ticket};
use crate::sale::message::{Checkout, Request};
use crate::sale::record::RefusalReason;
use crate::sale::shard::Shard;

impl Shard {
    pub(crate) fn command(&mut self, ticket: Ticket, command: Command, now: Moment, effects: &mut Effects) {
        let (code, request) = match command {
            Command::Checkout { item, user, key } => {
                let checkout = Checkout { sale: self.terms().sale, item, user, key };
                return self.checkout(ticket, checkout, now, effects);
            }
            Command::CheckoutAny { user, key } => return self.checkout_any(ticket, user, key, now, effects),
            Command::Purchase { code, key } => (code, Request::Confirm { ticket, code, key }),
            Command::Cancel { code } => (code, Request::Cancel { ticket, code }),
            Command::Extend { code } => (code, Request::Extend { ticket, code }),
        };
        // The owner decides what a code is worth. This shard may not know the sale of the code: it may have slept through
        // a sale when the clock was set forward.
        match code.place() {
            Some(place) => self.ask(self.partition.owner_of_item(place.item), request, now, effects),
            None => effects.answers.push((ticket, Outcome::CodeUnknown)),
        }
    }

    pub(crate) fn checkout(&mut self, ticket: Ticket, checkout: Checkout, now: Moment, effects: &mut Effects) {
        let Checkout { sale, item, key, .. } = checkout;
        let open = self.parts.open();
        // With a key, the owner of the item decides: the checkout may repeat one that was granted, also in an ended sale.
        if key.is_nil() {
            if open.terms.has_closed(now.unix_ms) {
                return effects.answers.push((ticket, self.not_open(now)));
            }
            if item.0 >= open.terms.items {
                return effects.answers.push((ticket, Outcome::NoSuchItem));
            }
            if open.knows_sold(item) {
                self.log_refusal(&checkout, RefusalReason::ItemSold, false, now, effects);
                return effects.answers.push((ticket, Outcome::ItemSold { sale, item }));
            }
        }
        self.ask(self.partition.owner_of_item(item), Request::Reserve { ticket, checkout }, now, effects);
    }

    /// Returns the outcome of a checkout while no sale is open.
    #[cold]
    pub(crate) fn not_open(&self, now: Moment) -> Outcome {
        let next = self.rules.schedule.next(self.terms().sale);
        let wait_s = next.map_or(u64::MAX, |next| next.opens_ms.saturating_sub(now.unix_ms).div_ceil(1000));
        Outcome::NotOpen { retry_after_s: wait_s.clamp(1, 86_400) as u32 }
    }

    pub(crate) fn answer_client(&mut self, ticket: Ticket, outcome: Outcome, effects: &mut Effects) {
        if let Outcome::ItemSold { sale, item } | Outcome::Purchased { sale, item } = outcome
            && let Some(part) = self.parts.get_mut(sale)
        {
            part.note_sold(item);
        }
        effects.answers.push((ticket, outcome));
    }
}
