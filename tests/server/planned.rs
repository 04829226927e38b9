//! A server with a plan: sales that open and close at planned times, restarts and upgrades meanwhile, and plans that
//! contradict what has opened.

use crate::cluster::Cluster;
use crate::harness::{Client, Server, assert_refused, run_to_end, stampede};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the current time, in seconds since the Unix epoch.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until this time, in seconds since the Unix epoch, and a little longer.
pub fn wait_for(unix_s: u64) {
    let at = UNIX_EPOCH + Duration::from_millis(unix_s * 1000 + 100);
    std::thread::sleep(at.duration_since(SystemTime::now()).unwrap_or_default());
}

fn time(unix_s: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s)).to_string()
}

/// Returns the lines of a sale. `terms` has the limit and more, and `products` the tables of its products.
pub fn sale(id: u32, (opens_s, closes_s): (u64, u64), terms: &str, products: &str) -> String {
    let (opens, closes) = (time(opens_s), time(closes_s));
    format!("[[sale]]\nid = {id}\nname = \"Sale {id}\"\nopens = {opens}\ncloses = {closes}\n{terms}\n{products}\n")
}

/// Returns the lines of a product without names.
pub fn product(id: &str, quantity: u32) -> String {
    format!("[[sale.product]]\nid = \"{id}\"\nname = \"Product {id}\"\nquantity = {quantity}\n")
}

pub fn write(dir: &Path, sales: &[String]) {
    fs::write(dir.join("shop.toml"), sales.concat()).unwrap();
}

pub const PLAN: [&str; 4] = ["--plan", "shop.toml", "--shards", "2"];

/// Asks for any item, and returns the outcome.
fn any(client: &mut Client, user: i64) -> String {
    client.request(&format!("POST /checkout?user_id={user}")).outcome()
}

/// Kills the server, and starts it again with the same arguments.
fn restart(server: Server, dir: &Path, arguments: &[&str]) -> (Server, Client) {
    server.kill();
    let server = Server::start(dir, arguments);
    let client = server.connect();
    (server, client)
}

#[test]
fn sales_open_and_close_as_planned_across_kill_9() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let begin = now_s() + 4;
    let (first, second) = ((begin, begin + 5), (begin + 8, begin + 12));
    let terms = "user_limit = 2\nreservation_ttl = \"500ms\"\nextension = \"1s\"";
    let named = "[[sale.product]]\nid = \"seat\"\nname = \"Seat\"\nunits = [\"A1\", \"A2\"]\n";
    write(dir.path(), &[sale(7, first, terms, &product("a", 3)), sale(9, second, "user_limit = 1", named)]);

    let server = Server::start(dir.path(), &arguments);
    let plan = server.wait_for_line("the plan is in force");
    assert_eq!((&plan["plan"], &plan["sales"], &plan["open"]), (&"shop.toml".into(), &2.into(), &"[]".into()));
    assert_eq!(
        (&plan["next_sale"], plan["opens_at"].as_str().unwrap()),
        (&7.into(), &*time(begin).replace('Z', ".000Z"))
    );
    let mut client = server.connect();
    let not_open = client.checkout(1, 0);
    assert_eq!((not_open.status, &*not_open.problem()), (409, "not-open"));
    let wait_s: u64 = not_open.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait_s), "{not_open:?}");
    assert_eq!(any(&mut client, 1), "not-open");
    let next = client.sale();
    assert_eq!((&next["sale_id"], &next["phase"], &next["items_total"]), (&7.into(), &"next".into(), &3.into()));
    assert_eq!((&next["sold"], &next["user_limit"]), (&0.into(), &2.into()));
    let (_, mut client) = {
        let (server, client) = restart(server, dir.path(), &arguments);
        wait_for(begin);
        let opened = server.wait_for_line("the sale has opened");
        assert_eq!((&opened["sale"], &opened["name"], &opened["items"]), (&7.into(), &"Sale 7".into(), &3.into()));
        (server.kill(), client)
    };
    assert!(client.try_request("GET /livez", "").is_err());

    // Open.
    let server = Server::start(dir.path(), &arguments);
    let mut client = server.connect();
    assert_eq!(client.sale()["phase"], "open");
    let bought = client.reserve(1, 0);
    let receipt = client.try_request(&format!("POST /purchase?code={bought}"), "Idempotency-Key: k\r\n").unwrap();
    assert_eq!(receipt.status, 200);
    let (server, mut client) = restart(server, dir.path(), &arguments);
    assert_eq!((client.sale()["sold"].clone(), client.sale()["phase"].clone()), (1.into(), "open".into()));
    let last = client.reserve(1, 1);
    assert_eq!(client.checkout(1, 2).problem(), "user-limit");
    assert_eq!(client.request(&format!("POST /checkout/extend?code={last}")).status, 200);
    assert_eq!(client.checkout(2, 3).outcome(), "invalid-parameter");

    // The gap: receipts are answered, and the next sale is announced.
    wait_for(first.1);
    assert_eq!(server.wait_for_line("the sale has ended")["sold"], 1);
    assert_eq!(any(&mut client, 3), "not-open");
    let (server, mut client) = restart(server, dir.path(), &arguments);
    assert_eq!((client.sale()["sale_id"].clone(), client.sale()["phase"].clone()), (9.into(), "next".into()));
    let ended = client.request("GET /sales/7").json();
    assert_eq!((&ended["phase"], &ended["sold"]), (&"closed".into(), &1.into()));
    assert_eq!(client.request("GET /sales/9").json()["phase"], "next");
    assert_eq!(client.request("GET /sales/8").problem(), "not-found");
    let again = client.try_request(&format!("POST /purchase?code={bought}"), "Idempotency-Key: k\r\n").unwrap();
    assert_eq!(again.body, receipt.body);
    assert_eq!(client.request("GET /readyz").status, 200);

    // The second sale has other terms, and the last one stays.
    wait_for(second.0);
    assert_eq!(client.sale()["phase"], "open");
    let code = client.reserve(1, 1);
    assert_eq!(client.checkout(1, 0).problem(), "user-limit");
    assert_eq!(client.purchase(&code).status, 200);
    let (server, mut client) = restart(server, dir.path(), &arguments);
    assert_eq!(client.sale()["sold"], 1);
    wait_for(second.1);
    assert_eq!(any(&mut client, 3), "not-open");
    let wait_s: u64 = client.checkout(4, 0).header("retry-after").unwrap().parse().unwrap();
    assert!((86_400..=86_402).contains(&wait_s), "{wait_s}");
    assert_eq!((client.sale()["sale_id"].clone(), client.sale()["phase"].clone()), (9.into(), "closed".into()));
    let (server, mut client) = restart(server, dir.path(), &arguments);
    assert_eq!((client.sale()["sale_id"].clone(), client.sale()["phase"].clone()), (9.into(), "closed".into()));
    assert_eq!(client.purchase(&code).outcome(), "code-used");
    assert!(server.terminate().success());
    let rows = "select sale_id, items, user_limit, extract(epoch from opens_at)::bigint, \
        extract(epoch from closes_at)::bigint, products <> 0 from stampede.sales order by 1";
    let row = |id, items, limit, (opens, closes): (u64, u64)| format!("{id}|{items}|{limit}|{opens}|{closes}|t");
    assert_eq!(cluster.ask(rows).trim(), [row(7, 3, 2, first), row(9, 2, 1, second)].join("\n"));
    assert_eq!(
        cluster.ask("select sale_id, item_id, user_id from stampede.purchases order by 1").trim(),
        "7|0|1\n9|1|1"
    );
    assert_eq!(cluster.count("select sale_period_s from stampede.clusters"), 0);

    // The log says when each sale was, without the plan.
    fs::remove_file(dir.path().join("shop.toml")).unwrap();
    let data = ["--data-dir", dir.path().to_str().unwrap(), "--database-url", &url];
    let tool = |words: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_stampede"))
            .env_clear()
            .env("PLAN", "shop.toml")
            .current_dir(dir.path())
            .args(words)
            .args(data)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let heading = |id, items, (opens, closes): (u64, u64)| {
        let [opens, closes] = [opens, closes].map(|at| time(at).replace('Z', ".000Z"));
        format!("sale {id}, {opens} to {closes}: {items} items")
    };
    for (id, items, times) in [(7, 3, first), (9, 2, second)] {
        let (code, text) = tool(&["log", "sale", &id.to_string()]);
        assert!(code == Some(0) && text.starts_with(&heading(id, items, times)), "{text}");
        assert!(text.contains("The log and Postgres agree."), "{text}");
    }
    let (code, text) = tool(&["log", "verify"]);
    assert!(code == Some(0) && text.contains("Sound: "), "{text}");
}

#[test]
fn an_upgrade_reads_the_plan_again() {
    let dir = tempfile::tempdir().unwrap();
    let begin = now_s() - 100;
    let over = sale(1, (begin, begin + 50), "user_limit = 1", &product("old", 5));
    let open = |terms: &str, products: &str| sale(2, (begin + 60, begin + 3600), terms, products);
    let (terms, stock) = ("user_limit = 2\nreservation_ttl = \"20m\"", product("a", 3) + &product("b", 2));
    let plan = [over.clone(), open(terms, &stock)];
    write(dir.path(), &plan);
    let mut server = Server::start(dir.path(), &PLAN);
    assert_eq!(server.wait_for_line("the plan is in force")["open"], "[2]");
    let mut client = server.connect();
    let (bought, held) = (client.reserve(1, 0), client.reserve(1, 1));
    assert_eq!(client.purchase(&bought).status, 200);

    // What contradicts the sale that has opened is refused before anything is handed over.
    let later = |opens, closes| sale(2, (begin + opens, begin + closes), terms, &stock);
    let other_stock = product("a", 3) + &product("b", 4);
    let other_ids = product("a", 3) + &product("c", 2);
    let other_split = product("a", 2) + &product("b", 3);
    let names = product("a", 3).replace("quantity = 3", "units = [\"A1\", \"A2\", \"A3\"]") + &product("b", 2);
    for (contradiction, says) in [
        (later(61, 3600), "shop.toml:12: sale 2 has opened, and the log has other terms: opens "),
        (later(60, 3700), "shop.toml:12: sale 2 has opened, and the log has other terms: closes "),
        (later(60, 3500), "shop.toml:12: sale 2 has opened, and the log has other terms: closes "),
        (
            open(terms, &other_stock),
            "the log has other terms: units 5 (the plan: 7); a sale that has opened keeps its times",
        ),
        (
            open("user_limit = 3\nreservation_ttl = \"20m\"", &stock),
            "the log has other terms: user_limit 2 (the plan: 3)",
        ),
        (open(terms, &other_ids), "the log has other terms: other products"),
        (open(terms, &other_split), "the log has other terms: other products"),
        (open(terms, &names), "the log has other terms: other products"),
        (String::new(), "shop.toml: sale 2 is missing in the plan, and by the log it is open until "),
        ("[[sale]]\nid = x\n".into(), "shop.toml:12:1: this sale has no product"),
    ] {
        write(dir.path(), &[over.clone(), contradiction]);
        server.signal(Signal::HUP);
        let line = server.wait_for_one_of(&["wrong plan: ", "shop.toml:"])["message"].to_string();
        assert!(line.contains(says), "{line}");
        assert_eq!(server.wait_for_line("the upgrade was aborted")["ended"], "exit status: 2");
        assert_eq!(client.sale()["sold"], 1);
        let (code, text) = run_to_end(dir.path(), &[&PLAN[..], &["--check-config"]].concat());
        assert_eq!(code, if says.ends_with("no product") { 2 } else { 0 }, "{text}");
    }

    // A sale that is over can be removed, another one can be added, and hold times, names and prices can change.
    let priced = product("a", 3).replace("Product a", "Renamed") + "price = \"9 €\"\n" + &product("b", 2);
    let added = sale(5, (begin + 3600, begin + 7200), "user_limit = 1", &product("x", 9));
    write(dir.path(), &[open("user_limit = 2\nreservation_ttl = \"2s\"\nextension = \"1h\"", &priced), added]);
    server.upgrade();
    let mut client = server.connect();
    assert_eq!(client.sale()["sold"], 1);
    assert_eq!(client.request("GET /sales/5").json()["items_total"], 9);
    let plan = server.wait_for_line("the plan is in force");
    // The first line is that of the first process.
    assert_eq!((&plan["open"], &plan["next_sale"]), (&"[2]".into(), &5.into()));
    let short = client.reserve(2, 2);
    assert_eq!(client.request(&format!("POST /checkout/extend?code={held}")).status, 200);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(client.purchase(&short).outcome(), "code-expired", "holds last 2 s now");
    assert_eq!(client.purchase(&held).status, 200);
    assert!(server.terminate().success());

    // The same at a start.
    write(dir.path(), &[open(terms, &other_stock)]);
    let says = ["wrong plan: shop.toml:1: sale 2 has opened, and the log has other terms: units 5 (the plan: 7)"];
    assert_refused(dir.path(), &PLAN, 2, &says);
    write(dir.path(), &[over]);
    assert_refused(dir.path(), &PLAN, 2, &["wrong plan: shop.toml: sale 2 is missing in the plan"]);
}

#[test]
fn a_plan_that_cannot_be_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_s();
    let (hour, terms) = (3600, "user_limit = 1");
    let one = sale(1, (now, now + 2 * hour), terms, &product("a", 1));
    assert_refused(dir.path(), &PLAN, 2, &["stampede: wrong plan: shop.toml cannot be read: No such file"]);
    write(dir.path(), &[one.replace("user_limit", "user_limt")]);
    let text = ["stampede: wrong plan: 1 mistake\nshop.toml:6:1: unknown key \"user_limt\"", "\n    ^^^^^^^^^"];
    assert_refused(dir.path(), &PLAN, 2, &text);
    assert_refused(dir.path(), &[&PLAN[..], &["--check-config"]].concat(), 2, &text);
    write(dir.path(), &[one.clone(), sale(1025, (now + hour, now + 3 * hour), terms, &product("a", 1))]);
    let text = "wrong plan: shop.toml:12: the ids 1025 and 1 differ by a multiple of 1024, and both sales are remembered at once";
    assert_refused(dir.path(), &PLAN, 2, &[text]);
    write(dir.path(), &[sale(1, (now, now + 1), "user_limit = 1\nevery = \"1s\"", &product("a", 1))]);
    assert_refused(
        dir.path(),
        &[&PLAN[..], &["--receipts", "10m"]].concat(),
        2,
        &[
            "wrong plan: shop.toml:1: 632 sales would have to be remembered while this one opens",
            "at most 512 are: set a shorter --receipts",
        ],
    );
    assert_refused(
        dir.path(),
        &[&PLAN[..], &["--items", "5"]].concat(),
        2,
        &["wrong setting: --plan and --items contradict each other", "remove --items, or run without a plan"],
    );
    fs::write(dir.path().join(".env"), "PLAN=shop.toml\nAPP_USER_LIMIT=5\n").unwrap();
    let text = "wrong setting: PLAN in .env and APP_USER_LIMIT in .env contradict each other";
    assert_refused(dir.path(), &["--check-config"], 2, &[text]);
    fs::write(dir.path().join(".env"), "PLAN=shop.toml\n").unwrap();
    let (code, text) = run_to_end(dir.path(), &["--check-config"]);
    assert!(code == 0 && text.contains("plan = shop.toml\nreceipts = 4s\n"), "{text}");
    assert!(!dir.path().join("control.json").exists(), "nothing was changed");
}

/// The period of sales without a plan in the tests below.
const PERIOD_S: u64 = 4;
const PERIODIC: [&str; 4] = ["--sale-period", "4s", "--items", "5"];

/// A shop sells by the hour, then by a plan, then by the hour again.
fn a_plan_comes_and_goes(dir: &Path, more: &[&str]) {
    let periodic = [&PERIODIC[..], more].concat();
    let planned = [&PLAN[..], more].concat();
    let server = Server::start(dir, &periodic);
    let mut client = server.connect();
    let code = client.reserve(1, 2);
    let newest = client.sale()["sale_id"].as_u64().unwrap();
    assert_eq!(client.purchase(&code).status, 200);
    assert!(server.terminate().success());
    // The sale is still open, and the plan does not have it.
    let low = sale(7, (now_s() + 100, now_s() + 200), "user_limit = 1", &product("a", 1));
    if now_s() < (newest + 1) * PERIOD_S - 2 {
        write(dir, std::slice::from_ref(&low));
        assert_refused(dir, &planned, 2, &["is missing in the plan, and by the log it is open until"]);
    }
    wait_for((newest + 1) * PERIOD_S);
    // Ids of a plan may not be lower.
    write(dir, &[low]);
    let says = ["shop.toml:1: sale 7 is to open ", &format!("give the sales that are to open ids from {}", newest + 1)];
    assert_refused(dir, &planned, 2, &says);
    let begin = now_s();
    let first = newest as u32 + 1;
    write(dir, &[sale(first, (begin, begin + 6), "user_limit = 1", &product("a", 3))]);
    let server = Server::start(dir, &planned);
    let mut client = server.connect();
    assert_eq!(client.sale()["sale_id"], first);
    let second = client.reserve(1, 0);
    assert_eq!(client.purchase(&second).status, 200);
    assert_eq!(client.purchase(&code).outcome(), "code-used", "receipts of the sale without a plan");
    assert!(server.terminate().success());
    // Back: the sale of the plan is open, and then its id is lower than that of the period.
    if now_s() < begin + 4 {
        assert_refused(dir, &periodic, 4, &["of a plan is open until", "start with --plan, or after this time"]);
    }
    wait_for(begin + 6);
    let server = Server::start(dir, &periodic);
    let mut client = server.connect();
    assert!(client.sale()["sale_id"].as_u64().unwrap() > u64::from(first));
    assert_eq!(client.sale()["items_total"], 5);
    client.reserve(1, 4);
    assert!(server.terminate().success());
    // Other lengths are still refused, with and without a plan between.
    let (code, text) = run_to_end(dir, &[&["--sale-period", "8s"], more].concat());
    assert!([4, 8].contains(&code) && text.contains("--sale-period 4s"), "{text}");
}

#[test]
fn a_plan_follows_sales_without_one_and_the_reverse() {
    a_plan_comes_and_goes(tempfile::tempdir().unwrap().path(), &[]);
}

#[test]
fn a_database_takes_sales_with_and_without_a_plan() {
    let (cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let more = ["--database-url", &*url];
    a_plan_comes_and_goes(dir.path(), &more);
    assert_eq!(cluster.count("select sale_period_s from stampede.clusters"), PERIOD_S);
    // A new data directory continues from the database, with a plan.
    let newest = cluster.count("select max(sale_id) from stampede.sales") as u32;
    wait_for((u64::from(newest) + 1) * PERIOD_S);
    let begin = now_s();
    write(other.path(), &[sale(newest + 1, (begin, begin + 100), "user_limit = 1", &product("a", 3))]);
    let server = Server::start(other.path(), &[&PLAN[..], &more].concat());
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert!(server.terminate().success());
    // And once more, with the sale of the plan open: its terms come from the database.
    let third = tempfile::tempdir().unwrap();
    write(third.path(), &[sale(newest + 1, (begin, begin + 100), "user_limit = 1", &product("b", 3))]);
    let arguments = [&PLAN[..], &more].concat();
    assert_refused(third.path(), &arguments, 2, &["has opened, and the log has other terms: other products"]);
    write(third.path(), &[sale(newest + 1, (begin, begin + 100), "user_limit = 1", &product("a", 3))]);
    let server = Server::start(third.path(), &arguments);
    assert_eq!(server.connect().purchase(&code).status, 200);
    assert!(server.terminate().success());
}

/// The plan begins with the sales that the server has sold without it, so the open one goes on.
#[test]
fn a_reload_replaces_sales_without_a_plan_by_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let environment = |lines: &str| fs::write(dir.path().join(".env"), lines).unwrap();
    environment("SALE_PERIOD=1day\nITEMS=5\nUSER_LIMIT=3\n");
    let mut server = Server::start(dir.path(), &["--shards", "2"]);
    let mut client = server.connect();
    let code = client.reserve(1, 2);
    let id = client.sale()["sale_id"].as_u64().unwrap();
    let day = 86_400;
    let daily = |items, until| {
        let terms = format!("user_limit = 3\nevery = \"1day\"\nuntil = {}", time(until));
        sale(1, (day, 2 * day), &terms, &product("any", items))
    };
    let after = sale(id as u32 + 2, ((id + 2) * day, (id + 3) * day), "user_limit = 1", &product("x", 9));
    environment("PLAN=shop.toml\n");
    write(dir.path(), &[daily(6, (id + 2) * day), after.clone()]);
    server.signal(Signal::HUP);
    let why = server.wait_for_line("wrong plan")["message"].to_string();
    assert!(why.contains(&format!("shop.toml:1: sale {id} has opened, and the log has other terms: units 5")), "{why}");
    server.wait_for_line("the upgrade was aborted");
    write(dir.path(), &[daily(5, (id + 2) * day), after]);
    server.upgrade();
    let mut client = server.connect();
    let sale = client.sale();
    assert_eq!((&sale["sale_id"], &sale["phase"], &sale["reserved"]), (&id.into(), &"open".into(), &1.into()));
    assert_eq!(client.purchase(&code).status, 200);
    assert_eq!(client.request(&format!("GET /sales/{}", id + 1)).json()["items_total"], 5);
    assert_eq!(client.request(&format!("GET /sales/{}", id + 2)).json()["items_total"], 9);
    assert_eq!(client.request(&format!("GET /sales/{}", id + 3)).problem(), "not-found");
    assert!(server.terminate().success());
}

/// Old processes of an upgrade that have a plan are not continued without one.
#[test]
fn an_upgrade_does_not_lose_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_s();
    write(dir.path(), &[sale(1, (now, now + 3600), "user_limit = 1", &product("a", 1))]);
    fs::write(dir.path().join(".env"), "PLAN=shop.toml\n").unwrap();
    let server = Server::run(&mut stampede(dir.path(), &["--shards", "1"]));
    server.wait_for_line("serving");
    fs::write(dir.path().join(".env"), "SHARDS=1\n").unwrap();
    server.signal(Signal::USR2);
    assert_eq!(server.wait_for_line("the upgrade was aborted")["ended"], "exit status: 2");
    let why = server.wait_for_line("wrong setting")["message"].to_string();
    assert!(why.contains("the running server has a plan and the new settings have none; set PLAN, as before"), "{why}");
    assert!(server.terminate().success());
}

/// Returns the blocks of the segments of the purchase log.
fn purchase_blocks(dir: &Path) -> u64 {
    let segments = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap());
    let purchases = segments.filter(|file| file.file_name().to_str().unwrap().starts_with("purchases-"));
    purchases.map(|file| file.metadata().unwrap().len() / 4096).sum()
}

/// The log has room for a hold of each item before the sale opens, so that no segment is made during the rush.
#[test]
fn the_log_has_room_for_a_sale_before_it_opens() {
    let (dir, opens) = (tempfile::tempdir().unwrap(), now_s() + 20);
    write(dir.path(), &[sale(1, (opens, opens + 60), "user_limit = 1", &product("a", 5000))]);
    let server = Server::start(dir.path(), &["--plan", "shop.toml", "--shards", "1"]);
    while purchase_blocks(dir.path()) < 5000 {
        assert!(now_s() < opens, "{} blocks when the sale opens", purchase_blocks(dir.path()));
        std::thread::sleep(Duration::from_millis(50));
    }
    server.kill();
}
