//! A shard's two logs together: the disk space that they share, and the channel from them to Postgres. How a log is
//! written is in the folder `log`.
//!
//! Two rules must not break. The purchase log always has room for the end of every live hold, so that a client can buy
//! what it holds; attempts get space only after that. And no segment exceeds the log budget, with one exception: a start
//! gets the blocks that recovered holds need, for example after the budget was lowered.

use crate::log::block::{BLOCK_BYTES, LogKind, StreamId};
use crate::log::retention::{Removal, Retention};
use crate::log::writer::{Flushed, LogWriter, remove_files};
use crate::postgres::feed::Feed;
use crate::sale::ids::Seq;
use crate::sale::parts::NeededSales;
use crate::sale::record::{BLOCK_RECORDS, LogEvent, Record};
use crate::system::disk_ring::DiskRing;
use crate::upgrade::protocol::FromOld;
use crossbeam_channel::Receiver;
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// Attempts buffered in memory at most. Further attempts are not recorded.
const ATTEMPTS_MAX: usize = 16 * 1024;
/// Number of buffered attempts that starts a flush at once.
const ATTEMPTS_FLUSH: usize = 1024;
/// Milliseconds after which buffered attempts that fill a block are flushed.
const ATTEMPTS_FLUSH_MS: u64 = 50;
/// Milliseconds after which buffered attempts are flushed even if they do not fill a block. A flush writes whole blocks,
/// so this bounds the space that is wasted: one block per second.
const ATTEMPTS_PARTIAL_FLUSH_MS: u64 = 1_000;
/// Blocks of the purchase log reserved for the records that open sales. Holds cannot use them.
const LOG_SLACK_BLOCKS: u64 = 16;
/// Blocks that a shard needs at least, in addition to those for holds, to be ready, and to open a sale.
const READY_BLOCKS: u64 = 3;
/// Blocks of the purchase log kept free, in addition to one for each item, for records in flight during a rush.
const RUSH_BLOCKS: u64 = 1024;
/// Milliseconds between attempts to make a segment while the budget is used up or the disk is full.
const RETRY_MS: u64 = 500;

/// A shard's two logs, and the disk space that they may use.
pub struct LogPair {
    /// The purchase log: the records that recovery needs.
    pub purchases: LogWriter,
    /// The attempt log: refused checkouts.
    pub attempts: LogWriter,
    /// The old segments of both logs.
    pub retention: Retention,
    /// Channels to and from the persistence thread, if there is a database.
    pub persistence: Option<PersistenceChannels>,
    /// The writes of both logs.
    ring: DiskRing,
    /// Number of the last record in the purchase log that does not open a sale. No answer waits for a later record.
    awaited: Seq,
    /// Number of the last record in the purchase log that opens a sale.
    opening: Seq,
    /// Monotonic time since when attempts are buffered.
    attempts_since_ms: u64,
    /// Files are being removed because another shard lacks space.
    is_relieving: Rc<Cell<bool>>,
}

/// A shard's channels to and from the persistence thread.
pub struct PersistenceChannels {
    /// Flushed records, to the persistence thread.
    pub feed: Feed,
    /// Positions up to which Postgres has the streams that this shard retains, from the persistence thread.
    pub shipped: Receiver<(StreamId, Seq)>,
}

impl LogPair {
    /// Creates the pair of two logs, which are written through `ring`.
    pub fn new(
        ring: DiskRing,
        purchases: LogWriter,
        attempts: LogWriter,
        retention: Retention,
        persistence: Option<PersistenceChannels>,
    ) -> LogPair {
        LogPair {
            purchases,
            attempts,
            retention,
            persistence,
            ring,
            awaited: 0,
            opening: 0,
            attempts_since_ms: 0,
            is_relieving: Rc::default(),
        }
    }

    /// Appends a record to the purchase log.
    pub fn append_purchase(&mut self, record: &Record) {
        let seq = self.purchases.append(record);
        match record.event {
            LogEvent::SaleOpened { .. } => self.opening = seq,
            _ => self.awaited = seq,
        }
    }

    /// Appends a record to the attempt log. Returns false if the record is dropped, because too many are buffered.
    pub fn append_attempt(&mut self, record: &Record, now_ms: u64) -> bool {
        if self.attempts.buffered() == 0 {
            self.attempts_since_ms = now_ms;
        }
        let has_room = self.attempts.buffered() < ATTEMPTS_MAX;
        if has_room {
            self.attempts.append(record);
        }
        has_room
    }

    /// Returns whether every record for which an answer waits is durable.
    pub fn is_awaited_flushed(&self) -> bool {
        self.purchases.flushed() >= self.awaited
    }

    /// Returns whether the record that opens the latest sale is durable.
    pub fn is_opening_flushed(&self) -> bool {
        self.purchases.flushed() >= self.opening
    }

    /// Starts the flushes that are due, or those of all buffered records if `is_ending` is set. `holds` is the number of
    /// blocks for the ends of the holds.
    ///
    /// # Errors
    /// The kernel takes no write. The process must then end.
    pub fn start_flushes(&mut self, now_ms: u64, is_ending: bool, holds: u64) -> io::Result<()> {
        // With no block to spare, a record that opens a sale waits for another record, because alone it would take the
        // block that the end of a hold needs.
        let has_spare = self.purchases.room() >= holds + READY_BLOCKS;
        if !self.is_awaited_flushed() || has_spare || is_ending {
            self.purchases.start_flush(&mut self.ring)?;
        }
        let age_ms = now_ms.saturating_sub(self.attempts_since_ms);
        if age_ms >= ATTEMPTS_PARTIAL_FLUSH_MS || is_ending {
            self.attempts.start_flush(&mut self.ring)?;
        } else if age_ms >= ATTEMPTS_FLUSH_MS || self.attempts.buffered() >= ATTEMPTS_FLUSH {
            self.attempts.start_flush_of_full_blocks(&mut self.ring)?;
        }
        Ok(())
    }

    /// Takes the flushes that have completed, and passes each one to `note` with its log, in the order of the records of
    /// a log.
    ///
    /// # Errors
    /// A flush has failed: the log with its error. The process must then end.
    pub fn take_flushed(
        &mut self,
        mut note: impl FnMut(LogKind, &LogWriter, Option<&PersistenceChannels>, Flushed),
    ) -> Result<(), (LogKind, io::Error)> {
        let LogPair { purchases, attempts, ring, persistence, .. } = self;
        while let Some((key, result)) = ring.completed().map_err(|error| (LogKind::Purchases, error))? {
            let is_attempts = !purchases.note_completed(key) && attempts.note_completed(key);
            let (kind, log) =
                if is_attempts { (LogKind::Attempts, &mut *attempts) } else { (LogKind::Purchases, &mut *purchases) };
            result.map_err(|error| (kind, error))?;
            while let Some(flushed) = log.take_flushed() {
                note(kind, log, persistence.as_ref(), flushed);
            }
        }
        Ok(())
    }

    /// Returns the monotonic time in ms at which buffered attempts must be flushed, if a flush can start.
    pub fn attempts_due_ms(&self) -> Option<u64> {
        let attempts = &self.attempts;
        let patience_ms =
            if attempts.buffered() < BLOCK_RECORDS { ATTEMPTS_PARTIAL_FLUSH_MS } else { ATTEMPTS_FLUSH_MS };
        let can_start = attempts.buffered() > 0 && !attempts.is_flushing() && attempts.room() > 0;
        can_start.then_some(self.attempts_since_ms + patience_ms)
    }

    /// Returns both logs with their kinds.
    pub fn both(&self) -> [(LogKind, &LogWriter); 2] {
        [(LogKind::Purchases, &self.purchases), (LogKind::Attempts, &self.attempts)]
    }

    /// Returns the free blocks of the purchase log that holds can use.
    pub fn room_for_holds(&self) -> u64 {
        self.purchases.room().saturating_sub(LOG_SLACK_BLOCKS)
    }

    /// Returns the ends of both logs, for the new process of an upgrade.
    pub fn written(&self) -> FromOld {
        let StreamId { epoch, shard, .. } = self.purchases.stream();
        FromOld::Written { epoch, shard, purchases: self.purchases.end(), attempts: self.attempts.end() }
    }

    /// Returns whether the executor has work: a segment is being made, or files are being removed.
    pub fn need_executor(&self) -> bool {
        self.is_relieving.get() || self.purchases.is_making() || self.attempts.is_making()
    }

    fn are_busy(&self) -> bool {
        self.need_executor() || self.purchases.is_flushing() || self.attempts.is_flushing()
    }

    /// Removes the segments that nobody needs, if another shard lacks space.
    pub fn relieve(&mut self, needed: NeededSales) {
        if self.is_relieving.get() {
            return;
        }
        let Removal { files, bytes } = self.retention.relieve(needed);
        if files.is_empty() {
            return;
        }
        self.is_relieving.set(true);
        let (budget, is_relieving) = (self.retention.budget().clone(), self.is_relieving.clone());
        let removing = async move {
            match glommio::executor().spawn_blocking(move || remove_files(&files)).await {
                Ok(()) => budget.removed(bytes),
                // The files still count, so the budget holds.
                Err(error) => tracing::warn!(%error, bytes, "segments that are not needed cannot be removed"),
            }
            is_relieving.set(false);
        };
        glommio::spawn_local(removing).detach();
    }

    /// Returns whether nothing is left to write. Records for which the log has no room do not count: space may never
    /// become free, and no reply that depends on these records has been sent.
    pub fn have_nothing_to_write(&self) -> bool {
        let is_written = |log: &LogWriter| log.is_flushed() || log.room() == 0;
        is_written(&self.purchases) && is_written(&self.attempts) && !self.are_busy()
    }
}

/// Log space that a shard needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Blocks for the records that end live holds.
    pub holds: u64,
    /// Items that a rush can reserve at once.
    pub items: u64,
    /// The sales whose records the log must keep.
    pub needed: NeededSales,
    /// The shard is not ready yet, so its live holds are recovered ones.
    pub is_starting: bool,
}

impl Needs {
    /// Returns the free blocks that the purchase log should have. With fewer, the shard grants almost no new holds, and
    /// makes no segment for attempts.
    pub fn reserve(&self) -> u64 {
        self.holds + 2 * LOG_SLACK_BLOCKS
    }
}

/// The state of the log space of one shard: decides when to make the next segment of each log.
pub struct LogRoom {
    purchases_retry_ms: u64,
    attempts_retry_ms: u64,
    /// Blocks of the largest segment that is known to fit on the disk.
    fitting_blocks: u32,
    /// The purchase log has no room for new holds.
    pub is_full: bool,
    /// The attempt log has no room, so attempts are not recorded.
    pub is_losing_attempts: bool,
}

impl LogRoom {
    /// Creates the state for `logs`, before the first segment is made.
    pub fn new(logs: &LogPair) -> Self {
        LogRoom {
            purchases_retry_ms: 0,
            attempts_retry_ms: 0,
            fitting_blocks: logs.purchases.segment_blocks(),
            is_full: false,
            is_losing_attempts: false,
        }
    }

    /// Returns whether the log has room for the end of every hold and, unless it is full, for new holds.
    pub fn is_enough(&self, logs: &LogPair, needs: Needs) -> bool {
        let enough = if self.is_full { needs.holds + READY_BLOCKS } else { needs.reserve() };
        logs.purchases.room() >= enough
    }

    /// Starts to make the segments that are missing, as far as the budget allows.
    pub fn extend(&mut self, logs: &mut LogPair, needs: Needs, now_ms: u64) {
        let LogPair { purchases, attempts, retention, persistence, .. } = &mut *logs;
        let arrived = persistence.iter().flat_map(|shipping| shipping.shipped.try_iter());
        arrived.for_each(|(stream, position)| retention.shipped(stream, position));
        let full = purchases.segment_blocks();
        let half = u64::from(full) / 2;
        let rush = (needs.items + RUSH_BLOCKS).min(retention.budget().share() / BLOCK_BYTES as u64 / 4);
        let reserve = needs.reserve();
        let lacks_reserve = purchases.room() < reserve;
        let wants_purchases = purchases.room() < rush.max(reserve + half) && !purchases.is_making();
        if wants_purchases && now_ms >= self.purchases_retry_ms {
            self.purchases_retry_ms = now_ms + RETRY_MS;
            let fitting = if lacks_reserve { self.fitting_blocks } else { full };
            if let Some((blocks, files_to_remove)) = permit(purchases, retention, fitting, needs) {
                purchases.make_segment(blocks, files_to_remove);
            }
        }
        // Purchases come first: a client must be able to buy what it holds.
        let wants_attempts = attempts.room() < half && !attempts.is_making() && !lacks_reserve;
        if wants_attempts && now_ms >= self.attempts_retry_ms {
            self.attempts_retry_ms = now_ms + RETRY_MS;
            if let Some(files_to_remove) = retention.allow(LogKind::Attempts, bytes(full), needs.needed) {
                attempts.make_segment(full, files_to_remove);
            }
        }
        // While a segment is being made, the room of the log is not known yet.
        if !purchases.is_making() {
            self.is_full = purchases.room() < reserve;
        }
        self.is_losing_attempts = attempts.room() == 0 && attempts.buffered() >= ATTEMPTS_MAX;
    }

    /// Notes that a segment of log `kind` with `blocks` blocks has been made, so that the next one is tried without a delay.
    pub fn made(&mut self, logs: &mut LogPair, kind: LogKind, blocks: u32) {
        logs.retention.created(kind);
        (self.purchases_retry_ms, self.attempts_retry_ms) = (0, 0);
        self.fitting_blocks = self.fitting_blocks.max(blocks);
    }

    /// Notes that the disk had no room for a segment of `blocks` blocks. If live holds need a segment, the next attempt
    /// follows at once with half the size, down to one block.
    pub fn refused(&mut self, logs: &mut LogPair, needs: Needs, kind: LogKind, blocks: u32) {
        logs.retention.refused(kind, bytes(blocks), needs.needed);
        if kind == LogKind::Purchases {
            self.fitting_blocks = if blocks > 1 { blocks / 2 } else { logs.purchases.segment_blocks() };
            if blocks > 1 && logs.purchases.room() < needs.reserve() {
                self.purchases_retry_ms = 0;
            }
        }
    }
}

/// Returns the number of blocks of the next purchase segment and the files to be removed first, if the budget has room for
/// a segment of `fitting` blocks, or if the segment exists already or recovered holds need one.
fn permit(purchases: &LogWriter, retention: &mut Retention, fitting: u32, needs: Needs) -> Option<(u32, Vec<PathBuf>)> {
    let kind = LogKind::Purchases;
    if let Some(blocks) = purchases.existing_blocks() {
        return Some((blocks, retention.force(kind, bytes(blocks))));
    }
    if let Some(files_to_remove) = retention.allow(kind, bytes(fitting), needs.needed) {
        return Some((fitting, files_to_remove));
    }
    let missing = (needs.holds + READY_BLOCKS).saturating_sub(purchases.room());
    let blocks = u32::try_from(missing).map_or(fitting, |missing| missing.min(fitting));
    (needs.is_starting && blocks > 0).then(|| {
        let files_to_remove = retention.allow(kind, bytes(blocks), needs.needed);
        (blocks, files_to_remove.unwrap_or_else(|| retention.force(kind, bytes(blocks))))
    })
}

/// Converts blocks to bytes.
fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES as u64
}
