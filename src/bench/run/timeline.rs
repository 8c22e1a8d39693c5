//! What is recorded while a run is in progress.

use super::rig::Rig;
use super::source::SourceProgress;
use crate::bench::report::{Sample, say};
use crate::bench::standbys::{Fleet, FleetProgress};
use std::time::{Duration, Instant};

/// The time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// WAL is written for a catch-up.
    Filling,
    /// Standbys connect.
    Connecting,
    /// The load runs, but nothing is measured yet.
    WarmUp,
    /// Measuring.
    Measuring,
    /// The load has stopped; the last bytes are in transit.
    Draining,
}

impl Phase {
    /// Its name in a status line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Connecting => "connecting",
            Self::WarmUp => "warm-up",
            Self::Measuring => "measuring",
            Self::Draining => "draining",
        }
    }
}

/// A run at a moment.
#[derive(Debug, Clone)]
pub struct Moment {
    /// What the run is doing.
    pub phase: Phase,
    /// How long the phase has lasted.
    pub elapsed: Duration,
    /// How long the phase will last in total, if known.
    pub planned: Option<Duration>,
    /// The figures.
    pub sample: Sample,
    /// WAL written per second since the previous moment.
    pub written_rate: f64,
    /// WAL received per second since the previous moment, by all standbys together.
    pub delivered_rate: f64,
    /// CPUs that the server used since the previous moment.
    pub cores: Option<f64>,
    /// Commits since the run began.
    pub commits: u64,
    /// The standbys; `None` before they exist.
    pub fleet: Option<FleetProgress>,
    /// Time from commit to receipt by the last standby, so far: median and 99th percentile.
    pub last: Option<(u64, u64)>,
}

/// An observer of a run.
pub trait Watch {
    /// A step begins.
    fn step(&mut self, text: &str);
    /// A new sample.
    fn moment(&mut self, moment: &Moment);
}

/// The series of a run.
#[derive(Debug)]
pub(super) struct Timeline {
    samples: Vec<Sample>,
    phase: Phase,
    phase_began: Instant,
    planned: Option<Duration>,
    /// When measuring began.
    zero: Option<Instant>,
    began: Instant,
    late: Duration,
    tcp_most: u64,
}

impl Timeline {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            samples: Vec::new(),
            phase: Phase::Connecting,
            phase_began: now,
            planned: None,
            zero: None,
            began: now,
            late: Duration::ZERO,
            tcp_most: 0,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, planned: Option<Duration>) {
        let now = Instant::now();
        if phase == Phase::Measuring {
            self.zero = Some(now);
            self.late = Duration::ZERO;
            self.tcp_most = 0;
        }
        (self.phase, self.phase_began, self.planned) = (phase, now, planned);
    }

    /// Records a sample and shows it.
    pub(super) fn look(
        &mut self,
        rig: &mut Rig,
        fleet: Option<&Fleet>,
        watch: &mut dyn Watch,
    ) -> SourceProgress {
        let written = rig.source.written();
        let progress = fleet.map(Fleet::progress);
        let now = Instant::now();
        self.late = self.late.max(written.late);
        self.tcp_most = self.tcp_most.max(crate::bench::measure::tcp_memory());
        let seen = progress.clone().unwrap_or_default();
        let end = rig.truth.end();
        let lag = |at: crate::wal::Lsn| if at.is_invalid() { 0 } else { end.bytes_since(at) };
        let sample = Sample {
            at: now.duration_since(self.began).as_secs_f64(),
            wal_bytes: rig.wal_bytes(&written),
            delivered_bytes: seen.bytes,
            lag_last: lag(seen.slowest),
            lag_median: lag(seen.median),
            streaming: seen.streaming,
            cpu: rig.cpu(),
        };
        let before = self.samples.last().copied().unwrap_or_default();
        let seconds = (sample.at - before.at).max(1e-3);
        let moment = Moment {
            phase: self.phase,
            elapsed: now.duration_since(self.phase_began),
            planned: self.planned,
            sample,
            written_rate: sample.wal_bytes.saturating_sub(before.wal_bytes) as f64 / seconds,
            delivered_rate: sample.delivered_bytes.saturating_sub(before.delivered_bytes) as f64
                / seconds,
            cores: sample.cpu.zip(before.cpu).map(|(now, before)| (now - before) / seconds),
            commits: written.commits,
            last: fleet.and_then(Fleet::last_so_far),
            fleet: progress,
        };
        self.samples.push(sample);
        watch.moment(&moment);
        written
    }

    /// The greatest delay of the load while it was measured, in nanoseconds.
    pub(super) fn late(&self) -> u64 {
        u64::try_from(self.late.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) const fn tcp_most(&self) -> u64 {
        self.tcp_most
    }

    /// The series, with times relative to the start of measuring.
    pub(super) fn finish(self) -> Vec<Sample> {
        let zero = self.zero.unwrap_or(self.began).duration_since(self.began).as_secs_f64();
        let shift = |sample: Sample| Sample { at: sample.at - zero, ..sample };
        self.samples.into_iter().map(shift).collect()
    }
}

impl Moment {
    /// The moment in one line.
    pub fn line(&self) -> String {
        let mut text = format!("{:<10} {:5.1} s", self.phase.name(), self.elapsed.as_secs_f64());
        if let Some(planned) = self.planned {
            text += &format!(" of {:.0} s", planned.as_secs_f64());
        }
        text += &format!("  written {}/s", say::bytes(self.written_rate as u64));
        if let Some(fleet) = &self.fleet {
            text += &format!(
                "  {} streaming  received {}/s  lag {}",
                fleet.streaming,
                say::bytes(self.delivered_rate as u64),
                say::bytes(self.sample.lag_last)
            );
        }
        if let Some((p50, p99)) = self.last {
            text += &format!("  last p50 {} p99 {}", say::nanos(p50), say::nanos(p99));
        }
        if let Some(cores) = self.cores {
            text += &format!("  cpu {}", say::digits(cores.max(0.0)));
        }
        text
    }
}
