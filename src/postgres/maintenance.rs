//! The partitions over the years: makes those of the next days ahead, and drops those that are not kept any longer.
//!
//! This runs once an hour, on a connection of its own, so that its wait for a reader does not delay a transaction that
//! brings rows. Both are fenced: only the owner of the database makes and drops partitions. If a partition is missing all
//! the same, such as after a jump of the clock, [`crate::postgres::ship`] makes it.
//!
//! Statements outside a transaction have no name (`query_typed`), because a connection pooler may give each of them another
//! session.
//!
//! A partition is dropped in three steps, each of which the next run repeats after a crash:
//!
//! 1. Mark the table by its comment.
//! 2. Detach it concurrently. Postgres waits for readers of the parent, and blocks neither them nor writers.
//! 3. Drop it.
//!
//! The rows of `products` are deleted when the last partition of their sale is dropped.

use crate::config::database_url::DatabaseUrl;
use crate::config::settings::Keep;
use crate::log::ownership::Owner;
use crate::operate::status::Status;
use crate::postgres::failure::Failure;
use crate::postgres::limits::begin;
use crate::postgres::owner_row::taken_over_error;
use crate::postgres::session;
use crate::postgres::ship::prepare_sales;
use crate::sale::ids::SaleId;
use crate::sale::rules::{HOLD_MAX, Rules};
use std::sync::{Arc, atomic::Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient};

/// Time between two runs.
pub const MAINTENANCE_TIME: Duration = Duration::from_secs(3600);
/// Maximum duration of a run.
const RUN_TIME: Duration = Duration::from_secs(600);
/// Number of days whose partitions are made ahead, today included.
const DAYS_AHEAD: u64 = 3;
const DAY_MS: u64 = 86_400_000;
/// Maximum number of days and single sales for which one run makes partitions.
const MADE_AHEAD: usize = 300;

/// Locks the row of the owner, so that another run does not take the database over before the end of the transaction.
const FENCE: &str = "select from stampede.clusters where cluster = $1 and epoch = $2 and run = $3 for no key update";
/// Comment of a table that is being dropped. A table without it that is not attached is left alone: an operator has
/// detached it.
const MARK: &str = "Stampede drops this table";
/// Partitions that are not kept: parent, partition, whether it has only refused checkouts.
const NOT_KEPT: &str = "select format('stampede.%I', table_name), format('stampede.%I', partition), false \
    from stampede.partitions where until_sale <= $1 \
    union all select format('stampede.%I', partition), format('stampede.%I', refused), true \
    from stampede.partitions where until_sale > $1 and until_sale <= $2 and refused is not null order by 3, 2";
/// The first sale that may be needed although the plan may not have it any more, given the closing time of sales that are
/// forgotten.
const NEEDED: &str = "select min(sale_id) from stampede.sales where closes_at > $1";
/// The products of a sale are dropped after its last partition, which can have later sales.
const DROP_PRODUCTS: &str = "delete from stampede.products p where p.sale_id < $1 and not exists (select \
    from stampede.partitions t where p.sale_id >= t.first_sale and p.sale_id < t.until_sale)";
/// Marked partitions whose detach was interrupted: parent, partition.
const INTERRUPTED: &str = "select i.inhparent::regclass::text, i.inhrelid::regclass::text from pg_catalog.pg_inherits i \
    join pg_catalog.pg_class c on c.oid = i.inhrelid where i.inhdetachpending \
    and c.relnamespace = 'stampede'::regnamespace and obj_description(c.oid, 'pg_class') = $1";
/// Marked tables that are not attached any more.
const DETACHED: &str = "select c.oid::regclass::text from pg_catalog.pg_class c where not c.relispartition \
    and c.relnamespace = 'stampede'::regnamespace and obj_description(c.oid, 'pg_class') = $1";

/// Everything that the maintenance of the partitions needs.
#[derive(Clone)]
pub struct Maintenance {
    /// Address and options of the database.
    pub url: DatabaseUrl,
    /// Installation and run of this process.
    pub owner: Owner,
    /// Settings of the sales.
    pub rules: Rules,
    /// How long rows are kept.
    pub keep: Keep,
    /// Numbers for the status pages.
    pub status: Arc<Status>,
}

impl Maintenance {
    /// Makes the partitions of today and of the next two days, drops those that are not kept, and counts the rest. Logs a
    /// failure; the next run tries again.
    pub async fn run(self) {
        let done = timeout(RUN_TIME, self.maintain()).await;
        if let Err(why) = done.unwrap_or_else(|_| Err(Failure::Transient("it takes too long".into()))) {
            tracing::warn!(%why, "the partitions in the database cannot be maintained: the next attempt is in an hour");
        }
    }

    async fn maintain(&self) -> Result<(), Failure> {
        let mut client = session::log_in(&self.url).await?.client;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        self.make_ahead(&mut client, now_ms).await?;
        if self.keep != Keep::default() {
            self.drop_rest(&client).await?;
            self.prune(&client, now_ms).await?;
        }
        let counts = "select count(*) filter (where table_name = t) from unnest(array['checkouts', 'purchases', \
            'releases', 'extensions']) with ordinality t (t, n) cross join stampede.partitions group by n order by n";
        for (count, row) in self.status.shipped.partitions.iter().zip(client.query_typed(counts, &[]).await?) {
            count.store(row.get::<_, i64>(0) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes the partitions of today and of the next two days, where there are none.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over the database. [`Failure::Transient`]: a statement failed.
    pub async fn make_ahead(&self, client: &mut Client, now_ms: u64) -> Result<(), Failure> {
        let transaction = begin(client).await?;
        // Transactions that bring rows wait for this one.
        transaction.batch_execute("set local lock_timeout = '1s'").await?;
        self.check_owner(&transaction).await?;
        let (schedule, until_ms) = (&self.rules.schedule, (now_ms / DAY_MS + DAYS_AHEAD) * DAY_MS);
        let mut next = schedule.latest(now_ms).or_else(|| schedule.next(SaleId(0)));
        for _ in 0..MADE_AHEAD {
            let Some(terms) = next.filter(|terms| terms.opens_ms < until_ms) else { break };
            prepare_sales(&transaction, schedule, terms.sale).await?;
            next = schedule.next(SaleId(*schedule.of_same_day(terms.sale).end()));
        }
        Ok(transaction.commit().await?)
    }

    async fn check_owner(&self, client: &impl GenericClient) -> Result<(), Failure> {
        let Owner { cluster, run } = self.owner;
        let epoch = i64::from(run.epoch);
        let found =
            client.query_typed(FENCE, &[(&cluster, Type::UUID), (&epoch, Type::INT8), (&run.id, Type::UUID)]).await?;
        if found.is_empty() { Err(taken_over_error()) } else { Ok(()) }
    }

    async fn prune(&self, client: &Client, now_ms: u64) -> Result<(), Failure> {
        let forgotten = UNIX_EPOCH + Duration::from_millis(forgotten_since_ms(&self.rules, now_ms));
        let needed = client.query_typed(NEEDED, &[(&forgotten, Type::TIMESTAMPTZ)]).await?;
        let needed = needed.first().and_then(|row| row.get::<_, Option<i64>>(0)).unwrap_or(i64::MAX);
        let [sales, attempts] = first_kept(&self.rules, &self.keep, now_ms).map(|first| i64::from(first).min(needed));
        for row in client.query_typed(NOT_KEPT, &[(&sales, Type::INT8), (&attempts, Type::INT8)]).await? {
            let (parent, partition, is_refused): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
            self.check_owner(client).await?;
            client.batch_execute(&format!("comment on table {partition} is '{MARK}'")).await?;
            client.batch_execute(&format!("alter table {parent} detach partition {partition} concurrently")).await?;
            client.batch_execute(&format!("drop table {partition}")).await?;
            self.status.shipped.dropped[usize::from(is_refused)].add(1);
            tracing::info!(partition, "the partition is dropped: its time is over");
        }
        self.check_owner(client).await?;
        client.execute_typed(DROP_PRODUCTS, &[(&sales, Type::INT8)]).await?;
        Ok(())
    }

    /// Completes the drops that were interrupted.
    async fn drop_rest(&self, client: &Client) -> Result<(), Failure> {
        self.check_owner(client).await?;
        for row in client.query_typed(INTERRUPTED, &[(&MARK, Type::TEXT)]).await? {
            let (parent, partition): (&str, &str) = (row.get(0), row.get(1));
            client.batch_execute(&format!("alter table {parent} detach partition {partition} finalize")).await?;
        }
        for row in client.query_typed(DETACHED, &[(&MARK, Type::TEXT)]).await? {
            client.batch_execute(&format!("drop table {}", row.get::<_, &str>(0))).await?;
        }
        Ok(())
    }
}

/// Returns the first sale whose rows are kept, and the first one whose refused checkouts are kept. Sales that the server
/// may remember, and those in which an item may be held, are always kept, and all with higher ids.
fn first_kept(rules: &Rules, keep: &Keep, now_ms: u64) -> [u32; 2] {
    let latest = |unix_ms: u64| rules.schedule.latest(unix_ms).map(|sale| sale.sale);
    // A sale that is needed can have opened before one that is forgotten.
    let needed = rules.schedule.first_closing_after(forgotten_since_ms(rules, now_ms));
    let id = |sale: Option<SaleId>| sale.map_or(0, |sale| sale.0);
    let first = |time: Duration| match time.as_millis() as u64 {
        0 => 0,
        time => id(latest(now_ms.saturating_sub(time))).min(needed.map_or(u32::MAX, |sale| sale.0)),
    };
    [first(keep.sales), first(keep.attempts)]
}

/// Returns the time at which sales have closed of which nothing is remembered and in which nothing is held any more, in
/// milliseconds since the Unix epoch.
fn forgotten_since_ms(rules: &Rules, now_ms: u64) -> u64 {
    now_ms.saturating_sub(rules.receipts_ms.saturating_add(HOLD_MAX.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::ids::Terms;
    use crate::sale::rules::Ack;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};

    #[test]
    fn needed_sales_are_kept_whatever_the_settings_say() {
        let (items, user_limit, ttl_ms, extension_ms, receipts_ms) = (1, 1, 1, 0, 3_600_000);
        let ack = Ack::Local;
        let sales = PeriodicSale { period_s: 3600, items, user_limit, ttl_ms, extension_ms };
        let rules = Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms, ack };
        let now = 498_000 * 3_600_000;
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let kept = |sales, attempts| first_kept(&rules, &Keep { sales, attempts }, now);
        assert_eq!(kept(Duration::ZERO, Duration::ZERO), [0, 0], "all are kept");
        assert_eq!(kept(days(400), days(30)), [498_000 - 9600, 498_000 - 720]);
        // A hold may last for two days beyond the receipts of its sale.
        assert_eq!(kept(Duration::from_secs(1), Duration::ZERO), [498_000 - 49, 0]);
    }

    /// A long sale is open beside shorter ones that have opened after it and are forgotten.
    #[test]
    fn every_sale_that_is_open_is_kept() {
        let day_ms = 86_400_000;
        let sale = |id, opens, closes, (every, count)| {
            let first = Terms {
                sale: SaleId(id),
                items: 1,
                opens_ms: opens * day_ms,
                closes_ms: closes * day_ms,
                ..Terms::NONE
            };
            SaleSeries { first, every_ms: every * day_ms, count, layer: 0 }
        };
        let once = (0, 1);
        let series = [sale(3, 1, 2, once), sale(5, 10, 60, once), sale(10, 11, 12, (1, 20)), sale(40, 40, 41, once)];
        let schedule = SaleSchedule::planned([&series[..], &[sale(41, 40, 90, once), sale(50, 80, 90, once)]].concat());
        let rules = Rules { schedule, receipts_ms: 1000, ack: Ack::Local };
        let keep = Keep { sales: Duration::from_secs(86_400), attempts: Duration::from_secs(10 * 86_400) };
        for (day, kept) in [
            (0, [0, 0]),  // Nothing has opened.
            (2, [3, 0]),  // Sale 3 is just over.
            (50, [5, 5]), // Sale 5 is open.
            (62, [5, 5]), // Holds of sale 5 may be live.
            (63, [41, 41]),
            (91, [41, 41]),
            (93, [50, 50]), // The newest one has been over for three days, and for as long as it is the newest it is kept.
        ] {
            assert_eq!(first_kept(&rules, &keep, day * day_ms), kept, "day {day}");
        }
    }
}
