//! Two runs, or two sets of runs, side by side.

use super::{Latency, ReportFault, RunReport, say};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Reports of one side.
#[derive(Debug)]
pub struct Side {
    /// Its name, as given.
    pub name: String,
    /// At least one.
    pub reports: Vec<RunReport>,
}

impl Side {
    /// Loads a file, several comma-separated files, or all `.json` files of a folder.
    ///
    /// # Errors
    /// A file cannot be read, or there is none.
    pub fn load(name: &str) -> Result<Self, ReportFault> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for part in name.split(',') {
            let path = Path::new(part);
            if !path.is_dir() {
                paths.push(path.to_owned());
                continue;
            }
            let fault = |e| ReportFault::Read(part.to_owned(), e);
            for entry in fs::read_dir(path).map_err(fault)? {
                let path = entry.map_err(fault)?.path();
                if path.extension().is_some_and(|extension| extension == "json") {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        if paths.is_empty() {
            let none = io::Error::new(io::ErrorKind::NotFound, "no .json in it");
            return Err(ReportFault::Read(name.to_owned(), none));
        }
        let reports = paths.iter().map(|path| RunReport::load(path)).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), reports })
    }
}

/// How a figure is formatted.
type Unit = fn(f64) -> String;

/// A figure that can be compared; smaller is better unless it is a throughput.
struct Figure {
    name: &'static str,
    unit: Unit,
    read: fn(&RunReport) -> Option<f64>,
}

fn nanos(value: f64) -> String {
    say::nanos(value as u64)
}

fn bytes(value: f64) -> String {
    say::bytes(value as u64)
}

fn per_second(value: f64) -> String {
    format!("{}/s", bytes(value))
}

fn seconds(value: f64) -> String {
    format!("{} s", say::digits(value))
}

fn micros(value: f64) -> String {
    format!("{} µs", say::digits(value))
}

/// A time from a histogram; `None` when the histogram is empty.
fn time(latency: &Latency, value: u64) -> Option<f64> {
    (latency.count > 0).then_some(value as f64)
}

const FIGURES: &[Figure] = &[
    Figure {
        name: "each standby p50",
        unit: nanos,
        read: |r| time(&r.results.each, r.results.each.p50),
    },
    Figure {
        name: "each standby p99",
        unit: nanos,
        read: |r| time(&r.results.each, r.results.each.p99),
    },
    Figure {
        name: "first standby p50",
        unit: nanos,
        read: |r| time(&r.results.first, r.results.first.p50),
    },
    Figure {
        name: "last standby p50",
        unit: nanos,
        read: |r| time(&r.results.last, r.results.last.p50),
    },
    Figure {
        name: "last standby p99",
        unit: nanos,
        read: |r| time(&r.results.last, r.results.last.p99),
    },
    Figure {
        name: "last standby p99.9",
        unit: nanos,
        read: |r| time(&r.results.last, r.results.last.p999),
    },
    Figure {
        name: "last standby max",
        unit: nanos,
        read: |r| time(&r.results.last, r.results.last.max),
    },
    Figure {
        name: "client's commit p50",
        unit: nanos,
        read: |r| r.results.commit.as_ref().and_then(|commit| time(commit, commit.p50)),
    },
    Figure {
        name: "client's commit p99",
        unit: nanos,
        read: |r| r.results.commit.as_ref().and_then(|commit| time(commit, commit.p99)),
    },
    Figure {
        name: "WAL written",
        unit: per_second,
        read: |r| rate(r.results.wal_bytes, r.results.seconds),
    },
    Figure {
        name: "WAL received by all",
        unit: per_second,
        read: |r| rate(r.results.delivered_bytes, r.results.receiving_seconds()),
    },
    Figure {
        name: "taken before",
        unit: per_second,
        read: |r| r.results.ingest.and_then(|ingest| rate(ingest.bytes, ingest.seconds)),
    },
    Figure { name: "server's CPU", unit: seconds, read: |r| Some(r.results.cpu?.seconds) },
    Figure { name: "CPU per GiB", unit: seconds, read: |r| r.results.cpu?.per_gib },
    Figure {
        name: "CPU per commit and standby",
        unit: micros,
        read: |r| r.results.cpu?.per_delivery,
    },
    Figure { name: "CPU per message", unit: micros, read: |r| r.results.cpu?.per_message },
    Figure {
        name: "private memory, all streaming",
        unit: bytes,
        read: |r| Some(r.results.memory?.streaming.private as f64),
    },
    Figure {
        name: "private memory per standby",
        unit: bytes,
        read: |r| Some(r.results.memory?.private_per_standby(r.plan.standbys)? as f64),
    },
    Figure {
        name: "TCP buffers of the host",
        unit: bytes,
        read: |r| Some(r.results.memory?.tcp_most as f64),
    },
    Figure { name: "all streaming after", unit: seconds, read: |r| r.results.all_streaming },
];

fn rate(amount: u64, seconds: f64) -> Option<f64> {
    (amount > 0 && seconds > 0.0).then(|| amount as f64 / seconds)
}

/// The figures that both sides have. With several runs per side, each figure is their median,
/// followed by the smallest and the largest.
pub fn compare(a: &Side, b: &Side) -> String {
    let mut text = String::new();
    let mut line = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).expect("writing to a string does not fail");
    };
    for (letter, side) in [("A", a), ("B", b)] {
        line(format_args!("{letter}  {} ({})\n", side.name, of_runs(&side.reports)));
        for plan in plans(&side.reports) {
            line(format_args!("   {plan}\n"));
        }
    }
    line(format_args!("\n{:<31}{:>34}{:>34}{:>8}\n", "", "A", "B", "B / A"));
    for figure in FIGURES {
        let (Some(left), Some(right)) = (Spread::of(a, figure), Spread::of(b, figure)) else {
            continue;
        };
        let ratio = if left.median > 0.0 {
            say::digits(right.median / left.median)
        } else {
            "-".to_owned()
        };
        let (left, right) = (left.text(figure.unit), right.text(figure.unit));
        line(format_args!("{:<31}{left:>34}{right:>34}{ratio:>8}\n", figure.name));
    }
    for (letter, side) in [("A", a), ("B", b)] {
        let bad = side.reports.iter().filter(|report| !report.verdict.is_good()).count();
        if bad > 0 {
            let runs = say::of(bad as u64, "run");
            line(format_args!(
                "\n{letter}: {runs} had faults or problems; its figures do not count\n"
            ));
        }
    }
    text
}

fn of_runs(reports: &[RunReport]) -> String {
    let dates: Vec<&str> = reports.iter().map(|report| report.date.as_str()).collect();
    match dates.as_slice() {
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{} runs, {first} to {last}", dates.len()),
        [] => "no run".to_owned(),
    }
}

/// The plans of the runs, each kind once.
fn plans(reports: &[RunReport]) -> Vec<String> {
    let mut plans: Vec<String> = Vec::new();
    for RunReport { plan, .. } in reports {
        let standbys = say::of(plan.standbys as u64, "standby");
        let plan = format!("{standbys}, {}; {}", plan.server, plan.load);
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    plans
}

struct Spread {
    runs: usize,
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    /// Returns `None` when a run lacks the figure.
    fn of(side: &Side, figure: &Figure) -> Option<Self> {
        let mut values = side.reports.iter().map(figure.read).collect::<Option<Vec<f64>>>()?;
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            values.get(middle - 1)?.midpoint(*values.get(middle)?)
        } else {
            *values.get(middle)?
        };
        Some(Self { runs: values.len(), least, median, most })
    }

    fn text(&self, unit: Unit) -> String {
        if self.runs == 1 {
            return unit(self.median);
        }
        format!("{} ({} - {})", unit(self.median), unit(self.least), unit(self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::fixture;

    fn side(name: &str, p50s: &[u64]) -> Side {
        let reports = p50s.iter().map(|p50| {
            let mut report = fixture::report();
            report.results.last.p50 = *p50;
            report
        });
        Side { name: name.to_owned(), reports: reports.collect() }
    }

    #[test]
    fn ratios_are_those_of_the_medians() {
        let text = compare(&side("a", &[3_000_000, 1_000_000, 2_000_000]), &side("b", &[500_000]));
        let line = text.lines().find(|line| line.starts_with("last standby p50")).unwrap();
        assert!(line.contains("2.00 ms") && line.contains("3.00 ms"), "{line}");
        assert!(line.contains("500 µs") && line.ends_with("0.25"), "{line}");
        assert!(!text.contains("client's commit"), "neither side has it\n{text}");
        assert!(!text.contains("faults"), "{text}");
    }

    #[test]
    fn a_side_with_faults_is_named() {
        let mut b = side("b", &[1, 2]);
        b.reports[1].verdict.faults = 1;
        let text = compare(&side("a", &[1]), &b);
        assert!(text.contains("B: 1 run had faults"), "{text}");
    }

    #[test]
    fn a_folder_is_all_its_reports() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        assert!(matches!(Side::load(name), Err(ReportFault::Read(..))));
        for n in ["a", "b"] {
            let path = folder.path().join(format!("{n}.json"));
            fs::write(path, fixture::report().to_json()).unwrap();
        }
        assert_eq!(Side::load(name).unwrap().reports.len(), 2);
        let list = format!("{name}/b.json,{name}/a.json,{name}/a.json");
        assert_eq!(Side::load(&list).unwrap().reports.len(), 3);
    }
}
