//! A report as Markdown, which reads well on a terminal too.

use super::{Bound, Goal, Report};

/// Three figures that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        v if v >= 0.0995 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

impl Bound {
    pub(super) fn words(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {}", number(most)),
            Self::AtLeast(least) => format!(">= {}", number(least)),
        }
    }
}

/// The tables of a report.
pub(super) fn markdown(report: &Report) -> String {
    let mut out = format!("## {}: {}\n\n{}\n\n", report.row, report.title, report.how);
    let samples = &report.samples;
    let mut head = vec![String::from("median (min-max)")];
    head.extend(samples.measures().map(str::to_owned));
    let rows = samples.subjects().map(|subject| {
        let cell = |measure| match samples.spread(subject, measure) {
            None => String::new(),
            Some(spread) if samples.values(subject, measure).len() == 1 => number(spread.median),
            Some(spread) => {
                format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
            }
        };
        let mut row = vec![subject.to_owned()];
        row.extend(samples.measures().map(cell));
        row
    });
    table(&mut out, head, rows.collect());
    if !report.ratios.is_empty() {
        let rows = report.ratios.iter().map(|ratio| vec![ratio.what.clone(), number(ratio.value)]);
        table(&mut out, ["ratio of medians", ""].map(str::to_owned).to_vec(), rows.collect());
    }
    if !report.goals.is_empty() {
        let head = ["target", "measured", "must", "stretch", ""].map(str::to_owned).to_vec();
        table(&mut out, head, report.goals.iter().map(goal).collect());
    }
    out
}

fn goal(goal: &Goal) -> Vec<String> {
    vec![
        goal.what.clone(),
        number(goal.measured),
        goal.must.words(),
        goal.stretch.map_or_else(String::new, Bound::words),
        goal.verdict.words().to_owned(),
    ]
}

/// Appends one table, its columns aligned.
pub(crate) fn table(out: &mut String, head: Vec<String>, rows: Vec<Vec<String>>) {
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &[String]| {
        for (column, width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            out.push_str(&format!("| {cell:width$} "));
        }
        out.push_str("|\n");
    };
    line(&head);
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    for row in &rows {
        line(row);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_figures() {
        for (value, text) in [
            (0.0, "0"),
            (0.00123, "1.23e-3"),
            (0.5, "0.500"),
            (6.5, "6.50"),
            (43.21, "43.2"),
            (1234.5, "1234"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(f64::NAN), "-");
    }

    #[test]
    fn tables_have_a_cell_for_everything() {
        let mut report = Report::new("live", "title", "how");
        report.samples.add("a", "x", 1.0);
        report.samples.add("a", "x", 3.0);
        report.samples.add("bb", "y", 5.0);
        report.target("a", "x", Bound::AtMost(7.0), Bound::AtMost(1.0));
        let text = markdown(&report);
        assert!(text.contains("| a                | 2.00 (1.00-3.00) |      |"), "{text}");
        assert!(text.contains("| a, x   | 2.00     | <= 7.00 | <= 1.00 | must met |"), "{text}");
    }
}
