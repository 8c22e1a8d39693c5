//! What a fleet has to say, while it runs and at its end.

use super::plan::Group;
use super::sums::Sums;
use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use hdrhistogram::Histogram;
use std::fmt;

/// A fleet at a moment. Counts are of all groups, since its start.
#[derive(Debug, Clone, Default)]
pub struct FleetProgress {
    /// On their way to a stream.
    pub connecting: usize,
    /// In their streams.
    pub streaming: usize,
    /// Waiting for their next attempt, or given up after a fault.
    pub failed: usize,
    /// Have received all that they were to receive.
    pub finished: usize,
    /// WAL received.
    pub bytes: u64,
    /// XLogData messages received.
    pub messages: u64,
    /// Status updates sent.
    pub replies: u64,
    /// What the received WAL has turned out to be. Their total is what was received once
    /// the fleet has stopped; before, some of it waits for more to come.
    pub sums: Sums,
    /// Received position of the good one that is furthest behind; 0/0 until all of them
    /// have streamed.
    pub slowest: Lsn,
    /// Half of the good ones have received up to here.
    pub median: Lsn,
    /// Received position of the good one that is furthest ahead.
    pub fastest: Lsn,
    /// Streams that began anew.
    pub reconnects: u64,
    /// Attempts to connect that failed, and streams that the server ended.
    pub refusals: u64,
    /// Faults seen.
    pub faults: u64,
    /// When the good ones streamed all at once for the first time.
    pub all_streaming: Option<Nanos>,
    /// When the last one finished.
    pub all_finished: Option<Nanos>,
    /// Why the latest attempt to connect failed.
    pub last_refusal: Option<String>,
}

/// What a fleet has seen. Counts and histograms are of the time since
/// [`Fleet::mark`](super::Fleet::mark).
#[derive(Debug, Clone)]
pub struct FleetResult {
    /// Group by group; those without members have none of anything.
    pub groups: Vec<GroupResult>,
    /// Nanoseconds from a commit's time to its receipt by the first of the good ones.
    pub first: Histogram<u64>,
    /// Likewise by the last of them.
    pub last: Histogram<u64>,
    /// Commits that not all of the good ones have received.
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

/// What one group has seen.
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
    /// Streams that began anew.
    pub reconnects: u64,
    /// What the received WAL turned out to be. What was received before the mark may have
    /// waited for more until after it.
    pub sums: Sums,
    /// Nanoseconds from a commit's time to its receipt, each by each.
    pub each: Histogram<u64>,
    /// Receipts that came too late to be judged: the commit was forgotten.
    pub forgotten: u64,
}

/// A storm of reconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StormSeen {
    /// When everybody disconnected.
    pub at: Nanos,
    /// When everybody streamed again.
    pub over: Option<Nanos>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The standby's number, from 1.
    pub standby: usize,
    /// Where.
    pub at: Lsn,
    /// What, the position included.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standby {}: {}", self.standby, self.text)
    }
}

/// Up to an hour, three digits.
pub(super) fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_bounds(1, HOUR, 3)
        .expect("these bounds are valid: 1 <= low, 2 * low <= high, digits <= 5")
}
