//! A start on directories as it may find them, with plain files.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::store::control_file::Sealed;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::FaultyDisk;
use crate::store::plain_disk::PlainDisk;
use crate::wal::SystemId;
use crate::wal::page::PAGE_SIZE;
use crate::wal::synth::Synth;
use crate::wal::{SegmentSize, TimelineId};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn tli(raw: u32) -> TimelineId {
    TimelineId::new(raw).unwrap()
}

fn name(raw: u32, no: u64) -> SegmentName {
    SegmentName { tli: tli(raw), no: SegmentNo::new(no), size: size() }
}

/// A directory with the complete segments 3 to 8 of timeline 1.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    cluster: Cluster,
    /// The bytes of segment 9, which is half full.
    open: Vec<u8>,
    /// The end of the last record in it.
    end: Lsn,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let (system_id, start) = (SystemId::new(9), Lsn::new(3 * MIB));
        let mut synth = Synth::new(system_id, size(), tli(1), 0xD110, start);
        while synth.position() < Lsn::new(9 * MIB + MIB / 2) {
            synth.record(&[1; 900]);
        }
        let end = synth.position();
        let (_, mut bytes) = synth.take_bytes();
        bytes.resize(7 * MIB as usize, 0);
        for (no, bytes) in (3..9).zip(bytes.chunks(MIB as usize)) {
            std::fs::write(layout.segment(name(1, no)), bytes).unwrap();
        }
        let open = bytes.split_off(6 * MIB as usize);
        let cluster = Cluster {
            system_id,
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: tli(1),
            start,
            sealed: Vec::new(),
        };
        let world = Self { _folder: folder, layout, cluster, open, end };
        world.save_control();
        world
    }

    /// Like [`new`](Self::new), with segment 9 open and 10 prepared.
    fn with_open() -> Self {
        let world = Self::new();
        std::fs::write(world.layout.partial(name(1, 9)), &world.open).unwrap();
        std::fs::write(world.layout.partial(name(1, 10)), vec![0; MIB as usize]).unwrap();
        world
    }

    /// Takes a complete segment out; returns its bytes.
    fn take_out(&self, no: u64) -> Vec<u8> {
        let bytes = self.segment(no);
        std::fs::remove_file(self.layout.segment(name(1, no))).unwrap();
        bytes
    }

    fn put_back(&self, no: u64, bytes: &[u8]) {
        std::fs::write(self.layout.segment(name(1, no)), bytes).unwrap();
    }

    fn save_control(&self) {
        let instance = InstanceId::new(5);
        let control = ControlFile { instance, cluster: Some(self.cluster.clone()) };
        std::fs::write(self.layout.control(), control.encode()).unwrap();
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.layout.wal().join(file), bytes).unwrap();
    }

    fn segment(&self, no: u64) -> Vec<u8> {
        std::fs::read(self.layout.segment(name(1, no))).unwrap()
    }

    fn start(&self) -> RecoveredWal {
        self.try_start().unwrap().wal.unwrap()
    }

    fn try_start(&self) -> Result<Recovered, StoreFault> {
        run_ready(recover(&PlainDisk, &self.layout)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.layout.wal()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_start_removes_only_temporary_files_of_ours() {
    let world = World::new();
    let before = world.names();
    let foreign = ["backup.tmp", "notes.restore.tmp", "xlogtemp.17"];
    for file in foreign {
        world.write(file, b"not ours");
    }
    for file in ["spare.4.tmp", "00000002.history.tmp", "000000010000000000000002.restore.tmp"] {
        world.write(file, b"ours");
    }
    world.start();
    let mut expected = before;
    expected.extend(foreign.map(str::to_owned));
    expected.sort();
    assert_eq!(world.names(), expected);
}

/// An open segment does not belong before a complete one. What is in it may be WAL that exists
/// nowhere else.
#[test]
fn an_open_segment_in_a_hole_is_put_out_of_the_way() {
    let world = World::new();
    let (partial, complete) = (world.layout.partial(name(1, 5)), world.layout.segment(name(1, 5)));
    let bytes = world.segment(5);
    std::fs::rename(&complete, &partial).unwrap();
    let wal = world.start();
    assert_eq!(std::fs::read(Layout::stray(&partial)).unwrap(), bytes);
    assert_eq!((wal.oldest, wal.extent.unbroken_from()), (Lsn::new(3 * MIB), Lsn::new(6 * MIB)));
    assert!(!complete.exists() && !partial.exists());

    // A name that a crash left beside the final one adds nothing.
    std::fs::write(world.layout.partial(name(1, 7)), world.segment(7)).unwrap();
    world.start();
    assert!(!world.layout.partial(name(1, 7)).exists());
    assert_eq!(world.segment(7).len() as u64, MIB);
}

/// An open segment beside its complete one may be the better one of the two.
#[test]
fn an_open_segment_that_differs_from_its_complete_one_is_kept() {
    let world = World::new();
    let partial = world.layout.partial(name(1, 7));
    for last in [7, 8] {
        let mut bytes = world.segment(7);
        bytes[MIB as usize - 1] ^= last;
        std::fs::write(&partial, bytes).unwrap();
        world.start();
    }
    // The second has a name of its own.
    let stray = Layout::stray(&partial);
    let last = |path: &Path| std::fs::read(path).unwrap()[MIB as usize - 1];
    let expected = world.segment(7)[MIB as usize - 1];
    assert_eq!([last(&stray), last(&Layout::numbered(&stray, 1))], [expected ^ 7, expected ^ 8]);
}

/// A fault that is no failed sync says nothing about what is durable.
#[test]
fn a_segment_of_a_wrong_length_leaves_no_marker() {
    let world = World::with_open();
    let before = world.names();
    let whole = world.segment(8);
    world.put_back(8, &whole[..500_000]);
    let fault = world.try_start().unwrap_err();
    assert!(matches!(fault, StoreFault::SegmentLength { .. }), "{fault}");
    assert!(!world.layout.halted().exists());
    world.put_back(8, &whole);
    assert_eq!(world.start().durable, world.end);
    assert_eq!(world.names(), before);
}

/// A segment that does not belong here makes the true open ones look out of place.
#[test]
fn a_start_that_is_refused_moves_nothing() {
    let mut world = World::with_open();
    // What an ended timeline and another one left moves only after a proof, too.
    std::fs::write(world.layout.partial(name(7, 5)), world.segment(5)).unwrap();
    let before = world.names();
    let bogus = world.layout.segment(name(1, 0x30));
    for bytes in [vec![0; MIB as usize], world.segment(8)] {
        std::fs::write(&bogus, bytes).unwrap();
        let fault = world.try_start().unwrap_err();
        assert!(matches!(fault, StoreFault::Damaged { .. }), "{fault}");
        std::fs::remove_file(&bogus).unwrap();
        assert_eq!(world.names(), before);
    }
    world.cluster.sealed =
        vec![Sealed { tli: tli(1), start: world.cluster.start, end: Lsn::new(8 * MIB + 50) }];
    world.cluster.timeline = tli(2);
    world.cluster.start = Lsn::new(8 * MIB);
    world.save_control();
    std::fs::write(world.layout.history(tli(2)), "1\t0/800032\tno recovery target\n").unwrap();
    world.write(&name(2, 8).to_string(), &[0; MIB as usize]);
    let before = world.names();
    let fault = world.try_start().unwrap_err();
    assert!(matches!(fault, StoreFault::Damaged { .. }), "{fault}");
    assert_eq!(world.names(), before);
    assert!(!world.layout.all_diverged().exists());
}

/// It is served, so it has to be a file.
#[test]
fn a_history_that_cannot_be_read_is_refused_before_anything_moves() {
    let world = World::with_open();
    std::fs::write(world.layout.partial(name(7, 5)), world.segment(5)).unwrap();
    let history = world.layout.history(tli(4));
    std::fs::create_dir(&history).unwrap();
    let before = world.names();
    let fault = world.try_start().unwrap_err().to_string();
    assert!(fault.contains("00000004.history\": it is a directory"), "{fault}");
    assert_eq!(world.names(), before);
    std::fs::remove_dir(&history).unwrap();
    world.start();
}

/// The fork segment of the child is gone: the parent's has the only copy of what precedes the
/// switchpoint.
#[test]
fn the_parents_fork_segment_goes_only_when_the_childs_is_here() {
    let mut world = World::with_open();
    let parents = world.layout.partial(name(1, 9));
    world.cluster.sealed = vec![Sealed { tli: tli(1), start: world.cluster.start, end: world.end }];
    world.cluster.timeline = tli(2);
    world.cluster.start = Lsn::new(9 * MIB);
    world.save_control();
    let history = format!("1\t{}\tno recovery target\n", world.end);
    std::fs::write(world.layout.history(tli(2)), history).unwrap();
    world.start();
    let kept = world.layout.diverged(tli(1), world.end).join(name(1, 9).to_string() + ".partial");
    assert_eq!(std::fs::read(&kept).unwrap(), world.open);

    std::fs::remove_file(&kept).unwrap();
    for path in [&parents, &world.layout.partial(name(2, 9))] {
        std::fs::write(path, &world.open).unwrap();
    }
    world.start();
    assert!(!parents.exists() && !kept.exists());
}

/// What lies past such a hole cannot be proven, so the WAL ends before it. It stays where it is
/// until WAL comes in again.
#[test]
fn a_hole_before_the_open_segment_is_told_and_may_be_filled() {
    let world = World::with_open();
    assert_eq!(world.start().extent.before_open, None);
    let before = world.names();
    let hole = |first, last| Hole {
        tli: tli(1),
        first: SegmentNo::new(first),
        last: SegmentNo::new(last),
        size: size(),
    };
    let mut taken = Vec::new();
    for no in (3..9).rev() {
        taken.push((no, world.take_out(no)));
        let wal = world.start();
        assert_eq!(wal.durable, Lsn::new(no * MIB));
        assert_eq!(wal.extent.before_open, Some(hole(no, 8)));
        assert_eq!(wal.extent.holes, []);
        assert_eq!(wal.extent.missing(wal.durable).count(), 1);
        assert_eq!(wal.extent.missing(Lsn::new(9 * MIB)).count(), 0, "it was filled");
    }
    for (no, bytes) in taken {
        world.put_back(no, &bytes);
    }
    assert_eq!(world.names(), before);
    assert_eq!(world.start().durable, world.end);

    // Only an open segment with WAL shows that something is missing.
    std::fs::remove_file(world.layout.partial(name(1, 9))).unwrap();
    let wal = world.start();
    assert_eq!((wal.durable, wal.extent.before_open), (Lsn::new(9 * MIB), None));
}

/// A marker may be wrong: what a start gives up because of it is still here.
#[test]
fn what_a_marker_gives_up_is_set_aside() {
    let world = World::with_open();
    let partial = world.layout.partial(name(1, 9));
    std::fs::write(world.layout.halted(), "").unwrap();
    let recovered = world.try_start().unwrap();
    assert!(recovered.halted.is_some() && !world.layout.halted().exists());
    assert_eq!(recovered.listing.partials, [(tli(1), SegmentNo::new(10))]);
    assert_eq!(recovered.wal.unwrap().durable, Lsn::new(9 * MIB));
    assert_eq!(std::fs::read(Layout::stray(&partial)).unwrap(), world.open);

    // A marker inside the open segment: the rest of it is copied first.
    std::fs::write(&partial, &world.open).unwrap();
    let mark = Lsn::new(9 * MIB + 70_000);
    let note = HaltedNote { durable: mark, reason: "a test".to_owned() };
    std::fs::write(world.layout.halted(), note.encode()).unwrap();
    let wal = world.start();
    assert!(wal.durable <= mark && wal.durable > Lsn::new(9 * MIB));
    let copy = Layout::numbered(&Layout::stray(&partial), 1);
    assert_eq!(std::fs::read(copy).unwrap(), world.open);
    let left = std::fs::read(&partial).unwrap();
    let kept = wal.durable.segment_offset(size()) as usize;
    assert_eq!(left[..kept], world.open[..kept]);
    assert!(left[kept..].iter().all(|byte| *byte == 0));
}

/// A switch begins with a copy of our bytes under the child's name. A switch that was not
/// decided leaves the copy; nothing else under such a name is mistaken for it.
#[test]
fn only_a_copy_of_our_own_bytes_is_removed_as_a_switch_that_was_not_decided() {
    let world = World::new();
    let mut copy = world.segment(8);
    copy[MIB as usize / 3..].fill(0);
    let child = world.layout.partial(name(2, 8));
    std::fs::write(&child, &copy).unwrap();
    let before = world.names();
    world.start();
    assert!(!child.exists());
    assert_eq!(world.names().len(), before.len() - 1);

    // A file with one byte of its own, and one without a segment of ours to compare with.
    copy[MIB as usize / 2] = 7;
    let orphan = world.layout.partial(name(2, 20));
    for path in [&child, &orphan] {
        std::fs::write(path, &copy).unwrap();
    }
    world.start();
    for path in [&child, &orphan] {
        assert_eq!(std::fs::read(Layout::stray(path)).unwrap(), copy);
        assert!(!path.exists());
    }
}

/// What an ended timeline has past its end moves aside. A complete segment does so whatever its
/// first page looks like.
#[test]
fn a_damaged_segment_past_an_end_is_set_aside() {
    let mut world = World::new();
    let mut damaged = world.segment(8);
    damaged[..PAGE_SIZE].fill(0);
    std::fs::write(world.layout.segment(name(1, 8)), &damaged).unwrap();
    let end = Lsn::new(7 * MIB);
    world.cluster.sealed = vec![Sealed { tli: tli(1), start: world.cluster.start, end }];
    world.cluster.timeline = tli(2);
    world.cluster.start = end;
    world.save_control();
    std::fs::write(world.layout.history(tli(2)), "1\t0/700000\tno recovery target specified\n")
        .unwrap();
    world.start();
    let aside = world.layout.diverged(tli(1), end);
    assert_eq!(std::fs::read(aside.join(name(1, 8).to_string())).unwrap(), damaged);
    assert!(!world.layout.segment(name(1, 7)).exists());
}

/// A disk has changed a byte of the open segment.
fn damage_open(world: &World, at: u64) {
    let path = world.layout.partial(name(1, 9));
    let mut open = std::fs::read(&path).unwrap();
    open[at as usize] ^= 4;
    std::fs::write(path, open).unwrap();
}

/// What lies past the damage was acknowledged, and the next WAL would be written over it.
#[test]
fn whole_records_past_a_damaged_one_are_kept() {
    // Records of 927 bytes: in the middle of a page, in one that crosses into the next, just before a
    // page's end, and in a page's header.
    for at in [100_000, 8192 * 11 + 100, 8192 * 12 - 100, 8192 * 12 + 1] {
        let world = World::with_open();
        damage_open(&world, at);
        let damaged = std::fs::read(world.layout.partial(name(1, 9))).unwrap();
        let Recovered { wal, listing, .. } =
            run_ready(recover(&PlainDisk, &world.layout)).unwrap().unwrap();
        let end = wal.unwrap().durable;
        let offset = end.segment_offset(size());
        assert!(offset <= at && at - offset < 2000, "{offset} {at}");
        let stray = Layout::stray(&world.layout.partial(name(1, 9)));
        assert!(std::fs::read(&stray).unwrap() == damaged, "all of it is kept");
        let open = std::fs::read(world.layout.partial(name(1, 9))).unwrap();
        assert!(open[..offset as usize] == damaged[..offset as usize], "what is proven stays");
        assert!(open[offset as usize..].iter().all(|byte| *byte == 0), "{at}");
        assert!(listing.partials.contains(&(tli(1), SegmentNo::new(9))));
        // Once.
        run_ready(recover(&PlainDisk, &world.layout)).unwrap().unwrap();
        assert!(!Layout::numbered(&stray, 1).exists());
    }
}

#[test]
fn on_a_full_disk_they_take_the_room_of_spares() {
    let world = World::with_open();
    damage_open(&world, 100_000);
    for number in [3, 4] {
        std::fs::write(world.layout.spare(number), vec![0; MIB as usize]).unwrap();
    }
    let disk = FaultyDisk::default();
    disk.leave_room(MIB / 2);
    let Recovered { listing, .. } = run_ready(recover(&disk, &world.layout)).unwrap().unwrap();
    assert!(Layout::stray(&world.layout.partial(name(1, 9))).exists());
    assert_eq!(listing.spares, [4]);
    assert!(!world.layout.spare(3).exists() && world.layout.spare(4).exists());
    // Without one nothing is given up, and nothing is cleared.
    let world = World::with_open();
    damage_open(&world, 100_000);
    let damaged = std::fs::read(world.layout.partial(name(1, 9))).unwrap();
    let refused = run_ready(recover(&disk, &world.layout)).unwrap().unwrap_err();
    assert!(refused.is_no_space(), "{refused}");
    assert!(std::fs::read(world.layout.partial(name(1, 9))).unwrap() == damaged);
}

/// The record crosses into the open segment, so nothing in that is WAL that is proven.
#[test]
fn an_open_segment_past_a_damaged_record_is_set_aside_whole() {
    let world = World::with_open();
    damage_open(&world, 40 + 30);
    let path = world.layout.partial(name(1, 9));
    let damaged = std::fs::read(&path).unwrap();
    let Recovered { wal, .. } = run_ready(recover(&PlainDisk, &world.layout)).unwrap().unwrap();
    assert_eq!(wal.unwrap().durable, Lsn::new(9 * MIB));
    assert!(std::fs::read(Layout::stray(&path)).unwrap() == damaged && !path.exists());
}

/// They reach further than anybody looks: to somewhere in a page, counted from the end.
#[test]
fn many_open_segments_are_looked_at_to_a_limit() {
    let world = World::with_open();
    for no in 11..30 {
        std::fs::write(world.layout.partial(name(1, no)), vec![0; MIB as usize]).unwrap();
    }
    assert_ne!(world.end.page_offset(), 0);
    assert_eq!(world.start().durable, world.end);
}

#[test]
fn an_unfinished_write_leaves_nothing_to_keep() {
    let world = World::with_open();
    let path = world.layout.partial(name(1, 9));
    // The rest of the last record, or a byte of it, did not get there.
    let offset = world.end.segment_offset(size()) as usize;
    for from in [offset - 400, offset - 30] {
        let mut open = world.open.clone();
        open[from..].fill(0);
        std::fs::write(&path, open).unwrap();
        let Recovered { wal, .. } = run_ready(recover(&PlainDisk, &world.layout)).unwrap().unwrap();
        assert!(wal.unwrap().durable < world.end);
        assert!(!Layout::stray(&path).exists());
    }
}
