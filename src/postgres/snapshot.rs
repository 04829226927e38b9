//! A read-only snapshot of the database, for `stampede log`, for the preparation of an upgrade, and for the
//! checks before a takeover.

use crate::config::database_url::DatabaseUrl;
use crate::config::host_choice::HostInUse;
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::limits::{LIMITS, in_time};
use crate::postgres::owner_row::{self, OwnerRow, POSITIONS, Positions};
use crate::postgres::replication::ReplicationWaits;
use crate::postgres::schema::{self, Installed};
use crate::postgres::session::{self, Session};
use std::time::Duration;
use tokio_postgres::Client;

/// Limit for the owner and the positions.
const READ_TIME: Duration = Duration::from_secs(10);

/// A transaction that reads the state of the database at one moment.
pub struct Snapshot {
    /// Owner of the database, or `None` if it was never used.
    pub owner: Option<Owner>,
    /// The row of the owner.
    pub owner_row: Option<OwnerRow>,
    /// The tables of Stampede, or `None` if the database was never used.
    pub installed: Option<Installed>,
    /// Positions of the owner's streams.
    pub positions: Positions,
    /// `user@host:port/name` of the host in use.
    pub place: String,
    host: HostInUse,
    /// Client of the open transaction: repeatable read, read only.
    pub client: Client,
    waits: ReplicationWaits,
}

impl Snapshot {
    /// Opens the transaction, and reads the owner and the positions. Does not change the database, not even its schema.
    ///
    /// # Errors
    /// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: the database is not reachable,
    /// or a query failed.
    pub async fn take(url: &DatabaseUrl) -> Result<Snapshot, Failure> {
        Snapshot::of(session::log_in(url).await?).await
    }

    /// Opens the transaction in a session, and reads the same.
    ///
    /// # Errors
    /// Those of [`Snapshot::take`].
    pub async fn of(session: Session) -> Result<Snapshot, Failure> {
        in_time(READ_TIME, Snapshot::begin(session)).await
    }

    /// Ends the transaction, and returns its session.
    ///
    /// # Errors
    /// [`Failure::Transient`]: the statement failed.
    pub async fn end(self) -> Result<Session, Failure> {
        let Snapshot { client, place, host, waits, .. } = self;
        in_time(READ_TIME, async { Ok(client.batch_execute("rollback").await?) }).await?;
        Ok(Session { client, place, host, waits })
    }

    async fn begin(Session { client, place, host, waits }: Session) -> Result<Snapshot, Failure> {
        // The reader may be idle for longer than a writer, because it holds no lock that delays a writer.
        let begin = format!(
            "begin isolation level repeatable read read only; {LIMITS}; set local idle_in_transaction_session_timeout = 0"
        );
        client.batch_execute(&begin).await?;
        let installed = schema::find(&client).await?;
        let mut snapshot = Snapshot {
            owner: None,
            owner_row: None,
            installed,
            positions: Positions::new(),
            place,
            host,
            client,
            waits,
        };
        let Some(installed) = &snapshot.installed else { return Ok(snapshot) };
        let select_owner = installed.localize(&owner_row::select_owner(installed.version));
        snapshot.owner_row = snapshot.client.query_opt(&select_owner, &[]).await?.map(|row| owner_row::parse(&row));
        snapshot.owner = snapshot.owner_row.map(|row| row.owner);
        if let Some(owner) = snapshot.owner {
            let positions = snapshot.client.query(&installed.localize(POSITIONS), &[&owner.cluster]).await?;
            snapshot.positions = owner_row::parse_positions(&positions);
        }
        Ok(snapshot)
    }
}
