//! Turns requests into commands, and outcomes into responses.

use crate::http::bodies::{PlannedUnit, Reservation};
use crate::http::head::{Head, Method};
use crate::http::operation::{Answer, Operation};
use crate::http::origin::Origins;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query::{decode_unreserved, number, parameters, value};
use crate::http::receipt::Receipt;
use crate::http::response::{Responder, Style};
use crate::http::site::Site;
use crate::plan::plan_reader::PRODUCT_ID_CHARS_MAX;
use crate::sale::checkout_key::mark_any;
use crate::sale::code::Code;
use crate::sale::command::{Command, Outcome};
use crate::sale::ids::{ItemId, SaleId, UserId};
use uuid::Uuid;

/// Destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A command for the sale. The flag requests JSON, if the operation offers text and JSON.
    Command(Command, bool),
    /// A document that is answered at once.
    Page(Page),
    /// The event stream.
    Events,
    /// The methods of a path: the header line of this refusal of other methods, or of every path.
    Options(Option<Problem>),
    /// A refusal.
    Refused(Problem),
}

/// Returns the operation that a request selects, and its destination. `site` is what the server offers.
pub fn route(head: &Head<'_>, origins: &Origins, site: Site) -> (Operation, Route) {
    let decoded;
    let query = if head.is_encoded {
        decoded = decode_unreserved(head.query);
        &decoded
    } else {
        head.query
    };
    match select(head, query, site) {
        selected if head.method == Method::Options => options(head.path, selected),
        // First: a page that may not use the API learns nothing about its parameters.
        (operation, _) if !origins.admit(head) && operation != Operation::Unknown => {
            (operation, Route::Refused(Problem::OriginNotAllowed))
        }
        selected => selected,
    }
}

/// Returns the answer to OPTIONS, from what the path answers to a method that it does not accept.
fn options(path: &str, (operation, route): (Operation, Route)) -> (Operation, Route) {
    match route {
        _ if path == "*" => (Operation::Options, Route::Options(None)),
        Route::Refused(other_methods) if other_methods != Problem::NotFound => {
            (Operation::Options, Route::Options(Some(other_methods)))
        }
        route => (operation, route),
    }
}

// Inlined, as is the next one: they are on the path of every request, and return a large enum.
#[inline(always)]
fn select(head: &Head<'_>, query: &str, site: Site) -> (Operation, Route) {
    let refused = |problem| (Operation::Unknown, Route::Refused(problem));
    let get = |operation, route| match head.method {
        Method::Get | Method::Head => (operation, route),
        _ => refused(Problem::OnlyGet),
    };
    let page = |operation, page| get(operation, Route::Page(page));
    match (head.path, head.method) {
        ("/checkout", Method::Post) => {
            (Operation::Checkout, checkout(head, query, site).unwrap_or_else(Route::Refused))
        }
        ("/checkout", Method::Delete) => (Operation::Cancel, cancel(query).unwrap_or_else(Route::Refused)),
        ("/checkout", _) => refused(Problem::OnlyPostOrDelete),
        ("/checkout/extend", Method::Post) => (Operation::Extend, extend(query).unwrap_or_else(Route::Refused)),
        ("/checkout/extend", _) => refused(Problem::OnlyPost),
        ("/purchase", Method::Post) => (Operation::Purchase, purchase(head, query).unwrap_or_else(Route::Refused)),
        ("/purchase", _) => refused(Problem::OnlyPost),
        ("/sale", _) => page(Operation::Sale, Page::Sale),
        ("/events", _) => get(Operation::Events, Route::Events),
        ("/livez", _) => page(Operation::Live, Page::Live),
        ("/readyz", _) => page(Operation::Ready, Page::Ready),
        ("/health", _) => page(Operation::Health, Page::Health),
        ("/openapi.json", _) => page(Operation::Api, Page::Api),
        ("/items", _) => get(Operation::Items, shown(pages::items(query, site))),
        ("/products", _) => get(Operation::Products, shown(pages::products(query, site))),
        ("/sales", _) => get(Operation::Sales, shown(pages::sales(query))),
        (path, _) => match (numbered(path, "/items/"), numbered(path, "/sales/")) {
            (Some((item, None)), _) => get(Operation::Item, shown(pages::item(ItemId(item), query, site))),
            (Some((item, Some("image.svg"))), _) => get(Operation::Image, shown(pages::image(ItemId(item), query))),
            (_, Some((sale, None))) => page(Operation::OneSale, Page::OneSale(SaleId(sale))),
            _ => match (product_in(path), site.shop_file(path)) {
                (Some(id), _) => get(Operation::Product, shown(pages::product(id, query, site))),
                (None, Some(file)) => page(Operation::Shop, Page::Shop(file)),
                (None, None) => refused(Problem::NotFound),
            },
        },
    }
}

fn shown(page: Result<Page, Problem>) -> Route {
    page.map_or_else(Route::Refused, Route::Page)
}

/// Returns the product id in a path.
fn product_in(path: &str) -> Option<&str> {
    path.strip_prefix("/products/").filter(|id| !id.is_empty() && !id.contains('/'))
}

/// Returns the number after `prefix` in a path, and the part of the path after the number.
fn numbered<'a>(path: &'a str, prefix: &str) -> Option<(u32, Option<&'a str>)> {
    let path = path.strip_prefix(prefix)?;
    let (id, what) = path.split_once('/').map_or((path, None), |(id, what)| (id, Some(what)));
    let id = number(id.as_bytes()).and_then(|id| u32::try_from(id).ok())?;
    Some((id, what))
}

#[inline(always)]
fn checkout(head: &Head<'_>, query: &str, site: Site) -> Result<Route, Problem> {
    let (mut user, mut item, mut sale, mut product, mut short_name) = (None, None, None, None, false);
    for (name, value) in parameters(query) {
        match name {
            b"user_id" if user.is_some() => return Err(Problem::InvalidUser),
            b"user_id" => {
                let id = number(value).and_then(|id| i64::try_from(id).ok());
                user = Some(UserId(id.ok_or(Problem::InvalidUser)?));
            }
            b"item_id" | b"id" if item.is_some() => return Err(Problem::InvalidItem),
            b"item_id" | b"id" => {
                let id = number(value).and_then(|id| u32::try_from(id).ok());
                item = Some(ItemId(id.ok_or(Problem::InvalidItem)?));
                short_name = name == b"id";
            }
            b"sale_id" if sale.is_some() => return Err(Problem::InvalidSaleId),
            b"sale_id" => {
                let id = number(value).and_then(|id| u32::try_from(id).ok());
                sale = Some(SaleId(id.ok_or(Problem::InvalidSaleId)?));
            }
            b"product_id" if product.is_some() || !(1..=PRODUCT_ID_CHARS_MAX).contains(&value.len()) => {
                return Err(Problem::InvalidProduct);
            }
            b"product_id" => product = Some(value),
            _ => {}
        }
    }
    let user = user.ok_or(Problem::InvalidUser)?;
    let Some(item) = item else {
        return Ok(Route::Command(checkout_any(head, (sale, user), product, site)?, head.accepts_json));
    };
    if product.is_some() {
        return Err(Problem::InvalidProduct);
    }
    // The namespace of the fingerprint consists of the user and the item: the same key with another user or item has
    // another fingerprint.
    let namespace = Uuid::from_u64_pair(user.0 as u64, item.0.into());
    let key = fingerprint(head, namespace)?;
    Ok(Route::Command(Command::Checkout { sale, item, user, key }, short_name || head.accepts_json))
}

fn checkout_any(
    head: &Head<'_>,
    (sale, user): (Option<SaleId>, UserId),
    product: Option<&[u8]>,
    site: Site,
) -> Result<Command, Problem> {
    let found = product.map(|text| site.product(text).ok_or(Problem::NoSuchProduct));
    // No item has these numbers, so these are the namespaces of no other checkout. Each product has one of its own.
    let of_user = |number| Uuid::from_u64_pair(user.0 as u64, number);
    let key = match product {
        Some(text) if head.key()?.is_some() => fingerprint(head, Uuid::new_v5(&of_user(u64::MAX - 1), text))?,
        _ => fingerprint(head, of_user(u64::MAX))?,
    };
    Ok(Command::CheckoutAny { sale, product: found.transpose()?, user, key: mark_any(key) })
}

/// Returns the fingerprint of the idempotency key: a name-based UUID (RFC 9562 §5.5) in `namespace`. It is nil if the
/// request has no key.
fn fingerprint(head: &Head<'_>, namespace: Uuid) -> Result<Uuid, Problem> {
    Ok(head.key()?.map_or(Uuid::nil(), |key| Uuid::new_v5(&namespace, key)))
}

fn purchase(head: &Head<'_>, query: &str) -> Result<Route, Problem> {
    let code = code(query)?;
    // The namespace of the fingerprint is the code: the same key with another code has another fingerprint.
    let key = fingerprint(head, Uuid::from_bytes(*code.as_bytes()))?;
    Ok(Route::Command(Command::Purchase { code, key }, true))
}

fn cancel(query: &str) -> Result<Route, Problem> {
    Ok(Route::Command(Command::Cancel { code: code(query)? }, true))
}

fn extend(query: &str) -> Result<Route, Problem> {
    Ok(Route::Command(Command::Extend { code: code(query)? }, true))
}

fn code(query: &str) -> Result<Code, Problem> {
    value(query, "code", Problem::InvalidCode)?.and_then(Code::parse).ok_or(Problem::InvalidCode)
}

/// Writes the response to a command.
pub fn respond(outcome: Outcome, style: Style, responder: &mut Responder, out: &mut Vec<u8>) -> Answer {
    let problem = match outcome {
        Outcome::Reserved { code, sale, item, expires_unix_ms }
        | Outcome::Extended { code, sale, item, expires_unix_ms } => {
            let mut buffer = [0; Code::TEXT_BYTES];
            let code = code.write(&mut buffer);
            if !style.json {
                return responder.text(Answer::Ok, code, style, out);
            }
            let expires_at = rfc3339(expires_unix_ms);
            let unit = PlannedUnit::of(responder.site(), sale, item);
            let reservation = Reservation { code, sale_id: sale.0, item_id: item.0, unit, expires_at };
            return responder.json(Answer::Ok, || reservation, style, out);
        }
        Outcome::Purchased { sale, item } => {
            let receipt = Receipt::new(sale, item, PlannedUnit::of(responder.site(), sale, item));
            return responder.json_by(Answer::Ok, |body| receipt.write(body), style, out);
        }
        Outcome::Released => return responder.empty(Answer::NoContent, style, out),
        Outcome::ItemSold { .. } => Problem::ItemSold,
        Outcome::ItemReserved => Problem::ItemReserved,
        Outcome::SoldOut { .. } => Problem::SoldOut,
        Outcome::AllReserved { retry_after_s } => {
            return responder.problem_until(Problem::AllReserved, retry_after_s, style, out);
        }
        Outcome::NotOpen { retry_after_s } => {
            return responder.problem_until(Problem::NotOpen, retry_after_s, style, out);
        }
        Outcome::SaleUnnamed => Problem::SaleUnnamed,
        Outcome::NoSuchSale => Problem::NoSuchSale,
        Outcome::Paused => Problem::Paused,
        Outcome::UserLimit => Problem::UserLimit,
        Outcome::NoSuchItem => Problem::NoSuchItem,
        Outcome::NoSuchProduct => Problem::NoSuchProduct,
        Outcome::CodeUnknown => Problem::CodeUnknown,
        Outcome::CodeExpired => Problem::CodeExpired,
        Outcome::CodeUsed => Problem::CodeUsed,
        Outcome::SaleEnded => Problem::SaleEnded,
        Outcome::NotExtendable => Problem::NotExtendable,
        Outcome::LogFull => Problem::LogFull,
    };
    responder.problem(problem, style, out)
}

/// Last millisecond of the year 9999, in milliseconds since the Unix epoch.
const LAST_MS: u64 = 253_402_300_799_999;

/// Formats a time as in answers: RFC 3339 in UTC with milliseconds.
pub fn rfc3339(unix_ms: u64) -> String {
    // RFC 3339 has no later time. If the clock is wrong by that much, the answer has the last possible time.
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::parse_head;
    use crate::http::pages::{ItemChoice, ItemPage, ListPart, ProductChoice, ProductPage};
    use crate::plan::catalogue::Catalogue;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;
    use crate::sale::checkout_key::{is_of_any, short};
    use std::collections::BTreeSet;

    fn way(request: &str) -> Route {
        let text = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
        route(&parse_head(text.as_bytes()).unwrap().unwrap(), &Origins::None, Site::default()).1
    }

    #[test]
    fn commands_are_found() {
        let in_sale =
            |sale, item, user| Command::Checkout { sale, item: ItemId(item), user: UserId(user), key: Uuid::nil() };
        let checkout = |item, user| in_sale(None, item, user);
        assert_eq!(way("POST /checkout?user_id=1&item_id=2"), Route::Command(checkout(2, 1), false));
        assert_eq!(
            way("POST /checkout?id=0&x=y&user_id=9223372036854775807"),
            Route::Command(checkout(0, i64::MAX), true)
        );
        let any = |sale, user| Command::CheckoutAny { sale, product: None, user: UserId(user), key: Uuid::nil() };
        assert_eq!(way("POST /checkout?user_id=7"), Route::Command(any(None, 7), false));
        assert_eq!(way("POST /checkout?sale_id=3&user_id=7"), Route::Command(any(Some(SaleId(3)), 7), false));
        let named = Route::Command(in_sale(Some(SaleId(u32::MAX)), 2, 1), false);
        assert_eq!(way("POST /checkout?user_id=1&item_id=2&sale_id=4294967295"), named);
        let text = "00027232-4538-87b2-840d-b281356ddb74";
        let code = Code::parse(text.as_bytes()).unwrap();
        let purchase = Command::Purchase { code, key: Uuid::nil() };
        assert_eq!(way(&format!("POST /purchase?code={text}")), Route::Command(purchase, true));
        assert_eq!(way(&format!("DELETE /checkout?code={text}")), Route::Command(Command::Cancel { code }, true));
        let extend = Route::Command(Command::Extend { code }, true);
        assert_eq!(way(&format!("POST /checkout/extend?code={text}")), extend);
        assert_eq!(way("HEAD /sale"), Route::Page(Page::Sale));
        assert_eq!(way("GET /sales/498692"), Route::Page(Page::OneSale(SaleId(498_692))));
    }

    #[test]
    fn a_product_is_one_of_the_plan_and_has_keys_of_its_own() {
        let text = "[[sale]]\nid = 1\nname = \"S\"\nopens = 2026-12-01T00:00:00Z\ncloses = 2026-12-02T00:00:00Z\n\
                    user_limit = 1\nproduct = [{ id = \"a-38\", name = \"A\", quantity = 1 }, \
                    { id = \"b_9.x\", name = \"B\", quantity = 1 }]\n";
        let plan = read_plan(&PlanText::new("x.toml", text.into()), &|_| Err("no lists".into())).unwrap();
        let catalogue: &Catalogue = Box::leak(Box::new(Catalogue::new(Box::leak(Box::new(plan)))));
        let site = Site { catalogue: Some(catalogue), ..Site::default() };
        let with = |site, key: &str, query: &str| {
            let text = format!("POST /checkout?{query} HTTP/1.1\r\nHost: x\r\n{key}\r\n");
            route(&parse_head(text.as_bytes()).unwrap().unwrap(), &Origins::None, site).1
        };
        let checkout = |key, query| match with(site, key, query) {
            Route::Command(Command::CheckoutAny { product, key, .. }, false) => (product, key),
            other => panic!("{other:?}"),
        };
        let (product, nil) = checkout("", "user_id=7&product_id=b_9.x");
        assert_eq!((product, nil), (catalogue.product_id(b"b_9.x"), Uuid::nil()));
        assert_eq!(checkout("", "%70roduct_id=b%5F9%2ex&user_id=7").0, product);
        let keys =
            ["user_id=7&product_id=b_9.x", "user_id=7&product_id=a-38", "user_id=7", "user_id=8&product_id=a-38"];
        let keys: BTreeSet<Uuid> = keys.into_iter().map(|query| checkout("Idempotency-Key: k\r\n", query).1).collect();
        assert_eq!(keys.len(), 4, "the same key with another product is another key");
        assert!(keys.into_iter().all(|key| is_of_any(short(key))));
        let refused = |site, query| with(site, "", query);
        let long = format!("user_id=7&product_id={}", "x".repeat(PRODUCT_ID_CHARS_MAX + 1));
        for query in
            ["user_id=7&product_id", "user_id=7&product_id=", "user_id=7&product_id=a-38&product_id=a-38", &long]
        {
            assert_eq!(refused(site, query), Route::Refused(Problem::InvalidProduct), "{query}");
        }
        let both = refused(site, "user_id=7&product_id=a-38&item_id=0");
        assert_eq!(both, Route::Refused(Problem::InvalidProduct), "an item and a product");
        for query in ["user_id=7&product_id=A-38", "user_id=7&product_id=%20", "user_id=7&product_id=a"] {
            assert_eq!(refused(site, query), Route::Refused(Problem::NoSuchProduct), "{query}");
        }
        let get = |target: &str| {
            let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            route(&parse_head(text.as_bytes()).unwrap().unwrap(), &Origins::None, site)
        };
        let one = |sale, of| (Operation::Product, Route::Page(Page::Products(ProductPage { sale, of })));
        let of = ProductChoice::One(product.unwrap());
        assert_eq!(get("/products/b%5f9.x?%73ale_id=7"), one(Some(SaleId(7)), of));
        assert_eq!(get("/products/b_9.x"), one(None, of));
        for (target, operation, problem) in [
            ("/products/c", Operation::Product, Problem::NotFound),
            ("/products/a-38?sale_id=x", Operation::Product, Problem::InvalidSaleId),
            ("/products?sale_id=", Operation::Products, Problem::InvalidSaleId),
            ("/products?limit=201", Operation::Products, Problem::InvalidLimit),
            ("/products/", Operation::Unknown, Problem::NotFound),
            ("/products/a-38/", Operation::Unknown, Problem::NotFound),
        ] {
            assert_eq!(get(target), (operation, Route::Refused(problem)), "{target}");
        }
        assert_eq!(way("GET /products"), Route::Refused(Problem::NotFound), "without a plan");
        let unplanned = refused(Site::default(), "user_id=7&product_id=a-38");
        assert_eq!(unplanned, Route::Refused(Problem::NoSuchProduct), "without a plan");
    }

    #[test]
    fn a_repetition_in_another_spelling_is_one() {
        let twice = way("POST /checkout?user_id=%37&item_id=1&%75ser_id=7");
        assert_eq!(twice, Route::Refused(Problem::InvalidUser), "a parameter is repeated in another spelling");
    }

    #[test]
    fn bad_values_are_named() {
        for value in
            ["", "+1", "-1", "1e3", "007", "00", "18446744073709551616", "9223372036854775808", "1 ", "x", "1.0", "0x1"]
        {
            if !value.contains(' ') {
                assert_eq!(
                    way(&format!("POST /checkout?user_id={value}&item_id=1")),
                    Route::Refused(Problem::InvalidUser),
                    "{value}"
                );
                assert_eq!(
                    way(&format!("POST /checkout?user_id=1&item_id={value}")),
                    Route::Refused(Problem::InvalidItem),
                    "{value}"
                );
            }
        }
        for query in
            ["", "?item_id=1", "?user_id=1&user_id=1&item_id=1", "?user%26id=1&item_id=1", "?USER_ID=1&item_id=1"]
        {
            assert_eq!(way(&format!("POST /checkout{query}")), Route::Refused(Problem::InvalidUser), "{query}");
        }
        for query in ["?user_id=1&item_id", "?user_id=1&item_id=1&item_id=1", "?user_id=1&item_id=1&id=1"] {
            assert_eq!(way(&format!("POST /checkout{query}")), Route::Refused(Problem::InvalidItem), "{query}");
        }
        for query in ["sale_id", "sale_id=", "sale_id=x", "sale_id=07", "sale_id=4294967296", "sale_id=1&sale_id=1"] {
            let refused = Route::Refused(Problem::InvalidSaleId);
            assert_eq!(way(&format!("POST /checkout?user_id=1&{query}")), refused, "{query}");
        }
        for query in ["", "?code=", "?code=1", "?code=00027232-4538-87b2-840d-b281356ddb74&code=x"] {
            assert_eq!(way(&format!("POST /purchase{query}")), Route::Refused(Problem::InvalidCode), "{query}");
        }
    }

    #[test]
    fn items_are_found() {
        let list = |offset, limit| {
            Route::Page(Page::Items(ItemPage::List { of: ItemChoice::default(), part: ListPart { offset, limit } }))
        };
        assert_eq!(way("GET /items"), list(0, 50));
        assert_eq!(way("HEAD /items?limit=200&x=y&offset=4294967295"), list(u32::MAX, 200));
        let item = Route::Page(Page::Items(ItemPage::Item { item: ItemId(0), sale: None }));
        assert_eq!([way("GET /items/0"), way("GET /items/0?sale_id=x")], [item; 2], "without a plan");
        let image = |sale| Route::Page(Page::Items(ItemPage::Image { item: ItemId(42), sale }));
        assert_eq!(way("GET /items/42/image.svg?x"), image(None));
        assert_eq!(way("HEAD /items/42/image.svg?sale=0"), image(Some(SaleId(0))));
        assert_eq!(way("GET /items/42/image.svg?x=y&%73ale=4294967295"), image(Some(SaleId(u32::MAX))));
        for query in
            ["sale", "sale=", "sale=x", "sale=-1", "sale=07", "sale=4294967296", "sale=1&sale=1", "sale=1&sale"]
        {
            assert_eq!(
                way(&format!("GET /items/42/image.svg?{query}")),
                Route::Refused(Problem::InvalidSale),
                "{query}"
            );
        }
        for query in
            ["offset=", "offset=-1", "offset=00", "offset=4294967296", "offset=1&offset=1", "offset=0&limit=9&offset"]
        {
            assert_eq!(way(&format!("GET /items?{query}")), Route::Refused(Problem::InvalidOffset), "{query}");
        }
        for query in ["limit=", "limit=0", "limit=201", "limit=+1", "limit=1e2", "limit=5&limit=5", "limit"] {
            assert_eq!(way(&format!("GET /items?{query}")), Route::Refused(Problem::InvalidLimit), "{query}");
        }
        for path in
            ["/items/", "/items/x", "/items/07", "/items/4294967296", "/items/1/", "/items/1/image.png", "/itemsx"]
        {
            assert_eq!(way(&format!("GET {path}")), Route::Refused(Problem::NotFound), "{path}");
        }
        for path in ["/items?limit=0", "/items/1", "/items/1/image.svg", "/items/1/image.svg?sale=x", "/events"] {
            assert_eq!(way(&format!("POST {path}")), Route::Refused(Problem::OnlyGet), "{path}");
        }
    }

    #[test]
    fn wrong_paths_and_methods_are_told_apart() {
        assert_eq!(way("GET /nothing"), Route::Refused(Problem::NotFound));
        assert_eq!(way("GET /checkout/"), Route::Refused(Problem::NotFound));
        assert_eq!(way("GET /checkout"), Route::Refused(Problem::OnlyPostOrDelete));
        assert_eq!(way("DELETE /purchase"), Route::Refused(Problem::OnlyPost));
        assert_eq!(way("GET /checkout/extend"), Route::Refused(Problem::OnlyPost));
        for path in ["/sales/", "/sales/x", "/sales/07", "/sales/4294967296", "/sales/1/", "/salesx"] {
            assert_eq!(way(&format!("GET {path}")), Route::Refused(Problem::NotFound), "{path}");
        }
        assert_eq!(way("POST /sales/1"), Route::Refused(Problem::OnlyGet));
        assert_eq!(way("POST /sale"), Route::Refused(Problem::OnlyGet));
        assert_eq!(way("PATCH /readyz"), Route::Refused(Problem::OnlyGet));
    }
}
