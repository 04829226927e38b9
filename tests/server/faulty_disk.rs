//! A FUSE file system in the test process that keeps its files in a directory and fails one chosen operation.
//!
//! A failed sync loses the cache, as on real disks: all bytes written since the last sync become zeros, and a second
//! sync would succeed.

use crate::mountpoint::Mountpoint;
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Zero, so that the kernel caches neither names nor attributes.
const TTL: Duration = Duration::ZERO;

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails with EIO: a write has no effect, and a sync loses the data that it should make durable.
    Error,
    /// A write accepts half of its bytes, and the next write to that file, with the rest, fails.
    ShortWrite,
    /// Every read of the first 4 KiB of a file fails with EIO, if its name contains this part.
    Unreadable(&'static str),
}

/// The properties of a disk and its fault.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub fault: Fault,
    /// Number of the operation that fails, from 1. For `Error`, the operations that change something are counted; for
    /// `ShortWrite`, the writes. `Unreadable` ignores it.
    pub at: u32,
    /// Whether files can be opened with `O_DIRECT`.
    pub has_direct_io: bool,
}

/// A mounted faulty disk, unmounted when dropped.
pub struct FaultyDisk {
    // Dropped before the session, because the end of the session waits for the disk's last user.
    mountpoint: Mountpoint,
    happened: Arc<AtomicBool>,
    _session: BackgroundSession,
}

impl FaultyDisk {
    /// Mounts a disk that keeps its files in `backing`.
    ///
    /// # Errors
    /// Fails if this user may not mount, or if there is no /dev/fuse.
    pub fn mount(backing: &Path, plan: Plan) -> io::Result<FaultyDisk> {
        let mountpoint = Mountpoint::new();
        let happened = Arc::new(AtomicBool::new(false));
        let files =
            Mutex::new(Files { paths: vec![PathBuf::new(), backing.to_owned()], open: BTreeMap::new(), next: 1 });
        let disk =
            Disk { files, plan, operations: AtomicU32::new(0), happened: happened.clone(), torn: AtomicU64::new(0) };
        let session = fuser::spawn_mount(disk, mountpoint.path(), &Config::default())?;
        Ok(FaultyDisk { mountpoint, happened, _session: session })
    }

    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Returns whether the fault has happened.
    pub fn has_failed(&self) -> bool {
        self.happened.load(SeqCst)
    }
}

struct Open {
    file: File,
    /// Ranges written since the last sync: offset and length in bytes.
    cached: Vec<(u64, usize)>,
}

struct Files {
    /// Path of each file, by inode number. Numbers start at 1.
    paths: Vec<PathBuf>,
    open: BTreeMap<u64, Open>,
    next: u64,
}

impl Files {
    fn path(&self, ino: INodeNo) -> PathBuf {
        self.paths[ino.0 as usize].clone()
    }

    fn inode(&mut self, path: &Path) -> INodeNo {
        let known = self.paths.iter().position(|known| known == path);
        INodeNo(known.unwrap_or_else(|| {
            self.paths.push(path.to_owned());
            self.paths.len() - 1
        }) as u64)
    }

    fn attributes(&mut self, path: &Path) -> io::Result<FileAttr> {
        let metadata = fs::metadata(path)?;
        let time = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: self.inode(path),
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::from_std(metadata.file_type()).expect("only files and directories"),
            perm: metadata.permissions().mode() as u16 & 0o7777,
            nlink: 1,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn opened(&mut self, file: File) -> FileHandle {
        self.next += 1;
        self.open.insert(self.next, Open { file, cached: Vec::new() });
        FileHandle(self.next)
    }
}

struct Disk {
    files: Mutex<Files>,
    plan: Plan,
    operations: AtomicU32,
    happened: Arc<AtomicBool>,
    /// Handle of the file whose last write was short.
    torn: AtomicU64,
}

impl Disk {
    /// Counts an operation that this fault applies to. Returns whether the operation must fail.
    fn fails(&self, fault: Fault) -> bool {
        let is_it = self.plan.fault == fault && self.operations.fetch_add(1, SeqCst) + 1 == self.plan.at;
        self.happened.fetch_or(is_it, SeqCst);
        is_it
    }

    /// Runs an operation that changes something, on the path of `name` in `parent`, or of `parent` itself, unless the
    /// operation must fail.
    fn change<T>(
        &self,
        parent: INodeNo,
        name: Option<&OsStr>,
        act: impl FnOnce(&mut Files, &Path) -> io::Result<T>,
    ) -> Result<T, Errno> {
        if self.fails(Fault::Error) {
            return Err(Errno::EIO);
        }
        let mut files = self.files.lock().expect("no operation panics");
        let path = name.map_or_else(|| files.path(parent), |name| files.path(parent).join(name));
        Ok(act(&mut files, &path)?)
    }
}

fn done(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut files = self.files.lock().expect("no operation panics");
        let path = files.path(parent).join(name);
        entry(reply, files.attributes(&path).map_err(Errno::from));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let mut files = self.files.lock().expect("no operation panics");
        let path = files.path(ino);
        attributes(reply, files.attributes(&path).map_err(Errno::from));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let result = self.change(ino, None, |files, path| {
            if let Some(size) = size {
                File::options().write(true).open(path)?.set_len(size)?;
            }
            files.attributes(path)
        });
        attributes(reply, result);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entry(
            reply,
            self.change(parent, Some(name), |files, path| {
                fs::create_dir(path)?;
                files.attributes(path)
            }),
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.change(parent, Some(name), |_, path| fs::remove_file(path)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // Like a network file system, the disk cannot exchange two files.
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let result = self.change(parent, Some(name), |files, path| {
            let new = files.path(to).join(new_name);
            fs::rename(path, &new)?;
            // The file keeps its inode number under its new name. A file that had this name before loses its path.
            files.paths.iter_mut().filter(|known| **known == new).for_each(|known| *known = PathBuf::new());
            files.paths.iter_mut().filter(|known| *known == path).for_each(|known| known.clone_from(&new));
            Ok(())
        });
        done(reply, result);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & OFlags::DIRECT.bits() as i32 != 0 && !self.plan.has_direct_io {
            return reply.error(Errno::EINVAL);
        }
        let mut files = self.files.lock().expect("no operation panics");
        let path = files.path(ino);
        match File::options().read(true).write(true).open(path) {
            Ok(file) => reply.opened(files.opened(file), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let result = self.change(parent, Some(name), |files, path| {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            Ok((files.attributes(path)?, files.opened(file)))
        });
        match result {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &attributes, Generation(0), handle, FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Fault::Unreadable(part) = self.plan.fault {
            let path = self.files.lock().expect("no operation panics").path(ino);
            if offset < 4096 && path.to_string_lossy().contains(part) {
                self.happened.store(true, SeqCst);
                return reply.error(Errno::EIO);
            }
        }
        let mut bytes = vec![0; size as usize];
        match self.files.lock().expect("no operation panics").open[&handle.0].file.read_at(&mut bytes, offset) {
            Ok(read) => reply.data(&bytes[..read]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.torn.load(SeqCst) == handle.0 {
            return reply.error(Errno::EIO);
        }
        let is_short = self.fails(Fault::ShortWrite);
        if is_short {
            self.torn.store(handle.0, SeqCst);
        }
        let taken = self.change(ino, None, |_, _| Ok(if is_short { data.len() / 2 } else { data.len() }));
        let written = taken.and_then(|taken| {
            let mut files = self.files.lock().expect("no operation panics");
            let open = files.open.get_mut(&handle.0).expect("the file is open");
            open.file.write_all_at(&data[..taken], offset)?;
            open.cached.push((offset, taken));
            Ok(taken)
        });
        match written {
            Ok(taken) => reply.written(taken as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let result = self.change(ino, None, |_, _| Ok(()));
        let mut files = self.files.lock().expect("no operation panics");
        let open = files.open.get_mut(&handle.0).expect("the file is open");
        for (offset, length) in std::mem::take(&mut open.cached) {
            if result.is_err() {
                open.file.write_all_at(&vec![0; length], offset).expect("the backing directory has no faults");
            }
        }
        done(reply, result);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(reply, self.change(ino, None, |_, _| Ok(())));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().expect("no operation panics").open.remove(&handle.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let path = self.files.lock().expect("no operation panics").path(ino);
        let entries = fs::read_dir(path).expect("the backing directory has no faults");
        for (place, entry) in entries.enumerate().skip(offset as usize) {
            let entry = entry.expect("the backing directory has no faults");
            let kind = FileType::from_std(entry.file_type().expect("a file type")).expect("only files and directories");
            // The kernel looks up the inode number by name.
            if reply.add(INodeNo(u64::MAX), place as u64 + 1, kind, entry.file_name()) {
                break;
            }
        }
        reply.ok();
    }
}
