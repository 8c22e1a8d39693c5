//! What an upstream has to show of our WAL before it is followed, and what that proves.
//!
//! Two histories may look the same for long: a primary that was rolled back to a snapshot and runs
//! the same job again writes the same records. But the end of a transaction and a checkpoint say
//! when they were written, and nobody writes the same time again. So what is compared reaches back
//! to such a record, and from there everything up to the end.

use super::place::Place;
use crate::wal::{Lsn, SegmentName, SegmentSize, TimelineId};
use std::fmt;

/// How far before the end the time-stamped record lies at least, where there is that much WAL.
pub const DISTANCE: u64 = 1 << 20;

/// How far before the end it is searched.
pub const REACH: u64 = 1 << 30;

/// Where WAL ends that both sides have, as far as they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedEnd {
    /// The newest timeline of it.
    pub tli: TimelineId,
    /// The first byte that is not shared.
    pub end: Lsn,
}

/// What was compared with an upstream, and was the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Up to there.
    pub shared: SharedEnd,
    /// From there on; `None` when nothing could be compared.
    pub from: Option<Lsn>,
    /// What follows from it.
    pub strength: Strength,
}

/// What follows from a comparison in which all bytes were the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strength {
    /// Both have one history: this time-stamped record is in it.
    Proved {
        /// Where it begins.
        record: Lsn,
    },
    /// No time-stamped record could be compared far enough back.
    Weak {
        /// Why not.
        why: String,
    },
}

impl Strength {
    /// All was the same, with the time-stamped `record`, unless `why` says why that is no proof.
    pub fn of(record: Option<Lsn>, why: Option<String>) -> Self {
        match (why, record) {
            (None, Some(record)) => Self::Proved { record },
            (why, _) => Self::Weak { why: why.unwrap_or_default() },
        }
    }
}

impl Proof {
    /// Nothing was compared.
    pub const fn none(shared: SharedEnd, why: String) -> Self {
        Self { shared, from: None, strength: Strength::Weak { why } }
    }

    /// The same when WAL from the end of `earlier` on was taken unproved: while `earlier` is weak,
    /// nothing is proved by what comes after it.
    #[must_use]
    pub fn with_earlier(self, earlier: &Self) -> Self {
        let Some(why) = earlier.weakness() else { return self };
        let from = earlier.shared.end;
        let why = format!("WAL from {from} on came from the archive unproved, and {why}");
        Self { strength: Strength::Weak { why }, ..self }
    }

    /// Why the history is not proved; `None` when it is.
    pub fn weakness(&self) -> Option<&str> {
        match &self.strength {
            Strength::Proved { .. } => None,
            Strength::Weak { why } => Some(why),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SharedEnd { tli, end } = self.shared;
        match (&self.strength, self.from) {
            (Strength::Proved { record }, Some(from)) => write!(
                f,
                "proved: WAL from {from} to {end} on timeline {tli} is the same, with the \
                 time-stamped record at {record}"
            ),
            (Strength::Weak { why }, Some(from)) => {
                write!(f, "weak: WAL from {from} to {end} on timeline {tli} is the same, but {why}")
            }
            (Strength::Weak { why }, None) => {
                write!(f, "weak: no WAL before {end} on timeline {tli} was compared: {why}")
            }
            (Strength::Proved { .. }, None) => f.write_str("proved"),
        }
    }
}

/// Our timeline and its ancestors: which of our files holds a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// Our timeline.
    pub tli: TimelineId,
    /// Where its ancestors ended.
    pub forks: Vec<(TimelineId, Lsn)>,
    /// The cluster's segment size.
    pub size: SegmentSize,
}

impl Lineage {
    /// Our file that holds the position.
    pub fn file(&self, at: Lsn) -> SegmentName {
        let tli = Place::of(at, self.tli, &self.forks, self.size).tli;
        SegmentName { tli, no: at.segment(self.size), size: self.size }
    }

    /// The timeline on which an upstream whose newest common timeline is `newest` is asked for the
    /// position. It may not know the one whose file of ours holds it.
    pub fn asked(&self, at: Lsn, newest: TimelineId) -> TimelineId {
        self.file(at).tli.min(newest)
    }

    /// The end of what an upstream sends of one timeline from `from` on, `to` at most: where our
    /// files of the next timeline begin.
    pub fn stream_end(&self, from: Lsn, newest: TimelineId, to: Lsn) -> Lsn {
        let begins = self.forks.iter().map(|(_, end)| end.segment_start(self.size));
        let other = |at: &Lsn| *at > from && self.asked(*at, newest) != self.asked(from, newest);
        begins.filter(other).min().map_or(to, |at| at.min(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    #[test]
    fn each_file_is_asked_for_on_its_timeline() {
        let size = SegmentSize::new(1 << 20).unwrap();
        // Timeline 2 begins in the middle of segment 3, timeline 3 with segment 5.
        let forks = vec![(tli(1), Lsn::new(0x30_8000)), (tli(2), Lsn::new(0x50_0000))];
        let lineage = Lineage { tli: tli(3), forks, size };
        let to = Lsn::new(0x60_0000);
        let pieces = |newest: u32, to: Lsn| {
            let (mut at, mut pieces) = (Lsn::new(0x10_2000), Vec::new());
            while at < to {
                let end = lineage.stream_end(at, tli(newest), to);
                pieces.push((lineage.asked(at, tli(newest)).raw(), at.raw(), end.raw()));
                at = end;
            }
            pieces
        };
        let all = [(1, 0x10_2000, 0x30_0000), (2, 0x30_0000, 0x50_0000), (3, 0x50_0000, 0x60_0000)];
        assert_eq!(pieces(3, to), all);
        // Who has not followed to timeline 2 yet has the fork's segment on timeline 1.
        assert_eq!(pieces(1, Lsn::new(0x30_7000)), [(1, 0x10_2000, 0x30_7000)]);
        assert_eq!(lineage.file(Lsn::new(0x30_0000)).tli, tli(2), "our file is of timeline 2");
    }

    #[test]
    fn what_was_taken_unproved_is_proved_with_what_precedes_it() {
        let proof = |end: u64, why: Option<&str>| Proof {
            shared: SharedEnd { tli: tli(1), end: Lsn::new(end) },
            from: Some(Lsn::new(8)),
            strength: Strength::of(Some(Lsn::new(9)), why.map(str::to_owned)),
        };
        let newest = proof(0x500, None);
        assert_eq!(newest.clone().with_earlier(&proof(0x100, None)), newest);
        let weak = newest.clone().with_earlier(&proof(0x100, Some("it is gone")));
        let why = "WAL from 0/100 on came from the archive unproved, and it is gone";
        assert_eq!((weak.weakness(), weak.shared), (Some(why), newest.shared));
    }
}
