//! A real disk on which an operation fails, never ends, or takes so long that something happens
//! meanwhile, or that is full. For tests only.

use super::disk::Disk;
use super::plain_disk::PlainDisk;
use super::retention::Space;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

/// A disk; a clone is the same one.
#[derive(Clone, Default)]
pub(crate) struct FaultyDisk(Rc<State>);

#[derive(Default)]
struct State {
    syncs: Cell<usize>,
    synced_dirs: RefCell<Vec<PathBuf>>,
    failing: Cell<Option<(Failing, i32)>>,
    meanwhile: RefCell<Option<Box<dyn FnOnce()>>>,
    before: RefCell<Option<(PathBuf, Event)>>,
    stuck: Cell<Option<IsStuck>>,
    waiting: Cell<usize>,
    /// How many bytes files may still grow by; `None` for no limit.
    room: Cell<Option<u64>>,
    /// How many steps there are before the power fails; `None` when it does not.
    steps: Cell<Option<usize>>,
    apart_is_stuck: Cell<bool>,
}

/// Whether an operation on this file never ends.
type IsStuck = fn(&Path) -> bool;

/// What happens once.
type Event = Box<dyn FnOnce()>;

/// What fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// Every sync of a file.
    Syncs,
    /// Every sync of a directory.
    DirSyncs,
    /// Every write.
    Writes,
    /// The next write.
    NextWrite,
}

#[cfg(not(walhub_loom))]
impl FaultyDisk {
    /// Opening one of these files for reading, creating it and renaming it never end from now on, as
    /// if each took very long.
    pub(crate) fn stick_at(&self, stuck: IsStuck) {
        self.0.stuck.set(Some(stuck));
    }

    /// Work on what was set aside never ends from now on.
    pub(crate) fn stick_apart(&self) {
        self.0.apart_is_stuck.set(true);
    }

    /// After so many steps that change something, or that are work on what was set aside, none ends any
    /// more, as if the process were killed. The last one is done.
    pub(crate) fn stop_after(&self, steps: usize) {
        self.0.steps.set(Some(steps));
    }

    /// How many operations never end.
    pub(crate) fn waiting(&self) -> usize {
        self.0.waiting.get()
    }
}

impl FaultyDisk {
    /// How many files and directories were synced since the last call.
    pub(crate) fn take_syncs(&self) -> usize {
        self.0.syncs.take()
    }

    /// The directories that were synced since the last call.
    pub(crate) fn take_synced_dirs(&self) -> Vec<PathBuf> {
        self.0.synced_dirs.take()
    }

    /// From now on this fails with an error of the operating system.
    pub(crate) fn fail(&self, what: Failing, errno: i32) {
        self.0.failing.set(Some((what, errno)));
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        self.0.failing.set(None);
    }

    /// From now on files may grow by so many bytes, and by those of files that are removed.
    pub(crate) fn leave_room(&self, bytes: u64) {
        self.0.room.set(Some(bytes));
    }

    /// During the next sync of a file, this happens.
    pub(crate) fn meanwhile(&self, what: impl FnOnce() + 'static) {
        *self.0.meanwhile.borrow_mut() = Some(Box::new(what));
    }

    /// Right before this file is opened for reading, this happens, once.
    pub(crate) fn before_opening(&self, path: &Path, what: impl FnOnce() + 'static) {
        *self.0.before.borrow_mut() = Some((path.to_owned(), Box::new(what)));
    }

    /// A step is done.
    async fn pass_step(&self) {
        match self.0.steps.get() {
            None => {}
            Some(0 | 1) => self.never_end().await,
            Some(left) => self.0.steps.set(Some(left - 1)),
        }
    }

    async fn never_end(&self) {
        self.0.waiting.set(self.0.waiting.get() + 1);
        std::future::pending().await
    }

    async fn wait_at(&self, path: &Path) {
        if self.0.stuck.get().is_some_and(|stuck| stuck(path)) {
            self.never_end().await;
        }
    }

    /// How much of this growth there is room for, which is then used.
    fn take_room(&self, growth: u64) -> u64 {
        let Some(room) = self.0.room.get() else { return growth };
        let taken = growth.min(room);
        self.0.room.set(Some(room - taken));
        taken
    }

    /// The file of this name is going to lose its bytes.
    fn free(&self, path: &Path) {
        let len = std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.0.room.set(self.0.room.get().map(|room| room + len));
    }

    fn check(&self, failing: &[Failing]) -> io::Result<()> {
        match self.0.failing.get() {
            Some((what, errno)) if failing.contains(&what) => {
                if what == Failing::NextWrite {
                    self.heal();
                }
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    type File = <PlainDisk as Disk>::File;
    type Watch = <PlainDisk as Disk>::Watch;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        PlainDisk.list(dir).await
    }

    async fn open_read(&self, path: &Path) -> io::Result<Self::File> {
        let is_due = |(due, _): &mut (PathBuf, Event)| due == path;
        let what = self.0.before.borrow_mut().take_if(is_due);
        if let Some((_, what)) = what {
            what();
        }
        self.wait_at(path).await;
        PlainDisk.open_read(path).await
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        PlainDisk.open_write(path).await
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        self.wait_at(path).await;
        self.free(path);
        let created = PlainDisk.create(path).await;
        self.pass_step().await;
        created
    }

    async fn read_at(
        &self,
        file: &Self::File,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        PlainDisk.read_at(file, buffer, offset).await
    }

    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        if let Err(error) = self.check(&[Failing::Writes, Failing::NextWrite]) {
            return (Err(error), bytes);
        }
        let len = match PlainDisk.len(file).await {
            Ok(len) => len,
            Err(error) => return (Err(error), bytes),
        };
        let growth = (offset + bytes.len() as u64).saturating_sub(len);
        let short = growth - self.take_room(growth);
        let part = bytes[..bytes.len() - short as usize].to_vec();
        if part.is_empty() && !bytes.is_empty() {
            return (Err(io::ErrorKind::StorageFull.into()), bytes);
        }
        (PlainDisk.write_at(file, part, offset).await.0, bytes)
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        self.0.syncs.set(self.0.syncs.get() + 1);
        if let Some(meanwhile) = self.0.meanwhile.take() {
            meanwhile();
        }
        self.check(&[Failing::Syncs])?;
        let synced = PlainDisk.sync_data(file).await;
        self.pass_step().await;
        synced
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.syncs.set(self.0.syncs.get() + 1);
        self.0.synced_dirs.borrow_mut().push(dir.to_owned());
        self.check(&[Failing::DirSyncs])?;
        let synced = PlainDisk.sync_dir(dir).await;
        self.pass_step().await;
        synced
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.wait_at(from).await;
        self.free(to);
        let renamed = PlainDisk.rename(from, to).await;
        self.pass_step().await;
        renamed
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        self.free(path);
        PlainDisk.unlink(path).await
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        PlainDisk.link(path, name).await
    }

    async fn has_other_names(&self, path: &Path) -> io::Result<bool> {
        PlainDisk.has_other_names(path).await
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        PlainDisk.mkdir(path).await
    }

    async fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        PlainDisk.modified(path).await
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        PlainDisk.space(dir).await
    }

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Option<T>> {
        if self.0.apart_is_stuck.get() {
            self.never_end().await;
        }
        let done = PlainDisk.apart(work).await;
        self.pass_step().await;
        done
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        PlainDisk.len(file).await
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        PlainDisk.drop_cache(file).await
    }

    fn watch(file: &Self::File) -> Self::Watch {
        PlainDisk::watch(file)
    }

    fn held(watch: &Self::Watch) -> Option<Self::File> {
        PlainDisk::held(watch)
    }
}
