//! Whether what was told can be true. Pure: it judges a ledger and what was found out afterwards.

use crate::ledger::{Code, Ledger, Reservation, Told, spell};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// A hold may end on the server's clock this long before it does on ours.
const CLOCK_SKEW_MS: u64 = 1000;

/// How a sale stands, as `GET /sale` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sale {
    /// Which sale.
    pub sale_id: u64,
    /// Its stock.
    pub items_total: u32,
    /// Items that are sold.
    pub sold: u32,
    /// Items that are held.
    pub reserved: u32,
    /// Items that are free.
    pub available: u32,
    /// How many one user may hold and buy.
    pub user_limit: u32,
}

/// A purchase in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sale.
    pub sale: u64,
    /// The item.
    pub item: u32,
    /// The buyer.
    pub user: i64,
    /// The code, as it is spelt.
    pub code: String,
}

/// What was found out after the run.
#[derive(Debug, Default)]
pub struct Findings {
    /// Before the run.
    pub before: Sale,
    /// After it.
    pub after: Sale,
    /// Others may have bought, too.
    pub others_buy: bool,
    /// Purchases carried an `Idempotency-Key`.
    pub has_keys: bool,
    /// What was answered when bought reservations, by their places, were asked for again.
    pub asked_again: Vec<(usize, Told)>,
    /// The purchases in the database of all sales in the ledger, if there is one to look into.
    pub rows: Option<Vec<Row>>,
    /// How often each operation had each outcome.
    pub outcomes: Vec<(&'static str, String, u64)>,
}

/// Something that must never happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// What kind of thing.
    pub violation: &'static str,
    /// With names and numbers.
    pub detail: String,
}

/// Every violation, none if all is well.
pub fn verify(ledger: &Ledger, findings: &Findings) -> Vec<Violation> {
    let mut judge = Judge { ledger, findings, violations: Vec::new() };
    judge.codes_are_unique();
    judge.items_are_sold_once_within_the_limit();
    judge.holds_are_within_the_limit();
    judge.answers_do_not_change();
    judge.asking_again_confirms();
    judge.the_sale_agrees();
    judge.the_database_agrees();
    judge.nothing_answered_what_must_not_be();
    judge.violations
}

struct Judge<'a> {
    ledger: &'a Ledger,
    findings: &'a Findings,
    violations: Vec<Violation>,
}

impl Judge<'_> {
    fn find(&mut self, violation: &'static str, detail: String) {
        self.violations.push(Violation { violation, detail });
    }

    fn codes_are_unique(&mut self) {
        let mut seen: HashSet<&Code> = HashSet::new();
        for Reservation { user, item, code, .. } in &self.ledger.reservations {
            if !seen.insert(code) {
                let code = spell(code);
                self.find("code-given-twice", format!("{code}, the second time to user {user} for item {item}"));
            }
        }
    }

    fn items_are_sold_once_within_the_limit(&mut self) {
        let limit = self.findings.after.user_limit;
        for (sale, bought) in self.ledger.by_sale(self.findings.after.sale_id) {
            let mut buyers: HashMap<u32, i64> = HashMap::new();
            let mut of_user: BTreeMap<i64, u32> = BTreeMap::new();
            for Reservation { user, item, .. } in bought {
                if let Some(other) = buyers.insert(*item, *user) {
                    self.find("item-sold-twice", format!("item {item} of sale {sale}, to users {other} and {user}"));
                }
                *of_user.entry(*user).or_default() += 1;
            }
            for (user, items) in of_user.into_iter().filter(|(_, items)| *items > limit) {
                self.find(
                    "user-over-limit",
                    format!("user {user} bought {items} items of sale {sale}; {limit} allowed"),
                );
            }
        }
    }

    /// A hold lasts from when it was told until it expires, less what clocks may differ.
    fn holds_are_within_the_limit(&mut self) {
        let limit = self.findings.after.user_limit as usize;
        let mut holds: HashMap<i64, VecDeque<u64>> = HashMap::new();
        let mut greedy = BTreeMap::new();
        for reservation in &self.ledger.reservations {
            let Some(expires) = reservation.expires_ms else { continue };
            let ends = holds.entry(reservation.user).or_default();
            ends.retain(|end| *end > reservation.told_ms);
            ends.push_back(expires.saturating_sub(CLOCK_SKEW_MS));
            if ends.len() > limit {
                greedy.insert(reservation.user, ends.len());
            }
        }
        for (user, items) in greedy {
            self.find("user-holds-too-much", format!("user {user} held {items} items at once; {limit} allowed"));
        }
    }

    fn answers_do_not_change(&mut self) {
        for reservation in &self.ledger.reservations {
            let Reservation { item, code, told, .. } = reservation;
            let code = spell(code);
            for (place, told) in told.iter().enumerate() {
                let before = &reservation.told[..place];
                let was_bought = before.iter().any(|told| matches!(told, Told::Bought(_)));
                match told {
                    Told::Bought(receipt) if receipt.item != *item => {
                        let other = receipt.item;
                        self.find("wrong-receipt", format!("{code} reserved item {item}, its receipt is for {other}"));
                    }
                    Told::Bought(receipt) if reservation.receipt() != Some(receipt) => {
                        self.find("receipt-changed", format!("{code}: first one receipt, then {}", receipt.text));
                    }
                    Told::Refused(why) if why == "code-used" && self.findings.has_keys => {
                        self.find("key-forgotten", format!("{code} was asked for again with its key: {why}"));
                    }
                    Told::Refused(why) if why == "code-used" && before.is_empty() => {
                        self.find("used-by-nobody", format!("{code} was used before it was asked for"));
                    }
                    Told::Refused(why) if why != "code-used" && why != "sale-ended" && was_bought => {
                        self.find("purchase-taken-back", format!("{code} was bought, and then {why}"));
                    }
                    Told::Bought(_) | Told::Refused(_) | Told::Unknown => {}
                }
            }
        }
    }

    fn asking_again_confirms(&mut self) {
        for (place, told) in &self.findings.asked_again {
            let reservation = &self.ledger.reservations[*place];
            let confirms = match told {
                Told::Bought(receipt) => {
                    self.findings.has_keys && reservation.receipt().is_none_or(|first| first == receipt)
                }
                Told::Refused(why) if why == "sale-ended" => {
                    self.findings.after.sale_id != self.findings.before.sale_id
                }
                Told::Refused(why) => why == "code-used" && !self.findings.has_keys,
                Told::Unknown => false,
            };
            if !confirms {
                let code = spell(&reservation.code);
                self.find("purchase-not-confirmed", format!("{code} was bought; asked again at the end: {told:?}"));
            }
        }
    }

    fn the_sale_agrees(&mut self) {
        let Findings { before, after, others_buy, .. } = self.findings;
        let told = self.ledger.by_sale(after.sale_id).remove(&after.sale_id).map_or(0, |bought| bought.len());
        let unknown = self.ledger.reservations.iter().filter(|reservation| reservation.is_unknown()).count();
        let sold_before = if before.sale_id == after.sale_id { before.sold } else { 0 };
        let sold = i64::from(after.sold) - i64::from(sold_before);
        let (least, most) = (told as i64, (told + unknown) as i64);
        if sold < least || (sold > most && !others_buy) {
            let remedy = if sold > most { "; if others buy meanwhile, say --others-buy" } else { "" };
            let detail = format!(
                "GET /sale counts {sold} more than before; {told} purchases were acknowledged, {unknown} are unknown{remedy}"
            );
            self.find("sale-disagrees", detail);
        }
        let Sale { items_total, sold, reserved, available, .. } = *after;
        if u64::from(sold) + u64::from(reserved) + u64::from(available) != u64::from(items_total) {
            let detail = format!("{sold} sold + {reserved} reserved + {available} available, of {items_total}");
            self.find("stock-does-not-add-up", detail);
        }
    }

    fn the_database_agrees(&mut self) {
        let Some(rows) = &self.findings.rows else { return };
        let mut by_code: HashMap<&str, &Row> = HashMap::new();
        let mut items = HashSet::new();
        for row in rows {
            if !items.insert((row.sale, row.item)) {
                self.find("row-twice", format!("item {} of sale {} has two rows", row.item, row.sale));
            }
            if by_code.insert(&row.code, row).is_some() {
                self.find("row-twice", format!("code {} has two rows", row.code));
            }
        }
        for reservation in &self.ledger.reservations {
            let Reservation { user, item, code, .. } = reservation;
            let code = spell(code);
            let row = by_code.get(code);
            match row {
                None if reservation.is_bought() => {
                    self.find("row-missing", format!("{code}: user {user} bought item {item}, and has no row"));
                }
                Some(row) if (row.user, row.item) != (*user, *item) => {
                    let detail = format!("{code}: user {user}, item {item}; in its row {} and {}", row.user, row.item);
                    self.find("row-differs", detail);
                }
                Some(_) if !reservation.is_bought() && !reservation.is_unknown() => {
                    self.find("row-for-nothing", format!("{code} has a row, and its purchase was never acknowledged"));
                }
                Some(_) | None => {}
            }
        }
    }

    /// What a well-formed request must never be answered, whatever the load.
    fn nothing_answered_what_must_not_be(&mut self) {
        for (operation, outcome, count) in &self.findings.outcomes {
            let is_allowed = matches!(
                outcome.as_str(),
                // What a sale says, what time does, and what a server under pressure or going away may say.
                "200"
                    | "item-sold"
                    | "item-reserved"
                    | "user-limit"
                    | "code-used"
                    | "code-expired"
                    | "sale-ended"
                    | "log-full"
                    | "not-ready"
                    | "too-many-connections"
                    | "overdue"
                    | "timed out"
                    | "disconnected"
                    | "hung up"
                    | "not asked"
            );
            if !is_allowed {
                self.find("must-not-be", format!("{operation}: {outcome}, {count} times"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Receipt;

    fn code(number: usize) -> Code {
        format!("{number:036}").into_bytes().try_into().unwrap()
    }

    fn receipt(item: u32) -> Receipt {
        Receipt { sale: 1, item, text: format!("item {item}").into() }
    }

    fn row(item: u32) -> Row {
        Row { sale: 1, item, user: 7, code: spell(&code(item as usize)).to_owned() }
    }

    /// User 7 bought items 0 and 1, and holds item 2 until the tenth second.
    fn history() -> (Ledger, Findings) {
        let mut ledger = Ledger::default();
        for item in 0..3 {
            let (code, expires_ms) = (code(item as usize), Some(10_000));
            ledger.reserve(Reservation { user: 7, item, code, told_ms: 0, expires_ms, told: Vec::new() });
        }
        ledger.tell(0, Told::Bought(receipt(0)));
        ledger.tell(1, Told::Bought(receipt(1)));
        let before = Sale { sale_id: 1, items_total: 10, sold: 4, reserved: 0, available: 6, user_limit: 3 };
        let findings = Findings {
            before,
            after: Sale { sold: 6, reserved: 1, available: 3, ..before },
            asked_again: vec![(0, Told::Refused("code-used".to_owned()))],
            rows: Some(vec![row(0), row(1)]),
            outcomes: vec![("checkout", "200".to_owned(), 3), ("purchase", "200".to_owned(), 2)],
            ..Findings::default()
        };
        (ledger, findings)
    }

    /// What is found in a history that `spoil` has been at.
    fn found(spoil: impl FnOnce(&mut Ledger, &mut Findings)) -> Vec<&'static str> {
        let (mut ledger, mut findings) = history();
        spoil(&mut ledger, &mut findings);
        let mut found: Vec<_> = verify(&ledger, &findings).iter().map(|found| found.violation).collect();
        found.dedup();
        found
    }

    fn refused(why: &str) -> Told {
        Told::Refused(why.to_owned())
    }

    #[test]
    fn a_good_history_has_no_violation() {
        assert_eq!(found(|_, _| {}), [""; 0]);
        // A repeated purchase that was lost, and one that was told late.
        assert_eq!(
            found(|ledger, findings| {
                ledger.tell(2, Told::Unknown);
                ledger.tell(2, refused("code-used"));
                findings.after.sold += 1;
                findings.after.reserved -= 1;
                findings.rows.as_mut().unwrap().push(row(2));
            }),
            [""; 0]
        );
        // An unknown purchase may have happened or not.
        assert_eq!(found(|ledger, _| ledger.tell(2, Told::Unknown)), [""; 0]);
    }

    #[test]
    fn items_sold_twice_are_found() {
        let violations = found(|ledger, findings| {
            ledger.reservations[1].item = 0;
            ledger.reservations[1].told = vec![Told::Bought(receipt(0))];
            findings.rows = None;
        });
        assert_eq!(violations, ["item-sold-twice"]);
    }

    #[test]
    fn codes_given_twice_are_found() {
        let violations = found(|ledger, _| ledger.reservations[2].code = code(1));
        assert_eq!(violations[0], "code-given-twice");
    }

    #[test]
    fn users_over_the_limit_are_found_buying_and_holding() {
        assert_eq!(
            found(|_, findings| {
                (findings.before.user_limit, findings.after.user_limit) = (1, 1);
            }),
            ["user-over-limit", "user-holds-too-much"]
        );
        assert_eq!(found(|_, findings| findings.after.user_limit = 2), ["user-holds-too-much"]);
        // The third was given when the first two had ended.
        assert_eq!(
            found(|ledger, findings| {
                findings.after.user_limit = 2;
                ledger.reservations[2].told_ms = 10_000;
            }),
            [""; 0]
        );
    }

    #[test]
    fn receipts_that_are_wrong_or_change_are_found() {
        assert_eq!(found(|ledger, _| ledger.reservations[0].told = vec![Told::Bought(receipt(9))]), ["wrong-receipt"]);
        assert_eq!(
            found(|ledger, _| ledger.tell(0, Told::Bought(Receipt { text: "another".into(), ..receipt(0) }))),
            ["receipt-changed"]
        );
    }

    #[test]
    fn purchases_taken_back_are_found() {
        assert_eq!(found(|ledger, _| ledger.tell(0, refused("code-expired"))), ["purchase-taken-back"]);
        assert_eq!(found(|ledger, _| ledger.tell(0, refused("code-unknown"))), ["purchase-taken-back"]);
    }

    #[test]
    fn a_key_that_is_forgotten_is_found_and_a_code_that_nobody_used() {
        let with_keys = |findings: &mut Findings| {
            findings.has_keys = true;
            findings.asked_again = vec![(0, Told::Bought(receipt(0)))];
        };
        assert_eq!(found(|_, findings| with_keys(findings)), [""; 0]);
        assert_eq!(
            found(|ledger, findings| {
                with_keys(findings);
                ledger.tell(0, refused("code-used"));
            }),
            ["key-forgotten"]
        );
        assert_eq!(found(|ledger, _| ledger.reservations[0].told = vec![refused("code-used")]), ["used-by-nobody"]);
    }

    #[test]
    fn a_purchase_that_is_not_confirmed_is_found() {
        for told in [refused("code-unknown"), refused("sale-ended"), Told::Unknown, Told::Bought(receipt(0))] {
            let violations = found(|_, findings| findings.asked_again = vec![(0, told)]);
            assert_eq!(violations, ["purchase-not-confirmed"], "without a key");
        }
        for told in [refused("code-used"), Told::Bought(receipt(1))] {
            let violations = found(|_, findings| {
                findings.has_keys = true;
                findings.asked_again = vec![(0, told)];
            });
            assert_eq!(violations, ["purchase-not-confirmed"], "with a key");
        }
    }

    #[test]
    fn a_sale_that_counts_otherwise_is_found() {
        assert_eq!(
            found(|_, findings| (findings.after.sold, findings.after.available) = (5, 4)),
            ["sale-disagrees"],
            "one is lost"
        );
        let one_more = |findings: &mut Findings| (findings.after.sold, findings.after.available) = (7, 2);
        assert_eq!(found(|_, findings| one_more(findings)), ["sale-disagrees"], "one too many");
        assert_eq!(
            found(|_, findings| {
                one_more(findings);
                findings.others_buy = true;
            }),
            [""; 0]
        );
        assert_eq!(found(|_, findings| findings.after.reserved = 2), ["stock-does-not-add-up"]);
        // The hour has turned: what was sold before belongs to another sale.
        assert_eq!(
            found(|_, findings| {
                findings.after.sale_id = 2;
                (findings.after.sold, findings.after.available) = (0, 9);
            }),
            [""; 0]
        );
    }

    #[test]
    fn a_database_that_says_otherwise_is_found() {
        let rows = |rows: Vec<Row>| found(|_, findings| findings.rows = Some(rows));
        assert_eq!(rows(vec![row(0)]), ["row-missing"]);
        assert_eq!(rows(vec![row(0), Row { user: 8, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), Row { item: 5, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), Row { code: "other".to_owned(), ..row(1) }]), ["row-twice"]);
        assert_eq!(rows(vec![row(0), row(1), Row { item: 9, ..row(1) }]), ["row-twice", "row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), row(2)]), ["row-for-nothing"]);
    }

    #[test]
    fn answers_that_must_not_be_are_found() {
        for outcome in ["500", "404", "invalid-parameter", "code-unknown", "malformed-request", "not HTTP"] {
            let violations = found(|_, findings| findings.outcomes.push(("purchase", outcome.to_owned(), 1)));
            assert_eq!(violations, ["must-not-be"], "{outcome}");
        }
        for outcome in ["overdue", "timed out", "log-full", "sale-ended"] {
            let violations = found(|_, findings| findings.outcomes.push(("purchase", outcome.to_owned(), 1)));
            assert_eq!(violations, [""; 0], "{outcome}");
        }
    }
}
