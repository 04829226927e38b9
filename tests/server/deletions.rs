//! Segments of the log that were deleted while `control.json` stayed: the server refuses to start, and changes nothing.

use crate::harness::{LONG_SALE, Server, assert_refused, wait_until};
use crate::planned::{PLAN, now_s, product, sale, write};
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

/// A sale that is open may be older than the one that has opened last.
#[test]
fn purchases_of_each_open_sale_are_missed() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let plan = [
        sale(3, (now - 60, now + 3600), "user_limit = 9", &product("a", 9)),
        sale(4, (now + 5, now + 3600), "user_limit = 9", &product("a", 9)),
    ];
    write(dir.path(), &plan);
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    for item in 0..4 {
        let code = client.request(&format!("POST /checkout?user_id=1&item_id={item}&sale_id=3")).body;
        assert_eq!(client.purchase(&code).status, 200);
    }
    server.kill();
    let logs = dir.path().join("log");
    let is_refused = |what: &str| {
        let of_first_run: Vec<_> =
            segments(dir.path()).into_iter().filter(|name| name.contains("purchases-0000000001")).collect();
        assert!(!of_first_run.is_empty());
        let away = tempfile::tempdir().unwrap();
        of_first_run.iter().for_each(|name| _ = fs::copy(logs.join(name), away.path().join(name)).unwrap());
        of_first_run.iter().for_each(|name| fs::remove_file(logs.join(name)).unwrap());
        let (code, text) = verify(dir.path());
        assert!(code == 6 && text.contains("segments were deleted"), "{what}: {code} {text}");
        assert_refused(dir.path(), &PLAN, 6, &["segments were deleted; restore the data directory from a backup"]);
        of_first_run.iter().for_each(|name| _ = fs::copy(away.path().join(name), logs.join(name)).unwrap());
    };
    // The second run begins before sale 4 opens, and the third one afterwards.
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    wait_until("sale 4 is open", || client.request("GET /sales/4").json()["phase"] == "open");
    server.kill();
    is_refused("after the second run");
    let server = Server::start(dir.path(), &PLAN);
    assert_eq!(server.connect().request("GET /sales/3").json()["sold"], 4);
    server.kill();
    is_refused("after the third run");
}
