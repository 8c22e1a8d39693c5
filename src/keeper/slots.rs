//! The slots on disk: read at the start, and written before anything is removed because of them.
//!
//! Every write is one generation of all slots, so it serves everybody who waits: of slots that are
//! created or dropped together, the first one's write is the others' too. What must not come back,
//! or get lost, when a start reads the older generation is written twice before it counts.

use super::gate::FinalStep;
use super::work::Keeper;
use crate::store::StoreFault;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::now::Now;
use crate::store::slots::{Loss, SlotChange, SlotName, SlotTable, read_former, remove_former};
use crate::wal::{Lsn, SegmentSize};
use std::io;
use tracing::{info, warn};

impl<D: Disk> Keeper<D> {
    /// Reads all slots. Slots that cannot be read keep the hub from starting: they might keep WAL.
    /// When the two generations differ, the older one is replaced before anybody is told of the
    /// newer one. Slots that an earlier version wrote are taken over, and their files go once both
    /// generations are durable.
    pub async fn load_slots(&self) -> Result<(), StoreFault> {
        let found = self.slot_files.read(&self.disk, &self.layout).await?;
        let standbys_from = found.first().and_then(|newest| newest.as_ref()?.standbys_from);
        if let Some(from) = standbys_from {
            self.holds.left_before(from);
        }
        self.standbys_from.set(standbys_from);
        self.holds.slots.lock().load(found);
        let former = read_former(&self.disk, &self.layout).await?;
        if former.is_empty() {
            if let Err(error) = self.settle().await {
                warn!("could not write down replication slots: {error}");
            }
            return Ok(());
        }
        for record in &former {
            self.holds.slots.lock().load_former(record.clone());
        }
        self.write_both(&SlotChange::None).await.map_err(|error| {
            let [path, _] = self.layout.slots();
            StoreFault::Io { action: "write file", path, error }
        })?;
        remove_former(&self.disk, &self.layout, &former).await?;
        info!(
            "took over {} replication slots from their files of an earlier version",
            former.len()
        );
        Ok(())
    }

    /// Writes a slot that was created, which is then free. If that fails, there is no such slot.
    pub(super) async fn save_slot(&self, name: &SlotName) -> io::Result<()> {
        let is_saved = |slots: &SlotTable| slots.is_saved(name);
        let written = self.write_until(is_saved, &SlotChange::None).await;
        let mut slots = self.holds.slots.lock();
        match &written {
            Ok(()) => slots.set_free(name),
            Err(_) => slots.forget(name),
        }
        drop(slots);
        self.holds.slots.tell_freed();
        written
    }

    /// Removes a slot from both generations, and then the slot.
    pub(super) async fn drop_slot(&self, name: &SlotName) -> io::Result<()> {
        let _leave = self.gate(&FinalStep::Drop(name))?;
        let change = SlotChange::Forget(vec![name.clone()]);
        let is_erased = |slots: &SlotTable| slots.is_erased(name);
        let written = self.write_until(is_erased, &change).await;
        let mut slots = self.holds.slots.lock();
        match &written {
            Ok(()) => slots.forget(name),
            Err(_) => slots.set_free(name),
        }
        drop(slots);
        self.holds.slots.tell_freed();
        written
    }

    /// Takes over what users reported, drops what has expired, and saves positions when that is
    /// due, also that from which standbys without a slot need WAL. One generation is enough for positions, because the older one counts until the next.
    pub(super) async fn tend_slots(&self, size: SegmentSize, now: Now) -> io::Result<()> {
        let from = self.holds.standbys_from(now.instant, self.policy.grace);
        let saved = self.standbys_from.get();
        let (expired, is_due) = {
            let mut slots = self.holds.slots.lock();
            if from.map(|from| from.segment(size)) != saved.map(|from| from.segment(size)) {
                slots.ask_for_save();
            }
            // A plan moves it under the slots' lock.
            slots.absorb(self.holds.oldest_kept());
            slots.note_idle(now);
            let ttl = self.policy.auto_created_ttl;
            let ttl = if ttl.is_zero() { ttl } else { ttl.max(self.policy.grace) };
            (slots.expired(now, ttl), slots.take_due(size, now))
        };
        match (expired.is_empty(), is_due) {
            (false, _) => self.forget_expired(expired).await,
            (true, true) => self.write_slots(&SlotChange::None).await,
            (true, false) => Ok(()),
        }
    }

    /// A slot is forgotten when no generation has it.
    async fn forget_expired(&self, expired: Vec<SlotName>) -> io::Result<()> {
        let _leave = self.gate(&FinalStep::Expire(&expired))?;
        let change = SlotChange::Forget(expired);
        self.write_both(&change).await?;
        let SlotChange::Forget(expired) = change else { return Ok(()) };
        let all = expired.clone();
        let gone = self.holds.slots.lock().forget_unused(expired);
        for name in all.iter().filter(|name| !gone.contains(name)) {
            info!("replication slot \"{name}\" has a user again and stays");
        }
        self.settle().await
    }

    /// Writes the positions of all slots to both generations, so that no older one counts.
    pub(super) async fn save_positions(&self) -> io::Result<()> {
        self.write_both(&SlotChange::None).await
    }

    /// Slots lose their WAL. Only when that is durable do they have lost it, and are their users
    /// told to go.
    pub(super) async fn lose(&self, losses: Vec<Loss>) -> io::Result<()> {
        let _leave = self.gate(&FinalStep::Invalidate(&losses))?;
        let change = SlotChange::Lose(losses);
        self.write_both(&change).await?;
        let SlotChange::Lose(losses) = change else { return Ok(()) };
        let all: Vec<_> = losses.iter().map(|loss| loss.name.clone()).collect();
        let lost = self.holds.slots.lock().lose(losses);
        for name in all.iter().filter(|name| lost.iter().all(|loss| loss.name != **name)) {
            info!("replication slot \"{name}\" has a user again and keeps its WAL");
        }
        self.holds.slots.tell_revoked();
        self.settle().await
    }

    /// Called before a switch at `end`. After a crash that follows it, no generation names a
    /// position on the branch that was left.
    pub(super) async fn pull_slots_back(&self, end: Lsn) -> io::Result<()> {
        let is_beyond = self.holds.slots.lock().fall_back(end);
        match is_beyond {
            true => self.write_both(&SlotChange::None).await,
            false => Ok(()),
        }
    }

    /// Our WAL past `at` was moved aside. A slot past it was moved there by a standby that has that
    /// WAL.
    pub(super) async fn lose_slots_past(&self, at: Lsn) -> io::Result<()> {
        let lost = self.holds.slots.lock().invalidate_past(at);
        for (name, from) in &lost {
            warn!(
                restart_lsn = %from,
                "invalidating obsolete replication slot \"{name}\": its standby may have the WAL \
                 past {at} that was moved aside"
            );
        }
        let is_beyond = self.holds.slots.lock().is_beyond(at);
        if lost.is_empty() && !is_beyond {
            return Ok(());
        }
        self.write_both(&SlotChange::None).await?;
        self.holds.slots.tell_revoked();
        Ok(())
    }

    /// All WAL was moved aside: no slot has any.
    pub(super) async fn lose_slots(&self) -> io::Result<()> {
        let has_slots = {
            let mut slots = self.holds.slots.lock();
            slots.invalidate_all();
            !slots.is_empty()
        };
        match has_slots {
            true => self.write_both(&SlotChange::None).await,
            false => Ok(()),
        }
    }

    /// What was written for a slot that somebody came to use in the meantime is corrected at once.
    async fn settle(&self) -> io::Result<()> {
        while self.holds.slots.lock().is_unsettled() {
            self.write_slots(&SlotChange::None).await?;
        }
        Ok(())
    }

    /// Writes each generation once, unless a write for somebody else has done what is wanted.
    async fn write_until(
        &self,
        is_done: impl Fn(&SlotTable) -> bool,
        change: &SlotChange,
    ) -> io::Result<()> {
        for _ in 0..2 {
            if is_done(&self.holds.slots.lock()) {
                break;
            }
            self.write_slots(change).await?;
        }
        Ok(())
    }

    /// Makes both generations say the same, so that it does not matter which a start reads.
    async fn write_both(&self, change: &SlotChange) -> io::Result<()> {
        self.write_slots(change).await?;
        self.write_slots(change).await
    }

    /// Makes the next generation durable. On a full disk room is made for it, last by what the
    /// attempt has left: what is written lets WAL go, and that makes more.
    async fn write_slots(&self, change: &SlotChange) -> io::Result<()> {
        let records = self.holds.slots.lock().records(change);
        let from = self.holds.standbys_from((self.clock)().instant, self.policy.grace);
        let (disk, layout) = (&self.disk, &self.layout);
        let mut written = self.slot_files.write(disk, layout, &records, from).await;
        if written.as_ref().is_err_and(is_no_space) {
            written = match self.make_room().await {
                Ok(()) => self.slot_files.write(disk, layout, &records, from).await,
                error => error,
            };
        }
        if written.as_ref().is_err_and(is_no_space) {
            written = match self.slot_files.give_up_remains(disk, layout).await {
                Ok(()) => self.slot_files.write(disk, layout, &records, from).await,
                error => error,
            };
        }
        let mut slots = self.holds.slots.lock();
        match &written {
            Ok(()) => {
                slots.saved(records);
                self.standbys_from.set(from);
            }
            Err(_) => slots.not_saved(),
        }
        written
    }
}

#[cfg(test)]
mod tests;
