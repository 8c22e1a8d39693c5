//! Synthetic standbys: thousands in one process, each with a connection of its own. They receive as
//! walreceivers do, check what they receive, and record when it came.
//!
//! A few threads share them, each with an epoll and one receive buffer. A standby itself takes some
//! hundred bytes: WAL is checked in the receive buffer and never collected.
//!
//! A receipt is timestamped when `recv` returns. A thread serves its standbys one after the other,
//! so the microseconds of each receive and check are part of the latencies of those that became
//! readable at the same time. Replies are sent afterwards.

mod endpoint;
mod first_last;
mod frames;
mod handshake;
mod ledger;
mod outcome;
mod plan;
mod scout;
mod shared;
mod standby;
mod sums;
mod verify;
mod worker;

pub use outcome::{Fault, FleetProgress, FleetResult, GroupResult, StormSeen};
pub use plan::{
    Behaviours, Flapping, FleetPlan, Group, Replies, Slow, Stalled, StandbySlots, StartAt, Storm,
    TruthFrom, Verify,
};
pub use scout::{Identity, identify};
pub use sums::{Sums, Unverified};

use self::outcome::histogram;
use self::shared::{Counts, FleetState};
use self::worker::{Report, Worker};
use crate::wal::Lsn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

/// Descriptors of a process besides its standbys' sockets.
const RESERVED_DESCRIPTORS: u64 = 256;

/// A running fleet.
pub struct Fleet {
    shared: Arc<FleetState>,
    threads: Vec<JoinHandle<Report>>,
}

/// Starts a fleet: identifies the target, then lets all standbys connect.
///
/// # Errors
/// The target cannot be reached, or there are not enough descriptors.
pub fn start(mut plan: FleetPlan) -> io::Result<Fleet> {
    plan.threads = plan.threads.clamp(1, plan.standbys.max(1));
    raise_descriptor_limit(plan.standbys as u64)?;
    let endpoints = endpoint::resolve(&plan.target)?;
    let identity = match plan.identity.take() {
        Some(identity) => identity,
        None => scout::ask(&endpoints)?,
    };
    let threads = plan.threads;
    let shared = Arc::new(FleetState::new(plan, endpoints, identity)?);
    let mut fleet = Fleet { shared: Arc::clone(&shared), threads: Vec::with_capacity(threads) };
    for n in 0..threads {
        let worker = Worker::new(Arc::clone(&shared), n)?;
        let thread = thread::Builder::new().name(format!("standbys-{n}"));
        fleet.threads.push(thread.spawn(move || worker.run())?);
    }
    Ok(fleet)
}

impl Fleet {
    /// What the target reported about itself.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Its progress.
    pub fn progress(&self) -> FleetProgress {
        let shared = &self.shared;
        let sum = |n: usize| {
            let loads = shared.counts.iter().map(|thread| thread.states[n].load(Ordering::Relaxed));
            loads.sum::<u64>() as usize
        };
        let counts = shared.counts.iter().map(|thread| thread.counts());
        let counts = counts.fold(Counts::default(), |all, one| all.plus(&one));
        let good = shared.plan.members(Group::Good);
        let mut received: Vec<u64> =
            shared.received.iter().take(good).map(|at| at.load(Ordering::Relaxed)).collect();
        received.sort_unstable();
        let lsn = |place: Option<&u64>| Lsn::new(place.copied().unwrap_or(0));
        let log = shared.log();
        FleetProgress {
            connecting: sum(standby::Kind::Connecting as usize),
            streaming: sum(standby::Kind::Streaming as usize),
            failed: sum(standby::Kind::Failed as usize),
            finished: sum(standby::Kind::Finished as usize),
            bytes: counts.bytes,
            messages: counts.messages,
            replies: counts.replies,
            sums: counts.sums,
            slowest: lsn(received.first()),
            median: lsn(received.get(received.len() / 2)),
            fastest: lsn(received.last()),
            reconnects: counts.reconnects,
            refusals: log.refusals,
            faults: log.fault_count,
            all_streaming: log.all_streaming,
            all_finished: log.all_finished,
            last_refusal: log.last_refusal.clone(),
        }
    }

    /// Starts measuring: counts and histograms are reset, and only commits that are due from now on
    /// count.
    pub fn mark(&self) {
        let now = self.shared.plan.clock.now();
        let books = &self.shared.first_last;
        books.lock().unwrap_or_else(PoisonError::into_inner).mark(now);
        self.shared.marked.store(now.0, Ordering::Release);
        self.shared.wake();
    }

    /// Nanoseconds from a commit's due time to its receipt by the last of the good ones, since the
    /// mark: median and 99th percentile.
    pub fn last_so_far(&self) -> Option<(u64, u64)> {
        let books = self.shared.first_last.lock().unwrap_or_else(PoisonError::into_inner);
        books.last_so_far()
    }

    /// All good standbys disconnect and reconnect at once.
    pub fn storm(&self) {
        self.shared.storm();
    }

    /// Disconnects all standbys and returns the results.
    pub fn stop(mut self) -> FleetResult {
        let shared = Arc::clone(&self.shared);
        let reports = self.join();
        let end = self.progress();
        let mut connect = histogram();
        let mut groups = Vec::new();
        for group in Group::ALL {
            let (mut counts, mut each, mut forgotten) = (Counts::default(), histogram(), 0);
            for report in &reports {
                let part = &report.groups[group.index()];
                counts = counts.plus(&part.counts);
                forgotten += part.forgotten;
                add(&mut each, &part.each);
            }
            groups.push(GroupResult {
                group,
                standbys: shared.plan.members(group),
                bytes: counts.bytes,
                messages: counts.messages,
                replies: counts.replies,
                reconnects: counts.reconnects,
                sums: counts.sums,
                each,
                forgotten,
            });
        }
        for report in &reports {
            add(&mut connect, &report.connect);
        }
        let books = shared.first_last.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last, incomplete_commits) = books.result(shared.plan.commits.count());
        let log = shared.log();
        FleetResult {
            groups,
            first,
            last,
            incomplete_commits,
            connect,
            storms: log.storms.clone(),
            faults: log.faults.clone(),
            fault_count: log.fault_count,
            end,
        }
    }

    fn join(&mut self) -> Vec<Report> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        // A thread that panicked has nothing to report, and has ended the process.
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.join();
    }
}

fn add(sum: &mut hdrhistogram::Histogram<u64>, part: &hdrhistogram::Histogram<u64>) {
    sum.add(part).expect("all histograms have the same bounds, see `histogram`");
}

/// Raises the descriptor limit as far as the system allows.
fn raise_descriptor_limit(standbys: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = standbys.saturating_add(RESERVED_DESCRIPTORS);
    if maximum.is_some_and(|maximum| maximum < needed) {
        return Err(io::Error::other(format!(
            "{standbys} standbys need {needed} file descriptors, and this process may have {} \
             (ulimit -Hn)",
            maximum.unwrap_or(0)
        )));
    }
    if current.is_some_and(|current| Some(current) != maximum) {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(())
}
