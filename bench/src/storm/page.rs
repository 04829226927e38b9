//! The report as one self-contained HTML page: no script, no font and no request to any address.

use crate::plots;
use crate::report::{Report, count, latency};
use crate::statistics::RunStatistics;
use crate::stock_monitor::StockSample;
use crate::verification::Violation;
use std::error::Error;
use std::fmt::Write;

const STYLE: &str = "\
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  background: #fff; color: #24292f }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse } th { text-align: left; font-weight: 600 }
td, th { padding: .15rem 1.2rem .15rem 0; vertical-align: top } td.n, th.n { text-align: right }
td.n { font-variant-numeric: tabular-nums }
.verdict { padding: .6rem .9rem; border-radius: .4rem; background: #dff3e4; margin: 1rem 0 }
.verdict.bad { background: #fbdcdc } svg { width: 100%; height: auto }
@media (prefers-color-scheme: dark) {
  body { background: #0f1318; color: #d7dce2 } .verdict { background: #12361f } .verdict.bad { background: #4a1717 }
}
";

/// Renders the page.
///
/// # Errors
/// Returns an error if a plot cannot be drawn.
pub fn page(report: &Report, statistics: &RunStatistics, samples: &[StockSample]) -> Result<String, Box<dyn Error>> {
    let title = format!("storm: {}, {}", report.settings.scenario, report.started);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n<style>\n{STYLE}{}</style>\n\
         </head>\n<body>\n<h1>Load test of a sale: {}</h1>\n",
        escape(&title),
        plots::style_sheet(),
        escape(&report.settings.scenario)
    );
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

    page.push_str("<h2>Latency by percentile</h2>\n");
    page.push_str(&plots::latencies(statistics)?);
    page.push_str("<table>\n<tr><th>kind</th>");
    for head in ["count", "p50", "p90", "p99", "p99.9", "max"] {
        write!(page, "<th class=\"n\">{head}</th>")?;
    }
    page.push_str("</tr>\n");
    for (kind, l) in &report.latencies {
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
    for (outcome, times) in &report.outcomes {
        writeln!(page, "<tr><td>{}</td><td class=\"n\">{}</td></tr>", escape(outcome), count(*times))?;
    }
    page.push_str("</table>\n");
    names(&mut page, "Options and versions", &report.facts())?;
    page.push_str("</body>\n</html>\n");
    Ok(page)
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
    use crate::statistics::LatencyKind;
    use crate::verification::SaleSnapshot;
    use std::time::Duration;

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
