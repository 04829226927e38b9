//! A temporary mount point for the disk of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty directory to mount a disk on. Dropping it unmounts the disk and removes the directory.
pub struct Mountpoint(PathBuf);

impl Mountpoint {
    pub fn new() -> Mountpoint {
        Mountpoint(tempfile::tempdir().expect("a temporary directory can be created").keep())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // Unmount lazily, because the kernel may still be closing the files of a server that has just exited.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        // Remove only the empty directory: if the disk is still mounted, the contents are the disk's files.
        let _ = fs::remove_dir(&self.0);
    }
}
