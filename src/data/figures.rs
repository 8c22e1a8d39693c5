//! What a core reports about itself when the control thread asks.

use crate::hub::feedback::Need;
use crate::standby::stream::StandbyPositions;
use crate::wal::{Lsn, TimelineId};
use crate::wire::time::PgTime;
use tokio::sync::oneshot;

/// A question to a core.
#[derive(Debug)]
pub struct Inquiry {
    /// What is asked.
    pub about: About,
    /// Where the answer goes. The caller may have given up.
    pub answer: oneshot::Sender<Figures>,
}

/// What a core is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The receive role.
    Receiver,
    /// Some standbys, from this index of the core's table on.
    Standbys(u32),
}

/// A core's answer.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The receive role; `None` on other cores and before the first WAL.
    pub receiver: Option<ReceiverFigures>,
    /// Some of the core's standbys.
    pub standbys: Vec<StandbyFigures>,
    /// The table index to ask for next; `None` after the last.
    pub next: Option<u32>,
}

/// Where the receive role stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverFigures {
    /// The timeline being received.
    pub tli: TimelineId,
    /// Received and checked.
    pub received: Lsn,
    /// Written to its file.
    pub written: Lsn,
    /// On disk.
    pub durable: Lsn,
    /// The end of the last whole record received.
    pub record_end: Lsn,
    /// The standbys' needs, as last sent to the upstream.
    pub needed: Option<Need>,
}

/// One stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyFigures {
    /// The session.
    pub pid: u32,
    /// The timeline being sent.
    pub tli: TimelineId,
    /// Where the stream stands.
    pub state: StreamState,
    /// The end of the WAL that its socket has taken.
    pub sent: Lsn,
    /// The positions in the standby's last reply.
    pub positions: StandbyPositions,
    /// The time of that reply by the standby's own clock; `None` before the first one.
    pub reply_time: Option<PgTime>,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It has not been sent everything yet.
    Catchup,
    /// It has been sent everything at least once.
    Streaming,
    /// Its timeline has ended; it is about to ask for the next.
    EndOfTimeline,
    /// The hub is shutting down.
    Stopping,
    /// Its stream is ending.
    Leaving,
}
