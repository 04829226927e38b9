//! Sales of a plan that are open at once: a checkout names its sale, and each sale has its stock, its quotas and its end.

use crate::events::Listener;
use crate::harness::{Client, Server};
use crate::planned::{PLAN, now_s, product, sale, write};
use serde_json::Value;
use std::time::Duration;

fn checkout(client: &mut Client, parameters: &str) -> String {
    client.request(&format!("POST /checkout?{parameters}")).outcome()
}

fn counts(client: &mut Client, sale: u32) -> [u64; 3] {
    let page = client.request(&format!("GET /sales/{sale}")).json();
    ["sold", "reserved", "available"].map(|name| page[name].as_u64().unwrap())
}

#[test]
fn sales_that_overlap_are_sold_side_by_side() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let closes = now + 6;
    let plan = |pause: &str| {
        [
            sale(3, (now - 60, now + 3600), "user_limit = 1", &product("a", 3)),
            sale(4, (now - 30, closes), "user_limit = 2", &product("a", 5)),
            sale(5, (now - 20, now + 3600), &format!("user_limit = 9\n{pause}"), &product("a", 2)),
            sale(7, (now + 1800, now + 3600), "user_limit = 9", &product("a", 2)),
        ]
    };
    write(dir.path(), &plan("paused = true"));
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    for parameters in ["user_id=1", "user_id=1&item_id=0"] {
        let unnamed = client.request(&format!("POST /checkout?{parameters}"));
        assert_eq!((unnamed.status, &*unnamed.problem()), (400, "invalid-parameter"));
        assert!(unnamed.body.contains("several sales are open"), "{}", unnamed.body);
    }
    let in_3 = client.request("POST /checkout?user_id=1&item_id=0&sale_id=3").body;
    let key = "Idempotency-Key: k\r\n";
    let in_4 = client.try_request("POST /checkout?user_id=1&item_id=0&sale_id=4", key).unwrap().body;
    assert_ne!(in_3, in_4);
    let again = client.try_request("POST /checkout?user_id=1&item_id=0", key).unwrap();
    assert_eq!(again.body, in_4, "a repetition finds its hold without the name, too");
    assert_eq!(checkout(&mut client, "user_id=1&sale_id=3"), "user-limit");
    assert_eq!(checkout(&mut client, "user_id=2&item_id=0&sale_id=3"), "item-reserved");
    assert_eq!(checkout(&mut client, "user_id=2&item_id=4&sale_id=3"), "invalid-parameter", "sale 3 has 3 items");
    assert_eq!([counts(&mut client, 3), counts(&mut client, 4)], [[0, 1, 2], [0, 1, 4]]);
    for (sale, problem) in [(5, "paused"), (7, "not-open"), (6, "invalid-parameter"), (2, "invalid-parameter")] {
        for item in ["", "&item_id=1"] {
            assert_eq!(checkout(&mut client, &format!("user_id=3&sale_id={sale}{item}")), problem, "{sale}");
        }
    }

    // All sales come back.
    server.kill();
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    assert_eq!([counts(&mut client, 3), counts(&mut client, 4)], [[0, 1, 2], [0, 1, 4]]);
    assert_eq!(client.purchase(&in_3).status, 200);
    for user in 2..4 {
        let code = client.request(&format!("POST /checkout?user_id={user}&sale_id=3")).body;
        assert_eq!(client.purchase(&code).status, 200);
    }
    assert_eq!(checkout(&mut client, "user_id=9&sale_id=3"), "sold-out");
    assert_eq!([counts(&mut client, 3), counts(&mut client, 4)], [[3, 0, 0], [0, 1, 4]]);

    // Sale 4 closes, and its hold is bought. Sale 5 goes on, and then it is the only one that grants anything.
    while now_s() <= closes {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(checkout(&mut client, "user_id=8&sale_id=4"), "sale-ended");
    let again = client.try_request("POST /checkout?user_id=1&item_id=0&sale_id=4", key).unwrap();
    assert_eq!(again.body, in_4);
    assert_eq!(client.purchase(&in_4).status, 200);
    assert_eq!(server.wait_for_line("the sale has ended")["sale"], 4);
    server.kill();
    write(dir.path(), &plan(""));
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    assert_eq!(client.request("POST /checkout?user_id=3&sale_id=5").status, 200, "the pause is over");
    assert_eq!([counts(&mut client, 3), counts(&mut client, 4)], [[3, 0, 0], [1, 0, 4]]);
    assert!(server.terminate().success());
}

/// Returns the kind, the sale, the phase and the counts of the next event.
fn next_event(listener: &mut Listener) -> (String, u64, String, [u64; 3]) {
    let (kind, data) = listener.hear().expect("the stream continues");
    let counts = ["sold", "reserved", "available"].map(|name| data[name].as_u64().unwrap());
    (kind, data["sale_id"].as_u64().unwrap(), data["phase"].as_str().unwrap_or_default().to_owned(), counts)
}

#[test]
fn every_open_sale_is_followed_live() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let (closes, opens) = (now + 8, now + 10);
    let plan = [
        sale(3, (now - 60, now + 3600), "user_limit = 9", &product("a", 3)),
        sale(4, (now - 30, closes), "user_limit = 2", &product("a", 5)),
        sale(7, (opens, now + 3600), "user_limit = 9", &product("a", 2)),
    ];
    write(dir.path(), &plan);
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    let mut reserve = |sale: u32| client.request(&format!("POST /checkout?user_id=1&sale_id={sale}")).body;
    let event = |kind: &str, sale, phase: &str, counts| (kind.to_owned(), sale, phase.to_owned(), counts);
    // Subscribers of both shards.
    let mut listeners: Vec<_> = (0..6).map(|_| Listener::connect(server.address)).collect();
    for listener in &mut listeners {
        assert_eq!(next_event(listener), event("sale", 3, "open", [0, 0, 3]), "in the order of the openings");
        assert_eq!(next_event(listener), event("sale", 4, "open", [0, 0, 5]));
    }
    let in_4 = reserve(4);
    listeners.iter_mut().for_each(|listener| assert_eq!(next_event(listener), event("stock", 4, "", [0, 1, 4])));
    let in_3 = reserve(3);
    listeners.iter_mut().for_each(|listener| assert_eq!(next_event(listener), event("stock", 3, "", [0, 1, 2])));
    // Sale 4 closes, which is told once, and sale 3 goes on.
    listeners.iter_mut().for_each(|listener| assert_eq!(next_event(listener), event("sale", 4, "closing", [0, 1, 4])));
    assert!(now_s() >= closes);
    assert_eq!(next_event(&mut Listener::connect(server.address)).1, 3, "a new subscriber does not hear of sale 4");
    assert_eq!(client.purchase(&in_4).status, 200);
    assert_eq!(client.purchase(&in_3).status, 200);
    for listener in &mut listeners {
        assert_eq!(next_event(listener), event("stock", 3, "", [1, 0, 2]), "not the stock of sale 4");
        assert_eq!(next_event(listener), event("sale", 7, "open", [0, 0, 2]));
    }
    assert!(now_s() >= opens);
    assert!(server.terminate().success());
    listeners.iter_mut().for_each(|listener| assert_eq!(listener.hear(), None));
}

/// Returns the ids, phases, names and pauses of a list of sales.
fn listed(client: &mut Client, query: &str) -> (u64, Vec<[String; 4]>) {
    let list = client.request(&format!("GET /sales{query}")).json();
    let of =
        |sale: &Value| ["sale_id", "phase", "name", "paused"].map(|field| sale[field].to_string().replace('"', ""));
    (list["sales_total"].as_u64().unwrap(), list["sales"].as_array().unwrap().iter().map(of).collect())
}

#[test]
fn all_sales_are_listed_in_the_order_of_their_openings() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let hourly = "user_limit = 1\nevery = \"1h\"";
    let plan = [
        sale(2, (now - 9000, now - 8000), "user_limit = 1", &product("a", 3)),
        sale(3, (now - 7300, now + 3600), "user_limit = 1", &product("a", 3)),
        sale(5, (now - 60, now + 60), "user_limit = 1\npaused = true", &product("a", 5)),
        sale(7, (now + 1800, now + 3600), "user_limit = 9", &product("a", 2)),
        sale(100, (now + 3700, now + 3800), hourly, &product("a", 2)),
    ];
    write(dir.path(), &plan);
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    let held = client.request("POST /checkout?user_id=1&sale_id=3");
    assert_eq!(held.status, 200);
    let known = [["3", "open", "Sale 3", "false"], ["5", "open", "Sale 5", "true"]];
    let coming = [["7", "next", "Sale 7", "false"], ["100", "next", "Sale 100", "false"]];
    let all: Vec<[String; 4]> = [known, coming].concat().iter().map(|sale| sale.map(str::to_owned)).collect();
    // The server did not run in the time of sale 2, so it does not know what was sold.
    assert_eq!(listed(&mut client, ""), (4, all.clone()));
    assert_eq!(listed(&mut client, "?offset=1&limit=2"), (4, all[1..3].to_vec()));
    assert_eq!(listed(&mut client, "?offset=4"), (4, vec![]));
    let list = client.request("GET /sales").json();
    for sale in list["sales"].as_array().unwrap() {
        assert_eq!(*sale, client.request(&format!("GET /sales/{}", sale["sale_id"])).json());
    }
    assert_eq!([&list["sales"][0]["reserved"], &list["sales"][0]["available"]], [1, 2]);
    assert_eq!(client.request("GET /sales/101").json()["phase"], "next", "a later opening of a repeated sale");
    for wrong in ["offset=x", "limit=0", "limit=201", "limit=1&limit=1"] {
        assert_eq!(client.request(&format!("GET /sales?{wrong}")).problem(), "invalid-parameter", "{wrong}");
    }
    assert!(server.terminate().success());
}

#[test]
fn without_a_plan_the_known_sales_are_listed_and_nothing_that_comes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--sale-period", "2s", "--receipts", "1m", "--shards", "2"]);
    let mut client = server.connect();
    let first = client.sale()["sale_id"].as_u64().unwrap();
    server.wait_for_line("the sale has ended");
    let list = client.request("GET /sales").json();
    assert_eq!((&list["sales_total"], &list["sales"][0]["sale_id"]), (&2.into(), &first.into()), "{list}");
    assert_eq!([&list["sales"][0]["phase"], &list["sales"][1]["phase"]], ["closed", "open"]);
    assert!(list["sales"].as_array().unwrap().iter().all(|sale| sale.get("paused").is_none()), "{list}");
    assert!(server.terminate().success());
}
