//! A live load: commits on the primary, a fleet behind one server or another.

use super::Run;
use crate::bed::{Bed, Serving, Way, conninfo_of};
use crate::fault::{During, Fault, Outcome};
use crate::fleet::{self, INTERVAL};
use crate::floor::{LiveSends, live_sends};
use crate::report::{Samples, median};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use walhub::bench::clock::Clock;
use walhub::bench::commits::Commits;
use walhub::bench::measure::{CpuMeter, Memory};
use walhub::bench::profile::{CommitSize, Figures, Load as Writing, Profile, Rate};
use walhub::bench::sql::{self, SqlCommits, SqlPlan};
use walhub::bench::standbys::{Behaviours, Fleet, FleetResult, Group, Replies, StandbySlots};

/// How long the last commits may take to arrive.
const DRAIN: Duration = Duration::from_secs(1);
/// WAL of a commit beside the content of its message.
const BESIDE_CONTENT: u64 = 104;

pub(super) const CPU: &str = "CPU us/delivery";
pub(super) const CPU_GIB: &str = "CPU s/GiB";
pub(super) const COMMIT_P50: &str = "commit p50 ms";
pub(super) const COMMIT_P99: &str = "commit p99 ms";
pub(super) const EACH_P50: &str = "each p50 ms";
pub(super) const EACH_P99: &str = "each p99 ms";
pub(super) const LAST_P50: &str = "last p50 ms";
pub(super) const LAST_P99: &str = "last p99 ms";
const WAL: &str = "WAL bytes/commit";

/// What is committed, and who listens.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) standbys: usize,
    pub(super) per_second: f64,
    /// Bytes of the message that each commit carries.
    pub(super) size: u64,
    pub(super) sessions: usize,
    pub(super) replies: Replies,
    pub(super) slots: StandbySlots,
    /// Those among them that do not read as they could.
    pub(super) behaviours: Behaviours,
    /// Commits that are not measured: how many a second, of which size.
    pub(super) beside: Option<(f64, u64)>,
}

impl Load {
    pub(super) fn new(standbys: usize, per_second: f64, size: u64) -> Self {
        Self {
            standbys,
            per_second,
            size,
            sessions: 1,
            replies: INTERVAL,
            slots: StandbySlots::None,
            behaviours: Behaviours::default(),
            beside: None,
        }
    }
}

/// Who feeds the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// All standbys that way.
    Fleet(Way),
    /// One standby, direct.
    One,
    /// No standby at all.
    Nobody,
    /// The bare SEND loop with as many bytes.
    Sends,
}

impl Subject {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fleet(way) => way.name(),
            Self::One => "one direct standby",
            Self::Nobody => "no standby",
            Self::Sends => "bare SEND loop",
        }
    }
}

/// One measurement.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) cpu: f64,
    pub(super) standbys: usize,
    /// WAL that all standbys together received.
    bytes: u64,
    /// Private memory of the servers' processes at the end.
    pub(super) private_kib: f64,
    /// What the committing sessions waited.
    commit: Histogram<u64>,
    /// From a commit's time to its receipt by each good standby, and by the last.
    each: Histogram<u64>,
    last: Histogram<u64>,
    /// Commits that some good standby did not receive in time.
    pub(super) missing: u64,
}

impl Live {
    /// CPU time for one commit to one standby, in microseconds.
    pub(super) fn cpu_per_delivery(&self) -> f64 {
        self.cpu * 1e6 / self.each.len() as f64
    }

    /// Milliseconds that so many per cent of the receipts did not exceed.
    pub(super) fn each_ms(&self, percent: f64) -> f64 {
        ms(&self.each, percent)
    }

    /// Likewise of the last standby's.
    pub(super) fn last_ms(&self, percent: f64) -> f64 {
        ms(&self.last, percent)
    }

    fn add(&self, samples: &mut Samples, name: &str) {
        let mut add = |measure, value: f64| {
            if value.is_finite() {
                samples.add(name, measure, value);
            }
        };
        if self.standbys > 1 {
            add(CPU, self.cpu_per_delivery());
            add(CPU_GIB, self.cpu / (self.bytes as f64 / (1u64 << 30) as f64));
        }
        if self.standbys > 0 {
            add(WAL, self.bytes as f64 / self.each.len() as f64);
        }
        self.add_latencies(samples, name);
    }

    /// The percentiles of commits and their arrival.
    pub(super) fn add_latencies(&self, samples: &mut Samples, name: &str) {
        for (measure, histogram, percent) in [
            (COMMIT_P50, &self.commit, 50.0),
            (COMMIT_P99, &self.commit, 99.0),
            (EACH_P50, &self.each, 50.0),
            (EACH_P99, &self.each, 99.0),
            (LAST_P50, &self.last, 50.0),
            (LAST_P99, &self.last, 99.0),
        ] {
            let value = ms(histogram, percent);
            if value.is_finite() {
                samples.add(name, measure, value);
            }
        }
    }
}

/// Not a number when nothing was recorded.
fn ms(histogram: &Histogram<u64>, percent: f64) -> f64 {
    if histogram.is_empty() {
        return f64::NAN;
    }
    histogram.value_at_quantile(percent / 100.0) as f64 / 1e6
}

/// Measures all subjects in turn.
pub(super) fn compare(run: &Run<'_>, load: &Load, subjects: &[Subject]) -> Outcome<Samples> {
    let mut samples = Samples::default();
    let mut bed = run.bed(load.standbys);
    for repeat in 0..run.options.repeats() {
        for subject in subjects {
            let name = subject.name();
            run.say(format_args!("{} B commits, round {}: {name}", load.size, repeat + 1));
            match subject {
                Subject::Fleet(way) => {
                    through(run, &mut bed, *way, load)?.add(&mut samples, name);
                }
                Subject::One => {
                    let load = Load { standbys: 1, ..load.clone() };
                    through(run, &mut bed, Way::Direct, &load)?.add(&mut samples, name);
                }
                Subject::Nobody => {
                    let load = Load { standbys: 0, ..load.clone() };
                    through(run, &mut bed, Way::Direct, &load)?.add(&mut samples, name);
                }
                Subject::Sends => sends(run, load, &mut samples, name)?,
            }
        }
    }
    Ok(samples)
}

/// The bare loop, with as many bytes as a commit has been until now.
fn sends(run: &Run<'_>, load: &Load, samples: &mut Samples, name: &str) -> Outcome {
    let fleets = [Way::Hub, Way::Direct, Way::Cascade].map(Way::name);
    let known: Vec<f64> =
        fleets.iter().flat_map(|fleet| samples.values(fleet, WAL)).copied().collect();
    let bytes = median(&known);
    let used = live_sends(LiveSends {
        connections: load.standbys,
        bytes: if bytes.is_finite() { bytes as usize } else { load.size as usize },
        per_second: load.per_second,
        span: run.options.span(),
    })?;
    samples.add(name, CPU, used.as_secs_f64() * 1e6);
    samples.add(name, CPU_GIB, used.as_secs_f64() / (bytes / (1u64 << 30) as f64));
    Ok(())
}

/// One measurement with the servers of one way.
pub(super) fn through(run: &Run<'_>, bed: &mut Bed<'_>, way: Way, load: &Load) -> Outcome<Live> {
    let serving = bed.open(way)?;
    let live = measure(run, bed, &serving, load);
    bed.close(way);
    live
}

/// One measurement with servers that run.
pub(super) fn measure(
    run: &Run<'_>,
    bed: &Bed<'_>,
    serving: &Serving,
    load: &Load,
) -> Outcome<Live> {
    let mut plan = fleet::plan(serving, load.standbys, bed.primary.flush_lsn());
    plan.replies = load.replies;
    plan.slots = load.slots.clone();
    plan.behaviours = load.behaviours.clone();
    let (clock, commits) = (plan.clock, Arc::clone(&plan.commits));
    let standbys = fleet::start(plan)?;
    fleet::wait_streaming(&standbys, load.standbys)?;
    let beside = load
        .beside
        .map(|(per_second, size)| {
            let commits = Arc::new(Commits::new(1));
            committing(bed, (per_second, size, 1), clock, commits)
        })
        .transpose()?;
    let committers = committing(bed, (load.per_second, load.size, load.sessions), clock, commits)?;
    let span = run.options.span();
    sleep((span / 5).max(Duration::from_millis(500)));
    standbys.mark();
    committers.mark();
    let mut cpu = CpuMeter::start(serving.workers.clone());
    let (end, bytes) = (Instant::now() + span, standbys.progress().bytes);
    while Instant::now() < end {
        sleep(Duration::from_millis(250).min(end.saturating_duration_since(Instant::now())));
        // Threads that end soon are not forgotten.
        cpu.used();
    }
    committers.pause();
    let beside = beside.map(SqlCommits::stop);
    drain(&standbys, &committers);
    let (cpu, bytes) = (cpu.used().as_secs_f64(), standbys.progress().bytes - bytes);
    let memory = Memory::of(&serving.workers);
    let written = committers.stop();
    let result = fleet::stop(standbys)?;
    let beside = beside.and_then(|beside| beside.progress.fault);
    if let Some(fault) = beside.or(written.progress.fault) {
        return Err(Fault::new(format!("the commits: {fault}")));
    }
    if written.latency.is_empty() {
        return Err(Fault::new("nothing was committed"));
    }
    if result.end.reconnects > 0 {
        return Err(Fault::new(format!("{} streams broke", result.end.reconnects)));
    }
    let each = good(&result)?;
    Ok(Live {
        cpu,
        standbys: load.standbys,
        bytes,
        private_kib: memory.private as f64 / 1024.0,
        commit: written.latency,
        each,
        missing: result.incomplete_commits,
        last: result.last,
    })
}

/// Sessions that commit on the primary, over its Unix socket: who commits does not share
/// the standbys' way. It has begun.
fn committing(
    bed: &Bed<'_>,
    (per_second, size, sessions): (f64, u64, usize),
    clock: Clock,
    commits: Arc<Commits>,
) -> Outcome<SqlCommits> {
    let wal = size + BESIDE_CONTENT;
    let figures = Figures {
        rate: Some(Rate::PerSecond(((per_second * wal as f64) as u64).max(1))),
        commit_size: Some(CommitSize::Fixed(wal)),
        ..Figures::default()
    };
    let load = Writing::new(Profile::Custom, &figures).during("the load")?;
    let target = conninfo_of(&bed.primary.unix_conninfo())?;
    let plan = SqlPlan { target, load, clients: sessions, clock, commits };
    let committing = sql::start(plan).during("the sessions that commit")?;
    committing.begin();
    Ok(committing)
}

/// Waits for the last commits; who does not get them has missed them.
fn drain(fleet: &Fleet, committers: &SqlCommits) {
    let deadline = Instant::now() + DRAIN;
    while Instant::now() < deadline {
        let progress = committers.progress();
        if progress.settled && fleet.progress().slowest >= progress.end {
            return;
        }
        sleep(Duration::from_millis(1));
    }
}

fn good(result: &FleetResult) -> Outcome<Histogram<u64>> {
    let good = result.groups.iter().find(|group| group.group == Group::Good);
    good.map(|group| group.each.clone()).ok_or_else(|| Fault::new("there is no good standby"))
}
