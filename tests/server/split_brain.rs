//! Two servers and one database: whatever fails between them, no item is sold by both.

use crate::cluster::{Cluster, Options};
use crate::harness::{LONG_SALE, Server, assert_refused, skipped, wait_until};
use crate::network::Link;
use std::path::Path;

fn arguments<'a>(url: &'a str, ack: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&LONG_SALE[..], &["--database-url", url, "--ack", ack, "--reservation-ttl", "1h"], more].concat()
}

/// A database that one server reaches through a link, and every other one without it.
struct Remote {
    link: Link,
    cluster: Cluster,
    url: String,
}

fn remote(test: &str) -> Option<Remote> {
    let link = Link::make().map_err(|why| skipped(test, why)).ok()?;
    let options = Options { namespace: Some(&link.namespace), ..Options::OPEN };
    let cluster = Cluster::start_with(&options);
    let url = format!("postgres://stampede@{}:{}/postgres?sslmode=disable", link.address, cluster.port);
    Some(Remote { link, cluster, url })
}

fn owner(cluster: &Cluster) -> String {
    cluster.ask("select cluster, epoch, run, ack from clusters")
}

/// The first server loses only its link to the database, and goes on selling.
#[test]
fn silence_proves_nothing_about_a_server_that_sells_without_the_database() {
    let Some(Remote { link, cluster, url }) = remote("a cut link, --ack local") else { return };
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let server = Server::start(first.path(), &arguments(&url, "local", &[]));
    let mut client = server.connect();
    client.reserve(1, 41);
    client.wait_for_postgres();
    let before = owner(&cluster);
    link.cut();
    let code = client.reserve(1, 42);
    assert_eq!(client.purchase(&code).status, 200, "the first server sells without the database");
    server.wait_for_line("the database is unavailable");
    // The last report is now older than any wait for a report.
    let silence = "select extract(epoch from now() - seen_at) > 16 from clusters";
    wait_until("the first server was silent for long enough", || cluster.ask(silence) == "t");
    let refusal = ["epoch 1, --ack local", "has not ended in order", "--recover-from postgres"];
    let socket = cluster.url();
    for ack in ["local", "postgres"] {
        assert_refused(second.path(), &arguments(&socket, ack, &[]), 8, &refusal);
    }
    assert_eq!(owner(&cluster), before, "the refused server has changed nothing");
    link.mend();
    client.wait_for_postgres();
    assert!(server.terminate().success());
    // After a clean stop, another machine takes over at once.
    let server = Server::start(second.path(), &arguments(&socket, "local", &[]));
    assert_eq!(server.times_said("waiting for the database"), 0);
    assert_eq!(server.connect().checkout(2, 42).problem(), "item-sold");
    assert!(server.terminate().success());
    assert_eq!(cluster.count("select count(*) from purchases"), 1);
}

/// With `--ack postgres`, a server without the database acknowledges no purchase, so silence is enough.
#[test]
fn a_silent_server_that_sells_nothing_without_the_database_is_replaced() {
    let Some(Remote { link, cluster, url }) = remote("a cut link, --ack postgres") else { return };
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let old = Server::start(first.path(), &arguments(&url, "postgres", &[]));
    let mut client = old.connect();
    let code = client.reserve(1, 42);
    client.wait_for_postgres();
    link.cut();
    assert_eq!(client.purchase(&code).problem(), "overdue");
    let socket = cluster.url();
    let new = Server::start(second.path(), &arguments(&socket, "postgres", &[]));
    assert_eq!(new.connect().purchase(&code).status, 200);
    link.mend();
    assert_eq!(old.last_words().0, 8);
    assert!(new.terminate().success());
    assert_eq!(cluster.ask("select item_id, user_id from purchases"), "42|1");
}

/// A server that has ended in order has given the sale away. Its data directory does not sell it again before it has
/// asked the database.
#[test]
fn a_server_that_ended_in_order_asks_before_it_sells_again() {
    let (mut cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let start = |dir: &Path, more: &[&str]| Server::start(dir, &arguments(&url, "local", more));
    let server = start(dir.path(), &[]);
    server.connect().reserve(1, 1);
    server.connect().wait_for_postgres();
    // A crash ends nothing: the database still names this run, and no other server replaces it.
    server.kill();
    cluster.kill();
    let server = start(dir.path(), &[]);
    server.connect().reserve(1, 2);
    cluster.go_on();
    server.connect().wait_for_postgres();
    assert!(server.terminate().success());
    cluster.kill();
    let server = Server::spawn(dir.path(), &arguments(&url, "local", &[]));
    let line = server.wait_for_line("waiting for the database");
    assert!(line["message"].as_str().unwrap().contains("another server may have taken the sale over"), "{line}");
    assert_eq!(server.connect().checkout(1, 3).problem(), "not-ready");
    assert!(server.terminate().success(), "the server can be stopped while it waits");
    // With this word of the operator, it sells. So does a server that acknowledges no purchase without the database.
    for more in [["--recover-from", "log"], ["--ack", "postgres"]] {
        start(dir.path(), &more).kill();
    }
    let server = Server::spawn(dir.path(), &arguments(&url, "local", &[]));
    server.wait_for_line("waiting for the database");
    cluster.go_on();
    server.wait_for_line("serving");
    assert!(server.terminate().success());
    // Another machine has taken the sale over meanwhile.
    assert!(start(other.path(), &[]).terminate().success());
    assert_refused(dir.path(), &arguments(&url, "local", &[]), 8, &["another run of this installation"]);
}

/// An upgrade to `--ack local` sells before the new process claims the database, so the database must know it before.
#[test]
fn an_upgrade_to_local_acknowledgement_is_recorded_first() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let settings = |ack: &str| {
        let text = format!("DATABASE_URL='{}'\nACK={ack}\n", cluster.url());
        std::fs::write(dir.path().join(".env"), text).unwrap();
    };
    settings("postgres");
    let mut server = Server::start(dir.path(), &LONG_SALE);
    server.wait_for_line("the database is connected");
    assert_eq!(cluster.ask("select epoch, ack from clusters"), "1|postgres");
    cluster.ask("create table seen (epoch bigint, ack text)");
    cluster.ask(
        "create function see() returns trigger language plpgsql as \
         $$ begin insert into stampede.seen values (new.epoch, new.ack); return new; end $$",
    );
    cluster.ask("create trigger see after update of ack on clusters for each row execute function see()");
    settings("local");
    server.upgrade();
    server.wait_for_line("the database is connected");
    let seen = cluster.ask("select distinct epoch, ack from seen order by 1, 2");
    assert_eq!(seen, "1|local\n2|local");
    settings("postgres");
    server.upgrade();
    server.wait_for_line("the database is connected");
    assert_eq!(cluster.ask("select epoch, ack from clusters"), "3|postgres");
    assert!(server.terminate().success());
}
