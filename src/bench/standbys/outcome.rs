//! What a fleet reports, while it runs and at its end.

use super::plan::Group;
use super::sums::Sums;
use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use hdrhistogram::Histogram;
use std::fmt;

/// A fleet at a moment. Counts are of all groups, since its start.
#[derive(Debug, Clone, Default)]
pub struct FleetProgress {
    /// Connecting.
    pub connecting: usize,
    /// Streaming.
    pub streaming: usize,
    /// Waiting for the next attempt, or given up after a fault.
    pub failed: usize,
    /// Finished receiving.
    pub finished: usize,
    /// WAL received.
    pub bytes: u64,
    /// XLogData messages received.
    pub messages: u64,
    /// Status updates sent.
    pub replies: u64,
    /// The results of checking the received WAL. After the fleet has stopped, they add up to the
    /// received WAL; before that, some of it still waits for more.
    pub sums: Sums,
    /// Received position of the good one furthest behind; 0/0 until all of them have streamed.
    pub slowest: Lsn,
    /// Median received position of the good ones.
    pub median: Lsn,
    /// Received position of the good one furthest ahead.
    pub fastest: Lsn,
    /// Streams that were restarted.
    pub reconnects: u64,
    /// Attempts to connect that failed, and streams that the server ended.
    pub refusals: u64,
    /// Faults seen.
    pub faults: u64,
    /// When all good ones were streaming for the first time.
    pub all_streaming: Option<Nanos>,
    /// When the last one finished.
    pub all_finished: Option<Nanos>,
    /// Why the latest attempt to connect failed.
    pub last_refusal: Option<String>,
}

/// The results of a fleet. Counts and histograms cover the time since
/// [`Fleet::mark`](super::Fleet::mark).
#[derive(Debug, Clone)]
pub struct FleetResult {
    /// The groups; those without members have only zeros.
    pub groups: Vec<GroupResult>,
    /// Nanoseconds from a commit's due time to its receipt by the first of the good ones.
    pub first: Histogram<u64>,
    /// The same for the last of them.
    pub last: Histogram<u64>,
    /// Commits that not all good ones have received.
    pub incomplete_commits: u64,
    /// Nanoseconds from the call of connect to CopyBothResponse, since the fleet's start.
    pub connect: Histogram<u64>,
    /// Storms since the fleet's start.
    pub storms: Vec<StormSeen>,
    /// The first hundred faults since the fleet's start.
    pub faults: Vec<Fault>,
    /// How many there were.
    pub fault_count: u64,
    /// The fleet at its end.
    pub end: FleetProgress,
}

/// The results of one group.
#[derive(Debug, Clone)]
pub struct GroupResult {
    /// Which.
    pub group: Group,
    /// How many standbys.
    pub standbys: usize,
    /// WAL received.
    pub bytes: u64,
    /// XLogData messages received.
    pub messages: u64,
    /// Status updates sent.
    pub replies: u64,
    /// Streams that were restarted.
    pub reconnects: u64,
    /// The results of checking the received WAL. They may include WAL that was received before the
    /// mark and checked after it.
    pub sums: Sums,
    /// Nanoseconds from a commit's due time to its receipt by each standby.
    pub each: Histogram<u64>,
    /// Receipts that came too late to be measured: the commit was forgotten.
    pub forgotten: u64,
}

/// A storm of reconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StormSeen {
    /// When all good standbys disconnected.
    pub at: Nanos,
    /// When all of them streamed again.
    pub over: Option<Nanos>,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The standby's number, from 1.
    pub standby: usize,
    /// Its position in the WAL.
    pub at: Lsn,
    /// The description, the position included.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standby {}: {}", self.standby, self.text)
    }
}

/// A histogram of up to an hour, with three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_bounds(1, HOUR, 3)
        .expect("these bounds are valid: 1 <= low, 2 * low <= high, digits <= 5")
}
