//! Messages between shards, on one thread, so that the figures contain the work but no wake-ups: messages through a
//! lane, and whole checkouts whose item and user have different owners.

mod measured;

use bench::turns::{COMMANDS, Turns};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly, cpu_time};
use stampede::runtime::mesh::{self, Endpoint};
use stampede::sale::command::Command;
use stampede::sale::ids::{ItemId, SaleId, ShardId, Ticket, UserId};
use stampede::sale::message::Request;
use stampede::system::doorbell::Doorbell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const ITEMS: u32 = 1_000_000;

fn lanes(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("lane");
    for batch in [1, 64, 1024] {
        let doorbells: Arc<[Doorbell]> = (0..2).map(|_| Doorbell::new().expect("a descriptor")).collect();
        let mut endpoints = mesh::connect(&doorbells);
        let [from, to] = &mut endpoints[..] else { panic!("the mesh has two endpoints") };
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("batches of {batch}"), |bencher| bencher.iter(|| carry(from, to, batch)));
    }
}

fn carry(from: &mut Endpoint, to: &mut Endpoint, messages: u64) {
    let sale = SaleId(1);
    for user in 0..messages as i64 {
        from.request(ShardId(1), Request::Release { sale, item: ItemId(0), user: UserId(user), key: 0 });
    }
    from.dispatch();
    to.receive(|delivery| {
        black_box(delivery);
    });
}

/// Each item is requested at the shard after its owner, so a checkout takes one hop to the owner and one back, and two
/// more if the user has a different owner.
fn protocol(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("checkout on shards");
    group.throughput(Throughput::Elements(1));
    for shards in [1, 2, 8] {
        let (mut turns, mut requested) = (Turns::new(shards, ITEMS), 0);
        let mut check_out = move |left: u64| {
            let (mut left, mut time) = (left, Duration::ZERO);
            while left > 0 {
                if requested == ITEMS {
                    (turns, requested) = (Turns::new(shards, ITEMS), 0);
                }
                let some = left.min(u64::from(ITEMS - requested)).min(COMMANDS as u64 * u64::from(shards));
                let start = cpu_time();
                for item in requested..requested + some as u32 {
                    let (item, user) = (ItemId(item), UserId(i64::from(item / 10)));
                    let origin = (item.0 as usize + 1) % turns.shards();
                    turns.command(origin, Ticket(0), Command::Checkout { sale: None, item, user, key: Uuid::nil() });
                }
                turns.settle(|_, effects| {
                    black_box((&effects.records, &effects.answers));
                    effects.records.clear();
                    effects.answers.clear();
                });
                time += cpu_time() - start;
                requested += some as u32;
                left -= some;
            }
            time
        };
        group.bench_function(shards.to_string(), |bencher| bencher.iter_custom(&mut check_out));
    }
}

criterion_group! {
    name = benches;
    config = briefly();
    targets = lanes, protocol
}
criterion_main!(benches);
