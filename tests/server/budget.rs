//! Tests of a small log budget: the server removes old sales, refuses checkouts when the log is full, and keeps every
//! hold.

use crate::cluster::Cluster;
use crate::harness::{LONG_SALE, Server, wait_until};
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
        assert!(log_bytes(dir.path()) <= BUDGET, "{} bytes", log_bytes(dir.path()));
        server.kill();
    }
}

/// A client that reserves and releases without end uses up the budget of all shards and no byte more, whichever shards
/// its items belong to. What others hold can be bought, also after a restart, which adds at most three blocks to each
/// shard.
#[test]
fn the_budget_is_a_hard_limit_of_all_shards() {
    for (shards, step) in [(1, 1), (2, 2), (3, 1)] {
        let (dir, budget) = (tempfile::tempdir().unwrap(), shards << 20);
        let terms = ["--sale-period", "365days", "--reservation-ttl", "1h", "--user-limit", "100000"];
        let limits = ["--shards", &shards.to_string(), "--log-budget", &budget.to_string()];
        let start = || Server::start(dir.path(), &[&terms[..], &limits].concat());
        let server = start();
        let mut client = server.connect();
        let held: Vec<String> = (0..20).map(|item| client.reserve(1, 9_000 + item)).collect();
        // With two shards, only the even items are asked for, which may all belong to one shard.
        for item in (100..).step_by(step).map(|item| item % 9_000) {
            let reserved = client.checkout(2, item);
            match reserved.outcome().as_str() {
                "200" => assert_eq!(client.request(&format!("DELETE /checkout?code={}", reserved.body)).status, 204),
                "log-full" => break,
                other => panic!("{other}"),
            }
            assert!(log_bytes(dir.path()) <= budget, "{shards} shards: {} bytes", log_bytes(dir.path()));
        }
        std::thread::sleep(Duration::from_millis(1_600));
        assert_eq!(client.checkout(2, 100).problem(), "log-full");
        let used = log_bytes(dir.path());
        assert!(used <= budget && used > budget / 10 * 8, "{shards} shards: {used} bytes");
        held[..10].iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
        server.kill();
        let server = start();
        let mut client = server.connect();
        held[10..].iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
        assert!(log_bytes(dir.path()) <= budget + shards * 3 * 4096, "{} bytes", log_bytes(dir.path()));
        assert_eq!(client.sale()["sold"], 20);
        assert!(server.terminate().success());
    }
}

/// With a database, refused checkouts use the budget only until they have arrived: many times more of them than the
/// budget has room for are all recorded, within one sale.
#[test]
fn attempts_that_postgres_has_make_room() {
    const ROUNDS: u64 = 12;
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let limits = ["--database-url", &url, "--shards", "2", "--log-budget", "2MiB", "--items", "1"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &limits].concat());
    server.wait_for_line("the database is connected");
    let mut client = server.connect();
    client.reserve(1, 0);
    let request = "POST /checkout?user_id=1&item_id=0 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    for round in 1..=ROUNDS {
        (0..5).for_each(|_| client.send(request.as_bytes()).unwrap());
        (0..5000).for_each(|_| assert_eq!(client.read().unwrap().status, 409));
        assert!(log_bytes(dir.path()) <= 2 << 20);
        let arrived = || cluster.count("select count(*) from checkouts where outcome > 0");
        wait_until("the attempts are in Postgres", || arrived() == round * 5000);
    }
    // Half of the budget has room for 16,128 records.
    assert!(server.terminate().success());
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
    let terms =
        ["--items", "100000", "--sale-period", "4s", "--receipts", "10m", "--shards", "1", "--log-budget", "1MiB"];
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
    // No item is asked for twice: the log could not explain that it was sold in a sale whose records were removed.
    let (begun, mut items) = (Instant::now(), 0..100_000);
    while is_left("purchases-0000000002-00000-000000000000-") {
        assert!(begun.elapsed() < Duration::from_secs(30), "the budget is not used up");
        let reserved = client.checkout(1, items.next().expect("there are enough items"));
        if reserved.status == 200 {
            assert_eq!(client.purchase(&reserved.body).status, 200);
        } else {
            // The log is full until the sale ends.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(is_left("purchases-0000000001-"), "the end of a stream was removed");
    assert_eq!(client.purchase(&code).problem(), "code-used", "the running server remembers the sale");
    server.kill();
    let server = start();
    assert_eq!(server.connect().purchase(&code).problem(), "sale-ended");
    assert!(server.terminate().success());
}
