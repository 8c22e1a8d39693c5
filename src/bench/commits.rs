//! When each commit was due. Its arrival at a standby is measured against this time.
//!
//! The times are those of the schedule, not the moments when a busy generator or a blocked
//! connection got round to the commits. A server that stalls the load is therefore charged for the
//! stall (no coordinated omission).

use super::clock::Nanos;
use crate::wal::Lsn;
use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock};

/// A commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Ordinal, from 0.
    pub number: u64,
    /// The first byte after its WAL: a standby has the commit when it has received up to here.
    pub end: Lsn,
    /// When it was due.
    pub due: Nanos,
}

/// Commits of a run in WAL order; the oldest are dropped when there are too many.
#[derive(Debug)]
pub struct Commits {
    keep: usize,
    list: RwLock<List>,
}

#[derive(Debug)]
struct List {
    first: u64,
    commits: VecDeque<(Lsn, Nanos)>,
    known: Lsn,
}

impl Commits {
    /// An empty list which keeps at most `keep` commits.
    pub fn new(keep: usize) -> Self {
        let list = List { first: 0, commits: VecDeque::new(), known: Lsn::INVALID };
        Self { keep, list: RwLock::new(list) }
    }

    /// Adds the next commit. Ends must not decrease.
    pub fn add(&self, end: Lsn, due: Nanos) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.commits.push_back((end, due));
        list.known = list.known.max(end);
        if list.commits.len() > self.keep {
            list.commits.pop_front();
            list.first += 1;
        }
    }

    /// Declares that no further commit will end at or before `at`.
    pub fn complete_to(&self, at: Lsn) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.known = list.known.max(at);
    }

    /// Every commit that ends at or before this is in the list, or was. A receipt past it must
    /// wait: with a foreign primary, a standby can be faster than the primary's answer to the
    /// committing client.
    pub fn known(&self) -> Lsn {
        self.list.read().unwrap_or_else(PoisonError::into_inner).known
    }

    /// The number of commits so far, which is the number of the next one.
    pub fn count(&self) -> u64 {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.first + list.commits.len() as u64
    }

    /// Appends to `into` the commits from number `from` on that end at or before `received`, oldest
    /// first. Dropped ones are skipped.
    pub fn collect(&self, from: u64, received: Lsn, into: &mut Vec<Commit>) {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from(from.saturating_sub(list.first)).unwrap_or(usize::MAX);
        let numbers = list.first + skip as u64..;
        let due = list.commits.range(skip.min(list.commits.len())..);
        into.extend(
            due.zip(numbers)
                .take_while(|((end, _), _)| *end <= received)
                .map(|(&(end, due), number)| Commit { number, end, due }),
        );
    }

    /// The number of the first commit that ends after `at`: where a standby that begins there
    /// starts to count.
    pub fn first_after(&self, at: Lsn) -> u64 {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.first + list.commits.partition_point(|(end, _)| *end <= at) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_collected_once_each() {
        let commits = Commits::new(4);
        for n in 1..=6u64 {
            commits.add(Lsn::new(n * 100), Nanos(n));
        }
        assert_eq!(commits.count(), 6);
        let mut seen = Vec::new();
        commits.collect(0, Lsn::new(450), &mut seen);
        let numbers: Vec<_> = seen.iter().map(|c| (c.number, c.end.raw(), c.due.0)).collect();
        assert_eq!(numbers, [(2, 300, 3), (3, 400, 4)], "0 and 1 have left");
        seen.clear();
        commits.collect(4, Lsn::new(10_000), &mut seen);
        assert_eq!(seen.iter().map(|c| c.number).collect::<Vec<_>>(), [4, 5]);
        seen.clear();
        commits.collect(9, Lsn::new(10_000), &mut seen);
        assert!(seen.is_empty());
        assert_eq!(commits.first_after(Lsn::new(500)), 5);
        assert_eq!(commits.first_after(Lsn::new(499)), 4);
        commits.complete_to(Lsn::new(700));
        assert_eq!(commits.known(), Lsn::new(700));
    }
}
