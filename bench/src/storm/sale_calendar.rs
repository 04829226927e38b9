//! The sales that a server knows at the start of a run, with their times and products. Pure: nothing here performs I/O.
//!
//! The calendar is what `GET /sales` and `GET /products` return, not the file of the plan. So it is what the server
//! sells, also if the server runs on another machine, has reloaded its plan, or has none.
//!
//! Sales open and close at whole seconds, and the header `Date` has the second of the server's clock in which a response
//! was written. In each second a sale is either open or not. A response was decided between the latest `Date` that had
//! arrived when its request was sent, and its own `Date`. So the server's own clock judges it, without any tolerance.

use crate::ledger::StockScope;
use crate::verification::SaleSnapshot;
use serde::{Deserialize, Deserializer};
use std::time::UNIX_EPOCH;

/// Seconds around an opening or a closing in which buyers name their sale. Larger than the difference of the clocks.
const NAMED_S: u64 = 2;

/// Refusals that depend on the phase or on the stock of a sale, and so on the time.
const OF_A_SALE: [&str; 6] = ["not-open", "sale-ended", "paused", "sold-out", "all-reserved", "user-limit"];

/// A product of a sale: a part of the body of `GET /products`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ProductSnapshot {
    /// Product id.
    pub product_id: String,
    /// Number of items of the product.
    pub items_total: u32,
    /// Number of sold items.
    pub sold: u32,
    /// The first item of the product. The others follow without a gap.
    pub first_item_id: u32,
}

impl ProductSnapshot {
    /// Returns whether the product has this item.
    pub fn has(&self, item: u32) -> bool {
        (self.first_item_id..self.first_item_id + self.items_total).contains(&item)
    }
}

/// A sale of the calendar: a part of the body of `GET /sales`. Times are in seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CalendarSale {
    /// Phase at the start of the run: `next`, `open`, `closing` or `closed`.
    pub phase: String,
    /// Id and counts at the start of the run.
    #[serde(flatten)]
    pub before: SaleSnapshot,
    /// Name in the plan. Empty without a plan.
    #[serde(default)]
    pub name: String,
    /// Time of the opening.
    #[serde(rename = "starts_at", deserialize_with = "second")]
    pub opens_s: u64,
    /// Time of the closing.
    #[serde(rename = "ends_at", deserialize_with = "second")]
    pub closes_s: u64,
    /// Whether the sale was paused at the start of the run.
    #[serde(default)]
    pub paused: bool,
    /// Products at the start of the run. Empty without a plan.
    #[serde(skip)]
    pub products: Vec<ProductSnapshot>,
}

fn second<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let time = humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)?;
    time.duration_since(UNIX_EPOCH).map(|elapsed| elapsed.as_secs()).map_err(serde::de::Error::custom)
}

impl CalendarSale {
    /// Returns whether the sale is open in this second.
    pub fn is_open(&self, second: u64) -> bool {
        (self.opens_s..self.closes_s).contains(&second)
    }
}

/// A checkout of any free unit of a sale, or of one of its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitRequest {
    /// User id.
    pub user: i64,
    /// Index of the sale in the calendar. If the request does not name it, the server may choose another one.
    pub sale: usize,
    /// Index of the product in the sale. `None` requests any unit.
    pub product: Option<usize>,
    /// Whether the request names its sale.
    pub is_named: bool,
    /// Whether the buyer waits for the opening: repeats the request while it is refused with `not-open`.
    pub waits: bool,
}

/// The seconds of the server's clock between which a request was decided, both included, since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerSeconds {
    /// The latest `Date` that had arrived when the request was sent. 0 if none had.
    pub from: u64,
    /// `Date` of the response.
    pub to: u64,
}

/// The sales that a run follows.
#[derive(Clone, Debug, Default)]
pub struct SaleCalendar {
    /// Sales in the order of their openings.
    pub sales: Vec<CalendarSale>,
}

impl SaleCalendar {
    /// Returns the sales that are open in this second, as indexes.
    pub fn open_in(&self, second: u64) -> impl Iterator<Item = usize> {
        self.sales.iter().enumerate().filter(move |(_, sale)| sale.is_open(second)).map(|(index, _)| index)
    }

    /// Returns the first sale that opens after this second.
    pub fn next_after(&self, second: u64) -> Option<usize> {
        self.sales.iter().position(|sale| sale.opens_s > second)
    }

    /// Returns a sale that has closed, up to this second.
    pub fn closed_by(&self, second: u64) -> Option<usize> {
        self.sales.iter().position(|sale| sale.closes_s <= second)
    }

    /// Returns the closing of the last sale, in seconds since the Unix epoch.
    pub fn ends_s(&self) -> u64 {
        self.sales.iter().map(|sale| sale.closes_s).max().unwrap_or(0)
    }

    /// Returns whether a request in this second must name the sale: several sales are open, or one opens or closes at
    /// about this time, so that the server could choose another sale than the buyer expects.
    pub fn must_name(&self, second: u64) -> bool {
        let is_near = |at: u64| second.abs_diff(at) <= NAMED_S;
        self.open_in(second).count() > 1
            || self.sales.iter().any(|sale| is_near(sale.opens_s) || is_near(sale.closes_s))
    }

    /// Returns the index of the sale with this id.
    pub fn index_of(&self, sale: u64) -> Option<usize> {
        self.sales.iter().position(|known| known.before.sale_id == sale)
    }

    /// Returns whether the server could refuse a request for this reason in these seconds. Returns `None` if the reason
    /// has nothing to do with the time.
    pub fn allows(&self, refusal: &str, request: &UnitRequest, seconds: ServerSeconds) -> Option<bool> {
        if !OF_A_SALE.contains(&refusal) {
            return None;
        }
        let sale = &self.sales[request.sale];
        let was_open = |sale: &CalendarSale| sale.opens_s <= seconds.to && sale.closes_s > seconds.from;
        Some(match (refusal, request.is_named) {
            // A checkout that is decided while its sale closes is not decided in that sale.
            ("not-open", true) => sale.opens_s > seconds.from || sale.closes_s <= seconds.to,
            ("not-open", false) => self.had_none_open(seconds),
            ("sale-ended", is_named) => is_named && sale.closes_s <= seconds.to,
            ("paused", true) => sale.paused && was_open(sale),
            ("paused", false) => self.sales.iter().any(|sale| sale.paused && was_open(sale)),
            (_, true) => was_open(sale),
            (_, false) => self.sales.iter().any(was_open),
        })
    }

    /// Returns whether no sale was open in one of these seconds. The number of open sales falls only when one closes.
    fn had_none_open(&self, seconds: ServerSeconds) -> bool {
        let closings =
            self.sales.iter().map(|sale| sale.closes_s).filter(|at| (seconds.from..=seconds.to).contains(at));
        closings.chain([seconds.from]).any(|second| self.open_in(second).next().is_none())
    }

    /// Returns the stock that `sold-out` is about. Returns `None` if the request does not name its sale, and the server
    /// may have looked at several.
    pub fn scope(&self, request: &UnitRequest, seconds: ServerSeconds) -> Option<StockScope> {
        let is_certain = request.is_named
            || self.open_in(seconds.from).eq([request.sale]) && self.open_in(seconds.to).eq([request.sale]);
        is_certain.then(|| StockScope { sale: Some(self.sales[request.sale].before.sale_id), product: request.product })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Returns a sale of 10 units in two products that is open from `opens_s` until before `closes_s`.
    pub fn sale(sale_id: u64, opens_s: u64, closes_s: u64) -> CalendarSale {
        let before = SaleSnapshot { sale_id, items_total: 10, available: 10, user_limit: 3, ..SaleSnapshot::default() };
        let product = |product_id: &str, first_item_id, items_total| ProductSnapshot {
            product_id: product_id.to_owned(),
            items_total,
            sold: 0,
            first_item_id,
        };
        let products = vec![product("a", 0, 4), product("b", 4, 6)];
        let phase = "next".to_owned();
        CalendarSale { phase, before, name: format!("Sale {sale_id}"), opens_s, closes_s, paused: false, products }
    }

    /// Returns a calendar: sale 1 from 100 to 200, sale 2 from 150 to 250, sale 3 from 300 to 400.
    pub fn calendar() -> SaleCalendar {
        SaleCalendar { sales: vec![sale(1, 100, 200), sale(2, 150, 250), sale(3, 300, 400)] }
    }

    /// Returns a request of any unit.
    pub fn request(sale: usize, is_named: bool) -> UnitRequest {
        UnitRequest { user: 7, sale, product: None, is_named, waits: false }
    }

    #[test]
    fn a_sale_of_the_server_is_read() {
        let json = r#"{"phase":"next","sale_id":10,"starts_at":"1970-01-01T00:01:40.000Z","ends_at":"1970-01-01T00:03:20.000Z","items_total":10,"sold":0,"reserved":0,"available":10,"user_limit":3,"name":"Sale 10","paused":true}"#;
        let expected = CalendarSale { paused: true, products: Vec::new(), ..sale(10, 100, 200) };
        assert_eq!(serde_json::from_str::<CalendarSale>(json).unwrap(), expected);
        let unplanned = json.replace(r#","name":"Sale 10","paused":true"#, "");
        assert_eq!(serde_json::from_str::<CalendarSale>(&unplanned).unwrap().name, "");
    }

    #[test]
    fn the_open_the_next_and_the_closed_sales_are_found() {
        let calendar = calendar();
        let at = |second| (calendar.open_in(second).collect::<Vec<_>>(), calendar.next_after(second));
        assert_eq!(at(99), (vec![], Some(0)));
        assert_eq!(at(100), (vec![0], Some(1)));
        assert_eq!(at(150), (vec![0, 1], Some(2)));
        assert_eq!(at(200), (vec![1], Some(2)));
        assert_eq!(at(250), (vec![], Some(2)));
        assert_eq!(at(400), (vec![], None));
        assert_eq!((calendar.closed_by(199), calendar.closed_by(200), calendar.ends_s()), (None, Some(0), 400));
        for (second, must_name) in [(97, false), (98, true), (102, true), (103, false), (175, true), (225, false)] {
            assert_eq!(calendar.must_name(second), must_name, "{second}");
        }
    }

    #[test]
    fn each_refusal_is_allowed_in_its_phase_only() {
        let mut calendar = calendar();
        calendar.sales[1].paused = true;
        let check = |refusal: &str, request: UnitRequest, allowed: &[(u64, u64)], others: &[(u64, u64)]| {
            let allows = |&(from, to): &(u64, u64)| calendar.allows(refusal, &request, ServerSeconds { from, to });
            for span in allowed {
                assert_eq!(allows(span), Some(true), "{refusal} {request:?} {span:?}");
            }
            for span in others {
                assert_eq!(allows(span), Some(false), "{refusal} {request:?} {span:?}");
            }
        };
        check("not-open", request(0, true), &[(99, 99), (99, 100), (199, 200)], &[(100, 100), (199, 199)]);
        check("not-open", request(0, false), &[(99, 99), (99, 100), (249, 250)], &[(100, 100), (199, 200), (100, 249)]);
        check("sale-ended", request(0, true), &[(199, 200), (300, 300)], &[(99, 100), (199, 199)]);
        check("sale-ended", request(0, false), &[], &[(199, 200)]);
        check("sold-out", request(0, true), &[(99, 100), (150, 150), (199, 200)], &[(99, 99), (200, 200)]);
        check("sold-out", request(0, false), &[(249, 250)], &[(250, 250)]);
        check("paused", request(1, true), &[(150, 150)], &[(149, 149), (250, 250)]);
        check("paused", request(0, true), &[], &[(120, 120)]);
        check("paused", request(0, false), &[(150, 150)], &[(120, 120)]);
        assert_eq!(calendar.allows("overdue", &request(0, true), ServerSeconds::default()), None);
    }

    #[test]
    fn sold_out_is_about_the_sale_that_the_server_must_have_chosen() {
        let calendar = calendar();
        let scope = |request: &UnitRequest, from, to| calendar.scope(request, ServerSeconds { from, to });
        let of = |sale, product| Some(StockScope { sale: Some(sale), product });
        assert_eq!(scope(&UnitRequest { product: Some(1), ..request(0, true) }, 160, 160), of(1, Some(1)));
        assert_eq!(scope(&request(0, false), 120, 121), of(1, None));
        assert_eq!(scope(&request(0, false), 120, 150), None, "sale 2 has opened");
    }
}
