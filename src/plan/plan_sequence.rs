//! Checks the sales of a plan against each other: ids and openings are in the same order, and codes can be told apart.

use crate::plan::planned_sale::PlannedSale;
use crate::plan::toml_keys::PlanSource;
use crate::sale::code::SALES_BACK_MAX;
use crate::sale::sale_schedule::OPEN_MAX;
use std::ops::Range;

/// Number of ids after which the part of an id that is in a code is the same again.
const IDS_IN_CODES: u32 = 2 * SALES_BACK_MAX as u32;

/// Reports the mistakes of `sales`, each at the place of the id of the sale. The sales are in the order of the plan.
pub fn check(source: &PlanSource, sales: &[PlannedSale], places: &[Range<usize>]) {
    let mut by_id: Vec<_> = sales.iter().zip(places).collect();
    by_id.sort_by_key(|(sale, place)| (sale.id, place.start));
    for (number, (sale, place)) in by_id.iter().enumerate() {
        let before = &by_id[..number];
        if let Some((previous, _)) = before.last()
            && let Some(wrong) = out_of_order(previous, sale)
        {
            source.mistake((*place).clone(), wrong);
            continue;
        }
        if let Some(wrong) = before.iter().find_map(|(earlier, _)| same_in_codes(earlier, sale)) {
            source.mistake((*place).clone(), wrong);
        }
        let is_open = |other: &PlannedSale| {
            other.openings().latest(sale.opens_ms).is_some_and(|latest| latest.closes_ms > sale.opens_ms)
        };
        let open = 1 + before.iter().filter(|(earlier, _)| is_open(earlier)).count();
        if open > OPEN_MAX {
            let text = format!("when this sale opens, {open} sales are open; at most {OPEN_MAX} can be open at once");
            source.mistake((*place).clone(), text);
        }
    }
}

/// Returns what is wrong with the id of a sale, given the sale with the next lower one.
fn out_of_order(previous: &PlannedSale, sale: &PlannedSale) -> Option<String> {
    let (id, line) = (sale.id.0, previous.line);
    let series = previous.openings();
    let last = series.last();
    if previous.id == sale.id {
        Some(format!("the sale in line {line} has the id {id} already"))
    } else if last.sale >= sale.id {
        let ids = format!("the sale in line {line} is repeated and has the ids {} to {}", previous.id.0, last.sale.0);
        let is_endless = previous.repetition.is_some_and(|repetition| repetition.until_ms.is_none());
        let remedy = if is_endless { "end it with \"until\"" } else { "give a higher id" };
        Some(format!("{ids}; {remedy}"))
    } else if last.opens_ms > sale.opens_ms {
        let lower = previous.id.0;
        let text = format!("sale {id} opens before sale {lower} in line {line}");
        let repeated = if series.count > 1 { " has opened for the last time" } else { "" };
        Some(format!("{text}{repeated}; ids must increase in the order in which sales open"))
    } else {
        None
    }
}

/// Returns the ids of two sales whose codes cannot be told apart, as a mistake. Of a sale that is repeated more often than
/// a code can tell, only the repetitions next to the other sale count.
fn same_in_codes(earlier: &PlannedSale, sale: &PlannedSale) -> Option<String> {
    let window = |of: &PlannedSale| of.openings().count.min(SALES_BACK_MAX.into());
    let last = earlier.openings().last().sale.0;
    let (first, count) = (last - (window(earlier) - 1), window(earlier));
    let distance = sale.id.0.wrapping_sub(first) % IDS_IN_CODES;
    let back = (IDS_IN_CODES - distance) % IDS_IN_CODES;
    let (one, other) = if distance < count {
        (first + distance, sale.id.0)
    } else if back < window(sale) {
        (first, sale.id.0 + back)
    } else {
        return None;
    };
    let line = earlier.line;
    Some(format!(
        "the ids {other} and {one} (line {line}) differ by a multiple of {IDS_IN_CODES}, so their codes would look the same"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;

    /// Returns the mistakes of a plan with these sales, each with the line of the plan. A sale has six lines; its id is in
    /// the second one. Times are in hours of one day.
    fn mistakes(sales: &[(u32, u32, u32, &str)]) -> Vec<String> {
        let sale = |(id, opens, closes, more): &(u32, u32, u32, &str)| {
            let time = |hour: &u32| format!("2026-12-{:02}T{:02}:00:00Z", 1 + hour / 24, hour % 24);
            let (opens, closes) = (time(opens), time(closes));
            format!(
                "[[sale]]\nid = {id}\nopens = {opens}\ncloses = {closes}\n{more}\n\
                 product = [{{ id = \"x\", name = \"X\", quantity = 1 }}]\nname = \"S\"\nuser_limit = 1\n"
            )
        };
        let plan = PlanText::new("x.toml", sales.iter().map(sale).collect());
        let found = read_plan(&plan, &|_| Err("no lists".into())).map_or_else(|refused| refused.mistakes, |_| vec![]);
        found.iter().map(|found| format!("{}: {}", found.line, found.text)).collect()
    }

    #[test]
    fn ids_follow_the_openings() {
        assert!(mistakes(&[(9, 3, 4, ""), (1, 1, 2, ""), (2, 1, 5, ""), (7, 2, 3, "")]).is_empty());
        assert_eq!(mistakes(&[(1, 1, 2, ""), (1, 3, 4, "")]), ["10: the sale in line 1 has the id 1 already"]);
        let order = "10: sale 2 opens before sale 1 in line 1; ids must increase in the order in which sales open";
        assert_eq!(mistakes(&[(1, 3, 4, ""), (2, 1, 2, "")]), [order]);
    }

    #[test]
    fn a_repeated_sale_has_an_id_for_each_repetition() {
        let hourly = "every = \"1h\"\nuntil = 2026-12-01T10:00:00Z";
        assert!(mistakes(&[(5, 1, 2, hourly), (14, 10, 12, ""), (15, 11, 12, "every = \"1day\"")]).is_empty());
        let taken = "11: the sale in line 1 is repeated and has the ids 5 to 13; give a higher id";
        assert_eq!(mistakes(&[(5, 1, 2, hourly), (13, 10, 12, "")]), [taken]);
        let early = "11: sale 14 opens before sale 5 in line 1 has opened for the last time; ids must increase in the \
                     order in which sales open";
        assert_eq!(mistakes(&[(5, 1, 2, hourly), (14, 8, 12, "")]), [early]);
        let endless = mistakes(&[(5, 1, 2, "every = \"1h\""), (6, 10, 12, "")]);
        assert!(endless[0].starts_with("10: ") && endless[0].ends_with("; end it with \"until\""), "{endless:?}");
    }

    #[test]
    fn codes_of_two_sales_look_different() {
        assert!(mistakes(&[(1, 1, 2, ""), (65_536, 3, 4, ""), (65_538, 5, 6, "")]).is_empty());
        let same = "10: the ids 65537 and 1 (line 1) differ by a multiple of 65536, so their codes would look the same";
        assert_eq!(mistakes(&[(1, 1, 2, ""), (65_537, 3, 4, "")]), [same]);
        // One of the repetitions has such an id.
        let later = mistakes(&[(7, 1, 2, ""), (65_540, 3, 4, "every = \"1h\"")]);
        assert!(later.len() == 1 && later[0].starts_with("10: the ids 65543 and 7 (line 1)"), "{later:?}");
        let seconds = "every = \"1h\"\nuntil = 2026-12-20T00:00:00Z";
        let earlier = mistakes(&[(7, 1, 2, seconds), (65_550, 500, 501, "")]);
        assert!(earlier.len() == 1 && earlier[0].starts_with("11: the ids 65550 and 14 (line 1)"), "{earlier:?}");
    }

    #[test]
    fn only_so_many_sales_are_open_at_once() {
        let mut sales: Vec<_> = (0..OPEN_MAX as u32).map(|id| (id + 1, id, 30, "")).collect();
        assert!(mistakes(&sales).is_empty());
        sales.push((50, 29, 31, ""));
        let line = 9 * OPEN_MAX + 2;
        let many = "when this sale opens, 17 sales are open; at most 16 can be open at once";
        assert!(mistakes(&sales)[0].ends_with(many), "{:?} {line}", mistakes(&sales));
        sales.last_mut().unwrap().1 = 30;
        assert!(mistakes(&sales).is_empty());
    }
}
