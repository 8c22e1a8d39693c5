//! The place of a difference: where an upstream or the archive had other bytes than ours. Later on,
//! two histories can look the same, so it is this place that has to be compared before any source
//! is followed again.

use super::position::Position;
use crate::timeline::Forks;
use crate::wal::page::PAGE_SIZE;
use crate::wal::{Lsn, SegmentSize, TimelineId};

/// How far before the place the comparison begins, within its segment.
const REACH: u64 = 1 << 20;

/// A position of our WAL at which another source had other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The timeline.
    pub tli: TimelineId,
    /// The position.
    pub at: Lsn,
}

/// WAL that has to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its timeline.
    pub tli: TimelineId,
    /// First byte.
    pub from: Lsn,
    /// First byte after it, in the same segment.
    pub to: Lsn,
}

impl Place {
    /// The part of our WAL up to `end` that proves, when another source has the same, that the
    /// source has our history at the place: the place, a page from there on, and what precedes it
    /// in its segment, up to 1 MiB.
    pub fn span(self, size: SegmentSize, end: Lsn) -> Span {
        let segment = self.at.segment(size);
        let reach = self.at.saturating_sub(REACH).page_start();
        let page = self.at.saturating_add(PAGE_SIZE as u64);
        Span {
            tli: self.tli,
            from: reach.max(segment.start(size)),
            to: page.min(segment.end(size)).min(end),
        }
    }

    /// Whether our WAL still holds the place. It does not after it was set aside from there on:
    /// together with all the rest, or after a switchpoint.
    pub fn is_ours(self, position: Position, forks: Option<&Forks>) -> bool {
        let Position::At { tli, durable, .. } = position else { return false };
        let end = match self.tli == tli {
            true => Some(durable),
            false => forks.and_then(|forks| {
                forks.iter().find(|(ancestor, _)| *ancestor == self.tli).map(|(_, end)| *end)
            }),
        };
        end.is_some_and(|end| self.at < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(t: u32, at: u64) -> Place {
        Place { tli: TimelineId::new(t).unwrap(), at: Lsn::new(at) }
    }

    #[test]
    fn the_span_holds_the_place_and_lies_in_its_segment() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let span = |at: u64, end: u64| {
            let span = place(1, at).span(size, Lsn::new(end));
            (span.from.raw(), span.to.raw())
        };
        assert_eq!(span(0x530_2345, 0x5FF_0000), (0x520_2000, 0x530_4345));
        assert_eq!(span(0x500_2345, 0x500_2400), (0x500_0000, 0x500_2400), "the segment, our end");
        assert_eq!(span(0x5FF_FFFF, 0x700_0000), (0x5EF_E000, 0x600_0000), "the segment's end");
    }

    #[test]
    fn a_place_is_ours_while_our_wal_is_there() {
        let tli = |n| TimelineId::new(n).unwrap();
        let at = |t: u32, durable: u64| Position::At {
            tli: tli(t),
            durable: Lsn::new(durable),
            start: Lsn::INVALID,
        };
        let forks = |end| [(tli(1), Lsn::new(40)), (tli(2), Lsn::new(end))];
        let found = place(2, 70);
        assert!(found.is_ours(at(2, 71), Some(&forks(0)[..1])));
        assert!(!found.is_ours(at(2, 70), Some(&forks(0)[..1])), "nothing of ours is there");
        assert!(!found.is_ours(at(3, 300), Some(&forks(70))), "it is after the switchpoint");
        assert!(found.is_ours(at(3, 300), Some(&forks(71))), "our timeline inherited it");
        assert!(!found.is_ours(Position::Empty, None));
        assert!(!found.is_ours(at(1, 300), None));
    }
}
