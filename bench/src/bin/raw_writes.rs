//! The floor of a durable answer: one thread writes blocks as the log does, each durable before the next one. Prints the
//! percentiles of their durations in microseconds, as JSON.
//!
//! `raw_writes DIRECTORY --count 10000`

use clap::Parser;
use hdrhistogram::Histogram;
use stampede::log::block::{BLOCK_BYTES, LogKind, StreamId};
use stampede::log::segment::{SegmentName, open_durable};
use stampede::system::disk_ring::DiskRing;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;
use uuid::Uuid;
use zerocopy::IntoBytes;

#[derive(Parser)]
struct RawWritesArguments {
    /// Directory for a file, which is not removed
    directory: PathBuf,
    /// Number of writes
    #[arg(long, default_value_t = 10_000)]
    count: u32,
    /// Write through the page cache, as on a file system without direct I/O
    #[arg(long)]
    buffered: bool,
}

fn main() -> io::Result<()> {
    let RawWritesArguments { directory, count, buffered } = RawWritesArguments::parse();
    let stream = StreamId { cluster: Uuid::nil(), epoch: 1, shard: 0, log: LogKind::Purchases };
    let segment = SegmentName::first(stream, count);
    segment.make(&directory)?;
    let file = open_durable(&segment.path(&directory), !buffered)?;
    let page = DiskRing::new()?.pages(1);
    let mut durations = Histogram::<u64>::new(3).expect("a valid precision");
    for number in 0..u64::from(count) {
        let began = Instant::now();
        file.write_all_at(page.as_bytes(), number * BLOCK_BYTES as u64)?;
        durations.saturating_record(began.elapsed().as_micros() as u64);
    }
    let [p50, p99] = [0.5, 0.99].map(|quantile| durations.value_at_quantile(quantile));
    println!(r#"{{"p50_us":{p50},"p99_us":{p99},"mean_us":{:.1}}}"#, durations.mean());
    Ok(())
}
