//! The data directory: its lock, its control file `control.json`, and the steps that fill it or set its log aside. The
//! control file names the installation, the latest run, the sale period and what is known about the database.
//!
//! | entry | content |
//! |---|---|
//! | `lock` | empty file that the running process has locked |
//! | `control.json` | the control file |
//! | `control.json.new` | second file, which is exchanged with the control file at each write |
//! | `log/` | the segments |
//! | `filling` | mark: `log/` is an unfinished copy of the database, unless a control file exists |
//! | `set-aside-N/` | control file and log that `--recover-from postgres` has replaced |
//!
//! The log contains live codes, so only the user of the process may enter the directory. The process creates it with
//! mode 0700 (its umask is 077), and tightens an existing directory.
//!
//! Two rules hold. A run raises the epoch, durably, before it creates a segment. A log that a run has used is never
//! overwritten.

use crate::config::fatal::Fatal;
use crate::config::raw_setting::in_one_unit;
use crate::log::manifest::Manifest;
use crate::log::ownership::Memory;
use crate::log::segment::sync_dir;
use crate::log::writer::is_full;
use crate::sale::sale_schedule::are_compatible;
use crate::system::host;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

const FORMAT: u32 = 2;
pub(crate) const CONTROL: &str = "control.json";
const NEXT_CONTROL: &str = "control.json.new";
const LOCK: &str = "lock";
pub(crate) const LOGS: &str = "log";
/// Mark of a directory whose log is being written from the database.
const FILLING: &str = "filling";

/// Content of `control.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Control {
    /// Format version of this file and of the directory.
    format: u32,
    /// Id of the installation, which every block repeats.
    pub cluster: Uuid,
    /// Epoch of the latest run.
    pub epoch: u32,
    /// Length of the sales without a plan, in seconds. It cannot change, because their ids count it. 0 if all sales so far
    /// had a plan.
    pub sale_period_s: u32,
    /// The longest time for which any run may have held an item, in milliseconds. Recovery looks that far back for the
    /// holds of ended sales.
    pub longest_hold_ms: u64,
    /// The purchase streams that recovery must find.
    #[serde(default)]
    pub manifest: Manifest,
    /// What is known about the database.
    #[serde(default)]
    pub database: Memory,
}

/// The field that `control.json` has in every format.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Control {
    /// Creates the content for an installation whose latest run is `epoch`.
    pub fn new(cluster: Uuid, epoch: u32, sale_period_s: u32, database: Memory) -> Control {
        Control {
            format: FORMAT,
            cluster,
            epoch,
            sale_period_s,
            longest_hold_ms: 0,
            manifest: Manifest::default(),
            database,
        }
    }
}

/// Locked data directory. The lock is held until this process and every process that received the lock have closed it.
pub struct DataDir {
    path: PathBuf,
    lock: OwnedFd,
}

/// Data directory that is open for one run.
#[derive(Clone)]
pub struct OpenDataDir {
    /// Path of the directory with the segments.
    pub logs: PathBuf,
    /// Id of the installation.
    pub cluster: Uuid,
    /// Epoch of the run.
    pub epoch: u32,
    /// Whether the file system supports direct I/O.
    pub direct_io: bool,
    /// Length of the sales without a plan, in seconds; 0 if there were none.
    pub sale_period_s: u32,
    /// The longest time for which an earlier run may have held an item, in milliseconds.
    pub longest_hold_ms: u64,
    /// The purchase streams that recovery must find.
    pub manifest: Manifest,
}

/// Open control file. The main thread and the persistence thread share it, and both write rarely.
#[derive(Clone)]
pub struct ControlFile {
    dir: PathBuf,
    content: Arc<Mutex<Control>>,
}

impl ControlFile {
    fn new(dir: &Path, content: Control) -> Self {
        ControlFile { dir: dir.to_owned(), content: Arc::new(Mutex::new(content)) }
    }

    fn content(&self) -> MutexGuard<'_, Control> {
        self.content.lock().expect("a panic ends the process")
    }

    /// Returns what is known about the database.
    pub fn database(&self) -> Memory {
        self.content().database
    }

    /// Stores what is known about the database, durably. Writes nothing if the file has it already.
    ///
    /// # Errors
    /// An I/O error if the file cannot be written.
    pub fn remember(&self, database: Memory) -> io::Result<()> {
        let mut content = self.content();
        if content.database != database {
            content.database = database;
            self.write(&content)?;
        }
        Ok(())
    }

    /// Stores the manifest, durably.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the file cannot be written.
    pub fn store_manifest(&self, manifest: Manifest) -> Result<(), Fatal> {
        let mut content = self.content();
        content.manifest = manifest;
        self.write(&content).map_err(|error| unwritable(&self.dir, error))
    }

    /// Takes `ms` as the longest hold that the old process of an upgrade has written to the file.
    pub fn assume_longest_hold(&self, ms: u64) {
        let mut content = self.content();
        content.longest_hold_ms = content.longest_hold_ms.max(ms);
    }

    /// Raises the longest hold to `ms`, durably, if it is shorter. A run calls it before it sells, and before a new
    /// process of an upgrade sells.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the file cannot be written.
    pub fn raise_longest_hold(&self, ms: u64) -> Result<(), Fatal> {
        let mut content = self.content();
        if content.longest_hold_ms < ms {
            content.longest_hold_ms = ms;
            self.write(&content).map_err(|error| unwritable(&self.dir, error))?;
        }
        Ok(())
    }

    /// Reads again what is known about the database, because another process may have changed the file. That process
    /// must have ended before this process writes the file.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the file cannot be read.
    pub fn reload_database(&self) -> Result<(), Fatal> {
        let mut content = self.content();
        if let Some(read) = read_control(&self.dir, content.sale_period_s)? {
            content.database = read.database;
        }
        Ok(())
    }

    /// Raises the epoch, durably, and returns it: for this run at its start, or for the new process of an upgrade. The
    /// epoch is never used again, even if the new process fails.
    ///
    /// # Errors
    /// An I/O error if the file cannot be written.
    pub fn raise_epoch(&self) -> io::Result<u32> {
        let mut content = self.content();
        content.epoch += 1;
        self.write(&content)?;
        Ok(content.epoch)
    }

    /// Writes the second file, syncs it and exchanges it with the control file. Both files keep their space on the
    /// disk, so a run can start on a full disk.
    fn write(&self, content: &Control) -> io::Result<()> {
        let (current, next) = (self.dir.join(CONTROL), self.dir.join(NEXT_CONTROL));
        let bytes = serde_json::to_vec_pretty(content)?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&next)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        match renameat_with(CWD, &next, CWD, &current, RenameFlags::EXCHANGE) {
            // There is no control file yet, or the file system cannot exchange files.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
                fs::rename(&next, &current)?;
                fs::write(&next, bytes)?;
            }
            result => result?,
        }
        sync_dir(&self.dir)
    }
}

impl DataDir {
    /// Creates the directory if it does not exist, withdraws access from other users, and locks it.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if another process has locked the directory, if the directory cannot be written, or if other
    /// users keep access to the log.
    pub fn lock(path: &Path) -> Result<DataDir, Fatal> {
        let unwritable = |error| unwritable(path, error);
        create_durably(&path.join(LOGS)).map_err(unwritable)?;
        protect(path)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(unwritable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            let shown = path.display();
            Fatal::DataDir(format!(
                "{shown} is locked by another stampede process; stop it, or set --data-dir to another directory"
            ))
        })?;
        let dir = DataDir { path: path.to_owned(), lock: lock.into() };
        dir.finish_setting_aside().map_err(unwritable)?;
        Ok(dir)
    }

    /// Returns the directory at `path`, which another process has locked, with the lock received from that process.
    pub fn adopt(path: &Path, lock: OwnedFd) -> DataDir {
        if let Err(error) = protect(path) {
            tracing::warn!(%error, "the data directory is open to other users");
        }
        DataDir { path: path.to_owned(), lock }
    }

    /// Returns the descriptor of the lock. A process that receives the descriptor holds the lock, too.
    pub fn lock_descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Returns the path of the data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the directory with the segments.
    pub fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// Returns whether no run has used the directory: it has no control file, and no log except an unfinished copy.
    pub fn is_new(&self) -> bool {
        !self.path.join(CONTROL).exists() && (!self.has_logs() || self.path.join(FILLING).exists())
    }

    /// Fills this new directory for an installation that ran elsewhere, in this order:
    ///
    /// 1. Create the mark `filling`.
    /// 2. Empty the directory of the segments, and let `write` write the log there.
    /// 3. Write the control file. From here on, the directory is not new.
    /// 4. Remove the mark.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the directory cannot be written. The call can be repeated.
    pub fn fill(&self, content: Control, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Fatal> {
        assert!(self.is_new(), "only a new directory is filled");
        let filled = (|| {
            // While the mark exists and the control file does not, the log is an unfinished copy.
            File::create(self.path.join(FILLING))?.sync_all()?;
            sync_dir(&self.path)?;
            fs::remove_dir_all(self.logs())?;
            create_durably(&self.logs())?;
            write(&self.logs())?;
            let control = ControlFile::new(&self.path, content);
            control.write(&control.content())?;
            fs::remove_file(self.path.join(FILLING))
        })();
        filled.map_err(|error| unwritable(&self.path, error))
    }

    /// Raises the epoch for a new run, and returns the open directory and its control file. The persistence thread
    /// keeps the control file up to date with what is known about the database.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the directory cannot be written, or if its sale period or format is another.
    pub fn open(&self, sale_period_s: u32) -> Result<(OpenDataDir, ControlFile), Fatal> {
        let content = read_control(&self.path, sale_period_s)?;
        let mut content = content.map_or_else(|| self.first_control(sale_period_s), Ok)?;
        content.sale_period_s = content.sale_period_s.max(sale_period_s);
        let control = ControlFile::new(&self.path, content);
        let epoch = control.raise_epoch().map_err(|error| unwritable(&self.path, error))?;
        Ok((opened(&self.path, &control, epoch), control))
    }

    /// Returns the directory at `path` and its control file for the run `epoch`, which another process has reserved for
    /// this process. Changes nothing.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the control file cannot be read, or if its sale period, format or epoch is another.
    pub fn open_reserved(path: &Path, sale_period_s: u32, epoch: u32) -> Result<(OpenDataDir, ControlFile), Fatal> {
        let content = read_control(path, sale_period_s)?.filter(|content| content.epoch == epoch);
        let mut content = content.ok_or_else(|| {
            Fatal::DataDir(format!(
                "{} does not have epoch {epoch}, which the running server has reserved for this process; \
                 both processes must use the same data directory",
                path.display()
            ))
        })?;
        content.sale_period_s = content.sale_period_s.max(sale_period_s);
        let control = ControlFile::new(path, content);
        Ok((opened(path, &control, epoch), control))
    }

    /// Returns the path of the segments and the content of the control file of the directory at `path`, for tools that
    /// only read. Takes no lock and changes nothing.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the directory has no control file or cannot be read.
    pub fn open_read_only(path: &Path) -> Result<(PathBuf, Control), Fatal> {
        let logs = path.join(LOGS);
        match read_any_control(path)? {
            Some(control) => Ok((logs, control)),
            None if has_entries(&logs) => Err(without_control(path)),
            None => {
                let what = if path.is_dir() { "has no log" } else { "is not a directory" };
                let shown = path.display();
                Err(Fatal::DataDir(format!("{shown} {what}; set --data-dir to the data directory of the server")))
            }
        }
    }

    fn has_logs(&self) -> bool {
        has_entries(&self.logs())
    }

    fn first_control(&self, sale_period_s: u32) -> Result<Control, Fatal> {
        if self.has_logs() {
            return Err(without_control(&self.path));
        }
        Ok(Control::new(host::new_id()?, 0, sale_period_s, Memory::default()))
    }
}

fn has_entries(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

fn without_control(path: &Path) -> Fatal {
    let shown = path.display();
    Fatal::DataDir(format!(
        "{shown} has a log but no control.json; restore the file, or set --data-dir to another directory"
    ))
}

fn opened(path: &Path, control: &ControlFile, epoch: u32) -> OpenDataDir {
    let direct_io = open(path.join(LOCK), OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok();
    let Control { cluster, sale_period_s, longest_hold_ms, manifest, .. } = control.content().clone();
    OpenDataDir { logs: path.join(LOGS), cluster, epoch, direct_io, sale_period_s, longest_hold_ms, manifest }
}

fn read_control(path: &Path, sale_period_s: u32) -> Result<Option<Control>, Fatal> {
    let control = read_any_control(path)?;
    let other = control.as_ref().map(|control| control.sale_period_s);
    if let Some(other) = other.filter(|other| !are_compatible(*other, sale_period_s)) {
        let (shown, period) = (path.display(), in_one_unit(u64::from(other) * 1000));
        return Err(Fatal::DataDir(format!(
            "{shown} was created with a sale period of {period}; start with --sale-period {period}, \
             or set --data-dir to another directory"
        )));
    }
    Ok(control)
}

/// Reads the control file of any sale period. Returns `None` if there is no file.
fn read_any_control(path: &Path) -> Result<Option<Control>, Fatal> {
    let file = path.join(CONTROL);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unwritable(path, error)),
    };
    let file = file.display();
    let unreadable = |error| Fatal::DataDir(format!("{file}: {error}; restore it, or set another --data-dir"));
    // The other fields depend on the format.
    let Format { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if format != FORMAT {
        return Err(Fatal::DataDir(format!(
            "{file} has format {format}, but this version of stampede reads format {FORMAT}; continue with the version \
             that wrote it, or follow \"Another format\" in docs/upgrades.md"
        )));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
}

pub(crate) fn unwritable(path: &Path, error: io::Error) -> Fatal {
    let shown = path.display();
    let remedy = if is_full(&error) { "free disk space" } else { "make the directory writable for this user" };
    Fatal::DataDir(format!("{shown}: {error}; {remedy}, or set --data-dir to another directory"))
}

/// Withdraws access to the log from other users. If the data directory itself cannot be tightened, for example because
/// it belongs to another user, its directories with segments are.
fn protect(path: &Path) -> Result<(), Fatal> {
    let Err(error) = tighten(path) else { return Ok(()) };
    tracing::debug!(dir = %path.display(), %error, "the mode of the data directory cannot be changed");
    let asides = fs::read_dir(path).map_err(|error| unwritable(path, error))?.filter_map(Result::ok);
    let asides = asides.filter(|entry| entry.file_name().to_string_lossy().starts_with("set-aside-"));
    asides.map(|entry| entry.path()).chain([path.join(LOGS)]).try_for_each(|dir| {
        let shown = dir.display();
        tighten(&dir).map_err(|error| {
            Fatal::DataDir(format!(
                "other users can read the codes in {shown}, and its mode cannot be changed: {error}; run chmod go= \
                 {shown} as its owner, or set --data-dir to another directory"
            ))
        })
    })
}

/// Withdraws the rights of the group and of others on a directory, with one log line if they had any.
fn tighten(dir: &Path) -> io::Result<()> {
    let metadata = fs::metadata(dir)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    // A directory such as /tmp is meant for all users.
    if metadata.uid() != geteuid().as_raw() || mode & 0o1000 != 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    fs::set_permissions(dir, Permissions::from_mode(mode & !0o077))?;
    if fs::metadata(dir)?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    let (was, now) = (format!("{mode:04o}"), format!("{:04o}", mode & !0o077));
    let dir = dir.display();
    tracing::warn!(%dir, was, now, "other users had access to the codes in this directory: it is tightened");
    Ok(())
}

/// Creates a directory and its missing parents, and makes them durable.
pub(crate) fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_durably(parent)?;
    fs::create_dir(path)?;
    sync_dir(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ownership::Run;

    fn open(path: &Path, period_s: u32) -> Result<OpenDataDir, Fatal> {
        Ok(DataDir::lock(path)?.open(period_s)?.0)
    }

    fn refused(path: &Path, period_s: u32) -> String {
        open(path, period_s).err().expect("the directory must be refused").to_string()
    }

    #[test]
    fn the_epoch_rises_and_the_cluster_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [(); 2].map(|()| open(dir.path(), 3600).unwrap());
        assert_eq!((first.cluster, first.epoch), (second.cluster, second.epoch - 1));
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::lock(dir.path()).unwrap();
        assert!(refused(dir.path(), 3600).contains("is locked"));
    }

    #[test]
    fn another_period_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), 5400).unwrap());
        assert!(refused(dir.path(), 3600).contains("--sale-period 90m"));
        // A plan has no period, and the directory remembers that of the sales before.
        assert_eq!(open(dir.path(), 0).unwrap().sale_period_s, 5400);
        assert!(refused(dir.path(), 3600).contains("--sale-period 90m"));
        let planned = tempfile::tempdir().unwrap();
        assert_eq!([0, 3600, 0].map(|period_s| open(planned.path(), period_s).unwrap().sale_period_s), [0, 3600, 3600]);
    }

    #[test]
    fn a_lost_or_foreign_control_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), 3600).unwrap());
        fs::write(dir.path().join("control.json"), "{").unwrap();
        assert!(refused(dir.path(), 3600).contains("control.json"));
        let first = r#"{"format":1,"cluster":"00000000-0000-0000-0000-000000000001","epoch":3,"sale_period_s":3600}"#;
        fs::write(dir.path().join("control.json"), first).unwrap();
        assert!(refused(dir.path(), 3600).contains("has format 1, but this version of stampede reads format 2"));
        fs::remove_file(dir.path().join("control.json")).unwrap();
        fs::write(dir.path().join("log/purchases-0000000001-00000-000000000000-16.log"), "").unwrap();
        assert!(refused(dir.path(), 3600).contains("no control.json"));
    }

    #[test]
    fn what_is_set_aside_is_kept_and_makes_room() {
        let path = tempfile::tempdir().unwrap();
        let first = open(path.path(), 3600).unwrap();
        fs::write(path.path().join("log/a.log"), "a").unwrap();
        let dir = DataDir::lock(path.path()).unwrap();
        assert!(!dir.is_new());
        let aside = dir.set_aside().unwrap();
        assert!(dir.is_new() && aside.join("log/a.log").exists() && aside.join("control.json").exists());
        assert_ne!(dir.open(3600).unwrap().0.cluster, first.cluster);
        assert_ne!(dir.set_aside().unwrap(), aside);
    }

    #[test]
    fn what_was_half_done_is_done_again() {
        let path = tempfile::tempdir().unwrap();
        let control = || Control::new(Uuid::from_u128(5), 8, 3600, Memory::default());
        let dir = DataDir::lock(path.path()).unwrap();
        let failed = dir.fill(control(), |logs| {
            fs::write(logs.join("a.log"), "")?;
            Err(io::Error::other("full"))
        });
        assert!(failed.is_err() && dir.is_new(), "an unfinished copy does not count");
        dir.fill(control(), |logs| fs::write(logs.join("b.log"), "")).unwrap();
        assert!(!dir.is_new() && dir.logs().join("b.log").exists() && !dir.logs().join("a.log").exists());
        assert_eq!(dir.open(3600).unwrap().0.epoch, 9);
        drop(dir);
        // The process ended between the two renames.
        fs::create_dir(path.path().join("set-aside-1")).unwrap();
        fs::rename(path.path().join("control.json"), path.path().join("set-aside-1/control.json")).unwrap();
        assert!(DataDir::lock(path.path()).unwrap().is_new() && path.path().join("set-aside-1/log/b.log").exists());
    }

    #[test]
    fn the_database_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run { epoch: 1, id: Uuid::from_u128(9) };
        let memory = Memory::default().claiming(None, run);
        let dir = DataDir::lock(dir.path()).unwrap();
        dir.open(3600).unwrap().1.remember(memory).unwrap();
        assert_eq!(dir.open(3600).unwrap().1.database(), memory);
    }
}
