//! Does so many operations of one kind and nothing else, for callgrind to count. What comes before them is the same
//! however many there are, so the difference between two runs is theirs alone.
//!
//! `count refusal 10000`

use bench::path::Crowd;
use clap::{Parser, ValueEnum};

/// Items of the sale. Each can be checked out once and bought once.
const ITEMS: u32 = 32 * 1024;

#[derive(Parser)]
struct Settings {
    /// Which kind
    kind: Kind,
    /// How many
    operations: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Checkouts of items that are sold
    Refusal,
    /// Checkouts of items that are to be had
    Checkout,
    /// Purchases of items that are held
    Purchase,
}

fn main() {
    let Settings { kind, operations } = Settings::parse();
    match kind {
        // Enough to have met everything that happens for the first time, the flush of attempts too.
        Kind::Refusal => {
            let mut crowd = Crowd::too_late(1024);
            crowd.be_refused(4096);
            crowd.be_refused(operations);
        }
        Kind::Checkout => Crowd::new(ITEMS).check_out(operations),
        Kind::Purchase => {
            let mut crowd = Crowd::new(ITEMS);
            crowd.check_out(ITEMS as usize);
            crowd.buy(operations);
        }
    }
}
