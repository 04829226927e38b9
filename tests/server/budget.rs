//! Tests of a small log budget: the server removes old sales, refuses checkouts when the log is full, and keeps every
//! hold.

use crate::harness::Server;
use crate::load::buy_until;
use std::path::Path;
use std::time::{Duration, Instant};

fn log_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("log")).unwrap();
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
}

/// Short sales on a small budget: the server removes old sales and continues to sell, and every restart can read the
/// log, with any number of shards.
#[test]
fn old_sales_make_room_and_the_rest_can_always_be_read() {
    const BUDGET: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    for shards in ["1", "3", "2", "4", "1", "2"] {
        let arguments = [
            "--sale-period",
            "1s",
            "--items",
            "500",
            "--log-budget",
            "4MiB",
            "--user-limit",
            "500",
            "--shards",
            shards,
        ];
        let server = Server::start(dir.path(), &arguments);
        // Buys more items than one sale has.
        let (bought, outcomes) = buy_until(server.address, 12, 500, 600);
        let known = ["200", "item-sold", "item-reserved", "sale-ended", "log-full"];
        assert!(outcomes.iter().all(|outcome| known.contains(&outcome.as_str())), "{outcomes:?}");
        assert!(bought > 500, "only {bought} were sold on {shards} shards");
        // After a restart, the space reserved for live holds may exceed the budget a little.
        assert!(log_bytes(dir.path()) <= BUDGET / 4 * 5, "{} bytes", log_bytes(dir.path()));
        server.kill();
    }
}

/// When the log is full, checkouts are refused, but every hold can be bought.
#[test]
fn a_full_log_still_buys_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [
        "--sale-period",
        "365days",
        "--reservation-ttl",
        "1h",
        "--log-budget",
        "1MiB",
        "--shards",
        "1",
        "--user-limit",
        "100000",
    ];
    let server = Server::start(dir.path(), &arguments);
    let mut client = server.connect();
    let mut codes = Vec::new();
    let refused = (0..).find_map(|item| {
        let response = client.checkout(1, item);
        if response.status == 200 {
            codes.push(response.body);
            return None;
        }
        Some(response)
    });
    let refused = refused.expect("a log of 1 MiB becomes full");
    assert_eq!((refused.problem().as_str(), refused.asks_to_retry()), ("log-full", true));
    server.wait_for_line("the log is full");
    assert!(codes.len() > 50, "only {} were held", codes.len());
    let (now, later) = codes.split_at(codes.len() / 2);
    now.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    server.kill();

    // The space reserved for the remaining holds survives a crash.
    let server = Server::start(dir.path(), &arguments);
    let mut client = server.connect();
    later.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    now.iter().for_each(|code| assert_eq!(client.purchase(code).problem(), "code-used"));
    assert!(server.terminate().success());
}

/// A hold of the first run is bought in the second one. In later sales, the budget is used up, and the beginning of the
/// second run is removed. The end of the first run stays, and the next start does not invent an answer.
#[test]
fn a_sale_of_which_records_were_removed_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "4s", "--receipts", "10m", "--shards", "1", "--log-budget", "1MiB"];
    let start = || Server::start(dir.path(), &[&terms[..], &["--user-limit", "100000"]].concat());
    let server = start();
    let code = server.connect().reserve(1, 1);
    server.kill();
    let server = start();
    let mut client = server.connect();
    assert_eq!(client.purchase(&code).status, 200);
    let is_left = |beginning: &str| {
        let mut files = std::fs::read_dir(dir.path().join("log")).unwrap();
        files.any(|file| file.unwrap().file_name().to_str().unwrap().starts_with(beginning))
    };
    let (begun, mut items) = (Instant::now(), (0..10_000).cycle());
    while is_left("purchases-0000000002-00000-000000000000-") {
        assert!(begun.elapsed() < Duration::from_secs(30), "the budget is not used up");
        let reserved = client.checkout(1, items.next().unwrap());
        if reserved.status == 200 {
            assert_eq!(client.purchase(&reserved.body).status, 200);
        }
    }
    assert!(is_left("purchases-0000000001-"), "the end of a stream was removed");
    assert_eq!(client.purchase(&code).problem(), "code-used", "the running server remembers the sale");
    server.kill();
    let server = start();
    assert_eq!(server.connect().purchase(&code).problem(), "sale-ended");
    assert!(server.terminate().success());
}
