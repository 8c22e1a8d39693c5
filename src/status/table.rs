//! Tables for people: aligned, and no wider than a terminal.

use std::io::{self, Write};

/// The widest line.
pub(super) const WIDTH: usize = 100;

/// Blanks between two columns.
const GAP: usize = 2;

/// No column is narrowed below this to fit.
const NARROW: usize = 8;

/// A column's head, and how it yields when a line would be too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heading {
    pub(super) head: &'static str,
    pub(super) align: Align,
    pub(super) give: Give,
}

/// How values are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Whether a column's values may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Give {
    /// Names can be recognized from their beginnings.
    Way,
    /// Half a number would be a wrong number.
    Nothing,
}

/// Writes rows below their heads.
pub(super) fn write(
    columns: &[Heading],
    rows: &[Vec<String>],
    out: &mut impl Write,
) -> io::Result<()> {
    let width = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = columns.iter().map(|column| width(column.head)).collect();
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let gaps = GAP * columns.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > WIDTH {
        let giving = columns.iter().zip(&mut widths);
        let giving = giving.filter(|(column, width)| column.give == Give::Way && **width > NARROW);
        match giving.map(|(_, width)| width).max() {
            Some(widest) => *widest -= 1,
            None => break,
        }
    }
    let heads: Vec<String> = columns.iter().map(|column| column.head.to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for ((column, width), cell) in columns.iter().zip(&widths).zip(row) {
            let cell = cut(cell, *width);
            let blanks = width - cell.chars().count().min(*width);
            let (before, after) = match column.align {
                Align::Left => (0, blanks),
                Align::Right => (blanks, 0),
            };
            line.extend(std::iter::repeat_n(' ', before));
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', after + GAP));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADINGS: [Heading; 3] = [
        Heading { head: "NAME", align: Align::Left, give: Give::Way },
        Heading { head: "LSN", align: Align::Left, give: Give::Nothing },
        Heading { head: "LAG", align: Align::Right, give: Give::Nothing },
    ];

    fn lines(rows: &[[&str; 3]]) -> Vec<String> {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        let mut out = Vec::new();
        write(&HEADINGS, &rows, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn columns_stand_below_each_other() {
        let expected = ["NAME  LSN        LAG", "a     0/3000060   12", "bcd   0/1          0"];
        assert_eq!(lines(&[["a", "0/3000060", "12"], ["bcd", "0/1", "0"]]), expected);
        assert_eq!(lines(&[]), ["NAME  LSN  LAG"]);
    }

    proptest! {
        #[test]
        fn no_line_is_too_long(name in "\\PC{0,300}", lsn in "[0-9A-F/]{0,17}", lag in "[0-9]{0,9}") {
            for line in lines(&[[&name, &lsn, &lag]]) {
                prop_assert!(line.chars().count() <= WIDTH);
                prop_assert!(line.contains("LSN") || line.contains(&lsn));
            }
        }
    }
}
