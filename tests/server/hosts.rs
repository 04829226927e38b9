//! A database of several hosts: a host that is silent, unreachable or a standby is left for the next one, at the start
//! and after a fail-over.

use crate::cluster::{Cluster, Options, PASSWORD};
use crate::harness::{Client, LONG_SALE, Server, skipped, stampede, wait_until};
use crate::network::Link;
use rustix::process::Signal;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn arguments<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&LONG_SALE[..], &["--database-url", url, "--user-limit", "100000"], more].concat()
}

fn start(dir: &Path, url: &str, more: &[&str]) -> Server {
    Server::start(dir, &arguments(url, more))
}

fn buy(client: &mut Client, items: std::ops::Range<u32>) {
    for item in items {
        let code = client.reserve(1, item);
        let bought = client.purchase(&code);
        assert_eq!(bought.status, 200, "{bought:?}");
    }
}

/// Returns whether nobody has connected since the last call.
fn is_left_alone(silent: &TcpListener) -> bool {
    silent.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| silent.accept().ok()).count() == 0
}

/// Also, later connections begin with the host that answered, and the password file is searched for the host in use.
#[test]
fn a_host_that_says_nothing_is_left_for_the_next() {
    let cluster = Cluster::start_with(&Options { tcp: "host all all all scram-sha-256", ..Options::default() });
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The kernel accepts connections, and nothing reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (silent.local_addr().unwrap().port(), cluster.port);
    let file = dir.path().join("passwords");
    let text = format!("127.0.0.1:{first}:*:*:wrong\n127.0.0.1:{second}:*:*:{PASSWORD}\n");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for (dir, url) in [
        (dir.path(), format!("postgres://stampede@127.0.0.1:{first},127.0.0.1:{second}/postgres?connect_timeout=1")),
        // The new data directory takes over: the same rule holds for the takeover. The default of the limit is used.
        (other.path(), format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=stampede dbname=postgres")),
    ] {
        let mut command = stampede(dir, &arguments(&url, &[]));
        let server = Server::run(command.env("PGPASSFILE", &file));
        server.wait_for_line("serving");
        let line = server.wait_for_line("the database is connected");
        assert_eq!(line["url"], format!("stampede@127.0.0.1:{second}/postgres"));
        server.connect().wait_for_postgres();
        assert!(!is_left_alone(&silent), "the first host was not tried first");
        cluster.ask("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()");
        server.wait_for_line("the database is connected");
        assert!(is_left_alone(&silent), "the host that said nothing was tried again before the one that answered");
        server.kill();
        cluster.ask("update clusters set seen_at = '-infinity'");
    }
    // The variables can name several hosts, too.
    let mut command = stampede(other.path(), &LONG_SALE);
    command.env("DB_HOST", "127.0.0.1,127.0.0.1").env("DB_PORT", format!("{first},{second}"));
    command.env("DB_NAME", "postgres").env("DB_PASSWORD", PASSWORD);
    let server = Server::run(&mut command);
    server.wait_for_line("the database is connected");
    assert!(server.terminate().success());
}

#[test]
fn a_host_that_drops_packets_is_left_for_the_next() {
    let link = match Link::make() {
        Ok(link) => link,
        Err(why) => return skipped("a host that drops packets", why),
    };
    link.cut();
    let (cluster, dir) = (Cluster::start_with(&Options::OPEN), tempfile::tempdir().unwrap());
    let url = format!("host={},127.0.0.1 port={} user=stampede dbname=postgres", link.address, cluster.port);
    let server = start(dir.path(), &url, &[]);
    let line = server.wait_for_line("the database is connected");
    assert_eq!(line["url"], format!("stampede@127.0.0.1:{}/postgres", cluster.port));
    assert!(server.terminate().success());
    // Without another host, the reason is named.
    let dir = tempfile::tempdir().unwrap();
    let url = format!("host={} user=stampede dbname=postgres connect_timeout=1", link.address);
    let server = start(dir.path(), &url, &["--recover-from", "log"]);
    let why = server.wait_for_line("the database is unavailable")["why"].as_str().unwrap().to_owned();
    assert!(why.contains("does not answer") || why.contains("connecting"), "{why}");
}

/// A resolver that does not answer: the C library tries for minutes, and the server ends all the same.
#[test]
fn a_name_that_is_looked_up_does_not_delay_the_end() {
    let Ok(silent) = UdpSocket::bind("127.77.77.53:53") else { return skipped("a silent resolver", "no root") };
    let dir = tempfile::tempdir().unwrap();
    let resolver = dir.path().join("resolv.conf");
    fs::write(&resolver, format!("nameserver {}\noptions timeout:30 attempts:5\n", silent.local_addr().unwrap().ip()))
        .unwrap();
    let url = "host=database.example user=stampede dbname=postgres connect_timeout=1";
    let data_dir = dir.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    let server = stampede(&data_dir, &arguments(url, &["--recover-from", "log", "--drain-timeout", "1s"]));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#]).arg(&resolver);
    command.arg(server.get_program()).args(server.get_args()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = Server::run(&mut command);
    server.wait_for_line("serving");
    assert!(server.wait_for_line("the database is unavailable")["why"].as_str().unwrap().contains("takes too long"));
    server.signal(Signal::TERM);
    server.wait_for_line("stopping without the database");
    let silence = Instant::now();
    assert!(server.end_by_itself().success());
    // The resolver is given up after 150 s.
    assert!(silence.elapsed() < Duration::from_secs(20), "{:?}", silence.elapsed());
}

/// The first host is a standby. Then the primary is killed, and the standby promoted.
/// A primary that was replaced without its knowledge accepts sessions, and no commit of them is ever confirmed.
#[test]
fn a_primary_that_confirms_nothing_is_left_for_the_next() {
    let (mut primary, dir) = (Cluster::start_with(&Options::OPEN), tempfile::tempdir().unwrap());
    let standby = primary.standby();
    let url = format!("postgres://stampede@127.0.0.1:{},127.0.0.1:{}/postgres", primary.port, standby.port);
    let server = start(dir.path(), &url, &["--ack", "postgres"]);
    server.wait_for_line("the database is connected");
    let mut client = server.connect();
    buy(&mut client, 0..10);
    client.wait_for_postgres();
    let code = client.reserve(1, 10);
    primary.ask("alter system set synchronous_standby_names = '*'");
    primary.ask("select pg_reload_conf()");
    assert_eq!(standby.ask("select pg_promote()"), "t");
    wait_until("the server uses the other host", || {
        // Whoever else waits for the locks ends the sessions, as a standby of the server does.
        primary.ask("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
        server.times_said("the database is connected") == 1
    });
    let line = server.wait_for_line("the database is connected");
    assert_eq!(line["url"], format!("stampede@127.0.0.1:{}/postgres", standby.port));
    assert_eq!(client.purchase(&code).status, 200);
    client.wait_for_postgres();
    primary.kill();
    assert!(server.terminate().success());
    assert_eq!(standby.ask("select count(*), count(distinct item_id) from purchases"), "11|11");
}

#[test]
fn a_standby_is_skipped_until_it_is_promoted() {
    for ack in ["local", "postgres"] {
        let (mut primary, dir) = (Cluster::start_with(&Options::OPEN), tempfile::tempdir().unwrap());
        let standby = primary.standby();
        let url = format!("postgres://stampede@127.0.0.1:{},127.0.0.1:{}/postgres", standby.port, primary.port);
        let server = start(dir.path(), &url, &["--ack", ack]);
        let line = server.wait_for_line("the database is connected");
        assert_eq!(line["url"], format!("stampede@127.0.0.1:{}/postgres", primary.port));
        let mut client = server.connect();
        buy(&mut client, 0..50);
        client.wait_for_postgres();
        wait_until("the standby has rows", || standby.ask("select to_regclass('purchases') is not null") == "t");
        primary.kill();
        let line = server.wait_for_line("the database is unavailable");
        assert!(line["why"].as_str().is_some(), "{line}");
        if ack == "local" {
            buy(&mut client, 50..100);
        }
        assert_eq!(standby.ask("select pg_promote()"), "t");
        let line = server.wait_for_line("the database is connected");
        assert_eq!(line["url"], format!("stampede@127.0.0.1:{}/postgres", standby.port));
        buy(&mut client, 100..150);
        client.wait_for_postgres();
        assert!(server.terminate().success());
        let sold = if ack == "local" { "150|150" } else { "100|100" };
        assert_eq!(standby.ask("select count(*), count(distinct item_id) from purchases"), sold, "--ack {ack}");
    }
}
