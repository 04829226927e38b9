//! Tests in which the wall clock jumps, both while the server runs and while it is down. libfaketime replaces the
//! server's wall clock. The monotonic clock does not jump, as on a real machine.

use crate::cluster::Cluster;
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

    /// Returns the id of the sale at the server's wall clock.
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
        self.start_in("data", &["--reservation-ttl", ttl])
    }

    /// Starts a server whose data directory has this name.
    fn start_in(&self, data: &str, arguments: &[&str]) -> Server {
        let data = self.dir.path().join(data);
        fs::create_dir_all(&data).unwrap();
        let period = format!("{}s", self.period_s);
        let mut command = stampede(&data, &["--sale-period", &period, "--shards", "2"]);
        command.args(arguments);
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

const STEPPED: &str = "the system clock has stepped";
const RETURNED: &str = "the system clock has returned";
const FOLLOWED: &str = "the step of the system clock has lasted";

/// A jump while the server runs opens no sale. After a restart, the server trusts the clock.
#[test]
fn a_sale_opens_once_whatever_the_clock_does() {
    let Some(mut clock) = Clockwork::new(HOUR) else { return };
    let mut server = clock.start("1h");
    let mut client = server.connect();
    let mut sale = clock.sale();
    let mut trusted = 0;
    let mut sold = BTreeSet::new();
    let mut held: Option<(i64, i64, String)> = None;
    assert_eq!(sale_id(&mut client), sale, "libfaketime has no effect on the server");
    for turn in 0..how_many("STAMPEDE_CLOCK_JUMPS", 16) {
        let jump = [0, HOUR, -HOUR, 0, 2 * HOUR, -9 * DAY, 2 * HOUR, 2 * HOUR + 1, DAY, -400 * DAY][turn as usize % 10];
        // Later rounds jump further.
        clock.jump_to(jump + i64::from(turn / 10) * 3 * DAY);
        if (clock.jumped_s - trusted).abs() > 1 {
            let line = server.wait_for_line(STEPPED);
            assert_ne!(line["server"], line["system"]);
        }
        assert_eq!(sale_id(&mut client), sale, "turn {turn}: a step was followed at once");
        if turn % 3 > 0 {
            server.kill();
            server = clock.start("1h");
            client = server.connect();
            trusted = clock.jumped_s;
            let before = sale;
            sale = sale.max(clock.sale());
            assert_eq!(sale_id(&mut client), sale, "turn {turn}, after sale {before}");
        } else if clock.jumped_s != trusted {
            clock.jump_to(trusted);
            server.wait_for_line(RETURNED);
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
        if let Some((of, granted, code)) = held.take() {
            // Only a restart computes the end of a hold from the clock. A sale is remembered for an hour after its end.
            let expected = match of {
                _ if trusted - granted < HOUR => "200",
                of if of == sale || clock.now_s() < (of + 2) * HOUR => "code-expired",
                _ => "sale-ended",
            };
            assert_eq!(client.purchase(&code).outcome(), expected, "turn {turn}");
        }
        held = Some((sale, trusted, client.reserve(2, 100 + turn)));
    }
    assert!(server.terminate().success());
}

#[test]
fn a_step_is_followed_when_it_has_lasted() {
    let Some(mut clock) = Clockwork::new(HOUR) else { return };
    let mut server = clock.start("1h");
    let mut client = server.connect();
    let (sale, date) = (clock.sale(), client.sale()["starts_at"].clone());
    let code = client.reserve(1, 1);
    // A day ahead for one check, which comes once a second.
    clock.jump_to(DAY);
    thread::sleep(Duration::from_millis(1300));
    clock.jump_to(0);
    server.wait_for_line(STEPPED);
    server.wait_for_line(RETURNED);
    assert_eq!((sale_id(&mut client), &client.sale()["starts_at"]), (sale, &date));
    assert_eq!(client.purchase(&code).status, 200);

    clock.jump_to(DAY);
    server.wait_for_line(STEPPED);
    let begin = Instant::now();
    thread::sleep(Duration::from_secs(15));
    // The new process neither trusts the clock nor starts the time of the step again.
    server.upgrade();
    let mut client = server.connect();
    assert_eq!(sale_id(&mut client), sale);
    assert_eq!(server.times_said("the sale has ended"), 0);
    let line = server.wait_for_line(FOLLOWED);
    let lasted = begin.elapsed();
    assert!((28..38).contains(&lasted.as_secs()), "the step was followed after {lasted:?}");
    wait_until("the sale at the system clock opens", || sale_id(&mut client) == sale + 24);
    assert!(line["from"].as_str() < line["to"].as_str(), "{line}");
    assert_eq!(client.checkout(1, 1).status, 200, "the new sale has the item");
    assert!(server.terminate().success());
}

/// One server's clock steps ahead, the other one's back, and both servers follow before the holds expire.
#[test]
fn no_hold_is_shortened_or_extended() {
    let hold_outlives = |jump| {
        let Some(mut clock) = Clockwork::new(365 * DAY) else { return };
        let server = clock.start("39s");
        let mut client = server.connect();
        let begin = Instant::now();
        let code = client.reserve(1, 1);
        clock.jump_to(jump);
        server.wait_for_line(FOLLOWED);
        assert!(begin.elapsed() < Duration::from_secs(39), "the machine is too slow for this test");
        assert_eq!(client.checkout(2, 1).problem(), "item-reserved", "{jump}");
        let kept = client.reserve(3, 2);
        wait_until("the hold expires", || client.checkout(2, 1).status == 200);
        assert!((39..43).contains(&begin.elapsed().as_secs()), "{:?}, {jump}", begin.elapsed());
        assert_eq!(client.purchase(&code).problem(), "code-unknown", "another user holds the item");
        assert_eq!(client.purchase(&kept).status, 200);
        assert!(server.terminate().success());
    };
    thread::scope(|scope| {
        scope.spawn(|| hold_outlives(40 * DAY));
        scope.spawn(|| hold_outlives(-40 * DAY));
    });
}

/// The procedure of docs/operations.md, "A sale that opened too early".
#[test]
fn a_sale_that_opened_too_early_is_set_aside_and_continued() {
    let Some(mut clock) = Clockwork::new(HOUR) else { return };
    let cluster = Cluster::start();
    cluster.ask("create database interim");
    let first = ["--database-url", &cluster.url()];
    let interim = ["--database-url", &cluster.url().replace("dbname=postgres", "dbname=interim")];
    let buy = |server: &Server, item| {
        let mut client = server.connect();
        let outcome = client.checkout(1, item);
        if outcome.status == 200 { client.purchase(&outcome.body) } else { outcome }.outcome()
    };
    let sale = clock.sale();
    let server = clock.start_in("first", &first);
    assert_eq!(buy(&server, 1), "200");
    assert!(server.terminate().success());

    // The clock is wrong at the start. When it is right again, the server stays in the sale that it has opened.
    clock.jump_to(DAY);
    let server = clock.start_in("first", &first);
    assert_eq!(buy(&server, 2), "200");
    assert!(server.terminate().success());
    clock.jump_to(0);
    let server = clock.start_in("first", &first);
    assert_eq!(sale_id(&mut server.connect()), sale + 24);
    assert!(server.terminate().success());

    // From the next sale on, another data directory and another database.
    clock.jump_to(HOUR);
    let server = clock.start_in("interim", &interim);
    assert_eq!(sale_id(&mut server.connect()), sale + 1);
    assert_eq!([buy(&server, 1), buy(&server, 2)], ["200", "200"]);
    assert!(server.terminate().success());

    // At the time of the sale that opened too early, the first ones again.
    clock.jump_to(DAY);
    let server = clock.start_in("first", &first);
    assert_eq!(sale_id(&mut server.connect()), sale + 24);
    assert_eq!([buy(&server, 1), buy(&server, 2)], ["200", "item-sold"]);
    assert!(server.terminate().success());
    let sold =
        |url: &str| crate::cluster::psql(url, "select sale_id || '/' || item_id from purchases order by 1").unwrap();
    assert_eq!(sold(first[1]), format!("{sale}/1\n{}/1\n{}/2", sale + 24, sale + 24));
    assert_eq!(sold(interim[1]), format!("{}/1\n{}/2", sale + 1, sale + 1));
}
