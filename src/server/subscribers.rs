//! Clients that listen to the sale by server-sent events: whose turn it is, and what each knows already.
//!
//! Each is told at most once in a period, in turn, and only what is new to it; who has not taken the last news is told
//! nothing until it has, and then how things stand by then. So nothing is kept for anybody but one event, whatever the
//! crowd does, and ten thousand of them never hold up one turn.

use crate::http::bodies::{Sale, StockEvent};
use crate::operate::shard_status::Sales;
use crate::sale::ids::SaleId;
use crate::server::item_pages::OnSale;
use crate::server::status_pages::{Facts, sale};
use serde::Serialize;
use std::collections::VecDeque;

/// How often a client hears something new, at most.
const PERIOD_MS: u64 = 500;
/// After so long without news a client hears that there are none, lest something on the way takes it for dead: proxies
/// are patient for 15 s and more.
const SILENCE_MS: u64 = 10_000;

/// What all hear first: how long to wait before they come again.
const HELLO: &[u8] = b"retry: 1000\n\n";

/// What a client knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    stands: Option<(SaleId, Sales)>,
    at_ms: u64,
}

impl Told {
    /// Whether it has been told nothing yet.
    pub fn is_nothing(&self) -> bool {
        self.stands.is_none()
    }

    /// Writes what is new.
    pub fn update(&mut self, facts: &Facts<'_>, now_ms: u64, out: &mut Vec<u8>) {
        let Some(OnSale { terms, .. }) = facts.sale else { return };
        let stands = Some((terms.sale, facts.status.sales(terms.sale)));
        if stands == self.stands {
            if now_ms >= self.at_ms + SILENCE_MS {
                self.at_ms = now_ms;
                out.extend_from_slice(b":\n\n");
            }
            return;
        }
        let Some(now) = sale(facts) else { return };
        match self.stands {
            Some((before, _)) if before == terms.sale => {
                let Sale { sale_id, sold, reserved, available, .. } = now;
                write(out, "stock", &StockEvent { sale_id, sold, reserved, available });
            }
            before => {
                if before.is_none() {
                    out.extend_from_slice(HELLO);
                }
                write(out, "sale", &now);
            }
        }
        *self = Told { stands, at_ms: now_ms };
    }
}

/// Writes an event, as the HTML standard has it (§9.2).
fn write(out: &mut Vec<u8>, event: &str, data: &impl Serialize) {
    for part in ["event: ", event, "\ndata: "] {
        out.extend_from_slice(part.as_bytes());
    }
    serde_json::to_writer(&mut *out, data).expect("numbers and times are JSON");
    out.extend_from_slice(b"\n\n");
}

/// One that listens.
#[derive(Debug)]
pub struct Subscriber {
    /// Its place among the clients.
    pub key: usize,
    /// Tells it from a later client in the same place.
    pub generation: u32,
    /// What it knows.
    pub told: Told,
    due_ms: u64,
}

/// All that listen to one shard.
#[derive(Debug)]
pub struct Subscribers {
    /// In the order of their turns.
    queue: VecDeque<Subscriber>,
    max: usize,
}

impl Subscribers {
    /// Nobody yet, and never more than `max`.
    pub fn new(max: usize) -> Self {
        Subscribers { queue: VecDeque::new(), max }
    }

    /// Whether one more may listen.
    pub fn have_room(&self) -> bool {
        self.queue.len() < self.max
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.queue.len()
    }

    /// One more listens, and is told at once.
    pub fn add(&mut self, key: usize, generation: u32) {
        self.queue.push_front(Subscriber { key, generation, told: Told::default(), due_ms: 0 });
    }

    /// When the next one is to be told something.
    pub fn next_ms(&self) -> Option<u64> {
        self.queue.front().map(|next| next.due_ms)
    }

    /// Whose turn it is, if it is anybody's.
    pub fn next(&mut self, now_ms: u64) -> Option<Subscriber> {
        self.queue.pop_front_if(|next| next.due_ms <= now_ms)
    }

    /// It goes on listening.
    pub fn go_on(&mut self, subscriber: Subscriber, now_ms: u64) {
        self.queue.push_back(Subscriber { due_ms: now_ms + PERIOD_MS, ..subscriber });
    }

    /// Nobody listens any more.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::item_states::ItemStates;
    use crate::operate::status::{Phase, Status};
    use crate::sale::ids::Terms;
    use crate::sale::partition::Partition;
    use crate::sale::stock::Counts;

    #[test]
    fn each_hears_what_is_new_to_it_and_signs_of_life() {
        let (status, board) = (Status::new(Phase::Serving, 1, false), ItemStates::new(Partition::new(1), 10, &[]));
        let mut told = Told::default();
        let mut hear = |sale, sold, now_ms| {
            let counts = Counts { claiming: 0, held: 1, committing: 0, sold };
            status.shards[0].publish_sales(SaleId(sale), counts);
            let terms = Terms { sale: SaleId(sale), items: 10, user_limit: 2 };
            let mut out = Vec::new();
            let sale = Some(OnSale { terms, period_s: 3600, board: &board, unix_ms: now_ms });
            told.update(&Facts { status: &status, sale, known: None }, now_ms, &mut out);
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
        let mut subscribers = Subscribers::new(3);
        subscribers.add(1, 1);
        let first = subscribers.next(1000).unwrap();
        subscribers.go_on(first, 1000);
        subscribers.add(2, 1);
        let second = subscribers.next(1100).unwrap();
        subscribers.go_on(second, 1100);
        assert_eq!((subscribers.next_ms(), subscribers.have_room()), (Some(1500), true));
        assert!(subscribers.next(1499).is_none());
        assert_eq!((subscribers.next(1500).unwrap().key, subscribers.next_ms()), (1, Some(1600)));
        subscribers.add(3, 1);
        subscribers.add(4, 1);
        assert!(!subscribers.have_room());
    }
}
