//! A new data directory goes on with a sale that Postgres knows: the machine before it is gone.
//!
//! What Postgres has of the latest sale is written to the log of the new directory, as a run of its own that nobody
//! needs to ship any more. After that, recovery reads it as it reads every log.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId};
use crate::log::data_dir::{Control, DataDir};
use crate::log::ownership::{Memory, Owner, Run};
use crate::log::segment::{SegmentName, sync_dir};
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::{OwnerRow, begin, lock_clusters, other_period, write_owner};
use crate::postgres::session::Database;
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Seq, Terms, UserId};
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record};
use crate::system::host;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_postgres::GenericClient;
use uuid::Uuid;

/// A server says at least this often that it lives, while it reaches the database.
pub const BEAT_TIME: Duration = Duration::from_secs(2);
/// How long a server must not be heard of, while the database can be reached, before another takes over: longer than
/// it may wait before it tries to reach the database again.
const SILENCE: Duration = Duration::from_secs(15);
/// Blocks of one segment.
const SEGMENT_BLOCKS: usize = 1024;

/// Whoever wants to take over first listens for a while.
#[derive(Default)]
pub struct Listener {
    heard: Option<(OwnerRow, Instant)>,
}

/// A sale, as the database knows it, for a data directory to go on with.
pub struct TakenOver {
    /// The run that took it over.
    pub owner: Owner,
    /// What happened in the latest sale, as the log would have it. In the database already.
    pub records: Vec<Record>,
}

/// What came of an attempt.
pub enum Attempt {
    /// The directory goes on with this sale.
    TakenOver(TakenOver),
    /// The database has never been used: there is nothing to take over.
    NothingThere,
    /// A server is on it: it has said so while we listened.
    Alive,
    /// Nothing has been heard so far, but not for long enough.
    Listening,
}

impl Listener {
    /// Tries to fill the new directory `dir` from the database. `make_new` is called right before, when nothing else
    /// stands in the way.
    ///
    /// # Errors
    /// [`Failure::Final`]: the database cannot be this server's. [`Failure::Passing`]: it may work later; what was
    /// heard so far is forgotten, because the other server may not have reached the database either.
    pub async fn attempt(
        &mut self,
        url: &DatabaseUrl,
        dir: &DataDir,
        sale_period_s: u32,
        make_new: impl FnOnce() -> Result<(), Fatal>,
    ) -> Result<Attempt, Failure> {
        let heard = self.heard.take();
        let mut database = Database::connect(url).await?;
        let Some(found) = database.found().await? else { return Ok(Attempt::NothingThere) };
        if found.sale_period_s != sale_period_s {
            return Err(other_period(found.sale_period_s));
        }
        if found.seen_us.is_some() {
            match heard {
                Some((before, since)) if before == found => {
                    self.heard = heard;
                    if since.elapsed() < SILENCE {
                        return Ok(Attempt::Listening);
                    }
                }
                Some((before, _)) if before.owner == found.owner => return Ok(Attempt::Alive),
                _ => {
                    self.heard = Some((found, Instant::now()));
                    return Ok(Attempt::Listening);
                }
            }
        }
        make_new().map_err(Failure::Final)?;
        let taken_over = database.take_over(found, host::new_id().map_err(Failure::Final)?).await?;
        let Owner { cluster, run } = taken_over.owner;
        let stream = StreamId { cluster, epoch: run.epoch, shard: 0, log: LogKind::Purchases };
        let memory = Memory { seen: Some(run), claiming: None, filled: Some(run) };
        let control = Control::new(cluster, run.epoch, sale_period_s, memory);
        dir.fill(control, |logs| write_stream(logs, stream, &taken_over.records)).map_err(Failure::Final)?;
        Ok(Attempt::TakenOver(taken_over))
    }
}

impl Database {
    /// Takes the installation over from the run that was `found`: as the run after it, whose only stream is what the
    /// latest sale came to.
    ///
    /// # Errors
    /// [`Failure::Passing`] also if another run was there first.
    pub async fn take_over(&mut self, found: OwnerRow, id: Uuid) -> Result<TakenOver, Failure> {
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
}

/// The records that bring the latest sale back: what is held and what is sold, nothing that is over.
async fn latest_sale(client: &impl GenericClient) -> Result<Vec<Record>, Failure> {
    let sale = "select sale_id, items, user_limit, opened_at from sales order by sale_id desc limit 1";
    let Some(row) = client.query_opt(sale, &[]).await? else { return Ok(Vec::new()) };
    let (sale_id, items, user_limit): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
    let (sale, opened_ms) = (SaleId(sale_id as u32), unix_ms(row.get(3)));
    let terms = Terms { sale, items: items as u32, user_limit: user_limit as u32 };
    let mut records =
        vec![Record::sale_opened(&terms, opened_ms), Record { sale, unix_ms: opened_ms, event: LogEvent::TakenOver }];
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
        let event = LogEvent::Checkout { item, user, code, ttl_ms: expires.saturating_sub(at) as u32 };
        records.push(Record { sale, unix_ms: at, event });
        if let Some(bought) = row.get::<_, Option<SystemTime>>(5) {
            let key = row.get::<_, Option<Uuid>>(6).unwrap_or_default();
            records.push(Record {
                sale,
                unix_ms: unix_ms(bought),
                event: LogEvent::Purchase { item, user, code, key },
            });
        }
    }
    Ok(records)
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Writes a whole stream, durably. Recovery will seal it.
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
    use crate::log::stream::{self, Ending};

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let stream = StreamId { cluster: Uuid::from_u128(1), epoch: 4, shard: 0, log: LogKind::Purchases };
        let records: Vec<Record> = (0..(SEGMENT_BLOCKS * BLOCK_RECORDS + 100) as u32)
            .map(|item| {
                let (user, code) = (UserId(7), crate::sale::code::Code::from_bytes([item as u8; 16]));
                let event = LogEvent::Checkout { item: ItemId(item), user, code, ttl_ms: 1 };
                Record { sale: SaleId(3), unix_ms: 5, event }
            })
            .collect();
        write_stream(dir.path(), stream, &records).unwrap();
        let names = [(0, SEGMENT_BLOCKS as u32), (SEGMENT_BLOCKS as u64, 2)];
        let names = names.map(|(first_block, blocks)| SegmentName { stream, first_block, blocks });
        let segments = names.map(|name| name.read(dir.path()).unwrap());
        let mut read = Vec::new();
        let end = stream::read(&stream, &segments, |_, record| {
            read.push(*record);
            Ok(())
        });
        assert_eq!((end.unwrap().ending, read), (Ending::Clean, records));
    }
}
