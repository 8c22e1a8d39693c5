//! Engine: file work outside the data cores, on a thread of its own with tokio-uring.
//!
//! Recovery runs here too, before anything is served. Then jobs come through two bounded queues,
//! one for each [`Lane`]. The jobs of a lane are done in the order given, one at a time, and each
//! gets one answer. What a commit or the upstream's task waits for is urgent. It never queues
//! behind what is patient: slots, files that laggards read, restored segments, retention, spares
//! made ahead. After each patient job comes one step of background work.
//!
//! In the urgent lane, segments are prepared beside the other jobs. When no spare is ready, a
//! segment has to be written with zeros first, and a final name that a commit waits for does not
//! wait for that.
//!
//! So a segment to prepare, another urgent job and a patient one may be under way at the same
//! time. That is harmless because:
//!
//! - No borrow of the keeper's state lasts over a wait. What a job is going to use up (a segment
//!   to remove, a spare, the names that a sync covers) it takes out before its first wait, and
//!   puts back when it fails.
//! - A segment that is being opened counts as held before the file is opened. A removal looks for
//!   holders again after the name has gone, and then does not recycle.
//! - An open that finds nothing looks once more: the segment may have got its final name between
//!   its two looks.
//! - A segment is prepared before its WAL is written and named when all of it is durable, so never
//!   both at once. Preparing touches none of the small files.
//! - A switch and a set-aside move the files that everything else is about. They wait for the step
//!   of patient work under way and for the segments to prepare, and everything else waits for
//!   them. Retention goes in steps, and gives up when one of them came between two steps.
//! - The urgent lane waits for the patient one only there. A segment to prepare also waits for at
//!   most one step of 1 MiB of a spare that it takes over.
//!
//! tokio-uring submits only when its thread parks, and patient work that never waits for the disk
//! would not let it. So the patient lane gives way after each job and each step.

mod adopt;
mod archive;
mod asides;
mod client;
mod cluster;
mod complete;
mod completions;
mod cut;
mod damaged;
mod digests;
mod expiry;
mod gate;
mod hashing;
mod job;
mod lanes;
mod looks;
mod mend;
mod notes;
mod open_files;
mod order;
mod overwrite;
mod pressure;
mod removal;
mod restored;
mod retain;
mod room;
mod segments;
#[cfg(all(test, not(walhub_loom)))]
mod simulation;
mod slots;
mod spares;
mod uring_disk;
mod work;

pub use client::{CoreClient, KeeperClient, LaneQueue, Orders, QUEUE, SaveFault, queue};
pub use job::{Job, JobDone, JobKind, Lane, Note, ShownBy, Tended};
pub use lanes::serve;
pub use order::{AnswerInbox, Order, Reply, SegmentSource};
pub use uring_disk::UringDisk;
pub use work::Keeper;

use crate::store::directory::Directory;
use crate::store::disk::Disk;
use crate::store::holes::Extent;
use crate::store::layout::Layout;
use crate::store::retention::{Holds, Policy, Restorable};
use crate::store::{Recovered, StoreFault, recover};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Entries in the submission queue of the keeper's ring; each lane has at most two operations in
/// flight.
const RING_ENTRIES: u32 = 64;

/// A running keeper, and what it found.
#[derive(Debug)]
pub struct Started {
    /// A handle to it.
    pub client: KeeperClient,
    /// What was in the directory.
    pub recovered: Recovered,
    /// Shared with everything that needs WAL to stay.
    pub holds: Arc<Holds>,
    /// The keeper waits until this is filled before it takes an order.
    pub source: SourceSlot,
}

/// A keeper that recovers its directory. Dropping this cuts the recovery off, which may happen
/// between any two of its steps: the next start does all of it again.
#[derive(Debug)]
pub struct Recovering(oneshot::Receiver<Result<Started, KeeperFault>>);

impl Recovering {
    /// Waits for the end of the recovery.
    ///
    /// # Errors
    /// The directory is unusable, or io_uring is.
    pub async fn started(self) -> Result<Started, KeeperFault> {
        self.0.await.unwrap_or_else(|_| {
            // Only a panic drops the sender, and that ends the process.
            Err(KeeperFault::Thread(io::Error::other("it ended early")))
        })
    }
}

/// Tells a keeper its source for what is not on disk. Dropping it says that there is none.
#[derive(Debug)]
pub struct SourceSlot(oneshot::Sender<Source>);

impl SourceSlot {
    /// From now on, segments that are not on disk are requested from `source`.
    pub fn fill(self, source: Arc<dyn SegmentSource>) {
        // Only a panic drops the receiver, and that ends the process.
        drop(self.0.send(Source(source)));
    }
}

struct Source(Arc<dyn SegmentSource>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

/// Why the keeper did not start.
#[derive(Debug, thiserror::Error)]
pub enum KeeperFault {
    /// The ring could not be set up.
    #[error("could not set up io_uring for file work: {0}")]
    Ring(io::Error),
    /// The thread could not be started.
    #[error("could not start the keeper's thread: {0}")]
    Thread(io::Error),
    /// The directory is unusable.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Starts the thread that recovers the directory and then keeps it. The thread ends when all
/// clients are dropped and the orders are done. The directory's lock is released with it.
pub fn start(
    directory: Directory,
    policy: Policy,
) -> Result<(JoinHandle<()>, Recovering), KeeperFault> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || run(directory, policy, tell))
        .map_err(KeeperFault::Thread)?;
    Ok((thread, Recovering(told)))
}

fn run(
    directory: Directory,
    policy: Policy,
    mut tell: oneshot::Sender<Result<Started, KeeperFault>>,
) {
    let mut builder = tokio_uring::builder();
    builder.entries(RING_ENTRIES);
    let runtime = match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => runtime,
        Err(error) => return give(tell, Err(KeeperFault::Ring(error))),
    };
    runtime.block_on(async {
        let opened = tokio::select! {
            biased;
            () = tell.closed() => return,
            opened = open(UringDisk, directory.layout(), policy) => opened,
        };
        let (keeper, recovered, holds) = match opened {
            Ok(opened) => opened,
            Err(fault) => return give(tell, Err(fault.into())),
        };
        let (client, orders) = queue(QUEUE);
        let (fill, source) = oneshot::channel();
        give(tell, Ok(Started { client, recovered, holds, source: SourceSlot(fill) }));
        let source = source.await.ok().map(|Source(source)| source);
        serve(&keeper, orders, source).await;
    });
}

/// Recovers a directory, and makes the keeper of what was found there.
///
/// # Errors
/// The directory is unusable, or a part of it cannot be read.
pub async fn open<D: Disk>(
    disk: D,
    layout: &Layout,
    policy: Policy,
) -> Result<(Keeper<D>, Recovered, Arc<Holds>), StoreFault> {
    let mut recovered = recover(&disk, layout).await?;
    let wal = recovered.wal.as_ref();
    let cluster = recovered.control.as_ref().and_then(|control| control.cluster.clone());
    let extent = wal.map(|wal| wal.extent.clone()).unwrap_or_default();
    warn_of_holes(&extent, policy.restorable);
    let holds = Arc::new(Holds::of(extent));
    let (listing, complete) = (&recovered.listing, wal.and_then(|wal| wal.complete));
    let (layout, shared) = (layout.clone(), Arc::clone(&holds));
    let keeper = Keeper::new(disk, layout, shared, listing, complete, cluster);
    let keeper = keeper.with_policy(policy);
    keeper.load_slots().await?;
    match recovered.seams.under_way() {
        Some(cut) => recovered.seams = keeper.end_cut(cut).await?,
        None => keeper.let_go(&recovered.seams).await,
    }
    keeper.holds.slots.lock().watch(&recovered.seams);
    keeper.load_archive_status().await?;
    keeper.load_confirmed().await;
    if recovered.wal.is_some() {
        keeper.look_at_disk().await;
    }
    Ok((keeper, recovered, holds))
}

/// The operator has to know, unless an archive can fill the holes.
fn warn_of_holes(extent: &Extent, restorable: Restorable) {
    for hole in &extent.holes {
        let (start, end) = (hole.start(), hole.end());
        match restorable {
            Restorable::No => tracing::warn!(
                "WAL from {start} to {end} is missing in pg_wal ({hole}): WAL before it is kept \
                 and served, and standbys that need more are refused until the missing segments \
                 are copied back"
            ),
            Restorable::Yes { .. } => tracing::info!(
                "WAL from {start} to {end} is missing in pg_wal ({hole}): it is fetched from the \
                 archive when a standby needs it"
            ),
        }
    }
    if let Some(hole) = &extent.before_open {
        let (start, end) = (hole.start(), hole.end());
        tracing::warn!(
            "WAL from {start} to {end} is missing in pg_wal ({hole}), and an open segment after it \
             holds WAL that cannot be used without it: the hub goes on from {start}; to keep what \
             it had, stop it before it receives WAL and copy the missing segments back"
        );
    }
}

fn give(
    tell: oneshot::Sender<Result<Started, KeeperFault>>,
    started: Result<Started, KeeperFault>,
) {
    // Nobody waits for it any more when the process is ending. Then there is no client either.
    drop(tell.send(started));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::store::append::{Beginning, Begun};
    use crate::store::control_file::{Cluster, ControlFile};
    use crate::wal::synth::Synth;
    use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
    use std::os::unix::fs::FileExt;
    use std::sync::Mutex;
    use std::sync::mpsc::Receiver;

    const MIB: u64 = 1 << 20;

    struct World {
        dir: tempfile::TempDir,
        cluster: Cluster,
        wal: Vec<u8>,
        ends: Vec<u64>,
    }

    fn world() -> World {
        let size = SegmentSize::new(MIB).unwrap();
        let system_id = SystemId::new(77);
        let start = Lsn::new(5 * MIB);
        let mut synth = Synth::new(system_id, size, TimelineId::FIRST, 0xD110, start);
        let mut ends = Vec::new();
        while synth.position() < Lsn::new(8 * MIB) {
            synth.record(&[7; 5000]);
            ends.push(synth.position().raw() - start.raw());
        }
        let (_, wal) = synth.take_bytes();
        let cluster = Cluster {
            system_id,
            segment_size: size,
            data_directory_mode: "0700".to_owned(),
            parameters: Vec::new(),
            timeline: TimelineId::FIRST,
            start,
            sealed: Vec::new(),
        };
        World { dir: tempfile::tempdir().unwrap(), cluster, wal, ends }
    }

    /// A keeper whose answers to a core can be received by the test.
    struct Kept {
        client: KeeperClient,
        core: CoreClient,
        answers: Receiver<JobDone>,
        recovered: Recovered,
        thread: JoinHandle<()>,
    }

    struct Answers(Mutex<std::sync::mpsc::Sender<JobDone>>);

    impl AnswerInbox for Answers {
        fn answer(&self, done: JobDone) {
            self.0.lock().unwrap().send(done).unwrap();
        }
    }

    fn open(world: &World) -> Kept {
        let (sender, answers) = std::sync::mpsc::channel();
        let directory = Directory::open(&world.dir.path().join("hub")).unwrap();
        let (thread, recovering) = start(directory, Policy::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let Started { client, recovered, .. } = runtime.block_on(recovering.started()).unwrap();
        let core = client.for_core(Arc::new(Answers(Mutex::new(sender))));
        Kept { client, core, answers, recovered, thread }
    }

    impl Kept {
        fn ask(&self, job: Job) -> JobDone {
            self.core.post(job).unwrap();
            self.answers.recv().unwrap()
        }

        fn stop(self) {
            drop((self.client, self.core));
            self.thread.join().unwrap();
        }
    }

    #[test]
    fn a_life_on_a_real_disk() {
        let world = world();
        let tli = TimelineId::FIRST;
        let keeper = open(&world);
        assert!(keeper.recovered.control.is_none() && keeper.recovered.wal.is_none());
        let control =
            ControlFile { instance: InstanceId::new(5), cluster: Some(world.cluster.clone()) };
        let done = keeper.ask(Job::SaveControl(Box::new(control.clone())));
        assert!(matches!(done, JobDone::Done(JobKind::SaveControl)), "{done:?}");

        let cut = world.ends.iter().copied().find(|end| *end > 5 * MIB / 2).unwrap();
        for no in 5..8 {
            let keep = Lsn::new(no * MIB);
            let no = SegmentNo::new(no);
            let JobDone::Prepared { file, .. } = keeper.ask(Job::Prepare { tli, no, keep }) else {
                panic!("not prepared")
            };
            let file = std::fs::File::from(file.try_clone().unwrap());
            let from = ((no.raw() - 5) * MIB) as usize;
            let to = (from + MIB as usize).min(cut as usize);
            file.write_all_at(&world.wal[from..to], 0).unwrap();
            file.sync_data().unwrap();
            if no.raw() == 5 {
                let (start, upto) = (world.cluster.start, Lsn::new(5 * MIB + 9000));
                let done = keeper.ask(Job::Begin { tli, start, upto });
                assert!(matches!(done, JobDone::Begun { begun: Begun::Wholly, .. }), "{done:?}");
            }
            if no.raw() == 5 {
                let done = keeper.ask(Job::Finalize { tli, no });
                assert!(matches!(done, JobDone::Finalized { .. }), "{done:?}");
            }
        }
        keeper.stop();

        let keeper = open(&world);
        assert_eq!(keeper.recovered.control, Some(control));
        let wal = keeper.recovered.wal.clone().unwrap();
        assert_eq!(wal.durable, Lsn::new(5 * MIB + cut));
        assert_eq!(wal.resume, Lsn::new(7 * MIB), "6 was whole and has its name now");
        assert_eq!(wal.beginning, Beginning::Past);
        let from = wal.prefix_from.bytes_since(world.cluster.start) as usize;
        assert!(from < cut as usize);
        assert_eq!(wal.prefix[..], world.wal[from..cut as usize]);
        let no = SegmentNo::new(6);
        let open = |no: SegmentNo| {
            let done = keeper.ask(Job::Open { tli, no });
            let JobDone::Opened { result, .. } = done else { panic!("{done:?}") };
            result
        };
        let oldest = no.previous().unwrap();
        let held = open(oldest).unwrap();
        // Far ahead: 5 goes, though it is open here; 6 stays, because the next start's
        // walk begins in it.
        let newest = Lsn::new(100 * MIB);
        let done = keeper.ask(Job::Retain { tli: TimelineId::FIRST, newest });
        assert!(matches!(done, JobDone::Done(JobKind::Retain)), "{done:?}");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while world.dir.path().join("hub/pg_wal/000000010000000000000005").exists() {
            assert!(std::time::Instant::now() < deadline, "segment 5 is not removed");
            std::thread::yield_now();
        }
        let mut byte = [0];
        let file = std::fs::File::from(held.try_clone().unwrap());
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte[0], world.wal[0], "an open file keeps its bytes");
        assert!(open(no).is_ok());
        keeper.stop();
    }

    #[test]
    fn a_start_looks_at_the_newest_segments_only() {
        let world = world();
        let layout = Directory::open(&world.dir.path().join("hub")).unwrap().layout().clone();
        let size = world.cluster.segment_size;
        let name = |no| SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size };
        let first = 5;
        let newest = first + 65_535;
        // The others are empty: anything that read them would report an error.
        for no in first..newest {
            std::fs::File::create(layout.segment(name(no))).unwrap();
        }
        let start = SegmentNo::new(newest).start(size);
        let system = world.cluster.system_id;
        let mut synth = Synth::new(system, size, TimelineId::FIRST, 0xD110, start);
        while synth.position() < start.saturating_add(3 * MIB / 2) {
            synth.record(&[1; 3000]);
        }
        let (_, wal) = synth.take_bytes();
        let (complete, open_one) = wal.split_at(MIB as usize);
        std::fs::write(layout.segment(name(newest)), complete).unwrap();
        std::fs::write(layout.partial(name(newest + 1)), open_one).unwrap();
        let instance = InstanceId::new(5);
        let control = ControlFile { instance, cluster: Some(world.cluster.clone()) };
        std::fs::write(layout.control(), control.encode()).unwrap();
        let began = std::time::Instant::now();
        let keeper = open(&world);
        let took = began.elapsed();
        let wal = keeper.recovered.wal.clone().unwrap();
        assert_eq!(wal.durable, synth.position());
        assert_eq!(wal.oldest, world.cluster.start);
        println!("65,536 segments: {took:?}");
        keeper.stop();
    }
}
