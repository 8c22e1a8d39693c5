//! Which segments wait for a digest, the one that is being read, and which digests were removed.

use crate::store::digest::SegmentScan;
use crate::wal::{SegmentName, SegmentNo, TimelineId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

type Key = (TimelineId, SegmentNo);

/// What is to be done about digests.
#[derive(Debug)]
pub(super) struct Digests<F> {
    /// Segments without one, and why they get one.
    pub(super) waiting: RefCell<BTreeMap<Key, DigestReason>>,
    pub(super) under_way: RefCell<Option<UnfinishedDigest<F>>>,
    /// Segments whose digest was removed since the directory was synced: after a loss of power it
    /// may be there again.
    pub(super) gone: RefCell<BTreeSet<Key>>,
    /// Segments that were removed and of which there is a digest, by their place; `None` while the
    /// directory has not been listed.
    pub(super) removed: RefCell<Option<BTreeSet<(SegmentNo, TimelineId)>>>,
}

/// Why a segment gets a digest.
#[derive(Debug, Clone, Copy)]
pub(super) enum DigestReason {
    /// It was completed then.
    Completed(SystemTime),
    /// It was complete already, and was verified.
    Found,
}

/// A segment that is being read.
#[derive(Debug)]
pub(super) struct UnfinishedDigest<F> {
    pub(super) name: SegmentName,
    pub(super) reason: DigestReason,
    pub(super) completed: Option<SystemTime>,
    /// The keeper's line when it was opened.
    pub(super) line: u64,
    pub(super) file: F,
    pub(super) scan: SegmentScan,
}

impl<F> Default for Digests<F> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
            under_way: RefCell::new(None),
            gone: RefCell::default(),
            removed: RefCell::default(),
        }
    }
}

impl<F> Digests<F> {
    /// A segment is complete and has no digest yet.
    pub(super) fn wait(&self, tli: TimelineId, no: SegmentNo, reason: DigestReason) {
        self.waiting.borrow_mut().insert((tli, no), reason);
    }

    /// The bytes of a segment are going to change: what was read of it counts no more.
    pub(super) fn drop_unfinished(&self, name: SegmentName) {
        self.waiting.borrow_mut().remove(&(name.tli, name.no));
        drop(self.under_way.borrow_mut().take_if(|one| one.name == name));
    }

    /// All segments were moved aside, with their digests.
    pub(super) fn clear(&self) {
        self.waiting.borrow_mut().clear();
        self.under_way.take();
        self.gone.borrow_mut().clear();
        self.removed.take();
    }
}
