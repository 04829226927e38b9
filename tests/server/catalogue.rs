//! Tests of the endpoints for items: names, images and states.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, wait_until};
use serde_json::{Value, json};
use stampede::sale::ids::{ItemId, SaleId};
use stampede::sale::item_name::ItemName;
use std::collections::BTreeSet;

/// Reads every item, in pages of `limit`.
fn items(client: &mut Client, limit: usize) -> Vec<Value> {
    let mut items = Vec::new();
    loop {
        let page = client.request(&format!("GET /items?offset={}&limit={limit}", items.len())).json();
        let more = page["items"].as_array().unwrap();
        assert!(more.len() <= limit);
        if more.is_empty() {
            assert_eq!(page["items_total"], items.len());
            return items;
        }
        items.extend(more.iter().cloned());
    }
}

fn with_state(items: &[Value], state: &str) -> BTreeSet<u64> {
    let items = items.iter().filter(|item| item["state"] == state);
    items.map(|item| item["item_id"].as_u64().unwrap()).collect()
}

/// Checks that exactly these items are reserved and sold, and that `GET /sale` and `GET /items/{id}` agree.
fn assert_stand(client: &mut Client, reserved: &[u64], sold: &[u64]) {
    let (items, sale) = (items(client, 200), client.sale());
    assert_eq!(with_state(&items, "reserved"), reserved.iter().copied().collect());
    assert_eq!(with_state(&items, "sold"), sold.iter().copied().collect());
    for state in ["available", "reserved", "sold"] {
        assert_eq!(with_state(&items, state).len() as u64, sale[state].as_u64().unwrap(), "{state}: {sale}");
    }
    for item in items.iter().step_by(7) {
        let mut one = client.request(&format!("GET /items/{}", item["item_id"])).json();
        assert_eq!(one.as_object_mut().unwrap().remove("sale_id"), Some(sale["sale_id"].clone()));
        assert_eq!(one, *item);
    }
}

fn image(client: &mut Client, item: u64) -> (String, String) {
    let response = client.request(&format!("GET /items/{item}/image.svg"));
    assert_eq!((response.status, response.header("content-type")), (200, Some("image/svg+xml")), "{response:?}");
    (response.header("etag").expect("an etag").to_owned(), response.body)
}

#[test]
fn pages_together_are_the_stock() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "4", "--items", "431"]].concat());
    let mut client = server.connect();
    let sale = client.sale()["sale_id"].as_u64().unwrap();
    for limit in [1, 7, 50, 200] {
        let items = items(&mut client, limit);
        assert_eq!(items.len(), 431);
        for (id, item) in (0..).zip(items) {
            let name = ItemName(SaleId(sale as u32), ItemId(id)).to_string();
            let image = format!("/items/{id}/image.svg");
            assert_eq!(item, json!({ "item_id": id, "name": name, "image": image, "state": "available" }));
        }
    }
    let mut page = |query: &str| {
        let mut page = client.request(&format!("GET /items{query}")).json();
        let first = page["items"].as_array().unwrap().first().map(|item| item["item_id"].clone());
        let items = page.as_object_mut().unwrap().remove("items").unwrap().as_array().unwrap().len();
        assert_eq!((&page["sale_id"], &page["items_total"]), (&json!(sale), &json!(431)));
        (page["offset"].as_u64().unwrap(), page["limit"].as_u64().unwrap(), items, first)
    };
    assert_eq!(page(""), (0, 50, 50, Some(json!(0))));
    assert_eq!(page("?offset=425"), (425, 50, 6, Some(json!(425))));
    assert_eq!(page("?limit=3&offset=430"), (430, 3, 1, Some(json!(430))));
    assert_eq!(page("?offset=431"), (431, 50, 0, None));
    assert_eq!(page("?offset=4294967295&limit=200"), (4_294_967_295, 200, 0, None));
    assert!(server.terminate().success());
}

#[test]
fn readers_are_told_how_items_stand() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--shards", "4", "--items", "300", "--reservation-ttl", "1h"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &settings].concat());
    // Every shard must return the same states, whichever of them serves a reader.
    let mut readers: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    let mut stand = |reserved: &[u64], sold: &[u64]| {
        readers.iter_mut().for_each(|reader| assert_stand(reader, reserved, sold));
    };
    let mut client = server.connect();
    stand(&[], &[]);
    let codes: Vec<_> = (0..8).map(|item| client.reserve(item, item as u32)).collect();
    stand(&[0, 1, 2, 3, 4, 5, 6, 7], &[]);
    codes[..4].iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    stand(&[4, 5, 6, 7], &[0, 1, 2, 3]);
    for code in &codes[4..6] {
        assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
    }
    stand(&[6, 7], &[0, 1, 2, 3]);
    // A refused checkout changes no state.
    assert_eq!(client.checkout(9, 0).problem(), "item-sold");
    assert_eq!(client.checkout(9, 7).problem(), "item-reserved");
    (10..20).for_each(|item| drop(client.reserve(9, item)));
    assert_eq!(client.checkout(9, 20).problem(), "user-limit");
    stand(&[&[6, 7], &(10..20).collect::<Vec<_>>()[..]].concat(), &[0, 1, 2, 3]);
    assert!(server.terminate().success());
}

#[test]
fn what_runs_out_is_shown_to_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--shards", "4", "--items", "20", "--reservation-ttl", "1s"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &settings].concat());
    let mut client = server.connect();
    (0..8).for_each(|item| drop(client.reserve(item, item as u32)));
    wait_until("the holds have expired", || client.sale()["reserved"] == 0);
    assert_stand(&mut client, &[], &[]);
    assert!(server.terminate().success());
}

/// A client that pipelines `GET /sale` after a purchase sees its own purchase.
#[test]
fn who_asks_right_behind_a_purchase_finds_it_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1", "--items", "20"]].concat());
    let mut client = server.connect();
    for item in 0..10 {
        let code = client.reserve(1, item);
        let lines = [format!("POST /purchase?code={code}"), "GET /sale".into(), format!("GET /items/{item}")];
        let requests = lines.map(|line| format!("{line} HTTP/1.1\r\nHost: shop\r\n\r\n")).concat();
        client.send(requests.as_bytes()).unwrap();
        let [bought, sale, told] = [(); 3].map(|()| client.read().unwrap());
        assert_eq!(bought.status, 200);
        assert_eq!((&sale.json()["sold"], &told.json()["state"]), (&json!(item + 1), &json!("sold")));
    }
    assert!(server.terminate().success());
}

#[test]
fn names_images_and_states_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let start = |shards| {
        let settings = ["--shards", shards, "--items", "120", "--reservation-ttl", "1h"];
        Server::start(dir.path(), &[&LONG_SALE[..], &settings].concat())
    };
    let mut server = start("3");
    let mut client = server.connect();
    let codes: Vec<String> = (0..9).map(|item| client.reserve(item, item as u32)).collect();
    codes[..4].iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    let known = items(&mut client, 200);
    let images: Vec<_> = (0..120).map(|item| image(&mut client, item)).collect();
    let check = |server: &Server| {
        let mut client = server.connect();
        assert_eq!(items(&mut client, 200), known);
        assert_stand(&mut client, &[4, 5, 6, 7, 8], &[0, 1, 2, 3]);
        for (item, known) in (0..).zip(&images) {
            assert_eq!(image(&mut client, item), *known, "{item}");
        }
    };
    check(&server);
    server.upgrade();
    check(&server);
    server.kill();
    let server = start("2");
    check(&server);
    assert!(server.terminate().success());
    let server = start("4");
    check(&server);
    // A hold from an earlier run can be cancelled, and its item is then available.
    let mut client = server.connect();
    assert_eq!(client.request(&format!("DELETE /checkout?code={}", codes[8])).status, 204);
    assert_stand(&mut client, &[4, 5, 6, 7], &[0, 1, 2, 3]);
    assert!(server.terminate().success());
}

#[test]
fn an_image_is_kept_until_the_sale_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--sale-period", "4s", "--items", "20", "--shards", "1"]);
    let mut client = server.connect();
    let get = |client: &mut Client, method: &str, known: &str| {
        let fields = if known.is_empty() { String::new() } else { format!("If-None-Match: {known}\r\n") };
        client.try_request(&format!("{method} /items/7/image.svg"), &fields).unwrap()
    };
    let max_age = |client: &mut Client| -> u64 {
        let caching = get(client, "GET", "").header("cache-control").unwrap().to_owned();
        caching.strip_prefix("public, max-age=").unwrap().parse().unwrap()
    };
    let this_sale = loop {
        let sale = client.sale()["sale_id"].clone();
        let first = get(&mut client, "GET", "");
        let tag = first.header("etag").unwrap().to_owned();
        let other = image(&mut client, 8);
        let age = max_age(&mut client);
        let same = [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".into()]
            .map(|known| get(&mut client, "GET", &known));
        let others = [other.0.clone(), "\"x\"".into()].map(|known| get(&mut client, "GET", &known));
        client.send(b"HEAD /items/7/image.svg HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        let head = client.read_head().unwrap();
        if client.sale()["sale_id"] != sale {
            // The sale ended before all responses were read: try again in the next one.
            continue;
        }
        assert!(age <= 4, "{age}");
        assert_ne!(other, (tag.clone(), first.body.clone()));
        for same in same {
            assert_eq!(
                (same.status, same.header("etag"), same.body.as_str()),
                (304, Some(tag.as_str()), ""),
                "{same:?}"
            );
            assert!(same.header("cache-control").is_some() && same.header("content-length").is_none(), "{same:?}");
        }
        others.iter().for_each(|other| assert_eq!((other.status, &other.body), (200, &first.body)));
        assert_eq!((head.status, head.header("etag")), (200, Some(tag.as_str())));
        assert_eq!(head.header("content-length"), None, "the image is not drawn for HEAD");
        break (sale, tag, first.body);
    };
    let (sale, tag, body) = this_sale;
    wait_until("the sale has ended", || client.sale()["sale_id"] != sale);
    let next = get(&mut client, "GET", &tag);
    assert_eq!(next.status, 200, "{next:?}");
    assert_ne!(next.body, body);
    assert!(server.terminate().success());
}

/// A receipt names the image of its own sale, which the next sale does not change.
#[test]
fn the_image_of_a_receipt_outlives_its_sale() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--sale-period", "2s", "--items", "20", "--shards", "2"]);
    let mut client = server.connect();
    let receipt = loop {
        let reserved = client.checkout(1, 7);
        // The sale may end between the two requests: try again in the next one.
        let bought = client.purchase(&reserved.body);
        if bought.status == 200 {
            break bought.json();
        }
    };
    let (sale, path) = (&receipt["sale_id"], receipt["item_image"].as_str().unwrap());
    assert_eq!(path, format!("/items/7/image.svg?sale={sale}"));
    let first = client.request(&format!("GET {path}"));
    assert_eq!((first.status, first.header("content-type")), (200, Some("image/svg+xml")));
    assert_eq!(first.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert!(first.body.contains(receipt["item_name"].as_str().unwrap()), "{first:?}");
    wait_until("the sale has ended", || client.sale()["sale_id"] != *sale);
    let later = client.request(&format!("GET {path}"));
    assert_eq!((&later.body, later.header("etag")), (&first.body, first.header("etag")));
    let known = format!("If-None-Match: {}\r\n", first.header("etag").unwrap());
    let same = client.try_request(&format!("GET {path}"), &known).unwrap();
    assert_eq!((same.status, same.header("cache-control")), (304, first.header("cache-control")));
    assert_ne!(image(&mut client, 7).1, first.body, "without a sale, the path shows the current one");
    assert!(server.terminate().success());
}

/// Images of sales that have not begun, and of items that the sale cannot have, do not exist.
#[test]
fn images_of_earlier_sales_are_drawn_and_of_later_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--items", "20"]].concat());
    let mut client = server.connect();
    let sale = client.sale()["sale_id"].as_u64().unwrap();
    let mut get = |item: u32, sale: u64| client.request(&format!("GET /items/{item}/image.svg?sale={sale}"));
    for (item, sale) in [(0, sale), (19, sale), (20, sale - 1), (16_777_215, sale - 1), (7, 0)] {
        let drawn = get(item, sale);
        assert_eq!(drawn.status, 200, "{item} in {sale}: {drawn:?}");
        let name = ItemName(SaleId(sale as u32), ItemId(item)).to_string();
        assert!(drawn.body.contains(&name), "{name}: {drawn:?}");
    }
    for (item, sale) in [(20, sale), (0, sale + 1), (0, u32::MAX.into()), (16_777_216, sale - 1), (u32::MAX, 0)] {
        let refused = get(item, sale);
        assert_eq!((refused.status, refused.problem().as_str()), (404, "not-found"), "{item} in {sale}");
        assert_eq!(refused.header("cache-control"), Some("no-store"), "a later sale may have it");
    }
    // The current sale has the same image with and without its id, but only with it the image stays.
    let (tag, body) = image(&mut client, 7);
    let named = client.request(&format!("GET /items/7/image.svg?sale={sale}"));
    assert_eq!((named.header("etag"), &named.body), (Some(tag.as_str()), &body));
    assert!(server.terminate().success());
}

#[test]
fn what_is_asked_wrongly_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--items", "20"]].concat());
    let mut client = server.connect();
    for (query, name) in
        [("offset=x", "offset"), ("offset=1&offset=1", "offset"), ("limit=0", "limit"), ("limit=201", "limit")]
    {
        let refused = client.request(&format!("GET /items?{query}"));
        assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid-parameter"), "{query}");
        assert!(
            refused.json()["detail"].as_str().unwrap().contains(&format!("give {name} at most once")),
            "{refused:?}"
        );
    }
    for query in ["sale=", "sale=x", "sale=01", "sale=4294967296", "sale=1&sale=1"] {
        let refused = client.request(&format!("GET /items/1/image.svg?{query}"));
        assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid-parameter"), "{query}");
        assert!(refused.json()["detail"].as_str().unwrap().contains("give sale at most once"), "{refused:?}");
    }
    for path in ["/items/20", "/items/20/image.svg", "/items/x", "/items/01", "/items/", "/items/1/image.png"] {
        let refused = client.request(&format!("GET {path}"));
        assert_eq!((refused.status, refused.problem().as_str()), (404, "not-found"), "{path}");
    }
    for path in ["/items", "/items/1", "/items/1/image.svg", "/items/99"] {
        let refused = client.request(&format!("POST {path}"));
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    assert!(server.terminate().success());
}

#[test]
fn postgres_has_the_names_that_readers_are_told() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--items", "45000", "--database-url", &url]].concat());
    let items = items(&mut server.connect(), 200);
    assert!(server.terminate().success());
    let rows = cluster.ask("select item_id || '|' || name || '|' || image_url from sale_items order by item_id");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told: Vec<String> = items
        .iter()
        .map(|item| format!("{}|{}|{}", item["item_id"], text(&item["name"]), text(&item["image"])))
        .collect();
    assert_eq!(told.len(), 45_000);
    assert!(rows.lines().eq(told.iter().map(String::as_str)), "a row in Postgres differs from the item in GET /items");
}
