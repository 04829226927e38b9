//! The end of a sale and the start of the next one, with a sale period of two seconds.

use crate::harness::{Server, how_many};
use crate::load::{connect, crowd};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const ITEMS: u32 = 300;

/// Number of sales to run. Release runs set it higher.
fn sales() -> u32 {
    how_many("STAMPEDE_SALES", 4)
}

#[test]
fn sales_follow_each_other_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--sale-period", "2s", "--items", "300", "--shards", "3", "--reservation-ttl", "1s"];
    let server = Server::start(dir.path(), &arguments);
    let end = Instant::now() + Duration::from_secs(2) * sales();
    let bought: Mutex<BTreeMap<u64, BTreeSet<u64>>> = Mutex::default();
    let ended: Mutex<u32> = Mutex::default();
    crowd(12, |number| {
        // Each buyer uses one connection for the whole run. If the server closes or resets it, the buyer fails.
        let mut client = connect(server.address);
        let mut turn = number * 31;
        let mut old_code: Option<(u64, String)> = None;
        while Instant::now() < end {
            turn += 1;
            let (user, item) = (i64::from(turn), turn % ITEMS);
            let reserved = client.checkout(user, item);
            if reserved.status != 200 {
                assert!(["item-sold", "item-reserved"].contains(&reserved.problem().as_str()), "{reserved:?}");
                continue;
            }
            if let Some((sale, code)) = old_code.take() {
                let now = client.sale()["sale_id"].as_u64().unwrap();
                if now > sale {
                    assert_eq!(client.purchase(&code).problem(), "sale-ended");
                    *ended.lock().unwrap() += 1;
                } else {
                    old_code = Some((sale, code));
                }
            }
            if turn % 10 == 0 && old_code.is_none() {
                let before = client.sale()["sale_id"].as_u64().unwrap();
                old_code = Some((before, reserved.body));
                continue;
            }
            let response = client.purchase(&reserved.body);
            match response.outcome().as_str() {
                "200" => {
                    let receipt = response.json();
                    let (sale, item) = (receipt["sale_id"].as_u64().unwrap(), receipt["item_id"].as_u64().unwrap());
                    assert!(
                        bought.lock().unwrap().entry(sale).or_default().insert(item),
                        "item {item} of {sale} sold twice"
                    );
                }
                "sale-ended" | "code-expired" => {}
                other => panic!("{other}"),
            }
        }
    });
    let bought = bought.into_inner().unwrap();
    assert!(bought.len() as u32 >= sales(), "only {} sales", bought.len());
    assert!(*ended.lock().unwrap() > 0, "no buyer used a code after the end of its sale");
    // The buyers took part in all sales but the first and the last from start to end. The server's figures must agree.
    for (sale, items) in bought.iter().skip(1).take(bought.len() - 2) {
        let line = loop {
            let line = server.wait_for_line("the sale has ended");
            if line["sale"].as_u64() == Some(*sale) {
                break line;
            }
        };
        assert_eq!((line["sold"].as_u64(), line["items"].as_u64()), (Some(items.len() as u64), Some(ITEMS.into())));
    }
    assert!(server.terminate().success());
}
