//! What the sales of a plan do at a given time, which `stampede plan show` prints.

use crate::plan::plan_time::{in_units, in_utc};
use crate::plan::planned_sale::{PlannedSale, SalePlan};
use crate::plan::text_table::table;
use crate::sale::ids::Terms;

/// Returns which sales are over, open, next and later at `unix_ms`. Of a sale that is repeated, the latest and the next one
/// are listed.
pub fn at_moment(plan: &SalePlan, unix_ms: u64) -> String {
    let sales = plan.sales.iter().flat_map(|planned| {
        let series = planned.openings();
        [series.latest(unix_ms), series.next(unix_ms)].into_iter().flatten().map(move |terms| (planned, terms))
    });
    let mut sales: Vec<(&PlannedSale, Terms)> = sales.collect();
    sales.sort_by_key(|(_, terms)| terms.sale);
    let next_ms = sales.iter().map(|(_, terms)| terms.opens_ms).filter(|opens_ms| *opens_ms > unix_ms).min();
    let rows: Vec<_> = sales.iter().map(|(planned, terms)| row(planned, terms, unix_ms, next_ms)).collect();
    format!("{}\n\n{}", in_utc(unix_ms), table(&["sale", "name", "state", "opens", "closes", "remarks"], &rows))
}

fn row(planned: &PlannedSale, terms: &Terms, unix_ms: u64, next_ms: Option<u64>) -> Vec<String> {
    let &Terms { sale, opens_ms, closes_ms, .. } = terms;
    // Whole seconds, as all times of a plan.
    let span = |from_ms: u64, to_ms: u64| in_units((to_ms - from_ms).div_ceil(1000) * 1000);
    let (state, remark) = if unix_ms >= closes_ms {
        ("over", format!("closed {} ago", span(closes_ms, unix_ms)))
    } else if unix_ms >= opens_ms {
        (if planned.is_paused { "paused" } else { "open" }, format!("closes in {}", span(unix_ms, closes_ms)))
    } else {
        let paused = if planned.is_paused { ", paused" } else { "" };
        let state = if Some(opens_ms) == next_ms { "next" } else { "later" };
        (state, format!("opens in {}{paused}", span(unix_ms, opens_ms)))
    };
    vec![sale.0.to_string(), planned.name.clone(), state.into(), in_utc(opens_ms), in_utc(closes_ms), remark]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;

    #[test]
    fn each_sale_has_its_state() {
        let sale = |id: u32, opens: u32, closes: u32, more: &str| {
            format!(
                "[[sale]]\nid = {id}\nname = \"S{id}\"\nopens = 2026-12-01T{opens:02}:00:00Z\n\
                 closes = 2026-12-01T{closes:02}:30:00Z\nuser_limit = 1\n{more}\n\
                 [[sale.product]]\nid = \"x\"\nname = \"X\"\nquantity = 1\n"
            )
        };
        let sales = [
            sale(1, 1, 2, ""),
            sale(2, 1, 8, "paused = true"),
            sale(3, 2, 2, "every = \"1h\"\nuntil = 2026-12-01T08:00:00Z"),
            sale(20, 8, 9, ""),
            sale(30, 10, 12, "paused = true"),
        ];
        let plan = read_plan(&PlanText::new("x.toml", sales.concat()), &|_| Err("no lists".into())).unwrap();
        let hour = 3_600_000;
        let day = crate::plan::plan_time::parse("2026-12-01T00:00:00Z").unwrap();
        let states = |unix_ms| {
            let text = at_moment(&plan, unix_ms);
            let rows = text.lines().skip(3).map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim));
            let rows =
                rows.map(|mut row| format!("{} {}, {}", row.next().unwrap(), row.nth(1).unwrap(), row.nth(2).unwrap()));
            rows.collect::<Vec<_>>()
        };
        assert_eq!(
            states(day + 5 * hour + 900_000),
            [
                "1 over, closed 2h 45m ago",
                "2 paused, closes in 3h 15m",
                "6 open, closes in 15m",
                "7 next, opens in 45m",
                "20 later, opens in 2h 45m",
                "30 later, opens in 4h 45m, paused",
            ]
        );
        assert_eq!(states(day + 9 * hour)[2..4], ["8 over, closed 1h 30m ago", "20 open, closes in 30m"]);
        assert_eq!(states(0).len(), 5);
        assert!(states(day + 100 * hour).iter().all(|state| state.contains(" over, ")));
    }
}
