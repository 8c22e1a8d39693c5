//! Starts that find something odd, cut off at each of their steps: the WAL that was acknowledged
//! is on the medium, as an open segment or set aside, and what is put right is found again.

use crate::fake_disk::FakeDisk;
use crate::random::Random;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use walhub::cluster::instance::InstanceId;
use walhub::keeper::{Job, JobDone, Keeper};
use walhub::store::control_file::{Cluster, ControlFile};
use walhub::store::disk::Disk;
use walhub::store::layout::Layout;
use walhub::store::notes::HaltedNote;
use walhub::store::retention::Holds;
use walhub::store::{Recovered, StoreFault, recover};
use walhub::wal::synth::Synth;
use walhub::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};

const MIB: u64 = 1 << 20;
const TLI: TimelineId = TimelineId::FIRST;
pub(crate) const START: u64 = 5;

/// The open segment; the ones before it are complete.
pub(crate) const OPEN: u64 = 8;

/// More steps than any start here has.
pub(crate) const STEPS: usize = 400;

/// Polls so often at most; returns `None` when it was not done by then.
pub(crate) fn drive<T>(work: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..polls {
        if let Poll::Ready(value) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(value);
        }
    }
    None
}

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

pub(crate) fn name(no: u64) -> SegmentName {
    SegmentName { tli: TLI, no: SegmentNo::new(no), size: size() }
}

/// The bytes of all segments, and where each record ends.
static WAL: OnceLock<(Vec<u8>, Vec<Lsn>)> = OnceLock::new();

fn write_wal() -> (Vec<u8>, Vec<Lsn>) {
    let start = Lsn::new(START * MIB);
    let mut synth = Synth::new(SystemId::new(9), size(), TLI, 0xD110, start);
    let mut ends = Vec::new();
    while synth.position() < Lsn::new(OPEN * MIB + MIB / 3) {
        synth.record(&[1; 4000]);
        ends.push(synth.position());
    }
    let mut wal = synth.take_bytes().1;
    wal.resize(((OPEN + 1 - START) * MIB) as usize, 0);
    (wal, ends)
}

/// A directory with three complete segments, an open one with WAL, and one prepared after it.
pub(crate) struct Scene {
    pub(crate) disk: FakeDisk,
    pub(crate) layout: Layout,
    wal: &'static [u8],
    /// Where each record ends.
    pub(crate) ends: &'static [Lsn],
    pub(crate) end: Lsn,
    seed: u64,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (wal, ends) = WAL.get_or_init(write_wal);
        let (disk, layout) = (FakeDisk::new(Random::new(seed)), Layout::new(Path::new("/hub")));
        let scene = Self { disk, layout, wal, ends, end: ends[ends.len() - 1], seed };
        for no in START..OPEN {
            scene.write(&scene.layout.segment(name(no)), scene.bytes(no));
        }
        scene.write(&scene.layout.partial(name(OPEN)), scene.bytes(OPEN));
        scene.write(&scene.layout.partial(name(OPEN + 1)), &vec![0; MIB as usize]);
        let cluster = Some(scene.cluster());
        let control = ControlFile { instance: InstanceId::new(5), cluster };
        scene.write(&scene.layout.control(), &control.encode());
        scene
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            system_id: SystemId::new(9),
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(START * MIB),
            sealed: Vec::new(),
        }
    }

    /// The bytes of a segment.
    pub(crate) fn bytes(&self, no: u64) -> &[u8] {
        let from = ((no - START) * MIB) as usize;
        &self.wal[from..from + MIB as usize]
    }

    /// A file that is durable.
    fn write(&self, path: &Path, bytes: &[u8]) {
        let write = async {
            let file = self.disk.create(path).await.unwrap();
            self.disk.write_now(&file, bytes, 0).unwrap();
            self.disk.sync_data(&file).await.unwrap();
            self.disk.sync_dir(path.parent().unwrap()).await.unwrap();
        };
        drive(write, STEPS).unwrap();
    }

    pub(crate) fn start(&self, polls: usize) -> Option<Result<Recovered, StoreFault>> {
        drive(recover(&self.disk, &self.layout), polls)
    }

    /// Half of the scenes lose power, the others only the process.
    pub(crate) fn crash(&self) {
        if self.seed.is_multiple_of(2) {
            self.disk.power_loss();
        }
    }

    /// The end of the WAL that a start finds.
    fn found(&self) -> Lsn {
        self.start(STEPS).unwrap().unwrap().wal.unwrap().durable
    }

    /// Files of the open segment, under any name, that hold all that was acknowledged. After a
    /// loss of power that is what the medium has.
    fn kept(&self) -> Vec<PathBuf> {
        let open = self.layout.partial(name(OPEN));
        let prefix = open.to_str().unwrap().to_owned();
        let named = |path: &PathBuf| path.to_str().is_some_and(|path| path.starts_with(&prefix));
        let whole = |path: &PathBuf| self.disk.views(path).0.as_deref() == Some(self.bytes(OPEN));
        self.disk.names().into_iter().filter(named).filter(whole).collect()
    }
}

/// Cuts a start off after each of its steps.
fn each_step(run: impl FnMut(&Scene, usize) -> bool) {
    each_step_from(0, run);
}

/// The same with other luck.
pub(crate) fn each_step_from(seed: u64, mut run: impl FnMut(&Scene, usize) -> bool) {
    for cut in 0..STEPS {
        let ended = [0, 1].map(|n| run(&Scene::new(seed + 2 * cut as u64 + n), cut));
        if ended == [true; 2] {
            assert!(cut > 2, "it was never cut off");
            return;
        }
    }
    panic!("it never ended");
}

#[test]
fn a_start_that_is_refused_changes_nothing() {
    each_step(|scene, cut| {
        let bogus = scene.layout.segment(name(0x30));
        scene.write(&bogus, &vec![0; MIB as usize]);
        let ended = scene.start(cut);
        scene.crash();
        assert!(matches!(ended, None | Some(Err(StoreFault::Damaged { .. }))));
        assert_eq!(scene.kept(), [scene.layout.partial(name(OPEN))]);
        scene.disk.lose(&bogus);
        assert_eq!(scene.found(), scene.end);
        ended.is_some()
    });
}

#[test]
fn what_a_marker_gives_up_is_on_the_medium() {
    let unreadable = Vec::new();
    let inside = Lsn::new(OPEN * MIB + 9000);
    let inside = HaltedNote { durable: inside, reason: "a test".to_owned() }.encode();
    for marker in [unreadable, inside] {
        each_step(|scene, cut| {
            scene.write(&scene.layout.halted(), &marker);
            let ended = scene.start(cut);
            scene.crash();
            assert!(!scene.kept().is_empty(), "cut off at {cut}");
            let found = scene.found();
            assert!(found < scene.end, "{found} is believed");
            assert!(!scene.kept().is_empty(), "cut off at {cut}, started again");
            ended.is_some()
        });
    }
}

#[test]
fn what_lies_past_a_hole_is_on_the_medium_when_wal_comes_in() {
    each_step(|scene, cut| {
        let hole = scene.layout.segment(name(OPEN - 1));
        scene.disk.lose(&hole);
        let recovered = scene.start(STEPS).unwrap().unwrap();
        let (wal, cluster) = (recovered.wal.unwrap(), Some(scene.cluster()));
        assert_eq!(wal.durable, Lsn::new((OPEN - 1) * MIB));
        let holds = Arc::new(Holds::of(wal.extent));
        let (disk, layout) = (scene.disk.clone(), scene.layout.clone());
        let listing = &recovered.listing;
        let keeper = Keeper::new(disk, layout, holds, listing, wal.complete, cluster);
        let receive = async {
            for no in [OPEN - 1, OPEN] {
                let (no, keep) = (SegmentNo::new(no), Lsn::new(no * MIB));
                let done = keeper.run(Job::Prepare { tli: TLI, no, keep }).await;
                assert!(matches!(done, JobDone::Prepared { .. }), "not prepared");
            }
        };
        let ended = drive(receive, cut);
        drop(keeper);
        scene.crash();
        assert_eq!(scene.kept().len(), 1, "cut off at {cut}");
        if cut == 0 {
            scene.write(&hole, scene.bytes(OPEN - 1));
            assert_eq!(scene.found(), scene.end, "what was missing is back");
        }
        ended.is_some()
    });
}
