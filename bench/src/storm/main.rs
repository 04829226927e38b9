//! `storm`: a crowd for a sale, on one thread. It measures a server under the kinds of load that a sale brings, and
//! verifies everything that it was told.
//!
//! A run, in order: [`settings`] from the command line; [`shop`] asks how the sale stands. [`storm`] is the run: buyers
//! come as [`schedule`] says, want what [`scenario`] says, and go over [`connection`]s. [`books`] takes each answer to
//! the [`ledger`], which keeps what was told, to the [`tally`], which counts, to the [`unexpected`] ones, and back to
//! the buyer; [`watch`] looks at the stock and [`progress`] says how far it is. At the end [`shop`] and [`database`]
//! find out what became of it all, [`verify`] judges, and [`report`] and [`page`] with its [`plots`] tell.

mod books;
mod connection;
mod database;
mod ledger;
mod page;
mod plots;
mod progress;
mod report;
mod scenario;
mod schedule;
mod settings;
mod shop;
mod storm;
mod tally;
mod unexpected;
mod verify;
mod watch;

use books::Books;
use clap::{Parser, ValueEnum};
use ledger::{Ledger, Reservation, Told};
use progress::Progress;
use report::{Report, Verified, Versions};
use rustix::time::{ClockId, clock_gettime};
use scenario::{Buyers, Scenario};
use schedule::Pace;
use settings::Settings;
use shop::Shop;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use storm::{Ended, Storm};
use unexpected::Unexpected;
use verify::{Findings, Sale, Violation, verify};
use watch::Watch;

/// How long `GET /sale` may take to say what every shard knows.
const SETTLING: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let settings = Settings::parse();
    match run(&settings) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs from the first question to the last line. Returns whether everything is as it was told.
fn run(settings: &Settings) -> Result<bool, Box<dyn Error>> {
    let address = settings.address()?;
    let unreachable = |error| format!("no sale at {address}: {error}; start the server, or give its address");
    let mut shop = Shop::visit(address).map_err(unreachable)?;
    let before = shop.sale().map_err(unreachable)?;
    let server = shop.version();
    settings.check(before.items_total, before.user_limit)?;

    if settings.scenario == Scenario::SoldOut && before.available > 0 {
        let free = before.available;
        eprintln!("storm: {free} items are free, so some checkouts will be granted; --scenario chain sells them first");
    }

    // The first Ctrl-C ends the run, the second the process.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }

    let buyers = Buyers::new(settings.scenario, settings.users, before.items_total, settings.seed);
    let unexpected = Unexpected::new(&settings.unexpected, settings.unexpected_max);
    let mut books = Books::open(settings.scenario, buyers, unexpected);
    let mut watch = Watch::new(address, before);
    let mut progress = Progress::new();
    let saving = |error| format!("{}: {error}; give --unexpected another file", settings.unexpected.display());
    let cpu_before = cpu_time();
    let ended = Storm::new(settings, address, &mut books, &mut watch)?.run(&mut progress, &stop).map_err(saving)?;
    let cpu = cpu_time().saturating_sub(cpu_before);
    progress.end();

    let (findings, verified) = match find_out(settings, address, before, &books) {
        Ok((findings, verified)) => (Ok(findings), verified),
        Err(error) => (Err(error.to_string()), Verified::default()),
    };
    let violations = findings.as_ref().map_or(Vec::new(), |findings| verify(&books.ledger, findings));
    let after = findings.as_ref().ok().map(|findings| findings.after);
    let mut report = report(settings, server, &books, &ended, cpu, violations);
    (report.before, report.after, report.verified, report.unverified) = (before, after, verified, findings.err());
    publish(settings, &report, &books, &watch)?;
    Ok(report.is_good())
}

/// CPU time of this process, user and system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Asks the server and the database what became of it all.
fn find_out(
    settings: &Settings,
    address: SocketAddr,
    before: Sale,
    books: &Books,
) -> Result<(Findings, Verified), Box<dyn Error>> {
    let ledger = &books.ledger;
    let mut shop = Shop::visit(address).map_err(|error| format!("the server is gone: {error}"))?;
    let bought: Vec<_> =
        ledger.reservations.iter().enumerate().filter(|(_, reservation)| reservation.is_bought()).collect();
    let has_keys = settings.scenario.has_keys();
    let asked_again = ask_again(&mut shop, settings, &bought)?;
    let outcomes = books.tally.outcomes.iter().filter(|outcome| outcome.operation != "connect");
    let outcomes = outcomes.map(|outcome| (outcome.operation, outcome.name.clone(), outcome.count)).collect();
    let after = settled_sale(&mut shop, before, ledger)?;
    let mut verified = Verified { asked_again: asked_again.len(), ..Verified::default() };
    let mut rows = None;
    if let Some(url) = &settings.database_url {
        let sales: Vec<u64> = ledger.by_sale(after.sale_id).into_keys().collect();
        let codes: Vec<_> = bought.iter().map(|(_, reservation)| &reservation.code).collect();
        let patience = Duration::from_secs(settings.patience);
        let (found, waited) = database::purchases(url, &sales, &codes, patience)?;
        (verified.rows, verified.rows_waited_s) = (Some(found.len()), Some(waited.as_secs_f64()));
        rows = Some(found);
    }
    let others_buy = settings.others_buy;
    Ok((Findings { before, after, others_buy, has_keys, asked_again, rows, outcomes }, verified))
}

/// Asks again for a sample of what was bought.
fn ask_again(shop: &mut Shop, settings: &Settings, bought: &[(usize, &Reservation)]) -> io::Result<Vec<(usize, Told)>> {
    let has_key = settings.scenario.has_keys();
    let mut sample: Vec<_> = bought.iter().collect();
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut sample);
    sample.truncate(settings.sample);
    sample.into_iter().map(|(place, reservation)| Ok((*place, shop.purchase(reservation, has_key)?))).collect()
}

/// How the sale stands, once it counts what was told: shards publish their numbers a little after their answers.
fn settled_sale(shop: &mut Shop, before: Sale, ledger: &Ledger) -> io::Result<Sale> {
    let end = Instant::now() + SETTLING;
    loop {
        let sale = shop.sale()?;
        let counts_all = u64::from(sale.sold.saturating_sub(before.sold)) >= ledger.bought();
        if counts_all || sale.sale_id != before.sale_id || Instant::now() > end {
            return Ok(sale);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn report(
    settings: &Settings,
    server: Option<String>,
    books: &Books,
    ended: &Ended,
    cpu: Duration,
    violations: Vec<Violation>,
) -> Report {
    let tally = &books.tally;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let scenario = settings.scenario.to_possible_value().map_or(String::new(), |name| name.get_name().to_owned());
    Report {
        started: humantime::format_rfc3339_seconds(books.started()).to_string(),
        settings: report::Settings {
            address: settings.address.clone(),
            scenario,
            rate: match settings.pace() {
                Pace::Open { rate } => Some(rate),
                Pace::Closed => None,
            },
            users: settings.users,
            connections: settings.connections,
            duration_s: settings.duration,
            timeout_s: settings.timeout,
            seed: settings.seed,
        },
        versions: Versions {
            storm: env!("CARGO_PKG_VERSION"),
            server,
            kernel,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        },
        seconds: ended.took.as_secs_f64(),
        was_stopped: ended.was_stopped,
        answers: tally.answers(),
        answers_per_second: tally.answers() as f64 / ended.took.as_secs_f64(),
        storm_cpu_us_per_answer: cpu.as_secs_f64() * 1e6 / tally.answers().max(1) as f64,
        reserved: books.ledger.reservations.len() as u64,
        bought: books.ledger.bought(),
        unknown: books.ledger.reservations.iter().filter(|reservation| reservation.is_unknown()).count() as u64,
        last_purchase_s: tally.last_purchase.as_secs_f64(),
        outcomes: report::outcomes(tally),
        latencies: report::latencies(tally),
        before: Sale::default(),
        after: None,
        unexpected: books.unexpected.count,
        unexpected_file: books.unexpected.path().map(|path| path.display().to_string()),
        verified: Verified::default(),
        unverified: None,
        violations,
    }
}

/// Prints and writes the report.
fn publish(settings: &Settings, report: &Report, books: &Books, watch: &Watch) -> Result<(), Box<dyn Error>> {
    let write = |flag: &str, path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|error| format!("{flag} {}: {error}; give another file", path.display()))
    };
    let is_printed = settings.json.as_deref() == Some(Path::new("-"));
    let json = format!("{}\n", serde_json::to_string(report)?);
    let printed = if is_printed { json.clone() } else { report.text() };
    match io::stdout().write_all(printed.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    if let Some(path) = settings.json.as_deref().filter(|_| !is_printed) {
        write("--json", path, &json)?;
    }
    if let Some(path) = &settings.html {
        write("--html", path, &page::page(report, &books.tally, &watch.looks)?)?;
    }
    if let Some(path) = &settings.svg {
        write("--svg", path, &plots::picture(&plots::latencies(&books.tally)?))?;
    }
    Ok(())
}
