//! Which segments may go, which slots lose WAL because of that, and whether there is room for
//! more WAL: one pure function, [`plan`].
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
//! Above the disk's high watermark the right part shrinks, oldest first and no further than
//! necessary. Next, slots that nobody uses lose their WAL. After that, no more WAL comes in. In
//! any case WAL stays that has to be archived first, and so does the segment in which the next
//! start's walk begins.

mod holds;
mod space;
#[cfg(test)]
mod tests;

pub use holds::{Hold, Holds, Removed};
pub use space::{HighWatermark, Space, TooFull};

use super::slots::Cause;
use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::time::{Duration, SystemTime};

/// At least this many complete segments stay, however small `wal_keep_size` is.
pub const MIN_KEPT_SEGMENTS: u64 = 16;

/// Paused receiving resumes when there is room for this many more segments.
const RESUME_SEGMENTS: u64 = 4;

/// What is to be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `--wal-keep-size`, bytes.
    pub wal_keep_size: u64,
    /// `--wal-keep-time`; zero disables the rule.
    pub wal_keep_time: Duration,
    /// `--max-slot-wal-keep-size`, bytes; `None` for no limit. It also bounds what is kept for
    /// connected standbys.
    pub max_slot_wal_keep_size: Option<u64>,
    /// `--idle-replication-slot-timeout`; zero disables it.
    pub idle_slot_timeout: Duration,
    /// `--disk-high-watermark`.
    pub high_watermark: Option<HighWatermark>,
    /// How long an automatically created slot may stay unused; zero for ever.
    pub auto_created_ttl: Duration,
    /// Does WAL have to be archived before it is removed?
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

/// Can WAL that was removed be fetched again?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restorable {
    /// No: a reader that needs it has lost it.
    #[default]
    No,
    /// From the archive.
    Yes {
        /// How many segments are fetched ahead of a reader.
        ahead: u64,
    },
}

/// What a slot needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotNeed {
    /// The position it keeps WAL from: the durable one, or the current one when that is older.
    pub from: Lsn,
    /// Is it used?
    pub activity: Activity,
}

/// Is a slot used?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A session has it.
    Used,
    /// No session has had it since this time.
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

/// The input of a plan.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    /// The size of every segment.
    pub size: SegmentSize,
    /// The oldest segment that is on disk.
    pub oldest: SegmentNo,
    /// The durable mark.
    pub newest: Lsn,
    /// The time of day.
    pub now: SystemTime,
    /// When segments were completed, oldest first, without a hole. The oldest segment not listed
    /// counts as completed now.
    pub completed: &'a [(SegmentNo, SystemTime)],
    /// Where the next start's walk begins.
    pub walk_start: Option<Lsn>,
    /// The oldest position of a connected standby.
    pub standbys: Option<Lsn>,
    /// The slots that keep WAL.
    pub slots: &'a [SlotNeed],
    /// Is this segment archived? Also true when nothing has to be archived.
    pub archived: &'a dyn Fn(SegmentNo) -> bool,
    /// The disk's space; `None` when it is not checked.
    pub space: Option<Space>,
    /// The decision of the last plan.
    pub receiving: Receiving,
}

impl Situation<'_> {
    /// A situation in which nobody needs anything.
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
    /// The first segment that stays: nothing from here on is removed. When slots are
    /// invalidated, removal waits until that is durable.
    pub horizon: SegmentNo,
    /// Slots that lose their WAL, by their index in [`Situation::slots`].
    pub invalidate: Vec<(usize, Cause)>,
    /// May WAL come in?
    pub receiving: Receiving,
}

/// The disk as a plan found it that lets no WAL in; `None` for one that does.
pub fn too_full(
    policy: &Policy,
    plan: &Plan,
    space: Option<Space>,
    size: SegmentSize,
) -> Option<TooFull> {
    let (Receiving::Paused, Some(mark), Some(space)) =
        (plan.receiving, policy.high_watermark, space)
    else {
        return None;
    };
    let missing = space.shortage(mark, RESUME_SEGMENTS.saturating_mul(size.bytes()));
    Some(TooFull { mark, space, missing })
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

/// The rules one by one; each returns the first segment that it keeps.
struct Needs<'a> {
    policy: &'a Policy,
    situation: &'a Situation<'a>,
}

impl Needs<'_> {
    /// What stays in any case.
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
        // When a clock was set back, nothing counts as old.
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

    /// WAL before this is not kept for any standby or slot.
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

    /// A segment that is not archived stays, and so does everything after it.
    fn archived_below(&self, horizon: SegmentNo) -> SegmentNo {
        let Situation { oldest, archived, .. } = *self.situation;
        let mut going = (oldest.raw()..horizon.raw()).map(SegmentNo::new);
        going.find(|no| !archived(*no)).unwrap_or(horizon)
    }

    /// How many bytes the disk is short.
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
