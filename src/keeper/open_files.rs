//! Tracks which segments' files are still open: such a file must not become a spare, whose
//! content is overwritten.

use crate::store::disk::Disk;
use crate::wal::{SegmentNo, TimelineId};
use std::collections::BTreeMap;

/// The files that were handed out. A segment may be open more than once: a reader may have
/// opened what an earlier run left of it before it was made ready for writing.
pub(super) struct OpenFiles<D: Disk> {
    files: BTreeMap<(TimelineId, SegmentNo), Vec<D::Watch>>,
}

impl<D: Disk> Default for OpenFiles<D> {
    fn default() -> Self {
        Self { files: BTreeMap::new() }
    }
}

impl<D: Disk> OpenFiles<D> {
    /// A segment's file was handed out.
    pub(super) fn note(&mut self, tli: TimelineId, no: SegmentNo, file: &D::File) {
        let watches = self.files.entry((tli, no)).or_default();
        watches.retain(|watch| D::held(watch).is_some());
        watches.push(D::watch(file));
    }

    /// The segment's file, if it is still open; the one handed out last.
    pub(super) fn held(&self, tli: TimelineId, no: SegmentNo) -> Option<D::File> {
        self.files.get(&(tli, no))?.iter().rev().find_map(D::held)
    }

    /// The segment goes: is its file still open anywhere?
    pub(super) fn take_held(&mut self, tli: TimelineId, no: SegmentNo) -> bool {
        let watches = self.files.remove(&(tli, no)).unwrap_or_default();
        watches.iter().any(|watch| D::held(watch).is_some())
    }

    /// Forgets files that nobody has open.
    pub(super) fn forget_closed(&mut self) {
        self.files.retain(|_, watches| {
            watches.retain(|watch| D::held(watch).is_some());
            !watches.is_empty()
        });
    }
}
