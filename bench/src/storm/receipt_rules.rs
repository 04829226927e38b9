//! The rules about codes, receipts and repeated purchase requests.

use crate::ledger::{CodeText, LedgerEntry, PurchaseResponse, code_str};
use crate::verification::Verifier;
use std::collections::HashSet;

/// Checks that codes are unique, that receipts do not change, and that repeated requests confirm them.
pub fn check(verifier: &mut Verifier<'_>) {
    verifier.codes_are_unique();
    verifier.responses_do_not_change();
    verifier.repeated_requests_confirm();
}

impl Verifier<'_> {
    fn codes_are_unique(&mut self) {
        let mut seen: HashSet<&CodeText> = HashSet::new();
        for LedgerEntry { user, item, code, .. } in &self.ledger.reservations {
            if !seen.insert(code) {
                let code = code_str(code);
                self.find("code-given-twice", format!("{code} was given out again, to user {user} for item {item}"));
            }
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
}

#[cfg(test)]
mod tests {
    use crate::ledger::{PurchaseReceipt, PurchaseResponse};
    use crate::verification::Evidence;
    use crate::verification::tests::{code, found, receipt, refused};

    #[test]
    fn codes_given_twice_are_found() {
        let violations = found(|ledger, _| ledger.reservations[2].code = code(1));
        assert_eq!(violations[0], "code-given-twice");
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
}
