//! Where a timeline left its ancestors, as far as the pages show it.

use super::ids::TimelineId;
use super::lsn::Lsn;
use std::sync::Arc;

/// An ancestor of the streamed timeline, and where it was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ancestor {
    /// The ancestor.
    pub tli: TimelineId,
    /// Its switchpoint: the first position that belongs to its child.
    pub end: Lsn,
}

/// Where a timeline left its ancestors, from its history file.
///
/// A page carries the timeline on which it was *begun*. The parent begins the page that holds the
/// switchpoint, and the child continues it under the parent's number. The first page that starts at
/// or past the switchpoint carries the child's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fork {
    ancestors: Arc<[Ancestor]>,
    start: Lsn,
}

impl Fork {
    /// The ancestors in the order of the history file, the parent last. Returns `None` when there
    /// are none.
    pub fn new(ancestors: &[Ancestor]) -> Option<Self> {
        let start = ancestors.last()?.end;
        Some(Self { ancestors: ancestors.into(), start })
    }

    /// Where the streamed timeline starts: its parent's switchpoint.
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Whether a page that starts at `page`, before the fork, may carry `tli`.
    pub(super) fn allows(&self, page: Lsn, tli: u32) -> bool {
        // The newest of several, as in `tliOfPointInHistory`: an ancestor's range can be empty
        // after a point-in-time recovery that stopped before an older fork.
        let begins = self.ancestors.iter().map(|older| older.end);
        let begins = std::iter::once(Lsn::INVALID).chain(begins);
        let ranges = self.ancestors.iter().zip(begins);
        let holds = |ancestor: &Ancestor, begin: Lsn| begin <= page && page < ancestor.end;
        match ranges.filter(|(ancestor, begin)| holds(ancestor, *begin)).last() {
            Some((ancestor, _)) if ancestor.tli.raw() == tli => true,
            // A history may have lost its beginning (PostgreSQL accepts that a parent's file is
            // gone). The pages then know better.
            Some((_, begin)) => begin.is_invalid() && tli != 0 && self.older_than_all(tli),
            None => false,
        }
    }

    fn older_than_all(&self, tli: u32) -> bool {
        self.ancestors.iter().all(|ancestor| tli < ancestor.tli.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(ancestors: &[(u32, u64)]) -> Fork {
        let ancestor = |&(tli, end): &(u32, u64)| Ancestor {
            tli: TimelineId::new(tli).unwrap(),
            end: Lsn::new(end),
        };
        Fork::new(&ancestors.iter().map(ancestor).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn pages_belong_to_whom_they_were_begun_by() {
        let fork = fork(&[(1, 0x5000), (3, 0x9000)]);
        assert_eq!(fork.start(), Lsn::new(0x9000));
        for (page, owner) in [(0, 1), (0x4000, 1), (0x5000, 3), (0x6000, 3), (0x8000, 3)] {
            for tli in 0..5 {
                assert_eq!(fork.allows(Lsn::new(page), tli), tli == owner, "{page:X} {tli}");
            }
        }
        assert!(!fork.allows(Lsn::new(0x9000), 3));
        assert_eq!(Fork::new(&[]), None);
    }

    #[test]
    fn lost_beginning_of_a_history_is_left_to_the_pages() {
        let fork = fork(&[(3, 0x5000), (4, 0x9000)]);
        let allowed = |page| (0..6).filter(|tli| fork.allows(Lsn::new(page), *tli)).collect();
        let (first, second): (Vec<_>, Vec<_>) = (allowed(0x2000), allowed(0x6000));
        assert_eq!(first, [1, 2, 3]);
        assert_eq!(second, [4]);
    }

    #[test]
    fn empty_range_of_an_ancestor() {
        // Recovery along timeline 2 stopped before the point where 2 had left 1.
        let fork = fork(&[(1, 0x9000), (2, 0x5000)]);
        assert!(fork.allows(Lsn::new(0x4000), 1));
        assert!(!fork.allows(Lsn::new(0x4000), 2));
    }
}
