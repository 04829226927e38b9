//! Recovery of a sale from a log: in memory, and from files in the page cache, as after a crash of the process.

mod measured;

use bench::history::{self, STREAM};
use bench::turns::{NOW, rules};
use criterion::measurement::WallTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use measured::briefly;
use stampede::log::budget::Budget;
use stampede::log::data_dir::OpenDataDir;
use stampede::log::manifest::Manifest;
use stampede::log::recovery::{Ends, Recovery};
use stampede::log::replay::Replay;
use stampede::log::stream;
use stampede::sale::partition::Partition;

fn recovery(criterion: &mut Criterion) {
    let partition = Partition::new(2);
    let mut group = criterion.benchmark_group("recovery");
    for records in [10_000, 1_000_000, 10_000_000u32] {
        let (items, mut segments) = (records / 2, Vec::new());
        group.throughput(Throughput::Elements(records.into()));
        group.bench_function(BenchmarkId::new("in memory", records), |bencher| {
            if segments.is_empty() {
                segments = history::segments(items);
            }
            bencher.iter(|| {
                let mut replay = Replay::new(partition, rules(items), (0, 0), NOW);
                stream::read(&STREAM, &segments, |_, record| replay.record(record)).expect("no block is missing");
                let (_, found) = replay.finish().expect("the log has no contradiction");
                assert_eq!(found.sold, items);
            });
        });
        if records > 1_000_000 {
            // The files would exceed the default log budget.
            continue;
        }
        let dir = tempfile::tempdir().expect("a directory");
        group.bench_function(BenchmarkId::new("from files", records), |bencher| {
            let logs = dir.path().to_owned();
            if segments.is_empty() {
                segments = history::segments(items);
            }
            if logs.read_dir().is_ok_and(|mut files| files.next().is_none()) {
                history::write(&segments, &logs).expect("the disk has room");
            }
            // The first iteration also seals the log. It is part of the warm-up.
            let opened = OpenDataDir {
                sale_period_s: 0,
                logs,
                cluster: STREAM.cluster,
                epoch: STREAM.epoch + 1,
                direct_io: true,
                longest_hold_ms: 0,
                manifest: Manifest::default(),
            };
            bencher.iter(|| {
                let recovered =
                    Recovery::new(opened.clone(), partition, (rules(items), None), || NOW).finish(&Ends::new());
                let recovered = recovered.unwrap_or_else(|reason| panic!("{reason}"));
                assert_eq!(recovered.found.sold, items);
                recovered.streams.seal(&opened, &Budget::new(1 << 30, 1)).unwrap_or_else(|reason| panic!("{reason}"));
            });
        });
    }
}

criterion_group! {
    name = benches;
    // Wall-clock time, because reading files includes waiting.
    config = briefly().with_measurement(WallTime);
    targets = recovery
}
criterion_main!(benches);
