//! Standbys to whom nothing happens.

use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::fleet;
use crate::report::{Bound, Report};
use std::thread::sleep;
use std::time::{Duration, Instant};
use walhub::bench::measure::CpuMeter;

pub(super) const ROW: Row =
    Row { name: "idle", what: "idle standbys: per cent of one CPU", measure };

const SHARE: &str = "% of a CPU";

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let standbys = run.options.sized(500, 50);
    // Long enough for the pings at half of wal_sender_timeout, and six reports of each.
    let span = run.options.sized(Duration::from_secs(60), Duration::from_secs(5));
    let mut report = row.report(format!(
        "{standbys} standbys that stream and report every 10 s while nothing is written, for \
         {span:?}."
    ));
    let mut bed = run.bed(standbys);
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("idle, round {}: {}", repeat + 1, way.name()));
            let serving = bed.open(way)?;
            let plan = fleet::plan(&serving, standbys, bed.primary.flush_lsn());
            let idle = fleet::start(plan)?;
            fleet::wait_streaming(&idle, standbys)?;
            sleep(Duration::from_secs(1));
            let (mut cpu, begun) = (CpuMeter::start(serving.workers), Instant::now());
            sleep(span);
            let share = cpu.used().as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
            report.samples.add(way.name(), SHARE, share);
            drop(fleet::stop(idle)?);
            bed.close(way);
        }
    }
    report.ratio(SHARE, Way::Hub.name(), Way::Direct.name());
    report.target(Way::Hub.name(), SHARE, Bound::AtMost(1.0), Bound::AtMost(0.3));
    Ok(report)
}
