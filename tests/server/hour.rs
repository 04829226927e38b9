//! What buyers can still do after the end of a sale: their holds, receipts, extensions and releases stay as they were,
//! also across kill -9, an upgrade and a takeover. The sales are some seconds long.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Response, Server, wait_until};
use crate::load::{connect, crowd};
use crate::log::Log;
use crate::upgrade::Over;
use serde_json::Value;
use stampede::sale::code::CodeGenerator;
use stampede::sale::ids::{ItemId, SaleId};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Length of a sale in most tests, in milliseconds.
const PERIOD_MS: u64 = 4_000;
/// Sales whose holds and receipts last longer than a test.
const LONG_MEMORY: [&str; 8] =
    ["--sale-period", "4s", "--reservation-ttl", "2m", "--extension", "5s", "--receipts", "5m"];

fn start(dir: &Path, more: &[&str]) -> Server {
    Server::start(dir, &[&LONG_MEMORY[..], more].concat())
}

fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("the clock is after 1970").as_millis() as u64
}

/// Waits for the start of a sale. The clients have almost a whole sale before the next one.
fn wait_for_hour(client: &mut Client) -> u64 {
    let next = sale_id(client) + 1;
    wait_until("the next sale begins", || sale_id(client) >= next);
    sale_id(client)
}

fn sale_id(client: &mut Client) -> u64 {
    client.sale()["sale_id"].as_u64().expect("a number")
}

fn sleep_until(unix_ms: u64) {
    thread::sleep(Duration::from_millis(unix_ms.saturating_sub(now_ms())));
}

/// Returns `expires_at` of an answer as a Unix time in milliseconds.
fn ends_ms(answer: &Value) -> u64 {
    let time = humantime::parse_rfc3339(answer["expires_at"].as_str().expect("a time")).expect("RFC 3339");
    time.duration_since(SystemTime::UNIX_EPOCH).expect("the time is after 1970").as_millis() as u64
}

fn code(answer: &Value) -> &str {
    answer["code"].as_str().expect("the answer has a code")
}

/// Reserves an item without a key. Returns the JSON answer.
fn hold(client: &mut Client, user: i64, item: u32) -> Value {
    let answer = client.request(&format!("POST /checkout?user_id={user}&id={item}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn buy_with_key(client: &mut Client, code: &str) -> Response {
    client.try_request(&format!("POST /purchase?code={code}"), "Idempotency-Key: order\r\n").expect("an answer")
}

fn extend(client: &mut Client, code: &str) -> Response {
    client.request(&format!("POST /checkout/extend?code={code}"))
}

fn release(client: &mut Client, code: &str) -> Response {
    client.request(&format!("DELETE /checkout?code={code}"))
}

/// Returns phase, sold and reserved items of a sale.
fn counts(client: &mut Client, sale: u64) -> (String, u64, u64) {
    let answer = client.request(&format!("GET /sales/{sale}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let (about, number) = (answer.json(), |name: &str| answer.json()[name].as_u64().expect("a number"));
    assert_eq!(about["sale_id"], sale);
    (about["phase"].as_str().expect("a phase").to_owned(), number("sold"), number("reserved"))
}

/// What one buyer has reserved and bought in one sale, with the answers.
struct Basket {
    sale: u64,
    held: Value,
    bought: Value,
    receipt: Response,
    keyed: Response,
    extended: Value,
    extension: Response,
    released: Value,
}

impl Basket {
    /// Fills a basket at the start of a sale: items 0 to 4.
    fn fill(client: &mut Client) -> Basket {
        let sale = wait_for_hour(client);
        let [held, bought, extended, released] = [0, 1, 3, 4].map(|item| hold(client, 1, item));
        let receipt = buy_with_key(client, code(&bought));
        let keyed = client.checkout_with_key(1, 2, "cart");
        let extension = extend(client, code(&extended));
        assert_eq!((receipt.status, keyed.status, extension.status), (200, 200, 200), "{extension:?}");
        assert_eq!(release(client, code(&released)).status, 204);
        for answer in [&held, &bought, &extended, &released, &receipt.json(), &keyed.json(), &extension.json()] {
            assert_eq!(answer["sale_id"], sale, "the basket was filled within one sale");
        }
        Basket { sale, held, bought, receipt, keyed, extended, extension, released }
    }

    /// Checks that every repetition gets the same answer, and that the sale is as the buyer left it.
    fn check(&self, client: &mut Client, when: &str) {
        let receipt = buy_with_key(client, code(&self.bought));
        assert_eq!((receipt.status, &receipt.body), (200, &self.receipt.body), "{when}");
        assert_eq!(client.purchase(code(&self.bought)).problem(), "code-used", "{when}");
        let keyed = client.checkout_with_key(1, 2, "cart");
        assert_eq!((keyed.status, &keyed.body), (200, &self.keyed.body), "{when}");
        let extension = extend(client, code(&self.extended));
        assert_eq!((extension.status, &extension.body), (200, &self.extension.body), "{when}");
        assert_eq!(ends_ms(&extension.json()), ends_ms(&self.extended) + 5_000, "{when}");
        let released = release(client, code(&self.released));
        assert_eq!((released.status, released.body.as_str()), (204, ""), "{when}");
        assert_eq!(client.purchase(code(&self.released)).problem(), "code-expired", "{when}");
        let is_open = sale_id(client) == self.sale;
        let (phase, sold, reserved) = counts(client, self.sale);
        assert!((phase == "closing") || is_open && phase == "open", "{when}: {phase}");
        assert_eq!((sold, reserved), (1, 3), "{when}");
    }

    /// Buys after the end of the sale what is still held.
    fn buy_the_rest(&self, client: &mut Client) {
        let keyed = self.keyed.json();
        for (nth, answer) in [&self.held, &keyed, &self.extended].into_iter().enumerate() {
            let receipt = client.purchase(code(answer));
            assert_eq!((receipt.status, &receipt.json()["sale_id"]), (200, &self.sale.into()), "{receipt:?}");
            assert_eq!(client.purchase(code(answer)).problem(), "code-used");
            let nth = nth as u64;
            let phase = if nth == 2 { "closed" } else { "closing" };
            assert_eq!(counts(client, self.sale), (phase.to_owned(), 2 + nth, 2 - nth));
        }
        let again = buy_with_key(client, code(&self.bought));
        assert_eq!(again.body, self.receipt.body);
        assert_eq!(client.checkout_with_key(1, 2, "cart").body, self.keyed.body, "also after its purchase");
        assert_eq!(extend(client, code(&self.extended)).problem(), "code-used");
    }
}

#[test]
fn holds_and_receipts_outlive_their_sale() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["--shards", "3", "--items", "40"]);
    let mut client = server.connect();
    let basket = Basket::fill(&mut client);
    basket.check(&mut client, "before the hour");
    let next = wait_for_hour(&mut client);
    basket.check(&mut client, "after the hour");
    assert_eq!(counts(&mut client, next), ("open".to_owned(), 0, 0), "the new sale is untouched");
    // Without the key, it is a checkout of the new sale. With another key, too.
    let fresh = hold(&mut client, 1, 2);
    assert!(fresh["sale_id"].as_u64() >= Some(next) && code(&fresh) != code(&basket.keyed.json()), "{fresh}");
    let other = client.checkout_with_key(1, 3, "cart").json();
    assert!(other["sale_id"].as_u64() >= Some(next), "the key belongs to item 2: {other}");
    basket.check(&mut client, "after checkouts of the same items in the new sale");
    basket.buy_the_rest(&mut client);
    wait_until("the result of the sale is logged", || {
        let line = server.wait_for_line("the sale has ended");
        line["sale"] == basket.sale && {
            assert_eq!((line["sold"].as_u64(), line["items"].as_u64()), (Some(4), Some(40)));
            true
        }
    });
    assert_eq!(client.purchase(code(&fresh)).status, 200);
    assert!(server.terminate().success());
}

#[test]
fn holds_and_receipts_survive_kill_9_after_the_hour() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--shards", "2"]);
    let basket = Basket::fill(&mut server.connect());
    wait_for_hour(&mut server.connect());
    for shards in ["3", "1", "2"] {
        server.kill();
        server = start(dir.path(), &["--shards", shards]);
        basket.check(&mut server.connect(), "after kill -9");
    }
    basket.buy_the_rest(&mut server.connect());
    server.kill();
    let server = start(dir.path(), &["--shards", "3"]);
    let mut client = server.connect();
    let open = sale_id(&mut client);
    assert_eq!(buy_with_key(&mut client, code(&basket.bought)).body, basket.receipt.body);
    assert_eq!(counts(&mut client, basket.sale), ("closed".to_owned(), 4, 0));
    let ended = server.wait_for_line("the sale has ended")["sale"].as_u64();
    assert!(ended.is_some_and(|ended| ended <= open), "the sale that was open at the start is reported: {ended:?}");
    assert!(server.terminate().success());
}

#[test]
fn holds_and_receipts_survive_an_upgrade_after_the_hour() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--shards", "2", "--items", "1000000"]);
    let mut client = server.connect();
    let basket = Basket::fill(&mut client);
    wait_for_hour(&mut client);
    // Others buy all the time, so that the new process reads the log in parts.
    let (is_over, address) = (AtomicBool::new(false), server.address);
    thread::scope(|scope| {
        scope.spawn(|| {
            crowd(2, |number| {
                let mut other = connect(address);
                for item in (5..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let answer = hold(&mut other, i64::from(item), 2 * item + number);
                    assert_eq!(other.purchase(code(&answer)).status, 200);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        let _over = Over(&is_over);
        for _ in 0..3 {
            server.upgrade();
            // The connection is the one from before the upgrade.
            basket.check(&mut client, "after an upgrade");
        }
    });
    basket.buy_the_rest(&mut client);
    assert!(server.terminate().success());
}

/// Another machine takes over from Postgres: after a clean stop, and after a crash with every purchase acknowledged by
/// Postgres.
#[test]
fn holds_and_receipts_survive_a_takeover_after_the_hour() {
    for (ack, is_killed) in [("local", false), ("postgres", true)] {
        let (cluster, first, second) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let url = cluster.url();
        let with_database = |shards| ["--database-url", &url, "--ack", ack, "--shards", shards];
        let server = start(first.path(), &with_database("2"));
        let mut client = server.connect();
        let basket = Basket::fill(&mut client);
        wait_for_hour(&mut client);
        client.wait_for_postgres();
        if is_killed {
            server.kill();
        } else {
            assert!(server.terminate().success());
        }
        let row = cluster.ask("select code, by_ms from extensions");
        assert_eq!(row, format!("{}|5000", code(&basket.extended)));
        let server = start(second.path(), &with_database("3"));
        basket.check(&mut server.connect(), "after a takeover");
        server.kill();
        let server = start(second.path(), &with_database("1"));
        let mut client = server.connect();
        basket.check(&mut client, "after kill -9 of the new server");
        basket.buy_the_rest(&mut client);
        assert!(server.terminate().success());
        assert_eq!(cluster.count(&format!("select count(*) from purchases where sale_id = {}", basket.sale)), 4);
    }
}

/// The stock shrinks with the next sale. Codes of the sale before lead to its items, which the new sale does not have.
#[test]
fn codes_of_a_larger_stock_stay_valid() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--items", "10", "--shards", "3", "--reservation-ttl"];
    // The last of repeated flags is used.
    let with_ttl = |ttl| start(dir.path(), &[&terms[..], &[ttl]].concat());
    let server = with_ttl("300ms");
    let mut client = server.connect();
    let expired = [2, 7].map(|item| hold(&mut client, 1, item));
    for answer in &expired {
        wait_until("the hold expires", || extend(&mut client, code(answer)).outcome() == "code-expired");
    }
    assert!(server.terminate().success());
    let server = with_ttl("2m");
    let mut client = server.connect();
    let sale = wait_for_hour(&mut client);
    let bought = [0, 5].map(|item| hold(&mut client, 1, item));
    bought.iter().for_each(|answer| assert_eq!(client.purchase(code(answer)).status, 200));
    let held = [1, 6].map(|item| hold(&mut client, 1, item));
    let keyed = client.checkout_with_key(1, 9, "cart");
    assert_eq!((&held[1]["sale_id"], &keyed.json()["sale_id"]), (&sale.into(), &sale.into()));
    assert!(server.terminate().success());
    sleep_until((sale + 1) * PERIOD_MS);
    let terms = ["--items", "5", "--shards", "2"];
    // The second round reads the log of the first, which was killed.
    for answer in &held {
        let server = start(dir.path(), &terms);
        let mut client = server.connect();
        assert_eq!(client.sale()["items_total"], 5);
        assert_eq!(client.request(&format!("GET /sales/{sale}")).json()["items_total"], 10);
        bought.iter().for_each(|answer| assert_eq!(client.purchase(code(answer)).problem(), "code-used"));
        expired.iter().for_each(|answer| assert_eq!(client.purchase(code(answer)).problem(), "code-expired"));
        assert_eq!(client.purchase(code(answer)).status, 200, "{answer}");
        assert_eq!(client.checkout_with_key(1, 9, "cart").body, keyed.body);
        assert_eq!(client.checkout_with_key(1, 9, "other").problem(), "invalid-parameter");
        assert_eq!(client.checkout(1, 9).problem(), "invalid-parameter");
        server.kill();
    }
}

#[test]
fn a_sale_is_forgotten_when_its_receipts_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "2s", "--receipts", "1s", "--reservation-ttl", "12s", "--shards", "2"];
    let server = Server::start(dir.path(), &terms);
    let mut client = server.connect();
    let sale = wait_for_hour(&mut client);
    let (bought, held) = (hold(&mut client, 1, 0), hold(&mut client, 1, 1));
    assert_eq!((client.purchase(code(&bought)).status, &held["sale_id"]), (200, &sale.into()));
    let invented = |sale: u64| CodeGenerator::new([7; 32]).mint(SaleId(sale as u32), ItemId(0)).to_string();
    assert_eq!(client.purchase(&invented(sale)).problem(), "code-unknown");
    let forgotten_ms = (sale + 1) * 2_000 + 1_000;
    wait_until("the purchase is forgotten", || {
        let answer = client.purchase(code(&bought)).problem();
        let is_forgotten = answer == "sale-ended";
        assert!(is_forgotten || answer == "code-used", "{answer}");
        assert!(!is_forgotten || now_ms() >= forgotten_ms, "forgotten too early");
        is_forgotten || now_ms() > forgotten_ms + 3_000
    });
    // Only a shard that still has a hold of the sale remembers more.
    assert_eq!(client.purchase(code(&held)).status, 200, "a hold is kept to its end");
    for answer in [&bought, &held] {
        wait_until("the sale is forgotten", || client.purchase(code(answer)).problem() == "sale-ended");
        assert_eq!(release(&mut client, code(answer)).problem(), "sale-ended");
        assert_eq!(extend(&mut client, code(answer)).problem(), "sale-ended");
    }
    assert_eq!(client.request(&format!("GET /sales/{sale}")).problem(), "not-found");
    assert_eq!(client.request(&format!("GET /sales/{}", sale + 1_000)).problem(), "not-found");
    assert_eq!(client.purchase(&invented(sale)).problem(), "sale-ended");
    assert_eq!(client.purchase(&invented(sale + 1_000)).problem(), "code-unknown", "a sale of the future");
    assert!(server.terminate().success());
}

#[test]
fn a_hold_is_extended_once() {
    let dir = tempfile::tempdir().unwrap();
    let start = |ttl: &str, extension: &str| {
        let times = ["--reservation-ttl", ttl, "--extension", extension, "--shards", "2"];
        Server::start(dir.path(), &[&LONG_SALE[..], &times].concat())
    };
    let server = start("1s", "3s");
    let mut client = server.connect();
    let [first, second, lost] = [1, 2, 3].map(|item| {
        let answer = hold(&mut client, 1, item);
        let extended = extend(&mut client, code(&answer));
        assert_eq!(ends_ms(&extended.json()), ends_ms(&answer) + 3_000, "{extended:?}");
        assert_eq!(extend(&mut client, code(&answer)).body, extended.body, "the second request gets the same answer");
        answer
    });
    let plain = hold(&mut client, 1, 4);
    sleep_until(ends_ms(&plain) + 100);
    assert_eq!(extend(&mut client, code(&plain)).problem(), "code-expired");
    assert_eq!(client.purchase(code(&first)).status, 200, "after the first end and before the second");
    assert_eq!(extend(&mut client, code(&first)).problem(), "code-used");
    server.kill();
    // Another run has other settings. The extension was granted, and stays.
    let server = start("1s", "0s");
    let mut client = server.connect();
    if now_ms() < ends_ms(&second) + 2_500 {
        assert_eq!(client.purchase(code(&second)).status, 200, "the extension survives kill -9");
        assert_eq!(client.checkout(2, 3).problem(), "item-reserved");
    }
    let plain = hold(&mut client, 1, 5);
    let refused = extend(&mut client, code(&plain));
    assert!(["not-extendable", "code-expired"].contains(&refused.problem().as_str()), "{refused:?}");
    sleep_until(ends_ms(&lost) + 3_100);
    assert_eq!(client.purchase(code(&lost)).problem(), "code-expired", "after the second end");
    assert_eq!(extend(&mut client, code(&lost)).problem(), "code-expired");
    server.kill();
    let server = start("1m", "0s");
    let mut client = server.connect();
    let plain = hold(&mut client, 1, 6);
    let refused = extend(&mut client, code(&plain));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "not-extendable"));
    assert_eq!(client.purchase(code(&plain)).status, 200);
    assert!(server.terminate().success());
}

/// Buyers reserve the whole stock before the end of the sale, and buy a part of it only afterwards, while others buy in
/// the new sale. The server is killed between.
#[test]
fn exactly_the_stock_is_sold_over_the_end_of_a_sale() {
    const ITEMS: u32 = 60;
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "6s", "--items", "60", "--user-limit", "60", "--shards"];
    let server = start(dir.path(), &[&terms[..], &["3"]].concat());
    let sale = wait_for_hour(&mut server.connect());
    let held: Mutex<Vec<String>> = Mutex::default();
    let shop = |address: SocketAddr, buys: fn(u32) -> bool| {
        crowd(4, |number| {
            let mut client = connect(address);
            for item in (0..ITEMS).map(|item| (item + number * 17) % ITEMS) {
                let answer = client.request(&format!("POST /checkout?user_id={number}&id={item}"));
                if answer.status != 200 {
                    assert!(["item-reserved", "item-sold"].contains(&answer.problem().as_str()), "{answer:?}");
                } else if buys(item) {
                    assert_eq!(client.purchase(code(&answer.json())).status, 200);
                } else {
                    held.lock().unwrap().push(code(&answer.json()).to_owned());
                }
            }
        });
    };
    shop(server.address, |item| item % 3 == 0);
    let mut client = server.connect();
    assert_eq!(sale_id(&mut client), sale, "the crowd has finished before the end of the sale");
    let held = held.into_inner().unwrap();
    assert_eq!(counts(&mut client, sale), ("open".to_owned(), 20, 40));
    wait_for_hour(&mut client);
    let finish = |address: SocketAddr, number: u32, codes: &[String], again: &[String]| {
        let mut client = connect(address);
        for code in codes {
            assert_eq!(client.purchase(code).outcome(), "200");
        }
        for code in again {
            assert_eq!(client.purchase(code).outcome(), "code-used");
        }
        for item in 0..ITEMS {
            let answer = client.checkout(number.into(), item);
            if answer.status == 200 {
                assert_eq!(client.purchase(&answer.body).status, 200);
            }
        }
    };
    let address = server.address;
    crowd(2, |number| finish(address, number, &held[number as usize * 10..][..10], &[]));
    server.kill();
    let server = start(dir.path(), &[&terms[..], &["2"]].concat());
    let address = server.address;
    crowd(2, |number| finish(address, number, &held[20 + number as usize * 10..][..10], &held[..20]));
    let mut client = server.connect();
    assert_eq!(counts(&mut client, sale), ("closed".to_owned(), 60, 0));
    assert!(server.terminate().success());
    let log = Log::read(dir.path()).expect("there is a log");
    let sold_in = |of: u64| log.purchases.values().filter(|hold| u64::from(hold.sale.0) == of).count();
    assert_eq!(sold_in(sale), ITEMS as usize);
    assert!((sale..sale + 100).all(|sale| sold_in(sale) <= ITEMS as usize));
}

/// A client that always sends requests measures its waits, with a large stock. The longest ones are only printed: a
/// time limit would depend on the machine.
#[test]
fn a_large_sale_begins_while_a_client_sends_requests() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "4s", "--receipts", "0s", "--reservation-ttl", "1s", "--user-limit", "1000000"];
    let server = Server::start(dir.path(), &[&terms[..], &["--items", "2000000", "--shards", "2"]].concat());
    let mut client = server.connect();
    let (mut at_the_hour, mut otherwise, mut hours, mut last) = (Duration::ZERO, Duration::ZERO, 0, None);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(9));
            is_over.store(true, Ordering::Relaxed);
        });
        for item in (0..2_000_000).cycle() {
            if is_over.load(Ordering::Relaxed) && hours > 2 {
                return;
            }
            let began = Instant::now();
            let answer = hold(&mut client, 1, item);
            let waited = began.elapsed();
            let begins = last.replace(answer["sale_id"].clone()).is_some_and(|last| last != answer["sale_id"]);
            hours += u32::from(begins);
            let longest = if begins { &mut at_the_hour } else { &mut otherwise };
            *longest = waited.max(*longest);
            assert_eq!(release(&mut client, code(&answer)).status, 204);
        }
    });
    println!("longest wait of {hours} first checkouts of a sale: {at_the_hour:?}; of all others: {otherwise:?}");
    assert!(server.terminate().success());
}
