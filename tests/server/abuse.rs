//! Buyers who try to get more than their share.

use crate::harness::{LONG_SALE, Server};
use crate::load::{connect, crowd};
use std::sync::atomic::{AtomicU32, Ordering};

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
        // Either one purchase without a key won, or the key did, and then everyone who showed it.
        assert!(
            (bought, bought_keyed) == (1, 0) || (bought, bought_keyed) == (0, keyed) && keyed > 0,
            "{bought} and {bought_keyed}"
        );
    }
    assert_eq!(client.sale()["sold"], 3);
}
