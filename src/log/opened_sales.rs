//! The sales that have opened, by the records that opened them, beside the schedule of the new run.
//!
//! What has opened is frozen: its times, its stock, its limit and its products come from the log. The schedule has the
//! rest, the duration of holds and of extensions. A plan that contradicts the log is refused before the run changes
//! anything.

use crate::config::fatal::Fatal;
use crate::plan::plan_time::in_utc;
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::ids::{SaleId, Terms};
use crate::sale::record::SaleTimes;
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// The sales that have opened.
pub struct OpenedSales {
    schedule: SaleSchedule,
    /// Length of the sales without a plan, in seconds; 0 if there were none. It says when a sale opened whose record has no
    /// times.
    period_s: u32,
    /// The longest time for which an earlier run may have held an item, in milliseconds.
    longest_hold_ms: u32,
    /// The latest closing time of each sale and all sales with lower ids, in milliseconds since the Unix epoch.
    ends_ms: BTreeMap<SaleId, u64>,
    contradiction: Option<Contradiction>,
}

/// A contradiction between the schedule and the sales that have opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The sale has opened under other terms than those of the schedule.
    Terms {
        /// The terms in the log.
        opened: Terms,
        /// The terms in the schedule.
        planned: Terms,
    },
    /// The sale is open, and the schedule does not have it.
    Missing(Terms),
    /// A sale of the schedule is not over and has not opened, and one with a higher id that the schedule does not have has
    /// opened.
    TooLow {
        /// The sale of the schedule.
        planned: Terms,
        /// The highest id that has opened.
        newest: SaleId,
    },
}

impl OpenedSales {
    /// Creates the list, without a sale.
    pub fn new(schedule: SaleSchedule, period_s: u32, longest_hold_ms: u64) -> OpenedSales {
        let longest_hold_ms = u32::try_from(longest_hold_ms).unwrap_or(u32::MAX);
        OpenedSales { schedule, period_s, longest_hold_ms, ends_ms: BTreeMap::new(), contradiction: None }
    }

    /// Notes that a sale has opened, and returns its terms. `opened` has what its record says.
    ///
    /// # Errors
    /// Neither the record nor the schedule says when the sale opens and closes.
    pub fn note(&mut self, opened: Terms, times: Option<SaleTimes>, now_ms: u64) -> Result<Terms, String> {
        let Terms { sale, items, user_limit, .. } = opened;
        let planned = self.schedule.terms(sale);
        let periodic = PeriodicSale { period_s: self.period_s, items, user_limit, ttl_ms: 0, extension_ms: 0 };
        let by_period = (self.period_s > 0).then(|| periodic.terms(sale));
        let by_schedule =
            by_period.or(planned).map(|Terms { opens_ms, closes_ms, .. }| SaleTimes { opens_ms, closes_ms });
        let Some(SaleTimes { opens_ms, closes_ms }) = times.or(by_schedule) else {
            return Err(format!("nothing says when sale {} opens and closes", sale.0));
        };
        let holds = planned.map_or((self.longest_hold_ms, 0), |planned| (planned.ttl_ms, planned.extension_ms));
        let has_these = |planned: &Terms| [Terms::NO_PRODUCTS, planned.products.fingerprint()];
        let products = match planned {
            Some(planned) if has_these(&planned).contains(&opened.products.fingerprint()) => planned.products,
            _ => opened.products,
        };
        let (ttl_ms, extension_ms, is_paused) = (holds.0, holds.1, planned.is_some_and(|planned| planned.is_paused));
        let terms = Terms { opens_ms, closes_ms, ttl_ms, extension_ms, products, is_paused, ..opened };
        self.note_end(sale, closes_ms);
        if self.contradiction.is_none() {
            self.contradiction = self.compare(&terms, planned, now_ms);
        }
        Ok(terms)
    }

    fn note_end(&mut self, sale: SaleId, closes_ms: u64) {
        let before = self.ends_ms.range(..sale).next_back().map_or(0, |(_, end)| *end);
        self.ends_ms.entry(sale).or_insert(before.max(closes_ms));
        // Usually there is none: a stream opens sales in the order of their ids.
        let later = self.ends_ms.range_mut((Excluded(sale), Unbounded)).map(|(_, end)| end);
        later.take_while(|end| **end < closes_ms).for_each(|end| *end = closes_ms);
    }

    fn compare(&self, opened: &Terms, planned: Option<Terms>, now_ms: u64) -> Option<Contradiction> {
        let is_open = !opened.has_closed(now_ms);
        let times = |terms: &Terms| (terms.opens_ms, terms.closes_ms);
        match (&self.schedule, planned) {
            // The settings of sales without a plan change from one sale to the next.
            (SaleSchedule::Periodic(_), Some(planned)) if times(&planned) == times(opened) => None,
            (SaleSchedule::Planned(_), Some(planned)) => {
                let frozen =
                    |terms: &Terms| (times(terms), terms.items, terms.user_limit, terms.products.fingerprint());
                let differs = frozen(&planned) != frozen(opened);
                // Of two sales that are over, the operator may have changed the description.
                let matters = is_open || !planned.has_closed(now_ms);
                (differs && matters).then_some(Contradiction::Terms { opened: *opened, planned })
            }
            _ => is_open.then_some(Contradiction::Missing(*opened)),
        }
    }

    /// Returns the highest id that has opened.
    pub fn newest(&self) -> Option<SaleId> {
        self.ends_ms.last_key_value().map(|(sale, _)| *sale)
    }

    /// Returns when this sale and all sales with lower ids have closed, by the log, in milliseconds since the Unix epoch.
    /// Returns `None` if the log does not have this sale.
    pub fn end_ms(&self, sale: SaleId) -> Option<u64> {
        self.ends_ms.get(&sale).copied()
    }

    /// Returns when all sales up to this id have closed, by the log and by the schedule, in milliseconds since the Unix
    /// epoch. The sale itself may be one of which nothing is known.
    pub fn all_ended_ms(&self, until: SaleId) -> u64 {
        self.known_end_ms(until).unwrap_or(u64::MAX)
    }

    /// Returns the same, or `None` if neither the log nor the schedule has any sale up to this id.
    pub fn known_end_ms(&self, until: SaleId) -> Option<u64> {
        let opened_ms = self.ends_ms.range(..=until).next_back().map(|(_, end)| *end);
        let planned_ms = self.schedule.all_closed_ms(until);
        opened_ms.into_iter().chain(planned_ms).max()
    }

    /// Returns a contradiction between the schedule and the sales that have opened, if there is one.
    pub fn contradiction(&self, now_ms: u64) -> Option<Contradiction> {
        self.contradiction.or_else(|| self.too_low(now_ms))
    }

    fn too_low(&self, now_ms: u64) -> Option<Contradiction> {
        let newest = self.newest()?;
        let is_to_open = |terms: &Terms| !terms.has_closed(now_ms) && !self.ends_ms.contains_key(&terms.sale);
        let is_too_low = |terms: &Terms| terms.sale <= newest && is_to_open(terms);
        let planned = match &self.schedule {
            SaleSchedule::Periodic(periodic) => {
                // If the clock was set back, the server continues with the sale that it has begun.
                let is_periodic = self.end_ms(newest) == Some(periodic.terms(newest).closes_ms);
                self.schedule.latest(now_ms).filter(|terms| !is_periodic && is_too_low(terms))
            }
            SaleSchedule::Planned(_) if self.schedule.terms(newest).is_some() => None,
            SaleSchedule::Planned(series) => {
                let next = |series: &SaleSeries| series.latest(now_ms).into_iter().chain(series.next(now_ms));
                series.iter().flat_map(next).find(is_too_low)
            }
        };
        planned.map(|planned| Contradiction::TooLow { planned, newest })
    }
}

impl Contradiction {
    /// Returns the reason to refuse the `plan`, or without a plan the data directory.
    pub fn fatal(&self, plan: Option<LoadedPlan>) -> Fatal {
        let Some(plan) = plan else { return Fatal::DataDir(self.without_plan()) };
        let file = plan.file;
        let place = |sale| plan.line(sale).map_or(file.to_owned(), |line| format!("{file}:{line}"));
        Fatal::Plan(match self {
            Contradiction::Terms { opened, planned } => format!(
                "{}: sale {} has opened, and the log has other terms: {}; a sale that has opened keeps its times, units, limit and \
                 products: put the earlier values back. To sell no more, write paused = true; to sell something else, add \
                 a sale with a higher id",
                place(opened.sale),
                opened.sale.0,
                differences(opened, planned)
            ),
            Contradiction::Missing(opened) => format!(
                "{file}: sale {} is missing in the plan, and by the log it is open until {}; keep it in the plan until it \
                 has closed. To sell no more, write paused = true",
                opened.sale.0,
                in_utc(opened.closes_ms)
            ),
            Contradiction::TooLow { planned, newest } => format!(
                "{}: sale {} is to open {}, and by the log sale {} has opened already; ids increase in the order in which \
                 sales open: give the sales that are to open ids from {} on",
                place(planned.sale),
                planned.sale.0,
                in_utc(planned.opens_ms),
                newest.0,
                newest.0.saturating_add(1)
            ),
        })
    }

    fn without_plan(&self) -> String {
        match self {
            Contradiction::Terms { opened, .. } | Contradiction::Missing(opened) => format!(
                "by its log, sale {} of a plan is open until {}; start with --plan, or after this time",
                opened.sale.0,
                in_utc(opened.closes_ms)
            ),
            Contradiction::TooLow { planned, newest } => format!(
                "by its log, sale {} of a plan has opened, and without a plan the next sale is {}; ids only increase: \
                 start with --plan, or set --data-dir to another directory",
                newest.0, planned.sale.0
            ),
        }
    }
}

/// Returns what the log says otherwise than the plan.
fn differences(opened: &Terms, planned: &Terms) -> String {
    let time = |name: &str, opened_ms: u64, planned_ms: u64| {
        (opened_ms != planned_ms).then(|| format!("{name} {} (the plan: {})", in_utc(opened_ms), in_utc(planned_ms)))
    };
    let number = |name: &str, opened: u32, planned: u32| {
        (opened != planned).then(|| format!("{name} {opened} (the plan: {planned})"))
    };
    let has_other_products =
        opened.products.fingerprint() != planned.products.fingerprint() && opened.items == planned.items;
    let found = [
        time("opens", opened.opens_ms, planned.opens_ms),
        time("closes", opened.closes_ms, planned.closes_ms),
        number("units", opened.items, planned.items),
        number("user_limit", opened.user_limit, planned.user_limit),
        has_other_products.then(|| "other products, or other numbers or names of their units".to_owned()),
    ];
    found.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::product_ranges::ProductRanges;

    const PERIODIC: PeriodicSale = PeriodicSale { period_s: 10, items: 4, user_limit: 2, ttl_ms: 100, extension_ms: 0 };

    /// The sale with this id, open for half of its period.
    fn planned(id: u32) -> Terms {
        let terms = PERIODIC.terms(SaleId(id));
        Terms { closes_ms: terms.opens_ms + 5_000, products: ProductRanges::known_by(9), ..terms }
    }

    fn plan(sales: &[Terms]) -> SaleSchedule {
        let one = |first: &Terms| SaleSeries { first: *first, every_ms: 0, count: 1, layer: 0 };
        SaleSchedule::Planned(sales.iter().map(one).collect::<Vec<_>>().leak())
    }

    /// Notes the sales at `now_ms`, and returns the contradiction.
    fn contradiction(schedule: SaleSchedule, opened: &[Terms], now_ms: u64) -> Option<Contradiction> {
        let mut sales = OpenedSales::new(schedule, 0, 700);
        for terms in opened {
            let times = Some(SaleTimes { opens_ms: terms.opens_ms, closes_ms: terms.closes_ms });
            let noted = sales.note(Terms { opens_ms: 0, closes_ms: 0, ..*terms }, times, now_ms).unwrap();
            assert_eq!((noted.opens_ms, noted.closes_ms), (terms.opens_ms, terms.closes_ms));
        }
        sales.contradiction(now_ms)
    }

    #[test]
    fn what_is_open_is_frozen() {
        let opened = planned(5);
        let now_ms = opened.opens_ms + 1;
        for (changed, differs) in [
            (Terms { opens_ms: opened.opens_ms - 1, ..opened }, true),
            (Terms { closes_ms: opened.closes_ms + 1, ..opened }, true),
            (Terms { items: 5, ..opened }, true),
            (Terms { user_limit: 3, ..opened }, true),
            (Terms { products: ProductRanges::known_by(8), ..opened }, true),
            (Terms { ttl_ms: 9, extension_ms: 9, ..opened }, false),
        ] {
            let found = contradiction(plan(&[changed]), &[opened], now_ms);
            assert_eq!(found, differs.then_some(Contradiction::Terms { opened, planned: changed }), "{changed:?}");
        }
        // The duration of its holds is not known, so it is that of the longest one.
        let missing = Some(Contradiction::Missing(Terms { ttl_ms: 700, ..opened }));
        assert_eq!(contradiction(plan(&[planned(6)]), &[opened], now_ms), missing);
        // The products are not known of a sale that began without a plan.
        let unknown = Terms { products: ProductRanges::NONE, ..opened };
        assert_eq!(contradiction(plan(&[opened]), &[unknown], now_ms), None);
    }

    #[test]
    fn what_is_over_can_be_described_otherwise_but_not_be_sold_again() {
        let opened = planned(5);
        let now_ms = opened.closes_ms;
        assert_eq!(contradiction(plan(&[planned(6)]), &[opened], now_ms), None);
        assert_eq!(contradiction(plan(&[Terms { items: 9, ..opened }]), &[opened], now_ms), None);
        let again = Terms { opens_ms: now_ms + 1, closes_ms: now_ms + 9, ..opened };
        let found = contradiction(plan(&[again]), &[opened], now_ms);
        assert!(matches!(found, Some(Contradiction::Terms { planned, .. }) if planned == again), "{found:?}");
    }

    #[test]
    fn what_is_to_open_has_a_higher_id() {
        let (opened, later) = (planned(5), Terms { sale: SaleId(4), ..planned(9) });
        let too_low = Some(Contradiction::TooLow { planned: later, newest: SaleId(5) });
        assert_eq!(contradiction(plan(&[later]), &[opened], opened.closes_ms), too_low);
        assert_eq!(contradiction(plan(&[planned(5), planned(9)]), &[opened], opened.closes_ms), None);
        assert_eq!(contradiction(plan(&[later]), &[opened], later.closes_ms), None, "it is over, too");
        // Without a plan, the ids count periods.
        let high = Terms { sale: SaleId(50), ..planned(5) };
        let found = contradiction(SaleSchedule::Periodic(PERIODIC), &[high], high.closes_ms);
        assert!(matches!(found, Some(Contradiction::TooLow { newest: SaleId(50), .. })), "{found:?}");
        assert_eq!(contradiction(SaleSchedule::Periodic(PERIODIC), &[planned(5)], planned(5).closes_ms), None);
        let missing = Some(Contradiction::Missing(planned(5)));
        assert_eq!(contradiction(SaleSchedule::Periodic(PERIODIC), &[planned(5)], planned(5).opens_ms), missing);
        // A clock that was set back is no contradiction.
        let future = PERIODIC.terms(SaleId(50));
        assert_eq!(contradiction(SaleSchedule::Periodic(PERIODIC), &[future], planned(5).opens_ms), None);
    }

    /// An earlier version wrote neither the times nor the products of a sale.
    #[test]
    fn a_record_without_times_has_those_of_its_period() {
        let old = Terms { sale: SaleId(5), items: 7, user_limit: 1, ..Terms::NONE };
        let note = |schedule, period_s| OpenedSales::new(schedule, period_s, 700).note(old, None, 0);
        let terms = note(plan(&[planned(9)]), 10).unwrap();
        assert_eq!((terms.opens_ms, terms.closes_ms, terms.items), (50_000, 60_000, 7));
        assert_eq!((terms.ttl_ms, terms.extension_ms), (700, 0), "as long as any hold");
        assert_eq!(note(plan(&[planned(5)]), 0).unwrap().closes_ms, 55_000);
        assert!(note(plan(&[planned(9)]), 0).is_err());
    }

    #[test]
    fn sales_end_with_the_last_of_those_before() {
        let mut sales = OpenedSales::new(plan(&[planned(9)]), 0, 0);
        for (id, closes_ms) in [(3, 900), (7, 500), (5, 1_000), (8, 2_000)] {
            let times = Some(SaleTimes { opens_ms: 1, closes_ms });
            sales.note(Terms { sale: SaleId(id), ..planned(1) }, times, 0).unwrap();
        }
        let ended = [3, 5, 7, 8].map(|id| sales.end_ms(SaleId(id)).unwrap());
        assert_eq!((ended, sales.newest()), ([900, 1_000, 1_000, 2_000], Some(SaleId(8))));
        assert_eq!([4, 6, 9].map(|id| sales.all_ended_ms(SaleId(id))), [900, 1_000, 95_000]);
        assert_eq!((sales.end_ms(SaleId(4)), sales.all_ended_ms(SaleId(2))), (None, u64::MAX));
    }
}
