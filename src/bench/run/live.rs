//! Standbys receive WAL as it is written.

use super::interrupt::Interrupt;
use super::rig::Rig;
use super::source::Source;
use super::timeline::{INTERVAL, Phase, Timeline, Watch};
use super::{Outcome, RunFault, RunPlan};
use crate::bench::report::{
    CpuReport, FaultReport, GroupReport, Latency, MemoryReport, Results, UnverifiedReport, Verdict,
};
use crate::bench::standbys::{self, Fleet, FleetResult, Group, Sums, Unverified};
use crate::wal::Lsn;
use std::time::{Duration, Instant};

/// When nothing has come for this long, no more bytes will.
const DRAIN: Duration = Duration::from_secs(10);

/// Connecting continues as long as some standby succeeds within this time.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the parts of a run last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
}

/// Why a run ended early.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) interrupted: bool,
    pub(super) problems: Vec<String>,
    pub(super) faults: bool,
}

impl Early {
    pub(super) fn is_due(&self) -> bool {
        self.interrupted || self.faults || !self.problems.is_empty()
    }
}

pub(super) fn live(
    plan: &RunPlan,
    span: Span,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
) -> Result<Outcome, RunFault> {
    watch.step(plan.server.first_step());
    let mut rig = Rig::build(plan, plan.load.clone(), interrupt)?;
    let load = match rig.source {
        Source::Others => "what its clients write".to_owned(),
        _ => plan.load.to_string(),
    };
    let mut timeline = Timeline::new();
    let before = rig.memory();
    let connecting = rig.clock.now();
    let fleet = standbys::start(rig.fleet(&plan.fleet))
        .map_err(|error| RunFault::System("start the standbys", error))?;
    connect(&mut rig, &fleet, &mut timeline, interrupt, watch)?;
    let streaming = rig.memory();
    let all_streaming = fleet.progress().all_streaming;

    rig.source.begin();
    let mut early = Early::default();
    timeline.enter(Phase::WarmUp, Some(span.warm_up));
    run_for(span.warm_up, &mut rig, &fleet, &mut timeline, interrupt, watch, &mut early);
    fleet.mark();
    rig.source.mark();
    let (marked, cpu) = (Instant::now(), rig.cpu());
    let at_mark = rig.source.written();
    let wal_at_mark = rig.wal_bytes(&at_mark);
    timeline.enter(Phase::Measuring, Some(span.duration));
    run_for(span.duration, &mut rig, &fleet, &mut timeline, interrupt, watch, &mut early);
    rig.source.pause();
    let seconds = marked.elapsed().as_secs_f64();
    let at_end = rig.source.written();
    let wal_at_end = rig.wal_bytes(&at_end);
    if !early.faults && early.problems.is_empty() {
        drain(&mut rig, &fleet, &mut timeline, interrupt, watch, &mut early);
    }
    let drained_after = marked.elapsed().as_secs_f64() - seconds;
    let (cpu, end) = (rig.cpu().zip(cpu).map(|(end, begin)| end - begin), rig.memory());
    let result = fleet.stop();
    let truth = rig.server.clone();
    let (commit, hub) = rig.stop();
    // A hub that ended on its own was already reported.
    early.problems.extend(hub.filter(|_| early.problems.is_empty()));

    let mut results = figures(&result, seconds, drained_after, cpu);
    results.wal_bytes = wal_at_end.saturating_sub(wal_at_mark);
    results.commits = at_end.commits.saturating_sub(at_mark.commits);
    results.generator_late = timeline.late();
    results.commit = commit.as_ref().map(Latency::from);
    results.all_streaming = all_streaming.map(|at| at.since(connecting).as_secs_f64());
    results.memory = streaming.zip(end).map(|(streaming, end)| MemoryReport {
        before,
        streaming,
        end,
        tcp_most: timeline.tcp_most(),
    });
    Ok(Outcome {
        server: truth,
        load,
        verdict: verdict(&result, early),
        results,
        series: timeline.finish(),
    })
}

/// Waits until all good standbys stream.
fn connect(
    rig: &mut Rig,
    fleet: &Fleet,
    timeline: &mut Timeline,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
) -> Result<(), RunFault> {
    watch.step("connecting the standbys");
    timeline.enter(Phase::Connecting, None);
    let (mut most, mut since, mut shown) = (0, Instant::now(), Instant::now());
    loop {
        let progress = fleet.progress();
        if progress.all_streaming.is_some() {
            timeline.look(rig, Some(fleet), watch);
            return Ok(());
        }
        if progress.streaming > most {
            (most, since) = (progress.streaming, Instant::now());
        }
        if interrupt.is_set() {
            return Err(RunFault::Interrupted);
        }
        let gone = rig.trouble(&rig.source.written());
        if gone.is_some() || since.elapsed() > PATIENCE {
            let why = gone.or(progress.last_refusal).unwrap_or_else(|| "no answer".to_owned());
            let text = format!("only {most} standbys stream: {why}");
            return Err(RunFault::Unreachable(text));
        }
        if shown.elapsed() >= INTERVAL {
            timeline.look(rig, Some(fleet), watch);
            shown = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Samples for `span`, or until something ends the run.
fn run_for(
    span: Duration,
    rig: &mut Rig,
    fleet: &Fleet,
    timeline: &mut Timeline,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
    early: &mut Early,
) {
    let begun = Instant::now();
    let mut next = begun;
    while !early.is_due() {
        next += INTERVAL;
        interrupt.wait_until(next.min(begun + span));
        let written = timeline.look(rig, Some(fleet), watch);
        early.interrupted = interrupt.is_set();
        early.faults = fleet.progress().faults > 0;
        early.problems.extend(rig.trouble(&written));
        if begun.elapsed() >= span {
            return;
        }
    }
}

/// Waits for the last bytes, as long as some come.
fn drain(
    rig: &mut Rig,
    fleet: &Fleet,
    timeline: &mut Timeline,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
    early: &mut Early,
) {
    timeline.enter(Phase::Draining, None);
    let already = interrupt.is_set();
    let (mut slowest, mut moved, mut shown) = (Lsn::INVALID, Instant::now(), Instant::now());
    loop {
        let written = rig.source.written();
        // Foreign clients continue to write, so there is no end to wait for.
        let Some(end) = written.end else { return };
        let progress = fleet.progress();
        early.faults = progress.faults > 0;
        if (written.settled && progress.slowest >= end) || early.faults {
            return;
        }
        if let Some(trouble) = rig.trouble(&written) {
            early.problems.push(trouble);
            return;
        }
        if progress.slowest > slowest {
            (slowest, moved) = (progress.slowest, Instant::now());
        }
        let left = end.bytes_since(progress.slowest);
        if moved.elapsed() > DRAIN {
            let lacks = format!("a good standby still lacks {left} bytes");
            early
                .problems
                .push(format!("nothing was received for {DRAIN:?} after the load ended; {lacks}"));
            return;
        }
        // After a Ctrl-C that ended the load, the wait lasts as long as bytes keep coming. A Ctrl-C
        // during the wait ends it at once.
        if interrupt.is_set() && (!already || moved.elapsed() > INTERVAL) {
            early.interrupted = true;
            return;
        }
        if shown.elapsed() >= INTERVAL {
            timeline.look(rig, Some(fleet), watch);
            shown = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The standbys' results, in the report's form.
pub(super) fn figures(
    result: &FleetResult,
    seconds: f64,
    drained_after: f64,
    cpu: Option<f64>,
) -> Results {
    let cpu_report = |cpu, bytes, deliveries, messages| {
        CpuReport::new(cpu, seconds + drained_after, bytes, deliveries, messages)
    };
    let sum = |read: fn(&standbys::GroupResult) -> u64| result.groups.iter().map(read).sum();
    let delivered_bytes = sum(|group| group.bytes);
    let deliveries = sum(|group| group.each.len());
    let messages = sum(|group| group.messages);
    let good = result.groups.iter().find(|group| group.group == Group::Good);
    let present = result.groups.iter().filter(|group| group.standbys > 0);
    Results {
        seconds,
        drained_after,
        delivered_bytes,
        deliveries,
        messages,
        replies: sum(|group| group.replies),
        reconnects: sum(|group| group.reconnects),
        incomplete_commits: result.incomplete_commits,
        each: good.map(|group| Latency::from(&group.each)).unwrap_or_default(),
        first: (&result.first).into(),
        last: (&result.last).into(),
        groups: present
            .map(|group| GroupReport {
                name: group.group.name().to_owned(),
                standbys: group.standbys,
                bytes: group.bytes,
                messages: group.messages,
                replies: group.replies,
                reconnects: group.reconnects,
                each: (&group.each).into(),
            })
            .collect(),
        connect: (&result.connect).into(),
        storms: result
            .storms
            .iter()
            .map(|storm| storm.over.map(|over| over.since(storm.at).as_secs_f64()))
            .collect(),
        cpu: cpu.map(|cpu| cpu_report(cpu, delivered_bytes, deliveries, messages)),
        ..Results::default()
    }
}

pub(super) fn verdict(result: &FleetResult, early: Early) -> Verdict {
    let fault = |fault: &standbys::Fault| FaultReport {
        standby: fault.standby,
        lsn: fault.at.to_string(),
        text: fault.text.clone(),
    };
    let (received, sums) = (result.end.bytes, result.end.sums);
    let mut problems = early.problems;
    problems.extend(difference(received, sums));
    Verdict {
        faults: result.fault_count,
        first_faults: result.faults.iter().map(fault).collect(),
        problems,
        interrupted: early.interrupted,
        received_bytes: received,
        verified_bytes: sums.verified,
        unverified: unverified(sums),
    }
}

/// Received bytes are counted by the streams' positions, and judged bytes by the checks. A run in
/// which the two differ proves nothing.
fn difference(received: u64, sums: Sums) -> Option<String> {
    let judged = sums.total();
    (judged != received).then(|| {
        format!(
            "the standbys' own sums differ: {received} bytes received, {judged} judged, {} of them \
             verified",
            sums.verified
        )
    })
}

fn unverified(sums: Sums) -> Vec<UnverifiedReport> {
    let found = Unverified::ALL.map(|why| UnverifiedReport {
        reason: why.name().to_owned(),
        text: why.describe().to_owned(),
        bytes: sums.unverified(why),
    });
    found.into_iter().filter(|part| part.bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::standbys::FleetProgress;
    use hdrhistogram::Histogram;

    #[test]
    fn sums_that_differ_fail_a_run() {
        let result = |bytes, verified| {
            let sums = Sums::of_verified(verified);
            let end = FleetProgress { bytes, sums, ..FleetProgress::default() };
            FleetResult {
                groups: Vec::new(),
                first: Histogram::new(3).unwrap(),
                last: Histogram::new(3).unwrap(),
                incomplete_commits: 0,
                connect: Histogram::new(3).unwrap(),
                storms: Vec::new(),
                faults: Vec::new(),
                fault_count: 0,
                end,
            }
        };
        assert!(verdict(&result(1000, 1000), Early::default()).is_good());
        for verified in [999, 1001] {
            let verdict = verdict(&result(1000, verified), Early::default());
            assert!(!verdict.is_good());
            assert!(
                verdict.problems[0].contains("sums differ: 1000 bytes received"),
                "{verdict:?}"
            );
        }
    }
}
