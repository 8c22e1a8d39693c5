//! The slots as shared by a hub's threads.

use super::holder::{SlotSession, SlotToken};
use super::table::{SlotGrant, SlotTable};
use crate::wal::Lsn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// All slots, behind one lock. It is never held during a write to disk.
#[derive(Debug, Default)]
pub struct Slots {
    table: Mutex<SlotTable>,
    freed: Notify,
    revoked: Notify,
}

impl Slots {
    /// Locks the table.
    pub fn lock(&self) -> MutexGuard<'_, SlotTable> {
        // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins. Its process ID is what others are told.
    pub fn enter(self: &Arc<Self>, pid: u32) -> TemporarySlots {
        let session = self.lock().enter(pid);
        TemporarySlots { slots: Arc::clone(self), session }
    }

    /// The session ended, or a command of it failed: its temporary slots go.
    pub fn drop_temporary(&self, session: SlotSession) {
        self.lock().drop_temporary(session);
        self.tell_freed();
    }

    /// Completes when a slot may have become free. Create it before checking the table.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Completes when a slot in use was invalidated.
    pub fn revoked(&self) -> Notified<'_> {
        self.revoked.notified()
    }

    /// Announces that a slot in use was invalidated.
    pub fn tell_revoked(&self) {
        self.revoked.notify_one();
    }

    /// Announces that a slot may be free.
    pub fn tell_freed(&self) {
        self.freed.notify_waiters();
    }
}

/// The temporary slots of a session. They go when this is dropped.
#[derive(Debug)]
pub struct TemporarySlots {
    slots: Arc<Slots>,
    session: SlotSession,
}

impl TemporarySlots {
    /// Whose they are.
    pub const fn session(&self) -> SlotSession {
        self.session
    }

    /// A command of the session failed: they go now.
    pub fn drop_all(&self) {
        self.slots.drop_temporary(self.session);
    }
}

impl Drop for TemporarySlots {
    fn drop(&mut self) {
        self.drop_all();
    }
}

/// A stream's use of a slot; the slot is free when this is dropped. Flush reports are recorded
/// without the lock.
#[derive(Debug)]
pub struct SlotUse {
    slots: Arc<Slots>,
    grant: SlotGrant,
}

impl SlotUse {
    pub(in crate::store) const fn new(slots: Arc<Slots>, grant: SlotGrant) -> Self {
        Self { slots, grant }
    }

    /// Tells it from every other use.
    pub const fn token(&self) -> SlotToken {
        self.grant.token
    }

    /// Was the slot invalidated since it was acquired?
    pub fn is_revoked(&self) -> bool {
        !self.slots.lock().counts(&self.grant)
    }

    /// Where the slot is; `None` when it keeps no WAL, or no longer is this use's.
    pub fn position(&self) -> Option<Lsn> {
        let slots = self.slots.lock();
        let slot = slots.get(self.grant.name.as_str()).filter(|_| slots.counts(&self.grant))?;
        let reported = Lsn::new(self.grant.reported.load(Ordering::Acquire));
        if reported == Lsn::INVALID { slot.restart_lsn } else { Some(reported) }
    }

    /// The user has flushed up to here. 0/0 is ignored. The position may go back.
    pub fn confirm(&self, flush: Lsn) {
        if flush != Lsn::INVALID {
            self.grant.reported.store(flush.raw(), Ordering::Release);
        }
    }
}

impl Drop for SlotUse {
    fn drop(&mut self) {
        self.slots.lock().release(&self.grant.name, self.grant.token);
        self.slots.tell_freed();
    }
}
