//! Mistakes put in on purpose, to see that the simulation finds them. The shipped code
//! knows nothing of them: they are a disk that does something else, and a driver that does.

use crate::fake_disk::{FakeDisk, FakeFile};
use crate::kinds::SLOTS;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use walhub::store::disk::Disk;
use walhub::store::retention::Space;
use walhub::wal::TimelineId;

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plant {
    /// None.
    Honest,
    /// A switch copies the parent's whole fork segment.
    CopiesWholeForkSegment,
    /// A segment becomes a spare although a reader has it open.
    RecyclesUnderReaders,
    /// Messages are begun up to the durable mark of a timeline that has ended before it.
    ServesPastTheSwitchpoint,
    /// Retention goes by slots' positions that are not on disk.
    RetainsByUnsavedSlots,
    /// A start removes what lies before the first segment that it can go on from.
    RemovesBeforeAHole,
    /// What a client sent behind a slot's command is forgotten.
    ForgetsThePipeline,
    /// A stream is asked for where our WAL ends, and nothing of it is compared: not before the stream
    /// either.
    AsksWithoutOverlap,
    /// The disk's free space is believed to be all of it.
    MissesAFullDisk,
    /// Timeouts go by the time of day.
    TimesOutByTheTimeOfDay,
    /// A connected standby holds the WAL from the durable position on, not what it needs next.
    HoldsWhatIsDurable,
    /// Nobody who has gone is waited for.
    ForgetsWhoLeft,
    /// How long a slot is unused is told by the time of day.
    IdlesByTheTimeOfDay,
    /// What the archive has under positions that are held is not looked at.
    ArchiveWinsSilently,
    /// What others have is read in the place of our own WAL, and so never differs from it.
    ReadsTheirsForOurs,
    /// A difference that was found is forgotten.
    ForgetsDifferences,
    /// Whoever asks for WAL where another history goes on is not asked what it has.
    ForgetsSeams,
    /// A fence is not kept on disk.
    ForgetsTheFence,
    /// The upstream that was set is not kept on disk.
    ForgetsTheUpstream,
    /// The keeper does one job at a time, whatever its lane, and each slot has a sync of its own.
    /// Either alone keeps nobody waiting.
    OneLane,
}

/// The disk of a hub with a mistake, or with none.
#[derive(Clone)]
pub(crate) struct PlantedDisk {
    pub(crate) disk: FakeDisk,
    plant: Plant,
    building: Rc<RefCell<Building>>,
    /// The newest timeline that a first segment was built for since the last start.
    child: Rc<Cell<Option<TimelineId>>>,
}

/// Files that are being built under a temporary name, and which.
type Building = Vec<(Weak<FakeFile>, PathBuf)>;

/// An open file.
#[derive(Clone)]
pub(crate) struct PlantedFile {
    pub(crate) file: Arc<FakeFile>,
    plant: Plant,
}

impl PlantedDisk {
    pub(crate) fn new(disk: FakeDisk, plant: Plant) -> Self {
        Self { disk, plant, building: Rc::default(), child: Rc::default() }
    }

    /// The newest timeline that a first segment was built for since the last start.
    pub(crate) fn newest_child(&self) -> Option<TimelineId> {
        self.child.get()
    }

    /// A process starts.
    pub(crate) fn forget_children(&self) {
        self.child.set(None);
    }

    fn file(&self, file: io::Result<Arc<FakeFile>>) -> io::Result<PlantedFile> {
        file.map(|file| PlantedFile { file, plant: self.plant })
    }

    /// The parent's bytes behind what was written of a child's fork segment.
    fn copy_the_rest(&self, file: &PlantedFile) {
        let building = self.building.borrow();
        let path = building.iter().find_map(|(built, path)| {
            built.upgrade().is_some_and(|built| Arc::ptr_eq(&built, &file.file)).then_some(path)
        });
        let Some(name) = path.and_then(|path| path.file_name()?.to_str()) else { return };
        let (Some(child), Some(segment)) = (name.get(..8), name.get(8..24)) else { return };
        let is_parent = |path: &PathBuf| {
            // Not its digest.
            if path.extension().is_some_and(|extension| extension != "partial") {
                return false;
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.get(8..24) == Some(segment) && name.get(..8).is_some_and(|tli| tli < child)
        };
        let Some(parent) = self.disk.names().into_iter().rfind(is_parent) else {
            return;
        };
        let (Some(theirs), Some(ours)) =
            (self.disk.views(&parent).0, self.disk.views(&self.path_of(file)).0)
        else {
            return;
        };
        let end = ours.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.disk.write_now(&file.file, &theirs[end..], end as u64).unwrap();
    }

    fn path_of(&self, file: &PlantedFile) -> PathBuf {
        let building = self.building.borrow();
        let found = building.iter().find(|(built, _)| {
            built.upgrade().is_some_and(|built| Arc::ptr_eq(&built, &file.file))
        });
        found.map(|(_, path)| path.clone()).unwrap_or_default()
    }
}

/// The timeline in a segment's name.
fn timeline_of(path: &Path) -> Option<TimelineId> {
    let raw = path.file_name()?.to_str()?.get(..8)?;
    TimelineId::new(u32::from_str_radix(raw, 16).ok()?)
}

impl Disk for PlantedDisk {
    type File = PlantedFile;
    type Watch = (Weak<FakeFile>, Plant);

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir).await
    }

    async fn open_read(&self, path: &Path) -> io::Result<PlantedFile> {
        self.file(self.disk.open_read(path).await)
    }

    async fn open_write(&self, path: &Path) -> io::Result<PlantedFile> {
        let file = self.file(self.disk.open_write(path).await)?;
        if path.to_string_lossy().contains("/slots.") {
            self.building.borrow_mut().push((Arc::downgrade(&file.file), path.to_owned()));
        }
        Ok(file)
    }

    async fn create(&self, path: &Path) -> io::Result<PlantedFile> {
        let file = self.file(self.disk.create(path).await)?;
        let name = path.to_string_lossy();
        if name.ends_with(".partial.tmp") || name.contains("/slots.") {
            self.building.borrow_mut().push((Arc::downgrade(&file.file), path.to_owned()));
        }
        if name.ends_with(".partial.tmp") {
            self.child.set(self.child.get().max(timeline_of(path)));
        }
        Ok(file)
    }

    async fn read_at(
        &self,
        file: &PlantedFile,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.disk.read_at(&file.file, buffer, offset).await
    }

    async fn write_at(
        &self,
        file: &PlantedFile,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.disk.write_at(&file.file, bytes, offset).await
    }

    async fn sync_data(&self, file: &PlantedFile) -> io::Result<()> {
        if self.plant == Plant::CopiesWholeForkSegment {
            self.copy_the_rest(file);
        }
        if self.plant == Plant::OneLane && self.path_of(file).to_string_lossy().contains("/slots.")
        {
            for _ in 1..SLOTS {
                self.disk.sync_data(&file.file).await?;
            }
        }
        self.disk.sync_data(&file.file).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to).await
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        self.disk.unlink(path).await
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        self.disk.link(path, name).await
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.disk.mkdir(path).await
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        let space = self.disk.space(dir).await?;
        Ok(match self.plant {
            Plant::MissesAFullDisk => Space { free: space.total, ..space },
            _ => space,
        })
    }

    async fn len(&self, file: &PlantedFile) -> io::Result<u64> {
        self.disk.len(&file.file).await
    }

    async fn drop_cache(&self, file: &PlantedFile) -> io::Result<()> {
        self.disk.drop_cache(&file.file).await
    }

    async fn give_way(&self) {
        self.disk.give_way().await;
    }

    fn watch(file: &PlantedFile) -> Self::Watch {
        (Arc::downgrade(&file.file), file.plant)
    }

    fn held((watch, plant): &Self::Watch) -> Option<PlantedFile> {
        let file = watch.upgrade().filter(|_| *plant != Plant::RecyclesUnderReaders)?;
        Some(PlantedFile { file, plant: *plant })
    }
}
