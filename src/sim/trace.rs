//! The trace of a run: the hash of its lines, which can also be printed.

use std::fmt::{self, Write};

/// Offset basis and prime of FNV-1a with 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x100_0000_01b3;

/// The trace of a run.
pub struct Trace {
    hash: u64,
    prints_trace: bool,
    line: String,
}

impl Trace {
    /// Creates an empty trace. If `prints_trace`, each line is printed.
    pub fn new(prints_trace: bool) -> Trace {
        Trace { hash: OFFSET, prints_trace, line: String::new() }
    }

    /// Adds a line to the hash, and prints it if the trace is loud.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.line.clear();
        self.line.write_fmt(what).expect("writing to a string does not fail");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.prints_trace {
            println!("{}", self.line);
        }
    }

    /// Returns the hash of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
