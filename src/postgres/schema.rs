//! The schema of the database: brings it up to date, and refuses one that is newer.

use crate::config::fatal::Fatal;
use crate::postgres::failure::Failure;
use tokio_postgres::Client;

/// The schema, one file a version, in order. A file that has been released never changes.
const MIGRATIONS: &[&str] = &[include_str!("../../sql/0001_schema.sql")];
/// Names the lock under which the schema is changed, so that two servers can start at once.
const MIGRATION_LOCK: i64 = 0x5354_414d_5045_4445;

pub const APPLIED: &str = "select coalesce(max(version), 0) from schema_migrations";

pub fn check_version(applied: i32) -> Result<(), Failure> {
    let known = MIGRATIONS.len();
    if applied as usize <= known {
        return Ok(());
    }
    let text = format!("its schema has version {applied} and this stampede knows {known}; start a newer stampede");
    Err(Failure::Final(Fatal::Database(text)))
}

/// Brings the schema up to date.
pub async fn migrate(client: &mut Client) -> Result<(), Failure> {
    let transaction = client.transaction().await?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await?;
    transaction
        .batch_execute(
            "create table if not exists schema_migrations (version integer primary key, applied_at timestamptz not null default now()); \
             comment on table schema_migrations is 'Which files of sql/ have been applied'",
        )
        .await?;
    let applied: i32 = transaction.query_one(APPLIED, &[]).await?.get(0);
    check_version(applied)?;
    for (number, migration) in (1i32..).zip(MIGRATIONS).skip(applied as usize) {
        transaction.batch_execute(migration).await?;
        transaction.execute("insert into schema_migrations values ($1)", &[&number]).await?;
    }
    Ok(transaction.commit().await?)
}
