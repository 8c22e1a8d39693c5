//! One slot.

#[cfg(test)]
use super::holder::SlotToken;
use super::holder::{Holder, SlotSession};
use super::name::SlotName;
use super::record::{Cause, Origin, SlotRecord};
use crate::store::now::Now;
use crate::store::retention::{Activity, MIN_KEPT_SEGMENTS, Policy, Restorable, SlotNeed};
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A replication slot.
#[derive(Debug)]
pub struct Slot {
    /// Its name.
    pub name: SlotName,
    /// Until the end of its session, or until it is dropped.
    pub lifetime: SlotLifetime,
    /// How it came to be created.
    pub origin: Origin,
    /// The position from which it keeps WAL.
    pub restart_lsn: Option<Lsn>,
    /// It lost its WAL at least once.
    pub invalidated: Option<Cause>,
    /// Unused since, as far as anyone has checked.
    pub idle_since: Option<SystemTime>,
    /// The same by the clock that does not jump.
    pub(super) unused_since: Option<Instant>,
    /// The newest flush that its user reported; zero before the first.
    pub(super) reported: Arc<AtomicU64>,
    /// Who has it.
    pub(super) holder: Holder,
    /// The session of a temporary slot.
    pub(super) session: Option<SlotSession>,
    /// What the newest generation on disk says. A temporary slot is in none.
    pub(super) newest: Option<SlotRecord>,
    /// What the generation before says. A start that cannot read the newest one reads this.
    pub(super) older: Option<SlotRecord>,
}

/// `pg_replication_slots.wal_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// It keeps no more than `--wal-keep-size` keeps for everybody.
    Reserved,
    /// It keeps more, here or in the archive.
    Extended,
    /// It keeps more than it may; its WAL is going to be removed.
    Unreserved,
    /// Its WAL is gone.
    Lost,
}

impl fmt::Display for WalStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserved => "reserved",
            Self::Extended => "extended",
            Self::Unreserved => "unreserved",
            Self::Lost => "lost",
        })
    }
}

impl Slot {
    /// A slot that was found on disk.
    pub(super) fn from_record(record: SlotRecord) -> Self {
        Self {
            name: record.name,
            lifetime: SlotLifetime::Persistent,
            origin: record.origin,
            restart_lsn: record.restart_lsn,
            invalidated: record.invalidated,
            idle_since: None,
            unused_since: None,
            reported: Arc::default(),
            holder: Holder::Nobody,
            session: None,
            newest: None,
            older: None,
        }
    }

    pub(super) fn to_record(&self) -> SlotRecord {
        SlotRecord {
            name: self.name.clone(),
            restart_lsn: self.restart_lsn,
            invalidated: self.invalidated,
            origin: self.origin,
        }
    }

    /// Takes over what the user reported. The position may be ahead of our own WAL. It may also
    /// go back, as far as there is WAL.
    pub(super) fn absorb(&mut self, oldest_kept: Lsn) {
        let reported = Lsn::new(self.reported.load(Ordering::Acquire));
        if reported != Lsn::INVALID && reported >= oldest_kept {
            self.restart_lsn = Some(reported);
        }
    }

    /// `pg_replication_slots.active_pid`: the session that has it.
    pub fn active_pid(&self) -> Option<u32> {
        self.holder.pid().or(self.session.map(|session| session.pid))
    }

    /// Has a session got it?
    pub fn is_used(&self) -> bool {
        self.active_pid().is_some()
    }

    /// Does a standby stream from it?
    pub fn has_stream(&self) -> bool {
        self.holder.token().is_some()
    }

    /// The stream that has it.
    #[cfg(test)]
    pub fn user(&self) -> Option<SlotToken> {
        self.holder.token()
    }

    /// Who keeps `session` from having it: another session, or an earlier use by itself.
    pub(super) fn withheld_by(&self, session: SlotSession) -> Option<u32> {
        let owner = self.session.filter(|owner| *owner != session);
        owner.map(|owner| owner.pid).or(self.holder.pid())
    }

    /// The position from which WAL has to stay: the oldest of the slot's current one and those on
    /// disk. So an invalidated slot keeps its WAL until no generation says otherwise.
    pub fn needed_from(&self) -> Option<Lsn> {
        let on_disk = self.on_disk().filter_map(|record| record.restart_lsn);
        on_disk.chain(self.restart_lsn).min()
    }

    /// What the generations on disk say.
    pub(super) fn on_disk(&self) -> impl Iterator<Item = &SlotRecord> {
        self.newest.iter().chain(&self.older)
    }

    /// Whichever generation a start reads, the slot is in it.
    pub(super) fn is_saved(&self) -> bool {
        self.newest.is_some() && self.older.is_some()
    }

    pub(super) fn need(&self, now: Now) -> Option<SlotNeed> {
        let from = self.needed_from()?;
        let activity = match self.active_pid() {
            Some(_) => Activity::Used,
            None => Activity::Idle(self.unused_for(now)),
        };
        Some(SlotNeed { from, activity })
    }

    /// How long it has been unused, as far as anyone has checked.
    pub(super) fn unused_for(&self, now: Now) -> Duration {
        self.unused_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// It is unused, or used, now.
    pub(super) fn note_idle(&mut self, now: Now) {
        if self.is_used() {
            self.end_idleness();
        } else {
            self.idle_since.get_or_insert(now.time_of_day);
            self.unused_since.get_or_insert(now.instant);
        }
    }

    /// Somebody has it.
    pub(super) fn end_idleness(&mut self) {
        (self.idle_since, self.unused_since) = (None, None);
    }

    /// Does a generation on disk have to be replaced because of this slot? A change of position
    /// matters only when it crosses a segment boundary, or one of `seams`. An unused slot is written with its exact
    /// position. For a slot that is in no generation somebody waits, or nobody ever will.
    pub(super) fn is_to_be_saved(&self, size: SegmentSize, seams: &[Lsn]) -> bool {
        let segment = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.segment(size));
        let crosses = |record: &SlotRecord| {
            let is_past = |lsn: Option<Lsn>, seam| lsn.is_some_and(|lsn| lsn > seam);
            let moved = |seam| is_past(record.restart_lsn, seam) != is_past(self.restart_lsn, seam);
            seams.iter().copied().any(moved)
        };
        let is_outdated = |record: &SlotRecord| {
            segment(record.restart_lsn) != segment(self.restart_lsn)
                || crosses(record)
                || record.invalidated != self.invalidated
                || (!self.is_used() && *record != self.to_record())
        };
        match self.on_disk().count() {
            0 => false,
            1 => true,
            _ => self.on_disk().any(is_outdated),
        }
    }

    /// How safe its WAL is; `None` when it keeps none.
    pub fn wal_status(
        &self,
        policy: &Policy,
        size: SegmentSize,
        newest: Lsn,
        oldest_kept: Lsn,
    ) -> Option<WalStatus> {
        let Some(from) = self.restart_lsn else {
            return self.invalidated.map(|_| WalStatus::Lost);
        };
        let rules = policy.wal_keep_size.max(MIN_KEPT_SEGMENTS.saturating_mul(size.bytes()));
        let back = |bytes: u64| newest.saturating_sub(bytes).segment(size);
        let no = from.segment(size);
        Some(if no < oldest_kept.segment(size) {
            match policy.restorable {
                Restorable::No => WalStatus::Lost,
                Restorable::Yes { .. } => WalStatus::Extended,
            }
        } else if no >= back(rules) {
            WalStatus::Reserved
        } else if policy.max_slot_wal_keep_size.is_none_or(|max| no >= back(max)) {
            WalStatus::Extended
        } else {
            WalStatus::Unreserved
        })
    }
}
