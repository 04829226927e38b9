//! Checkouts that are repeated with an `Idempotency-Key`, and checkouts whose answers reach no client.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, skipped, wait_until};
use crate::history::History;
use crate::log_tool::dump;
use crate::service::Stuck;
use serde_json::Value;
use stampede::sale::ids::{ItemId, ShardId, UserId};
use stampede::sale::partition::Partition;
use std::any::Any;
use std::cell::RefCell;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Holds that do not expire during a test.
const LONG_HOLDS: [&str; 2] = ["--reservation-ttl", "1h"];

fn start(dir: &Path, more: &[&str]) -> Server {
    Server::start(dir, &[&LONG_SALE[..], &LONG_HOLDS, more].concat())
}

/// A held item and a bought item, with the answers to their checkouts.
struct Answers {
    held: Value,
    bought: Value,
}

impl Answers {
    fn of(client: &mut Client) -> Answers {
        let [held, bought] = [1, 2].map(|item| client.checkout_with_key(7, item, "k").json());
        let receipt = client.purchase(bought["code"].as_str().unwrap());
        assert_eq!(receipt.status, 200, "{receipt:?}");
        Answers { held, bought }
    }

    /// Checks that repetitions get the same answers, and that all other requests are refused.
    fn check(&self, client: &mut Client, when: &str) {
        for (item, answer, refusal) in [(1, &self.held, "item-reserved"), (2, &self.bought, "item-sold")] {
            for _ in 0..2 {
                let again = client.checkout_with_key(7, item, "k");
                assert_eq!((again.status, &again.json()), (200, answer), "{when}: item {item}");
            }
            assert_eq!(client.checkout_with_key(7, item, "other").problem(), refusal, "{when}: another key");
            assert_eq!(client.checkout_with_key(8, item, "k").problem(), refusal, "{when}: another user");
            assert_eq!(client.checkout(7, item).problem(), refusal, "{when}: no key");
        }
    }
}

#[test]
fn the_same_key_gets_the_same_code_across_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--shards", "2"]);
    let answers = Answers::of(&mut server.connect());
    answers.check(&mut server.connect(), "at once");
    for shards in ["1", "3"] {
        server.kill();
        server = start(dir.path(), &["--shards", shards]);
        answers.check(&mut server.connect(), "after kill -9");
    }
    let mut client = server.connect();
    assert_eq!(client.purchase(answers.held["code"].as_str().unwrap()).status, 200);
    assert_eq!(client.checkout_with_key(7, 1, "k").json(), answers.held, "after the purchase");
    assert!(server.terminate().success());
    let checkouts: Vec<_> = dump(dir.path(), &[]).into_iter().filter(|line| line["event"] == "checkout").collect();
    assert_eq!(checkouts.len(), 2, "a repetition is not a checkout");
    assert!(checkouts.iter().all(|line| line["idempotency_key"].is_string()), "{checkouts:?}");
    assert_ne!(checkouts[0]["idempotency_key"], checkouts[1]["idempotency_key"], "a key belongs to its item");
}

#[test]
fn the_same_key_gets_the_same_code_across_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--shards", "2"]);
    let mut client = server.connect();
    let answers = Answers::of(&mut client);
    for _ in 0..2 {
        server.upgrade();
        // The connection is the one from before the upgrade.
        answers.check(&mut client, "after an upgrade");
    }
    assert!(server.terminate().success());
}

#[test]
fn the_same_key_gets_the_same_code_across_a_takeover() {
    let (cluster, first, second) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let with_database = |shards| ["--database-url", &url, "--shards", shards];
    let server = start(first.path(), &with_database("2"));
    let mut client = server.connect();
    let answers = Answers::of(&mut client);
    client.reserve(9, 9);
    client.wait_for_postgres();
    assert!(server.terminate().success());
    let mut keys: Vec<_> = dump(first.path(), &["--user", "7"]).into_iter().collect();
    keys.retain(|line| line["event"] == "checkout");
    keys.sort_by_key(|line| line["item_id"].as_u64());
    let keys: Vec<_> = keys.iter().map(|line| line["idempotency_key"].as_str().unwrap()).collect();
    let rows = "select idempotency_key from checkouts where idempotency_key is not null order by item_id";
    assert_eq!(cluster.ask(rows), keys.join("\n"), "Postgres has the keys of the log");
    for (dir, shards) in [(second.path(), "3"), (second.path(), "1")] {
        let server = start(dir, &with_database(shards));
        answers.check(&mut server.connect(), "after a takeover");
        server.kill();
    }
}

/// A database with the schema of version 0.1 and rows in it gets the new column.
#[test]
fn an_older_schema_is_migrated() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    cluster.ask(include_str!("../../sql/0001_schema.sql"));
    cluster.ask("create table schema_migrations (version integer primary key, applied_at timestamptz default now())");
    cluster.ask("insert into schema_migrations values (1)");
    cluster.ask("select prepare_sale(3)");
    cluster.ask("insert into checkouts values (3, 1, 2, null, 1, now(), null)");
    let url = cluster.url();
    let server = start(dir.path(), &["--database-url", &url]);
    let mut client = server.connect();
    let answers = Answers::of(&mut client);
    client.wait_for_postgres();
    assert!(server.terminate().success());
    assert_eq!(cluster.count("select max(version) from schema_migrations"), 12);
    let rows = "select sale_id = 3, outcome, idempotency_key is null from checkouts order by sale_id, item_id";
    assert_eq!(cluster.ask(rows), "t|1|t\nf|0|f\nf|0|f");
    let codes = [&answers.held, &answers.bought].map(|answer| answer["code"].as_str().unwrap());
    assert_eq!(cluster.ask("select code from checkouts where outcome = 0 order by item_id"), codes.join("\n"));
}

/// A server with two shards, of which the second can be stopped. The connections are on the first.
struct Scene {
    server: Server,
    /// Items and users that the second shard owns.
    items: Vec<u32>,
    users: Vec<i64>,
    /// Users that the first shard owns.
    other_users: Vec<i64>,
    /// Connections that stay open, so that the number of connections only grows.
    kept: RefCell<Vec<Box<dyn Any>>>,
}

impl Scene {
    fn new(dir: &Path) -> Scene {
        let server = start(dir, &["--shards", "2", "--items", "100"]);
        let (partition, second) = (Partition::new(2), ShardId(1));
        let items = (0..100).filter(|item| partition.owner_of_item(ItemId(*item)) == second).collect();
        let (users, other_users) = (1..100).partition(|user| partition.owner_of_user(UserId(*user)) == second);
        Scene { server, items, users, other_users, kept: RefCell::default() }
    }

    /// Opens connections until one is on the first shard: it increases that shard's count. Returns it.
    fn on_first_shard<C: 'static>(&self, connect: impl Fn(&Server) -> C) -> C {
        let mut watcher = self.server.connect();
        let mut counts = || {
            let health = watcher.request("GET /health").json();
            [0, 1].map(|shard| health["shards"][shard]["connections"].as_u64().unwrap())
        };
        let mut before = counts();
        let client = loop {
            let client = connect(&self.server);
            // The shard accepts the connection after this thread has connected.
            let mut now = before;
            wait_until("the connection is accepted", || {
                now = counts();
                now[0] + now[1] > before[0] + before[1]
            });
            if now[0] > before[0] {
                break client;
            }
            before = now;
            self.kept.borrow_mut().push(Box::new(client));
        };
        self.kept.borrow_mut().push(Box::new(watcher));
        client
    }
}

/// The first shard has read the requests when their clients disconnect with a reset, and the second shard then decides
/// on them. In one case, the second shard learns of the disconnect before it has sent the answer; in the other case, the
/// first shard receives the answer and has no client for it.
#[test]
fn a_hold_is_released_if_its_client_disconnects_before_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path());
    let server = &scene.server;
    History::at(server.address).leave_gap();
    // It stays connected: `on_first_shard` needs a number of connections that only grows.
    let mut buyer = server.connect();
    let bought = buyer.reserve(scene.users[9], scene.items[9]);
    let requests = [
        format!("POST /checkout?user_id={}&item_id={}", scene.users[0], scene.items[0]),
        format!("POST /checkout?user_id={}&item_id={}", scene.other_users[0], scene.items[1]),
        format!("POST /purchase?code={bought}"),
    ];
    let sockets =
        requests.each_ref().map(|_| scene.on_first_shard(|server| TcpStream::connect(server.address).unwrap()));
    let stuck = match Stuck::shard(server, 1) {
        Ok(stuck) => stuck,
        Err(error) => return skipped("disconnected clients", error),
    };
    for (mut socket, request) in sockets.iter().zip(&requests) {
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n\r\n");
        let asked = || server.metric("stampede_lane_messages_total") + server.metric("stampede_lane_waiting_messages");
        let before = asked();
        socket.write_all(request.as_bytes()).unwrap();
        wait_until("the first shard has read the request and waits for the second", || asked() > before);
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(sockets);
    thread::sleep(Duration::from_millis(100));
    stuck.release_to();
    let mut client = server.connect();
    for item in &scene.items[..2] {
        let mut reserve = || client.checkout(scene.users[1], *item).outcome() == "200";
        wait_until("the item is available again", &mut reserve);
    }
    wait_until("the purchase is durable", || client.sale()["sold"] == 1);
    let limit = client.sale()["user_limit"].as_u64().unwrap() as usize;
    for user in [scene.users[0], scene.other_users[0]] {
        let mut left = scene.items[10..].iter().skip(if user == scene.users[0] { 0 } else { limit });
        (0..limit).for_each(|_| _ = client.reserve(user, *left.next().unwrap()));
    }
    let log = dir.path();
    for (item, user) in [(scene.items[0], scene.users[0]), (scene.items[1], scene.other_users[0])] {
        let lines = dump(log, &["--item", &item.to_string(), "--user", &user.to_string()]);
        let events: Vec<_> = lines.iter().map(|line| (&line["event"], &line["reason"])).collect();
        assert_eq!(events, [(&"checkout".into(), &Value::Null), (&"released".into(), &"cancelled".into())]);
    }
}

/// A checkout with a key that was answered 503 `overdue` is repeated, and gets the hold of the first request. Without a
/// key, the hold is released.
#[test]
fn an_overdue_checkout_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path());
    let server = &scene.server;
    let [mut first, mut other] = [(); 2].map(|()| scene.on_first_shard(Server::connect));
    let stuck = match Stuck::shard(server, 1) {
        Ok(stuck) => stuck,
        Err(error) => return skipped("overdue checkouts", error),
    };
    let (user, items) = (scene.users[0], &scene.items);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(first.checkout_with_key(user, items[0], "k").problem(), "overdue"));
        scope.spawn(|| assert_eq!(other.checkout(user, items[1]).problem(), "overdue"));
    });
    stuck.release_to();
    let mut client = server.connect();
    let answer = client.checkout_with_key(user, items[0], "k");
    assert_eq!(answer.status, 200, "{answer:?}");
    wait_until("the hold without a key is released", || client.checkout(scene.users[1], items[1]).outcome() == "200");
    let grants = dump(dir.path(), &["--item", &items[0].to_string(), "--user", &user.to_string()]);
    assert_eq!(grants.len(), 1, "the repetition gets the hold of the first request: {grants:?}");
    assert_eq!((&grants[0]["code"], &grants[0]["expires_at"]), (&answer.json()["code"], &answer.json()["expires_at"]));
}
