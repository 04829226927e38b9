//! Two servers that share a database, of which one sells and the other one waits (`--standby`).

use crate::cluster::{Cluster, Options, bin};
use crate::harness::{Client, LONG_SALE, Server, assert_refused, copy_dir, how_many, skipped, stampede, wait_until};
use crate::network::Link;
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn arguments<'a>(url: &'a str, ack: &'a str) -> Vec<&'a str> {
    let rules = ["--items", "2000", "--user-limit", "3", "--reservation-ttl", "1h", "--shards", "2", "--standby"];
    [&LONG_SALE[..], &["--database-url", url, "--ack", ack], &rules].concat()
}

/// A database with a synchronous standby, two data directories, and what both servers are started with.
struct Pair {
    primary: Cluster,
    replica: Cluster,
    dirs: [tempfile::TempDir; 2],
    url: String,
}

impl Pair {
    fn new() -> Pair {
        let primary = Cluster::start_with(&Options::OPEN);
        let replica = primary.standby();
        set_replicas(&primary);
        let url = format!("postgres://stampede@127.0.0.1:{}/postgres", primary.port);
        Pair { primary, replica, dirs: [(); 2].map(|()| tempfile::tempdir().unwrap()), url }
    }

    /// Starts the server on one of the directories, and waits until it listens.
    fn spawn(&self, place: usize) -> Server {
        Server::spawn(self.dirs[place].path(), &arguments(&self.url, "replicated"))
    }

    /// Starts a server that sells, and one that stands by.
    fn start(&self) -> (Server, Server) {
        let owner = self.spawn(0);
        wait_to_sell(&owner);
        let standby = self.spawn(1);
        standby.wait_for_line("standing by");
        (owner, standby)
    }
}

/// Makes every commit of the database wait for a replica.
fn set_replicas(primary: &Cluster) {
    primary.ask("alter system set synchronous_standby_names = '*'");
    primary.ask("select pg_reload_conf()");
    wait_until("the setting is in use", || primary.ask("show synchronous_standby_names") == "*");
}

/// Waits until the server sells, and returns the time that it took.
fn wait_to_sell(server: &Server) -> Duration {
    let began = Instant::now();
    wait_until("the server sells", || {
        let answer = Client::connect(server.address).and_then(|mut client| client.try_request("GET /readyz", ""));
        answer.is_ok_and(|answer| answer.status == 200)
    });
    began.elapsed()
}

/// Checks that the server answers as one that does not sell, on every path that a buyer uses.
fn assert_stands_by(server: &Server) {
    let mut client = server.connect();
    let ready = client.request("GET /readyz");
    assert_eq!((ready.status, &ready.json()["type"]), (503, &"/problems/standby".into()), "{ready:?}");
    assert_eq!(ready.json()["status"], "standby");
    let code = "00002a9c-04e1-86c4-ae9f-b285fb710516";
    for line in [
        "POST /checkout?user_id=1&item_id=1",
        &format!("POST /purchase?code={code}"),
        &format!("DELETE /checkout?code={code}"),
        &format!("POST /checkout/extend?code={code}"),
    ] {
        let refused = client.request(line);
        assert_eq!((refused.problem().as_str(), refused.asks_to_retry()), ("standby", true), "{line}");
    }
    assert_eq!(client.request("GET /livez").status, 200);
}

#[test]
fn a_standby_waits_and_says_whose() {
    let pair = Pair::new();
    let (owner, standby) = pair.start();
    assert_stands_by(&standby);
    for line in ["GET /sale", "GET /items", "GET /items/1", "GET /events"] {
        assert_eq!(standby.connect().request(line).problem(), "standby", "{line}");
    }
    let health = standby.connect().request("GET /health").json();
    let epoch = health["owner"]["epoch"].as_u64().unwrap();
    assert!(epoch > 0 && health["owner"]["silent_seconds"].as_f64().unwrap() < 5.0, "{health}");
    assert!(owner.connect().request("GET /health").json()["owner"].is_null());
    // An upgrade of a server that does not sell is refused, and it goes on to wait.
    standby.signal(Signal::USR2);
    standby.wait_for_line("the upgrade was refused");
    assert_stands_by(&standby);
    assert!(standby.terminate().success());
    assert!(owner.terminate().success());
}

#[test]
fn wrong_settings_of_a_pair_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let url = "postgres://stampede@127.0.0.1:1/postgres";
    let with = |more: &[&'static str]| [&["--check-config", "--database-url", url][..], more].concat();
    assert_refused(dir.path(), &["--standby"], 2, &["--standby", "--ack replicated"]);
    assert_refused(dir.path(), &with(&["--standby", "--ack", "local"]), 2, &["--standby", "--ack replicated"]);
    let log = ["--standby", "--ack", "replicated", "--recover-from", "log"];
    assert_refused(dir.path(), &with(&log), 2, &["--standby", "--recover-from auto"]);
    assert_refused(dir.path(), &with(&["--standby", "perhaps"]), 2, &["--standby is \"perhaps\"", "on or off"]);
    let short = ["--standby", "--ack", "replicated", "--standby-patience", "900ms"];
    assert_refused(dir.path(), &with(&short), 2, &["--standby-patience is \"900ms\"", "from 1s"]);
}

/// Each server in turn is killed among buyers. The other one sells again, with everything that was acknowledged.
#[test]
fn the_other_server_sells_after_kill_9() {
    let pair = Pair::new();
    let (mut owner, mut standby) = pair.start();
    let mut times = Vec::new();
    let (mut bought, mut held) = (Vec::new(), Vec::<(i64, String)>::new());
    let rounds = how_many("STAMPEDE_TAKEOVERS", 3);
    for round in 0..rounds {
        let mut client = owner.connect();
        let first = i64::from(round) * 100;
        for user in first..first + 30 {
            let code = client.reserve(user, user as u32);
            if user % 2 == 0 {
                assert_eq!(client.purchase(&code).status, 200);
                bought.push(user as u32);
            } else {
                held.push((user, code));
            }
        }
        // The limit of this user is used up.
        (0..3).for_each(|item| _ = client.reserve(first + 99, (first + 40 + item) as u32));
        owner.signal(Signal::KILL);
        times.push(wait_to_sell(&standby));
        drop(owner);
        let mut client = standby.connect();
        for item in &bought {
            assert_eq!(client.checkout(1, *item).problem(), "item-sold", "{item}");
        }
        assert_eq!(client.checkout(first + 99, 1_999).problem(), "user-limit");
        for (user, code) in held.drain(..) {
            assert_eq!(client.purchase(&code).status, 200, "{user} holds {code}");
            bought.push(user as u32);
        }
        // The killed one finds that another one has taken over, and waits.
        owner = standby;
        standby = pair.spawn(round as usize % 2);
        standby.wait_for_line("standing by");
        assert_stands_by(&standby);
    }
    println!("{rounds} takeovers after kill -9: {times:?}");
    drop((owner, standby));
}

/// Also, a standby that was started too late to see the owner's advisory lock does not wait for longer.
#[test]
fn the_patience_is_that_of_the_server_that_sells() {
    let pair = Pair::new();
    let patient = [&arguments(&pair.url, "replicated")[..], &["--standby-patience", "5s"]].concat();
    let owner = Server::spawn(pair.dirs[0].path(), &patient);
    wait_to_sell(&owner);
    owner.kill();
    let standby = pair.spawn(1);
    standby.wait_for_line("standing by");
    let waited = wait_to_sell(&standby);
    assert!((Duration::from_secs(4)..Duration::from_secs(12)).contains(&waited), "{waited:?}");
    assert!(standby.terminate().success());
}

#[test]
fn of_two_that_wait_one_sells() {
    let (pair, third) = (Pair::new(), tempfile::tempdir().unwrap());
    let (owner, second) = pair.start();
    let third = Server::spawn(third.path(), &arguments(&pair.url, "replicated"));
    third.wait_for_line("standing by");
    let (waiting, code) = ([second, third], owner.connect().reserve(1, 1));
    waiting.iter().for_each(assert_stands_by);
    owner.kill();
    let sells = |server: &&Server| server.connect().request("GET /readyz").status == 200;
    wait_until("one of them sells", || waiting.iter().any(|server| sells(&server)));
    let selling = waiting.iter().find(sells).unwrap();
    assert_eq!(selling.connect().purchase(&code).status, 200);
    assert_eq!(waiting.iter().filter(sells).count(), 1);
    for server in waiting {
        assert!(server.terminate().success());
    }
}

#[test]
fn a_stop_in_order_hands_the_sale_over_at_once() {
    let pair = Pair::new();
    let (owner, standby) = pair.start();
    let code = owner.connect().reserve(7, 70);
    let stopping = std::thread::spawn(move || assert!(owner.terminate().success()));
    wait_to_sell(&standby);
    assert_eq!(standby.connect().purchase(&code).status, 200);
    assert_eq!(standby.wait_for_line("taking over from the other server")["has_stopped"], true);
    stopping.join().unwrap();
    assert!(standby.terminate().success());
}

/// The owner stands still, and its successor sells. When it goes on, it answers nothing from its old state, and becomes
/// the standby, in the same process.
#[test]
fn a_superseded_server_becomes_the_standby() {
    let pair = Pair::new();
    let (mut owner, standby) = pair.start();
    let (held, kept) = (owner.connect().reserve(1, 1), owner.connect().reserve(2, 2));
    let mut open = owner.connect();
    assert_eq!(open.request("GET /sale").status, 200);
    owner.signal(Signal::STOP);
    wait_to_sell(&standby);
    let mut client = standby.connect();
    assert_eq!(client.purchase(&held).status, 200);
    assert_eq!(client.request(&format!("DELETE /checkout?code={kept}")).status, 204);
    // The answer to this request comes from the first turn after the stop.
    open.send(b"POST /checkout?user_id=3&item_id=2 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    owner.signal(Signal::CONT);
    if let Ok(answer) = open.read() {
        assert_eq!(answer.problem(), "standby", "{answer:?}");
    }
    owner.wait_for_line("another server has taken over");
    owner.starts_again();
    owner.wait_for_line("standing by");
    assert_stands_by(&owner);
    // It takes over again when the other one ends.
    drop(client);
    standby.signal(Signal::KILL);
    wait_to_sell(&owner);
    let mut client = owner.connect();
    assert_eq!(client.checkout(9, 1).problem(), "item-sold");
    client.reserve(9, 2);
    assert!(owner.terminate().success());
}

/// It does not wait for the locks of its successor to learn of it.
#[test]
fn a_superseded_server_waits_for_no_lock() {
    let pair = Pair::new();
    let (mut owner, standby) = pair.start();
    owner.signal(Signal::STOP);
    pair.primary.ask("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()");
    wait_to_sell(&standby);
    let lock = "begin; lock table stampede.clusters in row exclusive mode; select pg_sleep(120)";
    let mut holder = Command::new(bin("psql")).args([&pair.primary.url(), "-c", lock]).spawn().unwrap();
    let held = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    wait_until("the lock is held", || pair.primary.count(held) == 1);
    owner.signal(Signal::CONT);
    owner.wait_for_line("another server has taken over");
    owner.starts_again();
    owner.wait_for_line("standing by");
    assert!(holder.try_wait().unwrap().is_none(), "the lock was not held");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(owner.terminate().success());
    assert!(standby.terminate().success());
}

/// The owner loses its network, without a packet that says so: it stops to answer before the other one sells, and becomes
/// the standby when its network is back.
#[test]
fn the_machine_of_the_owner_is_lost() {
    let link = match Link::make() {
        Ok(link) => link,
        Err(why) => return skipped("a lost machine", why),
    };
    let cluster = Cluster::start_with(&Options { namespace: Some(&link.namespace), ..Options::OPEN });
    let over_link = format!("postgres://stampede@{}:{}/postgres?sslmode=disable", link.address, cluster.port);
    let (local, dirs) = (cluster.url(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let mut owner = Server::spawn(dirs[0].path(), &arguments(&over_link, "postgres"));
    wait_to_sell(&owner);
    let standby = Server::spawn(dirs[1].path(), &arguments(&local, "postgres"));
    standby.wait_for_line("standing by");
    let mut client = owner.connect();
    let (sold, held) = (client.reserve(1, 1), client.reserve(1, 2));
    assert_eq!(client.purchase(&sold).status, 200);
    client.wait_for_postgres();
    link.cut();
    let time = wait_to_sell(&standby);
    assert_eq!(client.checkout(2, 1).problem(), "standby", "it has stopped to answer before");
    assert_eq!(standby.connect().checkout(2, 1).problem(), "item-sold");
    assert_eq!(standby.connect().purchase(&held).status, 200);
    println!("takeover after the loss of the owner's network: {time:?}");
    link.mend();
    owner.wait_for_line("another server has taken over");
    owner.starts_again();
    owner.wait_for_line("standing by");
    assert_stands_by(&owner);
}

/// The machine of the primary and the owner are lost in the same moment. The replica is promoted, and the other server
/// sells with everything that was acknowledged.
#[test]
fn the_primary_and_the_owner_are_lost_together() {
    let mut pair = Pair::new();
    pair.url = format!(
        "postgres://stampede@127.0.0.1:{},127.0.0.1:{}/postgres?connect_timeout=1",
        pair.primary.port, pair.replica.port
    );
    let (owner, standby) = pair.start();
    let mut client = owner.connect();
    let codes: Vec<String> = (0..60).map(|item| client.reserve(i64::from(item), item)).collect();
    for code in &codes[..30] {
        assert_eq!(client.purchase(code).status, 200);
    }
    pair.primary.kill();
    owner.signal(Signal::KILL);
    assert_eq!(pair.replica.ask("select pg_promote()"), "t");
    // The new primary has no replica, so nobody may sell.
    let refusal = standby.wait_for_line("waiting for the database");
    assert!(refusal["why"].as_str().is_some(), "{refusal}");
    assert_stands_by(&standby);
    let _third = pair.replica.standby();
    set_replicas(&pair.replica);
    wait_to_sell(&standby);
    let mut client = standby.connect();
    for (item, code) in codes.iter().enumerate() {
        match item < 30 {
            true => assert_eq!(client.checkout(99, item as u32).problem(), "item-sold"),
            false => assert_eq!(client.purchase(code).status, 200, "{item}"),
        }
    }
    assert!(standby.terminate().success());
}

/// The sockets that a service manager has passed stay open when a superseded server executes itself again.
#[test]
fn a_superseded_server_keeps_its_sockets() {
    let pair = Pair::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stampede = stampede(pair.dirs[0].path(), &arguments(&pair.url, "replicated"));
    // The shell passes the socket as systemd does, as descriptor 3 with two variables.
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(stampede.get_program()).args(stampede.get_args());
    command.env_clear().stderr(Stdio::piped()).stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let mut owner = Server::run(&mut command);
    wait_to_sell(&owner);
    let standby = pair.spawn(1);
    standby.wait_for_line("standing by");
    owner.signal(Signal::STOP);
    wait_to_sell(&standby);
    owner.signal(Signal::CONT);
    owner.wait_for_line("another server has taken over");
    owner.starts_again();
    assert_eq!(owner.address, listener.local_addr().unwrap());
    owner.wait_for_line("standing by");
    assert_stands_by(&owner);
}

/// An owner that does not reach the database stops to answer as the owner, also where it needs no database to refuse,
/// and goes on when it is confirmed again.
#[test]
fn an_owner_that_is_not_confirmed_promises_nothing() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let server = Server::spawn(dir.path(), &arguments(&url, "postgres"));
    wait_to_sell(&server);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert_eq!(client.purchase(&code).status, 200);
    assert_eq!(client.checkout(2, 1).problem(), "item-sold");
    cluster.pause();
    wait_until("it is not confirmed", || client.checkout(2, 1).problem() == "standby");
    assert_stands_by(&server);
    assert_eq!(client.request("GET /sale").json()["sold"], 1, "pages may be old");
    cluster.resume();
    wait_to_sell(&server);
    assert_eq!(client.checkout(2, 1).problem(), "item-sold");
    client.reserve(2, 2);
    assert!(server.terminate().success());
}

/// The data directory was restored from a backup, and the database names its run: nobody else has taken over, so the
/// contradiction ends the server instead of being tried again and again.
#[test]
fn an_older_data_directory_of_the_owner_is_refused() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let (url, own, copy) = (cluster.url(), dir.path().join("own"), dir.path().join("copy"));
    std::fs::create_dir(&own).unwrap();
    let server = Server::spawn(&own, &arguments(&url, "postgres"));
    wait_to_sell(&server);
    let mut client = server.connect();
    client.reserve(1, 1);
    client.wait_for_postgres();
    copy_dir(&own, &copy);
    (2..40).for_each(|item| _ = client.reserve(i64::from(item), item));
    client.wait_for_postgres();
    server.kill();
    assert_refused(&copy, &arguments(&url, "postgres"), 8, &["the data directory is older than the database"]);
}

/// Two servers are started at once on a database that was never used. One sells, the other one waits.
#[test]
fn one_of_two_new_servers_sells() {
    for _ in 0..3 {
        let (cluster, dirs) = (Cluster::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
        let url = cluster.url();
        let spawn = |dir: &Path| Server::spawn(dir, &arguments(&url, "postgres"));
        let servers: Vec<Server> = std::thread::scope(|scope| {
            let threads = dirs.each_ref().map(|dir| scope.spawn(|| spawn(dir.path())));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let sells = |server: &Server| server.connect().request("GET /readyz").status == 200;
        wait_until("one sells", || servers.iter().any(sells));
        let standby = servers.iter().find(|server| !sells(server)).expect("only one sells");
        standby.wait_for_line("standing by");
        assert_stands_by(standby);
        let owner = servers.iter().find(|server| sells(server)).expect("one sells");
        owner.connect().reserve(1, 1);
    }
}

/// Buyers of one of two servers do not notice its upgrade.
#[test]
fn an_upgrade_of_one_of_two_is_not_noticed() {
    let pair = Pair::new();
    let (mut owner, standby) = pair.start();
    let (address, ends) = (owner.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let buyer = scope.spawn(|| {
            let mut client = Client::connect(address).unwrap();
            for item in 0..2_000 {
                if ends.load(Ordering::Relaxed) {
                    return item;
                }
                std::thread::sleep(Duration::from_millis(5));
                let code = client.reserve(i64::from(item), item);
                assert_eq!(client.purchase(&code).status, 200);
            }
            panic!("the upgrades take too long")
        });
        for _ in 0..2 {
            owner.wait_for_line("the database is connected");
            owner.upgrade();
        }
        ends.store(true, Ordering::Relaxed);
        assert!(buyer.join().unwrap() > 1);
    });
    assert_stands_by(&standby);
    assert!(standby.terminate().success());
    assert!(owner.terminate().success());
}
