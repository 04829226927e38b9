//! Segments: the files that a stream consists of. This file creates, opens, writes, seals and removes them.
//!
//! A segment is created at full length, zeroed and synced before any block is written to it. So a flush changes no file
//! size and allocates no space. The name identifies the segment: `purchases-0000000007-00001-000000001024-1024.log`
//! belongs to the purchase log of epoch 7, shard 1, starts with block 1024, and was created with room for 1024 blocks.
//! A segment that is still being created ends in `.new`. One that is damaged and that nobody needs ends in `.damaged`.

use crate::log::block::{self, BLOCK_BYTES, Header, LogKind, StreamId};
use crate::log::damage::is_of_disk;
use crate::log::stream::{End, Ending, SegmentExtent};
use crate::sale::ids::{SaleId, Seq};
use crate::sale::record::Record;
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Zeros to fill a new segment with, aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 128 * 1024]);
static ZEROS: Zeros = Zeros([0; 128 * 1024]);

/// What is added to the name of a segment that is damaged and that nobody needs.
pub const SET_ASIDE: &str = ".damaged";

/// Identity of a segment, as its file name states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// Stream of the segment.
    pub stream: StreamId,
    /// Number of the segment's first block in the stream.
    pub first_block: u64,
    /// Number of blocks that the segment was created for.
    pub blocks: u32,
}

impl SegmentName {
    /// Returns the name of the first segment of a stream.
    pub fn first(stream: StreamId, blocks: u32) -> SegmentName {
        SegmentName { stream, first_block: 0, blocks }
    }

    /// Returns the path of the segment in `dir`, the directory of the logs.
    pub fn path(&self, dir: &Path) -> PathBuf {
        let StreamId { log, epoch, shard, .. } = self.stream;
        let (log, first_block, blocks) = (log.name(), self.first_block, self.blocks);
        dir.join(format!("{log}-{epoch:010}-{shard:05}-{first_block:012}-{blocks}.log"))
    }

    /// Parses a file name of installation `cluster`. Returns `None` if the file is not a segment.
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

    /// Lists the segments in a directory by epoch, shard, log and first block.
    ///
    /// # Errors
    /// An I/O error if the directory cannot be read.
    pub fn list(dir: &Path, cluster: Uuid) -> io::Result<Vec<SegmentName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(SegmentName::parse(&entry?.file_name().to_string_lossy(), cluster));
        }
        names.sort_by_key(|name| (name.stream.epoch, name.stream.shard, name.stream.log, name.first_block));
        Ok(names)
    }

    /// Creates the file, in this order:
    ///
    /// 1. Open the directory, so that step 3 needs no file descriptor.
    /// 2. Write zeros to a file that ends in `.new`, and sync it.
    /// 3. Rename the file, and sync the directory. So a file under the final name is always complete.
    ///
    /// # Errors
    /// An I/O error if the file cannot be created, for example on a full disk. The unfinished file is removed.
    pub fn make(&self, dir: &Path) -> io::Result<()> {
        let path = self.path(dir);
        let unfinished = path.with_extension("new");
        let made = (|| {
            let entries = File::open(dir)?;
            let mut file = create(&unfinished)?;
            let mut left = self.blocks as usize * BLOCK_BYTES;
            while left > 0 {
                let zeros = &ZEROS.0[..left.min(ZEROS.0.len())];
                file.write_all(zeros)?;
                left -= zeros.len();
            }
            file.sync_all()?;
            if path.exists() {
                return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{} exists already", path.display())));
            }
            fs::rename(&unfinished, &path)?;
            entries.sync_all()
        })();
        if made.is_err() {
            // If the removal fails too, the next start removes the file.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    /// Returns the number of the block after the segment's last one.
    pub fn end_block(&self) -> u64 {
        self.first_block + u64::from(self.blocks)
    }

    /// Returns the name of the file, without its directory.
    pub fn file_name(&self) -> String {
        self.path(Path::new("")).display().to_string()
    }

    /// Returns the place of the segment in its stream.
    pub fn extent(&self) -> SegmentExtent {
        let SegmentName { first_block, blocks, .. } = *self;
        SegmentExtent { first_block, made_blocks: blocks.into(), name: self.file_name() }
    }

    /// Returns the number of records in the stream before this segment, or `None` if the first block is not valid.
    ///
    /// # Errors
    /// An I/O error if the file cannot be read now. A block that the disk has lost is not valid.
    pub fn records_before(&self, dir: &Path) -> io::Result<Option<Seq>> {
        let Some((file, _)) = self.open(dir)? else { return Ok(None) };
        Ok(self.block(&file, 0)?.map(|(header, _)| header.records_before))
    }

    /// Returns the end of the stream if the last block of this file seals it.
    ///
    /// # Errors
    /// As [`SegmentName::records_before`].
    pub fn seal_at_end(&self, dir: &Path) -> io::Result<Option<End>> {
        let Some((file, blocks)) = self.open(dir)? else { return Ok(None) };
        let Some(last) = blocks.checked_sub(1) else { return Ok(None) };
        let seal =
            self.block(&file, last)?.filter(|(header, _)| header.seals && header.number == self.first_block + last);
        Ok(seal.map(|(Header { number, records_before, previous_checksum, .. }, _)| End {
            ending: Ending::Sealed,
            blocks: number,
            records: records_before,
            checksum: previous_checksum,
        }))
    }

    /// Returns the sale of the last record in a segment of a sealed stream, and the number of records in the stream up
    /// to the segment's end, as far as the last two blocks show them. They are sufficient, because only the seal has no
    /// record.
    ///
    /// # Errors
    /// As [`SegmentName::records_before`].
    pub fn last_record(&self, dir: &Path) -> io::Result<(Option<SaleId>, Option<Seq>)> {
        let Some((file, blocks)) = self.open(dir)? else { return Ok((None, None)) };
        let mut last = None;
        for number in (0..blocks).rev().take(2) {
            let Some((header, bytes)) = self.block(&file, number)? else { continue };
            last = last.max(Some(header.records_before + u64::from(header.records)));
            if let Some(Ok(record)) = block::records(&bytes, header.records).last().map(Record::decode) {
                return Ok((Some(record.sale), last));
            }
        }
        Ok((None, last))
    }

    /// Opens the file for reading, and returns it with its number of blocks, or `None` if the disk has lost it.
    fn open(&self, dir: &Path) -> io::Result<Option<(File, u64)>> {
        let opened = File::open(self.path(dir)).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((bytes, file)) => Ok(Some((file, bytes / BLOCK_BYTES as u64))),
            Err(error) if is_of_disk(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the block with this number in the file. Returns `None` if it is not valid, or if the disk has lost it.
    pub fn block(&self, file: &File, number: u64) -> io::Result<Option<(Header, [u8; BLOCK_BYTES])>> {
        let mut bytes = [0; BLOCK_BYTES];
        match file.read_exact_at(&mut bytes, number * BLOCK_BYTES as u64) {
            Ok(()) => Ok(block::parse(&bytes, &self.stream).map(|(header, _)| (header, bytes))),
            Err(error) if is_of_disk(&error) || error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renames the file so that it is not read and not counted any more: adds `.damaged`, and a number if that name is
    /// taken. The caller syncs the directory. It is no error if the file does not exist.
    ///
    /// # Errors
    /// An I/O error if the file cannot be renamed.
    pub fn set_aside(&self, dir: &Path) -> io::Result<()> {
        let path = self.path(dir);
        let numbers = (2..).map(|number| format!(".{number}"));
        let names = std::iter::once(String::new())
            .chain(numbers)
            .map(|number| path.with_file_name(format!("{}{SET_ASIDE}{number}", self.file_name())));
        let free = names.into_iter().find(|path| !path.exists()).expect("a free number exists");
        match fs::rename(&path, free) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }
}

/// Creates a file for direct I/O, or for buffered I/O if the file system does not support direct I/O. A copy of
/// megabytes of zeros into the page cache would occupy the shard's CPU for milliseconds.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    match options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
        // These two errors mean that direct I/O is not supported. Any other error is returned.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => options.open(path),
        opened => opened,
    }
}

/// Makes changes of a directory's entries durable.
///
/// # Errors
/// An I/O error if the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Seals a stream, so that it never grows again. `names` are all its segments, in order; `end` is its end. Returns the
/// segments that remain. If no segment has a block before the end, all are removed and there is no seal. Otherwise:
///
/// 1. Sync every segment that has blocks, because the seal states that these blocks are durable.
/// 2. Write the seal after the last block, and sync it.
/// 3. Cut the file after the seal, and sync it. Without the seal on disk, a shorter file would look damaged.
/// 4. Remove the segments after the seal, and sync the directory.
///
/// # Errors
/// An I/O error if a file cannot be written or removed. The call can be repeated.
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
    // Recovered blocks may be in the page cache only.
    left.iter().try_for_each(|name| File::open(name.path(dir))?.sync_all())?;
    let home = match names.iter().find(home) {
        Some(home) => *home,
        None => {
            // All segments are full, so the seal gets a segment of one block.
            let brim = SegmentName { stream, first_block: end.blocks, blocks: 1 };
            brim.make(dir)?;
            brim
        }
    };
    let file = File::options().write(true).open(home.path(dir))?;
    let offset = (end.blocks - home.first_block) * BLOCK_BYTES as u64;
    file.write_all_at(&end.seal(&stream), offset)?;
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

/// Removes all segments of one run, also unfinished ones, the newest first: a crash must not leave a gap. The run must
/// not have answered any request, because its records are lost.
///
/// # Errors
/// An I/O error if a file cannot be removed.
pub fn remove_run(dir: &Path, cluster: Uuid, epoch: u32) -> io::Result<()> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // An unfinished segment has the same name with another extension.
        let name = path.with_extension("log");
        let name = name.file_name().and_then(|name| SegmentName::parse(name.to_str()?, cluster));
        paths.extend(name.filter(|name| name.stream.epoch == epoch).map(|name| (name.first_block, path)));
    }
    paths.sort();
    paths.iter().rev().try_for_each(|(_, path)| fs::remove_file(path))?;
    sync_dir(dir)
}

/// Opens an existing segment for writes that are durable when they have completed, past the page cache if `direct` is
/// set.
///
/// # Errors
/// An I/O error if the file cannot be opened.
pub fn open_durable(path: &Path, direct: bool) -> io::Result<File> {
    let past_the_cache = if direct { OFlags::DIRECT } else { OFlags::empty() };
    File::options().write(true).custom_flags((OFlags::DSYNC | past_the_cache).bits() as i32).open(path)
}
