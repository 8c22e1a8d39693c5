//! The plots of a page, as SVG.
//!
//! Text and grid are drawn in two placeholder colours. The page's style replaces them, so that the
//! plots are light or dark like the page.

mod axis;

use super::{Latency, RunReport, Sample, say};
use axis::{Axis, Scale};
use plotters::prelude::*;

/// Stands for the page's text colour.
const INK: RGBColor = RGBColor(0x10, 0x10, 0x10);
/// Stands for its lines.
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Colours of the lines, distinguishable by everybody on light and on dark backgrounds.
const COLOURS: [(RGBColor, &str); 3] = [
    (RGBColor(0x2f, 0x7e, 0xd8), "#2f7ed8"),
    (RGBColor(0xe0, 0x8a, 0x1e), "#e08a1e"),
    (RGBColor(0x2a, 0xa1, 0x6b), "#2aa16b"),
];

const SIZE: (u32, u32) = (860, 330);

/// A plot with what its lines mean.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    /// What it shows, in a sentence.
    pub(super) note: String,
    /// Names and colours of the lines.
    pub(super) legend: Vec<(String, &'static str)>,
    pub(super) svg: String,
}

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// All plots for which the report has data.
pub(super) fn plots(report: &RunReport) -> Vec<Plot> {
    let series = &report.series;
    [
        latency(report),
        throughput(report),
        over_time(
            "Lag",
            "WAL that was written and not yet received, of the good standbys.".to_owned(),
            series,
            bytes_axis,
            &[
                ("the standby furthest behind", &|s: &Sample| s.lag_last as f64),
                ("half of the standbys or more", &|s: &Sample| s.lag_median as f64),
            ],
        ),
        cpu(series),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Times by percentile: each nine takes the same space.
fn latency(report: &RunReport) -> Option<Plot> {
    let results = &report.results;
    let all: [(&str, &Latency); 3] = [
        ("first standby", &results.first),
        ("each standby", &results.each),
        ("last standby", &results.last),
    ];
    let mut lines = Vec::new();
    let mut nines = 1.0f64;
    for (name, latency) in all {
        let Some(histogram) = latency.to_histogram() else { continue };
        let mut points = Vec::new();
        for step in histogram.iter_quantiles(10) {
            let left = 1.0 - step.quantile_iterated_to();
            // Nothing is left above the last step, so it is drawn as if half a value were.
            let left = left.max(0.5 / histogram.len() as f64);
            points.push((-left.log10(), step.value_iterated_to() as f64 / 1e6));
        }
        nines = nines.max(points.last().map_or(1.0, |(x, _)| *x));
        lines.push(Line { name: name.to_owned(), points });
    }
    let values = || lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let least = values().fold(f64::INFINITY, f64::min);
    let most = values().fold(0.0, f64::max);
    if !least.is_finite() {
        return None;
    }
    let x = Axis::new(Scale::Linear, 0.0, nines, axis::nines(nines));
    let (from, to) = (least.max(1e-4) / 1.2, most.max(1e-4) * 1.2);
    let y = Axis::new(Scale::Logarithmic, from, to, axis::decades(from, to));
    plot(
        "Commit to receipt",
        "From the moment when a commit was due to its receipt by the first, by each and by the \
         last of the good standbys. Times to the left of a percentile were no longer."
            .to_owned(),
        (x, y),
        lines,
    )
}

/// WAL written, and the average WAL that a standby received.
fn throughput(report: &RunReport) -> Option<Plot> {
    let standbys = report.plan.standbys.max(1) as f64;
    let rates = |read: &dyn Fn(&Sample) -> f64| -> Vec<(f64, f64)> {
        let pairs = report.series.windows(2);
        pairs
            .filter_map(|pair| {
                let [before, now] = pair else { return None };
                let seconds = (now.at - before.at).max(1e-3);
                Some((now.at, ((read(now) - read(before)) / seconds).max(0.0)))
            })
            .collect()
    };
    let written = rates(&|sample| sample.wal_bytes as f64);
    let received = rates(&|sample| sample.delivered_bytes as f64 / standbys);
    let all = |points: &[(f64, f64)]| points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    let most = all(&written).max(all(&received));
    let mut lines = Vec::new();
    if all(&written) > 0.0 {
        lines.push(Line { name: "written".to_owned(), points: written });
    }
    let name = "received by a standby, on average of all".to_owned();
    lines.push(Line { name, points: received });
    let results = &report.results;
    let total = say::rate(results.delivered_bytes, results.receiving_seconds());
    plot(
        "Throughput",
        format!("WAL per second. All standbys together received {total}."),
        (time_axis(&report.series)?, bytes_axis(most)),
        lines,
    )
}

fn cpu(series: &[Sample]) -> Option<Plot> {
    let points: Vec<(f64, f64)> = series
        .windows(2)
        .filter_map(|pair| {
            let [before, now] = pair else { return None };
            let seconds = (now.at - before.at).max(1e-3);
            Some((now.at, ((now.cpu? - before.cpu?) / seconds).max(0.0)))
        })
        .collect();
    let most = points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    if points.is_empty() {
        return None;
    }
    let y =
        Axis::new(Scale::Linear, 0.0, (most * 1.1).max(0.01), axis::steps(0.0, most, say::digits));
    plot(
        "CPU of the server",
        "Cores, what the kernel does for it included.".to_owned(),
        (time_axis(series)?, y),
        vec![Line { name: "cores".to_owned(), points }],
    )
}

type Read<'a> = &'a dyn Fn(&Sample) -> f64;

fn over_time(
    title: &'static str,
    note: String,
    series: &[Sample],
    axis: fn(f64) -> Axis,
    lines: &[(&str, Read<'_>)],
) -> Option<Plot> {
    let lines: Vec<Line> = lines
        .iter()
        .map(|(name, read)| Line {
            name: (*name).to_owned(),
            points: series.iter().map(|sample| (sample.at, read(sample))).collect(),
        })
        .collect();
    let most =
        lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)).fold(0.0, f64::max);
    plot(title, note, (time_axis(series)?, axis(most)), lines)
}

fn time_axis(series: &[Sample]) -> Option<Axis> {
    let (from, to) = (series.first()?.at, series.last()?.at);
    let label = |at: f64| format!("{at} s");
    (to > from).then(|| Axis::new(Scale::Linear, from, to, axis::steps(from, to, label)))
}

/// From zero to `most`, with round ticks in a suitable unit.
fn bytes_axis(most: f64) -> Axis {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let most = most.max(10.0);
    let power = ((most / 2.0).log2() / 10.0).floor().clamp(0.0, 3.0);
    let (unit, name) = (1024f64.powf(power), UNITS.get(power as usize).copied().unwrap_or("GiB"));
    let ticks = axis::steps(0.0, most / unit, |value| format!("{value} {name}"));
    let ticks = ticks.into_iter().map(|(value, label)| (value * unit, label)).collect();
    Axis::new(Scale::Linear, 0.0, most * 1.08, ticks)
}

fn plot(title: &'static str, note: String, axes: (Axis, Axis), lines: Vec<Line>) -> Option<Plot> {
    let mut svg = String::new();
    draw(&mut svg, axes, &lines).ok()?;
    let legend = lines.into_iter().zip(COLOURS);
    Some(Plot {
        title,
        note,
        legend: legend.map(|(line, (_, code))| (line.name, code)).collect(),
        svg,
    })
}

fn draw(
    svg: &mut String,
    (x, y): (Axis, Axis),
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let (columns, rows) = (x.ticks(), y.ticks());
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .margin_right(28)
        .x_label_area_size(28)
        .y_label_area_size(76)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_labels(columns)
        .y_labels(rows)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    for (line, (colour, _)) in lines.iter().zip(COLOURS) {
        let style = ShapeStyle { color: colour.into(), filled: false, stroke_width: 2 };
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::fixture;

    #[test]
    fn a_report_has_four_plots() {
        let plots = plots(&fixture::report());
        let titles: Vec<&str> = plots.iter().map(|plot| plot.title).collect();
        assert_eq!(titles, ["Commit to receipt", "Throughput", "Lag", "CPU of the server"]);
        for plot in &plots {
            assert!(
                plot.svg.starts_with("<svg") && plot.svg.contains("<polyline"),
                "{}",
                plot.title
            );
        }
        assert!(plots[0].svg.contains("99.9%"), "{}", plots[0].svg);
    }

    #[test]
    fn what_was_not_measured_is_not_drawn() {
        let mut report = fixture::report();
        report.results.first = Latency::default();
        report.results.each = Latency::default();
        report.results.last = Latency::default();
        for sample in &mut report.series {
            sample.cpu = None;
        }
        let titles: Vec<&str> = plots(&report).iter().map(|plot| plot.title).collect();
        assert_eq!(titles, ["Throughput", "Lag"]);
        report.series.clear();
        assert!(plots(&report).is_empty());
    }
}
