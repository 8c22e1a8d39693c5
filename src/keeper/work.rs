//! The keeper's jobs over any disk: the shipped one and the simulation's.
//!
//! The order inside each job makes a crash harmless: content before name, name before hand-over,
//! data before what refers to it. The head of this folder says what makes several jobs at a time
//! harmless.

use super::asides::Asides;
use super::complete::Complete;
use super::completions::Completions;
use super::hashing::{DigestReason, Digests};
use super::job::{Job, JobDone, JobKind};
use super::open_files::OpenFiles;
use super::pressure::Pressure;
use super::restored::Restored;
use super::spares::Spares;
use crate::cluster::instance::InstanceId;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::disk::Disk;
use crate::store::durable::failed_sync;
use crate::store::durable::{read_small, replace_durably, write_full};
use crate::store::layout::{Layout, Listing, SegmentRange};
use crate::store::notes::HaltedNote;
use crate::store::now::Now;
use crate::store::retention::{Holds, Policy};
use crate::store::slots::SlotFiles;
use crate::store::switch::heirs;
use crate::timeline::{self, History};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Where a segment's bytes may be: the segment whose file that is, and its path.
type Place = (SegmentName, PathBuf);

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
    /// Segments that could not be read or removed, of which the log has said so.
    pub(super) unreadable: RefCell<BTreeSet<(TimelineId, SegmentNo)>>,
    /// Where the next start's walk would begin.
    pub(super) walk_start: Cell<Option<Lsn>>,
    /// Segments before this one may go, by the plan in force. Before the first plan, none may.
    pub(super) horizon: Cell<SegmentNo>,
    /// The position up to which segments were completed since retention last ran.
    pub(super) completed_upto: Cell<Option<(TimelineId, Lsn)>>,
    /// Our WAL was cut off there, and no segment was completed since: what was asked for before that
    /// counts up to there.
    pub(super) cut_off: Cell<Option<Lsn>>,
    /// Retention was asked for. Until then nothing goes: standbys that come back right after a
    /// start hold their WAL again before the first plan.
    pub(super) retains: Cell<bool>,
    /// When retention was asked for first.
    pub(super) began: Cell<Option<Now>>,
    /// How fast WAL comes in, and whether the disk has room for more.
    pub(super) pressure: Pressure,
    /// Tells the time.
    pub(super) clock: Box<dyn Fn() -> Now>,
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
    pub(super) digests: Digests<D::File>,
    pub(super) slot_files: SlotFiles,
    /// From where on standbys need WAL, as it is on disk.
    pub(super) standbys_from: Cell<Option<Lsn>>,
    pub(super) asides: Asides,
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
            cut_off: Cell::new(None),
            retains: Cell::new(false),
            began: Cell::new(None),
            pressure: Pressure::default(),
            clock: Box::new(Now::by_system),
            turn: Mutex::new(()),
            line: Cell::new(0),
            spares: Spares::new(&listing.spares),
            complete: Complete::new(listing, complete),
            partials: RefCell::new(listing.partials.iter().copied().collect()),
            past_hole: RefCell::new(past_hole),
            unreadable: RefCell::default(),
            walk_start: Cell::new(None),
            horizon: Cell::new(SegmentNo::new(0)),
            unsynced_names: Cell::new(false),
            restored: Restored::default(),
            open: OpenFiles::default(),
            digests: Digests::default(),
            slot_files: SlotFiles::default(),
            standbys_from: Cell::new(None),
            asides: Asides::default(),
        }
    }

    /// Sets a policy other than the minimal one.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Tells the time by other clocks than the system's.
    pub fn with_clock(self, clock: impl Fn() -> Now + 'static) -> Self {
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
            Job::Adopt { tli, no, shown } => {
                let result = self.in_turn(self.adopt(tli, no, shown)).await;
                Ok(JobDone::Adopted { tli, no, result })
            }
            Job::Mend { tli, no } => {
                self.in_turn(self.mend(tli, no)).await.map(|()| JobDone::Done(kind))
            }
            Job::Digest { tli, no } => {
                // A digest says what was received here.
                if !self.restored.contains(tli, no) {
                    self.digests.wait(tli, no, DigestReason::Found);
                }
                Ok(JobDone::Done(kind))
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
            Job::Foresee { tli, newest } => {
                let outlook = self.in_turn(self.foresee(tli, newest)).await;
                outlook.map(|outlook| JobDone::Foreseen(Box::new(outlook)))
            }
            Job::Overwrite { tli, at, bytes } => {
                self.in_turn(self.overwrite(tli, at, bytes)).await.map(|()| JobDone::Done(kind))
            }
            Job::SaveSlot(name) => {
                self.in_turn(self.save_slot(&name)).await.map(|()| JobDone::Done(kind))
            }
            Job::DropSlot(name) => {
                self.in_turn(self.drop_slot(&name)).await.map(|()| JobDone::Done(kind))
            }
            Job::ConfirmAside(name) => {
                self.in_turn(self.confirm_aside(&name)).await.map(|()| JobDone::Done(kind))
            }
            Job::SaveNote { note, bytes } => {
                self.save_note(note, bytes).await.map(|()| JobDone::Done(kind))
            }
            Job::SetAside(instance) => self.alone(self.set_aside(instance)).await,
            Job::Switch(plan) => self.alone(self.switch(plan)).await,
            Job::PrepareCut(cut) => self.prepare_cut(cut).await,
            Job::DecideCut(cut) => self.decide_cut(cut).await,
            Job::Cut(cut) => self.alone(self.cut(cut)).await,
            Job::KeepLeft(taken) => self.keep_left(taken).await,
            Job::MarkHalted { durable, reason } => {
                let note = HaltedNote { durable, reason };
                let path = self.layout.halted();
                let marked = self.replace_making_room(&path, note.encode()).await;
                marked.map(|()| JobDone::Done(kind))
            }
        };
        self.asides.note_job(kind);
        done.unwrap_or_else(|error| JobDone::Failed { job: kind, error })
    }

    pub(super) async fn open(&self, tli: TimelineId, no: SegmentNo) -> io::Result<D::File> {
        let name = self.name(tli, no)?;
        if let Some(file) = self.open.held(tli, no) {
            return Ok(file);
        }
        match self.look_for(self.places(name)).await {
            // It may have got its final name between one look and the next.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut places = self.places(name);
                places.extend(self.inherited_places(name).await?);
                self.look_for(places).await
            }
            found => found,
        }
    }

    /// Opens the first place that has the segment. The file is open as that of the segment whose name
    /// it has, which may be a later timeline's.
    async fn look_for(&self, places: Vec<Place>) -> io::Result<D::File> {
        for (name, path) in places {
            let SegmentName { tli, no, .. } = name;
            let _opening = self.open.opening(tli, no);
            match self.disk.open_read(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(file) => {
                    if path == self.layout.segment(name) && !self.is_here(name) {
                        self.check_returned(name, &file).await?;
                    }
                    self.open.note(tli, no, &file);
                    return Ok(file);
                }
                failed => return failed,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Where a segment's bytes may be, the best place first. What was moved aside counts too: a
    /// message that was begun before the timeline's end was known is finished from there.
    /// Nothing else in that folder is ever requested.
    fn places(&self, name: SegmentName) -> Vec<Place> {
        let mut places = self.files_of(vec![name.tli], name);
        let cluster = self.cluster.borrow();
        let Some(cluster) = &*cluster else { return places };
        if let Some(sealed) = cluster.sealed.iter().find(|sealed| sealed.tli == name.tli) {
            let aside = self.layout.diverged(sealed.tli, sealed.end);
            for (name, path) in places.clone() {
                places.extend(path.file_name().map(|file| (name, aside.join(file))));
            }
        }
        places.extend(self.files_of(heirs(cluster, name.tli, name.no), name));
        places
    }

    /// Where the bytes may be of a timeline that ended before this directory began.
    async fn inherited_places(&self, name: SegmentName) -> io::Result<Vec<Place>> {
        let current = self.cluster.borrow().as_ref().map(|cluster| cluster.timeline);
        let Some(tli) = current.filter(|tli| *tli > name.tli) else { return Ok(Vec::new()) };
        let bytes = read_small(&self.disk, &self.layout.history(tli)).await?;
        let history = bytes.and_then(|bytes| History::parse(tli, bytes.into()).ok());
        let forks = history.map(|history| history.forks()).unwrap_or_default();
        Ok(self.files_of(timeline::heirs(&forks, tli, name.tli, (name.no, name.size)), name))
    }

    /// The files of these timelines with the segment's number.
    fn files_of(&self, timelines: Vec<TimelineId>, name: SegmentName) -> Vec<Place> {
        let names = timelines.into_iter().map(|tli| SegmentName { tli, ..name });
        let both = |name| [(name, self.layout.segment(name)), (name, self.layout.partial(name))];
        names.flat_map(both).collect()
    }

    /// The note about the beginning is removed before the WAL it covers. Then the names move: a
    /// start that finds the cluster without its WAL begins again at its old position, meets the
    /// gap again and comes back here. History files stay.
    async fn set_aside(&self, instance: InstanceId) -> io::Result<JobDone<D::File>> {
        let aside = self.free_aside().await?;
        let _leave = self.leave_to_set_aside(&aside)?;
        match self.disk.unlink(&self.layout.begun()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.disk.sync_dir(self.layout.root()).await.map_err(failed_sync)?;
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
        self.unreadable.borrow_mut().clear();
        self.open.clear();
        self.walk_start.set(None);
        self.horizon.set(SegmentNo::new(0));
        self.completed.clear();
        // It was about WAL that is no longer here.
        self.completed_upto.set(None);
        self.holds.set_too_full(None);
        self.pressure.clear();
        self.unsynced_names.set(false);
        self.restored.clear();
        self.digests.clear();
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
