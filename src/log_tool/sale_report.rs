//! `stampede log sale`: adds up a sale from the log and from Postgres, and compares the two.
//!
//! 1. Read the positions of Postgres, in a transaction that sees the state of one moment.
//! 2. Read the log. Records up to the positions must be in Postgres; later records have not arrived there yet.
//! 3. Read the rows of the sale, in the same transaction.
//! 4. Compare the rows with the records up to the positions. If the log has the whole sale, the two must be equal. If
//!    the sale was taken over from Postgres, or older segments were removed, Postgres may have more.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::route::rfc3339;
use crate::log::block::{LogKind, StreamId, StreamKey};
use crate::log_tool::postgres_view::{PostgresView, SaleRows};
use crate::log_tool::scan::{LogScan, many};
use crate::log_tool::unit_names::UnitNames;
use crate::plan::catalogue::CatalogueUnit;
use crate::plan::planned_sale::LoadedPlan;
use crate::plan::text_table::table as text_table;
use crate::postgres::owner_row::{Positions, known_position};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Seq, UserId};
use crate::sale::record::{LogEvent, Record, SaleTimes};
use crate::system::clock::Clock;
use std::collections::{HashMap, HashSet};

/// Maximum number of purchases that are listed per contradiction.
const LISTED_MAX: usize = 10;

const CHECKOUTS: [&str; 4] =
    ["checkouts granted", "refused: item-sold", "refused: item-reserved", "refused: user-limit"];
const RELEASES: [&str; 2] = ["holds expired", "holds cancelled"];

/// Numbers of a sale's records by kind: checkouts granted and refused by reason, releases by reason.
#[derive(Clone, Copy, Default)]
struct EventCounts {
    checkouts: [u64; 4],
    releases: [u64; 2],
}

/// A purchase in the log.
struct Sold {
    item: ItemId,
    user: UserId,
    /// Whether the position of Postgres includes the record.
    has_arrived: bool,
}

/// Which records of a sale the log certainly has completely.
#[derive(Clone, Copy)]
struct KeptRecords {
    purchases: bool,
    attempts: bool,
}

/// The sums of a sale's records in the log.
#[derive(Default)]
struct Tally {
    sale: Option<SaleId>,
    /// Latest sale that the log has.
    newest: Option<SaleId>,
    /// Stock and limit per user.
    terms: Option<(u32, u32)>,
    /// When the sale opens and closes.
    times: Option<SaleTimes>,
    /// The record that opens the sale.
    opened: Option<Record>,
    all: EventCounts,
    /// Counts of the records that Postgres must have.
    arrived: EventCounts,
    sold: HashMap<Code, Sold>,
    /// End of each hold that was neither released nor bought, in milliseconds since the Unix epoch.
    open: HashMap<Code, u64>,
    /// Number of records that Postgres lacks.
    behind: u64,
    is_taken_over: bool,
}

impl Tally {
    /// Adds a record, if it belongs to the requested sale or, without a request, to the latest sale so far.
    fn add(&mut self, requested: Option<SaleId>, record: &Record, has_arrived: bool) {
        self.newest = self.newest.max(Some(record.sale));
        if requested.is_some_and(|requested| requested != record.sale)
            || self.sale.is_some_and(|sale| sale > record.sale)
        {
            return;
        }
        if self.sale != Some(record.sale) {
            *self = Tally { sale: Some(record.sale), newest: self.newest, ..Tally::default() };
        }
        self.behind += u64::from(!has_arrived);
        self.all.add(&record.event);
        if has_arrived {
            self.arrived.add(&record.event);
        }
        match record.event {
            LogEvent::SaleOpened { items, user_limit, times, .. } => {
                (self.terms, self.opened) = (Some((items, user_limit)), Some(*record));
                self.times = times.or(self.times);
            }
            LogEvent::RestoredFromPostgres => self.is_taken_over = true,
            LogEvent::Checkout { code, ttl_ms, .. } => {
                _ = self.open.insert(code, record.unix_ms.saturating_add(ttl_ms.into()))
            }
            LogEvent::Extended { code, by_ms, .. } => {
                self.open.entry(code).and_modify(|ends_ms| *ends_ms = ends_ms.saturating_add(by_ms.into()));
            }
            LogEvent::Released { code, .. } => _ = self.open.remove(&code),
            LogEvent::Purchase { item, user, code, .. } => {
                self.open.remove(&code);
                self.sold.insert(code, Sold { item, user, has_arrived });
            }
            LogEvent::Refused { .. } => {}
        }
    }

    fn buyers(&self) -> u64 {
        self.sold.values().map(|sold| sold.user).collect::<HashSet<_>>().len() as u64
    }
}

impl EventCounts {
    fn add(&mut self, event: &LogEvent) {
        match event {
            LogEvent::Checkout { .. } => self.checkouts[0] += 1,
            LogEvent::Refused { reason, .. } => self.checkouts[1 + *reason as usize] += 1,
            LogEvent::Released { reason, .. } => self.releases[*reason as usize] += 1,
            LogEvent::SaleOpened { .. }
            | LogEvent::RestoredFromPostgres
            | LogEvent::Extended { .. }
            | LogEvent::Purchase { .. } => {}
        }
    }
}

/// Adds up the sale `requested`, or the latest one in the log, compares it with Postgres, and appends the report to `report`.
/// With a `plan`, adds up the products of the sale as well.
///
/// # Errors
/// [`Fatal::Database`]: the log and Postgres contradict each other. [`Fatal::Damaged`]: the log has lost something
/// durable. [`Fatal::Settings`]: neither the log nor Postgres has the sale. [`Fatal::DataDir`]: the log cannot be read,
/// or it has no sale.
pub fn add_up(
    config: &Config,
    requested: Option<SaleId>,
    plan: Option<LoadedPlan>,
    report: &mut String,
) -> Result<(), Fatal> {
    let (view, away) = match PostgresView::ask(config)? {
        Some(Ok(view)) => (Some(view), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let mut scan = LogScan::new(&config.data_dir)?;
    let mut tally = Tally::default();
    let none = Positions::new();
    let positions = view.as_ref().map_or(&none, PostgresView::positions);
    scan.read(|id: &StreamId, seq: Seq, record: &Record| {
        let position = known_position(positions, id).unwrap_or(0);
        tally.add(requested, record, seq <= position);
        Ok::<(), Fatal>(())
    })?;
    let now = Clock::start().now();
    let (now_ms, persisted) = (now.unix_ms, PostgresView::persisted(config, view.as_ref()));
    let judged = scan.judge(config, now, &persisted).map(drop);
    let Some(sale) = requested.or(tally.sale) else {
        return Err(Fatal::DataDir(format!("no sale has begun in {}", config.data_dir.display())));
    };
    let fits = view.as_ref().map_or(Ok(()), |view| view.fit(config, &scan, &[]));
    let rows = view.as_ref().filter(|_| fits.is_ok()).map(|view| view.sale(sale, now_ms));
    let (rows, away) = match rows {
        Some(Ok(rows)) => (Some(rows), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, away),
    };
    let is_in_postgres = rows.as_ref().is_some_and(|rows| rows.terms.is_some() || !rows.purchases.is_empty());
    if tally.sale.is_none() && !is_in_postgres {
        let newest = tally.newest.map_or(0, |sale| sale.0);
        return Err(Fatal::Settings(format!("the log has no sale {}; its latest sale is {newest}", sale.0)));
    }
    let terms = tally.terms;
    let terms = terms.or(rows.as_ref().and_then(|rows| rows.terms));
    let times = tally.times.or(rows.as_ref().and_then(|rows| rows.times));
    let times = times.or_else(|| by_period(sale, scan.control.sale_period_s));
    *report += &heading(sale, times, terms);
    *report += &table(&tally, rows.as_ref(), terms, now_ms);
    let names = plan.map(|plan| UnitNames::of(plan, tally.opened.as_ref()));
    *report += &names.as_ref().map_or(String::new(), |names| products(names, sale, &tally, rows.as_ref()));
    let kept = KeptRecords {
        purchases: has_purchases(&tally, &scan, positions),
        attempts: has_attempts(&tally, &scan, positions),
    };
    if !kept.purchases {
        *report += "The log lacks a part of this sale: it was removed, or the sale was taken over from Postgres.\n";
    }
    if kept.purchases && !kept.attempts {
        *report += "The log may lack refused checkouts of this sale: they were removed, or the disk has lost them.\n";
    }
    judged?;
    fits?;
    if let Some(why) = away {
        *report += &format!("Postgres is unavailable ({why}): nothing was compared.\n");
    }
    rows.map_or(Ok(()), |rows| compare(&tally, &rows, kept, names.as_ref(), report))
}

fn compare(
    tally: &Tally,
    rows: &SaleRows,
    kept: KeptRecords,
    names: Option<&UnitNames>,
    report: &mut String,
) -> Result<(), Fatal> {
    let contradictions = contradictions(tally, rows, kept, names);
    if tally.behind > 0 {
        let (records, purchases) =
            (many(tally.behind, "record"), tally.sold.values().filter(|sold| !sold.has_arrived).count());
        *report += &format!(
            "Postgres lacked {records} of this sale, {purchases} of them purchases; the log still has them.\n"
        );
    }
    let Some(first) = contradictions.first() else {
        *report += if tally.behind > 0 {
            "Up to these records, the log and Postgres agree.\n"
        } else {
            "The log and Postgres agree.\n"
        };
        return Ok(());
    };
    *report += "The log and Postgres contradict each other:\n";
    contradictions.iter().for_each(|line| *report += &format!("- {line}\n"));
    Err(Fatal::Database(format!("it and the log contradict each other about the sale: {first}")))
}

/// Returns the times of a sale of which earlier versions have written only the id, in a data directory whose sales have
/// this length. Returns `None` if they have none.
fn by_period(sale: SaleId, period_s: u32) -> Option<SaleTimes> {
    let at = |sale: u64| sale * u64::from(period_s) * 1000;
    let times = SaleTimes { opens_ms: at(sale.0.into()), closes_ms: at(u64::from(sale.0) + 1) };
    (period_s > 0).then_some(times)
}

fn heading(sale: SaleId, times: Option<SaleTimes>, terms: Option<(u32, u32)>) -> String {
    let times =
        times.map_or(String::new(), |times| format!(", {} to {}", rfc3339(times.opens_ms), rfc3339(times.closes_ms)));
    let terms = terms.map_or(String::new(), |(items, limit)| format!(": {items} items, {limit} for each user"));
    format!("sale {}{times}{terms}\n", sale.0)
}

/// Returns the table of figures, from the log and, if its rows were read, from Postgres.
fn table(tally: &Tally, rows: Option<&SaleRows>, terms: Option<(u32, u32)>, now_ms: u64) -> String {
    let held = tally.open.values().filter(|until| **until > now_ms).count() as u64;
    let left = |sold: usize, held| terms.map(|(items, _)| u64::from(items).saturating_sub(sold as u64 + held));
    let buyers = |rows: &SaleRows| rows.purchases.values().map(|(_, user)| user).collect::<HashSet<_>>().len() as u64;
    let mut figures = vec![
        ("sold", Some(tally.sold.len() as u64), rows.map(|rows| rows.purchases.len() as u64)),
        ("distinct buyers", Some(tally.buyers()), rows.map(buyers)),
        ("held now", Some(held), rows.map(|rows| rows.held)),
        ("available", left(tally.sold.len(), held), rows.and_then(|rows| left(rows.purchases.len(), rows.held))),
    ];
    for (place, name) in CHECKOUTS.into_iter().enumerate() {
        figures.push((name, Some(tally.all.checkouts[place]), rows.and_then(|rows| Some(rows.checkouts?[place]))));
    }
    for (place, name) in RELEASES.into_iter().enumerate() {
        figures.push((name, Some(tally.all.releases[place]), rows.map(|rows| rows.releases[place])));
    }
    let cell = |figure: Option<u64>| figure.map_or("-".into(), |figure| figure.to_string());
    let mut table = format!("{:22} {:>12}", "", "log");
    table += if rows.is_some() { "     Postgres\n" } else { "\n" };
    for (name, log, postgres) in figures {
        table += &format!("{name:22} {:>12}", cell(log));
        table += &rows.map_or(String::new(), |_| format!(" {:>12}", cell(postgres)));
        table += "\n";
    }
    table
}

/// Returns the table of the products of a sale, with the items that were sold by the log and, if its rows were read, by
/// Postgres.
fn products(names: &UnitNames, sale: SaleId, tally: &Tally, rows: Option<&SaleRows>) -> String {
    let Some(planned) = names.sale(sale) else {
        let why = names.complaint().unwrap_or_else(|| format!("the plan has no sale {} that the log opens", sale.0));
        return format!("No product is added up: {why}.\n");
    };
    let count = |items: &mut dyn Iterator<Item = u32>| {
        let mut sold = vec![0u32; planned.products.len()];
        for item in items {
            let place = planned.products.partition_point(|product| product.first <= item).saturating_sub(1);
            sold[place] += 1;
        }
        sold
    };
    let log = count(&mut tally.sold.values().map(|sold| sold.item.0));
    let postgres = rows.map(|rows| count(&mut rows.purchases.values().map(|(item, _)| *item)));
    let header = ["product", "items", "sold in the log", "in Postgres"];
    let lines = planned.products.iter().enumerate().map(|(place, product)| {
        let counts = [Some(product.units.count()), Some(log[place]), postgres.as_ref().map(|sold| sold[place])];
        let counts = counts.into_iter().flatten().map(|count| count.to_string());
        [product.id.clone()].into_iter().chain(counts).collect()
    });
    format!("\n{}\n", text_table(&header[..3 + usize::from(rows.is_some())], &lines.collect::<Vec<_>>()))
}

/// Returns whether the log has every purchase record of the sale. Those of the latest sale are never removed.
fn has_purchases(tally: &Tally, scan: &LogScan, positions: &Positions) -> bool {
    let is_latest = tally.sale.is_some() && tally.sale == tally.newest;
    !tally.is_taken_over && (is_latest || has_all(LogKind::Purchases, scan, positions))
}

/// Returns whether the log certainly has every refused checkout of the sale. Those that Postgres has can be removed
/// during the sale.
fn has_attempts(tally: &Tally, scan: &LogScan, positions: &Positions) -> bool {
    !tally.is_taken_over && !scan.lacks_attempts() && has_all(LogKind::Attempts, scan, positions)
}

/// Returns whether no record of one kind of log was removed.
fn has_all(log: LogKind, scan: &LogScan, positions: &Positions) -> bool {
    let is_there = |key: &StreamKey| scan.streams.iter().any(|stream| stream.id.key() == *key);
    let mut positions = positions.iter().filter(|(key, _)| key.log == log);
    scan.streams.iter().filter(|stream| stream.id.log == log).all(|stream| stream.first() == 0)
        && positions.all(|(key, position)| *position == 0 || is_there(key))
}

/// Returns a line for each contradiction between Postgres and the records up to its positions, purchases first.
fn contradictions(tally: &Tally, rows: &SaleRows, kept: KeptRecords, names: Option<&UnitNames>) -> Vec<String> {
    let mut found = purchase_contradictions(tally, rows, kept.purchases, names);
    let arrived = &tally.arrived;
    let checkouts =
        rows.checkouts.map(|checkouts| CHECKOUTS.into_iter().zip(arrived.checkouts.into_iter().zip(checkouts)));
    let releases = RELEASES.into_iter().zip(arrived.releases.into_iter().zip(rows.releases));
    for (name, (log, postgres)) in checkouts.into_iter().flatten().chain(releases) {
        let is_whole = if name.starts_with("refused") { kept.attempts } else { kept.purchases };
        if log > postgres || is_whole && log < postgres {
            found.push(format!("{name}: {log} in the log up to the positions of Postgres, {postgres} in Postgres"));
        }
    }
    if let (Some((items, user_limit)), Some(terms)) = (tally.terms, rows.terms)
        && terms != (items, user_limit)
    {
        let (other_items, other_limit) = terms;
        found.push(format!(
            "terms: {items} items, {user_limit} for each user in the log; {other_items}, {other_limit} in Postgres"
        ));
    }
    found
}

fn purchase_contradictions(tally: &Tally, rows: &SaleRows, is_whole: bool, names: Option<&UnitNames>) -> Vec<String> {
    let describe = |item: u32| {
        let unit = names.zip(tally.sale).and_then(|(names, sale)| names.unit(sale, ItemId(item)));
        match unit {
            Some(CatalogueUnit { product, name: Some(name) }) => format!("item {item} ({}, {name})", product.id),
            Some(CatalogueUnit { product, name: None }) => format!("item {item} ({})", product.id),
            None => format!("item {item}"),
        }
    };
    let (mut lacking, mut other) = (Vec::new(), Vec::new());
    for (code, Sold { item, user, .. }) in tally.sold.iter().filter(|(_, sold)| sold.has_arrived) {
        match rows.purchases.get(code.as_bytes()) {
            Some(row) if *row == (item.0, user.0) => {}
            Some((item, user)) => other.push((code.to_string(), *item, *user)),
            None => lacking.push((code.to_string(), item.0, user.0)),
        }
    }
    let has_arrived = |code: &Code| tally.sold.get(code).is_some_and(|sold| sold.has_arrived);
    let rows = rows.purchases.iter().map(|(code, row)| (Code::from_bytes(*code), row));
    let invented = rows.filter(|(code, _)| is_whole && !has_arrived(code));
    let invented = invented.map(|(code, (item, user))| (code.to_string(), *item, *user)).collect();
    let lists = [
        ("purchases that arrived in Postgres and are no longer there", lacking),
        ("purchases with another item or user in Postgres than in the log", other),
        ("purchases in Postgres that are not in the log up to the positions of Postgres", invented),
    ];
    lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| enumerate(what, list, describe)).collect()
}

/// Returns one line with the number of purchases and the first of them, in order of their items.
fn enumerate(what: &str, mut list: Vec<(String, u32, i64)>, describe: impl Fn(u32) -> String) -> String {
    list.sort_by_key(|(code, item, _)| (*item, code.clone()));
    let report =
        list.iter().take(LISTED_MAX).map(|(code, item, user)| format!("{}, user {user}, code {code}", describe(*item)));
    let report: Vec<_> = report.collect();
    let more = if list.len() > LISTED_MAX { "; and more" } else { "" };
    format!("{what}: {} ({}{more})", list.len(), report.join("; "))
}
