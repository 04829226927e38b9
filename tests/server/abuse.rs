//! Tests with clients that try to exceed a limit: the quota, one purchase per code, a share of the shard, or memory.

use crate::harness::{LONG_SALE, Server};
use crate::load::{connect, crowd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[test]
fn a_hoarder_never_holds_more_than_ten() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "4"]].concat());
    let held = AtomicU32::new(0);
    crowd(32, |number| {
        let mut client = connect(server.address);
        for item in (number * 100)..(number * 100 + 100) {
            match client.checkout(42, item).outcome().as_str() {
                "200" => _ = held.fetch_add(1, Ordering::Relaxed),
                "user-limit" => {}
                other => panic!("{other}"),
            }
        }
    });
    assert_eq!(held.into_inner(), 10);
    assert_eq!(server.connect().sale()["reserved"], 10);
}

#[test]
fn a_thousand_purchases_of_one_code_buy_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "3"]].concat());
    let mut client = server.connect();
    for (item, keyed) in [(1, 0), (2, 0), (3, 500)] {
        let code = client.reserve(1, item);
        let bought = AtomicU32::new(0);
        let bought_keyed = AtomicU32::new(0);
        crowd(50, |number| {
            let mut client = connect(server.address);
            for turn in 0..20 {
                let has_key = number * 20 + turn < keyed;
                let fields = if has_key { "Idempotency-Key: same\r\n" } else { "" };
                let response = client.try_request(&format!("POST /purchase?code={code}"), fields).unwrap();
                match response.outcome().as_str() {
                    "200" if has_key => _ = bought_keyed.fetch_add(1, Ordering::Relaxed),
                    "200" => _ = bought.fetch_add(1, Ordering::Relaxed),
                    "code-used" => {}
                    other => panic!("{other}"),
                }
            }
        });
        let (bought, bought_keyed) = (bought.into_inner(), bought_keyed.into_inner());
        // Either one purchase without a key succeeds, or every purchase with the key succeeds.
        assert!(
            (bought, bought_keyed) == (1, 0) || (bought, bought_keyed) == (0, keyed) && keyed > 0,
            "{bought} and {bought_keyed}"
        );
    }
    assert_eq!(client.sale()["sold"], 3);
}

/// Clients that pipeline requests without a pause must not delay the flush of the log.
#[test]
fn a_busy_shard_still_sells() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    let is_over = AtomicBool::new(false);
    let pipelined = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect(server.address);
                client.send(pipelined.as_bytes()).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    client.send(pipelined.as_bytes()).unwrap();
                    (0..64).for_each(|_| assert_eq!(client.read().unwrap().status, 200));
                }
            });
        }
        let mut client = server.connect();
        for item in 0..100 {
            let code = client.reserve(i64::from(item), item);
            assert_eq!(client.purchase(&code).status, 200);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A client that sends requests and reads no responses costs a bounded amount of memory.
#[test]
fn who_does_not_read_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    let rude = Mutex::new(Vec::new());
    let before = server.resident_kib();
    let flood = "GET /sale HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    // Each client sends until the server stops reading from its connection.
    crowd(50, |_| {
        let mut client = connect(server.address);
        client.send_until_stuck(flood.as_bytes());
        rude.lock().unwrap().push(client);
    });
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert_eq!(client.purchase(&code).status, 200);
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 50 * 200, "{grown} KiB for 50 clients");
}

/// Ten thousand pipelined requests are answered in order.
#[test]
fn a_long_pipeline_is_served_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let mut client = server.connect();
    let mut writer = client.another_handle();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let line = |turn: u32| match turn % 3 {
                0 => format!("POST /checkout?user_id={turn}&item_id={} HTTP/1.1\r\nHost: x\r\n\r\n", turn % 10_000),
                1 => "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
                _ => "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            };
            writer.send((0..10_000).map(line).collect::<String>().as_bytes()).unwrap();
            writer.finish();
        });
        for turn in 0..10_000 {
            let expected = [200, 200, 404][turn % 3];
            assert_eq!(client.read().unwrap().status, expected, "turn {turn}");
        }
        assert!(client.is_closed());
    });
}
