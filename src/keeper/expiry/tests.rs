//! The end of what was set aside, over several runs of a hub: what goes, what stays, and crashes.

use super::*;
use crate::keeper::{Job, JobDone};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::{Failing, FaultyDisk};
use crate::store::layout::{Layout, Listing};
use crate::store::retention::{Holds, Policy};
use crate::wal::Lsn;
use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const KEEP: Duration = Duration::from_secs(30 * 86_400);
const AWAY: &str = "diverged/1-0_5000060";

/// A hub's directory over several runs, with a clock that the test sets.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    clock: Rc<Cell<Now>>,
    keep: Duration,
}

/// One run.
struct Run {
    keeper: Keeper<FaultyDisk>,
    disk: FaultyDisk,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let clock = Rc::new(Cell::new(Now::by_system()));
        let world = Self { _folder: folder, layout, clock, keep: KEEP };
        world.put("diverged/1-0_5000060/000000010000000000000005");
        world.put("diverged/1-0_5000060/000000010000000000000006");
        world.put("pg_wal.aside.1/000000010000000000000001");
        world.put("pg_wal.aside.1/archive_status/000000010000000000000001.done");
        world.put("pg_wal/000000010000000000000009.partial.stray");
        world.put("damaged/000000010000000000000003");
        world
    }

    fn put(&self, name: &str) {
        let path = self.layout.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.layout.root().join(name).symlink_metadata().is_ok()
    }

    /// The hub starts.
    fn start(&self) -> Run {
        let (disk, holds) = (FaultyDisk::default(), Arc::new(Holds::new(Lsn::INVALID)));
        let (layout, listing) = (self.layout.clone(), Listing::default());
        let keeper = Keeper::new(disk.clone(), layout, holds, &listing, None, None);
        let clock = Rc::clone(&self.clock);
        let policy = Policy { keep_set_aside: self.keep, ..Policy::default() };
        let keeper = keeper.with_clock(move || clock.get()).with_policy(policy);
        run_ready(keeper.load_confirmed()).unwrap();
        let run = Run { keeper, disk };
        run.settle();
        run
    }

    /// So much time passes by the clock that does not jump.
    fn pass(&self, time: Duration) {
        let now = self.clock.get();
        self.clock.set(Now { instant: now.instant + time, ..now });
    }
}

impl Run {
    /// Everything is done that there is to do. Returns false when the process was killed.
    fn settle(&self) -> bool {
        loop {
            match run_ready(self.keeper.tend_asides()) {
                None => return false,
                Some(Tended::Idle) => return true,
                Some(Tended::More) => {}
            }
        }
    }

    fn confirm(&self, name: &str) -> Result<(), String> {
        match run_ready(self.keeper.run(Job::ConfirmAside(name.to_owned()))).unwrap() {
            JobDone::Done(_) => Ok(()),
            JobDone::Failed { error, .. } => Err(error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    /// For how long the hub has run since the first confirmation of this one, and how many of its
    /// files are not confirmed.
    fn seen(&self, name: &str) -> (Option<Duration>, usize) {
        let known = self.keeper.holds.asides.known().unwrap();
        let aside = known.get(name).unwrap();
        (aside.confirmed, aside.left_out)
    }
}

#[test]
fn what_is_confirmed_goes_when_its_time_is_up_and_nothing_else_does() {
    let world = World::new();
    let run = world.start();
    assert_eq!(run.confirm("diverged/2-0_1"), Err(not_set_aside("diverged/2-0_1")));
    for name in [AWAY, "pg_wal.aside.1", "pg_wal/000000010000000000000009.partial.stray"] {
        run.confirm(name).unwrap();
        assert_eq!(run.seen(name), (Some(Duration::ZERO), 0));
    }
    world.pass(KEEP - DAY);
    run.settle();
    assert_eq!(run.seen(AWAY), (Some(KEEP - DAY), 0));
    // It says the same again: nothing begins anew.
    run.confirm(AWAY).unwrap();
    assert!(world.has(AWAY) && world.has("pg_wal.aside.1"));
    world.pass(DAY);
    run.settle();
    assert!(!world.has(AWAY) && !world.has("pg_wal.aside.1") && world.has("diverged"));
    assert!(!world.has("pg_wal/000000010000000000000009.partial.stray"));
    assert!(world.has("damaged/000000010000000000000003"), "nobody has confirmed it");
    assert_eq!(run.keeper.holds.asides.known().unwrap().number(), 1);
    // The file has forgotten it, too.
    world.put("diverged/1-0_5000060/000000010000000000000005");
    assert_eq!(world.start().seen(AWAY), (None, 1));
}

fn not_set_aside(name: &str) -> String {
    format!("nothing called \"{name}\" was set aside")
}

#[test]
fn a_file_that_comes_or_changes_later_stays_and_resets_nothing() {
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    world.pass(DAY);
    std::thread::sleep(Duration::from_millis(20));
    world.put("diverged/1-0_5000060/000000010000000000000007");
    world.put("diverged/1-0_5000060/000000010000000000000006");
    world.pass(DAY);
    run.settle();
    assert_eq!(run.seen(AWAY), (Some(2 * DAY), 2));
    world.pass(KEEP - 2 * DAY);
    run.settle();
    assert!(!world.has("diverged/1-0_5000060/000000010000000000000005"));
    assert!(world.has("diverged/1-0_5000060/000000010000000000000006"));
    assert!(world.has("diverged/1-0_5000060/000000010000000000000007"));
    assert_eq!(run.seen(AWAY), (None, 2));
    // They have a time of their own.
    run.confirm(AWAY).unwrap();
    world.pass(KEEP);
    run.settle();
    assert!(!world.has(AWAY));
}

/// The operator has not seen it when it was confirmed.
#[test]
fn a_file_that_nobody_has_looked_at_is_not_confirmed() {
    let world = World::new();
    let run = world.start();
    world.put("diverged/1-0_5000060/000000010000000000000008");
    run.confirm(AWAY).unwrap();
    world.pass(KEEP);
    run.settle();
    assert!(world.has("diverged/1-0_5000060/000000010000000000000008"));
    assert!(!world.has("diverged/1-0_5000060/000000010000000000000005"));
}

#[test]
fn only_time_counts_in_which_the_hub_runs() {
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    // The clock is set ahead.
    let now = world.clock.get();
    world.clock.set(Now { time_of_day: now.time_of_day + 100 * KEEP, ..now });
    run.settle();
    assert_eq!(run.seen(AWAY).0, Some(Duration::ZERO));
    world.pass(10 * DAY);
    run.settle();
    drop(run);
    // It does not run.
    world.pass(100 * KEEP);
    let run = world.start();
    assert_eq!(run.seen(AWAY).0, Some(10 * DAY));
    world.pass(KEEP - 11 * DAY);
    run.settle();
    assert!(world.has(AWAY));
    world.pass(DAY);
    run.settle();
    assert!(!world.has(AWAY));
}

#[test]
fn zero_keeps_it_for_ever() {
    let world = World { keep: Duration::ZERO, ..World::new() };
    let run = world.start();
    run.confirm(AWAY).unwrap();
    world.pass(100 * KEEP);
    run.settle();
    assert!(world.has(AWAY));
    assert_eq!(run.seen(AWAY), (Some(100 * KEEP), 0));
}

/// A crash after each step: what is confirmed goes in the end, and nothing else ever does.
#[test]
fn a_crash_at_any_step_of_an_expiry_does_no_harm() {
    let mut crashes = 0;
    loop {
        let world = World::new();
        let run = world.start();
        world.put("pg_wal.aside.1/000000010000000000000002");
        run.confirm(AWAY).unwrap();
        run.confirm("pg_wal.aside.1").unwrap();
        world.pass(KEEP);
        run.disk.stop_after(crashes + 1);
        let is_done = run.settle();
        drop(run);
        let run = world.start();
        // What had not been written down by then counts again.
        world.pass(KEEP);
        assert!(run.settle());
        assert!(!world.has(AWAY), "after {crashes} steps");
        assert!(!world.has("pg_wal.aside.1/000000010000000000000001"));
        assert!(!world.has("pg_wal.aside.1/archive_status"));
        assert!(world.has("pg_wal.aside.1/000000010000000000000002"), "after {crashes} steps");
        assert!(world.has("damaged/000000010000000000000003"));
        assert!(world.has("pg_wal/000000010000000000000009.partial.stray"));
        if is_done {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 10, "{crashes}");
}

/// A confirmation counts when its file is durable, or not at all.
#[test]
fn a_crash_while_it_is_confirmed_confirms_all_or_nothing() {
    for steps in 1..10 {
        let world = World::new();
        let run = world.start();
        run.disk.stop_after(steps);
        let done = run_ready(run.keeper.run(Job::ConfirmAside(AWAY.to_owned())));
        drop(run);
        let (confirmed, left_out) = world.start().seen(AWAY);
        assert!(done.is_none() || confirmed.is_some(), "it was answered");
        assert_eq!(left_out, if confirmed.is_some() { 0 } else { 2 });
        if done.is_some() {
            return;
        }
    }
    panic!("it never ends");
}

/// After a loss of power, names may be back whose removal was not synced. As long as they may be,
/// they are confirmed.
#[test]
fn removals_are_durable_before_the_confirmation_goes() {
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    run.confirm("damaged/000000010000000000000003").unwrap();
    world.pass(KEEP);
    run.disk.take_synced_dirs();
    run.settle();
    let root = world.layout.root().to_owned();
    let (diverged, damaged) = (world.layout.all_diverged(), world.layout.damaged());
    // First the time is written down.
    let synced = [root.clone(), diverged, root.clone(), damaged, root];
    assert_eq!(run.disk.take_synced_dirs(), synced);

    // A sync that fails ends it for this run.
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    run.confirm("pg_wal.aside.1").unwrap();
    world.pass(KEEP);
    run.disk.fail(Failing::DirSyncs, 5);
    run.settle();
    run.disk.heal();
    world.pass(DAY);
    run.settle();
    assert!(world.has("pg_wal.aside.1"), "nothing more goes");
    assert!(!run.keeper.asides.confirmed().is_empty());
    drop(run);
    let run = world.start();
    assert!(run.settle() && !world.has("pg_wal.aside.1"));
    assert!(run.keeper.asides.confirmed().is_empty());
}

#[test]
fn a_file_that_cannot_be_removed_does_not_stop_the_rest() {
    let world = World::new();
    world.put("diverged/1-0_5000060/inside/000000010000000000000004");
    let run = world.start();
    run.confirm(AWAY).unwrap();
    run.confirm("damaged/000000010000000000000003").unwrap();
    world.pass(KEEP);
    // A link takes the place of a folder: it is not followed, by no user.
    let (inside, other) = ("diverged/1-0_5000060/inside", world.layout.root().join("other"));
    let inside = world.layout.root().join(inside);
    run_ready(run.keeper.count_confirmed(world.clock.get())).unwrap();
    let mut shot = run.keeper.begin_expiry(world.clock.get()).unwrap();
    while let Some(walk) = shot.walk.take() {
        run_ready(run.keeper.find_expired(&mut shot, walk)).unwrap().unwrap();
    }
    assert_eq!(shot.files.len(), 3);
    run.keeper.asides.expiry.replace(Some(shot));
    std::fs::rename(&inside, &other).unwrap();
    std::os::unix::fs::symlink(&other, &inside).unwrap();
    run.settle();
    assert!(other.join("000000010000000000000004").exists());
    assert!(!world.has("diverged/1-0_5000060/000000010000000000000005"));
    assert!(!world.has("diverged/1-0_5000060/000000010000000000000006"));
    assert!(inside.is_symlink(), "what nobody has confirmed stays");
    assert!(!world.has("damaged/000000010000000000000003"), "another one goes");
    assert!(!run.keeper.asides.confirmed().is_empty(), "it is tried again");
    std::fs::remove_file(&inside).unwrap();
    std::fs::rename(&other, &inside).unwrap();
    run.settle();
    assert!(inside.exists(), "not at once");
    world.pass(DAY);
    run.settle();
    assert!(!world.has(AWAY));
}

#[test]
fn a_file_of_confirmations_that_cannot_be_read_confirms_nothing() {
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    drop(run);
    let path = world.layout.confirmed();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let run = world.start();
    world.pass(100 * KEEP);
    run.settle();
    assert!(world.has(AWAY));
    run.confirm(AWAY).unwrap();
    assert_eq!(world.start().seen(AWAY), (Some(Duration::ZERO), 0));
}

#[test]
fn on_a_full_disk_a_spare_goes_for_the_confirmation() {
    let world = World::new();
    let run = world.start();
    run.disk.leave_room(0);
    assert!(run.confirm(AWAY).is_err());
    assert_eq!(run.seen(AWAY), (None, 2));
    std::fs::write(world.layout.spare(1), vec![0; 4096]).unwrap();
    run.keeper.spares.give_back(1);
    run.confirm(AWAY).unwrap();
    let mode = std::fs::metadata(world.layout.confirmed()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// What a step costs does not grow with the number of files.
#[test]
fn one_step_removes_one_file() {
    let world = World::new();
    let run = world.start();
    run.confirm(AWAY).unwrap();
    world.pass(KEEP);
    let number = || std::fs::read_dir(world.layout.root().join(AWAY)).map_or(0, Iterator::count);
    let mut before = number();
    while run_ready(run.keeper.tend_asides()).unwrap() == Tended::More {
        assert!(before - number() <= 1);
        before = number();
    }
    assert!(!world.has(AWAY));
}
