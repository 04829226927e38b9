//! Hostile HTTP, case by case: the bytes on one connection, the expected responses, and the expected state of the
//! connection.
//!
//! In a case that must not reach the sale, the request and another one after it are checkouts of an available item. If
//! the server accepts either, the item is reserved and the case fails.

mod bodies;
mod heads;
mod requests;

/// Expected state of the connection after the last response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The server accepts a further request.
    GoesOn,
    /// The server waits for the rest of a request.
    Waits,
    /// The server closes the connection and does not parse the bytes that follow.
    Closes,
}

/// The bytes on one connection and their expected effect.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    /// For each response, its status if below 300, or else the name of its problem.
    pub answers: &'static [&'static str],
    pub then: Then,
}

/// Item and user of the checkouts that must not happen.
pub const COVETED: u32 = 66;
/// A checkout that must not happen, without the empty line at the end of its head.
const CHECKOUT: &str = "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n";
/// A request that reaches the sale and changes nothing, without the empty line at the end of its head.
const PURCHASE: &str = "POST /purchase?code=00000000-0000-0000-0000-000000000000 HTTP/1.1\r\nHost: x\r\n";
const LIVE: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

const MALFORMED: &[&str] = &["malformed-request"];
const UNKNOWN_VERSION: &[&str] = &["unknown-version"];
const UNKNOWN_CODING: &[&str] = &["unknown-coding"];
const URI_TOO_LONG: &[&str] = &["uri-too-long"];
const HEADER_TOO_LARGE: &[&str] = &["header-too-large"];
const BODY_TOO_LARGE: &[&str] = &["body-too-large"];
const NOT_FOUND: &[&str] = &["not-found"];
const NOT_ALLOWED: &[&str] = &["method-not-allowed"];
const NOT_IMPLEMENTED: &[&str] = &["not-implemented"];
const INVALID: &[&str] = &["invalid-parameter"];
const ASKED: &[&str] = &["code-unknown"];
const SHOWN: &[&str] = &["200"];

/// Returns every case.
pub fn cases() -> Vec<Case> {
    [
        heads::lines(),
        heads::request_lines(),
        heads::hosts(),
        bodies::framing(),
        bodies::chunks(),
        bodies::sizes(),
        requests::connections(),
        requests::parameters(),
    ]
    .concat()
}

/// Returns cases with the same responses. Each row of the table is a name and a text whose characters stand for bytes.
fn group(answers: &'static [&'static str], then: Then, table: &[(&str, &str)]) -> Vec<Case> {
    let bytes = |text: &str| text.chars().map(|c| u8::try_from(c).expect("characters below U+0100")).collect();
    table.iter().map(|(name, text)| Case { name: name.to_string(), bytes: bytes(text), answers, then }).collect()
}

/// Returns cases with the same responses. `dress` makes a request of each text.
fn dressed(
    answers: &'static [&'static str],
    then: Then,
    table: &[(&str, &str)],
    dress: impl Fn(&str) -> String,
) -> Vec<Case> {
    let texts: Vec<String> = table.iter().map(|(_, text)| dress(text)).collect();
    let table: Vec<_> = table.iter().zip(&texts).map(|((name, _), text)| (*name, text.as_str())).collect();
    group(answers, then, &table)
}

/// Returns cases of a checkout that is refused for these header lines.
fn refused_fields(answers: &'static [&'static str], table: &[(&str, &str)]) -> Vec<Case> {
    dressed(answers, Then::Closes, table, |fields| format!("{CHECKOUT}{fields}\r\n\r\n0\r\n\r\n{CHECKOUT}\r\n"))
}

/// Returns cases of a request that is served. Each text is the rest of its head and its body.
fn served(table: &[(&str, &str)]) -> Vec<Case> {
    dressed(ASKED, Then::GoesOn, table, |rest| format!("{PURCHASE}{rest}"))
}

/// Returns cases of complete heads that are refused.
fn refused(answers: &'static [&'static str], table: &[(&str, &str)]) -> Vec<Case> {
    dressed(answers, Then::Closes, table, |head| format!("{head}{CHECKOUT}\r\n"))
}
