//! How fast WAL comes in, and for how long the disk has had no room for it.

use crate::store::now::Now;
use crate::store::retention::Receiving;
use crate::wal::Lsn;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The pace is measured over at least this time.
const MEASURED: Duration = Duration::from_secs(1);

/// What retention remembers from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Where the WAL ended when the pace was measured last.
    at: Cell<Option<(Instant, Lsn)>>,
    /// Bytes in a second.
    pace: Cell<u64>,
    paused_since: Cell<Option<Instant>>,
}

impl Pressure {
    /// The WAL ends at `newest`. Returns how much comes in, in bytes in a second.
    pub(super) fn measure(&self, newest: Lsn, now: Now) -> u64 {
        let Some((at, before)) = self.at.get() else {
            self.at.set(Some((now.instant, newest)));
            return 0;
        };
        let passed = now.since(at);
        if passed >= MEASURED {
            let bytes = u128::from(newest.raw().saturating_sub(before.raw()));
            let pace = bytes * 1000 / passed.as_millis().max(1);
            self.pace.set(u64::try_from(pace).unwrap_or(u64::MAX));
            self.at.set(Some((now.instant, newest)));
        }
        self.pace.get()
    }

    /// The pace that was measured last.
    pub(super) fn pace(&self) -> u64 {
        self.pace.get()
    }

    /// For how long no WAL has come in; `None` while it does.
    pub(super) fn paused(&self, now: Now) -> Option<Duration> {
        self.paused_since.get().map(|since| now.since(since))
    }

    /// It was decided whether WAL comes in.
    pub(super) fn note(&self, receiving: Receiving, now: Now) {
        let since = self.paused_since.get().unwrap_or(now.instant);
        self.paused_since.set((receiving == Receiving::Paused).then_some(since));
    }

    /// It was about WAL that is no longer here.
    pub(super) fn clear(&self) {
        self.at.set(None);
        self.pace.set(0);
        self.paused_since.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_what_came_since_it_was_measured() {
        let (pressure, start) = (Pressure::default(), Now::by_system());
        let after =
            |millis| Now { instant: start.instant + Duration::from_millis(millis), ..start };
        assert_eq!(pressure.measure(Lsn::new(1000), start), 0);
        assert_eq!(pressure.measure(Lsn::new(9000), after(500)), 0, "too early to say");
        assert_eq!(pressure.measure(Lsn::new(9000), after(2000)), 4000);
        assert_eq!(pressure.measure(Lsn::new(9500), after(2500)), 4000);
        assert_eq!(pressure.measure(Lsn::new(9500), after(3000)), 500);
        assert_eq!(pressure.measure(Lsn::new(9500), after(4000)), 0);
    }
}
