//! The subscribers of a shard: clients of `/events`, which receive server-sent events. Here is the order in which they
//! are served, and what each has received already.
//!
//! A subscriber gets at most one event per period, and only if something has changed. While a subscriber has not read
//! the last event, it gets no further one, and afterwards it gets the current state. So at most one event is buffered
//! for each subscriber, and the work of one turn is bounded, regardless of their number.

use crate::http::bodies::{Sale, SalePhase, StockEvent};
use crate::operate::shard_status::Sales;
use crate::sale::ids::SaleId;
use crate::server::item_pages::OnSale;
use crate::server::status_pages::{Facts, current_sale};
use serde::Serialize;
use std::collections::VecDeque;

/// Milliseconds between two events to one subscriber at least.
const PERIOD_MS: u64 = 500;
/// Milliseconds without a change after which a subscriber gets a comment, so that no proxy closes the connection as
/// idle. Usual proxies time out after 15 s or more.
const KEEPALIVE_MS: u64 = 10_000;

/// The beginning of each stream: how many milliseconds a client waits before it reconnects.
const STREAM_START: &[u8] = b"retry: 1000\n\n";

/// The state that a subscriber has received last.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentState {
    sale: Option<(SaleId, Option<SalePhase>)>,
    sales: Sales,
    at_ms: u64,
}

impl SentState {
    /// Reports whether the subscriber has received no event yet.
    pub fn is_nothing(&self) -> bool {
        self.sale.is_none()
    }

    /// Writes the next event, if the state has changed, or a comment after [`KEEPALIVE_MS`] without a change.
    pub fn update(&mut self, facts: &Facts<'_>, now_ms: u64, out: &mut Vec<u8>) {
        let Some(terms) = facts.sale.as_ref().map(OnSale::terms) else { return };
        let Some(now) = current_sale(facts) else { return };
        let (sale, sales) = (Some((terms.sale, now.phase)), facts.status.sales(terms.sale));
        if (sale, sales) == (self.sale, self.sales) {
            if now_ms >= self.at_ms + KEEPALIVE_MS {
                self.at_ms = now_ms;
                out.extend_from_slice(b":\n\n");
            }
            return;
        }
        match self.sale {
            before if before == sale => {
                let Sale { sale_id, sold, reserved, available, .. } = now.sale;
                write(out, "stock", &StockEvent { sale_id, sold, reserved, available });
            }
            before => {
                if before.is_none() {
                    out.extend_from_slice(STREAM_START);
                }
                write(out, "sale", &now);
            }
        }
        *self = SentState { sale, sales, at_ms: now_ms };
    }
}

/// Writes a server-sent event (HTML standard §9.2).
fn write(out: &mut Vec<u8>, event: &str, data: &impl Serialize) {
    for part in ["event: ", event, "\ndata: "] {
        out.extend_from_slice(part.as_bytes());
    }
    serde_json::to_writer(&mut *out, data).expect("numbers and times are JSON");
    out.extend_from_slice(b"\n\n");
}

/// A client of `/events`.
#[derive(Debug)]
pub struct Subscriber {
    /// Key of the client in the server.
    pub key: usize,
    /// Distinguishes the client from a later one with the same key.
    pub generation: u32,
    /// The state that the client has received last.
    pub sent: SentState,
    due_ms: u64,
}

/// All subscribers of one shard.
#[derive(Debug, Default)]
pub struct Subscribers {
    /// Subscribers in the order in which they are served next.
    queue: VecDeque<Subscriber>,
}

impl Subscribers {
    /// Returns the number of subscribers.
    pub fn count(&self) -> usize {
        self.queue.len()
    }

    /// Adds a subscriber, which is served first.
    pub fn add(&mut self, key: usize, generation: u32) {
        self.queue.push_front(Subscriber { key, generation, sent: SentState::default(), due_ms: 0 });
    }

    /// Returns the monotonic time in ms at which the next subscriber is due.
    pub fn next_ms(&self) -> Option<u64> {
        self.queue.front().map(|next| next.due_ms)
    }

    /// Takes the next subscriber that is due from the list.
    pub fn next(&mut self, now_ms: u64) -> Option<Subscriber> {
        self.queue.pop_front_if(|next| next.due_ms <= now_ms)
    }

    /// Puts a subscriber back at the end of the list; it is due again after [`PERIOD_MS`].
    pub fn requeue(&mut self, subscriber: Subscriber, now_ms: u64) {
        self.queue.push_back(Subscriber { due_ms: now_ms + PERIOD_MS, ..subscriber });
    }

    /// Removes all subscribers.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::item_states::ItemStates;
    use crate::operate::status::{Phase, Status};
    use crate::sale::ids::{Moment, SaleId, ShardId};
    use crate::sale::part::Part;
    use crate::sale::partition::Partition;
    use crate::sale::parts::Parts;
    use crate::sale::published_stock::PublishedStock;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};

    const SALES: PeriodicSale = PeriodicSale { period_s: 3600, items: 10, user_limit: 2, ttl_ms: 1, extension_ms: 0 };
    const SCHEDULE: SaleSchedule = SaleSchedule::Periodic(SALES);

    #[test]
    fn each_hears_what_is_new_to_it_and_signs_of_life() {
        let (status, item_states) =
            (Status::new(Phase::Serving, 1, 0, false), ItemStates::new(Partition::new(1), SCHEDULE, &[]));
        let mut sent = SentState::default();
        let mut hear = |sale, sold, now_ms| {
            let published = PublishedStock { sale: SaleId(sale), sold, reserved: 1, ..PublishedStock::default() };
            status.shards[0].publish_sales(published);
            let (terms, now) =
                (SALES.terms(SaleId(sale)), Moment { monotonic_ms: now_ms, unix_ms: u64::from(sale) * 3_600_000 });
            let mut out = Vec::new();
            let parts =
                Parts::new(ShardId(0), Partition::new(1), vec![Part::empty(terms, Partition::new(1), ShardId(0))]);
            let sale = Some(OnSale { parts: &parts, item_states: &item_states, schedule: SCHEDULE, now });
            sent.update(&Facts { status: &status, sale, known: None }, now_ms, &mut out);
            String::from_utf8(out).unwrap()
        };
        let first = hear(7, 2, 1000);
        assert!(
            first.starts_with("retry: 1000\n\nevent: sale\ndata: {\"sale_id\":7,\"starts_at\":\"1970-01-01T07:"),
            "{first}"
        );
        assert_eq!(hear(7, 2, 10_999), "");
        assert_eq!(hear(7, 2, 11_000), ":\n\n");
        let stock = "event: stock\ndata: {\"sale_id\":7,\"sold\":3,\"reserved\":1,\"available\":6}\n\n";
        assert_eq!(hear(7, 3, 16_500), stock);
        assert_eq!(hear(7, 3, 26_499), "");
        let next = hear(8, 3, 26_500);
        assert!(next.starts_with("event: sale\ndata: {\"sale_id\":8,") && next.ends_with("}\n\n"), "{next}");
    }

    #[test]
    fn turns_are_taken_in_order_and_not_too_often() {
        let mut subscribers = Subscribers::default();
        subscribers.add(1, 1);
        let first = subscribers.next(1000).unwrap();
        subscribers.requeue(first, 1000);
        subscribers.add(2, 1);
        let second = subscribers.next(1100).unwrap();
        subscribers.requeue(second, 1100);
        assert_eq!((subscribers.next_ms(), subscribers.count()), (Some(1500), 2));
        assert!(subscribers.next(1499).is_none());
        assert_eq!((subscribers.next(1500).unwrap().key, subscribers.next_ms()), (1, Some(1600)));
    }
}
