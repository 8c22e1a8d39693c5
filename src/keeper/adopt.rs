//! Segments that come back from the archive for standbys. They are kept as long as somebody reads
//! near them.

use super::gate::FinalStep;
use super::job::{ShownBy, Tended};
use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::retention::Restorable;
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::io;
use std::path::Path;
use tracing::warn;

impl<D: Disk> Keeper<D> {
    /// Gives a restored segment its name and opens it. A segment that is already here is only
    /// opened: another request was faster, somebody has copied it back, or the upstream sends it. Its
    /// file may have more than the archive's, so it is never replaced.
    pub(super) async fn adopt(
        &self,
        tli: TimelineId,
        no: SegmentNo,
        shown: ShownBy,
    ) -> io::Result<D::File> {
        let name = self.name(tli, no)?;
        // The hub has gone back from it meanwhile.
        if self.cluster.borrow().as_ref().is_some_and(|cluster| tli > cluster.timeline) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let from = self.layout.restoring(&name.to_string());
        if self.has_file(name).await? {
            self.leave_in_archive(name, &from).await?;
            return self.open(tli, no).await;
        }
        match shown {
            ShownBy::Digest => self.bring_digest_back(name).await,
            ShownBy::Records => self.forget_digest(name).await?,
        }
        match self.disk.rename(&from, &self.layout.segment(name)).await {
            Ok(()) => {
                self.restored.add(tli, no);
                self.note_restored(name).await;
                self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.open(tli, no).await
    }

    /// Does the segment have a file, complete or not?
    async fn has_file(&self, name: SegmentName) -> io::Result<bool> {
        for path in [self.layout.segment(name), self.layout.partial(name)] {
            match self.disk.open_read(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // What cannot be opened is not replaced either.
                opened => return opened.map(|_| true),
            }
        }
        Ok(false)
    }

    /// A file that was fetched for nothing goes: the archive has it.
    async fn leave_in_archive(&self, name: SegmentName, fetched: &Path) -> io::Result<()> {
        match self.disk.unlink(fetched).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        warn!("WAL segment {name} is here already: the archive's file is not used");
        Ok(())
    }

    /// Marks the segments that nobody reads or is about to read.
    pub(super) fn look_at_restored(&self, size: SegmentSize) {
        if self.restored.is_empty() {
            return;
        }
        let ahead = match self.policy.restorable {
            Restorable::No => 0,
            // One more: a reader opens the next file before it has finished its own.
            Restorable::Yes { ahead } => ahead.saturating_add(1),
        };
        // From what a reader has to what it is sent next.
        let readers = self.holds.spans().into_iter().map(|(has, sent)| {
            let next = has.max(sent).segment(size).raw().saturating_add(ahead);
            has.segment(size).raw()..=next
        });
        let readers: Vec<_> = readers.collect();
        self.restored.mark(|no| readers.iter().any(|near| near.contains(&no.raw())));
    }

    /// Removes one marked segment. A reader that has it open can still read it to its end.
    pub(super) async fn remove_restored(&self) -> io::Result<Tended> {
        let Some((tli, no)) = self.restored.take_marked() else { return Ok(Tended::Idle) };
        // Recovery, or a switch, may have counted it among the others since.
        if self.complete.contains(tli, no) && no >= self.horizon.get() {
            return Ok(Tended::More);
        }
        let name = self.name(tli, no)?;
        let _leave = self.gate(&FinalStep::RemoveRestored(name))?;
        self.unsynced_names.set(true);
        self.retire_digest(name).await;
        match self.disk.unlink(&self.layout.segment(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.forget_archived(name).await;
        Ok(Tended::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{Job, JobDone};
    use crate::store::control_file::Cluster;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::layout::{Layout, Listing};
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::{Hold, Holds, Policy};
    use crate::wal::{Lsn, SystemId};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;
    const TLI: TimelineId = TimelineId::FIRST;

    fn name(no: u64) -> SegmentName {
        SegmentName { tli: TLI, no: SegmentNo::new(no), size: SegmentSize::new(MIB).unwrap() }
    }

    /// A keeper of a directory with the segments from 50 to 59.
    fn keeper(layout: &Layout) -> Keeper<PlainDisk> {
        let size = SegmentSize::new(MIB).unwrap();
        for no in 50..60 {
            std::fs::write(layout.segment(name(no)), "").unwrap();
        }
        let names = run_ready(PlainDisk.list(layout.wal())).unwrap().unwrap();
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: size,
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(50 * MIB),
            sealed: Vec::new(),
        };
        let holds = Arc::new(Holds::new(Lsn::new(50 * MIB)));
        let listing = Listing::of(names, size);
        let keeper = Keeper::new(PlainDisk, layout.clone(), holds, &listing, None, Some(cluster));
        let restorable = Restorable::Yes { ahead: 2 };
        keeper.with_policy(Policy { restorable, ..Policy::default() })
    }

    fn adopt(keeper: &Keeper<PlainDisk>, no: u64) -> io::Result<std::fs::File> {
        let no = SegmentNo::new(no);
        let done =
            run_ready(keeper.run(Job::Adopt { tli: TLI, no, shown: ShownBy::Records })).unwrap();
        let JobDone::Adopted { result, .. } = done else { panic!("{done:?}") };
        result.map(|file| std::fs::File::from(file.try_clone().unwrap()))
    }

    fn retain(keeper: &Keeper<PlainDisk>) {
        let newest = Lsn::new(60 * MIB);
        run_ready(keeper.run(Job::Retain { tli: TimelineId::FIRST, newest })).unwrap();
        while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
    }

    fn here(layout: &Layout) -> Vec<u64> {
        (0..60).filter(|no| layout.segment(name(*no)).exists()).collect()
    }

    #[test]
    fn restored_segments_stay_near_their_readers() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let keeper = keeper(&layout);
        let restore = |no: u64| {
            let path = layout.restoring(&name(no).to_string());
            std::fs::write(path, format!("segment {no}")).unwrap();
        };
        let holds = Arc::clone(&keeper.holds);
        let hold = |no: u64| -> Hold { holds.hold_restorable(Lsn::new(no * MIB + 5)) };
        let (slow, fast) = (hold(10), hold(30));
        for no in [10, 11, 13, 14, 31] {
            restore(no);
            let file = adopt(&keeper, no).unwrap();
            let mut read = [0; 10];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, format!("segment {no}").as_bytes());
        }
        let still = adopt(&keeper, 31).unwrap();
        assert_eq!(adopt(&keeper, 32).unwrap_err().kind(), io::ErrorKind::NotFound);
        let newest: Vec<u64> = (50..60).collect();
        retain(&keeper);
        assert_eq!(here(&layout), [&[10, 11, 13, 31][..], &newest].concat());
        slow.report(Lsn::INVALID, Lsn::new(12 * MIB));
        drop(fast);
        retain(&keeper);
        assert_eq!(here(&layout), [&[13][..], &newest].concat());
        // A reader that has it open can read on.
        assert_eq!(still.metadata().unwrap().len(), 10);

        // A crash: nobody reads any more.
        drop(keeper);
        let keeper = self::keeper(&layout);
        while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
        assert_eq!(here(&layout), [&[13][..], &newest].concat(), "a start removes nothing");
        retain(&keeper);
        assert_eq!(here(&layout), newest);
    }

    #[test]
    fn a_file_that_is_here_is_not_replaced_by_the_archives() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let keeper = keeper(&layout);
        for path in [layout.segment(name(20)), layout.partial(name(21))] {
            // Somebody has copied it back, or it is being received, while it was fetched.
            std::fs::write(&path, "ours").unwrap();
        }
        std::fs::create_dir_all(layout.digests()).unwrap();
        std::fs::write(layout.digest(name(20)), "of ours").unwrap();
        for no in [20, 21] {
            let fetched = layout.restoring(&name(no).to_string());
            std::fs::write(&fetched, "the archive's").unwrap();
            let file = adopt(&keeper, no).unwrap();
            assert_eq!(std::io::read_to_string(file).unwrap(), "ours");
            assert!(!fetched.exists());
        }
        assert!(layout.digest(name(20)).exists() && !layout.segment(name(21)).exists());
        // It does not count as a copy of what the archive has.
        retain(&keeper);
        assert!(layout.segment(name(20)).exists() && layout.partial(name(21)).exists());
    }
}
