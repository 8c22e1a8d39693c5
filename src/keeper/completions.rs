//! When segments were completed.

use crate::store::now::Now;
use crate::wal::SegmentNo;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// When segments were completed. Those of earlier runs are looked up only when needed, oldest
/// first, so that a start does not stat every file.
#[derive(Debug, Default)]
pub(super) struct Completions {
    known: RefCell<BTreeMap<SegmentNo, Completed>>,
}

/// A segment was so old at one time. From then on it ages by the clock that does not jump.
#[derive(Debug, Clone, Copy)]
struct Completed {
    noted: Instant,
    age: Duration,
}

impl Completed {
    fn age(self, now: Now) -> Duration {
        self.age.saturating_add(now.since(self.noted))
    }
}

impl Completions {
    /// A segment is complete from now on.
    pub(super) fn note(&self, no: SegmentNo, now: Now) {
        self.known.borrow_mut().insert(no, Completed { noted: now.instant, age: Duration::ZERO });
    }

    /// A segment of an earlier run was completed at a time of day. One that lies ahead counts as
    /// now. `start` is when this run began: no clock that was set since counts.
    pub(super) fn note_found(&self, no: SegmentNo, at: SystemTime, now: Now, start: Now) {
        let age = now.unset_since(start).duration_since(at).unwrap_or_default();
        self.known.borrow_mut().insert(no, Completed { noted: now.instant, age });
    }

    /// A segment is not there: nothing is kept of it.
    pub(super) fn note_missing(&self, no: SegmentNo, now: Now) {
        self.known.borrow_mut().insert(no, Completed { noted: now.instant, age: Duration::MAX });
    }

    /// Forgets the segments before `oldest`.
    pub(super) fn forget_before(&self, oldest: SegmentNo) {
        let mut known = self.known.borrow_mut();
        *known = known.split_off(&oldest);
    }

    /// How long ago a segment was completed, if that is known.
    pub(super) fn age(&self, no: SegmentNo, now: Now) -> Option<Duration> {
        self.known.borrow().get(&no).map(|completed| completed.age(now))
    }

    /// All that are known.
    pub(super) fn ages(&self, now: Now) -> Vec<(SegmentNo, Duration)> {
        self.known.borrow().iter().map(|(no, completed)| (*no, completed.age(now))).collect()
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.known.borrow_mut().clear();
    }
}
