//! What a fleet's threads and its owner share.

use super::endpoint::Endpoint;
use super::first_last::FirstLast;
use super::outcome::{Fault, StormSeen};
use super::plan::{FleetPlan, Group};
use super::scout::Identity;
use super::sums::Sums;
use super::verify::Common;
use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most faults that are kept.
const MAX_FAULTS: usize = 100;

/// The fleet's common state.
pub(super) struct FleetState {
    pub(super) plan: FleetPlan,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) identity: Identity,
    pub(super) common: Arc<Common>,
    pub(super) first_last: Arc<Mutex<FirstLast>>,
    /// The received positions, by the standby's number.
    pub(super) received: Vec<AtomicU64>,
    pub(super) counts: Vec<SharedCounts>,
    /// Connections begun.
    pub(super) connections: AtomicU64,
    pub(super) stopping: AtomicBool,
    /// When measuring began.
    pub(super) marked: AtomicU64,
    /// Storms so far.
    pub(super) storms: AtomicU64,
    wakers: Vec<OwnedFd>,
    log: Mutex<Log>,
}

/// State that rarely changes.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) faults: Vec<Fault>,
    pub(super) fault_count: u64,
    pub(super) refusals: u64,
    pub(super) last_refusal: Option<String>,
    pub(super) storms: Vec<StormSeen>,
    /// Threads that have not yet carried out the latest storm.
    calm: usize,
    streaming: usize,
    finished: usize,
    pub(super) all_streaming: Option<Nanos>,
    pub(super) all_finished: Option<Nanos>,
}

/// One thread's counts for one group.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) bytes: u64,
    pub(super) messages: u64,
    pub(super) replies: u64,
    pub(super) reconnects: u64,
    pub(super) sums: Sums,
}

impl Counts {
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            messages: self.messages + other.messages,
            replies: self.replies + other.replies,
            reconnects: self.reconnects + other.reconnects,
            sums: self.sums + other.sums,
        }
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            messages: self.messages - earlier.messages,
            replies: self.replies - earlier.replies,
            reconnects: self.reconnects - earlier.reconnects,
            sums: self.sums - earlier.sums,
        }
    }
}

/// One thread's counts, which the owner may read at any time.
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    pub(super) states: [AtomicU64; 4],
    counts: [AtomicU64; 10],
}

impl SharedCounts {
    pub(super) fn publish(&self, states: &[usize; 4], counts: &Counts) {
        for (shown, count) in self.states.iter().zip(states) {
            shown.store(*count as u64, Ordering::Relaxed);
        }
        let Counts { bytes, messages, replies, reconnects, sums } = *counts;
        let [a, b, c, d, e, f] = sums.to_array();
        let all = [bytes, messages, replies, reconnects, a, b, c, d, e, f];
        for (shown, count) in self.counts.iter().zip(all) {
            shown.store(count, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let all: [u64; 10] = std::array::from_fn(|n| self.counts[n].load(Ordering::Relaxed));
        let [bytes, messages, replies, reconnects, sums @ ..] = all;
        Counts { bytes, messages, replies, reconnects, sums: Sums::from_array(sums) }
    }
}

impl FleetState {
    pub(super) fn new(
        plan: FleetPlan,
        endpoints: Vec<Endpoint>,
        identity: Identity,
    ) -> io::Result<Self> {
        let threads = plan.threads;
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let wakers = (0..threads).map(|_| eventfd(0, flags)).collect::<Result<_, _>>()?;
        let truth = Arc::clone(&plan.truth);
        Ok(Self {
            common: Arc::new(Common::new(truth, plan.truth_from, identity.rules())),
            first_last: Arc::new(Mutex::new(FirstLast::new(threads))),
            received: (0..plan.standbys).map(|_| AtomicU64::new(0)).collect(),
            counts: (0..threads).map(|_| SharedCounts::default()).collect(),
            connections: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            marked: AtomicU64::new(0),
            storms: AtomicU64::new(0),
            wakers,
            log: Mutex::default(),
            endpoints,
            identity,
            plan,
        })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor that a thread's epoll watches besides its sockets.
    pub(super) fn waker(&self, thread: usize) -> Option<&OwnedFd> {
        self.wakers.get(thread)
    }

    /// Makes the threads notice a change.
    pub(super) fn wake(&self) {
        for waker in &self.wakers {
            // It fails only when a wake-up is already pending.
            rustix::io::write(waker, &1u64.to_ne_bytes()).ok();
        }
    }

    /// Starts a storm.
    pub(super) fn storm(&self) {
        let mut log = self.log();
        log.storms.push(StormSeen { at: self.plan.clock.now(), over: None });
        log.calm = self.plan.threads;
        self.storms.fetch_add(1, Ordering::AcqRel);
        drop(log);
        self.wake();
    }

    /// A thread's good standbys have all disconnected.
    pub(super) fn storm_obeyed(&self) {
        let mut log = self.log();
        log.calm = log.calm.saturating_sub(1);
        self.look_for_all(&mut log);
    }

    /// A good standby started or stopped streaming.
    pub(super) fn good_streams(&self, change: isize) {
        let mut log = self.log();
        log.streaming = log.streaming.saturating_add_signed(change);
        self.look_for_all(&mut log);
    }

    fn look_for_all(&self, log: &mut Log) {
        if log.streaming < self.plan.members(Group::Good) || log.calm > 0 {
            return;
        }
        let now = self.plan.clock.now();
        log.all_streaming.get_or_insert(now);
        if let Some(storm) = log.storms.last_mut() {
            storm.over.get_or_insert(now);
        }
    }

    pub(super) fn one_finished(&self) {
        let mut log = self.log();
        log.finished += 1;
        if log.finished == self.plan.standbys {
            log.all_finished = Some(self.plan.clock.now());
        }
    }

    pub(super) fn fault(&self, standby: usize, at: Lsn, text: String) {
        let mut log = self.log();
        log.fault_count += 1;
        if log.faults.len() < MAX_FAULTS {
            log.faults.push(Fault { standby: standby + 1, at, text });
        }
    }

    pub(super) fn refusal(&self, text: String) {
        let mut log = self.log();
        log.refusals += 1;
        log.last_refusal = Some(text);
    }
}
