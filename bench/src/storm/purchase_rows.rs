//! The purchases that Stampede has persisted in Postgres.

use crate::ledger::{CodeText, code_str};
use crate::verification::PurchaseRow;
use postgres::{Client, NoTls};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Polls the `purchases` table until it contains all of `codes`, or until `patience` has passed. Returns the rows of
/// `sales` and the time that this took.
///
/// # Errors
/// Returns a message without the password if the database cannot be reached or does not have the table.
pub fn fetch(
    url: &str,
    sales: &[u64],
    codes: &[&CodeText],
    patience: Duration,
) -> Result<(Vec<PurchaseRow>, Duration), String> {
    let remedy = "check that --database-url is the one that the server uses";
    let mut client = Client::connect(url, NoTls).map_err(|error| format!("database: {error}; {remedy}"))?;
    let sales: Vec<i64> = sales.iter().map(|sale| *sale as i64).collect();
    let started = Instant::now();
    loop {
        let query = "select sale_id, item_id, user_id, code::text from stampede.purchases where sale_id = any($1)";
        let rows = client.query(query, &[&sales]).map_err(|error| format!("database: {error}; {remedy}"))?;
        let rows: Vec<PurchaseRow> = rows
            .iter()
            .map(|row| PurchaseRow {
                sale: row.get::<_, i64>(0) as u64,
                item: row.get::<_, i32>(1) as u32,
                user: row.get(2),
                code: row.get(3),
            })
            .collect();
        let found: HashSet<&str> = rows.iter().map(|row| row.code.as_str()).collect();
        if started.elapsed() >= patience || codes.iter().all(|code| found.contains(code_str(code))) {
            return Ok((rows, started.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
