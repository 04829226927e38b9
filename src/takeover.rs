//! A new data directory goes on with a sale that Postgres knows: the machine before it is gone.
//!
//! What Postgres has of the latest sale is written to the log of the new directory, as a run of its own that nobody
//! needs to ship any more. After that, recovery reads it as it reads every log.

use crate::block::{BLOCK_BYTES, BLOCK_RECORDS, Chain, LogKind, StreamId};
use crate::data_dir::{Control, DataDir};
use crate::database_url::DatabaseUrl;
use crate::fatal::Fatal;
use crate::host;
use crate::ownership::{Memory, Owner};
use crate::postgres::{Database, Failure, Found, TakenOver, other_period};
use crate::record::Record;
use crate::segment::{SegmentName, sync_dir};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

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
    heard: Option<(Found, Instant)>,
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
    use crate::record::Event;
    use crate::stream::{self, Ending};
    use crate::types::{ItemId, SaleId, UserId};
    use uuid::Uuid;

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
