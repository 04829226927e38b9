//! A disk that loses power: ext4 on a loop device, shut down by the kernel without another write.
//!
//! Data that the kernel has not written is lost, as in a power failure. Data in a real disk's own cache would be lost
//! as well; this test does not cover that.

use crate::harness::{skipped, wait_until};
use crate::mountpoint::Mountpoint;
use std::path::PathBuf;
use std::process::Command;

/// Perl program that issues `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (Linux, `ext4.h`). The kernel then
/// does not even flush the journal.
const CUT: &str = "open(F, '<', shift) or die; ioctl(F, 0x8004587d, my $now = pack('L', 2)) or die $!";

/// An ext4 file system on a loop device.
pub struct Disk {
    image: tempfile::NamedTempFile,
    dir: Mountpoint,
}

impl Disk {
    /// Mounts a new disk. Reports a skipped test and returns `None` where mounting is not possible.
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

    /// Mounts the disk again. The kernel replays the journal; unwritten data stays lost.
    pub fn power_on(&self) {
        // The kernel may still be closing the files of the server that has just exited.
        wait_until("the disk can be unmounted", || run("umount", |umount| umount.arg(self.dir.path())).is_ok());
        self.try_mount().unwrap();
    }
}

fn run(program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<(), String> {
    let mut command = Command::new(program);
    // Debian keeps these programs in sbin, which is not in the PATH of every user.
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = arguments(&mut command).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {text}")) }
}
