//! Where the WAL of a run comes from.

use crate::bench::primary::Primary;
use crate::bench::sql::SqlCommits;
use crate::wal::Lsn;
use hdrhistogram::Histogram;
use std::time::Duration;

/// A primary of our own, our commits on a foreign one, or only foreign writers.
#[derive(Debug)]
pub(super) enum Source {
    Primary(Primary),
    Sql(SqlCommits),
    Others,
}

/// Its progress.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceProgress {
    pub(super) bytes: u64,
    pub(super) commits: u64,
    /// End of the WAL, when we determine it.
    pub(super) end: Option<Lsn>,
    /// `end` includes everything sent before a pause.
    pub(super) settled: bool,
    /// The greatest delay against the schedule since the last query.
    pub(super) late: Duration,
    pub(super) finished: bool,
    pub(super) fault: Option<String>,
    /// The flush position that the slowest receiver reports.
    pub(super) flushed: Option<Lsn>,
}

impl Source {
    pub(super) fn begin(&self) {
        match self {
            Self::Primary(primary) => primary.begin(),
            Self::Sql(commits) => commits.begin(),
            Self::Others => {}
        }
    }

    pub(super) fn pause(&self) {
        match self {
            Self::Primary(primary) => primary.pause(),
            Self::Sql(commits) => commits.pause(),
            Self::Others => {}
        }
    }

    pub(super) fn mark(&self) {
        if let Self::Sql(commits) = self {
            commits.mark();
        }
    }

    pub(super) fn written(&self) -> SourceProgress {
        match self {
            Self::Primary(primary) => {
                let progress = primary.progress();
                SourceProgress {
                    bytes: progress.bytes,
                    commits: progress.commits,
                    end: Some(progress.end),
                    settled: true,
                    late: progress.late,
                    finished: progress.finished,
                    fault: progress.fault,
                    flushed: progress.receivers.iter().map(|receiver| receiver.flush).min(),
                }
            }
            Self::Sql(commits) => {
                let progress = commits.progress();
                SourceProgress {
                    bytes: progress.bytes,
                    commits: progress.commits,
                    end: Some(progress.end),
                    settled: progress.settled,
                    late: progress.late,
                    finished: progress.finished,
                    fault: progress.fault,
                    flushed: None,
                }
            }
            Self::Others => SourceProgress::default(),
        }
    }

    /// Stops it; returns how long its clients waited, if it has clients.
    pub(super) fn stop(self) -> Option<Histogram<u64>> {
        match self {
            Self::Primary(primary) => {
                primary.stop();
                None
            }
            Self::Sql(commits) => Some(commits.stop().latency),
            Self::Others => None,
        }
    }
}
