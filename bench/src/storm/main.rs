//! `storm` is a load generator for a sale. All load comes from one thread. It measures a server under the kinds of load
//! that a sale brings, and verifies that the server's responses are consistent with each other, with `GET /sale` and
//! with Postgres.
//!
//! A run, in order:
//!
//! 1. [`options`] parses the command line. [`server_client`] reads the state of the sale before the run.
//! 2. [`storm`] is the event loop. [`schedule`] says when the next buyer arrives, [`scenario`] what each buyer does,
//!    and [`buyer_socket`] is one connection.
//! 3. [`recorder`] passes each response on: to the [`ledger`] of reservations and purchases, to the [`statistics`],
//!    and, if the response was unexpected, to the file of [`unexpected`] responses.
//! 4. Meanwhile [`stock_monitor`] samples `GET /sale`, and [`progress`] prints a line every second, which
//!    [`live`] shows as a page.
//! 5. [`server_client`] and [`purchase_rows`] read the state after the run, and [`verification`] compares it with the
//!    ledger. [`report`], [`page`] and [`plots`] render the result.

mod buyer_socket;
mod ledger;
mod live;
mod options;
mod page;
mod plots;
mod progress;
mod purchase_rows;
mod recorder;
mod report;
mod scenario;
mod schedule;
mod server_client;
mod statistics;
mod stock_monitor;
mod storm;
mod unexpected;
mod verification;

use clap::Parser;
use ledger::{Ledger, LedgerEntry, PurchaseResponse};
use live::LivePage;
use options::StormOptions;
use progress::RunProgress;
use recorder::RunRecorder;
use report::{Report, ReportOptions, VerificationScope, Versions};
use rustix::time::{ClockId, clock_gettime};
use scenario::{Scenario, VirtualBuyers};
use schedule::Pace;
use server_client::ServerClient;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use stock_monitor::StockMonitor;
use storm::{RunSummary, Storm};
use unexpected::UnexpectedResponses;
use verification::{Evidence, SaleSnapshot, Violation, verify};

/// Time within which `GET /sale` must include every purchase that was acknowledged.
const SETTLING: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let options = StormOptions::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the scenario, verifies it and writes the report. Returns whether the run was verified without a violation.
fn run(options: &StormOptions) -> Result<bool, Box<dyn Error>> {
    let address = options.address()?;
    let unreachable = |error| format!("no sale at {address}: {error}; start the server, or give its address");
    let live = open_live_page(options)?;
    let mut client = ServerClient::connect(address).map_err(unreachable)?;
    let before = client.sale().map_err(unreachable)?;
    let server = client.version();
    options.check(before.items_total, before.user_limit)?;

    if options.scenario == Scenario::SoldOut && before.available > 0 {
        let free = before.available;
        eprintln!(
            "storm: {free} items are available, so some checkouts will succeed; run --scenario chain first to sell them"
        );
    }

    // The first Ctrl-C ends the run with its report. The second ends the process.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }

    let buyers = VirtualBuyers::new(options.scenario, options.users, before.items_total, options.seed);
    let unexpected = UnexpectedResponses::new(&options.unexpected, options.unexpected_max);
    let mut recorder = RunRecorder::new(options.scenario, options.wanted(), buyers, unexpected);
    let mut monitor = StockMonitor::new(address, before);
    let mut progress = RunProgress::new(live.as_ref(), options.title());
    let saving = |error| format!("{}: {error}; give another file with --unexpected", options.unexpected.display());
    let cpu_before = cpu_time();
    let summary =
        Storm::new(options, address, &mut recorder, &mut monitor)?.run(&mut progress, &stop).map_err(saving)?;
    let cpu = cpu_time().saturating_sub(cpu_before);

    let (evidence, verified) = match collect_evidence(options, address, before, &recorder) {
        Ok((evidence, verified)) => (Ok(evidence), verified),
        Err(error) => (Err(error.to_string()), VerificationScope::default()),
    };
    let violations = evidence.as_ref().map_or(Vec::new(), |evidence| verify(&recorder.ledger, evidence));
    let after = evidence.as_ref().ok().map(|evidence| evidence.after);
    let mut report = report(options, server, &recorder, &summary, cpu, violations);
    (report.before, report.after, report.verified, report.unverified) = (before, after, verified, evidence.err());
    let published = publish(options, &report, &recorder, &monitor);
    if let Some(live) = live {
        live.end(&page::report_body(&report, &recorder.statistics, &monitor.samples)?);
    }
    published?;
    Ok(report.is_good())
}

/// Opens the page of `--live`, if it is asked for, and prints its URL.
fn open_live_page(options: &StormOptions) -> Result<Option<LivePage>, String> {
    let Some(address) = options.live else { return Ok(None) };
    let page = LivePage::open(address)
        .map_err(|error| format!("--live {address}: {error}; give another port, or 0 for any free one"))?;
    eprintln!("storm: live report at http://{}/", page.address());
    Ok(Some(page))
}

/// Returns the CPU time of this process, user and system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Reads the state after the run from the server and, if a URL is given, from the database. Also repeats a sample of
/// the acknowledged purchases.
fn collect_evidence(
    options: &StormOptions,
    address: SocketAddr,
    before: SaleSnapshot,
    recorder: &RunRecorder,
) -> Result<(Evidence, VerificationScope), Box<dyn Error>> {
    let ledger = &recorder.ledger;
    let mut client = ServerClient::connect(address).map_err(|error| format!("the server is gone: {error}"))?;
    let bought: Vec<_> =
        ledger.reservations.iter().enumerate().filter(|(_, reservation)| reservation.is_bought()).collect();
    let has_keys = options.scenario.has_keys();
    let asked_again = repeat_purchases(&mut client, options, &bought)?;
    let outcomes = recorder.statistics.outcomes.iter().filter(|outcome| outcome.operation != "connect");
    let outcomes = outcomes.map(|outcome| (outcome.operation, outcome.name.clone(), outcome.count)).collect();
    let after = settled_sale(&mut client, before, ledger)?;
    let mut verified = VerificationScope { asked_again: asked_again.len(), ..VerificationScope::default() };
    let mut rows = None;
    if let Some(url) = &options.database_url {
        let sales: Vec<u64> = ledger.by_sale(after.sale_id).into_keys().collect();
        let codes: Vec<_> = bought.iter().map(|(_, reservation)| &reservation.code).collect();
        let patience = Duration::from_secs(options.patience);
        let (found, waited) = purchase_rows::fetch(url, &sales, &codes, patience)?;
        (verified.rows, verified.rows_waited_s) = (Some(found.len()), Some(waited.as_secs_f64()));
        rows = Some(found);
    }
    let (others_buy, buys_one_product) = (options.others_buy, options.product.is_some());
    Ok((Evidence { before, after, others_buy, buys_one_product, has_keys, asked_again, rows, outcomes }, verified))
}

/// Repeats the purchase requests of a random sample of the acknowledged purchases.
fn repeat_purchases(
    client: &mut ServerClient,
    options: &StormOptions,
    bought: &[(usize, &LedgerEntry)],
) -> io::Result<Vec<(usize, PurchaseResponse)>> {
    let has_key = options.scenario.has_keys();
    let mut sample: Vec<_> = bought.iter().collect();
    fastrand::Rng::with_seed(options.seed).shuffle(&mut sample);
    sample.truncate(options.sample);
    sample.into_iter().map(|(place, reservation)| Ok((*place, client.purchase(reservation, has_key)?))).collect()
}

/// Returns the state of the sale, once it counts every purchase that was acknowledged. A shard publishes its counts
/// shortly after it responds, so a purchase may be missing from the first response.
fn settled_sale(client: &mut ServerClient, before: SaleSnapshot, ledger: &Ledger) -> io::Result<SaleSnapshot> {
    let end = Instant::now() + SETTLING;
    loop {
        let sale = client.sale()?;
        let counts_all = u64::from(sale.sold.saturating_sub(before.sold)) >= ledger.bought();
        if counts_all || sale.sale_id != before.sale_id || Instant::now() > end {
            return Ok(sale);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn report(
    options: &StormOptions,
    server: Option<String>,
    recorder: &RunRecorder,
    summary: &RunSummary,
    cpu: Duration,
    violations: Vec<Violation>,
) -> Report {
    let statistics = &recorder.statistics;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Report {
        started: humantime::format_rfc3339_seconds(recorder.started()).to_string(),
        settings: ReportOptions {
            address: options.address.clone(),
            scenario: options.scenario.name(),
            rate: match options.pace() {
                Pace::Open { rate } => Some(rate),
                Pace::Closed => None,
            },
            users: options.users,
            connections: options.connections,
            duration_s: options.duration,
            timeout_s: options.timeout,
            seed: options.seed,
        },
        versions: Versions {
            storm: env!("CARGO_PKG_VERSION"),
            server,
            kernel,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        },
        seconds: summary.took.as_secs_f64(),
        was_stopped: summary.was_stopped,
        answers: statistics.answers(),
        answers_per_second: statistics.answers() as f64 / summary.took.as_secs_f64(),
        storm_cpu_us_per_answer: cpu.as_secs_f64() * 1e6 / statistics.answers().max(1) as f64,
        reserved: recorder.ledger.reservations.len() as u64,
        bought: recorder.ledger.bought(),
        unknown: recorder.ledger.reservations.iter().filter(|reservation| reservation.is_unknown()).count() as u64,
        last_purchase_s: statistics.last_purchase.as_secs_f64(),
        outcomes: report::outcomes(statistics),
        latencies: report::latencies(statistics),
        before: SaleSnapshot::default(),
        after: None,
        unexpected: recorder.unexpected.count,
        unexpected_file: recorder.unexpected.path().map(|path| path.display().to_string()),
        verified: VerificationScope::default(),
        unverified: None,
        violations,
    }
}

/// Prints the report, and writes it to the files that the options name.
fn publish(
    options: &StormOptions,
    report: &Report,
    recorder: &RunRecorder,
    monitor: &StockMonitor,
) -> Result<(), Box<dyn Error>> {
    let write = |flag: &str, path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|error| format!("{flag} {}: {error}; give another file", path.display()))
    };
    let is_printed = options.json.as_deref() == Some(Path::new("-"));
    let json = format!("{}\n", serde_json::to_string(report)?);
    let printed = if is_printed { json.clone() } else { report.text() };
    match io::stdout().write_all(printed.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    if let Some(path) = options.json.as_deref().filter(|_| !is_printed) {
        write("--json", path, &json)?;
    }
    if let Some(path) = &options.html {
        write("--html", path, &page::page(report, &recorder.statistics, &monitor.samples)?)?;
    }
    if let Some(path) = &options.svg {
        write("--svg", path, &plots::picture(&plots::latencies(&recorder.statistics)?))?;
    }
    Ok(())
}
