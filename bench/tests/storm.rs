//! End-to-end tests of `storm`: against Stampede, with and without Postgres, and against a server that responds
//! wrongly.
//!
//! Stampede is the binary from the same build: `cargo test --release --workspace` builds both.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[path = "../../tests/server/cluster.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod cluster;

#[path = "../../tests/server/browser.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod browser;

/// Time limit for the start of the server.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server process that is killed when it is dropped.
struct ServerProcess {
    child: Child,
    address: String,
}

impl ServerProcess {
    fn start(data_dir: &Path, arguments: &[&str]) -> ServerProcess {
        ServerProcess::spawn(data_dir, &[arguments, &["--sale-period", "365days"]].concat())
    }

    /// Starts a server with a plan.
    fn with_plan(data_dir: &Path, plan: &str, arguments: &[&str]) -> ServerProcess {
        std::fs::write(data_dir.join("plan.toml"), plan).unwrap();
        ServerProcess::spawn(data_dir, &[arguments, &["--plan", "plan.toml"]].concat())
    }

    fn spawn(data_dir: &Path, arguments: &[&str]) -> ServerProcess {
        let binary = Path::new(env!("CARGO_BIN_EXE_storm")).with_file_name("stampede");
        assert!(binary.exists(), "{} is missing: build it with `cargo build --workspace`", binary.display());
        let mut command = Command::new(binary);
        command.env_clear().current_dir(data_dir).arg("--data-dir").arg(data_dir).args(arguments);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"]);
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| _ = sender.send(line)));
        let mut server = ServerProcess { child, address: String::new() };
        loop {
            let line = log.recv_timeout(START_TIMEOUT).expect("the server reports that it serves");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(listen) = line["listen"].as_str() {
                listen.clone_into(&mut server.address);
            }
            if line["message"].as_str().is_some_and(|message| message.starts_with("serving")) {
                return server;
            }
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn storm(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storm"));
    command.current_dir(dir).args(arguments).args(["--json", "-"]);
    command
}

/// Returns the report, and whether the run was verified without a violation.
fn report(output: &Output) -> (serde_json::Value, bool) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let report = serde_json::from_slice(&output.stdout);
    let report: serde_json::Value =
        report.unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
    (report, output.status.success())
}

fn good(dir: &Path, arguments: &[&str]) -> serde_json::Value {
    let (report, is_good) = report(&storm(dir, arguments).output().unwrap());
    assert!(is_good, "{report:#}");
    assert_eq!((&report["violations"], &report["unexpected"]), (&serde_json::json!([]), &0.into()), "{report:#}");
    report
}

#[test]
fn a_chain_sells_all_items_and_a_sold_out_sale_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(dir.path(), &["--items", "500", "--shards", "2"]);
    let sold =
        good(dir.path(), &[&server.address, "--html", "report.html", "--svg", "plot.svg", "--connections", "16"]);
    assert_eq!(
        (&sold["bought"], &sold["after"]["sold"], &sold["verified"]["asked_again"]),
        (&500.into(), &500.into(), &500.into())
    );
    assert_eq!(sold["outcomes"], serde_json::json!({"checkout 200": 500, "purchase 200": 500}));
    assert_eq!(sold["latencies"]["purchase"]["count"], 500);
    let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    let plot = std::fs::read_to_string(dir.path().join("plot.svg")).unwrap();
    assert!(
        plot.starts_with("<svg") && page.contains(plot.split_once("</style>").unwrap().1),
        "the same plot as the first one of the page"
    );

    let rate = ["--scenario", "sold-out", "--rate", "100", "--duration", "1"];
    let refused = good(dir.path(), &[&[server.address.as_str()], &rate[..]].concat());
    // Requests that were due but not sent when the time was up are counted, too.
    let count = |outcome: &str| refused["outcomes"][outcome].as_u64().unwrap_or(0);
    let all = count("checkout item-sold") + count("checkout not asked");
    assert_eq!(all, 101, "a hundred within the second, and one at its end: {refused:#}");
}

#[test]
fn every_scenario_finds_its_purchases_in_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::Cluster::start();
    let url = cluster.url();
    let server =
        ServerProcess::start(dir.path(), &["--items", "400", "--database-url", &url, "--reservation-ttl", "2s"]);
    let storm = |scenario: &str, more: &[&str]| {
        let arguments = [server.address.as_str(), "--scenario", scenario, "--database-url", &url];
        good(dir.path(), &[&arguments[..], more].concat())
    };
    let hoarded = storm("hoarders", &["--users", "30", "--duration", "1"]);
    assert!(hoarded["reserved"].as_u64().unwrap() >= 300, "thirty users reserve ten items each: {hoarded:#}");
    assert_eq!(hoarded["bought"], 0);
    let mut bought = 0;
    let mut buy = |scenario: &str, more: &[&str]| {
        let report = storm(scenario, more);
        assert!(report["bought"].as_u64().unwrap() > 0, "{report:#}");
        bought += report["bought"].as_u64().unwrap();
        assert_eq!((&report["verified"]["rows"], &report["after"]["sold"]), (&bought.into(), &bought.into()));
        report
    };
    buy("trickle", &["--rate", "20", "--duration", "1"]);
    let retried = buy("retry", &["--users", "5", "--duration", "1"]);
    assert!(retried["outcomes"]["purchase hung up"].as_u64() > Some(0), "{retried:#}");
    assert!(retried["outcomes"]["purchase 200"].as_u64() > retried["bought"].as_u64(), "{retried:#}");
    buy("crowd", &["--users", "50", "--any"]);
    buy("crowd", &["--users", "2000"]);
}

/// Returns the current time, in seconds since the Unix epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns a sale of a plan that is open from `opens_s` until before `closes_s`. Products are ids with quantities.
fn planned(id: u32, (opens_s, closes_s): (u64, u64), terms: &str, products: &[(&str, u32)]) -> String {
    let time = |unix_s| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s));
    let (opens, closes) = (time(opens_s), time(closes_s));
    let mut sale = format!("[[sale]]\nid = {id}\nname = \"S\"\nopens = {opens}\ncloses = {closes}\n{terms}\n");
    for (product, quantity) in products {
        sale += &format!("[[sale.product]]\nid = \"{product}\"\nname = \"P\"\nquantity = {quantity}\n");
    }
    sale
}

#[test]
fn buyers_follow_the_sales_of_a_plan_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::Cluster::start();
    let (url, now) = (cluster.url(), now_s());
    let (limit, opens) = ("user_limit = 1", now + 5);
    let plan = [
        planned(2, (opens, opens + 5), "user_limit = 1\npaused = true", &[("p", 10)]),
        planned(3, (opens, opens + 4), limit, &[("a", 100_000), ("b", 5)]),
        planned(4, (opens + 2, opens + 6), limit, &[("a", 20), ("c", 20)]),
        planned(6, (opens + 8, opens + 10), limit, &[("a", 7)]),
        planned(7, (now + 7200, now + 7300), limit, &[("a", 7)]),
    ];
    let arguments = ["--database-url", &url, "--shards", "2"];
    let server = ServerProcess::with_plan(dir.path(), &plan.concat(), &arguments);
    let duration = (opens + 11 - now_s()).to_string();
    let arguments = [&server.address, "--scenario", "plan", "--duration", &duration, "--database-url", &url];
    let report = good(dir.path(), &arguments);

    let sale = |index: usize| &report["sales"][index];
    let sold =
        |index: usize| (sale(index)["before"]["sale_id"].as_u64(), sale(index)["after"]["sold"].as_u64().unwrap());
    assert_eq!([sold(0), sold(4)], [(Some(2), 0), (Some(7), 0)], "the paused one, and the one that is not open");
    assert_eq!([sold(2), sold(3)], [(Some(4), 40), (Some(6), 7)], "sold out: {report:#}");
    assert!(sold(1).1 > 100, "{report:#}");
    let all: u64 = (0..5).map(|index| sold(index).1).sum();
    assert_eq!((&report["bought"], &report["verified"]["rows"]), (&all.into(), &all.into()));
    for outcome in ["not-open", "sale-ended", "paused", "sold-out"] {
        assert!(report["outcomes"][format!("checkout {outcome}")].as_u64() > Some(0), "{outcome}: {report:#}");
    }
}

#[test]
fn a_crowd_waits_for_an_opening_and_measures_it() {
    let dir = tempfile::tempdir().unwrap();
    let opens = now_s() + 8;
    let plan = [
        planned(1, (opens - 60, opens + 60), "user_limit = 9", &[("a", 9)]),
        planned(2, (opens, opens + 60), "user_limit = 1", &[("a", 150), ("b", 5)]),
    ];
    let server = ServerProcess::with_plan(dir.path(), &plan.concat(), &[]);
    let arguments = [&server.address, "--scenario", "opening", "--connections", "200", "--product", "a"];
    let report = good(dir.path(), &arguments);
    let opening = &report["opening"];
    let at = |name: &str| opening[name].as_i64().unwrap_or_else(|| panic!("{name}: {report:#}"));
    assert_eq!((at("sale_id"), at("served_before"), at("served")), (2, 0, 150), "{report:#}");
    assert!(at("refused") >= 100, "each connection asks before the opening, if nothing stalls: {report:#}");
    assert!(0 < at("first_200_us") && at("first_200_us") <= at("hundredth_200_us"), "{report:#}");
    assert!(at("hundredth_200_us") <= at("last_200_us") && at("longest_gap_us") > 0, "{report:#}");
    assert_eq!((&report["bought"], &report["sales"][1]["after"]["sold"]), (&150.into(), &150.into()));
    let outcome = |name: &str| report["outcomes"][format!("checkout {name}")].as_u64().unwrap_or(0);
    assert_eq!(outcome("sold-out") + outcome("all-reserved"), 50, "{report:#}");

    let output = storm(dir.path(), &arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("no sale opens"), "{error}");
}

#[test]
fn ctrl_c_ends_a_run_with_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(dir.path(), &["--items", "100"]);
    let arguments = [server.address.as_str(), "--scenario", "sold-out", "--rate", "50", "--duration", "3600"];
    let mut storm = storm(dir.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(storm.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(progress.any(|line| line.contains("sold 0 of 100")), "a progress line is printed every second");
    let pid = rustix::process::Pid::from_child(&storm);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (report, is_good) = report(&storm.wait_with_output().unwrap());
    assert!(is_good && report["was_stopped"] == true && report["answers"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn the_live_page_shows_the_run_and_then_its_report() {
    let Some(browser) = browser::Browser::start() else {
        // The test runner captures `eprintln`, so that a skipped test would look like one that passed.
        return std::io::stderr().write_all(b"SKIPPED: the live page: no chromium\n").unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(dir.path(), &["--items", "50000"]);
    let arguments = [server.address.as_str(), "--scenario", "trickle", "--duration", "3600", "--live", "0"];
    let mut storm = storm(dir.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(storm.stderr.take().unwrap()).lines().map_while(Result::ok);
    let url = progress.find_map(|line| line.strip_prefix("storm: live report at ").map(str::to_owned)).unwrap();
    let port = url.strip_prefix("http://127.0.0.1:").expect("the page is local").trim_end_matches('/').to_owned();
    TcpStream::connect(format!("127.0.0.2:{port}")).expect_err("only 127.0.0.1 is served");
    std::thread::spawn(move || progress.count()); // A full pipe would delay the run.

    browser.open(&url, browser::Screen { width: 390, height: 844, is_dark: true });
    let cell = |name: &str| {
        format!(
            "Number([...document.querySelectorAll('tr')].find((row) => row.cells[0].textContent === '{name}')?.cells[1].textContent.match(/[0-9,]+/)[0].replace(',', ''))"
        )
    };
    browser.wait_for("document.querySelector('.verdict').textContent.startsWith('running: ')");
    let sent = browser.evaluate(&cell("requests sent")).as_u64().unwrap();
    for name in ["requests sent", "responses", "bought", "sold"] {
        browser.wait_for(&format!("{} > {}", cell(name), sent));
    }
    assert_eq!(browser.evaluate("document.querySelectorAll('main svg').length"), 3);
    assert_eq!(
        browser.evaluate("getComputedStyle(document.body).backgroundColor"),
        "rgb(15, 19, 24)",
        "the dark style"
    );
    browser.photograph(Path::new("/tmp/live.png"));
    let is_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(browser.evaluate(is_wide), false, "the page fits a phone");

    let pid = rustix::process::Pid::from_child(&storm);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (report, is_good) = report(&storm.wait_with_output().unwrap());
    assert!(is_good && report["was_stopped"] == true, "{report:#}");
    browser.wait_for("document.querySelector('.verdict').textContent.startsWith('verified: ')");
    assert_eq!(browser.evaluate(&cell("bought")), report["bought"], "the page shows the report after the end of storm");
    assert_eq!(browser.evaluate("document.querySelectorAll('main svg').length"), 3);
    assert!(browser.text("connection").starts_with("The run has ended."));
    assert!(browser.requested().iter().all(|asked| asked.starts_with(&url) || asked.starts_with("data:")));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_port_in_use_is_reported_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = storm(dir.path(), &["127.0.0.1:1", "--live", &port]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let named =
        error.contains(&format!("--live 127.0.0.1:{port}: Address already in use")) && error.contains("another port");
    assert!(output.status.code() == Some(2) && named, "{error}");
}

/// Starts a server that returns the same code to every checkout and a receipt for item 7 to every purchase. On each
/// connection, the first checkout takes `first_takes`. Returns its address.
fn faulty_server(first_takes: Duration) -> String {
    server_with(move || {
        let mut takes = first_takes;
        move |path: &str| {
            let body = match path {
                "/checkout" => {
                    std::thread::sleep(std::mem::take(&mut takes));
                    "5217a1a2-e116-86c4-ae9f-b285fb710516"
                }
                "/purchase" => r#"{"success":true,"sale_id":1,"item_id":7}"#,
                _ => r#"{"sale_id":1,"items_total":50,"sold":3,"reserved":0,"available":47,"user_limit":10}"#,
            };
            body.to_owned()
        }
    })
}

/// Starts a server that grants every checkout of a sale that opens at `opens_s`, whose `Date` is in 1970. Returns its address.
fn early_server(opens_s: u64) -> String {
    server_with(move || {
        move |path: &str| {
            let time = |unix_s| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s));
            let (opens, closes) = (time(opens_s), time(opens_s + 5));
            let counts = r#""sale_id":1,"items_total":50,"sold":3,"reserved":0,"available":47,"user_limit":10"#;
            let sale = format!(r#"{{"phase":"next","starts_at":"{opens}","ends_at":"{closes}",{counts}}}"#);
            match path {
                "/checkout" => format!(
                    r#"{{"code":"5217a1a2-e116-86c4-ae9f-b285fb710516","sale_id":1,"item_id":7,"expires_at":"{closes}"}}"#
                ),
                "/purchase" => r#"{"success":true,"sale_id":1,"item_id":7}"#.to_owned(),
                "/sales" => format!(r#"{{"sales":[{sale}]}}"#),
                "/products" => r#"{"products":[]}"#.to_owned(),
                _ => sale,
            }
        }
    })
}

/// Starts a server that answers each request with 200 and the body that a function returns for its path. `connect` makes a
/// function for each connection. Returns its address.
fn server_with<F: FnMut(&str) -> String + Send + 'static>(mut connect: impl FnMut() -> F + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let body_of = connect();
            std::thread::spawn(move || respond(stream.unwrap(), body_of));
        }
    });
    address
}

fn respond(mut stream: TcpStream, mut body_of: impl FnMut(&str) -> String) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let mut field = String::new();
        while reader.read_line(&mut field)? > 2 {
            field.clear();
        }
        let body = body_of(line.split(['?', ' ']).nth(1).unwrap_or_default());
        let date = "Thu, 01 Jan 1970 00:01:40 GMT";
        write!(stream, "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        line.clear();
    }
    Ok(())
}

#[test]
fn a_faulty_server_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let address = faulty_server(Duration::ZERO);
    let output = storm(dir.path(), &[&address]).output().unwrap();
    let (report, is_good) = report(&output);
    assert!(!is_good && output.status.code() == Some(1), "{report:#}");
    let violations = report["violations"].as_array().unwrap();
    for kind in ["code-given-twice", "wrong-receipt", "sale-disagrees", "purchase-not-confirmed"] {
        assert!(violations.iter().any(|violation| violation["violation"] == kind), "{kind}: {report:#}");
    }
}

#[test]
fn a_server_that_opens_too_early_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let opens_s = now_s() + 5;
    let address = early_server(opens_s);
    for scenario in ["opening", "plan"] {
        let output = storm(dir.path(), &[&address, "--scenario", scenario, "--connections", "5"]).output().unwrap();
        let (report, is_good) = report(&output);
        assert!(!is_good && output.status.code() == Some(1), "{report:#}");
        let violations = report["violations"].as_array().unwrap();
        let early: Vec<_> = violations.iter().filter(|found| found["violation"] == "served-before-opening").collect();
        let said = |part: &str| early.iter().any(|found| found["detail"].as_str().unwrap().contains(part));
        assert!(said("in second 100 of the server"), "{report:#}");
        assert_eq!(said("by the clock of this machine"), scenario == "opening", "{report:#}");
    }
}

#[test]
fn a_missing_or_stopped_server_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let output = storm(dir.path(), &["127.0.0.1:1"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("start the server"), "{error}");

    let server = ServerProcess::start(dir.path(), &["--items", "100"]);
    let arguments = [server.address.as_str(), "--scenario", "sold-out", "--rate", "50", "--duration", "2"];
    let mut storm = storm(dir.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    storm.stderr.as_mut().unwrap().read_exact(&mut first).unwrap(); // The run has started.
    drop(server);
    let output = storm.wait_with_output().unwrap();
    let (report, is_good) = report(&output);
    assert!(!is_good && output.status.code() == Some(1), "{report:#}");
    assert!(report["unverified"].as_str().unwrap().contains("the server is gone"), "{report:#}");
    assert!(report["outcomes"]["connect failed"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn a_stall_counts_for_every_buyer_who_arrived_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let address = faulty_server(Duration::from_secs(1));
    let open_loop = ["--scenario", "sold-out", "--rate", "100", "--duration", "2", "--connections", "1"];
    let output = storm(dir.path(), &[&[address.as_str()], &open_loop[..]].concat()).output().unwrap();
    // One response took a second. Half of the buyers arrived during that time and waited for up to a second.
    let (report, _) = report(&output);
    assert!(report["latencies"]["checkout"]["p90_us"].as_u64() > Some(400_000), "{report:#}");
}

#[test]
fn requests_without_a_response_time_out_and_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let address = faulty_server(Duration::from_secs(600));
    let arguments = ["--timeout", "1", "--duration", "2", "--connections", "2", "--unexpected-max", "3"];
    let output = storm(dir.path(), &[&[address.as_str()], &arguments[..]].concat()).output().unwrap();
    let (report, _) = report(&output);
    assert!(report["outcomes"]["checkout timed out"].as_u64() >= Some(4), "{report:#}");
    assert!(report["latencies"]["lost"]["p50_us"].as_u64() >= Some(1_000_000), "{report:#}");
    let saved = std::fs::read_to_string(dir.path().join(report["unexpected_file"].as_str().unwrap())).unwrap();
    assert_eq!(saved.matches("checkout timed out").count(), 3, "{saved}");
    assert!(saved.contains("POST /checkout?user_id=0&item_id="), "{saved}");
}
