//! The keeper: does the jobs of each lane in order, answers late, sometimes with an error.

use super::disk::Name;
use super::kernel::{Kernel, MILLISECOND, SECOND};
use super::plants::Plant;
use super::truth::MIB;
use crate::keeper::{Job, JobDone, LaneQueue, Order, Orders, Reply};
use crate::store::append::Begun;
use crate::store::retention::Holds;
use crate::wal::{Lsn, SegmentSize};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A lane, and its job in progress with the time when it is done.
struct Working {
    orders: LaneQueue,
    current: Option<(Order, Duration)>,
}

pub(super) struct Keeper {
    lanes: [Working; 2],
    holds: Arc<Holds>,
    size: SegmentSize,
    /// Jobs that were made to fail although nothing was wrong with them.
    pub(super) failed: u64,
    pub(super) removed: u64,
    pub(super) opened: u64,
    /// A job answered but not done: a planted mistake.
    owed: Option<Job>,
}

impl Keeper {
    pub(super) fn new(orders: Orders, holds: Arc<Holds>) -> Self {
        let size = SegmentSize::new(MIB).unwrap();
        let Orders { urgent, patient } = orders;
        let lanes = [urgent, patient].map(|orders| Working { orders, current: None });
        Self { lanes, holds, size, failed: 0, removed: 0, opened: 0, owed: None }
    }

    /// When it next has something to do.
    pub(super) fn next_at(&mut self, kernel: &mut Kernel) -> Option<Duration> {
        for lane in &mut self.lanes {
            if lane.current.is_none() {
                let order = lane.orders.take();
                lane.current = order.map(|order| (order, kernel.now + kernel.delay(MILLISECOND)));
            }
        }
        let done = self.lanes.iter().filter_map(|lane| lane.current.as_ref().map(|(_, at)| *at));
        done.min()
    }

    /// Takes the job that is done first.
    fn take_done(&mut self) -> Option<Order> {
        let under_way = self.lanes.iter_mut().filter(|lane| lane.current.is_some());
        let first = under_way.min_by_key(|lane| lane.current.as_ref().map(|(_, at)| *at))?;
        first.current.take().map(|(order, _)| order)
    }

    /// Finishes the job in progress. Returns the answer and its recipient.
    pub(super) fn work(&mut self, kernel: &mut Kernel) -> Option<(Reply, JobDone)> {
        let Order { job, reply } = self.take_done()?;
        if let Some(Job::Finalize { no, .. }) = self.owed.take() {
            kernel.disk.finalize(no);
        }
        let kind = job.kind();
        let fails = kernel.random.chance(kernel.faults.keeper);
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let done = match job {
            Job::Prepare { .. } | Job::Begin { .. } | Job::Finalize { .. } if fails => {
                self.failed += 1;
                kernel.no_space += 1;
                JobDone::Failed { job: kind, error: full() }
            }
            Job::Prepare { tli, no, keep } => {
                kernel.disk.prepare(no, keep);
                JobDone::Prepared { tli, no, file: kernel.open(no) }
            }
            Job::Finalize { tli, no } => {
                if kernel.plant == Plant::NamesLate {
                    self.owed = Some(Job::Finalize { tli, no });
                } else {
                    kernel.disk.finalize(no);
                }
                self.retain(kernel, no.end(self.size));
                JobDone::Finalized { tli, no }
            }
            Job::Begin { tli, start, upto } => {
                let whole = kernel.disk.note(start, upto);
                let begun = if whole { Begun::Wholly } else { Begun::Partly };
                JobDone::Begun { tli, begun }
            }
            Job::Open { tli, no } => {
                let result = if kernel.disk.name(no) == Name::Removed {
                    let needed = self.holds.oldest_hold().is_some_and(|at| at < no.end(self.size));
                    assert!(!needed, "I6: segment {} was removed while it was needed", no.raw());
                    Err(io::ErrorKind::NotFound.into())
                } else if fails {
                    self.failed += 1;
                    Err(io::Error::from_raw_os_error(libc::EMFILE))
                } else {
                    self.opened += 1;
                    Ok(kernel.open(no))
                };
                JobDone::Opened { tli, no, result }
            }
            Job::MarkHalted { .. } => JobDone::Done(kind),
            job => panic!("a core asks for {job:?}"),
        };
        let pause = SECOND * u32::from(kernel.random.chance(kernel.faults.late));
        kernel.now += pause / 1000;
        Some((reply, done))
    }

    /// Keeps as little WAL as it may.
    fn retain(&mut self, kernel: &mut Kernel, newest: Lsn) {
        let held = match kernel.plant {
            Plant::HoldsNothing => None,
            _ => self.holds.oldest_hold(),
        };
        let kept = newest.saturating_sub(MIB).min(held.unwrap_or(Lsn::MAX));
        let before = kernel.disk.oldest();
        kernel.disk.remove_before(kept.segment(self.size));
        self.removed += u64::from(kernel.disk.oldest() != before);
    }
}
