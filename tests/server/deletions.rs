//! Segments of the log that were deleted while `control.json` stayed: the server refuses to start, and changes nothing.

use crate::harness::{LONG_SALE, Server, assert_refused};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const SETTINGS: [&str; 4] = ["--shards", "2", "--reservation-ttl", "1h"];

/// Sells two items, one on each shard, and ends the server by `end`.
fn sell(dir: &Path, first: u32, end: fn(Server)) {
    let server = Server::start(dir, &[&LONG_SALE[..], &SETTINGS].concat());
    let mut client = server.connect();
    for item in [first, first + 1] {
        let code = client.reserve(i64::from(item), item);
        assert_eq!(client.purchase(&code).status, 200);
    }
    drop(client);
    end(server);
}

/// Returns the segments. A start removes files that a run was creating when it ended (`.new`).
fn segments(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".log")).collect()
}

fn verify(dir: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stampede"));
    let output = command.args(["log", "verify", "--data-dir"]).arg(dir).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn deleted_purchases_are_missed_and_deleted_attempts_are_not() {
    let stop = |server: Server| assert!(server.terminate().success());
    for end in [stop, Server::kill as fn(Server)] {
        for (deleted, is_refused) in [
            (".log", true),
            ("purchases-", true),
            // Shards of the last run, and of the run before it in the same sale.
            ("purchases-0000000002-00001", true),
            ("purchases-0000000002-00000", true),
            ("purchases-0000000001-00001", true),
            ("purchases-0000000001", true),
            ("attempts-", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            sell(dir.path(), 0, end);
            sell(dir.path(), 2, end);
            let removed: Vec<_> = segments(dir.path()).into_iter().filter(|name| name.contains(deleted)).collect();
            removed.iter().for_each(|name| fs::remove_file(dir.path().join("log").join(name)).unwrap());
            let left = segments(dir.path());
            if is_refused {
                assert!(!removed.is_empty(), "{deleted}");
                let (code, text) = verify(dir.path());
                assert!(code == 6 && text.contains("segments were deleted"), "{deleted}: {code} {text}");
                for _ in 0..2 {
                    let parts = ["segments were deleted; restore the data directory from a backup"];
                    assert_refused(dir.path(), &[&LONG_SALE[..], &SETTINGS].concat(), 6, &parts);
                    assert_eq!(segments(dir.path()), left, "{deleted}: a refused start changes the log");
                }
            } else {
                sell(dir.path(), 4, end);
                assert_eq!(verify(dir.path()).0, 0);
            }
        }
    }
}

/// A new run, and each kind of end after it, leaves a log that the next run accepts.
#[test]
fn what_no_one_has_deleted_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for (run, end) in [Server::kill as fn(Server), |server| assert!(server.terminate().success()), Server::kill]
        .into_iter()
        .enumerate()
    {
        sell(dir.path(), 2 * run as u32, end);
        assert_eq!(verify(dir.path()).0, 0, "{run}");
    }
}
