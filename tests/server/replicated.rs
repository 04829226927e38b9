//! `--ack replicated`: a promise is acknowledged when a synchronous standby has it, and not before.

use crate::cluster::{Cluster, Options};
use crate::harness::{Client, LONG_SALE, Response, Server, assert_refused, wait_until};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

const BUYERS: i64 = 4;

fn arguments(url: &str) -> Vec<&str> {
    let rules = ["--reservation-ttl", "1h", "--extension", "1h", "--user-limit", "1000", "--shards", "2"];
    [&LONG_SALE[..], &["--database-url", url, "--ack", "replicated"], &rules].concat()
}

/// A primary with a synchronous standby.
fn pair() -> (Cluster, Cluster) {
    let primary = Cluster::start_with(&Options::OPEN);
    let standby = primary.standby();
    set_standbys(&primary, "*");
    (primary, standby)
}

fn set_standbys(primary: &Cluster, names: &str) {
    primary.ask(&format!("alter system set synchronous_standby_names = '{names}'"));
    primary.ask("select pg_reload_conf()");
    wait_until("the setting is in use", || primary.ask("show synchronous_standby_names") == names);
}

fn release(client: &mut Client, code: &str) -> Response {
    client.request(&format!("DELETE /checkout?code={code}"))
}

fn extend(client: &mut Client, code: &str) -> Response {
    client.request(&format!("POST /checkout/extend?code={code}"))
}

fn assert_overdue(response: &Response) {
    assert_eq!(response.problem(), "overdue", "{response:?}");
}

/// A promise that a client has received.
#[derive(Clone, Debug)]
struct Promised {
    table: &'static str,
    item: u32,
    code: String,
}

/// Reserves items, and buys, releases or extends three of four, until an answer is not a 200.
fn trade(client: &mut Client, user: i64, promises: &Mutex<Vec<Promised>>) {
    for item in (user as u32..10_000).step_by(BUYERS as usize) {
        let reserved = client.checkout(user, item);
        if reserved.status != 200 {
            return assert_overdue(&reserved);
        }
        let code = reserved.body;
        let note = |table| promises.lock().unwrap().push(Promised { table, item, code: code.clone() });
        note("checkouts");
        let (response, table) = match item / BUYERS as u32 % 4 {
            0 => (client.purchase(&code), "purchases"),
            1 => (release(client, &code), "releases"),
            2 => (extend(client, &code), "extensions"),
            _ => continue,
        };
        match response.status {
            200 | 204 => note(table),
            _ => return assert_overdue(&response),
        }
    }
}

/// The primary is killed among buyers, and then the machine of the server is lost.
#[test]
fn nothing_acknowledged_is_lost_with_the_machine_and_the_primary() {
    let (mut primary, standby) = pair();
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let url = format!("postgres://stampede@127.0.0.1:{},127.0.0.1:{}/postgres", primary.port, standby.port);
    let server = Server::start(first.path(), &arguments(&url));
    server.wait_for_line("the database is connected");
    let promises = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for user in 0..BUYERS {
            let (mut client, promises) = (server.connect(), &promises);
            scope.spawn(move || trade(&mut client, user, promises));
        }
        wait_until("buyers have many promises", || promises.lock().unwrap().len() > 200);
        primary.kill();
    });
    assert_eq!(standby.ask("select pg_promote()"), "t");
    let promises = promises.into_inner().unwrap();
    for Promised { table, code, .. } in &promises {
        assert_eq!(standby.count(&format!("select count(*) from {table} where code = '{code}'")), 1, "{table} {code}");
    }
    // The new primary has no standby, so nothing more is promised.
    let refusal = server.wait_for_line("the database refuses the records");
    assert!(refusal["why"].as_str().unwrap().contains("synchronous_standby_names is empty"), "{refusal}");
    assert_overdue(&server.connect().checkout(9, 9_999));
    server.kill();
    assert_refused(second.path(), &arguments(&url), 8, &["synchronous_standby_names is empty"]);
    let _third = standby.standby();
    set_standbys(&standby, "*");
    let server = Server::start(second.path(), &arguments(&url));
    let mut client = server.connect();
    // The latest promise about each code.
    let latest: BTreeMap<&str, (&str, u32)> =
        promises.iter().map(|Promised { code, table, item }| (code.as_str(), (*table, *item))).collect();
    for (code, (table, item)) in latest {
        match table {
            "purchases" => assert_eq!(client.checkout(9, item).problem(), "item-sold"),
            "releases" => assert_ne!(client.purchase(code).status, 200, "{code} was released"),
            "extensions" => assert_eq!(extend(&mut client, code).status, 200, "{code} is held"),
            _ if item / BUYERS as u32 % 4 == 3 => assert_eq!(client.purchase(code).status, 200, "{code} is held"),
            // The request that followed was overdue, so it may have had its effect or not.
            _ => {}
        }
    }
    assert!(server.terminate().success());
}

#[test]
fn a_database_without_a_synchronous_standby_is_refused() {
    let (cluster, dir) = (Cluster::start_with(&Options::OPEN), tempfile::tempdir().unwrap());
    let url = cluster.url();
    assert_refused(dir.path(), &arguments(&url), 8, &["synchronous_standby_names is empty", "set --ack postgres"]);
    assert_eq!(cluster.ask("select to_regnamespace('stampede') is null"), "t", "nothing was changed");
    let _standby = cluster.standby();
    set_standbys(&cluster, "*");
    let server = Server::start(dir.path(), &arguments(&url));
    server.wait_for_line("the database is connected");
    assert_eq!(cluster.ask("select ack from clusters"), "replicated");
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    // An administrator switches the replication off while the server sells.
    set_standbys(&cluster, "");
    server.wait_for_line("the database refuses the records");
    assert_overdue(&client.purchase(&code));
    set_standbys(&cluster, "*");
    server.wait_for_line("the database is connected");
    // The answer `overdue` has closed the connection.
    wait_until("selling goes on", || server.connect().checkout(2, 1).problem() == "item-sold");
    let mut client = server.connect();
    assert_eq!(release(&mut client, &code).problem(), "code-used");
    let code = client.reserve(1, 2);
    assert_eq!(release(&mut client, &code).status, 204);
    assert!(server.terminate().success());
}

/// The standby stops, and an administrator cancels each wait for it. The rows are then visible on the primary, and still
/// nothing is acknowledged.
#[test]
fn a_cancelled_wait_for_the_standby_acknowledges_nothing() {
    let ((primary, mut standby), dir) = (pair(), tempfile::tempdir().unwrap());
    let url = primary.url();
    let server = Server::start(dir.path(), &arguments(&url));
    server.wait_for_line("the database is connected");
    let mut client = server.connect();
    let [bought, released, extended] = [1, 2, 3].map(|item| client.reserve(1, item));
    standby.kill();
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    let address = server.address;
    std::thread::scope(|scope| {
        let requests = [
            scope.spawn(|| Client::connect(address).unwrap().purchase(&bought)),
            scope.spawn(|| release(&mut Client::connect(address).unwrap(), &released)),
            scope.spawn(|| extend(&mut Client::connect(address).unwrap(), &extended)),
            scope.spawn(|| Client::connect(address).unwrap().checkout(1, 4)),
        ];
        let mut cancelled = 0;
        while !requests.iter().all(|request| request.is_finished()) {
            cancelled += primary.count(cancel);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(cancelled > 1, "a commit and a claim wait for the standby");
        requests.into_iter().for_each(|request| assert_overdue(&request.join().unwrap()));
    });
    let rows = "select (select count(*) from checkouts where outcome = 0) + (select count(*) from purchases) \
        + (select count(*) from releases) + (select count(*) from extensions)";
    assert!(primary.count(rows) > 3, "the primary shows what the standby lacks");
    standby.go_on();
    // The answer `overdue` has closed the connection.
    wait_until("selling goes on", || server.connect().checkout(2, 1).problem() == "item-sold");
    let mut client = server.connect();
    assert_eq!(release(&mut client, &released).status, 204);
    assert_eq!(extend(&mut client, &extended).status, 200);
    let code = client.reserve(1, 5);
    assert_eq!(client.purchase(&code).status, 200);
    wait_until("the standby has both", || standby.count("select count(*) from purchases") == 2);
    assert!(server.terminate().success());
}
