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
}

impl Completions {
    /// A segment was completed at this time.
    pub(super) fn note(&self, no: SegmentNo, at: SystemTime) {
        self.known.borrow_mut().insert(no, at);
    }

    /// Forgets the segments before `oldest`.
    pub(super) fn forget_before(&self, oldest: SegmentNo) {
        let mut known = self.known.borrow_mut();
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
    }
}
