//! Every record reaches a real Postgres exactly once.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, assert_refused, copy_dir, how_many, repository_text};
use crate::load::{Promise, Promises, buy, buy_until, check_books, connect, crowd};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Number of kills in each mode. Release runs set it higher.
fn kills() -> u32 {
    how_many("STAMPEDE_POSTGRES_KILLS", 25)
}

fn start(dir: &Path, cluster: &Cluster, arguments: &[&str]) -> Server {
    let url = cluster.url();
    Server::start(dir, &[&LONG_SALE[..], &["--database-url", &url, "--user-limit", "1000000"], arguments].concat())
}

fn assert_all_bought(cluster: &Cluster, promises: &[Promise]) {
    let rows = cluster.ask("select item_id || ' ' || user_id || ' ' || code from purchases");
    let rows: BTreeSet<&str> = rows.lines().collect();
    for promise in promises.iter().filter(|promise| promise.bought) {
        let row = format!("{} {} {}", promise.item, promise.user, promise.code);
        assert!(rows.contains(row.as_str()), "not in Postgres: {promise:?}");
    }
}

/// Checks that every acknowledged purchase is one row with the right item, user and code, and that every other row is a
/// purchase whose response was lost.
fn assert_books_agree(cluster: &Cluster, promises: &[Promise]) {
    let rows = cluster.ask("select item_id || ' ' || user_id || ' ' || code from purchases");
    let rows: BTreeSet<&str> = rows.lines().collect();
    let text = |promise: &Promise| format!("{} {} {}", promise.item, promise.user, promise.code);
    assert_all_bought(cluster, promises);
    let possible: BTreeSet<String> =
        promises.iter().filter(|promise| promise.bought || promise.unknown).map(text).collect();
    assert!(rows.iter().all(|row| possible.contains(*row)), "a row without a purchase");
    let codes = "select count(*) - count(distinct code) from checkouts where outcome = 0";
    assert_eq!(cluster.count(codes), 0, "a checkout arrived twice");
    let orphans = "select count(*) from purchases p left join checkouts c using (sale_id, item_id, user_id, code) where c.at is null";
    assert_eq!(cluster.count(orphans), 0, "a purchase without its checkout");
}

#[test]
fn a_sold_out_sale_is_all_in_postgres() {
    sell_out("local");
    sell_out("postgres");
}

fn sell_out(ack: &str) {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--shards", "3", "--items", "3000", "--ack", ack]);
    let (promises, answered) = (Promises::default(), AtomicU64::new(0));
    crowd(16, |number| {
        let mut client = connect(server.address);
        for place in 0..600 {
            let item = (place * 8 + number / 2) % 3000;
            // The user ID does not fit in 32 bits: user IDs are 64 bits wide end to end.
            buy(&mut client, (1 << 40) + i64::from(number), item, &promises).unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut client = server.connect();
    for item in 0..3000 {
        buy(&mut client, 7, item, &promises).unwrap();
        answered.fetch_add(1, Ordering::Relaxed);
    }
    let recorded = answered.into_inner() - unrecorded(&server);
    assert!(server.terminate().success());
    let promises = promises.take();
    let bought = check_books(&promises, usize::MAX);
    assert_eq!((bought.len(), cluster.count("select count(*) from purchases")), (3000, 3000));
    assert_eq!(cluster.count("select count(*) from checkouts"), recorded, "every answered attempt is recorded");
    assert_books_agree(&cluster, &promises);
    assert_eq!(cluster.ask("select count(*), count(*) filter (where purchased) from item_status"), "3000|3000");
}

#[test]
fn the_catalogue_has_the_names_that_buyers_were_told() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--items", "300"]);
    let mut client = server.connect();
    let receipts: Vec<_> = (0..300)
        .map(|item| {
            let code = client.reserve(1, item);
            client.purchase(&code).json()
        })
        .collect();
    assert!(server.terminate().success());
    let query = "select name || ' ' || image_url || '?sale=' || sale_id from sale_items order by item_id";
    let names = cluster.ask(query);
    assert_eq!(names.lines().count(), 300);
    for (row, receipt) in names.lines().zip(&receipts) {
        let told = [&receipt["item_name"], &receipt["item_image"]].map(|text| text.as_str().unwrap().to_owned());
        assert_eq!(row, told.join(" "));
    }
    for query in repository_text("sql/examples.sql").split_inclusive(';') {
        if query.contains("select") {
            cluster.ask(query);
        }
    }
    let bare = "select count(*) from pg_class c join pg_attribute a on a.attrelid = c.oid \
        where c.relnamespace = 'stampede'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition \
        and c.relname <> 'schema_migrations' and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null";
    assert_eq!(cluster.count(bare), 0, "columns without a comment");
}

#[test]
fn kill_9_of_the_server_loses_and_doubles_nothing() {
    kill_servers("local");
    kill_servers("postgres");
}

fn kill_servers(ack: &str) {
    const ITEMS: u32 = 400;
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let items = (kills() * ITEMS).to_string();
    // The first run creates the tables before the kills begin.
    let first = start(dir.path(), &cluster, &["--items", &items]);
    first.wait_for_line("the database is connected");
    first.kill();
    let mut all = Vec::new();
    for round in 0..kills() {
        let shards = (1 + round % 3).to_string();
        let server = start(
            dir.path(),
            &cluster,
            &["--shards", &shards, "--items", &items, "--reservation-ttl", "1h", "--ack", ack],
        );
        let (promises, address) = (Promises::default(), server.address);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                crowd(6, |number| {
                    // The kill may be first.
                    let Ok(mut client) = Client::connect(address) else { return };
                    for turn in 0.. {
                        let item = round * ITEMS + (turn * 6 + number) % ITEMS;
                        if buy(&mut client, i64::from(number), item, &promises).is_err() {
                            return;
                        }
                    }
                });
            });
            std::thread::sleep(Duration::from_millis(20 + u64::from(round * 37 % 90)));
            server.kill();
        });
        all.extend(promises.take());
        if ack == "postgres" {
            assert_all_bought(&cluster, &all); // Acknowledged purchases are in Postgres while the server is down.
        }
    }
    assert!(start(dir.path(), &cluster, &["--items", &items]).terminate().success());
    check_books(&all, usize::MAX);
    assert!(all.iter().any(|promise| promise.bought));
    assert_books_agree(&cluster, &all);
}

#[test]
fn postgres_may_die_and_stand_still_while_selling_goes_on() {
    kill_postgres("local");
    kill_postgres("postgres");
}

fn kill_postgres(ack: &str) {
    const ITEMS: u32 = 20_000;
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let arguments = ["--shards", "2", "--items", "20000", "--reservation-ttl", "1h", "--ack", ack];
    let server = start(dir.path(), &cluster, &arguments);
    let (promises, answered) = (Promises::default(), AtomicU64::new(0));
    let rounds_left = AtomicU32::new(kills());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            crowd(4, |number| {
                let mut client = connect(server.address);
                for turn in 0.. {
                    if rounds_left.load(Ordering::Relaxed) == 0 {
                        return;
                    }
                    let item = (turn * 4 + number) % ITEMS;
                    buy(&mut client, i64::from(number), item, &promises).expect("the server keeps selling");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        while rounds_left.load(Ordering::Relaxed) > 0 {
            let round = u64::from(rounds_left.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(30 + round * 29 % 100));
            if round.is_multiple_of(2) {
                cluster.kill();
                cluster.go_on();
            } else {
                cluster.pause();
                std::thread::sleep(Duration::from_millis(100));
                cluster.resume();
            }
            rounds_left.fetch_sub(1, Ordering::Relaxed);
        }
    });
    let recorded = answered.into_inner() - unrecorded(&server);
    assert!(server.terminate().success());
    let promises = promises.take();
    check_books(&promises, usize::MAX);
    assert_books_agree(&cluster, &promises);
    assert_eq!(cluster.count("select count(*) from checkouts"), recorded);
}

#[test]
fn postgres_may_be_absent_at_start() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    // After a stop in order it would wait: see `split_brain`.
    start(dir.path(), &cluster, &[]).kill();
    cluster.kill();
    let server = start(dir.path(), &cluster, &[]);
    server.wait_for_line("the database is unavailable");
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert_eq!(client.purchase(&code).status, 200);
    server.wait_for_line("Postgres lags behind");
    let ready = client.request("GET /readyz");
    let postgres = &ready.json()["postgres"];
    assert_eq!((ready.status, &postgres["connected"]), (200, &false.into()), "{ready:?}");
    assert!(
        // The number is unknown until the server has reached Postgres once: the previous run may have left records.
        postgres["records_behind"].is_null() && postgres["seconds_behind"].as_f64() >= Some(1.0),
        "{ready:?}"
    );
    cluster.go_on();
    server.wait_for_line("the database is connected");
    server.wait_for_line("Postgres has caught up");
    let postgres = client.request("GET /health").json()["postgres"].clone();
    assert_eq!((&postgres["connected"], &postgres["records_behind"]), (&true.into(), &0.into()));
    assert_eq!(cluster.ask("select code from purchases"), code);
}

/// Returns the number of refused attempts that are not in the log. In a flood of requests, a segment may be full before
/// the next one has been created.
fn unrecorded(server: &Server) -> u64 {
    let shards = server.connect().request("GET /health").json()["shards"].clone();
    shards.as_array().unwrap().iter().map(|shard| shard["attempts_unrecorded"].as_u64().unwrap()).sum()
}

/// A shutdown waits for the remaining records to reach Postgres, but only for a limited time. The next run sends the
/// rest.
#[test]
fn a_stop_does_not_wait_for_ever() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    server.wait_for_line("the database is connected");
    cluster.kill();
    let promises = Promises::default();
    assert_eq!(buy(&mut server.connect(), 1, 1, &promises).unwrap(), "200");
    assert!(server.terminate().success());
    cluster.go_on();
    assert!(start(dir.path(), &cluster, &[]).terminate().success());
    assert_books_agree(&cluster, &promises.take());
}

/// Sends checkouts of item 0, which is not free: `thousands` times 1000 on each connection.
fn send_refused_checkouts(server: &Server, connections: u32, thousands: u32) {
    let refused = "POST /checkout?user_id=1&item_id=0 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let address = server.address;
    crowd(connections, |_| {
        let mut client = connect(address);
        for _ in 0..thousands {
            client.send(refused.as_bytes()).unwrap();
            (0..1000).for_each(|_| assert_eq!(client.read().unwrap().status, 409));
        }
    });
}

#[test]
fn memory_stays_flat_while_postgres_is_away() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--items", "1", "--shards", "2"]);
    server.wait_for_line("the database is connected");
    cluster.kill();
    buy(&mut server.connect(), 1, 0, &Promises::default()).unwrap();
    let before = server.resident_kib();
    send_refused_checkouts(&server, 8, 75);
    let grown = server.resident_kib() - before;
    // The records of 600,000 attempts take 38 MB.
    assert!(grown < 30 << 10, "{grown} KiB more");
    let recorded = 600_001 - unrecorded(&server);
    cluster.go_on();
    server.wait_for_line("the database is connected");
    assert!(server.terminate().success());
    assert_eq!(cluster.count("select count(*) from checkouts"), recorded);
}

#[test]
fn a_database_has_one_owner() {
    let (cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    server.wait_for_line("the database is connected");

    // Another installation.
    assert!(Server::start(other.path(), &LONG_SALE).terminate().success());
    let url = cluster.url();
    let arguments = [&LONG_SALE[..], &["--database-url", &url]].concat();
    assert_refused(other.path(), &arguments, 8, &["belongs to another installation"]);

    // A copy of this installation: the later run wins. The earlier run changes no row and logs why it exits.
    std::thread::sleep(Duration::from_millis(500)); // Wait until the server has created its segments.
    let copy = other.path().join("copy");
    copy_dir(dir.path(), &copy);
    let later = start(&copy, &cluster, &[]);
    later.wait_for_line("the database is connected");
    // The earlier run may have exited already, so ignore an error.
    let _ = Client::connect(server.address).and_then(|mut client| client.try_checkout(1, 1));
    let line = server.wait_for_line("cannot use the database");
    assert_eq!(line["exit_code"], 8);
    assert_eq!(cluster.count("select count(*) from checkouts"), 0);
    assert!(later.terminate().success());
}

/// With `--ack postgres`, a purchase may wait for the transaction that runs, so no transaction has many refused checkouts.
#[test]
fn a_purchase_does_not_wait_behind_a_backlog_of_refused_checkouts() {
    // 256 KiB of records, and one piece of 64 KiB that was begun.
    let limit = (256 + 64) * 1024 / 64;
    for (ack, is_limited) in [("local", false), ("postgres", true)] {
        let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
        let server =
            start(dir.path(), &cluster, &["--ack", ack, "--shards", "1", "--items", "1", "--reservation-ttl", "1h"]);
        server.wait_for_line("the database is connected");
        let mut client = server.connect();
        let code = client.reserve(1, 0);
        client.wait_for_postgres();
        cluster.kill();
        send_refused_checkouts(&server, 2, 10);
        cluster.go_on();
        assert_eq!(client.purchase(&code).status, 200);
        let recorded = 20_000 - unrecorded(&server);
        assert!(server.terminate().success());
        let rows = "select count(*) from checkouts where outcome <> 0";
        assert_eq!(cluster.count(rows), recorded);
        let largest = cluster.count(&format!("select max(count) from ({rows} group by xmin::text) as transactions"));
        assert_eq!(largest <= limit, is_limited, "--ack {ack}: {largest} rows in a transaction");
    }
}

/// With `--ack postgres`, a purchase gets no 200 before it is in Postgres, no other user gets the item meanwhile, and a
/// retry receives the outcome.
#[test]
fn a_purchase_waits_for_postgres_and_a_retry_joins_the_wait() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--ack", "postgres", "--shards", "2", "--reservation-ttl", "12s"]);
    server.wait_for_line("the database is connected");
    let mut client = server.connect();
    let codes = [client.reserve(1, 1), client.reserve(1, 2)];
    let address = server.address;
    cluster.pause();
    std::thread::scope(|scope| {
        for code in &codes {
            scope.spawn(move || {
                let overdue = connect(address).purchase(code);
                assert_eq!((overdue.problem().as_str(), overdue.asks_to_retry()), ("overdue", true));
            });
        }
    });
    assert_eq!(client.checkout(2, 1).problem(), "item-reserved");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(client.checkout(2, 1).problem(), "item-reserved", "a hold with a pending purchase does not expire");
    std::thread::scope(|scope| {
        let retry = scope.spawn(|| connect(address).purchase(&codes[0]).outcome());
        std::thread::sleep(Duration::from_millis(200));
        cluster.resume();
        assert_eq!(retry.join().unwrap(), "200");
    });
    assert_eq!(client.purchase(&codes[0]).problem(), "code-used");
    // The other purchase completes without a retry, possibly in the next transaction.
    let end = Instant::now() + Duration::from_secs(10);
    while client.checkout(2, 2).problem() != "item-sold" {
        assert!(Instant::now() < end, "the pending purchase never completes");
    }
    assert_eq!(cluster.count("select count(*) from purchases"), 2);
}

/// After a crash, a purchase that is in the log but not in Postgres is acknowledged only once Postgres has it.
#[test]
fn a_repeated_purchase_waits_for_postgres_after_a_crash_too() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--ack", "postgres", "--shards", "2", "--reservation-ttl", "1h"]);
    server.wait_for_line("the database is connected");
    let code = server.connect().reserve(1, 1);
    let purchase = format!("POST /purchase?code={code}");
    cluster.pause();
    server.connect().send(format!("{purchase} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n\r\n").as_bytes()).unwrap();
    let records = |shard: &serde_json::Value| shard["log_records_durable"].as_u64().unwrap();
    let durable = || -> u64 {
        server.connect().request("GET /health").json()["shards"].as_array().unwrap().iter().map(records).sum()
    };
    // Four records: an opening of the sale per shard, a checkout, a purchase.
    while durable() < 4 {
        std::thread::sleep(Duration::from_millis(10));
    }
    server.kill();
    let server = start(dir.path(), &cluster, &["--ack", "postgres", "--shards", "3"]);
    assert_eq!(server.connect().checkout(2, 1).problem(), "item-sold");
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = format!("Idempotency-Key: k\r\nX-Request-Id: r-1\r\nTraceparent: {traceparent}\r\n");
    let repeat = || server.connect().try_request(&purchase, &fields).unwrap();
    let overdue = repeat();
    assert_eq!((overdue.problem().as_str(), overdue.header("x-request-id")), ("overdue", Some("r-1")));
    // The server logs the names of the request, so that its trace leads to the cause.
    let line = server.wait_for_line("no decision in time");
    assert_eq!((&line["requests"], &line["request_id"]), (&1.into(), &"r-1".into()), "{line}");
    assert_eq!(line["traceparent"], traceparent, "{line}");
    // It is the example of the slowest requests.
    let metrics = Client::connect(server.admin).unwrap().request("GET /metrics").body;
    let slowest = metrics.lines().find(|line| line.contains("# {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\""));
    assert!(slowest.is_some_and(|line| line.contains("/purchase") && line.contains("+Inf")), "{metrics}");
    cluster.resume();
    assert_eq!(repeat().outcome(), "200");
    assert_eq!(cluster.ask("select code from purchases"), code);
}

/// A database that is attached after retention has removed the oldest segments receives the remaining records.
#[test]
fn a_database_may_be_attached_late() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let small =
        ["--sale-period", "1s", "--items", "500", "--log-budget", "2MiB", "--user-limit", "500", "--shards", "1"];
    let server = Server::start(dir.path(), &small);
    let first = dir.path().join("log/purchases-0000000001-00000-000000000000-32.log");
    let mut client = server.connect();
    for item in 0.. {
        let _ = buy(&mut client, 1, item % 500, &Promises::default()).unwrap();
        if !first.exists() {
            break;
        }
    }
    assert!(server.terminate().success());
    let url = cluster.url();
    for round in 0..2 {
        let server = Server::start(dir.path(), &[&small[..], &["--database-url", &url]].concat());
        server.wait_for_line("the database is connected");
        if round == 0 {
            assert!(server.wait_for_line("records that the log no longer has")["missing"].as_u64() > Some(0));
        }
        assert!(server.terminate().success());
    }
    assert!(cluster.count("select count(*) from checkouts") > 0);
}

/// With a small budget, short sales and many restarts, retention removes the segments that are in Postgres, and every
/// run sells. Right after a restart with another number of shards, the budget may be badly divided until the sale ends.
#[test]
fn what_is_in_postgres_makes_room() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    for shards in ["1", "2", "3", "2", "1"] {
        let budget = ["--sale-period", "1s", "--items", "500", "--log-budget", "16MiB", "--user-limit", "500"];
        let server = Server::start(dir.path(), &[&budget[..], &["--shards", shards, "--database-url", &url]].concat());
        server.wait_for_line("the database is connected");
        // Ask for 600 purchases and require 300, which is more than half a sale.
        let (bought, _) = buy_until(server.address, 8, 500, 600);
        assert!(server.terminate().success());
        assert!(bought > 300, "only {bought} were sold on {shards} shards");
    }
    let per_sale = "select coalesce(max(sold), 0) from (select count(*) as sold from purchases group by sale_id) sales";
    assert!((1..=500).contains(&cluster.count(per_sale)));
    let gaps = "select count(*) from sales s where not exists (select 1 from sale_items i where i.sale_id = s.sale_id)";
    assert_eq!(cluster.count(gaps), 0);
}

/// Two copies of one data directory reach the same epoch, but only one of them may write.
#[test]
fn two_copies_of_a_data_directory_are_told_apart() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    assert!(start(dir.path(), &cluster, &[]).terminate().success());
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("copy");
    copy_dir(dir.path(), &copy);
    let first = start(dir.path(), &cluster, &[]);
    first.wait_for_line("the database is connected");
    let url = cluster.url();
    let arguments = [&LONG_SALE[..], &["--database-url", &url]].concat();
    assert_refused(&copy, &arguments, 8, &["another run of this installation"]);
    assert!(first.terminate().success());
}
