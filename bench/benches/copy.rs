//! Encoding of records as rows of PostgreSQL's binary COPY, in batches of the size of a transaction.

mod measured;

use bench::history::records;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly};
use stampede::postgres::copy_rows::Rows;
use stampede::sale::ids::{ItemId, UserId};
use stampede::sale::record::{LogEvent, Record, RefusalReason};
use std::hint::black_box;

fn copy(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("copy");
    for size in [1_000, 100_000] {
        let sold: Vec<Record> = records(size / 2).take(size as usize).collect();
        let refused: Vec<Record> = sold
            .iter()
            .zip(0..)
            .map(|(record, number)| {
                let (item, user) = (ItemId(number), UserId(i64::from(number)));
                Record {
                    event: LogEvent::Refused { item: Some(item), user, reason: RefusalReason::ItemSold },
                    ..*record
                }
            })
            .collect();
        group.throughput(Throughput::Elements(size.into()));
        for (name, records) in [("checkouts and purchases", sold), ("refused attempts", refused)] {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    let mut rows = Rows::default();
                    records.iter().for_each(|record| rows.add(record));
                    black_box((rows.checkouts.finish(), rows.purchases.finish()))
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = briefly();
    targets = copy
}
criterion_main!(benches);
