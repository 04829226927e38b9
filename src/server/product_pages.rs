//! The pages of the products of a plan: what the plan says of them, and the counts that the shards publish.

use crate::http::bodies::{ListedProduct, OneProduct, ProductList};
use crate::http::operation::Answer;
use crate::http::pages::{ListPart, ProductChoice, ProductPage};
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::operate::status::Status;
use crate::plan::planned_sale::{Product, Units};
use crate::sale::ids::{ShardId, Terms};
use crate::sale::product_ranges::ProductIndex;
use crate::server::item_pages::OnSale;

/// Writes a page of products.
pub fn write(
    ProductPage { sale, of }: ProductPage,
    status: &Status,
    on_sale: &OnSale<'_>,
    style: Style,
    responder: &mut Responder,
    out: &mut Vec<u8>,
) -> Answer {
    let terms = match on_sale.chosen(sale) {
        Ok(terms) => terms,
        Err(problem) => return responder.problem(problem, style, out),
    };
    let planned = responder.site().catalogue.and_then(|catalogue| catalogue.sale(terms.sale));
    let Some(products) = planned.map(|planned| &*planned.products) else {
        return responder.problem(Problem::NotFound, style, out);
    };
    let listed = |index: usize| listed(&products[index], ProductIndex(index as u16), terms, status, on_sale);
    let sale_id = terms.sale.0;
    match of {
        ProductChoice::Part(part) => {
            let list = || {
                let (ListPart { offset, limit }, products_total) = (part, products.len() as u32);
                let products = part.of(products_total).map(|index| listed(index as usize)).collect();
                ProductList { sale_id, products_total, offset, limit, products }
            };
            responder.json(Answer::Ok, list, style, out)
        }
        ProductChoice::One(id) => match products.iter().position(|product| product.number == id) {
            Some(index) => responder.json(Answer::Ok, || OneProduct { sale_id, product: listed(index) }, style, out),
            None => responder.problem(Problem::NotFound, style, out),
        },
    }
}

fn listed(
    product: &'static Product,
    index: ProductIndex,
    terms: Terms,
    status: &Status,
    on_sale: &OnSale<'_>,
) -> ListedProduct {
    let (sold, reserved) = if terms.products.count() > 1 {
        let counts = |shard| on_sale.item_states.products.read(ShardId(shard), terms.sale, index);
        let shards = (0..status.shards.len() as u16).map(counts);
        shards.fold((0, 0), |(sold, reserved), shard| (sold + shard.sold, reserved + shard.reserved))
    } else {
        // The counts of a single product are those of its sale.
        let counts = status.sales(terms.sale);
        (counts.sold, counts.reserved)
    };
    let items_total = product.units.count();
    ListedProduct {
        product_id: &product.id,
        name: &product.name,
        image: product.image.as_deref(),
        price: product.price.as_deref(),
        items_total,
        sold,
        reserved,
        // Shards publish one after the other, so the sums are not a snapshot of one moment.
        available: items_total.saturating_sub(sold + reserved),
        first_item_id: product.first,
        units_named: matches!(product.units, Units::Named(_)),
    }
}
