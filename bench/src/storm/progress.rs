//! The progress of a run, once a second: a line on standard error, rewritten in place on a terminal, otherwise one line
//! after another; and the page of `--live`.

use crate::live::LivePage;
use crate::page::LiveSnapshot;
use crate::recorder::RunRecorder;
use crate::report::{count, latency};
use crate::stock_monitor::StockMonitor;
use crate::verification::SaleSnapshot;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

/// Interval between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows the progress of a run.
pub struct RunProgress<'a> {
    page: Option<&'a LivePage>,
    /// Title of the page.
    what: String,
    is_terminal: bool,
    next: Duration,
    shown: Duration,
    answers_shown: u64,
}

impl<'a> RunProgress<'a> {
    /// Creates the progress of a run, with a page whose title is `what`. It is shown for the first time after a second.
    pub fn new(page: Option<&'a LivePage>, what: String) -> RunProgress<'a> {
        let (is_terminal, next, shown) = (stderr().is_terminal(), INTERVAL, Duration::ZERO);
        RunProgress { page, what, is_terminal, next, shown, answers_shown: 0 }
    }

    /// Shows the progress if a second has passed since the last time.
    pub fn show(&mut self, now: Duration, recorder: &mut RunRecorder, monitor: &StockMonitor) {
        if now < self.next {
            return;
        }
        let line = self.line(now, recorder, monitor.latest());
        let (begin, end) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // An error is ignored: a run does not fail because standard error is closed.
        let _ = write!(stderr(), "{begin}{line}{end}");
        self.show_page(now, recorder, monitor, false);
        recorder.statistics.recent.reset();
        (self.next, self.shown, self.answers_shown) = (now + INTERVAL, now, recorder.statistics.answers());
    }

    /// Clears the line on a terminal. The page says that the run is being verified.
    pub fn end(&self, now: Duration, recorder: &RunRecorder, monitor: &StockMonitor) {
        if self.is_terminal {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
        self.show_page(now, recorder, monitor, true);
    }

    fn show_page(&self, now: Duration, recorder: &RunRecorder, monitor: &StockMonitor, is_over: bool) {
        let Some(page) = self.page else { return };
        page.show(|| LiveSnapshot {
            what: self.what.clone(),
            is_over,
            at: now,
            responses_per_second: self.responses_per_second(now, recorder),
            reserved: recorder.ledger.reservations.len() as u64,
            bought: recorder.ledger.bought(),
            unexpected: recorder.unexpected.count,
            statistics: recorder.statistics.clone(),
            samples: monitor.samples.clone(),
        });
    }

    fn responses_per_second(&self, now: Duration, recorder: &RunRecorder) -> u64 {
        let passed = (now - self.shown).as_secs_f64().max(0.001);
        ((recorder.statistics.answers() - self.answers_shown) as f64 / passed).round() as u64
    }

    fn line(&self, now: Duration, recorder: &RunRecorder, sale: SaleSnapshot) -> String {
        let rate = self.responses_per_second(now, recorder);
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
}
