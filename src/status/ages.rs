//! How old WAL is: when each position became durable here.
//!
//! The durable position is sampled once a second, so an age is accurate to a second. That costs the
//! cores nothing, and unlike a round trip an age keeps growing while a standby stands still.

use crate::wal::Lsn;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Samples kept; about an hour of a hub that receives all the time.
const MOST: usize = 3600;

/// Which position was durable when.
#[derive(Debug, Default)]
pub struct Ages {
    /// Both values increase.
    looks: VecDeque<(Instant, Lsn)>,
}

impl Ages {
    /// Notes that WAL up to `durable` is durable now.
    pub fn note(&mut self, now: Instant, durable: Lsn) {
        match self.looks.back() {
            Some((_, last)) if *last == durable => return,
            // The hub began anew.
            Some((_, last)) if *last > durable => self.looks.clear(),
            _ => {}
        }
        if self.looks.len() == MOST {
            self.looks.pop_front();
        }
        self.looks.push_back((now, durable));
    }

    /// For how long there has been WAL past `lsn` here: zero when there is none; `None` when it was
    /// there before the first sample.
    pub fn behind(&self, lsn: Lsn, now: Instant) -> Option<Duration> {
        let (_, newest) = self.looks.back()?;
        if lsn >= *newest {
            return Some(Duration::ZERO);
        }
        let first = self.looks.partition_point(|(_, durable)| *durable <= lsn);
        let before = first.checked_sub(1).and_then(|place| self.looks.get(place));
        // Nothing is known about the time before the first sample.
        before?;
        let (at, _) = self.looks.get(first)?;
        Some(now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_somebody_is_behind() {
        let t0 = Instant::now();
        let s = |n| t0 + Duration::from_secs(n);
        let mut ages = Ages::default();
        assert_eq!(ages.behind(Lsn::new(5), t0), None);
        for (at, durable) in [(0, 100), (1, 100), (2, 200), (3, 300), (9, 300)] {
            ages.note(s(at), Lsn::new(durable));
        }
        let behind = |lsn| ages.behind(Lsn::new(lsn), s(10)).map(|age| age.as_secs());
        assert_eq!(behind(300), Some(0));
        assert_eq!(behind(400), Some(0));
        assert_eq!(behind(299), Some(7));
        assert_eq!(behind(200), Some(7));
        assert_eq!(behind(199), Some(8));
        assert_eq!(behind(100), Some(8));
        assert_eq!(behind(99), None, "nobody knows");
        ages.note(s(11), Lsn::new(50));
        assert_eq!(ages.behind(Lsn::new(50), s(11)), Some(Duration::ZERO));
        assert_eq!(ages.looks.len(), 1);
    }

    #[test]
    fn looks_are_bounded() {
        let mut ages = Ages::default();
        for n in 0..2 * MOST as u64 {
            ages.note(Instant::now(), Lsn::new(n));
        }
        assert_eq!(ages.looks.len(), MOST);
    }
}
