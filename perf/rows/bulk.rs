//! Catching up: a fleet that starts far behind, and the bytes are all there.

use super::{Row, Run};
use crate::bed::{Bed, Way, write_wal};
use crate::fault::Outcome;
use crate::fleet;
use crate::floor::bulk_sends;
use crate::report::{Bound, Report, Samples};
use std::time::{Duration, Instant};
use walhub::bench::measure::CpuMeter;
use walhub::wal::Lsn;

pub(super) const ROW: Row =
    Row { name: "bulk", what: "catch-up of a whole fleet: CPU per GiB", measure };

const CPU: &str = "CPU s/GiB";
const RATE: &str = "GiB/s";
const GIB: f64 = (1u64 << 30) as f64;
const PATIENCE: Duration = Duration::from_secs(600);
const FLOOR: &str = "bare SEND loop, 256 KiB";

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let sizes: [(usize, u64); 2] = run.options.sized([(200, 128), (16, 256)], [(20, 16), (4, 32)]);
    let mut report = row.report(
        "Standbys ask for WAL that is complete, from the files and the page cache (the hub's \
         newest 64 MiB from its own). CPU from before they connect until the last has all; \
         PostgreSQL's without the postmaster, which forks.",
    );
    for (standbys, mib) in sizes {
        let mut bed = run.bed(standbys);
        // A standby serves what it has received since its base backup.
        bed.open(Way::Cascade)?;
        bed.close(Way::Cascade);
        let from = bed.primary.flush_lsn();
        write_wal(&bed.primary, mib);
        let until = bed.primary.flush_lsn();
        // A hub begins with what its upstream has.
        bed.hub.set_flag(&format!("--start-from={from}"));
        let name = |who: &str| format!("{who}, {standbys} x {mib} MiB");
        for repeat in 0..run.options.repeats() {
            for way in [Way::Hub, Way::Direct, Way::Cascade] {
                run.say(format_args!("bulk, round {}: {}", repeat + 1, name(way.name())));
                let range = (from, until);
                catch_up(&mut bed, way, standbys, range, &mut report.samples, &name(way.name()))?;
            }
            let (cpu, span) = bulk_sends(standbys, until.bytes_since(from))?;
            let gib = until.bytes_since(from) as f64 * standbys as f64 / GIB;
            report.samples.add(&name(FLOOR), CPU, cpu.as_secs_f64() / gib);
            report.samples.add(&name(FLOOR), RATE, gib / span.as_secs_f64());
        }
        let [hub, direct, cascade] = [Way::Hub, Way::Direct, Way::Cascade].map(Way::name).map(name);
        let ratio = report.ratio(CPU, &hub, &direct);
        report.ratio(CPU, &hub, &cascade);
        report.ratio(CPU, &hub, &name(FLOOR));
        report.ratio(RATE, &hub, &direct);
        let what = format!("CPU per GiB, walhub / PostgreSQL direct, N = {standbys}");
        report.goal(&what, ratio, Bound::AtMost(0.8), Bound::AtMost(0.6));
    }
    Ok(report)
}

fn catch_up(
    bed: &mut Bed<'_>,
    way: Way,
    standbys: usize,
    (from, until): (Lsn, Lsn),
    samples: &mut Samples,
    name: &str,
) -> Outcome {
    let serving = bed.open(way)?;
    let mut plan = fleet::plan(&serving, standbys, from);
    plan.until = Some(until);
    let mut cpu = CpuMeter::start(serving.workers);
    let begun = Instant::now();
    let standbys_at_work = fleet::start(plan)?;
    fleet::wait_finished(&standbys_at_work, standbys, PATIENCE)?;
    let (span, cpu) = (begun.elapsed(), cpu.used());
    drop(fleet::stop(standbys_at_work)?);
    bed.close(way);
    let gib = until.bytes_since(from) as f64 * standbys as f64 / GIB;
    samples.add(name, CPU, cpu.as_secs_f64() / gib);
    samples.add(name, RATE, gib / span.as_secs_f64());
    Ok(())
}
