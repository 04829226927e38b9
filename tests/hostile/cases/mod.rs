//! Hostile HTTP, case by case: bytes on one connection, what they are answered with, and what becomes of the
//! connection.
//!
//! In cases that must not reach the sale the request asks for an item that is to be had, and so does another that
//! follows it: if either is understood, the item is gone.

mod bodies;
mod heads;
mod requests;

/// What becomes of the connection after the last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request is served.
    GoesOn,
    /// The last request is not complete.
    Waits,
    /// It is closed, and what follows is not read as a request.
    Closes,
}

/// A case.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    /// A status below 300, or the name of a problem, for each answer.
    pub answers: &'static [&'static str],
    pub then: Then,
}

/// The item and the user of the checkouts that must not happen.
pub const COVETED: u32 = 66;
/// A checkout that must not happen.
const CHECKOUT: &str = "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n";
/// A request that reaches the sale and changes nothing.
const PURCHASE: &str = "POST /purchase?code=00000000-0000-0000-0000-000000000000 HTTP/1.1\r\nHost: x\r\n";
const LIVE: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

const MALFORMED: &[&str] = &["malformed-request"];
const UNKNOWN_VERSION: &[&str] = &["unknown-version"];
const UNKNOWN_CODING: &[&str] = &["unknown-coding"];
const HEADER_TOO_LARGE: &[&str] = &["header-too-large"];
const BODY_TOO_LARGE: &[&str] = &["body-too-large"];
const NOT_FOUND: &[&str] = &["not-found"];
const NOT_ALLOWED: &[&str] = &["method-not-allowed"];
const INVALID: &[&str] = &["invalid-parameter"];
const ASKED: &[&str] = &["code-unknown"];
const SHOWN: &[&str] = &["200"];

/// Every case.
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

/// Cases with the same answers; each has a name and its text, whose characters are bytes.
fn group(answers: &'static [&'static str], then: Then, table: &[(&str, &str)]) -> Vec<Case> {
    let bytes = |text: &str| text.chars().map(|c| u8::try_from(c).expect("characters below U+0100")).collect();
    table.iter().map(|(name, text)| Case { name: name.to_string(), bytes: bytes(text), answers, then }).collect()
}

/// The same, with each text put into a request by `dress`.
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

/// Header lines of a checkout that is refused.
fn refused_fields(answers: &'static [&'static str], table: &[(&str, &str)]) -> Vec<Case> {
    dressed(answers, Then::Closes, table, |fields| format!("{CHECKOUT}{fields}\r\n\r\n0\r\n\r\n{CHECKOUT}\r\n"))
}

/// Header lines and what follows them, of a request that is served.
fn served(table: &[(&str, &str)]) -> Vec<Case> {
    dressed(ASKED, Then::GoesOn, table, |rest| format!("{PURCHASE}{rest}"))
}

/// Whole heads that are refused.
fn refused(answers: &'static [&'static str], table: &[(&str, &str)]) -> Vec<Case> {
    dressed(answers, Then::Closes, table, |head| format!("{head}{CHECKOUT}\r\n"))
}
