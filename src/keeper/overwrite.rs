//! Mends a damaged record of a segment with the bytes that another server has of it.
//!
//! The file is written in place, so whoever has it open reads the right bytes at once. The bytes
//! that are replaced are durable beside it before. A crash in between leaves a record that is
//! damaged still, or half mended, and is found and mended again.

use super::gate::FinalStep;
use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::{failed_sync, read_full, write_full};
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::io;

impl<D: Disk> Keeper<D> {
    /// Writes `bytes`, which lie in one segment, at `at`.
    pub(super) async fn overwrite(
        &self,
        tli: TimelineId,
        at: Lsn,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        let size = self.segment_size()?;
        let name = self.name(tli, at.segment(size))?;
        let file = self.open_to_overwrite(name).await?;
        let offset = at.segment_offset(size);
        let before = read_full(&self.disk, &file, bytes.len(), offset).await?;
        let kept = self.keep_bytes(name, offset, before).await?;
        let _leave = self.gate(&FinalStep::Overwrite(name, at, &kept))?;
        // It may be of the damaged bytes. The scrub gives it another when all of it is proved.
        self.remove_digest(name).await?;
        self.digests.drop_unfinished(name);
        write_full(&self.disk, &file, bytes, offset).await?;
        self.disk.sync_data(&file).await.map_err(failed_sync)?;
        // Other bytes of it may be damaged, too.
        self.holds.scrub.rewritten(name);
        Ok(())
    }

    async fn open_to_overwrite(&self, name: SegmentName) -> io::Result<D::File> {
        match self.disk.open_write(&self.layout.segment(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.open_write(&self.layout.partial(name)).await
            }
            opened => opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::keeper::{Job, JobDone, JobKind, Keeper};
    use crate::store::control_file::Cluster;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::layout::{Layout, Listing};
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::Holds;
    use crate::store::scrub::{ScrubCall, SegmentDamage};
    use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn name(no: u64) -> SegmentName {
        let size = SegmentSize::new(MIB).unwrap();
        SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size }
    }

    fn keeper(layout: &Layout) -> Keeper<PlainDisk> {
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: SegmentSize::new(MIB).unwrap(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start: Lsn::new(4 * MIB),
            sealed: Vec::new(),
        };
        let holds = Arc::new(Holds::new(Lsn::INVALID));
        let listing = Listing::default();
        Keeper::new(PlainDisk, layout.clone(), holds, &listing, None, Some(cluster))
    }

    fn overwrite(
        keeper: &Keeper<PlainDisk>,
        at: Lsn,
        bytes: &[u8],
    ) -> JobDone<Arc<std::os::fd::OwnedFd>> {
        let job = Job::Overwrite { tli: TimelineId::FIRST, at, bytes: bytes.to_vec() };
        run_ready(keeper.run(job)).unwrap()
    }

    #[test]
    fn what_is_replaced_is_kept_and_readers_see_the_new_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let keeper = keeper(&layout);
        let (complete, open) = (layout.segment(name(4)), layout.partial(name(5)));
        for path in [&complete, &open] {
            std::fs::write(path, vec![b'x'; MIB as usize]).unwrap();
        }
        let digest = layout.digest(name(4));
        std::fs::create_dir_all(digest.parent().unwrap()).unwrap();
        std::fs::write(&digest, "of the damaged bytes").unwrap();
        let reader = std::fs::File::open(&complete).unwrap();
        let (from, what) = (Lsn::new(4 * MIB), "a block differs".to_owned());
        let since = std::time::SystemTime::UNIX_EPOCH;
        keeper.holds.scrub.find(SegmentDamage { name: name(4), from, what, since });
        for (at, bytes) in [(4 * MIB + 100, b"good"), (4 * MIB + 100, b"best"), (5 * MIB, b"open")]
        {
            let done = overwrite(&keeper, Lsn::new(at), bytes);
            assert!(matches!(done, JobDone::Done(JobKind::Overwrite { .. })), "{done:?}");
        }
        assert!(!digest.exists(), "it would call the mended bytes damaged");
        let board = &keeper.holds.scrub;
        assert!(board.damage(TimelineId::FIRST, name(4).no).is_some(), "there may be more of it");
        assert_eq!(board.wait(None), ScrubCall::Look(name(4)));
        let mut read = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(&reader, &mut read, 99).unwrap();
        assert_eq!(&read, b"xbestx");
        assert!(std::fs::read(&open).unwrap().starts_with(b"openx"));
        let first = layout.damaged_bytes(name(4), 100);
        assert_eq!(std::fs::read(&first).unwrap(), b"xxxx");
        assert_eq!(std::fs::read(Layout::numbered(&first, 1)).unwrap(), b"good");
        assert_eq!(std::fs::read(layout.damaged_bytes(name(5), 0)).unwrap(), b"xxxx");
        // A segment that is gone meanwhile.
        assert!(matches!(overwrite(&keeper, Lsn::new(9 * MIB), b"x"), JobDone::Failed { .. }));
        assert!(!layout.segment(name(9)).exists() && !layout.partial(name(9)).exists());
    }
}
