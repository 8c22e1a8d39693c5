//! When segments were completed.

use crate::wal::SegmentNo;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// When segments were completed. Those of earlier runs are looked up only when needed, oldest
/// first, so that a start does not stat every file.
#[derive(Debug, Default)]
pub(super) struct Completions {
    known: RefCell<BTreeMap<SegmentNo, SystemTime>>,
    /// Completed since the clock was last read.
    finished: RefCell<Vec<SegmentNo>>,
}

impl Completions {
    /// A segment was completed just now.
    pub(super) fn finished(&self, no: SegmentNo) {
        self.finished.borrow_mut().push(no);
    }

    /// A segment of an earlier run was completed at this time.
    pub(super) fn note(&self, no: SegmentNo, at: SystemTime) {
        self.known.borrow_mut().insert(no, at);
    }

    /// Forgets the segments before `oldest`.
    pub(super) fn stamp(&self, oldest: SegmentNo, now: SystemTime) {
        let mut known = self.known.borrow_mut();
        known.extend(self.finished.borrow_mut().drain(..).map(|no| (no, now)));
        *known = known.split_off(&oldest);
    }

    /// When a segment was completed, if that is known.
    pub(super) fn at(&self, no: SegmentNo) -> Option<SystemTime> {
        self.known.borrow().get(&no).copied()
    }

    /// All that are known.
    pub(super) fn list(&self) -> Vec<(SegmentNo, SystemTime)> {
        self.known.borrow().iter().map(|(no, at)| (*no, *at)).collect()
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.known.borrow_mut().clear();
        self.finished.borrow_mut().clear();
    }
}
