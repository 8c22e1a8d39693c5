//! Control files that are damaged, missing or contradicted.

use super::*;
use crate::store::inspect::inspect_now;
use crate::store::notes::BegunNote;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentNo, SegmentSize, SystemId};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

const MIB: u64 = 1 << 20;
const FRESH: InstanceId = InstanceId::new(99);

fn tli(n: u32) -> TimelineId {
    TimelineId::new(n).unwrap()
}

fn name(tli: TimelineId, no: u64) -> SegmentName {
    SegmentName { tli, no: SegmentNo::new(no), size: SegmentSize::new(MIB).unwrap() }
}

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    control: ControlFile,
    end: Lsn,
}

impl World {
    /// Segment 3 of timeline 1, which ends in segment 4, and the file of that of timeline 2.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let layout = Layout::new(folder.path());
        std::fs::DirBuilder::new().mode(0o700).create(layout.wal()).unwrap();
        let (system_id, size, start) = (SystemId::new(9), name(tli(1), 3).size, Lsn::new(3 * MIB));
        let mut synth = Synth::new(system_id, size, tli(1), 0xD110, start);
        while synth.position() < Lsn::new(4 * MIB + 4000) {
            synth.record(&[1; 100_000]);
        }
        let fork = synth.promote(tli(2));
        synth.record(&[2; 100_000]);
        let end = synth.position();
        let mut wal = synth.take_bytes().1;
        wal.resize(2 * MIB as usize, 0);
        let (first, second) = wal.split_at(MIB as usize);
        std::fs::write(layout.segment(name(tli(1), 3)), first).unwrap();
        std::fs::write(layout.partial(name(tli(2), 4)), second).unwrap();
        std::fs::write(layout.history(tli(2)), format!("1\t{fork}\tno reason\n")).unwrap();
        let cluster = Cluster {
            system_id,
            segment_size: size,
            data_directory_mode: "0750".to_owned(),
            parameters: vec![("server_version".to_owned(), "15.18 (Debian)".to_owned())],
            timeline: tli(2),
            start: Lsn::new(4 * MIB),
            sealed: vec![Sealed { tli: tli(1), start, end: fork }],
        };
        let begun = BegunNote { tli: tli(2), start: Lsn::new(4 * MIB), upto: end };
        std::fs::write(layout.begun(), begun.encode()).unwrap();
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        Self { _folder: folder, layout, control, end }
    }

    fn rebuild(&self) -> Result<Rebuilt, RebuildFault> {
        rebuild_control(&self.layout, FRESH)
    }

    fn read(&self) -> ControlFile {
        ControlFile::decode(&std::fs::read(self.layout.control()).unwrap()).unwrap()
    }

    fn refused(&self) -> String {
        let before = std::fs::read(self.layout.control()).ok();
        let fault = self.rebuild().unwrap_err().to_string();
        assert_eq!(std::fs::read(self.layout.control()).ok(), before);
        assert!(!self.layout.damaged_control().exists());
        fault
    }
}

#[test]
fn each_damaged_byte_is_explained_and_the_rebuilt_file_says_the_same_of_the_wal() {
    let world = World::new();
    let good = world.control.encode();
    let cluster = world.control.cluster.clone().unwrap();
    let kept = world.layout.damaged_control();
    let mut explained = Vec::new();
    let mut all: Vec<_> = (0..good.len())
        .map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 7);
            bad
        })
        .collect();
    // What no single bit does.
    let text = String::from_utf8(good).unwrap();
    for (field, other) in [("\"timeline\": 2", "\"timeline\": 7"), ("\"9\"", "\"8\"")] {
        all.push(text.replacen(field, other, 1).into_bytes());
    }
    for (at, bad) in all.into_iter().enumerate() {
        std::fs::write(world.layout.control(), &bad).unwrap();
        if ControlFile::decode(&bad).is_ok() {
            // The checksum is hexadecimal in either case: the number is the same.
            assert!(matches!(world.rebuild(), Err(RebuildFault::Whole)));
            continue;
        }
        let wrong = inspect_now(&world.layout).unwrap().wrong;
        assert!(wrong.len() >= 3 && wrong[0].contains("walhub.control"), "{at} {wrong:?}");
        assert!(wrong.last().unwrap().contains("--rebuild-control"), "{at} {wrong:?}");
        assert_eq!(std::fs::read(world.layout.control()).unwrap(), bad, "a look changes nothing");
        explained.extend(wrong);
        let rebuilt = world.rebuild().unwrap();
        assert_eq!(rebuilt.tail.record_end, world.end, "{at}");
        let found = world.read();
        assert_eq!(found, rebuilt.control, "{at}");
        let found = found.cluster.unwrap();
        assert!(found.parameters[0].1.starts_with("15."), "{at} {:?}", found.parameters);
        let known = Cluster {
            data_directory_mode: found.data_directory_mode.clone(),
            parameters: found.parameters.clone(),
            ..cluster.clone()
        };
        assert_eq!(found, known, "{at}");
        assert_eq!(std::fs::read(&kept).unwrap(), bad, "{at}");
        std::fs::remove_file(&kept).unwrap();
        assert!(inspect_now(&world.layout).unwrap().wrong.is_empty());
    }
    for said in [
        "has version",
        "has checksum",
        "is not a walhub control file",
        "its timeline is",
        "its system_id is",
        "its content cannot be read",
        "what it says of the WAL is what the segments say",
    ] {
        assert!(explained.iter().any(|line| line.contains(said)), "{said}");
    }
}

#[test]
fn a_missing_or_short_file_is_rebuilt_and_each_damaged_one_is_kept() {
    let world = World::new();
    std::fs::remove_file(world.layout.control()).unwrap();
    std::fs::write(world.layout.pid(), "").unwrap();
    let rebuilt = world.rebuild().unwrap();
    assert_eq!((rebuilt.kept, rebuilt.control.instance), (None, FRESH));
    assert_eq!(world.refused(), "the control file is whole");
    for kept in ["walhub.control.damaged", "walhub.control.damaged.1"] {
        std::fs::write(world.layout.control(), "").unwrap();
        let rebuilt = world.rebuild().unwrap();
        assert_eq!(rebuilt.kept, Some(world.layout.root().join(kept)));
        assert!(rebuilt.damage[0].contains("of 0 bytes"), "{:?}", rebuilt.damage);
    }
    let locked = Directory::open(world.layout.root()).unwrap();
    std::fs::write(world.layout.control(), "").unwrap();
    assert!(matches!(world.rebuild(), Err(RebuildFault::Directory(DirectoryFault::Locked { .. }))));
    assert_eq!(std::fs::read(world.layout.control()).unwrap(), b"");
    drop(locked);
}

#[test]
fn segments_that_do_not_agree_are_named_and_nothing_is_written() {
    let other = |system: u64, no: u64, bytes: u64| {
        let size = SegmentSize::new(MIB).unwrap();
        let start = Lsn::new(no * MIB);
        let mut synth = Synth::new(SystemId::new(system), size, tli(1), 0xD110, start);
        synth.record(&vec![1; bytes as usize]);
        let mut wal = synth.take_bytes().1;
        wal.resize(MIB as usize, 0);
        wal
    };
    for (file, bytes, why) in [
        (name(tli(1), 2), other(8, 2, 900), "1 of system 8"),
        (name(tli(1), 2), other(9, 1, 900), "begins with the page of 0/100000"),
        (name(tli(1), 2), vec![0; MIB as usize], "does not begin like a segment"),
        (name(tli(1), 2), other(9, 2, 900)[..9000].to_vec(), "has 9000 bytes"),
    ] {
        let world = World::new();
        std::fs::write(world.layout.control(), "damaged").unwrap();
        std::fs::write(world.layout.segment(file), bytes).unwrap();
        let fault = world.refused();
        assert!(fault.contains(why) && fault.contains(&file.to_string()), "{fault}");
        let wrong = inspect_now(&world.layout).unwrap().wrong;
        assert!(wrong.last().unwrap().contains(why), "{wrong:?}");
    }
    let world = World::new();
    std::fs::write(world.layout.control(), "damaged").unwrap();
    std::fs::remove_file(world.layout.history(tli(2))).unwrap();
    assert!(world.refused().contains("00000002.history"));
    let world = World::new();
    std::fs::write(world.layout.control(), "damaged").unwrap();
    let path = world.layout.segment(name(tli(1), 3));
    let mut wal = std::fs::read(&path).unwrap();
    wal[300_000] ^= 1;
    std::fs::write(&path, &wal).unwrap();
    // The walk to the end begins in the open segment, and does not pass it.
    assert!(world.rebuild().is_ok());
    let empty = World::new();
    std::fs::write(empty.layout.control(), "damaged").unwrap();
    std::fs::remove_dir_all(empty.layout.wal()).unwrap();
    std::fs::DirBuilder::new().mode(0o700).create(empty.layout.wal()).unwrap();
    assert!(matches!(empty.rebuild(), Err(RebuildFault::NoWal)));
}

/// The child's file is a copy, and nothing says that the switch was decided.
#[test]
fn a_switch_that_may_not_be_decided_is_not_taken_for_one() {
    let world = World::new();
    let cluster = world.control.cluster.clone().unwrap();
    let fork = cluster.sealed[0].end;
    let child = world.layout.partial(name(tli(2), 4));
    let mut copy = std::fs::read(&child).unwrap();
    copy[fork.segment_offset(name(tli(1), 4).size) as usize..].fill(0);
    std::fs::write(&child, &copy).unwrap();
    std::fs::write(world.layout.partial(name(tli(1), 4)), &copy).unwrap();
    std::fs::write(world.layout.control(), "").unwrap();
    world.rebuild().unwrap();
    let found = world.read().cluster.unwrap();
    assert_eq!((found.timeline, found.start, found.sealed), (tli(1), Lsn::new(3 * MIB), vec![]));
    // When the parent's file has gone, it was.
    std::fs::remove_file(world.layout.partial(name(tli(1), 4))).unwrap();
    std::fs::write(world.layout.control(), "").unwrap();
    world.rebuild().unwrap();
    let found = world.read().cluster.unwrap();
    assert_eq!(
        (found.timeline, found.start, found.sealed),
        (tli(2), cluster.start, cluster.sealed)
    );
}
