//! Until when this process may answer as the owner of the database. Of two servers that share a database, the one that
//! sells must stop to answer before the other one takes over, and it cannot know when that happens: it answers only for a
//! limited time after each transaction that has confirmed it as the owner.
//!
//! This makes refusals and reads true. That nothing is sold twice rests on the transactions themselves, not on this clock.

use crate::system::clock::since_boot_us;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The end of the time for which this process is confirmed as the owner.
#[derive(Debug)]
pub struct Confirmation {
    /// In microseconds since boot, which count on while the process is stopped or the machine is suspended.
    until_us: AtomicU64,
}

/// The confirmation of a server that needs none.
impl Default for Confirmation {
    fn default() -> Self {
        Confirmation { until_us: AtomicU64::new(u64::MAX) }
    }
}

impl Confirmation {
    /// Makes this process one of two servers. It is not confirmed yet.
    pub fn require(&self) {
        self.until_us.store(0, Ordering::Release);
    }

    /// Extends the time to `patience` after `began_us`, the time since boot at which a transaction began that has
    /// confirmed this process. The other server counts its patience from a later moment: when it has seen the result.
    pub fn extend(&self, began_us: u64, patience: Duration) {
        self.until_us.fetch_max(began_us + patience.as_micros() as u64, Ordering::Release);
    }

    /// Returns the end of the time, in microseconds since boot.
    pub fn until_us(&self) -> u64 {
        self.until_us.load(Ordering::Acquire)
    }

    /// Returns whether the time is over. Reads no clock if the server needs no confirmation.
    pub fn is_over(&self) -> bool {
        let until_us = self.until_us();
        until_us != u64::MAX && since_boot_us() >= until_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_ends_by_itself() {
        let confirmation = Confirmation::default();
        assert!(!confirmation.is_over());
        confirmation.require();
        assert!(confirmation.is_over(), "nothing has confirmed it yet");
        let now_us = since_boot_us();
        confirmation.extend(now_us, Duration::from_secs(3600));
        // The result of an earlier transaction may be seen later.
        confirmation.extend(now_us - 1, Duration::ZERO);
        assert!(!confirmation.is_over());
        let past = Confirmation::default();
        past.require();
        past.extend(now_us - 2_000_000, Duration::from_secs(1));
        assert!(past.is_over());
    }
}
