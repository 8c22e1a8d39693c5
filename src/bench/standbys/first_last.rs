//! The first and the last of all good standbys to receive a commit, across all threads.

use super::outcome::histogram;
use crate::bench::clock::Nanos;
use hdrhistogram::Histogram;
use std::collections::VecDeque;

/// A commit that all good standbys of one thread have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) due: Nanos,
    /// The first and the last receipt on the thread; `None` when it has no such standbys.
    pub(super) times: Option<(Nanos, Nanos)>,
    /// The time of some standby is unknown.
    pub(super) lost: bool,
}

/// Merges the threads' reports, each of which is in commit order.
#[derive(Debug)]
pub(super) struct FirstLast {
    /// Number of the first entry.
    base: u64,
    entries: VecDeque<Done>,
    /// The number of the next commit to be reported, by thread.
    done_to: Vec<u64>,
    since: Nanos,
    first: Histogram<u64>,
    last: Histogram<u64>,
    lost: u64,
}

impl FirstLast {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            base: 0,
            entries: VecDeque::new(),
            done_to: vec![0; threads],
            since: Nanos(0),
            first: histogram(),
            last: histogram(),
            lost: 0,
        }
    }

    /// Only commits from `since` on count.
    pub(super) fn mark(&mut self, since: Nanos) {
        self.since = since;
        self.first.reset();
        self.last.reset();
        self.lost = 0;
    }

    /// A thread has finished these commits; the first has number `from`.
    pub(super) fn take(&mut self, thread: usize, from: u64, done: &[Done]) {
        let unknown = Done { due: Nanos(0), times: None, lost: true };
        for (number, done) in (from..).zip(done) {
            let Some(place) = number.checked_sub(self.base) else { continue };
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            while self.entries.len() < place {
                self.entries.push_back(unknown);
            }
            match self.entries.get_mut(place) {
                Some(entry) => entry.merge(done),
                None => self.entries.push_back(*done),
            }
        }
        if let Some(done_to) = self.done_to.get_mut(thread) {
            *done_to = (*done_to).max(from + done.len() as u64);
        }
        let all = self.done_to.iter().copied().min().unwrap_or(0);
        while self.base < all {
            let Some(entry) = self.entries.pop_front() else {
                self.base = all;
                break;
            };
            self.base += 1;
            self.record(&entry);
        }
    }

    fn record(&mut self, entry: &Done) {
        if entry.due < self.since {
            return;
        }
        match entry.times {
            Some((first, last)) if !entry.lost => {
                self.first.saturating_record(first.0.saturating_sub(entry.due.0));
                self.last.saturating_record(last.0.saturating_sub(entry.due.0));
            }
            Some(_) => self.lost += 1,
            None => self.lost += u64::from(entry.lost),
        }
    }

    /// The median and the 99th percentile of the times until a commit reached every good standby.
    pub(super) fn last_so_far(&self) -> Option<(u64, u64)> {
        let at = |quantile| self.last.value_at_quantile(quantile);
        (!self.last.is_empty()).then(|| (at(0.5), at(0.99)))
    }

    /// The histograms, and how many of `commits` were not received by all.
    pub(super) fn result(&self, commits: u64) -> (Histogram<u64>, Histogram<u64>, u64) {
        let missing = commits.saturating_sub(self.base);
        (self.first.clone(), self.last.clone(), self.lost + missing)
    }
}

impl Done {
    fn merge(&mut self, other: &Self) {
        self.due = self.due.max(other.due);
        self.lost |= other.lost;
        self.times = match (self.times, other.times) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, None) | (None, one) => one,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(due: u64, times: Option<(u64, u64)>) -> Done {
        let times = times.map(|(first, last)| (Nanos(first), Nanos(last)));
        Done { due: Nanos(due), times, lost: false }
    }

    #[test]
    fn the_last_of_all_threads_counts() {
        let mut books = FirstLast::new(3);
        books.take(0, 0, &[done(10, Some((20, 30))), done(20, Some((25, 26)))]);
        books.take(1, 0, &[done(10, Some((15, 60)))]);
        assert_eq!(books.result(2).2, 2, "the third thread has not spoken");
        // This thread has no good standbys.
        books.take(2, 0, &[done(10, None), done(20, None)]);
        let (first, last, missing) = books.result(2);
        assert_eq!((first.len(), first.max(), last.max(), missing), (1, 5, 50, 1));
        books.take(1, 1, &[done(20, Some((90, 120)))]);
        let (first, last, missing) = books.result(2);
        assert_eq!((first.len(), first.max(), last.max(), missing), (2, 5, 100, 0));
    }

    #[test]
    fn a_thread_that_lost_commits_says_so() {
        let mut books = FirstLast::new(2);
        books.take(0, 0, &[done(10, Some((20, 30)))]);
        books.take(1, 2, &[done(30, Some((40, 40)))]);
        books.take(0, 1, &[done(20, Some((20, 30))), done(30, Some((35, 50)))]);
        let (first, _, missing) = books.result(3);
        assert_eq!((first.len(), missing), (2, 1));
    }
}
