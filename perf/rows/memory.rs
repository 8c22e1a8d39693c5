//! What one more standby takes.

use super::{Row, Run};
use crate::bed::{Bed, Way};
use crate::fault::Outcome;
use crate::fleet;
use crate::report::{Bound, Report};
use std::fs;
use std::thread::sleep;
use std::time::Duration;
use walhub::bench::measure::{Memory, tcp_memory};

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
    let mut bed = run.bed(largest);
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            run.say(format_args!("memory, round {}: {}", repeat + 1, way.name()));
            let mut one = 0.0;
            for &standbys in sizes {
                let held = held(&mut bed, way, standbys)?;
                let name = format!("{}, {standbys}", way.name());
                report.samples.add(&name, PRIVATE, held.private / 1024.0);
                report.samples.add(&name, KERNEL, held.kernel / standbys as f64);
                if standbys == 1 {
                    one = held.private;
                } else {
                    let marginal = (held.private - one) / (standbys - 1) as f64;
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

/// KiB of a fresh server with so many standbys: what its workers alone hold, and how much
/// the kernel's share grew.
#[derive(Debug, Clone, Copy)]
struct Held {
    private: f64,
    kernel: f64,
}

fn held(bed: &mut Bed<'_>, way: Way, standbys: usize) -> Outcome<Held> {
    let serving = bed.open(way)?;
    let before = kernel_kib();
    let idle = fleet::start(fleet::plan(&serving, standbys, bed.primary.flush_lsn()))?;
    fleet::wait_streaming(&idle, standbys)?;
    for _ in 0..20 {
        bed.primary.sql("select pg_logical_emit_message(true, 'walhub', repeat('x', 200))");
    }
    // What was queued is received, and backends that served psql are gone.
    sleep(Duration::from_secs(1));
    let private = Memory::of(&serving.workers).private as f64 / 1024.0;
    let kernel = kernel_kib() - before;
    drop(fleet::stop(idle)?);
    bed.close(way);
    Ok(Held { private, kernel })
}

/// Slab, kernel stacks, page tables and the memory of TCP, of the whole machine and so
/// of both ends of every connection. Only differences mean anything.
fn kernel_kib() -> f64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&meminfo, &["Slab:", "KernelStack:", "PageTables:"]) + tcp_memory() as f64 / 1024.0
}

/// The sum of the lines `name: number kB` with these names.
fn kib(text: &str, names: &[&str]) -> f64 {
    let number = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| names.contains(name))?;
        words.next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed() {
        let text = "MemFree: 100 kB\nSlab:  4 kB\nSReclaimable: 7 kB\nPageTables:   16 kB\n";
        assert!((kib(text, &["Slab:", "PageTables:"]) - 20.0).abs() < 1e-9);
        assert!(kernel_kib() > 100.0);
    }
}
