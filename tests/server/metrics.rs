//! What operators read at the admin port, and what watches over it.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, in_repository, repository_text, skipped, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Each sample's value, by its name and labels as they are written.
fn scrape(admin: SocketAddr) -> BTreeMap<String, f64> {
    let response = Client::connect(admin).unwrap().try_request("GET /metrics", "").unwrap();
    let kind = response.header("content-type").unwrap();
    assert!(response.status == 200 && kind.starts_with("application/openmetrics-text"), "{response:?}");
    assert!(response.body.ends_with("# EOF\n"), "{response:?}");
    let samples = response.body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let of_it = samples.iter().filter(|(key, _)| key.starts_with(&format!("{name}{{")) && key.contains(label));
    of_it.map(|(_, value)| value).sum()
}

/// A server with a database, and its admin port.
fn start(cluster: &Cluster, dir: &Path) -> (Server, SocketAddr) {
    let arguments = ["--items", "50", "--reservation-ttl", "1h", "--shards", "2", "--database-url", &cluster.url()];
    let server = Server::spawn(dir, &[&LONG_SALE[..], &arguments].concat());
    let admin = server.admin;
    server.wait_for_line("serving");
    server.wait_for_line("the database is connected");
    (server, admin)
}

#[test]
fn metrics_are_what_clients_have_counted() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let (mut server, admin) = start(&cluster, dir.path());
    let mut client = server.connect();
    let codes: Vec<_> = (0..8).map(|item| client.reserve(1, item)).collect();
    codes[..5].iter().for_each(|code| assert_eq!(client.purchase(code).status, 200));
    assert_eq!(client.checkout(2, 1).problem(), "item-sold");
    // Nobody waits for attempts: they are written a little later.
    wait_until("everything is recorded", || sum(&scrape(admin), "stampede_postgres_records_total", "") == 16.0);
    let samples = scrape(admin);
    for (state, items) in [("sold", 5.0), ("reserved", 3.0), ("available", 42.0)] {
        assert_eq!(samples[&format!("stampede_sale_items{{state=\"{state}\"}}")], items, "{samples:#?}");
    }
    assert_eq!(sum(&samples, "stampede_connections", ""), 1.0);
    // What was granted and bought, and the opening of the sale by each shard.
    assert_eq!(sum(&samples, "stampede_log_records_durable_total", "purchases"), 8.0 + 5.0 + 2.0);
    assert_eq!(sum(&samples, "stampede_log_records_appended_total", ""), 8.0 + 5.0 + 2.0);
    assert_eq!(sum(&samples, "stampede_log_records_durable_total", "attempts"), 1.0);
    assert_eq!((samples["stampede_postgres_connected"], samples["stampede_postgres_behind_records"]), (1.0, 0.0));
    assert_eq!(samples["stampede_ready"], 1.0);
    assert_eq!(samples["stampede_sale_id"], client.sale()["sale_id"].as_f64().unwrap());
    // The port changes hands with everything else.
    server.upgrade();
    assert_eq!(scrape(admin)["stampede_sale_items{state=\"sold\"}"], 5.0);
    // It counts what it writes itself: first of all, each shard, which sale it goes on with.
    let written = || sum(&scrape(admin), "stampede_log_records_durable_total", "purchases");
    wait_until("each shard has written that", || written() == 2.0);
    assert_eq!(client.purchase(&codes[5]).status, 200);
    assert_eq!(written(), 2.0 + 1.0);
    server.signal(rustix::process::Signal::TERM);
    wait_until("it is gone", || Client::connect(admin).is_err());
    assert!(server.end_by_itself().success());
}

const OBSERVE: &str = "tuning/observe";

/// The dashboard and the alerts ask for nothing that is not there, and leave nothing out that is.
#[test]
fn dashboard_and_alerts_know_the_metrics() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let (server, admin) = start(&cluster, dir.path());
    server.connect().wait_for_postgres();
    let exist: BTreeSet<String> =
        scrape(admin).keys().map(|sample| sample.split('{').next().unwrap().to_owned()).collect();
    let text = |name: &str| repository_text(&format!("{OBSERVE}/{name}"));
    let _: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let named = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("stampede_")).map(str::to_owned).collect()
    };
    let (dashboard, alerts) = (named(&text("dashboard.json")), named(&text("alerts.yml")));
    assert_eq!(dashboard, exist, "one panel at least for each metric");
    assert!(alerts.len() > 3 && alerts.is_subset(&exist), "{alerts:?}");
    server.signal(rustix::process::Signal::TERM);
    server.wait_for_line("stopped");
}

#[test]
fn prometheus_takes_its_files() {
    let check = |what: &str, file: &str| {
        let output = Command::new("promtool").args(["check", what]).arg(in_repository(OBSERVE).join(file)).output();
        output.map(|output| (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let Ok((is_good, said)) = check("config", "prometheus.yml") else {
        return skipped("Prometheus's files", "no promtool");
    };
    assert!(is_good, "{said}");
    let (is_good, said) = check("rules", "alerts.yml").unwrap();
    assert!(is_good && said.contains("7 rules found"), "{said}");
}
