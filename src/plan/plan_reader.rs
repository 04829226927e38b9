//! Reads a plan: the text of its TOML file, and the lists of units beside it.
//!
//! All mistakes of a plan are reported at once. A value that is wrong is replaced by one that is never used, so that the
//! rest of its table is read as well.

use crate::plan::mistakes::{Mistakes, PlanRefused, PlanText};
use crate::plan::plan_sequence;
use crate::plan::plan_time::in_units;
use crate::plan::planned_sale::{PLANNED_SALES_MAX, PlannedSale, Product, Repetition, SalePlan, Units};
use crate::plan::toml_keys::{NAME_CHARS_MAX, Placed, PlanSource, TomlKeys, plain, text};
use crate::plan::unit_list::read_units;
use crate::sale::code::ITEMS_MAX;
use crate::sale::ids::SaleId;
use crate::sale::parts::ENDED_MAX;
use crate::sale::product_ranges::{PRODUCTS_MAX, ProductId};
use crate::sale::rules::{HOLD_MAX, PERIOD_MAX};
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// Maximum number of characters of a product's id.
pub const PRODUCT_ID_CHARS_MAX: usize = 64;
/// Maximum number of characters of a price.
const PRICE_CHARS_MAX: usize = 40;
/// Maximum number of characters of an image's address, and of the path of a list.
const ADDRESS_CHARS_MAX: usize = 500;

const SALE_KEYS: &[&str] = &[
    "id",
    "name",
    "opens",
    "closes",
    "user_limit",
    "reservation_ttl",
    "extension",
    "paused",
    "every",
    "until",
    "product",
];
const PRODUCT_KEYS: &[&str] = &["id", "name", "image", "price", "quantity", "units", "units_file"];

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// Duration of a hold, unless the plan sets it: the default of `--reservation-ttl`.
const TTL_MS: u64 = 30_000;

/// Returns the content of a file that a plan names, by its path below the plan's folder, or why it cannot be read.
pub type Lists<'a> = &'a dyn Fn(&Path) -> Result<Vec<u8>, String>;

/// Reads a plan and the lists of units that it names.
///
/// # Errors
/// Every mistake of the plan and of the lists.
pub fn read_plan(file: &PlanText, lists: Lists) -> Result<SalePlan, PlanRefused> {
    let mistakes = Mistakes::default();
    let (document, errors) = DeTable::parse_recoverable(&file.text);
    let mut broken = Vec::new();
    for error in &errors {
        let at = error.span().unwrap_or(file.text.len()..file.text.len());
        broken.push(file.line(at.start));
        mistakes.add(file, at, format!("this is not TOML: {}", plain(error.message())));
    }
    let source = PlanSource { text: file, mistakes: &mistakes, broken };
    let mut plan = SalePlan::default();
    let root = TomlKeys::new(&source, "plan", document.get_ref(), 0..0, &["sale"]);
    let tables = root.tables("sale", "sale");
    if tables.is_empty() && mistakes.is_empty() {
        root.mistake("this plan has no sale; begin one with [[sale]]");
    }
    if let Some(surplus) = tables.get(PLANNED_SALES_MAX) {
        let many =
            format!("this is sale {} of the plan; at most {PLANNED_SALES_MAX} are allowed", PLANNED_SALES_MAX + 1);
        source.mistake(surplus.at.clone(), many);
    }
    let mut places = Vec::new();
    for table in tables.iter().take(PLANNED_SALES_MAX) {
        let keys = TomlKeys::new(&source, "sale", table.value, table.at.clone(), SALE_KEYS);
        if let Some((sale, place)) = read_sale(&source, &keys, lists) {
            plan.sales.push(sale);
            places.push(place);
        }
    }
    plan_sequence::check(&source, &plan.sales, &places);
    plan.sales.sort_by_key(|sale| sale.id);
    plan.number_products();
    mistakes.report().map_or(Ok(plan), Err)
}

/// Returns the sale of a table, and the place of its id, unless one of those is missing that the sequence of sales needs.
fn read_sale(source: &PlanSource, keys: &TomlKeys, lists: Lists) -> Option<(PlannedSale, std::ops::Range<usize>)> {
    ["id", "name", "opens", "closes", "user_limit"].into_iter().for_each(|key| keys.require(key));
    let (id, name) = (keys.number("id", 1..=u32::MAX), keys.text("name", NAME_CHARS_MAX));
    let (opens, closes) = (keys.time("opens"), keys.time("closes"));
    let user_limit = keys.number("user_limit", 1..=ITEMS_MAX);
    let ttl = keys.duration("reservation_ttl", MILLISECOND..=HOLD_MAX / 2, MILLISECOND);
    let extension = keys.duration("extension", Duration::ZERO..=HOLD_MAX / 2, MILLISECOND);
    let is_paused = keys.switch("paused").is_some_and(|paused| paused.value);
    let repetition = read_repetition(source, keys, opens.as_ref());
    let products = read_products(source, keys, lists);
    let (id, opens, closes) = (id?, opens?, closes?);
    let sale = PlannedSale {
        id: SaleId(id.value),
        name: name.map(|name| name.value).unwrap_or_default(),
        opens_ms: opens.value,
        closes_ms: closes.value,
        repetition,
        user_limit: user_limit.map_or(1, |limit| limit.value),
        ttl_ms: ttl.map_or(TTL_MS, |ttl| ttl.value) as u32,
        extension_ms: extension.map_or(0, |extension| extension.value) as u32,
        is_paused,
        products,
        line: source.text.line(keys.place().start),
    };
    check_times(source, &sale, closes.at);
    if sale.units() > ITEMS_MAX {
        keys.mistake(format_args!("this sale has {} units; at most {ITEMS_MAX} are allowed", sale.units()));
    }
    Some((sale, id.at))
}

/// Reports times of a sale that do not fit together.
fn check_times(source: &PlanSource, sale: &PlannedSale, closes_at: std::ops::Range<usize>) {
    let open_ms = sale.closes_ms.saturating_sub(sale.opens_ms);
    if open_ms == 0 {
        source.mistake(closes_at, "\"closes\" is not after \"opens\"");
    } else if open_ms > PERIOD_MAX.as_millis() as u64 {
        let most = in_units(PERIOD_MAX.as_millis() as u64);
        source.mistake(closes_at, format_args!("\"closes\" is {} after \"opens\"; at most {most}", in_units(open_ms)));
    } else if let Some(Repetition { every_ms, .. }) = sale.repetition
        && open_ms > every_ms
    {
        let text = format!(
            "the sale closes {} after it opens, but opens again after {}",
            in_units(open_ms),
            in_units(every_ms)
        );
        source.mistake(closes_at, text);
    } else if let Some(Repetition { every_ms, .. }) = sale.repetition {
        let (hold_ms, most_ms) =
            (u64::from(sale.ttl_ms) + u64::from(sale.extension_ms), every_ms * u64::from(ENDED_MAX));
        if hold_ms > most_ms {
            let text =
                format!("a hold can last {}, longer than {ENDED_MAX} sales one after another", in_units(hold_ms));
            source.mistake(closes_at, text);
        }
    }
}

fn read_repetition(source: &PlanSource, keys: &TomlKeys, opens: Option<&Placed<u64>>) -> Option<Repetition> {
    let every = keys.duration("every", SECOND..=PERIOD_MAX, SECOND);
    let until = keys.time("until");
    if let Some(until) = &until {
        if !keys.has("every") {
            source.mistake(until.at.clone(), "\"until\" ends the repetition of a sale, but this one has no \"every\"");
        } else if opens.is_some_and(|opens| until.value <= opens.value) {
            source.mistake(until.at.clone(), "\"until\" is not after \"opens\"");
        }
    }
    Some(Repetition { every_ms: every?.value, until_ms: until.map(|until| until.value) })
}

fn read_products(source: &PlanSource, keys: &TomlKeys, lists: Lists) -> Vec<Product> {
    let tables = keys.tables("product", "sale.product");
    if tables.is_empty() && !keys.has("product") {
        keys.mistake("this sale has no product; begin one with [[sale.product]]");
    }
    if let Some(surplus) = tables.get(PRODUCTS_MAX) {
        let many = format!("this is product {} of the sale; at most {PRODUCTS_MAX} are allowed", PRODUCTS_MAX + 1);
        source.mistake(surplus.at.clone(), many);
    }
    let (mut products, mut lines, mut first) = (Vec::new(), BTreeMap::new(), 0_u32);
    for table in tables.iter().take(PRODUCTS_MAX) {
        let keys = TomlKeys::new(source, "product", table.value, table.at.clone(), PRODUCT_KEYS);
        ["id", "name"].into_iter().for_each(|key| keys.require(key));
        let id = keys.get("id", product_id);
        if let Some(id) = &id
            && let Some(line) = lines.insert(id.value.clone(), source.text.line(id.at.start))
        {
            source
                .mistake(id.at.clone(), format_args!("the product in line {line} has the id \"{}\" already", id.value));
        }
        let name = keys.text("name", NAME_CHARS_MAX);
        let image = keys.get("image", image).map(|image| image.value);
        let price = keys.text("price", PRICE_CHARS_MAX).map(|price| price.value);
        let units = read_stock(source, &keys, lists);
        let [id, name] = [id, name].map(|text| text.map(|text| text.value).unwrap_or_default());
        let product = Product { id, name, image, price, units, first, number: ProductId::FIRST };
        first = product.numbers().end;
        products.push(product);
    }
    products
}

fn product_id(value: &DeValue) -> Result<String, String> {
    let id = text(value, PRODUCT_ID_CHARS_MAX)?;
    match id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        true => Ok(id),
        false => Err(format!(
            "is \"{id}\"; give letters a to z, digits, \"-\", \"_\" and \".\", because it is part of addresses"
        )),
    }
}

fn image(value: &DeValue) -> Result<String, String> {
    let image = text(value, ADDRESS_CHARS_MAX)?;
    let is_address = image.starts_with("https://") || image.starts_with('/') && !image.starts_with("//");
    match is_address && image.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'<>\\`".contains(&byte)) {
        true => Ok(image),
        false => Err(format!("is \"{image}\"; give an address that begins with https:// or /, percent-encoded")),
    }
}

/// Returns the units of a product: a quantity, a list in the plan, or a list beside it.
fn read_stock(source: &PlanSource, keys: &TomlKeys, lists: Lists) -> Units {
    let given: Vec<&str> = ["quantity", "units", "units_file"].into_iter().filter(|key| keys.has(key)).collect();
    match given[..] {
        [] if source.broken.is_empty() => {
            keys.mistake("this product has no units; give \"quantity\", \"units\" or \"units_file\"")
        }
        [one, other, ..] => {
            keys.mistake(format_args!("this product has both \"{one}\" and \"{other}\"; give one of them"))
        }
        _ => {}
    }
    let named = read_names(source, keys).or_else(|| read_list(source, keys, lists));
    let quantity = keys.number("quantity", 1..=ITEMS_MAX).map_or(0, |quantity| quantity.value);
    named.map_or(Units::Quantity(quantity), Units::Named)
}

fn read_names(source: &PlanSource, keys: &TomlKeys) -> Option<Vec<String>> {
    let list =
        keys.get("units", |value| value.as_array().ok_or("is no list; give names like [\"A1\", \"A2\"]".to_owned()))?;
    if list.value.is_empty() {
        source.mistake(list.at, "\"units\" is empty; a product has at least one unit");
    }
    let mut lines = BTreeMap::new();
    for unit in list.value.iter() {
        match text(unit.get_ref(), NAME_CHARS_MAX) {
            Ok(name) if lines.contains_key(&name) => {
                source.mistake(unit.span(), format_args!("unit \"{name}\" is in line {} already", lines[&name]));
            }
            Ok(name) => _ = lines.insert(name, source.text.line(unit.span().start)),
            Err(why) => source.mistake(unit.span(), format_args!("this unit {why}")),
        }
    }
    let names = list.value.iter().filter_map(|unit| unit.get_ref().as_str());
    Some(names.map(str::to_owned).collect())
}

fn read_list(source: &PlanSource, keys: &TomlKeys, lists: Lists) -> Option<Vec<String>> {
    let (name, content) = keys
        .get("units_file", |value| {
            let name = text(value, ADDRESS_CHARS_MAX)?;
            let path = Path::new(&name);
            // A plan and its lists can be copied together, and a plan cannot make the server read any other file.
            if !path.components().all(|component| matches!(component, Component::Normal(_))) {
                return Err(format!("is \"{name}\"; give the path of a file in the plan's folder or below it"));
            }
            let content = lists(path).map_err(|why| format!("is \"{name}\", which cannot be read: {why}"))?;
            Ok((name, content))
        })?
        .value;
    // The name of the file is shown as the plan's is, so that an editor finds it.
    let shown = Path::new(&source.text.name).with_file_name(&name).display().to_string();
    match PlanText::from_bytes(&shown, content) {
        Ok(list) => Some(read_units(&list, source.mistakes)),
        Err(mistake) => {
            source.mistakes.add_found(mistake);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A plan without mistakes, whose lines the cases below replace.
    const GOOD: &str = r#"[[sale]]
id = 7
name = "Drop"
opens = 2026-12-01T18:00:00+01:00
closes = 2026-12-01T20:00:00+01:00
user_limit = 2
reservation_ttl = "2m"
extension = "10m"
paused = true
[[sale.product]]
id = "shoe-42"
name = "Shoe, 42"
image = "/shoe.jpg"
price = "129 €"
quantity = 500
[[sale.product]]
id = "seat"
name = "Seat"
units = ["A1", "A2"]
"#;

    fn lists(path: &Path) -> Result<Vec<u8>, String> {
        match path.to_str() {
            Some("seats.csv") => Ok(b"unit\nA1\nA2\nA3\n".to_vec()),
            Some("lists/twice.csv") => Ok(b"unit\nA1\nA1\n".to_vec()),
            Some("latin.csv") => Ok(b"unit\nA1\n\xc41\n".to_vec()),
            _ => Err("No such file".into()),
        }
    }

    fn read(text: &str) -> Result<SalePlan, PlanRefused> {
        read_plan(&PlanText::new("plans/x.toml", text.into()), &lists)
    }

    /// Returns the mistakes of a plan, each with its place. Lines of the plan count from `first`.
    fn mistakes(text: &str, first: usize) -> Vec<String> {
        let found = read(text).map_or_else(|refused| refused.mistakes, |_| Vec::new());
        let found = found.iter().map(|found| match found.file.strip_prefix("plans/") {
            Some("x.toml") => format!("{:+}:{}: {}", found.line as isize - first as isize, found.column, found.text),
            file => format!("{}:{}:{}: {}", file.unwrap_or(&found.file), found.line, found.column, found.text),
        });
        found.collect()
    }

    #[test]
    fn a_plan_is_read() {
        let plan = read(GOOD).unwrap();
        let [sale] = &plan.sales[..] else { panic!("{plan:?}") };
        assert_eq!((sale.id, &*sale.name, sale.line), (SaleId(7), "Drop", 1));
        assert_eq!((sale.opens_ms, sale.closes_ms), (1_796_144_400_000, 1_796_151_600_000));
        assert_eq!((sale.user_limit, sale.ttl_ms, sale.extension_ms, sale.is_paused), (2, 120_000, 600_000, true));
        assert_eq!((sale.units(), sale.repetition), (502, None));
        let [shoe, seat] = &sale.products[..] else { panic!("{sale:?}") };
        assert_eq!((shoe.numbers(), seat.numbers()), (0..500, 500..502));
        assert_eq!((shoe.image.as_deref(), shoe.price.as_deref()), (Some("/shoe.jpg"), Some("129 €")));
        assert_eq!(seat.units, Units::Named(vec!["A1".into(), "A2".into()]));
        let listed = GOOD.replace("units = [\"A1\", \"A2\"]", "units_file = \"seats.csv\"");
        assert_eq!(read(&listed).unwrap().sales[0].units(), 503);
        let short = GOOD.replace("reservation_ttl = \"2m\"", "");
        assert_eq!(u64::from(read(&short).unwrap().sales[0].ttl_ms), TTL_MS);
    }

    /// The file has a case in each paragraph: the beginning of a line of [`GOOD`], the lines that replace it, and the
    /// mistakes that must be reported, each with its place from the replaced line on.
    #[test]
    fn each_mistake_is_named_with_its_place_and_remedy() {
        let cases = include_str!("wrong_lines.txt").split("\n\n");
        let (mut tried, mut failed) = (0, Vec::new());
        for case in cases {
            let mut lines = case.lines();
            let key = lines.next().and_then(|line| line.strip_prefix("replace ")).expect(case);
            let (expected, wrong): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("= "));
            let first = GOOD.lines().position(|line| line.starts_with(key)).expect(case);
            let mut plan: Vec<_> = GOOD.lines().collect();
            plan.splice(first..=first, wrong.iter().copied());
            let found: Vec<_> =
                mistakes(&plan.join("\n"), first + 1).iter().map(|found| format!("= {found}")).collect();
            tried += 1;
            if found != expected {
                failed.push(format!("{}\n{}", wrong.join("\n"), found.join("\n")));
            }
        }
        assert!(failed.is_empty(), "not as expected:\n{}", failed.join("\n\n"));
        assert!(tried > 60, "{tried} cases were found");
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let plan = GOOD.replace("closes =", "until =").replace("quantity = 500", "").replace("\"A2\"", "\"A1\"");
        let found = mistakes(&plan, 1);
        assert_eq!(found.len(), 4, "{found:#?}");
    }

    #[test]
    fn the_bounds_of_a_plan_hold() {
        let product = |id: usize| format!("[[sale.product]]\nid = \"p{id}\"\nname = \"P\"\nquantity = 1\n");
        let products = |count| (0..count).map(product).collect::<String>();
        let sale = |id: usize| {
            let date = format!("{:04}-01-01", 2000 + id);
            format!(
                "[[sale]]\nid = {id}\nname = \"S\"\nopens = {date}T00:00:00Z\ncloses = {date}T01:00:00Z\nuser_limit = 1\n"
            )
        };
        let many = |count| (1..=count).map(|id| sale(id) + &product(0)).collect::<String>();
        let wide = |count| sale(1) + &products(count);
        let big = |first: u32| format!("{}{}", sale(1), products(2).replacen("= 1\n", &format!("= {first}\n"), 1));
        for (fits, exceeds, why) in [
            (many(PLANNED_SALES_MAX), many(PLANNED_SALES_MAX + 1), "this is sale 257 of the plan"),
            (wide(PRODUCTS_MAX), wide(PRODUCTS_MAX + 1), "this is product 1025 of the sale"),
            (big(ITEMS_MAX - 1), big(ITEMS_MAX), "this sale has 16777217 units; at most 16777216"),
        ] {
            assert!(mistakes(&fits, 1).is_empty(), "{:?}", mistakes(&fits, 1));
            let found = mistakes(&exceeds, 1);
            assert!(found.len() == 1 && found[0].contains(why), "{found:?}");
        }
    }

    proptest! {
        /// Any bytes are a plan or have mistakes, and a part of a plan in the place of another one as well.
        #[test]
        fn no_bytes_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0..GOOD.len(),
            end in 0..GOOD.len(),
            at in 0..GOOD.len(),
        ) {
            let [cut, end, at] = [cut, end, at].map(|at| GOOD.floor_char_boundary(at));
            let mut spliced = GOOD.as_bytes().to_vec();
            spliced.splice(at..at, bytes.iter().copied());
            let mut moved = GOOD.to_owned();
            moved.insert_str(at, &GOOD[cut.min(end)..cut.max(end)]);
            for content in [bytes, spliced, moved.into_bytes()] {
                let any_list = |_: &Path| Ok(content.clone());
                let read = PlanText::from_bytes("x.toml", content.clone()).map_err(PlanRefused::from);
                let read = read.and_then(|text| read_plan(&text, &any_list));
                prop_assert!(read.map_or_else(|refused| !refused.to_string().is_empty(), |plan| !plan.sales.is_empty()));
            }
        }
    }
}
