//! Cuts on a full disk: before one is decided it is refused, and after that it is carried out. And the way
//! back over a switch of timelines.

use crate::cluster::instance::InstanceId;
use crate::keeper::{Job, JobDone, Keeper, Note, open};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::FaultyDisk;
use crate::store::holes::Extent;
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::store::recover;
use crate::store::retention::Policy;
use crate::store::seams::{Cut, Seam, Seams, UnagreedSwitch};
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use std::time::SystemTime;

const MIB: u64 = 1 << 20;

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
    keeper: Keeper<FaultyDisk>,
    cut: Cut,
    end: Lsn,
}

/// A directory with an open segment, and the cut of half of it prepared. From now on the disk is
/// full.
fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let layout = Directory::open(&folder.path().join("hub")).unwrap().layout().clone();
    let (size, tli, start) = (SegmentSize::new(MIB).unwrap(), TimelineId::FIRST, Lsn::new(3 * MIB));
    let mut synth = Synth::new(SystemId::new(9), size, tli, 0xD110, start);
    let mut ends = Vec::new();
    for _ in 0..20 {
        synth.record(&[1; 900]);
        ends.push(synth.position());
    }
    let mut wal = synth.take_bytes().1;
    wal.resize(MIB as usize, 0);
    let name = SegmentName { tli, no: SegmentNo::new(3), size };
    std::fs::write(layout.partial(name), wal).unwrap();
    let cluster = Cluster {
        system_id: SystemId::new(9),
        segment_size: size,
        data_directory_mode: "0700".to_owned(),
        parameters: Vec::new(),
        timeline: tli,
        start,
        sealed: Vec::new(),
    };
    let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
    std::fs::write(layout.control(), control.encode()).unwrap();
    let disk = FaultyDisk::default();
    let opened = run_ready(open(disk.clone(), &layout, Policy::default())).unwrap().unwrap();
    let cut = Cut::Past(Seam { tli, at: ends[9] });
    let prepared = run_ready(opened.0.run(Job::PrepareCut(cut))).unwrap();
    assert!(matches!(prepared, JobDone::Done(_)), "{prepared:?}");
    disk.leave_room(0);
    World { _folder: folder, layout, disk, keeper: opened.0, cut, end: ends[19] }
}

impl World {
    fn run(&self, job: Job) -> JobDone<<FaultyDisk as crate::store::disk::Disk>::File> {
        run_ready(self.keeper.run(job)).unwrap()
    }

    /// Where the next start finds the end.
    fn durable(&self) -> Lsn {
        let found = run_ready(recover(&PlainDisk, &self.layout)).unwrap().unwrap();
        found.wal.unwrap().durable
    }
}

#[test]
fn what_is_not_decided_leaves_everything_as_it_was() {
    let world = world();
    let done = world.run(Job::DecideCut(world.cut));
    assert!(matches!(done, JobDone::Failed { .. }), "{done:?}");
    assert!(!world.layout.seams().exists());
    assert_eq!(world.durable(), world.end);
}

#[test]
fn room_is_made_for_a_decision_and_for_what_follows() {
    let world = world();
    // What goes for the decision, and what goes for the rest.
    for job in [Job::DecideCut(world.cut), Job::Cut(world.cut)] {
        world.disk.leave_room(0);
        std::fs::write(world.layout.state(), vec![b' '; 4096]).unwrap();
        let done = world.run(job);
        assert!(matches!(done, JobDone::Done(_) | JobDone::CutOff { .. }), "{done:?}");
        assert!(!world.layout.state().exists(), "there was no room");
    }
    assert_eq!(world.durable(), world.cut.place().at);
}

/// What retention has done meanwhile is about WAL that has left.
#[test]
fn what_is_here_after_the_way_back_is_kept_and_granted() {
    let World { layout, disk, keeper, end, .. } = &world();
    disk.leave_room(16 * MIB);
    let switch = Switch { from: TimelineId::FIRST, to: TimelineId::new(2).unwrap(), at: *end };
    let bytes = format!("1\t{end}\tx\n").into_bytes();
    let taken = UnagreedSwitch { switch, since: SystemTime::UNIX_EPOCH };
    let cut = Cut::Back(switch);
    let run = |job| match run_ready(keeper.run(job)).unwrap() {
        JobDone::Failed { job, error } => panic!("could not {job}: {error}"),
        done => done,
    };
    run(Job::SaveHistory { tli: switch.to, bytes });
    run(Job::KeepLeft(taken));
    run(Job::Switch(switch));
    keeper.holds.found(Extent::from(Lsn::new(9 * MIB)));
    keeper.horizon.set(SegmentNo::new(9));
    run(Job::PrepareCut(cut));
    run(Job::DecideCut(cut));
    let JobDone::CutOff { wal, seams } = run(Job::Cut(cut)) else { panic!("another answer") };
    assert_eq!((wal.durable, seams.rejected().count()), (*end, 1));
    assert_eq!(keeper.holds.oldest_kept(), Lsn::new(3 * MIB));
    assert_eq!(keeper.horizon.get(), SegmentNo::new(0));
    assert_eq!(std::fs::read_dir(layout.kept()).unwrap().count(), 0, "nothing needs it any more");
}

#[test]
fn what_is_kept_goes_with_the_note_about_it() {
    let World { layout, disk, keeper, end, .. } = &world();
    disk.leave_room(16 * MIB);
    let switch = Switch { from: TimelineId::FIRST, to: TimelineId::new(2).unwrap(), at: *end };
    let taken = UnagreedSwitch { switch, since: SystemTime::UNIX_EPOCH };
    let kept = || std::fs::read_dir(layout.kept()).unwrap().count();
    let run = |job| {
        let done = run_ready(keeper.run(job)).unwrap();
        assert!(matches!(done, JobDone::Done(_)), "{done:?}");
    };
    run(Job::KeepLeft(taken));
    let mut seams = Seams::decode(&std::fs::read(layout.seams()).unwrap()).unwrap();
    run(Job::SaveNote { note: Note::Seams, bytes: Some(seams.encode()) });
    assert_eq!(kept(), 1);
    seams.agree(&History::first());
    assert_eq!(seams, Seams::default());
    run(Job::SaveNote { note: Note::Seams, bytes: None });
    assert_eq!(kept(), 0);
}
