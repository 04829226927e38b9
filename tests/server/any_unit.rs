//! Checkouts without an item, which reserve any free one.

use crate::harness::{Client, LONG_SALE, Response, Server};
use crate::load::{Promise, Promises, check_books, connect, crowd};
use crate::log_tool::dump;
use std::collections::BTreeSet;

const ITEMS: u32 = 500;
const BUYERS: u32 = 24;

fn start(dir: &std::path::Path, more: &[&str]) -> Server {
    Server::start(dir, &[&LONG_SALE[..], &["--shards", "3"], more].concat())
}

fn checkout_any(client: &mut Client, user: i64, fields: &str) -> Response {
    client.try_request(&format!("POST /checkout?user_id={user}"), fields).expect("the server keeps running")
}

#[test]
fn a_crowd_that_asks_for_any_item_buys_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["--items", "500", "--reservation-ttl", "1h"]);
    let promises = Promises::default();
    crowd(BUYERS, |number| {
        let mut client = connect(server.address);
        for place in 0.. {
            let user = i64::from(number * 1_000 + place / 10);
            let held = checkout_any(&mut client, user, "Accept: application/json\r\n");
            match held.outcome().as_str() {
                "200" => {
                    let (item, code) = (held.json()["item_id"].as_u64().unwrap() as u32, held.json()["code"].clone());
                    let code = code.as_str().unwrap().to_owned();
                    assert_eq!(client.purchase(&code).status, 200);
                    promises.add(Promise { user, item, code, bought: true, unknown: false });
                }
                // The last items are being bought.
                "all-reserved" => {}
                "sold-out" => break,
                other => panic!("{other}"),
            }
        }
    });
    let promises = promises.take();
    let bought = check_books(&promises, 10);
    assert_eq!(bought.len(), ITEMS as usize, "every item is bought exactly once");
    crowd(BUYERS, |number| {
        let refused = checkout_any(&mut connect(server.address), i64::from(900_000 + number), "");
        assert_eq!((refused.problem().as_str(), refused.header("retry-after")), ("sold-out", None));
    });
    assert!(server.terminate().success());
    // After a restart with other shards, too. Every attempt is recorded.
    let server = start(dir.path(), &["--items", "500", "--shards", "2"]);
    assert_eq!(checkout_any(&mut server.connect(), 1, "").problem(), "sold-out");
    assert!(server.terminate().success());
    let lines = dump(dir.path(), &[]);
    let refused: Vec<_> = lines.iter().filter(|line| line["reason"] == "sold-out").collect();
    assert!(refused.len() >= 2 * BUYERS as usize, "{}", refused.len());
    assert!(refused.iter().all(|line| line["item_id"].is_null() && line["user_id"].is_number()));
}

/// The first hold to end says when to come back. A quota is one for all kinds of checkouts.
#[test]
fn a_checkout_of_any_item_waits_for_the_first_hold() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["--items", "7", "--user-limit", "4", "--reservation-ttl", "100s"]);
    let mut client = server.connect();
    let named = client.reserve(1, 5);
    let held: BTreeSet<String> = (0..3).map(|_| checkout_any(&mut client, 1, "").body).collect();
    assert_eq!(held.len(), 3);
    assert_eq!(checkout_any(&mut client, 1, "").problem(), "user-limit");
    assert_eq!(client.checkout(1, 5).problem(), "item-reserved");
    (0..3).for_each(|_| assert_eq!(checkout_any(&mut client, 2, "").status, 200));
    let seconds: BTreeSet<u32> = (0..6)
        .map(|_| {
            let refused = checkout_any(&mut server.connect(), 2, "");
            assert_eq!((refused.status, refused.problem().as_str()), (409, "all-reserved"), "{refused:?}");
            refused.header("retry-after").unwrap().parse().unwrap()
        })
        .collect();
    assert!(seconds.iter().all(|seconds| (50..=102).contains(seconds)) && seconds.len() > 1, "{seconds:?}");
    // An item that is released is found from every shard.
    assert_eq!(client.request(&format!("DELETE /checkout?code={named}")).status, 204);
    crate::harness::wait_until("the released item is found", || {
        checkout_any(&mut server.connect(), 2, "").status == 200
    });
    assert_eq!(client.sale()["available"], 0);
}
