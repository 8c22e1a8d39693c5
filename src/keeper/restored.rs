//! Which segments came back from the archive for standbys. They lie before retention's horizon for
//! good, so they are not part of its plan.

use crate::wal::{SegmentNo, TimelineId};
use std::cell::RefCell;
use std::collections::BTreeSet;

type Key = (TimelineId, SegmentNo);

/// The restored segments on disk, by the timeline in their names.
#[derive(Debug, Default)]
pub(super) struct Restored {
    files: RefCell<BTreeSet<Key>>,
    /// Segments that nobody needs any more.
    going: RefCell<BTreeSet<Key>>,
}

impl Restored {
    /// A segment came back.
    pub(super) fn add(&self, tli: TimelineId, no: SegmentNo) {
        self.going.borrow_mut().remove(&(tli, no));
        self.files.borrow_mut().insert((tli, no));
    }

    /// Is this one of them, and not marked?
    pub(super) fn contains(&self, tli: TimelineId, no: SegmentNo) -> bool {
        self.files.borrow().contains(&(tli, no))
    }

    /// Are there any that are not marked?
    pub(super) fn is_empty(&self) -> bool {
        self.files.borrow().is_empty()
    }

    /// Marks the segments that are not wanted.
    pub(super) fn mark(&self, wanted: impl Fn(SegmentNo) -> bool) {
        let mut files = self.files.borrow_mut();
        let going = files.extract_if(.., |(_, no)| !wanted(*no));
        self.going.borrow_mut().extend(going);
    }

    /// Takes out a marked segment. Whoever gets it removes it.
    pub(super) fn take_marked(&self) -> Option<Key> {
        self.going.borrow_mut().pop_first()
    }

    /// All segments were moved aside.
    pub(super) fn clear(&self) {
        self.files.borrow_mut().clear();
        self.going.borrow_mut().clear();
    }
}
