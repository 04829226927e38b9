//! Checkouts by product on a server with a plan.

use crate::harness::{Client, Server};
use crate::planned::{PLAN, now_s, product, sale, write};

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
