//! Mistakes put in on purpose, to see that the simulation finds them. The shipped code
//! knows nothing of them: they are disks that leave something out, and a driver that
//! publishes too early.

use crate::fake_disk::FakeDisk;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub::store::disk::Disk;

/// Which disks the code gets, and how the driver behaves.
pub(crate) trait Plant {
    type Recovery: Disk;
    type Keeper: Disk<File = <FakeDisk as Disk>::File> + 'static;

    fn recovery_disk(&self, disk: FakeDisk) -> Self::Recovery;
    fn keeper_disk(&self, disk: FakeDisk) -> Self::Keeper;

    fn publishes_what_is_written(&self) -> bool {
        false
    }

    /// Does a start look up what waits for the archive?
    fn looks_up_marks(&self) -> bool {
        true
    }

    /// Is a file archived when its command has failed?
    fn believes_failed_commands(&self) -> bool {
        false
    }

    /// How often the upstream's history goes on in other words, of 1000.
    fn rewinds(&self) -> u64 {
        400
    }
}

/// No mistake.
pub(crate) struct Honest;

impl Plant for Honest {
    type Recovery = FakeDisk;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }
}

/// Publishes what is handed to the disk, without waiting for the sync.
pub(crate) struct PublishesBeforeSync;

impl Plant for PublishesBeforeSync {
    type Recovery = FakeDisk;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn publishes_what_is_written(&self) -> bool {
        true
    }
}

/// The keeper never syncs a directory.
pub(crate) struct NoDirectorySync;

impl Plant for NoDirectorySync {
    type Recovery = FakeDisk;
    type Keeper = Without;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> Without {
        Without::new(disk, LeftOut::DirectorySyncs)
    }
}

/// Recovery walks what is cached, without a sync first.
pub(crate) struct NoSyncInRecovery;

impl Plant for NoSyncInRecovery {
    type Recovery = Without;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> Without {
        Without::new(disk, LeftOut::FileSyncs)
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }
}

/// Recovery syncs, but believes the cache: after a failed sync it holds what the medium
/// never got.
pub(crate) struct BelievesTheCache;

impl Plant for BelievesTheCache {
    type Recovery = Without;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> Without {
        Without::new(disk, LeftOut::DropOfCache)
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }
}

/// The keeper leaves what lies behind the durable mark when it hands out an open
/// segment again.
pub(crate) struct KeepsOldTail;

impl Plant for KeepsOldTail {
    type Recovery = FakeDisk;
    type Keeper = Without;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> Without {
        Without::new(disk, LeftOut::Clearing)
    }

    fn rewinds(&self) -> u64 {
        1000
    }
}

/// A start forgets what waited for the archive in the run before.
pub(crate) struct ForgetsWhatWaits;

impl Plant for ForgetsWhatWaits {
    type Recovery = FakeDisk;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn looks_up_marks(&self) -> bool {
        false
    }
}

/// An archive command that failed counts as one that has archived the file.
pub(crate) struct BelievesFailedCommands;

impl Plant for BelievesFailedCommands {
    type Recovery = FakeDisk;
    type Keeper = FakeDisk;

    fn recovery_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn keeper_disk(&self, disk: FakeDisk) -> FakeDisk {
        disk
    }

    fn believes_failed_commands(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    FileSyncs,
    DirectorySyncs,
    DropOfCache,
    Clearing,
    /// That a sync failed.
    FailedSyncs,
    /// The second of the slots' files: both generations go to the first.
    SecondGeneration,
    /// The files of an earlier version's slots, once they were read.
    FormerSlots,
}

/// A disk that says it did, and did not.
pub(crate) struct Without {
    disk: FakeDisk,
    left_out: LeftOut,
    /// Files that were opened under an open segment's name: the keeper writes to those
    /// only to clear them.
    open_segments: RefCell<Vec<<FakeDisk as Disk>::Watch>>,
}

impl Without {
    pub(crate) fn new(disk: FakeDisk, left_out: LeftOut) -> Self {
        Self { disk, left_out, open_segments: RefCell::default() }
    }

    fn place(&self, path: &Path) -> PathBuf {
        match self.left_out {
            LeftOut::SecondGeneration => {
                path.to_string_lossy().replace("slots.1", "slots.0").into()
            }
            _ => path.to_owned(),
        }
    }

    fn is_open_segment(&self, file: &<FakeDisk as Disk>::File) -> bool {
        let known = self.open_segments.borrow();
        known.iter().filter_map(FakeDisk::held).any(|open| Arc::ptr_eq(&open, file))
    }
}

impl Disk for Without {
    type File = <FakeDisk as Disk>::File;
    type Watch = <FakeDisk as Disk>::Watch;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir).await
    }

    async fn open_read(&self, path: &Path) -> io::Result<Self::File> {
        let file = self.disk.open_read(&self.place(path)).await?;
        let is_former = path.to_string_lossy().contains("/slots/");
        if self.left_out == LeftOut::FormerSlots && is_former {
            self.disk.unlink(path).await?;
        }
        Ok(file)
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        let file = self.disk.open_write(&self.place(path)).await?;
        if path.extension().is_some_and(|extension| extension == "partial") {
            self.open_segments.borrow_mut().push(FakeDisk::watch(&file));
        }
        Ok(file)
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        self.disk.create(&self.place(path)).await
    }

    async fn read_at(
        &self,
        file: &Self::File,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.disk.read_at(file, buffer, offset).await
    }

    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        if self.left_out == LeftOut::Clearing && self.is_open_segment(file) {
            return (Ok(bytes.len()), bytes);
        }
        self.disk.write_at(file, bytes, offset).await
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        match self.left_out {
            LeftOut::FileSyncs => Ok(()),
            LeftOut::FailedSyncs => {
                drop(self.disk.sync_data(file).await);
                Ok(())
            }
            _ => self.disk.sync_data(file).await,
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.left_out {
            LeftOut::DirectorySyncs => Ok(()),
            _ => self.disk.sync_dir(dir).await,
        }
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(&self.place(from), &self.place(to)).await
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        match (self.left_out, path.to_string_lossy().contains("/slots/")) {
            // They have gone already.
            (LeftOut::FormerSlots, true) => Ok(()),
            _ => self.disk.unlink(&self.place(path)).await,
        }
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.disk.mkdir(path).await
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        self.disk.len(file).await
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        match self.left_out {
            LeftOut::DropOfCache => Ok(()),
            _ => self.disk.drop_cache(file).await,
        }
    }

    async fn give_way(&self) {
        self.disk.give_way().await;
    }

    fn watch(file: &Self::File) -> Self::Watch {
        FakeDisk::watch(file)
    }

    fn held(watch: &Self::Watch) -> Option<Self::File> {
        FakeDisk::held(watch)
    }
}
