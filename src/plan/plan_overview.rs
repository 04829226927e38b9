//! The overview of a plan that `stampede plan check` prints: its sales, and below them their products.

use crate::plan::plan_time::{in_units, in_utc};
use crate::plan::planned_sale::{PlannedSale, Product, Repetition, SalePlan, Units};
use crate::plan::text_table::table;

/// Returns the overview of a plan, whose file has this name.
pub fn overview(name: &str, plan: &SalePlan) -> String {
    let sales: Vec<_> = plan.sales.iter().map(sale_row).collect();
    let products: Vec<_> =
        plan.sales.iter().flat_map(|sale| sale.products.iter().map(|product| row(sale, product))).collect();
    let count = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let [sale_count, product_count] = [sales.len(), products.len()].map(|count| count as u64);
    format!(
        "{name}: {}, {}, {}\n\n{}\n{}",
        count(sale_count, "sale"),
        count(product_count, "product"),
        count(plan.units(), "unit"),
        table(
            &["sale", "name", "opens", "closes", "duration", "units", "limit", "hold", "extension", "remarks"],
            &sales
        ),
        table(&["sale", "product", "name", "units", "numbers", "price", "unit names"], &products)
    )
}

fn sale_row(sale: &PlannedSale) -> Vec<String> {
    vec![
        sale.id.0.to_string(),
        sale.name.clone(),
        in_utc(sale.opens_ms),
        in_utc(sale.closes_ms),
        in_units(sale.closes_ms - sale.opens_ms),
        sale.units().to_string(),
        sale.user_limit.to_string(),
        in_units(sale.ttl_ms.into()),
        if sale.extension_ms == 0 { "none".into() } else { in_units(sale.extension_ms.into()) },
        remarks(sale),
    ]
}

fn remarks(sale: &PlannedSale) -> String {
    let repeated = sale.repetition.map(|Repetition { every_ms, until_ms }| {
        let every = in_units(every_ms);
        let last = sale.openings().last();
        match until_ms {
            Some(_) => format!("every {every}, the last is {} at {}", last.sale.0, in_utc(last.opens_ms)),
            None => format!("every {every}"),
        }
    });
    let paused = sale.is_paused.then(|| "paused".to_owned());
    repeated.into_iter().chain(paused).collect::<Vec<_>>().join("; ")
}

fn row(sale: &PlannedSale, product: &Product) -> Vec<String> {
    let numbers = product.numbers();
    let names = match &product.units {
        Units::Named(names) => match &names[..] {
            [one] => one.clone(),
            [first, .., last] => format!("{first} … {last}"),
            [] => String::new(),
        },
        Units::Quantity(_) => String::new(),
    };
    vec![
        sale.id.0.to_string(),
        product.id.clone(),
        product.name.clone(),
        product.units.count().to_string(),
        format!("{} to {}", numbers.start, numbers.end - 1),
        product.price.clone().unwrap_or_default(),
        names,
    ]
}
