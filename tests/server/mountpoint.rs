//! Where a test mounts a disk of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty directory. Whatever was mounted on it is gone with it.
pub struct Mountpoint(PathBuf);

impl Mountpoint {
    pub fn new() -> Mountpoint {
        Mountpoint(tempfile::tempdir().expect("there is a place for temporary files").keep())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // Lazily: the kernel may still be closing the files of a server that has just ended.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        // Never what is in it: that would be the disk's, if it were still mounted.
        let _ = fs::remove_dir(&self.0);
    }
}
