//! Counts one shard's requests and measures their latency: from reading a request until its turn has written the
//! answer.

use crate::http::operation::{Answer, Operation};
use crate::operate::counters::Requests;
use crate::operate::exemplars::SampledRequest;
use crate::operate::shard_status::ShardStatus;
use crate::operate::status::Status;
use crate::sale::ids::ShardId;
use crate::system::clock::Clock;
use std::sync::Arc;

/// Counts the requests of one shard and measures their latency. It reads the clock twice in a turn that has requests,
/// and not at all in other turns.
pub struct RequestTimer {
    status: Arc<Status>,
    shard: ShardId,
    clock: Clock,
    /// Time at which this turn read its first request, in microseconds.
    turn_us: Option<u64>,
    /// Answers of this turn: the operation, and the time at which its request was read.
    answered: Vec<(Operation, u64)>,
    /// Those of them that belong to a sampled trace.
    sampled: Vec<(Operation, u64, SampledRequest)>,
}

impl RequestTimer {
    /// Creates the timer of `shard`.
    pub fn new(status: Arc<Status>, shard: ShardId, clock: Clock) -> Self {
        RequestTimer { status, shard, clock, turn_us: None, answered: Vec::new(), sampled: Vec::new() }
    }

    /// Returns the time at which a request was read, in microseconds, for [`RequestTimer::answered`].
    pub fn began(&mut self) -> u64 {
        if cfg!(feature = "unmetered") {
            return 0;
        }
        *self.turn_us.get_or_insert_with(|| self.clock.micros())
    }

    /// Counts the answer to a request that was read at `began_us`. `sampled` makes it an example of its latency.
    pub fn answered(&mut self, operation: Operation, answer: Answer, began_us: u64, sampled: Option<SampledRequest>) {
        if cfg!(feature = "unmetered") {
            return;
        }
        self.requests().answers(operation, answer).add(1);
        self.answered.push((operation, began_us));
        self.sampled.extend(sampled.map(|request| (operation, began_us, request)));
    }

    /// Counts a refusal that belongs to no operation, such as a refused connection or a malformed request.
    pub fn refused(&self, answer: Answer) {
        self.requests().answers(Operation::Unknown, answer).add(1);
    }

    /// Records the latencies of this turn's answers. To be called when the turn has written them, as far as the
    /// clients' sockets accept data.
    pub fn written(&mut self) {
        self.turn_us = None;
        if self.answered.is_empty() {
            return;
        }
        let (now, now_us) = self.clock.read();
        let ShardStatus { requests, exemplars, .. } = self.status.shard(self.shard);
        for (operation, began_us) in self.answered.drain(..) {
            requests.times(operation).record(now_us - began_us);
        }
        for (operation, began_us, request) in self.sampled.drain(..) {
            exemplars.keep(operation, request, now_us - began_us, now.unix_ms);
        }
    }

    fn requests(&self) -> &Requests {
        &self.status.shard(self.shard).requests
    }
}
