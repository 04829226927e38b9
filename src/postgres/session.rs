//! A connection to the database: the hosts in turn, log-in, schema, and the limits of each transaction.

use crate::config::database_url::{DatabaseHost, DatabaseUrl, TargetSession, TlsMode, ssl_mode};
use crate::config::host_choice::HostInUse;
use crate::log::ownership::Owner;
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, LIMITS, in_time};
use crate::postgres::replication::{ReplicationWaits, require};
use crate::postgres::{pgpass, schema, tls};
use crate::sale::rules::Ack;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio::try_join;
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, SimpleQueryMessage};

/// A session, and the host that it is connected to.
pub struct Session {
    /// Client of the session.
    pub client: Client,
    /// `user@host:port/name` of the host in use.
    pub place: String,
    pub(crate) host: HostInUse,
    pub(crate) waits: ReplicationWaits,
}

/// A connection to the database, with the schema of this version.
pub struct Database {
    pub(crate) client: Client,
    /// `user@host:port/name` of the host in use.
    pub place: String,
    host: HostInUse,
    /// What a commit must have reached to count.
    pub(crate) ack: Ack,
    pub(crate) waits: ReplicationWaits,
    /// Sales whose partition of `checkouts` is known to exist.
    pub(crate) prepared: BTreeSet<u32>,
    /// Sales whose rows in `products` are known to exist, or were refused.
    pub(crate) described: BTreeSet<u32>,
    /// Sales whose row in `sales` is known to exist. The record of each shard that opens a sale has the same terms.
    pub(crate) opened: BTreeSet<u32>,
}

impl Database {
    /// Connects, checks that the database replicates if `ack` needs it, and updates the schema. `judge` can refuse to
    /// update the schema, by the owner of the database. `sells` is whether this process serves clients already.
    ///
    /// # Errors
    /// The failure that `judge` returns. [`Failure::Final`]: the database does not replicate, and the process does not
    /// serve clients yet.
    /// [`Failure::Final`]: the schema is newer than this version. [`Failure::Transient`]: the database is not reachable,
    /// refuses the connection, or a statement failed.
    pub async fn connect(
        url: &DatabaseUrl,
        (ack, sells): (Ack, bool),
        judge: impl FnOnce(Option<Owner>) -> Result<(), Failure>,
    ) -> Result<Database, Failure> {
        let Session { mut client, place, host, waits } = log_in(url).await?;
        in_time(FENCE_TIME, require(&client, ack, sells)).await?;
        schema::migrate(&mut client, judge).await?;
        let [prepared, described, opened] = [(); 3].map(|()| BTreeSet::new());
        Ok(Database { client, place, host, ack, waits, prepared, described, opened })
    }

    /// Begins a transaction with [`LIMITS`]. It ends with the statement `commit`; if anything fails before, the
    /// connection is dropped.
    ///
    /// # Errors
    /// [`Failure::Transient`]: the statement failed.
    pub async fn begin(&self) -> Result<(), Failure> {
        Ok(self.client.batch_execute(&format!("begin; {LIMITS}")).await?)
    }

    /// Commits the open transaction, and returns when it is as durable as `--ack` needs.
    ///
    /// # Errors
    /// [`Failure::Transient`]: whether the transaction was committed, and on which machines, is unknown.
    pub(crate) async fn commit(&self) -> Result<(), Failure> {
        let commit = async { Ok::<(), Failure>(self.client.batch_execute("commit").await?) };
        // Both are sent together, so the setting needs no further round trip.
        try_join!(biased; commit, require(&self.client, self.ack, true))?;
        self.check_commit()
    }

    /// Checks that the latest commit of this session counts. Postgres executes this after the commit.
    ///
    /// # Errors
    /// [`Failure::Transient`]: synchronous standbys may lack the commit, or there are none and `--ack` needs one.
    pub(crate) async fn confirm_commit(&self) -> Result<(), Failure> {
        require(&self.client, self.ack, true).await?;
        self.check_commit()
    }

    fn check_commit(&self) -> Result<(), Failure> {
        self.waits.check()?;
        self.host.committed();
        Ok(())
    }
}

/// Opens a session on the first host that is in the wanted state, in the order of [`DatabaseUrl::hosts_in_turn`]. Each
/// address of each host has its own limit in time, so a host that does not answer does not keep the next one from being tried.
///
/// # Errors
/// [`Failure::Transient`]: no host is reachable, accepts the connection and is in the wanted state, or TLS cannot be set
/// up. The text has the reason for each host.
pub async fn log_in(url: &DatabaseUrl) -> Result<Session, Failure> {
    let mut reasons = Vec::new();
    for (number, host) in url.hosts_in_turn() {
        let addresses = match look_up(url, host).await {
            Ok(addresses) => addresses,
            Err(why) => {
                reasons.push((host, why));
                continue;
            }
        };
        for address in addresses {
            match in_time(url.connect_timeout, open(url, host, address)).await {
                Ok((client, waits)) => {
                    let (place, host) = (url.place_of(host), url.choice.opened(number, url.hosts.len()));
                    return Ok(Session { client, place, host, waits });
                }
                Err(Failure::Transient(why)) => reasons.push((host, why.text)),
                Err(failure) => return Err(failure),
            }
        }
    }
    reasons.dedup();
    // A single host needs no name: every log line has it.
    let is_one = url.hosts.len() == 1;
    let shown = reasons.into_iter().map(|(host, why)| match is_one {
        true => why,
        false => format!("{}:{}: {why}", host.name, host.port),
    });
    Err(Failure::Transient(shown.collect::<Vec<_>>().join("; ").into()))
}

/// Returns the addresses of a host, or `None` for a Unix socket.
async fn look_up(url: &DatabaseUrl, host: &DatabaseHost) -> Result<Vec<Option<IpAddr>>, String> {
    if host.is_unix() || host.address.is_some() {
        return Ok(vec![host.address]);
    }
    let unknown = |why: String| format!("error connecting to server: {why}");
    let found = timeout(url.connect_timeout, lookup_host((host.name.as_str(), host.port))).await;
    let found = found.map_err(|_| unknown("looking up the name takes too long".into()))?;
    Ok(found.map_err(|error| unknown(error.to_string()))?.map(|address| Some(address.ip())).collect())
}

/// Opens a session with one address of a host, and checks the state of the server. Takes the password from the password
/// file if the URL has none.
async fn open(
    url: &DatabaseUrl,
    host: &DatabaseHost,
    address: Option<IpAddr>,
) -> Result<(Client, ReplicationWaits), Failure> {
    let mut config = url.config.clone();
    config.host(&host.name).port(host.port);
    if let Some(address) = address {
        config.hostaddr(address);
    }
    if config.get_password().is_none()
        && let Some(password) = pgpass::look_up(&url.parts(host))
    {
        config.password(password);
    }
    let waits = ReplicationWaits::default();
    let client = if url.tls == TlsMode::Disable || host.is_unix() {
        let (client, connection) = config.ssl_mode(SslMode::Disable).connect(NoTls).await?;
        drive(connection, waits.clone());
        client
    } else {
        let connector = tls::connector(url).map_err(|why| Failure::Transient(why.into()))?;
        let (client, connection) = config.ssl_mode(ssl_mode(url.tls)).connect(connector).await?;
        drive(connection, waits.clone());
        client
    };
    check_state(&client, url.target).await?;
    Ok((client, waits))
}

/// Runs a connection until its client is dropped. Its errors are dropped, because the client's calls return them too.
/// Messages arrive in order, so a warning about a commit is noted before the commit is answered.
fn drive<S, T>(mut connection: Connection<S, T>, waits: ReplicationWaits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                waits.note(&notice);
            }
        }
    });
}

/// Checks that a server is in the wanted state.
async fn check_state(client: &Client, target: TargetSession) -> Result<(), Failure> {
    if target == TargetSession::Any {
        return Ok(());
    }
    let state = "select pg_is_in_recovery()::text, current_setting('transaction_read_only')";
    let rows = client.simple_query(state).await?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0) == Some("true"), row.get(1) == Some("on"))),
        _ => None,
    });
    let unwanted = match (row.unwrap_or((true, true)), target) {
        ((true, _), _) => "the server is a standby",
        ((false, true), TargetSession::ReadWrite) => "the server is read-only",
        _ => return Ok(()),
    };
    Err(Failure::Transient(unwanted.into()))
}
