//! What a plan says: its sales, and the products that each of them sells.

use crate::plan::plan_time::FOREVER_MS;
use crate::sale::ids::{SaleId, Terms};
use crate::sale::product_ranges::{ProductId, ProductRanges, SaleProduct};
use crate::sale::sale_schedule::{SaleSchedule, SaleSeries, assign_layers};
use std::collections::BTreeMap;
use std::ops::Range;

/// Maximum number of sales in a plan. A repeated sale counts once.
pub const PLANNED_SALES_MAX: usize = 256;

/// The sales of a plan, in the order in which they open, which is that of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SalePlan {
    /// The sales.
    pub sales: Vec<PlannedSale>,
}

/// The plan of this process, with the name of its file. A process reads one plan, so it is never freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedPlan {
    /// Name of the file, as the operator wrote it.
    pub file: &'static str,
    /// The sales.
    pub plan: &'static SalePlan,
    /// The sales as the rules need them.
    pub series: &'static [SaleSeries],
}

impl LoadedPlan {
    /// Keeps a plan until the end of the process.
    pub fn keep(file: &str, plan: SalePlan) -> LoadedPlan {
        let mut series: Vec<SaleSeries> = plan.sales.iter().map(PlannedSale::series).collect();
        assign_layers(&mut series);
        LoadedPlan { file: file.to_owned().leak(), plan: Box::leak(Box::new(plan)), series: series.leak() }
    }

    /// Returns the sale of the plan of which this is a repetition, or which it is.
    pub fn sale(&self, id: SaleId) -> Option<&'static PlannedSale> {
        let place = self.plan.sales.partition_point(|sale| sale.id <= id).checked_sub(1)?;
        Some(&self.plan.sales[place]).filter(|_| id <= self.series[place].last().sale)
    }

    /// Returns the sale of the plan, if it sells what a record says of the sale that has opened: the number of its `items`,
    /// and the fingerprint of its `products`. A sale that was begun without a plan has none.
    pub fn sold_as(&self, id: SaleId, items: u32, products: u64) -> Option<&'static PlannedSale> {
        let terms = SaleSchedule::Planned(self.series).terms(id)?;
        let is_same = terms.items == items && [Terms::NO_PRODUCTS, terms.products.fingerprint()].contains(&products);
        self.sale(id).filter(|_| is_same)
    }

    /// Returns the line in which a sale begins.
    pub fn line(&self, id: SaleId) -> Option<usize> {
        self.sale(id).map(|sale| sale.line)
    }
}

/// A sale of a plan, or a sequence of sales with the same terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSale {
    /// Id of the sale. Each repetition has the next id.
    pub id: SaleId,
    /// Name for people.
    pub name: String,
    /// Opening time, in milliseconds since the Unix epoch.
    pub opens_ms: u64,
    /// Closing time, in milliseconds since the Unix epoch.
    pub closes_ms: u64,
    /// Whether and for how long the sale is repeated.
    pub repetition: Option<Repetition>,
    /// Largest number of units that one user may hold and have bought, together.
    pub user_limit: u32,
    /// Duration of a hold, in milliseconds.
    pub ttl_ms: u32,
    /// Time by which a client can extend its hold once, in milliseconds. With 0, holds are not extended.
    pub extension_ms: u32,
    /// Whether checkouts are refused for now.
    pub is_paused: bool,
    /// The products. Their units are numbered in this order, from 0.
    pub products: Vec<Product>,
    /// Line of the plan in which the sale begins.
    pub line: usize,
}

/// How a sale is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// Time from one opening to the next, in milliseconds.
    pub every_ms: u64,
    /// Time from which no further sale opens, in milliseconds since the Unix epoch. `None`: it never ends.
    pub until_ms: Option<u64>,
}

/// A product: a range of the units of its sale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Id, unique in the sale.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Address of an image: `https://…`, or a path that begins with `/`.
    pub image: Option<String>,
    /// Price for people. Stampede handles no money.
    pub price: Option<String>,
    /// The units.
    pub units: Units,
    /// Number of the product's first unit in the sale.
    pub first: u32,
    /// Number of the id in the plan.
    pub number: ProductId,
}

/// The units of a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// This many units without names.
    Quantity(u32),
    /// Units with names, such as seats.
    Named(Vec<String>),
}

impl SalePlan {
    /// Numbers the ids of all products, in the order in which they first appear.
    pub fn number_products(&mut self) {
        let mut numbers = BTreeMap::new();
        for product in self.sales.iter_mut().flat_map(|sale| &mut sale.products) {
            let next = ProductId(ProductId::FIRST.0.saturating_add(numbers.len() as u32));
            product.number = *numbers.entry(product.id.clone()).or_insert(next);
        }
    }

    /// Returns the number of units of all sales. A repeated sale counts once.
    pub fn units(&self) -> u64 {
        self.sales.iter().map(|sale| u64::from(sale.units())).sum()
    }
}

impl PlannedSale {
    /// Returns the number of units in the stock.
    pub fn units(&self) -> u32 {
        self.products.last().map_or(0, |product| product.numbers().end)
    }

    /// Returns the sales that this is, with its repetitions and products. The memory of the products is never freed.
    pub fn series(&self) -> SaleSeries {
        let products = self.products.iter().map(|product| SaleProduct {
            id: product.number,
            name: &product.id,
            units: product.units.count(),
            unit_names: if let Units::Named(names) = &product.units { names } else { &[] },
        });
        let mut series = self.openings();
        series.first.products = ProductRanges::new(products);
        series
    }

    /// Returns the sales that this is, with its repetitions, as if they had no products. Ids and times that can be written
    /// bound a sale that is repeated for ever.
    pub fn openings(&self) -> SaleSeries {
        let &PlannedSale { id: sale, opens_ms, closes_ms, user_limit, ttl_ms, extension_ms, is_paused, .. } = self;
        let (items, products) = (self.units(), ProductRanges::NONE);
        let first = Terms { sale, items, user_limit, opens_ms, closes_ms, ttl_ms, extension_ms, is_paused, products };
        let Some(Repetition { every_ms, until_ms }) = self.repetition else {
            return SaleSeries { first, every_ms: 0, count: 1, layer: 0 };
        };
        let by_time = until_ms.unwrap_or(FOREVER_MS).saturating_sub(opens_ms).div_ceil(every_ms.max(1));
        let by_id = u64::from(u32::MAX - sale.0) + 1;
        let count = u32::try_from(by_time.min(by_id)).unwrap_or(u32::MAX).max(1);
        SaleSeries { first, every_ms, count, layer: 0 }
    }
}

impl Product {
    /// Returns the numbers of the product's units in the sale.
    pub fn numbers(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.units.count())
    }
}

impl Units {
    /// Returns the number of units.
    pub fn count(&self) -> u32 {
        match self {
            Units::Quantity(quantity) => *quantity,
            Units::Named(names) => u32::try_from(names.len()).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(until_ms: Option<u64>) -> PlannedSale {
        PlannedSale {
            id: SaleId(7),
            name: "Hourly".into(),
            opens_ms: 1_000,
            closes_ms: 4_000,
            repetition: Some(Repetition { every_ms: 5_000, until_ms }),
            user_limit: 1,
            ttl_ms: 1,
            extension_ms: 0,
            is_paused: false,
            products: Vec::new(),
            line: 1,
        }
    }

    #[test]
    fn repetitions_follow_each_other() {
        let sales = repeated(Some(11_001)).series();
        assert_eq!(sales.count, 3);
        let latest = |unix_ms| sales.latest(unix_ms).map(|sale| (sale.sale.0, sale.opens_ms, sale.closes_ms));
        assert_eq!([latest(999), latest(1_000)], [None, Some((7, 1_000, 4_000))]);
        assert_eq!([latest(5_999), latest(6_000)], [Some((7, 1_000, 4_000)), Some((8, 6_000, 9_000))]);
        assert_eq!(latest(1_000_000), Some((9, 11_000, 14_000)));
        let next = |unix_ms| sales.next(unix_ms).map(|sale| sale.sale.0);
        assert_eq!([next(0), next(1_000), next(10_999), next(11_000)], [Some(7), Some(8), Some(9), None]);
        assert_eq!(repeated(Some(11_000)).series().count, 2);
    }

    #[test]
    fn the_fingerprint_covers_ids_and_quantities() {
        let sale = |products: &[(&str, u32, &str)]| {
            let product = |(id, quantity, name): &(&str, u32, &str)| Product {
                id: (*id).into(),
                name: (*name).into(),
                image: None,
                price: None,
                units: Units::Quantity(*quantity),
                first: 0,
                number: ProductId::FIRST,
            };
            PlannedSale { products: products.iter().map(product).collect(), ..repeated(None) }
                .series()
                .first
                .products
                .fingerprint()
        };
        assert_eq!(sale(&[]), 0xcbf2_9ce4_8422_2325);
        let (one, renamed) = (sale(&[("a", 1, "A")]), sale(&[("a", 1, "B")]));
        assert_eq!(one, renamed);
        for other in [&[("b", 1, "A")][..], &[("a", 2, "A")], &[("a", 1, "A"), ("b", 1, "B")], &[]] {
            assert_ne!(sale(other), one, "{other:?}");
        }
        assert_ne!(sale(&[("a", 1, ""), ("b", 2, "")]), sale(&[("b", 2, ""), ("a", 1, "")]));
    }

    /// A plan may describe a sale that is over otherwise than it was sold.
    #[test]
    fn a_sale_is_known_by_its_products() {
        let product = |id: &str, quantity, first| Product {
            id: id.into(),
            name: id.into(),
            image: None,
            price: None,
            units: Units::Quantity(quantity),
            first,
            number: ProductId::FIRST,
        };
        let sale = PlannedSale { products: vec![product("a", 3, 0), product("b", 2, 3)], ..repeated(Some(11_001)) };
        let products = sale.series().first.products.fingerprint();
        let plan = LoadedPlan::keep("x.toml", SalePlan { sales: vec![sale] });
        let is_known = |id, items, products| plan.sold_as(SaleId(id), items, products).is_some();
        assert_eq!([6, 7, 9, 10].map(|id| is_known(id, 5, products)), [false, true, true, false]);
        assert_eq!([is_known(7, 5, products + 1), is_known(7, 4, products)], [false, false]);
        assert_eq!([is_known(7, 5, Terms::NO_PRODUCTS), is_known(7, 4, Terms::NO_PRODUCTS)], [true, false]);
    }

    #[test]
    fn ids_bound_a_sale_that_is_repeated_for_ever() {
        let sales = PlannedSale { id: SaleId(u32::MAX - 1), ..repeated(None) }.series();
        assert_eq!(sales.count, 2);
        assert_eq!(sales.latest(FOREVER_MS).unwrap().sale, SaleId(u32::MAX));
        assert!(repeated(None).series().count > 1_000_000);
    }
}
