//! One hub on one bad disk: the shipped appender, keeper and recovery, driven in
//! random order, killed, left without power, and asked what is left.

use crate::fake_disk::{FakeDisk, FakeFile, Faults};
use crate::model::{MIB, Model, SYSTEM};
use crate::plants::Plant;
use crate::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;
use walhub::archive::shell::CommandOutcome;
use walhub::archiver::attempt;
use walhub::cluster::instance::InstanceId;
use walhub::keeper::{
    Job, JobDone, JobKind, Keeper, KeeperClient, Order, Orders, QUEUE, Reply, queue, serve,
};
use walhub::store::append::{Action, Appender, Beginning, Begun};
use walhub::store::control_file::{Cluster, ControlFile};
use walhub::store::disk::Disk;
use walhub::store::holes::Extent;
use walhub::store::layout::ArchiveFile;
use walhub::store::layout::{FileKind, Layout};
use walhub::store::now::Now;
use walhub::store::retention::{ArchiveMode, Holds, Policy};
use walhub::store::{Recovered, RecoveredWal, StoreFault, recover};
use walhub::wal::{Lsn, SegmentName, SegmentNo, TimelineId};

const TLI: TimelineId = TimelineId::FIRST;

/// Situations that came up, so that a run can say whether it met them all.
static SEEN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

pub(crate) fn seen(what: &'static str) {
    SEEN.lock().unwrap().insert(what);
}

/// What an ordinary run has to meet.
pub(crate) const EXPECTED: &[&str] = &[
    "archived",
    "archived again",
    "archived and removed",
    "a command that fails",
    "a command that hangs",
    "control file not written yet",
    "open segment named by recovery",
    "record over the border",
    "several open segments",
    "beginning noted in parts",
    "beginning believed by the note",
    "beginning not believed",
    "space ran out",
    "halted",
    "marker honoured",
    "died without a marker",
    "sync failed at the start",
    "start cut off",
    "segments removed",
    "rewound at a start",
    "rewound after a drop",
    "both lanes busy",
    "read from a file",
];

/// Situations that some seed has led to.
pub(crate) fn seen_so_far() -> BTreeSet<&'static str> {
    SEEN.lock().unwrap().clone()
}

/// What a broken promise looks like.
pub(crate) type Broken = String;

macro_rules! promise {
    ($holds:expr, $($what:tt)+) => { if !$holds { return Err(format!($($what)+)); } };
}
pub(crate) use promise;

/// What outlives the process.
pub(crate) struct World {
    plant: Plant,
    seed: u64,
    random: Random,
    disk: FakeDisk,
    layout: Layout,
    model: Model,
    faults: Faults,
    /// Everything below was published to standbys.
    published: Lsn,
    /// Was anything published by the process that died last?
    flushed: Lsn,
    /// Nothing before this was needed any more.
    released: Lsn,
    /// Half of the worlds have an archive; what it got.
    archive_mode: ArchiveMode,
    archive: Archive,
    crashes: u64,
    healthy: bool,
}

/// Jobs for the keeper, and its answers.
type Archive = Rc<RefCell<BTreeMap<SegmentNo, Vec<u8>>>>;

/// What dies with the process.
struct Process<F> {
    appender: Appender,
    begins: Lsn,
    files: BTreeMap<SegmentNo, F>,
    operations: Vec<Operation>,
    /// Files that standbys are sent from.
    readers: Vec<(SegmentNo, F)>,
    keeper: Client<F>,
    worker: Pin<Box<dyn Future<Output = ()>>>,
    archiver: Pin<Box<dyn Future<Output = ()>>>,
    actions: Vec<Action>,
    holds: Arc<Holds>,
    halted: bool,
    marked: bool,
    /// After a full disk: the upstream was replaced meanwhile.
    rewind: bool,
}

enum Operation {
    Write(Action),
    Sync(SegmentNo),
}

/// A client of the keeper, and the answers that are to come.
pub(crate) struct Client<F> {
    keeper: KeeperClient<F>,
    asked: Vec<(JobKind, oneshot::Receiver<JobDone<F>>)>,
}

impl<F> Client<F> {
    /// The client, and the keeper's end.
    pub(crate) fn new() -> (Self, Orders<F>) {
        let (keeper, orders) = queue(QUEUE);
        (Self { keeper, asked: Vec::new() }, orders)
    }

    pub(crate) fn give(&mut self, job: Job) {
        let (tell, told) = oneshot::channel();
        self.asked.push((job.kind(), told));
        let posted = self.keeper.post(Order { job, reply: Reply::Task(tell) });
        assert!(posted.is_ok(), "the keeper's queue is full");
    }

    /// The jobs without an answer.
    pub(crate) fn asked(&self) -> Vec<JobKind> {
        self.asked.iter().map(|(kind, _)| *kind).collect()
    }

    pub(crate) fn take_answers(&mut self) -> Vec<JobDone<F>> {
        let mut answers = Vec::new();
        self.asked.retain_mut(|(_, told)| match told.try_recv() {
            Ok(done) => {
                answers.push(done);
                false
            }
            Err(_) => true,
        });
        answers
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    PowerLoss,
    Complete,
}

/// Runs one seed to its end; the error says which promise was broken.
pub(crate) fn run(seed: u64, plant: Plant) -> Result<(), Broken> {
    let mut random = Random::new(seed);
    let disk = FakeDisk::new(random.fork());
    disk.set_unsteadiness([0, 2, 6][random.below(3) as usize]);
    let faults = match random.below(4) {
        0 => Faults { early_writeback: 200, short_write: 20, ..Faults::default() },
        1 => Faults { failed_sync: 4, eviction: 50, early_writeback: 100, ..Faults::default() },
        2 => Faults { failed_write: 1, short_write: 100, eviction: 20, ..Faults::default() },
        _ => Faults::default(),
    };
    let mib = 1 + random.below(3);
    let model = Model::new(random.fork(), mib);
    let mut world = World {
        plant,
        seed,
        layout: Layout::new(Path::new("/hub")),
        published: model.start,
        flushed: model.start,
        released: model.start,
        model,
        random,
        disk,
        faults,
        archive_mode: match seed % 2 {
            0 => ArchiveMode::Off,
            _ => ArchiveMode::Always,
        },
        archive: Archive::default(),
        crashes: 0,
        healthy: false,
    };
    world.live().map_err(|broken| format!("seed {seed}: {broken}"))
}

pub(crate) fn poll_once<T>(work: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Poll<T> {
    work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

impl World {
    fn live(&mut self) -> Result<(), Broken> {
        let most = 1 + self.random.below(6);
        loop {
            self.healthy = self.crashes >= most;
            let faults = if self.healthy { Faults::default() } else { self.faults };
            self.disk.set_faults(faults);
            if self.healthy {
                self.disk.set_full(false);
            }
            let Some(recovered) = self.recover()? else { continue };
            let Some(mut process) = self.start(recovered)? else {
                self.crashes += 1;
                self.maybe_power_loss();
                continue;
            };
            match self.serve(&mut process)? {
                End::Complete => return self.check_final(),
                End::Killed => self.crashes += 1,
                End::PowerLoss => {
                    self.crashes += 1;
                    drop(process);
                    self.disk.power_loss();
                }
            }
        }
    }

    /// A start, which may itself be cut off. None: start again.
    fn recover(&mut self) -> Result<Option<Recovered>, Broken> {
        let disk = self.plant.recovery_disk(self.disk.clone());
        let layout = self.layout.clone();
        let mut work: Pin<Box<dyn Future<Output = _>>> = Box::pin(recover(&disk, &layout));
        let cut =
            if !self.healthy && self.random.chance(150) { self.random.below(12) } else { 1 << 40 };
        let mut polls = 0;
        let result = loop {
            if polls == cut {
                break None;
            }
            polls += 1;
            if let Poll::Ready(result) = poll_once(&mut work) {
                break Some(result);
            }
        };
        drop(work);
        match result {
            Some(Ok(recovered)) => {
                self.check_recovered(&recovered)?;
                Ok(Some(recovered))
            }
            Some(Err(StoreFault::Sync { .. })) => {
                seen("sync failed at the start");
                // The process ends with a marker, if that could be written, and what
                // was in open segments is not believed any more.
                self.crashes += 1;
                self.published = self.published.min(self.published.segment_start(self.model.size));
                self.published = self.published.max(self.model.start).min(self.named_end());
                self.maybe_power_loss();
                Ok(None)
            }
            Some(Err(fault @ StoreFault::Io { .. })) if !self.healthy => {
                promise!(
                    fault.to_string().contains("rror") || fault.to_string().contains("pace"),
                    "start failed: {fault}"
                );
                self.crashes += 1;
                self.maybe_power_loss();
                Ok(None)
            }
            Some(Err(fault)) => Err(format!("start failed: {fault}")),
            None => {
                seen("start cut off");
                self.crashes += 1;
                self.maybe_power_loss();
                Ok(None)
            }
        }
    }

    fn maybe_power_loss(&mut self) {
        if self.random.chance(500) {
            self.disk.power_loss();
        }
    }

    /// End of the complete segments, by name.
    fn named_end(&self) -> Lsn {
        let mut end = self.model.start;
        for path in self.disk.names() {
            if let Some(name) = self.complete_name(&path) {
                end = end.max(name.no.end(self.model.size));
            }
        }
        end
    }

    fn complete_name(&self, path: &Path) -> Option<SegmentName> {
        let name = path.file_name()?.to_str()?;
        match FileKind::of(name, self.model.size) {
            FileKind::Segment(name) => Some(name),
            _ => None,
        }
    }

    fn segment(&self, no: SegmentNo) -> SegmentName {
        SegmentName { tli: TLI, no, size: self.model.size }
    }

    /// The promises, at the moment when a start publishes what it found.
    fn check_recovered(&mut self, recovered: &Recovered) -> Result<(), Broken> {
        self.check_names()?;
        let Some(wal) = &recovered.wal else {
            seen("control file not written yet");
            promise!(
                self.published == self.model.start,
                "control file lost after publishing {}",
                self.published
            );
            return Ok(());
        };
        // Every whole record that was published is there, and so is every byte of
        // complete segments.
        let floor = self.model.last_end(self.published);
        promise!(
            wal.durable >= floor,
            "published up to {}, whole records up to {floor}, found {}",
            self.published,
            wal.durable
        );
        // A crash may bring back some of what was removed; what was not is whole.
        let unbroken_from = wal.extent.unbroken_from();
        promise!(unbroken_from <= self.released, "removed {} .. {unbroken_from}", self.released);
        // The upstream still has the segment that holds what it was told is flushed.
        let needed = self.flushed.segment_start(self.model.size);
        promise!(wal.resume >= needed, "flushed {} but resumes at {}", self.flushed, wal.resume);
        let proven = wal.record_end.max(wal.resume);
        promise!(
            wal.durable == proven || wal.durable > proven && wal.last_record.is_none(),
            "durable {} of record end {} and resume {}",
            wal.durable,
            wal.record_end,
            wal.resume
        );
        self.check_served(wal)?;
        self.note_situation(recovered, wal);
        self.published = wal.durable;
        Ok(())
    }

    fn note_situation(&self, recovered: &Recovered, wal: &RecoveredWal) {
        let own = |no: SegmentNo| no.start(self.model.size) >= wal.resume;
        let open = recovered.listing.partials.iter().filter(|(_, no)| own(*no)).count();
        let listed = recovered.listing.newest_of(TLI).map(|range| range.newest);
        for (holds, what) in [
            (wal.complete.map(|range| range.newest) != listed, "open segment named by recovery"),
            (wal.record_end < wal.resume && wal.last_record.is_some(), "record over the border"),
            (open > 1, "several open segments"),
            (wal.beginning == Beginning::Ahead && open > 0, "beginning not believed"),
            (
                wal.beginning == Beginning::Past
                    && wal.complete.is_none()
                    && self.model.begins_inside(),
                "beginning believed by the note",
            ),
            (recovered.halted.is_some(), "marker honoured"),
            (wal.oldest > self.model.start, "segments removed"),
        ] {
            if holds {
                seen(what);
            }
        }
    }

    /// Nothing false: what is served is what was sent, for readers and on the medium.
    fn check_served(&self, wal: &RecoveredWal) -> Result<(), Broken> {
        let size = self.model.size;
        promise!(wal.durable <= self.model.end(), "found {} past the end", wal.durable);
        let mut at = wal.extent.unbroken_from();
        while at < wal.durable {
            let no = at.segment(size);
            let to = no.end(size).min(wal.durable);
            let complete = self.layout.segment(self.segment(no));
            let partial = self.layout.partial(self.segment(no));
            let expected = self.model.bytes(at, to);
            let (mut cached, mut medium) = self.disk.views(&complete);
            if cached.is_none() {
                (cached, medium) = self.disk.views(&partial);
            }
            for (view, bytes) in [("cache", cached), ("medium", medium)] {
                let Some(bytes) = bytes else {
                    return Err(format!("segment {} is not in the {view}", no.raw()));
                };
                let from = at.segment_offset(size) as usize;
                let got = bytes.get(from..from + expected.len());
                promise!(
                    got == Some(&expected[..]),
                    "false bytes in {at} .. {to} in the {view}, first at {:?} (record end {}, \
                     resume {})",
                    got.and_then(|got| got.iter().zip(&expected).position(|(a, b)| a != b))
                        .map(|n| at.saturating_add(n as u64)),
                    wal.record_end,
                    wal.resume
                );
            }
            at = to;
        }
        let expected = self.model.bytes(wal.prefix_from, wal.durable);
        promise!(wal.prefix == expected, "wrong prefix before {}", wal.durable);
        promise!(
            wal.last_record.is_none() || wal.last_record == self.model.last_start(wal.record_end),
            "last record {:?} before {}",
            wal.last_record,
            wal.record_end
        );
        Ok(())
    }

    /// A final name means complete and durable.
    fn check_names(&self) -> Result<(), Broken> {
        for path in self.disk.names() {
            let Some(name) = self.complete_name(&path) else { continue };
            let (from, to) = (name.no.start(self.model.size), name.no.end(self.model.size));
            let expected = self.model.bytes(from, to);
            let (cached, medium) = self.disk.views(&path);
            promise!(to <= self.model.end(), "{name} is past the end");
            promise!(cached.as_deref() == Some(&expected[..]), "{name} is not complete");
            promise!(medium.is_none_or(|m| m == expected), "{name} is not complete on the medium");
        }
        Ok(())
    }

    /// None: it did not start; again.
    fn start(&mut self, recovered: Recovered) -> Result<Option<Process<Arc<FakeFile>>>, Broken> {
        let here = recovered.wal.as_ref().map(|wal| wal.extent.clone());
        let holds = Arc::new(Holds::of(here.unwrap_or(Extent::from(self.model.start))));
        let control = recovered.control.as_ref().and_then(|control| control.cluster.as_ref());
        let keeper = Keeper::new(
            self.plant.keeper_disk(self.disk.clone()),
            self.layout.clone(),
            Arc::clone(&holds),
            &recovered.listing,
            recovered.wal.as_ref().and_then(|wal| wal.complete),
            control.cloned(),
        );
        let policy = Policy { archive_mode: self.archive_mode, ..Policy::default() };
        let keeper = keeper.with_policy(policy).with_clock(Now::by_system);
        if self.plant != Plant::ForgetsWhatWaits && !self.look_up_marks(&keeper)? {
            return Ok(None);
        }
        let (client, orders) = Client::new();
        let worker = Box::pin(async move { serve(&keeper, orders, None).await });
        let archiver = archive(
            self.disk.clone(),
            self.layout.clone(),
            Arc::clone(&holds),
            ArchiveCommand {
                archive: Rc::clone(&self.archive),
                random: self.random.fork(),
                failures: if self.healthy { 0 } else { 200 },
                hangs: if self.healthy { 0 } else { 30 },
                failures_pass: self.plant == Plant::BelievesFailedCommands,
            },
        );
        let (durable, beginning, begins) = match &recovered.wal {
            Some(wal) => (wal.durable, wal.beginning, wal.begins),
            None => (self.model.start, Beginning::Ahead, self.model.start),
        };
        // What nobody has seen may come again in other words.
        if self.model.last_end(durable) == durable && self.random.chance(self.plant.rewinds()) {
            seen("rewound at a start");
            self.model.rewind(durable, &mut self.random);
        }
        let max_batch = [8192, 65_536, 300_000, 4 * MIB][self.random.below(4) as usize];
        let mut process = Process {
            appender: Appender::new(TLI, self.model.size, durable, beginning, max_batch),
            begins,
            files: BTreeMap::new(),
            operations: Vec::new(),
            readers: Vec::new(),
            keeper: client,
            worker,
            archiver: Box::pin(archiver),
            actions: Vec::new(),
            holds,
            halted: false,
            marked: false,
            rewind: false,
        };
        if recovered.wal.is_none() {
            process.keeper.give(Job::SaveControl(Box::new(self.control())));
        }
        Ok(Some(process))
    }

    /// Has it been done, or was it cut off?
    fn look_up_marks<D: Disk>(&mut self, keeper: &Keeper<D>) -> Result<bool, Broken> {
        let mut work: Pin<Box<dyn Future<Output = _>>> = Box::pin(keeper.load_archive_status());
        let cut =
            if !self.healthy && self.random.chance(50) { self.random.below(8) } else { 1 << 40 };
        for _ in 0..cut {
            match poll_once(&mut work) {
                Poll::Ready(Ok(())) => return Ok(true),
                Poll::Ready(Err(fault)) => {
                    promise!(!self.healthy, "start failed: {fault}");
                    return Ok(false);
                }
                Poll::Pending => {}
            }
        }
        Ok(false)
    }

    fn control(&self) -> ControlFile {
        ControlFile {
            instance: InstanceId::new(u128::from(self.seed)),
            cluster: Some(Cluster {
                system_id: SYSTEM,
                segment_size: self.model.size,
                data_directory_mode: "0700".to_owned(),
                parameters: Vec::new(),
                timeline: TLI,
                start: self.model.start,
                sealed: Vec::new(),
            }),
        }
    }

    /// Lets a process live until it is cut off or has everything.
    fn serve(&mut self, process: &mut Process<Arc<FakeFile>>) -> Result<End, Broken> {
        let crash = if self.healthy { 0 } else { [2, 5, 20, 60][self.random.below(4) as usize] };
        let mut ready = process.keeper.asked().is_empty();
        for _ in 0..400_000u64 {
            if self.random.chance(crash) {
                return Ok(self.cut_off());
            }
            match self.random.below(16) {
                0..3 if ready && !process.halted => self.receive(process),
                3..8 => self.complete_one(process),
                8..14 => {
                    assert!(poll_once(&mut process.worker).is_pending(), "the keeper ended");
                }
                14 if self.random.chance(40) => self.change_weather(process),
                15 => {
                    assert!(poll_once(&mut process.archiver).is_pending(), "the archiver ended");
                }
                _ => {}
            }
            self.look_at_horizon(process)?;
            self.look_at_readers(process)?;
            self.note_lanes(process);
            for answer in process.keeper.take_answers() {
                ready |= self.answer(process, answer)?;
            }
            self.act(process)?;
            if process.halted && process.marked && process.operations.is_empty() {
                return Ok(self.cut_off());
            }
            let appender = &process.appender;
            if appender.durable().lsn() == self.model.end() && appender.settled() {
                let named = self.named_end() == self.model.end().segment_start(self.model.size);
                promise!(named, "settled without the final names");
                // An unhealthy life goes on until it is cut off.
                if !self.healthy {
                    return Ok(self.cut_off());
                }
                if process.holds.backlog.is_empty() {
                    return Ok(End::Complete);
                }
            }
        }
        let asked = process.keeper.asked();
        Err(format!("no progress: {:?} jobs {asked:?}", process.appender))
    }

    /// Jobs of both lanes are under way.
    fn note_lanes(&self, process: &Process<Arc<FakeFile>>) {
        let is_patient = |kind: &JobKind| matches!(kind, JobKind::Open { .. } | JobKind::Retain);
        let asked = process.keeper.asked();
        if asked.iter().any(is_patient) && !asked.iter().all(is_patient) {
            seen("both lanes busy");
        }
    }

    /// What retention has given up is archived.
    fn look_at_horizon(&mut self, process: &Process<Arc<FakeFile>>) -> Result<(), Broken> {
        let oldest_kept = process.holds.oldest_kept();
        if oldest_kept > self.released {
            self.released = oldest_kept;
            self.check_archive(oldest_kept)?;
        }
        Ok(())
    }

    /// A file that a standby is sent from does not change, whatever becomes of its segment.
    fn look_at_readers(&mut self, process: &mut Process<Arc<FakeFile>>) -> Result<(), Broken> {
        if process.readers.is_empty() || !self.random.chance(8) {
            return Ok(());
        }
        let index = self.random.below(process.readers.len() as u64) as usize;
        let (no, file) = &process.readers[index];
        let (from, to) = (no.start(self.model.size), no.end(self.model.size));
        let to = to.min(process.appender.durable().lsn());
        if to > from {
            let expected = self.model.bytes(from, to);
            let right = self.disk.content(file).get(..expected.len()) == Some(&expected[..]);
            promise!(right, "the file of segment {} is not what it was", no.raw());
            seen("read from a file");
        }
        if self.random.chance(300) {
            process.readers.swap_remove(index);
        }
        Ok(())
    }

    fn cut_off(&mut self) -> End {
        if self.random.chance(500) { End::Killed } else { End::PowerLoss }
    }

    fn receive(&mut self, process: &mut Process<Arc<FakeFile>>) {
        let appender = &mut process.appender;
        if appender.out_of_space() {
            if self.random.chance(100) {
                appender.resume(&mut process.actions);
                appender.warm_up(&mut process.actions);
                process.rewind = self.random.chance(self.plant.rewinds());
            }
            return;
        }
        let from = appender.received_upto();
        let durable = appender.durable().lsn();
        let open = durable.segment(self.model.size);
        if process.rewind
            && (from, self.published) == (durable, durable)
            && process.files.contains_key(&open)
        {
            // What was dropped, and is cleared, comes again in other words.
            seen("rewound after a drop");
            process.rewind = false;
            self.model.rewind(durable, &mut self.random);
        }
        // Half of the buffers.
        if from >= self.model.end() || from.bytes_since(appender.durable().lsn()) > 3 * MIB {
            return;
        }
        let length = [300, 5000, 60_000, 130_000][self.random.below(4) as usize];
        let length = 1 + self.random.below(length);
        let upto = self.model.message_end(from, length, &mut self.random);
        if upto > from {
            appender.received(upto, &mut process.actions);
        }
    }

    /// One of the operations in flight completes.
    fn complete_one(&mut self, process: &mut Process<Arc<FakeFile>>) {
        if process.operations.is_empty() {
            return;
        }
        let index = self.random.below(process.operations.len() as u64) as usize;
        match process.operations.swap_remove(index) {
            Operation::Write(Action::Write { id, segment, offset, from, to }) => {
                // The chunk as it is now: what was received since is in it.
                let filled = to.min(process.appender.received_upto());
                let mut bytes = self.model.bytes(from.max(self.model.start), filled.max(from));
                bytes.resize(to.bytes_since(from) as usize, 0);
                let file = &process.files[&segment];
                let result = self.disk.write_now(file, &bytes, offset);
                process.appender.written(id, result, &mut process.actions);
            }
            Operation::Write(_) => {}
            Operation::Sync(segment) => {
                let result = self.disk.sync_now(&process.files[&segment]);
                process.appender.synced(segment, result, &mut process.actions);
            }
        }
    }

    /// Space comes and goes, old WAL is given up.
    fn change_weather(&mut self, process: &mut Process<Arc<FakeFile>>) {
        if !self.healthy && self.random.chance(500) {
            self.disk.set_full(!self.disk.is_full() && self.random.chance(300));
        }
        if process.keeper.asked().len() < 8 && process.appender.durable().lsn() > self.model.start {
            // As if more had come, so that something is removed at all.
            let newest = process.appender.durable().lsn().saturating_add(15 * MIB);
            process.keeper.give(Job::Retain { tli: TLI, newest });
            let no = self.model.start.segment(self.model.size);
            let newest = process.appender.durable().lsn().segment(self.model.size);
            let span = newest.raw() - no.raw() + 1;
            let no = SegmentNo::new(no.raw() + self.random.below(span));
            process.keeper.give(Job::Open { tli: TLI, no });
        }
    }

    fn answer(
        &mut self,
        process: &mut Process<Arc<FakeFile>>,
        answer: JobDone<Arc<FakeFile>>,
    ) -> Result<bool, Broken> {
        let (appender, out) = (&mut process.appender, &mut process.actions);
        match answer {
            JobDone::Prepared { no, file, .. } => {
                process.files.insert(no, file);
                appender.segment_ready(no, out);
            }
            JobDone::Finalized { no, .. } => appender.finalized(no),
            JobDone::Begun { begun: Begun::Partly, .. } => {
                seen("beginning noted in parts");
                appender.begun(Ok(Begun::Partly), out);
            }
            JobDone::Begun { begun, .. } => appender.begun(Ok(begun), out),
            JobDone::Done(JobKind::SaveControl) => return Ok(true),
            JobDone::Done(JobKind::MarkHalted) => process.marked = true,
            // It is read only up to what is durable now, which a later drop leaves as it is.
            JobDone::Opened { no, result: Ok(file), .. } => process.readers.push((no, file)),
            JobDone::Done(_)
            | JobDone::Opened { .. }
            | JobDone::OpenedPartly { .. }
            | JobDone::Adopted { .. }
            | JobDone::Foreseen(_)
            | JobDone::Switched(_)
            | JobDone::CutOff { .. } => {}
            JobDone::Failed { job, error } => match job {
                JobKind::Prepare { no, .. } => appender.prepare_failed(no, &error, out),
                JobKind::Finalize { no, .. } => appender.finalize_failed(no, &error, out),
                JobKind::Begin { .. } => appender.begun(Err(&error), out),
                JobKind::MarkHalted => process.marked = true,
                JobKind::SaveControl => {
                    process.keeper.give(Job::SaveControl(Box::new(self.control())));
                }
                other => return Err(format!("could not {other}: {error}")),
            },
        }
        Ok(false)
    }

    fn act(&mut self, process: &mut Process<Arc<FakeFile>>) -> Result<(), Broken> {
        let actions = std::mem::take(&mut process.actions);
        for action in actions {
            let mut job = None;
            match action {
                Action::Prepare { segment: no, keep } => {
                    job = Some(Job::Prepare { tli: TLI, no, keep });
                }
                Action::Write { to, .. } => {
                    if self.plant == Plant::PublishesBeforeSync {
                        let upto = to.min(process.appender.received_upto());
                        self.published = self.published.max(upto);
                    }
                    process.operations.push(Operation::Write(action));
                }
                Action::Sync(segment) => process.operations.push(Operation::Sync(segment)),
                Action::Begin(upto) => {
                    job = Some(Job::Begin { tli: TLI, start: process.begins, upto });
                }
                Action::Durable(durable) => {
                    let upto = durable.lsn();
                    promise!(
                        upto > self.published || self.plant == Plant::PublishesBeforeSync,
                        "durable goes back from {} to {upto}",
                        self.published
                    );
                    promise!(!process.halted, "published {upto} after a halt");
                    self.published = self.published.max(upto);
                }
                Action::Finalize(no) => {
                    process.files.remove(&no);
                    job = Some(Job::Finalize { tli: TLI, no });
                }
                Action::DropToDurable(lsn) => {
                    seen("space ran out");
                    promise!(lsn == process.appender.durable().lsn(), "dropped to {lsn}");
                    promise!(process.operations.is_empty(), "dropped with writes in flight");
                    process.files.clear();
                }
                Action::Halt(reason) => {
                    seen("halted");
                    process.halted = true;
                    let durable = process.appender.durable().lsn();
                    job = Some(Job::MarkHalted { durable, reason: reason.to_string() });
                    // The process may also die before it can leave a marker.
                    if self.random.chance(300) {
                        seen("died without a marker");
                        process.marked = true;
                        process.operations.clear();
                        job = None;
                    }
                }
            }
            if let Some(job) = job {
                process.keeper.give(job);
            }
        }
        let flush = process.appender.flush_reportable().lsn();
        promise!(flush <= process.appender.durable().lsn(), "reports {flush} before it is durable");
        if flush > self.flushed {
            self.flushed = flush;
            let named = self.named_end();
            promise!(
                flush < named.saturating_add(self.model.size.bytes()),
                "reports {flush}, but complete segments end at {named}"
            );
        }
        Ok(())
    }

    /// All before this is archived, as it was sent.
    fn check_archive(&self, upto: Lsn) -> Result<(), Broken> {
        if self.archive_mode == ArchiveMode::Off {
            return Ok(());
        }
        let size = self.model.size;
        let archive = self.archive.borrow();
        let mut no = self.model.start.segment(size);
        while no.end(size) <= upto {
            let Some(bytes) = archive.get(&no) else {
                return Err(format!("segment {} is not archived", no.raw()));
            };
            let right = *bytes == self.model.bytes(no.start(size), no.end(size));
            promise!(right, "segment {} is not archived as it was sent", no.raw());
            no = no.next();
            if no.end(size) <= upto {
                seen("archived and removed");
            }
        }
        Ok(())
    }

    /// Everything arrived: all complete segments carry their names, all bytes are right.
    fn check_final(&mut self) -> Result<(), Broken> {
        promise!(self.published == self.model.end(), "ended at {}", self.published);
        self.check_archive(self.model.end())?;
        self.disk.power_loss();
        let Some(recovered) = self.recover()? else { return Err("no start".to_owned()) };
        let durable = recovered.wal.map(|wal| wal.durable);
        promise!(durable == Some(self.model.end()), "ended with {durable:?}");
        Ok(())
    }
}

/// The archiver: one attempt after another, with a command that may take its time.
async fn archive(disk: FakeDisk, layout: Layout, holds: Arc<Holds>, mut command: ArchiveCommand) {
    loop {
        if let Some(file) = holds.backlog.next() {
            let run = command.run(&disk, &layout, file);
            attempt(&disk, &layout, &holds, file, run, || std::time::SystemTime::UNIX_EPOCH).await;
        }
        rest().await;
    }
}

/// An archive command, and what it has archived.
struct ArchiveCommand {
    archive: Archive,
    random: Random,
    /// How often it fails, of 1000.
    failures: u64,
    /// How often it never ends, of 1000.
    hangs: u64,
    /// The mistake: a failure counts as success.
    failures_pass: bool,
}

impl ArchiveCommand {
    /// Copies a file to the archive.
    async fn run(
        &mut self,
        disk: &FakeDisk,
        layout: &Layout,
        file: ArchiveFile,
    ) -> io::Result<CommandOutcome> {
        if self.random.chance(self.hangs) {
            seen("a command that hangs");
            return std::future::pending().await;
        }
        let turns = if self.random.chance(300) { self.random.below(100) } else { 1 };
        for _ in 0..turns {
            rest().await;
        }
        let read = disk.views(&layout.archived(file)).0;
        let (Some(mut bytes), ArchiveFile::Segment(name)) = (read, file) else {
            return Ok(CommandOutcome::Failed { code: 1 });
        };
        let fails = self.random.chance(self.failures);
        if fails {
            seen("a command that fails");
            bytes.truncate(self.random.below(bytes.len() as u64) as usize);
        }
        let before = self.archive.borrow_mut().insert(name.no, bytes);
        rest().await;
        Ok(match (fails, self.random.below(3)) {
            (true, _) if self.failures_pass => CommandOutcome::Done,
            (true, 0) => CommandOutcome::Broken { reason: "it was ended by a signal".to_owned() },
            (true, _) => CommandOutcome::Failed { code: 1 },
            (false, _) => {
                seen(if before.is_some() { "archived again" } else { "archived" });
                CommandOutcome::Done
            }
        })
    }
}

async fn rest() {
    let mut rested = false;
    poll_fn(|_| match std::mem::replace(&mut rested, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}
