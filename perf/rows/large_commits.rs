//! Live commits whose bytes begin to count.

use super::live::{COMMIT_P50, CPU, CPU_GIB, LAST_P50, LAST_P99, Load, Subject, compare};
use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::report::{Bound, Report};

pub(super) const KIB_8: Row =
    Row { name: "live-8k", what: "8 KiB commits, 256 a second: CPU per GiB", measure: kib_8 };
pub(super) const KIB_64: Row =
    Row { name: "live-64k", what: "64 KiB commits, 128 a second: CPU per GiB", measure: kib_64 };

fn kib_8(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    measure(run, row, (256.0, 8 << 10), (Bound::AtMost(1.0), Bound::AtMost(0.8)))
}

fn kib_64(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    measure(run, row, (128.0, 64 << 10), (Bound::AtMost(0.25), Bound::AtMost(0.2)))
}

fn measure(
    run: &Run<'_>,
    row: &Row,
    (per_second, size): (f64, u64),
    (must, stretch): (Bound, Bound),
) -> Outcome<Report> {
    let standbys = run.options.sized(200, 20);
    // One session cannot commit so often when a commit takes 6 ms.
    let load = Load { sessions: 4, ..Load::new(standbys, per_second, size) };
    let mut report = row.report(format!(
        "{standbys} synthetic standbys, {per_second} commits/s of {size} bytes by an open \
         schedule over {} sessions, no replies. CPU as in live-commits.",
        load.sessions
    ));
    let [hub, direct, cascade] = [Way::Hub, Way::Direct, Way::Cascade].map(Subject::Fleet);
    let samples = compare(run, &load, &[hub, direct, cascade, Subject::Sends])?;
    report.samples.take(&samples, &[CPU_GIB, CPU, COMMIT_P50, LAST_P50, LAST_P99]);
    for other in [direct, cascade, Subject::Sends] {
        report.ratio(CPU_GIB, hub.name(), other.name());
    }
    report.target(hub.name(), CPU_GIB, must, stretch);
    Ok(report)
}
