//! The products of a plan, as requests and answers name them. It is made once from the plan and never changes.

use crate::plan::planned_sale::{PlannedSale, Product, SalePlan, Units};
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::product_ranges::ProductId;
use std::collections::BTreeMap;

/// The products of a plan.
#[derive(Debug)]
pub struct Catalogue {
    plan: &'static SalePlan,
    ids: BTreeMap<&'static str, ProductId>,
}

/// A unit of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogueUnit {
    /// The product.
    pub product: &'static Product,
    /// Name of the unit, if it has one.
    pub name: Option<&'static str>,
}

impl Catalogue {
    /// Creates the catalogue of the plan of this process.
    pub fn new(plan: &'static SalePlan) -> Self {
        let products = plan.sales.iter().flat_map(|sale| &sale.products);
        Catalogue { plan, ids: products.map(|product| (product.id.as_str(), product.number)).collect() }
    }

    /// Returns the number of the product id `text`, if a sale of the plan has such a product.
    pub fn product_id(&self, text: &[u8]) -> Option<ProductId> {
        self.ids.get(std::str::from_utf8(text).ok()?).copied()
    }

    /// Returns the sale of the plan that this is, or of which it is a repetition.
    pub fn sale(&self, id: SaleId) -> Option<&'static PlannedSale> {
        let place = self.plan.sales.partition_point(|sale| sale.id <= id).checked_sub(1)?;
        Some(&self.plan.sales[place]).filter(|sale| id <= sale.openings().last().sale)
    }

    /// Returns a unit of a sale, if the plan has it.
    pub fn unit(&self, sale: SaleId, item: ItemId) -> Option<CatalogueUnit> {
        let products = &self.sale(sale)?.products;
        let place = products.partition_point(|product| product.first <= item.0).checked_sub(1)?;
        let product = Some(&products[place]).filter(|product| product.numbers().contains(&item.0))?;
        let name = match &product.units {
            Units::Quantity(_) => None,
            Units::Named(names) => Some(names[(item.0 - product.first) as usize].as_str()),
        };
        Some(CatalogueUnit { product, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;

    #[test]
    fn products_and_units_are_found() {
        let sale = |id: u32, day: u32, products: &str| {
            format!(
                "[[sale]]\nid = {id}\nname = \"S\"\nopens = 2026-12-{day:02}T00:00:00Z\n\
                 closes = 2026-12-{day:02}T02:00:00Z\nuser_limit = 1\nproduct = [{products}]\n"
            )
        };
        let seat = "{ id = \"seat\", name = \"Seat\", units = [\"A1\", \"A2\"] }";
        let box_four = "{ id = \"box\", name = \"Box\", quantity = 3 }";
        let text = [sale(4, 1, &format!("{seat}, {box_four}")), sale(7, 2, box_four)].concat();
        let plan = read_plan(&PlanText::new("x.toml", text), &|_| Err("no lists".into())).unwrap();
        let catalogue = Catalogue::new(Box::leak(Box::new(plan)));
        let found = |sale, item| {
            let unit = catalogue.unit(SaleId(sale), ItemId(item))?;
            Some((unit.product.id.as_str(), unit.name))
        };
        assert_eq!([found(4, 0), found(4, 1)], [Some(("seat", Some("A1"))), Some(("seat", Some("A2")))]);
        assert_eq!([found(4, 2), found(4, 4), found(4, 5)], [Some(("box", None)), Some(("box", None)), None]);
        assert_eq!([found(7, 0), found(5, 0), found(3, 0)], [Some(("box", None)), None, None]);
        // Both sales have the same number for the same id.
        let ids: [Option<ProductId>; 3] = ["seat", "box", "Seat"].map(|text| catalogue.product_id(text.as_bytes()));
        let terms = [4, 7].map(|sale| catalogue.sale(SaleId(sale)).unwrap().series().first);
        let product_of = |at: usize, item| terms[at].products.id_of(item);
        assert_eq!(ids, [product_of(0, 1), product_of(0, 2), None]);
        assert_eq!(ids[1], product_of(1, 0));
    }
}
