//! The positions that connected standbys still need, how far removal has gone, the slots,
//! and what waits for the archive.

use super::positions::{HeldPositions, Needed, StreamPosition, WalHolder};
use super::{Plan, Receiving, TooFull};
use crate::store::archive_status::Backlog;
use crate::store::asides::AsideBoard;
use crate::store::holes::{Extent, Hole};
use crate::store::scrub::ScrubBoard;
use crate::store::slots::{InvalidSlots, SlotFault, SlotSession, SlotToken, SlotUse, Slots};
use crate::wal::{Lsn, SegmentSize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The requested WAL is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL before {oldest_kept} has already been removed")]
pub struct Removed {
    /// The oldest position that is still here.
    pub oldest_kept: Lsn,
}

/// The positions that are still needed, and how far removal has gone. One lock orders the two: a
/// position is either held or refused, never granted and removed.
///
/// The slots have a lock of their own. Code that takes both takes the slots' lock first.
#[derive(Debug)]
pub struct Holds {
    /// The replication slots of this hub.
    pub slots: Arc<Slots>,
    /// What has to be archived before it goes. Has a lock of its own, never taken with others.
    pub backlog: Backlog,
    /// Which segments are damaged. Has a lock of its own, never taken with others.
    pub scrub: ScrubBoard,
    /// What was set aside. Has a lock of its own, never taken with others.
    pub asides: AsideBoard,
    /// The disk is too full for more WAL.
    paused: AtomicBool,
    /// How full. Has a lock of its own, never taken with others.
    too_full: Mutex<Option<TooFull>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    here: Extent,
    positions: HeldPositions,
}

impl Holds {
    /// Nobody holds anything; WAL from `oldest_kept` on is here.
    pub fn new(oldest_kept: Lsn) -> Self {
        Self::of(Extent::from(oldest_kept))
    }

    /// Nobody holds anything; `here` is what is here.
    pub fn of(here: Extent) -> Self {
        let inner = Mutex::new(Inner { here, positions: HeldPositions::default() });
        Self {
            slots: Arc::default(),
            backlog: Backlog::default(),
            scrub: ScrubBoard::default(),
            asides: AsideBoard::default(),
            paused: AtomicBool::new(false),
            too_full: Mutex::default(),
            inner,
        }
    }

    /// May WAL come in?
    pub fn receiving(&self) -> Receiving {
        match self.paused.load(Ordering::Acquire) {
            true => Receiving::Paused,
            false => Receiving::Open,
        }
    }

    /// Sets whether the disk is too full for more WAL. The receiver checks this before it takes
    /// any.
    pub fn set_too_full(&self, too_full: Option<TooFull>) {
        *self.too_full.lock().unwrap_or_else(PoisonError::into_inner) = too_full;
        self.paused.store(too_full.is_some(), Ordering::Release);
    }

    /// How full the disk is, while that keeps WAL from coming in.
    pub fn too_full(&self) -> Option<TooFull> {
        *self.too_full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets where the WAL begins, for a directory that was empty until now.
    pub fn begin(&self, oldest_kept: Lsn) {
        self.lock().here = Extent::from(oldest_kept);
    }

    /// The directory was looked at again, after WAL was set aside: this is what is here.
    pub fn found(&self, here: Extent) {
        self.lock().here = here;
    }

    /// Keeps the WAL from `lsn` on until the hold is dropped.
    pub fn hold(self: &Arc<Self>, lsn: Lsn) -> Result<Hold, Removed> {
        let mut inner = self.lock();
        let oldest_kept = inner.here.oldest;
        if lsn < oldest_kept {
            return Err(Removed { oldest_kept });
        }
        Ok(Hold { held: inner.positions.add(lsn), holds: Arc::clone(self), slot: None })
    }

    /// Like [`hold`](Self::hold), for when removed WAL comes back from the archive: what is here
    /// stays, and what is missing is no obstacle.
    pub fn hold_restorable(self: &Arc<Self>, lsn: Lsn) -> Hold {
        let held = self.lock().positions.add(lsn);
        Hold { held, holds: Arc::clone(self), slot: None }
    }

    /// Every stream: the position that it holds, and how far it was sent.
    pub fn spans(&self) -> Vec<(Lsn, Lsn)> {
        self.lock().positions.spans()
    }

    /// What streams need, and standbys that left within the grace.
    pub fn needed(&self, now: Instant, grace: Duration) -> Needed {
        self.lock().positions.needed(now, grace)
    }

    /// Everybody who holds WAL, those who left within the grace among them.
    pub fn holders(&self, now: Instant, grace: Duration) -> Vec<WalHolder> {
        self.lock().positions.holders(now, grace)
    }

    /// Gives a slot to a stream of the session.
    pub fn use_slot(
        &self,
        name: &str,
        session: SlotSession,
        invalid: InvalidSlots,
    ) -> Result<SlotUse, SlotFault> {
        let grant = self.slots.lock().acquire(name, session, invalid)?;
        Ok(SlotUse::new(Arc::clone(&self.slots), grant))
    }

    /// The oldest position that a standby needs, one that left within the grace among them.
    pub fn standbys_from(&self, now: Instant, grace: Duration) -> Option<Lsn> {
        self.lock().positions.standbys_from(now, grace)
    }

    /// Standbys needed WAL from here on when an earlier run ended. They may come back, as if they had
    /// left a moment ago.
    pub fn left_before(&self, from: Lsn) {
        let mut inner = self.lock();
        let from = from.max(inner.here.oldest);
        inner.positions.left_before(from);
    }

    /// The oldest position that is still here.
    pub fn oldest_kept(&self) -> Lsn {
        self.lock().here.oldest
    }

    /// The oldest position from which everything up to the end is here.
    pub fn unbroken_from(&self) -> Lsn {
        self.lock().here.unbroken_from()
    }

    /// What was missing at the start and still is, now that the WAL ends at `end`.
    pub fn missing(&self, end: Lsn) -> Vec<Hole> {
        self.lock().here.missing(end).collect()
    }

    /// What was missing at the start between the end of the WAL and open segments past it.
    pub fn hole_before_open(&self) -> Option<Hole> {
        self.lock().here.before_open
    }

    /// The oldest position that a connected standby needs.
    pub fn oldest_hold(&self) -> Option<Lsn> {
        self.lock().positions.oldest()
    }

    /// How many streams hold a position.
    pub fn count(&self) -> usize {
        self.lock().positions.count()
    }

    /// Notes who is there and who has left since the last time, and forgets who left more than
    /// `grace` ago.
    pub fn look(&self, now: Instant, grace: Duration) {
        self.lock().positions.look(now, grace);
    }

    /// Calls `plan` with what is needed and gives up what it says may go: from now on
    /// positions before it are refused. A plan that invalidates slots is only returned, because
    /// the invalidation has to be durable first.
    pub fn advance(
        &self,
        size: SegmentSize,
        (now, grace): (Instant, Duration),
        plan: impl FnOnce(&Needed) -> Plan,
    ) -> Plan {
        let mut inner = self.lock();
        let plan = plan(&inner.positions.needed(now, grace));
        if plan.invalidate.is_empty() {
            inner.here.give_up(plan.horizon.start(size));
        }
        plan
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held position; its WAL stays until the hold advances, and for the grace after it is dropped
/// when it was a standby's.
#[derive(Debug)]
pub struct Hold {
    held: Arc<StreamPosition>,
    holds: Arc<Holds>,
    /// Keeps WAL after this hold is gone.
    slot: Option<SlotUse>,
}

impl Hold {
    /// It is held for a standby of this name, which may leave and come back.
    pub fn for_standby(self, name: &str) -> Self {
        self.holds.lock().positions.name(&self.held, name);
        self
    }

    /// Attaches the slot in use; the slot is free when the hold is dropped.
    pub fn with_slot(mut self, slot: Option<SlotUse>) -> Self {
        self.slot = slot;
        self
    }

    /// Gives back the slot, if there is one. The position stays held.
    pub fn let_slot_go(&mut self) {
        self.slot = None;
    }

    /// The holder was sent WAL up to here, which it may lose before it is on its disk.
    pub fn sent(&self, lsn: Lsn) {
        self.held.note_sent(lsn);
    }

    /// The holder reports what it has written and flushed; 0/0 says nothing. WAL before the flush
    /// is no longer needed, or before what is written by one that never flushes. Nor need its slot,
    /// if any, keep WAL before the flush. A lower position than before is ignored here: that WAL
    /// may be gone already.
    pub fn report(&self, written: Lsn, flush: Lsn) {
        let has = if flush == Lsn::INVALID { written } else { flush };
        if has != Lsn::INVALID {
            self.held.report(has);
        }
        if let Some(slot) = &self.slot {
            slot.confirm(flush);
        }
    }

    /// Was the holder's slot invalidated since it was acquired?
    pub fn has_lost_slot(&self) -> bool {
        self.slot.as_ref().is_some_and(SlotUse::is_revoked)
    }

    /// Stands for the use of the slot, if there is one.
    pub fn slot_token(&self) -> Option<SlotToken> {
        self.slot.as_ref().map(SlotUse::token)
    }

    /// The position held.
    pub fn position(&self) -> Lsn {
        self.held.needed()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.lock().positions.leave(&self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MIN_KEPT_SEGMENTS, Policy, Situation, plan};
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_hold_keeps_and_lets_go() {
        let size = SegmentSize::new(MIB).unwrap();
        let holds = Arc::new(Holds::new(Lsn::new(3 * MIB)));
        assert_eq!(
            holds.hold(Lsn::new(3 * MIB - 1)).unwrap_err(),
            Removed { oldest_kept: Lsn::new(3 * MIB) }
        );
        let began = Instant::now();
        let hold = |lsn| holds.hold(Lsn::new(lsn)).unwrap();
        let (first, second) = (hold(5 * MIB + 7), hold(50 * MIB));
        let advance = |newest: u64| {
            let oldest = holds.oldest_kept().segment(size);
            let at = (began, Duration::ZERO);
            holds.look(at.0, at.1);
            holds.advance(size, at, |needed| {
                let situation = Situation::new(size, oldest, Lsn::new(newest * MIB));
                plan(&Policy::default(), &Situation { needed: needed.clone(), ..situation })
            });
            holds.oldest_kept().segment(size).raw()
        };
        assert_eq!(advance(100), 5);
        assert_eq!(holds.oldest_kept(), Lsn::new(5 * MIB));
        first.report(Lsn::INVALID, Lsn::new(60 * MIB));
        first.report(Lsn::INVALID, Lsn::new(6 * MIB));
        assert_eq!(advance(100), 50);
        drop(second);
        assert_eq!(advance(100), 60);
        drop(first);
        assert_eq!(advance(100), 100 - MIN_KEPT_SEGMENTS);
        assert_eq!(advance(90), 84, "the horizon never goes back");
        assert_eq!(holds.count(), 0);
    }
}
