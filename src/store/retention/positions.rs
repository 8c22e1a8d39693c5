//! The positions from which WAL is needed by those who have a stream, and by standbys that had one
//! a moment ago.

use crate::wal::Lsn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No segment is smaller, in bytes.
const LEAST_SEGMENT: u64 = 1 << 20;

/// So many standbys that left are listed; of more, two count as one.
const MOST_GONE: usize = 1000;

/// A stream's position. Its data core writes it, the keeper reads it.
#[derive(Debug)]
pub(super) struct StreamPosition {
    /// Where the stream began, or later what its client said that it has.
    needed: AtomicU64,
    /// Did the client say that it has anything?
    reports: AtomicBool,
    /// Up to here it was sent WAL.
    sent: AtomicU64,
}

impl StreamPosition {
    /// The client says that it has the WAL before this. There is one writer. A keeper that still
    /// sees the old position keeps more.
    pub(super) fn report(&self, has: Lsn) {
        if has > self.needed() {
            self.needed.store(has.raw(), Ordering::Release);
        }
        self.reports.store(true, Ordering::Release);
    }

    pub(super) fn note_sent(&self, upto: Lsn) {
        self.sent.store(upto.raw(), Ordering::Release);
    }

    pub(super) fn needed(&self) -> Lsn {
        Lsn::new(self.needed.load(Ordering::Acquire))
    }

    fn sent(&self) -> Lsn {
        Lsn::new(self.sent.load(Ordering::Acquire))
    }
}

/// What is needed by those who have a stream, and by those who had one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// The oldest position of a stream.
    pub standbys: Option<Lsn>,
    /// The positions of standbys that left, and how long ago.
    pub gone: Vec<(Lsn, Duration)>,
}

/// Who holds WAL, and from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalHolder {
    /// The standby's name; `None` for what the hub itself still has to compare.
    pub standby: Option<Arc<str>>,
    /// WAL from here on is held.
    pub from: Lsn,
    /// How long ago it left; `None` while it is connected.
    pub gone: Option<Duration>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct HeldPositions {
    held: Vec<Entry>,
    /// Standbys that left and may come back, the last one last. Each needs more WAL than those
    /// after it: one that needs no more and left earlier is not listed.
    gone: Vec<Gone>,
}

#[derive(Debug)]
struct Entry {
    held: Arc<StreamPosition>,
    /// When the keeper saw it first.
    seen: Option<Instant>,
    /// The standby's name; `None` when it is no standby.
    standby: Option<Arc<str>>,
}

#[derive(Debug)]
struct Gone {
    from: Lsn,
    /// When the keeper saw that it had left.
    seen: Option<Instant>,
    standby: Arc<str>,
}

impl HeldPositions {
    pub(super) fn add(&mut self, lsn: Lsn) -> Arc<StreamPosition> {
        let held = Arc::new(StreamPosition {
            needed: AtomicU64::new(lsn.raw()),
            reports: AtomicBool::new(false),
            sent: AtomicU64::new(lsn.raw()),
        });
        self.held.push(Entry { held: Arc::clone(&held), seen: None, standby: None });
        held
    }

    /// It is a standby's.
    pub(super) fn name(&mut self, held: &Arc<StreamPosition>, standby: &str) {
        let mine = self.held.iter_mut().find(|entry| Arc::ptr_eq(&entry.held, held));
        if let Some(entry) = mine {
            entry.standby = Some(Arc::from(standby));
        }
    }

    /// A stream has ended. A standby may come back for what it has not flushed.
    pub(super) fn leave(&mut self, held: &Arc<StreamPosition>) {
        let index = self.held.iter().position(|entry| Arc::ptr_eq(&entry.held, held));
        let entry = index.map(|index| self.held.swap_remove(index));
        let Some(standby) = entry.and_then(|entry| entry.standby) else { return };
        let from = held.needed();
        let segment = |lsn: Lsn| lsn.raw() / LEAST_SEGMENT;
        self.gone.retain(|gone| segment(gone.from) < segment(from));
        self.gone.push(Gone { from, seen: None, standby });
        if self.gone.len() > MOST_GONE {
            // The first one keeps what both need, for as long as the second may come back.
            let second = self.gone.remove(1);
            if let Some(first) = self.gone.first_mut() {
                first.seen = second.seen;
            }
        }
    }

    /// Notes who is there and who has left since the last time, and forgets who left `grace` ago.
    pub(super) fn look(&mut self, now: Instant, grace: Duration) {
        for entry in &mut self.held {
            entry.seen.get_or_insert(now);
        }
        for gone in &mut self.gone {
            gone.seen.get_or_insert(now);
        }
        self.gone.retain(|gone| gone.ago(now) < grace);
    }

    pub(super) fn oldest(&self) -> Option<Lsn> {
        self.held.iter().map(|entry| entry.held.needed()).min()
    }

    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    pub(super) fn spans(&self) -> Vec<(Lsn, Lsn)> {
        self.held.iter().map(|entry| (entry.held.needed(), entry.held.sent())).collect()
    }

    pub(super) fn needed(&self, now: Instant, grace: Duration) -> Needed {
        let standbys = self.held.iter().map(|entry| entry.needed(now, grace)).min();
        let gone = self.gone.iter().map(|gone| (gone.from, gone.ago(now))).collect();
        Needed { standbys, gone }
    }

    /// The oldest position that a standby needs, one that left within the grace among them.
    pub(super) fn standbys_from(&self, now: Instant, grace: Duration) -> Option<Lsn> {
        let standbys = self.held.iter().filter(|entry| entry.standby.is_some());
        let connected = standbys.map(|entry| entry.needed(now, grace));
        let gone = self.gone.iter().filter(|gone| gone.ago(now) < grace).map(|gone| gone.from);
        connected.chain(gone).min()
    }

    /// Standbys needed WAL from here on when an earlier run ended.
    pub(super) fn left_before(&mut self, from: Lsn) {
        let standby = Arc::from("before the start");
        self.gone.insert(0, Gone { from, seen: None, standby });
    }

    pub(super) fn holders(&self, now: Instant, grace: Duration) -> Vec<WalHolder> {
        let connected = self.held.iter().map(|entry| WalHolder {
            standby: entry.standby.clone(),
            from: entry.needed(now, grace),
            gone: None,
        });
        let gone = self.gone.iter().map(|gone| WalHolder {
            standby: Some(Arc::clone(&gone.standby)),
            from: gone.from,
            gone: Some(gone.ago(now)),
        });
        connected.chain(gone).collect()
    }
}

impl Entry {
    /// A client that has not said for `grace` what it has will not say it: what it was sent is not
    /// kept for it.
    fn needed(&self, now: Instant, grace: Duration) -> Lsn {
        let is_silent = self.seen.is_some_and(|seen| now.saturating_duration_since(seen) >= grace);
        match self.held.reports.load(Ordering::Acquire) {
            false if is_silent => self.held.sent().max(self.held.needed()),
            _ => self.held.needed(),
        }
    }
}

impl Gone {
    fn ago(&self, now: Instant) -> Duration {
        self.seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(90);
    const MIB: u64 = 1 << 20;

    fn at(lsn: u64) -> Lsn {
        Lsn::new(lsn)
    }

    #[test]
    fn what_was_sent_counts_only_for_a_client_that_says_nothing() {
        let mut positions = HeldPositions::default();
        let (now, held) = (Instant::now(), positions.add(at(100)));
        held.note_sent(at(900));
        positions.look(now, GRACE);
        assert_eq!(positions.needed(now, GRACE).standbys, Some(at(100)));
        let later = now + GRACE;
        assert_eq!(positions.needed(later, GRACE).standbys, Some(at(900)));
        held.report(at(300));
        assert_eq!(positions.needed(later, GRACE).standbys, Some(at(300)));
        held.report(at(200));
        assert_eq!(positions.needed(later, GRACE).standbys, Some(at(300)), "it may be gone");
    }

    #[test]
    fn a_standby_that_left_keeps_its_wal_for_the_grace() {
        let mut positions = HeldPositions::default();
        let now = Instant::now();
        let named = |positions: &mut HeldPositions, lsn| {
            let held = positions.add(at(lsn));
            positions.name(&held, "s");
            held
        };
        let (first, second) = (named(&mut positions, 5 * MIB), named(&mut positions, 7 * MIB));
        let own = positions.add(at(10));
        positions.leave(&own);
        positions.leave(&first);
        positions.look(now, GRACE);
        positions.leave(&second);
        let later = now + GRACE / 2;
        positions.look(later, GRACE);
        assert_eq!(positions.needed(later, GRACE).standbys, None);
        let gone = [(at(5 * MIB), GRACE / 2), (at(7 * MIB), Duration::ZERO)];
        assert_eq!(positions.needed(later, GRACE).gone, gone);
        positions.look(now + GRACE, GRACE);
        assert_eq!(positions.needed(now + GRACE, GRACE).gone, [(at(7 * MIB), GRACE / 2)]);
        // One that needs as much or more, and leaves later, stands for it.
        for from in [7 * MIB + 9, 6 * MIB] {
            let third = named(&mut positions, from);
            positions.leave(&third);
            assert_eq!(positions.needed(later, GRACE).gone, [(at(from), Duration::ZERO)]);
        }
    }

    #[test]
    fn what_is_written_down_is_about_standbys_and_comes_back() {
        let mut positions = HeldPositions::default();
        let now = Instant::now();
        let own = positions.add(at(MIB));
        assert_eq!(positions.standbys_from(now, GRACE), None, "the hub's own");
        let (first, second) = (positions.add(at(5 * MIB)), positions.add(at(7 * MIB)));
        for held in [&first, &second] {
            positions.name(held, "s");
        }
        assert_eq!(positions.standbys_from(now, GRACE), Some(at(5 * MIB)));
        positions.leave(&first);
        positions.look(now, GRACE);
        assert_eq!(positions.standbys_from(now, GRACE), Some(at(5 * MIB)));
        assert_eq!(positions.standbys_from(now + GRACE, GRACE), Some(at(7 * MIB)));
        drop(own);

        let mut restarted = HeldPositions::default();
        restarted.left_before(at(5 * MIB));
        let later = now + GRACE * 5;
        restarted.look(later, GRACE);
        assert_eq!(restarted.needed(later, GRACE).gone, [(at(5 * MIB), Duration::ZERO)]);
        restarted.look(later + GRACE, GRACE);
        assert_eq!(restarted.needed(later + GRACE, GRACE).gone, []);
    }

    #[test]
    fn of_many_that_left_none_is_forgotten_too_early() {
        let mut positions = HeldPositions::default();
        let now = Instant::now();
        for n in 0..2 * MOST_GONE as u64 {
            let held = positions.add(at(n * MIB));
            positions.name(&held, "s");
            positions.leave(&held);
            positions.look(now + Duration::from_millis(n), GRACE);
        }
        let gone = positions.needed(now, GRACE).gone;
        assert_eq!((gone.len(), gone[0].0), (MOST_GONE, at(0)));
        // The first stands for the thousand after it.
        positions.look(now + GRACE + Duration::from_millis(MOST_GONE as u64 - 1), GRACE);
        assert_eq!(positions.needed(now, GRACE).gone[0].0, at(0));
        positions.look(now + GRACE + Duration::from_millis(MOST_GONE as u64), GRACE);
        assert_eq!(positions.needed(now, GRACE).gone[0].0, at(MIB * (MOST_GONE as u64 + 1)));
    }
}
