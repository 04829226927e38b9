//! The end of a sale and the start of the next one, with a sale period of two seconds.

use crate::harness::{Client, Server, how_many};
use crate::load::{connect, crowd};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ITEMS: u32 = 300;

/// Number of sales to run. Release runs set it higher.
fn sales() -> u32 {
    how_many("STAMPEDE_SALES", 4)
}

/// What a buyer knows about a hold that it has not bought at once.
struct Kept {
    sale: u64,
    code: String,
    bought: bool,
}

#[test]
fn sales_follow_each_other_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "2s", "--receipts", "1s", "--items", "300"];
    // A hold of any moment of a sale can be bought in the next sale.
    let server = Server::start(dir.path(), &[&terms[..], &["--shards", "3", "--reservation-ttl", "4s"]].concat());
    let end = Instant::now() + Duration::from_secs(2) * sales();
    let bought: Mutex<BTreeMap<u64, BTreeSet<u64>>> = Mutex::default();
    let (late, forgotten) = (AtomicU32::new(0), AtomicU32::new(0));
    let buy = |client: &mut Client, code: &str, sale: u64| {
        let receipt = client.purchase(code);
        assert_eq!(receipt.outcome(), "200", "a live hold is bought");
        let (sold_in, item) =
            (receipt.json()["sale_id"].as_u64().unwrap(), receipt.json()["item_id"].as_u64().unwrap());
        assert_eq!(sold_in, sale, "an item is sold in the sale of its checkout");
        let is_new = bought.lock().unwrap().entry(sale).or_default().insert(item);
        assert!(is_new, "item {item} of {sale} sold twice");
    };
    crowd(12, |number| {
        // Each buyer uses one connection for the whole run. If the server closes or resets it, the buyer fails.
        let mut client = connect(server.address);
        let mut turn = number * 31;
        let mut kept: Option<Kept> = None;
        while Instant::now() < end {
            turn += 1;
            let (user, item) = (i64::from(turn), turn % ITEMS);
            let reserved = client.request(&format!("POST /checkout?user_id={user}&id={item}"));
            if reserved.status != 200 {
                assert!(["item-sold", "item-reserved"].contains(&reserved.problem().as_str()), "{reserved:?}");
                continue;
            }
            let (sale, code) = (reserved.json()["sale_id"].as_u64().unwrap(), reserved.json()["code"].clone());
            let code = code.as_str().unwrap();
            match &mut kept {
                Some(old) if !old.bought && old.sale < sale => {
                    buy(&mut client, &old.code, old.sale);
                    old.bought = true;
                    late.fetch_add(1, Ordering::Relaxed);
                }
                Some(old) if old.sale + 2 < sale => {
                    assert_eq!(client.purchase(&old.code).problem(), "sale-ended");
                    forgotten.fetch_add(1, Ordering::Relaxed);
                    kept = None;
                }
                _ => {}
            }
            if turn % 10 == 0 && kept.is_none() {
                kept = Some(Kept { sale, code: code.to_owned(), bought: false });
                continue;
            }
            buy(&mut client, code, sale);
        }
    });
    let bought = bought.into_inner().unwrap();
    assert!(bought.len() as u32 >= sales(), "only {} sales", bought.len());
    assert!(late.into_inner() > 0, "no buyer bought an item after the end of its sale");
    assert!(forgotten.into_inner() > 0, "no buyer used a code of a forgotten sale");
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
