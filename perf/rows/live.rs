//! A live load: commits on the primary, a fleet behind one server or another.

use super::Run;
use crate::fault::{Fault, Outcome};
use crate::floor::{LiveSends, live_sends};
use crate::load::{
    Arrivals, Clock, CommitPlan, Committers, Fleet, FleetPlan, Percentiles, Replies, Temper, nanos,
};
use crate::process::{CpuMeter, Memory};
use crate::report::{Samples, median};
use crate::servers::{Bed, Serving, Way};
use std::thread::sleep;
use std::time::Duration;

/// How long a fleet may take to gather.
pub(super) const GATHERING: Duration = Duration::from_secs(180);
/// How long the last commits may take to arrive.
const DRAIN: Duration = Duration::from_secs(1);

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
    pub(super) size: usize,
    pub(super) sessions: usize,
    pub(super) replies: Replies,
    /// How the first standbys read; the rest is good.
    pub(super) tempers: Vec<Temper>,
    /// Commits that are not measured: how many a second, of which size.
    pub(super) beside: Option<(f64, usize)>,
}

impl Load {
    pub(super) fn new(standbys: usize, per_second: f64, size: usize) -> Self {
        Self {
            standbys,
            per_second,
            size,
            sessions: 1,
            replies: Replies::Interval,
            tempers: Vec::new(),
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
    pub(super) cpu: Duration,
    /// Commits that the schedule wanted while it was measured.
    pub(super) commits: usize,
    pub(super) standbys: usize,
    /// WAL that all standbys together received.
    pub(super) bytes: u64,
    /// Private memory of the servers' processes at the end.
    pub(super) private_kib: f64,
    pub(super) commit: Percentiles,
    pub(super) arrivals: Arrivals,
}

impl Live {
    /// CPU time for one commit to one standby, in microseconds.
    pub(super) fn cpu_per_delivery(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.commits * self.standbys) as f64
    }

    fn add(&self, samples: &mut Samples, name: &str) {
        let mut add = |measure, value: f64| {
            if value.is_finite() {
                samples.add(name, measure, value);
            }
        };
        if self.standbys > 1 {
            add(CPU, self.cpu_per_delivery());
            let gib = self.bytes as f64 / (1u64 << 30) as f64;
            add(CPU_GIB, self.cpu.as_secs_f64() / gib);
        }
        self.add_latencies(samples, name);
        if self.standbys > 0 {
            let delivered = (self.commits * self.standbys) as f64;
            samples.add(name, WAL, self.bytes as f64 / delivered);
        }
    }

    /// The percentiles of commits and their arrival.
    pub(super) fn add_latencies(&self, samples: &mut Samples, name: &str) {
        let Self { commit, arrivals: Arrivals { each, last, .. }, .. } = self;
        // Of nobody there is nothing to wait for.
        let last = if self.standbys > 0 { last } else { each };
        for (measure, percentiles, percent) in [
            (COMMIT_P50, commit, 50.0),
            (COMMIT_P99, commit, 99.0),
            (EACH_P50, each, 50.0),
            (EACH_P99, each, 99.0),
            (LAST_P50, last, 50.0),
            (LAST_P99, last, 99.0),
        ] {
            let value = percentiles.ms(percent);
            if value.is_finite() {
                samples.add(name, measure, value);
            }
        }
    }
}

/// Measures all subjects in turn.
pub(super) fn compare(run: &Run<'_>, load: &Load, subjects: &[Subject]) -> Outcome<Samples> {
    let mut samples = Samples::default();
    let mut bed = run.bed(load.standbys)?;
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
        bytes: if bytes.is_finite() { bytes as usize } else { load.size },
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
    bed.close(way)?;
    live
}

/// One measurement with servers that run.
pub(super) fn measure(
    run: &Run<'_>,
    bed: &Bed<'_>,
    serving: &Serving,
    load: &Load,
) -> Outcome<Live> {
    let clock = Clock::start();
    let plan = FleetPlan {
        target: serving.address,
        starts: vec![bed.primary.flush_lsn()?; load.standbys],
        until: None,
        replies: load.replies,
        tempers: load.tempers.clone(),
        connect_rate: None,
    };
    let fleet = Fleet::start(plan, clock)?;
    fleet.wait_streaming(GATHERING)?;
    let plan = |per_second, size, sessions| CommitPlan {
        socket: bed.primary.socket(),
        per_second,
        size,
        sessions,
    };
    let beside = load
        .beside
        .map(|(per_second, size)| Committers::start(&plan(per_second, size, 1), clock))
        .transpose()?;
    let committers = Committers::start(&plan(load.per_second, load.size, load.sessions), clock)?;
    let span = run.options.span();
    sleep((span / 5).max(Duration::from_millis(500)));
    fleet.record();
    let mut cpu = CpuMeter::start(serving.workers);
    let (begun, bytes) = (clock.now(), fleet.bytes());
    clock.sleep_until(begun + nanos(span));
    let (cpu, bytes, ended) = (cpu.used(), fleet.bytes() - bytes, clock.now());
    let memory = Memory::of(serving.workers);
    let mut commits = committers.stop()?;
    if let Some(beside) = beside {
        drop(beside.stop()?);
    }
    sleep(DRAIN);
    let end = clock.now();
    let fleeted = fleet.stop()?;
    commits.retain(|commit| (begun..ended).contains(&commit.due));
    if commits.is_empty() {
        return Err(Fault::new("nothing was committed"));
    }
    if fleeted.broken > 0 {
        return Err(Fault::new(format!("{} streams broke", fleeted.broken)));
    }
    let commit = commits.iter().map(|commit| commit.done.saturating_sub(commit.due)).collect();
    Ok(Live {
        cpu,
        commits: commits.len(),
        standbys: load.standbys,
        bytes,
        private_kib: memory.private_kib,
        commit: Percentiles::new(commit),
        arrivals: Arrivals::new(&commits, &fleeted.receipts, end),
    })
}
