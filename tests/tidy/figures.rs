//! Rule: a figure in a document is that of the kept result it cites.
//!
//! On the pages with figures, a table with a column `walhub` has a column `kept`. Its cells cite a
//! result and say which of its measures the row shows: ``[bulk](…/2026-01-01-bulk.md) `CPU s/GiB`
//! of `200 x 128 MiB` to `PostgreSQL, direct` ``. The columns `walhub`, `direct` and `cascade` hold
//! the medians of these subjects, in the variant that follows `of`, divided by the median of the
//! subject that follows `to`. `must` and `stretch` hold a bound and whether the result met it.

use crate::markdown::{self, Table, codes};
use crate::project::{Finding, Project};
use serde_json::Value;

/// The columns with figures, and the subjects they show.
const SUBJECTS: [(&str, &str); 3] =
    [("walhub", "walhub"), ("direct", "PostgreSQL, direct"), ("cascade", "PostgreSQL, cascade")];

/// The pages on which every table about walhub holds figures.
const PAGES: [&str; 2] = ["README.md", "docs/performance.md"];

const RESULTS: &str = "perf/results/";

/// What a row cites.
struct Citation<'a> {
    result: Value,
    measure: &'a str,
    variant: Option<&'a str>,
    divisor: Option<&'a str>,
}

pub(crate) fn figures(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (page, text) in project.pages() {
        for table in markdown::tables(text, |_, _| {}) {
            if table.column("walhub").is_none() {
                continue;
            }
            let Some(kept) = table.column("kept") else {
                if !PAGES.contains(&page) {
                    continue;
                }
                let what = format!("{page}: a table of figures that cites nothing");
                findings.push(Finding::new(what, format!("line {}", table.line)));
                continue;
            };
            for row in &table.rows {
                let place = format!("{page}: {}", row[0]);
                match cited(project, &row[kept]) {
                    Err(what) => findings.push(Finding::new(place, what)),
                    Ok(citation) => {
                        let faults = faults(&table, row, &citation);
                        findings.extend(faults.into_iter().map(|what| Finding::new(&place, what)));
                    }
                }
            }
        }
    }
    findings
}

fn cited<'a>(project: &Project, cell: &'a str) -> Result<Citation<'a>, String> {
    let path =
        cell.split_once("](").and_then(|(_, rest)| rest.split_once(')')).map(|(path, _)| path);
    let name =
        path.and_then(|path| path.rsplit('/').next()).and_then(|name| name.strip_suffix(".md"));
    let name = name.ok_or("cites no kept result")?;
    let json = project.files.get(&format!("{RESULTS}{name}.json"));
    let json = json.ok_or_else(|| format!("cites {name}, which is not kept"))?;
    let result: Value = serde_json::from_str(json).map_err(|e| format!("{name}: {e}"))?;
    // The name is DATE-ROW; only the newest result of a row may be cited.
    let row = name.get(11..).unwrap_or_default();
    let newest = project.files.keys().filter_map(|path| {
        let name = path.strip_prefix(RESULTS)?.strip_suffix(".json")?;
        (name.get(11..) == Some(row)).then_some(name)
    });
    if let Some(newest) = newest.max().filter(|newest| *newest != name) {
        return Err(format!("cites {name}; {newest} is newer"));
    }
    let codes = codes(cell);
    let after = |word: &str| {
        let (_, rest) = cell.split_once(&format!("` {word} `"))?;
        rest.split('`').next()
    };
    let measure = codes.first().copied().ok_or("names no measure")?;
    Ok(Citation { result, measure, variant: after("of"), divisor: after("to") })
}

impl Citation<'_> {
    fn median(&self, sample: &str) -> Option<f64> {
        self.result["samples"].get(sample)?.get(self.measure)?["median"].as_f64()
    }

    /// A subject in a variant, or a sample named by the variant alone.
    fn of_subject(&self, subject: &str, variant: Option<&str>) -> Option<f64> {
        let Some(variant) = variant else { return self.median(subject) };
        self.median(&format!("{subject}, {variant}"))
            .or_else(|| (subject == "walhub").then(|| self.median(variant)).flatten())
    }

    fn value(&self, subject: &str) -> Option<f64> {
        let value = self.of_subject(subject, self.variant)?;
        let Some(divisor) = self.divisor else { return Some(value) };
        let same_variant = self.variant.map(|variant| format!("{divisor}, {variant}"));
        let by = self
            .median(&format!("{subject}, {divisor}"))
            .or_else(|| self.median(divisor))
            .or_else(|| self.median(&same_variant?))?;
        Some(value / by)
    }

    /// The target with this measured value.
    fn goal(&self, measured: f64) -> Option<&Value> {
        let goals = self.result["goals"].as_array()?;
        goals.iter().find(|goal| {
            goal["measured"]
                .as_f64()
                .is_some_and(|goal| (goal - measured).abs() <= 1e-9 * measured.abs())
        })
    }
}

fn faults(table: &Table, row: &[String], citation: &Citation<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    for (column, subject) in SUBJECTS {
        let Some(cell) = table.column(column).map(|at| row[at].as_str()) else { continue };
        match (number(cell), citation.value(subject)) {
            (None, _) if cell.is_empty() => {}
            (Some(shown), Some(kept)) if shown.rounds(kept) => {}
            (_, Some(kept)) => faults.push(format!("{column} shows {cell}, kept is {kept}")),
            (_, None) => faults.push(format!("{column} shows {cell}, nothing of that is kept")),
        }
    }
    let measured = citation.value("walhub");
    let goal = measured.and_then(|measured| citation.goal(measured));
    for (column, met_by) in
        [("must", &["must_met", "stretch_met"][..]), ("stretch", &["stretch_met"])]
    {
        let Some(cell) = table.column(column).map(|at| row[at].as_str()) else { continue };
        let expected = goal.map(|goal| {
            let bound = &goal[column];
            let bound = bound["at_most"].as_f64().or_else(|| bound["at_least"].as_f64());
            let met = goal["verdict"].as_str().is_some_and(|verdict| met_by.contains(&verdict));
            (bound.unwrap_or(f64::NAN), if met { "met" } else { "not met" })
        });
        match (number(cell), expected) {
            (None, None) if cell.is_empty() => {}
            (Some(shown), Some((bound, verdict)))
                if shown.rounds(bound)
                    && cell.split_once(' ').is_some_and(|(_, rest)| rest == verdict) => {}
            (_, Some((bound, verdict))) => {
                faults.push(format!("{column} says \"{cell}\", kept is {bound} {verdict}"));
            }
            (_, None) => faults.push(format!("{column} says \"{cell}\", there is no such target")),
        }
    }
    faults
}

/// A number as a cell shows it.
struct Shown {
    value: f64,
    decimals: usize,
}

/// The number that a cell begins with, ignoring emphasis.
fn number(cell: &str) -> Option<Shown> {
    let cell = cell.trim_matches('*');
    let end = cell.find(|c: char| !(c.is_ascii_digit() || ".,".contains(c))).unwrap_or(cell.len());
    let digits = cell[..end].replace(',', "");
    let value = digits.parse().ok()?;
    Some(Shown { value, decimals: digits.split_once('.').map_or(0, |(_, rest)| rest.len()) })
}

impl Shown {
    fn rounds(&self, exact: f64) -> bool {
        let half = 0.5 * 10_f64.powi(-i32::try_from(self.decimals).unwrap_or(0));
        (self.value - exact).abs() <= half * 1.000_001
    }
}

mod tests {
    use super::*;

    const KEPT: &str = r#"{"samples": {
        "walhub, 9": {"CPU": {"median": 0.4649}}, "PostgreSQL, direct, 9": {"CPU": {"median": 1.0}},
        "walhub": {"ms": {"median": 12.5}}, "floor": {"ms": {"median": 5.0}}},
        "goals": [{"measured": 2.5, "must": {"at_most": 3.0}, "stretch": {"at_least": 2.0}, "verdict": "must_met"}]}"#;

    fn found(row: &str) -> usize {
        let page = format!(
            "| what | walhub | direct | must | stretch | kept |\n|---|---|---|---|---|---|\n{row}\n"
        );
        let files = [
            ("docs/a.md", page.as_str()),
            ("perf/results/2026-01-02-r.json", KEPT),
            ("perf/results/2026-01-01-r.json", KEPT),
        ];
        figures(&Project::of(&files)).len()
    }

    #[test]
    fn finds_figures_that_are_not_those_kept() {
        let cited = "[r](x/2026-01-02-r.md)";
        let of =
            |figures: &str, measure: &str| found(&format!("| a | {figures} | {cited} {measure} |"));
        let cpu = "`CPU` of `9`";
        assert_eq!(of("0.46 | **1.0** µs | | ", cpu), 0);
        assert_eq!(of("0.47 | 1 | | ", cpu), 1, "rounded wrongly");
        assert_eq!(of("0.465 | 1.1 | | ", cpu), 1, "another server's");
        assert_eq!(of("0.46 | 1 | 1 met | ", cpu), 1, "no such target");
        assert_eq!(of("0.465 | | | ", "`CPU` of `9` to `PostgreSQL, direct`"), 0);
        let ratio = "`ms` to `floor`";
        assert_eq!(of("2.5 | | 3 met | 2 not met", ratio), 0);
        assert_eq!(of("2.5 | | 3 met | 2 met", ratio), 1, "a target that was missed");
        assert_eq!(of("2.5 | | 4 met | 2 not met", ratio), 1, "another bound");
        assert_eq!(of("2.5 | | | ", ratio), 2, "targets left out");
        assert_eq!(of("2.5 | | | ", "`MiB` to `floor`"), 1, "a measure that is not kept");
        assert_eq!(found("| a | 12 | | | | |"), 1, "nothing cited");
        assert_eq!(found("| a | 12.5 | | | | [r](x/2026-01-01-r.md) `ms` |"), 1, "an older result");
        assert_eq!(found("| a | 12.5 | | | | [r](x/2026-01-03-r.md) `ms` |"), 1, "not kept");
        let bare = Project::of(&[("README.md", "| what | walhub |\n|---|---|\n| a | 1 |\n")]);
        assert_eq!(figures(&bare).len(), 1, "a table without citations");
    }
}
