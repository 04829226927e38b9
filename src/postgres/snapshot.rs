//! A read-only look at the database, as of one moment.

use crate::config::database_url::DatabaseUrl;
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{self, OWNER, Positions};
use crate::postgres::{schema, session};
use tokio_postgres::Client;

/// What the database was at one moment.
pub struct Snapshot {
    /// Whom it names as its owner, if anybody.
    pub owner: Option<Owner>,
    /// How much of each stream of its owner is there.
    pub positions: Positions,
    /// Reads as of that moment, and cannot write.
    pub client: Client,
}

impl Snapshot {
    /// Looks at the database, which changes nothing in it.
    ///
    /// # Errors
    /// [`Failure::Final`]: the schema is newer than this version.
    pub async fn take(url: &DatabaseUrl) -> Result<Snapshot, Failure> {
        let client = session::log_in(url).await?;
        // Whoever looks may take longer than whoever writes, and is in nobody's way.
        let begin = "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read read only";
        client.batch_execute(begin).await?;
        let mut snapshot = Snapshot { owner: None, positions: Positions::new(), client };
        let is_ours = "select to_regclass('schema_migrations') is not null and to_regclass('clusters') is not null";
        if !snapshot.client.query_one(is_ours, &[]).await?.get::<_, bool>(0) {
            return Ok(snapshot);
        }
        schema::check_version(snapshot.client.query_one(schema::APPLIED, &[]).await?.get(0))?;
        let row = snapshot.client.query_opt(OWNER, &[]).await?;
        snapshot.owner = row.map(|row| owner_row::parse(&row).owner);
        if let Some(owner) = snapshot.owner {
            snapshot.positions = owner_row::positions(&snapshot.client, owner.cluster).await?;
        }
        Ok(snapshot)
    }
}
