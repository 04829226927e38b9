//! A new data directory goes on with a sale that Postgres knows: the machine before it is gone.
//!
//! What Postgres has of the latest sale is written to the log of the new directory, as a run of its own that nobody
//! needs to ship any more. After that, recovery reads it as it reads every log.

use crate::block::{self, BLOCK_BYTES, BLOCK_RECORDS, Header, LogKind, StreamId};
use crate::data_dir::{Control, DataDir};
use crate::database_url::DatabaseUrl;
use crate::fatal::Fatal;
use crate::host;
use crate::ownership::{Memory, Owner};
use crate::postgres::{Database, Failure, TakenOver};
use crate::record::{RECORD_BYTES, Record};
use crate::segment::{SegmentName, sync_dir};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How long a server must not have been heard of before another may take over. It says that it lives five times as
/// often.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Blocks of one segment.
const SEGMENT_BLOCKS: usize = 1024;

/// What came of an attempt.
pub enum Attempt {
    /// The directory goes on with this sale.
    TakenOver(TakenOver),
    /// The database has never been used: there is nothing to take over.
    NothingThere,
    /// A server was heard of this short a time ago: it may be alive.
    NotSilent(Duration),
}

/// Tries to fill the new directory `dir` from the database.
///
/// # Errors
/// [`Failure::Final`]: the database cannot be this server's. [`Failure::Passing`]: it may work later.
pub async fn attempt(url: &DatabaseUrl, dir: &DataDir, sale_period_s: u32) -> Result<Attempt, Failure> {
    let mut database = Database::connect(url).await?;
    let Some(found) = database.found().await? else { return Ok(Attempt::NothingThere) };
    if found.sale_period_s != sale_period_s {
        let period = found.sale_period_s;
        let text =
            format!("its sales last {period} s; start with --sale-period {period}s, or with a database of its own");
        return Err(Failure::Final(Fatal::Database(text)));
    }
    if found.silent_s < SILENCE.as_secs_f64() {
        return Ok(Attempt::NotSilent(Duration::from_secs_f64(found.silent_s.max(0.0))));
    }
    let id = Uuid::from_bytes(host::random().map_err(Failure::Final)?);
    let taken_over = database.take_over(found, id).await?;
    let Owner { cluster, run } = taken_over.owner;
    let stream = StreamId { cluster, epoch: run.epoch, shard: 0, log: LogKind::Purchases };
    let unwritable = |error: io::Error| Failure::Final(Fatal::DataDir(format!("{}: {error}", dir.logs().display())));
    write_stream(&dir.logs(), stream, &taken_over.records).map_err(unwritable)?;
    // Last, because with it the directory counts as whole.
    let memory = Memory { seen: Some(run), claiming: None };
    dir.adopt(Control::new(cluster, run.epoch, sale_period_s, memory)).map_err(Failure::Final)?;
    Ok(Attempt::TakenOver(taken_over))
}

/// Writes a whole stream, durably. Recovery will seal it.
fn write_stream(dir: &Path, stream: StreamId, records: &[Record]) -> io::Result<()> {
    let (mut checksum, mut number, mut records_before) = (0, 0, 0);
    for segment in records.chunks(SEGMENT_BLOCKS * BLOCK_RECORDS) {
        let blocks = segment.len().div_ceil(BLOCK_RECORDS);
        let name = SegmentName { stream, first_block: number, blocks: blocks as u32 };
        name.make(dir)?;
        let mut bytes = vec![0; blocks * BLOCK_BYTES];
        for (block, group) in bytes.chunks_mut(BLOCK_BYTES).zip(segment.chunks(BLOCK_RECORDS)) {
            for (place, record) in block::records_mut(block).as_chunks_mut::<RECORD_BYTES>().0.iter_mut().zip(group) {
                *place = record.encode();
            }
            let header = Header {
                records: group.len() as u8,
                seals: false,
                number,
                records_before,
                flushed: 0,
                previous_checksum: checksum,
            };
            checksum = block::finish(block, &stream, &header);
            number += 1;
            records_before += group.len() as u64;
        }
        let file = File::options().write(true).open(name.path(dir))?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Event;
    use crate::stream::{self, Ending};
    use crate::types::{ItemId, SaleId, UserId};

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let stream = StreamId { cluster: Uuid::from_u128(1), epoch: 4, shard: 0, log: LogKind::Purchases };
        let records: Vec<Record> = (0..(SEGMENT_BLOCKS * BLOCK_RECORDS + 100) as u32)
            .map(|item| {
                let (user, code) = (UserId(7), crate::code::Code::from_bytes([item as u8; 16]));
                let event = Event::Checkout { item: ItemId(item), user, code, ttl_ms: 1 };
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
