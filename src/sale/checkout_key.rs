//! The idempotency keys of checkouts, as the rules keep them.
//!
//! A client's key becomes a fingerprint of 128 bits, which the record has. The memory of a shard has its last 64 bits, of
//! which 62 come from a hash. The first two of these are the UUID's variant: 10, or 11 if the checkout asks for any item.
//! So the key of a slot or a record tells the two kinds of checkouts apart, and differs from 0, "no key".

use uuid::Uuid;

/// The bit that marks the fingerprint of a checkout of any item.
const ANY_BIT: u64 = 1 << 62;

/// Returns the last 64 bits of a fingerprint; 0 if it is nil.
///
/// 62 bits are enough: the key is compared only with those of the same user, and those of a purchase only with that of
/// the same code. So another client cannot cause a collision. Two keys of one client collide by chance once in 2^62
/// repetitions, and a client that searches for a collision gets an answer that belongs to itself.
pub fn short(key: Uuid) -> u64 {
    key.as_u128() as u64
}

/// Marks the fingerprint of a checkout of any item. A nil one stays nil.
pub fn mark_any(key: Uuid) -> Uuid {
    if key.is_nil() { key } else { Uuid::from_u128(key.as_u128() | u128::from(ANY_BIT)) }
}

/// Returns whether a short fingerprint is one of a checkout of any item.
pub fn is_of_any(short: u64) -> bool {
    short & ANY_BIT != 0
}
