//! The deadlines of a shard's connections, in the order in which they end.
//!
//! Every event that a connection waits for has a fixed time limit, so a connection whose deadline is set later also
//! times out later than all others that wait for this event. One queue for each event is therefore in the order of the
//! deadlines without a search. A queue is a doubly linked list through one table, so that setting and removing a
//! deadline take the same time for any number of connections.

use crate::http::connection::WaitingFor;
use std::array;
use strum::{EnumCount, VariantArray};

/// The end of a queue.
const NONE: u32 = u32::MAX;

/// The deadlines of all connections of one shard. Connections have keys as in a slab: small numbers that are used again.
#[derive(Debug)]
pub struct Timeouts {
    limits_ms: [u64; WaitingFor::COUNT],
    queues: [TimeoutQueue; WaitingFor::COUNT],
    /// By the key of the connection.
    entries: Vec<TimeoutEntry>,
}

/// The connections that wait for one event, the earliest deadline first.
#[derive(Clone, Copy, Debug)]
struct TimeoutQueue {
    first: u32,
    last: u32,
    count: usize,
}

/// The deadline of one connection, and its neighbours in the queue.
#[derive(Clone, Copy, Debug)]
struct TimeoutEntry {
    deadline_ms: u64,
    /// `None` if the connection is in no queue.
    awaits: Option<WaitingFor>,
    before: u32,
    after: u32,
}

impl TimeoutEntry {
    const FREE: TimeoutEntry = TimeoutEntry { deadline_ms: 0, awaits: None, before: NONE, after: NONE };
}

impl Timeouts {
    /// Creates the queues for connections that may be without a request for `idle_ms`.
    pub fn new(idle_ms: u64) -> Self {
        let limit = |place: usize| WaitingFor::VARIANTS[place].limit_ms(idle_ms);
        let empty = TimeoutQueue { first: NONE, last: NONE, count: 0 };
        Timeouts { limits_ms: array::from_fn(limit), queues: [empty; WaitingFor::COUNT], entries: Vec::new() }
    }

    /// Sets the deadline of a connection, which replaces its last one. The deadlines for one event must not decrease.
    pub fn set(&mut self, key: usize, (awaits, deadline_ms): (WaitingFor, u64)) {
        if key >= self.entries.len() {
            self.entries.resize(key + 1, TimeoutEntry::FREE);
        }
        self.remove(key);
        let queue = &mut self.queues[awaits as usize];
        let last = std::mem::replace(&mut queue.last, key as u32);
        queue.count += 1;
        if last == NONE {
            queue.first = key as u32;
        } else {
            let last = &mut self.entries[last as usize];
            debug_assert!(last.deadline_ms <= deadline_ms, "each event has a fixed time limit");
            last.after = key as u32;
        }
        self.entries[key] = TimeoutEntry { deadline_ms, awaits: Some(awaits), before: last, after: NONE };
    }

    /// Removes the deadline of a connection, if there is one.
    pub fn remove(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let TimeoutEntry { awaits: Some(awaits), before, after, .. } = std::mem::replace(entry, TimeoutEntry::FREE)
        else {
            return;
        };
        let queue = &mut self.queues[awaits as usize];
        queue.count -= 1;
        match before {
            NONE => queue.first = after,
            before => self.entries[before as usize].after = after,
        }
        match after {
            NONE => queue.last = before,
            after => self.entries[after as usize].before = before,
        }
    }

    /// Returns a connection whose deadline has passed, and the event for which it has waited.
    pub fn due(&self, now_ms: u64) -> Option<(usize, WaitingFor)> {
        let is_due = |key: u32| key != NONE && self.entries[key as usize].deadline_ms <= now_ms;
        let mut events = WaitingFor::VARIANTS.iter();
        let due = events.find(|&&awaits| is_due(self.queues[awaits as usize].first));
        due.map(|awaits| (self.queues[*awaits as usize].first as usize, *awaits))
    }

    /// Returns the number of connections that wait for this event.
    pub fn count(&self, awaits: WaitingFor) -> usize {
        self.queues[awaits as usize].count
    }

    /// Returns the connections that may be evicted, the one that has waited longest first, each with the time since
    /// when it has waited.
    pub fn evictable(&self) -> impl Iterator<Item = (usize, u64)> {
        let mut next: [u32; WaitingFor::COUNT] = array::from_fn(|place| match WaitingFor::VARIANTS[place] {
            awaits if awaits.is_evictable() => self.queues[place].first,
            _ => NONE,
        });
        std::iter::from_fn(move || {
            let waiting = (0..WaitingFor::COUNT).filter(|place| next[*place] != NONE);
            let since = waiting.map(|place| {
                let deadline_ms = self.entries[next[place] as usize].deadline_ms;
                (deadline_ms.saturating_sub(self.limits_ms[place]), place)
            });
            let (since_ms, place) = since.min()?;
            let key = next[place] as usize;
            next[place] = self.entries[key].after;
            Some((key, since_ms))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE_MS: u64 = 5_000;

    fn evictable(timeouts: &Timeouts) -> Vec<(usize, u64)> {
        timeouts.evictable().collect()
    }

    #[test]
    fn connections_time_out_and_are_evicted_in_order() {
        let mut timeouts = Timeouts::new(IDLE_MS);
        let mut wait = |key, awaits: WaitingFor, now_ms| timeouts.set(key, (awaits, now_ms + awaits.limit_ms(IDLE_MS)));
        wait(0, WaitingFor::Request, 10);
        wait(1, WaitingFor::Body, 20);
        wait(2, WaitingFor::Head, 30);
        wait(3, WaitingFor::Decision, 1);
        wait(4, WaitingFor::Write, 2);
        wait(5, WaitingFor::Request, 40);
        wait(6, WaitingFor::Close, 50);
        wait(7, WaitingFor::Event, 0);
        assert_eq!(evictable(&timeouts), [(0, 10), (1, 20), (2, 30), (5, 40), (6, 50)]);
        timeouts.set(0, (WaitingFor::Request, 60 + WaitingFor::Request.limit_ms(IDLE_MS)));
        timeouts.remove(2);
        timeouts.remove(2);
        timeouts.remove(100);
        assert_eq!(evictable(&timeouts), [(1, 20), (5, 40), (6, 50), (0, 60)]);
        let mut due = Vec::new();
        for now_ms in 0..40_000 {
            while let Some((key, _)) = timeouts.due(now_ms) {
                timeouts.remove(key);
                due.push(key);
            }
        }
        assert_eq!((due, timeouts.count(WaitingFor::Event)), (vec![6, 5, 0, 3, 4, 1], 1));
    }

    proptest! {
        /// Whatever is set and removed, the queues agree with a plain list.
        #[test]
        fn queues_agree_with_a_list(steps in prop::collection::vec((0..20usize, 0..8usize, 0..300u64), 1..200)) {
            let (mut timeouts, mut list, mut now_ms) = (Timeouts::new(IDLE_MS), Vec::<(usize, WaitingFor, u64, u64)>::new(), 0);
            for (key, event, ms) in steps {
                now_ms += ms;
                list.retain(|(other, ..)| *other != key);
                match WaitingFor::VARIANTS.get(event) {
                    Some(&awaits) => {
                        let deadline_ms = now_ms + awaits.limit_ms(IDLE_MS);
                        timeouts.set(key, (awaits, deadline_ms));
                        list.push((key, awaits, now_ms, deadline_ms));
                    }
                    None => timeouts.remove(key),
                }
                let mut expected: Vec<_> = list.iter().filter(|(_, awaits, ..)| awaits.is_evictable()).collect();
                expected.sort_by_key(|(_, awaits, since_ms, _)| (*since_ms, *awaits as usize));
                let expected: Vec<_> = expected.into_iter().map(|(key, _, since_ms, _)| (*key, *since_ms)).collect();
                prop_assert_eq!(evictable(&timeouts), expected);
                for &awaits in WaitingFor::VARIANTS {
                    let count = list.iter().filter(|(_, other, ..)| *other == awaits).count();
                    prop_assert_eq!(timeouts.count(awaits), count);
                }
                let is_due = list.iter().any(|(.., deadline_ms)| *deadline_ms <= now_ms);
                prop_assert_eq!(timeouts.due(now_ms).is_some(), is_due);
                if let Some((key, awaits)) = timeouts.due(now_ms) {
                    prop_assert!(list.iter().any(|(other, event, _, at)| (*other, *event) == (key, awaits) && *at <= now_ms));
                }
            }
        }
    }
}
