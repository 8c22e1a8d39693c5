//! The segments that are written: made ready, noted as the beginning, and named.

use super::hashing::DigestReason;
use super::job::JobDone;
use super::work::Keeper;
use crate::store::append::Begun;
use crate::store::aside::set_aside;
use crate::store::clean::clear_past;
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::{read_full, replace_durably};
use crate::store::notes::BegunNote;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, TimelineId};
use std::io;

impl<D: Disk> Keeper<D> {
    /// Makes `<segment>.partial` ready.
    ///
    /// A new one comes from a spare: its first page is zeroed and synced while it has no WAL
    /// name, so that nothing old is ever believed; then it is renamed and the directory synced.
    /// One that exists already (after a restart, or when space ran out) is cleared past `keep`,
    /// and so are the ones after it.
    pub(super) async fn prepare(
        &self,
        tli: TimelineId,
        no: SegmentNo,
        keep: Lsn,
    ) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        self.set_past_hole_aside().await?;
        self.forget_digest(name).await?;
        let partial = self.layout.partial(name);
        let file = match self.disk.open_write(&partial).await {
            Ok(file) => {
                clear_past(&self.disk, &file, name, keep).await?;
                self.disk.sync_data(&file).await.map_err(failed_sync)?;
                self.clear_later(name).await?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.recycle_for(name.size).await?;
                let (spare, file) = self.spares.take(&self.disk, &self.layout, name.size).await?;
                let renamed = self.disk.rename(&self.layout.spare(spare), &partial).await;
                renamed.inspect_err(|_| self.spares.give_back(spare))?;
                file
            }
            Err(error) => return Err(error),
        };
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        self.open.note(tli, no, &file);
        self.partials.borrow_mut().insert((tli, no));
        Ok(JobDone::Prepared { tli, no, file })
    }

    /// Once an open segment is written again, what lies in later segments from an earlier
    /// attempt must not follow it.
    async fn clear_later(&self, name: SegmentName) -> io::Result<()> {
        let later = (name.tli, name.no.next())..=(name.tli, SegmentNo::new(u64::MAX));
        let later: Vec<_> = self.partials.borrow().range(later).copied().collect();
        for (_, no) in later {
            let name = SegmentName { no, ..name };
            let file = match self.disk.open_write(&self.layout.partial(name)).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            clear_past(&self.disk, &file, name, no.start(name.size)).await?;
            self.disk.sync_data(&file).await.map_err(failed_sync)?;
        }
        Ok(())
    }

    /// What lies past a hole is set aside before WAL comes in again. Later it could no longer be
    /// told from what an attempt left that was dropped, which is cleared.
    async fn set_past_hole_aside(&self) -> io::Result<()> {
        if self.past_hole.borrow().is_empty() {
            return Ok(());
        }
        let next = || self.past_hole.borrow().first().copied();
        while let Some((tli, no)) = next() {
            let path = self.layout.partial(self.name(tli, no)?);
            let reason = "segments before it are missing, and their WAL is received again";
            set_aside(&self.disk, &path, reason).await?;
            self.asides.note_move();
            self.past_hole.borrow_mut().remove(&(tli, no));
            self.partials.borrow_mut().remove(&(tli, no));
        }
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)
    }

    pub(super) async fn finalize(
        &self,
        tli: TimelineId,
        no: SegmentNo,
    ) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        let (from, to) = (self.layout.partial(name), self.layout.segment(name));
        self.disk.rename(&from, &to).await?;
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        self.partials.borrow_mut().remove(&(tli, no));
        self.archive_segment(name).await;
        let now = (self.clock)();
        self.completed.note(no, now);
        self.complete.add(tli, no);
        self.completed_upto.set(Some((tli, no.end(name.size))));
        self.digests.wait(tli, no, DigestReason::Completed(now.time_of_day));
        self.cut_off.set(None);
        Ok(JobDone::Finalized { tli, no })
    }

    /// Looks at the first page, which is synced, and notes how far its bytes reach.
    pub(super) async fn begin(
        &self,
        tli: TimelineId,
        start: Lsn,
        upto: Lsn,
    ) -> io::Result<JobDone<D::File>> {
        let size = self.segment_size()?;
        let file = self.open(tli, start.segment(size)).await?;
        let header = read_full(&self.disk, &file, LONG_HEADER, 0).await?;
        let begun = match leading_rest(start, &header, size) {
            Some(end) if end <= upto => Begun::Wholly,
            Some(_) | None => Begun::Partly,
        };
        let note = BegunNote { tli, start, upto };
        replace_durably(&self.disk, &self.layout.begun(), note.encode()).await?;
        Ok(JobDone::Begun { tli, begun })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{Job, JobKind, Tended};
    use crate::store::control_file::Cluster;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::holes::{Extent, Hole};
    use crate::store::layout::{Layout, Listing, SegmentRange};
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::Holds;
    use crate::wal::page::PAGE_SIZE;
    use crate::wal::synth::Synth;
    use crate::wal::{SegmentSize, SystemId};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;
    const FIRST: u64 = 5;

    /// Two segments of records; an earlier run left the first one open.
    fn wal(size: SegmentSize) -> Vec<u8> {
        let start = Lsn::new(FIRST * MIB);
        let mut synth = Synth::new(SystemId::new(7), size, TimelineId::FIRST, 0xD110, start);
        while synth.position() < Lsn::new((FIRST + 2) * MIB) {
            synth.record(&[7; 5000]);
        }
        synth.take_bytes().1
    }

    #[test]
    fn a_file_that_a_reader_opened_before_it_was_written_on_is_not_recycled() {
        let size = SegmentSize::new(MIB).unwrap();
        let tli = TimelineId::FIRST;
        let wal = wal(size);
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let name = |no| SegmentName { tli, no: SegmentNo::new(no), size };
        let whole = wal[..MIB as usize].to_vec();
        std::fs::write(layout.partial(name(FIRST)), &whole).unwrap();
        let holds = Arc::new(Holds::new(Lsn::new(FIRST * MIB)));
        let partials = vec![(tli, SegmentNo::new(FIRST))];
        let listing = Listing { partials, ..Listing::default() };
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: size,
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: tli,
            start: Lsn::new(FIRST * MIB),
            sealed: Vec::new(),
        };
        let keeper = Keeper::new(PlainDisk, layout, holds, &listing, None, Some(cluster));
        let run = |job| run_ready(keeper.run(job)).unwrap();

        // A lagging standby reads what was recovered; then the upstream continues the segment.
        let no = SegmentNo::new(FIRST);
        let JobDone::Opened { result: Ok(reader), .. } = run(Job::Open { tli, no }) else {
            panic!("not opened")
        };
        for (no, from) in [(FIRST, 0), (FIRST + 1, MIB as usize)] {
            let (no, keep) = (SegmentNo::new(no), Lsn::new(no * MIB + 4096));
            let JobDone::Prepared { file, .. } = run(Job::Prepare { tli, no, keep }) else {
                panic!("not prepared")
            };
            let file = std::fs::File::from(file.try_clone().unwrap());
            file.write_all_at(&wal[from..from + MIB as usize], 0).unwrap();
            assert!(matches!(run(Job::Finalize { tli, no }), JobDone::Finalized { .. }));
        }
        let newest = Lsn::new(100 * MIB);
        assert!(matches!(
            run(Job::Retain { tli: TimelineId::FIRST, newest }),
            JobDone::Done(JobKind::Retain)
        ));
        while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
        // From here on, every file that became a spare is overwritten.
        for no in 0..3 {
            let (no, keep) = (SegmentNo::new(FIRST + 2 + no), Lsn::new((FIRST + 2 + no) * MIB));
            run_ready(keeper.run(Job::Prepare { tli, no, keep })).unwrap();
        }
        let mut read = vec![0; MIB as usize];
        std::fs::File::from(reader.try_clone().unwrap()).read_exact_at(&mut read, 0).unwrap();
        assert!(read == whole, "the reader's file was written over");
    }

    /// Segment 6 is missing, and 7 holds WAL that was acknowledged.
    #[test]
    fn an_open_segment_past_a_hole_is_set_aside_before_wal_comes_in() {
        let size = SegmentSize::new(MIB).unwrap();
        let tli = TimelineId::FIRST;
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let name = |no| SegmentName { tli, no: SegmentNo::new(no), size };
        let start = Lsn::new((FIRST + 2) * MIB);
        let mut synth = Synth::new(SystemId::new(7), size, tli, 0xD110, start);
        synth.record(&[7; 5000]);
        let mut wal = synth.take_bytes().1;
        wal.resize(MIB as usize, 0);
        std::fs::write(layout.partial(name(FIRST + 2)), &wal).unwrap();
        let hole = Hole { tli, first: name(FIRST + 1).no, last: name(FIRST + 1).no, size };
        let here = Extent { before_open: Some(hole), ..Extent::from(Lsn::new(FIRST * MIB)) };
        let listing = Listing { partials: vec![(tli, name(FIRST + 2).no)], ..Listing::default() };
        let holds = Arc::new(Holds::of(here));
        let keeper = Keeper::new(PlainDisk, layout.clone(), holds, &listing, None, None);
        keeper.size.set(Some(size));
        let stray = Layout::stray(&layout.partial(name(FIRST + 2)));
        for no in [FIRST + 1, FIRST + 2] {
            let (no, keep) = (SegmentNo::new(no), Lsn::new(no * MIB));
            let done = run_ready(keeper.run(Job::Prepare { tli, no, keep })).unwrap();
            assert!(matches!(done, JobDone::Prepared { .. }), "{done:?}");
            assert!(std::fs::read(&stray).unwrap() == wal, "what was acknowledged is gone");
        }
    }

    /// Otherwise a keeper that always has a job at hand would write each segment twice: as
    /// zeros, then as WAL.
    #[test]
    fn an_old_segment_is_recycled_before_a_spare_is_written() {
        use std::os::unix::fs::MetadataExt;
        let size = SegmentSize::new(MIB).unwrap();
        let tli = TimelineId::FIRST;
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout().clone();
        let [old, next] = [FIRST, FIRST + 1].map(SegmentNo::new);
        let path = |no| layout.segment(SegmentName { tli, no, size });
        std::fs::write(path(old), vec![7; MIB as usize]).unwrap();
        let inode = std::fs::metadata(path(old)).unwrap().ino();
        let holds = Arc::new(Holds::new(old.start(size)));
        let complete = Some(SegmentRange { tli, oldest: old, newest: old });
        let keeper =
            Keeper::new(PlainDisk, layout.clone(), holds, &Listing::default(), complete, None);
        keeper.size.set(Some(size));
        keeper.give_up_before(next, size);

        let keep = next.start(size);
        let done = run_ready(keeper.run(Job::Prepare { tli, no: next, keep })).unwrap();
        assert!(matches!(done, JobDone::Prepared { .. }));
        let partial = layout.partial(SegmentName { tli, no: next, size });
        assert_eq!(std::fs::metadata(&partial).unwrap().ino(), inode);
        assert!(!path(old).exists());
        let page = std::fs::read(&partial).unwrap();
        assert!(page[..PAGE_SIZE].iter().all(|byte| *byte == 0), "old WAL could be believed");
    }
}
