//! What a walk notes of the records that it has proven.

use crate::wal::Lsn;
use crate::wal::record::{RecordHeader, transaction_time};

/// Notes something of each record that a walk has proven.
pub trait RecordNotes {
    /// A record that begins at `at` is proven. `body` is what follows its header, or the first 80
    /// bytes of that; zeros may follow a shorter one.
    fn note(&mut self, at: Lsn, header: &RecordHeader, body: &[u8]);
}

/// Counted since the walk began, or since the last [`Walker::take_tally`](super::Walker::take_tally).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole records.
    pub records: u64,
    /// Those of them with which a transaction commits.
    pub commits: u64,
    /// The earliest and the latest time of a commit, in microseconds since 2000.
    pub commit_times: Option<(i64, i64)>,
}

impl RecordNotes for Tally {
    #[inline]
    fn note(&mut self, _: Lsn, header: &RecordHeader, body: &[u8]) {
        self.records += 1;
        if header.is_commit() {
            self.note_commit(transaction_time(body));
        }
    }
}

impl Tally {
    fn note_commit(&mut self, time: Option<i64>) {
        self.commits += 1;
        self.commit_times = span(self.commit_times, time.map(|time| (time, time)));
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            commits: self.commits.saturating_add(other.commits),
            commit_times: span(self.commit_times, other.commit_times),
        }
    }
}

/// From the earlier beginning to the later end.
fn span(one: Option<(i64, i64)>, other: Option<(i64, i64)>) -> Option<(i64, i64)> {
    let both = one.zip(other);
    both.map(|((a, b), (c, d))| (a.min(c), b.max(d))).or(one).or(other)
}
