//! Runs the fuzz targets without a fuzzer, on every seed and on random mutations of the seeds.

use crate::targets::TARGETS;
use fastrand::Rng;
use std::path::Path;

/// Default number of mutations for each target. `STAMPEDE_FUZZ_RUNS` overrides it.
const RUNS: u32 = 200_000;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        dir.read_dir().expect("every target has seeds").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Makes a few small changes, like a fuzzer.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Rng) {
    const TELLING: &[&[u8]] =
        &[b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"\n", b" ", b"\t", b":", b"\0", b"\xff\xff\xff\xff"];
    for _ in 0..chance.usize(1..=4) {
        let at = chance.usize(..=bytes.len());
        let to = chance.usize(at..=bytes.len().min(at + 16));
        match chance.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.u8(..8),
            1 if at < bytes.len() => bytes[at] = chance.u8(..),
            2 => _ = bytes.drain(at..to),
            3 => _ = bytes.splice(at..at, chance.choice(TELLING).expect("the list is not empty").iter().copied()),
            4 => _ = bytes.splice(at..at, bytes[at..to].to_vec()),
            _ => {
                let from = chance.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
    }
}

#[test]
fn no_target_fails() {
    let runs = std::env::var("STAMPEDE_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("a number"));
    std::thread::scope(|scope| {
        for (name, target) in TARGETS {
            scope.spawn(move || {
                let seeds = seeds(name);
                seeds.iter().for_each(|seed| target(seed));
                for run in 0..runs {
                    // The number of the run is its random seed, so that a failure can be reproduced.
                    let mut chance = Rng::with_seed(run.into());
                    let mut bytes = chance.choice(&seeds).expect("the list is not empty").clone();
                    let other = chance.choice(&seeds).expect("the list is not empty");
                    mutate(&mut bytes, other, &mut chance);
                    let said = std::panic::catch_unwind(|| target(&bytes));
                    assert!(said.is_ok(), "{name}, run {run}: {}", bytes.escape_ascii());
                }
            });
        }
    });
}
