//! The watermark: how far the WAL of a timeline is durable. The one core that receives publishes
//! it; all cores that send observe it.
//!
//! There is one append-only [`Cell`] per timeline. A cursor belongs to a cell, and a cell's
//! position never goes back. So no pair of (timeline, LSN) can tear, and nothing that a sender has
//! seen becomes untrue. This keeps I2's "each cell monotone" and gives I3 its limit.
//!
//! A [`Bell`] per core says whether the core sleeps. Release/acquire alone loses
//! wake-ups here (both sides may read the old value), hence the fences.
#![forbid(unsafe_code)]

#[cfg(all(test, walhub_loom))]
mod models;
pub(crate) mod sync;

use self::sync::{AtomicBool, AtomicU64, Fence, Ordering, full_fence};
use crate::wal::{Lsn, TimelineId};
use crossbeam::utils::CachePadded;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

/// Names a cell in this process; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CellId(u32);

impl CellId {
    /// The number, for tables keyed by cells.
    pub const fn raw(self) -> u32 {
        self.0
    }

    fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(id != u32::MAX, "cell numbers are used up");
        Self(id)
    }
}

/// How far one timeline's WAL is durable here.
///
/// Only the receive role writes it; every core reads it.
#[derive(Debug)]
pub struct Cell {
    id: CellId,
    tli: TimelineId,
    start: Lsn,
    durable: CachePadded<AtomicU64>,
    end: AtomicU64,
    next: OnceLock<Arc<Cell>>,
}

impl Cell {
    /// A cell for timeline `tli`, which begins at `start` and is durable up to
    /// `durable`.
    pub fn new(tli: TimelineId, start: Lsn, durable: Lsn) -> Self {
        assert!(start <= durable, "a cell is durable from its start: {start} > {durable}");
        Self {
            id: CellId::fresh(),
            tli,
            start,
            durable: CachePadded::new(AtomicU64::new(durable.raw())),
            end: AtomicU64::new(Lsn::MAX.raw()),
            next: OnceLock::new(),
        }
    }

    /// The cell's name.
    pub fn id(&self) -> CellId {
        self.id
    }

    /// The timeline.
    pub fn tli(&self) -> TimelineId {
        self.tli
    }

    /// Where the timeline begins (the parent's switchpoint).
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Everything before this position is durable here. A caller that reads it also sees the bytes
    /// and the chunks that were filled before it was published.
    pub fn durable(&self) -> Lsn {
        Lsn::new(self.durable.load(Ordering::Acquire))
    }

    /// Makes WAL up to `to` visible to the senders. One thread publishes; afterwards
    /// it asks every [`Bell`].
    pub fn publish(&self, to: Lsn) {
        let from = Lsn::new(self.durable.load(Ordering::Relaxed));
        assert!(from <= to, "the watermark of {:?} goes back: {from} to {to}", self.tli);
        assert!(self.end().is_none_or(|end| to <= end), "{to} is past the end of {:?}", self.tli);
        self.durable.store(to.raw(), Ordering::Release);
    }

    /// The switchpoint, once the timeline has ended. It may lie before [`Cell::durable`]: the rest
    /// then belongs to an abandoned branch.
    pub fn end(&self) -> Option<Lsn> {
        let end = Lsn::new(self.end.load(Ordering::Acquire));
        (end != Lsn::MAX).then_some(end)
    }

    /// Ends the timeline at `end`, once and for all.
    pub fn seal(&self, end: Lsn) {
        assert!(self.start <= end && end != Lsn::MAX, "{:?} cannot end at {end}", self.tli);
        let before = self.end();
        assert!(before.is_none(), "{:?} is sealed twice: {before:?}, {end}", self.tli);
        self.end.store(end.raw(), Ordering::Release);
    }

    /// No message to a standby may extend past this: min(durable, end).
    pub fn limit(&self) -> Lsn {
        let durable = self.durable();
        self.end().map_or(durable, |end| end.min(durable))
    }

    /// The timeline that follows, once it is ready to be streamed.
    pub fn next(&self) -> Option<Arc<Cell>> {
        self.next.get().cloned()
    }

    /// Names the following timeline, after sealing and after `next` is ready.
    pub fn link(&self, next: Arc<Cell>) {
        assert!(self.end().is_some(), "{:?} is followed before its end", self.tli);
        assert!(self.next.set(next).is_ok(), "{:?} is followed twice", self.tli);
    }
}

/// Shutdown: whether the watermarks have stopped moving.
#[derive(Debug)]
pub struct Quiescence(AtomicBool);

impl Default for Quiescence {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Quiescence {
    /// Marks that no watermark moves any more. Afterwards the caller asks every [`Bell`].
    pub fn come(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the mark is set. A caller that reads `true` sees every watermark's final position.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether a core sleeps. There is one bell per core, asked by every thread that has work for it.
///
/// The core: [`Bell::arm`], check every watermark and every queue once more, sleep only if nothing
/// has changed, [`Bell::disarm`]. The others: make the work visible, then [`Bell::rings_needed`].
#[derive(Debug)]
pub struct Bell {
    /// Every change is a read-modify-write. That makes one chain of changes, in which a publisher's
    /// old "awake" cannot be taken for an answer to a newer "I sleep".
    sleeping: CachePadded<AtomicBool>,
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

impl Bell {
    /// The bell of a core that is awake.
    pub fn new() -> Self {
        Self { sleeping: CachePadded::new(AtomicBool::new(false)) }
    }

    /// "I am going to sleep." If a thread made work visible and then found the core awake, every
    /// check after this call sees that work.
    pub fn arm(&self) {
        self.sleeping.swap(true, Ordering::Relaxed);
        full_fence(Fence::Arm);
    }

    /// "I am awake." Called after sleeping, or when the last check found work.
    pub fn disarm(&self) {
        self.sleeping.swap(false, Ordering::Relaxed);
    }

    /// Whether the caller must wake the core. True for one caller per sleep, which then has the
    /// duty. A wake-up costs it microseconds.
    #[must_use = "the caller that gets true must wake the core, nobody else will"]
    pub fn rings_needed(&self) -> bool {
        full_fence(Fence::Ring);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(raw: u32) -> TimelineId {
        TimelineId::new(raw).unwrap()
    }

    #[test]
    fn the_limit_is_the_smaller_of_durable_and_end() {
        let cell = Cell::new(tli(1), Lsn::new(100), Lsn::new(200));
        assert_eq!((cell.limit(), cell.end()), (Lsn::new(200), None));
        cell.publish(Lsn::new(300));
        cell.publish(Lsn::new(300));
        assert_eq!(cell.limit(), Lsn::new(300));
        cell.seal(Lsn::new(250));
        assert_eq!((cell.durable(), cell.limit()), (Lsn::new(300), Lsn::new(250)));
        assert_eq!(cell.end(), Some(Lsn::new(250)));
    }

    #[test]
    fn cells_have_their_own_names_and_follow_each_other() {
        let old = Cell::new(tli(1), Lsn::new(0), Lsn::new(200));
        let new = Arc::new(Cell::new(tli(2), Lsn::new(200), Lsn::new(200)));
        assert_ne!(old.id(), new.id());
        assert!(old.next().is_none());
        old.seal(Lsn::new(200));
        old.link(Arc::clone(&new));
        assert_eq!(old.next().map(|cell| cell.id()), Some(new.id()));
    }

    #[test]
    #[should_panic(expected = "goes back")]
    fn a_watermark_never_goes_back() {
        let cell = Cell::new(tli(1), Lsn::new(0), Lsn::new(200));
        cell.publish(Lsn::new(199));
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn nothing_is_published_past_the_end() {
        let cell = Cell::new(tli(1), Lsn::new(0), Lsn::new(200));
        cell.seal(Lsn::new(200));
        cell.publish(Lsn::new(201));
    }

    #[test]
    #[should_panic(expected = "sealed twice")]
    fn a_timeline_ends_once() {
        let cell = Cell::new(tli(1), Lsn::new(0), Lsn::new(200));
        cell.seal(Lsn::new(200));
        cell.seal(Lsn::new(200));
    }

    #[test]
    fn a_sleeper_is_rung_once() {
        let bell = Bell::new();
        assert!(!bell.rings_needed());
        bell.arm();
        assert!(bell.rings_needed());
        assert!(!bell.rings_needed());
        bell.arm();
        bell.disarm();
        assert!(!bell.rings_needed());
    }
}
