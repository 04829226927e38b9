//! The data directory: its lock, and `control.json`, which says whose it is.

use crate::config::in_one_unit;
use crate::fatal::Fatal;
use crate::host;
use crate::segment::sync_dir;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Control {
    /// Of this file and of the directory's layout.
    format: u32,
    /// Names this installation in every block.
    cluster: Uuid,
    /// The latest run.
    epoch: u32,
    /// Sale ids count periods, so the period cannot change under them.
    sale_period_s: u32,
}

/// An open, locked data directory. The lock lives as long as this.
pub struct DataDir {
    /// Where the segments are.
    pub logs: PathBuf,
    /// Names this installation.
    pub cluster: Uuid,
    /// This run.
    pub epoch: u32,
    /// Whether files here can be written past the page cache.
    pub direct_io: bool,
    _lock: File,
}

impl DataDir {
    /// Opens or creates the directory, locks it and raises the epoch.
    ///
    /// # Errors
    /// [`Fatal::DataDir`]: it is locked, cannot be written, or belongs to another setting or version.
    pub fn open(path: &Path, sale_period_s: u32) -> Result<DataDir, Fatal> {
        let shown = path.display();
        let unwritable = |error: io::Error| {
            Fatal::DataDir(format!("{shown}: {error}; make it writable for this user, or set --data-dir to another"))
        };
        let logs = path.join("log");
        create_durably(&logs).map_err(unwritable)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(unwritable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Fatal::DataDir(format!(
                "{shown} is locked: another stampede is running on it; stop it, or set --data-dir to another"
            ))
        })?;
        let mut control = match fs::read(path.join("control.json")) {
            Ok(bytes) => Self::read_control(&bytes, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new_control(path, sale_period_s)?,
            Err(error) => return Err(unwritable(error)),
        };
        if control.sale_period_s != sale_period_s {
            let period = in_one_unit(u64::from(control.sale_period_s) * 1000);
            return Err(Fatal::DataDir(format!(
                "{shown} counts its sales in periods of {period}; start with --sale-period {period}, or set --data-dir to another"
            )));
        }
        control.epoch += 1;
        Self::write_control(&control, path).map_err(unwritable)?;
        let direct_io = Self::has_direct_io(path).map_err(unwritable)?;
        Ok(DataDir { logs, cluster: control.cluster, epoch: control.epoch, direct_io, _lock: lock })
    }

    fn read_control(bytes: &[u8], path: &Path) -> Result<Control, Fatal> {
        let file = path.join("control.json");
        let control: Control = serde_json::from_slice(bytes).map_err(|error| {
            Fatal::DataDir(format!("{}: {error}; restore the file, or set --data-dir to another", file.display()))
        })?;
        if control.format != FORMAT {
            let (file, format) = (file.display(), control.format);
            return Err(Fatal::DataDir(format!("{file} has format {format}; this version of stampede reads {FORMAT}")));
        }
        Ok(control)
    }

    fn new_control(path: &Path, sale_period_s: u32) -> Result<Control, Fatal> {
        let has_logs = fs::read_dir(path.join("log")).is_ok_and(|mut entries| entries.next().is_some());
        if has_logs {
            return Err(Fatal::DataDir(format!(
                "{} has logs but no control.json; restore the file, or set --data-dir to another",
                path.display()
            )));
        }
        let cluster = uuid::Builder::from_random_bytes(host::random()?).into_uuid();
        Ok(Control { format: FORMAT, cluster, epoch: 0, sale_period_s })
    }

    fn write_control(control: &Control, path: &Path) -> io::Result<()> {
        let new = path.join("control.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(control)?)?;
        file.sync_all()?;
        fs::rename(new, path.join("control.json"))?;
        sync_dir(path)
    }

    fn has_direct_io(path: &Path) -> io::Result<bool> {
        let probe = path.join("direct-io.probe");
        File::create(&probe)?;
        let direct = open(&probe, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok();
        fs::remove_file(&probe)?;
        Ok(direct)
    }
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

    fn refused(path: &Path, period_s: u32) -> String {
        DataDir::open(path, period_s).err().expect("it must be refused").to_string()
    }

    #[test]
    fn the_epoch_rises_and_the_cluster_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = {
            let first = DataDir::open(dir.path(), 3600).unwrap();
            let kept = (first.cluster, first.epoch);
            drop(first);
            (kept, DataDir::open(dir.path(), 3600).unwrap())
        };
        assert_eq!(first, (second.cluster, second.epoch - 1));
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::open(dir.path(), 3600).unwrap();
        assert!(refused(dir.path(), 3600).contains("is locked"));
    }

    #[test]
    fn another_period_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), 5400).unwrap());
        assert!(refused(dir.path(), 3600).contains("--sale-period 90m"));
    }

    #[test]
    fn a_lost_or_foreign_control_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), 3600).unwrap());
        fs::write(dir.path().join("control.json"), "{").unwrap();
        assert!(refused(dir.path(), 3600).contains("control.json"));
        fs::remove_file(dir.path().join("control.json")).unwrap();
        fs::write(dir.path().join("log/purchases-0000000001-00000-000000000000-16.log"), "").unwrap();
        assert!(refused(dir.path(), 3600).contains("no control.json"));
    }
}
