//! Writes to files through an io_uring of the shard's own. A write is durable when it has completed, because the files
//! are opened with `O_DSYNC`.
//!
//! The ring is a descriptor that becomes readable when a write has completed, so it is in the shard's epoll set beside
//! the sockets. A write costs one system call, and its completion none: no pass of the executor is needed.
//!
//! This is the only file of the server with an `unsafe` block, because the kernel reads the memory of a write after the
//! call that starts it. [`DiskRing`] owns this memory and the file until the write has completed.
#![expect(unsafe_code, reason = "the kernel reads the memory of a write after the call that starts it")]

use io_uring::{IoUring, opcode, types};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use slab::Slab;
use std::fs::File;
use std::io;
use std::mem;
use std::rc::Rc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Writes that one ring has room for.
const ENTRIES: u32 = 16;
/// Size of a page in bytes: direct I/O needs memory that is aligned to it.
pub const PAGE_BYTES: usize = 4096;
/// Buffers of completed writes that are kept for the next ones, and pages that such a buffer has at most.
const SPARES_MAX: usize = 4;
const SPARE_PAGES_MAX: usize = 4;

/// Memory that direct I/O can write from.
#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
pub struct DiskPage([u8; PAGE_BYTES]);

const ZEROS: DiskPage = DiskPage([0; PAGE_BYTES]);

/// Number of a write that is under way.
pub type WriteKey = usize;

/// A write that the kernel may still read from.
struct PendingWrite {
    /// Keeps the descriptor open.
    _file: Rc<File>,
    pages: Vec<DiskPage>,
}

/// The ring of one shard, and the writes that are under way.
pub struct DiskRing {
    ring: IoUring,
    pending: Slab<PendingWrite>,
    spares: Vec<Vec<DiskPage>>,
}

impl DiskRing {
    /// Creates the ring. Call it on the thread that will use it.
    ///
    /// # Errors
    /// The kernel allows no io_uring, or has no descriptor or memory left.
    pub fn new() -> io::Result<Self> {
        // Completions need no interrupt of this thread: it enters the kernel in each turn. Linux 5.19 knows the flag.
        let ring = IoUring::builder().setup_coop_taskrun().build(ENTRIES);
        let ring = ring.or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::INVAL) => IoUring::new(ENTRIES),
            _ => Err(error),
        })?;
        Ok(DiskRing { ring, pending: Slab::with_capacity(ENTRIES as usize), spares: Vec::new() })
    }

    /// Returns `count` pages of zeros, for [`DiskRing::write`].
    pub fn pages(&mut self, count: usize) -> Vec<DiskPage> {
        let mut pages = self.spares.pop().unwrap_or_default();
        pages.clear();
        pages.resize(count, ZEROS);
        pages
    }

    /// Starts to write `pages` to `file` at `offset`, in bytes.
    ///
    /// # Errors
    /// The kernel takes no write: see `io_uring_enter(2)`.
    pub fn write(&mut self, file: &Rc<File>, pages: Vec<DiskPage>, offset: u64) -> io::Result<WriteKey> {
        let bytes = pages.as_bytes();
        let write = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32).offset(offset);
        let key = self.pending.insert(PendingWrite { _file: file.clone(), pages });
        let write = write.build().user_data(key as u64);
        // SAFETY: The descriptor is open and the memory unchanged until the write has completed: `pending` owns the file
        // and the pages, it gives them up only in `completed`, and a ring that is dropped leaks what it still has.
        unsafe { self.ring.submission().push(&write) }.map_err(io::Error::other)?;
        self.submit()?;
        Ok(key)
    }

    /// Returns a write that has completed, if there is one.
    ///
    /// # Errors
    /// In the result: the write has failed, or the file has no room for all of it. Never repeat the write, because what
    /// the disk has is then unknown. Outside: the kernel takes no write.
    pub fn completed(&mut self) -> io::Result<Option<(WriteKey, io::Result<()>)>> {
        if !self.ring.submission().is_empty() {
            self.submit()?;
        }
        let Some(completion) = self.ring.completion().next() else { return Ok(None) };
        let key = completion.user_data() as WriteKey;
        let PendingWrite { pages, .. } = self.pending.remove(key);
        let expected = pages.as_bytes().len();
        if self.spares.len() < SPARES_MAX && pages.capacity() <= SPARE_PAGES_MAX {
            self.spares.push(pages);
        }
        let result = match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            written if written as usize == expected => Ok(()),
            written => Err(io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {expected} bytes written"))),
        };
        Ok(Some((key, result)))
    }

    /// Passes the writes to the kernel. If it has no memory at the moment, they stay in the ring, and the next call
    /// tries again.
    fn submit(&self) -> io::Result<()> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for DiskRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Drop for DiskRing {
    fn drop(&mut self) {
        // The kernel may still read from these pages.
        mem::forget(mem::take(&mut self.pending));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::fs;

    /// Waits until a write has completed. The ring itself must wake the waiting thread.
    fn completed(ring: &mut DiskRing) -> (WriteKey, io::Result<()>) {
        for _ in 0..100 {
            if let Some(completed) = ring.completed().unwrap() {
                return completed;
            }
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(ring, PollFlags::IN)], Some(&second));
        }
        panic!("no write has completed");
    }

    fn pages_of(ring: &mut DiskRing, byte: u8, count: usize) -> Vec<DiskPage> {
        let mut pages = ring.pages(count);
        assert!(pages.as_bytes().iter().all(|byte| *byte == 0), "pages are zeros");
        pages.as_mut_bytes().fill(byte);
        pages
    }

    #[test]
    fn writes_arrive_at_their_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = Rc::new(File::create(&path).unwrap());
        let mut ring = DiskRing::new().unwrap();
        for round in 0..ENTRIES as u8 {
            let (first, second) = (pages_of(&mut ring, round + 1, 1), pages_of(&mut ring, round + 2, 2));
            let mut keys = [ring.write(&file, first, 0).unwrap(), ring.write(&file, second, 4096).unwrap()];
            let mut ended = [(); 2].map(|()| completed(&mut ring)).map(|(key, result)| {
                result.unwrap();
                key
            });
            keys.sort();
            ended.sort();
            assert_eq!(keys, ended);
            let written = fs::read(&path).unwrap();
            assert_eq!(written.len(), 3 * PAGE_BYTES);
            assert!(written[..PAGE_BYTES].iter().all(|byte| *byte == round + 1));
            assert!(written[PAGE_BYTES..].iter().all(|byte| *byte == round + 2));
        }
    }

    #[test]
    fn a_write_that_fails_says_why() {
        let mut ring = DiskRing::new().unwrap();
        let full = Rc::new(File::options().write(true).open("/dev/full").unwrap());
        let pages = ring.pages(1);
        let key = ring.write(&full, pages, 0).unwrap();
        let (ended, result) = completed(&mut ring);
        assert_eq!((ended, result.unwrap_err().kind()), (key, io::ErrorKind::StorageFull));
    }

    /// A pipe takes one page of two: that is an error too, because the rest must not be written a second time.
    #[test]
    fn a_write_that_is_cut_short_fails() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, PAGE_BYTES).unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut ring = DiskRing::new().unwrap();
        let pages = ring.pages(2);
        ring.write(&Rc::new(File::from(writer)), pages, 0).unwrap();
        let (_, result) = completed(&mut ring);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
