//! Tests of the dashboard in a real browser.

use crate::browser::{Browser, Screen};
use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, skipped, wait_until};
use crate::load::{Promises, buy, connect, crowd};
use crate::metrics::{scrape, sum};
use crate::planned::{PLAN, now_s, product, sale, write};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const DESKTOP: Screen = Screen { width: 1280, height: 900, is_dark: false };
const PHONE: Screen = Screen { width: 390, height: 844, is_dark: false };
const NARROW: Screen = Screen { width: 360, height: 780, is_dark: true };

/// Script that lists texts with a contrast below 4.5 to 1, and chart lines with one below 3 to 1 (WCAG 2.2, AA).
pub const FAINT: &str = "(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const part = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (element, color) => {
    const lights = [light(numbers(color)), light(ground(element))].sort((a, b) => a - b);
    return (lights[1] + 0.05) / (lights[0] + 0.05);
  };
  const texts = [...document.querySelectorAll('body *')].filter((element) =>
    element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const faint = texts.filter((element) => ratio(element, getComputedStyle(element).color) < 4.5);
  const lines = [...document.querySelectorAll('.line')];
  faint.push(...lines.filter((line) => ratio(line, getComputedStyle(line).stroke) < 3));
  return texts.length + lines.length < 60 ? ['nothing is there'] : faint.map((e) => `${e.className.baseVal ?? e.className} ${e.textContent}`);
})()";

/// Script that returns the page's Cumulative Layout Shift.
const SHIFTED: &str = "new Promise((done) => new PerformanceObserver((list) =>
    done(list.getEntries().reduce((sum, { value }) => sum + value, 0))).observe({ type: 'layout-shift', buffered: true })
    || setTimeout(() => done(0), 300))";

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        skipped("the dashboard", "no chromium");
    }
    browser
}

fn url(server: &Server) -> String {
    format!("http://{}/", server.admin)
}

/// Opens a server's dashboard and waits until it shows figures.
fn look(browser: &Browser, server: &Server, screen: Screen) {
    browser.open(&url(server), screen);
    browser.wait_for("document.getElementById('sale-id').textContent !== '–'");
}

fn number(text: &str) -> f64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

/// Reads the tables next to the charts: the name of each answer, and its total count.
fn answered(browser: &Browser) -> Vec<(String, f64)> {
    let rows = browser.evaluate(
        "['granted', 'refused', 'others'].flatMap((chart) => [...document.querySelectorAll(`#chart-${chart} tbody tr`)])
            .map((row) => [row.cells[0].textContent, row.cells[2].textContent])",
    );
    let cell = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (cell(&row[0]), number(&cell(&row[1])))).collect()
}

/// Returns the same counts from the metrics that Prometheus reads.
fn counted(admin: SocketAddr) -> Vec<(String, f64)> {
    let samples = scrape(admin);
    let of = |labels: &str| sum(&samples, "stampede_requests_total", labels);
    let codes = ["code-unknown", "code-expired", "code-used", "sale-ended"];
    let all = sum(&samples, "stampede_requests_total", "");
    let mut rows = vec![
        ("checkouts", of("method=\"POST\",route=\"/checkout\",status=\"200\"")),
        ("purchases", of("route=\"/purchase\",status=\"200\"")),
        ("cancellations", of("status=\"204\"")),
        ("item sold", of("reason=\"item-sold\"")),
        ("item reserved", of("reason=\"item-reserved\"")),
        ("user limit", of("reason=\"user-limit\"")),
        ("code refused", codes.map(|code| of(&format!("reason=\"{code}\""))).iter().sum()),
        ("unavailable, 503", of("status=\"503\"")),
    ];
    let is_look_up =
        |key: &str| key.starts_with("stampede_requests_total{method=\"GET\"") && key.contains("reason=\"\"");
    let looked_up: f64 = samples.iter().filter(|(key, _)| is_look_up(key)).map(|(_, count)| count).sum();
    let known: f64 = rows.iter().map(|(_, count)| count).sum();
    rows.extend([("invalid requests", all - known - looked_up), ("reads", looked_up)]);
    rows.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[test]
fn a_sale_sells_out_before_ones_eyes() {
    const ITEMS: u32 = 900;
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--shards", "2", "--items", &ITEMS.to_string(), "--user-limit", "1000"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat());
    look(&browser, &server, DESKTOP);
    let before = browser.text("countdown");
    let (promises, address) = (Promises::default(), server.address);
    crowd(6, |buyer| {
        let mut client = connect(address);
        for item in 0..ITEMS - 3 {
            // Each buyer begins at another item, so that it buys some items and finds others held or sold.
            buy(&mut client, buyer.into(), (item + buyer * 70) % (ITEMS - 3), &promises).unwrap();
        }
    });
    let mut client = server.connect();
    for (item, end) in [(ITEMS - 3, "DELETE /checkout"), (ITEMS - 2, "POST /purchase")] {
        let code = client.reserve(77, item);
        client.request(&format!("{end}?code={code}"));
        client.request(&format!("POST /purchase?code={code}"));
    }
    client.reserve(78, ITEMS - 1);
    ["GET /sale", "GET /nothing", "POST /checkout?user_id=x"].iter().for_each(|line| drop(client.request(line)));
    // No request follows, so that the dashboard shows the same figures as Prometheus reads.
    let samples = scrape(server.admin);
    let sale = |state: &str| samples[&format!("stampede_sale_items{{state=\"{state}\"}}")];
    wait_until("the dashboard shows every answer", || answered(&browser) == counted(server.admin));
    for (id, expected) in [
        ("sold", sale("sold")),
        ("held", sale("reserved")),
        ("free", sale("available")),
        ("sale-id", samples["stampede_sale_id"]),
        ("connections", 1.0),
    ] {
        wait_until(id, || number(&browser.text(id)) == expected);
    }
    assert_eq!((sale("sold"), sale("reserved")), (f64::from(ITEMS - 2), 1.0), "{samples:#?}");
    assert!(counted(server.admin).iter().filter(|(_, count)| *count > 0.0).count() >= 8, "{:?}", counted(server.admin));
    assert_eq!(sum(&samples, "stampede_connections", ""), 1.0);
    wait_until("the countdown continues", || browser.text("countdown") != before);

    for screen in [DESKTOP, Screen { is_dark: true, ..DESKTOP }, PHONE, NARROW] {
        browser.turn_to(screen);
        browser.wait_for(&format!("document.documentElement.scrollWidth <= {0} && innerWidth === {0}", screen.width));
        assert_eq!(browser.evaluate(FAINT), serde_json::json!([]), "at a width of {}", screen.width);
    }
    let origin = url(&server);
    let requested = browser.requested();
    assert!(requested.len() > 4 && requested.iter().all(|url| url.starts_with(&origin)), "{requested:?}");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// The dashboard is usable by keyboard and screen reader.
#[test]
fn who_cannot_see_or_point_is_told_the_same() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2", "--items", "50"]].concat());
    look(&browser, &server, DESKTOP);
    wait_until("the charts have a past", || {
        browser.evaluate(
            "Number(document.querySelector('#chart-stock .area').getAttribute('d').slice(1).split(' ')[0]) < 297",
        ) == true
    });
    let heard = browser.accessible();
    let says = |role: &str, name: &str| heard.iter().any(|(is, called)| is == role && called.contains(name));
    let sale = browser.text("sale-id");
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("contentinfo", ""),
        ("heading", "Stampede"),
        ("region", &format!("Sale {sale}")),
        ("region", "Successful requests"),
        ("region", "Postgres"),
        ("region", "Shards"),
        ("timer", "Time until the next sale"),
        ("slider", "Time shown"),
        ("status", ""),
        ("image", "Purchase latency"),
        ("rowheader", "checkouts"),
        ("columnheader", "per second"),
        ("link", "/metrics"),
    ] {
        assert!(says(role, name), "no {role} {name:?} in {heard:#?}");
    }
    let must_be_named = ["image", "slider", "link", "heading", "region", "columnheader", "rowheader", "timer"];
    let nameless: Vec<_> =
        heard.iter().filter(|(role, name)| must_be_named.contains(&role.as_str()) && name.is_empty()).collect();
    assert!(nameless.is_empty(), "{nameless:?} in {heard:#?}");
    assert_eq!(browser.text("moment-name"), "now");
    browser.press("Tab");
    browser.press("ArrowLeft");
    browser.wait_for("document.getElementById('moment').ariaValueText?.endsWith('00:01 ago')");
    assert!(browser.text("moment-name").ends_with("00:01 ago"));
    assert!(browser.evaluate(SHIFTED).as_f64().unwrap() < 0.01, "{}", browser.evaluate(SHIFTED));
    // Nothing has happened, so that the live region for screen readers is still empty.
    assert_eq!(browser.text("said"), "");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn it_says_when_it_has_lost_the_server_and_when_it_is_back() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let start = |admin: &str| {
        let arguments = ["--shards", "2", "--items", "50", "--admin-listen", admin];
        Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat())
    };
    let server = start("127.0.0.1:0");
    let (admin, sale) = (server.admin.to_string(), server.connect().sale()["sale_id"].to_string());
    look(&browser, &server, DESKTOP);
    assert_eq!(browser.complaints(), [""; 0]);
    server.kill();
    browser.wait_for("document.getElementById('banner').dataset.state === 'lost'");
    let banner = browser.text("banner");
    assert!(banner.starts_with("No data since ") && banner.contains("Reconnecting"), "{banner}");
    assert_eq!((browser.text("said"), browser.text("phase-name")), (banner, "unknown".to_owned()));
    let server = start(&admin);
    server.connect().reserve(7, 7);
    browser.wait_for("document.getElementById('banner').dataset.state === 'found'");
    let banner = browser.text("banner");
    assert!(
        banner.starts_with("Connection restored after ") && banner.contains("A new process started at"),
        "{banner}"
    );
    assert_eq!((browser.text("sale-id"), browser.text("phase-name")), (sale, "selling".to_owned()));
    browser.wait_for("document.getElementById('held').textContent === '1'");
    browser.wait_for("document.getElementById('banner').hidden");
    // A stopped process: the kernel accepts connections, but the server does not answer.
    server.signal(Signal::STOP);
    browser.wait_for("document.getElementById('banner').dataset.state === 'lost'");
    server.signal(Signal::CONT);
    browser.wait_for("document.getElementById('banner').dataset.state === 'found'");
    assert!(!browser.text("banner").contains("A new process"), "the process is the same: {}", browser.text("banner"));
}

#[test]
fn it_goes_on_after_an_upgrade() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2", "--items", "50"]].concat());
    look(&browser, &server, DESKTOP);
    // Horizontal position at which the curves begin. 300 is now.
    let begins = "Number(document.querySelector('#chart-stock .area').getAttribute('d').slice(1).split(' ')[0])";
    browser.wait_for(&format!("{begins} < 296"));
    let begun = browser.evaluate(begins).as_f64().unwrap();
    let (mut client, version) = (server.connect(), browser.text("process"));
    client.reserve(7, 7);
    server.upgrade();
    client.reserve(7, 8);
    browser.wait_for("document.getElementById('banner').textContent.includes('A new process started at')");
    browser.wait_for("document.getElementById('held').textContent === '2'");
    browser.wait_for("document.getElementById('phase-name').textContent === 'selling'");
    assert_eq!(answered(&browser)[0], ("checkouts".into(), 1.0), "the counts are those of the new process");
    assert!(browser.evaluate(begins).as_f64().unwrap() <= begun, "the curves of the old process are gone");
    assert_ne!(browser.text("process"), version);
    browser.wait_for("document.getElementById('banner').hidden");
}

#[test]
fn ended_sales_are_listed() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--shards", "2", "--items", "40", "--sale-period", "4s"]);
    look(&browser, &server, DESKTOP);
    let mut client = server.connect();
    let code = client.reserve(7, 7);
    assert_eq!(client.purchase(&code).status, 200);
    let first = client.sale()["sale_id"].clone();
    let ended = loop {
        let ended = server.wait_for_line("the sale has ended");
        if ended["sold"] == 1 {
            break ended;
        }
    };
    let row = format!(
        "[...document.getElementById('ended').rows].some((row) => \
         ['{}', '1', '40'].every((text, at) => row.cells[[0, 2, 3][at]].textContent === text))",
        ended["sale"]
    );
    browser.wait_for(&row);
    browser.wait_for(&format!("Number(document.getElementById('sale-id').textContent) > {first}"));
    browser.wait_for("/^Sale \\d+ has started.$/.test(document.getElementById('said').textContent)");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Returns the texts of the rows of the live sales, of which the time left is reduced to its last word.
fn live(browser: &Browser) -> serde_json::Value {
    browser.evaluate(
        "document.getElementById('live').hidden ? [] : [...document.getElementById('live-sales').rows].map((row) =>
            [...row.cells].map((cell, at) => at === 1 ? cell.textContent.replace(/[\\d:]+/, 'time') : cell.textContent).join('|'))",
    )
}

#[test]
fn sales_that_overlap_have_a_row_each() {
    let Some(browser) = browser() else { return };
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let closes = now + 15;
    let long = product("a", 3000);
    let plan = [
        sale(3, (now - 60, now + 3600), "user_limit = 9", &long),
        sale(4, (now - 30, closes), "user_limit = 9\nreservation_ttl = \"1h\"", &long),
        sale(5, (now - 20, now + 7200), "user_limit = 9\npaused = true", &product("a", 2)),
    ];
    let name = "A very long name of a sale, which does not fit in one line";
    write(dir.path(), &plan.map(|sale| sale.replace("Sale 3", name)));
    let server = Server::start(dir.path(), &PLAN);
    look(&browser, &server, DESKTOP);
    let mut client = server.connect();
    let codes = [3, 4].map(|sale| client.request(&format!("POST /checkout?user_id=1&sale_id={sale}")).body);
    assert_eq!(client.purchase(&codes[0]).status, 200);
    let rows = |sale_4: &[&str]| {
        let others = (format!("3 {name}|time|1|0|2,999"), "5 Sale 5|time, paused|0|0|2".to_owned());
        let sale_4 = sale_4.iter().map(|text| format!("4 Sale 4|{text}"));
        serde_json::json!([others.0].into_iter().chain(sale_4).chain([others.1]).collect::<Vec<_>>())
    };
    wait_until("each sale has a row", || live(&browser) == rows(&["time|0|1|2,999"]));
    assert_eq!([browser.text("sale-id"), browser.text("sale-name")], ["5", "Sale 5"], "the one that has opened last");
    for screen in [NARROW, PHONE, DESKTOP, Screen { is_dark: true, ..DESKTOP }] {
        browser.turn_to(screen);
        browser.wait_for(&format!("document.documentElement.scrollWidth <= {0} && innerWidth === {0}", screen.width));
        assert_eq!(browser.evaluate(FAINT), serde_json::json!([]), "at a width of {}", screen.width);
        let wide = "[...document.querySelectorAll('#live :is(th, td)')]
            .filter((cell) => cell.scrollWidth > cell.clientWidth).map((cell) => cell.textContent)";
        assert_eq!(browser.evaluate(wide), serde_json::json!([]), "at a width of {}", screen.width);
        if let Some(pictures) = std::env::var_os("STAMPEDE_SCREENSHOTS").map(PathBuf::from) {
            let scheme = if screen.is_dark { "dark" } else { "light" };
            browser.photograph(&pictures.join(format!("dashboard-sales-{}-{scheme}.png", screen.width)));
        }
    }
    let heard = browser.accessible();
    let says = |role: &str, name: &str| heard.iter().any(|(is, called)| is == role && called.contains(name));
    for (role, name) in [("table", "Live sales"), ("rowheader", "4 Sale 4"), ("columnheader", "Time left")] {
        assert!(says(role, name), "no {role} {name:?} in {heard:#?}");
    }
    // A sale that has closed stays while an item is reserved.
    wait_until("sale 4 has closed", || live(&browser) == rows(&["closed|0|1|2,999"]));
    assert!(now_s() >= closes);
    assert_eq!(client.purchase(&codes[1]).status, 200);
    wait_until("sale 4 is over", || live(&browser) == rows(&[]));
    browser.wait_for("[...document.getElementById('ended').rows].some((row) => row.cells[0].textContent === '4')");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// The content security policy forbids content from other sites, and embedding by them.
#[test]
fn nothing_comes_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let mut client = Client::connect(server.admin).unwrap();
    for path in ["/", "/dashboard.css", "/dashboard.js", "/chart.js", "/icon.svg"] {
        let response = client.request(&format!("GET {path}"));
        let policy = response.header("content-security-policy").unwrap();
        assert!(response.status == 200 && policy.starts_with("default-src 'none';"), "{response:?}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn viewers_cost_little_whatever_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let view = || {
        let mut viewer = Client::connect(server.admin).unwrap();
        viewer.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let status = viewer.read_head().unwrap().status;
        (viewer, status)
    };
    let mut viewers: Vec<_> = (0..64).map(|_| view()).collect();
    assert!(viewers.iter().all(|(_, status)| *status == 200));
    assert_eq!(view().1, 503);
    viewers.pop();
    wait_until("another viewer is accepted", || view().1 == 200);
    // A client that reads no responses is disconnected.
    let mut stuck = Client::connect(server.admin).unwrap();
    stuck.send_until_stuck(b"GET /dashboard.js HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let is_cut_off = |error: std::io::Error| ![ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind());
    wait_until("the client is disconnected", || stuck.send(b"GET / HTTP/1.1\r\n").is_err_and(is_cut_off));
    assert_eq!(Client::connect(server.admin).unwrap().request("GET /metrics").status, 200);
}

/// Writes screenshots for the README to the directory STAMPEDE_SCREENSHOTS, after some minutes of sales.
#[test]
fn pictures() {
    const ITEMS: u32 = 5000;
    let Some(dir_of_pictures) = std::env::var_os("STAMPEDE_SCREENSHOTS").map(PathBuf::from) else { return };
    let browser = browser().expect("screenshots need Chromium");
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--shards", "2", "--items", &ITEMS.to_string(), "--sale-period", "3m", "--reservation-ttl", "10s"];
    let server = Server::start(dir.path(), &[&arguments[..], &["--database-url", &cluster.url()]].concat());
    let (is_over, began, address) = (AtomicBool::new(false), Instant::now(), server.address);
    look(&browser, &server, DESKTOP);
    thread::scope(|scope| {
        scope.spawn(|| {
            crowd(8, |number| {
                let mut random = fastrand::Rng::with_seed(number.into());
                let mut client = connect(address);
                while !is_over.load(Ordering::Relaxed) {
                    // Demand moves from item to item during the sale. Half of the requests come late, and ask for any
                    // earlier item.
                    let into_sale = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() % 180.0;
                    let fashion = (into_sale / 140.0 * f64::from(ITEMS)) as u32 + ITEMS / 30;
                    let is_late = random.bool();
                    let item = random.u32(if is_late { 0..fashion } else { fashion - ITEMS / 30..fashion });
                    let reserved = client.checkout(random.i64(0..4000), item % ITEMS);
                    if reserved.status == 200 && random.u32(..10) < 8 {
                        client.purchase(&reserved.body);
                    }
                    if random.u32(..60) == 0 {
                        client.sale();
                    }
                    // The rate of requests rises and falls.
                    let wave = 1.2 + (began.elapsed().as_secs_f64() / 19.0).sin();
                    thread::sleep(Duration::from_micros((f64::from(random.u32(..9000)) * wave) as u64));
                }
            });
        });
        wait_until_long("the curves fill the screen", || began.elapsed() > Duration::from_secs(300));
        // Take the pictures in the middle of a sale.
        wait_until_long("half the items are sold", || (2400..2900).contains(&(number(&browser.text("sold")) as u32)));
        for (name, screen) in [("desktop", DESKTOP), ("phone", PHONE)] {
            for (scheme, is_dark) in [("light", false), ("dark", true)] {
                browser.turn_to(Screen { is_dark, ..screen });
                thread::sleep(Duration::from_millis(1500));
                browser.photograph(&dir_of_pictures.join(format!("dashboard-{name}-{scheme}.png")));
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

fn wait_until_long(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(900);
    while !holds() {
        assert!(Instant::now() < end, "timed out: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}
