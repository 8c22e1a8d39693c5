//! When slots are written, what that costs, and what holds when it fails.

use super::*;
use crate::keeper::{Job, JobDone};
use crate::store::control_file::Cluster;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::{Failing, FaultyDisk};
use crate::store::layout::{Layout, Listing};
use crate::store::retention::{Holds, Policy};
use crate::store::sealed_text::seal;
use crate::store::slots::{Cause, Create, InvalidSlots, Origin, SlotFiles, SlotGrant, SlotRecord};
use crate::wal::{SystemId, TimelineId};
use crate::wire::command::SlotLifetime;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

const MIB: u64 = 1 << 20;
const NEWEST: u64 = 100;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
    keeper: Keeper<FaultyDisk>,
    /// The streams that use a slot, by the number of their session.
    users: BTreeMap<u32, SlotGrant>,
}

/// A keeper of a directory in which no segment is.
fn open(policy: Policy) -> World {
    let folder = tempfile::tempdir().unwrap();
    let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
    let disk = FaultyDisk::default();
    let keeper = start(&disk, &layout, policy).unwrap();
    World { _folder: folder, layout, disk, keeper, users: BTreeMap::new() }
}

fn start(
    disk: &FaultyDisk,
    layout: &Layout,
    policy: Policy,
) -> Result<Keeper<FaultyDisk>, StoreFault> {
    let holds = Arc::new(Holds::new(Lsn::new(10 * MIB)));
    let listing = Listing { spares: vec![1], ..Listing::default() };
    let cluster = Cluster {
        system_id: SystemId::new(7),
        segment_size: SegmentSize::new(MIB).unwrap(),
        data_directory_mode: "0700".to_owned(),
        parameters: Vec::new(),
        timeline: TimelineId::FIRST,
        // The next start's walk begins here, so all that is older may go.
        start: Lsn::new(NEWEST * MIB),
        sealed: Vec::new(),
    };
    let keeper = Keeper::new(disk.clone(), layout.clone(), holds, &listing, None, Some(cluster));
    let keeper = keeper.with_policy(policy);
    run_ready(keeper.load_slots()).unwrap()?;
    Ok(keeper)
}

fn name(text: &str) -> SlotName {
    SlotName::parse(text).unwrap()
}

fn numbered(n: u64) -> String {
    format!("node_{n}")
}

fn at(seconds: u64) -> Now {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let passed = Duration::from_secs(seconds);
    Now { instant: *BEGAN + passed, time_of_day: SystemTime::UNIX_EPOCH + passed }
}

impl World {
    fn run(&mut self, job: Job) -> Result<(), String> {
        match run_ready(self.keeper.run(job)).unwrap() {
            JobDone::Done(_) => Ok(()),
            JobDone::Failed { error, .. } => Err(error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn retain(&mut self, seconds: u64) -> Result<(), String> {
        self.retain_behind(NEWEST, seconds)
    }

    /// Retention, with so many MiB of WAL.
    fn retain_behind(&mut self, newest: u64, seconds: u64) -> Result<(), String> {
        let newest = Lsn::new(newest * MIB + 5);
        self.keeper.clock = Box::new(move || at(seconds));
        self.run(Job::Retain { tli: TimelineId::FIRST, newest })
    }

    /// A session takes its slot into the table; nothing is on disk yet.
    fn ask_for(&self, text: &str, origin: Origin) {
        let mut slots = self.keeper.holds.slots.lock();
        let create = Create {
            name: name(text),
            lifetime: SlotLifetime::Persistent,
            origin,
            reserve: Some(Lsn::new(20 * MIB)),
            session: slots.enter(1),
        };
        slots.create(create, 1000).unwrap();
    }

    fn create(&mut self, text: &str, origin: Origin) {
        self.ask_for(text, origin);
        self.run(Job::SaveSlot(name(text))).unwrap();
    }

    /// The session with this number reports, with the slot that it has or now gets.
    fn report(&mut self, text: &str, pid: u32, flush: u64) {
        let mut slots = self.keeper.holds.slots.lock();
        let used = self.users.entry(pid).or_insert_with(|| {
            let session = slots.enter(pid);
            slots.acquire(text, session, InvalidSlots::Accept).unwrap()
        });
        used.reported.store(flush * MIB, Ordering::Release);
    }

    fn begin_drop(&self, text: &str) {
        let mut slots = self.keeper.holds.slots.lock();
        let session = slots.enter(7);
        slots.begin_drop(text, session).unwrap();
    }

    /// What whichever generation a start reads says, the newest one first.
    fn generations(&self) -> [BTreeMap<String, SlotRecord>; 2] {
        let read = run_ready(SlotFiles::default().read(&self.disk, &self.layout)).unwrap();
        read.unwrap().map(|generation| {
            let slots = generation.map(|generation| generation.slots).unwrap_or_default();
            slots.into_iter().map(|record| (record.name.to_string(), record)).collect()
        })
    }

    /// The slots' names in both generations.
    fn names(&self) -> [Vec<String>; 2] {
        self.generations().map(|slots| slots.into_keys().collect())
    }

    /// The sessions that have to end.
    fn revoked(&self) -> Vec<u32> {
        let revoked = self.keeper.holds.slots.lock().take_revoked();
        let users = self.users.iter();
        users.filter(|(_, used)| revoked.contains(&used.token)).map(|(pid, _)| *pid).collect()
    }

    fn is_invalid(&self, text: &str) -> bool {
        self.keeper.holds.slots.lock().get(text).unwrap().invalidated.is_some()
    }
}

#[test]
fn slots_that_wait_together_are_created_and_dropped_together() {
    let mut world = open(Policy::default());
    world.create("first", Origin::Asked);
    world.disk.take_syncs();
    for n in 0..500 {
        world.ask_for(&numbered(n), Origin::Asked);
    }
    for n in 0..500 {
        world.run(Job::SaveSlot(name(&numbered(n)))).unwrap();
        assert!(!world.keeper.holds.slots.lock().get(&numbered(n)).unwrap().is_used());
    }
    assert_eq!(world.disk.take_syncs(), 2, "one for each generation");
    assert_eq!(world.names().map(|names| names.len()), [501, 501]);

    world.disk.take_syncs();
    for n in 0..500 {
        world.begin_drop(&numbered(n));
    }
    for n in 0..500 {
        world.run(Job::DropSlot(name(&numbered(n)))).unwrap();
    }
    assert_eq!(world.disk.take_syncs(), 2);
    assert_eq!(world.names(), [["first"], ["first"]]);
    assert_eq!(world.keeper.holds.slots.lock().len(), 1);
}

#[test]
fn positions_of_all_slots_cost_one_sync() {
    let mut world = open(Policy::default());
    for n in 0..500 {
        world.ask_for(&numbered(n), Origin::Asked);
    }
    for n in 0..500 {
        world.run(Job::SaveSlot(name(&numbered(n)))).unwrap();
    }
    for second in 1..5 {
        for n in 0..500 {
            world.report(&numbered(n), 10 + n as u32, 30 + second);
        }
        world.disk.take_syncs();
        world.retain(second).unwrap();
        assert_eq!(world.disk.take_syncs(), 1);
        let [newest, older] = world.generations();
        let oldest = |slots: &BTreeMap<String, SlotRecord>| {
            slots.values().map(|record| record.restart_lsn.unwrap().raw() / MIB).min()
        };
        let before = if second == 1 { 20 } else { 29 + second };
        assert_eq!((oldest(&newest), oldest(&older)), (Some(30 + second), Some(before)));
        let needed = world.keeper.holds.slots.lock().get("node_7").unwrap().needed_from();
        assert_eq!(needed, Some(Lsn::new(before * MIB)), "the older generation keeps its WAL");
    }
    // They stand still: the older generation follows, and then nothing is written.
    for (second, syncs) in [(5, 1), (6, 0), (7, 0)] {
        world.disk.take_syncs();
        world.retain(second).unwrap();
        assert_eq!(world.disk.take_syncs(), syncs, "second {second}");
    }
}

#[test]
fn on_a_full_disk_positions_take_the_space_of_a_spare() {
    let mut world = open(Policy::default());
    world.create("s", Origin::Asked);
    std::fs::write(world.layout.spare(1), "").unwrap();
    world.report("s", 7, 50);
    world.disk.fail(Failing::NextWrite, ENOSPC);
    world.retain(1).unwrap();
    assert!(!world.layout.spare(1).exists());
    assert_eq!(world.generations()[0]["s"].restart_lsn, Some(Lsn::new(50 * MIB)));
}

/// The creation that is refused would have made the file longer. What it left must not be in the
/// way of what lets WAL go.
#[test]
fn on_a_full_disk_a_refused_creation_keeps_nothing_else_from_being_written() {
    let mut world = open(Policy::default());
    world.create("s", Origin::Asked);
    std::fs::write(world.layout.spare(1), "").unwrap();
    world.disk.leave_room(0);
    let refused = (0..100).find(|n| {
        world.ask_for(&numbered(*n), Origin::Asked);
        world.run(Job::SaveSlot(name(&numbered(*n)))).is_err()
    });
    let refused = refused.expect("the files do not grow");
    assert!(refused > 10, "{refused}");
    for again in 0..3 {
        world.report("s", 7, 50 + again);
        world.retain(2 * again).unwrap();
        assert_eq!(world.generations()[0]["s"].restart_lsn, Some(Lsn::new((50 + again) * MIB)));
        world.ask_for("t", Origin::Asked);
        world.run(Job::SaveSlot(name("t"))).unwrap_err();
    }
    for n in 0..refused {
        world.begin_drop(&numbered(n));
        world.run(Job::DropSlot(name(&numbered(n)))).unwrap();
    }
    assert_eq!(world.names(), [["s"], ["s"]]);
}

/// A start finds one of the two files damaged.
#[test]
fn on_a_full_disk_a_damaged_file_is_replaced() {
    let mut world = open(Policy::default());
    world.create("s", Origin::Asked);
    let [first, _] = world.layout.slots();
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    world.disk.leave_room(0);
    std::fs::write(world.layout.spare(1), "").unwrap();
    world.keeper = start(&world.disk, &world.layout, Policy::default()).unwrap();
    world.report("s", 7, 50);
    world.retain(1).unwrap();
    world.retain(3).unwrap();
    let at = |slots: BTreeMap<String, SlotRecord>| slots["s"].restart_lsn;
    assert_eq!(world.generations().map(at), [Some(Lsn::new(50 * MIB)); 2]);
}

#[test]
fn a_loss_that_is_not_durable_did_not_happen() {
    let mut world = open(Policy { max_slot_wal_keep_size: Some(30 * MIB), ..Policy::default() });
    world.create("s", Origin::Asked);
    world.report("s", 7, 20);
    world.disk.fail(Failing::Writes, EIO);
    world.retain(1).unwrap_err();
    assert!(world.revoked().is_empty(), "its user goes on");
    assert!(!world.is_invalid("s"));
    // The slot has left the position by which it would have been lost.
    world.disk.heal();
    world.report("s", 7, 90);
    world.retain(2).unwrap();
    world.retain(4).unwrap();
    assert!(world.revoked().is_empty());
    let [newest, older] = world.generations();
    for record in [&newest["s"], &older["s"]] {
        assert_eq!((record.invalidated, record.restart_lsn), (None, Some(Lsn::new(90 * MIB))));
    }
    // Out of its limit, on a disk that works.
    world.retain_behind(130, 5).unwrap();
    assert_eq!(world.revoked(), [7]);
    let lost = world.generations().map(|slots| slots["s"].invalidated);
    assert_eq!(lost, [Some(Cause::WalRemoved); 2]);
}

#[test]
fn a_user_who_comes_while_its_idle_slot_is_invalidated_keeps_it() {
    let mut world =
        open(Policy { idle_slot_timeout: Duration::from_secs(60), ..Policy::default() });
    world.create("s", Origin::Asked);
    world.retain(0).unwrap();
    let holds = Arc::clone(&world.keeper.holds);
    world.disk.meanwhile(move || {
        let mut slots = holds.slots.lock();
        let session = slots.enter(7);
        slots.acquire("s", session, InvalidSlots::Refuse).unwrap();
    });
    world.retain(100).unwrap();
    assert!(world.revoked().is_empty());
    assert!(!world.is_invalid("s"));
    let on_disk = world.generations().map(|slots| slots["s"].invalidated);
    assert_eq!(on_disk, [None, None]);
    assert_eq!(world.keeper.holds.oldest_kept(), Lsn::new(20 * MIB));
}

#[test]
fn an_expired_slot_is_forgotten_when_it_is_off_the_disk() {
    let policy = Policy { auto_created_ttl: Duration::from_secs(60), ..Policy::default() };
    let mut world = open(policy.clone());
    world.create("auto", Origin::AutoCreated);
    world.retain(0).unwrap();
    world.disk.fail(Failing::Writes, EIO);
    world.retain(100).unwrap();
    assert!(world.keeper.holds.slots.lock().get("auto").is_some(), "it is on disk");
    assert_eq!(world.keeper.holds.oldest_kept(), Lsn::new(20 * MIB));
    world.disk.heal();
    world.retain(101).unwrap();
    assert_eq!(world.names().concat(), Vec::<String>::new());
    assert!(world.keeper.holds.slots.lock().is_empty());
    world.keeper = start(&world.disk, &world.layout, policy).unwrap();
    assert!(world.keeper.holds.slots.lock().is_empty());
}

#[test]
fn a_user_who_comes_while_its_slot_expires_keeps_it() {
    let mut world = open(Policy { auto_created_ttl: Duration::from_secs(60), ..Policy::default() });
    world.create("auto", Origin::AutoCreated);
    world.retain(0).unwrap();
    let holds = Arc::clone(&world.keeper.holds);
    world.disk.meanwhile(move || {
        let mut slots = holds.slots.lock();
        let session = slots.enter(7);
        slots.acquire("auto", session, InvalidSlots::Refuse).unwrap();
    });
    world.retain(100).unwrap();
    assert_eq!(world.names(), [["auto"], ["auto"]]);
    assert_eq!(world.keeper.holds.slots.lock().get("auto").unwrap().active_pid(), Some(7));
}

#[test]
fn a_slot_that_could_not_be_created_or_dropped_is_what_was_answered() {
    let mut world = open(Policy::default());
    world.create("s", Origin::Asked);
    world.disk.fail(Failing::Syncs, EIO);
    world.ask_for("t", Origin::Asked);
    world.run(Job::SaveSlot(name("t"))).unwrap_err();
    assert!(world.keeper.holds.slots.lock().get("t").is_none());
    world.begin_drop("s");
    world.run(Job::DropSlot(name("s"))).unwrap_err();
    world.disk.heal();
    world.retain(1).unwrap();
    world.retain(2).unwrap();
    assert_eq!(world.names(), [["s"], ["s"]]);
    world.begin_drop("s");
    world.run(Job::DropSlot(name("s"))).unwrap();
    assert_eq!(world.names().concat(), Vec::<String>::new());
}

/// What an earlier version wrote.
fn write_former(layout: &Layout, slot: &str, restart_lsn: Option<&str>) {
    #[derive(serde::Serialize)]
    struct Text<'a> {
        name: &'a str,
        restart_lsn: Option<&'a str>,
        invalidated: Option<Cause>,
        origin: Origin,
    }
    let folder = layout.former_slots();
    std::fs::create_dir_all(&folder).unwrap();
    let text = Text { name: slot, restart_lsn, invalidated: None, origin: Origin::AutoCreated };
    std::fs::write(folder.join(slot), seal("slot", 1, &text)).unwrap();
}

#[test]
fn slots_of_an_earlier_version_are_taken_over() {
    let World { _folder, layout, disk, .. } = open(Policy::default());
    write_former(&layout, "a", Some("0/1400028"));
    write_former(&layout, "b", None);
    let in_folder = |name: &str| layout.former_slots().join(name);
    std::fs::write(in_folder("c.tmp"), "half").unwrap();
    std::fs::write(in_folder("Not a slot"), "").unwrap();

    // While they cannot be written, they stay as they are.
    disk.fail(Failing::Syncs, EIO);
    assert!(start(&disk, &layout, Policy::default()).is_err());
    assert!(in_folder("a").exists() && in_folder("b").exists());
    disk.heal();
    let keeper = start(&disk, &layout, Policy::default()).unwrap();
    let folder = std::fs::read_dir(layout.former_slots()).unwrap();
    let left: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["Not a slot"]);
    let world = World { _folder, layout, disk, keeper, users: BTreeMap::new() };
    assert_eq!(world.names(), [["a", "b"], ["a", "b"]]);
    let slots = world.keeper.holds.slots.lock();
    let a = slots.get("a").unwrap();
    assert_eq!((a.restart_lsn, a.origin), (Some(Lsn::new(0x140_0028)), Origin::AutoCreated));
    drop(slots);

    // The earlier version ran once more, and moved a slot.
    write_former(&world.layout, "a", Some("0/2400028"));
    let keeper = start(&world.disk, &world.layout, Policy::default()).unwrap();
    assert_eq!(world.names(), [["a", "b"], ["a", "b"]]);
    let slots = keeper.holds.slots.lock();
    assert_eq!(slots.get("a").unwrap().restart_lsn, Some(Lsn::new(0x240_0028)));
}

/// The start before this one was cut off after it removed their files. When they came back after a
/// loss of power, they would count as newer than what both files say by then.
#[test]
fn a_start_makes_durable_that_former_slots_are_gone() {
    let World { _folder, layout, disk, .. } = open(Policy::default());
    std::fs::create_dir(layout.former_slots()).unwrap();
    disk.take_synced_dirs();
    start(&disk, &layout, Policy::default()).unwrap();
    let synced = disk.take_synced_dirs();
    assert!(synced.contains(&layout.former_slots()), "{synced:?}");
}

#[test]
fn a_damaged_slot_of_an_earlier_version_keeps_the_hub_from_starting() {
    let World { _folder, layout, disk, .. } = open(Policy::default());
    write_former(&layout, "s", None);
    let folder = layout.former_slots();
    std::fs::copy(folder.join("s"), folder.join("t")).unwrap();
    let fault = |text: &str| {
        let fault = start(&disk, &layout, Policy::default()).map(|_| ()).unwrap_err().to_string();
        assert!(fault.contains(text), "{fault}");
    };
    fault("slots/t");
    std::fs::remove_file(folder.join("t")).unwrap();
    std::fs::write(folder.join("s"), "walhub slot 1 00000000\n{}").unwrap();
    fault("checksum");
}
