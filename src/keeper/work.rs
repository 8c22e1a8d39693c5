//! The keeper's jobs, one after the other, over any disk: the shipped one and the
//! simulation's.
//!
//! The order inside each job makes a crash harmless: content before name, name before hand-over,
//! data before what refers to it.

use super::job::{Job, JobDone, JobKind};
use super::open_files::OpenFiles;
use super::restored::Restored;
use super::retain::Completions;
use super::spares::Spares;
use crate::cluster::instance::InstanceId;
use crate::store::append::Begun;
use crate::store::clean::clear_behind;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::{read_full, replace_durably, write_full};
use crate::store::layout::ArchiveFile;
use crate::store::layout::{Layout, Listing, SegmentRange};
use crate::store::notes::{BegunNote, HaltedNote};
use crate::store::retention::{Holds, Policy};
use crate::store::switch::heirs;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tracing::warn;

/// The most old segments removed in one step of background work.
const REMOVALS_A_STEP: usize = 8;

/// Is there more background work?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tended {
    /// Some was done; ask again when no job waits.
    More,
    /// Nothing is left to do.
    Idle,
}

/// Does the file work.
pub struct Keeper<D: Disk> {
    pub(super) disk: D,
    pub(super) layout: Layout,
    pub(super) holds: Arc<Holds>,
    pub(super) policy: Policy,
    pub(super) cluster: Option<Cluster>,
    pub(super) size: Option<SegmentSize>,
    pub(super) spares: Spares,
    /// Complete segments on disk, of every timeline, oldest range first.
    pub(super) complete: Vec<SegmentRange>,
    /// When segments were completed, as far as this had to be known.
    pub(super) completed: Completions,
    /// Open segments on disk.
    pub(super) partials: BTreeSet<(TimelineId, SegmentNo)>,
    /// Where the next start's walk would begin.
    pub(super) walk_start: Option<Lsn>,
    /// Segments before this one may go, by the plan in force. Before the first plan, none may.
    pub(super) horizon: SegmentNo,
    /// The position up to which segments were completed since retention last ran.
    pub(super) completed_upto: Option<(TimelineId, Lsn)>,
    /// The time of day, as last told. `None` before it was told.
    pub(super) now: Option<SystemTime>,
    /// Names were removed or changed since the directory was synced.
    pub(super) unsynced_names: bool,
    /// Segments from the archive.
    pub(super) restored: Restored,
    pub(super) open: OpenFiles<D>,
}

impl<D: Disk> Keeper<D> {
    /// A keeper of the directory in which recovery found `listing`.
    pub fn new(
        disk: D,
        layout: Layout,
        holds: Arc<Holds>,
        listing: &Listing,
        complete: Option<SegmentRange>,
        cluster: Option<Cluster>,
    ) -> Self {
        let size = cluster.as_ref().map(|cluster| cluster.segment_size);
        Self {
            disk,
            layout,
            holds,
            size,
            cluster,
            policy: Policy::default(),
            completed: Completions::default(),
            completed_upto: None,
            now: None,
            spares: Spares::new(&listing.spares),
            complete: complete_ranges(listing, complete),
            partials: listing.partials.iter().copied().collect(),
            walk_start: None,
            horizon: SegmentNo::new(0),
            unsynced_names: false,
            restored: Restored::default(),
            open: OpenFiles::default(),
        }
    }

    /// Sets a policy other than the minimal one.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Does one job.
    pub async fn run(&mut self, job: Job) -> JobDone<D::File> {
        let kind = job.kind();
        let done = match job {
            Job::Prepare { tli, no, keep } => self.prepare(tli, no, keep).await,
            Job::Finalize { tli, no } => self.finalize(tli, no).await,
            Job::Begin { tli, start, upto } => self.begin(tli, start, upto).await,
            Job::Open { tli, no } => {
                let result = self.open(tli, no).await;
                Ok(JobDone::Opened { tli, no, result })
            }
            Job::Adopt { tli, no } => {
                let result = self.adopt(tli, no).await;
                Ok(JobDone::Adopted { tli, no, result })
            }
            Job::SaveControl(control) => self.save_control(&control).await,
            Job::SaveHistory { tli, bytes } => {
                let path = self.layout.history(tli);
                match replace_durably(&self.disk, &path, bytes).await {
                    Ok(()) => {
                        self.archive_history(tli).await;
                        Ok(JobDone::Done(kind))
                    }
                    Err(error) => Err(error),
                }
            }
            Job::SaveState(text) => self.save_state(text).await,
            Job::SaveIdentity { data_directory_mode, parameters } => {
                self.save_identity(data_directory_mode, parameters).await
            }
            Job::Retain { tli, newest, now } => self.retain(self.within(tli, newest), now).await,
            Job::SaveSlot(name) => self.save_slot(&name).await.map(|()| JobDone::Done(kind)),
            Job::DropSlot(name) => self.drop_slot(&name).await.map(|()| JobDone::Done(kind)),
            Job::SaveNote { note, bytes } => {
                self.save_note(note, bytes).await.map(|()| JobDone::Done(kind))
            }
            Job::SetAside(instance) => self.set_aside(instance).await,
            Job::Switch(plan) => self.switch(plan).await,
            Job::MarkHalted { durable, reason } => {
                let note = HaltedNote { durable, reason };
                let path = self.layout.halted();
                let marked = replace_durably(&self.disk, &path, note.encode()).await;
                marked.map(|()| JobDone::Done(kind))
            }
        };
        done.unwrap_or_else(|error| JobDone::Failed { job: kind, error })
    }

    /// Background work, when no job waits: removes what nobody needs, and makes one spare ahead
    /// of need. A failure here is reported and retried after the next job.
    pub async fn tend(&mut self) -> io::Result<Tended> {
        let Some(size) = self.size else { return Ok(Tended::Idle) };
        if self.remove_some(size).await? == Tended::More
            || self.remove_restored().await? == Tended::More
        {
            return Ok(Tended::More);
        }
        self.sync_names().await?;
        self.spares.tend(&self.disk, &self.layout, size).await
    }

    /// Makes renames and removals durable: recycled files are ours from then on.
    async fn sync_names(&mut self) -> io::Result<()> {
        if self.unsynced_names {
            self.disk.sync_dir(self.layout.wal()).await?;
            self.unsynced_names = false;
            self.spares.names_synced();
        }
        Ok(())
    }

    /// When there is no spare, looks for segments to recycle before one is written. Writing a
    /// spare costs as much as writing the WAL that goes into it, and a keeper that always has a
    /// job never gets to make one in advance.
    async fn recycle_for(&mut self, size: SegmentSize) -> io::Result<()> {
        if self.spares.has_one() {
            return Ok(());
        }
        if let Err(error) = self.remove_some(size).await {
            warn!("could not recycle WAL segments: {error}");
        }
        self.sync_names().await.map_err(failed_sync)
    }

    /// Makes `<segment>.partial` ready.
    ///
    /// A new one comes from a spare: its first page is zeroed and synced while it has no WAL
    /// name, so that nothing old is ever believed; then it is renamed and the directory synced.
    /// One that exists already (after a restart, or when space ran out) is cleared past `keep`,
    /// and so are the ones after it.
    async fn prepare(
        &mut self,
        tli: TimelineId,
        no: SegmentNo,
        keep: Lsn,
    ) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        let partial = self.layout.partial(name);
        let file = match self.disk.open_write(&partial).await {
            Ok(file) => {
                clear_behind(&self.disk, &file, name, keep).await?;
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
        self.partials.insert((tli, no));
        Ok(JobDone::Prepared { tli, no, file })
    }

    /// Once an open segment is written again, what lies in later segments from an earlier
    /// attempt must not follow it.
    async fn clear_later(&mut self, name: SegmentName) -> io::Result<()> {
        let later = (name.tli, name.no.next())..=(name.tli, SegmentNo::new(u64::MAX));
        for (_, no) in self.partials.range(later) {
            let name = SegmentName { no: *no, ..name };
            let file = match self.disk.open_write(&self.layout.partial(name)).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            clear_behind(&self.disk, &file, name, no.start(name.size)).await?;
            self.disk.sync_data(&file).await.map_err(failed_sync)?;
        }
        Ok(())
    }

    async fn finalize(&mut self, tli: TimelineId, no: SegmentNo) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        let (from, to) = (self.layout.partial(name), self.layout.segment(name));
        self.disk.rename(&from, &to).await?;
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        self.partials.remove(&(tli, no));
        self.archive_segment(name).await;
        self.completed.finished(no);
        self.completed_upto = Some((tli, no.end(name.size)));
        let range = self.complete.iter_mut().rev().find(|range| range.tli == tli);
        match range {
            Some(range) if range.newest.next() == no => range.newest = no,
            _ => {
                self.complete.push(SegmentRange { tli, oldest: no, newest: no });
                self.complete.sort_unstable_by_key(|range| (range.tli, range.oldest));
            }
        }
        Ok(JobDone::Finalized { tli, no })
    }

    /// Looks at the first page, which is synced, and notes how far its bytes reach.
    async fn begin(
        &mut self,
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

    pub(super) async fn open(&mut self, tli: TimelineId, no: SegmentNo) -> io::Result<D::File> {
        let name = self.name(tli, no)?;
        if let Some(file) = self.open.held(tli, no) {
            return Ok(file);
        }
        let mut found = Err(io::ErrorKind::NotFound.into());
        for path in self.places(name) {
            found = self.disk.open_read(&path).await;
            match &found {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
        }
        let file = found?;
        self.open.note(tli, no, &file);
        Ok(file)
    }

    /// Where a segment's bytes may be, the best place first. What was moved aside counts too: a
    /// message that was begun before the timeline's end was known is finished from there.
    /// Nothing else in that folder is ever requested.
    fn places(&self, name: SegmentName) -> Vec<PathBuf> {
        let mut places = vec![self.layout.segment(name), self.layout.partial(name)];
        let Some(cluster) = &self.cluster else { return places };
        if let Some(sealed) = cluster.sealed.iter().find(|sealed| sealed.tli == name.tli) {
            let aside = self.layout.diverged(sealed.tli, sealed.end);
            for path in places.clone() {
                places.extend(path.file_name().map(|file| aside.join(file)));
            }
        }
        for heir in heirs(cluster, name.tli, name.no) {
            let name = SegmentName { tli: heir, ..name };
            places.extend([self.layout.segment(name), self.layout.partial(name)]);
        }
        places
    }

    /// The note about the beginning is removed before the WAL it covers. Then the names move: a
    /// start that finds the cluster without its WAL begins again at its old position, meets the
    /// gap again and comes back here. History files stay.
    async fn set_aside(&mut self, instance: InstanceId) -> io::Result<JobDone<D::File>> {
        self.check_all_archived()?;
        match self.disk.unlink(&self.layout.begun()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync)?;
        let aside = self.free_aside().await?;
        // What needs space comes first: a full disk must not leave us without a folder.
        let fresh = Layout::temporary(self.layout.wal());
        match self.disk.mkdir(&fresh).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        self.disk.rename(self.layout.wal(), &aside).await?;
        self.disk.rename(&fresh, self.layout.wal()).await?;
        for name in self.disk.list(&aside).await? {
            if name.ends_with(".history") {
                self.disk.rename(&aside.join(&name), &self.layout.wal().join(&name)).await?;
            }
        }
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        self.take_marks_along().await?;
        self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync)?;
        let empty = ControlFile { instance, cluster: None };
        replace_durably(&self.disk, &self.layout.control(), empty.encode()).await?;
        self.cluster = None;
        self.spares = Spares::new(&[]);
        self.complete.clear();
        self.partials.clear();
        self.open = OpenFiles::default();
        self.walk_start = None;
        self.horizon = SegmentNo::new(0);
        self.completed = Completions::default();
        self.unsynced_names = false;
        self.restored = Restored::default();
        self.lose_slots().await?;
        Ok(JobDone::Done(JobKind::SetAside))
    }

    /// The first free name for a folder of WAL moved aside.
    async fn free_aside(&self) -> io::Result<PathBuf> {
        let names = self.disk.list(self.layout.root()).await?;
        let taken = |path: &PathBuf| names.iter().any(|name| path.ends_with(name));
        let mut candidates = (1u32..).map(|n| self.layout.aside(n));
        candidates.find(|path| !taken(path)).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }

    /// Readers see the old text or the new one; after a crash it may be gone.
    async fn save_state(&mut self, text: String) -> io::Result<JobDone<D::File>> {
        let path = self.layout.state();
        let temporary = Layout::temporary(&path);
        let file = self.disk.create(&temporary).await?;
        write_full(&self.disk, &file, text.into_bytes(), 0).await?;
        self.disk.rename(&temporary, &path).await?;
        Ok(JobDone::Done(JobKind::SaveState))
    }

    /// Removes some of what lies before the horizon, oldest first. A segment becomes a
    /// spare if one is wanted and nobody has its file open.
    async fn remove_some(&mut self, size: SegmentSize) -> io::Result<Tended> {
        for _ in 0..REMOVALS_A_STEP {
            let gone = |range: &SegmentRange| range.oldest < self.horizon;
            let Some(index) = self.complete.iter().position(gone) else {
                return Ok(Tended::Idle);
            };
            let Some(range) = self.complete.get_mut(index) else { return Ok(Tended::Idle) };
            let (tli, no) = (range.tli, range.oldest);
            let name = SegmentName { tli, no, size };
            let path = self.layout.segment(name);
            let held = self.open.take_held(tli, no)
                || self.holds.backlog.may_be_read(ArchiveFile::Segment(name));
            let removed = match self.spares.place_for_recycled() {
                Some(number) if !held => {
                    let renamed = self.disk.rename(&path, &self.layout.spare(number)).await;
                    renamed.map(|()| self.spares.recycled(number))
                }
                _ => self.disk.unlink(&path).await,
            };
            match removed {
                // Somebody else removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            self.unsynced_names = true;
            self.forget_archived(name).await;
            let Some(range) = self.complete.get_mut(index) else { return Ok(Tended::Idle) };
            if range.oldest == range.newest {
                self.complete.remove(index);
            } else {
                range.oldest = no.next();
            }
        }
        Ok(Tended::More)
    }

    pub(super) fn name(&self, tli: TimelineId, no: SegmentNo) -> io::Result<SegmentName> {
        Ok(SegmentName { tli, no, size: self.segment_size()? })
    }

    pub(super) fn segment_size(&self) -> io::Result<SegmentSize> {
        self.size.ok_or_else(|| io::Error::other("the cluster is not known yet"))
    }
}

/// The complete segments in a listing, and those that recovery named after it.
pub(super) fn complete_ranges(
    listing: &Listing,
    complete: Option<SegmentRange>,
) -> Vec<SegmentRange> {
    let mut ranges = listing.segments.clone();
    if let Some(range) = complete {
        ranges.retain(|old| {
            old.tli != range.tli || old.oldest > range.newest || old.newest < range.oldest
        });
        ranges.push(range);
        ranges.sort_unstable_by_key(|range| (range.tli, range.oldest));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::plain_disk::PlainDisk;
    use crate::wal::SystemId;
    use crate::wal::page::PAGE_SIZE;
    use crate::wal::synth::Synth;
    use std::os::unix::fs::FileExt;

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
        let mut keeper = Keeper::new(PlainDisk, layout, holds, &listing, None, Some(cluster));
        let mut run = |job| run_ready(keeper.run(job)).unwrap();

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
            run(Job::Retain {
                tli: TimelineId::FIRST,
                newest,
                now: std::time::SystemTime::UNIX_EPOCH
            }),
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
        let mut keeper =
            Keeper::new(PlainDisk, layout.clone(), holds, &Listing::default(), complete, None);
        keeper.size = Some(size);
        keeper.horizon = next;

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
