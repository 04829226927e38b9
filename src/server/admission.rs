//! Whether a shard may accept one more connection. The limits count over all shards, and no shard waits for another:
//! each publishes its number of connections, and the time since when its longest idle connection has waited.
//!
//! At the limit, the connection that has been idle longest gives its place to the newcomer:
//!
//! 1. If it is on the accepting shard, the shard closes it and accepts.
//! 2. If it is on another shard, the accepting shard accepts ahead of it, publishes its number and wakes the other shard.
//!    That shard sees in its next turn that there are too many connections, and that the longest idle one is its own, and
//!    closes it.
//! 3. If no connection is idle on any shard, the newcomer is refused.
//!
//! A connection whose client has sent something that is not read yet is not idle. If a shard finds no other, it accepts
//! ahead too, and closes a connection in its next turn, after reading. When [`AHEAD_MAX`] connections for each shard are
//! ahead, newcomers wait in the accept queue.
//!
//! The published numbers of other shards can be out of date. A shard reads them once in a millisecond, and in each turn
//! while there are nearly as many connections as may be: with many shards, each read waits for the memory of other CPUs.
//! It reads them again after [`PLACES_PER_READ`] new connections at the latest, and publishes its own after each. So for a
//! moment there can be at most `AHEAD_MAX + PLACES_PER_READ` connections for each shard above the limit, for which
//! descriptors are set aside.

use crate::operate::shard_status::ConnectionNumbers;
use crate::operate::status::Status;
use crate::sale::ids::ShardId;
use crate::server::addresses::AddressLimit;
use crate::system::doorbell::Doorbell;
use crate::system::host::CONNECTIONS_AHEAD_PER_SHARD;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Connections above the limit for each shard, which are accepted before as many idle ones are closed.
const AHEAD_MAX: usize = 16;
/// New connections after which a shard reads the numbers of the other shards again.
const PLACES_PER_READ: usize = 16;
/// Connections below the limit from which on the numbers of the other shards are read in each turn.
const NEAR_LIMIT: usize = 2048;
const _: () = assert!(AHEAD_MAX + PLACES_PER_READ <= CONNECTIONS_AHEAD_PER_SHARD as usize);

/// The place of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// There is a free place.
    Free,
    /// The longest idle connection of this shard must be closed first.
    OfOwnIdle,
    /// This shard accepts the connection, and the other shard closes its longest idle one.
    OfIdleOn(ShardId),
}

/// The limits of connections, and the numbers from which a shard decides about them.
pub struct Admission {
    shard: ShardId,
    status: Arc<Status>,
    doorbells: Arc<[Doorbell]>,
    connections_max: usize,
    addresses: Option<Arc<AddressLimit>>,
    others: OtherShards,
    /// New connections until the numbers of the other shards are read again.
    places: usize,
    /// Monotonic time in ms of the last read in a turn.
    read_ms: u64,
}

/// The numbers of the other shards, as they were read last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OtherShards {
    shards: usize,
    connections: usize,
    /// Time since when the longest idle connection of them has waited, and its shard.
    longest_idle: Option<(u64, ShardId)>,
}

impl OtherShards {
    /// Returns whether the longest idle connection of all shards is on `shard`, where one has waited since `since_ms`.
    fn longest_idle_is_on(&self, shard: ShardId, since_ms: u64) -> bool {
        self.longest_idle.is_none_or(|longest| (since_ms, shard) < longest)
    }

    /// Returns the place of a new connection on `shard`, which has `own` connections, one of which is idle since
    /// `idle_since_ms`. The limit is `max`.
    fn place(&self, shard: ShardId, own: usize, idle_since_ms: Option<u64>, max: usize) -> Option<Admitted> {
        if own + self.connections < max {
            return Some(Admitted::Free);
        }
        match (idle_since_ms, self.longest_idle) {
            (Some(since_ms), _) if self.longest_idle_is_on(shard, since_ms) => Some(Admitted::OfOwnIdle),
            (_, other) => other.map(|(_, other)| Admitted::OfIdleOn(other)),
        }
    }
}

impl Admission {
    /// Creates the admission of `shard`, one of the shards of `status`, each of which has a doorbell. All shards
    /// together may have `connections_max` connections, and as many of each address as `addresses` says.
    pub fn new(
        shard: ShardId,
        status: Arc<Status>,
        doorbells: Arc<[Doorbell]>,
        connections_max: usize,
        addresses: Option<Arc<AddressLimit>>,
    ) -> Self {
        Admission {
            shard,
            status,
            doorbells,
            connections_max,
            addresses,
            others: OtherShards::default(),
            places: 0,
            read_ms: 0,
        }
    }

    /// Returns the shard's own doorbell.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbells[usize::from(self.shard.0)]
    }

    /// Returns the shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Returns the limit of connections for each address, if there is one.
    pub fn addresses(&self) -> Option<&Arc<AddressLimit>> {
        self.addresses.as_ref()
    }

    /// Reads the numbers of the other shards, if this is due in a turn at `now_ms`. This shard has `own` connections.
    pub fn follow_others(&mut self, own: usize, now_ms: u64) {
        if now_ms != self.read_ms || self.is_near_limit(own) {
            self.read_ms = now_ms;
            self.read_others();
        }
    }

    /// Returns whether there may be too many connections in a moment.
    pub fn is_near_limit(&self, own: usize) -> bool {
        own + self.others.connections + NEAR_LIMIT >= self.connections_max
    }

    /// Reads the numbers of the other shards.
    pub fn read_others(&mut self) {
        let mut others = OtherShards::default();
        for (id, numbers) in (0..).map(ShardId).zip(&self.status.shards).filter(|(id, _)| *id != self.shard) {
            others.shards += 1;
            others.connections += numbers.connections.open.load(Ordering::Relaxed) as usize;
            let idle = numbers.connections.idle_since().map(|since_ms| (since_ms, id));
            others.longest_idle = others.longest_idle.into_iter().chain(idle).min();
        }
        (self.others, self.places) = (others, PLACES_PER_READ);
    }

    /// Returns the number of connections that this shard, which has `own` connections, must close, because there are
    /// too many, and the longest idle one of all shards is its own, which has waited since `idle_since_ms`.
    pub fn excess(&self, own: usize, idle_since_ms: Option<u64>) -> usize {
        match idle_since_ms {
            Some(since_ms) if self.others.longest_idle_is_on(self.shard, since_ms) => {
                (own + self.others.connections).saturating_sub(self.connections_max)
            }
            _ => 0,
        }
    }

    /// Returns the place of a new connection on this shard, which has `own` connections, one of which has waited for
    /// its client since `idle_since_ms`. Returns `None` if there is no place.
    pub fn place(&mut self, own: usize, idle_since_ms: Option<u64>) -> Option<Admitted> {
        if self.places == 0 {
            self.read_others();
        }
        self.places -= 1;
        self.others.place(self.shard, own, idle_since_ms, self.connections_max)
    }

    /// Returns whether newcomers must wait until connections of this shard, which has `own` connections, or of another
    /// one are closed. `is_idle` says whether a connection of this shard is idle.
    pub fn must_wait(&self, own: usize, is_idle: bool) -> bool {
        let ahead_max = AHEAD_MAX * (self.others.shards + 1);
        let can_close = is_idle || self.others.longest_idle.is_some();
        can_close && own + self.others.connections >= self.connections_max + ahead_max
    }

    /// Wakes another shard.
    pub fn wake(&self, shard: ShardId) {
        self.doorbells[usize::from(shard.0)].ring();
    }

    /// Returns whether one more client may subscribe to `/events`, if this shard has `own` subscribers. At most half of
    /// all connections may, so that the other half is left to buyers.
    pub fn has_place_to_subscribe(&self, own: usize) -> bool {
        let others = (0..).zip(&self.status.shards).filter(|(id, _)| *id != self.shard.0);
        let others = others.map(|(_, numbers)| numbers.connections.subscribers.load(Ordering::Relaxed) as usize);
        own + others.sum::<usize>() < self.connections_max / 2
    }

    /// Publishes the number of this shard's subscribers before the end of the turn.
    pub fn publish_subscribers(&self, subscribers: usize) {
        self.numbers().subscribers.store(subscribers as u64, Ordering::Relaxed);
    }

    /// Returns the published numbers of this shard's connections.
    pub fn numbers(&self) -> &ConnectionNumbers {
        &self.status.shard(self.shard).connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::status::Phase;

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    #[test]
    fn the_longest_idle_connection_gives_its_place() {
        let others = |connections, longest_idle| OtherShards { shards: 1, connections, longest_idle };
        for (own, idle, (connections, longest_idle), place) in [
            (0, None, (9, None), Some(Admitted::Free)),
            (9, Some(1), (0, Some((5, B))), Some(Admitted::Free)),
            (10, Some(1), (0, None), Some(Admitted::OfOwnIdle)),
            (5, Some(4), (5, Some((5, B))), Some(Admitted::OfOwnIdle)),
            (5, Some(5), (5, Some((5, B))), Some(Admitted::OfOwnIdle)),
            (5, Some(6), (5, Some((5, B))), Some(Admitted::OfIdleOn(B))),
            (0, None, (10, Some((5, B))), Some(Admitted::OfIdleOn(B))),
            (10, None, (0, None), None),
            (0, None, (10, None), None),
        ] {
            let others = others(connections, longest_idle);
            assert_eq!(others.place(A, own, idle, 10), place, "{own} {idle:?} {others:?}");
        }
        assert!(others(0, Some((5, A))).longest_idle_is_on(ShardId(0), 5));
        assert!(!others(0, Some((5, A))).longest_idle_is_on(B, 5), "of two, one closes a connection");
    }

    #[test]
    fn limits_count_over_all_shards() {
        let status = Arc::new(Status::new(Phase::Serving, 3, 0, false));
        let doorbells: Arc<[Doorbell]> = (0..3).map(|_| Doorbell::new().unwrap()).collect();
        let of = |shard| Admission::new(ShardId(shard), status.clone(), doorbells.clone(), 10, None);
        let (mut first, mut second, third) = (of(0), of(1), of(2));
        first.numbers().publish(3, 1, None);
        third.numbers().publish(5, 3, Some(7));
        assert_eq!(second.place(1, None), Some(Admitted::Free));
        assert_eq!(second.place(2, None), Some(Admitted::OfIdleOn(ShardId(2))));
        second.numbers().publish(3, 0, None);
        first.read_others();
        assert_eq!((first.excess(3, None), first.excess(3, Some(8)), first.excess(3, Some(6))), (0, 0, 1));
        let ahead = 3 * AHEAD_MAX;
        second.read_others();
        assert!(second.must_wait(2 + ahead, false) && !second.must_wait(1 + ahead, true));
        assert!(second.has_place_to_subscribe(0));
        assert!(!second.has_place_to_subscribe(1));
        // The numbers of others are read again after some places.
        third.numbers().publish(0, 0, None);
        assert!(second.must_wait(2 + ahead, false));
        let read_again = (1..).find(|_| second.place(2, None) == Some(Admitted::Free)).unwrap();
        assert!(read_again <= PLACES_PER_READ + 1, "{read_again}");
        assert!(!second.must_wait(100, false), "no connection can be closed: newcomers are refused");
    }

    /// Far from the limit, the numbers of others are read once in a millisecond, and near it in each turn.
    #[test]
    fn others_are_followed_closely_near_the_limit() {
        let status = Arc::new(Status::new(Phase::Serving, 2, 0, false));
        let doorbells: Arc<[Doorbell]> = (0..2).map(|_| Doorbell::new().unwrap()).collect();
        let of = |shard| Admission::new(ShardId(shard), status.clone(), doorbells.clone(), 2 * NEAR_LIMIT, None);
        let (mut first, second) = (of(0), of(1));
        let mut seen = |now_ms, connections| {
            second.numbers().publish(connections, 0, None);
            first.follow_others(1, now_ms);
            first.others.connections
        };
        assert_eq!([seen(5, 7), seen(5, 8), seen(6, 9), seen(6, 10)], [7, 7, 9, 9]);
        assert_eq!([seen(7, NEAR_LIMIT), seen(7, NEAR_LIMIT + 1), seen(7, 3)], [NEAR_LIMIT, NEAR_LIMIT + 1, 3]);
        assert_eq!([seen(7, 4), seen(8, 5)], [3, 5]);
    }
}
