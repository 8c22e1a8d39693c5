//! The slots' files: read at the start, and written before anything is removed because of them.

use super::work::Keeper;
use crate::store::StoreFault;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::{read_small, replace_durably, write_full};
use crate::store::layout::{Layout, TEMPORARY};
use crate::store::sealed_text::Unreadable;
use crate::store::slots::{SlotFile, SlotName};
use crate::wal::{Lsn, SegmentSize};
use std::io;
use std::path::Path;
use std::time::SystemTime;
use tracing::info;

impl<D: Disk> Keeper<D> {
    /// Reads all slots, or makes the directory for them. A slot that cannot be read keeps the
    /// hub from starting: it might keep WAL.
    pub async fn load_slots(&self) -> Result<(), StoreFault> {
        let folder = self.layout.slots();
        let failed = |action: &'static str, path: &Path, error: io::Error| StoreFault::Io {
            action,
            path: path.to_owned(),
            error,
        };
        let names = match self.disk.list(&folder).await {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = self.disk.mkdir(&folder).await;
                made.map_err(|error| failed("create directory", &folder, error))?;
                let root = self.layout.root();
                let synced = self.disk.sync_dir(root).await;
                synced.map_err(|error| StoreFault::Sync { path: root.to_owned(), error })?;
                return Ok(());
            }
            Err(error) => return Err(failed("list directory", &folder, error)),
        };
        // After a kill the names may only be cached. If the hub removed WAL because of them and a
        // power failure took them, that WAL would be missing.
        let synced = self.disk.sync_dir(&folder).await;
        synced.map_err(|error| StoreFault::Sync { path: folder.clone(), error })?;
        for name in names {
            let path = folder.join(&name);
            if name.ends_with(TEMPORARY) {
                let removed = self.disk.unlink(&path).await;
                removed.map_err(|error| failed("remove file", &path, error))?;
                continue;
            }
            let Ok(name) = SlotName::parse(&name) else { continue };
            let bytes = read_small(&self.disk, &path).await;
            let bytes = bytes.map_err(|error| failed("read file", &path, error))?;
            let file = SlotFile::decode(&bytes.unwrap_or_default()).and_then(|file| {
                match file.name == name {
                    true => Ok(file),
                    false => Err(Unreadable::Content(format!("is slot \"{}\"", file.name))),
                }
            });
            let file = file.map_err(|fault| StoreFault::Unreadable { path, fault })?;
            self.holds.slots.lock().load(file);
        }
        Ok(())
    }

    /// Writes a slot that was created, which is then free. If that fails, there is no such slot.
    pub(super) async fn save_slot(&self, name: &SlotName) -> io::Result<()> {
        let file = self.holds.slots.lock().file_of(name);
        let written = match &file {
            Some(file) => replace_durably(&self.disk, &self.layout.slot(name), file.encode()).await,
            None => Ok(()),
        };
        if written.is_err() {
            // It may be written but not durable: it must not come back at the next start.
            self.remove_file_of(name).await.ok();
        }
        let mut slots = self.holds.slots.lock();
        match (&written, file) {
            (Ok(()), Some(file)) => {
                slots.saved(file, SystemTime::UNIX_EPOCH);
                slots.set_free(name);
            }
            (Ok(()), None) => {}
            (Err(_), _) => slots.forget(name),
        }
        drop(slots);
        self.holds.slots.tell_freed();
        written
    }

    /// Removes the file, durably, and then the slot.
    pub(super) async fn drop_slot(&self, name: &SlotName) -> io::Result<()> {
        let removed = match self.remove_file_of(name).await {
            Ok(()) => self.disk.sync_dir(&self.layout.slots()).await.map_err(failed_sync),
            error => error,
        };
        let mut slots = self.holds.slots.lock();
        match &removed {
            Ok(()) => slots.forget(name),
            Err(_) => slots.set_free(name),
        }
        drop(slots);
        self.holds.slots.tell_freed();
        removed
    }

    async fn remove_file_of(&self, name: &SlotName) -> io::Result<()> {
        match self.disk.unlink(&self.layout.slot(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Takes over what users reported, drops what has expired, writes what is due.
    pub(super) async fn tend_slots(&self, size: SegmentSize, now: SystemTime) -> io::Result<()> {
        let oldest_kept = self.holds.oldest_kept();
        let (expired, due) = {
            let mut slots = self.holds.slots.lock();
            slots.absorb(oldest_kept);
            slots.note_idle(now);
            let expired = slots.take_expired(now, self.policy.auto_created_ttl);
            (expired, slots.to_save(size, now))
        };
        for name in &expired {
            info!(
                "dropping replication slot \"{name}\": created automatically, not used for {:?}",
                self.policy.auto_created_ttl
            );
            self.remove_file_of(name).await?;
        }
        match (due.is_empty(), expired.is_empty()) {
            (false, _) => self.save_slots(due, now).await,
            (true, false) => self.disk.sync_dir(&self.layout.slots()).await,
            (true, true) => Ok(()),
        }
    }

    /// Writes invalidated slots. When the disk is full, removing a spare makes room for them:
    /// the removal of their WAL then makes more.
    pub(super) async fn save_lost(&self, names: &[SlotName], now: SystemTime) -> io::Result<()> {
        let lost: Vec<_> = {
            let slots = self.holds.slots.lock();
            names.iter().filter_map(|name| slots.file_of(name)).collect()
        };
        if lost.is_empty() {
            return Ok(());
        }
        match self.save_slots(lost.clone(), now).await {
            Err(error) if is_no_space(&error) => {
                self.spares.give_up_one(&self.disk, &self.layout).await?;
                self.save_slots(lost, now).await
            }
            other => other,
        }
    }

    /// Called before a switch at `end`. After a crash that follows it, no file names a position
    /// on the branch that was left.
    pub(super) async fn pull_slots_back(&self, end: Lsn) -> io::Result<()> {
        let changed = self.holds.slots.lock().fall_back(end);
        match changed.is_empty() {
            true => Ok(()),
            false => self.save_slots(changed, SystemTime::UNIX_EPOCH).await,
        }
    }

    /// All WAL was moved aside: no slot has any.
    pub(super) async fn lose_slots(&self) -> io::Result<()> {
        let lost: Vec<_> = {
            let mut slots = self.holds.slots.lock();
            slots.invalidate_all();
            slots.iter().map(|slot| slot.name.clone()).collect()
        };
        self.save_lost(&lost, SystemTime::UNIX_EPOCH).await
    }

    /// Replaces slots' files; the directory is synced once for all of them.
    async fn save_slots(&self, files: Vec<SlotFile>, now: SystemTime) -> io::Result<()> {
        for slot in &files {
            let path = self.layout.slot(&slot.name);
            let temporary = Layout::temporary(&path);
            let file = self.disk.create(&temporary).await?;
            write_full(&self.disk, &file, slot.encode(), 0).await?;
            self.disk.sync_data(&file).await?;
            drop(file);
            self.disk.rename(&temporary, &path).await?;
        }
        self.disk.sync_dir(&self.layout.slots()).await.map_err(failed_sync)?;
        let mut slots = self.holds.slots.lock();
        for file in files {
            slots.saved(file, now);
        }
        Ok(())
    }
}
