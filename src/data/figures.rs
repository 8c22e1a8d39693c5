//! What a core says of itself when the control thread asks. Numbers only, and never many
//! at a time: the standbys of a core must not feel that somebody looks.

use super::core::DataCore;
use super::sender::{Pace, Phase, Sender};
use crate::hub::feedback::Need;
use crate::ring::Ring;
use crate::standby::stream::Positions;
use crate::wal::{Lsn, TimelineId};
use crate::wire::time::PgTime;
use tokio::sync::oneshot;

/// Places in the table of standbys that are looked at for one answer.
const PLACES: u32 = 128;

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

impl StandbyFigures {
    fn of(sender: &Sender) -> Self {
        let state = match (&sender.phase, sender.pace) {
            (Phase::Streaming, Pace::Catchup) => StreamState::Catchup,
            (Phase::Streaming, Pace::Streaming) => StreamState::Streaming,
            (Phase::TimelineEnded { .. }, _) => StreamState::EndOfTimeline,
            (Phase::Stopping, _) => StreamState::Stopping,
            _ => StreamState::Leaving,
        };
        Self {
            pid: sender.session.pid,
            tli: sender.cell.tli(),
            state,
            sent: sender.cursor.next(),
            positions: sender.talk.positions(),
            reply_time: sender.talk.replied_at(),
        }
    }
}

impl<R: Ring> DataCore<R> {
    /// Answers the control thread.
    pub(super) fn answer(&self, inquiry: Inquiry) {
        let mut figures = Figures::default();
        match inquiry.about {
            About::Receiver => {
                figures.receiver = self.receive.as_ref().and_then(|receive| receive.role.figures());
            }
            About::Standbys(from) => {
                let end = from.saturating_add(PLACES).min(self.senders.places());
                let senders = (from..end).filter_map(|place| self.senders.at(place));
                figures.standbys = senders.map(StandbyFigures::of).collect();
                figures.next = (end < self.senders.places()).then_some(end);
            }
        }
        // Whoever asked may have given up.
        drop(inquiry.answer.send(figures));
    }
}
