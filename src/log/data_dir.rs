//! The data directory: its lock, and `control.json`, which says whose it is and what it knows of the database.

use crate::config::fatal::Fatal;
use crate::config::settings::in_one_unit;
use crate::log::ownership::Memory;
use crate::log::segment::sync_dir;
use crate::log::writer::is_full;
use crate::system::host;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

const FORMAT: u32 = 1;
const CONTROL: &str = "control.json";
const NEXT_CONTROL: &str = "control.json.new";
const LOCK: &str = "lock";
const LOGS: &str = "log";
/// Marks a directory whose log is being written from the database.
const FILLING: &str = "filling";

/// What `control.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Control {
    /// Of this file and of the directory's layout.
    format: u32,
    /// Names this installation in every block.
    pub cluster: Uuid,
    /// The latest run.
    pub epoch: u32,
    /// Sale ids count periods, so the period cannot change under them.
    pub sale_period_s: u32,
    /// What the database was last seen to be.
    #[serde(default)]
    pub database: Memory,
}

impl Control {
    /// Of an installation whose latest run is `epoch`.
    pub fn new(cluster: Uuid, epoch: u32, sale_period_s: u32, database: Memory) -> Control {
        Control { format: FORMAT, cluster, epoch, sale_period_s, database }
    }
}

/// The data directory, locked as long as this lives, in this process or in one that has been given the lock.
pub struct DataDir {
    path: PathBuf,
    lock: OwnedFd,
}

/// The data directory, ready for a run.
#[derive(Clone)]
pub struct Opened {
    /// Where the segments are.
    pub logs: PathBuf,
    /// Names this installation.
    pub cluster: Uuid,
    /// This run.
    pub epoch: u32,
    /// Whether files here can be written past the page cache.
    pub direct_io: bool,
}

/// `control.json`, which says whose the directory is. Main and the persistence thread each have something to write into
/// it, rarely.
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

    /// What is known of the database.
    pub fn database(&self) -> Memory {
        self.content().database
    }

    /// Remembers this of the database.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remember(&self, database: Memory) -> io::Result<()> {
        let mut content = self.content();
        if content.database != database {
            content.database = database;
            self.write(&content)?;
        }
        Ok(())
    }

    /// Reads it again: another process may have written it since. It must not do so any more.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it cannot be read.
    pub fn read_again(&self) -> Result<(), Fatal> {
        let mut content = self.content();
        if let Some(read) = read_control(&self.dir, content.sale_period_s)? {
            content.database = read.database;
        }
        Ok(())
    }

    /// Sets the next epoch aside, for a process that is to go on in the place of this one. It is used up then, whatever
    /// becomes of that process.
    ///
    /// # Errors
    /// Of the file system.
    pub fn raise_epoch(&self) -> io::Result<u32> {
        let mut content = self.content();
        content.epoch += 1;
        self.write(&content)?;
        Ok(content.epoch)
    }

    /// Two files take turns and keep their places on the disk, so that a full one does not keep a run from beginning.
    fn write(&self, content: &Control) -> io::Result<()> {
        let (current, next) = (self.dir.join(CONTROL), self.dir.join(NEXT_CONTROL));
        let bytes = serde_json::to_vec_pretty(content)?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&next)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        match renameat_with(CWD, &next, CWD, &current, RenameFlags::EXCHANGE) {
            // There is none yet, or the file system cannot exchange files.
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
    /// Creates the directory if there is none, and locks it.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it is locked, or cannot be written.
    pub fn lock(path: &Path) -> Result<DataDir, Fatal> {
        let unwritable = |error| unwritable(path, error);
        create_durably(&path.join(LOGS)).map_err(unwritable)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(unwritable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            let shown = path.display();
            Fatal::DataDir(format!(
                "{shown} is locked: another stampede is running on it; stop it, or set --data-dir to another"
            ))
        })?;
        let dir = DataDir { path: path.to_owned(), lock: lock.into() };
        dir.finish_setting_aside().map_err(unwritable)?;
        Ok(dir)
    }

    /// The directory that another process has locked, with its lock.
    pub fn adopt(path: &Path, lock: OwnedFd) -> DataDir {
        DataDir { path: path.to_owned(), lock }
    }

    /// What holds it: with this, another process can have it, too.
    pub fn lock_descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Where the segments are.
    pub fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// Whether nothing was ever sold from here.
    pub fn is_new(&self) -> bool {
        !self.path.join(CONTROL).exists() && (!self.has_logs() || self.path.join(FILLING).exists())
    }

    /// Makes this new directory that of an installation that has been running elsewhere: `write` writes its log.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it cannot be written. It can be tried again.
    pub fn fill(&self, content: Control, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Fatal> {
        assert!(self.is_new(), "nothing is ever overwritten");
        let filled = (|| {
            // As long as this is there without a control file, the log is but a copy in the making.
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

    /// Moves what is here to a directory of its own, whose path is returned, so that this one is new again.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it cannot be written.
    pub fn set_aside(&self) -> Result<PathBuf, Fatal> {
        let aside = self.asides().find(|path| !path.exists()).expect("numbers do not run out");
        let moved = (|| {
            create_durably(&aside)?;
            if self.path.join(CONTROL).exists() {
                fs::rename(self.path.join(CONTROL), aside.join(CONTROL))?;
                sync_dir(&aside)?;
                sync_dir(&self.path)?;
            }
            self.finish_setting_aside()
        })();
        moved.map(|()| aside).map_err(|error| unwritable(&self.path, error))
    }

    fn asides(&self) -> impl Iterator<Item = PathBuf> {
        (1..).map(|number| self.path.join(format!("set-aside-{number}")))
    }

    /// The logs follow their control file, which a process that died may have moved alone.
    fn finish_setting_aside(&self) -> io::Result<()> {
        let half_done = self.asides().take_while(|path| path.exists()).find(|path| !path.join(LOGS).exists());
        if let Some(aside) = half_done.filter(|_| !self.path.join(CONTROL).exists()) {
            fs::rename(self.logs(), aside.join(LOGS))?;
            sync_dir(&aside)?;
            create_durably(&self.logs())?;
            sync_dir(&self.path)?;
        }
        Ok(())
    }

    /// Raises the epoch: a run begins. The second value is to be kept up to date by whoever deals with the database.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it cannot be written, or belongs to another setting or version.
    pub fn open(&self, sale_period_s: u32) -> Result<(Opened, ControlFile), Fatal> {
        let content = read_control(&self.path, sale_period_s)?;
        let content = content.map_or_else(|| self.first_control(sale_period_s), Ok)?;
        let control = ControlFile::new(&self.path, content);
        let epoch = control.raise_epoch().map_err(|error| unwritable(&self.path, error))?;
        Ok((opened(&self.path, &control, epoch), control))
    }

    /// The directory at `path`, for the run that another process has set aside for this one. It changes nothing.
    ///
    /// # Errors
    /// As for [`DataDir::open`].
    pub fn look_into(path: &Path, sale_period_s: u32, epoch: u32) -> Result<(Opened, ControlFile), Fatal> {
        let content = read_control(path, sale_period_s)?.filter(|content| content.epoch == epoch);
        let content = content.ok_or_else(|| {
            Fatal::DataDir(format!("{} is not what the server that runs on it says it is", path.display()))
        })?;
        let control = ControlFile::new(path, content);
        Ok((opened(path, &control, epoch), control))
    }

    /// Where the segments are in the directory at `path`, and what is written beside them, for whoever only reads: it
    /// is not locked, and nothing is changed.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: nothing was ever sold from there, or it cannot be read.
    pub fn survey(path: &Path) -> Result<(PathBuf, Control), Fatal> {
        let logs = path.join(LOGS);
        match read_any_control(path)? {
            Some(control) => Ok((logs, control)),
            None if has_entries(&logs) => Err(without_control(path)),
            None => {
                let what = if path.is_dir() { "has no log" } else { "is no directory" };
                let shown = path.display();
                Err(Fatal::DataDir(format!("{shown} {what}; set --data-dir to that of the server")))
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
    Fatal::DataDir(format!("{shown} has logs but no control.json; restore the file, or set --data-dir to another"))
}

fn opened(path: &Path, control: &ControlFile, epoch: u32) -> Opened {
    let direct_io = open(path.join(LOCK), OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok();
    Opened { logs: path.join(LOGS), cluster: control.content().cluster, epoch, direct_io }
}

fn read_control(path: &Path, sale_period_s: u32) -> Result<Option<Control>, Fatal> {
    let control = read_any_control(path)?;
    if let Some(other) = control.as_ref().map(|control| control.sale_period_s).filter(|other| *other != sale_period_s) {
        let (shown, period) = (path.display(), in_one_unit(u64::from(other) * 1000));
        return Err(Fatal::DataDir(format!(
            "{shown} counts its sales in periods of {period}; start with --sale-period {period}, or set --data-dir to another"
        )));
    }
    Ok(control)
}

/// Of whatever period.
fn read_any_control(path: &Path) -> Result<Option<Control>, Fatal> {
    let file = path.join(CONTROL);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unwritable(path, error)),
    };
    let file = file.display();
    let control: Control = serde_json::from_slice(&bytes)
        .map_err(|error| Fatal::DataDir(format!("{file}: {error}; restore the file, or set --data-dir to another")))?;
    if control.format != FORMAT {
        let format = control.format;
        return Err(Fatal::DataDir(format!("{file} has format {format}; this version of stampede reads {FORMAT}")));
    }
    Ok(Some(control))
}

fn unwritable(path: &Path, error: io::Error) -> Fatal {
    let shown = path.display();
    let remedy = if is_full(&error) { "free some of the disk" } else { "make it writable for this user" };
    Fatal::DataDir(format!("{shown}: {error}; {remedy}, or set --data-dir to another"))
}

/// Creates a directory and its parents, and makes them durable.
fn create_durably(path: &Path) -> io::Result<()> {
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

    fn open(path: &Path, period_s: u32) -> Result<Opened, Fatal> {
        Ok(DataDir::lock(path)?.open(period_s)?.0)
    }

    fn refused(path: &Path, period_s: u32) -> String {
        open(path, period_s).err().expect("it must be refused").to_string()
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
    }

    #[test]
    fn a_lost_or_foreign_control_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), 3600).unwrap());
        fs::write(dir.path().join("control.json"), "{").unwrap();
        assert!(refused(dir.path(), 3600).contains("control.json"));
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
        assert!(failed.is_err() && dir.is_new(), "what was written is only a copy");
        dir.fill(control(), |logs| fs::write(logs.join("b.log"), "")).unwrap();
        assert!(!dir.is_new() && dir.logs().join("b.log").exists() && !dir.logs().join("a.log").exists());
        assert_eq!(dir.open(3600).unwrap().0.epoch, 9);
        drop(dir);
        // The process died between the two renames.
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
