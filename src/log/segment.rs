//! Segment files: the pieces of a stream on disk.
//!
//! A segment is made at full length, zeroed and synced before anything is written to it, so that a flush
//! changes no file size and allocates nothing. Its name says all there is to know about it:
//! `purchases-0000000007-00001-000000001024-1024.log` is the log of purchases of epoch 7, shard 1, from block
//! 1024 on, made with room for 1024 blocks.

use crate::log::block::{self, BLOCK_BYTES, LogKind, StreamId};
use crate::log::stream::{End, SegmentBytes};
use crate::sale::ids::{SaleId, Seq};
use crate::sale::record::Record;
use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions};
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What a new segment is full of, aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 128 * 1024]);
static ZEROS: Zeros = Zeros([0; 128 * 1024]);

/// Which piece of which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// The stream.
    pub stream: StreamId,
    /// Number of its first block in the stream.
    pub first_block: u64,
    /// How many blocks it was made for.
    pub blocks: u32,
}

impl SegmentName {
    /// The first one of a stream.
    pub fn first(stream: StreamId, blocks: u32) -> SegmentName {
        SegmentName { stream, first_block: 0, blocks }
    }

    /// Where it is, under the directory of the logs.
    pub fn path(&self, dir: &Path) -> PathBuf {
        let StreamId { log, epoch, shard, .. } = self.stream;
        let (log, first_block, blocks) = (log.name(), self.first_block, self.blocks);
        dir.join(format!("{log}-{epoch:010}-{shard:05}-{first_block:012}-{blocks}.log"))
    }

    /// Reads a file name. `None` for a file that is no segment.
    pub fn parse(name: &str, cluster: Uuid) -> Option<SegmentName> {
        let mut parts = name.strip_suffix(".log")?.split('-');
        let log =
            [LogKind::Purchases, LogKind::Attempts].into_iter().find(|log| parts.clone().next() == Some(log.name()))?;
        parts.next();
        let epoch = parts.next()?.parse().ok()?;
        let shard = parts.next()?.parse().ok()?;
        let first_block = parts.next()?.parse().ok().filter(|&number| number < block::COUNT_MAX)?;
        let blocks = parts.next()?.parse().ok()?;
        let stream = StreamId { cluster, epoch, shard, log };
        parts.next().is_none().then_some(SegmentName { stream, first_block, blocks })
    }

    /// The segments in a directory, stream by stream, each in order.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(dir: &Path, cluster: Uuid) -> io::Result<Vec<SegmentName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(SegmentName::parse(&entry?.file_name().to_string_lossy(), cluster));
        }
        names.sort_by_key(|name| (name.stream.epoch, name.stream.shard, name.stream.log, name.first_block));
        Ok(names)
    }

    /// Makes the file. Nothing is visible under its name before all of it is on disk.
    ///
    /// # Errors
    /// Of the file system; on a full disk nothing is left behind.
    pub fn make(&self, dir: &Path) -> io::Result<()> {
        let path = self.path(dir);
        let unfinished = path.with_extension("new");
        let made = (|| {
            let mut file = create(&unfinished)?;
            let mut left = self.blocks as usize * BLOCK_BYTES;
            while left > 0 {
                let zeros = &ZEROS.0[..left.min(ZEROS.0.len())];
                file.write_all(zeros)?;
                left -= zeros.len();
            }
            file.sync_all()?;
            if path.exists() {
                return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{} is there already", path.display())));
            }
            fs::rename(&unfinished, &path)?;
            sync_dir(dir)
        })();
        if made.is_err() {
            // What cannot be removed either is removed by the next start.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(&self, dir: &Path) -> io::Result<SegmentBytes> {
        let path = self.path(dir);
        let bytes = fs::read(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SegmentBytes { first_block: self.first_block, made_blocks: self.blocks.into(), bytes, name })
    }

    /// The sale of the newest record in a segment whose stream is sealed, and how many records the stream has up to
    /// the segment's end; from its last two blocks.
    ///
    /// # Errors
    /// Of the file system.
    pub fn newest(&self, dir: &Path) -> io::Result<(Option<SaleId>, Seq)> {
        let file = File::open(self.path(dir))?;
        let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
        let mut last = 0;
        for number in (0..blocks).rev().take(2) {
            let mut bytes = [0; BLOCK_BYTES];
            file.read_exact_at(&mut bytes, number * BLOCK_BYTES as u64)?;
            let Some((header, _)) = block::parse(&bytes, &self.stream) else { continue };
            last = last.max(header.records_before + u64::from(header.records));
            if let Some(Ok(record)) = block::records(&bytes, header.records).last().map(Record::decode) {
                return Ok((Some(record.sale), last));
            }
        }
        Ok((None, last))
    }
}

/// A new file, to be written past the page cache where the file system can do that: to copy megabytes of zeros takes a
/// shard's CPU from its clients for milliseconds.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    match options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
        // Whatever else it says is meant.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => options.open(path),
        opened => opened,
    }
}

/// Makes a change of a directory's entries durable.
///
/// # Errors
/// Of the file system.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Ends a stream for good: writes the seal after its last block, cuts off what follows.
/// `names` are all its segments, in order. Returns those that are left.
///
/// # Errors
/// Of the file system. Sealing can be tried again.
pub fn seal(dir: &Path, names: &[SegmentName], end: &End) -> io::Result<Vec<SegmentName>> {
    let home =
        |name: &&SegmentName| (name.first_block..name.first_block + u64::from(name.blocks)).contains(&end.blocks);
    let mut left: Vec<_> = names.iter().filter(|name| name.first_block < end.blocks).copied().collect();
    if left.is_empty() {
        names.iter().try_for_each(|name| fs::remove_file(name.path(dir)))?;
        sync_dir(dir)?;
        return Ok(left);
    }
    let stream = names[0].stream;
    // What is adopted may so far be in the page cache only, and the seal will say that it is durable.
    left.iter().try_for_each(|name| File::open(name.path(dir))?.sync_all())?;
    let home = match names.iter().find(home) {
        Some(home) => *home,
        None => {
            // Full to the brim: the seal gets a segment of its own.
            let brim = SegmentName { stream, first_block: end.blocks, blocks: 1 };
            brim.make(dir)?;
            brim
        }
    };
    let file = File::options().write(true).open(home.path(dir))?;
    let offset = (end.blocks - home.first_block) * BLOCK_BYTES as u64;
    file.write_all_at(&end.seal(&stream), offset)?;
    // First the seal, then the cut: a shorter file without a seal would look damaged.
    file.sync_all()?;
    file.set_len(offset + BLOCK_BYTES as u64)?;
    file.sync_all()?;
    if left.last() != Some(&home) {
        left.push(home);
    }
    for name in names.iter().filter(|name| !left.contains(name)) {
        fs::remove_file(name.path(dir))?;
    }
    sync_dir(dir)?;
    Ok(left)
}

/// Removes everything of one run of an installation that never told anybody anything.
///
/// # Errors
/// Of the file system.
pub fn remove_run(dir: &Path, cluster: Uuid, epoch: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // One that was being made, too.
        let name = path.with_extension("log");
        let name = name.file_name().and_then(|name| SegmentName::parse(name.to_str()?, cluster));
        if name.is_some_and(|name| name.stream.epoch == epoch) {
            fs::remove_file(path)?;
        }
    }
    sync_dir(dir)
}

/// A segment being written.
pub enum SegmentFile {
    /// Past the page cache.
    Direct(DmaFile),
    /// Through it, where the file system knows no direct I/O.
    Plain(BufferedFile),
}

/// Whole blocks on their way to a segment.
pub enum Blocks {
    /// For a direct write: aligned.
    Direct(DmaBuffer),
    /// For a plain one.
    Plain(Vec<u8>),
}

impl SegmentFile {
    /// Opens a segment that was made before.
    ///
    /// # Errors
    /// Of the file system.
    pub async fn open(path: &Path, direct: bool) -> io::Result<SegmentFile> {
        let mut options = OpenOptions::new();
        options.write(true);
        Ok(if direct {
            options.custom_flags(OFlags::DSYNC.bits() as i32);
            SegmentFile::Direct(options.dma_open(path).await?)
        } else {
            SegmentFile::Plain(options.buffered_open(path).await?)
        })
    }

    /// Zeroed memory for `count` blocks.
    pub fn allocate(&self, count: usize) -> Blocks {
        match self {
            SegmentFile::Direct(file) => {
                let mut buffer = file.alloc_dma_buffer(count * BLOCK_BYTES);
                buffer.as_bytes_mut().fill(0);
                Blocks::Direct(buffer)
            }
            SegmentFile::Plain(_) => Blocks::Plain(vec![0; count * BLOCK_BYTES]),
        }
    }

    /// Writes `blocks` at `offset` and makes them durable. A direct write does both in one operation (`O_DSYNC`), which
    /// takes one trip through the ring instead of two. A plain one is followed by a sync; the ring orders nothing, so
    /// one waits for the other.
    ///
    /// # Errors
    /// Of the file system, and for a write that came out short. Never to be tried again: what is on disk then is
    /// unknown.
    pub async fn flush(&self, blocks: Blocks, offset: u64) -> io::Result<()> {
        let (written, expected) = match (self, blocks) {
            (SegmentFile::Direct(file), Blocks::Direct(buffer)) => {
                let expected = buffer.len();
                (file.write_at(buffer, offset).await?, expected)
            }
            (SegmentFile::Plain(file), Blocks::Plain(bytes)) => {
                let expected = bytes.len();
                (file.write_at(bytes, offset).await?, expected)
            }
            _ => unreachable!("blocks are allocated by the file that they are written to"),
        };
        if written != expected {
            return Err(io::Error::new(ErrorKind::WriteZero, format!("{written} of {expected} bytes written")));
        }
        match self {
            SegmentFile::Direct(_) => Ok(()),
            SegmentFile::Plain(file) => Ok(file.fdatasync().await?),
        }
    }

    /// Closes the file.
    pub async fn close(self) {
        // Everything is on disk already; what a close could still say changes nothing.
        let _ = match self {
            SegmentFile::Direct(file) => file.close().await,
            SegmentFile::Plain(file) => file.close().await,
        };
    }
}

impl Blocks {
    /// The memory.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Blocks::Direct(buffer) => buffer.as_bytes_mut(),
            Blocks::Plain(bytes) => bytes,
        }
    }
}
