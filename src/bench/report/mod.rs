//! The results of a run, for people and for programs.
//!
//! `--json` writes a [`RunReport`]. All other forms (the table, the page, the comparison) are made
//! from it alone.

pub mod compare;
pub mod hgrm;
mod latency;
pub mod page;
mod plots;
pub mod say;
pub mod table;
#[cfg(test)]
pub(in crate::bench) mod fixture;

pub use crate::wire::date::date;
pub use latency::Latency;

use super::measure::{Machine, Memory};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

/// The format version of [`RunReport`].
pub const VERSION: u32 = 1;

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// [`VERSION`]
    pub version: u32,
    /// The version of walhub that made it.
    pub walhub: String,
    /// When the run began, in UTC.
    pub date: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// The plan of the run.
    pub plan: PlanReport,
    /// Whether everything was correct.
    pub verdict: Verdict,
    /// The figures.
    pub results: Results,
    /// Samples over time.
    pub series: Vec<Sample>,
}

/// The plan of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// What kind of run.
    pub mode: Mode,
    /// The server that the standbys received from.
    pub server: String,
    /// What was written.
    pub load: String,
    /// How many standbys.
    pub standbys: usize,
    /// The standbys that were not good ones, and what the good ones did together.
    pub behaviours: Vec<String>,
    /// How WAL was checked.
    pub verify: String,
    /// What standbys reported.
    pub replies: String,
    /// Threads of the standbys.
    pub threads: usize,
    /// The arguments of the command.
    pub arguments: Vec<String>,
}

/// A kind of run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Standbys receive what is being written.
    #[default]
    Live,
    /// Standbys receive what was written before.
    CatchUp,
}

/// Whether everything was correct.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Wrong bytes, gaps and protocol violations.
    pub faults: u64,
    /// The first of them.
    pub first_faults: Vec<FaultReport>,
    /// Other deviations from the plan.
    pub problems: Vec<String>,
    /// The run was ended early by a signal.
    pub interrupted: bool,
    /// WAL received by all standbys together, warm-up included.
    pub received_bytes: u64,
    /// The part of it that was found correct.
    pub verified_bytes: u64,
    /// The rest, by the reason why it was not verified.
    #[serde(default)]
    pub unverified: Vec<UnverifiedReport>,
}

/// Received WAL that was not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnverifiedReport {
    /// The reason, as a key for programs.
    pub reason: String,
    /// The reason, in words.
    pub text: String,
    /// How much.
    pub bytes: u64,
}

impl Verdict {
    /// True when there were no faults and no other problems.
    pub fn is_good(&self) -> bool {
        self.faults == 0 && self.problems.is_empty()
    }
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// The standby's number, from 1.
    pub standby: usize,
    /// The position in the WAL.
    pub lsn: String,
    /// The description.
    pub text: String,
}

/// The figures of the measured part of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// How long the load was measured, in seconds.
    pub seconds: f64,
    /// How long it then took until the last byte had arrived, in seconds.
    pub drained_after: f64,
    /// WAL written.
    pub wal_bytes: u64,
    /// Commits written.
    pub commits: u64,
    /// WAL received by all standbys together.
    pub delivered_bytes: u64,
    /// Commits received by each standby, added up.
    pub deliveries: u64,
    /// XLogData messages received.
    pub messages: u64,
    /// Status updates sent.
    pub replies: u64,
    /// Streams that were restarted.
    pub reconnects: u64,
    /// Commits that not all good standbys received.
    pub incomplete_commits: u64,
    /// The greatest delay of a commit against its schedule, in nanoseconds.
    pub generator_late: u64,
    /// From a commit's time to its receipt by each good standby.
    pub each: Latency,
    /// The same, for the first of them.
    pub first: Latency,
    /// The same, for the last of them.
    pub last: Latency,
    /// How long the committing client waited, with a primary that has clients.
    pub commit: Option<Latency>,
    /// Group by group.
    pub groups: Vec<GroupReport>,
    /// From a standby's connect to its stream.
    pub connect: Latency,
    /// Until all good standbys streamed, in seconds from the first connect.
    pub all_streaming: Option<f64>,
    /// How long each storm of reconnects lasted, in seconds; `None` when it did not end.
    pub storms: Vec<Option<f64>>,
    /// How the server received the WAL of a catch-up.
    pub ingest: Option<Ingest>,
    /// The server's CPU time.
    pub cpu: Option<CpuReport>,
    /// The server's memory.
    pub memory: Option<MemoryReport>,
}

impl Results {
    /// The time in which WAL was received, in seconds; the server's costs refer to it.
    pub fn receiving_seconds(&self) -> f64 {
        self.seconds + self.drained_after
    }
}

/// One group of standbys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// How many.
    pub standbys: usize,
    /// WAL received.
    pub bytes: u64,
    /// XLogData messages received.
    pub messages: u64,
    /// Status updates sent.
    pub replies: u64,
    /// Streams that were restarted.
    pub reconnects: u64,
    /// From a commit's time to its receipt by each of them.
    pub each: Latency,
}

/// How a server received WAL before the standbys asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ingest {
    /// How much.
    pub bytes: u64,
    /// Seconds until it was durable there.
    pub seconds: f64,
    /// CPU seconds used for it.
    pub cpu_seconds: Option<f64>,
}

/// CPU time of the server's processes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CpuReport {
    /// CPU seconds.
    pub seconds: f64,
    /// CPUs used, on average.
    pub cores: f64,
    /// Seconds for each GiB delivered; `None` when little was.
    pub per_gib: Option<f64>,
    /// Microseconds for each commit received by a standby.
    pub per_delivery: Option<f64>,
    /// Microseconds for each message received by a standby.
    pub per_message: Option<f64>,
}

impl CpuReport {
    /// Derives the figures from the CPU time and the work done.
    pub fn new(cpu: f64, seconds: f64, bytes: u64, deliveries: u64, messages: u64) -> Self {
        let per = |count: u64, unit: f64| (count > 0).then(|| cpu / count as f64 * unit);
        Self {
            seconds: cpu,
            cores: if seconds > 0.0 { cpu / seconds } else { 0.0 },
            per_gib: per(bytes, (1u64 << 30) as f64),
            per_delivery: per(deliveries, 1e6),
            per_message: per(messages, 1e6),
        }
    }
}

/// Memory of the server's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Before the standbys connected; `None` when there was no such moment.
    pub before: Option<Memory>,
    /// With all of them streaming, before the load began.
    pub streaming: Memory,
    /// When the measuring ended.
    pub end: Memory,
    /// The most that the host had in TCP buffers during the run.
    pub tcp_most: u64,
}

impl MemoryReport {
    /// Private bytes that each standby costs the server while nothing is written.
    pub fn private_per_standby(&self, standbys: usize) -> Option<u64> {
        let grown = self.streaming.private.saturating_sub(self.before?.private);
        grown.checked_div(standbys as u64)
    }
}

/// One sample of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since measuring began; negative before.
    pub at: f64,
    /// WAL written since the run began.
    pub wal_bytes: u64,
    /// WAL received since the run began, by all standbys together.
    pub delivered_bytes: u64,
    /// Bytes of WAL that the good standby furthest behind has not received.
    pub lag_last: u64,
    /// The median lag of the good ones.
    pub lag_median: u64,
    /// Standbys in their streams.
    pub streaming: usize,
    /// CPU seconds of the server since the run began.
    pub cpu: Option<f64>,
}

/// Why a file is not a usable report.
#[derive(Debug, thiserror::Error)]
pub enum ReportFault {
    /// It cannot be read.
    #[error("could not read \"{0}\": {1}")]
    Read(String, io::Error),
    /// It has another format.
    #[error("\"{0}\" is not the report of a run: {1}")]
    Form(String, serde_json::Error),
    /// It comes from another version of walhub.
    #[error("\"{path}\" has version {version} of the report; this walhub reads {VERSION}")]
    Version {
        /// The file.
        path: String,
        /// The version in it.
        version: u32,
    },
}

impl RunReport {
    /// As JSON, with a final newline.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.expect("numbers, strings and lists of them always make JSON") + "\n"
    }

    /// Loads it from a JSON file.
    ///
    /// # Errors
    /// There is no report, or it is of another version.
    pub fn load(path: &Path) -> Result<Self, ReportFault> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| ReportFault::Read(name(), e))?;
        let form = |e| ReportFault::Form(name(), e);
        let head: Head = serde_json::from_str(&text).map_err(form)?;
        if head.version != VERSION {
            return Err(ReportFault::Version { path: name(), version: head.version });
        }
        serde_json::from_str(&text).map_err(form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let report = fixture::report();
        fs::write(&path, report.to_json()).unwrap();
        let read = RunReport::load(&path).unwrap();
        assert!(read == report, "{}", read.to_json());
        fs::write(&path, report.to_json().replacen("\"version\": 1", "\"version\": 9", 1)).unwrap();
        let text = RunReport::load(&path).unwrap_err().to_string();
        assert!(text.contains("version 9"), "{text}");
        fs::write(&path, "{}").unwrap();
        assert!(matches!(RunReport::load(&path), Err(ReportFault::Form(..))));
    }

    #[test]
    fn costs_are_per_what_was_delivered() {
        let cpu = CpuReport::new(2.0, 4.0, 1 << 31, 1_000_000, 500_000);
        assert_eq!((cpu.cores, cpu.per_gib), (0.5, Some(1.0)));
        assert_eq!((cpu.per_delivery, cpu.per_message), (Some(2.0), Some(4.0)));
        assert_eq!(CpuReport::new(2.0, 0.0, 0, 0, 0).per_gib, None);
    }

    #[test]
    fn memory_is_that_of_the_standbys() {
        let memory = |private| Memory { private, ..Memory::default() };
        let mut report =
            MemoryReport { before: None, streaming: memory(5000), ..Default::default() };
        assert_eq!(report.private_per_standby(10), None);
        report.before = Some(memory(1000));
        assert_eq!(report.private_per_standby(10), Some(400));
        assert_eq!(report.private_per_standby(0), None);
    }
}
