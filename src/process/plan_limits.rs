//! What a server demands of its plan beyond what `stampede plan check` does: the settings decide how many sales it must
//! remember at once.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::operate::shard_status::SALES_PUBLISHED;
use crate::plan::plan_time::in_units;
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::parts::ENDED_MAX;
use crate::sale::sale_schedule::SaleSeries;

/// Checks that this server can run its plan, if it has one.
///
/// # Errors
/// [`Fatal::Plan`]: it cannot, with the line of the sale and the remedy.
pub fn check(config: &Config) -> Result<(), Fatal> {
    let Some(plan) = config.plan else { return Ok(()) };
    let receipts_ms = config.rules.receipts_ms;
    for (place, series) in plan.series.iter().enumerate() {
        let known = known_at_once(series, receipts_ms) + known_before(&plan.series[..place], series, receipts_ms);
        if known > 2 * u64::from(ENDED_MAX) {
            let what = format!(
                "{known} sales would have to be remembered while this one opens, each for --receipts {} and the longest \
                 hold; at most {} are: set a shorter --receipts, or a longer \"every\"",
                in_units(receipts_ms),
                2 * ENDED_MAX
            );
            return Err(at(plan, series, &what));
        }
        let same = plan.series[..place].iter().find_map(|before| same_place(before, series, receipts_ms));
        if let Some((one, other)) = same {
            let what = format!(
                "the ids {other} and {one} differ by a multiple of {SALES_PUBLISHED}, and both sales are remembered at once: give \
                 this sale another id"
            );
            return Err(at(plan, series, &what));
        }
    }
    Ok(())
}

fn at(plan: LoadedPlan, series: &SaleSeries, what: &str) -> Fatal {
    let line = plan.line(series.first.sale).unwrap_or(1);
    Fatal::Plan(format!("{}:{line}: {what}", plan.file))
}

/// Returns the time for which a sale is remembered after it has opened, in milliseconds.
fn remembered_ms(series: &SaleSeries, receipts_ms: u64) -> u64 {
    series.first.closes_ms - series.first.opens_ms + receipts_ms + series.first.longest_hold_ms()
}

/// Returns the largest number of sales of this kind that are known at once.
fn known_at_once(series: &SaleSeries, receipts_ms: u64) -> u64 {
    match series.every_ms {
        0 => 1,
        every_ms => (remembered_ms(series, receipts_ms).div_ceil(every_ms) + 1).min(series.count.into()),
    }
}

/// Returns the number of sales of earlier kinds that are known when `series` opens for the first time.
fn known_before(earlier: &[SaleSeries], series: &SaleSeries, receipts_ms: u64) -> u64 {
    earlier.iter().map(|before| still_known(before, series, receipts_ms)).sum()
}

/// Returns the number of sales of the kind `before` that are known when `series` opens for the first time.
fn still_known(before: &SaleSeries, series: &SaleSeries, receipts_ms: u64) -> u64 {
    let forgotten_ms = before.last().opens_ms + remembered_ms(before, receipts_ms);
    let left_ms = forgotten_ms.saturating_sub(series.first.opens_ms);
    match before.every_ms {
        0 => u64::from(left_ms > 0),
        every_ms => left_ms.div_ceil(every_ms).min(before.count.into()),
    }
}

/// Returns the ids of two sales that can be known at once and whose numbers the shards would publish in the same place.
fn same_place(before: &SaleSeries, series: &SaleSeries, receipts_ms: u64) -> Option<(u32, u32)> {
    let known = still_known(before, series, receipts_ms) as u32;
    let (first, last) = ((before.last().sale.0 + 1).saturating_sub(known), before.last().sale.0);
    let ids = series.first.sale.0..=series.last().sale.0.min(series.first.sale.0 + SALES_PUBLISHED as u32 / 2);
    let of_one =
        |one: u32| ids.clone().find(|id| (id - one).is_multiple_of(SALES_PUBLISHED as u32)).map(|other| (one, other));
    (first..=last).filter(|_| known > 0).find_map(of_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::ids::{SaleId, Terms};

    fn series(id: u32, opens_ms: u64, every_ms: u64, count: u32) -> SaleSeries {
        let first = Terms {
            sale: SaleId(id),
            opens_ms,
            closes_ms: opens_ms + 1_000,
            items: 1,
            user_limit: 1,
            ttl_ms: 500,
            ..Terms::NONE
        };
        SaleSeries { first, every_ms, count, layer: 0 }
    }

    #[test]
    fn sales_are_counted_as_long_as_they_are_remembered() {
        // A sale is remembered for 1 s while it is open, 10 s of receipts, and 0.5 s of holds.
        assert_eq!(known_at_once(&series(1, 0, 0, 1), 10_000), 1);
        assert_eq!(known_at_once(&series(1, 0, 1_000, 100), 10_000), 13);
        assert_eq!(known_at_once(&series(1, 0, 1_000, 4), 10_000), 4);
        let earlier = [series(1, 0, 0, 1), series(2, 2_000, 1_000, 100), series(200, 102_000, 0, 1)];
        let before = |opens_ms| known_before(&earlier, &series(300, opens_ms, 0, 1), 10_000);
        // The last repetition opened at 101 s, and the single sale at 102 s.
        assert_eq!([before(103_000), before(112_500), before(113_499), before(113_500)], [10 + 1, 1, 1, 0]);
    }
}
