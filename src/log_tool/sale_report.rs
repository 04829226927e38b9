//! `stampede log sale`: what a sale has come to, by the log and by Postgres, and whether the two agree.
//!
//! Postgres is asked first, for one moment, and the log is read after it: so everything up to the positions that
//! Postgres had then must be in both, record by record, and what is beyond them has just not arrived there yet. That
//! much must be equal where the log still has all of the sale. Where it began with what came from Postgres, or has
//! lost its beginning to retention, Postgres may have more.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::route::rfc3339;
use crate::log::block::{StreamId, StreamKey};
use crate::log_tool::postgres_view::{PostgresView, SaleRows};
use crate::log_tool::scan::{LogScan, many};
use crate::postgres::owner_row::{Positions, known_position};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Seq, Terms, UserId};
use crate::sale::record::{LogEvent, Record};
use crate::system::clock::Clock;
use std::collections::{HashMap, HashSet};

/// Contradictions about single purchases that are told one by one.
const TOLD_MAX: usize = 10;

const CHECKOUTS: [&str; 4] =
    ["checkouts granted", "refused: item-sold", "refused: item-reserved", "refused: user-limit"];
const RELEASES: [&str; 2] = ["holds expired", "holds cancelled"];

/// Records of a sale, by what they say: refusals after what was granted, each in the order of its reasons.
#[derive(Clone, Copy, Default)]
struct EventCounts {
    checkouts: [u64; 4],
    releases: [u64; 2],
}

/// A purchase, by the log.
struct Sold {
    item: ItemId,
    user: UserId,
    /// Postgres has come as far as this.
    has_arrived: bool,
}

/// What the log says of a sale.
#[derive(Default)]
struct Tally {
    sale: Option<SaleId>,
    /// Any sale there is.
    newest: Option<SaleId>,
    terms: Option<Terms>,
    all: EventCounts,
    /// Of these, what Postgres must have.
    arrived: EventCounts,
    sold: HashMap<Code, Sold>,
    /// Holds that have neither ended nor been bought: until when.
    open: HashMap<Code, u64>,
    /// Records that Postgres lacks.
    behind: u64,
    is_taken_over: bool,
}

impl Tally {
    /// Adds a record, if it is of the sale that is asked for, or of the latest so far.
    fn add(&mut self, asked: Option<SaleId>, record: &Record, has_arrived: bool) {
        self.newest = self.newest.max(Some(record.sale));
        if asked.is_some_and(|asked| asked != record.sale) || self.sale.is_some_and(|sale| sale > record.sale) {
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
            LogEvent::SaleOpened { items, user_limit } => {
                self.terms = Some(Terms { sale: record.sale, items, user_limit });
            }
            LogEvent::TakenOver => self.is_taken_over = true,
            LogEvent::Checkout { code, ttl_ms, .. } => {
                _ = self.open.insert(code, record.unix_ms.saturating_add(ttl_ms.into()))
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
            LogEvent::SaleOpened { .. } | LogEvent::TakenOver | LogEvent::Purchase { .. } => {}
        }
    }
}

/// Adds up the sale that is asked for, or the latest one, and compares.
///
/// # Errors
/// [`Fatal::Database`]: the log and Postgres contradict each other. [`Fatal::Damaged`]: the log has lost something.
/// [`Fatal::Settings`]: nobody knows of the sale.
pub fn add_up(config: &Config, asked: Option<SaleId>, told: &mut String) -> Result<(), Fatal> {
    let (books, away) = match PostgresView::ask(config)? {
        Some(Ok(books)) => (Some(books), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let mut survey = LogScan::new(&config.data_dir)?;
    let mut tally = Tally::default();
    let none = Positions::new();
    let positions = books.as_ref().map_or(&none, PostgresView::positions);
    for stream in &mut survey.streams {
        let position = known_position(positions, &stream.id).unwrap_or(0);
        stream.read(|_: &StreamId, seq: Seq, record: &Record| {
            tally.add(asked, record, seq <= position);
            Ok::<(), Fatal>(())
        })?;
    }
    let now_ms = Clock::start().now().unix_ms;
    let Some(sale) = asked.or(tally.sale) else {
        return Err(Fatal::DataDir(format!("no sale has begun in {}", config.data_dir.display())));
    };
    let period_s = survey.control.sale_period_s;
    let held_at_ms = (sale >= SaleId::at(now_ms, period_s)).then_some(now_ms);
    let fits = books.as_ref().map_or(Ok(()), |books| books.fit(config, &survey));
    let rows = books.as_ref().filter(|_| fits.is_ok()).map(|books| books.sale(sale, held_at_ms));
    let (rows, away) = match rows {
        Some(Ok(rows)) => (Some(rows), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, away),
    };
    let is_in_postgres = rows.as_ref().is_some_and(|rows| rows.terms.is_some() || !rows.purchases.is_empty());
    if tally.sale.is_none() && !is_in_postgres {
        let newest = tally.newest.map_or(0, |sale| sale.0);
        return Err(Fatal::Settings(format!("the log knows no sale {}; its latest is {newest}", sale.0)));
    }
    let terms = tally.terms.map(|terms| (terms.items, terms.user_limit));
    let terms = terms.or(rows.as_ref().and_then(|rows| rows.terms));
    *told += &heading(sale, period_s, terms);
    *told += &table(&tally, rows.as_ref(), terms, held_at_ms);
    let is_whole = is_whole(&tally, &survey, positions);
    if !is_whole {
        *told += "The log does not have all of this sale any more, or began with what Postgres had of it.\n";
    }
    survey.judge()?;
    fits?;
    if let Some(why) = away {
        *told += &format!("Postgres is away ({why}): nothing is compared.\n");
    }
    rows.map_or(Ok(()), |rows| compare(&tally, &rows, is_whole, told))
}

fn compare(tally: &Tally, rows: &SaleRows, is_whole: bool, told: &mut String) -> Result<(), Fatal> {
    let contradictions = contradictions(tally, rows, is_whole);
    if tally.behind > 0 {
        let (records, purchases) =
            (many(tally.behind, "record"), tally.sold.values().filter(|sold| !sold.has_arrived).count());
        *told += &format!(
            "Postgres was {records} of this sale behind when it was asked, {purchases} of them purchases; the log keeps them for it.\n"
        );
    }
    let Some(first) = contradictions.first() else {
        *told +=
            if tally.behind > 0 { "As far as it has come, the two agree.\n" } else { "The log and Postgres agree.\n" };
        return Ok(());
    };
    *told += "The log and Postgres contradict each other:\n";
    contradictions.iter().for_each(|line| *told += &format!("- {line}\n"));
    Err(Fatal::Database(format!("it and the log contradict each other about the sale: {first}")))
}

fn heading(sale: SaleId, period_s: u32, terms: Option<(u32, u32)>) -> String {
    let at = |sale: u64| rfc3339(sale.saturating_mul(u64::from(period_s) * 1000));
    let (starts, ends) = (at(sale.0.into()), at(u64::from(sale.0) + 1));
    let terms = terms.map_or(String::new(), |(items, limit)| format!(": {items} items, {limit} for each user"));
    format!("sale {}, {starts} to {ends}{terms}\n", sale.0)
}

/// Figure by figure: by the log, and by Postgres if it has been asked.
fn table(tally: &Tally, rows: Option<&SaleRows>, terms: Option<(u32, u32)>, held_at_ms: Option<u64>) -> String {
    let held = tally.open.values().filter(|until| held_at_ms.is_some_and(|at| **until > at)).count() as u64;
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

/// Whether every record of the sale is in the log. Nothing of the latest sale is ever removed.
fn is_whole(tally: &Tally, survey: &LogScan, positions: &Positions) -> bool {
    let is_there = |key: &StreamKey| survey.streams.iter().any(|stream| stream.id.key() == *key);
    let has_all = || {
        survey.streams.iter().all(|stream| stream.first() == 0)
            && positions.iter().all(|(stream, position)| *position == 0 || is_there(stream))
    };
    !tally.is_taken_over && (tally.sale.is_some() && tally.sale == tally.newest || has_all())
}

/// Where Postgres is not what the log says it must be by now, with purchases first.
fn contradictions(tally: &Tally, rows: &SaleRows, is_whole: bool) -> Vec<String> {
    let mut found = purchase_contradictions(tally, rows, is_whole);
    let arrived = &tally.arrived;
    let checkouts =
        rows.checkouts.map(|checkouts| CHECKOUTS.into_iter().zip(arrived.checkouts.into_iter().zip(checkouts)));
    let releases = RELEASES.into_iter().zip(arrived.releases.into_iter().zip(rows.releases));
    for (name, (log, postgres)) in checkouts.into_iter().flatten().chain(releases) {
        if log > postgres || is_whole && log < postgres {
            found.push(format!("{name}: {log} by the log, as far as Postgres has come, and {postgres} in Postgres"));
        }
    }
    if let (Some(Terms { items, user_limit, .. }), Some(terms)) = (tally.terms, rows.terms)
        && terms != (items, user_limit)
    {
        let (other_items, other_limit) = terms;
        found.push(format!(
            "its terms: {items} items and {user_limit} for each user by the log, {other_items} and {other_limit} in Postgres"
        ));
    }
    found
}

fn purchase_contradictions(tally: &Tally, rows: &SaleRows, is_whole: bool) -> Vec<String> {
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
        ("purchases that had arrived in Postgres and are not there", lacking),
        ("purchases of another item or user in Postgres than in the log", other),
        ("purchases in Postgres that are not in the log, as far as Postgres has come", invented),
    ];
    lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| enumerate(what, list)).collect()
}

/// How many, and the first few by item.
fn enumerate(what: &str, mut list: Vec<(String, u32, i64)>) -> String {
    list.sort_by_key(|(code, item, _)| (*item, code.clone()));
    let told = list.iter().take(TOLD_MAX).map(|(code, item, user)| format!("item {item}, user {user}, code {code}"));
    let told: Vec<_> = told.collect();
    let more = if list.len() > TOLD_MAX { "; and more" } else { "" };
    format!("{what}: {} ({}{more})", list.len(), told.join("; "))
}
