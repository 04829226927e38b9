//! The state machine alone, on one core: commands a second, codes made, by items and by users. Flat is the goal.

mod measured;

use bench::turns::{COMMANDS, Turns};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly, cpu_time};
use stampede::code::Code;
use stampede::command::{Command, Outcome};
use stampede::shard::Effects;
use stampede::types::{ItemId, Ticket, UserId};
use std::hint::black_box;
use std::time::Duration;
use uuid::Uuid;

const ITEMS: [u32; 3] = [10_000, 1_000_000, 10_000_000];
const USERS: [u32; 3] = [1_000, 100_000, 10_000_000];
const ITEMS_USUAL: u32 = 1_000_000;
const USERS_USUAL: u32 = 100_000;
/// Checkouts made beforehand, to be bought in the time measured.
const AHEAD: usize = 1 << 20;

/// A sale with its crowd. Items and users come in an order that is not that of memory.
struct Sale {
    turns: Turns,
    items: u32,
    users: u32,
    asked: u32,
    codes: Vec<Code>,
    /// Of the codes, how many have been used.
    bought: usize,
}

impl Sale {
    fn new(items: u32, users: u32) -> Sale {
        Sale { turns: Turns::new(1, items), items, users, asked: 0, codes: Vec::new(), bought: 0 }
    }

    fn sold_out(items: u32, users: u32) -> Sale {
        let mut sale = Sale::new(items, users);
        while sale.free() > 0 {
            sale.hold(AHEAD);
            sale.buy(sale.held());
        }
        assert_eq!(sale.turns.sold(), items);
        sale
    }

    fn free(&self) -> usize {
        self.items.saturating_sub(self.asked) as usize
    }

    fn held(&self) -> usize {
        self.codes.len() - self.bought
    }

    /// Checks out as much as is wanted and can be had, and forgets the codes that have been used.
    fn hold(&mut self, wanted: usize) {
        self.codes.drain(..std::mem::take(&mut self.bought));
        self.check_out(wanted.min(self.free()));
    }

    fn next_checkout(&mut self) -> Command {
        let item = ItemId((u64::from(self.asked) * 7919 % u64::from(self.items)) as u32);
        // Fibonacci hashing: any user may come next.
        let user = u64::from(self.asked).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.asked = self.asked.wrapping_add(1);
        Command::Checkout { item, user: UserId(((user * u64::from(self.users)) >> 32) as i64) }
    }

    fn rounds(&mut self, mut commands: usize, mut next: impl FnMut(&mut Sale) -> Command) {
        while commands > 0 {
            let round = commands.min(COMMANDS);
            commands -= round;
            for place in 0..round {
                let command = next(self);
                self.turns.command(0, Ticket(place as u64), command);
            }
            // One turn to log, one to answer what waited for that.
            let Sale { turns, codes, .. } = self;
            turns.turn(|_, effects| take(effects, codes));
            turns.turn(|_, effects| take(effects, codes));
        }
    }

    fn check_out(&mut self, commands: usize) {
        self.rounds(commands, Sale::next_checkout);
    }

    fn buy(&mut self, commands: usize) {
        // From the front, but without moving the rest.
        let codes = std::mem::take(&mut self.codes);
        let mut wanted = codes[..commands].iter();
        self.rounds(commands, |_| Command::Purchase {
            code: *wanted.next().expect("as many as were asked for"),
            key: Uuid::nil(),
        });
        self.codes = codes;
        self.codes.drain(..commands);
    }

    /// A third each: checkouts, purchases of them, refusals of what was bought.
    fn mix(&mut self, commands: usize) {
        let third = (commands / 3).max(1);
        self.check_out(third);
        self.buy(third);
        self.asked -= third as u32;
        self.check_out(third);
    }
}

/// What the pump would log, and whom it would answer.
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

/// A new sale instead of one with less than `commands` items to be had, unless it is as fresh as can be.
fn renew(sale: &mut Sale, commands: usize) {
    if sale.free() < commands.min(sale.items as usize) {
        *sale = Sale::new(sale.items, sale.users);
    }
}

fn is_on_offer(sale: &mut Sale) -> usize {
    renew(sale, 1);
    sale.codes.clear();
    sale.free()
}

fn is_held(sale: &mut Sale) -> usize {
    if sale.held() == 0 {
        renew(sale, AHEAD);
        sale.hold(AHEAD);
    }
    sale.held()
}

fn is_mixed(sale: &mut Sale) -> usize {
    renew(sale, COMMANDS);
    3 * COMMANDS
}

fn is_sold(_: &mut Sale) -> usize {
    usize::MAX
}

/// A kind of load: how its sale begins; what makes it ready for so many commands, which takes no part in the time; the
/// commands.
type Load = (&'static str, fn(u32, u32) -> Sale, fn(&mut Sale) -> usize, fn(&mut Sale, usize));
const LOADS: [Load; 4] = [
    ("checkout", Sale::new, is_on_offer, Sale::check_out),
    ("purchase", Sale::new, is_held, Sale::buy),
    ("mixed", Sale::new, is_mixed, Sale::mix),
    ("refusal", Sale::sold_out, is_sold, Sale::check_out),
];

fn rules(criterion: &mut Criterion<CpuTime>) {
    for (name, begin, ready, run) in LOADS {
        let by_items = ITEMS.map(|items| ("items", items, items, USERS_USUAL));
        let by_users = USERS.map(|users| ("users", users, ITEMS_USUAL, users));
        for (what, size, items, users) in by_items.into_iter().chain(by_users) {
            let mut group = criterion.benchmark_group(format!("{name} by {what}"));
            group.throughput(Throughput::Elements(1));
            // Made for the first sample, so that a filter spares what it leaves out.
            let mut sale = None;
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                let sale = sale.get_or_insert_with(|| begin(items, users));
                // Criterion plans by the time of all that follows.
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
