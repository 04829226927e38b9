//! The API's description, in OpenAPI 3.1: made from what the server itself goes by, which are the operations and their
//! answers, the problems, and the structs that bodies are written from. Words and examples are added here.

use crate::http::bodies;
use crate::http::operation::{Answer, ITEMS_SHOWN, ITEMS_SHOWN_MAX, Operation};
use crate::http::problem::Problem;
use crate::sale::code::ITEMS_MAX;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::item_name::{ItemImage, ItemName};
use crate::sale::stock::Availability;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use strum::VariantArray;

const VERSION: &str = env!("CARGO_PKG_VERSION");

const ABOUT: &str = "\
Sells a limited stock, exactly. A buyer reserves an item, gets a code, and buys with the code. Every 2xx is on disk \
before it leaves.

- Parameters are given once. Numbers have one spelling: digits, no sign, no leading zero. Unknown parameters, and \
bodies, are ignored.
- Refusals are `application/problem+json` (RFC 9457). New types may come; `sold-out` is set aside for a sale that has \
nothing left, but is answered by nothing as long as every checkout names its item.
- Whatever can be read by GET can be asked for by HEAD.
- Any other path, and any other method on these, is answered as `x-otherwise` under `paths` says.
- What answers 400 `malformed-request`, 408, 413, 417, 431, 501 or 505 also closes the connection, and comes before \
anything is decided; so does 503 `too-many-connections`, before anything is read, but for `/events`, which has a limit \
of its own.";

/// The description. It is rendered once, by the first shard that gets ready to answer: nobody waits for it later.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    &TEXT
}

fn document() -> Value {
    let with_path = |settings: &mut SchemaSettings| settings.definitions_path = "/components/schemas".into();
    let mut schemas = SchemaSettings::draft2020_12().for_serialize().with(with_path).into_generator();
    let (elsewhere, anywhere): (Vec<_>, Vec<_>) = Operation::Unknown.answers().into_iter().partition(is_elsewhere);
    let mut paths = json!({});
    for operation in Operation::VARIANTS.iter().copied().filter(|operation| *operation != Operation::Unknown) {
        let (method, path) = operation.route();
        paths[path][method.to_lowercase()] = describe(operation, &anywhere, &mut schemas);
    }
    let responses: Map<String, Value> = by_status(elsewhere.iter().chain(&anywhere))
        .into_values()
        .map(|answers| (answers[0].reason().to_owned(), response(&answers, json!({}), !is_elsewhere(&answers[0]))))
        .collect();
    let otherwise: Map<String, Value> =
        by_status(&elsewhere).into_iter().map(|(code, answers)| (code.to_owned(), reference(&answers[0]))).collect();
    paths["x-otherwise"] = json!({"responses": otherwise});
    schemas.subschema_for::<bodies::ProblemDetails>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Stampede",
            "version": VERSION,
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "responses": responses,
            "parameters": traces(),
            "headers": headers(),
        },
    })
}

/// Whether this is the answer to what is no operation.
fn is_elsewhere(answer: &Answer) -> bool {
    use Problem::*;
    matches!(answer, Answer::Refused(NotFound | OnlyGet | OnlyPost | OnlyPostOrDelete))
}

/// Answers by their status code, each of them once.
fn by_status<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> BTreeMap<&'static str, Vec<Answer>> {
    let mut groups: BTreeMap<_, Vec<Answer>> = BTreeMap::new();
    for answer in answers {
        let group = groups.entry(&answer.status()[..3]).or_default();
        if !group.contains(answer) {
            group.push(*answer);
        }
    }
    groups
}

/// `anywhere` is what any request can be answered.
fn describe(operation: Operation, anywhere: &[Answer], schemas: &mut SchemaGenerator) -> Value {
    let (id, summary, description) = words(operation);
    let answers = operation.answers();
    let responses: Map<String, Value> = by_status(answers.iter().chain(anywhere))
        .into_iter()
        .map(|(code, answers)| {
            if answers.iter().all(|answer| anywhere.contains(answer)) {
                return (code.to_owned(), reference(&answers[0]));
            }
            let mut response = response(&answers, granted(operation, answers[0], schemas), false);
            if (operation, answers[0]) == (Operation::Checkout, Answer::Ok) {
                response["links"] = links();
            }
            (code.to_owned(), response)
        })
        .collect();
    json!({
        "operationId": id,
        "summary": summary,
        "description": description,
        "parameters": parameters(operation),
        "responses": responses,
    })
}

fn reference(answer: &Answer) -> Value {
    json!({"$ref": format!("#/components/responses/{}", answer.reason())})
}

/// What stands under one status code: what is granted, by its kind, and problems. Before a request has been understood,
/// nobody knows its id.
fn response(answers: &[Answer], mut content: Value, is_early: bool) -> Value {
    let phrase = &answers[0].status()[4..];
    let problems: Vec<Problem> = answers
        .iter()
        .filter_map(|answer| match answer {
            Answer::Refused(problem) => Some(*problem),
            _ => None,
        })
        .collect();
    let mut lines = vec![phrase.to_owned()];
    if !problems.is_empty() {
        let mut kinds: Vec<Value> = Vec::new();
        let mut examples = json!({});
        for problem in &problems {
            let details = problem.details();
            if !kinds.contains(&json!(details.kind)) {
                kinds.push(json!(details.kind));
                lines.push(format!("- `{}`: {}", problem.about().slug, details.title));
            }
            examples[format!("{problem:?}")] =
                json!({"summary": details.detail.unwrap_or(details.title), "value": details});
        }
        content["application/problem+json"] = json!({
            "schema": {
                "$ref": "#/components/schemas/ProblemDetails",
                "properties": {"type": {"enum": kinds}, "status": {"const": problems[0].details().status}},
            },
            "examples": examples,
        });
    }
    let names = header_names(answers, &problems, &content, is_early);
    let headers: Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")})))
        .collect();
    let mut response = json!({"description": lines.join("\n"), "headers": headers});
    if content != json!({}) {
        response["content"] = content;
    }
    response
}

fn header_names(answers: &[Answer], problems: &[Problem], content: &Value, is_early: bool) -> Vec<&'static str> {
    let mut names = vec!["Date"];
    if !is_early {
        names.push("X-Request-Id");
    }
    let says = |name: &str| problems.iter().any(|problem| problem.about().headers.starts_with(name));
    if answers.contains(&Answer::Unready) || says("retry-after") {
        names.push("Retry-After");
    }
    if says("allow") {
        names.push("Allow");
    }
    let has_body = |answer| matches!(answer, &Answer::Ok | &Answer::Unchanged | &Answer::Unready);
    if answers.iter().any(has_body) || says("cache-control") {
        names.push("Cache-Control");
    }
    if content.get("image/svg+xml").is_some() || answers.contains(&Answer::Unchanged) {
        names.push("ETag");
    }
    if content.get("text/event-stream").is_some() {
        names.push("X-Accel-Buffering");
    }
    names
}

/// What is asked, in words: a name, a line, and the rest.
fn words(operation: Operation) -> (&'static str, &'static str, &'static str) {
    match operation {
        Operation::Checkout => (
            "checkout",
            "Reserve an item",
            "The code is bare text, or JSON for `Accept: application/json`. `id` in place of `item_id` says the same, \
             and is answered in JSON. An item speaks before a user's quota, which counts what is held and bought. \
             A hold that runs out gives both back.",
        ),
        Operation::Purchase => {
            ("purchase", "Buy what is reserved", "After `overdue` nobody knows: ask again with the same code.")
        }
        Operation::Cancel => {
            ("cancel", "Give back what is reserved", "The item is free again, and so is its place in the quota.")
        }
        Operation::Sale => ("sale", "How the sale stands", "Sales follow each other without a pause."),
        Operation::Events => (
            "events",
            "The same as it changes",
            "Server-sent events, until the connection is closed: `sale`, whose data is what `GET /sale` says, at once \
             and when a sale begins; `stock`, whose data is a `Stock`, when it changes, at most twice a second. Who \
             does not read is told nothing more, and let go of after 30 s. Half of all connections may listen.",
        ),
        Operation::Items => ("items", "Which items there are, and how they stand", "A page of them, in order."),
        Operation::Item => ("item", "How an item stands", "What it is called, where its image is, and its state."),
        Operation::Image => ("image", "What an item looks like", "May be kept until the sale ends."),
        Operation::Live => ("livez", "Whether the process is up", "It answers, so it is."),
        Operation::Ready => (
            "readyz",
            "Whether it is ready to sell",
            "Also how far Postgres is behind. Not ready while it recovers or comes to its end.",
        ),
        Operation::Health => ("health", "Everything about the process", "Shard by shard."),
        Operation::Api => ("openapi", "What can be asked, and every answer", "This document."),
        Operation::Unknown => ("", "", ""),
    }
}

fn parameter(name: &str, place: &str, about: &str, schema: Value) -> Value {
    json!({"name": name, "in": place, "description": about, "schema": schema})
}

/// One that must be given, for example so.
fn required(mut parameter: Value, example: impl Into<Value>) -> Value {
    parameter["required"] = true.into();
    parameter["example"] = example.into();
    parameter
}

/// A whole number.
fn whole(least: u32, most: u64) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": least, "maximum": most})
}

fn parameters(operation: Operation) -> Vec<Value> {
    let item = whole(0, u64::from(ITEMS_MAX) - 1);
    let code = json!({
        "type": "string",
        "format": "uuid",
        "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    });
    let code = required(parameter("code", "query", "What the checkout has given, in lower case.", code), CODE);
    let id = required(parameter("id", "path", "Which item.", item.clone()), ITEM.0);
    let mut parameters = match operation {
        Operation::Checkout => vec![
            required(parameter("user_id", "query", "Who buys.", whole(0, i64::MAX as u64)), 7),
            required(parameter("item_id", "query", "Which item: less than the sale's `items_total`.", item), ITEM.0),
        ],
        Operation::Purchase => {
            let about = "A purchase repeated with the same key gets the same receipt.";
            // Blanks around a value are not part of it, and an empty key is none.
            let key = json!({"type": "string", "pattern": "[^ \\t]"});
            vec![code, parameter("Idempotency-Key", "header", about, key)]
        }
        Operation::Cancel => vec![code],
        Operation::Items => {
            let (mut offset, mut limit) = (whole(0, u32::MAX.into()), whole(1, ITEMS_SHOWN_MAX.into()));
            (offset["default"], limit["default"]) = (0.into(), ITEMS_SHOWN.into());
            vec![
                parameter("offset", "query", "The first item shown.", offset),
                parameter("limit", "query", "How many are shown at most.", limit),
            ]
        }
        Operation::Item => vec![id],
        Operation::Image => {
            let about = "Tags of what the client has already.";
            vec![id, parameter("If-None-Match", "header", about, json!({"type": "string"}))]
        }
        _ => vec![],
    };
    let traces = traces();
    let names = traces.as_object().into_iter().flat_map(Map::keys);
    parameters.extend(names.map(|name| json!({"$ref": format!("#/components/parameters/{name}")})));
    parameters
}

/// What every request may be called.
fn traces() -> Value {
    let trace = |name: &str, about: &str, example: &str| {
        let mut trace = parameter(name, "header", about, json!({"type": "string"}));
        trace["example"] = example.into();
        trace
    };
    json!({
        "X-Request-Id": trace(
            "X-Request-Id",
            "Given back with the answer, if it is 1 to 128 visible ASCII characters; else ignored.",
            "cart-7",
        ),
        "traceparent": trace(
            "traceparent",
            "W3C Trace Context, for whoever reads the server's log; ignored if it is none.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    })
}

fn headers() -> Value {
    let always = |about: &str, schema: Value| json!({"description": about, "required": true, "schema": schema});
    let allow = |problem: Problem| problem.about().headers["allow: ".len()..].trim_end().to_owned();
    let allowed: Vec<String> = [Problem::OnlyGet, Problem::OnlyPost, Problem::OnlyPostOrDelete].map(allow).into();
    json!({
        "Date": always("When it was answered.", json!({"type": "string"})),
        "X-Request-Id": {
            "description": "The request's own.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
        },
        "Retry-After": always("Seconds until it makes sense to ask again.", json!({"type": "integer", "minimum": 0})),
        "Allow": always("The methods that this path has.", json!({"type": "string", "enum": allowed})),
        "ETag": always("Names these very bytes.", json!({"type": "string", "pattern": "^\"[!-~]+\"$"})),
        "Cache-Control": {"description": "How long it may be kept.", "schema": {"type": "string"}},
        "X-Accel-Buffering": always("Proxies must pass each event on at once.", json!({"const": "no"})),
    })
}

/// What a checkout's code is good for. (Of an answer in bare text, it is the whole body.)
fn links() -> Value {
    let link = |operation: Operation| {
        let (id, about, _) = words(operation);
        json!({"operationId": id, "description": about, "parameters": {"code": "$response.body#/code"}})
    };
    json!({"purchase": link(Operation::Purchase), "cancel": link(Operation::Cancel)})
}

const CODE: &str = "5217a1a2-e116-86c4-ae9f-b285fb710516";
const SALE: SaleId = SaleId(498_692);
const ITEM: ItemId = ItemId(42);

/// The bodies of an answer that is no refusal, by their kind.
fn granted(operation: Operation, answer: Answer, schemas: &mut SchemaGenerator) -> Value {
    let (ready, status) =
        if answer == Answer::Ok { (true, bodies::Doing::Serving) } else { (false, bodies::Doing::Recovering) };
    match (operation, answer) {
        (_, Answer::NoContent | Answer::Unchanged | Answer::Refused(_)) => json!({}),
        (Operation::Checkout, _) => {
            let expires_at = "2026-11-21T20:00:30.000Z".to_owned();
            let held = bodies::Reservation { code: CODE, sale_id: SALE.0, item_id: ITEM.0, expires_at };
            let mut content = as_json(&held, schemas);
            let code = json!({"type": "string", "format": "uuid", "description": "The code."});
            content["text/plain"] = json!({"schema": code, "example": CODE});
            content
        }
        (Operation::Purchase, _) => {
            let receipt = bodies::Receipt {
                success: true,
                message: "Purchase successful",
                sale_id: SALE.0,
                item_id: ITEM.0,
                item_name: ItemName(SALE, ITEM),
                item_image: ItemImage(ITEM),
            };
            as_json(&receipt, schemas)
        }
        (Operation::Sale, _) => as_json(&sale(), schemas),
        (Operation::Events, _) => {
            let bodies::Sale { sale_id, sold, reserved, available, .. } = sale();
            let stock = bodies::StockEvent { sale_id, sold, reserved, available };
            schemas.subschema_for::<bodies::StockEvent>();
            let (sale, stock) = (json!(sale()), json!(stock));
            let example = format!("retry: 1000\n\nevent: sale\ndata: {sale}\n\nevent: stock\ndata: {stock}\n\n");
            json!({"text/event-stream": {"schema": {"type": "string"}, "example": example}})
        }
        (Operation::Items, _) => {
            let (offset, limit) = (ITEM.0, 1);
            let items = bodies::Items { sale_id: SALE.0, items_total: 10_000, offset, limit, items: vec![item()] };
            as_json(&items, schemas)
        }
        (Operation::Item, _) => as_json(&bodies::OneItem { sale_id: SALE.0, item: item() }, schemas),
        (Operation::Image, _) => {
            let example = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 200 200'></svg>";
            json!({"image/svg+xml": {"schema": {"type": "string"}, "example": example}})
        }
        (Operation::Live, _) => as_json(&bodies::Live { live: true, version: VERSION }, schemas),
        (Operation::Ready, _) => as_json(&bodies::Ready { ready, status, postgres: Some(postgres()) }, schemas),
        (Operation::Health, _) => {
            let shard = bodies::ShardHealth {
                shard: 0,
                connections: 2,
                log_records: 3,
                log_records_durable: 3,
                log_blocks_free: 1000,
                attempts_durable: 1,
                attempts_unrecorded: 0,
            };
            let (sale, postgres) = (ready.then(sale), Some(postgres()));
            let shards = vec![shard];
            as_json(&bodies::Health { status, version: VERSION, live: true, ready, sale, postgres, shards }, schemas)
        }
        (Operation::Api, _) => json!({"application/json": {"schema": {"type": "object"}}}),
        (Operation::Cancel | Operation::Unknown, _) => json!({}),
    }
}

fn as_json<T: Serialize + JsonSchema>(example: &T, schemas: &mut SchemaGenerator) -> Value {
    json!({"application/json": {"schema": schemas.subschema_for::<T>(), "example": example}})
}

fn sale() -> bodies::Sale {
    bodies::Sale {
        sale_id: SALE.0,
        starts_at: "2026-11-21T20:00:00.000Z".into(),
        ends_at: "2026-11-21T21:00:00.000Z".into(),
        items_total: 10_000,
        sold: 1,
        reserved: 0,
        available: 9_999,
        user_limit: 10,
    }
}

fn item() -> bodies::Item {
    let (name, image) = (ItemName(SALE, ITEM), ItemImage(ITEM));
    bodies::Item { item_id: ITEM.0, name, image, state: Availability::Sold }
}

fn postgres() -> bodies::Postgres {
    bodies::Postgres { connected: true, records_behind: Some(0), seconds_behind: 0.0 }
}
