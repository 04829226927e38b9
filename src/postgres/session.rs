//! A connection to the database: log-in, session parameters, schema and prepared statements.

use crate::config::database_url::{DatabaseUrl, TlsMode};
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::{pgpass, schema, tls};
use std::collections::BTreeSet;
use tokio_postgres::{Client, NoTls, Statement};

/// The parameters of every session. Each wait has a limit, on both sides, so that a session whose client is lost
/// releases its locks.
const SESSION: &str = "set statement_timeout = '30s'; set lock_timeout = '10s'; set synchronous_commit = on; \
    set idle_in_transaction_session_timeout = '60s'; set tcp_user_timeout = '30s'; \
    set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3; \
    set client_min_messages = warning";

/// A connection to the database, with its prepared statements.
pub struct Database {
    pub(crate) client: Client,
    /// Sales whose partition of `checkouts` is known to exist.
    pub(crate) prepared: BTreeSet<u32>,
    /// Sales whose row in `sales` is known to exist. The record of each shard that opens a sale has the same terms.
    pub(crate) opened: BTreeSet<u32>,
    pub(crate) copy_checkouts: Statement,
    pub(crate) copy_purchases: Statement,
    pub(crate) copy_releases: Statement,
    pub(crate) copy_extensions: Statement,
    pub(crate) move_positions: Statement,
    pub(crate) set_seen: Statement,
}

impl Database {
    /// Connects, updates the schema, and prepares the statements. `judge` can refuse to update the schema, by the owner of
    /// the database.
    ///
    /// # Errors
    /// The failure that `judge` returns.
    /// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: the database is not reachable,
    /// refuses the connection, or a statement failed.
    pub async fn connect(
        url: &DatabaseUrl,
        judge: impl FnOnce(Option<Owner>) -> Result<(), Failure>,
    ) -> Result<Database, Failure> {
        let mut client = log_in(url).await?;
        schema::migrate(&mut client, judge).await?;
        let copy = |table: &str| format!("copy stampede.{table} from stdin with (format binary)");
        // The columns in the order of `copy_rows`. A later schema may have more of them.
        let checkouts = "checkouts (sale_id, item_id, user_id, code, outcome, at, expires_at, idempotency_key)";
        let purchases = "purchases (sale_id, item_id, user_id, code, at, idempotency_key)";
        let releases = "releases (sale_id, item_id, user_id, code, reason, at)";
        let extensions = "extensions (sale_id, item_id, user_id, code, by_ms, at)";
        Ok(Database {
            prepared: BTreeSet::new(),
            opened: BTreeSet::new(),
            copy_checkouts: client.prepare(&copy(checkouts)).await?,
            copy_purchases: client.prepare(&copy(purchases)).await?,
            copy_releases: client.prepare(&copy(releases)).await?,
            copy_extensions: client.prepare(&copy(extensions)).await?,
            move_positions: client
                .prepare(
                    "update stampede.log_positions p set position = m.later \
                     from unnest($2::bigint[], $3::integer[], $4::text[], $5::bigint[], $6::bigint[]) \
                     m (epoch, shard, log, position, later) \
                     where p.cluster = $1 and (p.epoch, p.shard, p.log, p.position) = (m.epoch, m.shard, m.log, m.position) \
                     and (select pg_current_xact_id_if_assigned()) is not null",
                )
                .await?,
            set_seen: client
                .prepare(
                    "update stampede.clusters set seen_at = case $4 when 'now' then clock_timestamp() else '-infinity' end \
                     where cluster = $1 and epoch = $2 and run = $3",
                )
                .await?,
            client,
        })
    }
}

/// Opens a session and sets its parameters. Takes the password from the password file if the URL has none.
///
/// # Errors
/// [`Failure::Transient`]: the database is not reachable or refuses the connection, or TLS cannot be set up.
pub async fn log_in(url: &DatabaseUrl) -> Result<Client, Failure> {
    let mut config = url.config.clone();
    if config.get_password().is_none()
        && let Some(password) = pgpass::look_up(&config)
    {
        config.password(password);
    }
    let client = if url.tls == TlsMode::Disable {
        let (client, connection) = config.connect(NoTls).await?;
        // The task ends with the client. Its errors are dropped, because the client's calls return them too.
        tokio::spawn(connection);
        client
    } else {
        let (client, connection) = config.connect(tls::connector(url).map_err(Failure::Transient)?).await?;
        tokio::spawn(connection);
        client
    };
    client.batch_execute(SESSION).await?;
    Ok(client)
}
