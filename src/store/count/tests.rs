//! What a switch abandons, with plain files.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::store::control_file::ControlFile;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::plain_disk::PlainDisk;
use crate::store::recover;
use crate::store::switch::{Switch, decide};
use crate::wal::synth::Synth;
use crate::wal::{SegmentSize, SystemId, TimelineId};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn tli(raw: u32) -> TimelineId {
    TimelineId::new(raw).unwrap()
}

/// A directory on timeline 1, from segment 3 on.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    synth: Synth,
    switchpoint: Lsn,
}

impl World {
    /// The switchpoint lies 200 kB into segment 4.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let mut synth = Synth::new(SystemId::new(9), size(), tli(1), 0xD110, Lsn::new(3 * MIB));
        while synth.position() < Lsn::new(4 * MIB + 200_000) {
            synth.commit(1, 5);
            synth.record(&[1; 900]);
        }
        let switchpoint = synth.position();
        Self { _folder: folder, layout, synth, switchpoint }
    }

    fn name(no: u64) -> SegmentName {
        SegmentName { tli: tli(1), no: SegmentNo::new(no), size: size() }
    }

    /// Writes the segments, the control file and timeline 2's history. `cut` bytes are missing at
    /// the end.
    fn write(&mut self, cut: usize) {
        let (_, mut bytes) = self.synth.take_bytes();
        bytes.truncate(bytes.len() - cut);
        let complete = bytes.len() / MIB as usize;
        bytes.resize((complete + 1) * MIB as usize, 0);
        for (no, bytes) in (3..).zip(bytes.chunks(MIB as usize)) {
            let path = match no < 3 + complete as u64 {
                true => self.layout.segment(Self::name(no)),
                false => self.layout.partial(Self::name(no)),
            };
            std::fs::write(path, bytes).unwrap();
        }
        let cluster = Cluster {
            system_id: SystemId::new(9),
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: tli(1),
            start: Lsn::new(3 * MIB),
            sealed: Vec::new(),
        };
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
        std::fs::write(self.layout.control(), control.encode()).unwrap();
        let history = format!("1\t{}\tof the promotion\n", self.switchpoint);
        std::fs::write(self.layout.history(tli(2)), history).unwrap();
    }

    fn decide(&self) {
        let plan = Switch { from: tli(1), to: tli(2), at: self.switchpoint };
        run_ready(decide(&PlainDisk, &self.layout, plan)).unwrap().unwrap();
    }

    fn start(&self) -> Vec<AbandonedWal> {
        let recovered = run_ready(recover(&PlainDisk, &self.layout)).unwrap().unwrap();
        let wal = recovered.wal.unwrap();
        assert_eq!(wal.durable, self.switchpoint, "what was abandoned is not continued");
        wal.abandoned.iter().copied().collect()
    }

    /// What was found of timeline 1.
    fn switch(&mut self) -> Option<(Lsn, Option<Content>)> {
        self.write(0);
        self.decide();
        let found = self.start();
        let known = |found: &[AbandonedWal]| {
            found.iter().map(|entry| (entry.to, entry.content)).collect::<Vec<_>>()
        };
        assert_eq!(known(&found), known(&self.start()), "the next start knows the same");
        let known = |entry: &AbandonedWal| (entry.tli, entry.from, entry.next);
        assert!(found.iter().all(|entry| known(entry) == (tli(1), self.switchpoint, tli(2))));
        assert!(found.len() <= 1);
        found.first().map(|entry| (entry.to, entry.content))
    }
}

fn times(first: i64, last: i64) -> Option<(PgTime, PgTime)> {
    Some((PgTime::new(first), PgTime::new(last)))
}

#[test]
fn commits_past_the_switchpoint_are_counted_over_segments() {
    let mut world = World::new();
    for time in [40, 30, 60] {
        world.synth.record(&[2; 900_000]);
        world.synth.commit(7, time);
    }
    let end = world.synth.position();
    assert!(end > Lsn::new(6 * MIB));
    let content = Content { records: 6, commits: 3, commit_times: times(30, 60) };
    assert_eq!(world.switch(), Some((end, Some(content))));
    // An operator has confirmed it: the files are not here any more.
    std::fs::remove_file(world.layout.abandoned()).unwrap();
    assert_eq!(world.start(), []);
}

#[test]
fn records_without_a_commit_are_told_apart() {
    let mut world = World::new();
    world.synth.record(b"no commit");
    let end = world.synth.position();
    let content = Content { records: 1, commits: 0, commit_times: None };
    assert_eq!(world.switch(), Some((end, Some(content))));
}

#[test]
fn nothing_past_the_switchpoint_is_nothing() {
    let mut world = World::new();
    assert_eq!(world.switch(), None);
    assert!(!world.layout.abandoned().exists());
}

#[test]
fn part_of_a_record_is_nothing() {
    let mut world = World::new();
    world.synth.record(&[3; 5000]);
    world.write(1000);
    world.decide();
    assert_eq!(world.start(), []);
}

/// A start ends between two moves: the first file has gone.
#[test]
fn what_is_left_is_counted_when_a_file_has_gone() {
    let mut world = World::new();
    world.synth.record(&[2; 900_000]);
    for time in [40, 50] {
        world.synth.commit(7, time);
    }
    world.write(0);
    world.decide();
    std::fs::remove_file(world.layout.segment(World::name(4))).unwrap();
    let content = Content { records: 2, commits: 2, commit_times: times(40, 50) };
    assert_eq!(world.start().first().map(|entry| entry.content), Some(Some(content)));
}

#[test]
fn what_cannot_be_counted_is_unknown() {
    let mut world = World::new();
    world.synth.commit(7, 40);
    world.write(0);
    world.decide();
    let path = world.layout.partial(World::name(4));
    let mut bytes = std::fs::read(&path).unwrap();
    let page = world.switchpoint.page_start().segment_offset(size()) as usize;
    // The page's address.
    bytes[page + 8] ^= 0xFF;
    std::fs::write(&path, bytes).unwrap();
    let found = world.start();
    assert_eq!(found.iter().map(|entry| entry.content).collect::<Vec<_>>(), [None]);
}

#[test]
fn a_damaged_list_stops_no_start() {
    let mut world = World::new();
    world.synth.commit(7, 40);
    world.write(0);
    world.decide();
    std::fs::write(world.layout.abandoned(), "walhub abandoned 1").unwrap();
    assert_eq!(world.start().len(), 1);
    std::fs::write(world.layout.abandoned(), "walhub abandoned 1").unwrap();
    assert_eq!(world.start(), []);
}
