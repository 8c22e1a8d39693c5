//! The search in our own files, from the end of our WAL backwards, for the record that proves a
//! history. Nothing is remembered about such records: a start finds them as a running hub does, and
//! so does the end of a timeline that is left.

use crate::upstream::proof::{DISTANCE, REACH};
use crate::wal::Lsn;
use crate::wal::page::PageRules;
use crate::wal::walk::Walker;
use std::io;

/// How much is walked at once. No segment is smaller, so a window lies in one file.
const WINDOW: u64 = 1 << 20;

/// Where the comparison has to begin, and what it proves if everything from there on is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProofStart {
    /// A page's start; the end itself when nothing of ours can be compared.
    pub(super) from: Lsn,
    /// The time-stamped record.
    pub(super) record: Result<Lsn, NoRecord>,
}

impl ProofStart {
    /// Why equal bytes up to `end` prove nothing; `None` when they prove it.
    pub(super) fn weakness(&self, end: Lsn) -> Option<String> {
        let from = self.from;
        Some(match self.record.as_ref().err()? {
            NoRecord::NoneHere => {
                format!(
                    "this hub has no time-stamped record (commit, abort, checkpoint) before {end}"
                )
            }
            NoRecord::TooFar => format!("this hub has no time-stamped record near {end}"),
            NoRecord::Unreadable(error) => {
                format!("this hub's own WAL before {from} cannot be read: {error}")
            }
        })
    }
}

/// Why there is no time-stamped record to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoRecord {
    /// What is here has none.
    NoneHere,
    /// None was found that near.
    TooFar,
    /// Our WAL before `from` cannot be read.
    Unreadable(String),
}

/// Finds the newest time-stamped record that ends at least 1 MiB before `end`, in WAL of ours whose
/// pages follow `rules` and which is here from `oldest` on. When all that is here is nearer, or has
/// none so far back, any record of it will do: then everything that is here is compared. `read`
/// reads what lies in one segment.
pub(super) fn search(
    rules: &PageRules,
    oldest: Lsn,
    end: Lsn,
    read: impl Fn(Lsn, Lsn) -> io::Result<Vec<u8>>,
) -> ProofStart {
    let oldest = oldest.page_start();
    let far = end.saturating_sub(DISTANCE);
    let limit = end.saturating_sub(REACH);
    let (mut to, mut near) = (end, None);
    while to > oldest {
        if to <= limit {
            return ProofStart { from: to, record: Err(NoRecord::TooFar) };
        }
        let window = Lsn::new((to.raw() - 1) / WINDOW * WINDOW).max(oldest);
        let bytes = match read(window, to) {
            Ok(bytes) => bytes,
            Err(error) => {
                return ProofStart {
                    from: to,
                    record: Err(NoRecord::Unreadable(error.to_string())),
                };
            }
        };
        let early = (far.max(window).bytes_since(window) as usize).min(bytes.len());
        let (early, late) = bytes.split_at(early);
        let mut walker = Walker::new(rules.clone(), window);
        // What does not pass the walk is compared all the same.
        walker.feed(early).ok();
        if let Some(record) = walker.last_time_stamped() {
            return ProofStart { from: record.page_start(), record: Ok(record) };
        }
        walker.feed(late).ok();
        near = near.or(walker.last_time_stamped());
        to = window;
    }
    ProofStart { from: oldest.min(end), record: near.ok_or(NoRecord::NoneHere) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::synth::Synth;
    use crate::wal::{SegmentSize, SystemId, TimelineId};

    const START: Lsn = Lsn::new(5 << 20);

    /// WAL of records of 1 kB, with commits before those whose number is named.
    struct Log {
        rules: PageRules,
        bytes: Vec<u8>,
        commits: Vec<Lsn>,
    }

    impl Log {
        fn new(records: u64, commits: &[u64]) -> Self {
            let (system, magic) = (SystemId::new(7), 0xD110);
            let (size, tli) = (SegmentSize::new(1 << 20).unwrap(), TimelineId::FIRST);
            let mut synth = Synth::new(system, size, tli, magic, START);
            let mut at = Vec::new();
            for n in 0..records {
                if commits.contains(&n) {
                    at.push(synth.commit(1, 7));
                }
                synth.record(&[n as u8; 1000]);
            }
            let rules = PageRules { system, size, tli, magic: None, fork: None };
            Self { rules, bytes: synth.take_bytes().1, commits: at }
        }

        fn end(&self) -> Lsn {
            START.saturating_add(self.bytes.len() as u64)
        }

        /// Searches with what lies before `readable` missing on the disk.
        fn search(&self, oldest: Lsn, readable: Lsn) -> ProofStart {
            search(&self.rules, oldest, self.end(), |from, to| {
                assert_eq!(from.raw() >> 20, (to.raw() - 1) >> 20, "in one segment");
                if from < readable {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let at = |lsn: Lsn| lsn.bytes_since(START) as usize;
                Ok(self.bytes[at(from)..at(to)].to_vec())
            })
        }
    }

    #[test]
    fn the_newest_record_far_enough_back_is_found() {
        let log = Log::new(4000, &[10, 1500, 2000, 3500, 3990]);
        assert!(log.end().bytes_since(log.commits[2]) > DISTANCE);
        let found = log.search(START, START);
        let from = log.commits[2].page_start();
        assert_eq!(found, ProofStart { from, record: Ok(log.commits[2]) });
    }

    #[test]
    fn with_less_wal_than_that_everything_is_compared() {
        // Nothing is a MiB back.
        let log = Log::new(900, &[10, 800]);
        let record = Ok(log.commits[1]);
        assert_eq!(log.search(START, START), ProofStart { from: START, record });
        // What is here from a segment on has none so far back.
        let log = Log::new(4000, &[10, 3990]);
        let oldest = Lsn::new(6 << 20);
        let record = Ok(log.commits[1]);
        assert_eq!(log.search(oldest, START), ProofStart { from: oldest, record });
        // It reaches back for it where there is more.
        let from = log.commits[0].page_start();
        assert_eq!(log.search(START, START), ProofStart { from, record: Ok(log.commits[0]) });
    }

    #[test]
    fn without_a_record_nothing_is_proved() {
        let log = Log::new(3000, &[]);
        let found = log.search(START, START);
        assert_eq!(found, ProofStart { from: START, record: Err(NoRecord::NoneHere) });
        // Nothing that lies before the end is here.
        let found = log.search(Lsn::new(9 << 20), START);
        assert_eq!(found, ProofStart { from: log.end(), record: Err(NoRecord::NoneHere) });
    }

    #[test]
    fn what_cannot_be_read_is_where_the_search_ends() {
        let log = Log::new(4000, &[10, 3990]);
        let readable = Lsn::new(7 << 20);
        let found = log.search(START, readable);
        assert_eq!(found.from, readable);
        assert!(matches!(found.record, Err(NoRecord::Unreadable(_))), "{found:?}");
        let found = log.search(START, log.end());
        assert_eq!(found.from, log.end());
    }
}
