//! The schema `stampede` of the database: applies the files of `sql/`, and refuses a version that is newer than this one.
//!
//! Every statement names the schema, so none depends on the search path. The tables of earlier versions are in the first
//! schema of the search path, usually `public`; a migration moves them. Tables of another program with the same names
//! stay where they are: the columns tell them apart.

use crate::config::fatal::Fatal;
use crate::log::ownership::{Owner, Run};
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, begin, in_time};
use tokio_postgres::{Client, GenericClient};

/// The files of `sql/`, one per version of the schema, in order. A released file never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../../sql/0001_schema.sql"),
    include_str!("../../sql/0002_checkout_key.sql"),
    include_str!("../../sql/0003_parts.sql"),
    include_str!("../../sql/0004_ack.sql"),
    include_str!("../../sql/0005_schema.sql"),
    include_str!("../../sql/0006_days.sql"),
    include_str!("../../sql/0007_publication.sql"),
    include_str!("../../sql/0008_replicated.sql"),
    include_str!("../../sql/0009_any_item.sql"),
    include_str!("../../sql/0010_patience.sql"),
    include_str!("../../sql/0011_plan.sql"),
    include_str!("../../sql/0012_products.sql"),
];
/// Moves the tables of earlier versions to the schema `stampede`.
const MOVE: &str = include_str!("../../sql/move.sql");
/// Key of the advisory lock under which the schema is changed, so that two servers can start at the same time.
const MIGRATION_LOCK: i64 = 0x5354_414d_5045_4445;

/// The query for the schema that has the tables of Stampede, as an identifier. It returns no row if there is none.
const FIND: &str = "select quote_ident(n.nspname) from pg_catalog.pg_namespace n \
    where (n.nspname = 'stampede' or n.nspname = any (current_schemas(false))) \
    and 4 = (select count(*) from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid \
    where c.relnamespace = n.oid and c.relkind = 'r' and (c.relname, a.attname, a.atttypid) in \
    (('schema_migrations', 'version', 'integer'::regtype), ('clusters', 'sale_period_s', 'integer'::regtype), \
    ('clusters', 'run', 'uuid'::regtype), ('log_positions', 'position', 'bigint'::regtype))) \
    order by n.nspname <> 'stampede', array_position(current_schemas(false), n.nspname) limit 1";

/// The tables of Stampede in a database.
pub struct Installed {
    /// The schema that has them, as an identifier: `stampede`, or another one before version 5.
    pub schema: String,
    /// Version of the schema: the number of the last file that was applied.
    pub version: i32,
}

impl Installed {
    /// Returns a statement with the names of the schema that has the tables.
    pub fn localize(&self, statement: &str) -> String {
        if self.is_moved() {
            statement.to_owned()
        } else {
            statement.replace("stampede.", &format!("{}.", self.schema))
        }
    }

    fn is_moved(&self) -> bool {
        self.schema == "stampede"
    }
}

/// Finds the tables of Stampede in the database. Returns `None` if there are none. Takes no lock and changes nothing.
///
/// # Errors
/// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: a query failed.
pub async fn find(client: &impl GenericClient) -> Result<Option<Installed>, Failure> {
    let Some(row) = client.query_typed(FIND, &[]).await?.pop() else { return Ok(None) };
    let mut installed = Installed { schema: row.get(0), version: 0 };
    let applied = "select coalesce(max(version), 0) from stampede.schema_migrations";
    let applied = client.query_typed(&installed.localize(applied), &[]).await?;
    installed.version = applied.first().map_or(0, |row| row.get(0));
    let (applied, known) = (installed.version, MIGRATIONS.len());
    if applied as usize <= known {
        return Ok(Some(installed));
    }
    let text = format!(
        "its schema has version {applied}, and this version of Stampede supports {known}; start a newer version"
    );
    Err(Failure::Final(Fatal::Database(text)))
}

/// Applies the files of `sql/` that the database lacks, in one transaction. If it lacks none, takes no lock and needs no
/// right to change the schema. `judge` gets the owner of the database, which cannot change until the end of the
/// transaction, and can refuse: a server of an earlier version may be running on it. Returns the version before and after.
///
/// # Errors
/// The failure that `judge` returns. [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: a
/// statement failed.
pub async fn migrate(
    client: &mut Client,
    judge: impl FnOnce(Option<Owner>) -> Result<(), Failure>,
) -> Result<(i32, i32), Failure> {
    let known = MIGRATIONS.len() as i32;
    let found = in_time(FENCE_TIME, find(&*client)).await?;
    if found.is_some_and(|found| found.version == known) {
        return Ok((known, known));
    }
    let transaction = in_time(FENCE_TIME, begin(client)).await?;
    // Moving rows to partitions reads every table once.
    transaction.batch_execute("set local statement_timeout = 0").await?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await?;
    let found = find(&transaction).await?;
    if let Some(found) = &found {
        let select_owner = found.localize("select cluster, epoch, run from stampede.clusters for update");
        let owner = transaction
            .query_opt(&select_owner, &[])
            .await?
            .map(|row| Owner { cluster: row.get(0), run: Run { epoch: row.get::<_, i64>(1) as u32, id: row.get(2) } });
        judge(owner)?;
    }
    let exists = "select to_regnamespace('stampede') is not null";
    if !transaction.query_one(exists, &[]).await?.get::<_, bool>(0) {
        // "if not exists" would need the right to create a schema even if it exists.
        transaction.batch_execute("create schema stampede").await?;
    }
    if let Some(found) = found.as_ref().filter(|found| !found.is_moved()) {
        transaction.execute("select set_config('stampede.source', $1, true)", &[&found.schema]).await?;
        transaction.batch_execute(MOVE).await?;
    }
    transaction
        .batch_execute(
            "create table if not exists stampede.schema_migrations \
             (version integer primary key, applied_at timestamptz not null default now()); \
             comment on table stampede.schema_migrations is 'The files of sql/ that have been applied'; \
             set local search_path = stampede",
        )
        .await?;
    let applied = found.map_or(0, |found| found.version);
    for (number, migration) in (1i32..).zip(MIGRATIONS).skip(applied as usize) {
        transaction.batch_execute(migration).await?;
        transaction.execute("insert into stampede.schema_migrations (version) values ($1)", &[&number]).await?;
    }
    transaction.commit().await?;
    Ok((applied, known))
}
