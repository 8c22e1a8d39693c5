//! Two files by turns, and what is left of them.

use super::*;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::{Failing, FaultyDisk};
use crate::store::slots::{Origin, SlotName};
use crate::wal::Lsn;
use std::os::unix::fs::MetadataExt;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        Self { _folder: folder, layout, disk: FaultyDisk::default() }
    }

    fn read(&self) -> Result<(SlotFiles, FoundGenerations), StoreFault> {
        let files = SlotFiles::default();
        let found = run_ready(files.read(&self.disk, &self.layout)).unwrap()?;
        Ok((files, found))
    }

    /// A generation with one slot at this position.
    fn write(&self, files: &SlotFiles, at: u64) -> io::Result<()> {
        let slots = [record(at)];
        run_ready(files.write(&self.disk, &self.layout, &slots, None)).unwrap()
    }

    /// The generations in the two files.
    fn numbers(&self) -> [Option<u64>; 2] {
        self.layout
            .slots()
            .map(|path| Some(Generation::decode(&std::fs::read(path).ok()?).ok()?.number))
    }

    fn inodes(&self) -> [u64; 2] {
        self.layout.slots().map(|path| std::fs::metadata(path).unwrap().ino())
    }

    fn damage(&self, n: usize) {
        let path = &self.layout.slots()[n];
        let mut bytes = std::fs::read(path).unwrap();
        bytes[30] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

fn record(at: u64) -> SlotRecord {
    SlotRecord {
        name: SlotName::parse("s").unwrap(),
        restart_lsn: Some(Lsn::new(at)),
        invalidated: None,
        origin: Origin::Asked,
    }
}

/// The position in each generation that was found.
fn positions(found: &FoundGenerations) -> [Option<u64>; 2] {
    let at = |generation: &Generation| generation.slots[0].restart_lsn.unwrap().raw();
    [found[0].as_ref().map(at), found[1].as_ref().map(at)]
}

#[test]
fn by_turns_and_with_one_sync() {
    let world = World::new();
    let (files, found) = world.read().unwrap();
    assert_eq!(found, [None, None]);
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    assert_eq!(world.numbers(), [Some(1), Some(2)]);
    let inodes = world.inodes();
    world.disk.take_syncs();
    world.write(&files, 30).unwrap();
    assert_eq!((world.numbers(), world.disk.take_syncs()), ([Some(3), Some(2)], 1));
    world.write(&files, 40).unwrap();
    assert_eq!((world.numbers(), world.disk.take_syncs()), ([Some(3), Some(4)], 1));
    assert_eq!(world.inodes(), inodes, "they are written over");
    assert_eq!(positions(&world.read().unwrap().1), [Some(40), Some(30)]);
}

#[test]
fn an_unreadable_newest_one_falls_back_and_is_built_anew() {
    let world = World::new();
    let (files, _) = world.read().unwrap();
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    let inodes = world.inodes();
    world.damage(1);
    let (files, found) = world.read().unwrap();
    assert_eq!(positions(&found), [Some(10), None]);
    world.write(&files, 30).unwrap();
    assert_eq!(world.numbers(), [Some(1), Some(2)], "the readable one stays");
    assert_eq!(world.inodes()[0], inodes[0]);
    assert_ne!(world.inodes()[1], inodes[1]);
    assert_eq!(positions(&world.read().unwrap().1), [Some(30), Some(10)]);
}

#[test]
fn without_a_readable_one_there_is_no_start() {
    let world = World::new();
    let (files, _) = world.read().unwrap();
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    world.damage(0);
    world.damage(1);
    let fault = world.read().unwrap_err().to_string();
    assert!(fault.contains("slots.0") && fault.contains("checksum"), "{fault}");
}

#[test]
fn what_a_newer_version_wrote_is_not_passed_over() {
    let world = World::new();
    let (files, _) = world.read().unwrap();
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    std::fs::write(&world.layout.slots()[1], "walhub slots 2 00000000\n{}").unwrap();
    let fault = world.read().unwrap_err().to_string();
    assert!(fault.contains("slots.1") && fault.contains("has version 2"), "{fault}");
}

#[test]
fn a_file_whose_sync_failed_is_not_written_over() {
    let world = World::new();
    let (files, _) = world.read().unwrap();
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    let inodes = world.inodes();
    for errno in [ENOSPC, EIO] {
        world.disk.fail(Failing::Syncs, errno);
        let error = world.write(&files, 30).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::StorageFull, "a failed sync is no full disk");
        world.disk.heal();
        assert_eq!(world.numbers()[1], Some(2), "the newest one is not touched");
    }
    world.write(&files, 40).unwrap();
    assert_ne!(world.inodes()[0], inodes[0]);
    assert_eq!(world.inodes()[1], inodes[1]);
    assert_eq!(positions(&world.read().unwrap().1), [Some(40), Some(20)]);
}

#[test]
fn a_write_that_fails_leaves_the_newest_one() {
    let world = World::new();
    let (files, _) = world.read().unwrap();
    for at in [10, 20] {
        world.write(&files, at).unwrap();
    }
    world.disk.fail(Failing::Writes, ENOSPC);
    for _ in 0..3 {
        let error = world.write(&files, 30).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(positions(&world.read().unwrap().1)[0], Some(20));
    world.disk.heal();
    world.write(&files, 40).unwrap();
    assert_eq!(positions(&world.read().unwrap().1), [Some(40), Some(20)]);
}
