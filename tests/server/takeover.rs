//! Loss of a machine, of a data directory, or of the latest state of the log or of Postgres.

use crate::cluster::Cluster;
use crate::harness::{self, LONG_SALE, Server, copy_dir};
use crate::load::{Promises, buy, check_books, connect, crowd};
use rustix::process::Signal;
use std::path::Path;

fn arguments<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["--database-url", url, "--items", "200", "--user-limit", "3", "--reservation-ttl", "1h"];
    [&LONG_SALE[..], &common, more].concat()
}

fn start(dir: &Path, cluster: &Cluster, more: &[&str]) -> Server {
    Server::start(dir, &arguments(&cluster.url(), more))
}

fn assert_refused(dir: &Path, cluster: &Cluster, more: &[&str], parts: &[&str]) {
    harness::assert_refused(dir, &arguments(&cluster.url(), more), 8, parts);
}

#[test]
fn an_empty_data_directory_takes_over_mid_sale() {
    for (ack, is_killed) in [("local", true), ("postgres", false)] {
        let (cluster, first, second) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = start(first.path(), &cluster, &["--shards", "2", "--ack", ack]);
        let mut client = server.connect();
        let sold = client.reserve(1, 10);
        assert_eq!(
            client.try_request(&format!("POST /purchase?code={sold}"), "Idempotency-Key: k\r\n").unwrap().status,
            200
        );
        let (held, released) = (client.reserve(1, 11), client.reserve(1, 12));
        let full = [20, 21, 22].map(|item| client.reserve(2, item));
        assert_eq!(client.request(&format!("DELETE /checkout?code={released}")).status, 204);
        client.wait_for_postgres();
        let before = client.sale();
        if is_killed {
            server.kill()
        } else {
            assert!(server.terminate().success())
        }

        // A run with `--ack local` that has not ended in order is replaced only on the word of an operator.
        let recover_from = if is_killed { "postgres" } else { "auto" };
        let server = start(second.path(), &cluster, &["--shards", "3", "--ack", ack, "--recover-from", recover_from]);
        let mut client = server.connect();
        assert_eq!(client.sale(), before, "as many items are sold and held as before");
        assert_eq!(client.checkout(9, 10).problem(), "item-sold");
        assert_eq!(client.checkout(9, 11).problem(), "item-reserved");
        assert_eq!(client.checkout(2, 30).problem(), "user-limit", "the quota is restored");
        let again = client.try_request(&format!("POST /purchase?code={sold}"), "Idempotency-Key: k\r\n").unwrap();
        assert_eq!(again.status, 200, "the same request gets the same response: {again:?}");
        assert_eq!(client.purchase(&sold).problem(), "code-used");
        assert_eq!(client.purchase(&held).status, 200, "the hold is still valid");
        assert_eq!(client.request(&format!("DELETE /checkout?code={}", full[0])).status, 204);
        client.reserve_after_release(2, 30);
        client.reserve(9, 12);
        // From now on, the server's own log has the complete state.
        server.kill();
        let server = start(second.path(), &cluster, &["--shards", "1", "--ack", ack]);
        let mut client = server.connect();
        assert_eq!((client.sale()["sold"].as_u64(), client.sale()["reserved"].as_u64()), (Some(2), Some(4)));
        let (promises, address) = (Promises::default(), server.address);
        crowd(4, |number| {
            let mut client = connect(address);
            for item in 0..200 {
                buy(&mut client, i64::from(number * 200 + item + 100), item, &promises).unwrap();
            }
        });
        for code in [&full[1], &full[2]] {
            assert_eq!(client.purchase(code).status, 200);
        }
        assert_eq!(check_books(&promises.take(), 3).len() + 2 + 4, 200, "two sold before, four held by others");
        assert!(server.terminate().success());
        assert_eq!(cluster.ask("select count(*), count(distinct item_id) from purchases"), "198|198");
        assert_eq!(cluster.count("select count(*) from purchases where idempotency_key is not null"), 1);
    }
}

#[test]
fn a_server_that_was_stopped_wakes_up_too_late() {
    let (mut cluster, first, second) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let stopped = start(first.path(), &cluster, &["--shards", "2"]);
    stopped.wait_for_line("the database is connected");
    let mut client = stopped.connect();
    client.reserve(1, 1);
    client.wait_for_postgres();
    // The first server still updates its heartbeat in Postgres.
    assert_refused(second.path(), &cluster, &[], &["another server is running", "stop that server"]);
    let more = ["--shards", "2", "--recover-from", "postgres"];
    assert_refused(second.path(), &cluster, &more, &["another server is running", "stop that server"]);
    // When the first server is stopped, it has records that Postgres lacks.
    cluster.kill();
    let lost = client.reserve(1, 2);
    assert_eq!(client.purchase(&lost).status, 200);
    stopped.signal(Signal::STOP);
    cluster.go_on();
    let server = start(second.path(), &cluster, &more);
    let line = server.wait_for_line("waiting for the database");
    assert!(line["why"].as_str().unwrap().contains("has not reported for 15 s"), "{line}");
    let mut client = server.connect();
    assert_eq!(client.checkout(2, 1).problem(), "item-reserved");
    client.reserve(2, 2);
    client.wait_for_postgres();
    stopped.signal(Signal::CONT);
    assert_eq!(stopped.wait_for_line("cannot use the database")["exit_code"], 8);
    assert_eq!(stopped.wait().code(), Some(8));
    assert!(server.terminate().success());
    assert_eq!(cluster.ask("select count(*), count(distinct item_id) from checkouts where outcome = 0"), "2|2");
    assert_eq!(cluster.count("select count(*) from purchases"), 0);
}

#[test]
fn an_empty_data_directory_waits_for_the_database() {
    let (mut cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    cluster.kill();
    let url = cluster.url();
    let server = Server::spawn(dir.path(), &arguments(&url, &[]));
    let line = server.wait_for_line("waiting for the database");
    assert!(line["why"].as_str().is_some_and(|why| !why.is_empty()), "{line}");
    let mut client = server.connect();
    let ready = client.request("GET /readyz");
    assert_eq!((ready.status, &ready.json()["status"]), (503, &"recovering".into()));
    assert_eq!(client.checkout(1, 1).problem(), "not-ready");
    for page in ["/sale", "/items", "/items/1", "/items/1/image.svg"] {
        assert_eq!(client.request(&format!("GET {page}")).problem(), "not-ready", "{page}");
    }
    assert!(server.terminate().success(), "the server can be stopped while it waits");
    let server = Server::start(other.path(), &arguments(&url, &["--recover-from", "log"]));
    server.connect().reserve(1, 1);
    server.kill();
    let server = Server::spawn(dir.path(), &arguments(&url, &[]));
    server.wait_for_line("waiting for the database");
    cluster.go_on();
    server.wait_for_line("serving");
    server.connect().reserve(1, 1);
}

#[test]
fn an_older_data_directory_is_refused_or_set_aside() {
    let (cluster, dir, spare) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    client.purchase(&code);
    assert!(server.terminate().success());
    let old = spare.path().join("old");
    copy_dir(dir.path(), &old);
    let server = start(dir.path(), &cluster, &[]);
    let mut client = server.connect();
    let code = client.reserve(1, 2);
    client.purchase(&code);
    assert!(server.terminate().success());

    let text = ["another run of this installation", "--recover-from postgres"];
    assert_refused(&old, &cluster, &[], &text);
    assert_refused(&old, &cluster, &["--recover-from", "log"], &text);
    let server = start(&old, &cluster, &["--recover-from", "postgres"]);
    server.wait_for_line("the log is set aside");
    assert!(old.join("set-aside-1/control.json").exists());
    let mut client = server.connect();
    assert_eq!(client.sale()["sold"], 2);
    assert_eq!(client.checkout(9, 2).problem(), "item-sold");
    assert!(server.terminate().success());
    // Without a contradiction, the server sets no log aside, even with `--recover-from postgres`.
    let server = start(&old, &cluster, &["--recover-from", "postgres"]);
    assert_eq!(server.connect().sale()["sold"], 2);
    assert!(server.terminate().success() && !old.join("set-aside-2").exists());
    assert_refused(dir.path(), &cluster, &[], &text);

    // The log is lost, but the control file is not.
    std::fs::remove_dir_all(old.join("log")).unwrap();
    let (url, parts) = (cluster.url(), ["segments were deleted", "--recover-from postgres"]);
    harness::assert_refused(&old, &[&LONG_SALE[..], &["--database-url", &url]].concat(), 6, &parts);
    // The server restores the sale from Postgres.
    let server = start(&old, &cluster, &["--recover-from", "postgres"]);
    assert_eq!(server.connect().sale()["sold"], 2);
    assert!(server.terminate().success());
}

#[test]
fn a_damaged_log_is_refused_or_set_aside() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--shards", "1"]);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    client.purchase(&code);
    assert!(server.terminate().success());
    assert!(start(dir.path(), &cluster, &[]).terminate().success()); // This start seals the log.
    let first = dir.path().join("log/purchases-0000000001-00000-000000000000-1024.log");
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    harness::assert_refused(dir.path(), &arguments(&cluster.url(), &[]), 6, &["--recover-from postgres"]);
    // The server sets no log aside if the database is empty.
    let empty = Cluster::start();
    let more = ["--recover-from", "postgres"];
    harness::assert_refused(dir.path(), &arguments(&empty.url(), &more), 6, &[]);
    assert!(!dir.path().join("set-aside-1").exists());
    let server = start(dir.path(), &cluster, &more);
    assert_eq!(server.connect().checkout(2, 1).problem(), "item-sold");
    assert!(server.terminate().success());
}

#[test]
fn an_older_database_is_brought_up_to_date_or_refused() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let sell = |server: &Server, items: std::ops::Range<u32>| {
        let mut client = server.connect();
        for item in items {
            let code = client.reserve(i64::from(item), item);
            assert_eq!(client.purchase(&code).status, 200);
        }
        client.wait_for_postgres();
    };
    let sold = "select count(*), count(distinct item_id) from purchases";
    let server = start(dir.path(), &cluster, &["--shards", "2"]);
    sell(&server, 0..10);
    cluster.kill();
    cluster.save("older");
    cluster.go_on();
    sell(&server, 10..20);
    // The database is restored to an older state during this run. The log still has every record.
    cluster.kill();
    cluster.restore("older");
    assert_eq!(server.wait_for_line("the database is unavailable")["level"], "WARN");
    cluster.go_on();
    server.wait_for_line("the database has lost committed records");
    server.wait_for_line("the database is connected");
    sell(&server, 20..30);
    assert_eq!(cluster.ask(sold), "30|30");
    assert!(server.terminate().success());
    assert!(start(dir.path(), &cluster, &[]).terminate().success());

    // The database is restored to a state that lacks a whole run.
    cluster.kill();
    cluster.restore("older");
    cluster.go_on();
    assert_refused(dir.path(), &cluster, &[], &["its last run has epoch 1", "--recover-from log"]);
    assert_refused(dir.path(), &cluster, &["--recover-from", "postgres"], &["--recover-from log"]);
    let server = start(dir.path(), &cluster, &["--recover-from", "log"]);
    sell(&server, 30..40);
    assert_eq!(cluster.ask(sold), "40|40", "the log still has every record");
    assert!(server.terminate().success());

    // Another database, which is empty.
    let fresh = Cluster::start();
    assert_refused(dir.path(), &fresh, &[], &["it is empty", "--recover-from log"]);
    assert!(start(dir.path(), &fresh, &["--recover-from", "log"]).terminate().success());
    assert_eq!(fresh.ask(sold), "40|40");
}

#[test]
fn another_installations_database_is_refused_or_gone_on_with() {
    let (cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    server.connect().reserve(1, 1);
    assert!(server.terminate().success());
    let stranger = Server::start(other.path(), &LONG_SALE);
    stranger.connect().reserve(5, 5);
    assert!(stranger.terminate().success());
    assert_refused(other.path(), &cluster, &[], &["belongs to another installation", "--recover-from postgres"]);
    let (hourly, url) = (tempfile::tempdir().unwrap(), cluster.url());
    harness::assert_refused(hourly.path(), &["--database-url", &url], 8, &["--sale-period 31536000s"]);
    let server = start(other.path(), &cluster, &["--recover-from", "postgres"]);
    let mut client = server.connect();
    assert_eq!(client.checkout(2, 1).problem(), "item-reserved");
    client.reserve(5, 5);
    assert!(server.terminate().success());
}
