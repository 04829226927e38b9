//! A line a second on standard error: rewritten in place on a terminal, else one below the other.

use crate::books::Books;
use crate::report::{count, latency};
use crate::verify::Sale;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(1);

/// How far it is.
pub struct Progress {
    is_terminal: bool,
    next: Duration,
    shown: Duration,
    answers_shown: u64,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new() -> Progress {
        Progress { is_terminal: stderr().is_terminal(), next: EVERY, shown: Duration::ZERO, answers_shown: 0 }
    }

    /// Shows how it is going, if a second has passed.
    pub fn show(&mut self, now: Duration, books: &mut Books, sale: Sale) {
        if now < self.next {
            return;
        }
        let line = self.line(now, books, sale);
        let (begin, end) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // A report does not fail because nobody can see its progress.
        let _ = write!(stderr(), "{begin}{line}{end}");
        books.tally.lately.reset();
        (self.next, self.shown, self.answers_shown) = (now + EVERY, now, books.tally.answers());
    }

    fn line(&self, now: Duration, books: &Books, sale: Sale) -> String {
        let passed = (now - self.shown).as_secs_f64().max(0.001);
        let rate = ((books.tally.answers() - self.answers_shown) as f64 / passed).round() as u64;
        let lately = &books.tally.lately;
        let (held, bought) = (books.ledger.reservations.len() as u64, books.ledger.bought());
        let refused = books.tally.latencies(crate::tally::Kind::Refusal).len();
        format!(
            "{:5.1} s  {}/s  reserved {}  bought {}  refused {}  unexpected {}  p50 {}  p99 {}  sold {} of {}",
            now.as_secs_f64(),
            count(rate),
            count(held),
            count(bought),
            count(refused),
            count(books.unexpected.count),
            latency(lately.value_at_quantile(0.5)),
            latency(lately.value_at_quantile(0.99)),
            count(sale.sold.into()),
            count(sale.items_total.into()),
        )
    }

    /// Leaves the line.
    pub fn end(&self) {
        if self.is_terminal {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
    }
}
