//! Cuts on a full disk: before one is decided it is refused, and after that it is carried out.

use crate::cluster::instance::InstanceId;
use crate::keeper::{Job, JobDone, Keeper, open};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::faulty_disk::FaultyDisk;
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::store::recover;
use crate::store::retention::Policy;
use crate::store::seams::Seam;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};

const MIB: u64 = 1 << 20;

struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    disk: FaultyDisk,
    keeper: Keeper<FaultyDisk>,
    seam: Seam,
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
    let seam = Seam { tli, at: ends[9] };
    let prepared = run_ready(opened.0.run(Job::PrepareCut(seam))).unwrap();
    assert!(matches!(prepared, JobDone::Done(_)), "{prepared:?}");
    disk.leave_room(0);
    World { _folder: folder, layout, disk, keeper: opened.0, seam, end: ends[19] }
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
    let done = world.run(Job::DecideCut(world.seam));
    assert!(matches!(done, JobDone::Failed { .. }), "{done:?}");
    assert!(!world.layout.seams().exists());
    assert_eq!(world.durable(), world.end);
}

#[test]
fn room_is_made_for_a_decision_and_for_what_follows() {
    let world = world();
    // What goes for the decision, and what goes for the rest.
    for job in [Job::DecideCut(world.seam), Job::Cut(world.seam)] {
        world.disk.leave_room(0);
        std::fs::write(world.layout.state(), vec![b' '; 4096]).unwrap();
        let done = world.run(job);
        assert!(matches!(done, JobDone::Done(_) | JobDone::Switched(_)), "{done:?}");
        assert!(!world.layout.state().exists(), "there was no room");
    }
    assert_eq!(world.durable(), world.seam.at);
}
