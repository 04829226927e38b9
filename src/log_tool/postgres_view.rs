//! The state of the database, for the comparison with the log. All of it is read in one read-only transaction, so it is
//! the state of one moment.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::LogKind;
use crate::log::data_dir::DataDir;
use crate::log::losses::{DamagedBeginning, Persisted};
use crate::log::ownership::{Owner, Run};
use crate::log_tool::scan::{LogScan, ScannedStream};
use crate::postgres::claim::judge;
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::Positions;
use crate::postgres::sale_rows::{TIMES_SCHEMA, sale_times};
use crate::postgres::snapshot::Snapshot;
use crate::sale::ids::SaleId;
use crate::sale::record::SaleTimes;
use crate::system::threads::{EventLoop, event_loop};
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::timeout;
use uuid::Uuid;

/// Maximum time to read a sale.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// A database to which the tool is connected, with its owner and positions.
pub struct PostgresView {
    runtime: EventLoop,
    snapshot: Snapshot,
    /// Address of the database, without secrets.
    pub place: String,
}

/// The sums of the rows of a sale.
pub struct SaleRows {
    /// Stock and limit per user, if the database has the sale.
    pub terms: Option<(u32, u32)>,
    /// When the sale opens and closes, if the database has it.
    pub times: Option<SaleTimes>,
    /// Numbers of checkouts: granted, refused as `item-sold`, as `item-reserved`, as `user-limit`. `None` if a partition
    /// of the sale was dropped.
    pub checkouts: Option<[u64; 4]>,
    /// Numbers of holds that ended without a purchase: expired, cancelled.
    pub releases: [u64; 2],
    /// Item and user of each purchase, by code.
    pub purchases: HashMap<[u8; 16], (u32, i64)>,
    /// Number of items held at the given time.
    pub held: u64,
}

impl PostgresView {
    /// Connects to the database of these settings. Returns `None` if no database is set, and the reason if the database
    /// is not reachable.
    ///
    /// # Errors
    /// [`Fatal::Database`]: the schema is newer than this version.
    pub fn ask(config: &Config) -> Result<Option<Result<PostgresView, String>>, Fatal> {
        let Some(url) = &config.database else { return Ok(None) };
        let runtime = event_loop()?;
        match runtime.block_on(Snapshot::take(url)) {
            Ok(snapshot) => {
                let place = snapshot.place.clone();
                Ok(Some(Ok(PostgresView { runtime, snapshot, place })))
            }
            Err(Failure::Transient(why)) => Ok(Some(Err(why.text))),
            Err(Failure::Final(fatal)) => Err(fatal),
        }
    }

    /// Returns the owner of the database, or `None` if it was never used.
    pub fn owner(&self) -> Option<Owner> {
        self.snapshot.owner
    }

    /// Returns the positions of the owner's streams.
    pub fn positions(&self) -> &Positions {
        &self.snapshot.positions
    }

    /// Returns what the database has of the log, if it answers.
    pub fn persisted(config: &Config, view: Option<&PostgresView>) -> Persisted {
        match view {
            Some(view) => Persisted::Positions(view.positions().clone()),
            None if config.database.is_some() => Persisted::Unknown,
            None => Persisted::NoDatabase,
        }
    }

    /// Checks whether the database fits the data directory whose streams have been read, by the rules of a start, which
    /// would set `damaged` aside.
    ///
    /// # Errors
    /// The error with which a start of the server would refuse.
    pub fn fit(&self, config: &Config, scan: &LogScan, damaged: &[DamagedBeginning]) -> Result<(), Fatal> {
        // Read this after the database: a server writes a claim to `control.json` before it sends the claim.
        let (_, control) = DataDir::open_read_only(&config.data_dir)?;
        let next = Run { epoch: control.epoch + 1, id: Uuid::nil() };
        let this = (Owner { cluster: control.cluster, run: next }, control.database);
        let set_aside = |id| damaged.iter().find(|beginning| beginning.id == id).and_then(|beginning| beginning.last);
        let extent = |stream: &ScannedStream| {
            let end = stream.end().records;
            let is_judged = stream.losses().is_none() || stream.id.log == LogKind::Attempts;
            match set_aside(stream.id) {
                Some(last) => (stream.id, last, Some(end)),
                // The damage is reported already, and nothing is known about the end.
                None => (stream.id, stream.first(), is_judged.then_some(end)),
            }
        };
        let extents: Vec<_> = scan.streams.iter().map(extent).collect();
        let judged = judge(this, (self.snapshot.owner, &self.snapshot.positions), &extents, config.recover_from);
        judged.map(drop).map_err(Fatal::from)
    }

    /// Sums the rows of a sale. Counts the holds that are live at `now_ms`, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The reason, if the connection to the database is lost or an answer takes too long.
    pub fn sale(&self, sale: SaleId, now_ms: u64) -> Result<SaleRows, String> {
        let rows = self.runtime.block_on(async { timeout(ANSWER_TIME, rows(&self.snapshot, sale, now_ms)).await });
        rows.map_err(|_| "the database does not answer".to_owned())?.map_err(|failure| match failure {
            Failure::Transient(why) => why.text,
            Failure::Final(fatal) => fatal.to_string(),
        })
    }
}

async fn rows(snapshot: &Snapshot, sale: SaleId, now_ms: u64) -> Result<SaleRows, Failure> {
    let mut rows =
        SaleRows { terms: None, times: None, checkouts: None, releases: [0; 2], purchases: HashMap::new(), held: 0 };
    // Without an owner, the database was never used and has no tables.
    let (Some(_), Some(installed)) = (snapshot.owner, &snapshot.installed) else { return Ok(rows) };
    let (client, sale) = (&snapshot.client, i64::from(sale.0));
    let ask = async |query: &str| client.query(&installed.localize(query), &[&sale]).await;
    let terms = ask("select items, user_limit from stampede.sales where sale_id = $1").await?;
    rows.terms = terms.first().map(|row| (row.get::<_, i32>(0) as u32, row.get::<_, i32>(1) as u32));
    if installed.version >= TIMES_SCHEMA {
        let select = "select opens_at, closes_at from stampede.sales where sale_id = $1";
        rows.times = ask(select).await?.first().and_then(|row| sale_times(row.get(0), row.get(1)));
    }
    // Before version 6 of the schema, each sale had a partition.
    let partition = match installed.version {
        ..6 => "select to_regclass('stampede.checkouts_' || $1::bigint) is not null",
        _ => {
            "select not is_pruned from stampede.partitions where table_name = 'checkouts' \
            and $1::bigint >= first_sale and $1::bigint < until_sale"
        }
    };
    if ask(partition).await?.first().is_some_and(|row| row.get(0)) {
        let mut checkouts = [0; 4];
        let select = "select outcome, count(*) from stampede.checkouts where sale_id = $1 group by outcome";
        for row in ask(select).await? {
            checkouts[row.get::<_, i16>(0) as usize] = row.get::<_, i64>(1) as u64;
        }
        rows.checkouts = Some(checkouts);
    }
    let select = "select reason, count(*) from stampede.releases where sale_id = $1 group by reason";
    for row in ask(select).await? {
        rows.releases[row.get::<_, i16>(0) as usize - 1] = row.get::<_, i64>(1) as u64;
    }
    let select = "select code, item_id, user_id from stampede.purchases where sale_id = $1";
    for row in ask(select).await? {
        let (code, item): (Uuid, i32) = (row.get(0), row.get(1));
        rows.purchases.insert(code.into_bytes(), (item as u32, row.get(2)));
    }
    // `$2` stands alone on its side of the comparison: Postgres takes `$2 - interval` for an interval.
    let held = "select count(*) from stampede.checkouts c where sale_id = $1 and outcome = 0 and expires_at \
        + coalesce((select by_ms from stampede.extensions e where e.sale_id = c.sale_id and e.code = c.code), 0) \
        * interval '1 ms' > $2 \
        and not exists (select 1 from stampede.releases r where r.sale_id = c.sale_id and r.code = c.code) \
        and not exists (select 1 from stampede.purchases p where p.sale_id = c.sale_id and p.code = c.code)";
    let now = UNIX_EPOCH + Duration::from_millis(now_ms);
    rows.held = client.query_one(&installed.localize(held), &[&sale, &now]).await?.get::<_, i64>(0) as u64;
    Ok(rows)
}
