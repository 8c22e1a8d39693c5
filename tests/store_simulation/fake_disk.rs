//! A disk that does what real ones do when things go wrong, by seed.
//!
//! - What is written is cached; at a power loss each unsynced 512-byte sector is there
//!   or not, whatever the order of the writes, and some reach the medium before.
//! - Names that were created, renamed or removed since the last sync of their directory
//!   are there or not, each for itself.
//! - A failed sync leaves the pages marked clean: reads see the new bytes as long as
//!   they stay cached, the medium has some of them, and the next sync succeeds.
//! - A full disk fails writes and creations for a while; some writes are short.
//! - A killed process loses nothing: the cache survives.
//! - What lies in a directory whose own name is lost goes with it. (A disk without
//!   directories has all of them.)

use super::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use walhub::store::disk::{Disk, parent};
use walhub::store::retention::Space;

pub(crate) const SECTOR: usize = 512;

/// Stands for a directory among the inodes.
const DIRECTORY: usize = usize::MAX;

/// How often things go wrong, of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) failed_sync: u64,
    pub(crate) short_write: u64,
    pub(crate) early_writeback: u64,
    pub(crate) eviction: u64,
    pub(crate) failed_write: u64,
}

#[derive(Clone)]
pub(crate) struct FakeDisk(Rc<RefCell<State>>);

struct State {
    random: Random,
    faults: Faults,
    full: bool,
    /// Bytes of the whole disk; `None` when nobody asks.
    capacity: Option<u64>,
    /// More was written than the disk has room for.
    overflowed: bool,
    /// A sync takes so many turns more than other work.
    slowness: u64,
    /// Everything takes up to so many turns more, by chance.
    unsteadiness: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<NameChange>,
    /// Directories that are there for ever; none when all are.
    directories: Option<BTreeSet<PathBuf>>,
}

#[derive(Default)]
struct Inode {
    cache: Vec<u8>,
    medium: Vec<u8>,
    /// By sector: newer in the cache than what the system will ever write out again.
    dirty: Vec<bool>,
}

enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Unlink(PathBuf, usize),
}

impl NameChange {
    /// Is the change one of names in `dir`? A rename between two directories is one of
    /// both: it is durable with either.
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Create(path, _) | Self::Unlink(path, _) => parent(path) == dir,
            Self::Rename(from, to, _) => parent(from) == dir || parent(to) == dir,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            Self::Unlink(path, inode) => {
                if names.get(path) == Some(inode) {
                    names.remove(path);
                }
            }
        }
    }
}

impl Inode {
    fn sectors(&self) -> usize {
        self.cache.len().div_ceil(SECTOR)
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        self.dirty.resize(self.sectors(), false);
        if !bytes.is_empty() {
            self.dirty[offset / SECTOR..end.div_ceil(SECTOR)].fill(true);
        }
    }

    /// Writes a sector out as it is now.
    fn write_out(&mut self, sector: usize) {
        let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.cache.len());
        if self.medium.len() < range.end {
            self.medium.resize(range.end, 0);
        }
        self.medium[range.clone()].copy_from_slice(&self.cache[range]);
    }

    fn sync(&mut self) {
        for sector in 0..self.sectors() {
            if std::mem::take(&mut self.dirty[sector]) {
                self.write_out(sector);
            }
        }
        self.medium.resize(self.cache.len(), 0);
    }

    /// Some sectors reach the medium, in no order.
    fn write_out_some(&mut self, random: &mut Random, per_mille: u64) {
        for sector in 0..self.sectors() {
            if self.dirty[sector] && random.chance(per_mille) {
                self.write_out(sector);
            }
        }
    }

    /// Reads come from the medium again, where nothing newer waits.
    fn evict(&mut self) {
        self.medium.resize(self.medium.len().max(self.cache.len()), 0);
        for sector in 0..self.sectors() {
            if !self.dirty[sector] {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.cache.len());
                self.cache[range.clone()].copy_from_slice(&self.medium[range]);
            }
        }
    }
}

pub(crate) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl FakeDisk {
    pub(crate) fn new(random: Random) -> Self {
        Self(Rc::new(RefCell::new(State {
            random,
            faults: Faults::default(),
            full: false,
            capacity: None,
            overflowed: false,
            slowness: 0,
            unsteadiness: 0,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced: Vec::new(),
            directories: None,
        })))
    }

    /// A disk on which other directories than these have to be made.
    pub(crate) fn with_directories(random: Random, directories: &[&Path]) -> Self {
        let disk = Self::new(random);
        let directories = directories.iter().map(|path| (*path).to_owned()).collect();
        disk.0.borrow_mut().directories = Some(directories);
        disk
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.borrow_mut().full = full;
    }

    /// The disk is as large as what is on it and so many bytes.
    pub(crate) fn leave_free(&self, bytes: u64) {
        let state = &mut *self.0.borrow_mut();
        state.capacity = Some(state.used() + bytes);
    }

    /// Was more written than the disk had room for?
    pub(crate) fn has_overflowed(&self) -> bool {
        self.0.borrow().overflowed
    }

    /// The disk has no end any more.
    pub(crate) fn enlarge(&self) {
        self.0.borrow_mut().capacity = None;
    }

    pub(crate) fn set_slowness(&self, turns: u64) {
        self.0.borrow_mut().slowness = turns;
    }

    pub(crate) fn set_unsteadiness(&self, turns: u64) {
        self.0.borrow_mut().unsteadiness = turns;
    }

    /// A file is gone, and no sync brings it back: somebody else removed it.
    pub(crate) fn lose(&self, path: &Path) {
        let state = &mut *self.0.borrow_mut();
        let inode = state.names.remove(path);
        assert!(inode.is_some(), "{} is not there", path.display());
        state.durable_names.remove(path);
        let concerns = |change: &NameChange| match change {
            NameChange::Create(name, _) | NameChange::Unlink(name, _) => name == path,
            NameChange::Rename(from, to, _) => from == path || to == path,
        };
        state.unsynced.retain(|change| !concerns(change));
    }

    /// A byte of a file changes, on the medium and for readers.
    pub(crate) fn damage(&self, path: &Path, at: usize) {
        let state = &mut *self.0.borrow_mut();
        let inode = state.names.get(path).copied();
        let inode = &mut state.inodes[inode.expect("it is there")];
        inode.cache[at] ^= 1;
        inode.medium[at] ^= 1;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.borrow().full
    }

    /// The power goes and comes back.
    pub(crate) fn power_loss(&self) {
        let state = &mut *self.0.borrow_mut();
        let kept = [0, 300, 500, 900, 1000][state.random.below(5) as usize];
        for inode in &mut state.inodes {
            inode.write_out_some(&mut state.random, kept);
            inode.cache.clone_from(&inode.medium);
            inode.dirty.clear();
            inode.dirty.resize(inode.sectors(), false);
        }
        for change in state.unsynced.drain(..) {
            if state.random.chance(kept) {
                change.apply(&mut state.durable_names);
            }
        }
        // A directory in one that is lost is lost itself.
        for _ in 0..state.directories.as_ref().map_or(0, |_| 2) {
            let there: BTreeSet<_> = state.durable_names.keys().cloned().collect();
            let directories = state.directories.clone().unwrap_or_default();
            let is_there = |dir: &Path| directories.contains(dir) || there.contains(dir);
            state.durable_names.retain(|path, _| is_there(parent(path)));
        }
        state.names = state.durable_names.clone();
    }

    /// Gives the memory of files back that have no name: everybody who had them open has
    /// gone.
    pub(crate) fn forget_unnamed(&self) {
        let state = &mut *self.0.borrow_mut();
        let mut named: BTreeSet<_> =
            state.names.values().chain(state.durable_names.values()).collect();
        named.extend(state.unsynced.iter().map(|change| match change {
            NameChange::Create(_, inode)
            | NameChange::Rename(_, _, inode)
            | NameChange::Unlink(_, inode) => inode,
        }));
        for (index, inode) in state.inodes.iter_mut().enumerate() {
            if !named.contains(&index) {
                *inode = Inode::default();
            }
        }
    }

    /// What reads of `path` see, and what the medium holds; the latter only if the name
    /// is durable.
    pub(crate) fn views(&self, path: &Path) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let state = self.0.borrow();
        let cached = state.names.get(path).map(|inode| state.inodes[*inode].cache.clone());
        let durable =
            state.durable_names.get(path).map(|inode| state.inodes[*inode].medium.clone());
        (cached, durable)
    }

    /// What reads of an open file see.
    pub(crate) fn content(&self, file: &FakeFile) -> Vec<u8> {
        self.0.borrow().inodes[file.inode].cache.clone()
    }

    /// The first byte of an open file.
    pub(crate) fn first_byte(&self, file: &FakeFile) -> u8 {
        self.0.borrow().inodes[file.inode].cache[0]
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Vec<PathBuf> {
        let state = self.0.borrow();
        let files = state.names.iter().filter(|(_, inode)| **inode != DIRECTORY);
        files.map(|(path, _)| path.clone()).collect()
    }

    pub(crate) fn write_now(
        &self,
        file: &FakeFile,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<usize> {
        self.0.borrow_mut().write(file.inode, bytes, offset)
    }

    pub(crate) fn sync_now(&self, file: &FakeFile) -> io::Result<()> {
        self.0.borrow_mut().sync(file.inode)
    }

    fn create_now(&self, path: &Path) -> io::Result<Arc<FakeFile>> {
        let state = &mut *self.0.borrow_mut();
        state.look_for(parent(path))?;
        if let Some(inode) = state.names.get(path).copied() {
            // Truncation of a file that is there: only our own temporary files.
            state.inodes[inode] = Inode::default();
            return Ok(Arc::new(FakeFile { inode }));
        }
        if state.full && state.random.chance(500) {
            return Err(no_space());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        let change = NameChange::Create(path.to_owned(), inode);
        change.apply(&mut state.names);
        state.unsynced.push(change);
        Ok(Arc::new(FakeFile { inode }))
    }

    fn open_now(&self, path: &Path) -> io::Result<Arc<FakeFile>> {
        let inode = self.0.borrow().names.get(path).copied();
        inode.map(|inode| Arc::new(FakeFile { inode })).ok_or(io::ErrorKind::NotFound.into())
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let change = NameChange::Create(path.to_owned(), DIRECTORY);
        change.apply(&mut state.names);
        state.unsynced.push(change);
        Ok(())
    }

    fn change_name(&self, path: &Path, to: Option<&Path>) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        state.look_for(parent(to.unwrap_or(path)))?;
        let inode = state.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        if to.is_some() && state.full && state.random.chance(200) {
            return Err(no_space());
        }
        let change = match to {
            Some(to) => NameChange::Rename(path.to_owned(), to.to_owned(), inode),
            None => NameChange::Unlink(path.to_owned(), inode),
        };
        change.apply(&mut state.names);
        state.unsynced.push(change);
        Ok(())
    }
}

impl State {
    fn used(&self) -> u64 {
        let files: BTreeSet<_> = self.names.values().filter(|inode| **inode != DIRECTORY).collect();
        files.iter().map(|inode| self.inodes[**inode].cache.len() as u64).sum()
    }

    /// Is there such a directory?
    fn look_for(&self, dir: &Path) -> io::Result<()> {
        let for_ever = self.directories.as_ref().is_none_or(|known| known.contains(dir));
        match for_ever || self.names.get(dir) == Some(&DIRECTORY) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn write(&mut self, inode: usize, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if self.random.chance(self.faults.failed_write) {
            return Err(io_error());
        }
        if self.full && self.random.chance(600) {
            return Err(no_space());
        }
        let short = self.full && self.random.chance(500);
        let count = if short || self.random.chance(self.faults.short_write) {
            self.random.below(bytes.len() as u64 + 1) as usize
        } else {
            bytes.len()
        };
        let count = if count == 0 && !self.full { bytes.len() } else { count };
        let grows = offset + count as u64 > self.inodes[inode].cache.len() as u64;
        let file = &mut self.inodes[inode];
        file.write(&bytes[..count], offset as usize);
        if grows && let Some(capacity) = self.capacity {
            self.overflowed |= self.used() > capacity;
        }
        let inode = &mut self.inodes[inode];
        if self.random.chance(self.faults.early_writeback) {
            inode.write_out_some(&mut self.random, 300);
        }
        if self.random.chance(self.faults.eviction) {
            inode.evict();
        }
        Ok(count)
    }

    fn sync(&mut self, inode: usize) -> io::Result<()> {
        let inode = &mut self.inodes[inode];
        if self.random.chance(self.faults.failed_sync) {
            inode.write_out_some(&mut self.random, 500);
            inode.medium.resize(inode.medium.len().max(inode.cache.len()), 0);
            inode.dirty.fill(false);
            return Err(if self.random.chance(300) { no_space() } else { io_error() });
        }
        inode.sync();
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        if self.random.chance(self.faults.failed_sync / 2) {
            return Err(io_error());
        }
        let (synced, rest) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.is_in(dir));
        for change in synced {
            change.apply(&mut self.durable_names);
        }
        self.unsynced = rest;
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct FakeFile {
    inode: usize,
}

/// Every operation can be the last one: it happens when it is polled again.
async fn later() {
    let mut asked = false;
    poll_fn(|_| match std::mem::replace(&mut asked, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

impl FakeDisk {
    async fn work_takes(&self) {
        let most = self.0.borrow().unsteadiness;
        let more = match most {
            0 => 0,
            most => self.0.borrow_mut().random.below(most + 1),
        };
        for _ in 0..1 + more {
            later().await;
        }
    }

    async fn sync_takes(&self) {
        let more = self.0.borrow().slowness;
        for _ in 0..more {
            later().await;
        }
        self.work_takes().await;
    }
}

impl Disk for FakeDisk {
    type File = Arc<FakeFile>;
    type Watch = Weak<FakeFile>;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.borrow().look_for(dir)?;
        let inside = |path: &PathBuf| {
            (parent(path) == dir)
                .then(|| path.file_name())?
                .map(|n| n.to_string_lossy().into_owned())
        };
        Ok(self.0.borrow().names.keys().filter_map(inside).collect())
    }

    async fn open_read(&self, path: &Path) -> io::Result<Self::File> {
        self.open_now(path)
    }

    async fn open_write(&self, path: &Path) -> io::Result<Self::File> {
        self.open_now(path)
    }

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        self.work_takes().await;
        self.create_now(path)
    }

    async fn read_at(
        &self,
        file: &Self::File,
        mut buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let state = self.0.borrow();
        let bytes = &state.inodes[file.inode].cache;
        let from = bytes.len().min(offset as usize);
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        (Ok(count), buffer)
    }

    async fn write_at(
        &self,
        file: &Self::File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.work_takes().await;
        (self.write_now(file, &bytes, offset), bytes)
    }

    async fn sync_data(&self, file: &Self::File) -> io::Result<()> {
        self.sync_takes().await;
        self.sync_now(file)
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync_takes().await;
        self.0.borrow_mut().sync_dir(dir)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.work_takes().await;
        self.change_name(from, Some(to))
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        self.work_takes().await;
        self.change_name(path, None)
    }

    async fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        self.work_takes().await;
        let state = &mut *self.0.borrow_mut();
        state.look_for(parent(name))?;
        let inode = state.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let change = NameChange::Create(name.to_owned(), inode);
        change.apply(&mut state.names);
        state.unsynced.push(change);
        Ok(())
    }

    async fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.work_takes().await;
        self.make_directory(path)
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        let state = self.0.borrow();
        state.look_for(dir)?;
        let total = state.capacity.unwrap_or(u64::MAX);
        Ok(Space { total, free: total.saturating_sub(state.used()) })
    }

    async fn len(&self, file: &Self::File) -> io::Result<u64> {
        Ok(self.0.borrow().inodes[file.inode].cache.len() as u64)
    }

    async fn drop_cache(&self, file: &Self::File) -> io::Result<()> {
        self.0.borrow_mut().inodes[file.inode].evict();
        Ok(())
    }

    async fn give_way(&self) {
        later().await;
    }

    fn watch(file: &Self::File) -> Self::Watch {
        Arc::downgrade(file)
    }

    fn held(watch: &Self::Watch) -> Option<Self::File> {
        watch.upgrade()
    }
}
