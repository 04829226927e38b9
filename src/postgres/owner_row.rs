//! The row of `clusters` that names the owner of the database, and the rows of `log_positions`.
//!
//! The owner is one run of one installation. Its row is the fence: every transaction that brings records updates this
//! row first, so a run that is not the owner any more brings none. Claims and takeovers lock the table, so they wait
//! for transactions whose result is unknown, and what they read is certain.

use crate::config::fatal::Fatal;
use crate::log::block::{StreamId, StreamKey};
use crate::log::ownership::{Owner, Run};
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, begin, in_time};
use crate::postgres::session::Database;
use crate::sale::ids::Seq;
use crate::sale::rules::Ack;
use crate::sale::sale_schedule::are_compatible;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::try_join;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{GenericClient, Row, Transaction};
use uuid::Uuid;

/// The row of `clusters`: the installation that writes to the database, and its latest run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRow {
    /// Installation and latest run.
    pub owner: Owner,
    /// Length of the sales without a plan, in seconds. 0 if all sales so far had a plan.
    pub sale_period_s: u32,
    /// What the answers of that run wait for. A run that waits for its own disk only may sell even if it does not report.
    pub ack: Ack,
    /// Time without a report after which the run promises nothing, if it is one of two servers.
    pub patience: Option<Duration>,
    /// Time of the run's last report, in microseconds since the Unix epoch by the clock of the database. `None` if the
    /// run has stopped and all its records are in the database.
    pub seen_us: Option<i64>,
}

/// What a run writes into its row of `clusters`.
#[derive(Clone, Copy, Debug)]
pub struct OwnerTerms {
    /// Length of the sales, in seconds. 0 with a plan.
    pub sale_period_s: u32,
    /// What the answers of the run wait for.
    pub ack: Ack,
    /// Time without a report after which the run promises nothing, if it is one of two servers.
    pub patience: Option<Duration>,
}

impl OwnerRow {
    /// Returns whether no other machine may replace the run without the word of an operator: it has not ended, and it
    /// may acknowledge purchases while it cannot reach the database.
    pub fn is_exclusive(&self) -> bool {
        self.seen_us.is_some() && !self.ack.needs_database()
    }
}

/// The number of records in the database for each stream of an installation.
pub type Positions = BTreeMap<StreamKey, Seq>;

impl Database {
    /// Makes `owner` the owner of the database, if `judge` agrees. Returns the position of each stream.
    ///
    /// 1. Locks `clusters`, which waits for every transaction that may still write.
    /// 2. Reads the present owner and the positions, and passes them to `judge`. `judge` either refuses or returns the
    ///    position of each stream; it also records the claim in the data directory, in case the answer to the commit is
    ///    lost.
    /// 3. Writes the owner and the positions, and commits. With `--ack replicated`, what was read in step 2 is replicated
    ///    when this commit is.
    ///
    /// # Errors
    /// The failure that `judge` returns. [`Failure::Final`]: the database has another sale period.
    /// [`Failure::Transient`]: a statement failed; whether the claim was committed is unknown.
    pub async fn claim<J>(&mut self, owner: Owner, terms: OwnerTerms, judge: J) -> Result<Vec<(StreamId, Seq)>, Failure>
    where
        J: FnOnce(Option<OwnerRow>, &Positions) -> Result<Vec<(StreamId, Seq)>, Failure>,
    {
        let transaction = begin(&mut self.client).await?;
        let found = lock_clusters(&transaction).await?;
        let positions = positions(&transaction, owner.cluster).await?;
        let streams = judge(found, &positions)?;
        if let Some(found) = found.filter(|found| !are_compatible(found.sale_period_s, terms.sale_period_s)) {
            return Err(other_period(found.sale_period_s));
        }
        write_owner(&transaction, owner, terms).await?;
        for (stream, position) in &streams {
            if known_position(&positions, stream) != Some(*position) {
                set_position(&transaction, stream, *position).await?;
            }
        }
        transaction.commit().await?;
        self.confirm_commit().await?;
        Ok(streams)
    }

    /// Returns the owner of the database. Takes no lock, so a claim whose commit was not answered may be missing.
    ///
    /// # Errors
    /// [`Failure::Transient`]: the query failed.
    pub async fn owner(&self) -> Result<Option<Owner>, Failure> {
        let select = select_owner(PATIENCE_SCHEMA);
        let rows = in_time(FENCE_TIME, async { Ok(self.client.query_typed(&select, &[]).await?) }).await?;
        Ok(rows.first().map(|row| parse(row).owner))
    }

    /// Reports that this run is alive, by the clock of the database.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over the database. [`Failure::Transient`]: the update failed.
    pub async fn heartbeat(&self, owner: Owner) -> Result<(), Failure> {
        self.report(owner, "now").await
    }

    /// Reports that this run has ended and that all its records are in the database, so that another run can take over
    /// at once.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over the database. [`Failure::Transient`]: the update failed.
    pub async fn leave(&self, owner: Owner) -> Result<(), Failure> {
        self.report(owner, "-infinity").await
    }

    async fn report(&self, owner: Owner, at: &str) -> Result<(), Failure> {
        let fence = async { try_join!(biased; self.begin(), set_seen(&self.client, owner, at)) };
        in_time(FENCE_TIME, fence).await?;
        self.commit().await
    }
}

/// Returns the failure of a run that is not the owner any more.
pub fn taken_over_error() -> Failure {
    let text = "another run of this installation has taken over the database, and this run has changed nothing since; \
        leave this server stopped, or stop the other one";
    Failure::Final(Fatal::DirectoryOlder(text.into()))
}

/// Locks `clusters` until the end of the transaction, and returns the owner's row. The lock waits for every transaction
/// that has updated the row, also one whose commit was sent and not answered, so the result is certain.
///
/// # Errors
/// [`Failure::Transient`]: the lock was not granted within `lock_timeout`, or a statement failed.
pub async fn lock_clusters(transaction: &Transaction<'_>) -> Result<Option<OwnerRow>, Failure> {
    transaction.batch_execute("lock table stampede.clusters in share row exclusive mode").await?;
    let row = transaction.query_opt(&format!("{} for update", select_owner(PATIENCE_SCHEMA)), &[]).await?;
    Ok(row.map(|row| parse(&row)))
}

/// The first version of the schema whose owner row has the acknowledgement mode.
const ACK_SCHEMA: i32 = 4;
/// The first version of the schema whose owner row has the patience of one of two servers.
const PATIENCE_SCHEMA: i32 = 10;

/// Returns the query for the owner's row in this version of the schema, in the columns that [`parse`] reads. `seen_at` is
/// `-infinity` for a run that has stopped.
pub fn select_owner(schema_version: i32) -> String {
    // Earlier versions did not record the mode. Silence proves nothing about their runs either.
    let ack = if schema_version < ACK_SCHEMA { "'local'" } else { "ack" };
    let patience = if schema_version < PATIENCE_SCHEMA { "null::integer" } else { "patience_ms" };
    format!(
        "select cluster, epoch, run, sale_period_s, \
        case when isfinite(seen_at) then (extract(epoch from seen_at) * 1000000)::bigint end, {ack}, {patience} \
        from stampede.clusters"
    )
}

/// Converts a row of [`select_owner`].
pub fn parse(row: &Row) -> OwnerRow {
    let (epoch, period): (i64, i32) = (row.get(1), row.get(3));
    let owner = Owner { cluster: row.get(0), run: Run { epoch: epoch as u32, id: row.get(2) } };
    // A constraint of the table allows only the three names.
    let ack = row.get::<_, &str>(5).parse().unwrap_or(Ack::Local);
    let patience = row.get::<_, Option<i32>>(6).map(|ms| Duration::from_millis(ms as u64));
    OwnerRow { owner, sale_period_s: period as u32, ack, patience, seen_us: row.get(4) }
}

/// Returns the failure for a database whose sales have another length, `period` seconds.
pub fn other_period(period: u32) -> Failure {
    let text = format!("its sales last {period} s; start with --sale-period {period}s, or use another database");
    Failure::Final(Fatal::Database(text))
}

/// Sets the time of the owner's last report, to the present time (`at` is `now`) or to `-infinity`.
///
/// # Errors
/// [`Failure::Final`]: the row does not name this run, so another run has taken over. [`Failure::Transient`]: the update
/// failed.
pub async fn set_seen(client: &impl GenericClient, Owner { cluster, run }: Owner, at: &str) -> Result<(), Failure> {
    let update = "update stampede.clusters set seen_at = case $4 when 'now' then clock_timestamp() else '-infinity' end \
        where cluster = $1 and epoch = $2 and run = $3";
    let epoch = i64::from(run.epoch);
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&cluster, Type::UUID), (&epoch, Type::INT8), (&run.id, Type::UUID), (&at, Type::TEXT)];
    let changed = client.execute_typed(update, &values).await?;
    if changed == 1 { Ok(()) } else { Err(taken_over_error()) }
}

/// Writes the owner's row, with the present time as its beginning and as its last report. A run that is the owner already
/// keeps the mode that its row has: see [`make_exclusive`].
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn write_owner(
    transaction: &Transaction<'_>,
    Owner { cluster, run }: Owner,
    terms: OwnerTerms,
) -> Result<(), Failure> {
    let upsert = "insert into stampede.clusters as c (cluster, sale_period_s, epoch, run, ack, patience_ms, since, seen_at) \
        values ($1, $2, $3, $4, $5, $6, now(), clock_timestamp()) on conflict (cluster) do update \
        set ack = case when c.run = $4 then c.ack else $5 end, sale_period_s = greatest(c.sale_period_s, $2), \
        epoch = $3, run = $4, patience_ms = $6, since = now(), seen_at = clock_timestamp()";
    let (period, epoch) = (terms.sale_period_s as i32, i64::from(run.epoch));
    let patience_ms = terms.patience.map(|patience| patience.as_millis() as i32);
    transaction.execute(upsert, &[&cluster, &period, &epoch, &run.id, &terms.ack.to_string(), &patience_ms]).await?;
    Ok(())
}

/// Records that the run of `owner` must not be replaced without the word of an operator any more. The next run of its
/// data directory calls this in an upgrade to `--ack local`, because it sells before it claims the
/// database for itself.
///
/// # Errors
/// [`Failure::Final`]: another run has taken over the database. [`Failure::Transient`]: the update failed.
pub async fn make_exclusive(client: &impl GenericClient, Owner { cluster, run }: Owner) -> Result<(), Failure> {
    let update = "update stampede.clusters set ack = 'local' where cluster = $1 and epoch = $2 and run = $3";
    let epoch = i64::from(run.epoch);
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&cluster, Type::UUID), (&epoch, Type::INT8), (&run.id, Type::UUID)];
    let changed = client.execute_typed(update, &values).await?;
    if changed == 1 { Ok(()) } else { Err(taken_over_error()) }
}

/// Returns the position of a stream, or `None` if the database has no row for it.
pub fn known_position(positions: &Positions, stream: &StreamId) -> Option<Seq> {
    positions.get(&stream.key()).copied()
}

/// Reads the positions of all streams of an installation.
///
/// # Errors
/// [`Failure::Transient`]: the query failed.
pub async fn positions(client: &impl GenericClient, cluster: Uuid) -> Result<Positions, Failure> {
    Ok(parse_positions(&client.query(POSITIONS, &[&cluster]).await?))
}

/// The query for the positions of an installation.
pub const POSITIONS: &str = "select epoch, shard, log, position from stampede.log_positions where cluster = $1";

/// Converts the rows of [`POSITIONS`].
pub fn parse_positions(rows: &[Row]) -> Positions {
    let positions = rows.iter().filter_map(|row| {
        let (epoch, shard, position): (i64, i32, i64) = (row.get(0), row.get(1), row.get(3));
        // A constraint of the table allows only the names of the two logs.
        let log = row.get::<_, &str>(2).parse().ok()?;
        Some((StreamKey { log, epoch: epoch as u32, shard: shard as u16 }, position as Seq))
    });
    positions.collect()
}

/// Sets the position of a stream, and inserts its row if there is none.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn set_position(client: &impl GenericClient, stream: &StreamId, position: Seq) -> Result<(), Failure> {
    let upsert = "insert into stampede.log_positions (cluster, epoch, shard, log, position) values ($1, $2, $3, $4, $5) \
        on conflict (cluster, epoch, shard, log) do update set position = excluded.position";
    let (epoch, shard, log) = (i64::from(stream.epoch), i32::from(stream.shard), stream.log.name());
    client.execute(upsert, &[&stream.cluster, &epoch, &shard, &log, &(position as i64)]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_proves_nothing_about_a_run_that_sells_without_the_database() {
        let owner = Owner { cluster: Uuid::from_u128(1), run: Run { epoch: 1, id: Uuid::from_u128(2) } };
        for (ack, seen_us, expected) in [
            (Ack::Local, Some(5), true),
            (Ack::Local, None, false),
            (Ack::Postgres, Some(5), false),
            (Ack::Postgres, None, false),
            (Ack::Replicated, Some(5), false),
            (Ack::Replicated, None, false),
        ] {
            let found = OwnerRow { owner, sale_period_s: 1, ack, patience: None, seen_us };
            assert_eq!(found.is_exclusive(), expected, "{found:?}");
        }
    }
}
