//! A whole fleet comes back after a restart.

use super::{Row, Run};
use crate::bed::Way;
use crate::fault::{During, Outcome};
use crate::fleet;
use crate::report::Report;
use std::time::Instant;
use walhub::bench::measure::CpuMeter;
use walhub::bench::standbys::identify;

pub(super) const ROW: Row =
    Row { name: "storm", what: "a thousand standbys connect in 5 s after a restart", measure };

const ALL: &str = "all stream after s";
const CONNECT_P50: &str = "connect to stream p50 ms";
const CONNECT_P99: &str = "connect to stream p99 ms";
const RETRIES: &str = "refused or lost attempts";
const CPU: &str = "CPU ms/connection";
const SECONDS: u32 = 5;

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let standbys = run.options.sized(1000_u32, 50);
    let mut report = row.report(format!(
        "The server is stopped and started again, and {standbys} standbys connect evenly over \
         {SECONDS} s, each trying again 100 ms after a failure. Timed from when the start was \
         asked of the hub, from when PostgreSQL was ready; connect to stream is of the attempts that \
         succeeded. CPU of the walsenders without the \
         postmaster, which forks."
    ));
    let mut bed = run.bed(standbys as usize);
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("storm, round {}: {}", repeat + 1, way.name()));
            let before = bed.open(way)?;
            // Nobody answers that question while the server starts.
            let identity = identify(&[before.target]).during("who is there")?;
            let start = bed.primary.flush_lsn();
            let serving = bed.restart(way)?;
            let begun = Instant::now();
            let mut cpu = CpuMeter::start(serving.workers.clone());
            let mut plan = fleet::plan(&serving, standbys as usize, start);
            plan.identity = Some(identity);
            plan.connect_rate = Some(standbys / SECONDS);
            let storming = fleet::start(plan)?;
            fleet::wait_streaming(&storming, standbys as usize)?;
            let (took, cpu) = (begun.elapsed(), cpu.used());
            let result = fleet::stop(storming)?;
            bed.close(way);
            let connect = |quantile| result.connect.value_at_quantile(quantile) as f64 / 1e6;
            let mut add = |measure, value| report.samples.add(way.name(), measure, value);
            add(ALL, took.as_secs_f64());
            add(CONNECT_P50, connect(0.5));
            add(CONNECT_P99, connect(0.99));
            add(RETRIES, result.end.refusals as f64);
            add(CPU, cpu.as_secs_f64() * 1e3 / f64::from(standbys));
        }
    }
    report.ratio(CONNECT_P50, Way::Hub.name(), Way::Direct.name());
    report.ratio(CPU, Way::Hub.name(), Way::Direct.name());
    Ok(report)
}
