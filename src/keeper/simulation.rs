//! Two lanes over a disk whose operations take any time: one segment after another is written,
//! named, read and given up. No reader's file ever changes, and what the keeper believes to be on
//! disk is there.
//!
//! The simulations of the store and of whole hubs crash; this one looks at what the lanes could do
//! to each other. Its mistakes are a disk's that undoes what the keeper has just noted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

#[path = "../../tests/store_simulation/fake_disk.rs"]
#[expect(dead_code, reason = "faults and crashes are the other simulations'")]
mod fake_disk;
#[path = "../../tests/store_simulation/random.rs"]
#[expect(
    clippy::duplicate_mod,
    reason = "each simulation has its own, as the integration tests do"
)]
mod random;
#[path = "../../tests/store_simulation/seeds.rs"]
#[expect(
    clippy::duplicate_mod,
    reason = "each simulation has its own, as the integration tests do"
)]
mod seeds;

use self::fake_disk::{FakeDisk, FakeFile};
use self::random::Random;
use self::seeds::Tally;
use super::client::{KeeperClient, queue};
use super::job::{Job, JobDone};
use super::lanes::serve;
use super::order::{Order, Reply};
use super::work::Keeper;
use crate::store::control_file::Cluster;
use crate::store::disk::Disk;
use crate::store::layout::{FileKind, Layout, Listing};
use crate::store::retention::{Holds, Space};
use crate::wal::{Lsn, SegmentNo, SegmentSize, SystemId, TimelineId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

const MIB: u64 = 1 << 20;
const TLI: TimelineId = TimelineId::FIRST;
const FIRST: u64 = 5;
/// So many segments are written.
const SEGMENTS: u64 = 24;
/// Seeds of an ordinary run.
const SEEDS: u64 = 40;

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    Honest,
    /// A segment that is being opened does not count as held.
    ForgetsOpening,
    /// A segment that is being removed is still in the list.
    LeavesItInTheList,
}

type File = Arc<FakeFile>;

/// The disk, with a mistake or none.
struct Planted {
    disk: FakeDisk,
    plant: Plant,
    /// Filled when there is a keeper.
    keeper: RefCell<Weak<Keeper<Planted>>>,
    random: RefCell<Random>,
    /// What went wrong.
    broken: Rc<RefCell<Option<String>>>,
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

/// Which segment has this name, if it is the final one.
fn complete_segment(path: &Path) -> Option<u64> {
    match FileKind::of(path.file_name()?.to_str()?, size()) {
        FileKind::Segment(name) => Some(name.no.raw()),
        _ => None,
    }
}

impl Planted {
    fn keeper(&self) -> Option<Rc<Keeper<Planted>>> {
        self.keeper.borrow().upgrade()
    }

    /// A segment's name is about to go.
    fn look_at_removal(&self, path: &Path) {
        let Some(no) = complete_segment(path) else { return };
        if self.plant == Plant::LeavesItInTheList {
            let keeper = self.keeper().unwrap();
            if !keeper.complete.contains(TLI, SegmentNo::new(no)) {
                keeper.complete.put_back(TLI, SegmentNo::new(no));
            }
        }
    }

    fn look_at_removed(&self, path: &Path, result: &io::Result<()>) {
        if let (Some(no), Err(error)) = (complete_segment(path), result) {
            let broken = format!("segment {no} is removed twice: {error}");
            self.broken.borrow_mut().get_or_insert(broken);
        }
    }

    async fn some_turns(&self) {
        let turns = self.random.borrow_mut().below(6);
        for _ in 0..turns {
            self.disk.give_way().await;
        }
    }
}

impl Disk for Planted {
    type File = File;
    type Watch = <FakeDisk as Disk>::Watch;

    async fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir).await
    }

    async fn open_read(&self, path: &Path) -> io::Result<File> {
        if self.plant == Plant::ForgetsOpening {
            self.keeper().unwrap().open.forget_opening();
        }
        let file = self.disk.open_read(path).await;
        // Whoever asked hears of it later.
        self.some_turns().await;
        file
    }

    async fn open_write(&self, path: &Path) -> io::Result<File> {
        self.disk.open_write(path).await
    }

    async fn create(&self, path: &Path) -> io::Result<File> {
        self.disk.create(path).await
    }

    async fn read_at(
        &self,
        file: &File,
        buffer: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.disk.read_at(file, buffer, offset).await
    }

    async fn write_at(
        &self,
        file: &File,
        bytes: Vec<u8>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.disk.write_at(file, bytes, offset).await
    }

    async fn sync_data(&self, file: &File) -> io::Result<()> {
        self.disk.sync_data(file).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.look_at_removal(from);
        let renamed = self.disk.rename(from, to).await;
        self.look_at_removed(from, &renamed);
        renamed
    }

    async fn unlink(&self, path: &Path) -> io::Result<()> {
        self.look_at_removal(path);
        let removed = self.disk.unlink(path).await;
        self.look_at_removed(path, &removed);
        removed
    }

    async fn space(&self, dir: &Path) -> io::Result<Space> {
        self.disk.space(dir).await
    }

    async fn len(&self, file: &File) -> io::Result<u64> {
        self.disk.len(file).await
    }

    async fn drop_cache(&self, file: &File) -> io::Result<()> {
        self.disk.drop_cache(file).await
    }

    async fn give_way(&self) {
        self.disk.give_way().await;
    }

    fn watch(file: &File) -> Self::Watch {
        FakeDisk::watch(file)
    }

    fn held(watch: &Self::Watch) -> Option<File> {
        FakeDisk::held(watch)
    }
}

/// An order that is not answered.
struct Asked {
    /// The oldest segment that had no final name when the order was given.
    writing: u64,
    told: oneshot::Receiver<JobDone<File>>,
}

/// One directory and who uses it.
struct World {
    random: Random,
    disk: FakeDisk,
    keeper: Rc<Keeper<Planted>>,
    client: KeeperClient<File>,
    serving: Pin<Box<dyn Future<Output = ()>>>,
    asked: Vec<Asked>,
    broken: Rc<RefCell<Option<String>>>,
    /// The oldest segment without its final name.
    writing: u64,
    /// The next segment to be prepared, or the one that is being prepared.
    preparing: u64,
    /// Files that readers have, by a number of their own.
    readers: BTreeMap<u64, (u64, File)>,
    next_reader: u64,
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Random::new(seed);
        let disk = FakeDisk::new(random.fork());
        disk.set_unsteadiness(random.below(5));
        disk.set_slowness(random.below(8));
        let layout = Layout::new(Path::new("/hub"));
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: size(),
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(FIRST * MIB),
            sealed: Vec::new(),
        };
        let holds = Arc::new(Holds::new(cluster.start));
        let broken = Rc::default();
        let planted = Planted {
            disk: disk.clone(),
            plant,
            keeper: RefCell::new(Weak::new()),
            random: RefCell::new(random.fork()),
            broken: Rc::clone(&broken),
        };
        let listing = Listing::default();
        let keeper = Keeper::new(planted, layout, holds, &listing, None, Some(cluster));
        let keeper = Rc::new(keeper);
        keeper.disk.keeper.replace(Rc::downgrade(&keeper));
        let (client, orders) = queue(1024);
        let serving = Rc::clone(&keeper);
        let serving = Box::pin(async move { serve(&serving, orders, None).await });
        Self {
            random,
            disk,
            keeper,
            client,
            serving,
            asked: Vec::new(),
            broken,
            writing: FIRST,
            preparing: FIRST,
            readers: BTreeMap::new(),
            next_reader: 0,
            seen: BTreeSet::new(),
        }
    }

    fn give(&mut self, job: Job) {
        let (tell, told) = oneshot::channel();
        self.client.post(Order { job, reply: Reply::Task(tell) }).unwrap();
        self.asked.push(Asked { writing: self.writing, told });
    }

    fn prepare(&mut self) {
        let (no, keep) = (SegmentNo::new(self.preparing), Lsn::new(self.preparing * MIB));
        self.give(Job::Prepare { tli: TLI, no, keep });
    }

    fn live(&mut self) -> Result<(), String> {
        self.prepare();
        let mut steps = 0;
        while self.writing < FIRST + SEGMENTS || !self.asked.is_empty() {
            steps += 1;
            assert!(steps < 100_000, "this comes to no end");
            let turn = self.serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(turn, Poll::Pending, "the keeper ended");
            self.take_answers();
            self.look_at_readers()?;
            self.broken.borrow_mut().take().map_or(Ok(()), Err)?;
            if self.random.chance(150) && self.asked.len() < 8 {
                let newest = self.writing - FIRST;
                let no = self.writing - self.random.below(newest.min(6) + 1);
                self.give(Job::Open { tli: TLI, no: SegmentNo::new(no) });
            }
            if self.random.chance(100) && self.writing > FIRST + 2 {
                let horizon = SegmentNo::new(self.writing - 1 - self.random.below(2));
                self.keeper.give_up_before(self.keeper.horizon.get().max(horizon), size());
            }
        }
        self.rest()
    }

    /// In the end nothing is to be done, and the list is true.
    fn rest(&mut self) -> Result<(), String> {
        for _ in 0..2000 {
            assert!(
                self.serving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
            );
        }
        let names: Vec<PathBuf> = self.disk.names();
        let there: BTreeSet<u64> = names.iter().filter_map(|path| complete_segment(path)).collect();
        let believed = |no: &u64| self.keeper.complete.contains(TLI, SegmentNo::new(*no));
        let believed: BTreeSet<u64> = (FIRST..FIRST + SEGMENTS).filter(believed).collect();
        match there == believed {
            true => Ok(()),
            false => Err(format!("the list is not true: {believed:?}, on disk {there:?}")),
        }
    }

    fn take_answers(&mut self) {
        let mut done = Vec::new();
        self.asked.retain_mut(|asked| match asked.told.try_recv() {
            Ok(answer) => {
                done.push((asked.writing, answer));
                false
            }
            Err(_) => true,
        });
        for (writing, done) in done {
            match done {
                JobDone::Prepared { no, file, .. } => {
                    let page = self.disk.content(&file);
                    assert!(
                        page[..8192].iter().all(|byte| *byte == 0),
                        "old WAL could be believed"
                    );
                    let content = vec![no.raw() as u8; MIB as usize];
                    self.disk.write_now(&file, &content, 0).unwrap();
                    self.disk.sync_now(&file).unwrap();
                    self.preparing = no.next().raw();
                    if self.preparing < FIRST + SEGMENTS {
                        self.prepare();
                    }
                    self.give(Job::Finalize { tli: TLI, no });
                }
                JobDone::Finalized { no, .. } => {
                    assert_eq!(no.raw(), self.writing, "names are given in the order of the WAL");
                    self.writing += 1;
                    if self.preparing == self.writing && self.writing < FIRST + SEGMENTS {
                        self.seen.insert("named while the next one was prepared");
                    }
                }
                JobDone::Opened { no, result: Ok(file), .. } if no.raw() < self.writing => {
                    self.readers.insert(self.next_reader, (no.raw(), file));
                    self.next_reader += 1;
                    self.seen.insert("read");
                }
                JobDone::Opened { no, result: Err(_), .. } => {
                    let gone = no < self.keeper.horizon.get();
                    // The newest may not have been prepared yet.
                    assert!(gone || no.raw() >= writing, "segment {} is lost", no.raw());
                    self.seen.insert("removed from under a reader");
                }
                JobDone::Opened { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn look_at_readers(&mut self) -> Result<(), String> {
        for (no, file) in self.readers.values() {
            if self.disk.first_byte(file) != *no as u8 {
                return Err(format!("the file of segment {no} is not what it was"));
            }
        }
        if self.random.chance(60) {
            self.readers.pop_first();
        }
        Ok(())
    }
}

fn run(seed: u64, plant: Plant) -> Tally {
    let mut world = World::new(seed, plant);
    let broken = world.live().err().map(|broken| format!("seed {seed}: {broken}"));
    // The disk and the keeper refer to each other.
    world.keeper.disk.keeper.replace(Weak::new());
    Tally { broken: Vec::from_iter(broken), seen: std::mem::take(&mut world.seen) }
}

#[test]
fn promises_hold() {
    let tally = match seeds::alone() {
        Some(seed) => run(seed, Plant::Honest),
        None => seeds::run(seeds::count(SEEDS), |seed| run(seed, Plant::Honest)),
    };
    tally.assert_kept();
    if seeds::alone().is_none() {
        tally.assert_seen(&[
            "read",
            "removed from under a reader",
            "named while the next one was prepared",
        ]);
    }
}

fn finds(plant: Plant, signs: &[&str]) {
    seeds::finds(1000, signs, |seed| run(seed, plant).broken.pop());
}

#[test]
fn finds_an_open_under_way_that_is_not_held() {
    finds(Plant::ForgetsOpening, &["is not what it was"]);
}

#[test]
fn finds_a_removal_that_forgets_to_take_the_segment_out_first() {
    finds(Plant::LeavesItInTheList, &["is removed twice", "the list is not true"]);
}
