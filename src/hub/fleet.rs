//! What the connected standbys of all cores need and have, as far as it is reported upstream.
//! Cores note changes here; the receiving core checks when something has changed.

use super::feedback::{Feedback, Need};
use crate::config::{FeedbackSetting, FeedbackSettings};
use crate::upstream::apply::ReportApply;
use crate::wal::Lsn;
use crate::wire::copy::HotStandbyFeedback;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// All connected standbys.
pub struct Fleet {
    settings: FeedbackSettings,
    inner: Mutex<Inner>,
    /// Counts changes since the start.
    changes: AtomicU64,
    /// The last value reported as replayed by all.
    slowest: AtomicU64,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Inner {
    next: u64,
    feedback: Feedback,
    /// The replay position of each standby; zero before its first report. Some never report.
    applied: BTreeMap<u64, Arc<AtomicU64>>,
}

impl Fleet {
    /// Nobody is connected.
    pub fn new(settings: FeedbackSettings) -> Arc<Self> {
        let feedback = Feedback::new(settings.max_age);
        let inner = Mutex::new(Inner { next: 0, feedback, applied: BTreeMap::new() });
        let (changes, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { settings, inner, changes, slowest, wake: OnceLock::new() })
    }

    /// From now on `wake` makes the receiving core check for changes. It is called after each
    /// change.
    pub fn wake_by(&self, wake: Box<dyn Fn() + Send + Sync>) {
        // This is called once, when the cores exist.
        drop(self.wake.set(wake));
    }

    /// A standby begins to stream.
    pub fn join(self: &Arc<Self>) -> Member {
        let mut inner = self.lock();
        let id = inner.next;
        inner.next += 1;
        let applied = Arc::default();
        inner.applied.insert(id, Arc::clone(&applied));
        Member { fleet: Arc::clone(self), id, applied, need: Need::default() }
    }

    /// A counter that changes with everything that may have to be reported.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// What all standbys need together.
    pub fn need(&self, now: Instant) -> Need {
        self.lock().feedback.minimum(now)
    }

    /// When that changes by itself.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.lock().feedback.deadline(now)
    }

    /// What all standbys that report have replayed; `None` when none reports.
    pub fn slowest(&self) -> Option<Lsn> {
        let inner = self.lock();
        let mut slowest = inner.slowest()?;
        // A standby that advances now compares with the old value and stays silent, so re-check
        // after storing.
        loop {
            self.slowest.store(slowest.raw(), Ordering::SeqCst);
            match inner.slowest() {
                Some(now) if now != slowest => slowest = now,
                _ => return Some(slowest),
            }
        }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn slowest(&self) -> Option<Lsn> {
        let applied = self.applied.values().map(|lsn| Lsn::new(lsn.load(Ordering::SeqCst)));
        applied.filter(|lsn| *lsn != Lsn::INVALID).min()
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("changes", &self.changes()).finish_non_exhaustive()
    }
}

/// One connected standby. What it needs is dropped with it.
#[derive(Debug)]
pub struct Member {
    fleet: Arc<Fleet>,
    id: u64,
    applied: Arc<AtomicU64>,
    need: Need,
}

impl Member {
    /// It sent hot standby feedback.
    pub fn feedback(&mut self, feedback: &HotStandbyFeedback, now: Instant) {
        if self.fleet.settings.hot_standby_feedback == FeedbackSetting::Off {
            return;
        }
        let need = Need::of(feedback);
        if need != self.need {
            self.need = need;
            self.fleet.lock().feedback.heard(self.id, need, now);
            self.fleet.changed();
        }
    }

    /// It has replayed up to here; 0/0 is ignored.
    pub fn applied(&self, apply: Lsn) {
        if self.fleet.settings.report_apply != ReportApply::Slowest || apply == Lsn::INVALID {
            return;
        }
        let before = self.applied.swap(apply.raw(), Ordering::SeqCst);
        // While this one is ahead of the slowest, the others decide.
        let slowest = self.fleet.slowest.load(Ordering::SeqCst);
        if before != apply.raw() && before.min(apply.raw()) <= slowest {
            self.fleet.changed();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut inner = self.fleet.lock();
        inner.feedback.gone(self.id);
        inner.applied.remove(&self.id);
        drop(inner);
        if !self.need.is_nothing() || self.fleet.settings.report_apply == ReportApply::Slowest {
            self.fleet.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::time::PgTime;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    fn message(xmin: u32) -> HotStandbyFeedback {
        HotStandbyFeedback {
            client_time: PgTime::new(1),
            xmin,
            xmin_epoch: 0,
            catalog_xmin: 0,
            catalog_epoch: 0,
        }
    }

    #[test]
    fn only_news_wake_the_receiver() {
        let fleet = Fleet::new(FeedbackSettings::default());
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        fleet.wake_by(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        let now = Instant::now();
        let (mut a, mut b) = (fleet.join(), fleet.join());
        a.feedback(&message(0), now);
        assert_eq!(woken.load(Ordering::SeqCst), 0, "nothing is nothing new");
        a.feedback(&message(700), now);
        a.feedback(&message(700), now);
        b.feedback(&message(900), now);
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        assert_eq!(fleet.need(now).message(PgTime::new(0)).xmin, 700);
        drop(a);
        assert_eq!(fleet.need(now).message(PgTime::new(0)).xmin, 900);
        drop(b);
        assert!(fleet.need(now).is_nothing());
        assert_eq!(fleet.changes(), 4);
    }

    #[test]
    fn switched_off_nobody_needs_anything() {
        let fleet = Fleet::new(FeedbackSettings {
            hot_standby_feedback: FeedbackSetting::Off,
            ..FeedbackSettings::default()
        });
        let now = Instant::now();
        let mut member = fleet.join();
        member.feedback(&message(700), now);
        assert!(fleet.need(now).is_nothing());
    }

    #[test]
    fn the_slowest_of_those_who_replay() {
        let settings = FeedbackSettings {
            report_apply: ReportApply::Slowest,
            max_age: Duration::ZERO,
            ..FeedbackSettings::default()
        };
        let fleet = Fleet::new(settings);
        let (a, b, receivewal) = (fleet.join(), fleet.join(), fleet.join());
        assert_eq!(fleet.slowest(), None);
        receivewal.applied(Lsn::INVALID);
        a.applied(Lsn::new(50));
        b.applied(Lsn::new(70));
        assert_eq!(fleet.slowest(), Some(Lsn::new(50)));
        let before = fleet.changes();
        b.applied(Lsn::new(80));
        assert_eq!(fleet.changes(), before, "the other is the slower one");
        a.applied(Lsn::new(90));
        assert!(fleet.changes() > before);
        assert_eq!(fleet.slowest(), Some(Lsn::new(80)));
        drop(b);
        assert_eq!(fleet.slowest(), Some(Lsn::new(90)));
        drop(a);
        assert_eq!(fleet.slowest(), None);
    }

    /// A standby that moves during the lookup of the slowest stays silent only if the lookup has
    /// seen the move.
    #[test]
    fn no_step_of_the_slowest_is_missed() {
        let settings = FeedbackSettings {
            report_apply: ReportApply::Slowest,
            max_age: Duration::ZERO,
            ..FeedbackSettings::default()
        };
        for round in 0..200 {
            let fleet = Fleet::new(settings.clone());
            let member = fleet.join();
            let last = Lsn::new(200);
            let steps = std::thread::spawn(move || {
                for lsn in 1..=last.raw() {
                    member.applied(Lsn::new(lsn));
                }
                member
            });
            let (mut seen, mut slowest) = (0, None);
            loop {
                let is_last = steps.is_finished();
                let changes = fleet.changes();
                if seen != changes {
                    seen = changes;
                    slowest = fleet.slowest();
                } else if is_last {
                    break;
                }
            }
            assert_eq!(slowest, Some(last), "round {round}");
            drop(steps.join().unwrap());
        }
    }
}
