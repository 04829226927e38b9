//! A complete sale: a crowd buys every item.

use crate::harness::{LONG_SALE, Server};
use crate::load::{Promise, Promises, buy, check_books, connect, crowd};

const ITEMS: u32 = 10_000;
const BUYERS: u32 = 48;

#[test]
fn a_crowd_buys_every_item_exactly_once() {
    for shards in ["2", "3"] {
        let dir = tempfile::tempdir().unwrap();
        let server =
            Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", shards, "--reservation-ttl", "2s"]].concat());
        let promises = Promises::default();

        // A client that never buys reserves every 50th item first.
        let mut idler = server.connect();
        for item in (0..ITEMS).step_by(50) {
            idler.reserve(1_000_000 + i64::from(item / 500), item);
        }
        // Three buyers compete for each item.
        crowd(BUYERS, |number| {
            let mut client = connect(server.address);
            for place in 0..ITEMS / BUYERS * 3 {
                let item = (place * BUYERS / 3 + number / 3) % ITEMS;
                let user = i64::from((item + number % 3 * 7) / 9);
                let outcome = buy(&mut client, user, item, &promises).expect("the server keeps running");
                let known = ["200", "item-sold", "item-reserved", "user-limit"];
                assert!(known.contains(&outcome.as_str()), "{outcome}");
            }
        });
        // The abandoned holds expire. New users buy the remaining items, ten each.
        let mut client = server.connect();
        let mut sweeper = 2_000_000;
        for item in 0..ITEMS {
            loop {
                sweeper += 1;
                match buy(&mut client, sweeper / 10, item, &promises).expect("the server keeps running").as_str() {
                    "200" | "item-sold" => break,
                    "item-reserved" => std::thread::sleep(std::time::Duration::from_millis(20)),
                    other => panic!("{other}"),
                }
            }
        }

        let promises: Vec<Promise> = promises.take();
        let bought = check_books(&promises, 10);
        assert_eq!(bought.len(), ITEMS as usize, "every item is bought exactly once");
        let sale = client.sale();
        assert_eq!(
            (&sale["sold"], &sale["available"], &sale["reserved"]),
            (&ITEMS.into(), &0.into(), &0.into()),
            "{sale}"
        );
        crowd(BUYERS, |number| {
            let mut client = connect(server.address);
            for item in (number..ITEMS).step_by(BUYERS as usize) {
                assert_eq!(client.checkout(5_000_000, item).problem(), "item-sold");
            }
        });
        assert!(server.terminate().success());

        // After a restart with another number of shards, all items are still sold.
        let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
        let mut client = server.connect();
        assert_eq!(client.sale()["sold"], ITEMS);
        for item in (0..ITEMS).step_by(97) {
            assert_eq!(client.checkout(5_000_000, item).problem(), "item-sold");
            assert_eq!(client.purchase(&bought[&item].code).problem(), "code-used");
        }
    }
}

#[test]
fn memory_stays_flat_under_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let sold = server.connect().reserve(1, 7);
    assert_eq!(server.connect().purchase(&sold).status, 200);
    let refuse = || {
        crowd(BUYERS, |number| {
            let mut client = connect(server.address);
            for turn in 0..500 {
                assert_eq!(client.checkout(i64::from(number * 1000 + turn), 7).problem(), "item-sold");
            }
        });
        server.resident_kib()
    };
    refuse();
    // A leak grows in each round. Once, the kernel can make a huge page of 2 MiB out of smaller ones.
    let rounds = [refuse(), refuse(), refuse()];
    let growth = rounds.windows(2).map(|round| round[1].saturating_sub(round[0])).min();
    assert!(growth < Some(2048), "{rounds:?} KiB");
}
