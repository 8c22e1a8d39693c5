//! What came out of a comparison, on the terminal and in files.

use super::binary::Binary;
use super::interval::Interval;
use super::rows::Row;
use crate::fault::{During, Fault, Outcome};
use crate::machine::Machine;
use crate::options::Options;
use crate::report::{median, number, table, usual_folder};
use serde::Serialize;
use std::fs;
use std::io::Write as _;

/// A ratio of up to here is within what a change may cost.
const ALLOWED: f64 = 1.03;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) machine: Machine,
    pub(super) old: Binary,
    pub(super) new: Binary,
    pub(super) pairs: usize,
    pub(super) contests: Vec<Contest>,
}

/// One row.
#[derive(Debug, Serialize)]
pub(super) struct Contest {
    row: &'static str,
    what: &'static str,
    load_at_start: String,
    pub(super) load_at_end: String,
    pub(super) measures: Vec<Measured>,
}

/// One figure of a row.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    name: &'static str,
    /// Pair by pair.
    old: Vec<f64>,
    new: Vec<f64>,
    /// New divided by old, pair by pair.
    ratios: Vec<f64>,
    /// Of the ratios; `None` with fewer than five pairs.
    interval: Option<Interval>,
    verdict: Verdict,
}

/// What the interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// All of it lies below 1.
    Better,
    /// It reaches [`ALLOWED`] or below.
    Kept,
    /// All of it lies above.
    Worse,
    /// There is none.
    TooFewPairs,
}

impl Verdict {
    fn of(interval: Option<Interval>) -> Self {
        match interval {
            None => Self::TooFewPairs,
            Some(Interval { high, .. }) if high < 1.0 => Self::Better,
            Some(Interval { low, .. }) if low <= ALLOWED => Self::Kept,
            Some(_) => Self::Worse,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Kept => "kept",
            Self::Worse => "WORSE",
            Self::TooFewPairs => "too few pairs",
        }
    }
}

impl Measured {
    pub(super) fn add(&mut self, old: f64, new: f64) {
        self.old.push(old);
        self.new.push(new);
        self.ratios.push(new / old);
    }

    /// All pairs are there.
    pub(super) fn settle(&mut self) {
        self.interval = Interval::of(&self.ratios);
        self.verdict = Verdict::of(self.interval);
    }

    fn cells(&self, row: &str) -> Vec<String> {
        let interval = self.interval.map_or_else(
            || "-".to_owned(),
            |found| format!("{:.3}-{:.3} ({:.0} %)", found.low, found.high, found.confidence * 1e2),
        );
        vec![
            row.to_owned(),
            self.name.to_owned(),
            number(median(&self.old)),
            number(median(&self.new)),
            format!("{:.3}", median(&self.ratios)),
            interval,
            self.verdict.words().to_owned(),
        ]
    }
}

impl Contest {
    pub(super) fn new(row: &'static Row, load_at_start: String) -> Self {
        let measured = |name| Measured {
            name,
            old: Vec::new(),
            new: Vec::new(),
            ratios: Vec::new(),
            interval: None,
            verdict: Verdict::TooFewPairs,
        };
        Self {
            row: row.name,
            what: row.what,
            load_at_start,
            load_at_end: String::new(),
            measures: row.measures.iter().map(|measure| measured(measure.name)).collect(),
        }
    }

    /// Says on the terminal how far it is.
    pub(super) fn progress(&self, pairs: usize, of: usize) {
        let ratios = self.measures.iter().map(|measured| {
            format!("{} {:.3}", measured.name, measured.ratios.last().copied().unwrap_or(f64::NAN))
        });
        let ratios: Vec<String> = ratios.collect();
        let line = format!("{}, pair {pairs} of {of}: {}", self.row, ratios.join(", "));
        // Whoever does not listen misses nothing that is kept.
        drop(writeln!(std::io::stderr(), "{line}"));
    }

    fn rows(&self) -> Vec<Vec<String>> {
        self.measures.iter().map(|measured| measured.cells(self.row)).collect()
    }
}

impl Record {
    pub(super) fn print_head(&self) -> Outcome {
        print(&format!("old: {}\nnew: {}\n\n", self.old.line(), self.new.line()))
    }

    pub(super) fn add(&mut self, contest: Contest) -> Outcome {
        print(&figures(contest.rows()))?;
        self.contests.push(contest);
        Ok(())
    }

    /// Writes all that there is to the folder of results, unless it was a quick run.
    pub(super) fn keep(&self, options: &Options) -> Outcome {
        let usual = (!options.quick).then(usual_folder);
        let Some(folder) = options.results.clone().or(usual) else { return Ok(()) };
        fs::create_dir_all(&folder).during(folder.display())?;
        let path = |end| folder.join(format!("{}-versus.{end}", self.machine.date));
        let json = serde_json::to_string_pretty(self).during("JSON")? + "\n";
        for (path, text) in [(path("json"), json), (path("md"), self.markdown())] {
            fs::write(&path, text).during(path.display())?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let Machine { date, kernel, cpu, cpus, memory_gib, congestion_control, .. } = &self.machine;
        let rows = self.contests.iter().flat_map(Contest::rows).collect();
        let loads = self.contests.iter().map(|contest| {
            format!(
                "- {}: {}. Load average {} at its start, {} at its end.\n",
                contest.row, contest.what, contest.load_at_start, contest.load_at_end
            )
        });
        format!(
            "## versus: two binaries in {} alternated pairs\n\n\
             A pair is one run of each binary behind a synthetic primary; less is better in all \
             figures. The interval is of the median of the pairs' ratios, from order statistics, \
             with its probability. `kept`: it reaches {ALLOWED} or below.\n\n{}{}\n\
             - old: {}\n- new: {}\n\n\
             {date}. {cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel}, congestion control \
             {congestion_control}, load average at the start {}.\n",
            self.pairs,
            figures(rows),
            loads.collect::<String>(),
            self.old.line(),
            self.new.line(),
            self.machine.load_average,
        )
    }

    /// An error when any figure is worse.
    pub(super) fn judge(&self) -> Outcome {
        let worse = self.contests.iter().flat_map(|contest| {
            let worse = contest.measures.iter().filter(|found| found.verdict == Verdict::Worse);
            worse.map(|measured| format!("{}, {}", contest.row, measured.name))
        });
        let worse: Vec<String> = worse.collect();
        if worse.is_empty() {
            return Ok(());
        }
        Err(Fault::new(format!("the new binary is worse: {}", worse.join("; "))))
    }
}

fn figures(rows: Vec<Vec<String>>) -> String {
    let head = ["row", "less is better", "old", "new", "new/old", "interval", ""];
    let mut text = String::new();
    table(&mut text, head.map(str::to_owned).to_vec(), rows);
    text
}

fn print(text: &str) -> Outcome {
    let mut terminal = std::io::stdout().lock();
    terminal.write_all(text.as_bytes()).during("standard output")?;
    terminal.flush().during("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_what_the_interval_says() {
        let of =
            |low, high| Verdict::of(Some(Interval { median: low, low, high, confidence: 0.95 }));
        assert_eq!(of(0.9, 0.99), Verdict::Better);
        assert_eq!(of(0.9, 1.2), Verdict::Kept);
        assert_eq!(of(1.02, 1.2), Verdict::Kept);
        assert_eq!(of(1.04, 1.2), Verdict::Worse);
        assert_eq!(Verdict::of(None), Verdict::TooFewPairs);
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let row = &super::super::ROWS[0];
        let mut contest = Contest::new(row, "0.1".to_owned());
        // One pair ran while the machine did something else.
        for (old, new) in [(1.0, 1.1), (2.0, 2.2), (3.0, 3.3), (40.0, 4.4), (5.0, 5.5)] {
            contest.measures.iter_mut().for_each(|measured| measured.add(old, new));
        }
        contest.measures.iter_mut().for_each(Measured::settle);
        let text = figures(contest.rows());
        assert!(text.contains("| 1.100   | 0.110-1.100 (94 %) | kept |"), "{text}");
    }
}
