//! Counting one shard's requests, and how long they take: from when a request was read to when its turn has written the
//! answer.

use crate::http::operation::{Answer, Operation};
use crate::operate::counters::Requests;
use crate::operate::status::Status;
use crate::sale::ids::ShardId;
use crate::system::clock::Clock;
use std::sync::Arc;

/// Counts for one shard. The clock is read twice in a turn that has requests, and never in another.
pub struct RequestTimer {
    status: Arc<Status>,
    shard: ShardId,
    clock: Clock,
    /// When this turn read its first request.
    turn_us: Option<u64>,
    /// Answers of this turn: what was asked, and when.
    answered: Vec<(Operation, u64)>,
}

impl RequestTimer {
    /// A meter of `shard`.
    pub fn new(status: Arc<Status>, shard: ShardId, clock: Clock) -> Self {
        RequestTimer { status, shard, clock, turn_us: None, answered: Vec::new() }
    }

    /// A request has been read. Returns when, in microseconds, for [`RequestTimer::answered`].
    pub fn began(&mut self) -> u64 {
        if cfg!(feature = "unmetered") {
            return 0;
        }
        *self.turn_us.get_or_insert_with(|| self.clock.micros())
    }

    /// A request that began then has its answer.
    pub fn answered(&mut self, operation: Operation, answer: Answer, began_us: u64) {
        if cfg!(feature = "unmetered") {
            return;
        }
        self.requests().answers(operation, answer).add(1);
        self.answered.push((operation, began_us));
    }

    /// Somebody was refused before anything was asked.
    pub fn refused(&self, answer: Answer) {
        self.requests().answers(Operation::Unknown, answer).add(1);
    }

    /// Every answer of this turn is written, as far as clients take them.
    pub fn written(&mut self) {
        self.turn_us = None;
        if self.answered.is_empty() {
            return;
        }
        let now_us = self.clock.micros();
        let requests = &self.status.shard(self.shard).requests;
        for (operation, began_us) in self.answered.drain(..) {
            requests.times(operation).record(now_us - began_us);
        }
    }

    fn requests(&self) -> &Requests {
        &self.status.shard(self.shard).requests
    }
}
