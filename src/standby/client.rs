//! A replication client: who it is, and how its stream ends.

use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, TimelineId};
use crate::wire::refusal::Refusal;
use std::time::Duration;

/// A replication connection, as far as its stream needs to know.
#[derive(Debug, Clone)]
pub struct Session {
    /// The number in BackendKeyData, unique among live connections.
    pub pid: u32,
    /// The user name it gave.
    pub user: String,
    /// Its `application_name`.
    pub application_name: String,
    /// Where it comes from, for the log.
    pub peer: String,
    /// Zero switches it off.
    pub wal_sender_timeout: Duration,
    /// Its ID when it is a hub.
    pub instance: Option<InstanceId>,
}

/// How a stream ended that leaves its connection usable.
#[derive(Debug)]
pub enum StreamEnd {
    /// The client sent CopyDone and has our CopyDone; two CommandComplete and
    /// ReadyForQuery are to follow.
    ClientDone,
    /// The timeline ended. Both CopyDones are exchanged; the row with the next
    /// timeline, two CommandComplete and ReadyForQuery are to follow.
    Timeline {
        /// The next timeline.
        next: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// An error ended it; ErrorResponse and ReadyForQuery are to follow, no CopyDone.
    Failed(Refusal),
}
