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

/// Whether our WAL still holds a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// It does.
    Held,
    /// It is on our timeline, and our WAL ends before it: what was there has been lost. Standbys may
    /// have it.
    Lost {
        /// Where our WAL ends.
        end: Lsn,
    },
    /// It was set aside from there on: together with all the rest, or after a switchpoint.
    SetAside,
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
    /// The place of a position of our WAL: on the timeline whose file holds it. That is an
    /// ancestor when the position lies in a segment before the one in which our timeline `tli`
    /// begins. `forks` says where the ancestors ended.
    pub fn of(at: Lsn, tli: TimelineId, forks: &Forks, size: SegmentSize) -> Self {
        let later = forks.iter().rev().take_while(|(_, end)| at.segment(size) < end.segment(size));
        Self { tli: later.last().map_or(tli, |(ancestor, _)| *ancestor), at }
    }

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

    /// What an upstream whose WAL ends at `end`, past the place, shows of it when ours there is lost:
    /// a page, from the place on.
    pub fn noted_span(self, size: SegmentSize, end: Lsn) -> Span {
        let page = self.at.saturating_add(PAGE_SIZE as u64);
        let segment_end = self.at.segment(size).end(size);
        Span { tli: self.tli, from: self.at, to: page.min(segment_end).min(end) }
    }

    /// Whether our WAL still holds the place. Where our WAL ends says nothing of whether it was set
    /// aside. `forks` is `None` when our timeline has no ancestors or when they are not known.
    ///
    /// # Errors
    /// It depends on where our timeline's ancestors ended, which is not known.
    pub fn holding(
        self,
        position: Position,
        forks: Option<&Forks>,
    ) -> Result<Holding, UnknownHistory> {
        let Position::At { tli, durable, .. } = position else { return Ok(Holding::SetAside) };
        if self.tli == tli {
            return Ok(match self.at < durable {
                true => Holding::Held,
                false => Holding::Lost { end: durable },
            });
        }
        let forks = match forks {
            Some(forks) => forks,
            None if tli == TimelineId::FIRST => &[],
            None => return Err(UnknownHistory { tli }),
        };
        let end = forks.iter().find(|(ancestor, _)| *ancestor == self.tli).map(|(_, end)| *end);
        Ok(match end.is_some_and(|end| self.at < end) {
            true => Holding::Held,
            false => Holding::SetAside,
        })
    }
}

/// The history of our own timeline is missing or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the history of our timeline {tli} is not known, so neither is whose WAL lies before it")]
pub struct UnknownHistory {
    /// The timeline.
    pub tli: TimelineId,
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
    fn where_ours_is_lost_a_page_from_the_place_on_is_asked_for() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let span = |at: u64, end: u64| {
            let span = place(1, at).noted_span(size, Lsn::new(end));
            (span.from.raw(), span.to.raw())
        };
        assert_eq!(span(0x53_2345, 0x90_0000), (0x53_2345, 0x53_4345));
        assert_eq!(span(0x53_2345, 0x53_2349), (0x53_2345, 0x53_2349), "the upstream's end");
        assert_eq!(span(0x5F_FFF8, 0x90_0000), (0x5F_FFF8, 0x60_0000), "the segment's end");
    }

    #[test]
    fn a_place_is_held_until_a_step_has_set_our_wal_aside() {
        let tli = |n| TimelineId::new(n).unwrap();
        let at = |t: u32, durable: u64| Position::At {
            tli: tli(t),
            durable: Lsn::new(durable),
            start: Lsn::INVALID,
        };
        let forks = |end| [(tli(1), Lsn::new(40)), (tli(2), Lsn::new(end))];
        let found = place(2, 70);
        let holding = |position, forks: Option<&Forks>| found.holding(position, forks).unwrap();
        assert_eq!(holding(at(2, 71), Some(&forks(0)[..1])), Holding::Held);
        let lost = Holding::Lost { end: Lsn::new(70) };
        assert_eq!(holding(at(2, 70), Some(&forks(0)[..1])), lost, "nothing of ours is there");
        assert_eq!(holding(at(3, 300), Some(&forks(70))), Holding::SetAside, "by the switch");
        assert_eq!(holding(at(3, 300), Some(&forks(71))), Holding::Held, "it was inherited");
        assert_eq!(holding(Position::Empty, None), Holding::SetAside);
        assert_eq!(holding(at(1, 300), None), Holding::SetAside);
    }

    #[test]
    fn whose_a_place_is_cannot_be_said_without_our_history() {
        let tli = |n| TimelineId::new(n).unwrap();
        let position = Position::At { tli: tli(3), durable: Lsn::new(300), start: Lsn::INVALID };
        assert_eq!(place(2, 70).holding(position, None), Err(UnknownHistory { tli: tli(3) }));
        assert_eq!(place(3, 70).holding(position, None), Ok(Holding::Held));
    }

    #[test]
    fn a_place_is_on_the_timeline_whose_file_holds_it() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let tli = |n| TimelineId::new(n).unwrap();
        // Timeline 2 begins in the middle of segment 3, timeline 3 with segment 5.
        let forks = [(tli(1), Lsn::new(0x30_8000)), (tli(2), Lsn::new(0x50_0000))];
        let of = |at| Place::of(Lsn::new(at), tli(3), &forks, size).tli.raw();
        assert_eq!([of(0x2F_FFFF), of(0x30_0000), of(0x4F_FFFF), of(0x50_0000)], [1, 2, 2, 3]);
        assert_eq!(Place::of(Lsn::new(7), tli(1), &[], size), place(1, 7));
        // Recovery along timeline 2 stopped before 2 began: 2 has no file of its own.
        let forks = [(tli(1), Lsn::new(0x50_0000)), (tli(2), Lsn::new(0x30_0000))];
        let of = |at| Place::of(Lsn::new(at), tli(3), &forks, size).tli.raw();
        assert_eq!([of(0x2F_FFFF), of(0x30_0000)], [1, 3]);
    }
}
