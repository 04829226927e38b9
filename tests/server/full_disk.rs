//! Tests on disks of many sizes that another process fills up: every hold can be bought, nothing is lost, and selling
//! resumes when there is space.

use crate::harness::{Client, LONG_SALE, Server, how_many, skipped};
use crate::mountpoint::Mountpoint;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

/// A small tmpfs. It supports `O_DIRECT`, and can be filled to the exact page.
struct Disk {
    dir: Mountpoint,
}

impl Disk {
    /// Mounts a disk. Returns `None`, and prints that the test is skipped, if this user may not mount.
    fn mount(bytes: u64) -> Option<Disk> {
        let dir = Mountpoint::new();
        let options = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(Disk { dir }),
            Ok(output) => {
                skipped("full disk", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                skipped("full disk", error);
                None
            }
        }
    }

    fn grow(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        let grown = Command::new("mount").args(["-o", &options]).arg(self.dir.path()).status().unwrap();
        assert!(grown.success());
    }

    fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        data
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    /// Takes all free space, to the last page, as another process would.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while file.write_all(&[1; PAGE as usize]).is_ok() {}
    }

    /// Frees the space that `fill` took.
    fn clean(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

/// Reserves items from `first` on until the log is full. Returns the codes.
fn reserve_all(client: &mut Client, first: u32) -> Vec<String> {
    let mut codes = Vec::new();
    for item in first.. {
        let response = client.checkout(1, item);
        match response.outcome().as_str() {
            "200" => codes.push(response.body),
            "log-full" => {
                assert!(response.asks_to_retry(), "{response:?}");
                return codes;
            }
            other => panic!("{other}"),
        }
    }
    codes
}

fn spawn(dir: &Path) -> Server {
    let arguments = ["--reservation-ttl", "1h", "--user-limit", "100000", "--items", "100000", "--shards", "1"];
    Server::spawn(dir, &[&LONG_SALE[..], &arguments, &["--log-budget", "16MiB"]].concat())
}

fn start(dir: &Path) -> Server {
    let server = spawn(dir);
    server.wait_for_line("serving");
    server
}

/// Waits until the server reserves items again.
fn sells_again(client: &mut Client, item: u32) {
    let end = Instant::now() + Duration::from_secs(20);
    while client.checkout(2, item).status != 200 {
        assert!(Instant::now() < end, "selling does not resume when there is space");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Fills a disk of this size, and checks that every hold can be bought: on the full disk, after kill -9, and when there
/// is space again.
fn live_through(bytes: u64) -> Option<()> {
    let disk = Disk::mount(bytes)?;
    let server = start(&disk.data());
    let mut client = server.connect();
    let early = client.reserve(1, 0);
    disk.fill();
    let mut held = reserve_all(&mut client, 1);
    server.wait_for_line("the log is full");
    held.push(early);
    let (now, later) = held.split_at(held.len() / 2);
    now.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    server.kill();

    // No page is free, but the space reserved for the holds is still there.
    disk.fill();
    let server = start(&disk.data());
    let mut client = server.connect();
    assert_eq!(client.sale()["sold"], now.len());
    now.iter().for_each(|code| assert_eq!(client.purchase(code).problem(), "code-used"));
    let (now, later) = later.split_at(later.len() / 2);
    now.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    disk.clean();
    sells_again(&mut client, held.len() as u32);
    later.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    assert_eq!(client.sale()["sold"], held.len());
    assert!(server.terminate().success());
    Some(())
}

#[test]
fn a_full_disk_keeps_every_promise() {
    let levels = u64::from(how_many("STAMPEDE_DISK_LEVELS", 24));
    // The sizes range from space for almost no sale to space for several segments.
    for pages in (0..levels).map(|level| 80 + level * 1000 / levels) {
        println!("{pages} pages");
        if live_through(pages * PAGE).is_none() {
            return;
        }
    }
}

/// The server logs one line when the disk becomes full and one when there is space again, however often it checks.
#[test]
fn a_full_disk_is_announced_once() {
    let Some(disk) = Disk::mount(800 * PAGE) else { return };
    let server = start(&disk.data());
    disk.fill();
    let mut held = reserve_all(&mut server.connect(), 0);
    server.wait_for_line("the log is full");
    // A segment that was incomplete when the disk filled up has been removed, which has freed space: fill it again.
    disk.fill();
    held.extend(reserve_all(&mut server.connect(), held.len() as u32));
    let times = server.times_said("the log is full");
    thread::sleep(Duration::from_millis(1_600));
    assert_eq!(server.times_said("the log is full"), times);
    disk.clean();
    server.wait_for_line("the log has space again");
    assert_eq!(server.connect().checkout(2, held.len() as u32).status, 200);
    assert!(server.terminate().success());
}

/// If not even the first segments fit, the server logs it, and begins to sell when there is space.
#[test]
fn a_disk_that_is_too_small_is_named() {
    for pages in [2, 4, 8, 12, 16] {
        let Some(disk) = Disk::mount(pages * PAGE) else { return };
        let server = spawn(&disk.data());
        let mut client = server.connect();
        let warning = server.wait_for_line("the log is full");
        let text = warning["message"].as_str().unwrap();
        assert!(text.contains("--log-budget") && text.contains("free disk"), "{text}");
        let refused = client.checkout(1, 0);
        assert!(["not-ready", "log-full"].contains(&refused.problem().as_str()), "{pages}: {refused:?}");
        disk.grow(4 << 20);
        server.wait_for_line("serving");
        sells_again(&mut client, 0);
        assert!(server.terminate().success());
    }
    let Some(disk) = Disk::mount(PAGE) else { return };
    let (code, reason) = spawn(&disk.data()).last_words();
    let parts = ["No space left", "free disk space", "--data-dir"];
    assert!(code == 4 && parts.iter().all(|part| reason.contains(part)), "{code}: {reason}");
}
