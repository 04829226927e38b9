//! The schema of the database: applies the files of `sql/`, and refuses a schema that is newer than this version.

use crate::config::fatal::Fatal;
use crate::postgres::failure::Failure;
use tokio_postgres::Client;

/// The files of `sql/`, one per version of the schema, in order. A released file never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../../sql/0001_schema.sql"),
    include_str!("../../sql/0002_checkout_key.sql"),
    include_str!("../../sql/0003_parts.sql"),
    include_str!("../../sql/0004_ack.sql"),
];
/// Key of the advisory lock under which the schema is changed, so that two servers can start at the same time.
const MIGRATION_LOCK: i64 = 0x5354_414d_5045_4445;

/// The query for the version of the schema: the number of the last file that was applied, or 0.
pub const APPLIED: &str = "select coalesce(max(version), 0) from schema_migrations";

/// Checks that this version of Stampede supports version `applied` of the schema.
///
/// # Errors
/// [`Failure::Final`]: the schema is newer.
pub fn check_version(applied: i32) -> Result<(), Failure> {
    let known = MIGRATIONS.len();
    if applied as usize <= known {
        return Ok(());
    }
    let text = format!(
        "its schema has version {applied}, and this version of Stampede supports {known}; start a newer version"
    );
    Err(Failure::Final(Fatal::Database(text)))
}

/// Applies the files of `sql/` that the database lacks, in one transaction.
///
/// # Errors
/// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: a statement failed.
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
