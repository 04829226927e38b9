//! Performs a number of operations of one kind, so that callgrind can count their instructions. The preparation does
//! not depend on the number, so the difference between two runs is the cost of the additional operations.
//!
//! `count refusal 10000`

use bench::path::Crowd;
use bench::turns::{COMMANDS, Turns};
use clap::{Parser, ValueEnum};
use stampede::sale::command::Command;
use stampede::sale::ids::{ItemId, ShardId, Ticket, UserId};
use stampede::sale::partition::Partition;
use uuid::Uuid;

/// Number of items in the sale. Each can be reserved once and purchased once.
const ITEMS: u32 = 32 * 1024;

#[derive(Parser)]
struct CountArguments {
    /// Kind of operation
    kind: OperationKind,
    /// Number of operations
    operations: usize,
    /// Number of shards, for `crossing`
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..))]
    shards: u16,
    /// Other shards that each shard asks in a turn, for `crossing`
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    asked: u16,
}

#[derive(Clone, Copy, ValueEnum)]
enum OperationKind {
    /// Checkouts of sold items
    Refusal,
    /// Checkouts of available items
    Checkout,
    /// Purchases of held items
    Purchase,
    /// Checkouts of items that other shards own; the rules and the lanes alone
    Crossing,
}

fn main() {
    let CountArguments { kind, operations, shards, asked } = CountArguments::parse();
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
        OperationKind::Crossing => cross(operations, shards, asked.min(shards - 1).into()),
    }
}

/// Each checkout takes two messages to the item's owner and two back, whatever the number of shards: its user belongs to
/// the shard of the connection.
fn cross(operations: usize, shards: u16, asked: usize) {
    let partition = Partition::new(shards);
    let users: Vec<UserId> = (0..shards)
        .map(|shard| (0..).map(UserId).find(|user| partition.owner_of_user(*user) == ShardId(shard)).expect("one is"))
        .collect();
    let shards = usize::from(shards);
    let mut turns = Turns::new(shards as u16, ITEMS);
    for round in (0..operations).collect::<Vec<_>>().chunks(COMMANDS * shards) {
        for number in round {
            let item = ItemId(*number as u32);
            let owner = usize::from(partition.owner_of_item(item).0);
            let origin = (owner + 1 + number / shards % asked) % shards;
            let checkout = Command::Checkout { sale: None, item, user: users[origin], key: Uuid::nil() };
            turns.command(origin, Ticket((number / shards % COMMANDS) as u64), checkout);
        }
        turns.settle(|_, effects| {
            effects.records.clear();
            effects.answers.clear();
        });
    }
}
