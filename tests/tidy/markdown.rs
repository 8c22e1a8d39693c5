//! Tables and inline code of Markdown.

use crate::project::{Finding, Project};

/// A row of a table: its cells, trimmed.
pub(crate) type Row = Vec<String>;

/// A table with its heading and its line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) heading: String,
    pub(crate) line: usize,
    pub(crate) head: Row,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// The index of a column.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.head.iter().position(|cell| cell == name)
    }
}

/// The lines of a page outside fenced code, numbered from 1.
pub(crate) fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    page.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((at + 1, line))
    })
}

/// The tables of a page; malformed ones are passed to `faults`.
pub(crate) fn tables(page: &str, mut faults: impl FnMut(usize, &str)) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let (mut heading, mut open, mut last) = (String::new(), None::<usize>, 0);
    for (line, text) in prose(page) {
        if let Some(title) = text.strip_prefix('#') {
            heading = title.trim_start_matches('#').trim().to_owned();
        }
        if !text.starts_with('|') {
            continue;
        }
        let row = cells(text);
        if open.is_some() && last + 1 == line {
            let table = tables.last_mut().expect("the table that is open");
            if table.rows.is_empty() && open == Some(line - 1) {
                if !row.iter().all(|cell| is_rule(cell)) {
                    faults(line, "a table whose second line is not a rule");
                }
            } else {
                table.rows.push(row.clone());
            }
            if row.len() != table.head.len() {
                faults(line, "a row with another number of cells than its table's head");
            }
        } else {
            open = Some(line);
            tables.push(Table { heading: heading.clone(), line, head: row, rows: Vec::new() });
        }
        last = line;
    }
    for table in &tables {
        if table.rows.is_empty() {
            faults(
                table.line,
                "a table without rows, or a row that a blank line cut off its table",
            );
        }
    }
    tables
}

fn is_rule(cell: &str) -> bool {
    let bar = cell.trim_matches(':');
    bar.len() >= 3 && bar.chars().all(|c| c == '-')
}

fn cells(line: &str) -> Row {
    let line = line.trim();
    let line = line.strip_prefix('|').unwrap_or(line);
    let line = line.strip_suffix('|').unwrap_or(line);
    let (mut cells, mut cell, mut code, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        if c == '|' && !code && !escaped {
            cells.push(std::mem::take(&mut cell));
        } else {
            code ^= c == '`';
            cell.push(c);
        }
        escaped = c == '\\';
    }
    cells.push(cell);
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

/// The table of a page under this heading with these first columns.
pub(crate) fn table(project: &Project, page: &str, heading: &str) -> Option<Table> {
    let tables = tables(project.text(page), |_, _| {});
    tables.into_iter().find(|table| table.heading == heading)
}

/// The parts of a text in backticks.
pub(crate) fn codes(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Rule: tables have a head, a line of dashes, and rows with as many cells as the head.
pub(crate) fn broken_tables(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (page, text) in project.pages() {
        tables(text, |line, what| {
            findings.push(Finding::new(format!("{page}: {what}"), format!("{page}:{line}")));
        });
    }
    findings
}

mod tests {
    use super::*;

    #[test]
    fn reads_tables_and_finds_broken_ones() {
        let page = "# A\n\n| a | b |\n|---|---|\n| `x|y` | 2 |\n\n| 3 | 4 |\n";
        let mut faults = Vec::new();
        let tables = tables(page, |line, _| faults.push(line));
        assert_eq!(tables[0].rows, [["`x|y`", "2"]]);
        assert_eq!(tables[0].heading, "A");
        assert_eq!(faults, [7], "the row that a blank line cut off");
        let broken = |text: &str| broken_tables(&Project::of(&[("docs/a.md", text)])).len();
        assert_eq!(broken("| a | b |\n|---|---|\n| 1 |\n"), 1, "too few cells");
        assert_eq!(broken("| a | b |\n| 1 | 2 |\n| 1 | 2 |\n"), 1, "no rule");
        assert_eq!(broken("```\n| a |\n```\n| a |\n|---|\n| 1 |\n"), 0);
    }
}
