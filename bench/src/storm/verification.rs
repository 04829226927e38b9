//! The verification of a run: checks the ledger for contradictions, and against the evidence collected after the run.
//! Pure: nothing here performs I/O.
//!
//! The rules are in three files: [`receipt_rules`] about codes and the responses to purchases, [`sale_rules`] about the
//! stock, the limits and the times of each sale, and [`row_rules`] about the rows in the database.

use crate::ledger::{Ledger, PurchaseResponse};
use crate::sale_calendar::{CalendarSale, ProductSnapshot};
use crate::{receipt_rules, row_rules, sale_rules};
use serde::{Deserialize, Serialize};

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

/// The evidence about a sale of the calendar.
#[derive(Clone, Debug)]
pub struct SaleEvidence {
    /// The sale before the run.
    pub sale: CalendarSale,
    /// State of the sale after the run.
    pub after: SaleSnapshot,
    /// Its products after the run, in the same order as before. Empty if the server does not have their numbers any more.
    pub products_after: Vec<ProductSnapshot>,
}

/// The evidence that the ledger is compared with.
#[derive(Debug, Default)]
pub struct Evidence {
    /// State of the sale before the run.
    pub before: SaleSnapshot,
    /// State of the sale after the run.
    pub after: SaleSnapshot,
    /// Sales of the calendar, if the run follows one. Then `before` and `after` may be of any of them.
    pub sales: Vec<SaleEvidence>,
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
    /// Number of checkouts whose 200 arrived before the opening that the run measured.
    pub served_before_opening: u64,
}

impl Evidence {
    /// Returns the evidence about the sale with this id, if it is in the calendar.
    pub fn of_sale(&self, sale: u64) -> Option<&SaleEvidence> {
        self.sales.iter().find(|known| known.after.sale_id == sale)
    }

    /// Returns the limit for each user of a sale.
    pub fn user_limit(&self, sale: u64) -> u32 {
        self.of_sale(sale).map_or(self.after.user_limit, |known| known.after.user_limit)
    }
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
    receipt_rules::check(&mut verifier);
    sale_rules::check(&mut verifier);
    row_rules::check(&mut verifier);
    verifier.outcomes_are_allowed();
    verifier.violations
}

/// A verification, and what it has found.
pub struct Verifier<'a> {
    /// Reservations of the run, and the responses to their purchases.
    pub ledger: &'a Ledger,
    /// What the ledger is compared with.
    pub evidence: &'a Evidence,
    violations: Vec<Violation>,
}

impl Verifier<'_> {
    /// Adds a violation.
    pub fn find(&mut self, violation: &'static str, detail: String) {
        self.violations.push(Violation { violation, detail });
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
            // Only a run with a calendar knows when these are right: see `refusals_fit_the_phases`.
            let is_allowed =
                is_allowed || !self.evidence.sales.is_empty() && ["not-open", "paused"].contains(&&**outcome);
            if !is_allowed {
                self.find("must-not-be", format!("{operation}: {outcome}, {count} times"));
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::ledger::{CodeText, LedgerEntry, PurchaseReceipt, code_str};

    /// Returns a code.
    pub fn code(number: usize) -> CodeText {
        format!("{number:036}").into_bytes().try_into().unwrap()
    }

    /// Returns the receipt for an item of sale 1.
    pub fn receipt(item: u32) -> PurchaseReceipt {
        PurchaseReceipt { sale: 1, item, text: format!("item {item}").into() }
    }

    /// Returns the row of an item that user 7 bought in sale 1.
    pub fn row(item: u32) -> PurchaseRow {
        PurchaseRow { sale: 1, item, user: 7, code: code_str(&code(item as usize)).to_owned() }
    }

    /// User 7 bought items 0 and 1, and holds item 2 until the tenth second.
    pub fn history() -> (Ledger, Evidence) {
        let mut ledger = Ledger::default();
        for item in 0..3 {
            let (code, expires_ms) = (code(item as usize), Some(10_000));
            ledger.add_reservation(LedgerEntry {
                user: 7,
                item,
                code,
                received_ms: 0,
                expires_ms,
                grant: None,
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
    pub fn found(corrupt: impl FnOnce(&mut Ledger, &mut Evidence)) -> Vec<&'static str> {
        let (mut ledger, mut evidence) = history();
        corrupt(&mut ledger, &mut evidence);
        let mut found: Vec<_> = verify(&ledger, &evidence).iter().map(|found| found.violation).collect();
        found.dedup();
        found
    }

    /// Returns a refusal.
    pub fn refused(why: &str) -> PurchaseResponse {
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
