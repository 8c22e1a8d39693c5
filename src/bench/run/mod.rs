//! A run from its first process to its report.
//!
//! By default the server is a hub of our own: a child process of this binary, so that the kernel
//! accounts for it separately from the load. The primary and the standbys are threads of this
//! process.

mod catch_up;
mod hub;
mod interrupt;
mod live;
mod rig;
mod scratch;
mod source;
mod timeline;

pub use hub::{CHILD, HubOptions, become_hub};
pub use interrupt::Interrupt;
pub use timeline::{Moment, Phase, Watch};

use super::measure::Servers;
use super::primary::ServerVersion;
use super::profile::Load;
use super::report::{self, Mode, PlanReport, RunReport};
use super::standbys::{Behaviours, Replies, StandbySlots, Verify};
use crate::wal::SegmentSize;
use crate::wire::conninfo::Conninfo;
use std::io;
use std::time::{Duration, SystemTime};

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// The server that the standbys receive from.
    pub server: ServerPlan,
    /// What is written.
    pub load: Load,
    /// The standbys.
    pub fleet: FleetOptions,
    /// What the run does with them.
    pub work: Work,
    /// How much of the newest WAL is kept for comparison; `None` means automatic.
    pub window: Option<u64>,
    /// The command's arguments, for the report.
    pub arguments: Vec<String>,
}

/// The server that the standbys receive from.
#[derive(Debug, Clone)]
pub enum ServerPlan {
    /// A hub of our own with a synthetic primary as its upstream.
    Hub {
        /// The PostgreSQL version that the primary pretends to be.
        version: ServerVersion,
        /// Size of its segments.
        segment_size: SegmentSize,
        /// The hub.
        hub: HubOptions,
    },
    /// A foreign server.
    Target {
        /// Where it is.
        target: Box<Conninfo>,
        /// The conninfo as given.
        text: String,
        /// Where to commit, and over how many connections.
        commits: Option<(Box<Conninfo>, usize)>,
        /// Its processes.
        servers: Option<Servers>,
    },
}

impl ServerPlan {
    /// What the run does first, for its progress.
    pub(super) const fn first_step(&self) -> &'static str {
        match self {
            Self::Hub { .. } => "starting the server",
            Self::Target { .. } => "connecting to the server",
        }
    }
}

/// The standbys.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// How many.
    pub standbys: usize,
    /// Threads that they share.
    pub threads: usize,
    /// How they check.
    pub verify: Verify,
    /// What they report.
    pub replies: Replies,
    /// The standbys that are not good ones.
    pub behaviours: Behaviours,
    /// Prefix of their names.
    pub names: String,
    /// Their slots.
    pub slots: StandbySlots,
    /// Connections begun per second.
    pub connect_rate: Option<u32>,
    /// The seed for random choices.
    pub seed: u64,
}

/// The kind of run.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Standbys receive what is being written.
    Live {
        /// How long the load runs before measuring begins.
        warm_up: Duration,
        /// How long is measured.
        duration: Duration,
    },
    /// Standbys receive what was written before.
    CatchUp {
        /// How much.
        size: u64,
        /// Where they begin.
        starts: Starts,
    },
}

/// Where the standbys of a catch-up begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    /// All at the beginning.
    Together,
    /// Evenly between the beginning and the end.
    Spread,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum RunFault {
    /// A server cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// An error of the operating system.
    #[error("could not {0}: {1}")]
    System(&'static str, io::Error),
    /// The plan does not work out.
    #[error("{0}")]
    Plan(String),
    /// It was interrupted before anything was measured.
    #[error("interrupted")]
    Interrupted,
}

/// Runs a plan.
///
/// # Errors
/// Nothing was measured. A server that sends wrong WAL is a result, not an error.
pub fn run(
    plan: RunPlan,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
) -> Result<RunReport, RunFault> {
    let date = report::date(SystemTime::now());
    let machine = super::measure::Machine::this();
    let (mode, outcome) = match plan.work {
        Work::Live { warm_up, duration } => {
            let span = live::Span { warm_up, duration };
            (Mode::Live, live::live(&plan, span, interrupt, watch)?)
        }
        Work::CatchUp { size, starts } => {
            let bulk = catch_up::Bulk { size, starts };
            (Mode::CatchUp, catch_up::catch_up(&plan, bulk, interrupt, watch)?)
        }
    };
    Ok(RunReport {
        version: report::VERSION,
        walhub: env!("CARGO_PKG_VERSION").to_owned(),
        date,
        machine,
        plan: PlanReport {
            mode,
            server: outcome.server,
            load: outcome.load,
            standbys: plan.fleet.standbys,
            behaviours: plan.fleet.describe(),
            verify: plan.fleet.verify_name().to_owned(),
            replies: plan.fleet.replies_name(),
            threads: plan.fleet.threads,
            arguments: plan.arguments,
        },
        verdict: outcome.verdict,
        results: outcome.results,
        series: outcome.series,
    })
}

/// The outcome of a run.
#[derive(Debug)]
struct Outcome {
    server: String,
    load: String,
    verdict: report::Verdict,
    results: report::Results,
    series: Vec<report::Sample>,
}

impl FleetOptions {
    /// The number of standbys that receive everything.
    fn finishing(&self) -> usize {
        self.standbys.saturating_sub(self.behaviours.stalled.map_or(0, |stalled| stalled.count))
    }

    /// The number of good ones.
    pub fn good(&self) -> usize {
        let Behaviours { slow, stalled, flapping, .. } = &self.behaviours;
        let bad = slow.map_or(0, |slow| slow.count)
            + stalled.map_or(0, |stalled| stalled.count)
            + flapping.as_ref().map_or(0, |flapping| flapping.count);
        self.standbys.saturating_sub(bad)
    }

    /// `full`, `crc`, `off`
    pub const fn verify_name(&self) -> &'static str {
        match self.verify {
            Verify::Full => "full",
            Verify::Crc => "crc",
            Verify::Off => "off",
        }
    }

    /// `flush`, or the interval.
    pub fn replies_name(&self) -> String {
        match self.replies {
            Replies::Flush => "flush".to_owned(),
            Replies::Interval(every) => format!("every {every:?}"),
        }
    }

    /// The groups that are not good ones, one line each.
    fn describe(&self) -> Vec<String> {
        let Behaviours { slow, stalled, flapping, storm } = &self.behaviours;
        let mut lines = Vec::new();
        if let Some(slow) = slow {
            let rate = report::say::rate(slow.bytes_per_second, 1.0);
            lines.push(format!("{} of them slow, reading {rate} each", slow.count));
        }
        if let Some(stalled) = stalled {
            let when = match stalled.after {
                Duration::ZERO => "at once".to_owned(),
                after => format!("after {after:?}"),
            };
            lines.push(format!("{} of them stop reading {when}", stalled.count));
        }
        if let Some(flapping) = flapping {
            let (from, to) = (flapping.every.start(), flapping.every.end());
            lines.push(format!("{} of them reconnect after {from:?} to {to:?}", flapping.count));
        }
        if let Some(storm) = storm {
            let again =
                storm.every.map_or_else(String::new, |every| format!(", then every {every:?}"));
            lines.push(format!("all reconnect at once after {:?}{again}", storm.first));
        }
        lines
    }
}
