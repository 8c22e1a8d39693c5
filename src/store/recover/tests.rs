//! A start on directories as it may find them, with plain files.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::store::control_file::Sealed;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
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
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let (system_id, start) = (SystemId::new(9), Lsn::new(3 * MIB));
        let mut synth = Synth::new(system_id, size(), tli(1), 0xD110, start);
        while synth.position() < Lsn::new(9 * MIB) {
            synth.record(&[1; 900]);
        }
        let (_, bytes) = synth.take_bytes();
        for (no, bytes) in (3..9).zip(bytes.chunks(MIB as usize)) {
            std::fs::write(layout.segment(name(1, no)), bytes).unwrap();
        }
        let cluster = Cluster {
            system_id,
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: tli(1),
            start,
            sealed: Vec::new(),
        };
        let world = Self { _folder: folder, layout, cluster };
        world.save_control();
        world
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
        run_ready(recover(&PlainDisk, &self.layout)).unwrap().unwrap().wal.unwrap()
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
fn a_damaged_segment_behind_an_end_is_set_aside() {
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
