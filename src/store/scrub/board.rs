//! The scrub of all complete segments: who asks for one, how far it is, and what it has found.

use super::{LastScrub, ScrubNote, SegmentDamage};
use crate::wal::{SegmentName, SegmentNo, TimelineId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many segments may wait to be looked at by name. With more all of them are.
const MOST_WANTED: usize = 64;

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
    /// The most bytes in a second of the scrub that is asked for or under way, if somebody has set
    /// it for that one.
    rate: Option<u64>,
    /// Segments that are looked at next.
    wanted: BTreeSet<SegmentName>,
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
    /// This segment is to be looked at.
    Look(SegmentName),
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

    /// Asks for a scrub. One that is under way goes on, and no other begins after it. A `rate` is the
    /// most bytes in a second of this one scrub.
    pub fn ask(&self, rate: Option<u64>) {
        let mut state = self.lock();
        state.asked = state.under_way.is_none();
        state.rate = rate.or(state.rate);
        self.changed.notify_all();
    }

    /// The rate of the scrub under way, if one was set for it.
    pub fn rate(&self) -> Option<u64> {
        self.lock().rate
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
            if let Some(name) = state.wanted.pop_first() {
                return ScrubCall::Look(name);
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

    /// A segment that is to be looked at before the scrub under way goes on.
    pub fn take_wanted(&self) -> Option<SegmentName> {
        self.lock().wanted.pop_first()
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

    /// A scrub begins.
    pub fn begin(&self, progress: ScrubProgress) {
        self.change(|state| state.under_way = Some(progress));
    }

    /// The scrub has come to this segment: what precedes it was read.
    pub fn come_to(&self, next: SegmentName) {
        self.change(|state| state.note.unfinished = Some(next));
    }

    /// One more segment was read.
    pub fn advance(&self) {
        self.change(|state| {
            if let Some(progress) = &mut state.under_way {
                progress.done += 1;
            }
        });
    }

    /// The scrub ends; `last` when it has read all segments. One that was cut short goes on where it
    /// was.
    pub fn end(&self, last: Option<LastScrub>) {
        self.change(|state| {
            state.under_way = None;
            state.rate = None;
            if last.is_some() {
                state.note.last = last;
                state.note.unfinished = None;
            }
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

    /// Bytes of a segment were changed in place: whoever has read from it reads again, and the scrub
    /// looks at it next. What was known of its damage stands until then.
    pub fn rewritten(&self, name: SegmentName) {
        self.look_at(name);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The scrub looks at this segment next.
    pub fn look_at(&self, name: SegmentName) {
        let mut state = self.lock();
        match state.wanted.len() < MOST_WANTED {
            true => drop(state.wanted.insert(name)),
            false => {
                state.wanted.clear();
                state.asked = true;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Other bytes come under the name, or none: nothing is known of it any more.
    pub fn forget(&self, name: SegmentName) {
        self.change(|state| {
            state.note.mend(|damaged| damaged != name);
            state.note.retain_stale(|stale| stale != name);
            state.wanted.remove(&name);
        });
    }

    /// The archive has, or may have, the damaged bytes of a segment that was mended.
    pub fn is_stale(&self, name: SegmentName) {
        self.change(|state| state.note.is_stale(name));
    }

    /// Keeps only those that are still `stale` in the archive. Returns whether any went.
    pub fn retain_stale(&self, stale: impl Fn(SegmentName) -> bool) -> bool {
        self.change(|state| state.note.retain_stale(stale))
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
        board.ask(Some(1));
        board.ask(Some(2));
        board.ask(None);
        assert_eq!(board.wait(None), ScrubCall::Asked);
        board.begin(ScrubProgress { done: 0, segments: 2 });
        board.ask(None);
        assert_eq!(board.rate(), Some(2));
        board.advance();
        assert_eq!(board.under_way(), Some(ScrubProgress { done: 1, segments: 2 }));
        let last = LastScrub { ended: SystemTime::UNIX_EPOCH, segments: 2 };
        board.end(Some(last));
        assert_eq!(board.wait(Some(Duration::ZERO)), ScrubCall::Due);
        assert_eq!(board.rate(), None, "it was for that one");
        board.begin(ScrubProgress { done: 1, segments: 2 });
        let size = SegmentSize::new(1 << 20).unwrap();
        let next = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(5), size };
        board.come_to(next);
        board.end(None);
        assert_eq!((board.note().last, board.under_way()), (Some(last), None));
        assert_eq!(board.note().unfinished(), Some(next));
        board.end(Some(last));
        assert_eq!(board.note().unfinished(), None);
        assert!(!board.pause(Duration::from_millis(1)));
        board.stop();
        assert!(board.pause(Duration::from_secs(60)));
        assert_eq!(board.wait(None), ScrubCall::Stopped);
    }

    #[test]
    fn a_segment_that_was_rewritten_is_looked_at_first() {
        let board = ScrubBoard::default();
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = |no| SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size };
        board.ask(None);
        let changes = board.changes();
        board.rewritten(name(6));
        board.rewritten(name(5));
        board.rewritten(name(7));
        assert!(board.changes() > changes);
        board.forget(name(7));
        assert_eq!(board.wait(None), ScrubCall::Look(name(5)));
        assert_eq!(board.take_wanted(), Some(name(6)));
        assert_eq!((board.take_wanted(), board.wait(None)), (None, ScrubCall::Asked));
        for no in 0..=MOST_WANTED as u64 {
            board.rewritten(name(no));
        }
        assert_eq!(board.wait(None), ScrubCall::Asked, "too many: all of them");
        board.is_stale(name(5));
        board.is_stale(name(6));
        assert!(board.retain_stale(|stale| stale != name(5)));
        board.forget(name(6));
        assert!(board.note().stale().is_empty());
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
