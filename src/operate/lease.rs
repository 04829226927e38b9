//! The lease: until when this process may answer as the owner of the database. Of two servers that share a database, the
//! one that sells must stop to answer before the other one takes over, and it cannot know when that happens. So it answers
//! only for a limited time after each transaction that has found it to be the owner.
//!
//! The lease makes refusals true. That nothing is sold twice rests on the transactions themselves, not on a clock.

use crate::system::clock::since_boot_us;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The end of the time for which this process is known to be the owner.
#[derive(Debug)]
pub struct Lease {
    /// In microseconds since boot, which count on while the process is stopped or the machine is suspended.
    until_us: AtomicU64,
}

/// The lease of a server that needs none.
impl Default for Lease {
    fn default() -> Self {
        Lease { until_us: AtomicU64::new(u64::MAX) }
    }
}

impl Lease {
    /// Makes this process one of two servers. Its lease is not granted yet.
    pub fn require(&self) {
        self.until_us.store(0, Ordering::Release);
    }

    /// Extends the lease to `patience` after `began_us`, the time since boot at which a transaction began that has found
    /// this process to be the owner. The other server counts its patience from a later moment: when it has seen the
    /// result. Only one thread at a time may extend the lease.
    pub fn extend(&self, began_us: u64, patience: Duration) {
        let until_us = (began_us + patience.as_micros() as u64).max(self.until_us());
        self.until_us.store(until_us, Ordering::Release);
    }

    /// Ends the lease at `until_us` since boot, if it would last longer: the other server may take over earlier than
    /// usual. The same thread extends the lease.
    pub fn shorten(&self, until_us: u64) {
        self.until_us.store(until_us.min(self.until_us()), Ordering::Release);
    }

    /// Returns the end of the lease, in microseconds since boot.
    pub fn until_us(&self) -> u64 {
        self.until_us.load(Ordering::Acquire)
    }

    /// Returns whether the lease has ended. Reads no clock if the server needs none.
    pub fn is_expired(&self) -> bool {
        self.until_us() != u64::MAX && self.is_expired_at(since_boot_us())
    }

    /// Returns whether the lease of one of two servers has ended at `now_us`, in microseconds since boot.
    pub fn is_expired_at(&self, now_us: u64) -> bool {
        now_us >= self.until_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_expires_by_itself() {
        let lease = Lease::default();
        assert!(!lease.is_expired());
        lease.require();
        assert!(lease.is_expired(), "it is not granted yet");
        let now_us = since_boot_us();
        lease.extend(now_us, Duration::from_secs(3600));
        // The answer to an earlier transaction does not shorten it.
        lease.extend(now_us - 1, Duration::ZERO);
        assert!(!lease.is_expired());
        lease.shorten(now_us + 2_000_000);
        lease.shorten(now_us + 3_000_000);
        assert!(!lease.is_expired_at(now_us + 1_999_999));
        assert!(lease.is_expired_at(now_us + 2_000_000));
        lease.require();
        lease.extend(now_us - 2_000_000, Duration::from_secs(1));
        assert!(lease.is_expired());
    }
}
