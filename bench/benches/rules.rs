//! The state machine alone, on one core: commands per second, including the generation of codes, by number of items and
//! by number of users. The rate should not depend on either number.

mod measured;

use bench::turns::{COMMANDS, Turns};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly, cpu_time};
use stampede::sale::code::Code;
use stampede::sale::command::{Command, Outcome};
use stampede::sale::effects::Effects;
use stampede::sale::ids::{ItemId, Ticket, UserId};
use std::hint::black_box;
use std::time::Duration;
use uuid::Uuid;

const ITEMS: [u32; 3] = [10_000, 1_000_000, 10_000_000];
const USERS: [u32; 3] = [1_000, 100_000, 10_000_000];
const ITEMS_USUAL: u32 = 1_000_000;
const USERS_USUAL: u32 = 100_000;
/// Number of checkouts that are prepared for the measured purchases.
const AHEAD: usize = 1 << 20;

/// A sale with its commands. Items and users are requested in an order that is not their order in memory.
struct SaleUnderLoad {
    turns: Turns,
    items: u32,
    users: u32,
    requested: u32,
    codes: Vec<Code>,
    /// Number of codes that have been used.
    bought: usize,
}

impl SaleUnderLoad {
    fn new(items: u32, users: u32) -> SaleUnderLoad {
        SaleUnderLoad { turns: Turns::new(1, items), items, users, requested: 0, codes: Vec::new(), bought: 0 }
    }

    fn sold_out(items: u32, users: u32) -> SaleUnderLoad {
        let mut sale = SaleUnderLoad::new(items, users);
        while sale.free() > 0 {
            sale.hold(AHEAD);
            sale.buy(sale.held());
        }
        assert_eq!(sale.turns.sold(), items);
        sale
    }

    fn free(&self) -> usize {
        self.items.saturating_sub(self.requested) as usize
    }

    fn held(&self) -> usize {
        self.codes.len() - self.bought
    }

    /// Reserves `wanted` items, or all that are available if these are fewer, and drops the used codes.
    fn hold(&mut self, wanted: usize) {
        self.codes.drain(..std::mem::take(&mut self.bought));
        self.check_out(wanted.min(self.free()));
    }

    fn next_checkout(&mut self) -> Command {
        let item = ItemId((u64::from(self.requested) * 7919 % u64::from(self.items)) as u32);
        // Fibonacci hashing spreads the users.
        let user = u64::from(self.requested).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.requested = self.requested.wrapping_add(1);
        let user = UserId(((user * u64::from(self.users)) >> 32) as i64);
        Command::Checkout { sale: None, item, user, key: Uuid::nil() }
    }

    fn rounds(&mut self, mut commands: usize, mut next: impl FnMut(&mut SaleUnderLoad) -> Command) {
        while commands > 0 {
            let round = commands.min(COMMANDS);
            commands -= round;
            for place in 0..round {
                let command = next(self);
                self.turns.command(0, Ticket(place as u64), command);
            }
            // The first turn flushes. The second sends the responses that waited for the flush.
            let SaleUnderLoad { turns, codes, .. } = self;
            turns.turn(|_, effects| take(effects, codes));
            turns.turn(|_, effects| take(effects, codes));
        }
    }

    fn check_out(&mut self, commands: usize) {
        self.rounds(commands, SaleUnderLoad::next_checkout);
    }

    fn buy(&mut self, commands: usize) {
        // Uses the codes at the front. They are removed afterwards, in one move.
        let codes = std::mem::take(&mut self.codes);
        let mut wanted = codes[..commands].iter();
        self.rounds(commands, |_| Command::Purchase {
            code: *wanted.next().expect("there is a code for each command"),
            key: Uuid::nil(),
        });
        self.codes = codes;
        self.codes.drain(..commands);
    }

    /// One third each: checkouts, purchases of their items, refused checkouts of the sold items.
    fn mix(&mut self, commands: usize) {
        let third = (commands / 3).max(1);
        self.check_out(third);
        self.buy(third);
        self.requested -= third as u32;
        self.check_out(third);
    }
}

/// Drains the effects, in place of the server's turn, and collects the codes.
fn take(effects: &mut Effects, codes: &mut Vec<Code>) {
    effects.records.iter().chain(&effects.attempts).for_each(|record| {
        black_box(record);
    });
    effects.records.clear();
    effects.attempts.clear();
    for (_, outcome) in &effects.answers {
        if let Outcome::Reserved { code, .. } = black_box(outcome) {
            codes.push(*code);
        }
    }
    effects.answers.clear();
}

/// Replaces the sale by a new one if fewer than `commands` items are available, or if the sale is smaller than that and
/// an item has been requested.
fn renew(sale: &mut SaleUnderLoad, commands: usize) {
    if sale.free() < commands.min(sale.items as usize) {
        *sale = SaleUnderLoad::new(sale.items, sale.users);
    }
}

fn is_on_offer(sale: &mut SaleUnderLoad) -> usize {
    renew(sale, 1);
    sale.codes.clear();
    sale.free()
}

fn is_held(sale: &mut SaleUnderLoad) -> usize {
    if sale.held() == 0 {
        renew(sale, AHEAD);
        sale.hold(AHEAD);
    }
    sale.held()
}

fn is_mixed(sale: &mut SaleUnderLoad) -> usize {
    renew(sale, COMMANDS);
    3 * COMMANDS
}

fn is_sold(_: &mut SaleUnderLoad) -> usize {
    usize::MAX
}

/// A kind of load: its name, the function that creates its sale, the function that prepares the sale outside the
/// measured time and returns the number of commands that may follow, and the function that runs the commands.
type Load =
    (&'static str, fn(u32, u32) -> SaleUnderLoad, fn(&mut SaleUnderLoad) -> usize, fn(&mut SaleUnderLoad, usize));
const LOADS: [Load; 4] = [
    ("checkout", SaleUnderLoad::new, is_on_offer, SaleUnderLoad::check_out),
    ("purchase", SaleUnderLoad::new, is_held, SaleUnderLoad::buy),
    ("mixed", SaleUnderLoad::new, is_mixed, SaleUnderLoad::mix),
    ("refusal", SaleUnderLoad::sold_out, is_sold, SaleUnderLoad::check_out),
];

fn rules(criterion: &mut Criterion<CpuTime>) {
    for (name, begin, ready, run) in LOADS {
        let by_items = ITEMS.map(|items| ("items", items, items, USERS_USUAL));
        let by_users = USERS.map(|users| ("users", users, ITEMS_USUAL, users));
        for (what, size, items, users) in by_items.into_iter().chain(by_users) {
            let mut group = criterion.benchmark_group(format!("{name} by {what}"));
            group.throughput(Throughput::Elements(1));
            // Created with the first sample, so that a benchmark that the filter excludes costs nothing.
            let mut sale = None;
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                let sale = sale.get_or_insert_with(|| begin(items, users));
                // Before the iterations, because Criterion plans with the time that they take.
                ready(sale);
                bencher.iter_custom(|mut left| {
                    let mut time = Duration::ZERO;
                    while left > 0 {
                        let commands = (ready(sale) as u64).min(left);
                        let start = cpu_time();
                        run(sale, commands as usize);
                        time += cpu_time() - start;
                        left -= commands;
                    }
                    time
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = briefly();
    targets = rules
}
criterion_main!(benches);
