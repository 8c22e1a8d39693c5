//! The stream from one upstream, as the receive role sees it: what is expected next, what the
//! upstream is owed, and how long it may be silent.

use super::effect::{Effect, ToUpstream};
use super::feedback::{FeedbackClock, Looked};
use crate::config::Config;
use crate::data::moment::Moment;
use crate::hub::feedback::Need;
use crate::hub::fleet::Fleet;
use crate::ring;
use crate::store::append::Durable;
use crate::store::evidence::WalSource;
use crate::upstream::apply::ApplyReport;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::stream::{Due, Positions, ReceiverTimers};
use crate::wal::{Lsn, TimelineId};
use crate::wire::copy::ReplyRequest;
use std::time::Instant;

/// A stream that the control thread offers to the receive role.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its timeline.
    pub tli: TimelineId,
    /// Where it begins.
    pub start: Lsn,
    /// Whose it is.
    pub source: WalSource,
}

/// This hub's positions as the upstream is told them. Nobody can rely on WAL that is only in our
/// memory, so write and flush are durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acknowledged {
    pub(super) write: Durable,
    pub(super) flush: Durable,
    pub(super) apply: Lsn,
}

impl From<Acknowledged> for Positions {
    fn from(told: Acknowledged) -> Self {
        Self { write: told.write.lsn(), flush: told.flush.lsn(), apply: told.apply }
    }
}

/// The upstream's stream.
#[derive(Debug)]
pub(super) struct StreamLink {
    pub(super) host: String,
    pub(super) timers: ReceiverTimers,
    /// The next byte of the stream.
    pub(super) expected: Lsn,
    /// The timeline has ended: only the ID of the next one is awaited.
    pub(super) next: Option<UpstreamEnd>,
    feedback: FeedbackClock,
    asked: Asked,
}

/// Has the upstream asked for a status since the last one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
}

impl StreamLink {
    pub(super) fn new(offer: Offer, config: &Config, now: Instant) -> Self {
        let interval = config.wal_receiver_status_interval;
        Self {
            host: offer.source.name,
            timers: ReceiverTimers::new(now, interval, config.wal_receiver_timeout),
            expected: offer.start,
            next: None,
            feedback: FeedbackClock::new(interval),
            asked: Asked::No,
        }
    }

    /// The upstream wants a status.
    pub(super) const fn note_asked(&mut self) {
        self.asked = Asked::Yes;
    }

    /// Is the upstream waiting for a status, or would one contain news?
    pub(super) fn owes_status(&self, positions: Acknowledged) -> bool {
        self.asked == Asked::Yes || self.timers.has_news(positions.into())
    }

    /// Sends this hub's positions.
    pub(super) fn tell_status<F>(
        &mut self,
        positions: Acknowledged,
        reply: ReplyRequest,
        at: &Moment<'_, impl ring::Clock>,
        out: &mut Vec<Effect<F>>,
    ) {
        let status = self.timers.status(positions.into(), reply, at.pg_time(), at.now);
        out.push(Effect::Tell(ToUpstream::Status(status)));
        self.asked = Asked::No;
    }

    /// Takes over what the standbys have replayed, and tells the upstream what they need.
    pub(super) fn look_at_fleet<F>(
        &mut self,
        fleet: &Fleet,
        apply: &mut ApplyReport,
        at: &Moment<'_, impl ring::Clock>,
        out: &mut Vec<Effect<F>>,
    ) {
        let looked = self.feedback.look(fleet, at.now);
        if apply.is_of_standbys() && looked == Looked::News {
            apply.note(fleet.slowest());
        }
        if let Some(need) = self.feedback.take_due(at.now) {
            out.push(Effect::Tell(ToUpstream::Feedback(need.message(at.pg_time()))));
        }
    }

    /// Has something happened to the standbys since the last look that may have to be sent
    /// upstream?
    pub(super) fn has_missed(&self, fleet: &Fleet) -> bool {
        self.feedback.has_missed(fleet)
    }

    /// The standbys' needs, as last sent to the upstream.
    pub(super) fn told_need(&self) -> Option<Need> {
        self.feedback.told()
    }

    /// What the timers make due by now.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        self.timers.due(now)
    }

    /// When the link must be checked again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        [self.timers.deadline(), self.feedback.deadline(now)].into_iter().flatten().min()
    }
}
