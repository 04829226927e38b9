//! The progress line on standard error, once a second: rewritten in place on a terminal, otherwise one line after
//! another.

use crate::recorder::RunRecorder;
use crate::report::{count, latency};
use crate::verification::SaleSnapshot;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

/// Interval between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the progress of a run.
pub struct ProgressLine {
    is_terminal: bool,
    next: Duration,
    shown: Duration,
    answers_shown: u64,
}

impl ProgressLine {
    /// Creates the progress line. The first line is printed after a second.
    pub fn new() -> ProgressLine {
        ProgressLine { is_terminal: stderr().is_terminal(), next: INTERVAL, shown: Duration::ZERO, answers_shown: 0 }
    }

    /// Prints the line if a second has passed since the last one.
    pub fn show(&mut self, now: Duration, recorder: &mut RunRecorder, sale: SaleSnapshot) {
        if now < self.next {
            return;
        }
        let line = self.line(now, recorder, sale);
        let (begin, end) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // An error is ignored: a run does not fail because standard error is closed.
        let _ = write!(stderr(), "{begin}{line}{end}");
        recorder.statistics.recent.reset();
        (self.next, self.shown, self.answers_shown) = (now + INTERVAL, now, recorder.statistics.answers());
    }

    fn line(&self, now: Duration, recorder: &RunRecorder, sale: SaleSnapshot) -> String {
        let passed = (now - self.shown).as_secs_f64().max(0.001);
        let rate = ((recorder.statistics.answers() - self.answers_shown) as f64 / passed).round() as u64;
        let recent = &recorder.statistics.recent;
        let (held, bought) = (recorder.ledger.reservations.len() as u64, recorder.ledger.bought());
        let refused = recorder.statistics.latencies(crate::statistics::LatencyKind::Refusal).len();
        format!(
            "{:5.1} s  {}/s  reserved {}  bought {}  refused {}  unexpected {}  p50 {}  p99 {}  sold {} of {}",
            now.as_secs_f64(),
            count(rate),
            count(held),
            count(bought),
            count(refused),
            count(recorder.unexpected.count),
            latency(recent.value_at_quantile(0.5)),
            latency(recent.value_at_quantile(0.99)),
            count(sale.sold.into()),
            count(sale.items_total.into()),
        )
    }

    /// Clears the line on a terminal.
    pub fn end(&self) {
        if self.is_terminal {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
    }
}
