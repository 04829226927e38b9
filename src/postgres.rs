//! The database: connection, schema, one transaction for each batch.

use crate::block::StreamId;
use crate::copy_rows::{CopyRows, Rows};
use crate::fatal::Fatal;
use crate::types::Seq;
use bytes::Bytes;
use futures_util::SinkExt;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Statement, Transaction};
use uuid::Uuid;

/// The schema, one file a version, in order. A file that has been released never changes.
const MIGRATIONS: &[&str] = &[include_str!("../sql/0001_schema.sql")];
/// Names the lock under which the schema is changed, so that two servers can start at once.
const MIGRATION_LOCK: i64 = 0x5354_414d_5045_4445;
/// Bytes of one COPY message.
const COPY_BYTES: usize = 256 * 1024;

/// Every wait is bounded, on both sides: a connection that nobody answers any more must not hold its locks.
const SESSION: &str = "set statement_timeout = '30s'; set lock_timeout = '10s'; set synchronous_commit = on; \
    set idle_in_transaction_session_timeout = '60s'; set tcp_user_timeout = '30s'; \
    set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3; \
    set client_min_messages = warning";

/// Why something did not work.
#[derive(Debug)]
pub enum Failure {
    /// It may work later. What the database has done is unknown.
    Passing(String),
    /// It never will.
    Final(Fatal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let text = describe(&error);
        match error.code() {
            // A sold item is there that must not be: something else writes here, or something was written twice.
            Some(&SqlState::UNIQUE_VIOLATION) if is_about_purchases(&error) => {
                Failure::Final(Fatal::Database(format!("a row is there already: {text}")))
            }
            _ => Failure::Passing(text),
        }
    }
}

fn is_about_purchases(error: &Error) -> bool {
    error.as_db_error().and_then(|error| error.table()) == Some("purchases")
}

/// What went wrong, in one line, without any setting that could be secret.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}

/// How far one stream moves on in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The stream.
    pub stream: StreamId,
    /// Its position before, exactly.
    pub from: Seq,
    /// Its position after.
    pub to: Seq,
}

/// Whose the database is to be.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The installation.
    pub cluster: Uuid,
    /// Its run, by the control file.
    pub epoch: u32,
    /// This process: copies of one data directory may count to the same epoch.
    pub run: Uuid,
}

/// A connection that has taken the database over for this run.
pub struct Database {
    client: Client,
    owner: Owner,
    /// Sales whose partition is known to be there.
    prepared: BTreeSet<u32>,
    copy_checkouts: Statement,
    copy_purchases: Statement,
    copy_releases: Statement,
    move_on: Statement,
}

impl Database {
    /// Connects, brings the schema up to date, and takes over for `owner`.
    ///
    /// # Errors
    /// [`Failure::Final`]: the database belongs to another installation, a later run has taken over, or the schema is
    /// newer than this version.
    pub async fn take_over(config: &Config, owner: Owner) -> Result<Database, Failure> {
        let (mut client, connection) = config.connect(NoTls).await?;
        // Ends with the client; what it says of errors the client's calls say too.
        tokio::spawn(connection);
        client.batch_execute(SESSION).await?;
        migrate(&mut client).await?;
        claim(&mut client, owner).await?;
        let copy = |table: &str| format!("copy {table} from stdin with (format binary)");
        Ok(Database {
            owner,
            prepared: BTreeSet::new(),
            copy_checkouts: client.prepare(&copy("checkouts")).await?,
            copy_purchases: client.prepare(&copy("purchases")).await?,
            copy_releases: client.prepare(&copy("releases")).await?,
            move_on: client
                .prepare(
                    "update log_positions set position = $6 \
                     where cluster = $1 and epoch = $2 and shard = $3 and log = $4 and position = $5",
                )
                .await?,
            client,
        })
    }

    /// How much of each stream of this installation is here, by epoch, shard and log.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn positions(&self) -> Result<BTreeMap<(u32, u16, String), Seq>, Failure> {
        let select = "select epoch, shard, log, position from log_positions where cluster = $1";
        let rows = self.client.query(select, &[&self.owner.cluster]).await?;
        let positions = rows.iter().map(|row| {
            let (epoch, shard, position): (i64, i32, i64) = (row.get(0), row.get(1), row.get(3));
            ((epoch as u32, shard as u16, row.get(2)), position as Seq)
        });
        Ok(positions.collect())
    }

    /// Lets a stream begin after `position` records, or go on there.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn begin(&self, stream: &StreamId, position: Seq) -> Result<(), Failure> {
        let upsert = "insert into log_positions values ($1, $2, $3, $4, $5) \
            on conflict (cluster, epoch, shard, log) do update set position = excluded.position";
        let (epoch, shard, log) = (i64::from(stream.epoch), i32::from(stream.shard), stream.log.name());
        self.client.execute(upsert, &[&stream.cluster, &epoch, &shard, &log, &(position as i64)]).await?;
        Ok(())
    }

    /// Brings `rows` and the positions in one transaction: both, or neither.
    ///
    /// # Errors
    /// After [`Failure::Passing`], whether it happened is unknown: read the positions again, on a new connection.
    pub async fn ship(&mut self, rows: &Rows, moves: &[Move]) -> Result<(), Failure> {
        let transaction = self.client.transaction().await?;
        let fence = "select 1 from clusters where cluster = $1 and epoch = $2 and run = $3 for share";
        let epoch = i64::from(self.owner.epoch);
        if transaction.query_opt(fence, &[&self.owner.cluster, &epoch, &self.owner.run]).await?.is_none() {
            return Err(superseded());
        }
        // First the positions: if another transaction of this run is still in doubt, this is where it shows.
        for Move { stream, from, to } in moves {
            let (epoch, shard, log) = (i64::from(stream.epoch), i32::from(stream.shard), stream.log.name());
            let values: [&(dyn ToSql + Sync); 6] =
                [&stream.cluster, &epoch, &shard, &log, &(*from as i64), &(*to as i64)];
            if transaction.execute(&self.move_on, &values).await? != 1 {
                return Err(Failure::Passing(format!("the position of {log} of shard {shard} is not {from}")));
            }
        }
        for sale in rows.sales.difference(&self.prepared) {
            transaction.execute("select prepare_sale($1)", &[&i64::from(*sale)]).await?;
        }
        for (terms, unix_ms) in &rows.opened {
            let opened = UNIX_EPOCH + Duration::from_millis(*unix_ms);
            let values: [&(dyn ToSql + Sync); 4] =
                [&i64::from(terms.sale.0), &(terms.items as i32), &(terms.user_limit as i32), &opened];
            transaction.execute("select open_sale($1, $2, $3, $4)", &values).await?;
        }
        copy(&transaction, &self.copy_checkouts, &rows.checkouts).await?;
        copy(&transaction, &self.copy_purchases, &rows.purchases).await?;
        copy(&transaction, &self.copy_releases, &rows.releases).await?;
        transaction.commit().await?;
        self.prepared.extend(&rows.sales);
        Ok(())
    }
}

fn superseded() -> Failure {
    let text = "another run of this installation has taken the database over; stop one of the two, and start the other with its own data directory";
    Failure::Final(Fatal::Database(text.into()))
}

async fn copy(transaction: &Transaction<'_>, statement: &Statement, rows: &CopyRows) -> Result<(), Failure> {
    if rows.rows() == 0 {
        return Ok(());
    }
    let mut sink = pin!(transaction.copy_in::<_, Bytes>(statement).await?);
    let mut bytes = rows.finish();
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(COPY_BYTES));
        sink.feed(piece).await?;
    }
    let copied = sink.finish().await?;
    if copied != rows.rows() {
        return Err(Failure::Passing(format!("{copied} of {} rows were copied", rows.rows())));
    }
    Ok(())
}

/// Brings the schema up to date.
async fn migrate(client: &mut Client) -> Result<(), Failure> {
    let transaction = client.transaction().await?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await?;
    transaction
        .batch_execute(
            "create table if not exists schema_migrations (version integer primary key, applied_at timestamptz not null default now()); \
             comment on table schema_migrations is 'Which files of sql/ have been applied'",
        )
        .await?;
    let applied = "select coalesce(max(version), 0) from schema_migrations";
    let applied: i32 = transaction.query_one(applied, &[]).await?.get(0);
    if applied as usize > MIGRATIONS.len() {
        let known = MIGRATIONS.len();
        let text = format!("its schema has version {applied} and this stampede knows {known}; start a newer stampede");
        return Err(Failure::Final(Fatal::Database(text)));
    }
    for (number, migration) in (1i32..).zip(MIGRATIONS).skip(applied as usize) {
        transaction.batch_execute(migration).await?;
        transaction.execute("insert into schema_migrations values ($1)", &[&number]).await?;
    }
    Ok(transaction.commit().await?)
}

/// Writes down that this run owns the database from now on.
async fn claim(client: &mut Client, owner: Owner) -> Result<(), Failure> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("lock table clusters in share row exclusive mode").await?;
    let epoch = i64::from(owner.epoch);
    // `for update` waits for any transaction that is still in doubt: what is read afterwards is certain.
    match transaction.query_opt("select cluster, epoch, run from clusters for update", &[]).await? {
        Some(row) if row.get::<_, Uuid>(0) != owner.cluster => {
            let other: Uuid = row.get(0);
            let text = format!("it belongs to another installation ({other}); give this one a database of its own");
            return Err(Failure::Final(Fatal::Database(text)));
        }
        Some(row) if row.get::<_, i64>(1) > epoch => return Err(superseded()),
        Some(row) if row.get::<_, i64>(1) == epoch && row.get::<_, Uuid>(2) != owner.run => return Err(superseded()),
        Some(_) => {
            let update = "update clusters set epoch = $1, run = $2, since = now() where epoch < $1";
            transaction.execute(update, &[&epoch, &owner.run]).await?;
        }
        None => {
            let insert = "insert into clusters (cluster, epoch, run) values ($1, $2, $3)";
            transaction.execute(insert, &[&owner.cluster, &epoch, &owner.run]).await?;
        }
    }
    Ok(transaction.commit().await?)
}

/// A stream, as log lines name it.
pub fn stream_name(stream: &StreamId) -> String {
    format!("{} of epoch {}, shard {}", stream.log.name(), stream.epoch, stream.shard)
}
