//! Checkouts without an item, which reserve any free one.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Response, Server, wait_until};
use crate::load::{Promise, Promises, check_books, connect, crowd};
use crate::log_tool::dump;
use serde_json::Value;
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
    wait_until("the released item is found", || checkout_any(&mut server.connect(), 2, "").status == 200);
    assert_eq!(client.sale()["available"], 0);
}

/// A held item and a bought item, with the answers to their checkouts.
struct Repeated {
    held: Value,
    bought: Value,
}

fn checkout_with_key(client: &mut Client, user: i64, key: &str) -> Response {
    checkout_any(client, user, &format!("Accept: application/json\r\nIdempotency-Key: {key}\r\n"))
}

impl Repeated {
    fn of(client: &mut Client) -> Repeated {
        let [held, bought] = ["held", "bought"].map(|key| checkout_with_key(client, 7, key).json());
        assert_ne!(held["item_id"], bought["item_id"], "a key belongs to one item");
        assert_eq!(client.purchase(bought["code"].as_str().unwrap()).status, 200);
        Repeated { held, bought }
    }

    /// Checks that repetitions get the same answers, from each shard, and that no other request does.
    fn check(&self, server: &Server, when: &str) {
        for _ in 0..8 {
            let mut client = server.connect();
            for (key, answer) in [("held", &self.held), ("bought", &self.bought)] {
                let again = checkout_with_key(&mut client, 7, key);
                assert_eq!((again.status, &again.json()), (200, answer), "{when}: {key}");
                let item = answer["item_id"].as_u64().unwrap() as u32;
                let named = client.checkout_with_key(7, item, key).problem();
                assert_eq!(named, if key == "held" { "item-reserved" } else { "item-sold" }, "{when}: by its number");
            }
        }
        let other = checkout_with_key(&mut server.connect(), 8, "held").json();
        assert!(other["item_id"] != self.held["item_id"] && other["item_id"] != self.bought["item_id"], "{when}");
    }
}

const KEYED: [&str; 6] = ["--items", "20", "--user-limit", "2", "--reservation-ttl", "1h"];

/// The quota of the user is used up, so that a new checkout would be refused.
#[test]
fn a_key_gets_the_same_item_across_kill_9_and_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &KEYED);
    let answers = Repeated::of(&mut server.connect());
    answers.check(&server, "at once");
    server.kill();
    for shards in ["1", "4"] {
        server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", shards], &KEYED].concat());
        answers.check(&server, "after kill -9");
        server.upgrade();
        answers.check(&server, "after an upgrade");
        server.kill();
    }
    let server = start(dir.path(), &KEYED);
    let mut client = server.connect();
    assert_eq!(checkout_with_key(&mut client, 7, "new").problem(), "user-limit");
    let code = answers.held["code"].as_str().unwrap();
    assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
    // The key is free again shortly after the release.
    let mut again = checkout_with_key(&mut client, 7, "held");
    wait_until("the released key gets an item", || {
        again = checkout_with_key(&mut client, 7, "held");
        again.status == 200
    });
    assert_ne!(again.json()["code"], answers.held["code"], "the hold of the key has ended");
    assert_eq!(checkout_with_key(&mut client, 7, "held").json(), again.json());
    assert!(server.terminate().success());
    let lines = dump(dir.path(), &["--user", "7"]);
    let keys = lines.iter().filter(|line| line["event"] == "checkout").map(|line| line["idempotency_key"].as_str());
    assert_eq!(keys.clone().count(), 3, "a repetition is not a checkout");
    assert_eq!(keys.collect::<BTreeSet<_>>().len(), 2, "both holds of one key have it");
}

#[test]
fn a_key_gets_the_same_item_across_a_takeover() {
    let (cluster, first, second) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let with_database = [&["--database-url", &url], &KEYED[..]].concat();
    let server = start(first.path(), &with_database);
    let mut client = server.connect();
    let answers = Repeated::of(&mut client);
    client.wait_for_postgres();
    assert!(server.terminate().success());
    let server = start(second.path(), &with_database);
    answers.check(&server, "after a takeover");
    assert!(server.terminate().success());
}

/// Many connections send the same checkout at the same time. Each answer has the same code.
#[test]
fn checkouts_with_one_key_at_the_same_time_get_one_item() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["--items", "1000", "--reservation-ttl", "1h"]);
    for round in 0..20 {
        let codes = std::sync::Mutex::new(BTreeSet::new());
        crowd(BUYERS, |_| {
            let answer = checkout_with_key(&mut connect(server.address), round, "k");
            assert_eq!(answer.status, 200, "{answer:?}");
            codes.lock().unwrap().insert(answer.json()["code"].as_str().unwrap().to_owned());
        });
        assert_eq!(codes.lock().unwrap().len(), 1, "round {round}");
    }
    assert_eq!(server.connect().sale()["reserved"], 20);
}
