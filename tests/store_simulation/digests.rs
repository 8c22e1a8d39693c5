//! Digests on a bad disk: wherever a process or the power ends, no digest stands beside other bytes
//! than those that it is of. Segments are completed, given up, moved away and written again under
//! the same name, with other bytes each time.

use crate::fake_disk::{FakeDisk, Faults, no_space};
use crate::plants::{LeftOut, Without};
use crate::random::Random;
use crate::world::{Broken, promise, seen};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use walhub::keeper::{Job, JobDone, Keeper, Tended};
use walhub::store::aside::move_aside;
use walhub::store::control_file::Cluster;
use walhub::store::digest::{BlockHasher, SegmentDigest, sync_names};
use walhub::store::disk::Disk;
use walhub::store::layout::{Layout, Listing};
use walhub::store::retention::Holds;
use walhub::wal::synth::Synth;
use walhub::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};

const MIB: u64 = 1 << 20;
const TLI: TimelineId = TimelineId::FIRST;
const SYSTEM: SystemId = SystemId::new(7);
const FIRST: u64 = 5;
/// So many names are used again and again.
const NAMES: u64 = 3;

/// What an ordinary run has to meet.
pub(crate) const EXPECTED: &[&str] = &[
    "a digest in the cache and on the medium",
    "a digest of a file that went",
    "a digest that is kept",
    "written again under its name",
    "moved away with its digest",
    "a torn digest",
];

fn name(no: u64) -> SegmentName {
    SegmentName { tli: TLI, no: SegmentNo::new(no), size: SegmentSize::new(MIB).unwrap() }
}

/// A directory and what happens to it.
struct World {
    random: Random,
    disk: FakeDisk,
    left_out: Option<LeftOut>,
    layout: Layout,
    written: u64,
}

/// Runs one seed to its end; the error says which promise was broken.
pub(crate) fn run(seed: u64, left_out: Option<LeftOut>) -> Result<(), Broken> {
    let mut random = Random::new(seed);
    let disk = FakeDisk::new(random.fork());
    disk.set_unsteadiness(random.below(3));
    disk.set_faults(match random.below(3) {
        0 => Faults { early_writeback: 200, short_write: 20, ..Faults::default() },
        1 => Faults { failed_write: 2, eviction: 20, ..Faults::default() },
        _ => Faults::default(),
    });
    let layout = Layout::new(Path::new("/hub"));
    let mut world = World { random, disk, left_out, layout, written: 0 };
    let lives = 3 + world.random.below(4);
    for _ in 0..lives {
        world.live().map_err(|broken| format!("seed {seed}: {broken}"))?;
    }
    Ok(())
}

/// What is to be done next.
enum Step {
    /// A segment is written and completed.
    Complete(u64),
    /// What lies before a position is given up.
    GiveUp(u64),
    /// Background work.
    Tend,
}

impl World {
    /// One process, up to its end.
    fn live(&mut self) -> Result<(), Broken> {
        let steps = 2 + self.random.below(8);
        let mut turns = self.random.below(400);
        let disk = self.disk();
        let away = self.random.chance(400).then(|| FIRST + self.random.below(NAMES));
        let mut opening = Box::pin(start(&disk, &self.layout, away));
        let opened = finish(opening.as_mut(), &mut turns);
        drop(opening);
        if let Some(Ok(names)) = opened {
            let holds = Arc::new(Holds::new(Lsn::new(FIRST * MIB)));
            let listing = Listing::of(names, name(FIRST).size);
            let keeper =
                Keeper::new(self.disk(), self.layout.clone(), holds, &listing, None, cluster());
            for _ in 0..steps {
                let step = self.next_step();
                let content = match step {
                    Step::Complete(no) => self.content(no),
                    Step::GiveUp(_) | Step::Tend => Vec::new(),
                };
                let (disk, layout) = (&self.disk, &self.layout);
                let mut work = Box::pin(do_step(disk, layout, &keeper, step, content));
                let done = finish(work.as_mut(), &mut turns);
                drop(work);
                self.check()?;
                if done.is_none() {
                    break;
                }
            }
        }
        if self.random.chance(500) {
            self.disk.power_loss();
        }
        self.check()
    }

    fn disk(&self) -> Without {
        Without::new(self.disk.clone(), self.left_out)
    }

    fn next_step(&mut self) -> Step {
        let no = FIRST + self.random.below(NAMES);
        match self.random.below(6) {
            0 | 1 => Step::Complete(no),
            2 => Step::GiveUp(no),
            _ => Step::Tend,
        }
    }

    /// A segment of WAL, of other bytes each time: what is no WAL gets no digest.
    fn content(&mut self, no: u64) -> Vec<u8> {
        self.written += 1;
        let mut synth = Synth::new(SYSTEM, name(no).size, TLI, 0xD110, Lsn::new(no * MIB));
        while synth.position() < Lsn::new((no + 1) * MIB) {
            synth.record(&self.written.to_le_bytes().repeat(12_500));
        }
        let (_, mut wal) = synth.take_bytes();
        wal.truncate(MIB as usize);
        wal
    }

    /// The promise, for readers and for who comes after a loss of power.
    fn check(&self) -> Result<(), Broken> {
        for no in FIRST..FIRST + NAMES {
            let files = self.disk.views(&self.layout.segment(name(no)));
            let digests = self.disk.views(&self.layout.digest(name(no)));
            let kept = self.disk.views(&self.layout.removed_digest(name(no)));
            for (view, file, kept) in [("cache", &files.0, kept.0), ("medium", &files.1, kept.1)] {
                let Some(kept) = kept.and_then(|kept| SegmentDigest::decode(&kept, name(no)).ok())
                else {
                    continue;
                };
                let Some(file) = file else {
                    seen("a digest that is kept");
                    continue;
                };
                let mut hasher = BlockHasher::default();
                hasher.feed(file);
                let differs = kept.differing(&hasher.finish());
                promise!(
                    differs.is_empty(),
                    "a kept digest of segment {no} is false in the {view}"
                );
            }
            let mut known = 0;
            for (view, file, digest) in
                [("cache", files.0, digests.0), ("medium", files.1, digests.1)]
            {
                let Some(digest) = digest else { continue };
                let Ok(digest) = SegmentDigest::decode(&digest, name(no)) else {
                    seen("a torn digest");
                    continue;
                };
                let Some(file) = file else {
                    seen("a digest of a file that went");
                    continue;
                };
                let mut hasher = BlockHasher::default();
                hasher.feed(&file);
                let differs = digest.differing(&hasher.finish());
                promise!(differs.is_empty(), "the digest of segment {no} is false in the {view}");
                known += 1;
            }
            if known == 2 {
                seen("a digest in the cache and on the medium");
            }
        }
        Ok(())
    }
}

fn cluster() -> Option<Cluster> {
    Some(Cluster {
        system_id: SYSTEM,
        segment_size: name(FIRST).size,
        data_directory_mode: "0700".into(),
        parameters: Vec::new(),
        timeline: TLI,
        start: Lsn::new(FIRST * MIB),
        sealed: Vec::new(),
    })
}

/// Runs until the end or until no turns are left.
fn finish<T>(mut work: std::pin::Pin<&mut impl Future<Output = T>>, turns: &mut u64) -> Option<T> {
    loop {
        *turns = turns.checked_sub(1)?;
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(done);
        }
    }
}

/// What a start does about names. It may move a segment away, when a switch was decided.
async fn start(disk: &Without, layout: &Layout, away: Option<u64>) -> io::Result<Vec<String>> {
    disk.sync_dir(layout.wal()).await?;
    sync_names(disk, layout).await?;
    let names = disk.list(layout.wal()).await?;
    let Some(no) = away.filter(|no| names.contains(&name(*no).to_string())) else {
        return Ok(names);
    };
    if disk.open_read(&layout.digest(name(no))).await.is_ok() {
        seen("moved away with its digest");
    }
    let to = PathBuf::from("/hub/diverged/1-0_5").join(name(no).to_string());
    let moved = move_aside(disk, &layout.segment(name(no)), &to, "a test").await;
    moved.map_err(io::Error::other)?;
    disk.sync_dir(layout.wal()).await?;
    disk.list(layout.wal()).await
}

async fn do_step(
    disk: &FakeDisk,
    layout: &Layout,
    keeper: &Keeper<Without>,
    step: Step,
    content: Vec<u8>,
) -> io::Result<()> {
    match step {
        Step::Complete(no) => complete(disk, layout, keeper, no, content).await,
        Step::GiveUp(no) => {
            let newest = Lsn::new((no + 1 + 16) * MIB);
            keeper.run(Job::Retain { tli: TLI, newest }).await;
            tend(keeper).await
        }
        Step::Tend => tend(keeper).await,
    }
}

async fn tend(keeper: &Keeper<Without>) -> io::Result<()> {
    while keeper.tend().await? == Tended::More {}
    Ok(())
}

/// As the receive role does it.
async fn complete(
    disk: &FakeDisk,
    layout: &Layout,
    keeper: &Keeper<Without>,
    no: u64,
    content: Vec<u8>,
) -> io::Result<()> {
    if disk.views(&layout.segment(name(no))).0.is_some() {
        return Ok(());
    }
    let (no, keep) = (SegmentNo::new(no), Lsn::new(no * MIB));
    let JobDone::Prepared { file, .. } = keeper.run(Job::Prepare { tli: TLI, no, keep }).await
    else {
        return Err(no_space());
    };
    seen("written again under its name");
    // A short write is the appender's affair.
    if disk.write_now(&file, &content, 0)? < content.len() {
        return Err(no_space());
    }
    disk.sync_data(&file).await?;
    keeper.run(Job::Finalize { tli: TLI, no }).await;
    Ok(())
}
