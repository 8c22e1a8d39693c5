//! The rules one by one. Each returns the first segment that it keeps.

use super::{Activity, MIN_KEPT_SEGMENTS, Policy, Restorable, Situation, SlotNeed, resume_room};
use crate::store::slots::Cause;
use crate::wal::SegmentNo;
use std::time::Duration;

/// When the disk has room for only so much more of what comes in, nobody is waited for.
const ROOM_LEFT: Duration = Duration::from_secs(30);

/// Slots that lose their WAL, by their index.
type Losses = [(usize, Cause)];

pub(super) struct Needs<'a> {
    policy: &'a Policy,
    situation: &'a Situation<'a>,
    /// For how long somebody who has gone is waited for.
    grace: Duration,
}

impl<'a> Needs<'a> {
    pub(super) fn new(policy: &'a Policy, situation: &'a Situation<'a>) -> Self {
        let is_filling = situation.space.is_some_and(|space| {
            let more = situation.pace.saturating_mul(ROOM_LEFT.as_secs());
            more > 0 && space.free < more
        });
        let grace = if is_filling { Duration::ZERO } else { policy.grace };
        Self { policy, situation, grace }
    }

    /// What all rules together keep: everything, as long as everybody may come back.
    pub(super) fn by_rules(&self, lost: &Losses) -> SegmentNo {
        if self.left_of_start().is_some() {
            return self.situation.oldest;
        }
        let kept = self.firm().min(self.by_size()).min(self.by_time());
        self.reach(kept, lost, |_| true)
    }

    /// What is kept whatever `wal_keep_size` and `wal_keep_time` say. WAL that can be fetched
    /// again is not kept for a slot that nobody uses.
    pub(super) fn without_rules(&self, lost: &Losses) -> SegmentNo {
        let kept = self.firm().min(self.fewest());
        self.reach(kept, lost, |slot| {
            self.policy.restorable == Restorable::No || !self.is_given_up(slot)
        })
    }

    /// How far WAL may go that `kept` does not keep, nor anybody who needs it.
    fn reach(
        &self,
        kept: SegmentNo,
        lost: &Losses,
        counts: impl Fn(&SlotNeed) -> bool,
    ) -> SegmentNo {
        let Situation { oldest, size, .. } = *self.situation;
        let slots = self.alive(lost).filter(|(_, slot)| counts(slot)).map(|(_, slot)| {
            let no = slot.from.segment(size);
            if self.is_awaited(slot) { no } else { no.max(self.limit()) }
        });
        let standbys = self.situation.needed.standbys;
        let standbys = standbys.map(|from| from.segment(size).max(self.limit()));
        let gone = self.situation.needed.gone.iter();
        let gone = gone.filter(|(_, ago)| *ago < self.grace).map(|(from, _)| from.segment(size));
        let needed = slots.chain(standbys).chain(gone).min();
        let horizon = needed.map_or(kept, |needed| kept.min(needed));
        self.archived_below(horizon.max(oldest))
    }

    /// Slots that have been unused for too long.
    pub(super) fn timed_out(&self) -> Vec<(usize, Cause)> {
        let timeout = self.policy.idle_slot_timeout;
        let is_late = |slot: &SlotNeed| match slot.activity {
            Activity::Used => false,
            Activity::Idle(idle) => !timeout.is_zero() && idle >= timeout.max(self.grace),
        };
        let late = self.alive(&[]).filter(|(_, slot)| is_late(slot));
        late.map(|(n, _)| (n, Cause::IdleTimeout)).collect()
    }

    /// Slots that need WAL from before `horizon`, which they lose unless it can be fetched again.
    pub(super) fn out_of_reach(&self, horizon: SegmentNo, lost: &Losses) -> Vec<usize> {
        if self.policy.restorable != Restorable::No {
            return Vec::new();
        }
        let size = self.situation.size;
        let is_before = |slot: &SlotNeed| slot.from.segment(size) < horizon;
        let losing = self.alive(lost).filter(|(_, slot)| is_before(slot));
        losing.map(|(n, _)| n).collect()
    }

    /// The slot that keeps the most WAL of those that nobody uses and nobody is waited for; `None`
    /// when no WAL would go if all of them were lost.
    pub(super) fn greatest_unused(&self, lost: &Losses) -> Option<usize> {
        let is_one =
            |slot: &SlotNeed| self.policy.restorable == Restorable::No && self.is_given_up(slot);
        let unused = self.alive(lost).filter(|(_, slot)| is_one(slot));
        let (n, greatest) = unused.min_by_key(|(_, slot)| slot.from)?;
        let kept = self.firm().min(self.fewest());
        let without = self.reach(kept, lost, |slot| !is_one(slot));
        let goes =
            without > self.situation.oldest && greatest.from.segment(self.situation.size) < without;
        goes.then_some(n)
    }

    /// Has the grace passed in which a pause alone has to do?
    pub(super) fn has_paused_long_enough(&self) -> bool {
        self.situation.paused.is_some_and(|paused| paused >= self.grace)
    }

    /// How many bytes the disk is short.
    pub(super) fn shortage(&self) -> u64 {
        let Situation { space, paused, size, .. } = *self.situation;
        let (Some(mark), Some(space)) = (self.policy.high_watermark, space) else { return 0 };
        let more = match paused {
            None => 0,
            Some(_) => resume_room(size),
        };
        space.shortage(mark, more)
    }

    /// How long it is until not everybody is waited for any more; `None` when it is so already.
    pub(super) fn left_of_start(&self) -> Option<Duration> {
        self.left_of_grace(self.situation.running)
    }

    /// For how long somebody who left so long ago is waited for; `None` when nobody does.
    pub(super) fn left_of_grace(&self, ago: Duration) -> Option<Duration> {
        self.grace.checked_sub(ago).filter(|left| !left.is_zero())
    }

    /// What a standby or slot that is there, or stays away, keeps of what it needs.
    pub(super) fn limited(&self, from: SegmentNo) -> SegmentNo {
        from.max(self.limit())
    }

    fn alive(&self, lost: &Losses) -> impl Iterator<Item = (usize, &SlotNeed)> {
        let is_alive = |n: usize| lost.iter().all(|(lost, _)| *lost != n);
        self.situation.slots.iter().enumerate().filter(move |(n, _)| is_alive(*n))
    }

    /// Has its user gone a moment ago?
    fn is_awaited(&self, slot: &SlotNeed) -> bool {
        matches!(slot.activity, Activity::Idle(idle) if idle < self.grace)
    }

    /// Does nobody use it, and is nobody waited for?
    fn is_given_up(&self, slot: &SlotNeed) -> bool {
        slot.activity != Activity::Used && !self.is_awaited(slot)
    }

    /// What stays in any case.
    pub(super) fn firm(&self) -> SegmentNo {
        let Situation { walk_start, newest, size, .. } = *self.situation;
        walk_start.unwrap_or(newest).min(newest).segment(size)
    }

    fn fewest(&self) -> SegmentNo {
        self.back_from_newest(MIN_KEPT_SEGMENTS.saturating_mul(self.situation.size.bytes()))
    }

    pub(super) fn by_size(&self) -> SegmentNo {
        self.fewest().min(self.back_from_newest(self.policy.wal_keep_size))
    }

    pub(super) fn by_time(&self) -> SegmentNo {
        let keep = self.policy.wal_keep_time;
        let Situation { completed, oldest, newest, size, .. } = *self.situation;
        if keep.is_zero() {
            return newest.segment(size);
        }
        let mut first = oldest;
        for (no, age) in completed.iter().skip_while(|(no, _)| *no < oldest) {
            if *no != first || *age < keep {
                break;
            }
            first = no.next();
        }
        first
    }

    /// WAL before this is not kept for a standby or a slot that is there, or stays away.
    fn limit(&self) -> SegmentNo {
        match self.policy.max_slot_wal_keep_size {
            Some(max) => self.back_from_newest(max),
            None => SegmentNo::new(0),
        }
    }

    /// A segment that is not archived stays, and so does everything after it.
    pub(super) fn archived_below(&self, horizon: SegmentNo) -> SegmentNo {
        let Situation { oldest, archived, .. } = *self.situation;
        let mut going = (oldest.raw()..horizon.raw()).map(SegmentNo::new);
        going.find(|no| !archived(*no)).unwrap_or(horizon)
    }

    fn back_from_newest(&self, bytes: u64) -> SegmentNo {
        self.situation.newest.saturating_sub(bytes).segment(self.situation.size)
    }
}
