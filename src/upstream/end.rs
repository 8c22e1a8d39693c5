//! How a stream from upstream ends.

use crate::wal::{Lsn, TimelineId};

/// How the upstream stream ended. The receive role has already set the hub's position.
#[derive(Debug)]
pub enum UpstreamEnd {
    /// The connection broke, or its bytes were not the protocol.
    Lost {
        /// What went wrong.
        error: String,
        /// What had been received.
        at: Lsn,
    },
    /// Nothing came for `wal_receiver_timeout`.
    TimedOut,
    /// The upstream ended the timeline.
    Timeline {
        /// The timeline that follows.
        next: TimelineId,
        /// Its switchpoint.
        at: Lsn,
    },
    /// The upstream has other bytes at positions that we hold.
    Diverged {
        /// The first such position.
        at: Lsn,
        /// What differs.
        detail: String,
    },
    /// The upstream answered with an error inside the stream.
    Refused {
        /// Its SQLSTATE.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// Our disk is full; the batch was dropped.
    NoSpace,
    /// There is no stream any more, and it was recalled. Reported once per recall, after the end of
    /// a stream that existed.
    Recalled,
    /// We are shutting down.
    Stopped,
}
