//! The purchases that arrived in Postgres.

use crate::ledger::spell;
use crate::verify::Row;
use postgres::{Client, NoTls};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// The purchases of these sales, once all of these codes are among them, or patience is at an end. And how long that
/// took.
///
/// # Errors
/// The database cannot be reached, or has no such tables: in words that never have the password in them.
pub fn purchases(
    url: &str,
    sales: &[u64],
    codes: &[&crate::ledger::Code],
    patience: Duration,
) -> Result<(Vec<Row>, Duration), String> {
    let remedy = "see that --database-url is that of the server";
    let mut client = Client::connect(url, NoTls).map_err(|error| format!("the database: {error}; {remedy}"))?;
    let sales: Vec<i64> = sales.iter().map(|sale| *sale as i64).collect();
    let started = Instant::now();
    loop {
        let query = "select sale_id, item_id, user_id, code::text from purchases where sale_id = any($1)";
        let rows = client.query(query, &[&sales]).map_err(|error| format!("the database: {error}; {remedy}"))?;
        let rows: Vec<Row> = rows
            .iter()
            .map(|row| Row {
                sale: row.get::<_, i64>(0) as u64,
                item: row.get::<_, i32>(1) as u32,
                user: row.get(2),
                code: row.get(3),
            })
            .collect();
        let found: HashSet<&str> = rows.iter().map(|row| row.code.as_str()).collect();
        if started.elapsed() >= patience || codes.iter().all(|code| found.contains(spell(code))) {
            return Ok((rows, started.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
