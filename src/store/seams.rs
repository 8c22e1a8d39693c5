//! Seams: places where WAL of ours was set aside and another history continues on the same timeline,
//! by an operator's word. Nothing in a timeline's number or its history file tells the two apart. So
//! `walhub.seams`, beside the control file, keeps each place until an operator has confirmed that
//! no standby has the former WAL any more: until then nothing past it goes to a standby that has
//! not said that it is not past it.
//!
//! The same file decides that WAL is set aside ([`cut`](super::cut)): one write does both.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most seams that may stand.
pub const MOST: usize = 64;

/// Where another history continues on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seam {
    /// The timeline.
    pub tli: TimelineId,
    /// The end of a record that both histories have.
    pub at: Lsn,
}

impl fmt::Display for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.at, self.tli)
    }
}

/// All seams that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seams {
    under_way: Option<Seam>,
    standing: Vec<Seam>,
}

/// Why no seam can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSeam {
    /// Another is not finished.
    #[error("our WAL past {0} is still being set aside")]
    UnderWay(Seam),
    /// There are too many.
    #[error("{MOST} places are to be confirmed already (`walhub ctl confirm seam`)")]
    TooMany,
}

impl Seams {
    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Seam> {
        self.standing.iter()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }

    /// The one past which our WAL is being set aside.
    pub fn under_way(&self) -> Option<Seam> {
        self.under_way
    }

    /// Our WAL past `seam` is going to be set aside. Asking for the one under way changes nothing.
    ///
    /// # Errors
    /// Another is under way, or too many stand.
    pub fn begin(&mut self, seam: Seam) -> Result<(), NoSeam> {
        if let Some(other) = self.under_way.filter(|other| *other != seam) {
            return Err(NoSeam::UnderWay(other));
        }
        if !self.standing.contains(&seam) {
            if self.standing.len() >= MOST {
                return Err(NoSeam::TooMany);
            }
            self.standing.push(seam);
        }
        self.under_way = Some(seam);
        Ok(())
    }

    /// All WAL that was to be set aside has been.
    pub fn finish(&mut self) {
        self.under_way = None;
    }

    /// Removes those at `at`, and returns them. One that is under way stays.
    pub fn confirm(&mut self, at: Lsn) -> Vec<Seam> {
        let under_way = self.under_way;
        let is_confirmed = |seam: &Seam| seam.at == at && under_way != Some(*seam);
        let (confirmed, rest) = self.standing.drain(..).partition(is_confirmed);
        self.standing = rest;
        confirmed
    }

    /// The first seam on `tli` past which a standby must not be, if its slot does not show that it
    /// has followed this hub over it. `slot` is the slot's position: a slot past a seam was moved
    /// there by a standby that had followed, because one that was there before has lost its WAL.
    pub fn first_before(&self, tli: TimelineId, slot: Option<Lsn>) -> Option<Lsn> {
        let own = self.standing.iter().filter(|seam| seam.tli == tli).map(|seam| seam.at);
        own.filter(|at| slot.is_none_or(|slot| slot <= *at)).min()
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let seams = self.standing.iter().map(SeamText::of).collect();
        seal("seams", 1, &SeamsText { under_way: self.under_way.as_ref().map(SeamText::of), seams })
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: SeamsText = unseal("seams", 1, bytes)?;
        let standing = text.seams.into_iter().map(SeamText::read).collect::<Result<_, _>>()?;
        Ok(Self { under_way: text.under_way.map(SeamText::read).transpose()?, standing })
    }
}

#[derive(Serialize, Deserialize)]
struct SeamsText {
    under_way: Option<SeamText>,
    seams: Vec<SeamText>,
}

#[derive(Serialize, Deserialize)]
struct SeamText {
    timeline: u32,
    at: String,
}

impl SeamText {
    fn of(seam: &Seam) -> Self {
        Self { timeline: seam.tli.raw(), at: seam.at.to_string() }
    }

    fn read(self) -> Result<Seam, Unreadable> {
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        Ok(Seam {
            tli: TimelineId::new(self.timeline).ok_or_else(|| wrong("timeline"))?,
            at: self.at.parse().map_err(|_| wrong("at"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seam(tli: u32, at: u64) -> Seam {
        Seam { tli: TimelineId::new(tli).unwrap(), at: Lsn::new(at) }
    }

    #[test]
    fn one_is_under_way_and_all_stand_until_they_are_confirmed() {
        let mut seams = Seams::default();
        seams.begin(seam(1, 50)).unwrap();
        assert_eq!(seams.begin(seam(1, 50)), Ok(()), "again");
        assert_eq!(seams.begin(seam(1, 40)), Err(NoSeam::UnderWay(seam(1, 50))));
        assert_eq!(seams.confirm(Lsn::new(50)), [], "it is not finished");
        seams.finish();
        seams.begin(seam(1, 40)).unwrap();
        assert_eq!(seams.under_way(), Some(seam(1, 40)));
        seams.finish();
        assert_eq!(seams.iter().copied().collect::<Vec<_>>(), [seam(1, 50), seam(1, 40)]);
        assert_eq!(seams.confirm(Lsn::new(50)), [seam(1, 50)]);
        assert_eq!(seams.confirm(Lsn::new(50)), []);
        assert!(!seams.is_empty());
    }

    #[test]
    fn they_are_bounded() {
        let mut seams = Seams::default();
        for at in 0..MOST as u64 {
            seams.begin(seam(1, at)).unwrap();
            seams.finish();
        }
        assert_eq!(seams.begin(seam(1, 1000)), Err(NoSeam::TooMany));
        assert_eq!(seams.begin(seam(1, 7)), Ok(()), "it stands already");
    }

    #[test]
    fn the_first_counts_that_a_slot_has_not_followed_over() {
        let mut seams = Seams::default();
        for known in [seam(1, 50), seam(1, 40), seam(2, 30)] {
            seams.begin(known).unwrap();
            seams.finish();
        }
        let first = |tli: u32, slot: Option<u64>| {
            let at = seams.first_before(TimelineId::new(tli).unwrap(), slot.map(Lsn::new));
            at.map(Lsn::raw)
        };
        assert_eq!(first(1, None), Some(40));
        assert_eq!(
            [40, 41, 50, 51].map(|slot| first(1, Some(slot))),
            [Some(40), Some(50), Some(50), None]
        );
        assert_eq!((first(2, None), first(3, None)), (Some(30), None));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let mut seams = Seams::default();
        seams.begin(seam(3, 50)).unwrap();
        let mut bytes = seams.encode();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(Seams::decode(&bytes).is_err() && Seams::decode(b"").is_err());
    }

    proptest! {
        #[test]
        fn round_trip(
            all in proptest::collection::vec((1u32..5, any::<u64>()), 0..5),
            is_finished: bool,
        ) {
            let mut seams = Seams::default();
            for (n, (tli, at)) in all.iter().enumerate() {
                seams.begin(seam(*tli, *at)).unwrap();
                if n + 1 < all.len() || is_finished {
                    seams.finish();
                }
            }
            prop_assert_eq!(Seams::decode(&seams.encode()), Ok(seams));
        }
    }
}
