//! When commits arrived, worked out from what was written down.

use super::{Commit, Nanos};
use std::time::Duration;
use walhub::wal::Lsn;

/// Spans, sorted when they are asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Percentiles(Vec<Nanos>);

impl Percentiles {
    pub(crate) fn new(mut spans: Vec<Nanos>) -> Self {
        spans.sort_unstable();
        Self(spans)
    }

    /// The span that so many per cent do not exceed; none when there is none.
    pub(crate) fn at(&self, percent: f64) -> Option<Duration> {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        self.0.get(rank.max(1) - 1).map(|nanos| Duration::from_nanos(*nanos))
    }

    /// In milliseconds; not a number when there is none.
    pub(crate) fn ms(&self, percent: f64) -> f64 {
        self.at(percent).map_or(f64::NAN, |span| span.as_secs_f64() * 1e3)
    }
}

/// Commit to receipt: at each standby, and at the last of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals {
    pub(crate) each: Percentiles,
    pub(crate) last: Percentiles,
    /// Commits that some standby did not receive while it was watched. They count as
    /// having arrived at the end, which is too early.
    pub(crate) missing: u64,
}

impl Arrivals {
    /// `commits` by their place in the WAL, `receipts` of each standby by time; `end`
    /// is when watching ended.
    pub(crate) fn new(commits: &[Commit], receipts: &[Vec<(Lsn, Nanos)>], end: Nanos) -> Self {
        let mut last: Vec<Nanos> = vec![0; commits.len()];
        let mut each = Vec::with_capacity(commits.len() * receipts.len());
        let mut missing = 0;
        for receipts in receipts {
            let mut receipts = receipts.iter().peekable();
            for (commit, last) in commits.iter().zip(&mut last) {
                while receipts.next_if(|(received, _)| *received <= commit.behind).is_some() {}
                let arrived = match receipts.peek() {
                    Some((_, when)) => *when,
                    None => {
                        missing += 1;
                        end
                    }
                };
                let span = arrived.saturating_sub(commit.due);
                each.push(span);
                *last = span.max(*last);
            }
        }
        Self { each: Percentiles::new(each), last: Percentiles::new(last), missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_counts() {
        let commit = |behind, due| Commit { behind: Lsn::new(behind), due, done: due };
        let commits = [commit(100, 10), commit(200, 20), commit(300, 30)];
        let at = |list: &[(u64, Nanos)]| {
            list.iter().map(|(lsn, when)| (Lsn::new(*lsn), *when)).collect::<Vec<_>>()
        };
        // The second receives two commits at once; 100 itself is not behind 100.
        let receipts =
            [at(&[(100, 11), (150, 15), (250, 25), (350, 35)]), at(&[(260, 40), (301, 41)])];
        let arrivals = Arrivals::new(&commits, &receipts, 99);
        assert_eq!(arrivals.last.0, [11, 20, 30]);
        assert_eq!(arrivals.each.0, [5, 5, 5, 11, 20, 30]);
        assert_eq!(arrivals.missing, 0);
        let arrivals = Arrivals::new(&commits, &receipts[..1], 99);
        assert_eq!(arrivals.each.at(50.0), Some(Duration::from_nanos(5)));
        let arrivals = Arrivals::new(&[commit(400, 50)], &receipts[..1], 99);
        assert_eq!((arrivals.missing, arrivals.last.0), (1, vec![49]));
    }

    #[test]
    fn percentiles_are_ranks() {
        let percentiles = Percentiles::new((1..=200).rev().collect());
        let at = |percent| percentiles.at(percent).map(|span| span.as_nanos());
        assert_eq!((at(50.0), at(99.0), at(100.0)), (Some(100), Some(198), Some(200)));
        assert_eq!(Percentiles::default().at(50.0), None);
    }
}
