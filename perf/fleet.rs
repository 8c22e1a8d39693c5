//! The bench's fleet, as rows use it: standbys that check the order of messages and
//! throw the WAL away.

use crate::bed::Serving;
use crate::fault::{During, Fault, Outcome};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use walhub::bench::clock::Clock;
use walhub::bench::commits::Commits;
use walhub::bench::standbys::{
    self, Fleet, FleetPlan, FleetProgress, FleetResult, Replies, StartAt, TruthFrom, Verify,
};
use walhub::bench::truth::Truth;
use walhub::wal::Lsn;

/// `wal_receiver_status_interval`
pub(crate) const INTERVAL: Replies = Replies::Interval(Duration::from_secs(10));
/// How long a fleet may take to gather.
pub(crate) const GATHERING: Duration = Duration::from_secs(180);
/// Commits that are remembered for the slowest standbys.
const COMMITS: usize = 1 << 20;

/// A fleet that begins with the page of `start`, and replies now and then.
pub(crate) fn plan(serving: &Serving, standbys: usize, start: Lsn) -> FleetPlan {
    let commits = Arc::new(Commits::new(COMMITS));
    // Nothing is compared, so nothing is remembered.
    let truth = Arc::new(Truth::new(Lsn::INVALID, 0));
    let mut plan = FleetPlan::new(serving.target.clone(), standbys, Clock::start(), truth, commits);
    plan.truth_from = TruthFrom::FirstReceiver;
    plan.verify = Verify::Off;
    plan.replies = INTERVAL;
    plan.first = StartAt::At(start);
    plan.retry = Duration::from_millis(100);
    plan
}

/// Starts a fleet.
pub(crate) fn start(plan: FleetPlan) -> Outcome<Fleet> {
    standbys::start(plan).during("the standbys")
}

/// Waits until all stream.
pub(crate) fn wait_streaming(fleet: &Fleet, standbys: usize) -> Outcome {
    wait(fleet, GATHERING, "all stream", |progress| progress.streaming == standbys)
}

/// Waits until all have received what they were to.
pub(crate) fn wait_finished(fleet: &Fleet, standbys: usize, patience: Duration) -> Outcome {
    wait(fleet, patience, "all have received everything", |progress| progress.finished == standbys)
}

/// Waits for at most `patience`; a fault ends it.
pub(crate) fn wait(
    fleet: &Fleet,
    patience: Duration,
    what: &str,
    done: impl Fn(&FleetProgress) -> bool,
) -> Outcome {
    let deadline = Instant::now() + patience;
    loop {
        let progress = fleet.progress();
        if done(&progress) {
            return Ok(());
        }
        let refusal = || progress.last_refusal.clone().unwrap_or_default();
        if progress.faults > 0 {
            return Err(Fault::new(format!("a standby saw a fault while {what} ({})", refusal())));
        }
        if Instant::now() > deadline {
            return Err(Fault::new(format!("not within {patience:?}: {what} ({})", refusal())));
        }
        sleep(Duration::from_micros(500));
    }
}

/// Ends a fleet. One that saw a fault, or whose sums differ, measured nothing.
pub(crate) fn stop(fleet: Fleet) -> Outcome<FleetResult> {
    let result = fleet.stop();
    if let Some(fault) = result.faults.first() {
        return Err(Fault::new(format!("{} faults, the first: {fault}", result.fault_count)));
    }
    let (received, judged) = (result.end.bytes, result.end.sums.total());
    if received != judged {
        return Err(Fault::new(format!("{received} bytes received, {judged} accounted for")));
    }
    Ok(result)
}
