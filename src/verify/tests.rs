//! Directories of synthetic WAL, and a folder as the archive.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::digest;
use crate::store::scrub::SegmentDamage;
use crate::wal::synth::Synth;
use crate::wal::{SegmentNo, SegmentSize, SystemId, TimelineId};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

const MIB: u64 = 1 << 20;
const FIRST: u64 = 5;

struct World {
    root: tempfile::TempDir,
    layout: Layout,
    segments: u64,
}

fn name(no: u64) -> SegmentName {
    let size = SegmentSize::new(MIB).unwrap();
    SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size }
}

impl World {
    /// A directory with complete segments and an open one, and an archive of the complete ones.
    fn new(segments: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let layout = Directory::open(&root.path().join("hub")).unwrap().layout().clone();
        let size = name(FIRST).size;
        let (system_id, start) = (SystemId::new(77), name(FIRST).no.start(size));
        let cluster = Cluster {
            system_id,
            segment_size: size,
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start,
            sealed: Vec::new(),
        };
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        let mut synth = Synth::new(system_id, size, TimelineId::FIRST, 0xD110, start);
        while synth.position() < Lsn::new((FIRST + segments) * MIB + MIB / 3) {
            // Its length is a multiple of eight: no byte of it is padding.
            synth.record(&[7; 4003]);
        }
        let mut wal = synth.take_bytes().1;
        wal.resize(((segments + 1) * MIB) as usize, 0);
        std::fs::create_dir(root.path().join("archive")).unwrap();
        let world = Self { root, layout, segments };
        for (no, bytes) in (FIRST..).zip(wal.chunks(MIB as usize)) {
            if no == FIRST + segments {
                std::fs::write(world.layout.partial(name(no)), bytes).unwrap();
            } else {
                std::fs::write(world.layout.segment(name(no)), bytes).unwrap();
                std::fs::write(world.archived(no), bytes).unwrap();
            }
        }
        world
    }

    fn archived(&self, no: u64) -> std::path::PathBuf {
        self.root.path().join("archive").join(name(no).to_string())
    }

    /// Gives each segment the digest of what it has now.
    fn digest(&self) {
        for no in FIRST..FIRST + self.segments {
            let file = std::fs::File::open(self.layout.segment(name(no))).unwrap();
            let blocks = hash_file(&file, name(no), |_| Ok(())).unwrap();
            let digest = blocks.of_segment(SystemId::new(77), name(no), None).unwrap();
            run_ready(digest::store(&PlainDisk, &self.layout, &digest)).unwrap().unwrap();
        }
    }

    /// What is written, and how many segments are damaged then.
    fn verify(&self, repair: bool) -> (String, u64) {
        self.verify_as(self.layout.root(), repair)
    }

    /// The same with the directory under this path.
    fn verify_as(&self, directory: &Path, repair: bool) -> (String, u64) {
        let flags = VerifyFlags {
            directory: directory.to_owned(),
            repair,
            restore_command: "cp ../archive/%f %p 2>/dev/null".to_owned(),
        };
        let mut out = Vec::new();
        let damaged = verify_directory(&flags, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), damaged)
    }

    fn is_as_archived(&self, no: u64) -> bool {
        std::fs::read(self.layout.segment(name(no))).unwrap()
            == std::fs::read(self.archived(no)).unwrap()
    }
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_directory_is_found_whole() {
    let world = World::new(3);
    assert_eq!(
        world.verify(false),
        ("3 complete segments, 0 damaged, 3 without a digest\n".to_owned(), 0)
    );
}

/// In the middle of each, in its first record or in its last, which it shares with a neighbour.
#[test]
fn a_bit_in_each_of_fifty_segments_is_found_named_and_repaired() {
    let world = World::new(50);
    for no in FIRST..FIRST + world.segments {
        let at = [MIB / 2 + 100 * no, 48, MIB - 8][(no % 3) as usize];
        flip(&world.layout.segment(name(no)), at);
    }
    let (said, damaged) = world.verify(false);
    assert!(damaged >= 34, "{said}");
    for no in FIRST..FIRST + world.segments {
        // The first record of every third is not reached past the damage before it.
        assert!(no % 3 == 1 || said.contains(&name(no).to_string()), "{no}: {said}");
    }
    let (said, damaged) = world.verify(true);
    assert_eq!(damaged, 0, "{said}");
    for no in FIRST..FIRST + world.segments {
        assert!(world.is_as_archived(no), "{no}: {said}");
        assert!(said.contains(&format!("{}: repaired from the archive", name(no))), "{said}");
        // The damaged one is kept.
        let kept = std::fs::read(world.layout.damaged().join(name(no).to_string())).unwrap();
        assert!(kept != std::fs::read(world.archived(no)).unwrap());
    }
    assert_eq!(world.verify(false).1, 0);
}

#[test]
fn what_the_archive_lacks_or_has_damaged_is_left_as_it_is() {
    let world = World::new(5);
    for no in [FIRST + 1, FIRST + 3] {
        flip(&world.layout.segment(name(no)), MIB / 2);
    }
    std::fs::remove_file(world.archived(FIRST + 1)).unwrap();
    flip(&world.archived(FIRST + 3), MIB / 3);
    let before = std::fs::read(world.layout.segment(name(FIRST + 3))).unwrap();
    let (said, damaged) = world.verify(true);
    assert_eq!(damaged, 2, "{said}");
    for (no, why) in [
        (FIRST + 1, "\": the command ended with exit code 1"),
        (FIRST + 3, "with what the archive has"),
    ] {
        let words = format!("{}: not repaired: ", name(no));
        assert!(said.lines().any(|l| l.starts_with(&words) && l.contains(why)), "{said}");
    }
    assert!(std::fs::read(world.layout.segment(name(FIRST + 3))).unwrap() == before);
    assert!(!world.layout.damaged().exists());
    let names = std::fs::read_dir(world.layout.wal()).unwrap();
    assert_eq!(names.count(), 6, "nothing is left of the attempts");
}

/// Another server archives under the same names: all of its records are whole, too. Without a digest
/// ours that are whole after the damage show that it is another.
#[test]
fn the_same_segment_of_another_history_repairs_nothing() {
    let world = World::new(5);
    let size = name(FIRST).size;
    let start = name(FIRST).no.start(size);
    let mut other = Synth::new(SystemId::new(77), size, TimelineId::FIRST, 0xD110, start);
    let damaged = FIRST + 1;
    let (from, to) = (name(damaged).no.start(size), name(damaged).no.end(size));
    while other.position() < to {
        // Those that lie whole in this segment.
        let at = other.position();
        let is_other = at >= from && at.saturating_add(9000) < to;
        other.record(&[if is_other { 8 } else { 7 }; 4003]);
    }
    let wal = other.take_bytes().1;
    let at = from.bytes_since(start) as usize;
    std::fs::write(world.archived(damaged), &wal[at..at + MIB as usize]).unwrap();
    let segment = world.layout.segment(name(damaged));
    // In its first records.
    flip(&segment, 6000);
    let before = std::fs::read(&segment).unwrap();
    let (said, count) = world.verify(true);
    assert_eq!(count, 1, "{said}");
    assert!(said.contains("has another history: our record at "), "{said}");
    assert!(std::fs::read(&segment).unwrap() == before);
}

/// The command runs in the directory, where a path from here leads elsewhere.
#[test]
fn a_relative_directory_is_repaired() {
    let world = World::new(3);
    flip(&world.layout.segment(name(FIRST + 1)), MIB / 2);
    let up =
        std::env::current_dir().unwrap().components().filter(|c| *c != Component::RootDir).count();
    // Not by any number of ".." alone: from the hub's directory they may lead to the root, too.
    let mut relative = PathBuf::from("src/..");
    relative.extend(std::iter::repeat_n("..", up));
    relative.push(world.layout.root().strip_prefix("/").unwrap());
    assert!(relative.is_relative() && relative.exists(), "{}", relative.display());
    let (said, damaged) = world.verify_as(&relative, true);
    assert_eq!(damaged, 0, "{said}");
    assert!(world.is_as_archived(FIRST + 1));
}

/// The hub serves nothing of a segment that a scrub has found damaged.
#[test]
fn what_is_whole_now_is_no_longer_known_as_damaged() {
    let world = World::new(5);
    let mut note = ScrubNote::default();
    for no in [FIRST + 1, FIRST + 3] {
        flip(&world.layout.segment(name(no)), MIB / 2);
        let (from, since) = (name(no).no.start(name(no).size), SystemTime::now());
        note.find(SegmentDamage { name: name(no), from, what: "a bit".to_owned(), since });
    }
    std::fs::write(world.layout.scrub(), note.encode()).unwrap();
    std::fs::remove_file(world.archived(FIRST + 3)).unwrap();
    let known = || {
        let note = ScrubNote::decode(&std::fs::read(world.layout.scrub()).unwrap()).unwrap();
        note.damage().iter().map(|damage| damage.name.no.raw()).collect::<Vec<_>>()
    };
    assert_eq!(world.verify(false).1, 2);
    assert_eq!(known(), [FIRST + 1, FIRST + 3]);
    assert_eq!(world.verify(true).1, 1);
    assert_eq!(known(), [FIRST + 3]);
}

#[test]
fn a_segment_of_another_length_is_damaged() {
    let world = World::new(3);
    std::fs::write(world.layout.segment(name(FIRST + 1)), [1; 100]).unwrap();
    let (said, damaged) = world.verify(false);
    assert!(damaged >= 1 && said.contains(&name(FIRST + 1).to_string()), "{said}");
    assert_eq!(world.verify(true).1, 0);
    assert!(world.is_as_archived(FIRST + 1));
}

/// A killed hub leaves such an end.
#[test]
fn a_record_that_is_not_all_here_is_no_damage() {
    let world = World::new(3);
    let open = world.layout.partial(name(FIRST + 3));
    let mut bytes = std::fs::read(&open).unwrap();
    bytes[64..].fill(0);
    std::fs::write(&open, bytes).unwrap();
    let (said, damaged) = world.verify(false);
    assert_eq!(damaged, 0, "{said}");
    assert!(said.contains("is not whole"), "{said}");
}

#[test]
fn by_its_digest_a_bit_in_each_of_fifty_segments_is_found_named_and_repaired() {
    let world = World::new(50);
    world.digest();
    assert_eq!(world.verify(false), ("50 complete segments, 0 damaged\n".to_owned(), 0));
    for no in FIRST..FIRST + world.segments {
        // The third is padding of the first page's header, which has no checksum.
        let at = [MIB / 2 + 100 * no, MIB - 8, 20][(no % 3) as usize];
        flip(&world.layout.segment(name(no)), at);
    }
    let (said, damaged) = world.verify(false);
    assert_eq!(damaged, 50, "{said}");
    for no in FIRST..FIRST + world.segments {
        let (from, to) = (Lsn::new(no * MIB), Lsn::new((no + 1) * MIB));
        let block = format!("{from} to {to} is not what it was when the segment was completed");
        let named = |line: &str| line.contains(&name(no).to_string()) && line.contains(&block);
        assert!(said.lines().any(named), "{no}: {said}");
    }
    let (said, damaged) = world.verify(true);
    assert_eq!(damaged, 0, "{said}");
    for no in FIRST..FIRST + world.segments {
        assert!(world.is_as_archived(no), "{no}: {said}");
        assert!(world.layout.damaged().join(name(no).to_string()).exists(), "{no}");
    }
    assert_eq!(world.verify(false), ("50 complete segments, 0 damaged\n".to_owned(), 0));
}

/// Without digests any segment with a part of the record may be the damaged one.
#[test]
fn a_digest_says_which_segment_of_a_record_is_damaged() {
    let world = World::new(3);
    world.digest();
    // In the record that begins at the end of the first.
    flip(&world.layout.segment(name(FIRST + 1)), 48);
    let (said, damaged) = world.verify(false);
    assert!(damaged >= 1, "{said}");
    let line = said.lines().find(|line| line.starts_with(&name(FIRST).to_string())).unwrap();
    assert!(line.contains(&format!("{} itself is as its digest says", name(FIRST))), "{said}");
    assert_eq!(world.verify(true).1, 0);
    assert!(world.is_as_archived(FIRST + 1));
    assert!(!world.layout.damaged().join(name(FIRST).to_string()).exists());
}

#[test]
fn a_digest_of_other_bytes_goes_when_the_archive_has_ours() {
    let world = World::new(3);
    let path = world.layout.segment(name(FIRST + 1));
    flip(&path, 20);
    world.digest();
    flip(&path, 20);
    assert_eq!(world.verify(false).1, 1);
    let (said, damaged) = world.verify(true);
    assert_eq!(damaged, 0, "{said}");
    assert!(said.contains("the archive has the same, its digest was removed"), "{said}");
    assert!(said.ends_with("3 complete segments, 0 damaged\n"), "{said}");
    let last = "3 complete segments, 0 damaged, 1 without a digest\n".to_owned();
    assert_eq!(world.verify(false), (last, 0));
}

#[test]
fn what_the_archive_has_is_not_taken_against_the_digest() {
    let world = World::new(3);
    world.digest();
    flip(&world.layout.segment(name(FIRST + 1)), 20);
    flip(&world.archived(FIRST + 1), 22);
    let (said, damaged) = world.verify(true);
    assert_eq!(damaged, 1, "{said}");
    assert!(said.contains("not repaired: in the archive, too, "), "{said}");
    assert!(!world.layout.damaged().exists());
}
