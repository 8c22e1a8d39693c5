//! The slots as shared by a hub's threads.

use super::SlotName;
use super::table::SlotTable;
use crate::wal::Lsn;
use std::sync::atomic::{AtomicU64, Ordering};
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

    /// The session ended, or a command of it failed: its temporary slots go.
    pub fn drop_temporary(&self, pid: u32) {
        self.lock().drop_temporary(pid);
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

/// A session's use of a slot; the slot is free when this is dropped. Flush reports are recorded
/// without the lock.
#[derive(Debug)]
pub struct SlotUse {
    slots: Arc<Slots>,
    name: SlotName,
    pid: u32,
    reported: Arc<AtomicU64>,
}

impl SlotUse {
    pub(in crate::store) const fn new(
        slots: Arc<Slots>,
        name: SlotName,
        pid: u32,
        reported: Arc<AtomicU64>,
    ) -> Self {
        Self { slots, name, pid, reported }
    }

    /// Was the slot invalidated since it was acquired?
    pub fn is_revoked(&self) -> bool {
        !self.slots.lock().counts(&self.name, &self.reported)
    }

    /// The user has flushed up to here. 0/0 is ignored. The position may go back.
    pub fn confirm(&self, flush: Lsn) {
        if flush != Lsn::INVALID {
            self.reported.store(flush.raw(), Ordering::Release);
        }
    }
}

impl Drop for SlotUse {
    fn drop(&mut self) {
        self.slots.lock().release(&self.name, self.pid);
        self.slots.tell_freed();
    }
}
