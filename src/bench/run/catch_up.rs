//! Standbys receive WAL that was written before they connected.

use super::interrupt::Interrupt;
use super::live::{Early, figures, verdict};
use super::rig::Rig;
use super::source::Source;
use super::timeline::{INTERVAL, Phase, Timeline, Watch};
use super::{Outcome, RunFault, RunPlan, ServerPlan, Starts};
use crate::bench::profile::{Load, Rate};
use crate::bench::report::{Ingest, Latency, MemoryReport, say};
use crate::bench::standbys::{self, StartAt, identify};
use crate::wal::Lsn;
use std::time::{Duration, Instant};

/// A run without progress for this long is over.
const STANDSTILL: Duration = Duration::from_secs(30);

/// The WAL of the catch-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    pub(super) size: u64,
    pub(super) starts: Starts,
}

pub(super) fn catch_up(
    plan: &RunPlan,
    bulk: Bulk,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
) -> Result<Outcome, RunFault> {
    watch.step(plan.server.first_step());
    let load = Load {
        rate: Rate::Max,
        burst: None,
        switch_every: None,
        total: Some(bulk.size),
        ..plan.load.clone()
    };
    let mut plan = plan.clone();
    if let ServerPlan::Hub { hub, .. } = &mut plan.server {
        let keep = (bulk.size >> 20).saturating_add(64);
        hub.flags.insert(0, vec![format!("--wal-keep-size={keep}MB")]);
    }
    let mut rig = Rig::build(&plan, load.clone(), interrupt)?;
    let mut timeline = Timeline::new();
    let (from, to, ingest) = match rig.source {
        Source::Others => {
            let to = rig.identity.xlogpos;
            (to.saturating_sub(bulk.size), to, None)
        }
        _ => fill(&mut rig, &mut timeline, interrupt, watch)?,
    };
    let before = rig.memory();
    let cpu = rig.cpu();

    watch.step("starting the standbys");
    let mut fleet = rig.fleet(&plan.fleet);
    fleet.first = match bulk.starts {
        Starts::Together => StartAt::At(from),
        Starts::Spread => StartAt::Spread { from, to },
    };
    fleet.until = Some(to);
    let begun = rig.clock.now();
    timeline.enter(Phase::Measuring, None);
    let fleet =
        standbys::start(fleet).map_err(|error| RunFault::System("start the standbys", error))?;
    let mut early = Early::default();
    let (mut bytes, mut moved, mut streaming) = (0, Instant::now(), before);
    let mut shown = Instant::now();
    while !early.is_due() {
        let progress = fleet.progress();
        early.faults = progress.faults > 0;
        early.interrupted = interrupt.is_set();
        if progress.finished >= plan.fleet.finishing() {
            break;
        }
        if progress.bytes > bytes {
            (bytes, moved) = (progress.bytes, Instant::now());
        }
        if moved.elapsed() > STANDSTILL {
            let why = progress.last_refusal.unwrap_or_else(|| "no answer".to_owned());
            if bytes == 0 {
                return Err(RunFault::Unreachable(why));
            }
            early.problems.push(format!("nothing was received for {STANDSTILL:?}: {why}"));
        }
        if shown.elapsed() >= INTERVAL {
            let written = timeline.look(&mut rig, Some(&fleet), watch);
            early.problems.extend(rig.trouble(&written));
            // Keeps the highest value seen while they streamed.
            let now = rig.memory();
            if now.map(|now| now.private) > streaming.map(|before| before.private) {
                streaming = now;
            }
            shown = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let over = fleet.progress().all_finished.unwrap_or_else(|| rig.clock.now());
    let seconds = over.since(begun).as_secs_f64();
    let (cpu, end) = (rig.cpu().zip(cpu).map(|(end, begin)| end - begin), rig.memory());
    timeline.look(&mut rig, Some(&fleet), watch);
    let result = fleet.stop();
    let server = rig.server.clone();
    // A hub that ended on its own was already reported.
    let hub = rig.stop().1;
    early.problems.extend(hub.filter(|_| early.problems.is_empty()));
    let mut results = figures(&result, seconds, 0.0, cpu);
    // All of it was old when it was asked for, so these latencies mean nothing.
    (results.each, results.first, results.last) = Default::default();
    for group in &mut results.groups {
        group.each = Latency::default();
    }
    (results.deliveries, results.incomplete_commits) = (0, 0);
    if let Some(cpu) = &mut results.cpu {
        cpu.per_delivery = None;
    }
    results.ingest = ingest;
    results.memory = streaming.zip(end).map(|(streaming, end)| MemoryReport {
        before,
        streaming,
        end,
        tcp_most: timeline.tcp_most(),
    });
    let from = match bulk.starts {
        Starts::Together => "all from its beginning",
        Starts::Spread => "from places spread over it",
    };
    Ok(Outcome {
        server,
        load: format!("catch-up with {} of WAL, {from}", say::bytes(bulk.size)),
        verdict: verdict(&result, early),
        results,
        series: timeline.finish(),
    })
}

/// Writes the WAL and waits until the server has it on disk. Returns its start and its end.
fn fill(
    rig: &mut Rig,
    timeline: &mut Timeline,
    interrupt: &Interrupt,
    watch: &mut dyn Watch,
) -> Result<(Lsn, Lsn, Option<Ingest>), RunFault> {
    watch.step("writing the WAL");
    timeline.enter(Phase::Filling, None);
    let from = rig.identity.xlogpos;
    let (begun, cpu) = (Instant::now(), rig.cpu());
    rig.source.begin();
    let (mut next, mut last, mut moved) = (begun + INTERVAL, 0, begun);
    loop {
        let written = rig.source.written();
        if let Some(trouble) = rig.trouble(&written) {
            return Err(RunFault::Unreachable(trouble));
        }
        if interrupt.is_set() {
            return Err(RunFault::Interrupted);
        }
        if written.finished
            && let Some(end) = written.end
            && arrived(rig, written.flushed, end)?
        {
            let seconds = begun.elapsed().as_secs_f64();
            let cpu_seconds = rig.cpu().zip(cpu).map(|(end, begin)| end - begin);
            return Ok((from, end, Some(Ingest { bytes: written.bytes, seconds, cpu_seconds })));
        }
        let now = Instant::now();
        let sum = written.bytes + written.flushed.map_or(0, Lsn::raw);
        if sum != last {
            (last, moved) = (sum, now);
        }
        if moved.elapsed() > STANDSTILL {
            let text = format!("the server has received nothing for {STANDSTILL:?}");
            return Err(RunFault::Unreachable(text));
        }
        if now >= next {
            timeline.look(rig, None, watch);
            next = now + INTERVAL;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Is the WAL up to `end` durable on the server? A hub of our own reports that to our primary.
fn arrived(rig: &Rig, flushed: Option<Lsn>, end: Lsn) -> Result<bool, RunFault> {
    if let Some(flushed) = flushed {
        return Ok(flushed >= end);
    }
    let identity = identify(std::slice::from_ref(&rig.target))
        .map_err(|error| RunFault::Unreachable(error.to_string()))?;
    Ok(identity.xlogpos >= end)
}
