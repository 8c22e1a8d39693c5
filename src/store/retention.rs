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
//! **The grace.** Who has just gone may come back: what it needs stays, whatever the limits say.
//! After a start everybody has just gone, so nothing goes at all, unless the disk is above its
//! mark: then what only rules keep goes. The grace is over early when the disk has room for only
//! seconds more of what comes in.
//!
//! Above the disk's high watermark the right part shrinks, oldest first and no further than
//! necessary. When that is not enough, no more WAL comes in. After the grace, slots that nobody
//! uses lose their WAL, one at a time, the one that keeps most first. In any case WAL stays that
//! has to be archived first, and so does the segment in which the next start's walk begins.

mod holds;
mod needs;
mod outlook;
mod positions;
mod space;
#[cfg(test)]
mod tests;

pub use holds::{Hold, Holds, Removed};
pub use outlook::{Keep, KeepReason, Outlook, outlook};
pub use positions::{Needed, WalHolder};
pub use space::{HighWatermark, Space, TooFull};

use self::needs::Needs;
use super::slots::Cause;
use crate::wal::{Lsn, SegmentNo, SegmentSize};
use std::time::Duration;

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
    /// `--reconnect-grace`: for so long after a disconnect a standby, or a slot's user, may come
    /// back and find its WAL, and everybody after a start.
    pub grace: Duration,
    /// How long an automatically created slot may stay unused; zero for ever.
    pub auto_created_ttl: Duration,
    /// `--keep-set-aside`: for so long after it was confirmed what was set aside stays; zero for ever.
    pub keep_set_aside: Duration,
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
    /// No session has had it for this long, as far as this process knows.
    Idle(Duration),
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
#[derive(Clone)]
pub struct Situation<'a> {
    /// The size of every segment.
    pub size: SegmentSize,
    /// The oldest segment that is on disk.
    pub oldest: SegmentNo,
    /// The durable mark.
    pub newest: Lsn,
    /// For how long this process has looked after the WAL.
    pub running: Duration,
    /// How long ago segments were completed, oldest first, without a hole. The oldest segment not
    /// listed counts as completed now.
    pub completed: &'a [(SegmentNo, Duration)],
    /// Where the next start's walk begins.
    pub walk_start: Option<Lsn>,
    /// What standbys need, those among them that left a moment ago.
    pub needed: Needed,
    /// The slots that keep WAL.
    pub slots: &'a [SlotNeed],
    /// Is this segment archived? Also true when nothing has to be archived.
    pub archived: &'a dyn Fn(SegmentNo) -> bool,
    /// The disk's space; `None` when it is not known.
    pub space: Option<Space>,
    /// How much WAL comes in, bytes in a second.
    pub pace: u64,
    /// For how long no WAL has come in because the disk is too full; `None` while it does.
    pub paused: Option<Duration>,
}

impl Situation<'_> {
    /// A situation in which nobody needs anything.
    pub fn new(size: SegmentSize, oldest: SegmentNo, newest: Lsn) -> Self {
        Self {
            size,
            oldest,
            newest,
            running: Duration::MAX,
            completed: &[],
            walk_start: None,
            needed: Needed::default(),
            slots: &[],
            archived: &|_| true,
            space: None,
            pace: 0,
            paused: None,
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
    let missing = space.shortage(mark, resume_room(size));
    Some(TooFull { mark, space, missing })
}

/// The disk when it is above the mark, whatever may be removed; `None` when it is not.
pub fn above_mark(policy: &Policy, space: Space, size: SegmentSize) -> Option<TooFull> {
    let mark = policy.high_watermark.filter(|mark| space.shortage(*mark, 0) > 0)?;
    Some(TooFull { mark, space, missing: space.shortage(mark, resume_room(size)) })
}

/// How much room there has to be below the mark before receiving continues, in bytes.
pub const fn resume_room(size: SegmentSize) -> u64 {
    RESUME_SEGMENTS.saturating_mul(size.bytes())
}

/// Decides what may go.
pub fn plan(policy: &Policy, situation: &Situation<'_>) -> Plan {
    let needs = Needs::new(policy, situation);
    let (oldest, size) = (situation.oldest, situation.size);
    let mut invalidate = needs.timed_out();
    let mut horizon = needs.by_rules(&invalidate);
    let shortage = needs.shortage();
    let target = SegmentNo::new(oldest.raw().saturating_add(shortage.div_ceil(size.bytes())));
    let frees_enough = |horizon: SegmentNo| {
        let going = horizon.raw().saturating_sub(oldest.raw());
        going.saturating_mul(size.bytes()) >= shortage
    };
    if shortage > 0 {
        horizon = horizon.max(needs.without_rules(&invalidate).min(target));
        if !frees_enough(horizon)
            && needs.has_paused_long_enough()
            && let Some(slot) = needs.greatest_unused(&invalidate)
        {
            invalidate.push((slot, Cause::WalRemoved));
            horizon = horizon.max(needs.without_rules(&invalidate).min(target));
        }
    }
    for slot in needs.out_of_reach(horizon, &invalidate) {
        invalidate.push((slot, Cause::WalRemoved));
    }
    let receiving = match frees_enough(horizon) {
        true => Receiving::Open,
        false => Receiving::Paused,
    };
    Plan { horizon, invalidate, receiving }
}
