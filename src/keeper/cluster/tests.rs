//! The control file as the keeper writes it.

use super::*;
use crate::cluster::instance::InstanceId;
use crate::keeper::Job;
use crate::store::directory::Directory;
use crate::store::disk::run_ready;
use crate::store::layout::{Layout, Listing};
use crate::store::plain_disk::PlainDisk;
use crate::store::retention::Holds;
use crate::wal::{SegmentName, SegmentNo, SegmentSize, SystemId};
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
/// The open segment.
const OPEN: u64 = 10;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn partial(layout: &Layout) -> std::path::PathBuf {
    layout.partial(SegmentName { tli: tli(1), no: SegmentNo::new(OPEN), size: size() })
}

/// A keeper of a directory on timeline 1.
fn keeper(folder: &Path) -> (Keeper<PlainDisk>, Layout) {
    let layout = Directory::open(&folder.join("hub")).unwrap().layout().clone();
    let cluster = Cluster {
        system_id: SystemId::new(7),
        segment_size: size(),
        data_directory_mode: "0700".into(),
        parameters: Vec::new(),
        timeline: tli(1),
        start: Lsn::new(OPEN * MIB),
        sealed: Vec::new(),
    };
    let control = ControlFile { instance: InstanceId::new(3), cluster: Some(cluster) };
    let holds = Arc::new(Holds::new(Lsn::new(OPEN * MIB)));
    let listing = Listing::default();
    let keeper = Keeper::new(PlainDisk, layout.clone(), holds, &listing, None, None);
    let done = run(&keeper, Job::SaveControl(Box::new(control)));
    assert!(matches!(done, JobDone::Done(JobKind::SaveControl)), "{done:?}");
    (keeper, layout)
}

fn run(keeper: &Keeper<PlainDisk>, job: Job) -> JobDone {
    run_ready(keeper.run(job)).unwrap()
}

/// The cluster as a start would read it.
fn on_disk(layout: &Layout) -> Cluster {
    ControlFile::decode(&std::fs::read(layout.control()).unwrap()).unwrap().cluster.unwrap()
}

fn leave_for(to: u32, at: u64) -> Job {
    Job::Switch(Switch { from: tli(1), to: tli(to), at: Lsn::new(OPEN * MIB + at) })
}

#[test]
fn what_a_failed_switch_would_have_decided_is_not_written_with_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let (keeper, layout) = keeper(folder.path());
    // There is nothing to make the fork segment from.
    let done = run(&keeper, leave_for(2, 100));
    assert!(matches!(done, JobDone::Failed { job: JobKind::Switch, .. }), "{done:?}");
    let parameters = vec![("in_hot_standby".to_owned(), "on".to_owned())];
    let data_directory_mode = "0750".to_owned();
    let job = Job::SaveIdentity { data_directory_mode, parameters: parameters.clone() };
    let done = run(&keeper, job);
    assert!(matches!(done, JobDone::Done(JobKind::SaveIdentity)), "{done:?}");
    let cluster = on_disk(&layout);
    assert_eq!((cluster.timeline, &*cluster.data_directory_mode), (tli(1), "0750"));
    assert!(cluster.sealed.is_empty() && cluster.parameters == parameters);
}

#[test]
fn a_switch_that_was_decided_is_finished_whatever_is_asked_for_later() {
    let folder = tempfile::tempdir().unwrap();
    let (keeper, layout) = keeper(folder.path());
    std::fs::write(partial(&layout), vec![7; MIB as usize]).unwrap();
    let end = Lsn::new(OPEN * MIB + 100);
    std::fs::write(layout.history(tli(2)), format!("1\t{end}\tof the promotion\n")).unwrap();
    // Nothing can be moved aside.
    std::fs::write(layout.all_diverged(), "").unwrap();
    let done = run(&keeper, leave_for(2, 100));
    assert!(matches!(done, JobDone::Failed { job: JobKind::Switch, .. }), "{done:?}");
    assert_eq!(on_disk(&layout).timeline, tli(2), "it was decided");
    // A caller may still pass the parent's position: nothing past the end counts.
    assert_eq!(keeper.within(tli(1), Lsn::new(OPEN * MIB + 500)), end);
    assert_eq!(keeper.within(tli(1), Lsn::new(OPEN * MIB + 50)), Lsn::new(OPEN * MIB + 50));

    std::fs::remove_file(layout.all_diverged()).unwrap();
    let done = run(&keeper, leave_for(3, 200));
    let JobDone::Switched(wal) = done else { panic!("{done:?}") };
    assert_eq!(wal.walker.rules().tli, tli(2));
    let cluster = on_disk(&layout);
    assert_eq!((cluster.timeline, cluster.sealed.len()), (tli(2), 1));
    assert!(!partial(&layout).exists() && layout.diverged(tli(1), end).exists());

    let done = run(&keeper, leave_for(3, 200));
    assert!(matches!(done, JobDone::Switched(_)), "asked again, it is done again: {done:?}");
    let other = Switch { from: tli(4), to: tli(5), at: end };
    let done = run(&keeper, Job::Switch(other));
    assert!(matches!(done, JobDone::Failed { job: JobKind::Switch, .. }), "{done:?}");
}
