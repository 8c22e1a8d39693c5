//! The keeper's jobs over any disk: the shipped one and the simulation's.
//!
//! The order inside each job makes a crash harmless: content before name, name before hand-over,
//! data before what refers to it. The head of this folder says what makes two jobs at a time
//! harmless.

use super::complete::Complete;
use super::completions::Completions;
use super::job::{Job, JobDone, JobKind};
use super::open_files::OpenFiles;
use super::restored::Restored;
use super::spares::Spares;
use crate::cluster::instance::InstanceId;
use crate::store::append::Begun;
use crate::store::aside::set_aside;
use crate::store::clean::clear_past;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::{read_full, replace_durably, write_full};
use crate::store::layout::{Layout, Listing, SegmentRange};
use crate::store::notes::{BegunNote, HaltedNote};
use crate::store::retention::{Holds, Policy};
use crate::store::slots::SlotFiles;
use crate::store::switch::heirs;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Mutex;

/// Does the file work.
pub struct Keeper<D: Disk> {
    pub(super) disk: D,
    pub(super) layout: Layout,
    pub(super) holds: Arc<Holds>,
    pub(super) policy: Policy,
    pub(super) cluster: RefCell<Option<Cluster>>,
    pub(super) size: Cell<Option<SegmentSize>>,
    pub(super) spares: Spares,
    /// Complete segments on disk.
    pub(super) complete: Complete,
    /// When segments were completed, as far as this had to be known.
    pub(super) completed: Completions,
    /// Open segments on disk.
    pub(super) partials: RefCell<BTreeSet<(TimelineId, SegmentNo)>>,
    /// Those of them that the start found past a hole, with WAL that it could not prove.
    pub(super) past_hole: RefCell<BTreeSet<(TimelineId, SegmentNo)>>,
    /// Where the next start's walk would begin.
    pub(super) walk_start: Cell<Option<Lsn>>,
    /// Segments before this one may go, by the plan in force. Before the first plan, none may.
    pub(super) horizon: Cell<SegmentNo>,
    /// The position up to which segments were completed since retention last ran.
    pub(super) completed_upto: Cell<Option<(TimelineId, Lsn)>>,
    /// Retention was asked for. Until then nothing goes: standbys that come back right after a
    /// start hold their WAL again before the first plan.
    pub(super) retains: Cell<bool>,
    /// Tells the time of day.
    pub(super) clock: Box<dyn Fn() -> SystemTime>,
    /// Held by each step of patient work, and by a switch or a set-aside as a whole.
    turn: Mutex<()>,
    /// How often the directory has been switched or set aside: retention that sees another number
    /// than at its beginning gives up.
    line: Cell<u64>,
    /// Names were removed or changed since the directory was synced.
    pub(super) unsynced_names: Cell<bool>,
    /// Segments from the archive.
    pub(super) restored: Restored,
    pub(super) open: OpenFiles<D>,
    pub(super) slot_files: SlotFiles,
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
        let hole = holds.hole_before_open();
        let is_past_hole = |(tli, no): &(TimelineId, SegmentNo)| {
            hole.is_some_and(|hole| *tli == hole.tli && *no > hole.last)
        };
        let past_hole = listing.partials.iter().copied().filter(is_past_hole).collect();
        Self {
            disk,
            layout,
            holds,
            size: Cell::new(size),
            cluster: RefCell::new(cluster),
            policy: Policy::default(),
            completed: Completions::default(),
            completed_upto: Cell::new(None),
            retains: Cell::new(false),
            clock: Box::new(SystemTime::now),
            turn: Mutex::new(()),
            line: Cell::new(0),
            spares: Spares::new(&listing.spares),
            complete: Complete::new(listing, complete),
            partials: RefCell::new(listing.partials.iter().copied().collect()),
            past_hole: RefCell::new(past_hole),
            walk_start: Cell::new(None),
            horizon: Cell::new(SegmentNo::new(0)),
            unsynced_names: Cell::new(false),
            restored: Restored::default(),
            open: OpenFiles::default(),
            slot_files: SlotFiles::default(),
        }
    }

    /// Sets a policy other than the minimal one.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Tells the time by another clock than the system's.
    pub fn with_clock(self, clock: impl Fn() -> SystemTime + 'static) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    /// Lets other operations of this thread begin.
    pub async fn give_way(&self) {
        self.disk.give_way().await;
    }

    /// Does a step of patient work. A switch or a set-aside waits for its end, and it for theirs.
    pub(super) async fn in_turn<T>(&self, step: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        step.await
    }

    /// Does a step of work that began on this line; returns `None` when the directory has been
    /// switched or set aside since.
    pub(super) async fn on_line<T>(&self, line: u64, step: impl Future<Output = T>) -> Option<T> {
        let _turn = self.turn.lock().await;
        if self.line.get() != line {
            return None;
        }
        Some(step.await)
    }

    /// Waits for the step under way and then keeps patient work out.
    async fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        self.line.set(self.line.get() + 1);
        work.await
    }

    pub(super) fn line(&self) -> u64 {
        self.line.get()
    }

    /// Does one job. A segment to prepare, another urgent job and a patient one may be under way at
    /// the same time.
    pub async fn run(&self, job: Job) -> JobDone<D::File> {
        let kind = job.kind();
        let done = match job {
            Job::Prepare { tli, no, keep } => self.prepare(tli, no, keep).await,
            Job::Finalize { tli, no } => self.finalize(tli, no).await,
            Job::Begin { tli, start, upto } => self.begin(tli, start, upto).await,
            Job::Open { tli, no } => {
                let result = self.in_turn(self.open(tli, no)).await;
                Ok(JobDone::Opened { tli, no, result })
            }
            Job::Adopt { tli, no } => {
                let result = self.in_turn(self.adopt(tli, no)).await;
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
            Job::Retain { tli, newest } => {
                self.retains.set(true);
                self.retain(tli, newest).await.map(|()| JobDone::Done(kind))
            }
            Job::SaveSlot(name) => {
                self.in_turn(self.save_slot(&name)).await.map(|()| JobDone::Done(kind))
            }
            Job::DropSlot(name) => {
                self.in_turn(self.drop_slot(&name)).await.map(|()| JobDone::Done(kind))
            }
            Job::SaveNote { note, bytes } => {
                self.save_note(note, bytes).await.map(|()| JobDone::Done(kind))
            }
            Job::SetAside(instance) => self.alone(self.set_aside(instance)).await,
            Job::Switch(plan) => self.alone(self.switch(plan)).await,
            Job::MarkHalted { durable, reason } => {
                let note = HaltedNote { durable, reason };
                let path = self.layout.halted();
                let marked = replace_durably(&self.disk, &path, note.encode()).await;
                marked.map(|()| JobDone::Done(kind))
            }
        };
        done.unwrap_or_else(|error| JobDone::Failed { job: kind, error })
    }

    /// Makes `<segment>.partial` ready.
    ///
    /// A new one comes from a spare: its first page is zeroed and synced while it has no WAL
    /// name, so that nothing old is ever believed; then it is renamed and the directory synced.
    /// One that exists already (after a restart, or when space ran out) is cleared past `keep`,
    /// and so are the ones after it.
    async fn prepare(
        &self,
        tli: TimelineId,
        no: SegmentNo,
        keep: Lsn,
    ) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        self.set_past_hole_aside().await?;
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
            self.past_hole.borrow_mut().remove(&(tli, no));
            self.partials.borrow_mut().remove(&(tli, no));
        }
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)
    }

    async fn finalize(&self, tli: TimelineId, no: SegmentNo) -> io::Result<JobDone<D::File>> {
        let name = self.name(tli, no)?;
        let (from, to) = (self.layout.partial(name), self.layout.segment(name));
        self.disk.rename(&from, &to).await?;
        self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
        self.partials.borrow_mut().remove(&(tli, no));
        self.archive_segment(name).await;
        self.completed.note(no, (self.clock)());
        self.complete.add(tli, no);
        self.completed_upto.set(Some((tli, no.end(name.size))));
        Ok(JobDone::Finalized { tli, no })
    }

    /// Looks at the first page, which is synced, and notes how far its bytes reach.
    async fn begin(&self, tli: TimelineId, start: Lsn, upto: Lsn) -> io::Result<JobDone<D::File>> {
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

    pub(super) async fn open(&self, tli: TimelineId, no: SegmentNo) -> io::Result<D::File> {
        let name = self.name(tli, no)?;
        if let Some(file) = self.open.held(tli, no) {
            return Ok(file);
        }
        let _opening = self.open.opening(tli, no);
        let file = match self.look_for(name).await {
            // It may have got its final name between one look and the next.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.look_for(name).await?,
            found => found?,
        };
        self.open.note(tli, no, &file);
        Ok(file)
    }

    /// Opens the first place that has the segment.
    async fn look_for(&self, name: SegmentName) -> io::Result<D::File> {
        for path in self.places(name) {
            match self.disk.open_read(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => return found,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Where a segment's bytes may be, the best place first. What was moved aside counts too: a
    /// message that was begun before the timeline's end was known is finished from there.
    /// Nothing else in that folder is ever requested.
    fn places(&self, name: SegmentName) -> Vec<PathBuf> {
        let mut places = vec![self.layout.segment(name), self.layout.partial(name)];
        let cluster = self.cluster.borrow();
        let Some(cluster) = &*cluster else { return places };
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
    async fn set_aside(&self, instance: InstanceId) -> io::Result<JobDone<D::File>> {
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
        self.cluster.replace(None);
        self.spares.clear().await;
        self.complete.clear();
        self.partials.borrow_mut().clear();
        self.past_hole.borrow_mut().clear();
        self.open.clear();
        self.walk_start.set(None);
        self.horizon.set(SegmentNo::new(0));
        self.completed.clear();
        // It was about WAL that is no longer here.
        self.completed_upto.set(None);
        self.holds.set_too_full(None);
        self.unsynced_names.set(false);
        self.restored.clear();
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
    async fn save_state(&self, text: String) -> io::Result<JobDone<D::File>> {
        let path = self.layout.state();
        let temporary = Layout::temporary(&path);
        let file = self.disk.create(&temporary).await?;
        write_full(&self.disk, &file, text.into_bytes(), 0).await?;
        self.disk.rename(&temporary, &path).await?;
        Ok(JobDone::Done(JobKind::SaveState))
    }

    pub(super) fn name(&self, tli: TimelineId, no: SegmentNo) -> io::Result<SegmentName> {
        Ok(SegmentName { tli, no, size: self.segment_size()? })
    }

    pub(super) fn segment_size(&self) -> io::Result<SegmentSize> {
        self.size.get().ok_or_else(|| io::Error::other("the cluster is not known yet"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::Tended;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::holes::{Extent, Hole};
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
        keeper.horizon.set(next);

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
