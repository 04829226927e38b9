//! The rules about the stock, the limits and the times of each sale.

use crate::ledger::{CalendarGrant, LedgerEntry, StockScope};
use crate::verification::{Evidence, SaleEvidence, SaleSnapshot, Verifier};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Maximum difference between the clocks of the server and of this machine, in milliseconds.
const CLOCK_SKEW_MS: u64 = 1000;

/// Checks that nothing is sold twice, to a user above the limit, or while the sale is closed, that the counts of the server
/// agree, and that refusals are true.
pub fn check(verifier: &mut Verifier<'_>) {
    verifier.items_are_sold_once_within_the_limit();
    verifier.holds_are_within_the_limit();
    verifier.counts_agree();
    verifier.sold_out_is_true_and_final();
    verifier.sales_serve_while_they_are_open();
    verifier.refusals_fit_the_phases();
}

impl Verifier<'_> {
    fn items_are_sold_once_within_the_limit(&mut self) {
        for (sale, bought) in self.ledger.by_sale(self.evidence.after.sale_id) {
            let limit = self.evidence.user_limit(sale);
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
        let current = self.evidence.after.sale_id;
        let mut holds: HashMap<(u64, i64), VecDeque<u64>> = HashMap::new();
        let mut over_limit = BTreeMap::new();
        for reservation in &self.ledger.reservations {
            let Some(expires) = reservation.expires_ms else { continue };
            let sale = reservation.grant.map_or(current, |grant| grant.sale);
            let limit = self.evidence.user_limit(sale);
            let ends = holds.entry((sale, reservation.user)).or_default();
            ends.retain(|end| *end > reservation.received_ms);
            ends.push_back(expires.saturating_sub(CLOCK_SKEW_MS));
            if ends.len() > limit as usize {
                over_limit.insert(reservation.user, (ends.len(), sale, limit));
            }
        }
        for (user, (items, sale, limit)) in over_limit {
            let detail = format!("user {user} held {items} items of sale {sale} at once; the limit is {limit}");
            self.find("user-holds-too-much", detail);
        }
    }

    fn counts_agree(&mut self) {
        let Evidence { before, after, sales, .. } = self.evidence;
        let reservations = &self.ledger.reservations;
        if sales.is_empty() {
            let bought = self.ledger.by_sale(after.sale_id).remove(&after.sale_id).map_or(0, |bought| bought.len());
            let unknown = reservations.iter().filter(|reservation| reservation.is_unknown()).count();
            let sold_before = if before.sale_id == after.sale_id { before.sold } else { 0 };
            self.compare_sold("GET /sale", (sold_before, after.sold), (bought, unknown));
            self.stock_adds_up(after);
        }
        // Returns the numbers of acknowledged and of unknown purchases.
        let purchases = |is_meant: &dyn Fn(&LedgerEntry) -> bool| {
            let meant = reservations.iter().filter(|reservation| is_meant(reservation));
            let (bought, others): (Vec<_>, Vec<_>) = meant.partition(|reservation| reservation.is_bought());
            (bought.len(), others.into_iter().filter(|reservation| reservation.is_unknown()).count())
        };
        for SaleEvidence { sale, after, products_after } in sales {
            let id = after.sale_id;
            let of_sale = purchases(&|reservation| reservation.sale() == Some(id));
            self.compare_sold(&format!("GET /sales/{id}"), (sale.before.sold, after.sold), of_sale);
            self.stock_adds_up(after);
            for (index, (before, after)) in sale.products.iter().zip(products_after).enumerate() {
                let of_product = purchases(&|reservation| {
                    reservation.sale() == Some(id) && reservation.grant.and_then(|grant| grant.product) == Some(index)
                });
                let page = format!("GET /products/{}?sale_id={id}", after.product_id);
                self.compare_sold(&page, (before.sold, after.sold), of_product);
            }
        }
    }

    /// Compares the sold items that `page` counted before and after the run with the acknowledged and the unknown purchases.
    fn compare_sold(&mut self, page: &str, (before, after): (u32, u32), (bought, unknown): (usize, usize)) {
        let sold = i64::from(after) - i64::from(before);
        let (least, most) = (bought as i64, (bought + unknown) as i64);
        if sold < least || (sold > most && !self.evidence.others_buy) {
            let remedy = if sold > most { "; use --others-buy if other clients buy at the same time" } else { "" };
            let detail = format!(
                "{page} counts {sold} more sold items than before; {bought} purchases were acknowledged, \
                 {unknown} are unknown{remedy}"
            );
            self.find("sale-disagrees", detail);
        }
    }

    fn stock_adds_up(&mut self, sale: &SaleSnapshot) {
        let SaleSnapshot { items_total, sold, reserved, available, .. } = *sale;
        if u64::from(sold) + u64::from(reserved) + u64::from(available) != u64::from(items_total) {
            let detail = format!("{sold} sold + {reserved} reserved + {available} available, of {items_total}");
            self.find("stock-does-not-add-up", detail);
        }
    }

    /// `sold-out` means that every item of the stock is bought. Without a calendar it is not judged across the end of a
    /// sale, because the response does not say which sale it is about.
    fn sold_out_is_true_and_final(&mut self) {
        let Evidence { before, after, buys_one_product, .. } = self.evidence;
        let is_judged = |scope: &StockScope| scope.sale.is_some() || before.sale_id == after.sale_id;
        for (scope, at) in self.ledger.sold_out.iter().filter(|(scope, _)| is_judged(scope)) {
            let known = scope.sale.and_then(|sale| self.evidence.of_sale(sale));
            let (sold, total) = match (known, scope.product) {
                (Some(known), Some(product)) => match known.products_after.get(product) {
                    Some(product) => (product.sold, product.items_total),
                    None => continue,
                },
                (Some(known), None) => (known.after.sold, known.after.items_total),
                (None, _) if *buys_one_product => continue,
                (None, _) => (after.sold, after.items_total),
            };
            if sold < total {
                let (what, at) = (name(scope), at.as_secs_f64());
                let detail = format!("a checkout{what} got sold-out after {at:.3} s; {sold} of {total} are sold");
                self.find("sold-out-too-early", detail);
            }
        }
        for (index, scope) in self.ledger.bought_after_sold_out.iter().filter(|(_, scope)| is_judged(scope)) {
            let LedgerEntry { user, item, .. } = &self.ledger.reservations[*index];
            let (what, at) = (name(scope), self.ledger.sold_out[scope].as_secs_f64());
            let detail = format!("a checkout{what} got sold-out after {at:.3} s, then user {user} bought item {item}");
            self.find("sold-out-too-early", detail);
        }
    }

    /// A checkout is granted from the opening of its sale until just before the closing, by the server's own clock: see
    /// [`crate::sale_calendar`]. The opening that the run measures is also judged by the clock of this machine.
    fn sales_serve_while_they_are_open(&mut self) {
        for reservation in &self.ledger.reservations {
            let Some(CalendarGrant { sale, seconds, .. }) = reservation.grant else { continue };
            let Some(SaleEvidence { sale: known, .. }) = self.evidence.of_sale(sale) else { continue };
            let (user, item, opens_s, closes_s) = (reservation.user, reservation.item, known.opens_s, known.closes_s);
            if seconds.to < opens_s {
                let detail = format!(
                    "user {user} got item {item} of sale {sale} in second {} of the server; it opened in {opens_s}",
                    seconds.to
                );
                self.find("served-before-opening", detail);
            }
            if seconds.from >= closes_s {
                let detail = format!(
                    "user {user} asked in second {} of the server or later, and got item {item} of sale {sale}, which had \
                     closed in {closes_s}",
                    seconds.from
                );
                self.find("served-after-closing", detail);
            }
        }
        if self.evidence.served_before_opening > 0 {
            let early = self.evidence.served_before_opening;
            let detail = format!("{early} checkouts got their 200 before the opening, by the clock of this machine");
            self.find("served-before-opening", detail);
        }
    }

    fn refusals_fit_the_phases(&mut self) {
        for (detail, count) in &self.ledger.out_of_phase {
            self.find("refused-out-of-phase", format!("{detail}, {count} times"));
        }
    }
}

/// Returns the name of a stock, as a part of a sentence.
fn name(scope: &StockScope) -> String {
    match (scope.sale, scope.product) {
        (Some(sale), Some(product)) => format!(" of product {product} of sale {sale}"),
        (Some(sale), None) => format!(" of sale {sale}"),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, PurchaseResponse};
    use crate::sale_calendar::ServerSeconds;
    use crate::sale_calendar::tests::calendar;
    use crate::verification::tests::{code, found, receipt};
    use std::time::Duration;

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
        let sold_out = |ledger: &mut Ledger| ledger.add_sold_out(StockScope::default(), Duration::from_secs(1));
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
                ledger.bought_after_sold_out.push((1, StockScope::default()));
            }),
            ["sold-out-too-early"]
        );
    }

    /// Returns the violations in a run of the three sales of a calendar, after `corrupt` has changed it: user 7 bought items
    /// 0 and 1 of sale 1 (product 0), and users 7 and 8 items 4 and 5 of sale 2 (product 1).
    fn found_in_calendar(corrupt: impl FnOnce(&mut Ledger, &mut Evidence)) -> Vec<&'static str> {
        found(|ledger, evidence| {
            ledger.reservations.clear();
            evidence.rows = None;
            evidence.asked_again.clear();
            for (number, (user, sale, item, second)) in
                [(7, 1, 0, 100), (7, 1, 1, 199), (7, 2, 4, 180), (8, 2, 5, 249)].into_iter().enumerate()
            {
                let seconds = ServerSeconds { from: second, to: second };
                ledger.add_reservation(LedgerEntry {
                    user,
                    item,
                    code: code(number),
                    received_ms: second * 1000,
                    expires_ms: Some(second * 1000 + 30_000),
                    grant: Some(CalendarGrant { sale, product: Some(usize::from(item >= 4)), seconds }),
                    responses: Vec::new(),
                });
                let bought = crate::ledger::PurchaseReceipt { sale, ..receipt(item) };
                ledger.add_response(number, PurchaseResponse::Bought(bought));
            }
            evidence.sales = calendar().sales.into_iter().map(|sale| evidence_of(sale, [0, 0])).collect();
            sell(&mut evidence.sales[0], [2, 0]);
            sell(&mut evidence.sales[1], [0, 2]);
            corrupt(ledger, evidence);
        })
    }

    fn evidence_of(sale: crate::sale_calendar::CalendarSale, sold: [u32; 2]) -> SaleEvidence {
        let (after, products_after) = (sale.before, sale.products.clone());
        let mut evidence = SaleEvidence { sale, after, products_after };
        sell(&mut evidence, sold);
        evidence
    }

    /// Sets how many items of each product the server says it has sold.
    fn sell(sale: &mut SaleEvidence, sold: [u32; 2]) {
        sale.after.sold = sold.iter().sum();
        sale.after.available = sale.after.items_total - sale.after.sold;
        for (product, sold) in sale.products_after.iter_mut().zip(sold) {
            product.sold = sold;
        }
    }

    fn grant(ledger: &mut Ledger, index: usize) -> &mut CalendarGrant {
        ledger.reservations[index].grant.as_mut().unwrap()
    }

    #[test]
    fn each_sale_of_a_calendar_has_its_stock_and_its_limit() {
        assert_eq!(found_in_calendar(|_, _| {}), [""; 0]);
        let limit = |evidence: &mut Evidence, sale: usize| evidence.sales[sale].after.user_limit = 1;
        assert_eq!(found_in_calendar(|_, evidence| limit(evidence, 1)), [""; 0], "each user bought one in sale 2");
        assert_eq!(found_in_calendar(|_, evidence| limit(evidence, 0))[0], "user-over-limit");
        let twice = found_in_calendar(|ledger, _| {
            ledger.reservations[3].item = 4;
            let bought = crate::ledger::PurchaseReceipt { sale: 2, ..receipt(4) };
            ledger.reservations[3].responses = vec![PurchaseResponse::Bought(bought)];
        });
        assert_eq!(twice, ["item-sold-twice"]);
    }

    #[test]
    fn a_sale_or_product_of_a_calendar_with_other_counts_is_found() {
        assert_eq!(found_in_calendar(|_, evidence| sell(&mut evidence.sales[0], [3, 0])), ["sale-disagrees"]);
        assert_eq!(found_in_calendar(|_, evidence| sell(&mut evidence.sales[2], [0, 1])), ["sale-disagrees"]);
        assert_eq!(
            found_in_calendar(|_, evidence| sell(&mut evidence.sales[0], [1, 1])),
            ["sale-disagrees"],
            "by product"
        );
        let gone = found_in_calendar(|_, evidence| {
            sell(&mut evidence.sales[0], [1, 1]);
            evidence.sales[0].products_after.clear();
        });
        assert_eq!(gone, [""; 0], "the server does not have the numbers of the products any more");
        let others = found_in_calendar(|_, evidence| {
            sell(&mut evidence.sales[0], [3, 1]);
            evidence.others_buy = true;
        });
        assert_eq!(others, [""; 0]);
    }

    #[test]
    fn nobody_is_served_outside_of_the_times_of_a_sale() {
        let served = |index: usize, from: u64, to: u64| {
            found_in_calendar(|ledger, _| grant(ledger, index).seconds = ServerSeconds { from, to })
        };
        assert_eq!(served(0, 98, 99), ["served-before-opening"]);
        assert_eq!(served(0, 99, 100), [""; 0], "it may have opened meanwhile");
        assert_eq!(served(1, 199, 201), [""; 0], "it may have been decided before the closing");
        assert_eq!(served(1, 200, 200), ["served-after-closing"]);
        assert_eq!(served(2, 149, 149), ["served-before-opening"], "sale 1 was open, sale 2 was not");
        let by_own_clock = found_in_calendar(|_, evidence| evidence.served_before_opening = 1);
        assert_eq!(by_own_clock, ["served-before-opening"]);
    }

    #[test]
    fn refusals_out_of_phase_and_early_sold_outs_are_found() {
        let out_of_phase = found_in_calendar(|ledger, _| _ = ledger.out_of_phase.insert("not-open".to_owned(), 2));
        assert_eq!(out_of_phase, ["refused-out-of-phase"]);
        let sold_out = |product, sold| {
            found_in_calendar(|ledger, evidence| {
                ledger.add_sold_out(StockScope { sale: Some(1), product }, Duration::from_secs(1));
                sell(&mut evidence.sales[0], sold);
                evidence.others_buy = true;
            })
        };
        assert_eq!(sold_out(None, [4, 6]), [""; 0]);
        assert_eq!(sold_out(None, [4, 5]), ["sold-out-too-early"]);
        assert_eq!(sold_out(Some(0), [4, 0]), [""; 0]);
        assert_eq!(sold_out(Some(0), [3, 6]), ["sold-out-too-early"]);
        let late = found_in_calendar(|ledger, evidence| {
            let scope = StockScope { sale: Some(1), product: None };
            ledger.add_sold_out(scope, Duration::from_secs(1));
            ledger.bought_after_sold_out.push((1, scope));
            sell(&mut evidence.sales[0], [4, 6]);
            evidence.others_buy = true;
        });
        assert_eq!(late, ["sold-out-too-early"]);
        let refused = |evidence: &mut Evidence| evidence.outcomes.push(("checkout", "not-open".to_owned(), 1));
        assert_eq!(found_in_calendar(|_, evidence| refused(evidence)), [""; 0]);
        assert_eq!(found(|_, evidence| refused(evidence)), ["must-not-be"], "without a calendar");
    }
}
