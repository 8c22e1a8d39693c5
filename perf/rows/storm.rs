//! A whole fleet comes back after a restart.

use super::live::GATHERING;
use super::{Row, Run};
use crate::fault::Outcome;
use crate::load::{Clock, Fleet, FleetPlan, Percentiles, Replies, nanos};
use crate::process::CpuMeter;
use crate::report::Report;
use crate::servers::Way;
use std::time::Instant;

pub(super) const ROW: Row =
    Row { name: "storm", what: "a thousand standbys connect in 5 s after a restart", measure };

const ALL: &str = "all stream after s";
const CONNECT_P50: &str = "connect to stream p50 ms";
const CONNECT_P99: &str = "connect to stream p99 ms";
const RETRIES: &str = "refused or lost attempts";
const CPU: &str = "CPU ms/connection";
const SECONDS: f64 = 5.0;

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let standbys = run.options.sized(1000, 50);
    let mut report = row.report(format!(
        "The server is stopped and started again, and {standbys} standbys connect evenly over \
         {SECONDS} s, each trying again 100 ms after a failure. Timed from when the start was \
         asked of the hub, from when PostgreSQL was ready. CPU of the walsenders without the \
         postmaster, which forks."
    ));
    let mut bed = run.bed(standbys)?;
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("storm, round {}: {}", repeat + 1, way.name()));
            bed.open(way)?;
            let start = bed.primary.flush_lsn()?;
            let serving = bed.restart(way)?;
            let begun = Instant::now();
            let mut cpu = CpuMeter::start(serving.workers);
            let plan = FleetPlan {
                target: serving.address,
                starts: vec![start; standbys],
                until: None,
                replies: Replies::Interval,
                tempers: Vec::new(),
                connect_rate: Some(standbys as f64 / SECONDS),
            };
            let fleet = Fleet::start(plan, Clock::start())?;
            fleet.wait_streaming(GATHERING)?;
            let (took, cpu) = (begun.elapsed(), cpu.used());
            let fleeted = fleet.stop()?;
            bed.close(way)?;
            let connects = Percentiles::new(fleeted.connects.into_iter().map(nanos).collect());
            let mut add = |measure, value| report.samples.add(way.name(), measure, value);
            add(ALL, took.as_secs_f64());
            add(CONNECT_P50, connects.ms(50.0));
            add(CONNECT_P99, connects.ms(99.0));
            add(RETRIES, fleeted.retries as f64);
            add(CPU, cpu.as_secs_f64() * 1e3 / standbys as f64);
        }
    }
    report.ratio(CONNECT_P50, Way::Hub.name(), Way::Direct.name());
    report.ratio(CPU, Way::Hub.name(), Way::Direct.name());
    Ok(report)
}
