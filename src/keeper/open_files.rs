//! Tracks which segments' files are still open: such a file must not become a spare, whose
//! content is overwritten.

use crate::store::disk::Disk;
use crate::wal::{SegmentNo, TimelineId};
use std::cell::RefCell;
use std::collections::BTreeMap;

type Key = (TimelineId, SegmentNo);

/// The files that were handed out. A segment may be open more than once: a reader may have
/// opened what an earlier run left of it before it was made ready for writing.
pub(super) struct OpenFiles<D: Disk> {
    files: RefCell<BTreeMap<Key, Vec<D::Watch>>>,
    /// Segments that are being opened, and how often. They count as held, because the file that
    /// comes of it may be the one that is being removed.
    opening: RefCell<BTreeMap<Key, usize>>,
}

impl<D: Disk> Default for OpenFiles<D> {
    fn default() -> Self {
        Self { files: RefCell::default(), opening: RefCell::default() }
    }
}

/// A segment that is being opened, until this is dropped.
pub(super) struct Opening<'a> {
    opening: &'a RefCell<BTreeMap<Key, usize>>,
    key: Key,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut opening = self.opening.borrow_mut();
        if let Some(count) = opening.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                opening.remove(&self.key);
            }
        }
    }
}

impl<D: Disk> OpenFiles<D> {
    /// A segment is about to be opened. The guard is dropped after its file was
    /// [noted](Self::note).
    pub(super) fn opening(&self, tli: TimelineId, no: SegmentNo) -> Opening<'_> {
        *self.opening.borrow_mut().entry((tli, no)).or_default() += 1;
        Opening { opening: &self.opening, key: (tli, no) }
    }

    /// A segment's file was handed out.
    pub(super) fn note(&self, tli: TimelineId, no: SegmentNo, file: &D::File) {
        let mut files = self.files.borrow_mut();
        let watches = files.entry((tli, no)).or_default();
        watches.retain(|watch| D::held(watch).is_some());
        watches.push(D::watch(file));
    }

    /// The segment's file, if it is still open; the one handed out last.
    pub(super) fn held(&self, tli: TimelineId, no: SegmentNo) -> Option<D::File> {
        self.files.borrow().get(&(tli, no))?.iter().rev().find_map(D::held)
    }

    /// Does anybody have the segment's file open, or is it being opened?
    pub(super) fn is_held(&self, tli: TimelineId, no: SegmentNo) -> bool {
        self.opening.borrow().contains_key(&(tli, no)) || self.held(tli, no).is_some()
    }

    /// The segment has another file from now on. The one that readers have open is none that could
    /// become a spare.
    pub(super) fn forget(&self, tli: TimelineId, no: SegmentNo) {
        self.files.borrow_mut().remove(&(tli, no));
    }

    /// Forgets files that nobody has open.
    pub(super) fn forget_closed(&self) {
        self.files.borrow_mut().retain(|_, watches| {
            watches.retain(|watch| D::held(watch).is_some());
            !watches.is_empty()
        });
    }

    /// The mistake of a simulation: nothing is being opened.
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn forget_opening(&self) {
        self.opening.borrow_mut().clear();
    }

    /// The segments of a timeline from `first` on were moved aside.
    pub(super) fn forget_from(&self, tli: TimelineId, first: SegmentNo) {
        self.files.borrow_mut().retain(|(other, no), _| *other != tli || *no < first);
    }

    /// All segments were moved aside: their files are not those of segments any more.
    pub(super) fn clear(&self) {
        self.files.borrow_mut().clear();
    }
}
