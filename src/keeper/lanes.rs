//! The keeper's main loop: two lanes on one thread.

use super::client::{LaneQueue, Orders, QUEUE};
use super::job::{Job, JobDone, Tended};
use super::order::{Order, Reply, SegmentSource};
use super::work::Keeper;
use crate::store::disk::Disk;
use std::io;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};
use tracing::warn;

/// Does the orders of both lanes, and background work. It ends when no client is left. Segments
/// that are not on disk are requested from `source`.
pub async fn serve<D: Disk>(
    keeper: &Keeper<D>,
    orders: Orders<D::File>,
    source: Option<Arc<dyn SegmentSource<D::File>>>,
) {
    let Orders { urgent, patient } = orders;
    let done = Notify::new();
    tokio::join!(
        serve_urgent(keeper, urgent, &done),
        serve_patient(keeper, patient, &done, source.as_deref()),
    );
}

/// Does the orders in the order given, except that segments are prepared beside the others. What
/// moves all files is done alone: after everything that was given before it, and before everything
/// that was given after it.
async fn serve_urgent<D: Disk>(keeper: &Keeper<D>, mut orders: LaneQueue<D::File>, done: &Notify) {
    loop {
        let (prepare, segments) = mpsc::channel(QUEUE);
        let (moving, ()) = tokio::join!(
            serve_until_moved(keeper, &mut orders, prepare, done),
            serve_segments(keeper, segments, done),
        );
        let Some(order) = moving else { return };
        serve_one(keeper, order, done).await;
    }
}

/// Does the orders up to the first that moves all files, and returns that one. Segments to prepare
/// are passed on: when no spare is ready, one has to be written first, and a commit waits for some
/// of the other orders.
async fn serve_until_moved<D: Disk>(
    keeper: &Keeper<D>,
    orders: &mut LaneQueue<D::File>,
    prepare: mpsc::Sender<Order<D::File>>,
    done: &Notify,
) -> Option<Order<D::File>> {
    loop {
        let order = orders.next().await?;
        match order.job {
            Job::Switch(_) | Job::SetAside(_) | Job::Cut(_) => return Some(order),
            // The other half of this round takes them. While too many wait there, this half
            // waits too.
            Job::Prepare { .. } => prepare.send(order).await.ok()?,
            _ => serve_one(keeper, order, done).await,
        }
    }
}

/// Prepares segments until no more are passed on.
async fn serve_segments<D: Disk>(
    keeper: &Keeper<D>,
    mut segments: mpsc::Receiver<Order<D::File>>,
    done: &Notify,
) {
    while let Some(order) = segments.recv().await {
        serve_one(keeper, order, done).await;
    }
}

/// Says by `done` that there may be background work again: a spare was used up, or a segment was
/// completed.
async fn serve_one<D: Disk>(keeper: &Keeper<D>, order: Order<D::File>, done: &Notify) {
    let Order { job, reply } = order;
    reply.send(keeper.run(job).await);
    done.notify_one();
}

/// After each order comes one step of background work: neither waits for all of the other's.
async fn serve_patient<D: Disk>(
    keeper: &Keeper<D>,
    mut orders: LaneQueue<D::File>,
    done: &Notify,
    source: Option<&dyn SegmentSource<D::File>>,
) {
    let mut tended = Tended::More;
    loop {
        let order = match tended {
            Tended::More if orders.is_over() => return,
            Tended::More => orders.take(),
            Tended::Idle => tokio::select! {
                biased;
                order = orders.next() => match order {
                    Some(order) => Some(order),
                    None => return,
                },
                () = done.notified() => None,
            },
        };
        if let Some(Order { job, reply }) = order {
            deliver(keeper.run(job).await, reply, source);
        }
        keeper.retain_if_due().await;
        let asides = keeper.tend_asides().await;
        tended = keeper.tend().await.unwrap_or_else(|error| {
            warn!("background work on WAL segments failed: {error}");
            Tended::Idle
        });
        if asides == Tended::More {
            tended = Tended::More;
        }
        // Work that never waits for the disk would keep the urgent lane from it.
        keeper.give_way().await;
    }
}

/// Sends an answer to its receiver. A segment that is not on disk may be had from the archive. A
/// segment that is on disk may soon be followed by one that has to be fetched.
fn deliver<F>(done: JobDone<F>, reply: Reply<F>, source: Option<&dyn SegmentSource<F>>) {
    if let (Some(source), JobDone::Opened { tli, no, result }) = (source, &done) {
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return source.want(*tli, *no, reply);
            }
            Ok(_) => source.look_ahead(*tli, *no),
            Err(_) => {}
        }
    }
    reply.send(done);
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::keeper::{JobKind, Note, queue};
    use crate::store::control_file::Cluster;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::faulty_disk::FaultyDisk;
    use crate::store::layout::Listing;
    use crate::store::retention::Holds;
    use crate::store::switch::Switch;
    use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
    use std::path::Path;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use tokio::sync::oneshot;

    const MIB: u64 = 1 << 20;
    const TLI: TimelineId = TimelineId::FIRST;

    fn segment(no: u64) -> SegmentName {
        SegmentName { tli: TLI, no: SegmentNo::new(no), size: SegmentSize::new(MIB).unwrap() }
    }

    /// A keeper of a directory with segments 5 to 7, on a disk on which these paths are stuck.
    fn keeper(folder: &Path, stuck: fn(&Path) -> bool) -> (Keeper<FaultyDisk>, FaultyDisk) {
        let layout = Directory::open(&folder.join("hub")).unwrap().layout().clone();
        for no in 5..8 {
            std::fs::write(layout.segment(segment(no)), vec![7; MIB as usize]).unwrap();
        }
        let names = (5..8).map(|no| segment(no).to_string()).collect();
        let cluster = Cluster {
            system_id: SystemId::new(7),
            segment_size: SegmentSize::new(MIB).unwrap(),
            data_directory_mode: "0700".into(),
            parameters: Vec::new(),
            timeline: TLI,
            start: Lsn::new(5 * MIB),
            sealed: Vec::new(),
        };
        let listing = Listing::of(names, cluster.segment_size);
        let holds = Arc::new(Holds::new(Lsn::new(5 * MIB)));
        let disk = FaultyDisk::default();
        disk.stick_at(stuck);
        (Keeper::new(disk.clone(), layout, holds, &listing, None, Some(cluster)), disk)
    }

    fn asked(job: Job) -> (Order, oneshot::Receiver<JobDone>) {
        let (tell, told) = oneshot::channel();
        (Order { job, reply: Reply::Task(tell) }, told)
    }

    /// What became of each job. Before the next is given, the keeper has many turns.
    fn outcomes(keeper: Keeper<FaultyDisk>, jobs: Vec<Job>) -> Vec<Option<JobDone>> {
        let (client, orders) = queue(16);
        let mut serving = pin!(serve(&keeper, orders, None));
        let mut told = Vec::new();
        for job in jobs {
            let (order, answer) = asked(job);
            client.post(order).unwrap();
            told.push(answer);
            for _ in 0..50 {
                let turn = serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert_eq!(turn, Poll::Pending);
            }
        }
        told.iter_mut().map(|told| told.try_recv().ok()).collect()
    }

    fn what_a_commit_waits_for() -> Vec<Job> {
        let (no, keep) = (SegmentNo::new(8), Lsn::new(8 * MIB));
        vec![
            Job::Prepare { tli: TLI, no, keep },
            Job::Begin { tli: TLI, start: Lsn::new(7 * MIB), upto: Lsn::new(8 * MIB) },
            Job::Finalize { tli: TLI, no },
            Job::SaveHistory { tli: TLI, bytes: b"1\n".to_vec() },
        ]
    }

    #[test]
    fn the_orders_of_a_lane_are_done_in_the_order_given() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, _) = keeper(folder.path(), |_| false);
        let fence = keeper.layout.fence();
        let (client, orders) = queue(16);
        for n in 0..10 {
            let bytes = Some(vec![b'0' + n]);
            client.note(Job::SaveNote { note: Note::Fence, bytes });
        }
        drop(client);
        run_ready(serve(&keeper, orders, None)).unwrap();
        assert_eq!(std::fs::read(fence).unwrap(), b"9");
    }

    #[test]
    fn what_a_commit_waits_for_does_not_wait_for_a_slow_open() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, disk) = keeper(folder.path(), |path| path.ends_with(segment(5).to_string()));
        let mut jobs = vec![Job::Open { tli: TLI, no: SegmentNo::new(5) }];
        jobs.extend(what_a_commit_waits_for());
        let done = outcomes(keeper, jobs);
        assert_eq!(disk.waiting(), 1);
        let [None, Some(JobDone::Prepared { .. }), Some(JobDone::Begun { .. }), finalized, saved] =
            &done[..]
        else {
            panic!("{done:?}")
        };
        assert!(matches!(finalized, Some(JobDone::Finalized { .. })), "{finalized:?}");
        assert!(matches!(saved, Some(JobDone::Done(JobKind::SaveHistory { .. }))), "{saved:?}");
    }

    #[test]
    fn what_a_commit_waits_for_does_not_wait_for_a_slow_removal() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, disk) = keeper(folder.path(), |path| path.ends_with(segment(5).to_string()));
        // There is a spare: nothing has to be recycled for a segment.
        std::fs::write(keeper.layout.spare(1), vec![0; MIB as usize]).unwrap();
        keeper.spares.give_back(1);
        keeper.give_up_before(SegmentNo::new(6), SegmentSize::new(MIB).unwrap());
        let done = outcomes(keeper, what_a_commit_waits_for());
        assert_eq!(disk.waiting(), 1);
        assert!(done.iter().all(Option::is_some), "{done:?}");
    }

    /// What is stuck is a step, not the job: a switch that came in the middle would find files
    /// that somebody else is about to move.
    #[test]
    fn a_switch_waits_for_the_step_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, disk) = keeper(folder.path(), |path| path.ends_with(segment(5).to_string()));
        let open = Job::Open { tli: TLI, no: SegmentNo::new(5) };
        let plan = Switch { from: TLI, to: TimelineId::new(2).unwrap(), at: Lsn::new(7 * MIB) };
        let done = outcomes(keeper, vec![open, Job::Switch(plan)]);
        assert_eq!(disk.waiting(), 1);
        assert!(matches!(done[..], [None, None]), "{done:?}");
    }

    fn is_zero_fill(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "tmp")
    }

    fn prepare(no: u64) -> Job {
        Job::Prepare { tli: TLI, no: SegmentNo::new(no), keep: Lsn::new(no * MIB) }
    }

    #[test]
    fn what_a_commit_waits_for_does_not_wait_for_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, disk) = keeper(folder.path(), is_zero_fill);
        std::fs::write(keeper.layout.partial(segment(8)), vec![7; MIB as usize]).unwrap();
        let finalize = Job::Finalize { tli: TLI, no: SegmentNo::new(8) };
        let done = outcomes(keeper, vec![prepare(9), prepare(10), finalize]);
        assert!(disk.waiting() > 0);
        let [None, None, finalized] = &done[..] else { panic!("{done:?}") };
        assert!(matches!(finalized, Some(JobDone::Finalized { .. })), "{finalized:?}");
    }

    /// The switch would find files that somebody else is about to name, and what comes after it
    /// may be about its own timeline.
    #[test]
    fn a_switch_waits_for_the_segments_to_prepare_and_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, disk) = keeper(folder.path(), |path| path.ends_with("spare.1"));
        std::fs::write(keeper.layout.spare(1), vec![0; MIB as usize]).unwrap();
        keeper.spares.give_back(1);
        let plan = Switch { from: TLI, to: TimelineId::new(2).unwrap(), at: Lsn::new(7 * MIB) };
        let note = Job::SaveNote { note: Note::Fence, bytes: None };
        let done = outcomes(keeper, vec![prepare(8), prepare(9), Job::Switch(plan), note]);
        assert_eq!(disk.waiting(), 1);
        assert!(matches!(done[..], [None, None, None, None]), "{done:?}");
    }

    #[test]
    fn a_step_of_a_line_that_was_set_aside_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, _) = keeper(folder.path(), |_| false);
        let line = keeper.line();
        run_ready(keeper.run(Job::SetAside(InstanceId::new(5)))).unwrap();
        assert_eq!(run_ready(keeper.on_line(line, async {})), Some(None));
        assert_eq!(run_ready(keeper.on_line(keeper.line(), async {})), Some(Some(())));
    }
}
