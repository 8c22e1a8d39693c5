//! One slot.

use super::file::{Cause, Origin, SlotFile};
use super::name::SlotName;
use crate::store::retention::{Activity, MIN_KEPT_SEGMENTS, Policy, Restorable, SlotNeed};
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A slot is written to disk at most this often, unless somebody waits for it.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

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
    /// The session that has it.
    pub user: Option<u32>,
    /// Unused since, as far as anyone has checked.
    pub idle_since: Option<SystemTime>,
    /// The newest flush that its user reported; zero before the first.
    pub(super) reported: Arc<AtomicU64>,
    /// What is on disk. A temporary slot never is.
    pub(super) saved: Option<SlotFile>,
    pub(super) saved_at: Option<SystemTime>,
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
    pub(super) fn from_file(file: SlotFile) -> Self {
        Self {
            name: file.name.clone(),
            lifetime: SlotLifetime::Persistent,
            origin: file.origin,
            restart_lsn: file.restart_lsn,
            invalidated: file.invalidated,
            user: None,
            idle_since: None,
            reported: Arc::default(),
            saved: Some(file),
            saved_at: None,
        }
    }

    pub(super) fn to_file(&self) -> SlotFile {
        SlotFile {
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

    /// The position from which WAL has to stay: the one on disk, or the slot's current one when
    /// that is lower. So an invalidated slot keeps its WAL until the invalidation is on disk.
    pub fn needed_from(&self) -> Option<Lsn> {
        let saved = self.saved.as_ref().and_then(|file| file.restart_lsn);
        [saved, self.restart_lsn].into_iter().flatten().min()
    }

    pub(super) fn need(&self, now: SystemTime) -> Option<SlotNeed> {
        let from = self.needed_from()?;
        let activity = match self.user {
            Some(_) => Activity::Used,
            None => Activity::IdleSince(self.idle_since.unwrap_or(now)),
        };
        Some(SlotNeed { from, activity })
    }

    /// Is it time to write it to disk? A change of position matters only when it crosses a
    /// segment boundary.
    pub(super) fn is_to_be_saved(&self, size: SegmentSize, now: SystemTime) -> bool {
        let Some(saved) = &self.saved else { return false };
        let segment = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.segment(size));
        let differs = segment(saved.restart_lsn) != segment(self.restart_lsn)
            || saved.invalidated != self.invalidated;
        // An unused slot is written with its exact position.
        let rests = self.user.is_none() && *saved != self.to_file();
        let recent = self.saved_at.and_then(|at| now.duration_since(at).ok());
        let recent = recent.is_some_and(|age| age < SAVE_INTERVAL);
        (differs || rests) && (!recent || saved.invalidated != self.invalidated)
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
