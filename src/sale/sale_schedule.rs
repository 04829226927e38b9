//! Which sale opens when, and under which terms: one sale after another by `--sale-period`, or the sales of a plan, which
//! can overlap.
//!
//! Ids increase in the order in which sales open. A schedule says what is due; what has opened is in the log.

use crate::sale::ids::{SaleId, Terms};
use crate::sale::product_ranges::ProductRanges;
use std::iter;
use std::ops::RangeInclusive;

/// Maximum number of sales that are open at once.
pub const OPEN_MAX: usize = 16;
/// Length of a day, in milliseconds.
const DAY_MS: u64 = 86_400_000;

/// The sales of a server, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaleSchedule {
    /// A sale for each period since 1970, without a gap.
    Periodic(PeriodicSale),
    /// The sales of a plan, in the order of their ids. A process reads one plan, so it is never freed. They have
    /// layers ([`assign_layers`]).
    Planned(&'static [SaleSeries]),
}

/// Sales of equal length, one after another. The id of a sale is the number of periods before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodicSale {
    /// Length of a sale in seconds.
    pub period_s: u32,
    /// Number of items in the stock of the next sale.
    pub items: u32,
    /// Largest number of items per user in the next sale.
    pub user_limit: u32,
    /// Duration of a hold, in milliseconds.
    pub ttl_ms: u32,
    /// Time by which a client can extend its hold once, in milliseconds. With 0, holds are not extended.
    pub extension_ms: u32,
}

/// Sales with the same terms that open at a fixed distance and have consecutive ids, or one sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleSeries {
    /// Terms of the first sale.
    pub first: Terms,
    /// Time from one opening to the next, in milliseconds.
    pub every_ms: u64,
    /// Number of sales, at least 1. Each closes before the next one opens.
    pub count: u32,
    /// Number of the layer that shows the states of the items, from 0. Series that overlap in time have different layers.
    pub layer: u8,
}

/// Returns whether sales of these lengths, in seconds, can follow each other in one data directory and one database. The
/// ids of sales without a plan count their length, so it does not change. 0: all sales have a plan.
pub fn are_compatible(one_s: u32, other_s: u32) -> bool {
    one_s == other_s || one_s.min(other_s) == 0
}

/// Gives layers to the series of a plan, which are in the order of their ids and openings.
pub fn assign_layers(series: &mut [SaleSeries]) {
    for number in 0..series.len() {
        let (before, rest) = series.split_at_mut(number);
        let overlapping = before.iter().filter(|other| other.last().closes_ms > rest[0].first.opens_ms);
        let taken: Vec<u8> = overlapping.map(|other| other.layer).collect();
        rest[0].layer = (0..).find(|layer| !taken.contains(layer)).expect("there are fewer series than layers");
    }
}

impl SaleSchedule {
    /// Creates the schedule of a plan, whose series are in the order of their ids and openings.
    #[cfg(test)]
    pub fn planned(mut series: Vec<SaleSeries>) -> Self {
        assign_layers(&mut series);
        SaleSchedule::Planned(series.leak())
    }

    /// Returns the layer that shows the states of the items of a sale, if the sale is in the schedule.
    pub fn layer(&self, sale: SaleId) -> Option<usize> {
        match self {
            SaleSchedule::Periodic(_) => Some(0),
            SaleSchedule::Planned(series) => {
                let last = series.partition_point(|series| series.first.sale <= sale).checked_sub(1)?;
                (sale.0 - series[last].first.sale.0 < series[last].count).then_some(usize::from(series[last].layer))
            }
        }
    }

    /// Returns the largest stock of a sale in each layer, in items.
    pub fn layers(&self) -> Vec<u32> {
        let SaleSchedule::Planned(series) = self else { return vec![self.items_max()] };
        let mut layers = Vec::new();
        for SaleSeries { first, layer, .. } in *series {
            layers.resize(layers.len().max(usize::from(*layer) + 1), 0);
            let largest = &mut layers[usize::from(*layer)];
            *largest = first.items.max(*largest);
        }
        layers
    }

    /// Returns the terms of a sale, if there is or was such a sale.
    pub fn terms(&self, sale: SaleId) -> Option<Terms> {
        match self {
            SaleSchedule::Periodic(periodic) => Some(periodic.terms(sale)),
            SaleSchedule::Planned(series) => {
                let last = series.partition_point(|series| series.first.sale <= sale).checked_sub(1)?;
                series[last].number(sale.0 - series[last].first.sale.0)
            }
        }
    }

    /// Returns the newest sale that has opened by `unix_ms`. It may have closed since.
    pub fn latest(&self, unix_ms: u64) -> Option<Terms> {
        match self {
            SaleSchedule::Periodic(periodic) => Some(periodic.terms(SaleId::at(unix_ms, periodic.period_s))),
            SaleSchedule::Planned(series) => {
                let last = series.partition_point(|series| series.first.opens_ms <= unix_ms).checked_sub(1)?;
                series[last].latest(unix_ms)
            }
        }
    }

    /// Returns the sales after `sale` that are open when the sale with the terms `newest` opens, in the order of their
    /// openings. `newest` is the last of them.
    pub fn open_with(&self, newest: Terms, sale: SaleId) -> impl Iterator<Item = Terms> + use<> {
        let earlier: &'static [SaleSeries] = match self {
            SaleSchedule::Periodic(_) => &[],
            SaleSchedule::Planned(series) => series,
        };
        // A series has one open sale at most.
        let open = earlier.iter().filter_map(move |series| series.latest(newest.opens_ms));
        let open = open.filter(move |terms| sale < terms.sale && terms.sale < newest.sale);
        open.filter(move |terms| !terms.has_closed(newest.opens_ms)).chain(iter::once(newest))
    }

    /// Returns the first sale with a higher id than `sale`.
    pub fn next(&self, sale: SaleId) -> Option<Terms> {
        match self {
            SaleSchedule::Periodic(periodic) => Some(periodic.terms(SaleId(sale.0.saturating_add(1)))),
            SaleSchedule::Planned(series) => {
                let next = series.partition_point(|series| series.first.sale <= sale);
                let repeated = next.checked_sub(1).map(|last| &series[last]);
                let repeated = repeated.and_then(|last| last.number((sale.0 - last.first.sale.0).checked_add(1)?));
                repeated.or_else(|| series.get(next).map(|series| series.first))
            }
        }
    }

    /// Returns when all sales up to this id have closed, in milliseconds since the Unix epoch, if there is such a sale.
    pub fn all_closed_ms(&self, until: SaleId) -> Option<u64> {
        match self {
            SaleSchedule::Periodic(periodic) => Some(periodic.terms(until).closes_ms),
            SaleSchedule::Planned(series) => {
                let begun = series.iter().take_while(|series| series.first.sale <= until);
                let last = begun.map(|series| series.number((until.0 - series.first.sale.0).min(series.count - 1)));
                last.flatten().map(|last| last.closes_ms).max()
            }
        }
    }

    /// Returns the lowest id of the sales that close after `unix_ms`.
    pub fn first_closing_after(&self, unix_ms: u64) -> Option<SaleId> {
        match self {
            SaleSchedule::Periodic(periodic) => Some(SaleId::at(unix_ms, periodic.period_s)),
            SaleSchedule::Planned(series) => series.iter().find_map(|series| series.first_closing_after(unix_ms)),
        }
    }

    /// Returns the ids of the sales that open on the same UTC day as `sale`, as far as they follow each other at a fixed
    /// distance.
    pub fn of_same_day(&self, sale: SaleId) -> RangeInclusive<u32> {
        let (first, opens_ms, every_ms, last) = match self {
            SaleSchedule::Periodic(periodic) => (0, 0, u64::from(periodic.period_s) * 1000, u32::MAX),
            SaleSchedule::Planned(series) => {
                let place = series.partition_point(|series| series.first.sale <= sale).checked_sub(1);
                match place.map(|place| &series[place]).filter(|series| sale <= series.last().sale) {
                    Some(SaleSeries { first, every_ms, count, .. }) if *every_ms > 0 => {
                        (first.sale.0, first.opens_ms, *every_ms, first.sale.0 + (count - 1))
                    }
                    _ => return sale.0..=sale.0,
                }
            }
        };
        let day = (opens_ms + u64::from(sale.0 - first) * every_ms) / DAY_MS;
        // The number of the first sale that opens at this time or later.
        let number_at = |unix_ms: u64| unix_ms.saturating_sub(opens_ms).div_ceil(every_ms);
        let id = |number: u64| u32::try_from(u64::from(first) + number).unwrap_or(u32::MAX).min(last);
        id(number_at(day * DAY_MS))..=id(number_at((day + 1) * DAY_MS) - 1)
    }

    /// Returns the length of each sale in seconds, or 0 for the sales of a plan. See [`are_compatible`].
    pub fn period_s(&self) -> u32 {
        match self {
            SaleSchedule::Periodic(periodic) => periodic.period_s,
            SaleSchedule::Planned(_) => 0,
        }
    }

    /// Returns this schedule with another length of each sale, if it has such a length. With 0, nothing is planned.
    pub fn with_period(self, period_s: u32) -> SaleSchedule {
        match self {
            _ if period_s == 0 => SaleSchedule::Planned(&[]),
            SaleSchedule::Periodic(periodic) => SaleSchedule::Periodic(PeriodicSale { period_s, ..periodic }),
            SaleSchedule::Planned(_) => self,
        }
    }

    /// Returns the largest stock of a sale that can open, in items.
    pub fn items_max(&self) -> u32 {
        match self {
            SaleSchedule::Periodic(periodic) => periodic.items,
            SaleSchedule::Planned(series) => series.iter().map(|series| series.first.items).max().unwrap_or(0),
        }
    }

    /// Returns the products of the sale that has most of them.
    pub fn most_products(&self) -> ProductRanges {
        match self {
            SaleSchedule::Periodic(_) => ProductRanges::NONE,
            SaleSchedule::Planned(series) => {
                let products = series.iter().map(|series| series.first.products);
                products.max_by_key(ProductRanges::count).unwrap_or(ProductRanges::NONE)
            }
        }
    }

    /// Returns the longest time for which an item can be held, with the extension, in milliseconds.
    pub fn longest_hold_ms(&self) -> u64 {
        match self {
            SaleSchedule::Periodic(periodic) => u64::from(periodic.ttl_ms) + u64::from(periodic.extension_ms),
            SaleSchedule::Planned(series) => {
                series.iter().map(|series| series.first.longest_hold_ms()).max().unwrap_or(0)
            }
        }
    }
}

impl PeriodicSale {
    /// Returns the terms of a sale that begins under these settings.
    pub fn terms(&self, sale: SaleId) -> Terms {
        let &PeriodicSale { period_s, items, user_limit, ttl_ms, extension_ms } = self;
        let period_ms = u64::from(period_s) * 1000;
        let opens_ms = u64::from(sale.0) * period_ms;
        let (closes_ms, is_paused, products) = (opens_ms + period_ms, false, ProductRanges::NONE);
        Terms { sale, items, user_limit, opens_ms, closes_ms, ttl_ms, extension_ms, is_paused, products }
    }
}

impl SaleSeries {
    /// Returns the last of the sales.
    pub fn last(&self) -> Terms {
        self.number(self.count - 1).expect("there is at least one sale")
    }

    /// Returns the newest of the sales that have opened by `unix_ms`.
    pub fn latest(&self, unix_ms: u64) -> Option<Terms> {
        let number = unix_ms.checked_sub(self.first.opens_ms)? / self.every_ms.max(1);
        self.number(number.min(u64::from(self.count - 1)) as u32)
    }

    /// Returns the first of the sales that open after `unix_ms`.
    pub fn next(&self, unix_ms: u64) -> Option<Terms> {
        match self.latest(unix_ms) {
            Some(latest) => self.number(latest.sale.0 - self.first.sale.0 + 1),
            None => Some(self.first),
        }
    }

    /// Returns the first of the sales that close after `unix_ms`.
    fn first_closing_after(&self, unix_ms: u64) -> Option<SaleId> {
        let closed_ms = unix_ms.saturating_add(1).saturating_sub(self.first.closes_ms);
        let number = if self.every_ms > 0 { closed_ms.div_ceil(self.every_ms) } else { closed_ms.min(1) };
        self.number(u32::try_from(number).ok()?).map(|terms| terms.sale)
    }

    /// Returns the terms of the sale with this number, from 0.
    fn number(&self, number: u32) -> Option<Terms> {
        let Terms { sale, opens_ms, closes_ms, .. } = self.first;
        let shift_ms = self.every_ms * u64::from(number);
        (number < self.count).then(|| Terms {
            sale: SaleId(sale.0 + number),
            opens_ms: opens_ms + shift_ms,
            closes_ms: closes_ms + shift_ms,
            ..self.first
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURLY: PeriodicSale =
        PeriodicSale { period_s: 3600, items: 10, user_limit: 2, ttl_ms: 30_000, extension_ms: 5_000 };

    /// The plan that says the same as `--sale-period 1h`.
    fn hourly_plan() -> SaleSchedule {
        let first = HOURLY.terms(SaleId(0));
        SaleSchedule::planned(vec![SaleSeries { first, every_ms: 3_600_000, count: u32::MAX, layer: 0 }])
    }

    #[test]
    fn a_repeated_sale_of_a_plan_is_the_periodic_sale() {
        let (periodic, planned) = (SaleSchedule::Periodic(HOURLY), hourly_plan());
        for unix_ms in [0, 1, 3_599_999, 3_600_000, 1_796_148_000_000] {
            let now = periodic.latest(unix_ms).unwrap();
            assert!(now.opens_ms <= unix_ms && unix_ms < now.closes_ms);
            assert_eq!(planned.latest(unix_ms), Some(now));
            assert_eq!(planned.terms(now.sale), periodic.terms(now.sale));
            assert_eq!(planned.next(now.sale), periodic.next(now.sale));
            assert_eq!(periodic.next(now.sale).unwrap().opens_ms, now.closes_ms);
        }
        for unix_ms in [1, 3_599_999, 3_600_000, 1_796_148_000_000] {
            assert_eq!(planned.first_closing_after(unix_ms), periodic.first_closing_after(unix_ms));
        }
        assert_eq!([periodic, planned].map(|schedule| schedule.items_max()), [10, 10]);
        assert_eq!([periodic, planned].map(|schedule| schedule.longest_hold_ms()), [35_000, 35_000]);
    }

    #[test]
    fn sales_of_a_plan_have_terms_of_their_own_and_gaps_between_them() {
        let sale = |id: u32, opens_ms, closes_ms, items| Terms {
            opens_ms,
            closes_ms,
            items,
            ttl_ms: 1_000 * id,
            ..HOURLY.terms(SaleId(id))
        };
        let (first, last) = (sale(3, 100, 200, 7), sale(20, 1_000, 9_000, 5));
        let repeated = SaleSeries { first: sale(5, 300, 350, 9), every_ms: 100, count: 3, layer: 0 };
        let one = |first| SaleSeries { first, every_ms: 0, count: 1, layer: 0 };
        let planned = SaleSchedule::planned(vec![one(first), repeated, one(last)]);
        let latest = |unix_ms| planned.latest(unix_ms).map(|terms| (terms.sale.0, terms.opens_ms, terms.closes_ms));
        assert_eq!([latest(99), latest(100), latest(299)], [None, Some((3, 100, 200)), Some((3, 100, 200))]);
        assert_eq!([latest(300), latest(499)], [Some((5, 300, 350)), Some((6, 400, 450))]);
        assert_eq!([latest(999), latest(u64::MAX)], [Some((7, 500, 550)), Some((20, 1_000, 9_000))]);
        let next = |sale| planned.next(SaleId(sale)).map(|terms| terms.sale.0);
        assert_eq!([next(0), next(3), next(4), next(5)], [Some(3), Some(5), Some(5), Some(6)]);
        assert_eq!([next(7), next(19), next(20), next(u32::MAX)], [Some(20), Some(20), None, None]);
        let known = [2, 3, 4, 7, 8, 20, 21].map(|sale| planned.terms(SaleId(sale)).is_some());
        assert_eq!(known, [false, true, false, true, false, true, false]);
        assert_eq!((planned.items_max(), planned.longest_hold_ms()), (9, 25_000));
        assert_eq!(SaleSchedule::Planned(&[]).latest(u64::MAX), None);
    }

    #[test]
    fn sales_that_overlap_open_together_and_have_layers_of_their_own() {
        let series = |id, opens_ms, closes_ms, items| {
            let first = Terms { opens_ms, closes_ms, items, ..HOURLY.terms(SaleId(id)) };
            SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
        };
        let repeated = SaleSeries { every_ms: 10, count: 5, ..series(10, 200, 205, 8) };
        let all = [(1, 0, 1_000, 7), (2, 50, 60, 3), (3, 50, 70, 4), (4, 65, 80, 9)];
        let all = all.map(|(id, opens_ms, closes_ms, items)| series(id, opens_ms, closes_ms, items));
        let planned = SaleSchedule::planned(all.into_iter().chain([repeated, series(30, 240, 300, 2)]).collect());
        let open_with = |newest, after| -> Vec<u32> {
            let newest = planned.terms(SaleId(newest)).unwrap();
            planned.open_with(newest, SaleId(after)).map(|terms| terms.sale.0).collect()
        };
        assert_eq!([open_with(3, 0), open_with(3, 2)], [vec![1, 2, 3], vec![3]]);
        assert_eq!(open_with(4, 0), [1, 3, 4], "sale 2 has closed when sale 4 opens");
        assert_eq!([open_with(12, 4), open_with(30, 9)], [vec![12], vec![14, 30]]);
        let layers = [1, 2, 3, 4, 10, 14, 30].map(|sale| planned.layer(SaleId(sale)));
        assert_eq!(layers, [0, 1, 2, 1, 1, 1, 2].map(Some));
        assert_eq!([5, 15, 31].map(|sale| planned.layer(SaleId(sale))), [None; 3]);
        assert_eq!(planned.layers(), [7, 9, 4]);
        let periodic = SaleSchedule::Periodic(HOURLY);
        assert_eq!((periodic.layer(SaleId(9)), periodic.layers()), (Some(0), vec![10]));
        let next = periodic.terms(SaleId(9)).unwrap();
        assert_eq!(periodic.open_with(next, SaleId(3)).collect::<Vec<_>>(), [next], "the others have closed");
    }

    #[test]
    fn sales_of_one_day_belong_together() {
        let of = |schedule: SaleSchedule, sale| schedule.of_same_day(SaleId(sale));
        let hourly = SaleSchedule::Periodic(HOURLY);
        for schedule in [hourly, hourly_plan()] {
            assert_eq!([of(schedule, 0), of(schedule, 23), of(schedule, 24)], [0..=23, 0..=23, 24..=47]);
        }
        let of_period = |period_s, sale| of(SaleSchedule::Periodic(PeriodicSale { period_s, ..HOURLY }), sale);
        // A sale that is longer than a day has its day for itself, and one that does not divide it begins on the next.
        assert_eq!([of_period(172_800, 5), of_period(50_000, 1), of_period(50_000, 2)], [5..=5, 0..=1, 2..=3]);
        let first = Terms { opens_ms: DAY_MS - 3_600_000, ..HOURLY.terms(SaleId(5)) };
        let series = vec![
            SaleSeries { first, every_ms: 3_600_000, count: 3, layer: 0 },
            SaleSeries { first: HOURLY.terms(SaleId(9)), every_ms: 0, count: 1, layer: 0 },
        ];
        let planned = SaleSchedule::planned(series);
        assert_eq!([of(planned, 5), of(planned, 6), of(planned, 7)], [5..=5, 6..=7, 6..=7]);
        assert_eq!([of(planned, 4), of(planned, 8), of(planned, 9)], [4..=4, 8..=8, 9..=9]);
        assert_eq!(of(hourly, u32::MAX), u32::MAX - u32::MAX % 24..=u32::MAX);
    }
}
