//! A read-only snapshot of the database, for `stampede log`, for the preparation of an upgrade, and for the
//! checks before a takeover.

use crate::config::database_url::DatabaseUrl;
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{self, OwnerRow, Positions};
use crate::postgres::{schema, session};
use tokio_postgres::Client;

/// A transaction that reads the state of the database at one moment.
pub struct Snapshot {
    /// Owner of the database, or `None` if it was never used.
    pub owner: Option<Owner>,
    /// The row of the owner.
    pub owner_row: Option<OwnerRow>,
    /// Version of the schema: the number of the last file of `sql/` that was applied.
    pub schema_version: i32,
    /// Positions of the owner's streams.
    pub positions: Positions,
    /// Client of the open transaction: repeatable read, read only.
    pub client: Client,
}

impl Snapshot {
    /// Opens the transaction, and reads the owner and the positions. Does not change the database, not even its schema.
    ///
    /// # Errors
    /// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: the database is not reachable,
    /// or a query failed.
    pub async fn take(url: &DatabaseUrl) -> Result<Snapshot, Failure> {
        let client = session::log_in(url).await?;
        // The reader may be idle for longer than a writer, because it holds no lock that delays a writer.
        let begin = "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read read only";
        client.batch_execute(begin).await?;
        let mut snapshot =
            Snapshot { owner: None, owner_row: None, schema_version: 0, positions: Positions::new(), client };
        let is_ours = "select to_regclass('schema_migrations') is not null and to_regclass('clusters') is not null";
        if !snapshot.client.query_one(is_ours, &[]).await?.get::<_, bool>(0) {
            return Ok(snapshot);
        }
        snapshot.schema_version = snapshot.client.query_one(schema::APPLIED, &[]).await?.get(0);
        schema::check_version(snapshot.schema_version)?;
        let select_owner = owner_row::select_owner(snapshot.schema_version);
        snapshot.owner_row = snapshot.client.query_opt(&select_owner, &[]).await?.map(|row| owner_row::parse(&row));
        snapshot.owner = snapshot.owner_row.map(|row| row.owner);
        if let Some(owner) = snapshot.owner {
            snapshot.positions = owner_row::positions(&snapshot.client, owner.cluster).await?;
        }
        Ok(snapshot)
    }
}
