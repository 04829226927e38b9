//! The verification of a run: checks the ledger for contradictions, and against the evidence collected after the run.
//! Pure: nothing here performs I/O.

use crate::ledger::{CodeText, Ledger, LedgerEntry, PurchaseResponse, code_str};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Maximum difference between the clocks of the server and of this machine, in milliseconds.
const CLOCK_SKEW_MS: u64 = 1000;

/// The state of a sale: the body of `GET /sale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SaleSnapshot {
    /// Sale id.
    pub sale_id: u64,
    /// Number of items in the sale.
    pub items_total: u32,
    /// Number of sold items.
    pub sold: u32,
    /// Number of held items.
    pub reserved: u32,
    /// Number of available items.
    pub available: u32,
    /// Maximum number of items that a user may hold and buy.
    pub user_limit: u32,
}

/// A row of the `purchases` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseRow {
    /// Sale id.
    pub sale: u64,
    /// Item id.
    pub item: u32,
    /// User id.
    pub user: i64,
    /// Code, as text.
    pub code: String,
}

/// The evidence that the ledger is compared with.
#[derive(Debug, Default)]
pub struct Evidence {
    /// State of the sale before the run.
    pub before: SaleSnapshot,
    /// State of the sale after the run.
    pub after: SaleSnapshot,
    /// Whether other clients may have bought items, too.
    pub others_buy: bool,
    /// Whether all checkouts named one product. Then `sold-out` is about the product, not about the sale.
    pub buys_one_product: bool,
    /// Whether purchases carried an `Idempotency-Key`.
    pub has_keys: bool,
    /// Indexes of acknowledged purchases, and the responses to their repeated requests.
    pub asked_again: Vec<(usize, PurchaseResponse)>,
    /// Rows of all sales in the ledger, if a database is given.
    pub rows: Option<Vec<PurchaseRow>>,
    /// Operation, outcome and count.
    pub outcomes: Vec<(&'static str, String, u64)>,
}

/// A violation of what the server guarantees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Kind of violation.
    pub violation: &'static str,
    /// Details, with ids and numbers.
    pub detail: String,
}

/// Returns all violations.
pub fn verify(ledger: &Ledger, evidence: &Evidence) -> Vec<Violation> {
    let mut verifier = Verifier { ledger, evidence, violations: Vec::new() };
    verifier.codes_are_unique();
    verifier.items_are_sold_once_within_the_limit();
    verifier.holds_are_within_the_limit();
    verifier.responses_do_not_change();
    verifier.repeated_requests_confirm();
    verifier.the_sale_agrees();
    verifier.sold_out_is_true_and_final();
    verifier.the_database_agrees();
    verifier.outcomes_are_allowed();
    verifier.violations
}

struct Verifier<'a> {
    ledger: &'a Ledger,
    evidence: &'a Evidence,
    violations: Vec<Violation>,
}

impl Verifier<'_> {
    fn find(&mut self, violation: &'static str, detail: String) {
        self.violations.push(Violation { violation, detail });
    }

    fn codes_are_unique(&mut self) {
        let mut seen: HashSet<&CodeText> = HashSet::new();
        for LedgerEntry { user, item, code, .. } in &self.ledger.reservations {
            if !seen.insert(code) {
                let code = code_str(code);
                self.find("code-given-twice", format!("{code} was given out again, to user {user} for item {item}"));
            }
        }
    }

    fn items_are_sold_once_within_the_limit(&mut self) {
        let limit = self.evidence.after.user_limit;
        for (sale, bought) in self.ledger.by_sale(self.evidence.after.sale_id) {
            let mut buyers: HashMap<u32, i64> = HashMap::new();
            let mut of_user: BTreeMap<i64, u32> = BTreeMap::new();
            for LedgerEntry { user, item, .. } in bought {
                if let Some(other) = buyers.insert(*item, *user) {
                    self.find(
                        "item-sold-twice",
                        format!("item {item} of sale {sale} was sold to users {other} and {user}"),
                    );
                }
                *of_user.entry(*user).or_default() += 1;
            }
            for (user, items) in of_user.into_iter().filter(|(_, items)| *items > limit) {
                self.find(
                    "user-over-limit",
                    format!("user {user} bought {items} items of sale {sale}; the limit is {limit}"),
                );
            }
        }
    }

    /// A hold counts from the arrival of its code until its expiry, less the difference of the clocks.
    fn holds_are_within_the_limit(&mut self) {
        let limit = self.evidence.after.user_limit as usize;
        let mut holds: HashMap<i64, VecDeque<u64>> = HashMap::new();
        let mut over_limit = BTreeMap::new();
        for reservation in &self.ledger.reservations {
            let Some(expires) = reservation.expires_ms else { continue };
            let ends = holds.entry(reservation.user).or_default();
            ends.retain(|end| *end > reservation.received_ms);
            ends.push_back(expires.saturating_sub(CLOCK_SKEW_MS));
            if ends.len() > limit {
                over_limit.insert(reservation.user, ends.len());
            }
        }
        for (user, items) in over_limit {
            self.find("user-holds-too-much", format!("user {user} held {items} items at once; the limit is {limit}"));
        }
    }

    fn responses_do_not_change(&mut self) {
        for reservation in &self.ledger.reservations {
            let LedgerEntry { item, code, responses, .. } = reservation;
            let code = code_str(code);
            for (index, response) in responses.iter().enumerate() {
                let before = &responses[..index];
                let was_bought = before.iter().any(|response| matches!(response, PurchaseResponse::Bought(_)));
                match response {
                    PurchaseResponse::Bought(receipt) if receipt.item != *item => {
                        let other = receipt.item;
                        let detail = format!("{code} reserved item {item}, but its receipt is for item {other}");
                        self.find("wrong-receipt", detail);
                    }
                    PurchaseResponse::Bought(receipt) if reservation.receipt() != Some(receipt) => {
                        self.find("receipt-changed", format!("{code}: the receipt changed to {}", receipt.text));
                    }
                    PurchaseResponse::Refused(why) if why == "code-used" && self.evidence.has_keys => {
                        let detail = format!("{code}: a repeated request with the same key was refused with {why}");
                        self.find("key-forgotten", detail);
                    }
                    PurchaseResponse::Refused(why) if why == "code-used" && before.is_empty() => {
                        self.find(
                            "used-by-nobody",
                            format!("{code}: the first purchase request was refused with {why}"),
                        );
                    }
                    PurchaseResponse::Refused(why) if why != "code-used" && why != "sale-ended" && was_bought => {
                        let detail = format!("{code} was purchased, but a later request was refused with {why}");
                        self.find("purchase-taken-back", detail);
                    }
                    PurchaseResponse::Bought(_) | PurchaseResponse::Refused(_) | PurchaseResponse::Unknown => {}
                }
            }
        }
    }

    fn repeated_requests_confirm(&mut self) {
        for (index, response) in &self.evidence.asked_again {
            let reservation = &self.ledger.reservations[*index];
            let confirms = match response {
                PurchaseResponse::Bought(receipt) => {
                    self.evidence.has_keys && reservation.receipt().is_none_or(|first| first == receipt)
                }
                PurchaseResponse::Refused(why) if why == "sale-ended" => {
                    self.evidence.after.sale_id != self.evidence.before.sale_id
                }
                PurchaseResponse::Refused(why) => why == "code-used" && !self.evidence.has_keys,
                PurchaseResponse::Unknown => false,
            };
            if !confirms {
                let code = code_str(&reservation.code);
                let detail = format!("{code} was purchased; the repeated request returned {response}");
                self.find("purchase-not-confirmed", detail);
            }
        }
    }

    fn the_sale_agrees(&mut self) {
        let Evidence { before, after, others_buy, .. } = self.evidence;
        let acknowledged = self.ledger.by_sale(after.sale_id).remove(&after.sale_id).map_or(0, |bought| bought.len());
        let unknown = self.ledger.reservations.iter().filter(|reservation| reservation.is_unknown()).count();
        let sold_before = if before.sale_id == after.sale_id { before.sold } else { 0 };
        let sold = i64::from(after.sold) - i64::from(sold_before);
        let (least, most) = (acknowledged as i64, (acknowledged + unknown) as i64);
        if sold < least || (sold > most && !others_buy) {
            let remedy = if sold > most { "; use --others-buy if other clients buy at the same time" } else { "" };
            let detail = format!(
                "GET /sale counts {sold} more sold items than before; {acknowledged} purchases were acknowledged, \
                 {unknown} are unknown{remedy}"
            );
            self.find("sale-disagrees", detail);
        }
        let SaleSnapshot { items_total, sold, reserved, available, .. } = *after;
        if u64::from(sold) + u64::from(reserved) + u64::from(available) != u64::from(items_total) {
            let detail = format!("{sold} sold + {reserved} reserved + {available} available, of {items_total}");
            self.find("stock-does-not-add-up", detail);
        }
    }

    /// `sold-out` means that every item is bought. It is not judged across the end of a sale, because the response does
    /// not say which sale it is about.
    fn sold_out_is_true_and_final(&mut self) {
        let Evidence { before, after, buys_one_product, .. } = self.evidence;
        let (Some(at), true) = (self.ledger.sold_out_at, before.sale_id == after.sale_id) else { return };
        let at = at.as_secs_f64();
        if after.sold < after.items_total && !buys_one_product {
            let detail =
                format!("a checkout got sold-out after {at:.3} s; {} of {} are sold", after.sold, after.items_total);
            self.find("sold-out-too-early", detail);
        }
        for index in &self.ledger.bought_after_sold_out {
            let LedgerEntry { user, item, .. } = &self.ledger.reservations[*index];
            let detail = format!("a checkout got sold-out after {at:.3} s, then user {user} bought item {item}");
            self.find("sold-out-too-early", detail);
        }
    }

    fn the_database_agrees(&mut self) {
        let Some(rows) = &self.evidence.rows else { return };
        let mut by_code: HashMap<&str, &PurchaseRow> = HashMap::new();
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
            let LedgerEntry { user, item, code, .. } = reservation;
            let code = code_str(code);
            let row = by_code.get(code);
            match row {
                None if reservation.is_bought() => {
                    self.find("row-missing", format!("{code}: user {user} bought item {item}, but there is no row"));
                }
                Some(row) if (row.user, row.item) != (*user, *item) => {
                    let detail = format!(
                        "{code}: user {user}, item {item}; the row has user {} and item {}",
                        row.user, row.item
                    );
                    self.find("row-differs", detail);
                }
                Some(_) if !reservation.is_bought() && !reservation.is_unknown() => {
                    self.find("row-for-nothing", format!("{code} has a row, but its purchase was never acknowledged"));
                }
                Some(_) | None => {}
            }
        }
    }

    /// A well-formed request must have one of these outcomes, whatever the load.
    fn outcomes_are_allowed(&mut self) {
        for (operation, outcome, count) in &self.evidence.outcomes {
            let is_allowed = matches!(
                outcome.as_str(),
                // Results of the sale, of time limits, and of a server under backpressure or during its shutdown.
                "200"
                    | "item-sold"
                    | "item-reserved"
                    | "sold-out"
                    | "all-reserved"
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
    use crate::ledger::PurchaseReceipt;

    fn code(number: usize) -> CodeText {
        format!("{number:036}").into_bytes().try_into().unwrap()
    }

    fn receipt(item: u32) -> PurchaseReceipt {
        PurchaseReceipt { sale: 1, item, text: format!("item {item}").into() }
    }

    fn row(item: u32) -> PurchaseRow {
        PurchaseRow { sale: 1, item, user: 7, code: code_str(&code(item as usize)).to_owned() }
    }

    /// User 7 bought items 0 and 1, and holds item 2 until the tenth second.
    fn history() -> (Ledger, Evidence) {
        let mut ledger = Ledger::default();
        for item in 0..3 {
            let (code, expires_ms) = (code(item as usize), Some(10_000));
            ledger.add_reservation(LedgerEntry {
                user: 7,
                item,
                code,
                received_ms: 0,
                expires_ms,
                responses: Vec::new(),
            });
        }
        ledger.add_response(0, PurchaseResponse::Bought(receipt(0)));
        ledger.add_response(1, PurchaseResponse::Bought(receipt(1)));
        let before = SaleSnapshot { sale_id: 1, items_total: 10, sold: 4, reserved: 0, available: 6, user_limit: 3 };
        let evidence = Evidence {
            before,
            after: SaleSnapshot { sold: 6, reserved: 1, available: 3, ..before },
            asked_again: vec![(0, PurchaseResponse::Refused("code-used".to_owned()))],
            rows: Some(vec![row(0), row(1)]),
            outcomes: vec![("checkout", "200".to_owned(), 3), ("purchase", "200".to_owned(), 2)],
            ..Evidence::default()
        };
        (ledger, evidence)
    }

    /// Returns the violations in a history after `corrupt` has changed it.
    fn found(corrupt: impl FnOnce(&mut Ledger, &mut Evidence)) -> Vec<&'static str> {
        let (mut ledger, mut evidence) = history();
        corrupt(&mut ledger, &mut evidence);
        let mut found: Vec<_> = verify(&ledger, &evidence).iter().map(|found| found.violation).collect();
        found.dedup();
        found
    }

    fn refused(why: &str) -> PurchaseResponse {
        PurchaseResponse::Refused(why.to_owned())
    }

    #[test]
    fn a_good_history_has_no_violation() {
        assert_eq!(found(|_, _| {}), [""; 0]);
        // A purchase whose first response was lost, and whose repeated request was refused with `code-used`.
        assert_eq!(
            found(|ledger, evidence| {
                ledger.add_response(2, PurchaseResponse::Unknown);
                ledger.add_response(2, refused("code-used"));
                evidence.after.sold += 1;
                evidence.after.reserved -= 1;
                evidence.rows.as_mut().unwrap().push(row(2));
            }),
            [""; 0]
        );
        // An unknown purchase may have happened or not.
        assert_eq!(found(|ledger, _| ledger.add_response(2, PurchaseResponse::Unknown)), [""; 0]);
    }

    #[test]
    fn items_sold_twice_are_found() {
        let violations = found(|ledger, evidence| {
            ledger.reservations[1].item = 0;
            ledger.reservations[1].responses = vec![PurchaseResponse::Bought(receipt(0))];
            evidence.rows = None;
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
            found(|_, evidence| {
                (evidence.before.user_limit, evidence.after.user_limit) = (1, 1);
            }),
            ["user-over-limit", "user-holds-too-much"]
        );
        assert_eq!(found(|_, evidence| evidence.after.user_limit = 2), ["user-holds-too-much"]);
        // The third hold began after the first two had expired.
        assert_eq!(
            found(|ledger, evidence| {
                evidence.after.user_limit = 2;
                ledger.reservations[2].received_ms = 10_000;
            }),
            [""; 0]
        );
    }

    #[test]
    fn receipts_that_are_wrong_or_change_are_found() {
        assert_eq!(
            found(|ledger, _| ledger.reservations[0].responses = vec![PurchaseResponse::Bought(receipt(9))]),
            ["wrong-receipt"]
        );
        assert_eq!(
            found(|ledger, _| ledger
                .add_response(0, PurchaseResponse::Bought(PurchaseReceipt { text: "another".into(), ..receipt(0) }))),
            ["receipt-changed"]
        );
    }

    #[test]
    fn revoked_purchases_are_found() {
        assert_eq!(found(|ledger, _| ledger.add_response(0, refused("code-expired"))), ["purchase-taken-back"]);
        assert_eq!(found(|ledger, _| ledger.add_response(0, refused("code-unknown"))), ["purchase-taken-back"]);
    }

    #[test]
    fn forgotten_keys_and_codes_used_by_others_are_found() {
        let with_keys = |evidence: &mut Evidence| {
            evidence.has_keys = true;
            evidence.asked_again = vec![(0, PurchaseResponse::Bought(receipt(0)))];
        };
        assert_eq!(found(|_, evidence| with_keys(evidence)), [""; 0]);
        assert_eq!(
            found(|ledger, evidence| {
                with_keys(evidence);
                ledger.add_response(0, refused("code-used"));
            }),
            ["key-forgotten"]
        );
        assert_eq!(
            found(|ledger, _| ledger.reservations[0].responses = vec![refused("code-used")]),
            ["used-by-nobody"]
        );
    }

    #[test]
    fn unconfirmed_purchases_are_found() {
        for response in [
            refused("code-unknown"),
            refused("sale-ended"),
            PurchaseResponse::Unknown,
            PurchaseResponse::Bought(receipt(0)),
        ] {
            let violations = found(|_, evidence| evidence.asked_again = vec![(0, response)]);
            assert_eq!(violations, ["purchase-not-confirmed"], "without a key");
        }
        for response in [refused("code-used"), PurchaseResponse::Bought(receipt(1))] {
            let violations = found(|_, evidence| {
                evidence.has_keys = true;
                evidence.asked_again = vec![(0, response)];
            });
            assert_eq!(violations, ["purchase-not-confirmed"], "with a key");
        }
    }

    #[test]
    fn a_sale_with_other_counts_is_found() {
        assert_eq!(
            found(|_, evidence| (evidence.after.sold, evidence.after.available) = (5, 4)),
            ["sale-disagrees"],
            "one is lost"
        );
        let one_more = |evidence: &mut Evidence| (evidence.after.sold, evidence.after.available) = (7, 2);
        assert_eq!(found(|_, evidence| one_more(evidence)), ["sale-disagrees"], "one too many");
        assert_eq!(
            found(|_, evidence| {
                one_more(evidence);
                evidence.others_buy = true;
            }),
            [""; 0]
        );
        assert_eq!(found(|_, evidence| evidence.after.reserved = 2), ["stock-does-not-add-up"]);
        // A new sale has begun: the items sold before belong to the previous sale.
        assert_eq!(
            found(|_, evidence| {
                evidence.after.sale_id = 2;
                (evidence.after.sold, evidence.after.available) = (0, 9);
            }),
            [""; 0]
        );
    }

    #[test]
    fn an_early_sold_out_is_found() {
        let sold_out = |ledger: &mut Ledger| ledger.sold_out_at = Some(std::time::Duration::from_secs(1));
        assert_eq!(found(|ledger, _| sold_out(ledger)), ["sold-out-too-early"], "four are left");
        assert_eq!(
            found(|ledger, evidence| {
                sold_out(ledger);
                evidence.buys_one_product = true;
            }),
            [""; 0]
        );
        let all_sold = |evidence: &mut Evidence| {
            (evidence.before.sold, evidence.before.available) = (8, 2);
            (evidence.after.sold, evidence.after.reserved, evidence.after.available) = (10, 0, 0);
        };
        assert_eq!(
            found(|ledger, evidence| {
                sold_out(ledger);
                all_sold(evidence);
            }),
            [""; 0]
        );
        assert_eq!(
            found(|ledger, evidence| {
                sold_out(ledger);
                all_sold(evidence);
                ledger.bought_after_sold_out.push(1);
            }),
            ["sold-out-too-early"]
        );
    }

    #[test]
    fn a_database_with_other_rows_is_found() {
        let rows = |rows: Vec<PurchaseRow>| found(|_, evidence| evidence.rows = Some(rows));
        assert_eq!(rows(vec![row(0)]), ["row-missing"]);
        assert_eq!(rows(vec![row(0), PurchaseRow { user: 8, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), PurchaseRow { item: 5, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), PurchaseRow { code: "other".to_owned(), ..row(1) }]), ["row-twice"]);
        assert_eq!(rows(vec![row(0), row(1), PurchaseRow { item: 9, ..row(1) }]), ["row-twice", "row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), row(2)]), ["row-for-nothing"]);
    }

    #[test]
    fn outcomes_that_are_not_allowed_are_found() {
        for outcome in ["500", "404", "invalid-parameter", "code-unknown", "malformed-request", "not HTTP"] {
            let violations = found(|_, evidence| evidence.outcomes.push(("purchase", outcome.to_owned(), 1)));
            assert_eq!(violations, ["must-not-be"], "{outcome}");
        }
        for outcome in ["overdue", "timed out", "log-full", "sale-ended"] {
            let violations = found(|_, evidence| evidence.outcomes.push(("purchase", outcome.to_owned(), 1)));
            assert_eq!(violations, [""; 0], "{outcome}");
        }
    }
}
