//! What was typed.

use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Measures walhub beside PostgreSQL 15, row by row, on this machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "perf", max_term_width = 100)]
pub(crate) struct Options {
    /// Which rows: names, or "all"; "list" names them, "summary" reads their results;
    /// "versus" and its rows compare two binaries
    #[arg(required = true)]
    pub(crate) rows: Vec<String>,

    /// versus and slots: the walhub to compare with
    #[arg(long)]
    pub(crate) old: Option<PathBuf>,

    /// versus: how many times each binary is measured
    #[arg(long, default_value_t = 20)]
    pub(crate) pairs: usize,

    /// How often each server is measured; the servers take turns
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,

    /// How long one measurement of a live load lasts
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,

    /// Small and once, to see that a row works; nothing is kept unless --results is given
    #[arg(long)]
    pub(crate) quick: bool,

    /// Each row waits until the load average of one minute is below this, for ten minutes
    #[arg(long, value_name = "LOAD")]
    pub(crate) max_load: Option<f64>,

    /// Where data directories are made: a disk, not a tmpfs, because syncs are measured
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) directory: PathBuf,

    /// Where results are kept [default: perf/results of this repository]
    #[arg(long)]
    pub(crate) results: Option<PathBuf>,

    /// The walhub to measure [default: that of this build, brought up to date]
    #[arg(long)]
    pub(crate) walhub: Option<PathBuf>,

    /// Further flags for `walhub serve`, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub(crate) serve_flags: String,
}

impl Options {
    /// Further flags for `walhub serve`.
    pub(crate) fn serve_flags(&self) -> impl Iterator<Item = &str> {
        self.serve_flags.split_whitespace()
    }

    /// How often each server is measured.
    pub(crate) fn repeats(&self) -> usize {
        if self.quick { 1 } else { self.repeats.max(1) }
    }

    /// How long a live load is measured.
    pub(crate) fn span(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { self.seconds.max(1) })
    }

    /// A number of standbys, or of anything else that makes a row long, and what is
    /// enough of it to see that the row works.
    pub(crate) fn sized<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
