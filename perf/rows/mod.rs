//! The rows: one command, one table each.

mod bulk;
mod capacity;
mod idle;
mod ingest;
mod laggards;
mod large_commits;
mod live;
mod memory;
mod restart;
mod scaling;
mod scrub;
mod slots;
mod small_commits;
mod stalled;
mod storm;

use crate::bed::{Bed, Making};
use crate::fault::{Fault, Outcome};
use crate::options::Options;
use crate::report::{Report, Samples};
use crate::support::scene::Scene;
use std::path::PathBuf;

/// A row of the table of targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) measure: fn(&mut Run<'_>, &Row) -> Outcome<Report>,
}

impl Row {
    fn report(&self, how: impl Into<String>) -> Report {
        Report::new(self.name, self.what, how)
    }
}

/// All rows, in the order of the design's table.
pub(crate) const ROWS: &[Row] = &[
    small_commits::COST,
    small_commits::REPLIES,
    small_commits::COMMIT,
    small_commits::LAST,
    large_commits::KIB_8,
    large_commits::KIB_64,
    bulk::ROW,
    memory::ROW,
    ingest::ROW,
    capacity::ROW,
    idle::ROW,
    restart::ROW,
    stalled::ROW,
    laggards::ROW,
    slots::ROW,
    scrub::ROW,
    scaling::ROW,
    storm::ROW,
];

/// The rows that were asked for.
pub(crate) fn chosen(names: &[String]) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for name in names {
        if name == "all" {
            rows.extend(ROWS);
            continue;
        }
        let row = ROWS.iter().find(|row| row.name == name);
        rows.push(*row.ok_or_else(|| Fault::new(format!("no row is called {name}; try list")))?);
    }
    Ok(rows)
}

/// What all rows of one run share.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) options: &'a Options,
    pub(crate) scene: &'a Scene,
    pub(crate) walhub: PathBuf,
    /// What several rows look at from different sides.
    pub(crate) small_commits: Option<Samples>,
}

impl<'a> Run<'a> {
    /// Fresh servers for at most so many standbys.
    fn bed(&self, standbys: usize) -> Bed<'a> {
        Bed::new(&self.making(standbys))
    }

    fn making(&self, standbys: usize) -> Making<'a> {
        Making {
            scene: self.scene,
            walhub: self.walhub.clone(),
            serve_flags: self.options.serve_flags().map(str::to_owned).collect(),
            standbys,
            segment_mib: 16,
            first_segment: None,
        }
    }

    /// Says on standard error what goes on.
    fn say(&self, what: impl std::fmt::Display) {
        use std::io::Write as _;
        // Nowhere to report a failure to report.
        drop(writeln!(std::io::stderr(), "perf: {what}"));
    }
}
