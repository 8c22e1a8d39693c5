//! Finding the oldest segment an upstream still has, with few requests.
//!
//! A server keeps one run of segments up to the newest, so doubling steps backwards followed by
//! halving finds its start. No I/O here.

use crate::wal::{Lsn, SegmentNo, SegmentSize};

/// The search.
#[derive(Debug, Clone)]
pub struct OldestSearch {
    size: SegmentSize,
    /// The lowest segment known to exist.
    present: u64,
    /// The highest segment known to be missing. Segment 0 never exists.
    missing: u64,
    /// The next step backwards; `None` once a segment was missing.
    step: Option<u64>,
}

impl OldestSearch {
    /// `newest` lies in a segment that exists.
    pub const fn new(newest: Lsn, size: SegmentSize) -> Self {
        Self { size, present: newest.segment(size).raw(), missing: 0, step: Some(1) }
    }

    /// The segment start to try next; `None` when [`OldestSearch::oldest`] is the answer.
    pub fn probe(&self) -> Option<Lsn> {
        self.candidate().map(|no| SegmentNo::new(no).start(self.size))
    }

    /// Notes that the segment of the last probe exists.
    pub fn found(&mut self) {
        if let Some(no) = self.candidate() {
            self.present = no;
            self.step = self.step.and_then(|step| step.checked_mul(2));
        }
    }

    /// Notes that the segment of the last probe has been removed.
    pub fn removed(&mut self) {
        if let Some(no) = self.candidate() {
            self.missing = no;
            self.step = None;
        }
    }

    /// Start of the oldest segment known to exist.
    pub fn oldest(&self) -> Lsn {
        SegmentNo::new(self.present).start(self.size)
    }

    fn candidate(&self) -> Option<u64> {
        let room = self.present.checked_sub(self.missing)?;
        if room <= 1 {
            return None;
        }
        let step = self.step.unwrap_or(room / 2).min(room - 1);
        self.present.checked_sub(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_the_oldest_in_few_probes(oldest in 1u64..100_000, kept in 0u64..100_000) {
            let size = SegmentSize::new(16 << 20).unwrap();
            let newest = SegmentNo::new(oldest + kept).start(size);
            let mut search = OldestSearch::new(newest.saturating_add(123), size);
            let mut probes = 0;
            while let Some(lsn) = search.probe() {
                probes += 1;
                if lsn.segment(size).raw() >= oldest { search.found() } else { search.removed() }
            }
            prop_assert_eq!(search.oldest(), SegmentNo::new(oldest).start(size));
            prop_assert!(probes <= 36, "{} probes", probes);
        }
    }

    #[test]
    fn segment_zero_and_one_need_no_probe() {
        let size = SegmentSize::new(1 << 20).unwrap();
        for newest in [0, 1 << 20] {
            let search = OldestSearch::new(Lsn::new(newest), size);
            assert_eq!(search.probe(), None);
            assert_eq!(search.oldest(), Lsn::new(newest));
        }
    }
}
