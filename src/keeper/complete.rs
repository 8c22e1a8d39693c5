//! Which complete segments are on disk, of every timeline. A segment that is about to be removed
//! is taken out first, so that no two removals are after the same one.

use crate::store::layout::{Listing, SegmentRange};
use crate::wal::{SegmentNo, TimelineId};
use std::cell::RefCell;

/// Complete segments, oldest range first.
#[derive(Debug, Default)]
pub(super) struct Complete {
    ranges: RefCell<Vec<SegmentRange>>,
    /// Segments that were taken out and could not be removed.
    left: RefCell<Vec<(TimelineId, SegmentNo)>>,
}

impl Complete {
    /// The complete segments in a listing, and those that recovery named after it.
    pub(super) fn new(listing: &Listing, named: Option<SegmentRange>) -> Self {
        let complete = Self::default();
        complete.replace(listing, named);
        complete
    }

    /// The directory was listed again.
    pub(super) fn replace(&self, listing: &Listing, named: Option<SegmentRange>) {
        let mut ranges = listing.segments.clone();
        if let Some(range) = named {
            ranges.retain(|old| {
                old.tli != range.tli || old.oldest > range.newest || old.newest < range.oldest
            });
            ranges.push(range);
            ranges.sort_unstable_by_key(|range| (range.tli, range.oldest));
        }
        *self.ranges.borrow_mut() = ranges;
        self.left.borrow_mut().clear();
    }

    /// A segment got its final name.
    pub(super) fn add(&self, tli: TimelineId, no: SegmentNo) {
        let mut ranges = self.ranges.borrow_mut();
        let last = ranges.iter_mut().rev().find(|range| range.tli == tli);
        match last {
            Some(range) if range.newest.next() == no => range.newest = no,
            _ => insert(&mut ranges, tli, no),
        }
    }

    /// Takes a segment before `horizon` out, the oldest of its range. Whoever gets it removes it.
    pub(super) fn take_before(&self, horizon: SegmentNo) -> Option<(TimelineId, SegmentNo)> {
        let mut ranges = self.ranges.borrow_mut();
        let index = ranges.iter().position(|range| range.oldest < horizon)?;
        let range = ranges.get_mut(index)?;
        let taken = (range.tli, range.oldest);
        if range.oldest == range.newest {
            ranges.remove(index);
        } else {
            range.oldest = range.oldest.next();
        }
        Some(taken)
    }

    /// A segment that was taken out could not be removed. It stays out until
    /// [`try_again`](Self::try_again), so that the others after it go.
    pub(super) fn keep_for_later(&self, tli: TimelineId, no: SegmentNo) {
        self.left.borrow_mut().push((tli, no));
    }

    /// Puts back what could not be removed.
    pub(super) fn try_again(&self) {
        for (tli, no) in self.left.take() {
            self.put_back(tli, no);
        }
    }

    pub(super) fn put_back(&self, tli: TimelineId, no: SegmentNo) {
        let mut ranges = self.ranges.borrow_mut();
        match ranges.iter_mut().find(|range| range.tli == tli && range.oldest == no.next()) {
            Some(range) => range.oldest = no,
            None => insert(&mut ranges, tli, no),
        }
    }

    /// The oldest segment.
    pub(super) fn oldest(&self) -> Option<SegmentNo> {
        self.ranges.borrow().iter().map(|range| range.oldest).min()
    }

    /// The newest range of the newest timeline.
    pub(super) fn last(&self) -> Option<SegmentRange> {
        self.ranges.borrow().last().copied()
    }

    /// Is there this segment of this timeline?
    pub(super) fn contains(&self, tli: TimelineId, no: SegmentNo) -> bool {
        let ranges = self.ranges.borrow();
        let mut ranges = ranges.iter().filter(|range| range.tli == tli);
        ranges.any(|range| (range.oldest..=range.newest).contains(&no))
    }

    /// The first timeline that has this segment.
    pub(super) fn timeline_of(&self, no: SegmentNo) -> Option<TimelineId> {
        let ranges = self.ranges.borrow();
        let mut ranges = ranges.iter();
        let found = ranges.find(|range| (range.oldest..=range.newest).contains(&no));
        found.map(|range| range.tli)
    }

    /// All segments were moved aside.
    pub(super) fn clear(&self) {
        self.ranges.borrow_mut().clear();
        self.left.borrow_mut().clear();
    }
}

fn insert(ranges: &mut Vec<SegmentRange>, tli: TimelineId, no: SegmentNo) {
    ranges.push(SegmentRange { tli, oldest: no, newest: no });
    ranges.sort_unstable_by_key(|range| (range.tli, range.oldest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_taken_out_once_and_may_come_back() {
        let tli = TimelineId::FIRST;
        let no = SegmentNo::new;
        let complete = Complete::default();
        for n in 5..8 {
            complete.add(tli, no(n));
        }
        assert_eq!(complete.take_before(no(7)), Some((tli, no(5))));
        assert_eq!(complete.take_before(no(7)), Some((tli, no(6))));
        assert_eq!(complete.take_before(no(7)), None);
        assert!(complete.contains(tli, no(7)) && !complete.contains(tli, no(6)));
        complete.keep_for_later(tli, no(5));
        complete.keep_for_later(tli, no(6));
        assert_eq!(complete.oldest(), Some(no(7)), "others are not kept from going");
        complete.try_again();
        assert_eq!(complete.oldest(), Some(no(5)));
        complete.add(tli, no(8));
        assert_eq!(complete.last().map(|range| range.newest), Some(no(8)));
        let taken = std::iter::from_fn(|| complete.take_before(no(9)));
        assert_eq!(taken.map(|(_, no)| no.raw()).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(complete.oldest(), None);
    }
}
