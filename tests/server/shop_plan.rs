//! The shop of a plan: products, several sales in one page, pauses, openings and ends, in Chromium.

use crate::browser::{Browser, Screen};
use crate::dashboard::FAINT;
use crate::harness::{Server, skipped};
use crate::history::History;
use crate::log_tool::dump;
use crate::planned::{PLAN, now_s, product, sale, write};
use crate::shop::{DESKTOP, PHONE, press};
use serde_json::json;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Starts a server with a plan whose requests come from browsers, which are not in the history of the tests.
fn start(dir: &Path, sales: &[String]) -> Server {
    write(dir, sales);
    let server = Server::start(dir, &PLAN);
    History::at(server.address).leave_gap();
    server
}

fn url(server: &Server) -> String {
    format!("http://{}/", server.address)
}

/// Returns a condition: the text of the element with this id begins so.
fn says(id: &str, text: &str) -> String {
    format!("document.getElementById('{id}').textContent.startsWith('{text}')")
}

/// Reserves and buys a unit of any product again and again, until none is left. Returns the receipts, as the page shows them.
fn buy_out(browser: &Browser) -> Vec<String> {
    let state = "(() => {
        if (document.querySelector('.hold.asking, .hold.buying')) return 'waits';
        if (document.querySelector('.hold.held')) return 'held';
        if (document.querySelector('.product .first:enabled')) return 'free';
        return document.querySelector('.product:not(.gone)') ? 'waits' : 'over';
    })()";
    loop {
        match browser.evaluate(state).as_str().unwrap() {
            "held" => assert_eq!(browser.evaluate(&press(".hold.held .first")), true),
            // The numbers can be 3 s old, so that a product is sold out without a word about it.
            "free" => _ = browser.evaluate(&press(".product .first:enabled")),
            "over" => break,
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
    receipts(browser)
}

fn receipts(browser: &Browser) -> Vec<String> {
    let texts = browser.evaluate("[...document.querySelectorAll('.hold.bought')].map((one) => one.textContent)");
    texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_drop_in_several_sizes_is_sold_out_by_several_browsers() {
    let Some(watcher) = Browser::start() else { return skipped("the shop of a plan", "no chromium") };
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let sizes = [("aurora-38", 6), ("aurora-39", 9), ("aurora-40", 3)];
    let products: String = sizes.iter().map(|&(id, pairs)| product(id, pairs) + "price = \"129 €\"\n").collect();
    let server = start(dir.path(), &[sale(7, (now - 5, now + 3600), "user_limit = 30", &products)]);
    let url = url(&server);
    watcher.open(&url, DESKTOP);
    watcher.wait_for("document.querySelectorAll('.product .first:enabled').length === 3");
    let card = watcher.evaluate("document.querySelectorAll('.product')[1].innerText");
    assert_eq!(card, "Product aurora-39\n\n129 €\n\n9 of 9 left\n\nReserve");
    let bought: Vec<Vec<String>> = thread::scope(|scope| {
        let buyers = (0..2).map(|_| {
            scope.spawn(|| {
                let browser = Browser::start().unwrap();
                browser.open(&url, DESKTOP);
                browser.wait_for("document.querySelector('.product .first:enabled') !== null");
                let bought = buy_out(&browser);
                // What was bought is still there after a reload, the sale and the product, too.
                browser.open(&url, DESKTOP);
                browser.wait_for(&format!("document.querySelectorAll('.hold.bought').length === {}", bought.len()));
                assert_eq!(receipts(&browser), bought);
                bought
            })
        });
        buyers.collect::<Vec<_>>().into_iter().map(|buyer| buyer.join().unwrap()).collect()
    });
    watcher.wait_for(&says("available", "Sold out"));
    watcher.wait_for("document.querySelectorAll('.product.gone').length === 3");
    assert_eq!(watcher.complaints(), Vec::<String>::new());
    let bought = bought.concat();
    for (id, pairs) in sizes {
        let start = format!("Product {id}129 € · Sale 7BoughtReceipt ");
        assert_eq!(bought.iter().filter(|receipt| receipt.starts_with(&start)).count(), pairs as usize, "{bought:?}");
    }
    let purchases = dump(dir.path(), &[]).into_iter().filter(|line| line["event"] == "purchase");
    assert_eq!(purchases.count(), bought.len());
    assert!(server.terminate().success());
}

/// Two sales in one page and a third one that comes, on a phone, in dark mode, by keyboard, and as a screen reader gets it.
#[test]
fn sales_side_by_side_by_keyboard_with_a_screen_reader_and_on_a_phone() {
    let Some(browser) = Browser::start() else { return skipped("the shop of a plan", "no chromium") };
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let seats =
        "[[sale.product]]\nid = \"seat\"\nname = \"Seat\"\nprice = \"45 €\"\nunits = [\"A1\", \"A2\", \"A3\"]\n";
    let open = |opened| (now - opened, now + 3600);
    let server = start(
        dir.path(),
        &[
            sale(3, open(60), "user_limit = 1", &product("a", 3)),
            sale(4, open(30), "user_limit = 5", &(seats.to_owned() + &product("b", 9))),
            sale(7, (now + 1800, now + 3600), "user_limit = 9", &product("c", 2)),
        ],
    );
    let mut client = server.connect();
    browser.open(&url(&server), PHONE);
    browser.wait_for(
        "document.querySelectorAll('.choice').length === 3 && document.querySelectorAll('.product').length === 2",
    );
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "nothing is cut off");
    assert_eq!(browser.evaluate(&FAINT.replace("< 60", "< 20")), json!([]));
    let nodes = browser.accessible();
    let has = |role: &str, name: &str| nodes.iter().any(|(r, n)| r == role && n.starts_with(name));
    for (role, name) in [
        ("group", "Sales"),
        ("radio", "Sale 4 12 left · ends in"),
        ("radio", "Sale 3 3 left · ends in"),
        ("radio", "Sale 7 Opens in"),
        ("heading", "Sale 4"),
        ("heading", "Products"),
        ("heading", "Seat"),
        ("button", "Reserve Product b"),
        ("button", "Choose a unit of Seat"),
    ] {
        assert!(has(role, name), "no {role} {name}: {nodes:?}");
    }

    // The first stop is the link over the head, the second one the choice of the sale.
    browser.press("Tab");
    browser.press("Tab");
    assert_eq!(browser.evaluate("document.activeElement.value"), "4");
    browser.press("ArrowRight");
    browser.wait_for(&says("stock-title", "Sale 3"));
    assert_eq!(browser.text("limit"), "At most 1 for each buyer");
    browser.wait_for("document.querySelector('.product .first:enabled')?.ariaLabel === 'Reserve Product a'");
    browser.press("Tab");
    browser.press("Enter");
    browser.wait_for(&says("message", "Product a is yours for 0:"));
    browser.evaluate("document.querySelector('#message a').click()");
    browser.press("Tab");
    assert_eq!(browser.evaluate("document.activeElement.ariaLabel"), "Buy Product a");
    browser.press("Enter");
    browser.wait_for("document.querySelectorAll('.hold.bought').length === 1");
    assert!(receipts(&browser)[0].starts_with("Product aSale 3BoughtReceipt 0"), "{:?}", receipts(&browser));
    assert_eq!(browser.evaluate(&press(".product .first")), true);
    browser.wait_for(&says("message", "You have 1 item, the most that one buyer can have in this sale."));
    // Another buyer takes one of this sale, whose numbers may come with no event.
    assert_eq!(client.request("POST /checkout?user_id=1&sale_id=3").status, 200);
    browser.wait_for(&says("available", "1"));
    browser.wait_for("document.querySelector('.product .state').textContent === '1 of 3 left'");
    choose_a_seat(&browser, &server);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "nothing is cut off");
    assert!(server.terminate().success());
}

/// Continues with sale 4, after a reload: one of its seats is chosen, and another buyer takes another one.
fn choose_a_seat(browser: &Browser, server: &Server) {
    browser.evaluate("(() => { document.body.id = 'old'; location.reload(); })()");
    browser.wait_for(&format!("document.body?.id === '' && {}", says("stock-title", "Sale 3")));
    browser.evaluate("document.querySelector('.choice input:checked').focus()");
    browser.press("ArrowLeft");
    browser.wait_for(&says("stock-title", "Sale 4"));
    browser.wait_for("document.querySelector('.choose') !== null");
    browser.evaluate("document.querySelector('.choose').focus()");
    browser.press("Enter");
    browser.wait_for("document.querySelectorAll('.unit button:enabled').length === 3");
    assert_eq!(browser.evaluate("document.activeElement.textContent"), "Choose: Seat");
    assert_eq!(browser.evaluate("document.querySelector('.choose').ariaExpanded"), "true");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "nothing is cut off");
    browser.evaluate("document.querySelectorAll('.unit button')[1].focus()");
    assert_eq!(browser.evaluate("document.activeElement.ariaLabel"), "Reserve Seat, A2");
    browser.press("Enter");
    browser.wait_for(&says("message", "Seat, A2 is yours for 0:"));
    assert!(browser.text("holds").starts_with("SeatA2 · 45 € · Sale 4"), "{}", browser.text("holds"));
    assert_eq!(server.connect().request("POST /checkout?user_id=1&sale_id=4&item_id=2").status, 200);
    browser.wait_for("document.querySelectorAll('.unit button:enabled').length === 1");
    assert_eq!(browser.text("products").matches("In somebody's hands").count(), 2);
    browser.evaluate(
        "[...document.querySelectorAll('.choosing button')].find((one) => one.textContent === 'Close').focus()",
    );
    browser.press("Enter");
    assert_eq!(browser.evaluate("document.activeElement.ariaLabel"), "Choose a unit of Seat");
}

#[test]
fn a_paused_sale_is_said_at_once_and_goes_on() {
    let Some(browser) = Browser::start() else { return skipped("the shop of a plan", "no chromium") };
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let plan = |pause: &str| {
        let terms = format!("user_limit = 5\nreservation_ttl = \"5m\"\n{pause}");
        [sale(7, (now - 5, now + 3600), &terms, &product("a", 5))]
    };
    let next = sale(9, (now + 1800, now + 3600), "user_limit = 1", &product("b", 5));
    let mut server = start(dir.path(), &[&plan("")[..], &[next]].concat());
    browser.open(&url(&server), DESKTOP);
    browser.wait_for("document.querySelectorAll('.choice').length === 2");
    browser.wait_for("document.querySelector('.product .first:enabled') !== null");
    browser.evaluate("(() => { const one = document.querySelector('.product .first'); one.click(); one.click(); })()");
    browser.wait_for("document.querySelector('.hold.held') !== null");
    assert_eq!(server.connect().sale()["reserved"], 1, "a second press asks for nothing while the first one waits");
    write(dir.path(), &plan("paused = true"));
    server.upgrade();
    // The page may know of the pause already: then its button cannot be pressed.
    browser.complaints();
    let asked = browser
        .evaluate("(() => { const b = document.querySelector('.product .first'); b.click(); return !b.disabled; })()");
    browser.wait_for("!document.getElementById('paused').hidden && document.querySelector('.product .first').disabled");
    browser.wait_for("document.getElementById('sales').hidden");
    browser.wait_for(&says("message", "The sale is paused. Buy what you hold, and wait here"));
    thread::sleep(Duration::from_secs(2));
    let checkouts = browser.requested().iter().filter(|url| url.contains("/checkout?")).count();
    assert_eq!(checkouts, usize::from(asked == true), "a refusal that lasts is not asked for again");
    // The answer to the first purchase is lost.
    browser.evaluate(
        "(() => {
            const real = fetch;
            window.fetch = (...request) => {
                if (!request[0].startsWith('/purchase')) return real(...request);
                window.fetch = real;
                return real(...request).then(() => { throw new TypeError('lost'); });
            };
        })()",
    );
    assert_eq!(browser.evaluate(&press(".hold.held .first")), true, "a live hold can be bought");
    browser.wait_for(&says("message", "The shop does not answer. Trying again"));
    browser.wait_for(&says("message", "You have bought Product a."));
    write(dir.path(), &plan(""));
    server.upgrade();
    browser.wait_for("document.getElementById('paused').hidden && !document.querySelector('.product .first').disabled");
    browser.wait_for(&says("message", "Sale 7 goes on."));
    assert!(server.terminate().success());
}

/// The shop and the dashboard follow the clock of a plan: before the opening, while the sale is open, and when it has
/// closed.
#[test]
fn a_planned_sale_is_announced_and_ends() {
    let Some(browser) = Browser::start() else { return skipped("the shop of a plan", "no chromium") };
    let Some(dashboard) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let begin = now_s() + 6;
    let server = start(dir.path(), &[sale(7, (begin, begin + 6), "user_limit = 2", &product("a", 5))]);
    browser.open(&url(&server), DESKTOP);
    dashboard.open(&format!("http://{}/", server.admin), DESKTOP);
    let enabled = "document.querySelectorAll('.product .first:enabled').length";
    browser.wait_for(&says("clock", "The sale opens in 0:0"));
    browser.wait_for(&says("available", "0:0"));
    browser.wait_for("document.querySelectorAll('.product').length === 1");
    assert_eq!(browser.evaluate(enabled), 0, "nothing can be reserved before the sale opens");
    dashboard.wait_for(&says("countdown-of", "until the next sale, at"));
    browser.wait_for(&says("clock", "This sale ends in 0:0"));
    browser.wait_for(&format!("{enabled} === 1"));
    browser.wait_for(&says("message", "Sale 7 is open."));
    assert_eq!(browser.evaluate(&press(".product .first")), true);
    browser.wait_for("document.querySelectorAll('.hold.held').length === 1");
    dashboard.wait_for(&says("countdown-of", "until the end of the sale, at"));
    dashboard.wait_for("document.getElementById('held').textContent === '1'");
    browser.wait_for(&says("clock", "The sale has closed"));
    assert_eq!(browser.evaluate(enabled), 0, "nothing can be reserved when the sale has closed");
    assert_eq!(browser.evaluate(&press(".hold.held .first")), true, "a live hold can be bought");
    browser.wait_for("document.querySelectorAll('.hold.bought').length === 1");
    dashboard.wait_for(&says("countdown-of", "No sale follows."));
    dashboard.wait_for("document.getElementById('ended').rows.length === 1");
    assert!(server.terminate().success());
}

/// The picture of a product that has none, or whose picture cannot be loaded, is the neutral one; what the browser keeps; and
/// what the page says of a product that has left the plan.
#[test]
fn pictures_are_neutral_receipts_bounded_and_missing_products_refused() {
    let Some(browser) = Browser::start() else { return skipped("the shop of a plan", "no chromium") };
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let terms = "user_limit = 5\nreservation_ttl = \"5m\"";
    let long = product("c", 5).replace("Product c", &"W".repeat(100)) + &format!("price = \"{}\"\n", "9".repeat(40));
    // Nobody listens there any more.
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let image = format!("image = \"https://{elsewhere}/shoe.png\"\n");
    let products = [product("a", 5) + "image = \"/nothing.png\"\n", product("b", 5) + &image, long];
    let server = start(dir.path(), &[sale(7, (now - 5, now + 3600), terms, &products.concat())]);
    browser.open(&url(&server), DESKTOP);
    let neutral = "[...document.querySelectorAll('.product img')].filter((one) => one.src.endsWith('/shop/product.svg') && one.naturalWidth > 0)";
    browser.wait_for(&format!("{neutral}.length === 3"));
    let complaints = browser.complaints();
    let of_image = |part: &str| complaints.iter().any(|complaint| complaint.contains(part));
    assert!(of_image("ERR_CONNECTION_REFUSED") && !of_image("csp") && !of_image("Content Security"), "{complaints:?}");
    browser.turn_to(PHONE);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360, "long names are not cut off");
    receipts_are_bounded(&browser, &server);
    assert!(server.terminate().success());
}

/// The browser keeps the newest 100 receipts and every hold, also those of earlier versions and of other pages.
fn receipts_are_bounded(browser: &Browser, server: &Server) {
    let code = server.connect().reserve(9, 4);
    browser.evaluate(&format!(
        "(() => {{
            const olds = Array.from({{ length: 130 }}, (_, at) => ({{ key: `k${{at}}`, wanted: at, name: `Old ${{at}}`, phase: 'bought', code: 'x' }}));
            const held = {{ key: 'h', wanted: 4, name: 'Held', phase: 'held', code: '{code}', saleId: 7, itemId: 4, expiresAt: '2100-01-01T00:00:00.000Z' }};
            localStorage.setItem('mine', JSON.stringify([...olds, held]));
            location.reload();
        }})()"
    ));
    browser.wait_for("document.querySelectorAll('.hold.bought').length === 100");
    assert_eq!(browser.text("earlier-count"), "97");
    assert!(browser.text("receipts").contains("Old 99") && !browser.text("receipts").contains("Old 100"));
    assert_eq!(browser.evaluate(&press(".hold.held .first")), true);
    browser.wait_for("document.querySelector('.hold:not(.bought)') === null");
    assert_eq!(browser.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('hold.')).length"), 100);
    assert_eq!(server.connect().request("GET /sales/7").json()["sold"], 1);
    browser.evaluate(
        "(() => {
            const other = { key: 'o', name: 'Of another page', phase: 'held', code: 'y', madeMs: Date.now(), expiresAt: '2100-01-01T00:00:00.000Z' };
            localStorage.setItem('hold.o', JSON.stringify(other));
            dispatchEvent(new StorageEvent('storage', { key: 'hold.o', newValue: JSON.stringify(other) }));
        })()",
    );
    browser.wait_for("document.querySelector('.hold.held h3')?.textContent === 'Of another page'");
    browser.evaluate("import('/shop/holds.js').then(({ reserve }) => reserve({ parameters: '&sale_id=7&product_id=x', name: 'X', product: 'x' }))");
    assert_eq!(browser.text("message"), "The shop has changed, and does not have this any more. Choose again.");
}

/// Products of the picture: id, name, price, units, units that are bought, units that are held, and the item that has the
/// image. The server draws the images of items also for sales that it has forgotten.
const PICTURED: [(&str, &str, &str, u32, u32, u32, u32); 8] = [
    ("jacket-rust", "Jacket, rust", "189 €", 120, 74, 9, 3),
    ("jacket-lilac", "Jacket, lilac", "189 €", 80, 80, 0, 12),
    ("lantern", "Lantern", "59 €", 160, 61, 12, 11),
    ("umbrella", "Umbrella", "39 €", 200, 118, 21, 27),
    ("compass", "Compass", "75 €", 60, 18, 3, 7),
    ("globe", "Globe", "149 €", 40, 31, 4, 32),
    ("bicycle", "Bicycle", "640 €", 12, 5, 2, 8),
    ("notebook", "Notebook", "19 €", 300, 122, 20, 1),
];

/// Writes pictures for the documents to the directory STAMPEDE_SCREENSHOTS.
#[test]
fn pictures() {
    let Some(pictures) = std::env::var_os("STAMPEDE_SCREENSHOTS").map(PathBuf::from) else { return };
    let browser = Browser::start().expect("screenshots need Chromium");
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let pictured = PICTURED.map(|(id, name, price, quantity, .., art)| {
        let image = format!("price = \"{price}\"\nimage = \"/items/{art}/image.svg?sale=1\"\n");
        product(id, quantity).replace(&format!("Product {id}"), name) + &image
    });
    let named = |id, times, name: &str, terms: &str, products: &str| {
        sale(id, times, terms, products).replace(&format!("Sale {id}"), name)
    };
    let (few, seats) = ("user_limit = 3\nreservation_ttl = \"5m\"\nextension = \"5m\"", product("Seat", 400));
    let sales = [
        named(8, (now - 900, now + 90_000), "First night", few, &seats),
        named(9, (now - 600, now + 4400), "Winter drop", few, &pictured.concat()),
        named(12, (now + 7300, now + 99_000), "Second night", few, &seats),
    ];
    let server = start(dir.path(), &sales);
    let mut client = server.connect();
    for (product, (id, .., bought, held, _)) in PICTURED.into_iter().enumerate() {
        for unit in 0..bought + held {
            let user = product as u32 * 1000 + unit;
            let code = client.request(&format!("POST /checkout?user_id={user}&sale_id=9&product_id={id}")).body;
            assert!(unit >= bought || client.purchase(&code).status == 200, "{id}");
        }
    }
    let (wide, narrow) = (Screen { height: 1250, ..DESKTOP }, Screen { height: 1320, ..PHONE });
    browser.open(&url(&server), wide);
    browser.evaluate(&press(".product:nth-child(3) .first"));
    browser.evaluate(&press(".hold.held .first"));
    browser.wait_for("document.querySelector('.hold.bought') !== null");
    browser.evaluate(&press(".product:nth-child(7) .first"));
    browser.wait_for("document.querySelector('.hold.held') !== null");
    // The message is over the buttons for a while.
    browser.wait_for(&says("message", "Bicycle is yours for 5:00. Buy it now."));
    browser.evaluate("document.getElementById('message').textContent = ''");
    for (name, screen) in [("desktop-light", wide), ("phone-dark", narrow)] {
        browser.turn_to(screen);
        thread::sleep(Duration::from_millis(1500));
        browser.photograph(&pictures.join(format!("shop-plan-{name}.png")));
    }
}
