//! Plots as SVG. They are drawn in placeholder colours, which the style sheet replaces by those of the reader's light
//! or dark colour scheme.

use crate::statistics::{LatencyKind, RunStatistics, STEP};
use crate::stock_monitor::StockSample;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::error::Error;

type Plot = Result<String, Box<dyn Error>>;
/// A placeholder colour, and its colours in a light and in a dark colour scheme.
type Colour = (RGBColor, &'static str, &'static str);
type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width and height of a plot, in pixels.
const SIZE: (u32, u32) = (860, 320);
/// Maximum number of points of a line in a plot over time.
const POINTS_MAX: usize = 400;

const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);
/// Placeholder colours of the lines. A plot has at most this many lines.
const LINES: [RGBColor; 6] =
    [RGBColor(3, 3, 3), RGBColor(4, 4, 4), RGBColor(5, 5, 5), RGBColor(6, 6, 6), RGBColor(7, 7, 7), RGBColor(8, 8, 8)];

/// The colours of the placeholders, distinguishable for colour-blind readers (after Okabe and Ito).
const PALETTE: [Colour; 8] = [
    (INK, "#24292f", "#d7dce2"),
    (GRID, "#e3e6ea", "#30363d"),
    (LINES[0], "#0072b2", "#56b4e9"),
    (LINES[1], "#d55e00", "#e69f00"),
    (LINES[2], "#009e73", "#2fd0a3"),
    (LINES[3], "#cc79a7", "#e6a3c8"),
    (LINES[4], "#8a6d00", "#f0e442"),
    (LINES[5], "#6b7280", "#9aa4b2"),
];

/// Returns the CSS rules that replace the placeholder colours.
pub fn style_sheet() -> String {
    let rules = |pick: fn(&Colour) -> &'static str| -> String {
        let rule = |entry: &Colour| {
            let &(RGBColor(r, g, b), ..) = entry;
            let (name, colour) = (format!("#{r:02X}{g:02X}{b:02X}"), pick(entry));
            format!("[fill=\"{name}\"]{{fill:{colour}}}[stroke=\"{name}\"]{{stroke:{colour}}}\n")
        };
        PALETTE.iter().map(rule).collect()
    };
    let (light, dark) = (rules(|entry| entry.1), rules(|entry| entry.2));
    format!("{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
}

/// Returns a plot with its style sheet, as a separate SVG file.
pub fn picture(plot: &str) -> String {
    plot.replacen('>', &format!(">\n<style>\n{}</style>", style_sheet()), 1)
}

/// Draws latency by percentile, for each kind of request. Both axes are logarithmic: each step to the right excludes
/// nine tenths of the remaining requests.
///
/// # Errors
/// Returns an error if the plot cannot be drawn.
pub fn latencies(statistics: &RunStatistics) -> Plot {
    let nines_max = (statistics.answers().max(10) as f64).log10().ceil().clamp(2.0, 6.0);
    let mut lines = Vec::new();
    for kind in LatencyKind::ALL {
        let histogram = statistics.latencies(kind);
        // The highest percentile that the number of requests supports.
        let last = (histogram.len() as f64).log10();
        let nines = (0..).map(|step| f64::from(step) * 0.02).take_while(|nines| *nines <= last.min(nines_max));
        let at = |nines: f64| (nines, histogram.value_at_quantile(1.0 - 10f64.powf(-nines)).max(1) as f64 / 1e3);
        let points: Vec<_> = nines.map(at).collect();
        if !histogram.is_empty() {
            lines.push((kind.name().to_owned(), points));
        }
    }
    let values = || lines.iter().flat_map(|(_, points)| points.iter().map(|(_, value)| *value));
    let (low, high) = (values().fold(1.0, f64::min), values().fold(1.0, f64::max));
    draw(&names(&lines), |area| {
        let mut chart = ChartBuilder::on(area);
        chart.margin(10).margin_right(40).x_label_area_size(34).y_label_area_size(64);
        let mut chart = chart.build_cartesian_2d(0.0..nines_max, (low / 2.0..high * 2.0).log_scale())?;
        let percentile = |nines: &f64| {
            let decimals = (nines.round() as usize).saturating_sub(2);
            let text = format!("{:.*} %", decimals, 100.0 - 10f64.powf(2.0 - nines));
            if *nines == 0.0 { "0 %".to_owned() } else { text }
        };
        let mut mesh = chart.configure_mesh();
        mesh.x_labels(nines_max as usize + 1).x_label_formatter(&percentile);
        mesh.y_desc("milliseconds").y_label_formatter(&|ms| format!("{ms}"));
        mesh.axis_style(INK).bold_line_style(GRID).light_line_style(TRANSPARENT).label_style(text());
        mesh.draw()?;
        for (place, (_, points)) in lines.iter().enumerate() {
            chart.draw_series(LineSeries::new(points.iter().copied(), LINES[place].stroke_width(2)))?;
        }
        Ok(())
    })
}

/// Draws the responses per second by outcome, over the run. The rarest outcomes share a line.
///
/// # Errors
/// Returns an error if the plot cannot be drawn.
pub fn rates(statistics: &RunStatistics) -> Plot {
    let steps = statistics.outcomes.iter().map(|outcome| outcome.steps.len()).max().unwrap_or(0);
    let steps_each = steps.div_ceil(POINTS_MAX).max(1);
    let seconds = STEP.as_secs_f64() * steps_each as f64;
    let mut outcomes: Vec<_> = statistics.outcomes.iter().collect();
    outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.count));
    let mut lines: Vec<(String, Vec<f64>)> = Vec::new();
    for outcome in outcomes {
        let mut points = vec![0.0; steps.div_ceil(steps_each)];
        for (step, count) in outcome.steps.iter().enumerate() {
            points[step / steps_each] += f64::from(*count) / seconds;
        }
        if lines.len() < LINES.len() {
            lines.push((format!("{} {}", outcome.operation, outcome.name), points));
        } else if let Some((name, rest)) = lines.last_mut() {
            "all others".clone_into(name);
            rest.iter_mut().zip(points).for_each(|(sum, more)| *sum += more);
        }
    }
    let timed = |points: Vec<f64>| points.into_iter().enumerate().map(|(n, rate)| (n as f64 * seconds, rate)).collect();
    let lines: Vec<_> = lines.into_iter().map(|(name, points)| (name, timed(points))).collect();
    over_time("responses per second", &lines)
}

/// Draws the sold, held and available items over the run.
///
/// # Errors
/// Returns an error if the plot cannot be drawn.
pub fn stock(samples: &[StockSample]) -> Plot {
    let line = |name: &str, pick: fn(&StockSample) -> u32| {
        let points = samples.iter().map(|sample| (sample.at.as_secs_f64(), f64::from(pick(sample)))).collect();
        (name.to_owned(), points)
    };
    let lines = [
        line("sold", |sample| sample.sale.sold),
        line("held", |sample| sample.sale.reserved),
        line("available", |sample| sample.sale.available),
    ];
    over_time("items", &lines)
}

fn over_time(what: &str, lines: &[PlotLine]) -> Plot {
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let last = points().map(|(at, _)| *at).fold(0.1, f64::max);
    let most = points().map(|(_, value)| *value).fold(1.0, f64::max);
    draw(&names(lines), |area| {
        let mut chart = ChartBuilder::on(area);
        chart.margin(10).margin_right(40).x_label_area_size(34).y_label_area_size(64);
        let mut chart = chart.build_cartesian_2d(0.0..last, 0.0..most * 1.05)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_label_formatter(&|seconds| format!("{} s", (seconds * 100.0).round() / 100.0));
        mesh.y_desc(what).y_label_formatter(&|value| crate::report::count(value.round() as u64));
        mesh.axis_style(INK).bold_line_style(GRID).light_line_style(TRANSPARENT).label_style(text());
        mesh.draw()?;
        for (place, (_, points)) in lines.iter().enumerate() {
            chart.draw_series(LineSeries::new(points.iter().copied(), LINES[place].stroke_width(2)))?;
        }
        Ok(())
    })
}

/// The name and the points of a line.
type PlotLine = (String, Vec<(f64, f64)>);

fn names(lines: &[PlotLine]) -> Vec<&str> {
    lines.iter().map(|(name, _)| name.as_str()).collect()
}

/// Draws a plot with its legend above it.
fn draw(names: &[&str], on: impl FnOnce(&PlotArea<'_>) -> Result<(), Box<dyn Error>>) -> Plot {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let (legend, plot) = area.split_vertically(24);
    let mut x = 74;
    for (name, colour) in names.iter().zip(LINES) {
        legend.draw(&PathElement::new(vec![(x, 14), (x + 16, 14)], colour.stroke_width(2)))?;
        legend.draw(&Text::new((*name).to_owned(), (x + 22, 8), text()))?;
        x += 40 + 7 * name.len() as i32;
    }
    on(&plot)?;
    area.present()?;
    drop((area, legend, plot));
    Ok(svg)
}

fn text() -> TextStyle<'static> {
    ("sans-serif", 12).into_font().color(&INK)
}
