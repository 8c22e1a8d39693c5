//! What the keeper removes, and what it leaves.

use super::*;
use crate::keeper::{Job, JobDone, Tended};
use crate::store::control_file::Cluster;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::holes::Extent;
use crate::store::layout::{Layout, Listing};
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::{HighWatermark, Holds, MIN_KEPT_SEGMENTS, Policy};
use crate::store::slots::{Cause, Create, InvalidSlots, Origin, SlotFiles, SlotName, SlotRecord};
use crate::wal::{SystemId, TimelineId};
use crate::wire::command::SlotLifetime;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const OLDEST: u64 = 10;
const NEWEST: u64 = 100;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn segment(no: u64) -> SegmentName {
    SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size: size() }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A directory with ninety complete segments whose content nobody reads.
struct World {
    folder: tempfile::TempDir,
    layout: Layout,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        for no in OLDEST..NEWEST {
            std::fs::write(layout.segment(segment(no)), "").unwrap();
        }
        Self { folder, layout }
    }

    fn open(&self, policy: Policy) -> Keeper<PlainDisk> {
        let names = run_ready(PlainDisk.list(self.layout.wal())).unwrap().unwrap();
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
        let holds = Arc::new(Holds::of(Extent::of(&listing, &cluster)));
        let layout = self.layout.clone();
        let keeper = Keeper::new(PlainDisk, layout, holds, &listing, None, Some(cluster));
        let keeper = keeper.with_policy(policy);
        run_ready(keeper.load_slots()).unwrap().unwrap();
        keeper
    }

    /// The slot as the next start finds it.
    fn find_slot(&self, name: &str) -> Option<SlotRecord> {
        let read = run_ready(SlotFiles::default().read(&PlainDisk, &self.layout)).unwrap();
        let [newest, _] = read.unwrap();
        newest?.slots.into_iter().find(|record| record.name.as_str() == name)
    }

    fn slot(&self, name: &str) -> SlotRecord {
        self.find_slot(name).unwrap()
    }

    /// The first segment that is still there.
    fn first(&self) -> u64 {
        (OLDEST..NEWEST).find(|no| self.layout.segment(segment(*no)).exists()).unwrap()
    }
}

fn run(keeper: &Keeper<PlainDisk>, job: Job) -> JobDone {
    run_ready(keeper.run(job)).unwrap()
}

/// One round of retention with files: which sessions have to end, and whether WAL may come in.
fn retain(keeper: &Keeper<PlainDisk>, seconds: u64) -> (Vec<u32>, Receiving) {
    let newest = Lsn::new(NEWEST * MIB + 5);
    let done = run(keeper, Job::Retain { tli: TimelineId::FIRST, newest, now: at(seconds) });
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
    (keeper.holds.slots.lock().take_revoked(), keeper.holds.receiving())
}

/// A slot on disk that keeps WAL from `from` on.
fn create(keeper: &Keeper<PlainDisk>, name: &str, origin: Origin, from: u64) {
    let name = SlotName::parse(name).unwrap();
    let create = Create {
        name: name.clone(),
        lifetime: SlotLifetime::Persistent,
        origin,
        reserve: Some(Lsn::new(from * MIB)),
        pid: 1,
    };
    keeper.holds.slots.lock().create(create, 10).unwrap();
    let done = run(keeper, Job::SaveSlot(name));
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
}

fn report(keeper: &Keeper<PlainDisk>, name: &str, pid: u32, flush: u64) {
    let mut slots = keeper.holds.slots.lock();
    let (_, reported) = slots.acquire(name, pid, InvalidSlots::Accept).unwrap();
    reported.store(flush * MIB, Ordering::Release);
}

#[test]
fn a_slot_keeps_wal_by_what_is_on_disk_and_over_a_restart() {
    let world = World::new();
    let keeper = world.open(Policy::default());
    create(&keeper, "s", Origin::Asked, 20);
    retain(&keeper, 0);
    assert_eq!(world.first(), 20);
    report(&keeper, "s", 7, 50);
    retain(&keeper, 1);
    assert_eq!(world.slot("s").restart_lsn, Some(Lsn::new(50 * MIB)));
    assert_eq!(world.first(), 20, "a start may have to read the generation before");
    retain(&keeper, 2);
    assert_eq!(world.first(), 50);

    // Later reports are lost in a crash; the WAL is not.
    report(&keeper, "s", 7, 60);
    drop(keeper);
    let keeper = world.open(Policy::default());
    retain(&keeper, 2);
    assert_eq!(world.first(), 50);
    let done = run(&keeper, Job::DropSlot(SlotName::parse("s").unwrap()));
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    assert_eq!(world.find_slot("s"), None);
    retain(&keeper, 3);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
    assert!(world.open(Policy::default()).holds.slots.lock().is_empty());
}

#[test]
fn out_of_its_limit_a_slot_loses_its_wal_and_its_user_has_to_go() {
    let world = World::new();
    let policy = Policy { max_slot_wal_keep_size: Some(30 * MIB), ..Policy::default() };
    let keeper = world.open(policy);
    create(&keeper, "near", Origin::Asked, 75);
    create(&keeper, "far", Origin::Asked, 69);
    report(&keeper, "far", 7, 69);
    assert_eq!(retain(&keeper, 0), (vec![7], Receiving::Open));
    let far = world.slot("far");
    assert_eq!((far.restart_lsn, far.invalidated), (None, Some(Cause::WalRemoved)));
    assert_eq!(world.slot("near").invalidated, None);
    assert_eq!(world.first(), 75, "what nobody can need goes, limit or not");
    assert_eq!(retain(&keeper, 1), (vec![], Receiving::Open));
}

#[test]
fn slots_that_nobody_uses_are_invalidated_or_dropped_in_time() {
    let world = World::new();
    let policy = Policy {
        idle_slot_timeout: Duration::from_secs(60),
        auto_created_ttl: Duration::from_secs(100),
        ..Policy::default()
    };
    let keeper = world.open(policy);
    create(&keeper, "asked", Origin::Asked, 20);
    create(&keeper, "auto", Origin::AutoCreated, 30);
    report(&keeper, "auto", 7, 30);
    retain(&keeper, 0);
    retain(&keeper, 59);
    assert_eq!(world.first(), 20);
    retain(&keeper, 60);
    assert_eq!(world.slot("asked").invalidated.unwrap().to_string(), "idle_timeout");
    assert_eq!(world.first(), 30);
    let auto = SlotName::parse("auto").unwrap();
    keeper.holds.slots.lock().release(&auto, 7);
    retain(&keeper, 200);
    assert!(world.find_slot("auto").is_some());
    retain(&keeper, 300);
    assert_eq!(world.find_slot("auto"), None);
    assert_eq!(keeper.holds.slots.lock().len(), 1);
}

#[test]
fn time_is_that_of_the_files_over_a_restart() {
    let world = World::new();
    for no in OLDEST..NEWEST {
        let file = std::fs::File::options();
        let file = file.clone().write(true).open(world.layout.segment(segment(no))).unwrap();
        file.set_modified(at(1000 + no)).unwrap();
    }
    let policy = Policy { wal_keep_time: Duration::from_secs(100), ..Policy::default() };
    let keeper = world.open(policy);
    retain(&keeper, 1100 + 30);
    assert_eq!(world.first(), 31, "30 is as old as it may become");
    retain(&keeper, 1100 + 40);
    assert_eq!(world.first(), 41);
    retain(&keeper, 9000);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
}

#[test]
fn segments_completed_before_the_time_is_known_are_not_old() {
    let world = World::new();
    for no in OLDEST..NEWEST {
        std::fs::remove_file(world.layout.segment(segment(no))).unwrap();
    }
    let wal_keep_time = Duration::from_secs(3600);
    let keeper = world.open(Policy { wal_keep_time, ..Policy::default() });
    let tli = TimelineId::FIRST;
    let newest = OLDEST + 2 * MIN_KEPT_SEGMENTS;
    for no in OLDEST..newest {
        let (no, keep) = (SegmentNo::new(no), Lsn::new(no * MIB));
        assert!(matches!(run(&keeper, Job::Prepare { tli, no, keep }), JobDone::Prepared { .. }));
        assert!(matches!(run(&keeper, Job::Finalize { tli, no }), JobDone::Finalized { .. }));
        run_ready(keeper.retain_if_due()).unwrap();
    }
    let (newest, now) = (Lsn::new(newest * MIB), SystemTime::now());
    run(&keeper, Job::Retain { tli, newest, now });
    while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
    assert_eq!(world.first(), OLDEST);
}

#[test]
fn on_a_full_disk_rules_and_idle_slots_go_and_then_nothing_comes_in() {
    let world = World::new();
    // No disk is that large.
    let policy = Policy {
        wal_keep_size: 1 << 40,
        high_watermark: Some(HighWatermark::Free(u64::MAX)),
        ..Policy::default()
    };
    let keeper = world.open(policy.clone());
    create(&keeper, "used", Origin::Asked, 50);
    create(&keeper, "idle", Origin::Asked, 20);
    report(&keeper, "used", 7, 50);
    assert_eq!(retain(&keeper, 0), (vec![], Receiving::Paused));
    assert!(world.slot("idle").invalidated.is_some());
    assert_eq!(world.slot("used").invalidated, None);
    assert_eq!(world.first(), 50);

    let roomy = Policy { high_watermark: Some(HighWatermark::Free(0)), ..policy };
    let keeper = world.open(roomy);
    assert_eq!(retain(&keeper, 1).1, Receiving::Open);
    assert!(world.folder.path().exists());
}

/// Two segments are missing. Only the rules in force release what lies before them, in their
/// order, and a start releases none of it.
#[test]
fn what_lies_before_a_hole_goes_by_the_rules() {
    let world = World::new();
    let keeper = world.open(Policy::default());
    create(&keeper, "s", Origin::Asked, 20);
    drop(keeper);
    for no in [50, 51] {
        std::fs::remove_file(world.layout.segment(segment(no))).unwrap();
    }
    let here = || {
        let there = |no: &u64| world.layout.segment(segment(*no)).exists();
        (OLDEST..NEWEST).filter(there).collect::<Vec<_>>()
    };
    let all = here();
    assert_eq!(all.len() as u64, NEWEST - OLDEST - 2);

    // A start removes nothing, and a rule keeps it.
    let keep = Policy { wal_keep_size: 1000 * MIB, ..Policy::default() };
    let keeper = world.open(keep);
    while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
    assert_eq!(here(), all);
    retain(&keeper, 1);
    assert_eq!(here(), all);
    assert_eq!(keeper.holds.oldest_kept(), Lsn::new(OLDEST * MIB));
    assert_eq!(keeper.holds.unbroken_from(), Lsn::new(52 * MIB));

    // A slot keeps what it needs, as far as that is here, and is not invalidated.
    let keeper = world.open(Policy::default());
    assert_eq!(retain(&keeper, 1), (Vec::new(), Receiving::Open));
    let needed: Vec<_> = all.iter().copied().filter(|no| *no >= 20).collect();
    assert_eq!(here(), needed);
    assert_eq!(world.slot("s").invalidated, None);

    // So does a standby.
    let keeper = world.open(Policy::default());
    run(&keeper, Job::DropSlot(SlotName::parse("s").unwrap()));
    let hold = keeper.holds.hold(Lsn::new(30 * MIB)).unwrap();
    retain(&keeper, 1);
    let needed: Vec<_> = all.iter().copied().filter(|no| *no >= 30).collect();
    assert_eq!(here(), needed);
    drop(hold);
    retain(&keeper, 2);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
    assert_eq!(keeper.holds.missing(Lsn::INVALID), []);
}
