//! Recovery, an upgrade and `stampede log` need the same memory for a log of any length.

use crate::harness::{LONG_SALE, Server, how_many};
use crate::log_tool::tool;
use crate::old_log::{Cut, OldLog, open_sale};
use stampede::log::block::{BLOCK_BYTES, LogKind};
use stampede::sale::record::BLOCK_RECORDS;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// Items of the sale, all of them released again and again.
const ITEMS: u32 = 1000;
/// Difference that is allowed between the smaller and the larger log, in KiB.
const TOLERANCE_KIB: u64 = 6 << 10;
const SETTINGS: [&str; 6] = ["--shards", "2", "--items", "1000", "--log-budget", "64GiB"];

/// Writes a log of the open sale with `mib` MiB of purchases and as many attempts, none of it sealed.
fn write(data_dir: &Path, mib: u32) {
    let mut log = OldLog::new(data_dir, 1);
    let records = (mib as usize * (1 << 20) / BLOCK_BYTES - 1) * BLOCK_RECORDS;
    let cut = Cut { records_per_block: BLOCK_RECORDS, blocks_per_segment: 1024, is_sealed: false };
    let sale = open_sale();
    let opened = log.purchases(sale, ITEMS, []).into_iter();
    let odd = (0..ITEMS).filter(|item| item % 2 == 1).cycle();
    let released = odd.flat_map(|item| log.purchases(sale, ITEMS, [item]).split_off(1));
    let purchases = opened.chain(released).take(records);
    OldLog::new(data_dir, 1).write((LogKind::Purchases, 1, 0), purchases, cut);
    let attempts = OldLog::attempts(sale, records as u32);
    OldLog::new(data_dir, 1).write((LogKind::Attempts, 1, 0), attempts, cut);
}

/// Returns the most memory that `stampede log` has used, in KiB.
fn peak_of_tool(data_dir: &Path, command: &str) -> u64 {
    let mut child = tool(data_dir, &[command]).stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    // The peak only rises, so the last sample before the end is close to it.
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn memory_is_independent_of_the_length_of_the_log() {
    let mib = how_many("STAMPEDE_RECOVERY_MIB", 4);
    let [small, large] = [mib, 16 * mib].map(|mib| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), mib);
        let tools = ["verify", "dump", "sale"].map(|command| (command, peak_of_tool(dir.path(), command)));
        let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &SETTINGS].concat());
        assert!(server.connect().sale()["sale_id"] == open_sale().0);
        let started = server.peak_kib();
        // The log that is handed over has the same records, sealed, and those of this run.
        server.upgrade();
        let upgraded = server.peak_kib();
        assert!(server.terminate().success());
        [&tools[..], &[("start", started), ("upgrade", upgraded)]].concat()
    });
    println!("{mib} MiB: {small:?}, {} MiB: {large:?}", 16 * mib);
    for ((what, small), (_, large)) in small.into_iter().zip(large) {
        assert!(large < small + TOLERANCE_KIB, "{what}: {small} KiB for {mib} MiB, {large} KiB for 16 times as much");
    }
}
