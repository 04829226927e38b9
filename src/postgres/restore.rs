//! Fills a new data directory with the latest sale in Postgres, and the ended sales that are still needed, after the
//! machine that sold them is gone.
//!
//! 1. [`crate::postgres::owner_watch`] decides that the owner may be replaced: its run has stopped in order, or does not
//!    report. End its sessions, which may hold locks.
//! 2. In one transaction: lock the row, read these sales, and write a new run as the owner, with the position of
//!    its only stream at the end of that stream. So its records are not sent to the database again. The row says that
//!    the run has ended, so that a takeover that fails here can be repeated.
//! 3. Write the records to the log of the new data directory, durably. Recovery then reads it like every other log.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId};
use crate::log::data_dir::{Control, DataDir};
use crate::log::ownership::{Memory, Owner, Run};
use crate::log::segment::{SegmentName, sync_dir};
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, begin, in_time};
use crate::postgres::owner_row::{OwnerRow, OwnerTerms, lock_clusters, set_position, set_seen, write_owner};
use crate::postgres::sale_rows::{SALES, check_plan, opened_sale, sale_times, unix_ms};
use crate::postgres::session::Database;
use crate::postgres::snapshot::Snapshot;
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Seq, UserId};
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record, ReleaseReason, SaleTimes};
use crate::sale::rules::{HOLD_MAX, Rules};
use crate::system::host;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::GenericClient;
use uuid::Uuid;

/// Limit for the transaction of a takeover, which reads the sales.
const TAKEOVER_TIME: Duration = Duration::from_secs(60);
/// The first version of the schema whose sales have codes that this version can read.
const FIRST_SCHEMA: i32 = 3;
/// Maximum number of blocks in a segment.
const SEGMENT_BLOCKS: usize = 1024;

/// The sales of the database that a new data directory needs.
pub struct TakenOver {
    /// `user@host:port/name` of the host in use.
    pub place: String,
    /// Installation, and the run that takes the sales over.
    pub owner: Owner,
    /// Records of each sale, oldest sale first: its opening, the latest hold of each item, and its purchases. The
    /// database has all of them.
    pub records: Vec<Record>,
}

/// Replaces the run in `found`, and fills the data directory `dir` with its sales. Calls `make_new` right before, after
/// all checks have passed, to make the directory new.
///
/// # Errors
/// [`Failure::Final`]: this server cannot use the database, its plan contradicts the sales there, or the data directory
/// cannot be written.
/// [`Failure::Transient`]: the run has reported in the meantime, or the database failed. A later attempt may succeed.
pub async fn restore(
    url: &DatabaseUrl,
    dir: &DataDir,
    (rules, plan): (&Rules, Option<LoadedPlan>),
    now_ms: u64,
    found: OwnerRow,
    make_new: impl FnOnce() -> Result<(), Fatal>,
) -> Result<TakenOver, Failure> {
    // Until the takeover is sure, the database keeps its schema: its owner may be an older version.
    let snapshot = Snapshot::take(url).await?;
    check_format(&snapshot, rules, now_ms).await?;
    if let Some(plan) = plan {
        check_plan(&snapshot, plan, now_ms).await?;
    }
    make_new()?;
    in_time(FENCE_TIME, end_sessions(&snapshot)).await?;
    drop(snapshot);
    let unchanged = |owner| match owner == Some(found.owner) {
        true => Ok(()),
        false => Err(has_changed()),
    };
    // A look has required the replication already, and may be repeated.
    let mut database = Database::connect(url, (rules.ack, true), unchanged).await?;
    let taken_over = database.take_over(found, host::new_id()?, rules, now_ms);
    let taken_over = in_time(TAKEOVER_TIME, taken_over).await?;
    let Owner { cluster, run } = taken_over.owner;
    let stream = StreamId { cluster, epoch: run.epoch, shard: 0, log: LogKind::Purchases };
    let memory = Memory { seen: Some(run), filled: Some(run), ..Memory::default() };
    let period_s = rules.schedule.period_s().max(found.sale_period_s);
    let mut control = Control::new(cluster, run.epoch, period_s, memory);
    control.longest_hold_ms = longest_hold_ms(&taken_over.records);
    dir.fill(control, |logs| write_stream(logs, stream, &taken_over.records))?;
    Ok(taken_over)
}

impl Database {
    /// Takes the installation over from the run in `found`, as the next run with the random `id`. The only stream of
    /// this run has the records of the latest sale, and of the ended sales that are needed at `now_ms` (Unix time). The
    /// run counts as ended, because it sells nothing: if its process fails here, another takeover can follow at once.
    /// The process claims the database before it sells.
    ///
    /// # Errors
    /// [`Failure::Transient`]: the owner's row has changed since `found` was read, or a statement failed.
    pub async fn take_over(
        &mut self,
        found: OwnerRow,
        id: Uuid,
        rules: &Rules,
        now_ms: u64,
    ) -> Result<TakenOver, Failure> {
        let transaction = begin(&mut self.client).await?;
        let known = lock_clusters(&transaction).await?;
        if known != Some(found) {
            return Err(has_changed());
        }
        let cluster = found.owner.cluster;
        let owner = Owner { cluster, run: Run { epoch: found.owner.run.epoch + 1, id } };
        // The lock keeps all other runs from writing, so these are all records that earlier runs will ever have here.
        let records = needed_sales(&transaction, &SaleEnds { rules, period_s: found.sale_period_s }, now_ms).await?;
        let stream = StreamId { cluster, epoch: owner.run.epoch, shard: 0, log: LogKind::Purchases };
        set_position(&transaction, &stream, records.len() as Seq).await?;
        let terms = OwnerTerms { sale_period_s: found.sale_period_s, ack: rules.ack, patience: None };
        write_owner(&transaction, owner, terms).await?;
        set_seen(&transaction, owner, "-infinity").await?;
        transaction.commit().await?;
        // The new data directory must not have more than the standbys will have.
        self.confirm_commit().await?;
        Ok(TakenOver { place: self.place.clone(), owner, records })
    }
}

/// Ends the sessions that hold locks on the owner's row. They belong to a run that does not report, and would keep their
/// locks until Postgres notices that their client is gone.
async fn end_sessions(snapshot: &Snapshot) -> Result<(), Failure> {
    let Some(installed) = &snapshot.installed else { return Ok(()) };
    let end = "select pg_terminate_backend(pid) from pg_locks join pg_stat_activity using (pid) \
        where relation = 'stampede.clusters'::regclass and granted and mode <> 'AccessShareLock' \
        and usename = current_user and pid <> pg_backend_pid()";
    snapshot.client.query(&installed.localize(end), &[]).await?;
    Ok(())
}

fn has_changed() -> Failure {
    Failure::Transient("another server has reported to the database in the meantime".into())
}

/// Returns the failure for an owner that may still sell although it does not reach the database.
pub fn may_still_sell(found: &OwnerRow) -> Fatal {
    Fatal::Database(format!(
        "its latest run (epoch {}, --ack local) has not ended in order, so another server is running on it, or may still \
         sell without it; start the server on the data directory of that run, or stop that server in order. If that \
         server is gone for good, continue from the database with --recover-from postgres: what had not arrived there \
         is lost",
        found.owner.run.epoch
    ))
}

/// Checks that the latest sale was not sold by version 0.1, or has ended. That version minted codes which this one cannot
/// read, and its schema had no table `extensions`.
///
/// # Errors
/// [`Failure::Final`]: version 0.1 sells, or has sold, the sale that has not ended.
async fn check_format(snapshot: &Snapshot, rules: &Rules, now_ms: u64) -> Result<(), Failure> {
    let Some(installed) = snapshot.installed.as_ref().filter(|installed| installed.version < FIRST_SCHEMA) else {
        return Ok(());
    };
    let latest = installed.localize("select max(sale_id) from stampede.sales");
    let latest: Option<i64> = snapshot.client.query_one(&latest, &[]).await?.get(0);
    let period_s = snapshot.owner_row.map_or(0, |row| row.sale_period_s);
    let ends_ms = |sale: i64| SaleEnds { rules, period_s }.of(SaleId(sale as u32), None);
    let Some(sale) = latest.filter(|sale| now_ms < ends_ms(*sale)) else { return Ok(()) };
    Err(Failure::Final(Fatal::Database(format!(
        "sale {sale} was sold by version 0.1, whose codes this version cannot read; continue with that version until the \
         sale has ended, as \"Another format\" in docs/upgrades.md describes"
    ))))
}

/// Returns the records from which recovery builds the latest sale, and the ended sales that it needs: those whose
/// receipts are due, and those in which an item is held.
async fn needed_sales(client: &impl GenericClient, ends: &SaleEnds<'_>, now_ms: u64) -> Result<Vec<Record>, Failure> {
    let rules = ends.rules;
    let mut sales = client.query(SALES, &[]).await?;
    sales.reverse();
    let (mut records, newest) = (Vec::new(), sales.last().map(|row| row.get::<_, i64>(0)));
    for row in sales {
        let (sale_id, opened) = (row.get::<_, i64>(0), opened_sale(&row));
        let times = sale_times(row.get(4), row.get(5));
        let forgotten_ms = ends.of(opened.sale, times).saturating_add(rules.receipts_ms);
        let may_hold = forgotten_ms.saturating_add(HOLD_MAX.as_millis() as u64) > now_ms;
        let is_needed = Some(sale_id) == newest || now_ms < forgotten_ms;
        if is_needed || may_hold && has_promises(client, sale_id, rules, now_ms).await? {
            let restored = sale_records(client, opened).await?;
            // Holds of version 0.1 have ended with their sale.
            if restored.iter().all(has_current_code) {
                records.extend(restored);
            }
        }
    }
    Ok(records)
}

/// When sales end, as far as it is known.
struct SaleEnds<'a> {
    rules: &'a Rules,
    /// Length of the sales without a plan in the database, in seconds; 0 if there were none.
    period_s: u32,
}

impl SaleEnds<'_> {
    /// Returns the end of a sale with these `times`, in milliseconds since the Unix epoch. A sale without times had no plan.
    fn of(&self, sale: SaleId, times: Option<SaleTimes>) -> u64 {
        match times {
            Some(times) => times.closes_ms,
            None if self.period_s > 0 => (u64::from(sale.0) + 1) * u64::from(self.period_s) * 1000,
            None => self.rules.ends_ms(sale),
        }
    }
}

/// Returns whether the code of a record belongs to the item and the sale of the record. Version 0.1 minted other codes.
fn has_current_code(record: &Record) -> bool {
    match record.event {
        LogEvent::Checkout { item, code, .. } => {
            code.place().is_some_and(|at| at.is_in(record.sale) && at.item == item)
        }
        _ => true,
    }
}

/// Returns whether an item of the sale is held at `now_ms`, or was bought so late that its receipt is still due.
async fn has_promises(client: &impl GenericClient, sale_id: i64, rules: &Rules, now_ms: u64) -> Result<bool, Failure> {
    let has_promises = "select exists (select 1 from stampede.purchases where sale_id = $1 and at > $3) or exists \
        (select 1 from stampede.checkouts c left join stampede.extensions e using (sale_id, code) \
        where c.sale_id = $1 and c.outcome = 0 and c.expires_at + coalesce(e.by_ms, 0) * interval '1 ms' > $2 \
        and not exists (select 1 from stampede.releases r where r.sale_id = c.sale_id and r.code = c.code) \
        and not exists (select 1 from stampede.purchases p where p.sale_id = c.sale_id and p.code = c.code))";
    let (now, receipts) = (UNIX_EPOCH + Duration::from_millis(now_ms), Duration::from_millis(rules.receipts_ms));
    Ok(client.query_one(has_promises, &[&sale_id, &now, &(now - receipts)]).await?.get(0))
}

/// Returns the records of one sale: its opening, the latest hold of each item, and the purchases.
async fn sale_records(client: &impl GenericClient, opened: Record) -> Result<Vec<Record>, Failure> {
    let sale = opened.sale;
    let mut records = vec![opened, Record { event: LogEvent::RestoredFromPostgres, ..opened }];
    // A hold that was not released is later than all that were. The full join keeps purchases whose checkouts an operator
    // has deleted.
    let holds = "select item_id, coalesce(p.user_id, c.user_id), code, coalesce(c.at, p.at), \
        coalesce(c.expires_at, p.at), p.at, p.idempotency_key, c.idempotency_key, c.reason, c.released_at, e.by_ms, e.at \
        from (select distinct on (c.item_id) c.*, r.reason, r.at as released_at from stampede.checkouts c \
        left join stampede.releases r on (r.sale_id, r.item_id, r.code) = (c.sale_id, c.item_id, c.code) \
        where c.sale_id = $1 and c.outcome = 0 order by c.item_id, r.code is not null, c.at desc) c \
        full join (select * from stampede.purchases where sale_id = $1) p using (item_id, code) \
        left join (select code, by_ms, at from stampede.extensions where sale_id = $1) e using (code) \
        order by item_id, p.code is not null";
    for row in client.query(holds, &[&i64::from(sale.0)]).await? {
        let (item, user, code): (i32, i64, Uuid) = (row.get(0), row.get(1), row.get(2));
        let (item, user, code) = (ItemId(item as u32), UserId(user), Code::from_bytes(code.into_bytes()));
        let (at, expires) = (unix_ms(row.get(3)), unix_ms(row.get(4)));
        let key = |column| row.get::<_, Option<Uuid>>(column).unwrap_or_default();
        let time = |column| row.get::<_, Option<SystemTime>>(column).map(unix_ms);
        let ttl_ms = expires.saturating_sub(at) as u32;
        let mut add = |unix_ms, event| records.push(Record { sale, unix_ms, event });
        add(at, LogEvent::Checkout { item, user, code, ttl_ms, key: key(7) });
        if let (Some(by_ms), Some(extended)) = (row.get::<_, Option<i32>>(10), time(11)) {
            add(extended, LogEvent::Extended { item, user, code, by_ms: by_ms as u32 });
        }
        let reason = row.get::<_, Option<i16>>(8).and_then(|reason| ReleaseReason::from_repr(reason as u8 - 1));
        if let (Some(reason), Some(released)) = (reason, time(9)) {
            add(released, LogEvent::Released { item, user, code, reason });
        }
        if let Some(bought) = time(5) {
            add(bought, LogEvent::Purchase { item, user, code, key: key(6) });
        }
    }
    Ok(records)
}

/// Returns the longest time for which one of the records holds an item, in milliseconds.
fn longest_hold_ms(records: &[Record]) -> u64 {
    let length = |record: &Record| match record.event {
        LogEvent::Checkout { ttl_ms, .. } | LogEvent::Extended { by_ms: ttl_ms, .. } => u64::from(ttl_ms),
        _ => 0,
    };
    // A hold has at most one extension, so no hold is longer than twice the longest of both.
    2 * records.iter().map(length).max().unwrap_or(0)
}

/// Writes a complete stream, durably. Recovery seals it.
fn write_stream(dir: &Path, stream: StreamId, records: &[Record]) -> io::Result<()> {
    let mut chain = Chain::new(stream);
    for segment in records.chunks(SEGMENT_BLOCKS * BLOCK_RECORDS) {
        let blocks = segment.len().div_ceil(BLOCK_RECORDS);
        let name = SegmentName { stream, first_block: chain.blocks(), blocks: blocks as u32 };
        let encoded: Vec<u8> = segment.iter().flat_map(Record::encode).collect();
        let mut bytes = vec![0; blocks * BLOCK_BYTES];
        chain.extend(&mut bytes, &encoded, 0);
        let mut file = File::create_new(name.path(dir))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::stream::Ending;
    use crate::log::stream_files::StreamFiles;
    use std::convert::Infallible;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let stream = StreamId { cluster: Uuid::from_u128(1), epoch: 4, shard: 0, log: LogKind::Purchases };
        let records: Vec<Record> = (0..(SEGMENT_BLOCKS * BLOCK_RECORDS + 100) as u32)
            .map(|item| {
                let (user, code) = (UserId(7), crate::sale::code::Code::from_bytes([item as u8; 16]));
                let event = LogEvent::Checkout { item: ItemId(item), user, code, ttl_ms: 1, key: Uuid::nil() };
                Record { sale: SaleId(3), unix_ms: 5, event }
            })
            .collect();
        write_stream(dir.path(), stream, &records).unwrap();
        let names = [(0, SEGMENT_BLOCKS as u32), (SEGMENT_BLOCKS as u64, 2)];
        let names = names.map(|(first_block, blocks)| SegmentName { stream, first_block, blocks });
        let (mut files, mut read) = (StreamFiles::new(dir.path(), stream), Vec::new());
        let passed = files.pass(
            &names,
            |_, _| false,
            |_, record| {
                read.push(*record);
                Ok::<(), Infallible>(())
            },
        );
        assert!(passed.is_ok());
        assert_eq!((files.end().ending, read), (Ending::Clean, records));
    }
}
