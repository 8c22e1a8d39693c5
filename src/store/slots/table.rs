//! All slots of a hub, and who may create, use and drop them, with PostgreSQL's messages.

use super::file::{Cause, Origin, SlotFile};
use super::name::SlotName;
use super::slot::Slot;
use crate::store::retention::SlotNeed;
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A slot to be created.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its name.
    pub name: SlotName,
    /// Until the end of its session, or until it is dropped.
    pub lifetime: SlotLifetime,
    /// How it came to be created.
    pub origin: Origin,
    /// The position from which it keeps WAL at once.
    pub reserve: Option<Lsn>,
    /// The session. It has a persistent slot until that is on disk, and keeps a temporary one.
    pub pid: u32,
}

/// What happens when a session wants to use a slot that was invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidSlots {
    /// It may use it, as up to PostgreSQL 17; the next flush report revives the slot.
    Accept,
    /// It may not, as in PostgreSQL 18.
    Refuse,
}

/// Why a slot command is refused, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotFault {
    /// 42704
    #[error("replication slot \"{0}\" does not exist")]
    Unknown(String),
    /// 42710
    #[error("replication slot \"{0}\" already exists")]
    Exists(SlotName),
    /// 53400
    #[error("all replication slots are in use")]
    Full,
    /// 55006
    #[error("replication slot \"{name}\" is active for PID {pid}")]
    InUse {
        /// The slot.
        name: SlotName,
        /// The session that has it.
        pid: u32,
    },
    /// 55000
    #[error("can no longer access replication slot \"{name}\"")]
    Invalidated {
        /// The slot.
        name: SlotName,
        /// Why.
        cause: Cause,
    },
}

/// The slots.
#[derive(Debug, Default)]
pub struct SlotTable {
    slots: BTreeMap<String, Slot>,
    /// Sessions whose slots were invalidated and that have not been told yet.
    revoked: Vec<u32>,
}

impl SlotTable {
    /// Adds a slot that was found on disk.
    pub fn load(&mut self, file: SlotFile) {
        self.slots.insert(file.name.to_string(), Slot::from_file(file));
    }

    /// All slots, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many were created automatically.
    pub fn auto_created(&self) -> usize {
        self.iter().filter(|slot| slot.origin == Origin::AutoCreated).count()
    }

    /// The slot with this name.
    pub fn get(&self, name: &str) -> Option<&Slot> {
        self.slots.get(name)
    }

    /// Creates a slot; there may be at most `max`. A persistent one belongs to the session until
    /// [`SlotTable::set_free`] or [`SlotTable::forget`].
    pub fn create(&mut self, create: Create, max: usize) -> Result<(), SlotFault> {
        let key = create.name.to_string();
        if self.slots.contains_key(&key) {
            return Err(SlotFault::Exists(create.name));
        }
        if self.slots.len() >= max {
            return Err(SlotFault::Full);
        }
        let Create { name, lifetime, origin, reserve, pid } = create;
        let slot = Slot {
            name,
            lifetime,
            origin,
            restart_lsn: reserve,
            invalidated: None,
            user: Some(pid),
            idle_since: None,
            reported: Arc::default(),
            saved: None,
            saved_at: None,
        };
        self.slots.insert(key, slot);
        Ok(())
    }

    /// Frees a slot that was created and is on disk, or that could not be dropped.
    pub fn set_free(&mut self, name: &SlotName) {
        if let Some(slot) = self.slots.get_mut(name.as_str()) {
            slot.user = None;
        }
    }

    /// The slot is gone: it was dropped, or never reached the disk.
    pub fn forget(&mut self, name: &SlotName) {
        self.slots.remove(name.as_str());
    }

    /// Gives the slot to a session. Returns where to record its flush reports.
    pub fn acquire(
        &mut self,
        name: &str,
        pid: u32,
        invalid: InvalidSlots,
    ) -> Result<(SlotName, Arc<AtomicU64>), SlotFault> {
        let slot = self.slots.get_mut(name).ok_or_else(|| SlotFault::Unknown(name.to_owned()))?;
        let name = slot.name.clone();
        if let Some(pid) = slot.user.filter(|user| *user != pid) {
            return Err(SlotFault::InUse { name, pid });
        }
        if let Some(cause) = slot.invalidated
            && invalid == InvalidSlots::Refuse
        {
            return Err(SlotFault::Invalidated { name, cause });
        }
        slot.user = Some(pid);
        slot.idle_since = None;
        Ok((name, Arc::clone(&slot.reported)))
    }

    /// The session no longer uses the slot. A temporary slot still belongs to it.
    pub fn release(&mut self, name: &SlotName, pid: u32) {
        if let Some(slot) = self.slots.get_mut(name.as_str())
            && slot.user == Some(pid)
            && slot.lifetime == SlotLifetime::Persistent
        {
            slot.user = None;
        }
    }

    /// Do reports recorded there still count for the slot? Not after it was invalidated.
    pub fn counts(&self, name: &SlotName, reported: &Arc<AtomicU64>) -> bool {
        self.get(name.as_str()).is_some_and(|slot| Arc::ptr_eq(&slot.reported, reported))
    }

    /// Takes the slot in order to drop it. A temporary one is gone at once. A persistent one
    /// belongs to the session until [`SlotTable::forget`] or [`SlotTable::set_free`].
    pub fn begin_drop(&mut self, name: &str, pid: u32) -> Result<SlotLifetime, SlotFault> {
        let (name, _) = self.acquire(name, pid, InvalidSlots::Accept)?;
        let lifetime = self.get(name.as_str()).map(|slot| slot.lifetime);
        if lifetime == Some(SlotLifetime::Temporary) {
            self.forget(&name);
        }
        lifetime.ok_or_else(|| SlotFault::Unknown(name.to_string()))
    }

    /// The session ended, or a command of it failed: its temporary slots go.
    pub fn drop_temporary(&mut self, pid: u32) {
        self.slots
            .retain(|_, slot| slot.lifetime == SlotLifetime::Persistent || slot.user != Some(pid));
    }

    /// Takes over what users have reported, as far as there is WAL.
    pub fn absorb(&mut self, oldest_kept: Lsn) {
        for slot in self.slots.values_mut() {
            slot.absorb(oldest_kept);
        }
    }

    /// Notes which slots are unused, and since when.
    pub fn note_idle(&mut self, now: SystemTime) {
        for slot in self.slots.values_mut() {
            match slot.user {
                Some(_) => slot.idle_since = None,
                None => {
                    slot.idle_since.get_or_insert(now);
                }
            }
        }
    }

    /// The slots that keep WAL, and from which position.
    pub fn needs(&self, now: SystemTime) -> (Vec<SlotName>, Vec<SlotNeed>) {
        self.iter().filter_map(|slot| Some((slot.name.clone(), slot.need(now)?))).unzip()
    }

    /// A slot loses its WAL. A session that uses it has to end; what it still reports does not
    /// count.
    pub fn invalidate(&mut self, name: &SlotName, cause: Cause) {
        let Some(slot) = self.slots.get_mut(name.as_str()) else { return };
        slot.restart_lsn = None;
        slot.invalidated = Some(cause);
        slot.reported = Arc::default();
        self.revoked.extend(slot.user);
    }

    /// Returns, once, the sessions that have to end because their slots were invalidated.
    pub fn take_revoked(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.revoked)
    }

    /// Every slot loses its WAL: it was moved aside.
    pub fn invalidate_all(&mut self) {
        for slot in self.slots.values_mut().filter(|slot| slot.restart_lsn.is_some()) {
            slot.restart_lsn = None;
            slot.invalidated = Some(Cause::WalRemoved);
            slot.reported = Arc::default();
        }
    }

    /// The timeline ends at `end`. What users have past it is on a branch that nobody follows,
    /// and from there on they will need the other branch. Returns what has to be written to disk
    /// before the switch.
    pub fn fall_back(&mut self, end: Lsn) -> Vec<SlotFile> {
        let mut changed = Vec::new();
        for slot in self.slots.values_mut() {
            slot.reported.fetch_min(end.raw(), Ordering::AcqRel);
            if slot.restart_lsn.is_some_and(|lsn| lsn > end) {
                slot.restart_lsn = Some(end);
            }
            if slot.saved.as_ref().and_then(|file| file.restart_lsn).is_some_and(|lsn| lsn > end) {
                changed.push(slot.to_file());
            }
        }
        changed
    }

    /// Slots that have to be written to disk now.
    pub fn to_save(&self, size: SegmentSize, now: SystemTime) -> Vec<SlotFile> {
        let due = self.iter().filter(|slot| slot.is_to_be_saved(size, now));
        due.map(Slot::to_file).collect()
    }

    /// The file to write for a slot that was created.
    pub fn file_of(&self, name: &SlotName) -> Option<SlotFile> {
        let slot = self.get(name.as_str())?;
        (slot.lifetime == SlotLifetime::Persistent).then(|| slot.to_file())
    }

    /// Notes that this file is on disk.
    pub fn saved(&mut self, file: SlotFile, now: SystemTime) {
        if let Some(slot) = self.slots.get_mut(file.name.as_str()) {
            slot.saved = Some(file);
            slot.saved_at = Some(now);
        }
    }

    /// Removes and returns the automatically created slots that have been unused for `ttl`.
    pub fn take_expired(&mut self, now: SystemTime, ttl: Duration) -> Vec<SlotName> {
        if ttl.is_zero() {
            return Vec::new();
        }
        let is_expired = |slot: &Slot| {
            slot.origin == Origin::AutoCreated
                && slot.user.is_none()
                && slot
                    .idle_since
                    .and_then(|since| now.duration_since(since).ok())
                    .is_some_and(|age| age >= ttl)
        };
        let expired: Vec<_> =
            self.iter().filter(|slot| is_expired(slot)).map(|slot| slot.name.clone()).collect();
        for name in &expired {
            self.forget(name);
        }
        expired
    }
}

#[cfg(test)]
mod tests;
