//! What an answer means: to the ledger, to the counts, and to the buyer.

use crate::connection::Response;
use crate::ledger::{Code, Ledger, Receipt, Reservation, Told, spell};
use crate::scenario::{Answer, Ask, Buyers, Next, Scenario, Step};
use crate::tally::{Kind, Tally};
use crate::unexpected::Unexpected;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Everything that is kept about a run.
pub struct Books {
    /// Who wants what.
    pub buyers: Buyers,
    /// What was told.
    pub ledger: Ledger,
    /// What was counted.
    pub tally: Tally,
    /// What nobody expected.
    pub unexpected: Unexpected,
    scenario: Scenario,
    started: SystemTime,
}

impl Books {
    /// Empty ones.
    pub fn open(scenario: Scenario, buyers: Buyers, unexpected: Unexpected) -> Books {
        let (ledger, tally) = (Ledger::default(), Tally::new());
        Books { buyers, ledger, tally, unexpected, scenario, started: SystemTime::now() }
    }

    /// When they were opened.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Writes the request of a step.
    pub fn write_request(&self, step: Step, out: &mut Vec<u8>) {
        let accept = if self.scenario.wants_json() { "Accept: application/json\r\n" } else { "" };
        match step.ask {
            Ask::Checkout { user, item } => {
                write!(out, "POST /checkout?user_id={user}&item_id={item} HTTP/1.1\r\nHost: storm\r\n{accept}\r\n")
            }
            Ask::Purchase(place) => {
                let code = spell(&self.ledger.reservations[place].code);
                if self.scenario.has_keys() {
                    write!(out, "POST /purchase?code={code} HTTP/1.1\r\nHost: storm\r\nIdempotency-Key: {code}\r\n\r\n")
                } else {
                    write!(out, "POST /purchase?code={code} HTTP/1.1\r\nHost: storm\r\n\r\n")
                }
            }
        }
        .expect("a vector takes everything");
    }

    /// Takes an answer that came `at` since the start, `latency` after it was wanted.
    ///
    /// # Errors
    /// It was not expected, and cannot be saved.
    pub fn answered(
        &mut self,
        step: Step,
        response: &Response<'_>,
        at: Duration,
        latency: Duration,
    ) -> io::Result<Next> {
        let status;
        let outcome = match (response.status, problem(response.body)) {
            (200, _) => "200",
            (_, Some(problem)) => problem,
            (other, None) => {
                status = other.to_string();
                &status
            }
        };
        let (answer, told, is_expected) = match (step.ask, response.status) {
            (Ask::Checkout { user, item }, 200) => match self.reservation(user, item, response.body, at) {
                Some(reservation) => (Answer::Reserved(self.ledger.reserve(reservation)), None, true),
                None => (Answer::Refused("200 without a code"), None, false),
            },
            (Ask::Purchase(_), 200) => match Receipt::read(response.body) {
                Some(receipt) => (Answer::Bought, Some(Told::Bought(receipt)), true),
                None => (Answer::Refused("200 without a receipt"), Some(Told::Unknown), false),
            },
            (_, 503) => (Answer::Later, Some(Told::Unknown), false),
            (Ask::Checkout { .. }, _) => {
                let is_expected = matches!(outcome, "item-sold" | "item-reserved" | "user-limit");
                (Answer::Refused(outcome), None, is_expected)
            }
            (Ask::Purchase(_), _) => {
                let is_expected = outcome == "code-used" && step.times > 0;
                (Answer::Refused(outcome), Some(Told::Refused(outcome.to_owned())), is_expected)
            }
        };
        if let (Ask::Purchase(place), Some(told)) = (step.ask, told) {
            self.ledger.tell(place, told);
        }
        let name = match answer {
            Answer::Refused(why) => why,
            _ => outcome,
        };
        let kind = match answer {
            Answer::Reserved(_) => Kind::Checkout,
            Answer::Bought => Kind::Purchase,
            Answer::Refused(_) | Answer::Later | Answer::Lost => Kind::Refusal,
        };
        self.tally.count(step.ask.operation(), name, at);
        self.tally.record(kind, latency, at);
        if !is_expected {
            let mut request = Vec::new();
            self.write_request(step, &mut request);
            self.unexpected.save(&format!("{} {name}", step.ask.operation()), at, &request, response.bytes)?;
        }
        Ok(self.buyers.next(step, answer))
    }

    /// Takes it that there will be no answer: `why`, and what had come of it.
    ///
    /// # Errors
    /// It cannot be saved.
    pub fn lost(&mut self, step: Step, why: Lost<'_>, at: Duration, latency: Duration) -> io::Result<Next> {
        if let Ask::Purchase(place) = step.ask {
            self.ledger.tell(place, Told::Unknown);
        }
        self.tally.count(step.ask.operation(), why.name(), at);
        if let Lost::HungUp = why {
            return Ok(self.buyers.next(step, Answer::Lost));
        }
        self.tally.record(Kind::Lost, latency, at);
        let mut request = Vec::new();
        self.write_request(step, &mut request);
        let (detail, received) = match why {
            Lost::Broken(error, received) => (format!(": {error}"), received),
            Lost::TimedOut | Lost::HungUp => (String::new(), &[][..]),
        };
        let what = format!("{} {}{detail}", step.ask.operation(), why.name());
        self.unexpected.save(&what, at, &request, received)?;
        Ok(self.buyers.next(step, Answer::Lost))
    }

    fn reservation(&self, user: i64, item: u32, body: &[u8], at: Duration) -> Option<Reservation> {
        let told_ms = (self.started + at).duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
        if let Ok(code) = Code::try_from(body) {
            return Some(Reservation { user, item, code, told_ms, expires_ms: None, told: Vec::new() });
        }
        let json: serde_json::Value = serde_json::from_slice(body).ok()?;
        let code = Code::try_from(json["code"].as_str()?.as_bytes()).ok()?;
        let expires = humantime::parse_rfc3339(json["expires_at"].as_str()?).ok()?;
        let expires_ms = Some(expires.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64);
        Some(Reservation { user, item, code, told_ms, expires_ms, told: Vec::new() })
    }
}

/// Why there will be no answer.
#[derive(Clone, Copy)]
pub enum Lost<'a> {
    /// It took too long.
    TimedOut,
    /// The client did not wait for it.
    HungUp,
    /// The connection ended, and what had been received by then.
    Broken(&'a io::Error, &'a [u8]),
}

impl Lost<'_> {
    fn name(&self) -> &'static str {
        match self {
            Lost::TimedOut => "timed out",
            Lost::HungUp => "hung up",
            Lost::Broken(error, _) if error.kind() == io::ErrorKind::InvalidData => "not HTTP",
            Lost::Broken(..) => "disconnected",
        }
    }
}

/// The last part of a refusal's type.
pub fn problem(body: &[u8]) -> Option<&str> {
    const TYPE: &[u8] = b"\"type\":\"/problems/";
    let start = memchr::memmem::find(body, TYPE)? + TYPE.len();
    let length = memchr::memchr(b'"', &body[start..])?;
    std::str::from_utf8(&body[start..start + length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::parse;

    const CODE: &str = "5217a1a2-e116-86c4-ae9f-b285fb710516";
    const CHECKOUT: Step = Step { ask: Ask::Checkout { user: 7, item: 42 }, times: 0 };
    const PURCHASE: Step = Step { ask: Ask::Purchase(0), times: 0 };
    const RECEIPT: &str = r#"{"success":true,"sale_id":5,"item_id":42}"#;

    /// Books, in a directory that must outlive them.
    fn books(scenario: Scenario) -> (Books, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let unexpected = Unexpected::new(&dir.path().join("unexpected"), 10);
        (Books::open(scenario, Buyers::new(scenario, 10, 100, 1), unexpected), dir)
    }

    fn answer(books: &mut Books, step: Step, status: u16, body: &str) -> Next {
        let text = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let response = parse(text.as_bytes()).unwrap().unwrap();
        books.answered(step, &response, Duration::from_secs(1), Duration::from_millis(2)).unwrap()
    }

    fn refusal(why: &str) -> String {
        format!(r#"{{"status":409,"title":"x","type":"/problems/{why}"}}"#)
    }

    #[test]
    fn a_code_and_a_receipt_are_told_to_the_ledger_and_the_buyer() {
        let (mut books, _dir) = books(Scenario::Chain);
        assert_eq!(answer(&mut books, CHECKOUT, 200, CODE), Next::Asks(PURCHASE));
        assert_eq!(answer(&mut books, PURCHASE, 200, RECEIPT), Next::Leaves);
        assert_eq!((books.ledger.bought(), books.unexpected.count), (1, 0));
        let mut request = Vec::new();
        books.write_request(PURCHASE, &mut request);
        assert_eq!(request, format!("POST /purchase?code={CODE} HTTP/1.1\r\nHost: storm\r\n\r\n").as_bytes());
    }

    #[test]
    fn a_hold_in_json_says_when_it_ends() {
        let (mut books, _dir) = books(Scenario::Hoarders);
        let body = format!(r#"{{"code":"{CODE}","sale_id":5,"item_id":42,"expires_at":"1970-01-01T00:00:30.000Z"}}"#);
        answer(&mut books, CHECKOUT, 200, &body);
        assert_eq!(books.ledger.reservations[0].expires_ms, Some(30_000));
    }

    #[test]
    fn what_is_expected_is_not_saved_and_what_is_not_is() {
        let (mut books, _dir) = books(Scenario::Chain);
        answer(&mut books, CHECKOUT, 200, CODE);
        for why in ["item-sold", "item-reserved", "user-limit"] {
            answer(&mut books, CHECKOUT, 409, &refusal(why));
        }
        answer(&mut books, Step { times: 1, ..PURCHASE }, 409, &refusal("code-used"));
        assert_eq!(books.unexpected.count, 0);
        let cases = [
            (CHECKOUT, 200, "no code".to_owned(), "checkout 200 without a code"),
            (PURCHASE, 200, "{}".to_owned(), "purchase 200 without a receipt"),
            (PURCHASE, 409, refusal("code-used"), "purchase code-used"),
            (PURCHASE, 503, refusal("overdue"), "purchase overdue"),
            (CHECKOUT, 500, String::new(), "checkout 500"),
        ];
        for (place, (step, status, body, name)) in cases.into_iter().enumerate() {
            answer(&mut books, step, status, &body);
            assert_eq!(books.unexpected.count, place as u64 + 1);
            let text = std::fs::read_to_string(books.unexpected.path().unwrap()).unwrap();
            assert!(text.contains(&format!(" · {name} · ")), "{name}: {text}");
        }
    }

    #[test]
    fn what_is_lost_may_have_happened() {
        let (mut books, _dir) = books(Scenario::Retry);
        answer(&mut books, CHECKOUT, 200, CODE);
        let (at, latency) = (Duration::from_secs(1), Duration::from_secs(15));
        let again = Step { times: 1, ..PURCHASE };
        assert_eq!(books.lost(PURCHASE, Lost::HungUp, at, latency).unwrap(), Next::AsksLater(again));
        assert_eq!(books.unexpected.count, 0, "a client that hangs up knows why");
        books.lost(PURCHASE, Lost::TimedOut, at, latency).unwrap();
        let error = io::Error::from(io::ErrorKind::InvalidData);
        books.lost(PURCHASE, Lost::Broken(&error, b"garbage"), at, latency).unwrap();
        let names: Vec<&str> = books.tally.outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["200", "hung up", "timed out", "not HTTP"]);
        assert!(books.ledger.reservations[0].is_unknown());
        let text = std::fs::read_to_string(books.unexpected.path().unwrap()).unwrap();
        assert!(text.contains("garbage") && text.contains(&format!("Idempotency-Key: {CODE}")));
    }
}
