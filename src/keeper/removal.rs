//! Background work: what nobody needs is removed or recycled, and one spare is made ahead of
//! need.

use super::gate::{FinalStep, Leave};
use super::job::Tended;
use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::layout::ArchiveFile;
#[cfg(test)]
use crate::wal::SegmentNo;
use crate::wal::{SegmentName, SegmentSize};
use std::io;
use tracing::warn;

/// The most old segments that are removed while a job waits for a spare.
const REMOVALS_FOR_A_SPARE: usize = 8;

impl<D: Disk> Keeper<D> {
    /// One step of background work: removes a segment that nobody needs, writes a part of a spare, or
    /// reads one of a segment for its digest. A failure here is reported and retried after the next job.
    pub async fn tend(&self) -> io::Result<Tended> {
        self.in_turn(self.tend_a_step()).await
    }

    async fn tend_a_step(&self) -> io::Result<Tended> {
        let Some(size) = self.size.get() else { return Ok(Tended::Idle) };
        if self.remove_one(size).await? == Tended::More
            || self.remove_restored().await? == Tended::More
        {
            return Ok(Tended::More);
        }
        self.sync_names().await?;
        match self.spares.tend(&self.disk, &self.layout, size).await? {
            Tended::More => Ok(Tended::More),
            Tended::Idle => self.tend_digests().await,
        }
    }

    /// When there is no spare, looks for a segment to recycle before one is written. Writing a
    /// spare costs as much as writing the WAL that goes into it.
    pub(super) async fn recycle_for(&self, size: SegmentSize) -> io::Result<()> {
        if self.spares.has_one() || !self.spares.are_wanted() {
            return Ok(());
        }
        for _ in 0..REMOVALS_FOR_A_SPARE {
            if self.spares.wait_for_sync() {
                break;
            }
            match self.remove_one(size).await {
                Ok(Tended::More) => {}
                Ok(Tended::Idle) => break,
                Err(error) => {
                    warn!("could not recycle a WAL segment: {error}");
                    break;
                }
            }
        }
        self.sync_names().await.map_err(failed_sync)
    }

    /// Makes renames and removals durable: what was recycled before the sync began is ours from
    /// then on.
    async fn sync_names(&self) -> io::Result<()> {
        if self.unsynced_names.take() {
            let recycled = self.spares.take_unsynced();
            self.disk.sync_dir(self.layout.wal()).await?;
            self.spares.names_synced(recycled);
        }
        Ok(())
    }

    /// Removes a segment that lies before the horizon. It becomes a spare if one is wanted and
    /// nobody has its file open.
    async fn remove_one(&self, size: SegmentSize) -> io::Result<Tended> {
        let Some((tli, no)) = self.complete.take_before(self.horizon.get()) else {
            return Ok(Tended::Idle);
        };
        let name = SegmentName { tli, no, size };
        let Ok(leave) = self.gate(&FinalStep::Remove(name)) else {
            self.complete.keep_for_later(tli, no);
            return Ok(Tended::More);
        };
        self.retire_digest(name).await;
        let removed = self.remove_or_recycle(name, leave).await;
        self.unsynced_names.set(true);
        match removed {
            // Somebody else removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The next look tries again; until then it is in nobody's way.
            Err(error) => {
                self.say_unreadable(tli, no, &error);
                self.complete.keep_for_later(tli, no);
                return Ok(Tended::More);
            }
            Ok(()) => {}
        }
        self.forget_archived(name).await;
        Ok(Tended::More)
    }

    /// What a plan does that lets all WAL before a segment go.
    #[cfg(test)]
    pub(super) fn give_up_before(&self, no: SegmentNo, size: SegmentSize) {
        self.holds.begin(no.start(size));
        self.horizon.set(no);
    }

    async fn remove_or_recycle(&self, name: SegmentName, _: Leave) -> io::Result<()> {
        let path = self.layout.segment(name);
        let is_held = || {
            self.open.is_held(name.tli, name.no)
                || self.holds.backlog.may_be_read(ArchiveFile::Segment(name))
        };
        let number = match self.spares.place_for_recycled() {
            Some(number) if !is_held() => number,
            _ => return self.disk.unlink(&path).await,
        };
        let spare = self.layout.spare(number);
        self.disk.rename(&path, &spare).await?;
        // A reader may have come before the name went.
        if is_held() {
            return self.disk.unlink(&spare).await;
        }
        self.spares.recycled(number);
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::keeper::{Job, JobDone};
    use crate::store::control_file::Cluster;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::layout::{Layout, Listing};
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::Holds;
    use crate::wal::{Lsn, SystemId, TimelineId};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    /// A keeper of the first segment of timeline 2.
    fn keeper(layout: &Layout) -> (Keeper<PlainDisk>, SegmentName) {
        let size = SegmentSize::new(MIB).unwrap();
        let child = TimelineId::new(2).unwrap();
        let name = SegmentName { tli: child, no: SegmentNo::new(5), size };
        std::fs::write(layout.segment(name), vec![7; MIB as usize]).unwrap();
        std::fs::write(layout.history(child), "1\t0/508000\tno recovery target\n").unwrap();
        let listing = Listing::of(vec![name.to_string()], size);
        let holds = Arc::new(Holds::new(Lsn::new(5 * MIB)));
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: size,
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: child,
            start: Lsn::new(5 * MIB),
            sealed: Vec::new(),
        };
        (Keeper::new(PlainDisk, layout.clone(), holds, &listing, None, Some(cluster)), name)
    }

    /// A copy of the directory by hard links, or an archive that was filled so.
    #[test]
    fn a_file_with_another_name_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let (keeper, name) = keeper(&layout);
        let copy = folder.path().join("copy");
        std::fs::hard_link(layout.segment(name), &copy).unwrap();
        keeper.give_up_before(name.no.next(), name.size);
        while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
        assert!(!layout.segment(name).exists());
        for no in 6..10 {
            let no = SegmentNo::new(no);
            let job = Job::Prepare { tli: name.tli, no, keep: no.start(name.size) };
            let done = run_ready(keeper.run(job)).unwrap();
            assert!(matches!(done, JobDone::Prepared { .. }), "{done:?}");
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(layout.partial(SegmentName { no, ..name }))
                .unwrap();
            file.write_all_at(&[1; 8192], 0).unwrap();
        }
        assert_eq!(copy.metadata().unwrap().nlink(), 1);
        assert!(std::fs::read(copy).unwrap() == vec![7; MIB as usize]);
    }

    #[test]
    fn a_file_that_is_read_as_an_earlier_timelines_is_not_recycled() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let (keeper, name) = keeper(&layout);
        let read = run_ready(keeper.open(TimelineId::FIRST, name.no)).unwrap().unwrap();
        let read = std::fs::File::from(read.try_clone().unwrap());
        keeper.give_up_before(name.no.next(), name.size);
        while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
        assert_eq!(read.metadata().unwrap().nlink(), 0, "it lives on as a spare");
    }
}
