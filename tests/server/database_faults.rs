//! Tests with a database that is unreachable, refuses the server, is full, or disconnects in the middle of a message.

use crate::cluster::{Cluster, Options, PASSWORD, psql};
use crate::harness::{Client, LONG_SALE, Server, assert_refused, repository_text, stampede, wait_until};
use crate::proxy::{Cut, Proxy};
use std::path::Path;

fn start(dir: &Path, url: &str, more: &[&str]) -> Server {
    // Without `--recover-from log`, a server with a new data directory would wait for the database.
    let common = ["--database-url", url, "--recover-from", "log", "--user-limit", "1000000"];
    Server::start(dir, &[&LONG_SALE[..], &common, more].concat())
}

fn buy(client: &mut Client, item: u32) {
    let code = client.reserve(1, item);
    let bought = client.purchase(&code);
    assert_eq!(bought.status, 200, "{bought:?}");
}

fn why_away(server: &Server) -> String {
    server.wait_for_line("the database is unavailable")["why"].as_str().expect("the line has a reason").to_owned()
}

fn cut_at_every_message(ack: &str, cut: Cut) {
    let (cluster, dir) = (Cluster::start_with(&Options::OPEN), tempfile::tempdir().unwrap());
    let proxy = Proxy::start(cluster.port, cut);
    let url = format!("postgres://stampede@{}/postgres?sslmode=disable", proxy.address);
    let server = start(dir.path(), &url, &["--shards", "1", "--ack", ack]);
    let mut client = server.connect();
    server.wait_for_line("the database is connected");
    client.wait_for_postgres();
    let mut cuts = 0u32;
    for item in 0.. {
        proxy.cut_after(item);
        let before = proxy.seen();
        buy(&mut client, item);
        client.wait_for_postgres();
        // The connection carries only this checkout, this purchase and an occasional heartbeat. If no message was
        // cut, this item needed no more messages than its number.
        if !proxy.disarm() {
            assert!(u64::from(item) >= proxy.seen() - before);
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 20, "a batch has more than {cuts} messages");
    assert!(server.terminate().success());
    let sold = cluster.ask("select count(*), count(distinct item_id), max(item_id) + 1 from purchases");
    assert_eq!(sold, format!("{0}|{0}|{0}", cuts + 1));
    assert_eq!(cluster.count("select count(*) from checkouts"), u64::from(cuts) + 1);
}

#[test]
fn cut_before_every_message() {
    cut_at_every_message("local", Cut::Before);
    cut_at_every_message("postgres", Cut::Before);
}

#[test]
fn cut_within_every_message() {
    cut_at_every_message("local", Cut::Within);
    cut_at_every_message("postgres", Cut::Within);
}

#[test]
fn cut_after_every_message() {
    cut_at_every_message("local", Cut::After);
    cut_at_every_message("postgres", Cut::After);
}

#[test]
fn a_wrong_password_or_database_is_named_and_selling_goes_on() {
    let options = Options { tcp: "host all all all scram-sha-256", ..Options::default() };
    let (cluster, dir) = (Cluster::start_with(&options), tempfile::tempdir().unwrap());
    let url = |password: &str, name: &str| format!("postgres://stampede:{password}@127.0.0.1:{}/{name}", cluster.port);
    for (url, reason) in [
        (url("swordfish", "postgres"), "password authentication failed for user \"stampede\""),
        (url(PASSWORD, "nowhere"), "database \"nowhere\" does not exist"),
        (url(PASSWORD, "postgres").replace(&cluster.port.to_string(), "1"), "Connection refused"),
        (url(PASSWORD, "postgres").replace("127.0.0.1", "no-such-host.invalid"), "error connecting to server"),
    ] {
        let server = start(dir.path(), &url, &[]);
        let line = server.wait_for_line("the database is unavailable");
        let text = line.to_string();
        assert!(line["why"].as_str().is_some_and(|why| why.contains(reason)), "{text}");
        assert!(!text.contains("swordfish") && !text.contains(PASSWORD), "{text}");
        let mut client = server.connect();
        let code = client.reserve(1, 1);
        assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
        server.kill();
        // With an empty data directory, the server logs the same reason while it waits.
        let empty = tempfile::tempdir().unwrap();
        let server = Server::spawn(empty.path(), &[&LONG_SALE[..], &["--database-url", &url]].concat());
        let line = server.wait_for_line("waiting for the database");
        assert!(line["why"].as_str().is_some_and(|why| why.contains(reason)), "{line}");
    }
    let server = start(dir.path(), &url(PASSWORD, "postgres"), &[]);
    server.wait_for_line("the database is connected");
    server.connect().wait_for_postgres();
    assert_eq!(cluster.count("select count(*) from releases"), 4);
}

#[test]
fn the_password_may_come_from_a_file() {
    let options = Options { tcp: "host all all all scram-sha-256", ..Options::default() };
    let (cluster, dir) = (Cluster::start_with(&options), tempfile::tempdir().unwrap());
    let file = dir.path().join("passwords");
    let text = format!("127.0.0.1:{}:postgres:stampede:{PASSWORD}\n", cluster.port);
    std::fs::write(&file, text).unwrap();
    let url = format!("postgres://stampede@127.0.0.1:{}/postgres", cluster.port);
    for (mode, message) in [(0o644, "the password file is ignored"), (0o600, "serving")] {
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let arguments = [&LONG_SALE[..], &["--database-url", &url]].concat();
        let mut command = stampede(dir.path(), &arguments);
        let server = Server::run(command.env("PGPASSFILE", &file));
        server.wait_for_line(message);
    }
    assert_eq!(cluster.count("select count(*) from clusters"), 1);
}

#[test]
fn a_read_only_database_is_away_until_it_is_not() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster.url(), &[]);
    server.wait_for_line("the database is connected");
    cluster.ask("alter system set default_transaction_read_only = on");
    cluster.ask("select pg_reload_conf()");
    let mut client = server.connect();
    let mut item = 0;
    // Postgres reloads its settings asynchronously: buy until the new setting is in effect.
    while cluster.ask("show default_transaction_read_only") != "on" || item < 3 {
        buy(&mut client, item);
        item += 1;
    }
    assert!(why_away(&server).contains("read-only transaction"));
    cluster.ask("alter system reset default_transaction_read_only");
    cluster.ask("select pg_reload_conf()");
    server.wait_for_line("the database is connected");
    client.wait_for_postgres();
    assert_eq!(cluster.count("select count(*) from purchases"), u64::from(item));
}

#[test]
fn a_database_without_space_refuses_until_there_is_some() {
    // The smallest limit at which the system catalogs of Postgres still work.
    let options = Options { file_bytes_max: Some(4 << 20), ..Options::default() };
    let (cluster, dir) = (Cluster::start_with(&options), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster.url(), &["--shards", "1"]);
    let mut client = server.connect();
    server.wait_for_line("the database is connected");
    wait_until("the sale is in the database", || cluster.count("select count(*) from sales") == 1);
    // The rows go when the statement fails, but the table stays as large as it is.
    let rows = "insert into checkouts (sale_id, item_id, user_id, outcome, at) select sale_id, 1, 1, 0, now() \
        from sales, generate_series(1, 100000)";
    assert!(psql(&cluster.url(), rows).unwrap_err().contains("could not extend file"));
    buy(&mut client, 7);
    let line = server.wait_for_line("the database refuses the records");
    assert!(line["why"].as_str().unwrap().contains("could not extend file"), "{line}");
    cluster.limit_files("unlimited");
    server.wait_for_line("the database is connected");
    assert!(server.terminate().success());
    assert_eq!(cluster.ask("select count(*), max(item_id) from purchases"), "1|7");
    assert_eq!(cluster.count("select count(*) from checkouts"), 1);
}

/// Returns the value of a metric.
fn metric(server: &Server, name: &str) -> f64 {
    let metrics = Client::connect(server.admin).unwrap().request("GET /metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("the metric is there").parse().unwrap()
}

/// Returns the number of failed attempts to use the database.
fn retries(server: &Server) -> f64 {
    metric(server, "stampede_postgres_retries_total")
}

/// What needs a person is reported as what it is, once for each reason. The server does not report in between that the
/// database is connected.
#[test]
fn a_database_that_refuses_rows_is_not_called_unavailable() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    // An ordinary role that owns the schema.
    cluster.ask("create role shop login");
    cluster.ask("create schema stampede authorization shop");
    let url = cluster.url().replace("user=stampede", "user=shop");
    let server = start(dir.path(), &url, &["--shards", "1"]);
    server.wait_for_line("the database is connected");
    // The maintenance of the partitions changes the tables, too.
    let partitions = "stampede_postgres_partitions{table=\"purchases\"}";
    wait_until("the partitions are made", || metric(&server, partitions) > 0.0);
    let mut client = server.connect();
    let refusals = [
        (
            "revoke insert on stampede.purchases from shop",
            "permission denied",
            "grant insert on stampede.purchases to shop",
        ),
        (
            "alter table stampede.purchases rename column idempotency_key to other",
            "\"idempotency_key\" of relation \"purchases\" does not exist",
            "alter table stampede.purchases rename column other to idempotency_key",
        ),
        (
            "alter table stampede.purchases add constraint theirs check (item_id < 2) not valid",
            "violates check constraint",
            "alter table stampede.purchases drop constraint theirs",
        ),
        (
            "revoke update on stampede.clusters from shop",
            "permission denied",
            "grant update on stampede.clusters to shop",
        ),
    ];
    for (item, (change, reason, repair)) in (0..).zip(refusals) {
        cluster.ask(change);
        buy(&mut client, item);
        let line = server.wait_for_line("the database refuses the records");
        assert!(line["why"].as_str().is_some_and(|why| why.contains(reason)), "{line}");
        assert_eq!(client.request("GET /readyz").json()["postgres"]["connected"], false);
        let before = retries(&server);
        wait_until("the server has tried again", || retries(&server) > before + 2.0);
        assert_eq!(server.times_said("the database "), 0, "{change}: the reason is logged once");
        cluster.ask(repair);
        server.wait_for_line("the database is connected");
        client.wait_for_postgres();
    }
    assert!(server.terminate().success());
    assert_eq!(cluster.count("select count(*) from stampede.purchases"), refusals.len() as u64);
}

#[test]
fn a_newer_schema_is_refused() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    assert!(start(dir.path(), &cluster.url(), &[]).terminate().success());
    cluster.ask("insert into schema_migrations values (99)");
    let url = cluster.url();
    let arguments = [&LONG_SALE[..], &["--database-url", &url]].concat();
    assert_refused(dir.path(), &arguments, 8, &["version 99", "newer version"]);
}

/// A takeover of a sale that version 0.1 sells changes nothing, so that version 0.1 can continue.
#[test]
fn a_sale_of_another_format_is_not_taken_over() {
    let cluster = Cluster::start();
    // The schema of version 0.1, with the row of the sale that this server would open.
    for file in ["sql/0001_schema.sql", "sql/0002_checkout_key.sql"] {
        cluster.ask(&repository_text(file));
    }
    cluster.ask("create table schema_migrations (version integer primary key, applied_at timestamptz default now())");
    cluster.ask("insert into schema_migrations values (1), (2)");
    let sale = "floor(extract(epoch from now()) / 31536000)";
    cluster.ask(&format!("insert into sales values ({sale}, 100, 10, now())"));
    cluster.ask("insert into clusters values (gen_random_uuid(), 31536000, 1, gen_random_uuid(), now(), '-infinity')");
    let (empty, url) = (tempfile::tempdir().unwrap(), cluster.url());
    let arguments = [&LONG_SALE[..], &["--database-url", &url]].concat();
    assert_refused(empty.path(), &arguments, 8, &["was sold by version 0.1", "Another format"]);
    assert_eq!(cluster.ask("select max(version), to_regclass('extensions') is null from schema_migrations"), "2|t");
}

#[test]
fn a_row_that_must_not_be_there_is_an_alarm() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster.url(), &[]);
    let mut client = server.connect();
    buy(&mut client, 1);
    client.wait_for_postgres();
    cluster.ask("insert into purchases (sale_id, item_id, user_id, code, at) select sale_id, 2, 9, gen_random_uuid(), now() from sales");
    buy(&mut client, 2);
    let line = server.wait_for_line("cannot use the database");
    assert!(
        line["exit_code"] == 8 && line["message"].as_str().unwrap().contains("this purchase exists already"),
        "{line}"
    );
    assert_eq!(cluster.count("select user_id from purchases where item_id = 2"), 9);
}
