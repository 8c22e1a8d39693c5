//! Files marked for the archive, and what may go once they are there.

use crate::cluster::instance::InstanceId;
use crate::keeper::{Job, JobDone, Keeper, Tended};
use crate::store::control_file::Cluster;
use crate::store::directory::Directory;
use crate::store::disk::{Disk, run_ready};
use crate::store::faulty_disk::FaultyDisk;
use crate::store::layout::{ArchiveFile, Mark};
use crate::store::layout::{Layout, Listing};
use crate::store::retention::{ArchiveMode, Holds, MIN_KEPT_SEGMENTS, Policy};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use std::sync::Arc;
use std::time::SystemTime;

const MIB: u64 = 1 << 20;
const OLDEST: u64 = 10;
const NEWEST: u64 = 40;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn name(no: u64) -> SegmentName {
    SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size: size() }
}

fn segment(no: u64) -> ArchiveFile {
    ArchiveFile::Segment(name(no))
}

const fn history(tli: TimelineId) -> ArchiveFile {
    ArchiveFile::History(tli)
}

/// A directory with thirty complete segments that no earlier run has archived.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        for no in OLDEST..NEWEST {
            std::fs::write(layout.segment(name(no)), "").unwrap();
        }
        std::fs::create_dir(layout.archive_status()).unwrap();
        Self { _folder: folder, layout, disk: FaultyDisk::default() }
    }

    fn open(&self, archive_mode: ArchiveMode) -> Keeper<FaultyDisk> {
        let names = run_ready(self.disk.list(self.layout.wal())).unwrap().unwrap();
        let listing = Listing::of(names, size());
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: size(),
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start: Lsn::new(OLDEST * MIB),
            sealed: Vec::new(),
        };
        let holds = Arc::new(Holds::new(Lsn::new(OLDEST * MIB)));
        let layout = self.layout.clone();
        let keeper = Keeper::new(self.disk.clone(), layout, holds, &listing, None, Some(cluster));
        let keeper = keeper.with_policy(Policy { archive_mode, ..Policy::default() });
        run_ready(keeper.load_archive_status()).unwrap().unwrap();
        keeper
    }

    fn mark(&self, file: ArchiveFile, mark: Mark) {
        std::fs::write(self.layout.mark(file, mark), "").unwrap();
    }

    /// The marks of a file: ready, done.
    fn marks(&self, file: ArchiveFile) -> (bool, bool) {
        let has = |mark| self.layout.mark(file, mark).exists();
        (has(Mark::Ready), has(Mark::Done))
    }

    /// The first segment that is still there.
    fn first(&self) -> u64 {
        (OLDEST..NEWEST).find(|no| self.layout.segment(name(*no)).exists()).unwrap()
    }
}

fn run(keeper: &mut Keeper<FaultyDisk>, job: Job) -> JobDone {
    run_ready(keeper.run(job)).unwrap()
}

fn retain(keeper: &mut Keeper<FaultyDisk>) {
    let newest = Lsn::new(NEWEST * MIB + 5);
    let done = run(keeper, Job::Retain { tli: TimelineId::FIRST, newest });
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
}

/// Does what the archiver does.
fn archive(keeper: &Keeper<FaultyDisk>, file: ArchiveFile) {
    let done = crate::store::archive_status::mark_done(&keeper.disk, &keeper.layout, file);
    run_ready(done).unwrap().unwrap();
    keeper.holds.backlog.archived(file, SystemTime::UNIX_EPOCH);
}

#[test]
fn a_start_finds_everything_that_is_not_archived() {
    let world = World::new();
    std::fs::write(world.layout.history(TimelineId::FIRST), "").unwrap();
    std::fs::write(world.layout.partial(name(NEWEST)), "").unwrap();
    for no in OLDEST..NEWEST - 5 {
        world.mark(segment(no), Mark::Done);
    }
    // To be archived once more; waiting from the previous run; of files that are gone.
    world.mark(segment(20), Mark::Ready);
    world.mark(segment(NEWEST - 5), Mark::Ready);
    for orphan in [segment(3), segment(NEWEST), history(TimelineId::new(9).unwrap())] {
        world.mark(orphan, Mark::Done);
        world.mark(orphan, Mark::Ready);
    }
    let keeper = world.open(ArchiveMode::Always);
    let mut waiting = Vec::new();
    while let Some(file) = keeper.holds.backlog.next() {
        assert!(world.marks(file).0, "{file}");
        waiting.push(file);
        keeper.holds.backlog.forget(file);
    }
    let mut expected = vec![history(TimelineId::FIRST), segment(20)];
    expected.extend((NEWEST - 5..NEWEST).map(segment));
    assert_eq!(waiting, expected);
    for orphan in [segment(3), segment(NEWEST), history(TimelineId::new(9).unwrap())] {
        assert_eq!(world.marks(orphan), (false, false), "{orphan}");
    }
    assert!(world.open(ArchiveMode::Off).holds.backlog.is_empty());
}

/// The start before this one was cut off after it removed a mark whose file is gone: that mark must
/// not be back when there is such a file again.
#[test]
fn a_start_makes_durable_what_an_earlier_one_removed() {
    let world = World::new();
    world.disk.take_synced_dirs();
    drop(world.open(ArchiveMode::Always));
    let synced = world.disk.take_synced_dirs();
    assert!(synced.contains(&world.layout.archive_status()), "{synced:?}");
}

#[test]
fn what_is_not_archived_stays_and_marks_go_with_their_files() {
    let world = World::new();
    let mut keeper = world.open(ArchiveMode::Always);
    retain(&mut keeper);
    assert_eq!(world.first(), OLDEST);
    // In a different order from the archiver's.
    for no in (OLDEST..15).chain([16]) {
        archive(&keeper, segment(no));
    }
    retain(&mut keeper);
    assert_eq!(world.first(), 15);
    assert_eq!(world.marks(segment(14)), (false, false));
    assert_eq!(world.marks(segment(15)), (true, false));
    assert_eq!(world.marks(segment(16)), (false, true));
    let spares = || {
        let names = run_ready(world.disk.list(world.layout.wal())).unwrap().unwrap();
        let listing = Listing::of(names, size());
        let length = |no: &u64| std::fs::metadata(world.layout.spare(*no)).unwrap().len();
        listing.spares.iter().map(length).collect::<Vec<_>>()
    };
    assert_eq!(spares(), [MIB], "a command of the run before might read one that was recycled");

    // A crash: the marks decide.
    drop(keeper);
    let mut keeper = world.open(ArchiveMode::Always);
    assert_eq!(keeper.holds.backlog.next(), Some(segment(15)));
    for no in 15..NEWEST {
        archive(&keeper, segment(no));
    }
    retain(&mut keeper);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
}

#[test]
fn complete_files_are_marked_and_wait() {
    let world = World::new();
    let mut keeper = world.open(ArchiveMode::Always);
    let (tli, no) = (TimelineId::FIRST, SegmentNo::new(NEWEST));
    std::fs::write(world.layout.partial(name(NEWEST)), "").unwrap();
    let done = run(&mut keeper, Job::Finalize { tli, no });
    assert!(matches!(done, JobDone::Finalized { .. }), "{done:?}");
    assert_eq!(world.marks(segment(NEWEST)), (true, false));
    let second = TimelineId::new(2).unwrap();
    let save = || Job::SaveHistory { tli: second, bytes: b"1\t0/1\tx\n".to_vec() };
    run(&mut keeper, save());
    assert_eq!(keeper.holds.backlog.next(), Some(history(second)));
    assert_eq!(world.marks(history(second)), (true, false));
    archive(&keeper, history(second));
    run(&mut keeper, save());
    assert_eq!(world.marks(history(second)), (false, true), "archived once");
    assert_eq!(keeper.holds.backlog.status().waiting_segments as u64, NEWEST + 1 - OLDEST);

    let mut keeper = world.open(ArchiveMode::Off);
    std::fs::write(world.layout.partial(name(NEWEST + 1)), "").unwrap();
    run(&mut keeper, Job::Finalize { tli, no: no.next() });
    assert_eq!(world.marks(segment(NEWEST + 1)), (false, false));
}

/// Nobody would look for the rest in the folder that it is moved to.
#[test]
fn wal_is_moved_aside_only_when_all_of_it_is_archived() {
    let world = World::new();
    std::fs::write(world.layout.history(TimelineId::FIRST), "").unwrap();
    let mut keeper = world.open(ArchiveMode::Always);
    let set_aside = || Job::SetAside(InstanceId::new(5));
    let refused = run(&mut keeper, set_aside());
    let JobDone::Failed { error, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(error.to_string(), "31 files wait to be archived before that");
    assert!(world.layout.segment(name(OLDEST)).exists());
    while let Some(file) = keeper.holds.backlog.next() {
        archive(&keeper, file);
    }
    let done = run(&mut keeper, set_aside());
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    assert!(!world.layout.segment(name(OLDEST)).exists());
    assert_eq!(world.marks(history(TimelineId::FIRST)), (false, true));
    assert!(world.open(ArchiveMode::Always).holds.backlog.is_empty());
}
