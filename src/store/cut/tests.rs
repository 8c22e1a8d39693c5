//! Cuts with plain files; what a crash leaves of them is in `tests/store_simulation/cuts.rs`.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::store::abandoned::AbandonedWal;
use crate::store::control_file::ControlFile;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::evidence::{Difference, WalSource};
use crate::store::faulty_disk::FaultyDisk;
use crate::store::plain_disk::PlainDisk;
use crate::store::recover::examine;
use crate::store::{Recovered, RecoveredWal, recover};
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentNo, SystemId, TimelineId};
use std::time::SystemTime;

const MIB: u64 = 1 << 20;
const TLI: TimelineId = TimelineId::FIRST;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn name(no: u64) -> SegmentName {
    SegmentName { tli: TLI, no: SegmentNo::new(no), size: size() }
}

/// A directory on timeline 1, from segment 3 on.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    wal: Vec<u8>,
    end: Lsn,
}

impl World {
    /// What `write` writes, from the start of segment 3 on.
    fn new(write: impl FnOnce(&mut Synth)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
        let mut synth = Synth::new(SystemId::new(9), size(), TLI, 0xD110, Lsn::new(3 * MIB));
        write(&mut synth);
        let (end, mut wal) = (synth.position(), synth.take_bytes().1);
        let complete = wal.len() / MIB as usize;
        wal.resize((complete + 1) * MIB as usize, 0);
        for (no, bytes) in (3..).zip(wal.chunks(MIB as usize)) {
            let path = match no < 3 + complete as u64 {
                true => layout.segment(name(no)),
                false => layout.partial(name(no)),
            };
            std::fs::write(path, bytes).unwrap();
        }
        let cluster = Cluster {
            system_id: SystemId::new(9),
            segment_size: size(),
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(3 * MIB),
            sealed: Vec::new(),
        };
        let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        Self { _folder: folder, layout, wal, end }
    }

    fn wal(&self) -> RecoveredWal {
        let Recovered { wal, .. } = run_ready(recover(&PlainDisk, &self.layout)).unwrap().unwrap();
        wal.unwrap()
    }

    /// All steps, with an examination for the third as at run time.
    fn cut(&self, at: Lsn) -> RecoveredWal {
        let seam = Seam { tli: TLI, at };
        run_ready(prepare_cut(&PlainDisk, &self.layout, size(), Cut::Past(seam))).unwrap().unwrap();
        assert_eq!(self.wal_unchanged(), self.end, "nothing has changed yet");
        run_ready(prepare_cut(&PlainDisk, &self.layout, size(), Cut::Past(seam))).unwrap().unwrap();
        run_ready(decide_cut(&PlainDisk, &self.layout, Cut::Past(seam))).unwrap().unwrap();
        let found = run_ready(examine(&PlainDisk, &self.layout)).unwrap().unwrap();
        let wal = found.wal.unwrap();
        let seams = run_ready(finish_cut(&PlainDisk, &self.layout)).unwrap().unwrap();
        assert_eq!(seams.iter().copied().collect::<Vec<_>>(), [seam]);
        assert_eq!(wal.durable, at);
        assert_eq!(self.wal().durable, at, "the next start finds the same");
        wal
    }

    /// Where a start finds the end.
    fn wal_unchanged(&self) -> Lsn {
        self.wal().durable
    }

    /// Our bytes before `at`, and zeros.
    fn head(&self, at: Lsn) -> Vec<u8> {
        let no = at.segment(size()).raw();
        let from = ((no - 3) * MIB) as usize;
        let mut bytes = self.wal[from..from + MIB as usize].to_vec();
        bytes[at.segment_offset(size()) as usize..].fill(0);
        bytes
    }

    fn aside(&self, at: Lsn) -> Vec<String> {
        let folder = std::fs::read_dir(self.layout.diverged(TLI, at)).unwrap();
        let mut names: Vec<_> =
            folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What comes from the archive past the place is compared with nothing that is ours no more.
#[test]
fn no_digest_of_a_removed_segment_outlives_the_cut() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    std::fs::create_dir_all(world.layout.removed_digests()).unwrap();
    let other = SegmentName { tli: TimelineId::new(2).unwrap(), ..name(9) };
    for name in [name(1), name(2), name(5), name(9), other] {
        std::fs::write(world.layout.removed_digest(name), "").unwrap();
    }
    let at = *ends.iter().find(|at| **at > Lsn::new(5 * MIB + 300_000)).unwrap();
    world.cut(at);
    let left = |name| world.layout.removed_digest(name).exists();
    assert_eq!([name(1), name(2), other].map(left), [true; 3]);
    assert_eq!([name(5), name(9)].map(left), [false; 2]);
}

/// Records of 900 bytes and commits, over segments 3 to 6. Returns where each record ends.
fn ordinary(synth: &mut Synth) -> Vec<Lsn> {
    let mut ends = Vec::new();
    while synth.position() < Lsn::new(6 * MIB + 200_000) {
        synth.commit(1, 5);
        synth.record(&[1; 900]);
        ends.push(synth.position());
    }
    ends
}

#[test]
fn what_is_past_the_place_leaves_and_is_counted() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let place = ends.iter().position(|end| *end > Lsn::new(4 * MIB + 300_000)).unwrap();
    let at = ends[place];
    let wal = world.cut(at);
    let partial = std::fs::read(world.layout.partial(name(4))).unwrap();
    assert!(partial == world.head(at), "our bytes before the place, and zeros");
    assert!(!world.layout.segment(name(4)).exists());
    let expected = [name(4).to_string(), name(5).to_string(), format!("{}.partial", name(6))];
    assert_eq!(world.aside(at), expected);
    let counted: Vec<_> = wal.abandoned.iter().copied().collect();
    let [AbandonedWal { tli, from, to, next, content: Some(content), .. }] = counted[..] else {
        panic!("{counted:?}")
    };
    assert_eq!((tli, from, to, next), (TLI, at, world.end, TLI));
    let left = (ends.len() - 1 - place) as u64;
    assert_eq!((content.records, content.commits), (2 * left, left));
}

#[test]
fn a_place_on_a_boundary_needs_no_copy() {
    let world = World::new(|synth| {
        synth.record(&[1; 900]);
        synth.switch_segment();
        synth.record(&[2; 900]);
        synth.switch_segment();
        synth.record(&[3; 900]);
    });
    let at = Lsn::new(4 * MIB);
    world.cut(at);
    assert!(!world.layout.segment(name(4)).exists() && !world.layout.partial(name(4)).exists());
    assert_eq!(world.aside(at), [name(4).to_string(), format!("{}.partial", name(5))]);
}

#[test]
fn what_is_left_begins_with_the_open_segment_when_no_other_is() {
    // Nobody needed those before it any more; or an older one came back from the archive.
    for (offset, removed) in [(0, 3..5), (3, 3..5), (3, 4..5)] {
        let mut ends = Vec::new();
        let world = World::new(|synth| ends = ordinary(synth));
        removed.for_each(|no| std::fs::remove_file(world.layout.segment(name(no))).unwrap());
        let start = Lsn::new(5 * MIB);
        let place = *ends.iter().filter(|end| **end > start).nth(offset).unwrap();
        let wal = world.cut(place);
        let found = (wal.complete, wal.oldest, wal.durable);
        assert_eq!(found, (None, start, place));
        assert_eq!(world.wal_unchanged(), place);
    }
}

#[test]
fn the_note_about_the_first_bytes_ends_at_the_place() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let begun = BegunNote { tli: TLI, start: Lsn::new(3 * MIB), upto: Lsn::new(3 * MIB + 9000) };
    std::fs::write(world.layout.begun(), begun.encode()).unwrap();
    let at = ends[2];
    assert!(at < begun.upto);
    world.cut(at);
    let found = BegunNote::decode(&std::fs::read(world.layout.begun()).unwrap()).unwrap();
    assert_eq!(found, BegunNote { upto: at, ..begun });
}

#[test]
fn a_second_cut_at_the_same_place_keeps_the_first_ones_files() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let at = *ends.iter().find(|end| **end > Lsn::new(6 * MIB)).unwrap();
    world.cut(at);
    let partial = world.layout.partial(name(6));
    let mut bytes = std::fs::read(&partial).unwrap();
    let offset = at.segment_offset(size()) as usize;
    // The other history is another one again, past the place.
    let from = (3 * MIB) as usize;
    bytes[offset..].copy_from_slice(&world.wal[from + offset..from + MIB as usize]);
    std::fs::write(&partial, &bytes).unwrap();
    assert_eq!(world.wal_unchanged(), world.end);
    world.cut(at);
    let file = format!("{}.partial", name(6));
    assert_eq!(world.aside(at), [file.clone(), format!("{file}.1")]);
}

#[test]
fn one_is_finished_before_another_begins() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let [first, second] = [ends[7], ends[9]].map(|at| Seam { tli: TLI, at });
    run_ready(prepare_cut(&PlainDisk, &world.layout, size(), Cut::Past(first))).unwrap().unwrap();
    run_ready(decide_cut(&PlainDisk, &world.layout, Cut::Past(first))).unwrap().unwrap();
    let refused =
        run_ready(decide_cut(&PlainDisk, &world.layout, Cut::Past(second))).unwrap().unwrap_err();
    assert!(refused.to_string().contains("is still being set aside"), "{refused}");
    assert_eq!(world.wal().durable, first.at);
}

/// An attempt was given up after its first step. What it has built is not WAL past another place.
#[test]
fn what_an_earlier_attempt_has_built_is_not_used() {
    let world = World::new(|synth| {
        synth.record(&[1; 900]);
        synth.switch_segment();
        for _ in 0..10 {
            synth.record(&[2; 900]);
        }
    });
    let earlier = Seam { tli: TLI, at: world.end };
    run_ready(prepare_cut(&PlainDisk, &world.layout, size(), Cut::Past(earlier))).unwrap().unwrap();
    let seam = Seam { tli: TLI, at: Lsn::new(4 * MIB) };
    run_ready(prepare_cut(&PlainDisk, &world.layout, size(), Cut::Past(seam))).unwrap().unwrap();
    run_ready(decide_cut(&PlainDisk, &world.layout, Cut::Past(seam))).unwrap().unwrap();
    let found = run_ready(examine(&PlainDisk, &world.layout)).unwrap().unwrap();
    assert_eq!(found.wal.unwrap().durable, seam.at);
    assert!(!world.layout.partial(name(4)).exists());
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let seam = Seam { tli: TLI, at: ends[7] };
    let disk = FaultyDisk::default();
    disk.leave_room(MIB / 2);
    let refused = run_ready(prepare_cut(&disk, &world.layout, size(), Cut::Past(seam))).unwrap();
    let error = std::io::Error::from(refused.unwrap_err());
    assert!(crate::store::append::is_no_space(&error), "{error}");
    assert!(!Layout::temporary(&world.layout.partial(name(3))).exists());
    assert_eq!(world.wal_unchanged(), world.end);
}

/// Its author may be anybody: it is about our WAL.
fn difference(at: Lsn) -> Difference {
    Difference {
        tli: TLI,
        at,
        source: WalSource::archive(),
        since: SystemTime::UNIX_EPOCH,
        detail: "other".to_owned(),
        bytes: None,
        cleared: false,
    }
}

#[test]
fn a_cut_ends_the_evidence_about_what_it_sets_aside_and_no_other() {
    let mut ends = Vec::new();
    let world = World::new(|synth| ends = ordinary(synth));
    let (before, at) = (ends[6], ends[7]);
    let mut evidence = Evidence::from(difference(before));
    for past in [at, ends[9]] {
        evidence.add(difference(past));
    }
    let path = world.layout.evidence();
    std::fs::write(&path, evidence.encode()).unwrap();
    world.cut(at);
    let left = Evidence::decode(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(left, Evidence::from(difference(before)));
    let second = Cut::Past(Seam { tli: TLI, at: before });
    run_ready(decide_cut(&PlainDisk, &world.layout, second)).unwrap().unwrap();
    run_ready(finish_cut(&PlainDisk, &world.layout)).unwrap().unwrap();
    assert!(!path.exists());
    // One that is found later is about other WAL, though the seam stands.
    let later = Evidence::from(difference(ends[9]));
    std::fs::write(&path, later.encode()).unwrap();
    run_ready(finish_cut(&PlainDisk, &world.layout)).unwrap().unwrap();
    assert_eq!(Evidence::decode(&std::fs::read(&path).unwrap()), Ok(later));
}

mod back;
