//! The products and units of items, for `--plan`. The log has only a fingerprint of the products of a sale, so a plan that
//! describes a sale otherwise than it was sold names nothing.

use crate::plan::catalogue::{Catalogue, CatalogueUnit};
use crate::plan::planned_sale::{LoadedPlan, PlannedSale};
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::record::{LogEvent, Record};
use std::collections::BTreeMap;

/// The products of a plan, for the sales that were sold as it says.
pub struct UnitNames {
    plan: LoadedPlan,
    catalogue: Catalogue,
    /// Whether each sale of the plan that has opened was sold as the plan says.
    opened: BTreeMap<SaleId, bool>,
}

impl UnitNames {
    /// Creates the names of a plan. It names nothing of a sale until the record of its opening is noted.
    pub fn new(plan: LoadedPlan) -> UnitNames {
        UnitNames { plan, catalogue: Catalogue::new(plan.plan), opened: BTreeMap::new() }
    }

    /// Creates the names of the sale that a record opens, if there is one.
    pub fn of(plan: LoadedPlan, opened: Option<&Record>) -> UnitNames {
        let mut names = UnitNames::new(plan);
        opened.into_iter().for_each(|opened| names.note(opened));
        names
    }

    /// Notes the record of an opening. Other records have no effect.
    pub fn note(&mut self, record: &Record) {
        if let LogEvent::SaleOpened { items, products, .. } = record.event
            && self.plan.sale(record.sale).is_some()
        {
            self.opened.insert(record.sale, self.plan.sold_as(record.sale, items, products).is_some());
        }
    }

    /// Returns the product and the name of an item, if the sale was sold as the plan says.
    pub fn unit(&self, sale: SaleId, item: ItemId) -> Option<CatalogueUnit> {
        self.sale(sale).and_then(|_| self.catalogue.unit(sale, item))
    }

    /// Returns the sale of the plan, if it was sold as the plan says.
    pub fn sale(&self, sale: SaleId) -> Option<&'static PlannedSale> {
        self.opened.get(&sale).copied().unwrap_or(false).then(|| self.plan.sale(sale)).flatten()
    }

    /// Returns a sentence about the sales that the plan describes otherwise than they were sold, if there are any.
    pub fn complaint(&self) -> Option<String> {
        let others = self.opened.iter().filter(|(_, is_same)| !**is_same).map(|(sale, _)| sale.0.to_string());
        let others: Vec<_> = others.collect();
        (!others.is_empty()).then(|| {
            let (file, sales) = (self.plan.file, others.join(", "));
            format!("{file} has other products than were sold, so none are named: sale {sales}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;
    use crate::sale::record::SaleTimes;

    #[test]
    fn only_what_was_sold_is_named() {
        let sale = |id: u32| {
            format!(
                "[[sale]]\nid = {id}\nname = \"S\"\nopens = 2026-12-0{id}T00:00:00Z\ncloses = 2026-12-0{id}T02:00:00Z\n\
                 user_limit = 1\nproduct = [{{ id = \"seat\", name = \"Seat\", units = [\"A1\", \"A2\"] }}]\n"
            )
        };
        let text = [4, 5, 6].map(sale).concat();
        let plan = read_plan(&PlanText::new("x.toml", text), &|_| Err("no lists".into())).unwrap();
        let plan = LoadedPlan::keep("x.toml", plan);
        let mut names = UnitNames::new(plan);
        let unit = |names: &UnitNames, sale, item| {
            names.unit(SaleId(sale), ItemId(item)).map(|unit| (&*unit.product.id, unit.name))
        };
        assert_eq!((unit(&names, 4, 1), names.complaint()), (None, None), "its opening is not known");
        let products = plan.series[0].first.products.fingerprint();
        for (sale, products) in [(4, products), (5, products + 1), (7, products)] {
            let times = Some(SaleTimes { opens_ms: 1, closes_ms: 2 });
            let event = LogEvent::SaleOpened { items: 2, user_limit: 1, times, products };
            names.note(&Record { sale: SaleId(sale), unix_ms: 1, event });
        }
        assert_eq!([unit(&names, 4, 1), unit(&names, 4, 2)], [Some(("seat", Some("A2"))), None]);
        assert_eq!([5, 6, 7].map(|sale| unit(&names, sale, 1)), [None; 3]);
        assert_eq!(names.complaint().unwrap(), "x.toml has other products than were sold, so none are named: sale 5");
    }
}
