//! `GET /openapi.json` is valid OpenAPI, and it is true: the tests provoke every response that it describes, compare
//! the response with the description, and fail on a response that is not described.
//!
//! `tests/vendored/openapi-3.1` is the OpenAPI Initiative's schema of such documents, under the Apache License 2.0.

use crate::harness::{Client, LONG_SALE, Response, Server, repository_text, skipped, wait_until};
use crate::load::connect;
use crate::service::Stuck;
use jsonschema::Validator;
use serde_json::{Value, json};
use stampede::http::operation::Operation;
use stampede::sale::ids::{ItemId, ShardId};
use stampede::sale::partition::Partition;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use strum::VariantArray;

/// Operation (method and path), status code, and body. The body is the type of a problem, or else the media type, or
/// empty.
type Case = (String, String, String);

/// An API description, and the described cases that the tests have received so far.
struct Api {
    document: Value,
    met: Mutex<BTreeSet<Case>>,
}

/// Key, under `paths`, of the responses to requests that match no operation.
const OTHERWISE: &str = "x-otherwise";

impl Api {
    fn of(server: &Server) -> Api {
        let answer = server.connect().request("GET /openapi.json");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        Api { document: answer.json(), met: Mutex::default() }
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let target = value["$ref"].as_str().map(|path| path.strip_prefix('#').expect("the reference is local"));
        target.map_or(value, |path| self.document.pointer(path).unwrap_or_else(|| panic!("no value at {path}")))
    }

    /// Returns every operation by its method and path, and the entry for requests that match no operation.
    fn operations(&self) -> impl Iterator<Item = (String, &Value)> {
        let paths = self.document["paths"].as_object().unwrap().iter();
        paths.flat_map(|(path, item)| {
            let operations = item.as_object().unwrap().iter();
            let named = |(method, operation): (&String, _)| (format!("{} {path}", method.to_uppercase()), operation);
            if path.starts_with('/') { operations.map(named).collect() } else { vec![(path.clone(), item)] }
        })
    }

    fn cases(&self) -> BTreeSet<Case> {
        let mut cases = BTreeSet::new();
        for (name, operation) in self.operations() {
            for (code, response) in operation["responses"].as_object().unwrap() {
                let content = self.resolve(response)["content"].as_object();
                let mut add = |what: &str| cases.insert((name.clone(), code.clone(), what.to_owned()));
                if content.is_none() {
                    add("");
                }
                for (kind, body) in content.into_iter().flatten() {
                    match body["schema"]["properties"]["type"]["enum"].as_array() {
                        Some(types) => types.iter().for_each(|kind| _ = add(kind.as_str().unwrap())),
                        None => _ = add(kind),
                    }
                }
            }
        }
        cases
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        let options = jsonschema::draft202012::options().should_validate_formats(true);
        options.build(&schema).unwrap_or_else(|error| panic!("{error}: {schema}"))
    }

    fn assert_valid(&self, schema: &Value, value: &Value, what: impl std::fmt::Debug) {
        let validator = self.validator(schema);
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {value} of {what:?}");
    }

    /// Checks a response against the description of an operation, and records its case.
    fn meets(&self, name: &str, answer: &Response) {
        let (_, operation) = self.operations().find(|(operation, _)| operation == name).expect(name);
        let code = answer.status.to_string();
        let response = self.resolve(&operation["responses"][&code]);
        assert!(!response.is_null(), "{name}: not described: {answer:?}");
        for line in answer.head.lines().skip(1) {
            let header = line.split(':').next().unwrap();
            let is_described = |known: &String| known.eq_ignore_ascii_case(header);
            // The description leaves out the headers that frame every HTTP message.
            let is_framing = ["content-type", "content-length", "connection"].contains(&header);
            assert!(
                is_framing || response["headers"].as_object().unwrap().keys().any(is_described),
                "{name}: {answer:?}"
            );
        }
        for (header, about) in response["headers"].as_object().unwrap() {
            let about = self.resolve(about);
            let Some(value) = answer.header(header) else {
                assert_ne!(about["required"], true, "{name}: no {header}: {answer:?}");
                continue;
            };
            let is_number = about["schema"]["type"] == "integer";
            let value = if is_number { serde_json::from_str(value).unwrap() } else { json!(value) };
            self.assert_valid(&about["schema"], &value, answer);
        }
        let what = match answer.header("content-type") {
            None => {
                assert!(response["content"].is_null() && answer.body.is_empty(), "{name}: {answer:?}");
                String::new()
            }
            Some(kind) => {
                let schema = &response["content"][kind]["schema"];
                assert!(!schema.is_null(), "{name}: not described: {answer:?}");
                let body = if kind.ends_with("json") { answer.json() } else { json!(answer.body) };
                self.assert_valid(schema, &body, answer);
                let is_problem = kind.starts_with("application/problem");
                if is_problem { body["type"].as_str().unwrap().to_owned() } else { kind.to_owned() }
            }
        };
        self.met.lock().unwrap().insert((name.to_owned(), code, what));
    }

    /// Sends a request and checks the response against the description.
    fn ask(&self, client: &mut Client, operation: Operation, query: &str, fields: &str) -> Response {
        let (method, path) = operation.route();
        let path = path.replace("{id}", "1");
        let answer = client.try_request(&format!("{method} {path}{query}"), fields).unwrap();
        self.meets(&name(operation), &answer);
        answer
    }
}

fn name(operation: Operation) -> String {
    let (method, path) = operation.route();
    format!("{method} {path}")
}

/// Returns each operation with a method and target that request it.
fn lines() -> impl Iterator<Item = (Operation, String)> {
    let known = Operation::VARIANTS.iter().copied().filter(|operation| operation.is_described());
    known.map(|operation| {
        let query = match operation {
            Operation::Checkout => "?user_id=9&item_id=9",
            Operation::Purchase | Operation::Cancel | Operation::Extend => "?code=00002a9c-04e1-86c4-ae9f-b285fb710516",
            _ => "",
        };
        (operation, format!("{}{query}", name(operation).replace("{id}", "1")))
    })
}

fn start(dir: &tempfile::TempDir, arguments: &[&str]) -> Server {
    Server::start(dir.path(), &[&LONG_SALE[..], arguments].concat())
}

#[test]
fn the_description_is_good_openapi_and_its_examples_are_good() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::of(&start(&dir, &["--shards", "1"]));
    let schema: Value = serde_json::from_str(&repository_text("tests/vendored/openapi-3.1/schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&api.document).map(|error| format!("{error:?}")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let mut examples = 0;
    let mut check = |schema: &Value, value: &Value| {
        api.assert_valid(schema, value, "an example");
        examples += usize::from(!value.is_null());
    };
    for (_, operation) in api.operations() {
        for response in operation["responses"].as_object().unwrap().values() {
            let content = api.resolve(response)["content"].as_object();
            for body in content.into_iter().flat_map(serde_json::Map::values) {
                let many = body["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
                many.chain(body.get("example")).for_each(|example| check(&body["schema"], example));
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten().map(|value| api.resolve(value)) {
            if let Some(example) = parameter.get("example") {
                check(&parameter["schema"], example);
            }
        }
    }
    assert!(examples > 50, "{examples}");
}

#[test]
fn every_answer_that_is_described_can_be_met_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--items", "100", "--user-limit", "2", "--reservation-ttl", "1h", "--extension", "1h"];
    let server = start(&dir, &[&terms[..], &["--shards", "2"]].concat());
    let (api, address) = (&Api::of(&server), server.address);
    let is_stuck = thread::scope(|scope| {
        let slow = scope.spawn(|| meet_a_stuck_shard(api));
        scope.spawn(|| meet_at_the_door(api, address));
        scope.spawn(|| meet_a_crowd(api));
        scope.spawn(|| meet_the_end_of_a_sale(api));
        scope.spawn(|| meet_a_full_log(api));
        scope.spawn(|| meet_nothing_free(api));
        scope.spawn(|| meet_a_plan(api));
        scope.spawn(|| meet_products(api));
        scope.spawn(|| meet_before_it_sells(api, &[]));
        scope.spawn(|| meet_before_it_sells(api, &["--ack", "postgres", "--standby"]));
        meet_in_peace(api, &server);
        slow.join().unwrap()
    });
    let (mut described, met) = (api.cases(), api.met.lock().unwrap().clone());
    if let Err(error) = is_stuck {
        skipped("overdue answers", error);
        described.retain(|(_, _, what)| what != "/problems/overdue");
    }
    assert_eq!(described.difference(&met).collect::<Vec<_>>(), Vec::<&Case>::new(), "described, but never received");
    assert!(described.len() > 100, "{}", described.len());
}

/// Provokes the responses of normal operation, to buyers and to readers.
fn meet_in_peace(api: &Api, server: &Server) {
    let mut client = server.connect();
    let mut ask = |operation, query: &str, fields: &str| api.ask(&mut client, operation, query, fields);
    let code = ask(Operation::Checkout, "?user_id=1&item_id=1", "X-Request-Id: a\r\n").body;
    let held = ask(Operation::Checkout, "?user_id=1&id=2", "").json();
    let extended = ask(Operation::Checkout, "?user_id=2&item_id=3", "Accept: application/json\r\n").json();
    let extended = format!("?code={}", extended["code"].as_str().unwrap());
    assert_eq!(ask(Operation::Extend, &extended, "").status, 200);
    ask(Operation::Checkout, "?user_id=1&item_id=4", ""); // Exceeds the user limit.
    ask(Operation::Checkout, "?user_id=2&item_id=1", "");
    for query in ["?item_id=1", "?user_id=1&item_id=x", "?user_id=1&item_id=100"] {
        ask(Operation::Checkout, query, "");
    }
    let bought = ask(Operation::Purchase, &format!("?code={code}"), "Idempotency-Key: k\r\n");
    assert_eq!(bought.status, 200);
    ask(Operation::Checkout, "?user_id=2&item_id=1", "");
    let cancelled = format!("?code={}", held["code"].as_str().unwrap());
    assert_eq!(ask(Operation::Cancel, &cancelled, "").status, 204);
    for operation in [Operation::Checkout, Operation::Purchase, Operation::Cancel, Operation::Extend] {
        ask(operation, "?user_id=1&item_id=1", "Origin: https://other.example\r\n");
    }
    for operation in [Operation::Purchase, Operation::Cancel, Operation::Extend] {
        ask(operation, "", "");
        ask(operation, "?code=00027232-4538-47b2-840d-b281356ddb74", "");
        ask(operation, &cancelled, "");
        ask(operation, &format!("?code={code}"), "");
    }
    for operation in
        [Operation::Sale, Operation::OneSale, Operation::Item, Operation::Live, Operation::Ready, Operation::Health]
    {
        ask(operation, "", "");
    }
    ask(Operation::Api, "", "");
    for query in ["?limit=200&offset=4294967295", "?limit=201", "?offset=-1"] {
        ask(Operation::Items, query, "");
        ask(Operation::Sales, query, "");
    }
    ask(Operation::Sales, "", "");
    ask(Operation::Image, "?sale=x", "");
    assert_eq!(ask(Operation::Image, "?sale=1", "").status, 200);
    let tag = ask(Operation::Image, "", "").header("etag").unwrap().to_owned();
    assert_eq!(ask(Operation::Image, "", &format!("If-None-Match: {tag}\r\n")).status, 304);
    for operation in [Operation::Products, Operation::Product] {
        assert_eq!(ask(operation, "", "").problem(), "not-found", "without a plan");
    }
    for operation in [Operation::Item, Operation::Image] {
        let line = name(operation).replace("{id}", "100");
        api.meets(&name(operation), &client.request(&line));
    }
    let sale = client.sale()["sale_id"].to_string();
    let one_sale = client.request(&format!("GET {}", Operation::OneSale.route().1.replace("{id}", &sale)));
    assert_eq!(one_sale.status, 200);
    api.meets(&name(Operation::OneSale), &one_sale);
    ask_for_what_is_not_there(api, &mut client, server.address);
    listen(api, server);
}

/// Requests an unknown path, an unknown method, and a method that no path allows on every path. Checks `Allow`, and
/// that HEAD has the headers of GET.
fn ask_for_what_is_not_there(api: &Api, client: &mut Client, address: SocketAddr) {
    api.meets(OTHERWISE, &client.request("GET /nothing"));
    api.meets(OTHERWISE, &connect(address).request("BREW /livez"));
    for (path, item) in api.document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with('/')) {
        let refused = client.request(&format!("PATCH {}", path.replace("{id}", "1")));
        api.meets(OTHERWISE, &refused);
        let allowed: BTreeSet<&str> = refused.header("allow").expect("the response has Allow").split(", ").collect();
        let mut described: BTreeSet<String> = item.as_object().unwrap().keys().map(|key| key.to_uppercase()).collect();
        if described.contains("GET") {
            described.insert("HEAD".to_owned());
        }
        assert_eq!(allowed, described.iter().map(String::as_str).collect(), "{path}");
        if described.contains("GET") && path != "/events" {
            let path = path.replace("{id}", "1");
            let get = client.request(&format!("GET {path}"));
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes()).unwrap();
            let head = client.read_head().unwrap();
            for header in ["content-type", "etag"] {
                assert_eq!((head.status, head.header(header)), (get.status, get.header(header)), "{path}");
            }
        }
    }
}

/// Checks the head of an event stream against the description.
fn listen(api: &Api, server: &Server) {
    let mut client = server.connect();
    client.send(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    let mut answer = client.read_head().unwrap();
    answer.body = "events".to_owned();
    api.meets(&name(Operation::Events), &answer);
}

/// Provokes, for each operation, the responses that precede routing: refused heads, and a head that times out.
fn meet_at_the_door(api: &Api, address: SocketAddr) {
    let slow: Vec<_> = lines()
        .map(|(operation, line)| {
            let mut client = connect(address);
            client.send(format!("{line} HTTP/1.1\r\nHost: shop\r\n").as_bytes()).unwrap();
            (operation, client)
        })
        .collect();
    let large = format!("X-Large: {}", "x".repeat(17_000));
    let long = format!("{} HTTP/1.1", "x".repeat(9_000));
    for (operation, line) in lines() {
        for (version, field) in [
            ("HTTP/1.1", "Host: two words"),
            ("HTTP/1.1", "Host: shop\r\nExpect: tea"),
            ("HTTP/1.1", "Host: shop\r\nTransfer-Encoding: gzip"),
            ("HTTP/1.1", "Host: shop\r\nContent-Length: 70000"),
            ("HTTP/1.1", &large),
            (&long, "Host: shop"),
            ("HTTP/2.0", "Host: shop"),
        ] {
            let mut client = connect(address);
            client.send(format!("{line} {version}\r\n{field}\r\n\r\n").as_bytes()).unwrap();
            api.meets(&name(operation), &client.read().unwrap());
        }
    }
    for (operation, mut client) in slow {
        api.meets(&name(operation), &client.read().unwrap());
    }
}

/// Provokes the refusal at the connection limit. The server does not read the request of a refused connection.
fn meet_a_crowd(api: &Api) {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "1", "--max-connections", "4"]);
    let _inside = server.occupy(4);
    for (operation, line) in lines() {
        let mut refused = None;
        // The server may close the connection before the client has sent its request. The client then sees a reset
        // instead of the response, and the test tries again.
        wait_until("the refusal arrives", || {
            let mut client = server.connect();
            let _ = client.send(format!("{line} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes());
            refused = client.read().ok();
            refused.is_some()
        });
        api.meets(&name(operation), &refused.unwrap());
    }
}

fn meet_the_end_of_a_sale(api: &Api) {
    let dir = tempfile::tempdir().unwrap();
    let short = ["--sale-period", "2s", "--receipts", "3s", "--reservation-ttl", "1s"];
    let server = Server::start(dir.path(), &short);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    let ask_all = |client: &mut Client, outcome: &str| {
        for operation in [Operation::Purchase, Operation::Cancel, Operation::Extend] {
            assert_eq!(api.ask(client, operation, &format!("?code={code}"), "").problem(), outcome);
        }
    };
    let mut extend = || client.request(&format!("POST /checkout/extend?code={code}"));
    let refused = extend();
    if refused.problem() == "not-extendable" {
        api.meets(&name(Operation::Extend), &refused);
    }
    wait_until("the hold expires", || extend().problem() == "code-expired");
    ask_all(&mut client, "code-expired");
    wait_until("the sale is forgotten", || client.purchase(&code).problem() == "sale-ended");
    ask_all(&mut client, "sale-ended");
}

/// Provokes the refusals of a checkout of any item.
fn meet_nothing_free(api: &Api) {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "1", "--items", "1", "--reservation-ttl", "1h"]);
    let mut client = server.connect();
    let code = api.ask(&mut client, Operation::Checkout, "?user_id=1", "").body;
    assert_eq!(api.ask(&mut client, Operation::Checkout, "?user_id=2", "").problem(), "all-reserved");
    assert_eq!(client.purchase(&code).status, 200);
    assert_eq!(api.ask(&mut client, Operation::Checkout, "?user_id=2", "").problem(), "sold-out");
}

/// Starts a server with a plan of one sale.
fn start_planned(dir: &tempfile::TempDir, terms: &str) -> Server {
    let product = "[[sale.product]]\nid = \"x\"\nname = \"X\"\nquantity = 3\n";
    let plan = format!("[[sale]]\nid = 7\nname = \"S\"\n{terms}\nuser_limit = 1\n{product}");
    std::fs::write(dir.path().join("plan.toml"), plan).unwrap();
    Server::start(dir.path(), &["--plan", "plan.toml", "--shards", "2"])
}

fn meet_a_paused_sale(api: &Api) {
    let dir = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let time = |at| humantime::format_rfc3339_seconds(at).to_string();
    let (opens, closes) =
        (time(now - std::time::Duration::from_secs(60)), time(now + std::time::Duration::from_secs(3600)));
    let server = start_planned(&dir, &format!("opens = {opens}\ncloses = {closes}\npaused = true"));
    let mut client = server.connect();
    for query in ["?user_id=1&item_id=1", "?user_id=1", "?user_id=1&sale_id=7"] {
        assert_eq!(api.ask(&mut client, Operation::Checkout, query, "").problem(), "paused");
    }
    assert!(server.terminate().success());
}

/// Requests every page, and a checkout, before the only sale of a plan and after it.
fn meet_a_plan(api: &Api) {
    meet_a_paused_sale(api);
    for (opens, closes, phase) in [("2100-01-01", "2100-01-02", "next"), ("2000-01-01", "2000-01-02", "closed")] {
        let dir = tempfile::tempdir().unwrap();
        let server = start_planned(&dir, &format!("opens = {opens}T00:00:00Z\ncloses = {closes}T00:00:00Z"));
        let mut client = server.connect();
        for query in ["?user_id=1&item_id=1", "?user_id=1"] {
            for fields in ["", "Idempotency-Key: k\r\n"] {
                let refused = api.ask(&mut client, Operation::Checkout, query, fields);
                assert_eq!(refused.problem(), "not-open");
                assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u32>().unwrap() >= 86_400));
            }
        }
        let named = api.ask(&mut client, Operation::Checkout, "?user_id=1&sale_id=7", "");
        assert_eq!(named.problem(), if phase == "next" { "not-open" } else { "sale-ended" });
        let code = "?code=00027232-4538-47b2-840d-b281356ddb74";
        for operation in [Operation::Purchase, Operation::Cancel, Operation::Extend] {
            assert_eq!(api.ask(&mut client, operation, code, "").status, 409);
        }
        let sale = api.ask(&mut client, Operation::Sale, "", "").json();
        assert_eq!((&sale["sale_id"], &sale["phase"], &sale["available"]), (&7.into(), &phase.into(), &3.into()));
        for operation in [Operation::Items, Operation::Item, Operation::Image, Operation::Ready, Operation::Live] {
            assert_eq!(api.ask(&mut client, operation, "", "").status, 200, "{operation:?}");
        }
        assert_eq!(api.ask(&mut client, Operation::Health, "", "").json()["sale"], sale);
        assert_eq!(client.request("GET /items").json()["items_total"], 3);
        assert_eq!(client.request("GET /items/3").problem(), "not-found");
        let one = client.request("GET /sales/7");
        assert_eq!(one.json()["phase"], phase);
        api.meets(&name(Operation::OneSale), &one);
        let all = api.ask(&mut client, Operation::Sales, "", "").json();
        assert_eq!((&all["sales_total"], &all["sales"][0]), (&1.into(), &one.json()));
        assert_eq!(client.request("GET /sales/0").problem(), "not-found");
        client.send(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        assert_eq!(client.read_head().unwrap().status, 200);
        assert_eq!(server.metric("stampede_sale_id"), if phase == "next" { 0 } else { 7 });
        assert!(server.terminate().success());
    }
}

/// Requests the products and items of a plan with one sale that is over, and with one or two that are open.
fn meet_products(api: &Api) {
    let sale = |id, opens, closes| {
        let products =
            "product = [{ id = \"0\", name = \"0\", quantity = 2 }, { id = \"1\", name = \"1\", units = [\"A\"] }]";
        let (opens, closes) = (format!("{opens}-01-01T00:00:00Z"), format!("{closes}-01-01T00:00:00Z"));
        format!("[[sale]]\nid = {id}\nname = \"S\"\nopens = {opens}\ncloses = {closes}\nuser_limit = 1\n{products}\n")
    };
    let year = now_year();
    let (over, open) = (sale(3, 2000, 2001), sale(7, year, year + 1));
    for plan in [over.clone() + &open, over + &open + &sale(8, year, year + 1)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plan.toml"), &plan).unwrap();
        let server = Server::start(dir.path(), &["--plan", "plan.toml", "--shards", "2"]);
        let mut client = server.connect();
        let are_several = plan.contains("id = 8");
        for operation in [Operation::Products, Operation::Product] {
            let mut ask = |query: &str| api.ask(&mut client, operation, query, "");
            for query in ["?sale_id=7", "?sale_id=7&limit=1"] {
                assert_eq!(ask(query).json()["sale_id"], 7, "{operation:?}");
            }
            let unnamed = ask("");
            let expected = if are_several { (400, "invalid-parameter".to_owned()) } else { (200, "ok".to_owned()) };
            let outcome = if unnamed.status == 200 { "ok".to_owned() } else { unnamed.problem() };
            assert_eq!((unnamed.status, outcome), expected);
            assert_eq!(ask("?sale_id=3").problem(), "sale-ended");
            assert_eq!(ask("?sale_id=5").problem(), "invalid-parameter");
        }
        let mut items = |query: &str| api.ask(&mut client, Operation::Items, query, "");
        assert_eq!(items("?sale_id=7&product_id=1").json()["items"][0]["unit"], "A");
        assert_eq!(items("?sale_id=7&product_id=2").problem(), "invalid-parameter");
        assert_eq!(items("?sale_id=3").problem(), "sale-ended");
        assert_eq!(items("?product_id=1").status, if are_several { 400 } else { 200 });
        let mut item = |query: &str| api.ask(&mut client, Operation::Item, query, "");
        assert_eq!(item("?sale_id=7").json()["sale_id"], 7);
        assert_eq!(item("?sale_id=5").problem(), "not-found");
        assert_eq!(item("?sale_id=3").problem(), "sale-ended");
        assert_eq!(item("?sale_id=x").problem(), "invalid-parameter");
        assert!(server.terminate().success());
    }
}

/// Returns the current year.
fn now_year() -> u32 {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()[..4].parse().unwrap()
}

fn meet_a_full_log(api: &Api) {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--shards", "1", "--log-budget", "1MiB", "--user-limit", "100000", "--reservation-ttl", "1h"];
    let server = start(&dir, &[&small[..], &["--extension", "1h"]].concat());
    let mut client = server.connect();
    let code = client.reserve(2, 9_999);
    let mut held =
        |item| api.ask(&mut client, Operation::Checkout, &format!("?user_id=1&item_id={item}"), "").status == 200;
    assert!((0..9_999).any(|item| !held(item)), "the log never fills up");
    api.ask(&mut client, Operation::Extend, &format!("?code={code}"), "");
}

/// Provokes the responses of a server that waits for a database to restore its sale from, or for the end of another
/// server. It has nothing to sell yet.
fn meet_before_it_sells(api: &Api, more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let plan = "[[sale]]\nid = 7\nname = \"S\"\nopens = 2100-01-01T00:00:00Z\ncloses = 2100-01-02T00:00:00Z\nuser_limit = 1\n\
                product = [{ id = \"1\", name = \"1\", quantity = 1 }]\n";
    std::fs::write(dir.path().join("plan.toml"), plan).unwrap();
    let nowhere =
        ["--plan", "plan.toml", "--database-url", "host=127.0.0.1 port=1 user=nobody dbname=none sslmode=disable"];
    let server = Server::spawn(dir.path(), &[&nowhere[..], more].concat());
    server.wait_for_line("waiting for the database");
    let mut client = server.connect();
    for (operation, line) in lines() {
        let answer = client.request(&line);
        assert_eq!(answer.status == 200, [Operation::Live, Operation::Api].contains(&operation), "{answer:?}");
        api.meets(&name(operation), &answer);
    }
}

/// Stops one shard, so that requests for its items time out. An error means that threads cannot be stopped here.
fn meet_a_stuck_shard(api: &Api) -> nix::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--shards", "2", "--items", "100"]);
    let (first, second) = (ShardId(0), ShardId(1));
    // Collect clients of the first shard: a client is on that shard if its connection increases the shard's count.
    let (mut clients, mut others, mut count) = (Vec::new(), Vec::new(), 0);
    while clients.len() < 4 {
        let mut client = server.connect();
        let now = client.request("GET /health").json()["shards"][usize::from(first.0)]["connections"].as_u64().unwrap();
        if now > count {
            clients.push(client)
        } else {
            others.push(client)
        }
        count = now;
    }
    let mut theirs = (0..100).filter(|item| Partition::new(2).owner_of_item(ItemId(*item)) == second);
    let mut next = || theirs.next().expect("the second shard owns enough items");
    let codes = [1, 2, 3].map(|user| clients[0].reserve(user, next()));
    let stuck = Stuck::shard(&server, second.0)?;
    let asked = [
        (Operation::Purchase, format!("?code={}", codes[0])),
        (Operation::Cancel, format!("?code={}", codes[1])),
        (Operation::Extend, format!("?code={}", codes[2])),
        (Operation::Checkout, format!("?user_id=1&item_id={}", next())),
    ];
    thread::scope(|scope| {
        for (client, (operation, query)) in clients.iter_mut().zip(&asked) {
            scope.spawn(move || assert_eq!(api.ask(client, *operation, query, "").problem(), "overdue"));
        }
    });
    stuck.release_to();
    Ok(())
}
