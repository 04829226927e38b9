//! Damage: what can be wrong with a stream. The rules that find it are in [`crate::log::stream`]; those that decide
//! whether the lost records are needed are in [`crate::log::losses`].

use crate::config::fatal::Fatal;
use crate::log::block;
use rustix::io::Errno;
use std::io;
use std::path::Path;
use thiserror::Error;

/// Damage of a stream: a durable record is lost, or this version cannot read the stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// A block is bad, and a later block counts its records as flushed.
    #[error("block {number} at byte {offset} of {file} is damaged; block {proven_by} proves that it was once durable")]
    Block {
        /// File of the bad block.
        file: String,
        /// Number of the bad block in the stream.
        number: u64,
        /// Offset of the bad block in the file, in bytes.
        offset: u64,
        /// Number of the later block that proves that the bad block was durable.
        proven_by: u64,
    },
    /// A valid block of the stream does not continue the chain of blocks.
    #[error("in {file}, block {found} is at the place of block {number} and does not follow the block before it")]
    Misplaced {
        /// File of the block.
        file: String,
        /// Number of the block that belongs in this place.
        number: u64,
        /// Number of the block that is in this place.
        found: u64,
    },
    /// A complete block belongs to another stream.
    #[error("in {file}, the block at the place of block {number} belongs to another log, run or installation")]
    Foreign {
        /// File of the block.
        file: String,
        /// Number of the block that belongs in this place.
        number: u64,
    },
    /// A file does not have its length at creation.
    #[error("{file} has {bytes} bytes, but was created with {expected} bytes")]
    Short {
        /// Name of the file.
        file: String,
        /// Length of the file, in bytes.
        bytes: usize,
        /// Length of the file at creation, in bytes.
        expected: u64,
    },
    /// A block has another format version.
    #[error(
        "{file} has log format {version}; this version of stampede reads {expected}",
        expected = block::FORMAT_VERSION
    )]
    Version {
        /// File of the block.
        file: String,
        /// Format version of the block.
        version: u8,
    },
    /// A record is not valid.
    #[error("record {seq} in {file}: {flaw}")]
    Record {
        /// File of the record.
        file: String,
        /// Number of the record in the stream, from 1.
        seq: u64,
        /// Description of the error.
        flaw: String,
    },
    /// Blocks are missing between two segment files.
    #[error("{file} starts with block {found}, but block {expected} comes next: a segment is missing")]
    Gap {
        /// File after the gap.
        file: String,
        /// Number of the block that was expected at the start of the file.
        expected: u64,
        /// Number of the block with which the file starts.
        found: u64,
    },
    /// The disk cannot read a block.
    #[error("block {number} at byte {offset} of {file} cannot be read: {why}")]
    Unreadable {
        /// File of the block.
        file: String,
        /// Number of the block in the stream.
        number: u64,
        /// Offset of the block in the file, in bytes.
        offset: u64,
        /// Error of the operating system.
        why: String,
    },
}

impl Damage {
    /// Returns this damage as the reason to end the process. `logs` is the directory of the segments.
    pub fn fatal(&self, logs: &Path) -> Fatal {
        match self {
            Damage::Unreadable { .. } => Fatal::DataDir(format!("{}: {self}", logs.display())),
            _ => Fatal::Damaged(self.to_string()),
        }
    }
}

/// Returns whether an error means that the disk has lost the content of a file, not that it cannot be read now.
pub fn is_of_disk(error: &io::Error) -> bool {
    let of_disk = [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG];
    error.raw_os_error().is_some_and(|number| of_disk.map(Errno::raw_os_error).contains(&number))
}
