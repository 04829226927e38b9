//! Times that are so small that two of them fit into a slot of the stock beside its flags.

/// Milliseconds in 48 bits, which last for 8,900 years.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub struct Milliseconds {
    low: u32,
    high: u16,
}

impl Milliseconds {
    /// No time.
    pub const ZERO: Milliseconds = Milliseconds { low: 0, high: 0 };
}

impl From<u64> for Milliseconds {
    fn from(ms: u64) -> Self {
        debug_assert!(ms < 1 << 48, "{ms} ms do not fit into 48 bits");
        Milliseconds { low: ms as u32, high: (ms >> 32) as u16 }
    }
}

impl From<Milliseconds> for u64 {
    fn from(Milliseconds { low, high }: Milliseconds) -> u64 {
        u64::from(high) << 32 | u64::from(low)
    }
}
