//! The rules about the rows in the database.

use crate::ledger::{LedgerEntry, code_str};
use crate::verification::{PurchaseRow, Verifier};
use std::collections::{HashMap, HashSet};

/// Checks that the rows are those of the acknowledged purchases, if the database was read.
pub fn check(verifier: &mut Verifier<'_>) {
    verifier.the_database_agrees();
}

impl Verifier<'_> {
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
                Some(row)
                    if (row.user, row.item, Some(row.sale))
                        != (*user, *item, reservation.sale().or(Some(row.sale))) =>
                {
                    let detail = format!(
                        "{code}: user {user}, item {item}; the row has user {} and item {} of sale {}",
                        row.user, row.item, row.sale
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
}

#[cfg(test)]
mod tests {
    use crate::verification::PurchaseRow;
    use crate::verification::tests::{found, row};

    #[test]
    fn a_database_with_other_rows_is_found() {
        let rows = |rows: Vec<PurchaseRow>| found(|_, evidence| evidence.rows = Some(rows));
        assert_eq!(rows(vec![row(0)]), ["row-missing"]);
        assert_eq!(rows(vec![row(0), PurchaseRow { user: 8, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), PurchaseRow { item: 5, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), PurchaseRow { sale: 2, ..row(1) }]), ["row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), PurchaseRow { code: "other".to_owned(), ..row(1) }]), ["row-twice"]);
        assert_eq!(rows(vec![row(0), row(1), PurchaseRow { item: 9, ..row(1) }]), ["row-twice", "row-differs"]);
        assert_eq!(rows(vec![row(0), row(1), row(2)]), ["row-for-nothing"]);
    }
}
