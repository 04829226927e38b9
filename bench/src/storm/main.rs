//! `storm` is a load generator for a sale. All load comes from one thread. It measures a server under the kinds of load
//! that a sale brings, and verifies that the server's responses are consistent with each other, with `GET /sale` and
//! with Postgres.
//!
//! A run, in order:
//!
//! 1. [`options`] parses the command line. [`server_client`] reads the state of the sale before the run and, for buyers
//!    who follow them, the [`sale_calendar`] of all sales.
//! 2. [`storm`] is the event loop. [`schedule`] says when the next buyer arrives, [`scenario`] what each buyer does,
//!    and [`buyer_socket`] is one connection. [`planned_buyers`] and [`opening_crowd`] are the buyers with a calendar.
//! 3. [`recorder`] evaluates each response, with [`checkout_body`] and [`server_date`], and passes it on: to the
//!    [`ledger`] of reservations and purchases, to the [`statistics`], to the [`opening_record`], and, if the response
//!    was unexpected, to the file of [`unexpected`] responses. Times are those of the [`run_clock`].
//! 4. Meanwhile [`stock_monitor`] samples `GET /sale`, and [`progress`] prints a line every second, which
//!    [`live`] shows as a page.
//! 5. [`evidence`] reads the state after the run, with [`server_client`] and [`purchase_rows`], and [`verification`]
//!    compares it with the ledger, by the [`receipt_rules`], the [`sale_rules`] and the [`row_rules`]. [`report`],
//!    [`page`] and [`plots`] render the result.

mod buyer_socket;
mod checkout_body;
mod evidence;
mod ledger;
mod live;
mod opening_crowd;
mod opening_record;
mod options;
mod page;
mod planned_buyers;
mod plots;
mod progress;
mod purchase_rows;
mod receipt_rules;
mod recorder;
mod report;
mod row_rules;
mod run_clock;
mod sale_calendar;
mod sale_rules;
mod scenario;
mod schedule;
mod server_client;
mod server_date;
mod statistics;
mod stock_monitor;
mod storm;
mod unexpected;
mod verification;

use clap::Parser;
use ledger::LedgerEntry;
use live::LivePage;
use opening_crowd::OpeningCrowd;
use opening_record::OpeningRecord;
use options::StormOptions;
use planned_buyers::PlannedBuyers;
use progress::RunProgress;
use recorder::RunRecorder;
use report::{Report, ReportOptions, SaleResult, VerificationScope, Versions};
use rustix::time::{ClockId, clock_gettime};
use sale_calendar::{CalendarSale, SaleCalendar, UnitRequest};
use scenario::{CalendarBuyers, Scenario, VirtualBuyers};
use schedule::{Pace, Schedule};
use server_client::ServerClient;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};
use stock_monitor::StockMonitor;
use storm::{RunSummary, Storm};
use unexpected::UnexpectedResponses;
use verification::{Evidence, SaleSnapshot, Violation, verify};

/// Default of `--duration`.
const DURATION: Duration = Duration::from_secs(10);
/// Seconds before an opening that its crowd needs.
const PREPARATION_S: u64 = 3;
/// Largest step of the system clock in a run that measures an opening.
const STEP_MAX: Duration = Duration::from_micros(500);

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
    let calendar = if options.scenario.has_calendar() { client.calendar()? } else { SaleCalendar::default() };

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
    let schedule = schedule(options, calendar, &mut recorder)?;
    let duration = schedule.end();
    let mut monitor = StockMonitor::new(address, before);
    let mut progress = RunProgress::new(live.as_ref(), options.title());
    let saving = |error| format!("{}: {error}; give another file with --unexpected", options.unexpected.display());
    let cpu_before = cpu_time();
    let summary = Storm::new(options, address, schedule, &mut recorder, &mut monitor)?
        .run(&mut progress, &stop)
        .map_err(saving)?;
    let cpu = cpu_time().saturating_sub(cpu_before);

    let clock_step = recorder.clock().step();
    let (mut evidence, verified) = match evidence::collect(options, address, before, &recorder) {
        Ok((evidence, verified)) => (Ok(evidence), verified),
        Err(error) => (Err(error.to_string()), VerificationScope::default()),
    };
    if recorder.opening.is_some() && clock_step > STEP_MAX {
        evidence = Err(format!("the system clock was stepped by {clock_step:?} during the run; run it again"));
    }
    let violations = evidence.as_ref().map_or(Vec::new(), |evidence| verify(&recorder.ledger, evidence));
    let after = evidence.as_ref().ok().map(|evidence| evidence.after);
    let mut report = report(options, server, &recorder, &summary, cpu, violations);
    report.settings.duration_s = duration.as_secs();
    report.sales = sale_results(&recorder, evidence.as_ref().ok());
    report.opening = recorder.opening.clone();
    (report.before, report.after, report.verified, report.unverified) = (before, after, verified, evidence.err());
    let published = publish(options, &report, &recorder, &monitor);
    if let Some(live) = live {
        live.end(&page::report_body(&report, &recorder.statistics, &monitor.samples)?);
    }
    published?;
    Ok(report.is_good())
}

/// Returns the schedule of the arrivals. In a scenario with a calendar, gives it to the buyers.
fn schedule(options: &StormOptions, calendar: SaleCalendar, recorder: &mut RunRecorder) -> Result<Schedule, String> {
    let (clock, given) = (recorder.clock(), options.duration.map(Duration::from_secs));
    if !options.scenario.has_calendar() {
        return Ok(Schedule::new(options.pace(), given.unwrap_or(DURATION)));
    }
    let now_s = clock.unix(Duration::ZERO).as_secs();
    let calendar = Rc::new(calendar);
    recorder.follow(Rc::clone(&calendar));
    if options.scenario == Scenario::Plan {
        if calendar.sales.is_empty() {
            return Err("no sale is open, and none follows; give the server a plan with a later one".into());
        }
        let end = given.unwrap_or(clock.until(calendar.ends_s()));
        let buyers = PlannedBuyers::new(calendar, options.users, options.connections);
        recorder.buyers.follow(CalendarBuyers::All(buyers));
        return Ok(Schedule::new(options.pace(), end));
    }
    let sale = calendar.next_after(now_s + PREPARATION_S).ok_or_else(|| {
        format!("no sale opens in {PREPARATION_S} s or later; give the server a plan with a sale that does")
    })?;
    let opens_s = calendar.sales[sale].opens_s;
    let request = UnitRequest {
        user: 0,
        sale,
        product: product_index(options, &calendar, sale)?,
        is_named: calendar.open_in(opens_s).count() > 1 || calendar.open_in(now_s).next().is_some(),
        waits: true,
    };
    recorder.buyers.follow(CalendarBuyers::Crowd(OpeningCrowd::new(request, options.connections)));
    let opens_at = clock.until(opens_s);
    let sale_id = calendar.sales[sale].before.sale_id;
    let record = OpeningRecord::new(sale_id, rfc3339(opens_s));
    recorder.measure_opening(record, opens_at);
    let pace = Pace::Opening { opens_at, connections: options.connections };
    Ok(Schedule::new(pace, given.unwrap_or(opens_at + DURATION)))
}

/// Returns the index of the product of `--product`, if it is given.
fn product_index(options: &StormOptions, calendar: &SaleCalendar, sale: usize) -> Result<Option<usize>, String> {
    let Some(id) = &options.product else { return Ok(None) };
    let products = &calendar.sales[sale].products;
    let index = products.iter().position(|product| product.product_id == *id);
    let sale_id = calendar.sales[sale].before.sale_id;
    index.map(Some).ok_or_else(|| format!("--product {id}: sale {sale_id} has no such product; see GET /products"))
}

fn rfc3339(unix_s: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s)).to_string()
}

/// Returns the results of the sales of the calendar.
fn sale_results(recorder: &RunRecorder, evidence: Option<&Evidence>) -> Vec<SaleResult> {
    let count = |sale: u64, is_counted: &dyn Fn(&LedgerEntry) -> bool| {
        let of_sale = recorder.ledger.reservations.iter().filter(|reservation| reservation.sale() == Some(sale));
        of_sale.filter(|reservation| is_counted(reservation)).count() as u64
    };
    let sales = recorder.calendar().sales.iter();
    sales
        .map(|CalendarSale { before, name, opens_s, closes_s, .. }| SaleResult {
            name: name.clone(),
            opens_at: rfc3339(*opens_s),
            closes_at: rfc3339(*closes_s),
            reserved: count(before.sale_id, &|_| true),
            bought: count(before.sale_id, &LedgerEntry::is_bought),
            before: *before,
            after: evidence.and_then(|evidence| evidence.of_sale(before.sale_id)).map(|known| known.after),
        })
        .collect()
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
        started: humantime::format_rfc3339_seconds(recorder.clock().system_time(Duration::ZERO)).to_string(),
        settings: ReportOptions {
            address: options.address.clone(),
            scenario: options.scenario.name(),
            rate: match options.pace() {
                Pace::Open { rate } => Some(rate),
                Pace::Closed | Pace::Opening { .. } => None,
            },
            users: options.users,
            connections: options.connections,
            duration_s: 0,
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
        sales: Vec::new(),
        opening: None,
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
