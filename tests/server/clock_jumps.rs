//! Tests in which the wall clock jumps, both while the server runs and while it is down. libfaketime replaces the
//! server's wall clock. The monotonic clock does not jump, as on a real machine.

use crate::harness::{Client, Server, how_many, skipped, stampede, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Returns the path of Debian's libfaketime, if it is installed.
fn library() -> Option<PathBuf> {
    let platforms = fs::read_dir("/usr/lib").ok()?.flatten();
    platforms.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// The wall clock of a server, and the server's data directory.
struct Clockwork {
    library: PathBuf,
    dir: tempfile::TempDir,
    period_s: i64,
    /// Offset from the real time to the middle of a sale, in seconds, so that no sale ends without a jump.
    base_s: i64,
    jumped_s: i64,
}

impl Clockwork {
    /// Returns `None`, and prints that the test is skipped, if libfaketime is not installed.
    fn new(period_s: i64) -> Option<Clockwork> {
        let Some(library) = library() else {
            skipped("clock jumps", "libfaketime is not installed");
            return None;
        };
        let mut clock = Clockwork { library, dir: tempfile::tempdir().unwrap(), period_s, base_s: 0, jumped_s: 0 };
        clock.base_s = period_s / 2 - clock.now_s() % period_s;
        clock.jump_to(0);
        Some(clock)
    }

    /// Returns the server's wall clock, in seconds since 1970.
    fn now_s(&self) -> i64 {
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        real as i64 + self.base_s + self.jumped_s
    }

    /// Returns the id of the sale at the server's time.
    fn sale(&self) -> i64 {
        self.now_s() / self.period_s
    }

    fn jump_to(&mut self, seconds: i64) {
        self.jumped_s = seconds;
        let (file, new) = (self.dir.path().join("offset"), self.dir.path().join("offset.new"));
        // A rename is atomic, so that the server never reads half a number.
        fs::write(&new, format!("{:+}", self.base_s + seconds)).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn start(&self, ttl: &str) -> Server {
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        let period = format!("{}s", self.period_s);
        let mut command = stampede(&data, &["--sale-period", &period, "--shards", "2", "--reservation-ttl", ttl]);
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", self.dir.path().join("offset"));
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        let server = Server::run(&mut command);
        server.wait_for_line("serving");
        server
    }
}

fn sale_id(client: &mut Client) -> i64 {
    client.sale()["sale_id"].as_i64().unwrap()
}

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

#[test]
fn a_sale_opens_once_whatever_the_clock_does() {
    let Some(mut clock) = Clockwork::new(HOUR) else { return };
    let mut server = clock.start("1h");
    let mut client = server.connect();
    let mut sale = clock.sale();
    let mut sold = BTreeSet::new();
    let mut held: Option<(i64, String)> = None;
    assert_eq!(sale_id(&mut client), sale, "libfaketime has no effect on the server");
    for turn in 0..how_many("STAMPEDE_CLOCK_JUMPS", 16) {
        let jump = [0, HOUR, -HOUR, 0, 2 * HOUR, -9 * DAY, 2 * HOUR, 2 * HOUR + 1, DAY, -400 * DAY][turn as usize % 10];
        // Later rounds jump further.
        clock.jump_to(jump + i64::from(turn / 10) * 3 * DAY);
        if turn % 3 == 2 {
            server.kill();
            server = clock.start("1h");
            client = server.connect();
        }
        let before = sale;
        sale = sale.max(clock.sale());
        wait_until("the sale at the server's time is current", || sale_id(&mut client) == sale);
        if sale == before {
            // The sale must not change later either.
            thread::sleep(Duration::from_millis(1200));
            assert_eq!(sale_id(&mut client), sale, "turn {turn}");
        }
        for item in [1, turn % 4 + 2] {
            let outcome = client.checkout(1, item);
            if sold.contains(&(sale, item)) {
                assert_eq!(outcome.problem(), "item-sold", "turn {turn}");
            } else {
                assert_eq!(client.purchase(&outcome.body).status, 200, "turn {turn}: {outcome:?}");
                sold.insert((sale, item));
            }
        }
        if let Some((of, code)) = held.take() {
            let expected = if of == sale { "200" } else { "sale-ended" };
            assert_eq!(client.purchase(&code).outcome(), expected, "turn {turn}");
        }
        held = Some((sale, client.reserve(2, 100 + turn)));
    }
    assert!(server.terminate().success());
}

#[test]
fn no_hold_is_shortened_or_extended() {
    let Some(mut clock) = Clockwork::new(365 * DAY) else { return };
    let server = clock.start("1h");
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    for jump in [2 * HOUR, 40 * DAY, -40 * DAY] {
        clock.jump_to(jump);
        thread::sleep(Duration::from_millis(1200));
        assert_eq!(client.checkout(2, 1).problem(), "item-reserved", "{jump}");
    }
    assert_eq!(client.purchase(&code).status, 200);
    assert!(server.terminate().success());

    let server = clock.start("2s");
    let mut client = server.connect();
    for (item, jump) in (2..).zip([40 * DAY, -40 * DAY, 2 * HOUR, 0]) {
        let begin = Instant::now();
        let code = client.reserve(1, item);
        clock.jump_to(jump);
        wait_until("the hold expires", || client.checkout(2, item).status == 200);
        assert!(begin.elapsed() >= Duration::from_secs(2), "the hold was shortened by {jump}");
        assert_eq!(client.purchase(&code).problem(), "code-unknown", "another user holds the item");
    }
    assert!(server.terminate().success());
}
