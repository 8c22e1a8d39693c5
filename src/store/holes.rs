//! Which of a directory's complete segments are here, and which are missing between them.
//!
//! The current timeline and those that ended here share one axis. Each has the segments from its
//! start up to the one before the next timeline's fork segment, which belongs to the child.
//! Segments before the oldest one here were removed; any that are missing after it are a hole. A
//! hole is a matter for the operator: WAL before it stays until the ordinary rules release it,
//! and is served up to the hole.
//!
//! A hole before an open segment is different: nothing past it can be proven, so the WAL ends
//! there, and the upstream's next WAL fills it.

use super::control_file::Cluster;
use super::layout::{Listing, SegmentRange};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::fmt;

/// Segments that are missing between others of the directory's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The timeline in their names.
    pub tli: TimelineId,
    /// The first that is missing.
    pub first: SegmentNo,
    /// The last.
    pub last: SegmentNo,
    /// The segments' size.
    pub size: SegmentSize,
}

impl Hole {
    /// The first position that is missing.
    pub fn start(&self) -> Lsn {
        self.first.start(self.size)
    }

    /// The first position past the hole.
    pub fn end(&self) -> Lsn {
        self.last.end(self.size)
    }

    /// The segments that are missing in both.
    pub fn common(&self, other: &Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (self.tli == other.tli && first <= last).then_some(Self { first, last, ..*self })
    }
}

impl fmt::Display for Hole {
    /// `000000010000000000000007`, or the first and the last name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |no| SegmentName { tli: self.tli, no, size: self.size };
        match self.first == self.last {
            true => name(self.first).fmt(f),
            false => write!(f, "{} .. {}", name(self.first), name(self.last)),
        }
    }
}

/// Which part of the directory's history is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Nothing before this position is here.
    pub oldest: Lsn,
    /// What is missing in between, oldest first.
    pub holes: Vec<Hole>,
    /// What is missing between the end of the WAL and open segments past it that hold WAL, too.
    pub before_open: Option<Hole>,
}

impl Extent {
    /// Everything from `oldest` on is here.
    pub fn from(oldest: Lsn) -> Self {
        Self { oldest, holes: Vec::new(), before_open: None }
    }

    /// Everything from this position on is here.
    pub fn unbroken_from(&self) -> Lsn {
        self.holes.last().map_or(self.oldest, |hole| self.oldest.max(hole.end()))
    }

    /// Gives up everything before `oldest`.
    pub fn give_up(&mut self, oldest: Lsn) {
        self.oldest = self.oldest.max(oldest);
        self.holes.retain(|hole| hole.start() > self.oldest);
    }

    /// What is missing while the WAL ends at `end`.
    pub fn missing(&self, end: Lsn) -> impl Iterator<Item = Hole> {
        let is_open = |hole: &Hole| hole.end() > end;
        self.holes.iter().copied().chain(self.before_open.filter(is_open))
    }

    /// The extent of the complete segments in a listing of `pg_wal`.
    pub fn of(listing: &Listing, cluster: &Cluster) -> Self {
        let size = cluster.segment_size;
        let mut walk = Walk { size, oldest: None, holes: Vec::new() };
        for span in spans(listing, cluster) {
            walk.take(listing, span);
        }
        let oldest = walk.oldest.map_or(cluster.start, |no| no.start(size));
        Self { oldest, holes: walk.holes, before_open: None }
    }
}

/// The oldest complete segment of `tli` that is here, from `from` on.
pub fn oldest_of(listing: &Listing, tli: TimelineId, from: SegmentNo) -> Option<SegmentNo> {
    let own = listing.segments.iter().filter(|range| range.tli == tli && range.newest >= from);
    own.map(|range| range.oldest.max(from)).min()
}

/// The segments of each timeline that the directory had or has, oldest timeline first.
fn spans(listing: &Listing, cluster: &Cluster) -> Vec<SegmentRange> {
    let size = cluster.segment_size;
    let ended = cluster.sealed.iter().filter_map(|sealed| {
        let newest = sealed.end.segment(size).previous()?;
        Some(SegmentRange { tli: sealed.tli, oldest: sealed.start.segment(size), newest })
    });
    let current = listing.newest_of(cluster.timeline).map(|range| SegmentRange {
        tli: cluster.timeline,
        oldest: cluster.start.segment(size),
        newest: range.newest,
    });
    ended.chain(current).filter(|span| span.oldest <= span.newest).collect()
}

/// Walks along the axis.
struct Walk {
    size: SegmentSize,
    oldest: Option<SegmentNo>,
    holes: Vec<Hole>,
}

impl Walk {
    fn take(&mut self, listing: &Listing, span: SegmentRange) {
        let mut next = span.oldest;
        let overlaps = |range: &&SegmentRange| {
            range.tli == span.tli && range.oldest <= span.newest && range.newest >= span.oldest
        };
        for range in listing.segments.iter().filter(overlaps) {
            self.missing(span.tli, next, range.oldest);
            self.oldest.get_or_insert(range.oldest.max(span.oldest));
            next = range.newest.next();
        }
        self.missing(span.tli, next, span.newest.next());
    }

    /// Records that nothing from `first` up to (not including) `upto` is here.
    fn missing(&mut self, tli: TimelineId, first: SegmentNo, upto: SegmentNo) {
        if let Some(last) = upto.previous()
            && first <= last
            && self.oldest.is_some()
        {
            self.holes.push(Hole { tli, first, last, size: self.size });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::control_file::Sealed;
    use crate::wal::SystemId;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn tli(raw: u32) -> TimelineId {
        TimelineId::new(raw).unwrap()
    }

    /// Timeline 1 began in segment 2 and ended inside segment 10, where timeline 2 continues.
    fn cluster() -> Cluster {
        let end = Lsn::new(10 * MIB + 0x60);
        Cluster {
            system_id: SystemId::new(7),
            segment_size: size(),
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: tli(2),
            start: Lsn::new(10 * MIB),
            sealed: vec![Sealed { tli: tli(1), start: Lsn::new(2 * MIB), end }],
        }
    }

    fn listing(segments: &[(u32, u64)]) -> Listing {
        let name = |(raw, no): &(u32, u64)| {
            let (tli, no) = (tli(*raw), SegmentNo::new(*no));
            SegmentName { tli, no, size: size() }.to_string()
        };
        Listing::of(segments.iter().map(name).collect(), size())
    }

    /// Oldest, unbroken from, holes; in segments.
    fn extent(segments: &[(u32, u64)]) -> (u64, u64, Vec<String>) {
        let extent = Extent::of(&listing(segments), &cluster());
        let (oldest, unbroken_from) = (extent.oldest, extent.unbroken_from());
        let holes = extent
            .holes
            .iter()
            .map(|hole| format!("{}: {}-{}", hole.tli, hole.first.raw(), hole.last.raw()));
        (oldest.raw() / MIB, unbroken_from.raw() / MIB, holes.collect())
    }

    #[test]
    fn holes_lie_inside_timelines_and_between_them() {
        let none = Vec::<String>::new;
        let one = |text: &str| vec![text.to_owned()];
        assert_eq!(extent(&[]), (10, 10, none()));
        assert_eq!(extent(&[(1, 8), (1, 9)]), (8, 8, none()));
        assert_eq!(extent(&[(1, 8), (1, 9), (2, 10), (2, 11)]), (8, 8, none()));
        assert_eq!(extent(&[(2, 12), (2, 13)]), (12, 12, none()));
        assert_eq!(extent(&[(2, 12), (2, 14)]), (12, 14, one("2: 13-13")));
        assert_eq!(extent(&[(1, 5), (1, 9), (2, 10)]), (5, 9, one("1: 6-8")));
        // The fork segment is the child's.
        assert_eq!(extent(&[(1, 9), (2, 11)]), (9, 11, one("2: 10-10")));
        // The end of the parent's WAL, and the beginning of the child's.
        let both = vec!["1: 9-9".to_owned(), "2: 10-11".to_owned()];
        assert_eq!(extent(&[(1, 8), (2, 12)]), (8, 12, both));
        // Not counted: WAL from before our start that the archive brought, and another timeline.
        assert_eq!(extent(&[(1, 1), (1, 9), (2, 10), (7, 3)]), (9, 9, none()));
    }

    #[test]
    fn a_hole_with_nothing_before_it_is_none() {
        let mut extent = Extent::of(&listing(&[(1, 5), (1, 9), (2, 10), (2, 13)]), &cluster());
        let mut given_up = |oldest: u64| {
            extent.give_up(Lsn::new(oldest * MIB));
            (extent.oldest.raw() / MIB, extent.unbroken_from().raw() / MIB, extent.holes.len())
        };
        assert_eq!(given_up(4), (5, 13, 2));
        assert_eq!(given_up(6), (6, 13, 1));
        assert_eq!(given_up(10), (10, 13, 1));
        assert_eq!(given_up(11), (11, 11, 0));
    }

    #[test]
    fn a_hole_is_told_by_the_names_that_are_missing() {
        let hole = |first, last| Hole {
            tli: tli(1),
            first: SegmentNo::new(first),
            last: SegmentNo::new(last),
            size: size(),
        };
        assert_eq!(hole(7, 7).to_string(), "000000010000000000000007");
        let names = "000000010000000000000007 .. 000000010000000000000009";
        assert_eq!(hole(7, 9).to_string(), names);
    }

    proptest! {
        /// A check of every place on the axis gives the same result.
        #[test]
        fn as_counted_place_by_place(here in proptest::collection::vec(any::<bool>(), 12)) {
            // Places 2 to 9 are timeline 1's, 10 to 13 timeline 2's.
            let place = |index: usize| (if index < 8 { 1 } else { 2 }, index as u64 + 2);
            let present = (0..12).filter(|index| here[*index]);
            let segments: Vec<_> = present.clone().map(place).collect();
            let (oldest, unbroken_from, _) = extent(&segments);
            let first = present.clone().map(|index| index as u64 + 2).min();
            prop_assert_eq!(oldest, first.unwrap_or(10));
            // The parent's WAL is expected up to its end, the child's as far as it is here.
            let end = present.max().map_or(0, |last| if last < 8 { 8 } else { last + 1 });
            let gap = (0..end).rev().find(|index| !here[*index]);
            let after = gap.map_or(2, |index| index as u64 + 3);
            prop_assert_eq!(unbroken_from, after.max(oldest));
            for hole in Extent::of(&listing(&segments), &cluster()).holes {
                for no in hole.first.raw()..=hole.last.raw() {
                    prop_assert!(!here[no as usize - 2]);
                }
            }
        }
    }
}
