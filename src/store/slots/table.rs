//! All slots of a hub, and who may create, use and drop them, with PostgreSQL's messages.

use super::change::{Loss, SlotChange};
use super::files::FoundGenerations;
use super::holder::{Holder, SlotSession, SlotToken};
use super::name::SlotName;
use super::record::{Cause, Origin, SlotRecord};
use super::slot::Slot;
use crate::store::now::Now;
use crate::store::retention::SlotNeed;
use crate::store::seams::Seams;
use crate::wal::{Lsn, SegmentSize};
use crate::wire::command::SlotLifetime;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Positions are written to disk at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// How many generations a start may read.
const GENERATIONS: u8 = 2;

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
    pub session: SlotSession,
}

/// A slot that was given to a stream.
#[derive(Debug, Clone)]
pub struct SlotGrant {
    /// The slot.
    pub name: SlotName,
    /// Stands for this use of it, and frees it.
    pub token: SlotToken,
    /// Where the flush reports are recorded.
    pub reported: Arc<AtomicU64>,
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
    /// The last token that was given.
    newest_token: SlotToken,
    /// Seams that slots may pass, which is saved at once: it shows that their standbys have followed.
    seams: Vec<Lsn>,
    /// Uses of slots that were invalidated, whose streams have not been told yet.
    revoked: Vec<SlotToken>,
    /// So many generations have to be written even if no slot asks for it.
    unsettled: u8,
    /// What else stands in a generation has changed.
    is_asked_for: bool,
    /// When positions were last written to disk, or were to be.
    saved_at: Option<Instant>,
}

impl SlotTable {
    /// Takes over what a start found. The newest generation counts; the WAL that the older one
    /// needs stays until it is replaced.
    pub fn load(&mut self, [newest, older]: FoundGenerations) {
        let Some(newest) = newest else { return };
        let older = older.map(|generation| generation.slots).unwrap_or_default();
        self.unsettled = u8::from(older != newest.slots);
        let mut older: BTreeMap<_, _> =
            older.into_iter().map(|record| (record.name.clone(), record)).collect();
        for record in newest.slots {
            let before = older.remove(&record.name);
            let slot = Slot::from_record(record.clone());
            let slot = Slot { newest: Some(record), older: before, ..slot };
            self.slots.insert(slot.name.to_string(), slot);
        }
    }

    /// Takes over a slot from a file of its own, which is newer than both generations.
    pub fn load_former(&mut self, record: SlotRecord) {
        let slot = Slot::from_record(record);
        let before = self.slots.remove(slot.name.as_str());
        let (newest, older) = before.map(|slot| (slot.newest, slot.older)).unwrap_or_default();
        self.slots.insert(slot.name.to_string(), Slot { newest, older, ..slot });
        self.unsettled = GENERATIONS;
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

    /// A session begins. Its process ID is what others are told.
    pub fn enter(&mut self, pid: u32) -> SlotSession {
        SlotSession { pid, token: self.new_token() }
    }

    fn new_token(&mut self) -> SlotToken {
        self.newest_token = self.newest_token.next();
        self.newest_token
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
        let Create { name, lifetime, origin, reserve, session } = create;
        let (holder, session) = match lifetime {
            SlotLifetime::Persistent => (Holder::Creator { pid: session.pid }, None),
            SlotLifetime::Temporary => (Holder::Nobody, Some(session)),
        };
        let slot = Slot {
            name,
            lifetime,
            origin,
            restart_lsn: reserve,
            invalidated: None,
            idle_since: None,
            unused_since: None,
            reported: Arc::default(),
            holder,
            session,
            newest: None,
            older: None,
        };
        self.slots.insert(key, slot);
        Ok(())
    }

    /// Frees a slot that was created and is on disk, or that could not be dropped.
    pub fn set_free(&mut self, name: &SlotName) {
        if let Some(slot) = self.slots.get_mut(name.as_str())
            && matches!(slot.holder, Holder::Creator { .. } | Holder::Dropper { .. })
        {
            slot.holder = Holder::Nobody;
        }
    }

    /// The slot is gone: it was dropped, or never reached the disk.
    pub fn forget(&mut self, name: &SlotName) {
        self.slots.remove(name.as_str());
    }

    /// Gives the slot to a stream of the session. A session that has it already does not get it a
    /// second time.
    pub fn acquire(
        &mut self,
        name: &str,
        session: SlotSession,
        invalid: InvalidSlots,
    ) -> Result<SlotGrant, SlotFault> {
        let token = self.new_token();
        let slot = self.free_slot(name, session)?;
        let name = slot.name.clone();
        if let Some(cause) = slot.invalidated
            && invalid == InvalidSlots::Refuse
        {
            return Err(SlotFault::Invalidated { name, cause });
        }
        slot.holder = Holder::User { pid: session.pid, token };
        slot.end_idleness();
        Ok(SlotGrant { name, token, reported: Arc::clone(&slot.reported) })
    }

    /// The slot, if the session may have it.
    fn free_slot(&mut self, name: &str, session: SlotSession) -> Result<&mut Slot, SlotFault> {
        let slot = self.slots.get_mut(name).ok_or_else(|| SlotFault::Unknown(name.to_owned()))?;
        match slot.withheld_by(session) {
            Some(pid) => Err(SlotFault::InUse { name: slot.name.clone(), pid }),
            None => Ok(slot),
        }
    }

    /// The stream with this token no longer uses the slot. A temporary slot still belongs to its
    /// session.
    pub fn release(&mut self, name: &SlotName, token: SlotToken) {
        if let Some(slot) = self.slots.get_mut(name.as_str())
            && slot.holder.token() == Some(token)
        {
            slot.holder = Holder::Nobody;
        }
    }

    /// Do reports recorded there still count for the slot? Not after it was invalidated.
    pub fn counts(&self, grant: &SlotGrant) -> bool {
        let slot = self.get(grant.name.as_str());
        slot.is_some_and(|slot| Arc::ptr_eq(&slot.reported, &grant.reported))
    }

    /// Takes the slot in order to drop it. A temporary one is gone at once. A persistent one
    /// belongs to the session until [`SlotTable::forget`] or [`SlotTable::set_free`].
    pub fn begin_drop(
        &mut self,
        name: &str,
        session: SlotSession,
    ) -> Result<SlotLifetime, SlotFault> {
        let slot = self.free_slot(name, session)?;
        let lifetime = slot.lifetime;
        match lifetime {
            SlotLifetime::Temporary => drop(self.slots.remove(name)),
            SlotLifetime::Persistent => {
                slot.holder = Holder::Dropper { pid: session.pid };
                slot.end_idleness();
            }
        }
        Ok(lifetime)
    }

    /// The session ended, or a command of it failed: its temporary slots go.
    pub fn drop_temporary(&mut self, session: SlotSession) {
        self.slots.retain(|_, slot| slot.session != Some(session));
    }

    /// Takes over what users have reported, as far as there is WAL.
    pub fn absorb(&mut self, oldest_kept: Lsn) {
        for slot in self.slots.values_mut() {
            slot.absorb(oldest_kept);
        }
    }

    /// Notes which slots are unused, and since when.
    pub fn note_idle(&mut self, now: Now) {
        for slot in self.slots.values_mut() {
            slot.note_idle(now);
        }
    }

    /// The slots that keep WAL, and from which position.
    pub fn needs(&self, now: Now) -> (Vec<SlotName>, Vec<SlotNeed>) {
        self.iter().filter_map(|slot| Some((slot.name.clone(), slot.need(now)?))).unzip()
    }

    /// The losses that a plan asks for. They take effect by [`SlotTable::lose`].
    pub fn losses<'a>(&self, lost: impl Iterator<Item = (&'a SlotName, Cause)>) -> Vec<Loss> {
        let loss = |(name, cause): (&SlotName, Cause)| {
            let slot = self.get(name.as_str())?;
            Some(Loss {
                name: name.clone(),
                cause,
                kept_from: slot.needed_from(),
                restart_lsn: slot.restart_lsn,
                was_used: slot.is_used(),
                reported: Arc::clone(&slot.reported),
            })
        };
        lost.filter_map(loss).collect()
    }

    /// These losses are on disk: the slots have no WAL, streams that use them have to end, and
    /// what those still report does not count. A slot that was unused and has a user now is
    /// spared, and is to be saved again. Returns the losses that took effect.
    pub fn lose(&mut self, mut losses: Vec<Loss>) -> Vec<Loss> {
        losses.retain(|loss| {
            let slot = self.slots.get_mut(loss.name.as_str());
            let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.reported, &loss.reported)) else {
                return false;
            };
            if !loss.was_used && slot.is_used() {
                self.unsettled = GENERATIONS;
                return false;
            }
            slot.restart_lsn = None;
            slot.invalidated = Some(loss.cause);
            slot.reported = Arc::default();
            self.revoked.extend(slot.holder.token());
            true
        });
        losses
    }

    /// Returns, once, the uses that have to end because their slots were invalidated.
    pub fn take_revoked(&mut self) -> Vec<SlotToken> {
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

    /// Slots may pass these seams from now on.
    pub fn watch(&mut self, seams: &Seams) {
        self.seams = seams.iter().map(|seam| seam.at).collect();
    }

    /// Every slot past `at`, or whose user has been, loses its WAL. Returns their names, and where
    /// they were.
    pub fn invalidate_past(&mut self, at: Lsn) -> Vec<(SlotName, Lsn)> {
        let mut lost = Vec::new();
        for slot in self.slots.values_mut() {
            let reported = Lsn::new(slot.reported.load(Ordering::Acquire));
            let Some(from) = slot.restart_lsn.max(Some(reported)).filter(|lsn| *lsn > at) else {
                continue;
            };
            slot.restart_lsn = None;
            slot.invalidated = Some(Cause::WalRemoved);
            slot.reported = Arc::default();
            self.revoked.extend(slot.holder.token());
            lost.push((slot.name.clone(), from));
        }
        lost
    }

    /// Has a generation on disk a position past `at`?
    pub fn is_beyond(&self, at: Lsn) -> bool {
        let mut on_disk = self.iter().flat_map(Slot::on_disk);
        on_disk.any(|record| record.restart_lsn.is_some_and(|lsn| lsn > at))
    }

    /// The timeline ends at `end`. What users have past it is on a branch that nobody follows,
    /// and from there on they will need the other branch. Returns whether a generation on disk
    /// has such a position: both have to be replaced before the switch.
    pub fn fall_back(&mut self, end: Lsn) -> bool {
        for slot in self.slots.values_mut() {
            slot.reported.fetch_min(end.raw(), Ordering::AcqRel);
            if slot.restart_lsn.is_some_and(|lsn| lsn > end) {
                slot.restart_lsn = Some(end);
            }
        }
        self.is_beyond(end)
    }

    /// A generation is to be written when it is time, even if no slot asks for it.
    pub fn ask_for_save(&mut self) {
        self.is_asked_for = true;
    }

    /// Is it time to write a generation? If so, the next time comes a while later.
    pub fn take_due(&mut self, size: SegmentSize, now: Now) -> bool {
        if self.saved_at.is_some_and(|at| now.since(at) < SAVE_INTERVAL) {
            return false;
        }
        let is_due = self.is_asked_for
            || self.is_unsettled()
            || self.iter().any(|slot| slot.is_to_be_saved(size, &self.seams));
        if is_due {
            self.is_asked_for = false;
            self.saved_at = Some(now.instant);
        }
        is_due
    }

    /// Is something on disk that the table does not say, and that was answered otherwise?
    pub fn is_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// What the next generation has to hold: every persistent slot as it will be after `change`,
    /// without those that are being dropped.
    pub fn records(&self, change: &SlotChange) -> Vec<SlotRecord> {
        let is_kept = |slot: &&Slot| {
            slot.lifetime == SlotLifetime::Persistent
                && !matches!(slot.holder, Holder::Dropper { .. })
        };
        let kept = self.iter().filter(is_kept);
        kept.filter_map(|slot| change.apply_to(slot.to_record())).collect()
    }

    /// A generation with these records is durable. It is the newest one now.
    pub fn saved(&mut self, records: Vec<SlotRecord>) {
        self.unsettled = self.unsettled.saturating_sub(1);
        let mut records: BTreeMap<_, _> =
            records.into_iter().map(|record| (record.name.to_string(), record)).collect();
        let persistent = |slot: &Slot| slot.lifetime == SlotLifetime::Persistent;
        for (name, slot) in self.slots.iter_mut().filter(|(_, slot)| persistent(slot)) {
            slot.older = slot.newest.take();
            slot.newest = records.remove(name);
        }
    }

    /// A generation could not be written, and nobody knows what of it the next start finds.
    pub fn not_saved(&mut self) {
        self.unsettled = GENERATIONS;
    }

    /// Is nothing left to be written for a slot that was created? Whichever generation a start
    /// reads, the slot is in it.
    pub fn is_saved(&self, name: &SlotName) -> bool {
        let slot = self.get(name.as_str());
        slot.is_none_or(|slot| slot.lifetime == SlotLifetime::Temporary || slot.is_saved())
    }

    /// Is the slot in no generation on disk?
    pub fn is_erased(&self, name: &SlotName) -> bool {
        self.get(name.as_str()).is_none_or(|slot| slot.on_disk().count() == 0)
    }

    /// The automatically created slots that have been unused for `ttl`.
    pub fn expired(&self, now: Now, ttl: Duration) -> Vec<SlotName> {
        if ttl.is_zero() {
            return Vec::new();
        }
        let is_expired = |slot: &&Slot| {
            slot.origin == Origin::AutoCreated && !slot.is_used() && slot.unused_for(now) >= ttl
        };
        self.iter().filter(is_expired).map(|slot| slot.name.clone()).collect()
    }

    /// These slots are in no generation on disk. One that has a user now stays, and is to be
    /// saved again. Returns those that are gone.
    pub fn forget_unused(&mut self, mut names: Vec<SlotName>) -> Vec<SlotName> {
        names.retain(|name| match self.get(name.as_str()).map(Slot::is_used) {
            Some(false) => {
                self.forget(name);
                true
            }
            Some(true) => {
                self.unsettled = GENERATIONS;
                false
            }
            None => false,
        });
        names
    }
}

#[cfg(test)]
mod tests;
