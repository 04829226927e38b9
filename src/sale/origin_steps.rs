//! The steps of a shard as origin, which has the client: it sends the client's command to the item's owner, and the
//! outcome to the client.

use crate::sale::command::{Command, Outcome};
use crate::sale::effects::Effects;
use crate::sale::ids::{ItemId, Moment, SaleId, Terms, Ticket, UserId};
use crate::sale::message::{AnyCheckout, Checkout, Request};
use crate::sale::parts::UnnamedSale;
use crate::sale::record::RefusalReason;
use crate::sale::sale_schedule::SaleSchedule;
use crate::sale::shard::Shard;
use uuid::Uuid;

impl Shard {
    pub(crate) fn command(&mut self, ticket: Ticket, command: Command, now: Moment, effects: &mut Effects) {
        let (code, request) = match command {
            Command::Checkout { sale, item, user, key } => {
                let named = self.named(sale);
                return self.checkout(ticket, named, (item, user, key), now, effects);
            }
            Command::CheckoutAny { sale, product, user, key } => {
                let checkout = AnyCheckout { named: self.named(sale), product, user, key };
                return self.checkout_any(ticket, checkout, now, effects);
            }
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

    /// Returns the sale that a client has named. Without a plan one sale is open, and a name has no effect: a proxy can
    /// use it to select the server.
    pub(crate) fn named(&self, sale: Option<SaleId>) -> Option<SaleId> {
        sale.filter(|_| matches!(self.rules.schedule, SaleSchedule::Planned(_)))
    }

    pub(crate) fn checkout(
        &mut self,
        ticket: Ticket,
        named: Option<SaleId>,
        (item, user, key): (ItemId, UserId, Uuid),
        now: Moment,
        effects: &mut Effects,
    ) {
        let sale = match self.choose(named, now) {
            Ok(sale) => sale,
            // With a key, the owner of the item decides: the checkout may repeat one that was granted, also in a sale that
            // has closed.
            Err(_) if !key.is_nil() => named.unwrap_or(self.newest().sale),
            Err(outcome) => return effects.answers.push((ticket, outcome)),
        };
        let checkout = Checkout { sale, item, user, key };
        if key.is_nil()
            && let Some(part) = self.parts.get(sale)
        {
            if item.0 >= part.terms.items {
                return effects.answers.push((ticket, Outcome::NoSuchItem));
            }
            if part.knows_sold(item) {
                self.log_refusal(&checkout, RefusalReason::ItemSold, false, now, effects);
                return effects.answers.push((ticket, Outcome::ItemSold { sale, item }));
            }
        }
        let reserve = Request::Reserve { ticket, checkout, is_named: named.is_some() };
        self.ask(self.partition.owner_of_item(item), reserve, now, effects);
    }

    /// Returns the open sale of a checkout: the one that its client has named, or the only one.
    ///
    /// # Errors
    /// The outcome with which the checkout is refused, if there is no such sale.
    #[inline(always)]
    pub(crate) fn choose(&self, named: Option<SaleId>, now: Moment) -> Result<SaleId, Outcome> {
        match named {
            None => match self.parts.unnamed(now) {
                UnnamedSale::One(sale) => Ok(sale),
                UnnamedSale::None => Err(self.not_open(now)),
                UnnamedSale::Several => Err(Outcome::SaleUnnamed),
            },
            Some(sale) if self.parts.is_open(sale, now) => Ok(sale),
            Some(sale) => Err(self.not_open_now(sale, now)),
        }
    }

    /// Returns the outcome of a checkout that names no sale while none is open.
    #[cold]
    pub(crate) fn not_open(&self, now: Moment) -> Outcome {
        not_open_until(self.rules.schedule.next(self.newest().sale), now)
    }

    /// Returns the outcome of a checkout in a sale that is not open.
    #[cold]
    pub(crate) fn not_open_now(&self, sale: SaleId, now: Moment) -> Outcome {
        match self.rules.schedule.terms(sale) {
            // Before the first sale of a plan there is a part without items, and it has no name.
            _ if self.parts.get(sale).is_some_and(|part| part.terms.items > 0) => Outcome::SaleEnded,
            Some(_) if sale <= self.newest().sale => Outcome::SaleEnded,
            Some(terms) => not_open_until(Some(terms), now),
            None => Outcome::NoSuchSale,
        }
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

fn not_open_until(next: Option<Terms>, now: Moment) -> Outcome {
    let wait_s = next.map_or(u64::MAX, |next| next.opens_ms.saturating_sub(now.unix_ms).div_ceil(1000));
    Outcome::NotOpen { retry_after_s: wait_s.clamp(1, 86_400) as u32 }
}
