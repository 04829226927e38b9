//! The rows of `sales`, and whether a plan fits them, by the rules of [`crate::log::opened_sales`].

use crate::log::opened_sales::OpenedSales;
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::failure::Failure;
use crate::postgres::snapshot::Snapshot;
use crate::sale::ids::{SaleId, Terms};
use crate::sale::parts::ENDED_MAX;
use crate::sale::product_ranges::ProductRanges;
use crate::sale::record::{LogEvent, Record, SaleTimes};
use crate::sale::rules::HOLD_MAX;
use crate::sale::sale_schedule::SaleSchedule;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_postgres::Row;

/// The first version of the schema that has the times of each sale.
pub const TIMES_SCHEMA: i32 = 11;
/// The latest sales, newest first: as many as a server remembers, open and ended.
pub const SALES: &str = "select sale_id, items, user_limit, opened_at, opens_at, closes_at, products \
    from stampede.sales order by sale_id desc limit 513";
const _: () = assert!(2 * ENDED_MAX as usize + 1 == 513);

/// Checks that a plan fits the sales in the database at `now_ms` (Unix time). Changes nothing.
///
/// # Errors
/// [`Failure::Final`]: the plan contradicts a sale that has opened. [`Failure::Transient`]: the query failed.
pub async fn check_plan(snapshot: &Snapshot, plan: LoadedPlan, now_ms: u64) -> Result<(), Failure> {
    let has_times = snapshot.installed.as_ref().is_some_and(|installed| installed.version >= TIMES_SCHEMA);
    let Some(owner) = snapshot.owner_row.filter(|_| has_times) else { return Ok(()) };
    let schedule = SaleSchedule::Planned(plan.series);
    let mut opened = OpenedSales::new(schedule, owner.sale_period_s, HOLD_MAX.as_millis() as u64);
    for row in snapshot.client.query(SALES, &[]).await?.iter().rev() {
        let Record { sale, event, .. } = opened_sale(row);
        if let LogEvent::SaleOpened { items, user_limit, times, products } = event {
            let products = ProductRanges::known_by(products);
            // Of a sale of an earlier version that nothing dates, nothing can be compared.
            let _ = opened.note(Terms { sale, items, user_limit, products, ..Terms::NONE }, times, now_ms);
        }
    }
    match opened.contradiction(now_ms) {
        Some(contradiction) => Err(Failure::Final(contradiction.fatal(Some(plan)))),
        None => Ok(()),
    }
}

/// Converts a row of [`SALES`] to the record that opens the sale.
pub fn opened_sale(row: &Row) -> Record {
    let (sale_id, items, user_limit): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
    let (times, products) = (sale_times(row.get(4), row.get(5)), row.get::<_, i64>(6) as u64);
    let event = LogEvent::SaleOpened { items: items as u32, user_limit: user_limit as u32, times, products };
    Record { sale: SaleId(sale_id as u32), unix_ms: unix_ms(row.get(3)), event }
}

/// Returns the times of a sale from the columns `opens_at` and `closes_at`, unless an earlier version has left them out.
pub fn sale_times(opens_at: Option<SystemTime>, closes_at: Option<SystemTime>) -> Option<SaleTimes> {
    let times = SaleTimes { opens_ms: unix_ms(opens_at?), closes_ms: unix_ms(closes_at?) };
    Some(times).filter(|times| times.closes_ms > 0)
}

/// Returns a time in milliseconds since the Unix epoch.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
