//! An old and a new binary, measured in alternated pairs.
//!
//! Both get the same load within seconds, so what the machine does meanwhile falls on
//! both alike; who is first changes from pair to pair. What counts is each pair's ratio.

mod binary;
mod interval;
mod kept;
mod rows;

use self::binary::Binary;
use self::kept::{Contest, Measured, Record};
use self::rows::{ROWS, Row, Scale, USUAL};
use crate::fault::{During, Fault, Outcome};
use crate::machine::{Machine, load_average, wait_until_quiet};
use crate::options::Options;
use std::path::{Path, PathBuf};
use walhub::bench::primary::ServerVersion;
use walhub::bench::report::RunReport;
use walhub::bench::run::{HubOptions, Interrupt, Moment, RunPlan, ServerPlan, Watch, run};
use walhub::wal::SegmentSize;

/// PostgreSQL's major version that the primary appears as.
const MAJOR: u32 = 15;
const SEGMENT: u64 = 16 << 20;

/// The rows' names and loads.
pub(crate) fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROWS.iter().map(|row| (row.name, row.what))
}

/// Measures the rows `names`, prints and keeps what came out. A figure of the new binary
/// that is worse beyond doubt is an error.
pub(crate) fn versus(
    options: &Options,
    names: &[String],
    new: &Path,
    congestion_control: String,
) -> Outcome {
    let old = options.old.as_deref().ok_or_else(|| Fault::new("versus needs --old"))?;
    let rows = chosen(names)?;
    let (old, new) = (Binary::at(old)?, Binary::at(new)?);
    old.differs_from(&new)?;
    let pairs = if options.quick { 1 } else { options.pairs.max(1) };
    let scale = if options.quick { Scale::Quick } else { Scale::Full };
    let mut record =
        Record { machine: Machine::look(congestion_control), old, new, pairs, contests: vec![] };
    record.print_head()?;
    for row in rows {
        if let Some(limit) = options.max_load {
            wait_until_quiet(limit)?;
        }
        let contest = contest(options, row, &record, scale)?;
        record.add(contest)?;
        // After each row: a run that is ended keeps what it has.
        record.keep(options)?;
    }
    record.judge()
}

fn chosen(names: &[String]) -> Outcome<Vec<&'static Row>> {
    let named = |name: &str| {
        ROWS.iter()
            .find(|row| row.name == name)
            .ok_or_else(|| Fault::new(format!("versus has no row \"{name}\"")))
    };
    match names {
        [] => USUAL.into_iter().map(named).collect(),
        [all] if all == "all" => Ok(ROWS.iter().collect()),
        names => names.iter().map(|name| named(name)).collect(),
    }
}

fn contest(
    options: &Options,
    row: &'static Row,
    record: &Record,
    scale: Scale,
) -> Outcome<Contest> {
    let mut contest = Contest::new(row, load_average());
    for pair in 0..record.pairs {
        let old = || trial(options, row, &record.old.path, scale);
        let new = || trial(options, row, &record.new.path, scale);
        let (old, new) = if pair % 2 == 0 {
            let old = old()?;
            (old, new()?)
        } else {
            let new = new()?;
            (old()?, new)
        };
        for (measure, measured) in row.measures.iter().zip(&mut contest.measures) {
            let read = |report: &RunReport| {
                (measure.read)(report)
                    .ok_or_else(|| Fault::new(format!("{}: no {}", row.name, measure.name)))
            };
            measured.add(read(&old)?, read(&new)?);
        }
        contest.progress(pair + 1, record.pairs);
    }
    contest.load_at_end = load_average();
    contest.measures.iter_mut().for_each(Measured::settle);
    Ok(contest)
}

/// One run of one binary, from its start to its end.
fn trial(options: &Options, row: &Row, walhub: &Path, scale: Scale) -> Outcome<RunReport> {
    let trial = row.trial(scale)?;
    let plan = RunPlan {
        server: ServerPlan::Hub {
            version: ServerVersion::new(MAJOR).ok_or_else(|| Fault::new("no such version"))?,
            segment_size: SegmentSize::new(SEGMENT).ok_or_else(|| Fault::new("no such size"))?,
            hub: HubOptions {
                program: Some(PathBuf::from(walhub)),
                flags: options.serve_flags().map(|flag| vec![flag.to_owned()]).collect(),
                directory: Some(options.directory.clone()),
            },
        },
        load: trial.load,
        fleet: trial.fleet,
        work: trial.work,
        window: None,
        arguments: Vec::new(),
    };
    let what = || format!("{}: {}", row.name, walhub.display());
    let report = run(plan, &Interrupt::default(), &mut Silent).during(what())?;
    if report.verdict.is_good() {
        return Ok(report);
    }
    let text = walhub::bench::report::table::verdict(&report).join("; ");
    Err(Fault::new(format!("{}: {text}", what())))
}

struct Silent;

impl Watch for Silent {
    fn step(&mut self, _: &str) {}
    fn moment(&mut self, _: &Moment) {}
}
