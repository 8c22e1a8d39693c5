//! One SVG of curves over the number of standbys, both axes logarithmic.

/// A named curve.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// From left to right; nothing at or below zero is drawn.
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const INNER_WIDTH: f64 = WIDTH - LEFT - 20.0;
const INNER_HEIGHT: f64 = HEIGHT - TOP - 50.0;
/// Readable on white and on black.
const COLOURS: [&str; 4] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"];

/// Panels side by side, each with its title and curves.
pub(crate) fn plot(panels: &[(&str, Vec<Curve>)]) -> String {
    let width = WIDTH * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#777\">\n"
    );
    for (place, (title, curves)) in panels.iter().enumerate() {
        out.push_str(&format!("<g transform=\"translate({},0)\">\n", WIDTH * place as f64));
        panel(&mut out, title, curves);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// Powers of ten that enclose some values, and a place between them.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|value| *value > 0.0 && value.is_finite()).map(f64::log10);
        let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(log), high.max(log))
        });
        if low > high {
            return Self { low: 0, high: 1 };
        }
        let low = low.floor() as i32;
        Self { low, high: (high.ceil() as i32).max(low + 1) }
    }

    /// 0 at the low end, 1 at the high one.
    fn place(self, value: f64) -> f64 {
        (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    fn marks(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10f64.powi(power))
    }
}

fn panel(out: &mut String, title: &str, curves: &[Curve]) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = Scale::of(points().map(|point| point.0));
    let up = Scale::of(points().map(|point| point.1));
    let x = |value| LEFT + INNER_WIDTH * across.place(value);
    let y = |value| TOP + INNER_HEIGHT * (1.0 - up.place(value));
    let (bottom, right) = (TOP + INNER_HEIGHT, LEFT + INNER_WIDTH);
    out.push_str(&format!("<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{title}</text>\n"));
    let grid = "stroke=\"#999\" stroke-opacity=\"0.4\"";
    for mark in across.marks() {
        let x = x(mark);
        out.push_str(&format!(
            "<path d=\"M{x:.1} {TOP}V{bottom}\" {grid}/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>\n",
            bottom + 16.0
        ));
    }
    for mark in up.marks() {
        let y = y(mark);
        out.push_str(&format!(
            "<path d=\"M{LEFT} {y:.1}H{right}\" {grid}/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>\n",
            LEFT - 6.0,
            y + 4.0
        ));
    }
    out.push_str(&format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">standbys</text>\n",
        LEFT + INNER_WIDTH / 2.0,
        bottom + 36.0
    ));
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let drawn = curve.points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let line: Vec<String> =
            drawn.clone().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        out.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            line.join(" ")
        ));
        for point in drawn {
            out.push_str(&format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\n",
                x(point.0),
                y(point.1)
            ));
        }
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>\n",
            LEFT + 8.0 + 190.0 * (number % 2) as f64,
            TOP - 6.0 + 14.0 * (number / 2) as f64,
            curve.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_inside() {
        let curve =
            Curve { name: "walhub", points: vec![(1.0, 20.0), (2000.0, 5.0), (3000.0, 0.0)] };
        let svg = plot(&[("cost", vec![curve.clone()]), ("nothing", vec![])]);
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let scale = Scale::of(curve.points.iter().map(|point| point.0));
        assert_eq!((scale.low, scale.high), (0, 4));
        assert!((scale.place(100.0) - 0.5).abs() < 1e-9);
    }
}
