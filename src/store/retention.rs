//! Which segments may go, who loses what by that, and whether there is room for more
//! WAL: one pure function, [`plan`].
//!
//! Positions of all timelines lie on one axis. What each rule keeps:
//!
//! ```text
//!   removed      max_slot_wal_keep_size        wal_keep_size, wal_keep_time
//! ------------|-----------------------------|-------------------------------|
//!             |  for standbys and slots     |  for everybody                | newest
//!             |  that need it, if somebody  |                               |
//!             |  does; else removed         |                               |
//! ```
//!
//! Above the disk's high watermark the right part shrinks, oldest first and no further
//! than necessary; then slots that nobody uses lose their WAL; then no more comes in.
//! WAL that has to be archived first stays in any case, and so does the segment in which
//! the next start's walk begins.

mod holds;
mod space;
#[cfg(test)]
mod tests;

pub use holds::{Hold, Holds, Removed};
pub use space::{HighWatermark, Space};

use super::slots::Cause;
use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::time::{Duration, SystemTime};

/// However small `wal_keep_size` is, so many complete segments stay.
pub const MIN_KEPT_SEGMENTS: u64 = 16;

/// Receiving that was paused goes on when there is room for so many more segments.
const RESUME_SEGMENTS: u64 = 4;

/// What is to be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `--wal-keep-size`, bytes.
    pub wal_keep_size: u64,
    /// `--wal-keep-time`; zero for no such rule.
    pub wal_keep_time: Duration,
    /// `--max-slot-wal-keep-size`, bytes; none for no limit. It bounds what is kept for
    /// connected standbys, too.
    pub max_slot_wal_keep_size: Option<u64>,
    /// `--idle-replication-slot-timeout`; zero for none.
    pub idle_slot_timeout: Duration,
    /// `--disk-high-watermark`.
    pub high_watermark: Option<HighWatermark>,
    /// How long an automatically created slot lives unused; zero for ever.
    pub auto_created_ttl: Duration,
    /// Is WAL to be archived before it goes?
    pub archive_mode: ArchiveMode,
    /// Is there an archive to fetch from (`--restore-command`)?
    pub restorable: Restorable,
}

/// What is archived, by the values of PostgreSQL's `archive_mode` that fit a hub: it is
/// never a primary, so `on` would be the same as `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveMode {
    /// Nothing.
    #[default]
    Off,
    /// Everything that is received.
    Always,
}

/// Can WAL that was removed be had again?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restorable {
    /// No: who needs it has lost it.
    #[default]
    No,
    /// From the archive.
    Yes {
        /// So many segments are fetched ahead of who reads them.
        ahead: u64,
    },
}

/// What a slot keeps WAL from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotNeed {
    /// Its position: the durable one, unless it is behind that.
    pub from: Lsn,
    /// Is it used?
    pub activity: Activity,
}

/// Is a slot used?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Somebody has it.
    Used,
    /// Nobody has had it since.
    IdleSince(SystemTime),
}

/// May WAL come in?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Receiving {
    /// Yes.
    #[default]
    Open,
    /// The disk is too full.
    Paused,
}

/// Everything that a plan is made from.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    /// Of every segment.
    pub size: SegmentSize,
    /// The oldest segment that is on disk.
    pub oldest: SegmentNo,
    /// The durable mark.
    pub newest: Lsn,
    /// The time of day.
    pub now: SystemTime,
    /// When segments were completed, oldest first, without a hole. The oldest one that is
    /// not named counts as completed now.
    pub completed: &'a [(SegmentNo, SystemTime)],
    /// Where the next start's walk begins.
    pub walk_start: Option<Lsn>,
    /// The oldest position of a connected standby.
    pub standbys: Option<Lsn>,
    /// The slots that keep WAL.
    pub slots: &'a [SlotNeed],
    /// Is this segment archived? Yes, too, where nothing has to be.
    pub archived: &'a dyn Fn(SegmentNo) -> bool,
    /// The disk; none when it is not looked at.
    pub space: Option<Space>,
    /// As the last plan had it.
    pub receiving: Receiving,
}

impl Situation<'_> {
    /// Nobody needs anything.
    pub fn new(size: SegmentSize, oldest: SegmentNo, newest: Lsn) -> Self {
        Self {
            size,
            oldest,
            newest,
            now: SystemTime::UNIX_EPOCH,
            completed: &[],
            walk_start: None,
            standbys: None,
            slots: &[],
            archived: &|_| true,
            space: None,
            receiving: Receiving::Open,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The first segment that stays: nothing at or behind it is removed. Where slots are
    /// invalidated, only when that is durable.
    pub horizon: SegmentNo,
    /// Slots, by their place in [`Situation::slots`], that lose their WAL.
    pub invalidate: Vec<(usize, Cause)>,
    /// May WAL come in?
    pub receiving: Receiving,
}

/// Decides what may go.
pub fn plan(policy: &Policy, situation: &Situation<'_>) -> Plan {
    let needs = Needs { policy, situation };
    let mut invalidate = needs.timed_out();
    let is_alive =
        |invalidate: &[(usize, Cause)], n: usize| invalidate.iter().all(|(lost, _)| *lost != n);
    let slots = |invalidate: &[(usize, Cause)]| {
        let alive = situation.slots.iter().enumerate();
        let alive = alive.filter(|(n, _)| is_alive(invalidate, *n));
        alive.map(|(n, slot)| (n, *slot)).collect::<Vec<_>>()
    };
    let mut horizon = needs
        .firm()
        .min(needs.by_size())
        .min(needs.by_time())
        .min(needs.standbys())
        .min(needs.slots(&slots(&invalidate)));
    let shortage = needs.shortage();
    if shortage > 0 {
        let target = SegmentNo::new(
            situation.oldest.raw().saturating_add(shortage.div_ceil(situation.size.bytes())),
        );
        let used: Vec<_> = slots(&invalidate)
            .into_iter()
            .filter(|(_, slot)| slot.activity == Activity::Used)
            .collect();
        let possible =
            needs.firm().min(needs.fewest()).min(needs.standbys()).min(needs.slots(&used));
        horizon = horizon.max(possible.min(target));
    }
    let horizon = needs.archived_below(horizon.max(situation.oldest));
    for (n, slot) in slots(&invalidate) {
        if slot.from.segment(situation.size) < horizon && policy.restorable == Restorable::No {
            invalidate.push((n, Cause::WalRemoved));
        }
    }
    let going = horizon.raw().saturating_sub(situation.oldest.raw());
    let receiving = match going.saturating_mul(situation.size.bytes()) < shortage {
        true => Receiving::Paused,
        false => Receiving::Open,
    };
    Plan { horizon, invalidate, receiving }
}

/// The rules one by one; each gives the first segment that it keeps.
struct Needs<'a> {
    policy: &'a Policy,
    situation: &'a Situation<'a>,
}

impl Needs<'_> {
    /// What stays whatever happens.
    fn firm(&self) -> SegmentNo {
        let Situation { walk_start, newest, size, .. } = *self.situation;
        walk_start.unwrap_or(newest).min(newest).segment(size)
    }

    fn fewest(&self) -> SegmentNo {
        self.back_from_newest(MIN_KEPT_SEGMENTS.saturating_mul(self.situation.size.bytes()))
    }

    fn by_size(&self) -> SegmentNo {
        self.fewest().min(self.back_from_newest(self.policy.wal_keep_size))
    }

    fn by_time(&self) -> SegmentNo {
        let keep = self.policy.wal_keep_time;
        let Situation { completed, now, oldest, newest, size, .. } = *self.situation;
        if keep.is_zero() {
            return newest.segment(size);
        }
        // A clock that was set back makes nothing old.
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= keep);
        let old = completed.iter().skip_while(|(no, _)| *no < oldest);
        let mut first = oldest;
        for (no, at) in old {
            if *no != first || !is_old(*at) {
                break;
            }
            first = no.next();
        }
        first
    }

    /// WAL before this is kept for no standby and no slot.
    fn limit(&self) -> SegmentNo {
        match self.policy.max_slot_wal_keep_size {
            Some(max) => self.back_from_newest(max),
            None => SegmentNo::new(0),
        }
    }

    fn standbys(&self) -> SegmentNo {
        let Situation { standbys, newest, size, .. } = *self.situation;
        standbys.unwrap_or(newest).segment(size).max(self.limit())
    }

    fn slots(&self, slots: &[(usize, SlotNeed)]) -> SegmentNo {
        let Situation { newest, size, .. } = *self.situation;
        let oldest = slots.iter().map(|(_, slot)| slot.from).min();
        oldest.unwrap_or(newest).segment(size).max(self.limit())
    }

    fn timed_out(&self) -> Vec<(usize, Cause)> {
        let timeout = self.policy.idle_slot_timeout;
        let now = self.situation.now;
        let is_late = |slot: &SlotNeed| match slot.activity {
            Activity::Used => false,
            Activity::IdleSince(at) => now.duration_since(at).is_ok_and(|idle| idle >= timeout),
        };
        let slots = self.situation.slots.iter().enumerate();
        let late = slots.filter(|(_, slot)| !timeout.is_zero() && is_late(slot));
        late.map(|(n, _)| (n, Cause::IdleTimeout)).collect()
    }

    /// Nothing goes that is not archived, nor anything behind it.
    fn archived_below(&self, horizon: SegmentNo) -> SegmentNo {
        let Situation { oldest, archived, .. } = *self.situation;
        let mut going = (oldest.raw()..horizon.raw()).map(SegmentNo::new);
        going.find(|no| !archived(*no)).unwrap_or(horizon)
    }

    /// Bytes that are missing on the disk.
    fn shortage(&self) -> u64 {
        let Situation { space, receiving, size, .. } = *self.situation;
        let (Some(mark), Some(space)) = (self.policy.high_watermark, space) else { return 0 };
        let more = match receiving {
            Receiving::Open => 0,
            Receiving::Paused => RESUME_SEGMENTS.saturating_mul(size.bytes()),
        };
        space.shortage(mark, more)
    }

    fn back_from_newest(&self, bytes: u64) -> SegmentNo {
        self.situation.newest.saturating_sub(bytes).segment(self.situation.size)
    }
}
