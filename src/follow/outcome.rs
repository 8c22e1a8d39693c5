//! What the end of an attempt or of a stream means: the state it leaves the task in, and what is
//! done about it.

use super::environment::Environment;
use super::link::LinkFault;
use super::{LOG, Task};
use crate::config::OnGap;
use crate::hub::Hub;
use crate::keeper::SaveFault;
use crate::store::append::is_no_space;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::login::LoginFault;
use crate::upstream::place::Place;
use crate::upstream::position::{Position, StartFrom};
use crate::upstream::state::UpstreamState;
use crate::wal::Lsn;
use crate::wire::sqlstate;
use std::fmt;
use tokio::time::Instant;

/// Why an attempt gave no stream.
pub(super) enum AttemptFailure {
    Link(LinkFault),
    State(UpstreamState),
    /// The upstream no longer has the WAL from there on.
    Removed {
        start: Lsn,
        message: String,
    },
}

/// A position from which nobody has WAL.
#[derive(Clone, Copy)]
pub(super) struct MetGap {
    at: Lsn,
    since: Instant,
}

impl From<LinkFault> for AttemptFailure {
    fn from(fault: LinkFault) -> Self {
        Self::Link(fault)
    }
}

impl fmt::Display for AttemptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(fault) => fault.fmt(f),
            Self::State(state) => state.fmt(f),
            Self::Removed { message, .. } => f.write_str(message),
        }
    }
}

impl AttemptFailure {
    /// The upstream has other bytes at the place, and could not be followed for this reason.
    pub(super) fn into_diverged(self, place: Place) -> Self {
        match self {
            Self::State(state) => {
                Self::State(UpstreamState::Diverged { at: place.at, detail: state.to_string() })
            }
            other => other,
        }
    }

    /// The keeper could not save what has to be saved first.
    pub(super) fn unsaved(hub: &Hub, what: &str, fault: &SaveFault) -> Self {
        match fault {
            SaveFault::Io(error) if is_no_space(error) => {
                Self::State(UpstreamState::NoSpace { why: hub.no_space() })
            }
            fault => Self::other(format!("{what}: {fault}")),
        }
    }

    pub(super) fn other(why: impl ToString) -> Self {
        Self::State(UpstreamState::Disconnected { why: why.to_string() })
    }
}

impl<E: Environment> Task<E> {
    /// The attempt at a host gave no stream.
    pub(super) async fn failed(&mut self, index: usize, host: String, failure: AttemptFailure) {
        let state = match failure {
            AttemptFailure::State(state) => state,
            AttemptFailure::Removed { start, message } => {
                return self.gap(index, start, message).await;
            }
            // Only a hub below us answers a login with this error.
            AttemptFailure::Link(LinkFault::Login(LoginFault::Server(error)))
                if error.sqlstate == sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE =>
            {
                UpstreamState::Refused { host, why: error.to_string() }
            }
            AttemptFailure::Link(fault) => {
                UpstreamState::Disconnected { why: format!("{host}: {fault}") }
            }
        };
        self.ended(index, state).await;
    }

    /// The stream of a host, which began at `start`, has ended.
    pub(super) async fn stream_ended(&mut self, index: usize, start: Lsn, end: UpstreamEnd) {
        let state = match end {
            UpstreamEnd::Lost { error, at } => {
                UpstreamState::Disconnected { why: format!("{error}; received up to {at}") }
            }
            UpstreamEnd::TimedOut => UpstreamState::Disconnected {
                why: "terminating walreceiver due to timeout".to_owned(),
            },
            UpstreamEnd::Timeline { next, at } => {
                // Everything else is decided from its next answer.
                self.supervisor.forget();
                let why = format!("the timeline ended at {at}, timeline {next} follows");
                UpstreamState::Disconnected { why }
            }
            UpstreamEnd::Diverged { at, detail } => {
                self.keep_difference(self.source.clone(), at, None, &detail).await;
                UpstreamState::Diverged { at, detail }
            }
            UpstreamEnd::Refused { sqlstate, message } if sqlstate == sqlstate::UNDEFINED_FILE => {
                return self.gap(index, start, message).await;
            }
            UpstreamEnd::Refused { sqlstate, message } => {
                UpstreamState::Disconnected { why: format!("{message} ({sqlstate})") }
            }
            UpstreamEnd::NoSpace => UpstreamState::NoSpace { why: self.parts.hub.no_space() },
            // The order that caused it decides what follows.
            UpstreamEnd::Recalled => return self.progress.is_interrupted(),
            UpstreamEnd::Stopped => {
                self.ended(index, UpstreamState::Stopped).await;
                return self.progress.stops();
            }
        };
        self.ended(index, state).await;
    }

    /// The upstream has removed the WAL from `asked` on.
    async fn gap(&mut self, index: usize, asked: Lsn, message: String) {
        let (at, message) = match self.parts.hub.position() {
            Position::At { start, durable, .. } => {
                // Our end may be in a later segment than the record before it.
                if asked == start && self.without_overlap(start, durable).is_some() {
                    return self.give_up_overlap(index, start, message);
                }
                (durable, message)
            }
            Position::Empty => (asked, too_early(self.progress.start_from(), message)),
        };
        self.ended(index, UpstreamState::Gap { at, message }).await;
    }

    /// The start of the segment of our end, when the overlap lies in an earlier one.
    pub(super) fn without_overlap(&self, start: Lsn, durable: Lsn) -> Option<Lsn> {
        let identity = self.parts.hub.identity()?;
        let open = durable.segment_start(identity.segment_size);
        (open > start).then_some(open)
    }

    /// The upstream may still have what follows the overlap: it is asked at once.
    fn give_up_overlap(&mut self, index: usize, start: Lsn, message: String) {
        self.progress.turns_from(start);
        self.supervisor.forget();
        let state = UpstreamState::Disconnected { why: message };
        let mut news = Vec::new();
        self.supervisor.ended(Instant::now().into_std(), index, state, &mut news);
        self.supervisor.forget();
        self.tell(news);
    }

    /// The attempt at a host, or its stream, ended with `state`.
    pub(super) async fn ended(&mut self, index: usize, state: UpstreamState) {
        self.progress.fails();
        let gap = match state {
            UpstreamState::Gap { at, .. } => Some(at),
            _ => None,
        };
        let mut news = Vec::new();
        self.supervisor.ended(Instant::now().into_std(), index, state, &mut news);
        self.tell(news);
        match gap {
            None => self.gap = None,
            Some(at)
                if self.parts.hub.config.on_gap == OnGap::RestartAtCurrent
                    && self.supervisor.all_have_gaps()
                    && self.archive_is_exhausted() =>
            {
                self.confirm_gap(at).await;
            }
            Some(_) => {}
        }
    }

    /// Every upstream lacks our WAL from `at` on, and so does the archive. A server may come back
    /// that has it: our WAL is moved aside when it has been like that for the grace.
    async fn confirm_gap(&mut self, at: Lsn) {
        let grace = self.parts.hub.config.retention.grace;
        let gap = match self.gap {
            Some(gap) if gap.at == at => gap,
            Some(_) | None => {
                tracing::warn!(
                    target: LOG,
                    %at,
                    "no upstream has this hub's next WAL: unless one has it within {} s, the hub \
                     starts again at the upstream's position (--on-gap restart-at-current)",
                    grace.as_secs()
                );
                *self.gap.insert(MetGap { at, since: Instant::now() })
            }
        };
        if gap.since.elapsed() >= grace {
            self.restart_at_current(at).await;
        }
    }

    async fn restart_at_current(&mut self, at: Lsn) {
        tracing::error!(
            target: LOG,
            %at,
            "starting again at the upstream's position (--on-gap restart-at-current); this hub's \
             WAL up to here is moved aside and no longer served"
        );
        match self.parts.keeper.set_aside(self.parts.hub.instance).await {
            Ok(()) => {
                self.begin_anew().await;
                self.progress.begins_anew();
                self.gap = None;
                self.supervisor.forget();
            }
            Err(error) => tracing::error!(target: LOG, %error, "could not move our WAL aside"),
        }
    }
}

/// What an operator can do when the upstream no longer has the WAL that an empty directory is to
/// begin with.
fn too_early(start_from: StartFrom, message: String) -> String {
    match start_from {
        StartFrom::At(lsn) => format!(
            "{message}; --start-from {lsn} is before the oldest WAL that it has, where \
             --start-from oldest begins"
        ),
        StartFrom::Current | StartFrom::Oldest => message,
    }
}
