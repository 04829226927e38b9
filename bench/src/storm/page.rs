//! The report as one self-contained HTML page: no script, no font and no request to any address. Also renders what
//! `--live` shows during a run.

use crate::plots;
use crate::report::{self, Report, count, latency};
use crate::statistics::{LatencyKind, RunStatistics};
use crate::stock_monitor::StockSample;
use crate::verification::Violation;
use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

const STYLE: &str = "\
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  background: #fff; color: #24292f }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse } th { text-align: left; font-weight: 600 }
td, th { padding: .15rem 1.2rem .15rem 0; vertical-align: top } td.n, th.n { text-align: right }
td.n { font-variant-numeric: tabular-nums }
.verdict { padding: .6rem .9rem; border-radius: .4rem; background: #dff3e4; margin: 1rem 0 }
.verdict.bad { background: #fbdcdc } .verdict.running { background: #e3e6ea } svg { width: 100%; height: auto }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .7rem } table { font-size: 11px } td, th { padding-right: .45rem }
  th + td { overflow-wrap: anywhere }
}
@media (prefers-color-scheme: dark) {
  body { background: #0f1318; color: #d7dce2 } .verdict { background: #12361f } .verdict.bad { background: #4a1717 }
  .verdict.running { background: #30363d }
}
";

/// A copy of what is known during a run.
pub struct LiveSnapshot {
    /// Scenario, and address of the server.
    pub what: String,
    /// Whether the last response has arrived, and the run is being verified.
    pub is_over: bool,
    /// Time since the start of the run.
    pub at: Duration,
    /// Responses per second since the last snapshot.
    pub responses_per_second: u64,
    /// Granted reservations.
    pub reserved: u64,
    /// Acknowledged purchases.
    pub bought: u64,
    /// Unexpected responses.
    pub unexpected: u64,
    /// Counts and latencies. The recent latencies are those since the last snapshot.
    pub statistics: RunStatistics,
    /// States of the sale, oldest first.
    pub samples: Vec<StockSample>,
}

/// Renders the report as a page.
///
/// # Errors
/// Returns an error if a plot cannot be drawn.
pub fn page(report: &Report, statistics: &RunStatistics, samples: &[StockSample]) -> Result<String, Box<dyn Error>> {
    let title = format!("storm: {}, {}", report.settings.scenario, report.started);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n<style>\n{}</style>\n\
         </head>\n<body>\n{}</body>\n</html>\n",
        escape(&title),
        style_sheet(),
        report_body(report, statistics, samples)?
    ))
}

/// Returns the style sheet of the page.
pub fn style_sheet() -> String {
    format!("{STYLE}{}", plots::style_sheet())
}

/// Renders the content of the page.
///
/// # Errors
/// Returns an error if a plot cannot be drawn.
pub fn report_body(
    report: &Report,
    statistics: &RunStatistics,
    samples: &[StockSample],
) -> Result<String, Box<dyn Error>> {
    let mut page = format!("<h1>Load test of a sale: {}</h1>\n", escape(&report.settings.scenario));
    let bad = if report.is_good() { "" } else { " bad" };
    writeln!(page, "<div class=\"verdict{bad}\">{}", escape(&report.verdict()))?;
    if !report.violations.is_empty() {
        page.push_str("<ul>\n");
        for Violation { violation, detail } in &report.violations {
            writeln!(page, "<li><b>{violation}</b> {}</li>", escape(detail))?;
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</div>\n");
    names(&mut page, "Result", &report.results())?;
    measurements(&mut page, statistics, samples)?;
    names(&mut page, "Options and versions", &report.facts())?;
    Ok(page)
}

/// Renders the content of the page during a run.
///
/// # Errors
/// Returns an error if a plot cannot be drawn.
pub fn progress_body(snapshot: &LiveSnapshot) -> Result<String, Box<dyn Error>> {
    let LiveSnapshot { statistics, samples, .. } = snapshot;
    let state = if snapshot.is_over { "ended; comparing the responses with the sale" } else { "running" };
    let mut page = format!(
        "<h1>Load test of a sale: {}</h1>\n<div class=\"verdict running\">{state}: {:.1} s</div>\n",
        escape(&snapshot.what),
        snapshot.at.as_secs_f64()
    );
    let recent = |quantile| latency(statistics.recent.value_at_quantile(quantile));
    let refused = statistics.latencies(LatencyKind::Refusal).len();
    let sale = samples.last().map(|sample| sample.sale).unwrap_or_default();
    let rate = count(snapshot.responses_per_second);
    names(
        &mut page,
        "So far",
        &[
            ("requests sent", count(statistics.sent)),
            ("responses", format!("{}, now {rate} per second", count(statistics.answers()))),
            ("latency now", format!("p50 {}, p99 {}", recent(0.5), recent(0.99))),
            ("reserved", count(snapshot.reserved)),
            ("bought", count(snapshot.bought)),
            ("refused", count(refused)),
            ("unexpected", count(snapshot.unexpected)),
            ("sold", format!("{} of {}", count(sale.sold.into()), count(sale.items_total.into()))),
        ],
    )?;
    measurements(&mut page, statistics, samples)?;
    Ok(page)
}

fn measurements(page: &mut String, statistics: &RunStatistics, samples: &[StockSample]) -> Result<(), Box<dyn Error>> {
    page.push_str("<h2>Latency by percentile</h2>\n");
    page.push_str(&plots::latencies(statistics)?);
    page.push_str("<table>\n<tr><th>kind</th>");
    for head in ["count", "p50", "p90", "p99", "p99.9", "max"] {
        write!(page, "<th class=\"n\">{head}</th>")?;
    }
    page.push_str("</tr>\n");
    for (kind, l) in report::latencies(statistics) {
        write!(page, "<tr><td>{kind}</td><td class=\"n\">{}</td>", count(l.count))?;
        for micros in [l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us] {
            write!(page, "<td class=\"n\">{}</td>", latency(micros))?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n<h2>Responses per second, by outcome</h2>\n");
    page.push_str(&plots::rates(statistics)?);
    page.push_str("<h2>Stock over time</h2>\n");
    page.push_str(&plots::stock(samples)?);
    page.push_str("<h2>Outcomes</h2>\n<table>\n<tr><th>outcome</th><th class=\"n\">count</th></tr>\n");
    for (outcome, times) in report::outcomes(statistics) {
        writeln!(page, "<tr><td>{}</td><td class=\"n\">{}</td></tr>", escape(&outcome), count(times))?;
    }
    page.push_str("</table>\n");
    Ok(())
}

fn names(page: &mut String, title: &str, entries: &[(&str, String)]) -> std::fmt::Result {
    writeln!(page, "<h2>{title}</h2>\n<table>")?;
    for (name, value) in entries {
        writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", escape(value))?;
    }
    writeln!(page, "</table>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;
    use crate::verification::SaleSnapshot;

    fn drawn(report: &Report) -> String {
        let mut statistics = RunStatistics::new();
        for number in 0..5_000 {
            let at = Duration::from_millis(number);
            statistics.count("checkout", ["200", "item-sold"][number as usize % 2], at);
            statistics.record(LatencyKind::Checkout, Duration::from_micros(100 + number), at);
        }
        let samples =
            [0, 1, 2].map(|second| StockSample { at: Duration::from_secs(second), sale: SaleSnapshot::default() });
        page(report, &statistics, &samples).unwrap()
    }

    #[test]
    fn the_page_is_self_contained() {
        let page = drawn(&example(Vec::new()));
        let without_namespace = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "//", "<script", "<link", "src=", "href=", "url(", "@import"] {
            assert!(!without_namespace.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn every_colour_of_a_plot_has_a_light_and_a_dark_variant() {
        let page = drawn(&example(Vec::new()));
        let plots = &page[page.find("<svg").unwrap()..];
        let colours: std::collections::BTreeSet<&str> =
            plots.split(['"']).filter(|word| word.len() == 7 && word.starts_with('#')).collect();
        assert!(colours.len() > 3, "{colours:?}");
        for colour in colours {
            assert_eq!(page.matches(&format!("[stroke=\"{colour}\"]{{")).count(), 2, "{colour}");
        }
    }

    #[test]
    fn text_is_escaped_and_violations_are_listed() {
        let page = drawn(&example(vec![Violation { violation: "row-twice", detail: "<b>&".to_owned() }]));
        assert!(page.contains("&lt;sale&gt;") && !page.contains("<sale>"));
        assert!(page.contains("verdict bad") && page.contains("<b>row-twice</b> &lt;b&gt;&amp;</li>"));
        assert!(!drawn(&example(Vec::new())).contains("verdict bad"));
    }
}
