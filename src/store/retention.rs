//! Which segments may go. Nothing that a connected standby or `wal_keep_size` needs.

use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// However small `wal_keep_size` is, so many complete segments stay.
pub const MIN_KEPT_SEGMENTS: u64 = 16;

/// The first segment that has to stay: nothing at or behind it is removed. `newest` is
/// the durable mark, `oldest_hold` the oldest position somebody still needs.
pub fn horizon(
    newest: Lsn,
    wal_keep: u64,
    oldest_hold: Option<Lsn>,
    size: SegmentSize,
) -> SegmentNo {
    let floor = MIN_KEPT_SEGMENTS.saturating_mul(size.bytes());
    let kept = newest.saturating_sub(wal_keep.max(floor));
    oldest_hold.map_or(kept, |hold| hold.min(kept)).segment(size)
}

/// The WAL asked for is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL before {oldest_kept} has already been removed")]
pub struct Removed {
    /// The oldest position that is still here.
    pub oldest_kept: Lsn,
}

/// The positions that somebody still needs, and how far removal has gone. One lock
/// orders the two: a position is either held or refused, never granted and removed.
///
/// The keeper holds the place where the next start's walk begins here too.
#[derive(Debug)]
pub struct Holds {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    oldest_kept: Lsn,
    positions: Vec<Arc<AtomicU64>>,
}

impl Holds {
    /// Nobody holds anything; WAL from `oldest_kept` on is here.
    pub fn new(oldest_kept: Lsn) -> Self {
        Self { inner: Mutex::new(Inner { oldest_kept, positions: Vec::new() }) }
    }

    /// The WAL begins here: for a directory that was empty until now.
    pub fn begin(&self, oldest_kept: Lsn) {
        self.lock().oldest_kept = oldest_kept;
    }

    /// Keeps the WAL from `lsn` on, until the hold is dropped.
    pub fn hold(self: &Arc<Self>, lsn: Lsn) -> Result<Hold, Removed> {
        let mut inner = self.lock();
        if lsn < inner.oldest_kept {
            return Err(Removed { oldest_kept: inner.oldest_kept });
        }
        let position = Arc::new(AtomicU64::new(lsn.raw()));
        inner.positions.push(Arc::clone(&position));
        Ok(Hold { position, holds: Arc::clone(self) })
    }

    /// The oldest position that is still here.
    pub fn oldest_kept(&self) -> Lsn {
        self.lock().oldest_kept
    }

    /// The oldest position that somebody needs.
    pub fn oldest_hold(&self) -> Option<Lsn> {
        self.lock().oldest_hold()
    }

    /// How many positions are held.
    pub fn count(&self) -> usize {
        self.lock().positions.len()
    }

    /// Gives up what nobody needs and returns the first segment that stays. From now
    /// on positions before it are refused.
    pub fn advance_horizon(&self, newest: Lsn, wal_keep: u64, size: SegmentSize) -> SegmentNo {
        let mut inner = self.lock();
        let kept = horizon(newest, wal_keep, inner.oldest_hold(), size);
        let oldest_kept = inner.oldest_kept.max(kept.start(size));
        inner.oldest_kept = oldest_kept;
        oldest_kept.segment(size)
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn oldest_hold(&self) -> Option<Lsn> {
        self.positions.iter().map(|held| Lsn::new(held.load(Ordering::Acquire))).min()
    }
}

/// Somebody's position; its WAL stays until it advances or is dropped.
#[derive(Debug)]
pub struct Hold {
    position: Arc<AtomicU64>,
    holds: Arc<Holds>,
}

impl Hold {
    /// WAL before `lsn` is no longer needed. Going back is ignored: that WAL may be
    /// gone already.
    pub fn advance(&self, lsn: Lsn) {
        // One writer. A keeper that still sees the old position keeps more.
        if lsn > self.position() {
            self.position.store(lsn.raw(), Ordering::Release);
        }
    }

    /// The position held.
    pub fn position(&self) -> Lsn {
        Lsn::new(self.position.load(Ordering::Relaxed))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.lock().positions.retain(|held| !Arc::ptr_eq(held, &self.position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    #[test]
    fn a_hold_keeps_and_lets_go() {
        let holds = Arc::new(Holds::new(Lsn::new(3 * MIB)));
        assert_eq!(
            holds.hold(Lsn::new(3 * MIB - 1)).unwrap_err(),
            Removed { oldest_kept: Lsn::new(3 * MIB) }
        );
        let first = holds.hold(Lsn::new(5 * MIB + 7)).unwrap();
        let second = holds.hold(Lsn::new(50 * MIB)).unwrap();
        let advance = |newest: u64| holds.advance_horizon(Lsn::new(newest * MIB), 0, size()).raw();
        assert_eq!(advance(100), 5);
        assert_eq!(holds.oldest_kept(), Lsn::new(5 * MIB));
        first.advance(Lsn::new(60 * MIB));
        first.advance(Lsn::new(6 * MIB));
        assert_eq!(advance(100), 50);
        drop(second);
        assert_eq!(advance(100), 60);
        drop(first);
        assert_eq!(advance(100), 100 - MIN_KEPT_SEGMENTS);
        assert_eq!(advance(90), 84, "the horizon never goes back");
        assert_eq!(holds.count(), 0);
    }

    proptest! {
        #[test]
        fn horizon_against_brute_force(
            newest in 0u64..200 * MIB,
            wal_keep in 0u64..100 * MIB,
            hold in proptest::option::of(0u64..220 * MIB),
        ) {
            let kept = horizon(Lsn::new(newest), wal_keep, hold.map(Lsn::new), size());
            for no in 0..kept.raw() {
                // Every byte of a removed segment is before everything needed.
                let end = (no + 1) * MIB;
                prop_assert!(hold.is_none_or(|hold| end <= hold));
                prop_assert!(end <= newest.saturating_sub(wal_keep));
                prop_assert!(end <= newest.saturating_sub(MIN_KEPT_SEGMENTS * MIB));
            }
        }
    }
}
