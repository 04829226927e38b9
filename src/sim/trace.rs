//! What happened, as a hash, and aloud if somebody listens.

use std::fmt::{self, Write};

/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x100_0000_01b3;

/// A trace.
pub struct Trace {
    hash: u64,
    is_loud: bool,
    line: String,
}

impl Trace {
    pub fn new(is_loud: bool) -> Trace {
        Trace { hash: OFFSET, is_loud, line: String::new() }
    }

    /// Adds a line.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.line.clear();
        self.line.write_fmt(what).expect("a string takes everything");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.is_loud {
            println!("{}", self.line);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}
