//! Web pages of other origins: which of them may use the API, tried with header fields and with a real browser.

use crate::browser::{Browser, Screen};
use crate::harness::{LONG_SALE, Server, skipped};
use crate::history::History;
use crate::log_tool::dump;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

const SHOP: &str = "https://shop.example";

fn server(dir: &tempfile::TempDir, arguments: &[&str]) -> Server {
    Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"], arguments].concat())
}

#[test]
fn a_page_of_another_origin_reserves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &[]);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    let evil = "Sec-Fetch-Site: cross-site\r\nOrigin: https://evil.example\r\n";
    for line in [
        "POST /checkout?user_id=7&item_id=42".to_owned(),
        format!("POST /purchase?code={code}"),
        format!("DELETE /checkout?code={code}"),
    ] {
        let refused = client.try_request(&line, evil).unwrap();
        assert_eq!((refused.status, refused.problem().as_str()), (403, "origin-not-allowed"), "{line}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    let preflight = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
    let answer = client.try_request("OPTIONS /checkout", preflight).unwrap();
    assert_eq!((answer.status, answer.header("access-control-allow-methods")), (204, None));
    assert_eq!(client.try_request("GET /sale", evil).unwrap().status, 200, "reading changes nothing");
    let sale = client.sale();
    assert_eq!((&sale["reserved"], &sale["sold"]), (&1.into(), &0.into()), "the connection stays open");
    assert_eq!(client.purchase(&code).status, 200);
}

#[test]
fn a_listed_origin_uses_the_whole_api() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &["--cors-origin", "http://localhost:3000, https://shop.example"]);
    let mut client = server.connect();
    let origin = format!("Origin: {SHOP}\r\n");
    let preflight = format!("{origin}Access-Control-Request-Method: POST\r\n");
    let answer = client.try_request("OPTIONS /checkout", &preflight).unwrap();
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some(SHOP)));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST, DELETE"));
    assert!(answer.header("access-control-allow-headers").is_some_and(|fields| fields.contains("idempotency-key")));
    let fields = format!("{origin}Sec-Fetch-Site: cross-site\r\n");
    for item in 0..20 {
        // Both shards: an answer that waits for the log has the same header lines.
        let reserved = client.try_request(&format!("POST /checkout?user_id={item}&item_id={item}"), &fields).unwrap();
        assert_eq!((reserved.status, reserved.header("access-control-allow-origin")), (200, Some(SHOP)), "{item}");
        assert_eq!(reserved.header("vary"), Some("origin"));
    }
    let refused = client.try_request("POST /checkout?user_id=1&item_id=1", &fields).unwrap();
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (409, Some(SHOP)));
    let other = client.try_request("POST /checkout?user_id=1&item_id=50", "Origin: https://other.example\r\n").unwrap();
    assert_eq!((other.status, other.header("vary")), (403, Some("origin")));
    assert_eq!(client.request("GET /sale").header("vary"), Some("origin"), "for caches");
}

#[test]
fn wrong_origins_are_refused_at_the_start() {
    for wrong in ["shop.example", "https://Shop.example", "https://shop.example/", "https://", "https://a,,https://b"] {
        let dir = tempfile::tempdir().unwrap();
        let parts = ["--cors-origin", wrong, "like https://shop.example"];
        crate::harness::assert_refused(dir.path(), &["--cors-origin", wrong], 2, &parts);
    }
}

/// Serves an empty page at an origin of its own.
fn serve_page() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let page = "<!doctype html><title>Shop</title>";
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n", page.len());
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{page}").as_bytes());
        }
    });
    address
}

/// Script that uses every operation of a buyer from the page: it reserves an item twice with the same key, extends the
/// hold and buys the item, and reserves and releases another one. It returns what it has seen, or the error.
fn shops(api: SocketAddr) -> String {
    format!(
        "(async () => {{
            const ask = async (method, target, headers) => {{
                const answer = await fetch(`http://{api}${{target}}`, {{ method, headers }});
                return answer.status === 204 ? 'released' : answer.json();
            }};
            const key = {{ 'Idempotency-Key': 'cart-1' }};
            const first = await ask('POST', '/checkout?user_id=7&id=42', key);
            const again = await ask('POST', '/checkout?user_id=7&id=42', key);
            const extended = await ask('POST', `/checkout/extend?code=${{first.code}}`);
            const receipt = await ask('POST', `/purchase?code=${{first.code}}`, key);
            const other = await ask('POST', '/checkout?user_id=7&id=43', key);
            const release = await ask('DELETE', `/checkout?code=${{other.code}}`);
            const later = Date.parse(extended.expires_at) - Date.parse(first.expires_at);
            return [first.code === again.code, later, receipt.message, release].join();
        }})().catch((error) => error.name)"
    )
}

/// Script that sends requests about the hold with `code` and a checkout, and cannot read the answers. It returns the
/// results in order.
fn attacks(api: SocketAddr, code: &str) -> String {
    let requests = [
        "POST /checkout?user_id=7&item_id=50".to_owned(),
        format!("POST /purchase?code={code}"),
        format!("POST /checkout/extend?code={code}"),
        format!("DELETE /checkout?code={code}"),
    ];
    let sent = requests.map(|request| {
        let (method, target) = request.split_once(' ').expect("a method and a target");
        format!(
            "await fetch('http://{api}{target}', {{ method: '{method}', mode: 'no-cors' }})
                .then(({{ type }}) => type, (error) => error.name)"
        )
    });
    format!("(async () => [{}].join())()", sent.join(", "))
}

#[test]
fn a_browser_buys_from_another_origin_only_if_it_is_listed() {
    let Some(browser) = Browser::start() else { return skipped("a shop on another origin", "no chromium") };
    let [shop, stranger] = [(); 2].map(|()| format!("http://localhost:{}", serve_page().port()));
    let (dir, closed_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = ["--reservation-ttl", "1h", "--extension", "5s"];
    let open = server(&dir, &[&long[..], &["--cors-origin", &shop]].concat());
    let closed = server(&closed_dir, &long);
    let screen = Screen { width: 800, height: 600, is_dark: false };
    browser.open(&shop, screen);
    // The requests of the browser are not in the history of the test's clients.
    [&open, &closed].iter().for_each(|server| History::at(server.address).leave_gap());
    assert_eq!(browser.evaluate(&shops(open.address)), "true,5000,Purchase successful,released");
    for (server, origin, sold) in [(&open, &stranger, 1), (&closed, &shop, 0), (&closed, &stranger, 0)] {
        browser.open(origin, screen);
        let held = server.connect().request("POST /checkout?user_id=1&id=1").json();
        let code = held["code"].as_str().unwrap();
        assert_eq!(browser.evaluate(&shops(server.address)), "TypeError", "the browser hides the answer");
        // The browser sends the first three, and asks before the fourth, which is refused.
        assert_eq!(browser.evaluate(&attacks(server.address, code)), "opaque,opaque,opaque,TypeError");
        let mut client = server.connect();
        let sale = client.sale();
        assert_eq!((&sale["reserved"], &sale["sold"]), (&1.into(), &sold.into()), "{sale}");
        let extended = client.request(&format!("POST /checkout/extend?code={code}"));
        assert_eq!(extended.status, 200, "{extended:?}");
        assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
    }
    let history = dump(dir.path(), &["--item", "1"]);
    let events: Vec<_> = history.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["checkout", "extended", "released"], "the hold was extended once, by its client");
}
