//! The scrub of all complete segments: who asks for one, how far it is, and what it has found.

use super::{LastScrub, ScrubNote, SegmentDamage};
use crate::wal::{SegmentName, SegmentNo, TimelineId};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between the thread that reads the segments and everybody who asks about it.
#[derive(Debug, Default)]
pub struct ScrubBoard {
    state: Mutex<BoardState>,
    changed: Condvar,
    /// Is any segment damaged? So that who reads a file need not take the lock.
    any_damage: AtomicBool,
    /// How often damage was found, or a segment got another file.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct BoardState {
    note: ScrubNote,
    under_way: Option<ScrubProgress>,
    asked: bool,
    stopped: bool,
}

/// How far a scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Segments that were read.
    pub done: u64,
    /// All of them.
    pub segments: u64,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubCall {
    /// Somebody asks for a scrub.
    Asked,
    /// The time is up.
    Due,
    /// The hub shuts down.
    Stopped,
}

impl ScrubBoard {
    /// Takes over what an earlier run has found.
    pub fn resume(&self, note: ScrubNote) {
        self.change(|state| state.note = note);
    }

    /// What was found so far.
    pub fn note(&self) -> ScrubNote {
        self.lock().note.clone()
    }

    /// The scrub that is under way.
    pub fn under_way(&self) -> Option<ScrubProgress> {
        self.lock().under_way
    }

    /// Asks for a scrub. One that is under way goes on, and no other begins after it.
    pub fn ask(&self) {
        let mut state = self.lock();
        state.asked = state.under_way.is_none();
        self.changed.notify_all();
    }

    /// The hub shuts down.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until a scrub is asked for, at most so long; without a limit for `None`.
    pub fn wait(&self, most: Option<Duration>) -> ScrubCall {
        let until = most.and_then(|most| Instant::now().checked_add(most));
        let mut state = self.lock();
        loop {
            if state.stopped {
                return ScrubCall::Stopped;
            }
            if std::mem::take(&mut state.asked) {
                return ScrubCall::Asked;
            }
            let Some(until) = until else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ScrubCall::Due;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for so long during a scrub. Returns whether the hub shuts down.
    pub fn pause(&self, long: Duration) -> bool {
        let until = Instant::now() + long;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return state.stopped;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A scrub of so many segments begins.
    pub fn begin(&self, segments: u64) {
        self.change(|state| state.under_way = Some(ScrubProgress { done: 0, segments }));
    }

    /// One more segment was read.
    pub fn advance(&self) {
        self.change(|state| {
            if let Some(progress) = &mut state.under_way {
                progress.done += 1;
            }
        });
    }

    /// The scrub ends; `last` when it has read all segments.
    pub fn end(&self, last: Option<LastScrub>) {
        self.change(|state| {
            state.under_way = None;
            state.note.last = last.or(state.note.last);
        });
    }

    /// A segment is damaged. Returns whether that is news.
    pub fn find(&self, damage: SegmentDamage) -> bool {
        let is_news = self.change(|state| state.note.find(damage));
        if is_news {
            self.changes.fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Only what is still `damaged` stays. Returns whether anything went.
    pub fn mend(&self, damaged: impl Fn(SegmentName) -> bool) -> bool {
        self.change(|state| state.note.mend(damaged))
    }

    /// A segment has another file.
    pub fn replaced(&self, name: SegmentName) {
        self.mend(|damaged| damaged != name);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How often damage was found, or a segment has got another file. Who has read from segments
    /// forgets that, and closes their files, when this has changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What is known to be wrong with a segment.
    pub fn damage(&self, tli: TimelineId, no: SegmentNo) -> Option<SegmentDamage> {
        if !self.any_damage.load(Ordering::Acquire) {
            return None;
        }
        let state = self.lock();
        let mut all = state.note.damage().iter();
        all.find(|damage| (damage.name.tli, damage.name.no) == (tli, no)).cloned()
    }

    fn change<T>(&self, change: impl FnOnce(&mut BoardState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.any_damage.store(!state.note.damage().is_empty(), Ordering::Release);
        result
    }

    // A panic ends the process (`panic = "abort"`); only tests can poison a lock.
    fn lock(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::wal::{Lsn, SegmentSize};
    use std::time::SystemTime;

    #[test]
    fn one_scrub_serves_all_who_ask_meanwhile() {
        let board = ScrubBoard::default();
        assert_eq!(board.wait(Some(Duration::ZERO)), ScrubCall::Due);
        board.ask();
        board.ask();
        assert_eq!(board.wait(None), ScrubCall::Asked);
        board.begin(2);
        board.ask();
        board.advance();
        assert_eq!(board.under_way(), Some(ScrubProgress { done: 1, segments: 2 }));
        let last = LastScrub { ended: SystemTime::UNIX_EPOCH, segments: 2 };
        board.end(Some(last));
        assert_eq!(board.wait(Some(Duration::ZERO)), ScrubCall::Due);
        board.begin(2);
        board.end(None);
        assert_eq!((board.note().last, board.under_way()), (Some(last), None));
        assert!(!board.pause(Duration::from_millis(1)));
        board.stop();
        assert!(board.pause(Duration::from_secs(60)));
        assert_eq!(board.wait(None), ScrubCall::Stopped);
    }

    #[test]
    fn damage_is_known_until_it_is_mended() {
        let board = ScrubBoard::default();
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(5), size };
        let damage = SegmentDamage {
            name,
            from: Lsn::new(5 << 20),
            what: "torn".to_owned(),
            since: SystemTime::UNIX_EPOCH,
        };
        assert_eq!(board.damage(name.tli, name.no), None);
        assert!(board.find(damage.clone()) && !board.find(damage.clone()));
        assert_eq!(board.damage(name.tli, name.no), Some(damage));
        assert_eq!(board.damage(name.tli, name.no.next()), None);
        assert!(board.mend(|_| false) && !board.mend(|_| false));
        assert_eq!(board.damage(name.tli, name.no), None);
    }
}
