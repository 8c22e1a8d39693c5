//! The marks that record what is archived: made when a file is complete, read at a start and
//! after files were moved, and removed with the file they stand for.

use super::work::Keeper;
use crate::store::StoreFault;
use crate::store::archive_status::{exists, mark_done, mark_ready, unmark};
use crate::store::disk::Disk;
use crate::store::layout::{ArchiveFile, Mark};
use crate::store::retention::ArchiveMode;
use crate::wal::{SegmentName, SegmentNo, TimelineId};
use std::collections::BTreeSet;
use std::io;
use tracing::{info, warn};

impl<D: Disk> Keeper<D> {
    /// Finds what waits: every complete file that is not marked as archived, whether it has a
    /// mark or lost it in a crash.
    pub async fn load_archive_status(&self) -> Result<(), StoreFault> {
        if self.policy.archive_mode == ArchiveMode::Off {
            return Ok(());
        }
        let path = self.layout.archive_status();
        let waiting = self.look_up_marks().await;
        let waiting = waiting.map_err(|error| StoreFault::Io {
            action: "look up what is archived in",
            path,
            error,
        })?;
        if !waiting.is_empty() {
            info!("{} files wait to be archived", waiting.len());
        }
        self.holds.backlog.load(waiting);
        Ok(())
    }

    /// Does the same after files have left `pg_wal`. After a failure the backlog stays as it
    /// was, and the next start looks again.
    pub(super) async fn look_up_archive_status(&self) {
        if self.policy.archive_mode == ArchiveMode::Off {
            return;
        }
        match self.look_up_marks().await {
            Ok(waiting) => self.holds.backlog.replace(waiting),
            Err(error) => warn!("could not look up what is archived: {error}"),
        }
    }

    async fn look_up_marks(&self) -> io::Result<BTreeSet<ArchiveFile>> {
        let (wal, folder) = (self.layout.wal(), self.layout.archive_status());
        self.make_archive_status().await?;
        let Ok(size) = self.segment_size() else { return Ok(BTreeSet::new()) };
        self.holds.backlog.use_size(size);
        // The marks first: a file archived in the meantime is checked again in its turn.
        let marks = self.disk.list(&folder).await?;
        let marks: Vec<_> = marks.iter().filter_map(|name| Mark::parse(name, size)).collect();
        let names = self.disk.list(wal).await?;
        let files: BTreeSet<_> =
            names.iter().filter_map(|name| ArchiveFile::parse(name, size)).collect();
        let mut waiting = files.clone();
        for (file, _) in marks.iter().filter(|(_, mark)| *mark == Mark::Done) {
            waiting.remove(file);
        }
        // To have a file archived once more, a user marks it by hand.
        let ready: BTreeSet<_> =
            marks.iter().filter(|(_, mark)| *mark == Mark::Ready).map(|(file, _)| *file).collect();
        waiting.extend(ready.intersection(&files));
        let orphans: BTreeSet<_> =
            marks.iter().map(|(file, _)| *file).filter(|file| !files.contains(file)).collect();
        for file in &orphans {
            unmark(&self.disk, &self.layout, *file).await?;
        }
        // A start that was cut off may have removed some, too.
        self.disk.sync_dir(&folder).await?;
        for file in waiting.difference(&ready) {
            self.mark_as_ready(*file).await;
        }
        Ok(waiting)
    }

    /// Makes the directory of the marks if it does not exist.
    async fn make_archive_status(&self) -> io::Result<()> {
        match self.disk.mkdir(&self.layout.archive_status()).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Ok(()) => self.disk.sync_dir(self.layout.wal()).await,
            Err(error) => Err(error),
        }
    }

    /// A segment got its final name.
    pub(super) async fn archive_segment(&self, name: SegmentName) {
        self.archive(ArchiveFile::Segment(name)).await;
    }

    /// A history file is durable. This may come more than once: the upstream is asked again.
    pub(super) async fn archive_history(&self, tli: TimelineId) {
        let file = ArchiveFile::History(tli);
        let done = self.layout.mark(file, Mark::Done);
        if !exists(&self.disk, &done).await.is_ok_and(|done| done) {
            self.archive(file).await;
        }
    }

    async fn archive(&self, file: ArchiveFile) {
        if self.policy.archive_mode == ArchiveMode::Off {
            return;
        }
        if let Ok(size) = self.segment_size() {
            self.holds.backlog.use_size(size);
        }
        self.mark_as_ready(file).await;
        if let Some(waiting) = self.holds.backlog.add(file) {
            let next = self.holds.backlog.next().unwrap_or(file);
            warn!("{waiting} files wait to be archived, the next of them is \"{next}\"");
        }
    }

    /// A mark that could not be made does no harm: the file waits without it, and at a start a
    /// file without any mark counts as waiting.
    async fn mark_as_ready(&self, file: ArchiveFile) {
        if let Err(error) = mark_ready(&self.disk, &self.layout, file).await {
            let path = self.layout.mark(file, Mark::Ready);
            warn!("could not create archive status file \"{}\": {error}", path.display());
        }
    }

    /// A segment came from the archive: it is not archived again. PostgreSQL does archive it
    /// with `archive_mode = always`, because its standby may have an archive of its own. Here
    /// such a segment is only read by standbys and then removed.
    pub(super) async fn note_restored(&self, name: SegmentName) {
        if self.policy.archive_mode == ArchiveMode::Off {
            return;
        }
        let file = ArchiveFile::Segment(name);
        if let Err(error) = mark_done(&self.disk, &self.layout, file).await {
            warn!("could not create the archive status file of \"{file}\": {error}");
        }
    }

    /// A segment was removed, and its marks have to go with it.
    pub(super) async fn forget_archived(&self, name: SegmentName) {
        if self.policy.archive_mode == ArchiveMode::Off {
            return;
        }
        let file = ArchiveFile::Segment(name);
        if let Err(error) = unmark(&self.disk, &self.layout, file).await {
            // The next start removes it.
            warn!("could not remove the archive status file of \"{file}\": {error}");
        }
    }

    /// The oldest segment that waits for the archive: nothing from here on may go.
    pub(super) fn oldest_unarchived(&self) -> Option<SegmentNo> {
        self.holds.backlog.oldest_segment()
    }

    /// All WAL except the history files was moved aside; their marks come along.
    pub(super) async fn take_marks_along(&self) -> io::Result<()> {
        if self.policy.archive_mode == ArchiveMode::Off {
            return Ok(());
        }
        self.make_archive_status().await?;
        let size = self.segment_size()?;
        for name in self.disk.list(self.layout.wal()).await? {
            if let Some(file @ ArchiveFile::History(_)) = ArchiveFile::parse(&name, size) {
                mark_done(&self.disk, &self.layout, file).await?;
            }
        }
        self.disk.sync_dir(&self.layout.archive_status()).await
    }
}

#[cfg(test)]
mod tests;
