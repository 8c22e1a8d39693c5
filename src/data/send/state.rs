//! The states of a stream between its CopyBothResponse and its end, and the transitions between
//! them. No other file changes a state.
//!
//! ```text
//! Catchup ──caught_up──► Streaming
//!    │                       │
//!    └───────────┬───────────┘
//!                ├── stop ────────────────► Stopping ──sent_all──┐
//!                ├── timeline_ended ──► TimelineEnded            │
//!                │                           │                   │
//!                ├── copy_done, failed, ─────┴─► Leaving         │
//!                │   cancelled                   (hand back)     │
//!                │                                  │ said_all   │
//!                │                                  ▼            │
//!                │                              HandingBack      │
//!                │                                               ▼
//!                └── broken_off ──────────────────────────► Leaving (close)
//!                                                                │ said_all
//!                                                                ▼
//!                     Closing ◄──hung_up, lingered────────── Draining
//! ```
//!
//! `copy_done`, `failed` and `broken_off` lead from Stopping and TimelineEnded to the same states
//! as from Streaming. `closed` leads from every state to Closing. So do `hung_up` and
//! `receive_failed`, except for a socket that is being handed back. A stream is over when it is in
//! HandingBack or Closing and no operation in flight holds its socket.

use crate::data::figures::StreamState;
use crate::standby::client::StreamEnd;
use crate::wal::{Lsn, TimelineId};
use crate::wire::refusal::Refusal;
use std::time::Instant;

/// The state of a stream.
#[derive(Debug)]
pub enum SenderState {
    /// WAL as it becomes durable; the standby has not been sent everything yet.
    Catchup,
    /// The same, but it has been sent everything at least once.
    Streaming,
    /// The hub is shutting down: the rest of the WAL, then `COPY 0`.
    Stopping,
    /// The timeline has ended and our CopyDone is out; the client's is awaited.
    TimelineEnded {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it forks off.
        at: Lsn,
    },
    /// No new message is begun. It leaves when the unfinished one and the outbox are sent.
    Leaving(Farewell),
    /// Its receive is being cancelled; then the socket goes back to the control thread.
    HandingBack(EndedStream),
    /// Our side is shut. What the client still sends is read and dropped, so that the kernel does
    /// not answer it with a reset that destroys what we sent last.
    Draining {
        /// A client that has not closed by then is cut off.
        until: Instant,
    },
    /// Both sides are shut; operations in flight end, then the socket is closed.
    Closing,
}

/// What happens when everything announced is sent.
#[derive(Debug)]
pub enum Farewell {
    /// The connection continues on the control thread.
    HandBack(EndedStream),
    /// The connection is closed.
    Close,
}

/// A stream that leaves its connection usable.
#[derive(Debug)]
pub struct EndedStream {
    /// How it ended.
    pub end: StreamEnd,
    /// Bytes after the client's CopyDone.
    pub rest: Vec<u8>,
}

/// What is left to do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a transition is half done without it"]
pub enum Duty {
    /// Nothing.
    Nothing,
    /// What the stream has of the hub is given back. This comes first with every other duty, too,
    /// once the client is no longer heard.
    GiveBack,
    /// Our CopyDone goes out.
    CopyDone,
    /// `COPY 0` goes out.
    CommandComplete,
    /// The operations that wait for the client are cancelled.
    CancelOperations,
    /// Our side of the socket is shut.
    ShutOurSide,
    /// Both sides of the socket are shut.
    ShutBothSides,
}

impl SenderState {
    /// May new WAL messages be begun?
    pub const fn sends_wal(&self) -> bool {
        matches!(self, Self::Catchup | Self::Streaming | Self::Stopping)
    }

    /// Is what the client says processed?
    pub const fn hears(&self) -> bool {
        matches!(
            self,
            Self::Catchup | Self::Streaming | Self::Stopping | Self::TimelineEnded { .. }
        )
    }

    /// May the stream be cancelled by its client, or ended so that the client checks its upstream
    /// again?
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Catchup | Self::Streaming | Self::TimelineEnded { .. })
    }

    /// Is the socket read? Bytes for the next command are left in it.
    pub const fn reads(&self) -> bool {
        !matches!(self, Self::Leaving(Farewell::HandBack(_)) | Self::HandingBack(_) | Self::Closing)
    }

    /// Is it leaving, so that nothing more is sent?
    pub const fn is_parting(&self) -> bool {
        matches!(self, Self::HandingBack(_) | Self::Draining { .. } | Self::Closing)
    }

    /// Is our side of the socket shut?
    pub const fn is_shut(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Closing)
    }

    /// Is it over once no operation in flight holds its socket?
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::HandingBack(_) | Self::Closing)
    }

    /// Does the connection continue on the control thread?
    pub const fn goes_back(&self) -> bool {
        matches!(self, Self::Leaving(Farewell::HandBack(_)) | Self::HandingBack(_))
    }

    /// When a client that does not close is cut off.
    pub const fn lingers_until(&self) -> Option<Instant> {
        match self {
            Self::Draining { until } => Some(*until),
            _ => None,
        }
    }

    /// As `walhub ctl` shows it.
    pub const fn shown(&self) -> StreamState {
        match self {
            Self::Catchup => StreamState::Catchup,
            Self::Streaming => StreamState::Streaming,
            Self::Stopping => StreamState::Stopping,
            Self::TimelineEnded { .. } => StreamState::EndOfTimeline,
            _ => StreamState::Leaving,
        }
    }

    /// Everything was sent. Returns whether it was so for the first time.
    pub fn caught_up(&mut self) -> bool {
        let is_new = matches!(self, Self::Catchup);
        if is_new {
            *self = Self::Streaming;
        }
        is_new
    }

    /// The timeline has ended, all of it is sent, and the next one is ready.
    pub fn timeline_ended(&mut self, next: TimelineId, at: Lsn) -> Duty {
        match self {
            Self::Catchup | Self::Streaming => {
                *self = Self::TimelineEnded { next, at };
                Duty::CopyDone
            }
            _ => Duty::Nothing,
        }
    }

    /// The hub shuts down.
    pub fn stop(&mut self) -> Duty {
        match self {
            Self::Catchup | Self::Streaming => {
                *self = Self::Stopping;
                Duty::Nothing
            }
            Self::TimelineEnded { .. } => self.closed(),
            _ => Duty::Nothing,
        }
    }

    /// The hub is shutting down, and the last of the WAL is sent.
    pub fn sent_all(&mut self) -> Duty {
        match self {
            Self::Stopping => {
                *self = Self::Leaving(Farewell::Close);
                Duty::CommandComplete
            }
            _ => Duty::Nothing,
        }
    }

    /// The client sent CopyDone, and `rest` after it.
    pub fn copy_done(&mut self, rest: Vec<u8>) -> Duty {
        let (end, duty) = match *self {
            Self::TimelineEnded { next, at } => (StreamEnd::Timeline { next, at }, Duty::GiveBack),
            _ if self.hears() => (StreamEnd::ClientDone, Duty::CopyDone),
            _ => return Duty::Nothing,
        };
        *self = Self::Leaving(Farewell::HandBack(EndedStream { end, rest }));
        duty
    }

    /// The stream ends with an error, and its connection continues.
    pub fn failed(&mut self, refusal: Refusal) -> Duty {
        if !self.hears() {
            return Duty::Nothing;
        }
        let end = StreamEnd::Failed(refusal);
        *self = Self::Leaving(Farewell::HandBack(EndedStream { end, rest: Vec::new() }));
        Duty::GiveBack
    }

    /// The client's CancelRequest. A stream that is being shut down takes none.
    pub fn cancelled(&mut self, refusal: Refusal) -> Duty {
        if self.is_open() { self.failed(refusal) } else { Duty::Nothing }
    }

    /// The connection ends after a last message.
    pub fn broken_off(&mut self) -> Duty {
        if !self.hears() {
            return Duty::Nothing;
        }
        *self = Self::Leaving(Farewell::Close);
        Duty::GiveBack
    }

    /// Everything announced is sent. A client that must close has until `until`.
    pub fn said_all(&mut self, until: Instant) -> Duty {
        match std::mem::replace(self, Self::Closing) {
            Self::Leaving(Farewell::HandBack(ended)) => {
                *self = Self::HandingBack(ended);
                Duty::CancelOperations
            }
            Self::Leaving(Farewell::Close) => {
                *self = Self::Draining { until };
                Duty::ShutOurSide
            }
            other => {
                *self = other;
                Duty::Nothing
            }
        }
    }

    /// Keeps bytes for the client's next command. Returns whether the state expects them.
    pub fn keep(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Leaving(Farewell::HandBack(ended)) | Self::HandingBack(ended) => {
                ended.rest.extend_from_slice(bytes);
                true
            }
            _ => false,
        }
    }

    /// The client has closed its side.
    pub fn hung_up(&mut self) -> Duty {
        self.closed()
    }

    /// A receive ended with an error. So does one that we cancelled.
    pub fn receive_failed(&mut self) -> Duty {
        match self {
            Self::HandingBack(_) => Duty::Nothing,
            _ => self.closed(),
        }
    }

    /// Time has passed: a client that did not close in time is cut off.
    pub fn lingered(&mut self, now: Instant) -> Duty {
        match self {
            Self::Draining { until } if *until <= now => self.closed(),
            _ => Duty::Nothing,
        }
    }

    /// The connection ends at once.
    pub fn closed(&mut self) -> Duty {
        match std::mem::replace(self, Self::Closing) {
            Self::Closing => Duty::Nothing,
            _ => Duty::ShutBothSides,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::refusals;
    use std::fmt::Write as _;
    use std::time::Duration;

    const AT: Lsn = Lsn::new(0x500_0028);

    type Make = fn(Instant) -> SenderState;
    type Event = fn(&mut SenderState, Instant) -> Duty;

    fn ended(end: StreamEnd) -> EndedStream {
        EndedStream { end, rest: b"Q".to_vec() }
    }

    const STATES: [Make; 10] = [
        |_| SenderState::Catchup,
        |_| SenderState::Streaming,
        |_| SenderState::Stopping,
        |_| SenderState::TimelineEnded { next: TimelineId::FIRST, at: AT },
        |_| SenderState::Leaving(Farewell::HandBack(ended(StreamEnd::ClientDone))),
        |_| SenderState::Leaving(Farewell::Close),
        |_| SenderState::HandingBack(ended(StreamEnd::ClientDone)),
        |now| SenderState::Draining { until: now + Duration::from_secs(1) },
        |now| SenderState::Draining { until: now },
        |_| SenderState::Closing,
    ];

    const EVENTS: [(&str, Event); 13] = [
        ("caught_up", |state, _| {
            state.caught_up();
            Duty::Nothing
        }),
        ("timeline_ended", |state, _| state.timeline_ended(TimelineId::FIRST, AT)),
        ("stop", |state, _| state.stop()),
        ("sent_all", |state, _| state.sent_all()),
        ("copy_done", |state, _| state.copy_done(b"X".to_vec())),
        ("failed", |state, _| state.failed(refusals::cancelled())),
        ("cancelled", |state, _| state.cancelled(refusals::cancelled())),
        ("broken_off", |state, _| state.broken_off()),
        ("said_all", |state, now| state.said_all(now)),
        ("hung_up", |state, _| state.hung_up()),
        ("receive_failed", |state, _| state.receive_failed()),
        ("lingered", |state, now| state.lingered(now)),
        ("closed", |state, _| state.closed()),
    ];

    fn shown(state: &SenderState, now: Instant) -> String {
        let end = |ended: &EndedStream| {
            let end = match ended.end {
                StreamEnd::ClientDone => "done",
                StreamEnd::Timeline { .. } => "timeline",
                StreamEnd::Failed(_) => "failed",
            };
            format!("{end} {}", ended.rest.escape_ascii())
        };
        match state {
            SenderState::Catchup => "Catchup".into(),
            SenderState::Streaming => "Streaming".into(),
            SenderState::Stopping => "Stopping".into(),
            SenderState::TimelineEnded { .. } => "TimelineEnded".into(),
            SenderState::Leaving(Farewell::HandBack(ended)) => {
                format!("Leaving({})", end(ended).trim())
            }
            SenderState::Leaving(Farewell::Close) => "Leaving(close)".into(),
            SenderState::HandingBack(ended) => format!("HandingBack({})", end(ended).trim()),
            SenderState::Draining { until } if *until > now => "Draining".into(),
            SenderState::Draining { .. } => "Drained".into(),
            SenderState::Closing => "Closing".into(),
        }
    }

    /// A client that is no longer heard may see the end of its stream at any time.
    #[test]
    fn who_is_no_longer_heard_has_something_to_give_back() {
        let now = Instant::now();
        for make in STATES {
            for (name, event) in EVENTS {
                let mut state = make(now);
                let (heard, went_back) = (state.hears(), state.goes_back());
                let duty = event(&mut state, now);
                let is_less = (heard && !state.hears()) || (went_back && !state.goes_back());
                assert!(!is_less || duty != Duty::Nothing, "{}: {name}", shown(&make(now), now));
            }
        }
    }

    /// Every state and every event: the state it leads to, and the duty.
    #[test]
    fn every_pair_leads_where_it_should() {
        let now = Instant::now();
        let mut table = String::new();
        for make in STATES {
            let mut stays = Vec::new();
            writeln!(table, "{}", shown(&make(now), now)).unwrap();
            for (name, event) in EVENTS {
                let mut state = make(now);
                let before = shown(&state, now);
                let duty = event(&mut state, now);
                let after = shown(&state, now);
                if after == before && duty == Duty::Nothing {
                    stays.push(name);
                    continue;
                }
                let duty = Some(duty).filter(|duty| *duty != Duty::Nothing);
                let duty = duty.map_or_else(String::new, |duty| format!(", {duty:?}"));
                writeln!(table, "  {name} -> {after}{duty}").unwrap();
            }
            writeln!(table, "  stays: {}", stays.join(" ")).unwrap();
        }
        assert_eq!(table, include_str!("state.snapshot"), "as it is now:\n{table}");
    }

    #[test]
    fn what_comes_for_the_next_command_is_kept_while_the_socket_goes_back() {
        let now = Instant::now();
        for make in STATES {
            let mut state = make(now);
            let before = shown(&state, now);
            let kept = state.keep(b"Z");
            let going_back = before.contains("(done");
            assert_eq!(kept, going_back, "{before}");
            assert_eq!(shown(&state, now).contains("QZ"), going_back, "{before}");
        }
    }
}
