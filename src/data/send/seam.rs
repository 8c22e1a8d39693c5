//! A standby before a seam: where our WAL was set aside and another history goes on under the same
//! numbers. Its position alone does not tell which of the two it has. So it is sent nothing past the
//! seam before it has said, in this stream, that it is not past it. It is asked at once.

use crate::standby::stream::Talk;
use crate::wal::Lsn;
use std::time::{Duration, Instant};

/// How long a standby may take to report where it is when it has no `wal_sender_timeout`.
const PATIENCE: Duration = Duration::from_secs(60);

/// The seam that a standby has not shown to be before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeforeSeam {
    /// Both histories have the WAL before this.
    pub at: Lsn,
    /// A standby that has reported nothing by then is refused.
    pub until: Instant,
}

/// Where a standby is, by what it has reported in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtSeam {
    /// It has reported nothing.
    Unknown,
    /// Not past the seam.
    Before,
    /// Past it: there.
    Past(Lsn),
}

impl BeforeSeam {
    /// Of a stream that begins now.
    pub(super) fn new(at: Lsn, now: Instant, timeout: Duration) -> Self {
        let patience = if timeout.is_zero() { PATIENCE } else { timeout };
        Self { at, until: now + patience }
    }

    /// Judges by the furthest position of the standby's report.
    pub(super) fn judge(self, talk: &Talk) -> AtSeam {
        if talk.replied_at().is_none() {
            return AtSeam::Unknown;
        }
        let positions = talk.positions();
        match positions.write.max(positions.flush).max(positions.apply) {
            at if at > self.at => AtSeam::Past(at),
            _ => AtSeam::Before,
        }
    }
}
