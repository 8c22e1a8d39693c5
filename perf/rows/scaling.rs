//! How cost and memory grow with the fleet.

use super::live::{CPU, LAST_P50, Load, through};
use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::report::{Curve, KeptPlot, Report, plot};

pub(super) const ROW: Row =
    Row { name: "scaling", what: "cost per delivery and memory from 1 to 2000 standbys", measure };

const PRIVATE: &str = "private MiB";

/// More would take hours: there are many sizes.
const ROUNDS: usize = 3;

/// Deliveries a second that all fleets are given at most.
const DELIVERIES: f64 = 20_000.0;

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let hub: &[usize] = run.options.sized(&[1, 10, 50, 200, 500, 1000, 2000][..], &[1, 5, 10][..]);
    let direct = run.options.sized(&hub[..hub.len() - 1], &[1, 5][..]);
    let mut report = row.report(format!(
        "Commits of 200 bytes, 100 a second, fewer where that would be more than {DELIVERIES} \
         deliveries/s. At most {ROUNDS} rounds. Memory while the fleet streams. Otherwise as live-commits."
    ));
    let (mut of_cost, mut of_memory) = (Vec::new(), Vec::new());
    for (way, fleets) in [(Way::Hub, hub), (Way::Direct, direct)] {
        let (mut costs, mut memories) = (Vec::new(), Vec::new());
        for &standbys in fleets {
            let name = format!("{}, {standbys}", way.name());
            let mut bed = run.bed(standbys);
            for repeat in 0..run.options.repeats().min(ROUNDS) {
                run.say(format_args!("scaling, round {}: {name}", repeat + 1));
                let rate = (DELIVERIES / standbys as f64).min(100.0);
                let load = Load::new(standbys, rate, 200);
                let live = through(run, &mut bed, way, &load)?;
                report.samples.add(&name, CPU, live.cpu_per_delivery());
                report.samples.add(&name, LAST_P50, live.last_ms(50.0));
                report.samples.add(&name, PRIVATE, live.private_kib / 1024.0);
            }
            costs.push((standbys as f64, report.samples.median(&name, CPU)));
            memories.push((standbys as f64, report.samples.median(&name, PRIVATE)));
        }
        of_cost.push(Curve { name: way.name(), points: costs });
        of_memory.push(Curve { name: way.name(), points: memories });
    }
    let svg = plot(&[("CPU per delivery, us", of_cost), ("private memory, MiB", of_memory)]);
    report.plots.push(KeptPlot { name: "standbys", svg });
    Ok(report)
}
