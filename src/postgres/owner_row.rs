//! The row that names the owner of the database, and the positions of its streams.

use crate::config::fatal::Fatal;
use crate::log::block::{StreamId, StreamKey};
use crate::log::ownership::{Owner, Run};
use crate::postgres::failure::Failure;
use crate::postgres::session::Database;
use crate::sale::ids::Seq;
use std::collections::BTreeMap;
use tokio_postgres::{GenericClient, Row, Statement, Transaction};
use uuid::Uuid;

/// What the database says of the installation that writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRow {
    /// Its latest run.
    pub owner: Owner,
    /// The length of its sales.
    pub sale_period_s: u32,
    /// When that run last said that it lives, in microseconds of the database's clock. `None` if it has left.
    pub seen_us: Option<i64>,
}

/// How much of each stream of an installation is in the database, by epoch, shard and log.
pub type Positions = BTreeMap<StreamKey, Seq>;

impl Database {
    /// Whom the database names as its owner, if anybody.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn found(&self) -> Result<Option<OwnerRow>, Failure> {
        let row = self.client.query_opt(OWNER, &[]).await?;
        Ok(row.map(|row| parse(&row)))
    }

    /// Writes down that `owner` writes here from now on, unless `judge` is against it. `judge` hears whom the
    /// database names so far and how far each stream has come, sees to it that a claim in doubt is remembered, and
    /// says from where streams go on.
    ///
    /// # Errors
    /// What `judge` says.
    pub async fn claim<J>(
        &mut self,
        owner: Owner,
        sale_period_s: u32,
        judge: J,
    ) -> Result<Vec<(StreamId, Seq)>, Failure>
    where
        J: FnOnce(Option<Owner>, &Positions) -> Result<Vec<(StreamId, Seq)>, Failure>,
    {
        let transaction = self.client.transaction().await?;
        let found = lock_clusters(&transaction).await?;
        let positions = positions(&transaction, owner.cluster).await?;
        let streams = judge(found.map(|found| found.owner), &positions)?;
        if let Some(period) = found.map(|found| found.sale_period_s).filter(|period| *period != sale_period_s) {
            return Err(other_period(period));
        }
        write_owner(&transaction, owner, sale_period_s).await?;
        for (stream, position) in &streams {
            if known_position(&positions, stream) != Some(*position) {
                begin(&transaction, stream, *position).await?;
            }
        }
        transaction.commit().await?;
        Ok(streams)
    }

    /// Says that this run lives.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over.
    pub async fn beat(&self, owner: Owner) -> Result<(), Failure> {
        set_seen(&self.client, &self.set_seen, owner, "now").await
    }

    /// Says that this run is over, and that everything of it is here.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over.
    pub async fn leave(&self, owner: Owner) -> Result<(), Failure> {
        set_seen(&self.client, &self.set_seen, owner, "-infinity").await
    }
}

fn superseded() -> Failure {
    let text = "another run of this installation has taken the database over; this one has changed nothing since: leave it stopped, or stop the other one";
    Failure::Final(Fatal::Database(text.into()))
}

/// Whose the database is, read under a lock that waits for any transaction still in doubt: it is certain.
pub async fn lock_clusters(transaction: &Transaction<'_>) -> Result<Option<OwnerRow>, Failure> {
    transaction.batch_execute("lock table clusters in share row exclusive mode").await?;
    let row = transaction.query_opt(&format!("{OWNER} for update"), &[]).await?;
    Ok(row.map(|row| parse(&row)))
}

pub const OWNER: &str = "select cluster, epoch, run, sale_period_s, \
    case when isfinite(seen_at) then (extract(epoch from seen_at) * 1000000)::bigint end from clusters";

pub fn parse(row: &Row) -> OwnerRow {
    let (epoch, period): (i64, i32) = (row.get(1), row.get(3));
    let owner = Owner { cluster: row.get(0), run: Run { epoch: epoch as u32, id: row.get(2) } };
    OwnerRow { owner, sale_period_s: period as u32, seen_us: row.get(4) }
}

/// The database counts its sales in another period.
pub fn other_period(period: u32) -> Failure {
    let text = format!("its sales last {period} s; start with --sale-period {period}s, or with a database of its own");
    Failure::Final(Fatal::Database(text))
}

pub async fn set_seen(
    client: &impl GenericClient,
    statement: &Statement,
    Owner { cluster, run }: Owner,
    at: &str,
) -> Result<(), Failure> {
    let changed = client.execute(statement, &[&cluster, &i64::from(run.epoch), &run.id, &at]).await?;
    if changed == 1 { Ok(()) } else { Err(superseded()) }
}

pub async fn write_owner(
    transaction: &Transaction<'_>,
    Owner { cluster, run }: Owner,
    sale_period_s: u32,
) -> Result<(), Failure> {
    let upsert = "insert into clusters (cluster, sale_period_s, epoch, run, since, seen_at) \
        values ($1, $2, $3, $4, now(), clock_timestamp()) on conflict (cluster) do update \
        set epoch = $3, run = $4, since = now(), seen_at = clock_timestamp()";
    let (period, epoch) = (sale_period_s as i32, i64::from(run.epoch));
    transaction.execute(upsert, &[&cluster, &period, &epoch, &run.id]).await?;
    Ok(())
}

/// How much of a stream the database has, if it knows it.
pub fn known_position(positions: &Positions, stream: &StreamId) -> Option<Seq> {
    positions.get(&stream.key()).copied()
}

pub async fn positions(client: &impl GenericClient, cluster: Uuid) -> Result<Positions, Failure> {
    let select = "select epoch, shard, log, position from log_positions where cluster = $1";
    let rows = client.query(select, &[&cluster]).await?;
    let positions = rows.iter().filter_map(|row| {
        let (epoch, shard, position): (i64, i32, i64) = (row.get(0), row.get(1), row.get(3));
        // A constraint of the table allows the names of logs and nothing else.
        let log = row.get::<_, &str>(2).parse().ok()?;
        Some((StreamKey { log, epoch: epoch as u32, shard: shard as u16 }, position as Seq))
    });
    Ok(positions.collect())
}

pub async fn begin(client: &impl GenericClient, stream: &StreamId, position: Seq) -> Result<(), Failure> {
    let upsert = "insert into log_positions values ($1, $2, $3, $4, $5) \
        on conflict (cluster, epoch, shard, log) do update set position = excluded.position";
    let (epoch, shard, log) = (i64::from(stream.epoch), i32::from(stream.shard), stream.log.name());
    client.execute(upsert, &[&stream.cluster, &epoch, &shard, &log, &(position as i64)]).await?;
    Ok(())
}
