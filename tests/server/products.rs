//! Checkouts by product on a server with a plan.

use crate::harness::{Client, Server, wait_until};
use crate::planned::{PLAN, now_s, product, sale, write};
use serde_json::{Value, json};

fn checkout(client: &mut Client, parameters: &str) -> String {
    client.request(&format!("POST /checkout?{parameters}")).outcome()
}

#[test]
fn a_product_is_sold_to_its_last_unit_and_no_further() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let seats = "[[sale.product]]\nid = \"box\"\nname = \"Box\"\nunits = [\"Box A\", \"Box B\"]\n";
    let products = product("a-38", 3) + seats + &product("a-39", 40);
    write(dir.path(), &[sale(9, (now - 5, now + 3600), "user_limit = 50\nextension = \"1m\"", &products)]);
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    let json = "Accept: application/json\r\n";
    let mut codes = Vec::new();
    for user in 0..2 {
        let ask = format!("POST /checkout?user_id={user}&product_id=box");
        let granted = client.try_request(&ask, &format!("{json}Idempotency-Key: k\r\n")).unwrap().json();
        let item = granted["item_id"].as_u64().unwrap();
        assert!((3..5).contains(&item), "{granted}");
        let unit = if item == 3 { "Box A" } else { "Box B" };
        assert_eq!((&granted["product_id"], &granted["unit"]), (&"box".into(), &unit.into()));
        let again = client.try_request(&ask, &format!("{json}Idempotency-Key: k\r\n")).unwrap().json();
        assert_eq!(again, granted);
        codes.push((granted["code"].as_str().unwrap().to_owned(), unit));
    }
    let refused = client.request("POST /checkout?user_id=7&product_id=box");
    assert_eq!((refused.status, &*refused.problem()), (409, "all-reserved"));
    assert!(refused.header("retry-after").is_some());
    let (last, unit) = codes.pop().unwrap();
    assert_eq!(client.request(&format!("POST /checkout/extend?code={last}")).json()["unit"], unit);

    server.kill();
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    for (code, unit) in codes.into_iter().chain([(last, unit)]) {
        let receipt = client.purchase(&code).json();
        assert_eq!((&receipt["product_id"], &receipt["unit"]), (&"box".into(), &unit.into()));
        let item = client.request(&format!("GET /items/{}", receipt["item_id"])).json();
        assert_eq!((&item["product_id"], &item["unit"], &item["state"]), (&"box".into(), &unit.into(), &"sold".into()));
    }
    assert_eq!(checkout(&mut client, "user_id=7&product_id=box"), "sold-out");
    let other = client.try_request("POST /checkout?user_id=7&product_id=a%2D38", json).unwrap().json();
    assert!(other["item_id"].as_u64().unwrap() < 3 && other.get("unit").is_none(), "{other}");
    for wrong in
        ["product_id=A-38", "product_id=", "product_id=c", "product_id=box&product_id=box", "product_id=box&item_id=3"]
    {
        assert_eq!(checkout(&mut client, &format!("user_id=7&{wrong}")), "invalid-parameter", "{wrong}");
    }
    for left in (0..42).rev() {
        assert_eq!(client.request("POST /checkout?user_id=8").status, 200, "{left}");
    }
    assert_eq!(checkout(&mut client, "user_id=9"), "all-reserved");
    assert!(server.terminate().success());
}

/// Returns the items, sold, reserved and available ones of the products of a list.
fn counts(list: &Value) -> Vec<[u64; 4]> {
    let of = |product: &Value| {
        ["items_total", "sold", "reserved", "available"].map(|field| product[field].as_u64().unwrap())
    };
    list["products"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn products_are_listed_with_what_the_plan_says_and_their_counts() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let seats =
        "[[sale.product]]\nid = \"box\"\nname = \"Box\"\nprice = \"400 €\"\nimage = \"/box.jpg\"\nquantity = 2\n";
    let sales = |more: &str| {
        let products = product("a-38", 3) + seats + &product("a-39", 40);
        let repeated = "user_limit = 50\nevery = \"4s\"";
        write(
            dir.path(),
            &[
                sale(9, (now - 5, now + 3600), "user_limit = 50", &products),
                more.to_owned(),
                sale(200, (now + 4000, now + 4002), repeated, &product("one", 4)),
            ],
        );
    };
    sales("");
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    let code = client.request("POST /checkout?user_id=1&product_id=box").body;
    assert_eq!(client.purchase(&code).status, 200);
    assert_eq!(client.request("POST /checkout?user_id=1&product_id=box").status, 200);
    assert_eq!(client.request("POST /checkout?user_id=1&product_id=a-39").status, 200);
    let list = client.request("GET /products").json();
    assert_eq!((&list["sale_id"], &list["products_total"]), (&9.into(), &3.into()));
    assert_eq!(counts(&list), [[3, 0, 0, 3], [2, 1, 1, 0], [40, 0, 1, 39]]);
    let expected = json!({
        "product_id": "box", "name": "Box", "image": "/box.jpg", "price": "400 €",
        "items_total": 2, "sold": 1, "reserved": 1, "available": 0, "first_item_id": 3, "units_named": false,
    });
    assert_eq!(list["products"][1], expected);
    assert!(list["products"][0].get("price").is_none() && list["products"][0].get("image").is_none(), "{list}");
    let page = client.request("GET /products?offset=1&limit=1&sale_id=9").json();
    assert_eq!((&page["products_total"], &page["products"]), (&3.into(), &json!([expected])));
    assert_eq!(client.request("GET /products?offset=3").json()["products"], json!([]));
    let mut one = client.request("GET /products/b%6Fx").json();
    assert_eq!(one.as_object_mut().unwrap().remove("sale_id"), Some(9.into()));
    assert_eq!(one, expected);
    let items = |client: &mut Client, query: &str| {
        let list = client.request(&format!("GET /items?{query}")).json();
        let of = |item: &Value| (item["item_id"].as_u64().unwrap(), item["product_id"].as_str().unwrap().to_owned());
        (list["items_total"].as_u64().unwrap(), list["items"].as_array().unwrap().iter().map(of).collect::<Vec<_>>())
    };
    let item = |id: u64, product: &str| (id, product.to_owned());
    assert_eq!(items(&mut client, "product_id=b%6Fx"), (2, vec![item(3, "box"), item(4, "box")]));
    assert_eq!(items(&mut client, "product_id=a-39&offset=39&sale_id=9"), (40, vec![item(44, "a-39")]));
    assert_eq!(items(&mut client, "sale_id=200&offset=3"), (4, vec![item(3, "one")]));
    assert_eq!(items(&mut client, "offset=2&limit=2"), (45, vec![item(2, "a-38"), item(3, "box")]));
    for wrong in ["product_id=one", "product_id=", "product_id=c", "sale_id=x", "sale_id=8"] {
        assert_eq!(client.request(&format!("GET /items?{wrong}")).problem(), "invalid-parameter", "{wrong}");
    }
    for unknown in ["Box", "c", "one", "box/", "a-38?sale_id=200"] {
        assert_eq!(client.request(&format!("GET /products/{unknown}")).problem(), "not-found", "{unknown}");
    }
    assert_eq!(counts(&client.request("GET /products?sale_id=200").json()), [[4, 0, 0, 4]], "a sale that comes");
    assert_eq!(client.request("GET /products?sale_id=8").problem(), "invalid-parameter");

    // The counts come back, those of two sales that are open are told apart, and a sale with one product has those of the sale.
    server.kill();
    sales(&sale(10, (now - 4, now + 3600), "user_limit = 9", &product("box", 5)));
    let server = Server::start(dir.path(), &PLAN);
    let mut client = server.connect();
    assert_eq!(client.request("POST /checkout?user_id=1&sale_id=10&product_id=box").status, 200);
    assert_eq!(client.request("GET /items").json()["sale_id"], client.sale()["sale_id"]);
    for path in ["/products", "/products/box", "/items?product_id=box"] {
        let refused = client.request(&format!("GET {path}"));
        assert_eq!((refused.status, &*refused.problem()), (400, "invalid-parameter"));
        assert!(refused.body.contains("several sales are open"), "{}", refused.body);
    }
    assert_eq!(counts(&client.request("GET /products?sale_id=9").json()), [[3, 0, 0, 3], [2, 1, 1, 0], [40, 0, 1, 39]]);
    let item = |client: &mut Client, line: &str| {
        let item = client.request(&format!("GET /items/{line}")).json();
        (item["sale_id"].clone(), item["product_id"].clone(), item["state"].clone())
    };
    let mut boxes = ["3?sale_id=9", "4?sale_id=9"].map(|line| item(&mut client, line));
    boxes.sort_by_key(|(_, _, state)| state.to_string());
    assert_eq!(boxes, ["reserved", "sold"].map(|state| (9.into(), "box".into(), state.into())));
    assert_eq!(item(&mut client, "0?sale_id=9"), (9.into(), "a-38".into(), "available".into()));
    let of_10 = (0..5).map(|number| item(&mut client, &format!("{number}?sale_id=10")));
    let of_10: Vec<_> = of_10.filter(|found| *found == (10.into(), "box".into(), "reserved".into())).collect();
    assert_eq!(of_10.len(), 1);
    assert_eq!(item(&mut client, "3?sale_id=200"), (200.into(), "one".into(), "available".into()));
    assert_eq!(item(&mut client, "3"), (client.sale()["sale_id"].clone(), "box".into(), "available".into()));
    for unknown in ["5?sale_id=10", "0?sale_id=8", "4?sale_id=200", "45?sale_id=9"] {
        assert_eq!(client.request(&format!("GET /items/{unknown}")).problem(), "not-found", "{unknown}");
    }
    assert_eq!(client.request("GET /items/0?sale_id=x").problem(), "invalid-parameter");
    let box_10 = client.request("GET /products/box?sale_id=10").json();
    assert_eq!(counts(&json!({ "products": [box_10] })), [[5, 0, 1, 4]]);
    assert!(server.terminate().success());
}

#[test]
fn the_numbers_of_an_ended_sale_are_shown_until_a_later_one_replaces_them() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let (products, closes) = (product("a", 3) + &product("b", 2), now + 2);
    let repeated = "user_limit = 1\nevery = \"6s\"\nreservation_ttl = \"1m\"";
    write(dir.path(), &[sale(20, (now - 1, closes), repeated, &products)]);
    let server = Server::start(dir.path(), &[&PLAN[..], &["--receipts", "1m"]].concat());
    let mut client = server.connect();
    assert_eq!(client.request("POST /checkout?user_id=1&product_id=b").status, 200);
    let numbers = [[3, 0, 0, 3], [2, 0, 1, 1]];
    let phase = |client: &mut Client, sale: u32| client.request(&format!("GET /sales/{sale}")).json()["phase"].clone();
    assert_eq!(counts(&client.request("GET /products").json()), numbers);
    wait_until("the sale closes", || phase(&mut client, 20) == "closing");
    assert_eq!(counts(&client.request("GET /products?sale_id=20").json()), numbers, "after its end");
    assert_eq!(client.request("GET /products").json()["sale_id"], 21, "the next one is shown");
    wait_until("the next sale opens", || phase(&mut client, 21) == "open");
    assert_eq!(client.request("GET /products?sale_id=20").problem(), "sale-ended");
    assert_eq!(client.request("GET /sales/20").json()["reserved"], 1, "the sale itself is still known");
    assert_eq!(counts(&client.request("GET /products?sale_id=21").json()), [[3, 0, 0, 3], [2, 0, 0, 2]]);
    assert!(server.terminate().success());
}
