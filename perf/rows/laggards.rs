//! Many standbys far behind, everywhere in the log, beside some that are live.

use super::live::{EACH_P99, LAST_P50, Load, measure as live};
use super::{Row, Run};
use crate::fault::{Fault, Outcome};
use crate::load::{Clock, Fleet, FleetPlan, Replies};
use crate::process::CpuMeter;
use crate::report::Report;
use crate::servers::{Bed, Birth, Way};
use std::time::{Duration, Instant};
use walhub::wal::Lsn;

pub(super) const ROW: Row = Row {
    name: "laggards",
    what: "laggards at different places, 1 MiB segments, beside live standbys",
    measure,
};

const CPU: &str = "CPU s/GiB to laggards";
const DONE: &str = "laggards done, s";
const GIB: f64 = (1u64 << 30) as f64;
const PATIENCE: Duration = Duration::from_secs(600);

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let (laggards, lively, mib) = run.options.sized((500, 50, 128), (20, 5, 16));
    let mut report = row.report(format!(
        "{lively} live standbys under 50 commits/s of 1 kB, alone and while {laggards} others \
         start evenly spread over {mib} MiB of older WAL in segments of 1 MiB. Latencies are \
         those of the live. CPU is that of all that was done until the laggards had arrived."
    ));
    let bed = Birth { segment_mib: 1, ..run.birth(laggards + lively) };
    let mut bed = Bed::new(&bed)?;
    let from = bed.primary.flush_lsn()?;
    bed.hub.flag(&format!("--start-from={from}"));
    bed.primary.write_wal(mib)?;
    let load = Load::new(lively, 50.0, 1000);
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("laggards, round {}: {}", repeat + 1, way.name()));
            let serving = bed.open(way)?;
            let alone = live(run, &bed, &serving, &load)?;
            let name = way.name();
            alone.add_latencies(&mut report.samples, &format!("{name}, live alone"));

            let to = bed.primary.flush_lsn()?;
            let starts = spread(from, to, laggards);
            let bytes: u64 = starts.iter().map(|start| to.bytes_since(*start)).sum();
            let plan = FleetPlan {
                target: serving.address,
                starts,
                until: Some(to),
                replies: Replies::Interval,
                tempers: Vec::new(),
                connect_rate: None,
            };
            let (mut cpu, begun) = (CpuMeter::start(serving.workers), Instant::now());
            let fleet = Fleet::start(plan, Clock::start())?;
            let beside = std::thread::scope(|scope| {
                let watched = scope.spawn(|| live(run, &bed, &serving, &load));
                fleet.wait_finished(PATIENCE)?;
                let (took, cpu) = (begun.elapsed(), cpu.used());
                let name = format!("{name}, live beside laggards");
                report.samples.add(&name, DONE, took.as_secs_f64());
                report.samples.add(&name, CPU, cpu.as_secs_f64() / (bytes as f64 / GIB));
                watched.join().unwrap_or_else(|_| Err(Fault::new("the live fleet panicked")))
            })?;
            drop(fleet.stop()?);
            beside.add_latencies(&mut report.samples, &format!("{name}, live beside laggards"));
            bed.close(way)?;
        }
    }
    for measure in [EACH_P99, LAST_P50] {
        for way in [Way::Hub, Way::Direct] {
            let name = |company: &str| format!("{}, live {company}", way.name());
            report.ratio(measure, &name("beside laggards"), &name("alone"));
        }
    }
    Ok(report)
}

/// Places at equal distances.
fn spread(from: Lsn, to: Lsn, count: usize) -> Vec<Lsn> {
    let step = to.bytes_since(from) / count.max(1) as u64;
    (0..count as u64).map(|n| from.saturating_add(n * step)).collect()
}
