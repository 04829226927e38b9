//! Performs a number of operations of one kind, so that callgrind can count their instructions. The preparation does
//! not depend on the number, so the difference between two runs is the cost of the additional operations.
//!
//! `count refusal 10000`

use bench::path::Crowd;
use clap::{Parser, ValueEnum};

/// Number of items in the sale. Each can be reserved once and purchased once.
const ITEMS: u32 = 32 * 1024;

#[derive(Parser)]
struct CountArguments {
    /// Kind of operation
    kind: OperationKind,
    /// Number of operations
    operations: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum OperationKind {
    /// Checkouts of sold items
    Refusal,
    /// Checkouts of available items
    Checkout,
    /// Purchases of held items
    Purchase,
}

fn main() {
    let CountArguments { kind, operations } = CountArguments::parse();
    match kind {
        // The warm-up includes everything that happens for the first time, such as the flush of attempts.
        OperationKind::Refusal => {
            let mut crowd = Crowd::sold_out(1024);
            crowd.be_refused(4096);
            crowd.be_refused(operations);
        }
        OperationKind::Checkout => Crowd::new(ITEMS).check_out(operations),
        OperationKind::Purchase => {
            let mut crowd = Crowd::new(ITEMS);
            crowd.check_out(ITEMS as usize);
            crowd.buy(operations);
        }
    }
}
