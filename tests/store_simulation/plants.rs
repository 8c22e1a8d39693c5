//! Mistakes put in on purpose, to see that the simulation finds them. The shipped code
//! knows nothing of them: they are disks that leave something out, and a driver that
//! publishes too early.

use crate::fake_disk::FakeDisk;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub::store::disk::Disk;
use walhub::store::retention::Space;

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// None.
    Honest,
    /// Publishes what is handed to the disk, without waiting for the sync.
    PublishesBeforeSync,
    /// The keeper never syncs a directory.
    NoDirectorySync,
    /// Recovery walks what is cached, without a sync first.
    NoSyncInRecovery,
    /// Recovery syncs, but believes the cache: after a failed sync it holds what the medium
    /// never got.
    BelievesTheCache,
    /// The keeper leaves what lies past the durable mark when it hands out an open segment again.
    KeepsOldTail,
    /// A start forgets what waited for the archive in the run before.
    ForgetsWhatWaits,
    /// An archive command that failed counts as one that has archived the file.
    BelievesFailedCommands,
}

impl Plant {
    pub(crate) fn recovery_disk(self, disk: FakeDisk) -> Without {
        let left_out = match self {
            Self::NoSyncInRecovery => Some(LeftOut::FileSyncs),
            Self::BelievesTheCache => Some(LeftOut::DropOfCache),
            _ => None,
        };
        Without::new(disk, left_out)
    }

    pub(crate) fn keeper_disk(self, disk: FakeDisk) -> Without {
        let left_out = match self {
            Self::NoDirectorySync => Some(LeftOut::DirectorySyncs),
            Self::KeepsOldTail => Some(LeftOut::Clearing),
            _ => None,
        };
        Without::new(disk, left_out)
    }

    /// How often the upstream's history goes on in other words, of 1000.
    pub(crate) fn rewinds(self) -> u64 {
        match self {
            Self::KeepsOldTail => 1000,
            _ => 400,
        }
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
    /// The syncs of the folder of digests.
    SyncsOfDigests,
    /// The removal of digests.
    RemovalsOfDigests,
}

/// A disk that says it did, and did not.
pub(crate) struct Without {
    disk: FakeDisk,
    left_out: Option<LeftOut>,
    /// Files that were opened under an open segment's name: the keeper writes to those
    /// only to clear them.
    open_segments: RefCell<Vec<<FakeDisk as Disk>::Watch>>,
}

impl Without {
    /// With `None` the disk is as it is.
    pub(crate) fn new(disk: FakeDisk, left_out: Option<LeftOut>) -> Self {
        Self { disk, left_out, open_segments: RefCell::default() }
    }

    fn place(&self, path: &Path) -> PathBuf {
        match self.left_out {
            Some(LeftOut::SecondGeneration) => {
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
        if self.left_out == Some(LeftOut::FormerSlots) && is_former {
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
        if self.left_out == Some(LeftOut::Clearing) && self.is_open_segment(file) {
            return (Ok(bytes.len()), bytes);
        }
        self.disk.write_at(file, bytes, offset).await
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        match self.left_out {
            Some(LeftOut::FileSyncs) => Ok(()),
            Some(LeftOut::FailedSyncs) => {
                drop(self.disk.sync_data(file).await);
                Ok(())
            }
            _ => self.disk.sync_data(file).await,
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.left_out {
            Some(LeftOut::DirectorySyncs) => Ok(()),
            Some(LeftOut::SyncsOfDigests) if dir.ends_with("digests") => Ok(()),
            _ => self.disk.sync_dir(dir).await,
        }
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(&self.place(from), &self.place(to)).await
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        match (self.left_out, path.to_string_lossy().contains("/slots/")) {
            // They have gone already.
            (Some(LeftOut::FormerSlots), true) => Ok(()),
            (Some(LeftOut::RemovalsOfDigests), _)
                if path.extension().is_some_and(|extension| extension == "digest") =>
            {
                Ok(())
            }
            _ => self.disk.unlink(&self.place(path)).await,
        }
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        self.disk.link(path, name).await
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.disk.mkdir(path).await
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        self.disk.space(dir).await
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        self.disk.len(file).await
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        match self.left_out {
            Some(LeftOut::DropOfCache) => Ok(()),
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
