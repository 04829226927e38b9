//! The database: connection, schema, one transaction for each batch.

use crate::block::{LogKind, StreamId};
use crate::code::Code;
use crate::copy_rows::{self, CopyRows, Rows};
use crate::database_url::{DatabaseUrl, TlsMode};
use crate::fatal::Fatal;
use crate::ownership::{Owner, Run};
use crate::record::{Event, Record};
use crate::types::{ItemId, SaleId, Seq, Terms, UserId};
use crate::{pgpass, tls};
use bytes::Bytes;
use futures_util::SinkExt;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;
use tokio::try_join;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, GenericClient, NoTls, Row, Statement, Transaction};
use uuid::Uuid;

/// The schema, one file a version, in order. A file that has been released never changes.
const MIGRATIONS: &[&str] = &[include_str!("../sql/0001_schema.sql")];
/// Names the lock under which the schema is changed, so that two servers can start at once.
const MIGRATION_LOCK: i64 = 0x5354_414d_5045_4445;
/// Bytes of one COPY message.
const COPY_BYTES: usize = 256 * 1024;

/// Items of a catalogue made in one go: about 2 MiB of rows, while no others are shipped.
const CATALOGUE_ITEMS: i32 = 20_000;

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

/// What connections live on: one thread, the caller's.
///
/// # Errors
/// [`Fatal::Host`]: there are no descriptors left.
pub fn event_loop() -> Result<Runtime, Fatal> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| Fatal::Host(format!("no event loop: {error}")))
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

/// What the database says of the installation that writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its latest run.
    pub owner: Owner,
    /// The length of its sales.
    pub sale_period_s: u32,
    /// When that run last said that it lives, in microseconds of the database's clock. `None` if it has left.
    pub seen_us: Option<i64>,
}

/// How much of each stream of an installation is in the database, by epoch, shard and log.
pub type Positions = BTreeMap<(u32, u16, String), Seq>;

/// A sale, as the database knows it, for a data directory to go on with.
pub struct TakenOver {
    /// The run that took it over.
    pub owner: Owner,
    /// What happened in the latest sale, as the log would have it. In the database already.
    pub records: Vec<Record>,
}

/// What the database was at one moment.
pub struct Glance {
    /// Whom it names as its owner, if anybody.
    pub owner: Option<Owner>,
    /// How much of each stream of its owner is there.
    pub positions: Positions,
    /// Reads as of that moment, and cannot write.
    pub client: Client,
}

/// A connection to the database.
pub struct Database {
    client: Client,
    /// Sales whose partition is known to be there.
    prepared: BTreeSet<u32>,
    copy_checkouts: Statement,
    copy_purchases: Statement,
    copy_releases: Statement,
    copy_items: Statement,
    move_on: Statement,
    set_seen: Statement,
}

impl Database {
    /// Looks at the database, which changes nothing in it.
    ///
    /// # Errors
    /// [`Failure::Final`]: the schema is newer than this version.
    pub async fn glance(url: &DatabaseUrl) -> Result<Glance, Failure> {
        let client = log_in(url).await?;
        // Whoever looks may take longer than whoever writes, and is in nobody's way.
        let begin = "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read read only";
        client.batch_execute(begin).await?;
        let mut glance = Glance { owner: None, positions: Positions::new(), client };
        let is_ours = "select to_regclass('schema_migrations') is not null and to_regclass('clusters') is not null";
        if !glance.client.query_one(is_ours, &[]).await?.get::<_, bool>(0) {
            return Ok(glance);
        }
        check_version(glance.client.query_one(APPLIED, &[]).await?.get(0))?;
        let row = glance.client.query_opt(FOUND, &[]).await?;
        glance.owner = row.map(|row| found(&row).owner);
        if let Some(owner) = glance.owner {
            glance.positions = positions(&glance.client, owner.cluster).await?;
        }
        Ok(glance)
    }

    /// Connects, and brings the schema up to date.
    ///
    /// # Errors
    /// [`Failure::Final`]: the schema is newer than this version.
    pub async fn connect(url: &DatabaseUrl) -> Result<Database, Failure> {
        let mut client = log_in(url).await?;
        migrate(&mut client).await?;
        let copy = |table: &str| format!("copy {table} from stdin with (format binary)");
        Ok(Database {
            prepared: BTreeSet::new(),
            copy_checkouts: client.prepare(&copy("checkouts")).await?,
            copy_purchases: client.prepare(&copy("purchases")).await?,
            copy_releases: client.prepare(&copy("releases")).await?,
            copy_items: client.prepare(&copy("sale_items")).await?,
            move_on: client
                .prepare(
                    "update log_positions p set position = m.later \
                     from unnest($2::bigint[], $3::integer[], $4::text[], $5::bigint[], $6::bigint[]) \
                     m (epoch, shard, log, position, later) \
                     where p.cluster = $1 and (p.epoch, p.shard, p.log, p.position) = (m.epoch, m.shard, m.log, m.position) \
                     and (select pg_current_xact_id_if_assigned()) is not null",
                )
                .await?,
            set_seen: client
                .prepare(
                    "update clusters set seen_at = case $4 when 'now' then clock_timestamp() else '-infinity' end \
                     where cluster = $1 and epoch = $2 and run = $3",
                )
                .await?,
            client,
        })
    }

    /// Whom the database names as its owner, if anybody.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn found(&self) -> Result<Option<Found>, Failure> {
        let row = self.client.query_opt(FOUND, &[]).await?;
        Ok(row.map(|row| found(&row)))
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

    /// Takes the installation over from the run that was `found`: as the run after it, whose only stream is what the
    /// latest sale came to.
    ///
    /// # Errors
    /// [`Failure::Passing`] also if another run was there first.
    pub async fn take_over(&mut self, found: Found, id: Uuid) -> Result<TakenOver, Failure> {
        let transaction = self.client.transaction().await?;
        let known = lock_clusters(&transaction).await?;
        if known != Some(found) {
            return Err(Failure::Passing("it was heard of in the meantime".into()));
        }
        let cluster = found.owner.cluster;
        let owner = Owner { cluster, run: Run { epoch: found.owner.run.epoch + 1, id } };
        // Nobody else ships from here on: what is read now is all there will ever be of the earlier runs.
        let records = latest_sale(&transaction).await?;
        let stream = StreamId { cluster, epoch: owner.run.epoch, shard: 0, log: LogKind::Purchases };
        begin(&transaction, &stream, records.len() as Seq).await?;
        write_owner(&transaction, owner, found.sale_period_s).await?;
        transaction.commit().await?;
        Ok(TakenOver { owner, records })
    }

    /// Makes the next part of a catalogue. Returns whether there was one to make.
    ///
    /// # Errors
    /// Of the connection. The transaction may still be open then.
    pub async fn extend_catalogue(&self) -> Result<bool, Failure> {
        let Database { client, copy_items, .. } = self;
        client.batch_execute("begin").await?;
        let unfinished = "select sale_id, items, catalogued from sales where catalogued < items \
            order by sale_id limit 1 for update";
        let row = client.query_opt(unfinished, &[]).await?;
        if let Some(row) = &row {
            let (sale, items, catalogued): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
            let until = items.min(catalogued + CATALOGUE_ITEMS);
            let rows = copy_rows::catalogue(SaleId(sale as u32), catalogued as u32..until as u32);
            copy(client, copy_items, rows).await?;
            client.execute("update sales set catalogued = $2 where sale_id = $1", &[&sale, &until]).await?;
        }
        client.batch_execute("commit").await?;
        Ok(row.is_some())
    }

    /// Brings `rows` and the positions in one transaction: both, or neither. What need not wait for an answer is sent
    /// at once, in this order; the commit waits for all of them. `moves` are of one installation.
    ///
    /// # Errors
    /// After [`Failure::Passing`], whether it happened is unknown: connect anew and read the positions again. The
    /// transaction may still be open until then.
    pub async fn ship(&mut self, owner: Owner, rows: Rows, moves: &[Move]) -> Result<(), Failure> {
        let Database { client, prepared, .. } = self;
        try_join!(
            biased;
            async { Ok(client.batch_execute("begin").await?) },
            // This row is the fence: whoever wants to take over waits for this transaction.
            set_seen(client, &self.set_seen, owner, "now"),
            // Before the rows: if another transaction of this run is still in doubt, this is where it shows. It moves
            // nothing unless it is in the transaction that the fence has written in: `begin` may have failed.
            move_on(client, &self.move_on, moves),
        )?;
        for sale in rows.sales.difference(prepared) {
            client.execute("select prepare_sale($1)", &[&i64::from(*sale)]).await?;
        }
        for (terms, unix_ms) in &rows.opened {
            let opened = UNIX_EPOCH + Duration::from_millis(*unix_ms);
            let values: [&(dyn ToSql + Sync); 4] =
                [&i64::from(terms.sale.0), &(terms.items as i32), &(terms.user_limit as i32), &opened];
            let insert = "insert into sales (sale_id, items, user_limit, opened_at) values ($1, $2, $3, $4) \
                on conflict (sale_id) do nothing";
            client.execute(insert, &values).await?;
        }
        try_join!(
            biased;
            copy(client, &self.copy_checkouts, rows.checkouts),
            copy(client, &self.copy_purchases, rows.purchases),
            copy(client, &self.copy_releases, rows.releases),
        )?;
        client.batch_execute("commit").await?;
        prepared.extend(&rows.sales);
        Ok(())
    }
}

fn superseded() -> Failure {
    let text = "another run of this installation has taken the database over; this one has changed nothing since: leave it stopped, or stop the other one";
    Failure::Final(Fatal::Database(text.into()))
}

async fn move_on(client: &Client, statement: &Statement, moves: &[Move]) -> Result<(), Failure> {
    let Some(Move { stream: StreamId { cluster, .. }, .. }) = moves.first() else { return Ok(()) };
    let epochs: Vec<_> = moves.iter().map(|moved| i64::from(moved.stream.epoch)).collect();
    let shards: Vec<_> = moves.iter().map(|moved| i32::from(moved.stream.shard)).collect();
    let logs: Vec<_> = moves.iter().map(|moved| moved.stream.log.name()).collect();
    let from: Vec<_> = moves.iter().map(|moved| moved.from as i64).collect();
    let to: Vec<_> = moves.iter().map(|moved| moved.to as i64).collect();
    let moved = client.execute(statement, &[cluster, &epochs, &shards, &logs, &from, &to]).await?;
    if moved == moves.len() as u64 {
        return Ok(());
    }
    Err(Failure::Passing(format!("only {moved} of {} positions are as this run left them", moves.len())))
}

async fn copy(client: &Client, statement: &Statement, rows: CopyRows) -> Result<(), Failure> {
    let sent = rows.rows();
    if sent == 0 {
        return Ok(());
    }
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    let mut bytes = rows.finish();
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(COPY_BYTES));
        sink.feed(piece).await?;
    }
    let copied = sink.finish().await?;
    if copied != sent {
        return Err(Failure::Passing(format!("{copied} of {sent} rows were copied")));
    }
    Ok(())
}

/// A connection, with what every one of them needs.
async fn log_in(url: &DatabaseUrl) -> Result<Client, Failure> {
    let mut config = url.config.clone();
    if config.get_password().is_none()
        && let Some(password) = pgpass::look_up(&config)
    {
        config.password(password);
    }
    let client = if url.tls == TlsMode::Disable {
        let (client, connection) = config.connect(NoTls).await?;
        // Ends with the client; what it says of errors the client's calls say too.
        tokio::spawn(connection);
        client
    } else {
        let (client, connection) = config.connect(tls::connector(url).map_err(Failure::Passing)?).await?;
        tokio::spawn(connection);
        client
    };
    client.batch_execute(SESSION).await?;
    Ok(client)
}

const APPLIED: &str = "select coalesce(max(version), 0) from schema_migrations";

fn check_version(applied: i32) -> Result<(), Failure> {
    let known = MIGRATIONS.len();
    if applied as usize <= known {
        return Ok(());
    }
    let text = format!("its schema has version {applied} and this stampede knows {known}; start a newer stampede");
    Err(Failure::Final(Fatal::Database(text)))
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
    let applied: i32 = transaction.query_one(APPLIED, &[]).await?.get(0);
    check_version(applied)?;
    for (number, migration) in (1i32..).zip(MIGRATIONS).skip(applied as usize) {
        transaction.batch_execute(migration).await?;
        transaction.execute("insert into schema_migrations values ($1)", &[&number]).await?;
    }
    Ok(transaction.commit().await?)
}

/// Whose the database is, read under a lock that waits for any transaction still in doubt: it is certain.
async fn lock_clusters(transaction: &Transaction<'_>) -> Result<Option<Found>, Failure> {
    transaction.batch_execute("lock table clusters in share row exclusive mode").await?;
    let row = transaction.query_opt(&format!("{FOUND} for update"), &[]).await?;
    Ok(row.map(|row| found(&row)))
}

const FOUND: &str = "select cluster, epoch, run, sale_period_s, \
    case when isfinite(seen_at) then (extract(epoch from seen_at) * 1000000)::bigint end from clusters";

fn found(row: &Row) -> Found {
    let (epoch, period): (i64, i32) = (row.get(1), row.get(3));
    let owner = Owner { cluster: row.get(0), run: Run { epoch: epoch as u32, id: row.get(2) } };
    Found { owner, sale_period_s: period as u32, seen_us: row.get(4) }
}

/// The database counts its sales in another period.
pub fn other_period(period: u32) -> Failure {
    let text = format!("its sales last {period} s; start with --sale-period {period}s, or with a database of its own");
    Failure::Final(Fatal::Database(text))
}

async fn set_seen(
    client: &impl GenericClient,
    statement: &Statement,
    Owner { cluster, run }: Owner,
    at: &str,
) -> Result<(), Failure> {
    let changed = client.execute(statement, &[&cluster, &i64::from(run.epoch), &run.id, &at]).await?;
    if changed == 1 { Ok(()) } else { Err(superseded()) }
}

async fn write_owner(
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
    positions.get(&(stream.epoch, stream.shard, stream.log.name().to_owned())).copied()
}

async fn positions(client: &impl GenericClient, cluster: Uuid) -> Result<Positions, Failure> {
    let select = "select epoch, shard, log, position from log_positions where cluster = $1";
    let rows = client.query(select, &[&cluster]).await?;
    let positions = rows.iter().map(|row| {
        let (epoch, shard, position): (i64, i32, i64) = (row.get(0), row.get(1), row.get(3));
        ((epoch as u32, shard as u16, row.get(2)), position as Seq)
    });
    Ok(positions.collect())
}

async fn begin(client: &impl GenericClient, stream: &StreamId, position: Seq) -> Result<(), Failure> {
    let upsert = "insert into log_positions values ($1, $2, $3, $4, $5) \
        on conflict (cluster, epoch, shard, log) do update set position = excluded.position";
    let (epoch, shard, log) = (i64::from(stream.epoch), i32::from(stream.shard), stream.log.name());
    client.execute(upsert, &[&stream.cluster, &epoch, &shard, &log, &(position as i64)]).await?;
    Ok(())
}

/// The records that bring the latest sale back: what is held and what is sold, nothing that is over.
async fn latest_sale(client: &impl GenericClient) -> Result<Vec<Record>, Failure> {
    let sale = "select sale_id, items, user_limit, opened_at from sales order by sale_id desc limit 1";
    let Some(row) = client.query_opt(sale, &[]).await? else { return Ok(Vec::new()) };
    let (sale_id, items, user_limit): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
    let (sale, opened_ms) = (SaleId(sale_id as u32), unix_ms(row.get(3)));
    let terms = Terms { sale, items: items as u32, user_limit: user_limit as u32 };
    let mut records =
        vec![Record::sale_opened(&terms, opened_ms), Record { sale, unix_ms: opened_ms, event: Event::TakenOver }];
    // What was bought counts even if somebody has removed the sale's checkouts.
    let live = "select item_id, coalesce(p.user_id, c.user_id), code, coalesce(c.at, p.at), \
        coalesce(c.expires_at, p.at), p.at, p.idempotency_key from \
        (select * from checkouts c where sale_id = $1 and outcome = 0 and not exists \
        (select 1 from releases r where r.sale_id = c.sale_id and r.item_id = c.item_id and r.code = c.code)) c \
        full join (select * from purchases where sale_id = $1) p using (item_id, code) order by item_id";
    for row in client.query(live, &[&sale_id]).await? {
        let (item, user, code): (i32, i64, Uuid) = (row.get(0), row.get(1), row.get(2));
        let (item, user, code) = (ItemId(item as u32), UserId(user), Code::from_bytes(code.into_bytes()));
        let (at, expires) = (unix_ms(row.get(3)), unix_ms(row.get(4)));
        let event = Event::Checkout { item, user, code, ttl_ms: expires.saturating_sub(at) as u32 };
        records.push(Record { sale, unix_ms: at, event });
        if let Some(bought) = row.get::<_, Option<SystemTime>>(5) {
            let key = row.get::<_, Option<Uuid>>(6).unwrap_or_default();
            records.push(Record { sale, unix_ms: unix_ms(bought), event: Event::Purchase { item, user, code, key } });
        }
    }
    Ok(records)
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
