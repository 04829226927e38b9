//! The metrics of the admin port, and the dashboard and alerts that use them.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Response, Server, repository_text, skipped, stampede, wait_until};
use crate::load::{connect, crowd};
use crate::planned::{PLAN, now_s, product, sale, write};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// Returns the value of each sample, by its name and labels as written.
pub fn scrape(admin: SocketAddr) -> BTreeMap<String, f64> {
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

/// Returns the sum over the samples of a metric whose labels contain `label`.
pub fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let of_it = samples.iter().filter(|(key, _)| key.starts_with(&format!("{name}{{")) && key.contains(label));
    of_it.map(|(_, value)| value).sum()
}

/// Starts a server with a database. Returns the server and its admin address.
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
    // No client waits for the attempt log, so its records become durable a little later.
    wait_until("all records are in Postgres", || sum(&scrape(admin), "stampede_postgres_records_total", "") == 16.0);
    let samples = scrape(admin);
    for (state, items) in [("sold", 5.0), ("reserved", 3.0), ("available", 42.0)] {
        assert_eq!(samples[&format!("stampede_sale_items{{state=\"{state}\"}}")], items, "{samples:#?}");
    }
    assert_eq!(sum(&samples, "stampede_connections", ""), 1.0);
    // 8 checkouts, 5 purchases, and one opening of the sale per shard.
    assert_eq!(sum(&samples, "stampede_log_records_durable_total", "purchases"), 8.0 + 5.0 + 2.0);
    assert_eq!(sum(&samples, "stampede_log_records_appended_total", ""), 8.0 + 5.0 + 2.0);
    assert_eq!(sum(&samples, "stampede_log_records_durable_total", "attempts"), 1.0);
    assert_eq!((samples["stampede_postgres_connected"], samples["stampede_postgres_behind_records"]), (1.0, 0.0));
    assert_eq!(samples["stampede_ready"], 1.0);
    assert_eq!(samples["stampede_sale_id"], client.sale()["sale_id"].as_f64().unwrap());
    // An upgrade also hands over the admin port.
    server.upgrade();
    assert_eq!(scrape(admin)["stampede_sale_items{state=\"sold\"}"], 5.0);
    // The new process counts only the records that it writes. First, each of its shards writes an opening of the sale.
    let written = || sum(&scrape(admin), "stampede_log_records_durable_total", "purchases");
    wait_until("each shard has written the opening of the sale", || written() == 2.0);
    assert_eq!(client.purchase(&codes[5]).status, 200);
    assert_eq!(written(), 2.0 + 1.0);
    server.signal(rustix::process::Signal::TERM);
    wait_until("the admin port is closed", || Client::connect(admin).is_err());
    assert!(server.end_by_itself().success());
}

/// Number of responses that the clients received, by their labels in `stampede_requests_total`.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<String, f64>>);

impl Tally {
    fn ask(&self, client: &mut Client, method: &str, target: &str) -> Response {
        let response = client.request(&format!("{method} {target}"));
        let reason = if response.status < 400 { String::new() } else { response.problem() };
        let is_known = !["not-found", "method-not-allowed"].contains(&reason.as_str());
        let path = target.split('?').next().unwrap();
        let (method, route) = if is_known { (method, path) } else { ("", "") };
        let status = response.status;
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\",reason=\"{reason}\"");
        *self.0.lock().unwrap().entry(labels).or_default() += 1.0;
        response
    }
}

/// Checks the durations of the turns of each shard: each turn is counted, 5 ms is a bound, and the longest turn is in the
/// last bucket that is not empty.
fn check_turns(samples: &BTreeMap<String, f64>, shards: u32) {
    for shard in 0..shards {
        let value = |name: &str| samples[&format!("{name}{{shard=\"{shard}\"}}")];
        let up_to = |le: &str| samples[&format!("stampede_turn_seconds_bucket{{le=\"{le}\",shard=\"{shard}\"}}")];
        let (turns, counted) = (value("stampede_turns_total"), value("stampede_turn_seconds_count"));
        // A turn counts itself when it publishes its numbers, and its duration when it ends.
        assert!(counted > 0.0 && (turns - counted).abs() <= 2.0, "{turns} turns, {counted} durations");
        let (longest, sum) = (value("stampede_longest_turn_seconds"), value("stampede_turn_seconds_sum"));
        assert!(0.0 < longest && longest <= sum, "the longest of {counted} turns took {longest} s of {sum} s");
        assert!(up_to("0.005") <= counted && up_to("+Inf") == counted);
        assert_eq!(longest <= 0.005, up_to("0.005") == counted, "{longest} s");
    }
}

/// Clients send valid and invalid requests of every kind to several shards at once. The counters miss no response and
/// count none twice.
#[test]
fn counters_equal_what_clients_have_counted() {
    const CLIENTS: u32 = 8;
    let mut cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--items", "300", "--shards", "3", "--reservation-ttl", "1s", "--database-url", &cluster.url()];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat());
    server.wait_for_line("the database is connected");
    let (tally, address, released) = (Tally::default(), server.address, Mutex::new(BTreeSet::new()));
    crowd(CLIENTS, |number| {
        let mut random = fastrand::Rng::with_seed(number.into());
        let mut client = connect(address);
        let mut codes = vec!["0".to_owned(), "00027232-4538-87b2-840d-b281356ddb74".to_owned()];
        for _ in 0..500 {
            let code = codes[random.usize(..codes.len())].clone();
            match random.u32(..20) {
                0..10 => {
                    let target = format!("/checkout?user_id={}&item_id={}", random.u32(..40), random.u32(..302));
                    let response = tally.ask(&mut client, "POST", &target);
                    if response.status == 200 {
                        codes.push(response.body);
                    }
                }
                10..13 => drop(tally.ask(&mut client, "POST", &format!("/purchase?code={code}"))),
                13..15 => {
                    if tally.ask(&mut client, "DELETE", &format!("/checkout?code={code}")).status == 204 {
                        // A repeated release gets the same answer, and releases nothing.
                        released.lock().unwrap().insert(code);
                    }
                }
                15 => drop(tally.ask(&mut client, "GET", ["/sale", "/livez", "/readyz"][random.usize(..3)])),
                16 => drop(tally.ask(&mut client, "GET", "/nothing")),
                17 => drop(tally.ask(&mut client, "GET", "/purchase")),
                18 => drop(tally.ask(&mut client, "POST", "/checkout?user_id=x&item_id=1")),
                _ => drop(tally.ask(&mut client, "POST", "/checkout?user_id=1")),
            }
        }
    });
    let counted = tally.0.into_inner().unwrap();
    assert!(counted.len() > 15, "too few kinds of responses: {counted:#?}");
    let mut client = server.connect();
    wait_until("every hold has expired", || client.sale()["reserved"] == 0);
    let of =
        |part: &str| counted.iter().filter(|(labels, _)| labels.contains(part)).map(|(_, count)| count).sum::<f64>();
    let refused = ["item-sold", "item-reserved", "user-limit"].map(of).iter().sum::<f64>();
    // No client waits for the attempt log, so its records become durable a little later.
    let durable = |log| sum(&scrape(server.admin), "stampede_log_records_durable_total", log);
    wait_until("all attempts are durable", || durable("attempts") == refused);
    // Each shard has opened the sale, and each hold has ended. The counts can be ahead of the flush of the last ends.
    let granted = of("method=\"POST\",route=\"/checkout\",status=\"200\"");
    wait_until("all records are durable", || durable("purchases") == 3.0 + 2.0 * granted);
    client.wait_for_postgres();
    let samples = scrape(server.admin);
    for (labels, count) in &counted {
        // The test itself has requested these two pages since, so their counters are higher.
        if !labels.contains("/sale") && !labels.contains("/readyz") {
            assert_eq!(samples[&format!("stampede_requests_total{{{labels}}}")], *count, "{labels}");
        }
    }
    for (method, path) in [("POST", "/checkout"), ("POST", "/purchase"), ("DELETE", "/checkout"), ("GET", "/livez")] {
        let labels = format!("method=\"{method}\",route=\"{path}\"");
        assert_eq!(samples[&format!("stampede_request_seconds_count{{{labels}}}")], of(&labels), "{labels}");
        assert_eq!(samples[&format!("stampede_request_seconds_bucket{{le=\"+Inf\",{labels}}}")], of(&labels));
    }
    let all = sum(&samples, "stampede_requests_total", "");
    assert_eq!(sum(&samples, "stampede_shard_requests_total", ""), all);
    assert!(all >= f64::from(CLIENTS * 500), "{all}");

    let sold = samples["stampede_sale_items{state=\"sold\"}"];
    let cancelled = released.into_inner().unwrap().len() as f64;
    assert!(sold > 0.0 && cancelled > 0.0 && cancelled < of("status=\"204\""));
    assert_eq!(samples["stampede_holds_released_total{reason=\"cancelled\"}"], cancelled);
    assert_eq!(samples["stampede_holds_released_total{reason=\"expired\"}"], granted - cancelled - sold);
    for log in ["purchases", "attempts"] {
        assert_eq!(samples[&format!("stampede_log_flush_records_sum{{log=\"{log}\"}}")], durable(log));
        let flushes = samples[&format!("stampede_log_flush_seconds_count{{log=\"{log}\"}}")];
        assert!(flushes > 0.0 && flushes <= durable(log), "{flushes} flushes of {log}");
    }
    for (table, rows) in [("checkouts", granted + refused), ("purchases", sold), ("releases", granted - sold)] {
        assert_eq!(samples[&format!("stampede_postgres_rows_total{{table=\"{table}\"}}")], rows, "{table}");
    }
    let transactions = samples["stampede_postgres_transaction_seconds_count"];
    assert!(transactions > 0.0 && transactions <= durable("purchases") + refused);
    assert!(sum(&samples, "stampede_lane_messages_total", "") >= sum(&samples, "stampede_lane_batches_total", ""));
    assert!(sum(&samples, "stampede_lane_batches_total", "") > 0.0);
    check_turns(&samples, 3);
    // Compare with the kernel's figures for the same process.
    let descriptors = ["process_open_fds", "process_max_fds"].map(|name| samples[name]);
    assert!(10.0 < descriptors[0] && descriptors[0] < descriptors[1], "{descriptors:?}");
    assert!(samples["process_cpu_seconds_total"] >= sum(&samples, "stampede_shard_cpu_seconds_total", ""));
    let resident = server.resident_kib() as f64 * 1024.0;
    assert!((0.5..2.0).contains(&(samples["process_resident_memory_bytes"] / resident)), "{resident}");
    // The server retries after the database disconnects.
    let before = samples["stampede_postgres_retries_total"];
    cluster.kill();
    wait_until("the server retries the connection", || {
        scrape(server.admin)["stampede_postgres_retries_total"] > before
    });
}

/// Each open sale has gauges of its own. The older metrics are those of the sale that has opened last.
#[test]
fn every_open_sale_is_measured() {
    let (dir, now) = (tempfile::tempdir().unwrap(), now_s());
    let closes = now + 6;
    let plan = [
        sale(3, (now - 60, now + 3600), "user_limit = 9", &product("a", 3)),
        sale(4, (now - 30, closes), "user_limit = 9\npaused = true", &product("a", 5)),
    ];
    write(dir.path(), &plan);
    let server = Server::start(dir.path(), &PLAN);
    let bought = server.connect().request("POST /checkout?user_id=1&sale_id=3").body;
    assert_eq!(server.connect().purchase(&bought).status, 200);
    server.connect().request("POST /checkout?user_id=1&sale_id=3");
    let samples = scrape(server.admin);
    let of_open = |samples: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
        samples.clone().into_iter().filter(|(name, _)| name.starts_with("stampede_open_sale_")).collect()
    };
    let gauges = |sale: u32, times: [u64; 2], paused: f64, items: [u32; 3]| {
        let name = |name: &str, more: &str| format!("stampede_open_sale_{name}{{sale_id=\"{sale}\"{more}}}");
        let states = ["sold", "reserved", "available"].map(|state| name("items", &format!(",state=\"{state}\"")));
        let [start, end] = ["start", "end"].map(|name| format!("{name}_timestamp_seconds")).map(|text| name(&text, ""));
        let others = [(start, times[0] as f64), (end, times[1] as f64), (name("paused", ""), paused)];
        states.into_iter().zip(items.map(f64::from)).chain(others).collect::<BTreeMap<_, _>>()
    };
    let third = gauges(3, [now - 60, now + 3600], 0.0, [1, 1, 1]);
    let mut both = gauges(4, [now - 30, closes], 1.0, [0, 0, 5]);
    both.extend(third.clone());
    assert_eq!(of_open(&samples), both);
    assert_eq!((samples["stampede_sale_id"], samples["stampede_sale_items{state=\"available\"}"]), (4.0, 5.0));
    wait_until("sale 4 has closed", || of_open(&scrape(server.admin)) == third);
    assert!(now_s() >= closes);
    assert_eq!(scrape(server.admin)["stampede_sale_id"], 4.0);
    assert!(server.terminate().success());
}

const OBSERVE: &str = "tuning/observe";

/// Returns the metric of a sample. A histogram has three kinds of samples.
fn family(sample: &str) -> String {
    let parts = ["_bucket", "_sum", "_count"];
    parts.iter().find_map(|part| sample.strip_suffix(part)).unwrap_or(sample).to_owned()
}

/// The process metrics are available where `/proc` shows only processes, as under `tuning/stampede.service`.
#[test]
fn the_process_is_measured_where_proc_is_of_processes_alone() {
    if !rustix::process::geteuid().is_root() {
        return skipped("a smaller /proc", "mounting requires root");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = stampede(dir.path(), &LONG_SALE);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t proc -o subset=pid proc /proc && exec \"$0\" \"$@\""]);
    command.arg(server.get_program()).args(server.get_args()).stdout(Stdio::null()).stderr(Stdio::piped());
    let server = Server::run(command.current_dir(dir.path()));
    server.wait_for_line("serving");
    let samples = scrape(server.admin);
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(samples["process_start_time_seconds"]);
    assert!(started.elapsed().unwrap_or_default() < Duration::from_secs(600), "{samples:#?}");
    assert!(samples["process_resident_memory_bytes"] > 1e6 && samples["process_threads"] > 3.0, "{samples:#?}");
}

/// The dashboard and the alerts use only existing metrics, and the dashboard shows every metric.
#[test]
fn dashboard_and_alerts_know_the_metrics() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let (server, admin) = start(&cluster, dir.path());
    server.connect().wait_for_postgres();
    let exist: BTreeSet<String> =
        scrape(admin).keys().map(|sample| family(sample.split('{').next().unwrap())).collect();
    let text = |name: &str| repository_text(&format!("{OBSERVE}/{name}"));
    let _: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let named = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("stampede_") || word.starts_with("process_")).map(family).collect()
    };
    let (dashboard, alerts) = (named(&text("dashboard.json")), named(&text("alerts.yml")));
    assert_eq!(dashboard, exist, "each metric has at least one panel");
    assert!(alerts.len() > 3 && alerts.is_subset(&exist), "{alerts:?}");
    // A label value that no sample has would keep an alert silent for ever. A regular expression lists its values.
    let (rules, samples) = (text("alerts.yml"), scrape(admin).into_keys().collect::<Vec<_>>());
    for (selector, label) in [("le=\"", "le"), ("reason=\"", "reason"), ("route=~\"", "route")] {
        let values = rules.split(selector).skip(1).flat_map(|rest| rest.split('"').next().unwrap().split('|'));
        let values: BTreeSet<_> = values.map(|value| format!("{label}=\"{value}\"")).collect();
        let unknown: Vec<_> = values.iter().filter(|value| !samples.iter().any(|key| key.contains(*value))).collect();
        assert!(values.len() > 1 && unknown.is_empty(), "{values:?}, unknown: {unknown:?}");
    }
    server.signal(rustix::process::Signal::TERM);
    server.wait_for_line("stopped");
}
