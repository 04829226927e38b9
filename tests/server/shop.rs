//! The shop at `GET /`: its files, and a whole sale that several browsers buy through it.

use crate::browser::{Browser, Screen};
use crate::dashboard::FAINT;
use crate::harness::{Client, LONG_SALE, Response, Server, assert_refused, in_repository, skipped};
use crate::history::History;
use crate::log_tool::dump;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;

/// A wide screen.
pub const DESKTOP: Screen = Screen { width: 1120, height: 860, is_dark: false };
/// A narrow screen.
pub const PHONE: Screen = Screen { width: 360, height: 780, is_dark: true };
/// Stock of the sale that the browsers buy.
const ITEMS: usize = 30;

fn head_of(client: &mut Client, path: &str) -> Response {
    client.send(format!("HEAD {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes()).unwrap();
    client.read_head().unwrap()
}

/// Returns the path and the content type of each file of the shop.
fn files() -> Vec<(String, &'static str)> {
    let names = fs::read_dir(in_repository("src/http/shop_files")).unwrap();
    let of = |name: String| {
        let kind = match name.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{other}"),
        };
        match name.as_str() {
            "index.html" => ("/".to_owned(), kind),
            "shop.css" | "shop.js" | "shop.svg" => (format!("/{name}"), kind),
            _ => (format!("/shop/{name}"), kind),
        }
    };
    names.map(|entry| of(entry.unwrap().file_name().into_string().unwrap())).collect()
}

#[test]
fn its_files_are_served_and_cached() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let mut client = server.connect();
    for (path, kind) in files() {
        let file = client.request(&format!("GET {path}"));
        assert_eq!((file.status, file.header("content-type")), (200, Some(kind)), "{path}");
        let policy = file.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(file.header("cache-control"), Some("no-cache"), "{path}");
        let head = head_of(&mut client, &path);
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.header("content-length"), Some(file.body.len().to_string().as_str()), "{path}");
        let known = format!("If-None-Match: {}\r\n", file.header("etag").unwrap());
        let unchanged = client.try_request(&format!("GET {path}"), &known).unwrap();
        assert_eq!((unchanged.status, unchanged.body.as_str()), (304, ""), "{path}");
        assert_eq!(unchanged.header("content-security-policy"), Some(policy), "{path}");
        assert_eq!(client.request(&format!("POST {path}")).status, 405, "{path}");
    }
    // The browser loads all modules at once.
    let page = client.request("GET /").body;
    for (path, _) in files().iter().filter(|(path, _)| path.ends_with(".js")) {
        assert_eq!(page.matches(&format!("=\"{path}\"")).count(), 1, "{path}");
    }
    for path in ["/shop", "/shop/", "/shop/shop.js", "/shop.js/", "//", "/index.html", "/favicon.ico"] {
        assert_eq!(client.request(&format!("GET {path}")).status, 404, "{path}");
    }
}

#[test]
fn without_the_shop_its_paths_do_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shop", "off"]].concat());
    let mut client = server.connect();
    for line in ["GET /", "POST /", "OPTIONS /", "GET /shop.css", "GET /shop.js", "GET /shop/words.js"] {
        assert_eq!(client.request(line).status, 404, "{line}");
    }
    assert_eq!(head_of(&mut client, "/").status, 404);
    assert_refused(dir.path(), &["--shop", "maybe"], 2, &["--shop", "on or off"]);
}

/// Script that presses a button as soon as it can be pressed, and returns whether it could.
pub fn press(selector: &str) -> String {
    format!(
        "(async () => {{
            for (let tries = 0; tries < 200; tries += 1) {{
                const button = document.querySelector({selector:?});
                if (button && !button.disabled) {{ button.click(); return true; }}
                await new Promise((done) => setTimeout(done, 25));
            }}
            return false;
        }})()"
    )
}

/// Reserves and buys any item again and again, until none is left. Returns the number of items bought.
fn buy_all(browser: &Browser) -> usize {
    let state = "(() => {
        if (document.querySelector('.hold.asking, .hold.buying')) return 'waits';
        if (document.querySelector('.hold.held')) return 'held';
        return document.getElementById('available').textContent === 'Sold out' ? 'over' : 'free';
    })()";
    loop {
        match browser.evaluate(state).as_str().unwrap() {
            "held" => assert_eq!(browser.evaluate(&press(".hold.held .first")), true),
            "free" => _ = browser.evaluate(&press("#any")),
            "over" => break,
            _ => thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    browser.evaluate("document.querySelectorAll('.hold.bought').length").as_u64().unwrap() as usize
}

#[test]
fn several_browsers_buy_a_whole_sale_while_another_one_watches() {
    let Some(watcher) = Browser::start() else { return skipped("the shop", "no chromium") };
    let dir = tempfile::tempdir().unwrap();
    let rules = ["--items", &ITEMS.to_string(), "--user-limit", "1000", "--shards", "2", "--reservation-ttl", "1m"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &rules].concat());
    // The requests of browsers are not in the history of the tests.
    History::at(server.address).leave_gap();
    let url = format!("http://{}/", server.address);
    watcher.open(&url, DESKTOP);
    watcher.wait_for("document.querySelectorAll('.item button:enabled').length === 24");
    let bought: Vec<usize> = thread::scope(|scope| {
        let buyers = (0..3).map(|_| {
            scope.spawn(|| {
                let browser = Browser::start().unwrap();
                browser.open(&url, DESKTOP);
                browser.wait_for("!document.getElementById('any').disabled");
                let bought = buy_all(&browser);
                // What was bought is still there after a reload.
                browser.open(&url, DESKTOP);
                browser.wait_for(&format!("document.querySelectorAll('.hold.bought .code').length === {bought}"));
                bought
            })
        });
        buyers.collect::<Vec<_>>().into_iter().map(|buyer| buyer.join().unwrap()).collect()
    });
    assert_eq!(bought.iter().sum::<usize>(), ITEMS, "{bought:?}");
    watcher.wait_for("document.getElementById('available').textContent === 'Sold out'");
    watcher.wait_for("[...document.querySelectorAll('.item .state')].every((state) => state.textContent === 'Sold')");
    watcher.wait_for("document.getElementById('clock').textContent.startsWith('The next sale opens in')");
    assert_eq!(watcher.complaints(), Vec::<String>::new());
    let mut purchases = dump(dir.path(), &[]);
    purchases.retain(|line| line["event"] == "purchase");
    let items: BTreeSet<u64> = purchases.iter().map(|line| line["item_id"].as_u64().unwrap()).collect();
    assert_eq!((purchases.len(), items.len()), (ITEMS, ITEMS));
    assert!(server.terminate().success());
}

/// By keyboard, with a refusal, an extension and a release; what a screen reader gets; on a phone, in dark mode.
#[test]
fn it_works_by_keyboard_with_a_screen_reader_and_on_a_phone() {
    let Some(browser) = Browser::start() else { return skipped("the shop", "no chromium") };
    let dir = tempfile::tempdir().unwrap();
    let rules = ["--user-limit", "2", "--reservation-ttl", "1m", "--extension", "2m"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &rules].concat());
    History::at(server.address).leave_gap();
    browser.open(&format!("http://{}/", server.address), PHONE);
    browser.wait_for("document.querySelectorAll('.item button:enabled').length === 24");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "nothing is cut off");
    assert_eq!(browser.evaluate(FAINT), serde_json::json!([]));
    let nodes = browser.accessible();
    let has = |role: &str, name: &str| nodes.iter().any(|(r, n)| r == role && n.starts_with(name));
    for (role, name) in [
        ("heading", "Flash sale"),
        ("heading", "In stock"),
        ("heading", "Your items"),
        ("button", "Reserve any item"),
        ("navigation", "Pages of items"),
        ("button", "Next"),
        ("status", ""),
    ] {
        assert!(has(role, name), "no {role} {name}");
    }
    let named = nodes.iter().filter(|(role, name)| role == "button" && name.starts_with("Reserve ") && name.len() > 16);
    assert!(named.count() >= 24, "each button names its item");

    // The first two stops are the link over the head and the main button.
    browser.press("Tab");
    assert_eq!(browser.evaluate("document.activeElement.textContent"), "Skip to the items");
    browser.press("Tab");
    assert_eq!(browser.evaluate("document.activeElement.id"), "any");
    browser.press("Enter");
    browser.wait_for("document.querySelector('.hold.held .first') !== null");
    browser.wait_for("document.getElementById('message').textContent.includes('Buy it now')");
    browser.evaluate("document.querySelectorAll('.hold .actions button')[1].focus()");
    browser.press("Enter");
    browser.wait_for("/^You have (3:00|2:5.) to buy/.test(document.getElementById('message').textContent)");
    // The focus stays with the item whose buttons were drawn again.
    browser.wait_for("document.activeElement.closest('.hold') !== null");
    browser.evaluate("document.querySelector('.hold .first').focus()");
    browser.press("Enter");
    browser.wait_for("document.getElementById('message').textContent.startsWith('You have bought')");
    // The list may not show yet that the first items are gone.
    assert_eq!(browser.evaluate(&press(".item:last-child button")), true);
    browser.wait_for("document.querySelectorAll('.hold.held').length === 1");
    browser.complaints();
    assert_eq!(browser.evaluate(&press("#any")), true);
    browser.wait_for("document.getElementById('message').textContent.startsWith('You have 2 items')");
    browser.evaluate("document.querySelector('.hold.held .actions button:last-child').click()");
    browser.wait_for("document.getElementById('message').textContent.startsWith('You have given back')");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "nothing is cut off");
    let mut client = server.connect();
    assert_eq!((&client.sale()["sold"], &client.sale()["reserved"]), (&1.into(), &0.into()));
}

/// Writes pictures for the documents to the directory STAMPEDE_SCREENSHOTS.
#[test]
fn pictures() {
    let Some(pictures) = std::env::var_os("STAMPEDE_SCREENSHOTS").map(PathBuf::from) else { return };
    let browser = Browser::start().expect("screenshots need Chromium");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--user-limit", "1000", "--reservation-ttl", "5m", "--extension", "5m"]);
    History::at(server.address).leave_gap();
    let mut client = server.connect();
    for item in (0..9000).step_by(3) {
        let code = client.reserve(item.into(), item);
        assert!(item % 2 == 0 || client.purchase(&code).status == 200, "item {item}");
    }
    browser.open(&format!("http://{}/", server.address), DESKTOP);
    browser.wait_for("document.querySelectorAll('.item').length === 24");
    browser.evaluate(&press("#any"));
    browser.wait_for("document.querySelector('.hold.held') !== null");
    browser.evaluate(&press(".hold.held .first"));
    browser.wait_for("document.querySelector('.hold.bought') !== null");
    browser.evaluate(&press("#any"));
    browser.wait_for("document.querySelector('.hold.held') !== null");
    for (name, screen) in [("desktop-light", DESKTOP), ("phone-dark", PHONE)] {
        browser.turn_to(screen);
        thread::sleep(std::time::Duration::from_millis(1500));
        browser.photograph(&pictures.join(format!("shop-{name}.png")));
    }
}
