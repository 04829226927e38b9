//! Hostile input from clients and disks: no bytes can be parsed in two ways, and no bytes make a parser panic.

mod cases;
mod conversation;
mod evictions;
mod fuzzed;
mod pipelining;
mod second_parser;
mod single_shard;
mod slow_subscriber;
#[path = "../fuzz/targets.rs"]
mod targets;
mod unread_answers;

use cases::{COVETED, Case, Then, cases};
use conversation::{Answer, Conversation, Request};
use stampede::sale::command::Command;
use std::collections::BTreeSet;

/// Returns the response of a sale without holds, in which only the coveted item exists.
fn outcome(answer: &Answer) -> &'static str {
    match answer {
        Answer::Refused(problem) => problem.about().slug,
        Answer::Shown => "200",
        Answer::Listed => "204",
        Answer::Asked(Command::Purchase { .. } | Command::Cancel { .. } | Command::Extend { .. }) => "code-unknown",
        Answer::Asked(Command::Checkout { sale: None, item, .. }) if item.0 == COVETED => "the item",
        Answer::Asked(Command::Checkout { .. }) => "invalid-parameter",
        Answer::Asked(Command::CheckoutAny { .. }) => "any item",
    }
}

fn check(case: &Case, conversation: &Conversation, how: &str) {
    let answers: Vec<_> = conversation.answers.iter().map(outcome).collect();
    assert_eq!(answers, case.answers, "{}, {how}", case.name);
    let then = match (conversation.is_closed(), conversation.is_idle()) {
        (true, _) => Then::Closes,
        (false, true) => Then::GoesOn,
        (false, false) => Then::Waits,
    };
    assert_eq!(then, case.then, "{}, {how}", case.name);
}

#[test]
fn every_case_has_its_answer_however_it_is_cut() {
    let cases = cases();
    for case in &cases {
        check(case, &Conversation::with(&case.bytes, []), "whole");
        check(case, &Conversation::with(&case.bytes, std::iter::repeat_n(1, case.bytes.len())), "byte by byte");
        for cut in 1..case.bytes.len() {
            check(case, &Conversation::with(&case.bytes, [cut]), &format!("cut at {cut}"));
        }
    }
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
}

/// Words in the names of cases that kawa refuses: it knows no chunk extensions and no later minor versions.
const UNKNOWN_TO_KAWA: &[&str] = &["extension", "HTTP/1.2", "HTTP/1.9"];

/// kawa parses every request that Stampede accepts, with the same result. If Stampede refuses a request that kawa
/// accepts, their difference does no harm, because Stampede reads nothing after a refusal.
#[test]
fn a_second_parser_reads_the_same_requests() {
    for case in cases() {
        let mut from = 0;
        for request in Conversation::with(&case.bytes, []).requests {
            let theirs = second_parser::read(&case.bytes[from..]);
            let ours = Request { end: request.end - from, ..request.clone() };
            let is_unknown = UNKNOWN_TO_KAWA.iter().any(|word| case.name.contains(word));
            if theirs.is_some() || !is_unknown {
                assert_eq!(theirs, Some(ours), "{}", case.name);
            }
            from = request.end;
        }
    }
}
