//! The way back over a switch for which there was the archive's word alone.

use super::*;
use crate::store::kept::{keep_left, let_go};
use crate::store::seams::UnagreedSwitch;
use crate::store::switch::decide;
use std::time::SystemTime;

fn tli(raw: u32) -> TimelineId {
    TimelineId::new(raw).unwrap()
}

fn name_of(tli: TimelineId, no: u64) -> SegmentName {
    SegmentName { tli, ..name(no) }
}

fn seams(world: &World) -> Seams {
    run_ready(read_seams(&PlainDisk, &world.layout)).unwrap().unwrap()
}

/// Switches to a timeline by the archive's word. `history` is its file.
fn follow(world: &World, switch: Switch, history: &str) {
    std::fs::write(world.layout.history(switch.to), history).unwrap();
    let taken = UnagreedSwitch { switch, since: SystemTime::UNIX_EPOCH };
    let known = run_ready(keep_left(&PlainDisk, &world.layout, size(), taken)).unwrap().unwrap();
    std::fs::write(world.layout.seams(), known.encode()).unwrap();
    run_ready(decide(&PlainDisk, &world.layout, switch)).unwrap().unwrap();
    assert_eq!(world.wal().durable, switch.at);
}

/// Our WAL of timeline 1, and a switch at its end.
fn followed() -> (World, Switch) {
    let world = World::new(|synth| drop(ordinary(synth)));
    let switch = Switch { from: TLI, to: tli(2), at: world.end };
    follow(&world, switch, &format!("1\t{}\tx\n", switch.at));
    (world, switch)
}

/// Receives WAL of timeline 2, up to segment 8. Returns its end.
fn receive(world: &World) -> Lsn {
    let mut synth = Synth::new(SystemId::new(9), size(), TLI, 0xD110, Lsn::new(3 * MIB));
    ordinary(&mut synth);
    assert_eq!(synth.promote(tli(2)), world.end);
    while synth.position() < Lsn::new(8 * MIB + 200_000) {
        synth.commit(1, 5);
        synth.record(&[2; 900]);
    }
    let (end, mut wal) = (synth.position(), synth.take_bytes().1);
    wal.resize(6 * MIB as usize, 0);
    for (no, bytes) in (3..).zip(wal.chunks(MIB as usize)).skip(3) {
        let name = name_of(tli(2), no);
        let (open, complete) = (world.layout.partial(name), world.layout.segment(name));
        std::fs::write(&open, bytes).unwrap();
        if no < 8 {
            std::fs::rename(open, complete).unwrap();
        }
    }
    assert_eq!(world.wal().durable, end);
    end
}

fn prepare(world: &World, switch: Switch) -> Result<(), StoreFault> {
    run_ready(prepare_cut(&PlainDisk, &world.layout, size(), Cut::Back(switch))).unwrap()
}

/// Goes back, with an examination for the third step as at run time.
fn go_back(world: &World, switch: Switch) -> RecoveredWal {
    prepare(world, switch).unwrap();
    run_ready(decide_cut(&PlainDisk, &world.layout, Cut::Back(switch))).unwrap().unwrap();
    let found = run_ready(examine(&PlainDisk, &world.layout)).unwrap().unwrap();
    run_ready(finish_cut(&PlainDisk, &world.layout)).unwrap().unwrap();
    assert_eq!(timeline(world), switch.from);
    let wal = found.wal.unwrap();
    assert_eq!((wal.durable, world.wal().durable), (switch.at, switch.at));
    wal
}

fn timeline(world: &World) -> TimelineId {
    let found = run_ready(recover(&PlainDisk, &world.layout)).unwrap().unwrap();
    found.control.unwrap().cluster.unwrap().timeline
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_former_timeline_goes_on_where_it_was_left() {
    let (world, switch) = followed();
    assert!(!world.layout.partial(name(6)).exists(), "nothing needs it any more");
    let end = receive(&world);
    prepare(&world, switch).unwrap();
    assert_eq!(world.wal().durable, end, "nothing has changed yet");
    let wal = go_back(&world, switch);
    assert!(std::fs::read(world.layout.partial(name(6))).unwrap() == world.head(switch.at));
    let expected = [6, 7].map(|no| name_of(tli(2), no).to_string());
    let open = format!("{}.partial", name_of(tli(2), 8));
    let aside = names(&world.layout.diverged(tli(2), switch.at));
    assert_eq!(aside, [&expected[..], &[open]].concat());
    let counted: Vec<_> = wal.abandoned.iter().copied().collect();
    let [AbandonedWal { tli: of, from, to, next, content: Some(content), .. }] = counted[..] else {
        panic!("{counted:?}")
    };
    assert_eq!((of, from, to, next), (tli(2), switch.at, end, TLI));
    assert!(content.commits > 1000, "{content:?}");

    let known = seams(&world);
    assert_eq!(known.iter().copied().collect::<Vec<_>>(), [Seam { tli: tli(2), at: switch.at }]);
    assert_eq!(known.rejected().copied().collect::<Vec<_>>(), [switch]);
    assert_eq!(known.unagreed().count(), 0);
    assert_eq!(names(&world.layout.kept()).len(), 1);
    run_ready(let_go(&PlainDisk, &world.layout, size(), &known)).unwrap().unwrap();
    assert!(names(&world.layout.kept()).is_empty());
    // The same timeline may come again, by an upstream's word.
    run_ready(decide(&PlainDisk, &world.layout, switch)).unwrap().unwrap();
    assert_eq!((timeline(&world), world.wal().durable), (tli(2), switch.at));
}

#[test]
fn nothing_that_standbys_may_have_been_sent_needs_no_seam() {
    let (world, switch) = followed();
    go_back(&world, switch);
    assert!(seams(&world).is_empty());
    assert_eq!(world.wal().abandoned.iter().count(), 0);
}

/// Retention knows only what follows.
#[test]
fn the_former_timeline_begins_with_the_segment_of_the_fork_when_no_other_is_left() {
    for removed in [3..6, 5..6] {
        let (world, switch) = followed();
        receive(&world);
        removed.for_each(|no| std::fs::remove_file(world.layout.segment(name(no))).unwrap());
        std::fs::remove_file(world.layout.segment(name_of(tli(2), 6))).unwrap();
        let wal = go_back(&world, switch);
        assert_eq!((wal.complete, wal.oldest), (None, Lsn::new(6 * MIB)));
    }
}

#[test]
fn a_fork_on_a_boundary_needs_nothing_kept() {
    for is_removed in [false, true] {
        let world = World::new(|synth| {
            synth.record(&[1; 900]);
            synth.switch_segment();
        });
        let switch = Switch { from: TLI, to: tli(2), at: Lsn::new(4 * MIB) };
        follow(&world, switch, "1\t0/400000\tx\n");
        assert!(!world.layout.kept().exists());
        if is_removed {
            std::fs::remove_file(world.layout.segment(name(3))).unwrap();
        }
        go_back(&world, switch);
    }
}

/// The archive knew of two, one after the other.
#[test]
fn with_a_timeline_those_that_followed_it_go() {
    let (world, first) = followed();
    let end = receive(&world);
    let second = Switch { from: tli(2), to: tli(3), at: end };
    follow(&world, second, &format!("1\t{}\tx\n2\t{end}\tx\n", first.at));
    assert_eq!(names(&world.layout.kept()).len(), 2);
    go_back(&world, first);
    let known = seams(&world);
    assert_eq!(known.unagreed().count(), 0);
    assert_eq!(known.rejected().copied().collect::<Vec<_>>(), [first]);
    // Nothing of timeline 3 was ever here but what timeline 2 had.
    assert_eq!(known.iter().copied().collect::<Vec<_>>(), [Seam { tli: tli(2), at: first.at }]);
    let left = names(world.layout.wal());
    let is_gone = |name: &&String| name.starts_with("00000002") || name.starts_with("00000003");
    let left: Vec<_> = left.iter().filter(is_gone).collect();
    assert_eq!(left, ["00000002.history", "00000003.history"]);
}

#[test]
fn back_over_the_second_leaves_the_first() {
    let (world, first) = followed();
    let end = receive(&world);
    let second = Switch { from: tli(2), to: tli(3), at: end };
    follow(&world, second, &format!("1\t{}\tx\n2\t{end}\tx\n", first.at));
    go_back(&world, second);
    let known = seams(&world);
    assert_eq!(known.unagreed().map(|one| one.switch).collect::<Vec<_>>(), [first]);
    run_ready(let_go(&PlainDisk, &world.layout, size(), &known)).unwrap().unwrap();
    go_back(&world, first);
}

#[test]
fn what_is_kept_stays_when_a_switch_is_asked_for_again() {
    let (world, switch) = followed();
    receive(&world);
    let taken = UnagreedSwitch { switch, since: SystemTime::now() };
    let known = run_ready(keep_left(&PlainDisk, &world.layout, size(), taken)).unwrap().unwrap();
    assert_eq!(known, seams(&world), "since is as it was");
    go_back(&world, switch);
}

#[test]
fn only_a_switch_that_was_made_is_undone() {
    let (world, switch) = followed();
    receive(&world);
    let other = Switch { at: Lsn::new(switch.at.raw() - 8), ..switch };
    let refused = run_ready(decide_cut(&PlainDisk, &world.layout, Cut::Back(other))).unwrap();
    assert!(refused.unwrap_err().to_string().contains("was not left at"));
    assert_eq!(timeline(&world), tli(2));
}

#[test]
fn on_a_full_disk_the_hub_stays() {
    let (world, switch) = followed();
    let end = receive(&world);
    let disk = FaultyDisk::default();
    disk.leave_room(MIB / 2);
    let refused = run_ready(prepare_cut(&disk, &world.layout, size(), Cut::Back(switch))).unwrap();
    let error = std::io::Error::from(refused.unwrap_err());
    assert!(crate::store::append::is_no_space(&error), "{error}");
    assert!(!Layout::temporary(&world.layout.partial(name(6))).exists());
    assert_eq!((timeline(&world), world.wal().durable), (tli(2), end));
}
