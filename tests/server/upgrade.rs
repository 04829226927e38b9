//! Upgrades under load: a new process takes over from the old one, and clients notice nothing. If either process is
//! killed during the upgrade, no promise is lost.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, how_many, stampede, wait_until};
use crate::load::{Promise, Promises, buy, check_books, check_survivors, crowd};
use rustix::process::{Pid, Signal, kill_process};
use stampede::upgrade::protocol::{FromNew, FromOld, Offer, PROTOCOL, UpgradeSocket};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BUYERS: u32 = 6;
/// Stock and limits that no test exhausts.
const STOCK: [&str; 6] = ["--items", "1000000", "--user-limit", "1000000", "--reservation-ttl", "1h"];

/// Results of a crowd of buyers during an upgrade.
struct Shopped {
    promises: Vec<Promise>,
    outcomes: BTreeSet<String>,
    /// Longest wait for a response.
    longest: Duration,
    /// Number of clients that lost their connection.
    lost: u32,
}

impl Shopped {
    /// Checks that no client noticed the upgrade, and that `server` keeps every promise.
    fn without_notice(mut self, server: &Server) {
        assert_eq!((self.lost, self.outcomes), (0, BTreeSet::from(["200".to_owned()])));
        check_survivors(server, &mut self.promises, 0, 0);
        check_books(&self.promises, usize::MAX);
    }
}

/// Stops the crowd when dropped, even if the test panics.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs buyers, each on one connection from start to end, and newcomers, with a new connection for each request, until
/// `happens` has returned. The buyers do not purchase every fourth hold.
fn shop(address: SocketAddr, happens: impl FnOnce()) -> Shopped {
    let (promises, outcomes) = (Promises::default(), Mutex::new(BTreeSet::new()));
    let (longest, lost) = (Mutex::new(Duration::ZERO), Mutex::new(0));
    let is_over = AtomicBool::new(false);
    // No item is requested twice, even across calls.
    static NEXT_ITEM: AtomicU32 = AtomicU32::new(0);
    let timed = |work: &mut dyn FnMut() -> std::io::Result<String>| {
        let began = Instant::now();
        let outcome = work()?;
        let mut longest = longest.lock().unwrap();
        *longest = longest.max(began.elapsed());
        outcomes.lock().unwrap().insert(outcome);
        Ok::<(), std::io::Error>(())
    };
    let buyer = |number: u32| -> std::io::Result<()> {
        let mut client = Client::connect(address)?;
        while !is_over.load(Ordering::Relaxed) {
            // Leave CPU time for the new process, which prepares at a low priority.
            thread::sleep(Duration::from_millis(1));
            let item = NEXT_ITEM.fetch_add(1, Ordering::Relaxed);
            if item.is_multiple_of(4) {
                timed(&mut || {
                    let reserved = client.try_checkout(number.into(), item)?;
                    let promise = Promise {
                        user: number.into(),
                        item,
                        code: reserved.body.clone(),
                        bought: false,
                        unknown: false,
                    };
                    promises.add(promise);
                    Ok(reserved.outcome())
                })?;
            } else {
                timed(&mut || buy(&mut client, number.into(), item, &promises))?;
            }
        }
        Ok(())
    };
    let newcomer = || -> std::io::Result<()> {
        while !is_over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
            timed(&mut || Ok(Client::connect(address)?.try_request("GET /sale", "")?.outcome()))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let everybody = || {
            crowd(BUYERS + 2, |number| {
                let shopped = if number < BUYERS { buyer(number) } else { newcomer() };
                *lost.lock().unwrap() += u32::from(shopped.is_err());
            });
        };
        let shopping = scope.spawn(everybody);
        let over = Over(&is_over);
        thread::sleep(Duration::from_millis(50));
        happens();
        thread::sleep(Duration::from_millis(50));
        drop(over);
        shopping.join().unwrap();
    });
    Shopped {
        promises: promises.take(),
        outcomes: outcomes.into_inner().unwrap(),
        longest: longest.into_inner().unwrap(),
        lost: lost.into_inner().unwrap(),
    }
}

fn start(dir: &Path, arguments: &[&str]) -> Server {
    Server::start(dir, &[&LONG_SALE[..], &STOCK, arguments].concat())
}

#[test]
fn nobody_notices_upgrades() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--shards", "2"]);
    let mut idle = server.connect();
    idle.reserve(77, 999_999);
    let upgrades = how_many("STAMPEDE_UPGRADES", 20);
    let address = server.address;
    let shopped = shop(address, || (0..upgrades).for_each(|_| server.upgrade()));
    assert!(shopped.promises.len() as u32 > 20 * upgrades, "{} purchases are too few", shopped.promises.len());
    println!("the longest wait in {upgrades} upgrades: {:?}", shopped.longest);
    shopped.without_notice(&server);
    // The connection from before the first upgrade still works.
    assert_eq!(idle.checkout(78, 999_999).problem(), "item-reserved");
    assert!(server.terminate().success());
    assert!(Client::connect(address).is_err(), "no process listens on the port");
}

/// Upgrades follow each other, no matter how many records of the previous run are in Postgres.
#[test]
fn nobody_notices_upgrades_beside_postgres() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--database-url", &cluster.url()]);
    let upgrades = how_many("STAMPEDE_UPGRADES", 20) / 2;
    let shopped = shop(server.address, || (0..upgrades).for_each(|_| server.upgrade()));
    shopped.without_notice(&server);
    // An immediate shutdown also sends every record to Postgres: the harness compares every row with the log.
    server.upgrade();
    assert!(server.terminate().success());
}

#[test]
fn what_gets_stuck_leaves_the_server_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &LONG_SALE);
    let (mut idle, mut asking) = (server.connect(), server.connect());
    let code = idle.reserve(1, 1);
    server.signal(Signal::USR2);
    let new = server.wait_for_line("upgrading")["pid"].as_i64().unwrap() as i32;
    // Stop the new process in the middle of the takeover, so that the old process receives no more messages from it.
    server.wait_for_line("pausing");
    kill_process(Pid::from_raw(new).unwrap(), Signal::STOP).unwrap();
    asking.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let said = server.wait_for_one_of(&["the upgrade was aborted", "handed over"]);
    if said["message"].as_str().unwrap().starts_with("handed over") {
        // The takeover was complete before the new process stopped.
        kill_process(Pid::from_raw(new).unwrap(), Signal::CONT).unwrap();
        server.is_replaced_by(new);
        return server.kill();
    }
    assert_eq!((&said["why"], &said["ended"]), (&"a step took too long".into(), &"it was still running".into()));
    assert_eq!(asking.read().unwrap().status, 200);
    assert_eq!(idle.purchase(&code).status, 200);
    assert!(server.terminate().success());
}

#[test]
fn nobody_notices_upgrades_with_postgres_awaited() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &["--ack", "postgres", "--database-url", &cluster.url()]);
    let shopped = shop(server.address, || {
        (0..how_many("STAMPEDE_UPGRADES", 20) / 4).for_each(|_| {
            wait_until("the database is connected", || {
                server.connect().request("GET /readyz").json()["postgres"]["connected"] == true
            });
            server.upgrade();
        })
    });
    shopped.without_notice(&server);
    // After this, the harness compares every row with the log.
    assert!(server.terminate().success());
}

/// Log messages at the start of each phase of an upgrade in which a process is killed.
const PHASES: [&str; 5] = ["starting", "prepared", "pausing", "taking over", "recovered"];

#[test]
fn whichever_process_is_killed_somebody_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // A restarted server listens on the same address.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = || start(dir.path(), &["--shards", "2", "--listen", &address]);
    let mut server = start();
    let (mut all, mut random) = (Vec::new(), 1u64);
    let mut goings_on = [0; 3];
    for round in 0..how_many("STAMPEDE_UPGRADE_KILLS", 20) as usize {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (phase, kills_new, delay) = (PHASES[round / 2 % PHASES.len()], round % 2 == 0, (random >> 33) % 3000);
        let mut died = false;
        let shopped = shop(server.address, || {
            // Forget the lines of earlier upgrades, because both processes log the end of an upgrade, in any order.
            server.forget_lines();
            server.signal(Signal::USR2);
            let new = server.wait_for_line("upgrading")["pid"].as_i64().unwrap() as i32;
            server.wait_for_line(phase);
            thread::sleep(Duration::from_micros(delay));
            let first_to_remove = if kills_new { Pid::from_raw(new).unwrap() } else { server.pid() };
            // The victim may have exited already, as the old process does in the end.
            let _ = kill_process(first_to_remove, Signal::KILL);
            let goes_on = server.wait_for_one_of(&["the upgrade was aborted", "handed over", "serving"]);
            let way = match goes_on["message"].as_str().unwrap() {
                text if text.starts_with("the upgrade") => 0,
                _ if kills_new => {
                    // The new process was the server already, whichever process logged this first. The kill is an
                    // ordinary crash.
                    server.is_replaced_by(new);
                    died = true;
                    1
                }
                text => {
                    if !text.starts_with("serving") {
                        server.wait_for_line("serving");
                    }
                    server.is_replaced_by(new);
                    2
                }
            };
            goings_on[way] += 1;
        });
        let only_good = BTreeSet::from(["200".to_owned()]);
        assert!(shopped.outcomes.is_subset(&only_good), "{phase}: {:?}", shopped.outcomes);
        let begins_anew = server.times_said("the old process ended") > 0;
        assert!(
            shopped.lost == 0 || died || begins_anew,
            "{phase}: {} clients lost their connections to a running process",
            shopped.lost
        );
        if died {
            server.kill();
            server = start();
        }
        let last = all.len();
        all.extend(shopped.promises);
        check_survivors(&server, &mut all, last, round as u32);
    }
    check_books(&all, usize::MAX);
    println!("called off, died as the server, went on in the place of a killed one: {goings_on:?}");
    assert!(goings_on[0] > 0 && goings_on[2] > 0, "{goings_on:?}");
}

/// An upgrade runs the binary that is now at the path of the running one: a later version, and then the earlier one
/// again.
#[test]
fn versions_follow_each_other_up_and_down() {
    let dir = tempfile::tempdir().unwrap();
    let installed = dir.path().join("stampede");
    let original = fs::read(env!("CARGO_BIN_EXE_stampede")).unwrap();
    let (own, later) =
        (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_VERSION").replace(|c: char| c.is_ascii_digit(), "9"));
    let mut other = original.clone();
    let places: Vec<_> = memchr::memmem::find_iter(&original, own).collect();
    places.iter().for_each(|place| other[*place..place + own.len()].copy_from_slice(later.as_bytes()));
    // Like a package manager, write the binary under another name and rename it, so that the running process keeps its
    // file.
    let install = |binary: &[u8]| {
        let new = dir.path().join("stampede.new");
        fs::write(&new, binary).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &installed).unwrap();
    };
    install(&original);
    let usual = stampede(dir.path(), &[&LONG_SALE[..], &["--reservation-ttl", "1h"]].concat());
    let mut command = Command::new(&installed);
    command.args(usual.get_args()).env_clear().current_dir(dir.path()).stderr(Stdio::piped());
    let mut server = Server::run(&mut command);
    server.wait_for_line("serving");
    let mut client = server.connect();
    let mut codes = Vec::new();
    for (item, (binary, version)) in
        [(&other, later.as_str()), (&original, own), (&other, &later)].into_iter().enumerate()
    {
        codes.push(client.reserve(1, item as u32));
        install(binary);
        server.upgrade();
        assert_eq!(client.request("GET /livez").json()["version"], version);
    }
    codes.iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    assert!(server.terminate().success());
}

/// The new process reads the settings that are not flags again.
#[test]
fn shards_and_limits_change_with_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |shards: u32| fs::write(dir.path().join(".env"), format!("SHARDS={shards}\nUSER_LIMIT={shards}\n"));
    settings(2).unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--reservation-ttl", "1h"]].concat());
    let mut clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
    let mut item = 0;
    let mut codes = Vec::new();
    for shards in [3, 1, 2, 4, 2] {
        settings(shards).unwrap();
        for (user, client) in clients.iter_mut().enumerate() {
            item += 1;
            codes.push((user, client.checkout(user as i64, item)));
        }
        server.upgrade();
        let health = clients[0].request("GET /health").json();
        assert_eq!(health["shards"].as_array().unwrap().len(), shards as usize, "{health}");
        // The server still accepts on every listening socket that it has ever opened.
        (0..20).for_each(|_| assert_eq!(server.connect().request("GET /livez").status, 200));
    }
    // The user limit stays at two, its value at the start of the sale.
    for (place, (user, response)) in codes.into_iter().enumerate() {
        if place < 2 * clients.len() {
            assert_eq!(clients[user].purchase(&response.body).status, 200);
        } else {
            assert_eq!(response.problem(), "user-limit");
        }
    }
    assert!(server.terminate().success());
}

#[test]
fn what_cannot_take_over_leaves_the_server_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let sale_period = format!("SALE_PERIOD={}\n", LONG_SALE[1]);
    fs::write(dir.path().join(".env"), &sale_period).unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    let mut upgrade = |settings: &str, status: &str| {
        fs::write(dir.path().join(".env"), settings).unwrap();
        server.signal(Signal::USR2);
        let called_off = server.wait_for_line("the upgrade was aborted");
        assert_eq!(called_off["ended"], status, "{called_off}");
        assert_eq!(client.request("GET /readyz").status, 200);
    };
    for (setting, status) in [
        ("ITEMS=0", "exit status: 2"),
        ("LOG_BUDGET=1MiB\nSHARDS=8", "exit status: 2"),
        ("MAX_CONNECTIONS=10000000", "exit status: 5"),
        ("DATABASE_URL=mysql://shop", "exit status: 2"),
    ] {
        upgrade(&format!("{sale_period}{setting}\n"), status);
    }
    // Sale IDs count periods, so the sale period cannot change.
    upgrade("SALE_PERIOD=1h\n", "exit status: 4");
    let why = server.wait_for_line("cannot use the data directory")["message"].to_string();
    assert!(why.contains("was created with a sale period of 8760h; start with --sale-period 8760h"), "{why}");
    // The new process cannot read the log: the first block of the stream with the hold is damaged.
    let log = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut purchases = log.filter(|path| path.display().to_string().contains("purchases"));
    // The server may still be removing the files of a process that has failed.
    let is_used =
        |path: &PathBuf| fs::read(path).is_ok_and(|file| file.get(4096..8192).is_some_and(|block| block[0] == b'S'));
    let file = File::options().write(true).open(purchases.find(is_used).unwrap()).unwrap();
    let flip = |byte: u8| file.write_all_at(&[byte], 0).unwrap();
    flip(b'X');
    upgrade(&sale_period, "exit status: 6");
    flip(b'S');
    assert_eq!(client.purchase(&code).status, 200);
    wait_until("the failed processes have left no streams", || {
        let left = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().file_name());
        left.map(|name| name.to_string_lossy().split('-').nth(1).unwrap().to_owned()).collect::<BTreeSet<_>>().len()
            == 1
    });
    assert!(server.terminate().success());
}

/// A new process. The test plays the old one.
struct Played {
    child: std::process::Child,
    line: UpgradeSocket,
}

fn play(dir: &Path, offer: impl FnOnce(Offer) -> Offer) -> Played {
    let (line, its_end) = UpgradeSocket::pair().unwrap();
    let mut command = stampede(dir, &LONG_SALE);
    command.env("STAMPEDE_TAKES_OVER_FROM", std::process::id().to_string()).stdin(Stdio::from(its_end.into_socket()));
    let child = command.spawn().unwrap();
    drop(command);
    let offer = offer(Offer {
        protocol: PROTOCOL,
        version: "99.0.0".into(),
        log_format: stampede::log::block::FORMAT_VERSION,
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        data_dir: dir.to_owned(),
        epoch: 2,
        settings: None,
        clock: None,
    });
    line.send(&FromOld::Offer(offer), &[]).unwrap();
    Played { child, line }
}

#[test]
fn what_a_version_cannot_go_on_with_it_refuses_before_anything_is_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    Server::start(dir.path(), &LONG_SALE).kill();
    let other_dir = dir.path().join("elsewhere");
    type Change<'a> = &'a dyn Fn(Offer) -> Offer;
    let refusals: [(Change<'_>, i32, &str); 5] = [
        (&|offer| Offer { log_format: 99, ..offer }, 2, "log format 99"),
        (&|offer| Offer { protocol: 99, ..offer }, 2, "protocol 99"),
        (&|offer| Offer { listen: ([127, 0, 0, 1], 9).into(), ..offer }, 2, "--listen is 127.0.0.1:9"),
        (&|offer| Offer { data_dir: other_dir.clone(), ..offer }, 2, "--data-dir is"),
        (&|offer| Offer { epoch: 7, ..offer }, 4, "the running server has reserved for this process"),
    ];
    for (change, code, text) in refusals {
        let played = play(dir.path(), change);
        assert!(played.line.receive::<FromNew>().unwrap().is_none(), "the new process exits without a message: {text}");
        let output = played.child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.contains(text)), (Some(code), true), "{said}");
    }
    // Standard input is not the socket of an upgrade.
    let output = stampede(dir.path(), &LONG_SALE).env("STAMPEDE_TAKES_OVER_FROM", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("unset it"));
}

/// Clients with partial requests or unread responses are served by the new process.
#[test]
fn clients_in_the_middle_of_something_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let request = "POST /checkout?user_id=1&item_id=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut cut: Vec<_> = (1..request.len()).step_by(7).map(|cut| (cut, server.connect())).collect();
    for (cut, client) in &mut cut {
        client.send(&request.as_bytes()[..*cut]).unwrap();
    }
    // A client that does not read its responses. Backpressure then stops the server from reading its requests.
    let mut stuck = server.connect();
    let page = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    stuck.send_until_stuck(page);
    // A client that shuts down its sending side in the middle of a head.
    let mut leaving = server.connect();
    leaving.send(b"GET /livez HTTP/1.1\r\nHo").unwrap();
    leaving.finish();
    for _ in 0..2 {
        server.upgrade();
    }
    for (cut, client) in &mut cut {
        client.send(&request.as_bytes()[*cut..]).unwrap();
        let outcome = client.read().unwrap().outcome();
        assert!(["200", "item-reserved"].contains(&outcome.as_str()), "cut at {cut}: {outcome}");
    }
    assert!(leaving.is_closed());
    // The responses, of which both processes have written a part, arrive complete and in order.
    for _ in 0..100 {
        assert_eq!(stuck.read().unwrap().status, 200);
    }
    server.kill();
}

/// A sale may end and the next one begin at any moment of an upgrade.
#[test]
fn the_hour_turns_during_upgrades() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &["--sale-period", "1s", "--items", "1000000", "--shards", "2"]);
    let is_over = AtomicBool::new(false);
    let address = server.address;
    thread::scope(|scope| {
        scope.spawn(|| {
            crowd(4, |number| {
                let mut client = Client::connect(address).unwrap();
                let mut last_sale = 0;
                for item in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(1));
                    let reserved = client
                        .try_request(
                            &format!("POST /checkout?user_id={item}&id={}", item * 4 + number),
                            "Accept: application/json\r\n",
                        )
                        .unwrap();
                    assert_eq!(reserved.status, 200, "{reserved:?}");
                    let sale = reserved.json()["sale_id"].as_u64().unwrap();
                    assert!(sale >= last_sale, "the sale ID decreased");
                    last_sale = sale;
                    let outcome = client.purchase(reserved.json()["code"].as_str().unwrap()).outcome();
                    assert!(["200", "sale-ended"].contains(&outcome.as_str()), "{outcome}");
                }
            });
        });
        let _over = Over(&is_over);
        (0..how_many("STAMPEDE_UPGRADES", 20) / 2).for_each(|_| server.upgrade());
    });
    assert!(server.terminate().success());
}

#[test]
fn an_upgrade_that_cannot_be_is_refused() {
    let mut cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let url = cluster.url();
    let arguments = [&LONG_SALE[..], &["--ack", "postgres", "--database-url", &url]].concat();
    let mut server = Server::start(dir.path(), &arguments);
    server.wait_for_line("the database is connected");
    cluster.kill();
    server.wait_for_line("the database is unavailable");
    server.signal(Signal::USR2);
    assert_eq!(
        server.wait_for_line("the upgrade was refused")["why"],
        "--ack postgres is set and the database is unavailable"
    );
    cluster.go_on();
    server.wait_for_line("the database is connected");
    server.upgrade();
    server.wait_for_line("the database is connected");
    // A shutdown takes precedence over an upgrade.
    server.signal(Signal::USR2);
    server.wait_for_line("upgrading");
    server.signal(Signal::USR2);
    server.wait_for_line("the upgrade was refused");
    server.signal(Signal::TERM);
    server.wait_for_line("the upgrade was aborted");
    assert!(server.end_by_itself().success());
}
