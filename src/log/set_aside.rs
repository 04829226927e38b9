//! Logs that are moved aside, into directories `set-aside-1`, `set-aside-2`, ... of the data directory, because the sale
//! goes on with what the database has.

use crate::config::fatal::Fatal;
use crate::log::data_dir::{CONTROL, DataDir, LOGS, create_durably, unwritable};
use crate::log::segment::sync_dir;
use std::fs;
use std::io;
use std::path::PathBuf;

impl DataDir {
    /// Moves the control file and then the log to a new directory `set-aside-N`, and returns its path. After that, this
    /// directory is new again.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the directory cannot be written.
    pub fn set_aside(&self) -> Result<PathBuf, Fatal> {
        let aside = self.set_aside_paths().find(|path| !path.exists()).expect("a free number exists");
        let moved = (|| {
            create_durably(&aside)?;
            if self.path().join(CONTROL).exists() {
                fs::rename(self.path().join(CONTROL), aside.join(CONTROL))?;
                sync_dir(&aside)?;
                sync_dir(self.path())?;
            }
            self.finish_setting_aside()
        })();
        moved.map(|()| aside).map_err(|error| unwritable(self.path(), error))
    }

    /// Moves the log aside as `set_aside` does. Removes the oldest logs that were moved aside, so that `kept` remain.
    ///
    /// # Errors
    /// [`Fatal::DataDir`] if the directory cannot be written.
    pub fn rotate_aside(&self, kept: usize) -> Result<PathBuf, Fatal> {
        let aside: Vec<PathBuf> = self.set_aside_paths().take_while(|path| path.exists()).collect();
        let removed = aside.len().saturating_sub(kept - 1);
        let rotated = (|| {
            aside[..removed].iter().try_for_each(fs::remove_dir_all)?;
            // The oldest one has the lowest number.
            aside[removed..].iter().zip(&aside).try_for_each(|(from, to)| fs::rename(from, to))?;
            sync_dir(self.path())
        })();
        rotated.map_err(|error| unwritable(self.path(), error))?;
        self.set_aside()
    }

    fn set_aside_paths(&self) -> impl Iterator<Item = PathBuf> {
        (1..).map(|number| self.path().join(format!("set-aside-{number}")))
    }

    /// Moves the log to the directory that has its control file already. This completes a move that a process did not
    /// finish.
    pub(crate) fn finish_setting_aside(&self) -> io::Result<()> {
        let half_done = self.set_aside_paths().take_while(|path| path.exists()).find(|path| !path.join(LOGS).exists());
        if let Some(aside) = half_done.filter(|_| !self.path().join(CONTROL).exists()) {
            fs::rename(self.logs(), aside.join(LOGS))?;
            sync_dir(&aside)?;
            create_durably(&self.logs())?;
            sync_dir(self.path())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_logs_stay_aside() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(temporary.path()).unwrap();
        let named = |path: &PathBuf| fs::read_dir(path.join(LOGS)).unwrap().next().unwrap().unwrap().file_name();
        for number in 1..=5 {
            fs::write(dir.logs().join(number.to_string()), b"").unwrap();
            let aside = dir.rotate_aside(3).unwrap();
            assert_eq!(named(&aside).into_string().unwrap(), number.to_string());
        }
        let kept: Vec<_> = dir.set_aside_paths().take_while(|path| path.exists()).map(|path| named(&path)).collect();
        assert_eq!(kept, ["3", "4", "5"]);
    }
}
