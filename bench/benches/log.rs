//! The encoding of the log: records are encoded and decoded, blocks are completed with their checksum and verified.

mod measured;

use bench::history::{STREAM, records};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly};
use stampede::log::block::{self, BLOCK_BYTES, Chain};
use stampede::sale::record::{BLOCK_RECORDS, RECORD_BYTES, Record};
use std::hint::black_box;

/// Maximum number of blocks that a flush writes.
const BLOCKS: usize = 64;

fn log(criterion: &mut Criterion<CpuTime>) {
    let records: Vec<Record> = records(BLOCKS as u32 * BLOCK_RECORDS as u32).take(BLOCKS * BLOCK_RECORDS).collect();
    let encoded: Vec<[u8; RECORD_BYTES]> = records.iter().map(Record::encode).collect();
    let bytes = encoded.concat();
    let mut blocks = vec![0; BLOCKS * BLOCK_BYTES];

    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(records.len() as u64));
    let mut buffer = Vec::with_capacity(bytes.len());
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            records.iter().for_each(|record| buffer.extend_from_slice(&black_box(record).encode()));
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| encoded.iter().filter(|bytes| black_box(Record::decode(bytes)).is_ok()).count());
    });
    // As in a flush: zero the blocks, fill them, add the checksums.
    group.bench_function("into blocks", |bencher| {
        bencher.iter(|| {
            blocks.fill(0);
            Chain::new(STREAM).extend(&mut blocks, black_box(&bytes), 0);
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("block");
    group.throughput(Throughput::Bytes(blocks.len() as u64));
    group.bench_function("checksum checked", |bencher| {
        bencher.iter(|| blocks.chunks(BLOCK_BYTES).filter(|block| block::parse(block, &STREAM).is_some()).count());
    });
}

criterion_group! {
    name = benches;
    config = briefly();
    targets = log
}
criterion_main!(benches);
