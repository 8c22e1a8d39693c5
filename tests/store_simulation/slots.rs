//! The slots on a bad disk: the shipped keeper creates them, saves where they are, invalidates and
//! drops them, and may be cut off at any step. Whatever a start finds has to agree with what was
//! answered, and the WAL that a slot needs has to be there.

use crate::fake_disk::{FakeDisk, Faults};
use crate::model::{MIB, SYSTEM};
use crate::random::Random;
use crate::world::{Broken, Client, poll_once, promise, seen};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};
use walhub::keeper::{Job, JobDone, JobKind, Keeper, serve};
use walhub::store::StoreFault;
use walhub::store::control_file::Cluster;
use walhub::store::disk::Disk;
use walhub::store::layout::{Layout, Listing};
use walhub::store::now::Now;
use walhub::store::retention::{Holds, Policy};
use walhub::store::sealed_text::seal;
use walhub::store::slots::{Create, Generation, InvalidSlots, Origin, SlotGrant, SlotName};
use walhub::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use walhub::wire::command::SlotLifetime;

/// What an ordinary run has to meet.
pub(crate) const EXPECTED: &[&str] = &[
    "slots taken over from their own files",
    "the taking over of slots cut off",
    "a generation of the slots damaged",
    "a generation of the slots torn",
    "a slot invalidated",
    "a slot expired",
    "a slot dropped",
    "a slot refused by a bad disk",
    "a slot back after its creation was cut off",
    "WAL removed behind slots",
];

const NAMES: u64 = 12;
const FIRST: u64 = 40;

/// What was said about a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Exists,
    Absent,
    /// It was asked for and not answered, or refused.
    Unsure,
}

#[derive(Debug)]
struct Known {
    told: Told,
    origin: Origin,
    /// The furthest position at which a slot of this name may be.
    furthest: Lsn,
    /// It was seen to have lost its WAL.
    lost: bool,
    /// Its creation was not answered, and a later start found it: nobody kept WAL for it.
    unkept: bool,
}

impl Known {
    fn new(told: Told, origin: Origin, furthest: Lsn) -> Self {
        Self { told, origin, furthest, lost: false, unkept: false }
    }
}

struct World<W> {
    wrap: W,
    random: Random,
    disk: FakeDisk,
    layout: Layout,
    known: BTreeMap<String, Known>,
    /// WAL before this was given up.
    released: Lsn,
    newest: SegmentNo,
    clock: Rc<Cell<u64>>,
    healthy: bool,
}

struct Process {
    holds: Arc<Holds>,
    keeper: Client<<FakeDisk as Disk>::File>,
    worker: Pin<Box<dyn Future<Output = ()>>>,
    /// The streams that have a slot.
    users: BTreeMap<String, SlotGrant>,
    /// Names in the order of the jobs that were given for them.
    asked: Vec<(JobKind, String)>,
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

/// Runs one seed to its end; `wrap` makes the disk that the keeper gets.
pub(crate) fn run<D, W>(seed: u64, wrap: W) -> Result<(), Broken>
where
    D: Disk<File = <FakeDisk as Disk>::File> + 'static,
    W: Fn(FakeDisk) -> D,
{
    let mut random = Random::new(seed ^ 0x5107);
    let disk = FakeDisk::new(random.fork());
    let mut world = World {
        wrap,
        random,
        disk,
        layout: Layout::new(Path::new("/hub")),
        known: BTreeMap::new(),
        released: Lsn::new(FIRST * MIB),
        newest: SegmentNo::new(FIRST),
        clock: Rc::new(Cell::new(1000)),
        healthy: false,
    };
    world.live().map_err(|broken| format!("seed {seed}: {broken}"))
}

impl<D, W> World<W>
where
    D: Disk<File = <FakeDisk as Disk>::File> + 'static,
    W: Fn(FakeDisk) -> D,
{
    fn live(&mut self) -> Result<(), Broken> {
        self.prepare();
        let faults = match self.random.below(4) {
            0 => {
                Faults { failed_sync: 30, eviction: 50, early_writeback: 100, ..Faults::default() }
            }
            1 => Faults { early_writeback: 300, short_write: 50, ..Faults::default() },
            2 => Faults { failed_write: 10, short_write: 100, ..Faults::default() },
            _ => Faults::default(),
        };
        let most = 2 + self.random.below(6);
        for life in 0..=most {
            self.healthy = life == most;
            self.disk.set_full(false);
            self.disk.set_faults(if self.healthy { Faults::default() } else { faults });
            if let Some(mut process) = self.start()? {
                self.serve(&mut process)?;
                self.note_cut_off();
            }
            if self.random.chance(600) {
                self.disk.power_loss();
            }
            self.maybe_damage();
        }
        Ok(())
    }

    /// The oldest segment, a spare, and half of the time the slots of an earlier version.
    fn prepare(&mut self) {
        self.write_file(&self.layout.segment(self.segment(self.newest)), b"WAL");
        self.write_file(&self.layout.spare(1), b"spare");
        if self.random.chance(500) {
            for n in 0..1 + self.random.below(4) {
                let name = format!("s{n}");
                let at = Lsn::new((FIRST + 1) * MIB + n);
                let text = BTreeMap::from([
                    ("name", serde_json::json!(name)),
                    ("restart_lsn", serde_json::json!(at.to_string())),
                    ("invalidated", serde_json::Value::Null),
                    ("origin", serde_json::json!("asked")),
                ]);
                let bytes = seal("slot", 1, &text);
                self.write_file(&self.layout.former_slots().join(&name), &bytes);
                let (told, origin) = (Told::Exists, Origin::Asked);
                self.known.insert(name, Known::new(told, origin, at));
            }
        }
        for dir in [self.layout.wal(), self.layout.root(), &self.layout.former_slots()] {
            finish(self.disk.sync_dir(dir)).unwrap();
        }
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) {
        let file = finish(self.disk.create(path)).unwrap();
        self.disk.write_now(&file, bytes, 0).unwrap();
        self.disk.sync_now(&file).unwrap();
    }

    fn segment(&self, no: SegmentNo) -> SegmentName {
        SegmentName { tli: TimelineId::FIRST, no, size: size() }
    }

    /// None: it was cut off, or the disk was too bad.
    fn start(&mut self) -> Result<Option<Process>, Broken> {
        // As recovery does.
        if finish(self.disk.sync_dir(self.layout.wal())).is_err() {
            return Ok(None);
        }
        let names = finish(self.disk.list(self.layout.wal())).unwrap();
        let listing = Listing::of(names, size());
        if let Some(range) = listing.newest_of(TimelineId::FIRST) {
            self.newest = range.newest;
        }
        let holds = Arc::new(Holds::new(self.released));
        let keeper = Keeper::new(
            (self.wrap)(self.disk.clone()),
            self.layout.clone(),
            Arc::clone(&holds),
            &listing,
            None,
            Some(self.cluster()),
        );
        let clock = Rc::clone(&self.clock);
        let began = Instant::now();
        let now = move || {
            let passed = Duration::from_secs(clock.get());
            Now { instant: began + passed, time_of_day: SystemTime::UNIX_EPOCH + passed }
        };
        let keeper = keeper.with_policy(self.policy()).with_clock(now);
        let former = self.former_files();
        // Taking over is done once, so it is cut off more often.
        let cut_off = if former > 0 { 800 } else { 300 };
        if !self.load(&keeper, cut_off)? {
            if former > 0 {
                seen("the taking over of slots cut off");
            }
            return Ok(None);
        }
        if former > 0 {
            seen("slots taken over from their own files");
            promise!(self.former_files() == 0, "slots have files of their own after a start");
        }
        self.check_loaded(&holds)?;
        let (client, orders) = Client::new();
        let worker = Box::pin(async move { serve(&keeper, orders, None).await });
        let (users, asked) = (BTreeMap::new(), Vec::new());
        Ok(Some(Process { holds, keeper: client, worker, users, asked }))
    }

    fn former_files(&self) -> usize {
        let folder = self.layout.former_slots();
        self.disk.names().iter().filter(|path| path.parent() == Some(&folder)).count()
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            system_id: SYSTEM,
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start: Lsn::new(FIRST * MIB),
            sealed: Vec::new(),
        }
    }

    fn policy(&mut self) -> Policy {
        let limit = 18 + self.random.below(8);
        Policy {
            max_slot_wal_keep_size: self.random.chance(500).then_some(limit * MIB),
            idle_slot_timeout: Duration::from_secs([0, 40][self.random.below(2) as usize]),
            auto_created_ttl: Duration::from_secs(20),
            ..Policy::default()
        }
    }

    /// Has it been done, or was it cut off?
    fn load<K: Disk>(&mut self, keeper: &Keeper<K>, cut_off: u64) -> Result<bool, Broken> {
        let mut load: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(keeper.load_slots());
        let is_cut_off = !self.healthy && self.random.chance(cut_off);
        let cut = if is_cut_off { self.random.below(30) } else { 1 << 40 };
        for _ in 0..cut {
            match poll_once(&mut load) {
                Poll::Ready(Ok(())) => return Ok(true),
                Poll::Ready(Err(fault @ (StoreFault::Sync { .. } | StoreFault::Io { .. }))) => {
                    promise!(!self.healthy, "start failed: {fault}");
                    return Ok(false);
                }
                Poll::Ready(Err(fault)) => return Err(format!("start failed: {fault}")),
                Poll::Pending => {}
            }
        }
        Ok(false)
    }

    /// What a start found is what was said before.
    fn check_loaded(&mut self, holds: &Holds) -> Result<(), Broken> {
        let slots = holds.slots.lock();
        for slot in slots.iter() {
            let name = slot.name.as_str();
            let Some(known) = self.known.get(name) else {
                return Err(format!("slot {name} was never asked for"));
            };
            promise!(known.told != Told::Absent, "slot {name} is back");
            if known.told == Told::Unsure {
                seen("a slot back after its creation was cut off");
                continue;
            }
            promise!(
                slot.restart_lsn.is_none_or(|at| at <= known.furthest),
                "slot {name} is at {:?}, its user was at {}",
                slot.restart_lsn,
                known.furthest
            );
            promise!(!known.lost || slot.invalidated.is_some(), "slot {name} was lost, and is not");
            let needs = slot.restart_lsn.filter(|_| !known.unkept);
            let needs = needs.map_or(SegmentNo::new(u64::MAX), |at| at.segment(size()));
            promise!(
                needs >= self.released.segment(size()),
                "slot {name} needs WAL from {:?} on, removed up to {}",
                slot.restart_lsn,
                self.released
            );
        }
        for (name, known) in &mut self.known {
            let slot = slots.get(name);
            promise!(slot.is_some() || known.told != Told::Exists, "slot {name} is gone");
            known.unkept |= known.told == Told::Unsure;
            // Until both generations agree, a start may find the other one.
            if !slots.is_unsettled() {
                known.told = if slot.is_some() { Told::Exists } else { Told::Absent };
            }
            if let Some(slot) = slot {
                known.furthest = known.furthest.max(slot.restart_lsn.unwrap_or_default());
                known.lost = slot.invalidated.is_some();
                known.origin = slot.origin;
            }
        }
        Ok(())
    }

    /// Lives until it is cut off.
    fn serve(&mut self, process: &mut Process) -> Result<(), Broken> {
        let steps = if self.healthy { 4000 } else { 100 + self.random.below(1500) };
        for _ in 0..steps {
            match self.random.below(40) {
                0 => self.create(process),
                1 => self.drop_one(process),
                2 => self.use_one(process),
                3 => self.release(process),
                4..8 => self.report(process),
                8 => self.advance(process),
                9..12 => self.retain(process),
                12 if !self.healthy && self.random.chance(50) => {
                    self.disk.set_full(!self.disk.is_full());
                }
                _ => assert!(poll_once(&mut process.worker).is_pending(), "the keeper ended"),
            }
            self.answers(process);
            self.check(process)?;
        }
        Ok(())
    }

    fn pick(&mut self) -> String {
        format!("s{}", self.random.below(NAMES))
    }

    fn ask(&mut self, process: &mut Process, job: Job, name: &str) {
        process.asked.push((job.kind(), name.to_owned()));
        process.keeper.give(job);
    }

    fn create(&mut self, process: &mut Process) {
        let key = self.pick();
        let name = SlotName::parse(&key).unwrap();
        let origin = if self.random.chance(400) { Origin::AutoCreated } else { Origin::Asked };
        let mut slots = process.holds.slots.lock();
        let furthest = process.holds.oldest_kept();
        let (lifetime, reserve) = (SlotLifetime::Persistent, Some(furthest));
        let session = slots.enter(1);
        let create = Create { name: name.clone(), lifetime, origin, reserve, session };
        if slots.create(create, 1000).is_err() {
            return;
        }
        drop(slots);
        self.known.insert(key.clone(), Known::new(Told::Unsure, origin, furthest));
        self.ask(process, Job::SaveSlot(name), &key);
    }

    fn drop_one(&mut self, process: &mut Process) {
        let key = self.pick();
        if self.random.chance(500) || process.users.contains_key(&key) {
            return;
        }
        let mut slots = process.holds.slots.lock();
        let session = slots.enter(2);
        if slots.begin_drop(&key, session).is_ok() {
            drop(slots);
            self.known.get_mut(&key).unwrap().told = Told::Unsure;
            self.ask(process, Job::DropSlot(SlotName::parse(&key).unwrap()), &key);
        }
    }

    fn use_one(&mut self, process: &mut Process) {
        let key = self.pick();
        let pid = 100 + self.random.below(1000) as u32;
        let mut slots = process.holds.slots.lock();
        let session = slots.enter(pid);
        if let Ok(used) = slots.acquire(&key, session, InvalidSlots::Accept) {
            process.users.insert(key, used);
        }
    }

    fn release(&mut self, process: &mut Process) {
        let key = self.pick();
        if let Some(used) = process.users.remove(&key) {
            process.holds.slots.lock().release(&used.name, used.token);
        }
    }

    /// A standby says how far it is, which is further than before.
    fn report(&mut self, process: &mut Process) {
        let key = self.pick();
        let Some(SlotGrant { reported, .. }) = process.users.get(&key) else { return };
        let known = self.known.get_mut(&key).unwrap();
        let from = known.furthest.max(process.holds.oldest_kept());
        let to = from.saturating_add(self.random.below(3 * MIB)).min(self.newest.end(size()));
        known.furthest = known.furthest.max(to);
        reported.store(to.raw(), Ordering::Release);
    }

    /// One more segment is complete.
    fn advance(&mut self, process: &mut Process) {
        if process.keeper.asked().len() > 5 {
            return;
        }
        let no = self.newest.next();
        let partial = self.layout.partial(self.segment(no));
        let Ok(_) = finish(self.disk.create(&partial)) else { return };
        self.newest = no;
        let job = Job::Finalize { tli: TimelineId::FIRST, no };
        process.keeper.give(job);
    }

    fn retain(&mut self, process: &mut Process) {
        if process.keeper.asked().len() > 5 {
            return;
        }
        self.clock.set(self.clock.get() + self.random.below(4));
        // As if more had come, so that something is removed at all.
        let newest = self.newest.start(size()).saturating_add(15 * MIB);
        process.keeper.give(Job::Retain { tli: TimelineId::FIRST, newest });
    }

    fn answers(&mut self, process: &mut Process) {
        for answer in process.keeper.take_answers() {
            let (kind, outcome) = match answer {
                JobDone::Done(kind) => (kind, Ok(())),
                JobDone::Failed { job, error } => (job, Err(error)),
                _ => continue,
            };
            if !matches!(kind, JobKind::SaveSlot | JobKind::DropSlot) {
                continue;
            }
            let (asked, name) = process.asked.remove(0);
            assert_eq!(asked, kind);
            match (kind, outcome) {
                (JobKind::SaveSlot, Ok(())) => {
                    self.known.get_mut(&name).unwrap().told = Told::Exists
                }
                (_, Ok(())) => {
                    seen("a slot dropped");
                    self.known.get_mut(&name).unwrap().told = Told::Absent;
                }
                (_, Err(_)) => seen("a slot refused by a bad disk"),
            }
        }
    }

    /// What clients can see, and what both generations say of it.
    fn check(&mut self, process: &mut Process) -> Result<(), Broken> {
        let holds = &process.holds;
        let mut slots = holds.slots.lock();
        for revoked in slots.take_revoked() {
            process.users.retain(|_, used| {
                if used.token == revoked {
                    slots.release(&used.name, used.token);
                }
                used.token != revoked
            });
        }
        for (name, known) in &mut self.known {
            match slots.get(name) {
                Some(slot) if slot.invalidated.is_some() && !known.lost => {
                    seen("a slot invalidated");
                    known.lost = true;
                }
                None if known.told == Told::Exists => {
                    promise!(known.origin == Origin::AutoCreated, "slot {name} is forgotten");
                    seen("a slot expired");
                    known.told = Told::Absent;
                }
                _ => {}
            }
        }
        if holds.oldest_kept() <= self.released {
            return Ok(());
        }
        self.released = holds.oldest_kept();
        if slots.iter().any(|slot| slot.restart_lsn.is_some()) {
            seen("WAL removed behind slots");
        }
        for record in self.generations().into_iter().flatten().flat_map(|one| one.slots) {
            let Some(at) = record.restart_lsn else { continue };
            let name = record.name.as_str();
            let is_kept = slots.get(name).is_some() && !self.known[name].unkept;
            promise!(
                !is_kept || at.segment(size()) >= self.released.segment(size()),
                "slot {name} needs WAL from {at} on, removed up to {}",
                self.released
            );
        }
        Ok(())
    }

    /// The process dies: what was not answered is unsure, and so is what expires by itself.
    fn note_cut_off(&mut self) {
        for known in self.known.values_mut() {
            if known.told == Told::Exists && known.origin == Origin::AutoCreated {
                known.told = Told::Unsure;
            }
        }
    }

    /// What the medium holds of the two generations.
    fn generations(&self) -> [Option<Generation>; 2] {
        self.layout.slots().map(|path| Generation::decode(&self.disk.views(&path).1?).ok())
    }

    /// A generation decays, if the other one is whole.
    fn maybe_damage(&mut self) {
        let paths = self.layout.slots();
        let whole = self.generations();
        let there = paths.each_ref().map(|path| self.disk.views(path).1.is_some());
        if there == [true, true] && whole.iter().any(Option::is_none) {
            seen("a generation of the slots torn");
        }
        let cached =
            paths.each_ref().map(|path| self.disk.views(path).0 == self.disk.views(path).1);
        if whole.iter().all(Option::is_some) && cached == [true, true] && self.random.chance(200) {
            let newest = usize::from(
                whole[1].as_ref().map(|one| one.number) > whole[0].as_ref().map(|one| one.number),
            );
            self.disk.damage(&paths[newest], 40);
            seen("a generation of the slots damaged");
        }
    }
}

/// The outcome of something that needs no other.
fn finish<T>(work: impl Future<Output = T>) -> T {
    let mut work: Pin<Box<dyn Future<Output = T>>> = Box::pin(work);
    loop {
        if let Poll::Ready(value) = poll_once(&mut work) {
            return value;
        }
    }
}
