//! Connections of each client address, over all shards: `--max-connections-per-address`.
//!
//! Each shard publishes its counts in a table of its own, which it alone writes. A reader adds the counts of all
//! tables. A table has a fixed size, so that it can be read while it is written: an address has a bucket, which is one
//! cache line, and takes any free word of it. If a bucket is full, its further addresses are not counted. This is rare,
//! because the tables together have several words for each connection, and no client can choose its bucket.

use crate::sale::ids::ShardId;
use rustix::fd::AsFd;
use rustix::net::getpeername;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a bucket: one cache line.
const BUCKET_WORDS: usize = 8;
/// Bits of a count. The other bits of a word are those of the address.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// A hash of a client address. Its upper bits are the tag in a word, its lower bits select the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressHash(u64);

/// The limit, and the counts of all shards.
#[derive(Debug)]
pub struct AddressLimit {
    max: u64,
    hasher: RandomState,
    /// By shard.
    tables: Box<[AddressTable]>,
}

/// The counts of one shard.
#[derive(Debug)]
struct AddressTable(Box<[AddressBucket]>);

#[derive(Debug, Default)]
#[repr(align(64))]
struct AddressBucket([AtomicU64; BUCKET_WORDS]);

impl AddressLimit {
    /// Creates the tables of `shards` shards for `connections_max` connections in all, of which each address may have
    /// `max`. Returns `None` if `max` is 0, which means that there is no limit.
    pub fn new(max: u32, shards: u16, connections_max: u32) -> Option<Self> {
        // All connections can be on one shard, each of another address: four of them for the eight words of a bucket.
        let buckets = (connections_max as usize / (BUCKET_WORDS / 2)).next_power_of_two();
        let table = |_| AddressTable((0..buckets).map(|_| AddressBucket::default()).collect());
        (max > 0).then(|| AddressLimit {
            max: max.into(),
            hasher: RandomState::new(),
            tables: (0..shards).map(table).collect(),
        })
    }

    /// Returns the hash of the address at the other end of a socket, or `None` if it is not an internet address.
    pub fn of_client(&self, socket: impl AsFd) -> Option<AddressHash> {
        let address = SocketAddr::try_from(getpeername(socket).ok()??).ok()?;
        Some(self.hash(address.ip()))
    }

    /// Returns the hash of an address. IPv6 addresses with the same first 64 bits count as one: a client has so many.
    fn hash(&self, address: IpAddr) -> AddressHash {
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            address => address,
        };
        // A word without a tag is free.
        AddressHash(self.hasher.hash_one(address) | 1 << 63)
    }

    /// Returns whether the address may have one more connection.
    pub fn has_place(&self, address: AddressHash) -> bool {
        let counts = self.tables.iter().filter_map(|table| table.word(address));
        counts.map(|word| word.load(Ordering::Relaxed) & COUNT_MASK).sum::<u64>() < self.max
    }

    /// Counts a connection of `shard`, and returns whether there was a word for it. Only the shard may call it.
    pub fn add(&self, shard: ShardId, address: AddressHash) -> bool {
        let table = &self.tables[usize::from(shard.0)];
        let free = || table.bucket(address).iter().find(|word| word.load(Ordering::Relaxed) == 0);
        let word = table.word(address).or_else(free);
        if let Some(word) = word {
            let count = word.load(Ordering::Relaxed) & COUNT_MASK;
            word.store(address.tag() | (count + 1), Ordering::Relaxed);
        }
        word.is_some()
    }

    /// Removes a connection of `shard` that was counted. Only the shard may call it.
    pub fn remove(&self, shard: ShardId, address: AddressHash) {
        if let Some(word) = self.tables[usize::from(shard.0)].word(address) {
            let count = word.load(Ordering::Relaxed) & COUNT_MASK;
            word.store(if count > 1 { address.tag() | (count - 1) } else { 0 }, Ordering::Relaxed);
        }
    }
}

impl AddressHash {
    fn tag(self) -> u64 {
        self.0 & !COUNT_MASK
    }
}

impl AddressTable {
    fn bucket(&self, address: AddressHash) -> &[AtomicU64; BUCKET_WORDS] {
        &self.0[address.0 as usize & (self.0.len() - 1)].0
    }

    /// Returns the word of an address, if it is counted.
    fn word(&self, address: AddressHash) -> Option<&AtomicU64> {
        self.bucket(address).iter().find(|word| word.load(Ordering::Relaxed) & !COUNT_MASK == address.tag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max: u32) -> AddressLimit {
        AddressLimit::new(max, 2, 100).unwrap()
    }

    #[test]
    fn connections_of_an_address_are_counted_over_all_shards() {
        let limit = limit(3);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| limit.hash(address.parse().unwrap()));
        let (first, second) = (ShardId(0), ShardId(1));
        limit.add(first, one);
        limit.add(second, one);
        assert!(limit.has_place(one));
        limit.add(second, one);
        assert!(!limit.has_place(one) && limit.has_place(other));
        limit.remove(first, one);
        assert!(limit.has_place(one));
        (0..2).for_each(|_| limit.remove(second, one));
        let words = limit.tables.iter().flat_map(|table| table.0.iter().flat_map(|bucket| &bucket.0));
        assert!(words.into_iter().all(|word| word.load(Ordering::Relaxed) == 0), "nothing is left");
        assert!(AddressLimit::new(0, 2, 100).is_none());
    }

    #[test]
    fn a_network_of_ipv6_and_both_forms_of_ipv4_count_as_one() {
        let limit = limit(1);
        let hash = |address: &str| limit.hash(address.parse().unwrap());
        assert_eq!(hash("2001:db8::1"), hash("2001:db8::ffff:1:2:3"));
        assert_ne!(hash("2001:db8::1"), hash("2001:db8:0:1::1"));
        assert_eq!(hash("::ffff:192.0.2.1"), hash("192.0.2.1"));
    }

    /// More addresses than a bucket has words: those that have one are counted exactly, and none is refused too early.
    #[test]
    fn a_full_bucket_refuses_nobody_too_early() {
        let limit = AddressLimit::new(2, 1, 4).unwrap();
        let hashes: Vec<_> = (0..20u32).map(|number| limit.hash(IpAddr::from(number.to_be_bytes()))).collect();
        let counted: Vec<_> = hashes.iter().filter(|hash| limit.add(ShardId(0), **hash)).collect();
        assert_eq!(counted.len(), BUCKET_WORDS);
        assert!(hashes.iter().all(|hash| limit.has_place(*hash)));
        assert!(counted.iter().all(|hash| limit.add(ShardId(0), **hash) && !limit.has_place(**hash)));
        (0..2).for_each(|_| counted.iter().for_each(|hash| limit.remove(ShardId(0), **hash)));
        assert!(limit.add(ShardId(0), hashes[19]), "there are free words");
    }
}
