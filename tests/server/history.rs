//! The history of all requests and responses, checked against the log.
//!
//! For each data directory, the history records every request of `Client::try_request` with its beginning, its end and
//! its outcome. When a server ends, for whatever reason, its log must explain the history: every acknowledged request
//! is in the log, every record in the log was requested, and every refusal has its reason. After a clean stop, Postgres
//! has the same records. A request without a response is *unknown*: it may or may not have taken effect, but the log
//! must not have any other record in its place.

use crate::cluster::psql;
use crate::harness::{Client, Response, Server};
use crate::load::{connect, crowd};
use crate::log::{Hold, Log};
use stampede::sale::code::Code;
use stampede::sale::ids::SaleId;
use stampede::sale::record::ReleaseReason;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tolerance for times, in ms. A record has the time at which its turn began, and on a busy machine a turn may be long.
const SLACK_MS: u64 = 3_000;
/// Tolerance for the end of a hold, in ms. The server measures holds by its monotonic clock. It counts from the time in
/// the record, so that a long turn makes no difference.
const DRIFT_MS: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// With the `Idempotency-Key`, if there is one. Without an item, any is asked for.
    Checkout {
        user: i64,
        item: Option<u32>,
        key: Option<String>,
    },
    Purchase(String),
    Cancel(String),
    Extend(String),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Success, with the code of a reservation, or else with the body; and with the `expires_at` in the body, as a Unix
    /// time in milliseconds.
    Done(String, Option<u64>),
    /// Refusal, with the problem's name.
    Refused(String),
    /// No response, or one that leaves the outcome open.
    Unknown,
}

#[derive(Clone, Debug)]
struct Entry {
    asked: Asked,
    told: Told,
    from_ms: u64,
    to_ms: u64,
}

impl Entry {
    /// Returns the code of the hold that the request or its response names.
    fn code(&self) -> Option<&String> {
        match (&self.asked, &self.told) {
            (Asked::Purchase(code) | Asked::Cancel(code) | Asked::Extend(code), _) => Some(code),
            (Asked::Checkout { .. }, Told::Done(code, _)) => Some(code),
            _ => None,
        }
    }

    fn overlaps(&self, from_ms: u64, to_ms: u64) -> bool {
        self.from_ms <= to_ms.saturating_add(SLACK_MS) && from_ms <= self.to_ms.saturating_add(SLACK_MS)
    }
}

/// All requests to the servers of one data directory.
#[derive(Default)]
pub struct History {
    entries: Mutex<Vec<Entry>>,
    /// Whether the log has records from before the first request, or some requests were not recorded.
    is_partial: AtomicBool,
}

static HISTORIES: LazyLock<Mutex<HashMap<PathBuf, Arc<History>>>> = LazyLock::new(Mutex::default);
static SERVERS: LazyLock<Mutex<HashMap<SocketAddr, Arc<History>>>> = LazyLock::new(Mutex::default);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_millis() as u64
}

impl History {
    /// Returns the history of a data directory.
    pub fn of(data_dir: &Path) -> Arc<History> {
        let mut histories = HISTORIES.lock().expect("no holder of the lock panics");
        let new = || {
            let history = History::default();
            history.is_partial.store(data_dir.join("control.json").exists(), Ordering::Relaxed);
            Arc::new(history)
        };
        histories.entry(data_dir.to_owned()).or_insert_with(new).clone()
    }

    /// Adds another path of the same data directory.
    pub fn also_of(self: &Arc<Self>, data_dir: &Path) {
        HISTORIES.lock().expect("no holder of the lock panics").insert(data_dir.to_owned(), self.clone());
    }

    /// Adds the address of a server of this data directory.
    pub fn serves(self: &Arc<Self>, address: SocketAddr) {
        SERVERS.lock().expect("no holder of the lock panics").insert(address, self.clone());
    }

    /// Returns the history of the server at this address.
    pub fn at(address: SocketAddr) -> Arc<History> {
        SERVERS.lock().expect("no holder of the lock panics").get(&address).cloned().unwrap_or_default()
    }

    /// Marks the history as partial, because the client sends bytes that it does not record.
    pub fn leave_gap(&self) {
        self.is_partial.store(true, Ordering::Relaxed);
    }

    /// Records that a request with these header fields is sent now. Returns its number.
    pub fn begin(&self, line: &str, fields: &str) -> usize {
        let entry = Entry { asked: asked(line, fields), told: Told::Unknown, from_ms: now_ms(), to_ms: u64::MAX };
        let mut entries = self.entries.lock().expect("no holder of the lock panics");
        entries.push(entry);
        entries.len() - 1
    }

    /// Records the response to a request.
    pub fn end(&self, number: usize, response: &Response) {
        let entry = &mut self.entries.lock().expect("no holder of the lock panics")[number];
        (entry.told, entry.to_ms) = (told(&entry.asked, response), now_ms());
    }

    /// Checks the log in `data_dir` against Postgres: each record is one row.
    pub fn check_rows(&self, data_dir: &Path, url: &str) {
        let (Some(log), Ok(rows)) = (Log::read(data_dir), psql(url, ROWS)) else { return };
        let found: HashSet<&str> = rows.lines().collect();
        assert_eq!(found.len(), rows.lines().count(), "a record is in Postgres twice");
        if !log.is_whole {
            // Postgres still has the records that retention has removed from the log.
            return;
        }
        let row = |what, code: &str| {
            let hold = &log.checkouts[code];
            format!("{what}|{code}|{}|{}", hold.item.0, hold.user.0)
        };
        let expected = log.checkouts.keys().map(|code| row("reserved", code));
        let expected = expected.chain(log.purchases.keys().map(|code| row("bought", code)));
        let expected = expected.chain(log.extensions.keys().map(|code| row("extended", code)));
        let expected: HashSet<String> = expected.chain(log.releases.keys().map(|code| row("released", code))).collect();
        let missing: Vec<_> = expected.iter().filter(|row| !found.contains(row.as_str())).collect();
        assert!(missing.is_empty(), "not in Postgres: {missing:?}");
        if !log.is_taken_over {
            let invented: Vec<_> = found.iter().filter(|row| !expected.contains(**row)).collect();
            assert!(invented.is_empty(), "in Postgres, not in the log: {invented:?}");
        }
    }

    /// Checks the history against the log in `data_dir`, whose server has ended.
    pub fn check(&self, data_dir: &Path) {
        // A copy, because clients of a killed server may still be waiting for their responses.
        let entries = self.entries.lock().expect("no holder of the lock panics").clone();
        let Some(log) = Log::read(data_dir).filter(|_| !entries.is_empty()) else { return };
        let checked = Checked { entries: &entries, log: &log };
        checked.acknowledged();
        if !self.is_partial.load(Ordering::Relaxed) && !log.is_taken_over {
            checked.asked_for();
        }
        if log.is_timed_within(entries[0].from_ms - SLACK_MS, now_ms() + SLACK_MS) {
            checked.refusals();
            checked.ends_of_holds();
        }
    }
}

/// Query for the rows in Postgres that correspond to the records of the purchase log.
const ROWS: &str = "select 'reserved', code, item_id, user_id from checkouts where outcome = 0 \
    union all select 'bought', code, item_id, user_id from purchases \
    union all select 'released', code, item_id, user_id from releases \
    union all select 'extended', code, item_id, user_id from extensions";

fn asked(line: &str, fields: &str) -> Asked {
    let key = || fields.lines().find_map(|field| field.strip_prefix("Idempotency-Key: ")).map(str::to_owned);
    let parts = || {
        let (method, target) = line.split_once(' ')?;
        let (path, query) = target.split_once('?')?;
        // Codes have one spelling in the log, whatever the request has.
        let query = percent_encoding::percent_decode_str(query).decode_utf8().ok()?.to_lowercase();
        let pairs: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        Some(match (method, path) {
            ("POST", "/checkout") => Asked::Checkout {
                user: pairs.get("user_id")?.parse().ok()?,
                item: pairs.get("item_id").or(pairs.get("id")).map(|item| item.parse()).transpose().ok()?,
                key: key(),
            },
            ("POST", "/purchase") => Asked::Purchase((*pairs.get("code")?).to_owned()),
            ("POST", "/checkout/extend") => Asked::Extend((*pairs.get("code")?).to_owned()),
            ("DELETE", "/checkout") => Asked::Cancel((*pairs.get("code")?).to_owned()),
            _ => return None,
        })
    };
    parts().unwrap_or(Asked::Other)
}

fn told(asked: &Asked, response: &Response) -> Told {
    if *asked == Asked::Other {
        Told::Unknown
    } else if response.status >= 300 {
        match response.problem() {
            problem if problem == "overdue" => Told::Unknown,
            problem => Told::Refused(problem),
        }
    } else if matches!(asked, Asked::Checkout { .. } | Asked::Extend(_)) && response.body.starts_with('{') {
        let hold = response.json();
        let ends_at = hold["expires_at"].as_str().expect("the response has an end");
        let ends_at = humantime::parse_rfc3339(ends_at).expect("an RFC 3339 time").duration_since(UNIX_EPOCH);
        let ends_ms = ends_at.expect("the time is after 1970").as_millis() as u64;
        Told::Done(hold["code"].as_str().expect("the response has a code").to_owned(), Some(ends_ms))
    } else {
        Told::Done(response.body.clone(), None)
    }
}

struct Checked<'a> {
    entries: &'a [Entry],
    log: &'a Log,
}

impl Checked<'_> {
    /// Returns the requests that the log can still explain. Retention removes sales that have ended. That may be the
    /// newest sale of the log, if the log was full when the next one began.
    fn explained(&self) -> impl Iterator<Item = &Entry> {
        let (newest, since_ms) = self.log.newest_sale();
        let is_newest_whole = self.log.is_whole_since(newest);
        let is_of_newest = move |entry: &&Entry| {
            let place = entry.code().and_then(|code| Code::parse(code.as_bytes())).and_then(|code| code.place());
            is_newest_whole && entry.from_ms > since_ms + SLACK_MS && place.is_none_or(|place| place.is_in(newest))
        };
        self.entries.iter().filter(move |entry| self.log.is_whole || is_of_newest(entry))
    }

    /// Checks that every acknowledged request is in the log, with the same user and item.
    fn acknowledged(&self) {
        let mut codes = HashMap::new();
        for entry in self.explained() {
            let Told::Done(body, ends_ms) = &entry.told else { continue };
            match &entry.asked {
                Asked::Checkout { user, item, key } => {
                    let earlier = codes.insert(body, &entry.asked);
                    let is_repetition = key.is_some() && earlier == Some(&entry.asked);
                    assert!(earlier.is_none() || is_repetition, "a code was given out twice: {entry:?}");
                    let record = self.log.checkouts.get(body).unwrap_or_else(|| panic!("not in the log: {entry:?}"));
                    let is_same = record.user.0 == *user && item.is_none_or(|item| item == record.item.0);
                    assert!(is_same, "another user or item: {entry:?}");
                    // A repetition may come before or after an extension.
                    let extension = self.log.extensions.get(body).copied().unwrap_or(0);
                    let ends = [record.expires_ms, record.expires_ms - extension];
                    assert!(ends_ms.is_none_or(|end| ends.contains(&end)), "not one of {ends:?}: {entry:?}");
                }
                Asked::Purchase(code) => assert!(self.log.purchases.contains_key(code), "not in the log: {entry:?}"),
                Asked::Cancel(code) => {
                    let end = self.log.releases.get(code);
                    let is_there = end.is_some_and(|(_, reason)| *reason == ReleaseReason::Cancelled);
                    assert!(is_there, "not in the log: {entry:?}");
                }
                // A server that was restored from Postgres has no record of the checkout.
                Asked::Extend(code) => {
                    assert!(self.log.extensions.contains_key(code), "not in the log: {entry:?}");
                    let end = self.log.checkouts.get(code).map(|hold| hold.expires_ms);
                    assert!(end.is_none() || end == *ends_ms, "not {end:?}: {entry:?}");
                }
                Asked::Other => {}
            }
        }
    }

    /// Checks that every record in the log was requested and not refused.
    fn asked_for(&self) {
        let (mut done, mut open) = (HashSet::new(), HashSet::new());
        for entry in self.entries {
            match (&entry.asked, &entry.told) {
                (_, Told::Refused(_)) => {}
                (Asked::Checkout { .. }, Told::Done(code, _)) => _ = done.insert(("reserved", code.clone())),
                (Asked::Checkout { user, item, .. }, _) => _ = open.insert((*user, *item)),
                (Asked::Purchase(code), _) => _ = done.insert(("bought", code.clone())),
                (Asked::Cancel(code), _) => _ = done.insert(("released", code.clone())),
                (Asked::Extend(code), _) => _ = done.insert(("extended", code.clone())),
                (Asked::Other, _) => {}
            }
        }
        let is_open = |hold: &Hold| [Some(hold.item.0), None].iter().any(|item| open.contains(&(hold.user.0, *item)));
        for (code, hold) in &self.log.checkouts {
            let is_known = done.contains(&("reserved", code.clone())) || is_open(hold);
            assert!(is_known, "a reservation nobody asked for, or that was refused: {hold:?}");
        }
        for (code, hold) in &self.log.purchases {
            assert!(done.contains(&("bought", code.clone())), "a purchase not requested, or refused: {hold:?}");
        }
        for code in self.log.extensions.keys() {
            assert!(done.contains(&("extended", code.clone())), "an extension not requested, or refused: {code}");
        }
        for (code, (_, reason)) in &self.log.releases {
            // The server releases a hold whose answer reached no client.
            let hold = self.log.checkouts.get(code);
            let is_undelivered = hold.is_some_and(is_open);
            let is_known = *reason == ReleaseReason::Expired || done.contains(&("released", code.clone()));
            let is_known = is_known || is_undelivered;
            assert!(is_known, "no client cancelled {code}");
        }
    }

    /// Checks that every refusal as sold, as reserved or by the limit has its reason in the log, at its time.
    fn refusals(&self) {
        let mut by_item: HashMap<Option<u32>, Vec<&Entry>> = HashMap::new();
        let mut by_user: HashMap<i64, Vec<&Entry>> = HashMap::new();
        for entry in self.entries {
            if let Asked::Checkout { user, item, .. } = entry.asked {
                by_item.entry(item).or_default().push(entry);
                by_user.entry(user).or_default().push(entry);
            }
        }
        for entry in self.explained() {
            let (Asked::Checkout { user, item, .. }, Told::Refused(problem)) = (&entry.asked, &entry.told) else {
                continue;
            };
            let is_current = |sale: SaleId| {
                let (from_ms, to_ms) = self.log.span_of(sale);
                entry.overlaps(from_ms, to_ms)
            };
            let others = |all: &[&Entry]| {
                let is_other = |other: &&&Entry| !std::ptr::eq(**other, entry);
                all.iter().filter(is_other).filter(|other| entry.overlaps(other.from_ms, other.to_ms)).count()
            };
            match problem.as_str() {
                "item-sold" => {
                    let sold = item.and_then(|item| self.log.sold.get(&item)).into_iter().flatten();
                    let mut sold = sold
                        .filter(|(sale, at_ms)| is_current(*sale) && *at_ms <= entry.to_ms.saturating_add(SLACK_MS));
                    assert!(sold.next().is_some(), "it was not sold: {entry:?}");
                }
                "item-reserved" => {
                    let mut holds = item.and_then(|item| self.log.holds_of_item.get(&item)).into_iter().flatten();
                    let is_held = holds.any(|hold| is_current(hold.sale) && entry.overlaps(hold.from_ms, hold.to_ms));
                    let may_hold = [*item, None].iter().filter_map(|item| by_item.get(item)).any(|all| others(all) > 0);
                    assert!(is_held || may_hold, "nobody held it: {entry:?}");
                }
                "user-limit" => {
                    let taken = self.log.holds_of_user.get(user).into_iter().flatten();
                    let taken = taken.filter(|hold| is_current(hold.sale) && entry.overlaps(hold.from_ms, hold.to_ms));
                    let most = taken.count() + others(&by_user[user]);
                    assert!(most >= self.log.user_limit as usize, "{most} is not the limit: {entry:?}");
                }
                _ => {}
            }
        }
    }

    /// Checks that every hold is live from its checkout to its release, its purchase or its promised end, also beyond
    /// the end of its sale: no record and no refusal of its code contradicts this.
    fn ends_of_holds(&self) {
        for (code, hold) in &self.log.checkouts {
            let bought_ms = self.log.purchases.get(code).map(|purchase| purchase.from_ms);
            let is_live = bought_ms.is_none_or(|at_ms| at_ms < hold.expires_ms + DRIFT_MS);
            assert!(is_live, "{code} was bought after its end: {hold:?}");
            if let Some((at_ms, ReleaseReason::Expired)) = self.log.releases.get(code) {
                assert!(*at_ms + DRIFT_MS >= hold.expires_ms, "{code} expired before its end: {hold:?}");
            }
        }
        for entry in self.explained() {
            let (Some(code), Told::Refused(problem)) = (entry.code(), &entry.told) else { continue };
            // An invented code, or a hold that was restored from Postgres.
            let Some(hold) = self.log.checkouts.get(code) else { continue };
            let purchase = self.log.purchases.get(code);
            let is_before = |at_ms: u64, slack_ms: u64| at_ms <= entry.to_ms.saturating_add(slack_ms);
            let is_over = is_before(hold.to_ms, SLACK_MS) || is_before(hold.expires_ms, DRIFT_MS);
            let fits = match problem.as_str() {
                "code-used" => purchase.is_some_and(|purchase| is_before(purchase.from_ms, SLACK_MS)),
                "code-expired" | "code-unknown" => purchase.is_none() && is_over,
                "sale-ended" => is_before(self.log.span_of(hold.sale).1, SLACK_MS) && (purchase.is_some() || is_over),
                _ => true,
            };
            assert!(fits, "the hold is {hold:?}, bought {purchase:?}: {entry:?}");
        }
    }
}

/// The check fails if the log does not fit a request and its response.
#[test]
fn a_history_notices_what_does_not_fit() {
    use crate::harness::LONG_SALE;
    let complaint = |line: &str, status: u16, body: &str| {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), &LONG_SALE);
        let code = server.connect().reserve(1, 1);
        assert_eq!(server.connect().purchase(&code).status, 200);
        let history = History::of(dir.path());
        assert!(server.terminate().success());
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/problem+json");
        let response = Response { status, head, body: body.replace("CODE", &code) };
        let number = history.begin(&line.replace("CODE", &code), "");
        history.end(number, &response);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history.check(dir.path())));
        found.err().and_then(|found| found.downcast_ref::<String>().cloned()).unwrap_or_default()
    };
    let problem = |name: &str| format!(r#"{{"status":409,"type":"/problems/{name}"}}"#);
    let other = "00002a9c-04e1-86c4-ae9f-b285fb710516";
    let extended = r#"{"code":"CODE","expires_at":"2100-01-01T00:00:00.000Z"}"#;
    for (line, status, body, what) in [
        ("POST /checkout?user_id=2&item_id=2", 200, other.to_owned(), "not in the log"),
        ("POST /checkout?user_id=1&item_id=1", 200, "CODE".into(), "given out twice"),
        (&format!("POST /purchase?code={other}"), 200, "{}".into(), "not in the log"),
        ("DELETE /checkout?code=CODE", 204, String::new(), "not in the log"),
        ("POST /checkout/extend?code=CODE", 200, extended.into(), "not in the log"),
        ("POST /purchase?code=CODE", 409, problem("code-expired"), "the hold is"),
        ("DELETE /checkout?code=CODE", 409, problem("sale-ended"), "the hold is"),
        ("POST /purchase?code=CODE", 409, problem("code-used"), ""),
        ("POST /checkout?user_id=2&item_id=2", 409, problem("item-sold"), "it was not sold"),
        ("POST /checkout?user_id=2&item_id=2", 409, problem("item-reserved"), "nobody held it"),
        ("POST /checkout?user_id=1&item_id=2", 409, problem("user-limit"), "is not the limit"),
        ("POST /checkout?user_id=2&item_id=1", 409, problem("item-sold"), ""),
        ("POST /checkout?user_id=2&item_id=1", 409, problem("item-reserved"), ""),
    ] {
        let found = complaint(line, status, &body);
        assert!(found.contains(what) && (!what.is_empty() || found.is_empty()), "{line} {status} {body}: {found}");
    }
}

/// The check fails if the log has a record that no client requested.
#[test]
fn a_history_notices_what_nobody_asked_for() {
    use crate::harness::LONG_SALE;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let code = server.connect().reserve(1, 1);
    assert_eq!(server.connect().purchase(&code).status, 200);
    assert!(server.terminate().success());
    let stranger = History::default();
    stranger.begin("POST /checkout?user_id=2&item_id=2", "");
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stranger.check(dir.path())));
    let found = found.unwrap_err().downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(found.contains("nobody asked for"), "{found}");
}

/// A hold as its buyer knows it. No one else knows its code.
struct Known {
    sale: u64,
    item: u32,
    code: String,
    key: String,
    ends_ms: u64,
    end: End,
}

#[derive(PartialEq, Eq)]
enum End {
    Open,
    /// Bought, with the receipt.
    Bought(String),
    Released,
}

const PERIOD_MS: u64 = 2_000;
const RECEIPTS_MS: u64 = 3_000;

impl Known {
    fn of(response: &Response, item: u32, key: String) -> Known {
        let Told::Done(code, Some(ends_ms)) = told(&Asked::Checkout { user: 0, item: Some(item), key: None }, response)
        else {
            panic!("no hold: {response:?}");
        };
        let sale = response.json()["sale_id"].as_u64().expect("a number");
        Known { sale, item, code, key, ends_ms, end: End::Open }
    }

    /// Returns whether the hold must be live, and whether it may be, during a request between these times.
    fn life(&self, from_ms: u64, to_ms: u64) -> (bool, bool) {
        let is_open = self.end == End::Open;
        (is_open && to_ms + DRIFT_MS < self.ends_ms, is_open && from_ms <= self.ends_ms + DRIFT_MS)
    }

    /// Checks a refusal between these times.
    fn check_refusal(&self, problem: &str, from_ms: u64, to_ms: u64) {
        let (is_live, _) = self.life(from_ms, to_ms);
        let is_bought = matches!(self.end, End::Bought(_));
        let fits = match problem {
            "code-used" => is_bought,
            "code-expired" | "code-unknown" => !is_bought && !is_live,
            "sale-ended" => !is_live && to_ms + DRIFT_MS >= (self.sale + 1) * PERIOD_MS + RECEIPTS_MS,
            _ => false,
        };
        assert!(fits, "{problem} for {} of sale {}, which ends at {}", self.code, self.sale, self.ends_ms);
    }

    /// Buys the item, releases the hold or extends it, and checks the answer.
    fn use_code(&mut self, client: &mut Client, choice: u32) {
        let line = ["POST /purchase", "DELETE /checkout", "POST /checkout/extend"][choice as usize];
        let from_ms = now_ms();
        let response = client.try_request(&format!("{line}?code={}", self.code), "Idempotency-Key: k\r\n");
        let (response, to_ms) = (response.expect("the server runs"), now_ms());
        if response.status >= 300 {
            return self.check_refusal(&response.problem(), from_ms, to_ms);
        }
        let may_be_live = self.life(from_ms, to_ms).1;
        let is_allowed = match (choice, &self.end) {
            (0, End::Bought(receipt)) => *receipt == response.body,
            (1, End::Released) => true,
            _ => may_be_live,
        };
        assert!(is_allowed, "{line} of {} of sale {}: {response:?}", self.code, self.sale);
        match choice {
            0 => self.end = End::Bought(response.body),
            1 => self.end = End::Released,
            _ => self.ends_ms = Known::of(&response, self.item, String::new()).ends_ms,
        }
    }
}

/// Holds live longer than what is left of their sales. Buyers use and repeat every request about them at any time, also
/// across kill -9, and compare each answer with what they know. When a server ends, its log must explain the answers.
#[test]
fn holds_live_to_their_end_whatever_their_sale_does() {
    let dir = tempfile::tempdir().unwrap();
    let terms = ["--sale-period", "2s", "--receipts", "3s", "--items", "60", "--user-limit", "60"];
    let times = ["--reservation-ttl", "1500ms", "--extension", "1s", "--shards"];
    let known: [Mutex<Vec<Known>>; 4] = Default::default();
    for (round, shards) in ["3", "2"].into_iter().enumerate() {
        let server = Server::start(dir.path(), &[&terms[..], &times, &[shards]].concat());
        let (address, end) = (server.address, Instant::now() + Duration::from_secs(5));
        crowd(4, |user| {
            let mut random = fastrand::Rng::with_seed(u64::from(user) << 8 | round as u64);
            let (mut client, mut known) = (connect(address), known[user as usize].lock().unwrap());
            while Instant::now() < end {
                // Leave time between the requests, so that they are spread over the lives of the holds.
                std::thread::sleep(Duration::from_millis(random.u64(..8)));
                let choice = random.u32(..10);
                let latest = known.len().saturating_sub(40);
                if choice < 3 || known.is_empty() {
                    let (item, key) = (random.u32(..60), format!("{round}-{}", known.len()));
                    let response = client.checkout_with_key(user.into(), item, &key);
                    match response.outcome().as_str() {
                        "200" => known.push(Known::of(&response, item, key)),
                        other => assert!(["item-sold", "item-reserved"].contains(&other), "{response:?}"),
                    }
                    continue;
                }
                let place = random.usize(latest..known.len());
                if choice < 9 {
                    known[place].use_code(&mut client, choice % 3);
                    continue;
                }
                let (hold, from_ms) = (&known[place], now_ms());
                let response = client.checkout_with_key(user.into(), hold.item, &hold.key);
                let must_be_same = hold.life(from_ms, now_ms()).0;
                if response.status == 200 {
                    let again = Known::of(&response, hold.item, hold.key.clone());
                    assert!(
                        !must_be_same || (&again.code, again.ends_ms) == (&hold.code, hold.ends_ms),
                        "{response:?}"
                    );
                    if known.iter().all(|other| other.code != again.code) {
                        known.push(again);
                    }
                } else {
                    assert!(!must_be_same, "{response:?}");
                }
            }
        });
        server.kill();
    }
    let known = known.into_iter().flat_map(|known| known.into_inner().unwrap());
    let log = Log::read(dir.path()).expect("there is a log");
    let ended_ms = |hold: &Known| log.purchases.get(&hold.code).map_or(0, |purchase| purchase.from_ms);
    let late = known.filter(|hold| ended_ms(hold) > (hold.sale + 1) * PERIOD_MS).count();
    assert!(late > 5 && log.extensions.len() > 20, "{late} late purchases, {} extensions", log.extensions.len());
}
