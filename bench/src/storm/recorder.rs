//! Evaluates each response: updates the ledger and the statistics, saves the response if it is unexpected, and returns
//! what the buyer does next. Requests are written here, too.

use crate::buyer_socket::Response;
use crate::ledger::{CodeText, Ledger, LedgerEntry, PurchaseReceipt, PurchaseResponse, code_str};
use crate::scenario::{BuyerAction, BuyerStep, NextStep, Scenario, StepResult, VirtualBuyers, Wanted};
use crate::statistics::{LatencyKind, RunStatistics};
use crate::unexpected::UnexpectedResponses;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    scenario: Scenario,
    wanted: Wanted,
    started: SystemTime,
}

impl RunRecorder {
    /// Creates an empty record. The run starts now.
    pub fn new(
        scenario: Scenario,
        wanted: Wanted,
        buyers: VirtualBuyers,
        unexpected: UnexpectedResponses,
    ) -> RunRecorder {
        let (ledger, statistics, started) = (Ledger::default(), RunStatistics::new(), SystemTime::now());
        RunRecorder { buyers, ledger, statistics, unexpected, scenario, wanted, started }
    }

    /// Returns the time at which the run started.
    pub fn started(&self) -> SystemTime {
        self.started
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

    /// Records a response that arrived `at` after the start of the run and `latency` after its request was due. Returns
    /// the buyer's next step.
    ///
    /// # Errors
    /// Returns an I/O error if the response is unexpected and cannot be saved.
    pub fn answered(
        &mut self,
        step: BuyerStep,
        response: &Response<'_>,
        at: Duration,
        latency: Duration,
    ) -> io::Result<NextStep> {
        let status;
        let outcome = match (response.status, problem_type(response.body)) {
            (200, _) => "200",
            (_, Some(problem)) => problem,
            (other, None) => {
                status = other.to_string();
                &status
            }
        };
        let (result, purchase, is_expected) = match (step.action, response.status) {
            (BuyerAction::Checkout { user, item }, 200) => match self.reservation(user, item, response.body, at) {
                Some(reservation) => (StepResult::Reserved(self.ledger.add_reservation(reservation)), None, true),
                None => (StepResult::Refused("200 without a code"), None, false),
            },
            (BuyerAction::Purchase(_), 200) => match PurchaseReceipt::parse(response.body) {
                Some(receipt) => (StepResult::Bought, Some(PurchaseResponse::Bought(receipt)), true),
                None => (StepResult::Refused("200 without a receipt"), Some(PurchaseResponse::Unknown), false),
            },
            (_, 503) => (StepResult::Unavailable, Some(PurchaseResponse::Unknown), false),
            (BuyerAction::Checkout { .. }, _) => {
                let is_expected = match self.wanted != Wanted::Item {
                    true => matches!(outcome, "sold-out" | "all-reserved" | "user-limit"),
                    false => matches!(outcome, "item-sold" | "item-reserved" | "user-limit"),
                };
                (StepResult::Refused(outcome), None, is_expected)
            }
            (BuyerAction::Purchase(_), _) => {
                let is_expected = outcome == "code-used" && step.repeats > 0;
                (StepResult::Refused(outcome), Some(PurchaseResponse::Refused(outcome.to_owned())), is_expected)
            }
        };
        let index = if let BuyerAction::Purchase(index) = step.action { Some(index) } else { None };
        self.ledger.compare_with_sold_out(outcome, at.saturating_sub(latency), at, index);
        if let (Some(index), Some(purchase)) = (index, purchase) {
            self.ledger.add_response(index, purchase);
        }
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

    /// Parses the body of a 200 to a checkout: the bare code, or JSON. The item is the requested one, unless the server
    /// has chosen it. A unit of another product than the requested one counts as no code.
    fn reservation(&self, user: i64, item: u32, body: &[u8], at: Duration) -> Option<LedgerEntry> {
        let received_ms = (self.started + at).duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
        if let Ok(code) = CodeText::try_from(body) {
            return Some(LedgerEntry { user, item, code, received_ms, expires_ms: None, responses: Vec::new() });
        }
        let json: serde_json::Value = serde_json::from_slice(body).ok()?;
        let item = if self.wanted == Wanted::Item { item } else { u32::try_from(json["item_id"].as_u64()?).ok()? };
        if let Wanted::Product(id) = &self.wanted
            && json["product_id"] != **id
        {
            return None;
        }
        let code = CodeText::try_from(json["code"].as_str()?.as_bytes()).ok()?;
        let expires = humantime::parse_rfc3339(json["expires_at"].as_str()?).ok()?;
        let expires_ms = Some(expires.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64);
        Some(LedgerEntry { user, item, code, received_ms, expires_ms, responses: Vec::new() })
    }
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
        recorder.answered(step, &response, Duration::from_secs(1), Duration::from_millis(2)).unwrap()
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
