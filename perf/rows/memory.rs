//! What one more standby takes.

use super::live::GATHERING;
use super::{Row, Run};
use crate::fault::Outcome;
use crate::load::{Clock, Fleet, FleetPlan, Replies};
use crate::process::{Memory, kernel_kib};
use crate::report::{Bound, Report};
use crate::servers::{Bed, Way};
use std::thread::sleep;
use std::time::Duration;

pub(super) const ROW: Row =
    Row { name: "memory", what: "memory of one more standby, private and kernel", measure };

const PRIVATE: &str = "private MiB";
const MARGINAL: &str = "private KiB/standby";
const KERNEL: &str = "kernel KiB/standby";

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let sizes: &[usize] = run.options.sized(&[1, 50, 200, 500, 1000][..], &[1, 10, 20][..]);
    let largest = sizes.iter().copied().max().unwrap_or(1);
    let mut report = row.report(
        "Standbys that stream and have been sent 20 commits. Private: pages of the hub's process, \
         or of all walsenders, that nobody shares; per standby: growth since one standby. Kernel: \
         growth of the whole machine's slab, kernel stacks, page tables and TCP memory since \
         before they connected, so both ends of each connection.",
    );
    let mut bed = run.bed(largest)?;
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("memory, round {}: {}", repeat + 1, way.name()));
            let mut one = 0.0;
            for &standbys in sizes {
                let (memory, kernel) = held(&mut bed, way, standbys)?;
                let name = format!("{}, {standbys}", way.name());
                report.samples.add(&name, PRIVATE, memory.private_kib / 1024.0);
                report.samples.add(&name, KERNEL, kernel / standbys as f64);
                if standbys == 1 {
                    one = memory.private_kib;
                } else {
                    let marginal = (memory.private_kib - one) / (standbys - 1) as f64;
                    report.samples.add(&name, MARGINAL, marginal);
                }
            }
        }
    }
    for standbys in sizes.iter().skip(1) {
        let [hub, direct] =
            [Way::Hub, Way::Direct].map(|way| format!("{}, {standbys}", way.name()));
        report.ratio(MARGINAL, &hub, &direct);
        report.ratio(KERNEL, &hub, &direct);
    }
    let hub = format!("{}, {largest}", Way::Hub.name());
    report.target(&hub, MARGINAL, Bound::AtMost(32.0), Bound::AtMost(8.0));
    Ok(report)
}

/// A fresh server's memory with so many standbys, and how much the kernel's grew.
fn held(bed: &mut Bed<'_>, way: Way, standbys: usize) -> Outcome<(Memory, f64)> {
    let serving = bed.open(way)?;
    let before = kernel_kib();
    let plan = FleetPlan {
        target: serving.address,
        starts: vec![bed.primary.flush_lsn()?; standbys],
        until: None,
        replies: Replies::Interval,
        tempers: Vec::new(),
        connect_rate: None,
    };
    let fleet = Fleet::start(plan, Clock::start())?;
    fleet.wait_streaming(GATHERING)?;
    for _ in 0..20 {
        bed.primary.sql("select pg_logical_emit_message(true, 'walhub', repeat('x', 200))")?;
    }
    // What was queued is received, and backends that served psql are gone.
    sleep(Duration::from_secs(1));
    let memory = Memory::of(serving.workers);
    drop(fleet.stop()?);
    bed.close(way)?;
    Ok((memory, memory.kernel_kib - before))
}
