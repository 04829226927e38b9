//! The OpenAPI 3.1 document of the public API.
//!
//! It is generated from the tables and types that the server itself uses: the operations with their answers, the
//! problems, and the structs of the bodies. `openapi.json` has the descriptions and parameters; this file adds examples.

use crate::http::bodies;
use crate::http::operation::{Answer, Operation};
use crate::http::problem::Problem;
use crate::http::receipt::Receipt;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::item_name::{ItemImage, ItemName};
use crate::sale::item_state::Availability;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use strum::VariantArray;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The texts and parameters. The code adds the answers, the bodies and the version.
const TEXTS: &str = include_str!("openapi.json");

/// Returns the document as JSON.
///
/// The first shard that starts renders it, so that no request waits for the rendering.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    &TEXT
}

fn document() -> Value {
    let mut document: Value = serde_json::from_str(TEXTS).expect("openapi.json is JSON");
    let with_path = |settings: &mut SchemaSettings| settings.definitions_path = "/components/schemas".into();
    let mut schemas = SchemaSettings::draft2020_12().for_serialize().with(with_path).into_generator();
    let (unmatched, common): (Vec<_>, Vec<_>) =
        Operation::Unknown.answers().into_iter().partition(matches_no_operation);
    for operation in Operation::VARIANTS.iter().copied().filter(|operation| operation.is_described()) {
        let (method, path) = operation.route();
        let responses = responses(operation, &common, &mut schemas);
        document["paths"][path][method.to_lowercase()]["responses"] = responses;
    }
    let post = &document["paths"]["/purchase"]["post"]["summary"];
    let delete = &document["paths"]["/checkout"]["delete"]["summary"];
    // Links from a checkout to the operations that take its code. They use the JSON answer; a text answer is the code.
    let link = |id, summary| json!({"operationId": id, "description": summary, "parameters": {"code": "$response.body#/code"}});
    let extend = &document["paths"]["/checkout/extend"]["post"]["summary"];
    let links = json!({
        "purchase": link("purchase", post), "cancel": link("cancel", delete), "extend": link("extend", extend)
    });
    document["paths"]["/checkout"]["post"]["responses"]["200"]["links"] = links;
    // Two groups, because 501 has an answer in each.
    let shared: Map<String, Value> = [by_status(&unmatched), by_status(&common)]
        .into_iter()
        .flat_map(BTreeMap::into_values)
        .map(|answers| (answers[0].reason().to_owned(), response(&answers, json!({}), !follows_parsing(&answers[0]))))
        .collect();
    let unmatched: Map<String, Value> =
        by_status(&unmatched).into_iter().map(|(code, answers)| (code.to_owned(), reference(&answers[0]))).collect();
    document["paths"]["x-otherwise"] = json!({"responses": unmatched});
    schemas.subschema_for::<bodies::ProblemDetails>();
    document["info"]["version"] = VERSION.into();
    document["components"]["responses"] = shared.into();
    document["components"]["schemas"] = schemas.take_definitions(true).into();
    document
}

/// Returns whether this answer belongs to requests that match no operation.
fn matches_no_operation(answer: &Answer) -> bool {
    use Problem::*;
    matches!(answer, Answer::Refused(NotFound | OnlyGet | OnlyPost | OnlyPostOrDelete | UnknownMethod))
}

/// Returns whether the request has been parsed before this answer, which can then return the id of the request.
fn follows_parsing(answer: &Answer) -> bool {
    matches_no_operation(answer) && *answer != Answer::Refused(Problem::UnknownMethod)
}

/// Groups answers by their status code, each answer once.
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

/// Describes the answers of an operation. `common` has the answers that any request can get.
fn responses(operation: Operation, common: &[Answer], schemas: &mut SchemaGenerator) -> Value {
    let answers = operation.answers();
    let response = |(code, answers): (&str, Vec<Answer>)| {
        let is_common = answers.iter().all(|answer| common.contains(answer));
        let mut bodies = || success_bodies(operation, answers[0], schemas);
        (code.to_owned(), if is_common { reference(&answers[0]) } else { response(&answers, bodies(), false) })
    };
    Value::Object(by_status(answers.iter().chain(common)).into_iter().map(response).collect())
}

fn reference(answer: &Answer) -> Value {
    json!({"$ref": format!("#/components/responses/{}", answer.reason())})
}

/// Describes the answers with one status code: the bodies in `content`, by content type, and the problems. An early
/// answer precedes the parsing of the request, so it cannot return the id of the request.
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
    let described = |name: &'static str| match name {
        "Retry-After" if problems.contains(&Problem::AllReserved) => "Retry-After-All-Reserved",
        _ => name,
    };
    let headers: Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{}", described(name))})))
        .collect();
    let mut response = json!({"description": lines.join("\n"), "headers": headers});
    if content != json!({}) {
        response["content"] = content;
    }
    response
}

fn header_names(answers: &[Answer], problems: &[Problem], content: &Value, is_early: bool) -> Vec<&'static str> {
    let mut names = vec!["Date"];
    let is_stream = content.get("text/event-stream").is_some();
    if !is_early {
        names.push("X-Request-Id");
    }
    if !is_early && !is_stream {
        names.push("Keep-Alive");
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
    if is_stream {
        names.push("X-Accel-Buffering");
    }
    names
}

const CODE: &str = "00002a9c-04e1-86c4-ae9f-b285fb710516";
const SALE: SaleId = SaleId(498_692);
const ITEM: ItemId = ItemId(42);

/// Returns the bodies of an answer that is no refusal, by content type.
fn success_bodies(operation: Operation, answer: Answer, schemas: &mut SchemaGenerator) -> Value {
    let (ready, status) =
        if answer == Answer::Ok { (true, bodies::Doing::Serving) } else { (false, bodies::Doing::Recovering) };
    match (operation, answer) {
        (_, Answer::NoContent | Answer::Unchanged | Answer::Refused(_)) => json!({}),
        (Operation::Checkout, _) => {
            let mut content = as_json(&reservation("2026-11-21T20:00:30.000Z"), schemas);
            let code = json!({"type": "string", "format": "uuid", "description": "The code."});
            content["text/plain"] = json!({"schema": code, "example": CODE});
            content
        }
        (Operation::Purchase, _) => as_json(&receipt(), schemas),
        (Operation::Extend, _) => as_json(&reservation("2026-11-21T20:10:30.000Z"), schemas),
        (Operation::Sale, _) => as_json(&bodies::CurrentSale { sale: sale(), phase: None }, schemas),
        (Operation::Sales, _) => {
            let (sales_total, offset, limit) = (1, 0, 50);
            as_json(&bodies::SaleList { sales_total, offset, limit, sales: vec![one_sale()] }, schemas)
        }
        (Operation::OneSale, _) => as_json(&one_sale(), schemas),
        (Operation::Events, _) => {
            let bodies::Sale { sale_id, sold, reserved, available, .. } = sale();
            let stock = bodies::StockEvent { sale_id, sold, reserved, available };
            schemas.subschema_for::<bodies::StockEvent>();
            let (sale, stock) = (json!(sale()), json!(stock));
            let example = format!("retry: 1000\n\nevent: sale\ndata: {sale}\n\nevent: stock\ndata: {stock}\n\n");
            json!({"text/event-stream": {"schema": {"type": "string"}, "example": example}})
        }
        (Operation::Products, _) => {
            let (products_total, offset, limit, products) = (8, 0, 1, vec![product()]);
            as_json(&bodies::ProductList { sale_id: SALE.0, products_total, offset, limit, products }, schemas)
        }
        (Operation::Product, _) => as_json(&bodies::OneProduct { sale_id: SALE.0, product: product() }, schemas),
        (Operation::Items, _) => {
            let (offset, limit) = (ITEM.0, 1);
            let (sale_id, product_id, items_total, items) = (SALE.0, None, 10_000, vec![item()]);
            as_json(&bodies::Items { sale_id, product_id, items_total, offset, limit, items }, schemas)
        }
        (Operation::Item, _) => as_json(&bodies::OneItem { sale_id: SALE.0, item: item() }, schemas),
        (Operation::Image, _) => {
            let example = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 200 200'></svg>";
            json!({"image/svg+xml": {"schema": {"type": "string"}, "example": example}})
        }
        (Operation::Live, _) => as_json(&bodies::Live { live: true, version: VERSION }, schemas),
        (Operation::Ready, _) => {
            as_json(&bodies::Ready { ready, status, kind: None, postgres: Some(postgres()) }, schemas)
        }
        (Operation::Health, _) => as_json(&health(ready, status), schemas),
        (Operation::Api, _) => json!({"application/json": {"schema": {"type": "object"}}}),
        (Operation::Cancel | Operation::Shop | Operation::Options | Operation::Unknown, _) => json!({}),
    }
}

fn as_json<T: Serialize + JsonSchema>(example: &T, schemas: &mut SchemaGenerator) -> Value {
    json!({"application/json": {"schema": schemas.subschema_for::<T>(), "example": example}})
}

fn reservation(expires_at: &str) -> bodies::Reservation<'static> {
    let unit = bodies::PlannedUnit::default();
    bodies::Reservation { code: CODE, sale_id: SALE.0, item_id: ITEM.0, unit, expires_at: expires_at.to_owned() }
}

fn receipt() -> Receipt {
    Receipt::new(SALE, ITEM, bodies::PlannedUnit::default())
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

fn one_sale() -> bodies::OneSale {
    let plan = bodies::SaleInPlan::default();
    bodies::OneSale { phase: bodies::SalePhase::Open, sale: sale(), plan }
}

fn product() -> bodies::ListedProduct {
    bodies::ListedProduct {
        product_id: "aurora-38",
        name: "Aurora Low, EU 38",
        image: Some("https://cdn.example/aurora.jpg"),
        price: Some("129 €"),
        items_total: 150,
        sold: 1,
        reserved: 0,
        available: 149,
        first_item_id: 0,
        units_named: false,
    }
}

fn item() -> bodies::Item {
    let (name, image) = (ItemName(SALE, ITEM), ItemImage(ITEM));
    let unit = bodies::PlannedUnit::default();
    bodies::Item { item_id: ITEM.0, unit, name, image, state: Availability::Sold }
}

fn health(ready: bool, status: bodies::Doing) -> bodies::Health {
    let shard = bodies::ShardHealth {
        shard: 0,
        connections: 2,
        log_records: 3,
        log_records_durable: 3,
        log_blocks_free: 1000,
        attempts_durable: 1,
        attempts_unrecorded: 0,
    };
    let sale = ready.then(|| bodies::CurrentSale { sale: sale(), phase: None });
    let (postgres, owner, shards) = (Some(postgres()), None, vec![shard]);
    bodies::Health { status, version: VERSION, live: true, ready, sale, postgres, owner, shards }
}

fn postgres() -> bodies::Postgres {
    bodies::Postgres { connected: true, records_behind: Some(0), seconds_behind: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::operation::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX};
    use crate::sale::code::ITEMS_MAX;

    #[test]
    fn the_texts_belong_to_the_operations_and_their_limits() {
        let texts: Value = serde_json::from_str(TEXTS).unwrap();
        let described = texts["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.as_str()))
        });
        let mut described: Vec<_> = described.collect();
        let known = Operation::VARIANTS.iter().filter(|operation| operation.is_described());
        let mut known: Vec<_> = known.map(|operation| (operation.route().0.to_owned(), operation.route().1)).collect();
        described.sort_unstable();
        known.sort_unstable();
        assert_eq!(described, known);
        let schema =
            |method: &str, path: &str, at: usize| texts["paths"][path][method]["parameters"][at]["schema"].clone();
        assert_eq!(schema("post", "/checkout", 0)["maximum"], i64::MAX);
        assert_eq!(schema("post", "/checkout", 1)["maximum"], ITEMS_MAX - 1);
        assert_eq!(schema("get", "/items/{id}", 0)["maximum"], ITEMS_MAX - 1);
        assert_eq!(schema("get", "/items/{id}/image.svg", 1)["maximum"], u32::MAX);
        for list in ["/items", "/products", "/sales"] {
            assert_eq!(schema("get", list, 0)["maximum"], u32::MAX);
            let limit = schema("get", list, 1);
            assert_eq!((&limit["maximum"], &limit["default"]), (&json!(PAGE_ITEMS_MAX), &json!(PAGE_ITEMS_DEFAULT)));
        }
    }
}
