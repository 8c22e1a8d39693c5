//! Where a stream from upstream has to begin.

use crate::wal::{Lsn, TimelineId};

/// Where the receive role stands: what it requests from the next upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The directory holds no WAL; `--start-from` decides.
    Empty,
    /// There is WAL.
    At {
        /// The timeline being received.
        tli: TimelineId,
        /// Everything before this is on disk.
        durable: Lsn,
        /// Where the stream has to begin, at or before `durable`: early enough for
        /// the comparison with what we have.
        start: Lsn,
    },
}

/// Where a hub with an empty directory begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    /// At the start of the segment that the upstream is writing.
    Current,
    /// At the oldest segment that the upstream still has.
    Oldest,
    /// At the start of the segment that holds this position.
    At(Lsn),
}
