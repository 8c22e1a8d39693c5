//! Many standbys far behind, everywhere in the log, beside some that are live.

use super::live::{EACH_P99, LAST_P50, Load, measure as live};
use super::{Row, Run};
use crate::bed::{Bed, Making, Way, write_wal};
use crate::fault::{Fault, Outcome};
use crate::fleet;
use crate::report::Report;
use std::time::{Duration, Instant};
use walhub::bench::measure::CpuMeter;
use walhub::bench::standbys::StartAt;

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
    let mut bed = Bed::new(&Making { segment_mib: 1, ..run.making(laggards + lively) });
    let from = bed.primary.flush_lsn();
    bed.hub.set_flag(&format!("--start-from={from}"));
    write_wal(&bed.primary, mib);
    let load = Load::new(lively, 50.0, 1000);
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("laggards, round {}: {}", repeat + 1, way.name()));
            let serving = bed.open(way)?;
            let alone = live(run, &bed, &serving, &load)?;
            let name = way.name();
            alone.add_latencies(&mut report.samples, &format!("{name}, live alone"));

            let to = bed.primary.flush_lsn();
            let mut plan = fleet::plan(&serving, laggards, from);
            plan.first = StartAt::Spread { from, to };
            plan.until = Some(to);
            let mut cpu = CpuMeter::start(serving.workers.clone());
            let begun = Instant::now();
            let lagging = fleet::start(plan)?;
            let beside = std::thread::scope(|scope| {
                let watched = scope.spawn(|| live(run, &bed, &serving, &load));
                fleet::wait_finished(&lagging, laggards, PATIENCE)?;
                let (took, cpu) = (begun.elapsed(), cpu.used());
                let bytes = lagging.progress().bytes;
                let name = format!("{name}, live beside laggards");
                report.samples.add(&name, DONE, took.as_secs_f64());
                report.samples.add(&name, CPU, cpu.as_secs_f64() / (bytes as f64 / GIB));
                watched.join().unwrap_or_else(|_| Err(Fault::new("the live fleet panicked")))
            })?;
            drop(fleet::stop(lagging)?);
            beside.add_latencies(&mut report.samples, &format!("{name}, live beside laggards"));
            bed.close(way);
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
