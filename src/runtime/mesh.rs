//! The lanes between shards: the only way by which one shard sends messages to another.
//!
//! From every shard to every other there are two lanes, one for requests and one for replies. A lane carries batches:
//! the messages of one turn, or of several, in order. Flow control is by credit: each lane has two buffers, which travel
//! to the receiver full and return to the sender empty. So a lane holds at most two batches, and sending never blocks. If
//! a receiver is slow, its messages stay with the sender, and the limits on connections and on the stock bound their
//! number. No shard ever blocks on a lane, so lanes cannot deadlock.
//!
//! A sender notes each batch in the receiver's [`MailBitmap`], and keeps a list of the shards for which it has messages. So
//! the work of a turn depends on the shards that have exchanged messages, and not on the number of shards.
//!
//! A batch has at most [`BATCH_MESSAGES`] messages, and a turn receives a limited number of batches. So a backlog makes
//! neither the receiver's turns longer nor the buffers of the lanes larger.

use crate::config::settings::SHARDS_MAX;
use crate::sale::ids::ShardId;
use crate::sale::message::{Batch, Reply, Request};
use crate::system::doorbell::Doorbell;
use crate::system::mail_bitmap::{MailBitmap, SENDERS_MAX, Senders};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::collections::VecDeque;
use std::sync::Arc;

/// Messages that a batch has at most. They need 14 KiB.
const BATCH_MESSAGES: usize = 256;
/// Requests, and replies, that one turn receives before it leaves the rest to the next turn. The last batch may exceed
/// this number.
const RECEIVED_PER_TURN: usize = 1024;
const _: () = assert!(SHARDS_MAX as usize <= SENDERS_MAX);
/// Batches that a lane holds at most: the receiver reads one while the next is in transit.
const LANE_BATCHES: usize = 2;

/// The sending end of a lane.
struct LaneSender<M> {
    to: ShardId,
    /// Full batches that found no spare buffer.
    backlog: VecDeque<Vec<M>>,
    /// The messages of the batch after those.
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
    let outlet =
        LaneSender { to, backlog: VecDeque::new(), waiting: Vec::new(), batches: batches_in, spares: spares_out };
    (outlet, LaneReceiver { from, batches: batches_out, spares: spares_in })
}

impl<M> LaneSender<M> {
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
    fn dispatch(&mut self, from: ShardId, traffic: &mut Traffic) -> bool {
        let mut any = false;
        while self.unsent() > 0
            && let Ok(spare) = self.spares.try_recv()
        {
            // A buffer of the backlog takes the place of the spare one.
            let messages = self.backlog.pop_front().unwrap_or_else(|| std::mem::replace(&mut self.waiting, spare));
            traffic.batches += 1;
            traffic.messages += messages.len() as u64;
            match self.batches.try_send(Batch { from, to: self.to, messages }) {
                Err(TrySendError::Full(_)) => panic!("a spare buffer permits one batch"),
                // During a shutdown, the peer may have stopped first.
                Ok(()) | Err(TrySendError::Disconnected(_)) => any = true,
            }
        }
        traffic.waiting += self.unsent() as u64;
        any
    }
}

impl<M> LaneReceiver<M> {
    /// Passes the messages that have arrived to `deliver`, and adds their number to `received`. Begins no batch when there
    /// are [`RECEIVED_PER_TURN`]. Returns whether the lane was emptied.
    fn drain(&self, me: ShardId, received: &mut usize, mut deliver: impl FnMut(ShardId, M)) -> bool {
        for _ in 0..self.batches.len() {
            if *received >= RECEIVED_PER_TURN {
                return false;
            }
            let batch = self.batches.try_recv().expect("only this shard receives from the lane");
            assert_eq!((batch.from, batch.to), (self.from, me), "a batch arrived on the wrong lane");
            let mut messages = batch.messages;
            *received += messages.len();
            messages.drain(..).for_each(|message| deliver(batch.from, message));
            // During a shutdown, the sender may have stopped first.
            let _ = self.spares.send(messages);
        }
        true
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

/// The sending ends of the lanes to one shard.
struct Outlet {
    requests: LaneSender<Request>,
    replies: LaneSender<Reply>,
    /// The shard is in [`Endpoint::unsent`].
    is_listed: bool,
}

/// The receiving ends of the lanes from one shard.
struct Inlet {
    requests: LaneReceiver<Request>,
    replies: LaneReceiver<Reply>,
}

/// One shard's ends of all its lanes, and the doorbells of all shards.
pub struct Endpoint {
    me: ShardId,
    /// By shard, without this one.
    outlets: Vec<Outlet>,
    inlets: Vec<Inlet>,
    /// Indices of the outlets with messages to send.
    unsent: Vec<usize>,
    /// Shards whose batches have arrived and are not all received.
    arrived: Senders,
    /// Indices of the inlets from which this turn receives, in its order.
    order: Vec<usize>,
    /// Index of the inlet from which the next turn receives first.
    first: usize,
    doorbells: Arc<[Doorbell]>,
    mail: Arc<[MailBitmap]>,
    traffic: Traffic,
}

/// Creates the lanes between all shards, and returns the ends of each shard. `doorbells` has one doorbell per shard.
pub fn connect(doorbells: &Arc<[Doorbell]>) -> Vec<Endpoint> {
    let ids = || (0..doorbells.len() as u16).map(ShardId);
    let mail: Arc<[MailBitmap]> = ids().map(|_| MailBitmap::default()).collect();
    let new = |me| Endpoint {
        me,
        outlets: Vec::new(),
        inlets: Vec::new(),
        unsent: Vec::new(),
        arrived: Senders::default(),
        order: Vec::new(),
        first: 0,
        doorbells: doorbells.clone(),
        mail: mail.clone(),
        traffic: Traffic::default(),
    };
    let mut endpoints: Vec<Endpoint> = ids().map(new).collect();
    for (from, to) in ids().flat_map(|from| ids().map(move |to| (from, to))).filter(|(from, to)| from != to) {
        let (requests, replies) = (lane(from, to), lane(from, to));
        let outlet = Outlet { requests: requests.0, replies: replies.0, is_listed: false };
        endpoints[usize::from(from.0)].outlets.push(outlet);
        endpoints[usize::from(to.0)].inlets.push(Inlet { requests: requests.1, replies: replies.1 });
    }
    endpoints
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
        let place = self.place(to);
        let outlet = &mut self.outlets[place];
        if !std::mem::replace(&mut outlet.is_listed, true) {
            self.unsent.push(place);
        }
        outlet
    }

    /// Returns the index of the lanes to and from another shard. A shard has no lane to itself.
    fn place(&self, other: ShardId) -> usize {
        assert_ne!(other, self.me, "a shard applies its own messages at once");
        usize::from(other.0) - usize::from(other > self.me)
    }

    /// Sends the messages of each lane, as far as it has spare buffers, and rings the doorbell of each receiver.
    pub fn dispatch(&mut self) {
        let Endpoint { me, outlets, unsent, doorbells, mail, traffic, .. } = self;
        traffic.waiting = 0;
        unsent.retain(|place| {
            let Outlet { requests, replies, is_listed } = &mut outlets[*place];
            let to = usize::from(replies.to.0);
            if replies.dispatch(*me, traffic) | requests.dispatch(*me, traffic) {
                mail[to].note(me.0);
                doorbells[to].ring();
            }
            *is_listed = replies.unsent() + requests.unsent() > 0;
            *is_listed
        });
    }

    /// Passes messages that have arrived to `deliver`. Replies come first, because they finish what requests begin. If more
    /// have arrived than one turn receives, the next turn must not wait; it begins with the lanes of another shard.
    pub fn receive(&mut self, mut deliver: impl FnMut(Delivery)) {
        self.mail[usize::from(self.me.0)].take(&mut self.arrived);
        if self.arrived.is_empty() {
            return;
        }
        let mut order = std::mem::take(&mut self.order);
        order.extend(self.arrived.iter().map(|sender| self.place(ShardId(sender))));
        let before_first = order.partition_point(|place| *place < self.first);
        order.rotate_left(before_first);
        let (mut replies, mut requests) = (0, 0);
        self.arrived = Senders::default();
        for &place in &order {
            let lane = &self.inlets[place].replies;
            if !lane.drain(self.me, &mut replies, |_, reply| deliver(Delivery::Reply(reply))) {
                self.arrived.insert(lane.from.0);
            }
        }
        for place in order.drain(..) {
            let lane = &self.inlets[place].requests;
            if !lane.drain(self.me, &mut requests, |from, request| deliver(Delivery::Request(from, request))) {
                self.arrived.insert(lane.from.0);
            }
        }
        self.order = order;
        self.first = if self.first + 1 < self.inlets.len() { self.first + 1 } else { 0 };
    }

    /// Returns the counters of what this shard has sent.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Returns whether a message has arrived.
    pub fn has_messages(&self) -> bool {
        !self.arrived.is_empty() || !self.mail[usize::from(self.me.0)].is_empty()
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
            assert!(endpoint.inlets.iter().all(|inlet| inlet.requests.batches.len() == LANE_BATCHES));
            assert!(endpoint.inlets.iter().all(|inlet| inlet.replies.batches.len() == LANE_BATCHES));
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
        let LaneSender { backlog, waiting, spares, .. } = &sender.outlets[0].requests;
        let spares: Vec<_> = spares.try_iter().map(|spare| spare.capacity()).collect();
        assert_eq!((backlog.len(), spares.len(), sender.has_unsent()), (0, LANE_BATCHES, false));
        assert!(spares.iter().chain([&waiting.capacity()]).all(|capacity| *capacity <= BATCH_MESSAGES), "{spares:?}");
    }

    /// Many shards together send more than one turn receives: each turn begins with another of them, so none waits for
    /// ever.
    #[test]
    fn every_shard_is_received_from_in_its_turn() {
        const SHARDS: u16 = 20;
        let mut endpoints = connect(&doorbells(SHARDS.into()));
        let mut received = [0u64; SHARDS as usize];
        for _ in 0..200 {
            for endpoint in &mut endpoints[1..] {
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
