//! What the keeper removes, and what it leaves.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::keeper::{Job, JobDone, Tended};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::digest::{self, BlockHasher};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::holes::Extent;
use crate::store::layout::{Layout, Listing};
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::{HighWatermark, Holds, MIN_KEPT_SEGMENTS, Policy};
use crate::store::slots::{
    Cause, Create, InvalidSlots, Origin, SlotFiles, SlotGrant, SlotName, SlotRecord, SlotToken,
};
use crate::wal::{SystemId, TimelineId};
use crate::wire::command::SlotLifetime;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

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
    /// What the keeper's clock shows.
    seconds: Rc<Cell<u64>>,
    /// So many seconds somebody has set the time of day ahead.
    ahead: Rc<Cell<u64>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        for no in OLDEST..NEWEST {
            std::fs::write(layout.segment(segment(no)), "").unwrap();
        }
        Self { folder, layout, seconds: Rc::default(), ahead: Rc::default() }
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
        let seconds = Rc::clone(&self.seconds);
        let (began, ahead) = (Instant::now(), Rc::clone(&self.ahead));
        let clock = move || Now {
            instant: began + Duration::from_secs(seconds.get()),
            time_of_day: at(seconds.get() + ahead.get()),
        };
        let keeper = keeper.with_policy(policy).with_clock(clock);
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

/// One round of retention with files: which streams have to end, and whether WAL may come in.
fn retain(world: &World, keeper: &Keeper<PlainDisk>, seconds: u64) -> (Vec<SlotToken>, Receiving) {
    let newest = Lsn::new(NEWEST * MIB + 5);
    world.seconds.set(seconds);
    let done = run(keeper, Job::Retain { tli: TimelineId::FIRST, newest });
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    tend_to_the_end(keeper);
    (keeper.holds.slots.lock().take_revoked(), keeper.holds.receiving())
}

/// A slot on disk that keeps WAL from `from` on.
fn create(keeper: &Keeper<PlainDisk>, name: &str, origin: Origin, from: u64) {
    let name = SlotName::parse(name).unwrap();
    let mut slots = keeper.holds.slots.lock();
    let create = Create {
        name: name.clone(),
        lifetime: SlotLifetime::Persistent,
        origin,
        reserve: Some(Lsn::new(from * MIB)),
        session: slots.enter(1),
    };
    slots.create(create, 10).unwrap();
    drop(slots);
    let done = run(keeper, Job::SaveSlot(name));
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
}

/// A stream gets the slot.
fn begin(keeper: &Keeper<PlainDisk>, name: &str) -> SlotGrant {
    let mut slots = keeper.holds.slots.lock();
    let session = slots.enter(7);
    slots.acquire(name, session, InvalidSlots::Accept).unwrap()
}

fn report(used: &SlotGrant, flush: u64) {
    used.reported.store(flush * MIB, Ordering::Release);
}

#[test]
fn a_slot_keeps_wal_by_what_is_on_disk_and_over_a_restart() {
    let world = World::new();
    let keeper = world.open(Policy::default());
    create(&keeper, "s", Origin::Asked, 20);
    retain(&world, &keeper, 0);
    assert_eq!(world.first(), 20);
    let used = begin(&keeper, "s");
    report(&used, 50);
    retain(&world, &keeper, 1);
    assert_eq!(world.slot("s").restart_lsn, Some(Lsn::new(50 * MIB)));
    assert_eq!(world.first(), 20, "a start may have to read the generation before");
    retain(&world, &keeper, 2);
    assert_eq!(world.first(), 50);

    // Later reports are lost in a crash; the WAL is not.
    report(&used, 60);
    drop(keeper);
    let keeper = world.open(Policy::default());
    retain(&world, &keeper, 2);
    assert_eq!(world.first(), 50);
    let done = run(&keeper, Job::DropSlot(SlotName::parse("s").unwrap()));
    assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    assert_eq!(world.find_slot("s"), None);
    retain(&world, &keeper, 3);
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
    let used = begin(&keeper, "far");
    report(&used, 69);
    assert_eq!(retain(&world, &keeper, 0), (vec![used.token], Receiving::Open));
    let far = world.slot("far");
    assert_eq!((far.restart_lsn, far.invalidated), (None, Some(Cause::WalRemoved)));
    assert_eq!(world.slot("near").invalidated, None);
    assert_eq!(world.first(), 75, "what nobody can need goes, limit or not");
    assert_eq!(retain(&world, &keeper, 1), (vec![], Receiving::Open));
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
    let used = begin(&keeper, "auto");
    report(&used, 30);
    retain(&world, &keeper, 0);
    retain(&world, &keeper, 59);
    assert_eq!(world.first(), 20);
    retain(&world, &keeper, 60);
    assert_eq!(world.slot("asked").invalidated.unwrap().to_string(), "idle_timeout");
    assert_eq!(world.first(), 30);
    keeper.holds.slots.lock().release(&used.name, used.token);
    retain(&world, &keeper, 200);
    assert!(world.find_slot("auto").is_some());
    retain(&world, &keeper, 300);
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
    retain(&world, &keeper, 1100 + 30);
    assert_eq!(world.first(), 31, "30 is as old as it may become");
    retain(&world, &keeper, 1100 + 40);
    assert_eq!(world.first(), 41);
    retain(&world, &keeper, 9000);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
}

/// A repair, or a copy of the directory, gives files another time.
#[test]
fn time_is_that_of_the_digest_where_there_is_one() {
    let world = World::new();
    for no in OLDEST..NEWEST {
        let bytes = vec![0; MIB as usize];
        let mut hasher = BlockHasher::default();
        hasher.feed(&bytes);
        let blocks = hasher.finish();
        let digest = blocks.of_segment(SystemId::new(7), segment(no), Some(at(1000 + no)));
        run_ready(digest::store(&PlainDisk, &world.layout, &digest.unwrap())).unwrap().unwrap();
        let file = std::fs::File::options().write(true).open(world.layout.segment(segment(no)));
        file.unwrap().set_modified(at(1100)).unwrap();
    }
    let policy = Policy { wal_keep_time: Duration::from_secs(100), ..Policy::default() };
    let keeper = world.open(policy);
    retain(&world, &keeper, 1100 + 30);
    assert_eq!(world.first(), 31, "30 is as old as it may become");
}

/// A file from the future, and a clock that is set ahead: what is kept for a time is kept for it.
#[test]
fn no_clock_that_is_wrong_keeps_wal_for_ever_or_takes_it() {
    let world = World::new();
    const DAYS: u64 = 8 * 24 * 3600;
    for no in OLDEST..NEWEST {
        let file = std::fs::File::options().write(true).open(world.layout.segment(segment(no)));
        let ahead = if no == 20 { DAYS } else { 0 };
        file.unwrap().set_modified(at(1000 + ahead)).unwrap();
    }
    let policy = Policy {
        wal_keep_time: Duration::from_secs(100),
        idle_slot_timeout: Duration::from_secs(1000),
        auto_created_ttl: Duration::from_secs(1000),
        ..Policy::default()
    };
    let keeper = world.open(policy);
    create(&keeper, "asked", Origin::Asked, 60);
    create(&keeper, "auto", Origin::AutoCreated, 60);
    retain(&world, &keeper, 1050);
    assert_eq!(world.first(), OLDEST);
    world.ahead.set(DAYS);
    retain(&world, &keeper, 1052);
    assert_eq!(world.first(), OLDEST, "nothing is older than it was");
    world.ahead.set(0);
    retain(&world, &keeper, 1100);
    assert_eq!(world.first(), 20);
    retain(&world, &keeper, 1149);
    assert_eq!(world.first(), 20, "it was seen first 49 seconds ago");
    retain(&world, &keeper, 1200);
    assert_eq!(world.first(), 60);
    world.ahead.set(DAYS);
    retain(&world, &keeper, 1201);
    assert_eq!(world.slot("asked").invalidated, None);
    assert_eq!(world.slot("auto").invalidated, None);
}

/// After a start everybody may come back; later who has left a moment ago.
#[test]
fn nothing_goes_that_somebody_may_come_back_for() {
    let world = World::new();
    let grace = Duration::from_secs(90);
    let policy = Policy { max_slot_wal_keep_size: Some(30 * MIB), grace, ..Policy::default() };
    let keeper = world.open(policy);
    create(&keeper, "s", Origin::Asked, 20);
    for second in [0, 89] {
        retain(&world, &keeper, second);
        assert_eq!((world.first(), world.slot("s").invalidated), (OLDEST, None), "at {second}");
    }
    let hold = keeper.holds.hold(Lsn::new(40 * MIB)).unwrap().for_standby("other");
    hold.sent(Lsn::new(NEWEST * MIB));
    let used = begin(&keeper, "s");
    report(&used, 65);
    retain(&world, &keeper, 90);
    assert_eq!(world.first(), 70, "a limit is for those who are there");
    hold.report(Lsn::INVALID, Lsn::new(75 * MIB));
    drop(hold);
    keeper.holds.slots.lock().release(&used.name, used.token);
    retain(&world, &keeper, 91);
    retain(&world, &keeper, 180);
    assert_eq!(world.first(), 75);
    retain(&world, &keeper, 181);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
}

/// Completes a segment whose content nobody reads.
fn complete(keeper: &Keeper<PlainDisk>, no: u64) {
    let (tli, no, keep) = (TimelineId::FIRST, SegmentNo::new(no), Lsn::new(no * MIB));
    assert!(matches!(run(keeper, Job::Prepare { tli, no, keep }), JobDone::Prepared { .. }));
    assert!(matches!(run(keeper, Job::Finalize { tli, no }), JobDone::Finalized { .. }));
    run_ready(keeper.retain_if_due()).unwrap();
}

fn tend_to_the_end(keeper: &Keeper<PlainDisk>) {
    while run_ready(keeper.tend()).unwrap().unwrap() == Tended::More {}
}

#[test]
fn segments_completed_before_retention_is_asked_for_stay() {
    let world = World::new();
    for no in OLDEST..NEWEST {
        std::fs::remove_file(world.layout.segment(segment(no))).unwrap();
    }
    let keeper = world.open(Policy::default());
    let newest = OLDEST + 2 * MIN_KEPT_SEGMENTS;
    for no in OLDEST..newest {
        complete(&keeper, no);
    }
    tend_to_the_end(&keeper);
    assert_eq!(world.first(), OLDEST);
    run(&keeper, Job::Retain { tli: TimelineId::FIRST, newest: Lsn::new(newest * MIB) });
    tend_to_the_end(&keeper);
    assert_eq!(world.first(), newest - MIN_KEPT_SEGMENTS);
}

/// The control thread's notes may find the queue full for as long as the keeper is busy.
#[test]
fn time_goes_on_though_nobody_asks_for_retention() {
    let world = World::new();
    let idle_slot_timeout = Duration::from_secs(60);
    let wal_keep_time = Duration::from_secs(30);
    let keeper = world.open(Policy { idle_slot_timeout, wal_keep_time, ..Policy::default() });
    create(&keeper, "s", Origin::Asked, 20);
    retain(&world, &keeper, 0);
    complete(&keeper, NEWEST);
    assert_eq!(world.slot("s").invalidated, None);
    world.seconds.set(61);
    complete(&keeper, NEWEST + 1);
    assert_eq!(world.slot("s").invalidated.unwrap().to_string(), "idle_timeout");
    let age = |no| keeper.completed.age(SegmentNo::new(no), (keeper.clock)());
    let seconds = |age| Some(Duration::from_secs(age));
    assert_eq!((age(NEWEST), age(NEWEST + 1)), (seconds(61), seconds(0)));
}

/// A tick of the retention clock may still wait when all WAL is moved aside.
#[test]
fn retention_of_a_line_that_was_set_aside_removes_nothing_of_the_next() {
    let world = World::new();
    let policy =
        Policy { high_watermark: Some(HighWatermark::Free(u64::MAX)), ..Policy::default() };
    let keeper = world.open(policy);
    assert_eq!(retain(&world, &keeper, 0).1, Receiving::Paused);
    let instance = InstanceId::new(3);
    let cluster = keeper.cluster.borrow().clone().unwrap();
    assert!(matches!(run(&keeper, Job::SetAside(instance)), JobDone::Done(_)));
    assert_eq!(keeper.holds.receiving(), Receiving::Open, "nobody would lift it");

    let newest = Lsn::new(NEWEST * MIB);
    run(&keeper, Job::Retain { tli: TimelineId::FIRST, newest });
    assert_eq!(keeper.holds.receiving(), Receiving::Open);
    // The next line is another cluster's, and lower.
    let cluster = Some(Cluster { start: Lsn::new(OLDEST * MIB), ..cluster });
    run(&keeper, Job::SaveControl(Box::new(ControlFile { instance, cluster })));
    for no in OLDEST..OLDEST + 3 {
        complete(&keeper, no);
    }
    tend_to_the_end(&keeper);
    assert_eq!(world.first(), OLDEST);
    assert_eq!(keeper.holds.oldest_kept(), Lsn::new(OLDEST * MIB));
}

/// First a spare, then what only rules keep, then nothing comes in for the grace, then slots that
/// nobody uses, one in each look.
#[test]
fn on_a_full_disk_a_pause_comes_before_any_slot_goes() {
    let world = World::new();
    std::fs::write(world.layout.spare(1), "").unwrap();
    // No disk is that large.
    let policy = Policy {
        wal_keep_size: 1 << 40,
        high_watermark: Some(HighWatermark::Free(u64::MAX)),
        grace: Duration::from_secs(90),
        ..Policy::default()
    };
    let keeper = world.open(policy.clone());
    for (name, no) in [("used", 50), ("idle", 20), ("more", 30)] {
        create(&keeper, name, Origin::Asked, no);
    }
    let used = begin(&keeper, "used");
    report(&used, 50);
    let is_lost = |name| world.slot(name).invalidated.is_some();
    for (second, lost, first) in [
        (0, [false; 3], 20),
        (89, [false; 3], 20),
        (90, [true, false, false], 30),
        (91, [true, true, false], 50),
        (99, [true, true, false], 50),
    ] {
        assert_eq!(retain(&world, &keeper, second), (vec![], Receiving::Paused));
        let found = ["idle", "more", "used"].map(is_lost);
        assert_eq!((found, world.first()), (lost, first), "at {second}");
        assert!(!world.layout.spare(1).exists());
    }
    // Its user leaves, and is waited for.
    keeper.holds.slots.lock().release(&used.name, used.token);
    retain(&world, &keeper, 100);
    retain(&world, &keeper, 189);
    assert!(!is_lost("used"));
    retain(&world, &keeper, 190);
    assert!(is_lost("used"));

    let roomy = Policy { high_watermark: Some(HighWatermark::Free(0)), ..policy };
    let keeper = world.open(roomy);
    assert_eq!(retain(&world, &keeper, 201).1, Receiving::Open);
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
    retain(&world, &keeper, 1);
    assert_eq!(here(), all);
    assert_eq!(keeper.holds.oldest_kept(), Lsn::new(OLDEST * MIB));
    assert_eq!(keeper.holds.unbroken_from(), Lsn::new(52 * MIB));

    // A slot keeps what it needs, as far as that is here, and is not invalidated.
    let keeper = world.open(Policy::default());
    assert_eq!(retain(&world, &keeper, 1), (Vec::new(), Receiving::Open));
    let needed: Vec<_> = all.iter().copied().filter(|no| *no >= 20).collect();
    assert_eq!(here(), needed);
    assert_eq!(world.slot("s").invalidated, None);

    // So does a standby.
    let keeper = world.open(Policy::default());
    run(&keeper, Job::DropSlot(SlotName::parse("s").unwrap()));
    let hold = keeper.holds.hold(Lsn::new(30 * MIB)).unwrap();
    retain(&world, &keeper, 1);
    let needed: Vec<_> = all.iter().copied().filter(|no| *no >= 30).collect();
    assert_eq!(here(), needed);
    drop(hold);
    retain(&world, &keeper, 2);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
    assert_eq!(keeper.holds.missing(Lsn::INVALID), []);
}

/// Above the watermark, after a kill: what only rules keep goes, and what a standby without a slot
/// needs does not.
#[test]
fn a_standby_without_a_slot_finds_its_wal_after_a_restart_above_the_watermark() {
    let world = World::new();
    let grace = Duration::from_secs(90);
    let keep = Policy { wal_keep_size: 1000 * MIB, grace, ..Policy::default() };
    let keeper = world.open(keep.clone());
    let hold = keeper.holds.hold(Lsn::new(40 * MIB + 7)).unwrap().for_standby("s");
    retain(&world, &keeper, 1);
    assert_eq!(world.first(), OLDEST);
    drop((keeper, hold));

    // No disk has as much room as that.
    let full = Policy { high_watermark: Some(HighWatermark::Free(1 << 60)), ..keep };
    let keeper = world.open(full.clone());
    retain(&world, &keeper, 2);
    assert_eq!(world.first(), 40, "it may come back");
    retain(&world, &keeper, 60);
    assert_eq!(world.first(), 40);
    // It did not.
    retain(&world, &keeper, 92);
    assert_eq!(world.first(), NEWEST - MIN_KEPT_SEGMENTS);
    retain(&world, &keeper, 94);
    drop(keeper);
    let keeper = world.open(full);
    assert_eq!(keeper.holds.holders(std::time::Instant::now(), grace), [], "nobody is waited for");
}
