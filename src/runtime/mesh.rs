//! The lanes between shards: the only way by which one shard sends messages to another.
//!
//! From every shard to every other there are two lanes, one for requests and one for replies. A lane carries batches:
//! all messages of one turn, in order. Flow control is by credit: each lane has two buffers, which travel to the
//! receiver full and return to the sender empty. So a lane holds at most two batches, and sending never blocks. If a
//! receiver is slow, its messages stay with the sender, and the limits on connections and on the stock bound their
//! number. No shard ever blocks on a lane, so lanes cannot deadlock.

use crate::sale::ids::ShardId;
use crate::sale::message::{Batch, Reply, Request};
use crate::system::doorbell::Doorbell;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::Arc;

/// Batches that a lane holds at most: the receiver reads one while the next is in transit.
const LANE_BATCHES: usize = 2;

/// The sending end of a lane.
struct LaneSender<M> {
    to: ShardId,
    /// The messages of the next batch.
    waiting: Vec<M>,
    batches: Sender<Batch<M>>,
    spares: Receiver<Vec<M>>,
}

/// The receiving end of a lane.
struct LaneReceiver<M> {
    from: ShardId,
    batches: Receiver<Batch<M>>,
    spares: Sender<Vec<M>>,
}

fn lane<M>(from: ShardId, to: ShardId) -> (LaneSender<M>, LaneReceiver<M>) {
    let (batches_in, batches_out) = bounded(LANE_BATCHES);
    let (spares_in, spares_out) = bounded(LANE_BATCHES);
    for _ in 0..LANE_BATCHES {
        spares_in.send(Vec::new()).expect("the receiver exists");
    }
    let outlet = LaneSender { to, waiting: Vec::new(), batches: batches_in, spares: spares_out };
    (outlet, LaneReceiver { from, batches: batches_out, spares: spares_in })
}

impl<M> LaneSender<M> {
    /// Sends the waiting messages as one batch, if the lane has a spare buffer. Returns whether it sent a batch.
    fn dispatch(&mut self, from: ShardId, traffic: &mut Traffic) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let Ok(spare) = self.spares.try_recv() else {
            traffic.waiting += self.waiting.len() as u64;
            return false;
        };
        let messages = std::mem::replace(&mut self.waiting, spare);
        traffic.batches += 1;
        traffic.messages += messages.len() as u64;
        match self.batches.try_send(Batch { from, to: self.to, messages }) {
            Err(TrySendError::Full(_)) => panic!("a spare buffer permits one batch"),
            // During a shutdown, the peer may have stopped first.
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
        }
    }
}

impl<M> LaneReceiver<M> {
    fn drain(&self, me: ShardId, mut deliver: impl FnMut(ShardId, M)) -> bool {
        let mut any = false;
        while let Ok(batch) = self.batches.try_recv() {
            assert_eq!((batch.from, batch.to), (self.from, me), "a batch arrived on the wrong lane");
            let mut messages = batch.messages;
            messages.drain(..).for_each(|message| deliver(batch.from, message));
            // During a shutdown, the sender may have stopped first.
            let _ = self.spares.send(messages);
            any = true;
        }
        any
    }
}

/// A message that a shard receives from another shard.
#[derive(Debug)]
pub enum Delivery {
    /// A request, with the shard that sent it.
    Request(ShardId, Request),
    /// A reply.
    Reply(Reply),
}

/// Counters of what one shard has sent since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Batches sent.
    pub batches: u64,
    /// Messages in those batches.
    pub messages: u64,
    /// Messages that wait with this shard since the last dispatch, because their lane had no spare buffer.
    pub waiting: u64,
}

/// One shard's ends of all its lanes, and the doorbells of all shards.
pub struct Endpoint {
    me: ShardId,
    requests_out: Vec<LaneSender<Request>>,
    replies_out: Vec<LaneSender<Reply>>,
    requests_in: Vec<LaneReceiver<Request>>,
    replies_in: Vec<LaneReceiver<Reply>>,
    doorbells: Arc<[Doorbell]>,
    traffic: Traffic,
}

/// Creates the lanes between all shards, and returns the ends of each shard. `doorbells` has one doorbell per shard.
pub fn connect(doorbells: &Arc<[Doorbell]>) -> Vec<Endpoint> {
    let ids = || (0..doorbells.len() as u16).map(ShardId);
    let new = |me| Endpoint {
        me,
        requests_out: Vec::new(),
        replies_out: Vec::new(),
        requests_in: Vec::new(),
        replies_in: Vec::new(),
        doorbells: doorbells.clone(),
        traffic: Traffic::default(),
    };
    let mut endpoints: Vec<Endpoint> = ids().map(new).collect();
    for (from, to) in ids().flat_map(|from| ids().map(move |to| (from, to))).filter(|(from, to)| from != to) {
        let (requests, replies) = (lane(from, to), lane(from, to));
        let sender = &mut endpoints[usize::from(from.0)];
        sender.requests_out.push(requests.0);
        sender.replies_out.push(replies.0);
        let receiver = &mut endpoints[usize::from(to.0)];
        receiver.requests_in.push(requests.1);
        receiver.replies_in.push(replies.1);
    }
    endpoints
}

impl Endpoint {
    /// Adds a request to the next batch to the shard `to`.
    pub fn request(&mut self, to: ShardId, request: Request) {
        let place = self.place(to);
        self.requests_out[place].waiting.push(request);
    }

    /// Adds a reply to the next batch to the shard `to`.
    pub fn reply(&mut self, to: ShardId, reply: Reply) {
        let place = self.place(to);
        self.replies_out[place].waiting.push(reply);
    }

    /// Returns the index of the lanes to the shard `to`. A shard has no lane to itself.
    fn place(&self, to: ShardId) -> usize {
        assert_ne!(to, self.me, "a shard applies its own messages at once");
        usize::from(to.0) - usize::from(to > self.me)
    }

    /// Sends one batch on each lane that has messages and a spare buffer, and rings the doorbell of each receiver.
    pub fn dispatch(&mut self) {
        let traffic = &mut self.traffic;
        traffic.waiting = 0;
        for (requests, replies) in self.requests_out.iter_mut().zip(&mut self.replies_out) {
            let to = replies.to;
            if replies.dispatch(self.me, traffic) | requests.dispatch(self.me, traffic) {
                self.doorbells[usize::from(to.0)].ring();
            }
        }
    }

    /// Passes every message that has arrived to `deliver`, and returns whether there was one. Replies come first,
    /// because they finish what requests begin.
    pub fn receive(&mut self, mut deliver: impl FnMut(Delivery)) -> bool {
        let mut any = false;
        for inlet in &self.replies_in {
            any |= inlet.drain(self.me, |_, reply| deliver(Delivery::Reply(reply)));
        }
        for inlet in &self.requests_in {
            any |= inlet.drain(self.me, |from, request| deliver(Delivery::Request(from, request)));
        }
        any
    }

    /// Returns the counters of what this shard has sent.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Returns whether a message has arrived.
    pub fn has_messages(&self) -> bool {
        self.replies_in.iter().any(|inlet| !inlet.batches.is_empty())
            || self.requests_in.iter().any(|inlet| !inlet.batches.is_empty())
    }

    /// Returns whether messages wait with this shard after the last dispatch, because their lane had no spare buffer.
    pub fn has_unsent(&self) -> bool {
        self.requests_out.iter().any(|outlet| !outlet.waiting.is_empty())
            || self.replies_out.iter().any(|outlet| !outlet.waiting.is_empty())
    }

    /// Returns this shard's own doorbell.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbells[usize::from(self.me.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::command::Outcome;
    use crate::sale::ids::{SaleId, Ticket, UserId};
    use rustix::event::{Timespec, epoll};
    use std::mem::MaybeUninit;
    use std::thread;

    fn doorbells(shards: usize) -> Arc<[Doorbell]> {
        (0..shards).map(|_| Doorbell::new().unwrap()).collect()
    }

    fn release(number: u64) -> Request {
        Request::Release { sale: SaleId(1), user: UserId(number as i64) }
    }

    fn answer(number: u64) -> Reply {
        Reply::Answer { ticket: Ticket(number), outcome: Outcome::Released }
    }

    /// Every shard sends to every other for many turns while no shard reads: no lane holds more than two batches, no
    /// sender blocks, and every message arrives in order once the receivers read.
    #[test]
    fn flooded_lanes_neither_overflow_nor_block() {
        const SHARDS: usize = 5;
        let mut endpoints = connect(&doorbells(SHARDS));
        for number in 0..1000 {
            for (me, endpoint) in endpoints.iter_mut().enumerate() {
                for to in (0..SHARDS as u16).map(ShardId).filter(|to| usize::from(to.0) != me) {
                    endpoint.request(to, release(number));
                    endpoint.reply(to, answer(number));
                }
                endpoint.dispatch();
            }
        }
        for endpoint in &endpoints {
            let peers = SHARDS as u64 - 1;
            let sent = 2 * peers * LANE_BATCHES as u64;
            let Traffic { batches, messages, waiting } = endpoint.traffic();
            assert_eq!((batches, messages + waiting), (sent, 2 * peers * 1000));
            assert!(endpoint.requests_in.iter().all(|inlet| inlet.batches.len() == LANE_BATCHES));
            assert!(endpoint.replies_in.iter().all(|inlet| inlet.batches.len() == LANE_BATCHES));
        }
        let mut received = vec![(vec![0; SHARDS], 0); SHARDS];
        while endpoints.iter().any(|endpoint| endpoint.has_messages() || endpoint.has_unsent()) {
            for (endpoint, (requests, replies)) in endpoints.iter_mut().zip(&mut received) {
                endpoint.receive(|delivery| match delivery {
                    Delivery::Request(from, request) => {
                        let next = &mut requests[usize::from(from.0)];
                        assert_eq!(request, release(*next), "out of order");
                        *next += 1;
                    }
                    Delivery::Reply(_) => *replies += 1,
                });
                endpoint.dispatch();
            }
        }
        for (requests, replies) in &received {
            assert_eq!((requests.iter().sum::<u64>(), *replies), (4000, 4000));
        }
    }

    /// Threads answer each request and sleep when there is nothing to do: no thread misses a wake-up.
    #[test]
    fn doorbells_wake_sleeping_shards() {
        const SHARDS: usize = 3;
        const REQUESTS: u64 = 20_000;
        let threads = connect(&doorbells(SHARDS)).into_iter().map(|mut endpoint| {
            thread::spawn(move || {
                let me = endpoint.me;
                let bed = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
                let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&bed, endpoint.doorbell(), epoll::EventData::new_u64(0), edge).unwrap();
                let peers: Vec<_> = (0..SHARDS as u16).map(ShardId).filter(|to| *to != me).collect();
                let (mut sent, mut answered, mut served) = (0, 0, 0);
                let total = REQUESTS * peers.len() as u64;
                while answered < total || served < total || endpoint.has_unsent() {
                    let mut arrived = Vec::new();
                    endpoint.doorbell().wake_up();
                    endpoint.receive(|delivery| arrived.push(delivery));
                    for delivery in &arrived {
                        match delivery {
                            Delivery::Request(from, _) => {
                                endpoint.reply(*from, answer(0));
                                served += 1;
                            }
                            Delivery::Reply(_) => answered += 1,
                        }
                    }
                    if sent < REQUESTS && answered == sent * peers.len() as u64 {
                        peers.iter().for_each(|to| endpoint.request(*to, release(sent)));
                        sent += 1;
                    }
                    endpoint.dispatch();
                    endpoint.doorbell().fall_asleep();
                    let done = answered == total && served == total;
                    if arrived.is_empty() && !endpoint.has_messages() && !endpoint.has_unsent() && !done {
                        let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
                        let mut rung = [MaybeUninit::uninit()];
                        let (rung, _) = epoll::wait(&bed, &mut rung, Some(&timeout)).unwrap();
                        assert_eq!(rung.len(), 1, "overslept at {answered} answers");
                    }
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
}
