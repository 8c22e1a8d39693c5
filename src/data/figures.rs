//! What a core says of itself when the control thread asks.

use crate::hub::feedback::Need;
use crate::standby::stream::Positions;
use crate::wal::{Lsn, TimelineId};
use crate::wire::time::PgTime;
use tokio::sync::oneshot;

/// A question to a core.
#[derive(Debug)]
pub struct Inquiry {
    /// What is asked.
    pub about: About,
    /// Where the answer goes. Whoever asked may have given up.
    pub answer: oneshot::Sender<Figures>,
}

/// What a core is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The receive role.
    Receiver,
    /// Some standbys, from this place in the core's table on.
    Standbys(u32),
}

/// A core's answer.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The receive role; none on other cores, and before the first WAL.
    pub receiver: Option<ReceiverFigures>,
    /// Some of the core's standbys.
    pub standbys: Vec<StandbyFigures>,
    /// From where on to ask for the next ones.
    pub next: Option<u32>,
}

/// Where the receive role stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverFigures {
    /// The timeline that is received.
    pub tli: TimelineId,
    /// Received and checked.
    pub received: Lsn,
    /// Written to its file.
    pub written: Lsn,
    /// On disk.
    pub durable: Lsn,
    /// The end of the last whole record that is received.
    pub record_end: Lsn,
    /// What the upstream was told that standbys need.
    pub needed: Option<Need>,
}

/// One stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyFigures {
    /// The session.
    pub pid: u32,
    /// The timeline that is sent.
    pub tli: TimelineId,
    /// Where the stream stands.
    pub state: StreamState,
    /// How far its socket has taken the WAL.
    pub sent: Lsn,
    /// What the standby said last.
    pub positions: Positions,
    /// When it said so, by its own clock; none before the first time.
    pub reply_time: Option<PgTime>,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It has not been sent everything yet.
    Catchup,
    /// It was sent everything at least once.
    Streaming,
    /// Its timeline has ended; it is about to ask for the next.
    EndOfTimeline,
    /// The hub shuts down.
    Stopping,
    /// Its stream ends.
    Leaving,
}
