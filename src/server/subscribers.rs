//! The subscribers of a shard: clients of `/events`, which receive server-sent events. Here is the order in which they
//! are served.
//!
//! A subscriber gets the new events once per period, and only if something has changed. While a subscriber has not read
//! the last ones, it gets no further ones, and afterwards it gets the current state. So one write is buffered at most for
//! each subscriber, with one event for each sale, and the work of one turn is bounded, regardless of their number.

use crate::server::sale_events::{SaleEvents, SentState};
use std::collections::VecDeque;

/// Milliseconds between two writes to one subscriber at least.
const PERIOD_MS: u64 = 500;
/// A client of `/events`.
#[derive(Debug)]
pub struct Subscriber {
    /// Key of the client in the server.
    pub key: usize,
    /// Distinguishes the client from a later one with the same key.
    pub generation: u32,
    /// What the client has received.
    pub sent: SentState,
    due_ms: u64,
}

/// All subscribers of one shard.
#[derive(Debug, Default)]
pub struct Subscribers {
    /// Subscribers in the order in which they are served next.
    queue: VecDeque<Subscriber>,
    /// The events of the sales.
    pub events: SaleEvents,
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
