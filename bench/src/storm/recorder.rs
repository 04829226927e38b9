//! Evaluates each response: updates the ledger and the statistics, saves the response if it is unexpected, and returns
//! what the buyer does next. Requests are written here, too.

use crate::buyer_socket::Response;
use crate::checkout_body::{self, CheckoutBody};
use crate::ledger::{CalendarGrant, Ledger, LedgerEntry, PurchaseReceipt, PurchaseResponse, StockScope, code_str};
use crate::opening_record::OpeningRecord;
use crate::run_clock::RunClock;
use crate::sale_calendar::{SaleCalendar, ServerSeconds, UnitRequest};
use crate::scenario::{Arrival, BuyerAction, BuyerStep, NextStep, Scenario, StepResult, VirtualBuyers, Wanted};
use crate::server_date::ServerDate;
use crate::statistics::{LatencyKind, RunStatistics};
use crate::unexpected::UnexpectedResponses;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

/// The record of a run.
pub struct RunRecorder {
    /// Source of the requests.
    pub buyers: VirtualBuyers,
    /// Reservations and responses to their purchases.
    pub ledger: Ledger,
    /// Counts and latencies.
    pub statistics: RunStatistics,
    /// Unexpected responses.
    pub unexpected: UnexpectedResponses,
    /// The opening that the run measures, if it does.
    pub opening: Option<OpeningRecord>,
    scenario: Scenario,
    wanted: Wanted,
    clock: RunClock,
    calendar: Rc<SaleCalendar>,
    /// Time of the opening that the run measures, from the start of the run.
    opens_at: Duration,
    server_date: ServerDate,
}

/// Times of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTime {
    /// Time at which it arrived, from the start of the run.
    pub at: Duration,
    /// Time since its request was due.
    pub latency: Duration,
    /// The latest `Date` that had arrived when its request was sent, in seconds since the Unix epoch.
    pub asked_s: u64,
}

impl RunRecorder {
    /// Creates an empty record. The run starts now.
    pub fn new(
        scenario: Scenario,
        wanted: Wanted,
        buyers: VirtualBuyers,
        unexpected: UnexpectedResponses,
    ) -> RunRecorder {
        RunRecorder {
            buyers,
            ledger: Ledger::default(),
            statistics: RunStatistics::new(),
            unexpected,
            opening: None,
            scenario,
            wanted,
            clock: RunClock::start(),
            calendar: Rc::default(),
            opens_at: Duration::ZERO,
            server_date: ServerDate::default(),
        }
    }

    /// Sets the calendar that the buyers follow.
    pub fn follow(&mut self, calendar: Rc<SaleCalendar>) {
        self.calendar = calendar;
    }

    /// Sets the opening to measure, `opens_at` after the start of the run.
    pub fn measure_opening(&mut self, record: OpeningRecord, opens_at: Duration) {
        (self.opening, self.opens_at) = (Some(record), opens_at);
    }

    /// Returns the clock of the run.
    pub fn clock(&self) -> RunClock {
        self.clock
    }

    /// Returns the sales that the buyers follow.
    pub fn calendar(&self) -> &SaleCalendar {
        &self.calendar
    }

    /// Returns the latest `Date`, in seconds since the Unix epoch, or 0 if none has arrived. A run without a calendar
    /// does not read it.
    pub fn server_s(&self) -> u64 {
        self.server_date.second()
    }

    /// Returns the arrival of the next buyer, `now` after the start of the run.
    pub fn arrive(&mut self, now: Duration) -> Arrival {
        self.buyers.arrive(self.clock.unix(now).as_secs())
    }

    /// Notes that the request of a step was sent.
    pub fn sent(&mut self, step: BuyerStep, now: Duration) {
        self.statistics.sent += 1;
        if let (Some(opening), BuyerAction::UnitCheckout(_)) = (&mut self.opening, step.action) {
            opening.sent(nanos_after(self.opens_at, now));
        }
    }

    /// Returns whether a checkout was served at the opening that the run measures.
    pub fn is_served(&self) -> bool {
        self.opening.as_ref().is_some_and(|opening| opening.served > 0)
    }

    /// Appends the HTTP request of a step to `out`.
    pub fn write_request(&self, step: BuyerStep, out: &mut Vec<u8>) {
        let wants_json = self.scenario.wants_json() || self.wanted != Wanted::Item;
        let accept = if wants_json { "Accept: application/json\r\n" } else { "" };
        match step.action {
            BuyerAction::Checkout { user, item } => {
                match &self.wanted {
                    Wanted::Item => write!(out, "POST /checkout?user_id={user}&item_id={item}"),
                    Wanted::AnyUnit => write!(out, "POST /checkout?user_id={user}"),
                    Wanted::Product(id) => write!(out, "POST /checkout?user_id={user}&product_id={id}"),
                }
                .expect("writing to a vector cannot fail");
                write!(out, " HTTP/1.1\r\nHost: storm\r\n{accept}\r\n")
            }
            BuyerAction::UnitCheckout(UnitRequest { user, sale, product, is_named, .. }) => {
                let known = &self.calendar.sales[sale];
                write!(out, "POST /checkout?user_id={user}").expect("writing to a vector cannot fail");
                if is_named {
                    write!(out, "&sale_id={}", known.before.sale_id).expect("writing to a vector cannot fail");
                }
                if let Some(product) = product {
                    let id = &known.products[product].product_id;
                    write!(out, "&product_id={id}").expect("writing to a vector cannot fail");
                }
                write!(out, " HTTP/1.1\r\nHost: storm\r\nAccept: application/json\r\n\r\n")
            }
            BuyerAction::Purchase(index) => {
                let code = code_str(&self.ledger.reservations[index].code);
                if self.scenario.has_keys() {
                    write!(out, "POST /purchase?code={code} HTTP/1.1\r\nHost: storm\r\nIdempotency-Key: {code}\r\n\r\n")
                } else {
                    write!(out, "POST /purchase?code={code} HTTP/1.1\r\nHost: storm\r\n\r\n")
                }
            }
        }
        .expect("writing to a vector cannot fail");
    }

    /// Records a response. Returns the buyer's next step.
    ///
    /// # Errors
    /// Returns an I/O error if the response is unexpected and cannot be saved.
    pub fn answered(&mut self, step: BuyerStep, response: &Response<'_>, time: ResponseTime) -> io::Result<NextStep> {
        let ResponseTime { at, latency, asked_s } = time;
        // A run without a calendar does not need it.
        let to = if self.calendar.sales.is_empty() { 0 } else { self.server_date.read(response.date) };
        let seconds = ServerSeconds { from: asked_s, to };
        let status;
        let outcome = match (response.status, problem_type(response.body)) {
            (200, _) => "200",
            (_, Some(problem)) => problem,
            (other, None) => {
                status = other.to_string();
                &status
            }
        };
        let (result, is_expected) = match step.action {
            BuyerAction::Checkout { user, item } => {
                self.evaluate_item((user, item), response, outcome, (time, seconds))
            }
            BuyerAction::UnitCheckout(request) => self.evaluate_unit(request, response, outcome, (time, seconds)),
            BuyerAction::Purchase(index) => self.evaluate_purchase(index, step.repeats, response, outcome, time),
        };
        let name = match result {
            StepResult::Refused(why) => why,
            _ => outcome,
        };
        let kind = match result {
            StepResult::Reserved(_) => LatencyKind::Checkout,
            StepResult::Bought => LatencyKind::Purchase,
            StepResult::Refused(_) | StepResult::Unavailable | StepResult::NoResponse => LatencyKind::Refusal,
        };
        self.statistics.count(step.action.operation(), name, at);
        self.statistics.record(kind, latency, at);
        if !is_expected {
            let mut request = Vec::new();
            self.write_request(step, &mut request);
            self.unexpected.save(&format!("{} {name}", step.action.operation()), at, &request, response.bytes)?;
        }
        Ok(self.buyers.next(step, result))
    }

    /// Records a request that gets no response, and saves it with the bytes received so far. Returns the buyer's next
    /// step.
    ///
    /// # Errors
    /// Returns an I/O error if the request cannot be saved.
    pub fn failed(
        &mut self,
        step: BuyerStep,
        why: RequestFailure<'_>,
        at: Duration,
        latency: Duration,
    ) -> io::Result<NextStep> {
        if let BuyerAction::Purchase(index) = step.action {
            self.ledger.add_response(index, PurchaseResponse::Unknown);
        }
        self.statistics.count(step.action.operation(), why.name(), at);
        if let RequestFailure::HungUp = why {
            return Ok(self.buyers.next(step, StepResult::NoResponse));
        }
        self.statistics.record(LatencyKind::NoResponse, latency, at);
        let mut request = Vec::new();
        self.write_request(step, &mut request);
        let (detail, received) = match why {
            RequestFailure::Broken(error, received) => (format!(": {error}"), received),
            RequestFailure::TimedOut | RequestFailure::HungUp => (String::new(), &[][..]),
        };
        let what = format!("{} {}{detail}", step.action.operation(), why.name());
        self.unexpected.save(&what, at, &request, received)?;
        Ok(self.buyers.next(step, StepResult::NoResponse))
    }

    /// Returns the reservation of a granted checkout.
    fn reservation(&self, user: i64, granted: CheckoutBody, at: Duration, seconds: ServerSeconds) -> LedgerEntry {
        let CheckoutBody { item, code, expires_ms, sale } = granted;
        let received_ms = self.clock.unix(at).as_millis() as u64;
        let grant = sale.map(|(sale, product)| CalendarGrant { sale, product, seconds });
        LedgerEntry { user, item, code, received_ms, expires_ms, grant, responses: Vec::new() }
    }

    /// Evaluates the response to a checkout of an item. Returns its result, and whether it is expected.
    fn evaluate_item<'a>(
        &mut self,
        (user, item): (i64, u32),
        response: &Response<'_>,
        outcome: &'a str,
        (time, seconds): (ResponseTime, ServerSeconds),
    ) -> (StepResult<'a>, bool) {
        if response.status == 200 {
            let Some(granted) = checkout_body::of_item(&self.wanted, item, response.body) else {
                return (StepResult::Refused("200 without a code"), false);
            };
            let reservation = self.reservation(user, granted, time.at, seconds);
            return (StepResult::Reserved(self.ledger.add_reservation(reservation)), true);
        }
        if response.status == 503 {
            return (StepResult::Unavailable, false);
        }
        if outcome == "sold-out" {
            self.ledger.add_sold_out(StockScope::default(), time.at);
        }
        let is_expected = match self.wanted != Wanted::Item {
            true => matches!(outcome, "sold-out" | "all-reserved" | "user-limit"),
            false => matches!(outcome, "item-sold" | "item-reserved" | "user-limit"),
        };
        (StepResult::Refused(outcome), is_expected)
    }

    /// Evaluates the response to a checkout of any unit. Returns its result, and whether it is expected.
    fn evaluate_unit<'a>(
        &mut self,
        request: UnitRequest,
        response: &Response<'_>,
        outcome: &'a str,
        (time, seconds): (ResponseTime, ServerSeconds),
    ) -> (StepResult<'a>, bool) {
        if response.status == 200 {
            let Some(granted) = checkout_body::of_unit(&self.calendar, &request, response.body) else {
                return (StepResult::Refused("200 without a code"), false);
            };
            if let Some(opening) = &mut self.opening {
                let due = time.at.saturating_sub(time.latency);
                opening.served(nanos_after(self.opens_at, due), nanos_after(self.opens_at, time.at));
            }
            let reservation = self.reservation(request.user, granted, time.at, seconds);
            return (StepResult::Reserved(self.ledger.add_reservation(reservation)), true);
        }
        if outcome == "sold-out"
            && let Some(scope) = self.calendar.scope(&request, seconds)
        {
            self.ledger.add_sold_out(scope, time.at);
        }
        let is_expected = self.judge_refusal(outcome, &request, seconds);
        (if response.status == 503 { StepResult::Unavailable } else { StepResult::Refused(outcome) }, is_expected)
    }

    /// Evaluates the response to the purchase of the reservation at this index, which was requested `repeats` times before.
    /// Returns its result, and whether it is expected.
    fn evaluate_purchase<'a>(
        &mut self,
        index: usize,
        repeats: u8,
        response: &Response<'_>,
        outcome: &'a str,
        time: ResponseTime,
    ) -> (StepResult<'a>, bool) {
        let (result, purchase, is_expected) = match response.status {
            200 => {
                self.ledger.compare_with_sold_out(index, time.at.saturating_sub(time.latency));
                match PurchaseReceipt::parse(response.body) {
                    Some(receipt) => (StepResult::Bought, PurchaseResponse::Bought(receipt), true),
                    None => (StepResult::Refused("200 without a receipt"), PurchaseResponse::Unknown, false),
                }
            }
            503 => (StepResult::Unavailable, PurchaseResponse::Unknown, false),
            _ => {
                let is_expected = outcome == "code-used" && repeats > 0;
                (StepResult::Refused(outcome), PurchaseResponse::Refused(outcome.to_owned()), is_expected)
            }
        };
        self.ledger.add_response(index, purchase);
        (result, is_expected)
    }

    /// Returns whether a refusal is expected. Notes one that the phase of its sale does not allow.
    fn judge_refusal(&mut self, why: &str, request: &UnitRequest, seconds: ServerSeconds) -> bool {
        let allowed = self.calendar.allows(why, request, seconds);
        if allowed == Some(false) {
            let (sale, ServerSeconds { from, to }) = (self.calendar.sales[request.sale].before.sale_id, seconds);
            let name = if request.is_named { "" } else { ", which was not named," };
            let detail = format!(
                "a checkout of sale {sale}{name} was refused with {why}, between seconds {from} and {to} of the server"
            );
            *self.ledger.out_of_phase.entry(detail).or_default() += 1;
        }
        if let (Some(opening), "not-open") = (&mut self.opening, why) {
            opening.refused += 1;
        }
        allowed == Some(true)
    }
}

/// Returns the nanoseconds from `opens_at` to `at`, negative if it is earlier.
fn nanos_after(opens_at: Duration, at: Duration) -> i64 {
    at.as_nanos() as i64 - opens_at.as_nanos() as i64
}

/// The reason why a request gets no response.
#[derive(Clone, Copy)]
pub enum RequestFailure<'a> {
    /// The request timed out.
    TimedOut,
    /// The client disconnected on purpose, right after it sent the request.
    HungUp,
    /// The connection failed: the error, and the bytes received so far.
    Broken(&'a io::Error, &'a [u8]),
}

impl RequestFailure<'_> {
    fn name(&self) -> &'static str {
        match self {
            RequestFailure::TimedOut => "timed out",
            RequestFailure::HungUp => "hung up",
            RequestFailure::Broken(error, _) if error.kind() == io::ErrorKind::InvalidData => "not HTTP",
            RequestFailure::Broken(..) => "disconnected",
        }
    }
}

/// Returns the last part of the type of a problem document, such as `item-sold`, without parsing the whole body.
pub fn problem_type(body: &[u8]) -> Option<&str> {
    const TYPE: &[u8] = b"\"type\":\"/problems/";
    let start = memchr::memmem::find(body, TYPE)? + TYPE.len();
    let length = memchr::memchr(b'"', &body[start..])?;
    std::str::from_utf8(&body[start..start + length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buyer_socket::parse;
    use crate::sale_calendar::tests::{calendar, request};
    use std::time::UNIX_EPOCH;

    const CODE: &str = "5217a1a2-e116-86c4-ae9f-b285fb710516";
    const CHECKOUT: BuyerStep = BuyerStep { action: BuyerAction::Checkout { user: 7, item: 42 }, repeats: 0 };
    const PURCHASE: BuyerStep = BuyerStep { action: BuyerAction::Purchase(0), repeats: 0 };
    const RECEIPT: &str = r#"{"success":true,"sale_id":5,"item_id":42}"#;

    /// Returns a recorder, and the directory of its file of unexpected responses.
    fn recorder(scenario: Scenario) -> (RunRecorder, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let unexpected = UnexpectedResponses::new(&dir.path().join("unexpected"), 10);
        (RunRecorder::new(scenario, Wanted::Item, VirtualBuyers::new(scenario, 10, 100, 1), unexpected), dir)
    }

    fn answer(recorder: &mut RunRecorder, step: BuyerStep, status: u16, body: &str) -> NextStep {
        let text = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let response = parse(text.as_bytes()).unwrap().unwrap();
        let (at, latency) = (Duration::from_secs(1), Duration::from_millis(2));
        recorder.answered(step, &response, ResponseTime { at, latency, asked_s: 0 }).unwrap()
    }

    fn refusal(why: &str) -> String {
        format!(r#"{{"status":409,"title":"x","type":"/problems/{why}"}}"#)
    }

    #[test]
    fn a_code_and_a_receipt_reach_the_ledger_and_the_buyer() {
        let (mut recorder, _dir) = recorder(Scenario::Chain);
        assert_eq!(answer(&mut recorder, CHECKOUT, 200, CODE), NextStep::Send(PURCHASE));
        assert_eq!(answer(&mut recorder, PURCHASE, 200, RECEIPT), NextStep::Leave);
        assert_eq!((recorder.ledger.bought(), recorder.unexpected.count), (1, 0));
        let mut request = Vec::new();
        recorder.write_request(PURCHASE, &mut request);
        assert_eq!(request, format!("POST /purchase?code={CODE} HTTP/1.1\r\nHost: storm\r\n\r\n").as_bytes());
    }

    #[test]
    fn the_expiry_of_a_hold_is_read_from_json() {
        let (mut recorder, _dir) = recorder(Scenario::Hoarders);
        let body = format!(r#"{{"code":"{CODE}","sale_id":5,"item_id":42,"expires_at":"1970-01-01T00:00:30.000Z"}}"#);
        answer(&mut recorder, CHECKOUT, 200, &body);
        assert_eq!(recorder.ledger.reservations[0].expires_ms, Some(30_000));
    }

    #[test]
    fn a_checkout_of_any_item_gets_the_one_that_the_server_chooses() {
        let (mut recorder, _dir) = recorder(Scenario::Chain);
        recorder.wanted = Wanted::AnyUnit;
        let mut request = Vec::new();
        recorder.write_request(CHECKOUT, &mut request);
        assert!(request.starts_with(b"POST /checkout?user_id=7 HTTP/1.1\r\n"));
        let body = format!(r#"{{"code":"{CODE}","sale_id":5,"item_id":3,"expires_at":"1970-01-01T00:00:30.000Z"}}"#);
        assert_eq!(answer(&mut recorder, CHECKOUT, 200, &body), NextStep::Send(PURCHASE));
        assert_eq!(recorder.ledger.reservations[0].item, 3);
        for why in ["sold-out", "all-reserved"] {
            answer(&mut recorder, CHECKOUT, 409, &refusal(why));
        }
        assert_eq!(recorder.unexpected.count, 0);
    }

    #[test]
    fn a_checkout_of_a_product_must_get_a_unit_of_it() {
        let (mut recorder, _dir) = recorder(Scenario::Chain);
        recorder.wanted = Wanted::Product("aurora-38".to_owned());
        let mut request = Vec::new();
        recorder.write_request(CHECKOUT, &mut request);
        assert!(request.starts_with(b"POST /checkout?user_id=7&product_id=aurora-38 HTTP/1.1\r\n"));
        let body = |product: &str| {
            let unit = format!(r#""code":"{CODE}","sale_id":5,"item_id":3,"product_id":"{product}""#);
            format!(r#"{{{unit},"expires_at":"1970-01-01T00:00:30.000Z"}}"#)
        };
        assert_eq!(answer(&mut recorder, CHECKOUT, 200, &body("aurora-38")), NextStep::Send(PURCHASE));
        answer(&mut recorder, CHECKOUT, 409, &refusal("sold-out"));
        assert_eq!((recorder.ledger.reservations[0].item, recorder.unexpected.count), (3, 0));
        answer(&mut recorder, CHECKOUT, 200, &body("aurora-39"));
        assert_eq!((recorder.ledger.reservations.len(), recorder.unexpected.count), (1, 1));
    }

    /// Returns a recorder that follows the calendar of `sale_calendar::tests`.
    fn following() -> (RunRecorder, tempfile::TempDir) {
        let (mut recorder, dir) = recorder(Scenario::Plan);
        recorder.follow(Rc::new(calendar()));
        (recorder, dir)
    }

    /// Records a response of this second to a request for any unit.
    fn answer_in(recorder: &mut RunRecorder, second: u64, request: UnitRequest, status: u16, body: &str) {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        let text = format!("HTTP/1.1 {status} x\r\ndate: {date}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let step = BuyerStep { action: BuyerAction::UnitCheckout(request), repeats: 0 };
        let (at, latency, asked_s) = (Duration::from_secs(1), Duration::from_millis(2), recorder.server_s());
        let time = ResponseTime { at, latency, asked_s };
        recorder.answered(step, &parse(text.as_bytes()).unwrap().unwrap(), time).unwrap();
    }

    fn unit(sale: u64, item: u32, product: &str) -> String {
        let unit = format!(r#""sale_id":{sale},"item_id":{item},"product_id":"{product}""#);
        format!(r#"{{"code":"{CODE}",{unit},"expires_at":"1970-01-01T00:03:00.000Z"}}"#)
    }

    #[test]
    fn a_unit_is_requested_of_a_sale_and_a_product() {
        let (mut recorder, _dir) = following();
        let (any, of_b) = (request(0, false), UnitRequest { product: Some(1), ..request(0, true) });
        let text = |request| {
            let mut text = Vec::new();
            recorder.write_request(BuyerStep { action: BuyerAction::UnitCheckout(request), repeats: 0 }, &mut text);
            String::from_utf8(text).unwrap()
        };
        assert!(text(any).starts_with("POST /checkout?user_id=7 HTTP/1.1\r\n"));
        assert!(text(of_b).starts_with("POST /checkout?user_id=7&sale_id=1&product_id=b HTTP/1.1\r\n"));
        answer_in(&mut recorder, 120, any, 200, &unit(1, 3, "a"));
        answer_in(&mut recorder, 121, any, 200, &unit(2, 4, "b"));
        let granted = |number: usize| recorder.ledger.reservations[number].grant.unwrap();
        let seconds = ServerSeconds { from: 0, to: 120 };
        assert_eq!(granted(0), CalendarGrant { sale: 1, product: Some(0), seconds });
        let seconds = ServerSeconds { from: 120, to: 121 };
        assert_eq!(granted(1), CalendarGrant { sale: 2, product: Some(1), seconds }, "the server has chosen the sale");
        answer_in(&mut recorder, 121, of_b, 200, &unit(1, 3, "a"));
        assert_eq!((recorder.ledger.reservations.len(), recorder.unexpected.count), (2, 1), "of another product");
    }

    #[test]
    fn a_refusal_is_judged_by_the_seconds_of_the_server() {
        let (mut recorder, _dir) = following();
        let named = request(0, true);
        answer_in(&mut recorder, 99, named, 409, &refusal("not-open"));
        answer_in(&mut recorder, 100, named, 409, &refusal("not-open"));
        assert_eq!((recorder.unexpected.count, recorder.ledger.out_of_phase.len()), (0, 0), "asked in second 99");
        answer_in(&mut recorder, 100, named, 409, &refusal("not-open"));
        answer_in(&mut recorder, 100, named, 409, &refusal("not-open"));
        let (detail, count) = recorder.ledger.out_of_phase.first_key_value().unwrap();
        assert!(detail.contains("sale 1 was refused with not-open, between seconds 100 and 100"), "{detail}");
        assert_eq!((*count, recorder.unexpected.count), (2, 2));
        answer_in(&mut recorder, 101, named, 503, &refusal("overdue"));
        assert_eq!((recorder.ledger.out_of_phase.len(), recorder.unexpected.count), (1, 3), "unexpected at any time");
        answer_in(&mut recorder, 150, named, 409, &refusal("sold-out"));
        assert_eq!(recorder.ledger.sold_out.keys().next(), Some(&StockScope { sale: Some(1), product: None }));
    }

    #[test]
    fn only_unexpected_responses_are_saved() {
        let (mut recorder, _dir) = recorder(Scenario::Chain);
        answer(&mut recorder, CHECKOUT, 200, CODE);
        for why in ["item-sold", "item-reserved", "user-limit"] {
            answer(&mut recorder, CHECKOUT, 409, &refusal(why));
        }
        answer(&mut recorder, BuyerStep { repeats: 1, ..PURCHASE }, 409, &refusal("code-used"));
        assert_eq!(recorder.unexpected.count, 0);
        let cases = [
            (CHECKOUT, 200, "no code".to_owned(), "checkout 200 without a code"),
            (PURCHASE, 200, "{}".to_owned(), "purchase 200 without a receipt"),
            (PURCHASE, 409, refusal("code-used"), "purchase code-used"),
            (PURCHASE, 503, refusal("overdue"), "purchase overdue"),
            (CHECKOUT, 500, String::new(), "checkout 500"),
        ];
        for (place, (step, status, body, name)) in cases.into_iter().enumerate() {
            answer(&mut recorder, step, status, &body);
            assert_eq!(recorder.unexpected.count, place as u64 + 1);
            let text = std::fs::read_to_string(recorder.unexpected.path().unwrap()).unwrap();
            assert!(text.contains(&format!(" · {name} · ")), "{name}: {text}");
        }
    }

    #[test]
    fn a_purchase_without_a_response_is_unknown() {
        let (mut recorder, _dir) = recorder(Scenario::Retry);
        answer(&mut recorder, CHECKOUT, 200, CODE);
        let (at, latency) = (Duration::from_secs(1), Duration::from_secs(15));
        let again = BuyerStep { repeats: 1, ..PURCHASE };
        assert_eq!(recorder.failed(PURCHASE, RequestFailure::HungUp, at, latency).unwrap(), NextStep::SendLater(again));
        assert_eq!(recorder.unexpected.count, 0, "a disconnect by the client is not unexpected");
        recorder.failed(PURCHASE, RequestFailure::TimedOut, at, latency).unwrap();
        let error = io::Error::from(io::ErrorKind::InvalidData);
        recorder.failed(PURCHASE, RequestFailure::Broken(&error, b"garbage"), at, latency).unwrap();
        let names: Vec<&str> = recorder.statistics.outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["200", "hung up", "timed out", "not HTTP"]);
        assert!(recorder.ledger.reservations[0].is_unknown());
        let text = std::fs::read_to_string(recorder.unexpected.path().unwrap()).unwrap();
        assert!(text.contains("garbage") && text.contains(&format!("Idempotency-Key: {CODE}")));
    }
}
