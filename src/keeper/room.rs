//! Room for a small file on a full disk: a fence, an upstream that was set, evidence, the slots, the
//! description of the cluster, the marker of a failed sync. Each has to be written whether the disk is full or not. What is
//! removed for it can be had again.

use super::work::Keeper;
use crate::store::append::is_no_space;
use crate::store::disk::Disk;
use crate::store::durable::{remove, replace_durably};
use crate::store::layout::Layout;
use std::io;
use std::path::Path;

impl<D: Disk> Keeper<D> {
    /// Replaces a small file durably. A full disk is no obstacle as long as something can be given
    /// up.
    pub(super) async fn replace_making_room(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.making_room(async || replace_durably(&self.disk, path, bytes.clone()).await).await
    }

    /// Does a step that may be repeated. If the disk is full, it is repeated with more room.
    pub(super) async fn making_room<T>(
        &self,
        step: impl AsyncFn() -> io::Result<T>,
    ) -> io::Result<T> {
        match step().await {
            Err(error) if is_no_space(&error) => {
                self.make_room().await?;
                step().await
            }
            other => other,
        }
    }

    /// Removes a spare. Without one, removes the state file, which the next change writes again
    /// when there is room.
    pub(super) async fn make_room(&self) -> io::Result<()> {
        if self.spares.give_up_one(&self.disk, &self.layout).await?.is_some() {
            return Ok(());
        }
        let state = self.layout.state();
        remove(&self.disk, &Layout::temporary(&state)).await?;
        remove(&self.disk, &state).await
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::keeper::{Job, JobDone, Note};
    use crate::store::control_file::{Cluster, ControlFile};
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::faulty_disk::FaultyDisk;
    use crate::store::layout::Listing;
    use crate::store::retention::Holds;
    use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
    use std::sync::Arc;

    /// What a file takes at least.
    const BLOCK: usize = 4096;

    /// Without it the hub would not follow its upstream.
    #[test]
    fn another_description_of_the_cluster_is_saved_on_a_full_disk() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let disk = FaultyDisk::default();
        let listing = Listing { spares: vec![1], ..Listing::default() };
        let holds = Arc::new(Holds::new(Lsn::new(0)));
        let keeper = Keeper::new(disk.clone(), layout.clone(), holds, &listing, None, None);
        std::fs::write(layout.spare(1), vec![0; BLOCK]).unwrap();
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start: Lsn::new(0),
            sealed: Vec::new(),
        };
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        disk.leave_room(0);
        let parameters = vec![("TimeZone".to_owned(), "UTC".to_owned())];
        let job = Job::SaveIdentity { data_directory_mode: "0750".to_owned(), parameters };
        let done = run_ready(keeper.run(job)).unwrap();
        assert!(matches!(done, JobDone::Done(_)), "{done:?}");
        let saved = ControlFile::decode(&std::fs::read(layout.control()).unwrap()).unwrap();
        assert_eq!(saved.cluster.unwrap().data_directory_mode, "0750");
    }

    #[test]
    fn on_a_full_disk_a_spare_goes_first_and_then_the_state_file() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let disk = FaultyDisk::default();
        let listing = Listing { spares: vec![1], ..Listing::default() };
        let holds = Arc::new(Holds::new(Lsn::new(0)));
        let keeper = Keeper::new(disk.clone(), layout.clone(), holds, &listing, None, None);
        std::fs::write(layout.spare(1), vec![0; BLOCK]).unwrap();
        std::fs::write(layout.state(), vec![b' '; BLOCK]).unwrap();
        disk.leave_room(0);
        let run = |job| run_ready(keeper.run(job)).unwrap();
        let fence = Job::SaveNote { note: Note::Fence, bytes: Some(vec![b'x'; BLOCK]) };
        let done = run(fence);
        assert!(matches!(done, JobDone::Done(_)), "{done:?}");
        assert!(!layout.spare(1).exists() && layout.state().exists());

        let halted = Job::MarkHalted { durable: Lsn::new(7), reason: "a sync failed".to_owned() };
        let done = run(halted);
        assert!(matches!(done, JobDone::Done(_)), "{done:?}");
        assert!(layout.halted().exists() && !layout.state().exists());

        let evidence = Job::SaveNote { note: Note::Evidence, bytes: Some(vec![b'x'; BLOCK]) };
        let done = run(evidence);
        assert!(matches!(done, JobDone::Failed { .. }), "nothing is left to give up: {done:?}");
        assert!(layout.fence().exists());
    }
}
