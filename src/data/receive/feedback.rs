//! When the upstream is told what the standbys' queries need.

use crate::hub::feedback::Need;
use crate::hub::fleet::Fleet;
use std::time::{Duration, Instant};

/// The least time between two feedback messages, however often the standbys' needs change.
const PAUSE: Duration = Duration::from_millis(100);

/// Hot standby feedback on one upstream connection.
#[derive(Debug)]
pub(super) struct FeedbackClock {
    interval: Duration,
    /// The fleet's count of changes at the last look.
    seen: Option<u64>,
    need: Need,
    /// When the need changes without an event.
    runs_out: Option<Instant>,
    told: Option<(Need, Instant)>,
}

/// What a look at the fleet found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// As before.
    NothingNew,
    /// Something has changed.
    News,
}

impl FeedbackClock {
    /// The clock of a connection that begins now. With a zero interval only changes are sent.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, seen: None, need: Need::default(), runs_out: None, told: None }
    }

    /// Has something happened to the standbys since the last look?
    pub(super) fn has_missed(&self, fleet: &Fleet) -> bool {
        self.seen != Some(fleet.changes())
    }

    /// Takes over what standbys need now. Returns whether something has happened to them since the
    /// last look. What the caller reads about them afterwards is at least as new.
    pub(super) fn look(&mut self, fleet: &Fleet, now: Instant) -> Looked {
        let changes = fleet.changes();
        let looked = if self.seen == Some(changes) { Looked::NothingNew } else { Looked::News };
        if looked == Looked::News || self.runs_out.is_some_and(|at| at <= now) {
            self.seen = Some(changes);
            self.need = fleet.need(now);
            self.runs_out = fleet.deadline(now);
        }
        looked
    }

    /// What is to be sent now, if anything; it counts as sent.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Need> {
        let due = self.due_at(now).is_some_and(|at| at <= now);
        due.then(|| {
            self.told = Some((self.need, now));
            self.need
        })
    }

    /// What was sent last.
    pub(super) fn told(&self) -> Option<Need> {
        self.told.map(|(need, _)| need)
    }

    /// When this must be checked again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        [self.due_at(now), self.runs_out].into_iter().flatten().min()
    }

    /// The first message is due at once: an earlier session of a slot may have left something.
    fn due_at(&self, now: Instant) -> Option<Instant> {
        match self.told {
            None => Some(now),
            Some((told, at)) if told != self.need => Some(at + PAUSE),
            // An empty need is sent only once.
            Some((told, at)) if !told.is_nothing() && !self.interval.is_zero() => {
                Some(at + self.interval)
            }
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FeedbackSettings;
    use crate::wire::copy::HotStandbyFeedback;
    use crate::wire::time::PgTime;

    fn message(xmin: u32) -> HotStandbyFeedback {
        let client_time = PgTime::new(0);
        HotStandbyFeedback { client_time, xmin, xmin_epoch: 0, catalog_xmin: 0, catalog_epoch: 0 }
    }

    #[test]
    fn on_change_and_each_interval_and_nothing_once() {
        let t0 = Instant::now();
        let ms = |n| t0 + Duration::from_millis(n);
        let fleet = Fleet::new(FeedbackSettings::default());
        let mut clock = FeedbackClock::new(Duration::from_secs(10));
        let said = |clock: &mut FeedbackClock, now| {
            clock.look(&fleet, now);
            clock.take_due(now).map(|need| need.message(PgTime::new(0)).xmin)
        };
        assert_eq!(said(&mut clock, t0), Some(0));
        assert_eq!(said(&mut clock, ms(60_000)), None);
        assert_eq!(clock.deadline(t0), None);
        let mut standby = fleet.join();
        standby.feedback(&message(700), t0);
        assert!(clock.has_missed(&fleet));
        assert_eq!(said(&mut clock, ms(60_000)), Some(700));
        standby.feedback(&message(710), t0);
        assert_eq!(said(&mut clock, ms(60_020)), None, "not so fast");
        assert_eq!(clock.deadline(ms(60_020)), Some(ms(60_100)));
        assert_eq!(said(&mut clock, ms(60_100)), Some(710));
        assert_eq!(said(&mut clock, ms(70_000)), None);
        assert_eq!(said(&mut clock, ms(70_100)), Some(710), "again each interval");
        drop(standby);
        assert_eq!(said(&mut clock, ms(80_000)), Some(0));
        assert_eq!(said(&mut clock, ms(99_000)), None, "once");
    }

    #[test]
    fn what_runs_out_is_withdrawn() {
        let t0 = Instant::now();
        let s = |n| t0 + Duration::from_secs(n);
        let max_age = Duration::from_secs(60);
        let fleet = Fleet::new(FeedbackSettings { max_age, ..FeedbackSettings::default() });
        let mut standby = fleet.join();
        standby.feedback(&message(700), t0);
        let mut clock = FeedbackClock::new(Duration::ZERO);
        clock.look(&fleet, s(1));
        assert!(clock.take_due(s(1)).is_some_and(|need| !need.is_nothing()));
        assert_eq!(clock.deadline(s(2)), Some(s(60)));
        clock.look(&fleet, s(60));
        assert!(clock.take_due(s(60)).is_some_and(|need| need.is_nothing()));
        assert_eq!(clock.deadline(s(61)), None);
    }
}
