//! The slots as the threads of a hub share them.

use super::SlotName;
use super::table::{InvalidSlots, SlotFault, SlotTable};
use crate::wal::Lsn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// All slots, behind one lock. It is never held while something is written.
#[derive(Debug, Default)]
pub struct Slots {
    table: Mutex<SlotTable>,
    freed: Notify,
}

/// A session's use of a slot. Flush reports go in without the lock.
#[derive(Debug)]
pub struct SlotUse {
    name: SlotName,
    pid: u32,
    reported: Arc<AtomicU64>,
}

impl SlotUse {
    /// The user has flushed up to here; 0/0 says nothing. It may go back.
    pub fn confirm(&self, flush: Lsn) {
        if flush != Lsn::INVALID {
            self.reported.store(flush.raw(), Ordering::Release);
        }
    }

    /// The slot.
    pub const fn name(&self) -> &SlotName {
        &self.name
    }
}

impl Slots {
    /// The table, alone.
    pub fn lock(&self) -> MutexGuard<'_, SlotTable> {
        // A panic ends the process (`panic = "abort"`); only tests can poison the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a slot to a session.
    pub fn acquire(
        &self,
        name: &str,
        pid: u32,
        invalid: InvalidSlots,
    ) -> Result<SlotUse, SlotFault> {
        let (name, reported) = self.lock().acquire(name, pid, invalid)?;
        Ok(SlotUse { name, pid, reported })
    }

    /// Takes a slot back.
    pub fn release(&self, slot: &SlotUse) {
        self.give_up(&slot.name, slot.pid);
    }

    /// The session does not want the slot any more.
    pub fn give_up(&self, name: &SlotName, pid: u32) {
        self.lock().release(name, pid);
        self.freed.notify_waiters();
    }

    /// Comes when some slot may be free that was not. Made before one looks.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Says that some slot may be free: it was created, or dropped.
    pub fn tell_freed(&self) {
        self.freed.notify_waiters();
    }
}
