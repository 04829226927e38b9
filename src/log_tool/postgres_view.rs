//! What Postgres says, for whoever holds it against the log. It is asked for one moment, and nothing in it is changed.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::data_dir::DataDir;
use crate::log::ownership::{Owner, Run};
use crate::log_tool::scan::{LogScan, ScannedStream};
use crate::postgres::claim::{fatal, judge};
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::Positions;
use crate::postgres::snapshot::Snapshot;
use crate::sale::ids::SaleId;
use crate::system::threads::event_loop;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;

/// How long one answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long a database may take that may be away.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A database that has been asked.
pub struct PostgresView {
    runtime: Runtime,
    glance: Snapshot,
    /// Without anything secret.
    pub place: String,
}

/// What the rows of a sale come to.
pub struct SaleRows {
    /// Its stock and the limit for a user, if it is there.
    pub terms: Option<(u32, u32)>,
    /// Checkouts: granted, and refused as `item-sold`, `item-reserved`, `user-limit`. `None` if they have been dropped.
    pub checkouts: Option<[u64; 4]>,
    /// Holds that ended without a purchase: expired, cancelled.
    pub releases: [u64; 2],
    /// What was bought, by code: item and user.
    pub purchases: HashMap<[u8; 16], (u32, i64)>,
    /// Items held at the time given.
    pub held: u64,
}

impl PostgresView {
    /// Asks the database of these settings, if there is one. If it does not answer: why.
    ///
    /// # Errors
    /// It cannot be the log's: its schema is newer than this version.
    pub fn ask(config: &Config) -> Result<Option<Result<PostgresView, String>>, Fatal> {
        let Some(url) = &config.database else { return Ok(None) };
        let runtime = event_loop()?;
        let glance = runtime.block_on(async { timeout(CONNECT_TIME, Snapshot::take(url)).await });
        match glance {
            Ok(Ok(glance)) => Ok(Some(Ok(PostgresView { runtime, glance, place: url.place() }))),
            Ok(Err(Failure::Passing(why))) => Ok(Some(Err(why))),
            Ok(Err(Failure::Final(fatal))) => Err(fatal),
            Err(_) => Ok(Some(Err("it does not answer".into()))),
        }
    }

    /// Whose they are, if anybody's.
    pub fn owner(&self) -> Option<Owner> {
        self.glance.owner
    }

    /// How much of each stream they have.
    pub fn positions(&self) -> &Positions {
        &self.glance.positions
    }

    /// Whether they are those of the data directory whose streams have been read.
    ///
    /// # Errors
    /// What a start of the server would say.
    pub fn fit(&self, config: &Config, survey: &LogScan) -> Result<(), Fatal> {
        // Read anew: what a server puts into the database, it has remembered before.
        let (_, control) = DataDir::survey(&config.data_dir)?;
        let next = Run { epoch: control.epoch + 1, id: Uuid::nil() };
        let this = (Owner { cluster: control.cluster, run: next }, control.database);
        let end = |stream: &ScannedStream| stream.damage.is_none().then_some(stream.end().records);
        let extents = survey.streams.iter().map(|stream| (stream.id, stream.first(), end(stream)));
        let extents: Vec<_> = extents.collect();
        let judged = judge(this, (self.glance.owner, &self.glance.positions), &extents, config.recover_from);
        judged.map(drop).map_err(|conflict| fatal(&conflict))
    }

    /// What they say of a sale, and how much of it is held at that time, in milliseconds since the Unix epoch; nothing
    /// of one that is over.
    ///
    /// # Errors
    /// The database has gone away: why.
    pub fn sale(&self, sale: SaleId, held_at_ms: Option<u64>) -> Result<SaleRows, String> {
        let rows = self.runtime.block_on(async { timeout(ANSWER_TIME, rows(&self.glance, sale, held_at_ms)).await });
        rows.map_err(|_| "it does not answer".to_owned())?.map_err(|failure| match failure {
            Failure::Passing(why) => why,
            Failure::Final(fatal) => fatal.to_string(),
        })
    }
}

async fn rows(glance: &Snapshot, sale: SaleId, held_at_ms: Option<u64>) -> Result<SaleRows, Failure> {
    let mut rows = SaleRows { terms: None, checkouts: None, releases: [0; 2], purchases: HashMap::new(), held: 0 };
    // Nobody has ever used it.
    let Some(_) = glance.owner else { return Ok(rows) };
    let (client, sale) = (&glance.client, i64::from(sale.0));
    let terms = client.query_opt("select items, user_limit from sales where sale_id = $1", &[&sale]).await?;
    rows.terms = terms.map(|row| (row.get::<_, i32>(0) as u32, row.get::<_, i32>(1) as u32));
    let partition = "select to_regclass('checkouts_' || $1::bigint) is not null";
    if client.query_one(partition, &[&sale]).await?.get(0) {
        let mut checkouts = [0; 4];
        let select = "select outcome, count(*) from checkouts where sale_id = $1 group by outcome";
        for row in client.query(select, &[&sale]).await? {
            checkouts[row.get::<_, i16>(0) as usize] = row.get::<_, i64>(1) as u64;
        }
        rows.checkouts = Some(checkouts);
    }
    let select = "select reason, count(*) from releases where sale_id = $1 group by reason";
    for row in client.query(select, &[&sale]).await? {
        rows.releases[row.get::<_, i16>(0) as usize - 1] = row.get::<_, i64>(1) as u64;
    }
    let select = "select code, item_id, user_id from purchases where sale_id = $1";
    for row in client.query(select, &[&sale]).await? {
        let (code, item): (Uuid, i32) = (row.get(0), row.get(1));
        rows.purchases.insert(code.into_bytes(), (item as u32, row.get(2)));
    }
    let held = "select count(*) from checkouts c where sale_id = $1 and outcome = 0 and expires_at > $2 \
        and not exists (select 1 from releases r where r.sale_id = c.sale_id and r.code = c.code) \
        and not exists (select 1 from purchases p where p.sale_id = c.sale_id and p.code = c.code)";
    if let Some(at) = held_at_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)) {
        rows.held = client.query_one(held, &[&sale, &at]).await?.get::<_, i64>(0) as u64;
    }
    Ok(rows)
}
