//! A disk that loses power: ext4 on a loop device, shut down by the kernel without another write.
//!
//! What the kernel had not written is lost, as in a power cut; what a real disk keeps in a cache of its own is not.

use crate::harness::{skipped, wait_until};
use crate::mountpoint::Mountpoint;
use std::path::PathBuf;
use std::process::Command;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`, of Linux's ext4.h: not even the journal is flushed.
const CUT: &str = "open(F, '<', shift) or die; ioctl(F, 0x8004587d, my $now = pack('L', 2)) or die $!";

pub struct Disk {
    image: tempfile::NamedTempFile,
    dir: Mountpoint,
}

impl Disk {
    /// `None`, said aloud, where nothing may be mounted.
    pub fn mount() -> Option<Disk> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(256 << 20).unwrap();
        let disk = Disk { image, dir: Mountpoint::new() };
        let mounted = run("mkfs.ext4", |make| make.arg("-q").arg(disk.image.path())).and_then(|()| disk.try_mount());
        match mounted {
            Ok(()) => Some(disk),
            Err(error) => {
                skipped("power cuts", error);
                None
            }
        }
    }

    fn try_mount(&self) -> Result<(), String> {
        run("mount", |mount| mount.args(["-o", "loop"]).arg(self.image.path()).arg(self.dir.path()))
    }

    pub fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        data
    }

    pub fn cut_power(&self) {
        run("perl", |perl| perl.args(["-e", CUT]).arg(self.dir.path())).unwrap();
    }

    /// The journal is replayed, and whatever is missing is missing.
    pub fn power_on(&self) {
        // The kernel may still be closing the files of the server that has just ended.
        wait_until("it can be unmounted", || run("umount", |umount| umount.arg(self.dir.path())).is_ok());
        self.try_mount().unwrap();
    }
}

fn run(program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<(), String> {
    let mut command = Command::new(program);
    // Where Debian keeps it, whoever runs the tests.
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = arguments(&mut command).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {text}")) }
}
