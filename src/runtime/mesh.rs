//! The lanes between shards: the only way by which one shard sends messages to another.
//!
//! From every shard to every other there are two lanes, one for requests and one for replies. A lane carries batches:
//! the messages of one turn, or of several, in order. Flow control is by credit: each lane has two buffers, which travel
//! to the receiver full and return to the sender empty. So a lane holds at most two batches, and sending never blocks. If
//! a receiver is slow, its messages stay with the sender, and the limits on connections and on the stock bound their
//! number. No shard ever blocks on a lane, so lanes cannot deadlock.
//!
//! All lanes of one kind to a shard end in one channel, its [`Inbox`], which has room for the batches of all of them. So the
//! work of a turn depends on the batches that have arrived and not on the number of shards, and as each lane holds two
//! batches at most, no sender can keep the others out. A sender that loses its CPU between the two steps of sending makes the
//! receiver wait for its next turn on a CPU; only shards that share a CPU can meet this.
//!
//! A batch has at most [`BATCH_MESSAGES`] messages, and a turn receives a limited number of batches. So a backlog makes
//! neither the receiver's turns longer nor the buffers of the lanes larger.

use crate::sale::ids::ShardId;
use crate::sale::message::{Batch, Reply, Request};
use crate::system::doorbell::Doorbell;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::collections::VecDeque;
use std::sync::Arc;

/// Messages that a batch has at most. They need 14 KiB.
const BATCH_MESSAGES: usize = 256;
/// Requests, and replies, that one turn receives before it leaves the rest to the next turn. The last batch may exceed
/// this number.
const RECEIVED_PER_TURN: usize = 1024;
/// Batches that a lane holds at most: the receiver reads one while the next is in transit.
const LANE_BATCHES: usize = 2;

/// The sending end of a lane.
struct Lane<M> {
    /// Full batches that found no spare buffer.
    backlog: VecDeque<Vec<M>>,
    /// The messages of the batch after those.
    waiting: Vec<M>,
    /// Buffers that are not on their way.
    spares: Vec<Vec<M>>,
}

impl<M> Default for Lane<M> {
    fn default() -> Self {
        Lane { backlog: VecDeque::new(), waiting: Vec::new(), spares: (0..LANE_BATCHES).map(|_| Vec::new()).collect() }
    }
}

impl<M> Lane<M> {
    fn push(&mut self, message: M) {
        if self.waiting.len() == BATCH_MESSAGES {
            self.backlog.push_back(std::mem::replace(&mut self.waiting, Vec::with_capacity(BATCH_MESSAGES)));
        }
        self.waiting.push(message);
    }

    fn unsent(&self) -> usize {
        self.backlog.len() * BATCH_MESSAGES + self.waiting.len()
    }

    /// Sends the waiting messages, as far as the lane has spare buffers. Returns whether it sent a batch.
    fn dispatch(&mut self, from: ShardId, to: ShardId, inbox: &Sender<Batch<M>>, traffic: &mut Traffic) -> bool {
        let mut any = false;
        while self.unsent() > 0
            && let Some(spare) = self.spares.pop()
        {
            // A buffer of the backlog takes the place of the spare one.
            let messages = self.backlog.pop_front().unwrap_or_else(|| std::mem::replace(&mut self.waiting, spare));
            traffic.batches += 1;
            traffic.messages += messages.len() as u64;
            match inbox.try_send(Batch { from, to, messages }) {
                Err(TrySendError::Full(_)) => panic!("the channel has room for the batches of all lanes"),
                // During a shutdown, the peer may have stopped first.
                Ok(()) | Err(TrySendError::Disconnected(_)) => any = true,
            }
        }
        traffic.waiting += self.unsent() as u64;
        any
    }
}

/// What arrives at a shard on the lanes of one kind.
struct Inbox<M> {
    /// Batches of other shards.
    batches: Receiver<Batch<M>>,
    /// Batches of this shard, whose receivers have emptied them.
    spares: Receiver<Batch<M>>,
}

/// The way into the [`Inbox`] of a shard.
struct Address<M> {
    batches: Sender<Batch<M>>,
    spares: Sender<Batch<M>>,
}

fn inbox<M>(shards: usize) -> (Address<M>, Inbox<M>) {
    // A channel without room would be one where sender and receiver meet.
    let room = (LANE_BATCHES * (shards - 1)).max(1);
    let (batches_in, batches) = bounded(room);
    let (spares_in, spares) = bounded(room);
    (Address { batches: batches_in, spares: spares_in }, Inbox { batches, spares })
}

impl<M> Inbox<M> {
    /// Passes the messages that have arrived to `deliver`, and the emptied batches to `give_back`. Begins no batch when it
    /// has passed [`RECEIVED_PER_TURN`] messages.
    fn receive(&self, me: ShardId, mut deliver: impl FnMut(ShardId, M), give_back: impl Fn(Batch<M>)) {
        let mut received = 0;
        while received < RECEIVED_PER_TURN
            && let Ok(mut batch) = self.batches.try_recv()
        {
            assert_eq!(batch.to, me, "a batch arrived at the wrong shard");
            received += batch.messages.len();
            batch.messages.drain(..).for_each(|message| deliver(batch.from, message));
            give_back(batch);
        }
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

/// The lanes to one shard.
#[derive(Default)]
struct Outlet {
    requests: Lane<Request>,
    replies: Lane<Reply>,
    /// The shard is in [`Endpoint::unsent`].
    is_listed: bool,
}

/// How one shard is reached.
struct Peer {
    requests: Address<Request>,
    replies: Address<Reply>,
}

/// One shard's ends of all its lanes, and the doorbells of all shards.
pub struct Endpoint {
    me: ShardId,
    /// By shard. Those to this one are not used.
    outlets: Vec<Outlet>,
    /// Shards for which there are messages to send.
    unsent: Vec<ShardId>,
    requests: Inbox<Request>,
    replies: Inbox<Reply>,
    peers: Arc<[Peer]>,
    doorbells: Arc<[Doorbell]>,
    traffic: Traffic,
}

/// Creates the lanes between all shards, and returns the ends of each shard. `doorbells` has one doorbell per shard.
pub fn connect(doorbells: &Arc<[Doorbell]>) -> Vec<Endpoint> {
    let shards = doorbells.len();
    let (peers, inboxes): (Vec<Peer>, Vec<_>) = (0..shards)
        .map(|_| {
            let ((requests, new_requests), (replies, new_replies)) = (inbox(shards), inbox(shards));
            (Peer { requests, replies }, (new_requests, new_replies))
        })
        .unzip();
    let peers: Arc<[Peer]> = peers.into();
    let endpoint = |(me, (requests, replies))| Endpoint {
        me: ShardId(me),
        outlets: (0..shards).map(|_| Outlet::default()).collect(),
        unsent: Vec::new(),
        requests,
        replies,
        peers: peers.clone(),
        doorbells: doorbells.clone(),
        traffic: Traffic::default(),
    };
    (0..).zip(inboxes).map(endpoint).collect()
}

impl Endpoint {
    /// Adds a request to the next batch to the shard `to`.
    pub fn request(&mut self, to: ShardId, request: Request) {
        self.outlet(to).requests.push(request);
    }

    /// Adds a reply to the next batch to the shard `to`.
    pub fn reply(&mut self, to: ShardId, reply: Reply) {
        self.outlet(to).replies.push(reply);
    }

    /// Returns the lanes to the shard `to`, which get a message now.
    fn outlet(&mut self, to: ShardId) -> &mut Outlet {
        assert_ne!(to, self.me, "a shard applies its own messages at once");
        let outlet = &mut self.outlets[usize::from(to.0)];
        if !std::mem::replace(&mut outlet.is_listed, true) {
            self.unsent.push(to);
        }
        outlet
    }

    /// Sends the messages of each lane, as far as it has spare buffers, and rings the doorbell of each receiver.
    pub fn dispatch(&mut self) {
        self.traffic.waiting = 0;
        if self.unsent.is_empty() {
            return;
        }
        let Endpoint { me, outlets, unsent, requests, replies, peers, doorbells, traffic } = self;
        for batch in requests.spares.try_iter() {
            outlets[usize::from(batch.to.0)].requests.spares.push(batch.messages);
        }
        for batch in replies.spares.try_iter() {
            outlets[usize::from(batch.to.0)].replies.spares.push(batch.messages);
        }
        unsent.retain(|&to| {
            let (place, peer) = (usize::from(to.0), &peers[usize::from(to.0)]);
            let outlet = &mut outlets[place];
            if outlet.replies.dispatch(*me, to, &peer.replies.batches, traffic)
                | outlet.requests.dispatch(*me, to, &peer.requests.batches, traffic)
            {
                doorbells[place].ring();
            }
            outlet.is_listed = outlet.replies.unsent() + outlet.requests.unsent() > 0;
            outlet.is_listed
        });
    }

    /// Passes messages that have arrived to `deliver`. Replies come first, because they finish what requests begin. If more
    /// have arrived than one turn receives, [`has_messages`](Self::has_messages) says so.
    pub fn receive(&mut self, mut deliver: impl FnMut(Delivery)) {
        // During a shutdown, the sender of a batch may have stopped first.
        let sender = |from: ShardId| &self.peers[usize::from(from.0)];
        let give_back = |batch: Batch<Reply>| _ = sender(batch.from).replies.spares.send(batch);
        self.replies.receive(self.me, |_, reply| deliver(Delivery::Reply(reply)), give_back);
        let give_back = |batch: Batch<Request>| _ = sender(batch.from).requests.spares.send(batch);
        self.requests.receive(self.me, |from, request| deliver(Delivery::Request(from, request)), give_back);
    }

    /// Returns the counters of what this shard has sent.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Returns whether a message has arrived.
    pub fn has_messages(&self) -> bool {
        !self.requests.batches.is_empty() || !self.replies.batches.is_empty()
    }

    /// Returns whether messages wait with this shard after the last dispatch, because their lane had no spare buffer.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
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
    use crate::sale::ids::{ItemId, SaleId, Ticket, UserId};
    use rustix::event::{Timespec, epoll};
    use std::mem::MaybeUninit;
    use std::thread;

    fn doorbells(shards: usize) -> Arc<[Doorbell]> {
        (0..shards).map(|_| Doorbell::new().unwrap()).collect()
    }

    fn release(number: u64) -> Request {
        Request::Release { sale: SaleId(1), item: ItemId(0), user: UserId(number as i64), key: 0 }
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
            let room = LANE_BATCHES * (SHARDS - 1);
            assert_eq!((endpoint.requests.batches.len(), endpoint.replies.batches.len()), (room, room));
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

    /// A shard that was slow receives its backlog in several turns, in order. Afterwards the lane has no more memory than
    /// its three buffers need.
    #[test]
    fn a_backlog_is_received_in_several_turns_and_leaves_no_memory() {
        const MESSAGES: u64 = 100_000;
        let [mut sender, mut receiver] = connect(&doorbells(2)).try_into().unwrap_or_else(|_| panic!("two ends"));
        for number in 0..MESSAGES {
            sender.request(ShardId(1), release(number));
            sender.reply(ShardId(1), answer(number));
        }
        let mut next = [0; 2];
        while next != [MESSAGES; 2] {
            sender.dispatch();
            let before = next;
            assert!(receiver.has_messages());
            receiver.receive(|delivery| match delivery {
                Delivery::Request(_, request) => {
                    assert_eq!(request, release(next[0]), "out of order");
                    next[0] += 1;
                }
                Delivery::Reply(reply) => {
                    assert_eq!(reply, answer(next[1]), "out of order");
                    next[1] += 1;
                }
            });
            for (before, after) in before.into_iter().zip(next) {
                assert!(after - before < (RECEIVED_PER_TURN + BATCH_MESSAGES) as u64, "{} in one turn", after - before);
            }
        }
        let Lane { backlog, waiting, spares } = &sender.outlets[1].requests;
        let returned: Vec<_> = sender.requests.spares.try_iter().map(|batch| batch.messages).collect();
        let spares: Vec<_> = spares.iter().chain(&returned).map(Vec::capacity).collect();
        assert_eq!((backlog.len(), spares.len(), sender.has_unsent()), (0, LANE_BATCHES, false));
        assert!(spares.iter().chain([&waiting.capacity()]).all(|capacity| *capacity <= BATCH_MESSAGES), "{spares:?}");
    }

    /// Many shards together send more than one turn receives: none waits for ever.
    #[test]
    fn every_shard_is_received_from_in_its_turn() {
        const SHARDS: u16 = 20;
        let mut endpoints = connect(&doorbells(SHARDS.into()));
        let mut received = [0u64; SHARDS as usize];
        for _ in 0..200 {
            for endpoint in &mut endpoints[1..] {
                endpoint.dispatch();
                while !endpoint.has_unsent() {
                    (0..BATCH_MESSAGES).for_each(|_| endpoint.request(ShardId(0), release(0)));
                    endpoint.dispatch();
                }
            }
            let mut in_turn = 0;
            endpoints[0].receive(|delivery| {
                let Delivery::Request(from, _) = delivery else { panic!("{delivery:?}") };
                received[usize::from(from.0)] += 1;
                in_turn += 1;
            });
            assert!(in_turn < RECEIVED_PER_TURN + BATCH_MESSAGES, "{in_turn} in one turn");
        }
        let (least, most) = (received[1..].iter().min().unwrap(), received[1..].iter().max().unwrap());
        assert!(*least > 0 && least * 2 > *most, "{received:?}");
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
