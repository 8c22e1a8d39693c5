//! Three rows of one comparison: commits of 200 bytes, 100 a second, 200 standbys.

use super::live::{
    COMMIT_P50, COMMIT_P99, CPU, CPU_GIB, EACH_P50, EACH_P99, LAST_P50, LAST_P99, Load, Subject,
    compare,
};
use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::report::{Bound, Report, Samples};
use walhub::bench::standbys::Replies;

pub(super) const COST: Row =
    Row { name: "live-commits", what: "200-byte commits: CPU per delivery", measure: cost };
pub(super) const REPLIES: Row = Row {
    name: "live-replies",
    what: "200-byte commits, two replies per batch: CPU per delivery",
    measure: replies,
};
pub(super) const COMMIT: Row = Row {
    name: "commit-latency",
    what: "200-byte commits: what a fleet does to the primary's commits",
    measure: commit,
};
pub(super) const LAST: Row =
    Row { name: "last-standby", what: "200-byte commits: when the last one has it", measure: last };

const HUB: Subject = Subject::Fleet(Way::Hub);
const DIRECT: Subject = Subject::Fleet(Way::Direct);
const CASCADE: Subject = Subject::Fleet(Way::Cascade);

fn load(run: &Run<'_>) -> Load {
    Load::new(run.options.sized(200, 20), 100.0, 200)
}

fn how(load: &Load) -> String {
    format!(
        "{} synthetic standbys, {} commits/s of {} bytes by an open schedule. CPU is that of the \
         hub's whole process, of the primary's walsenders, of the cascading standby's walsenders \
         and walreceiver; delivery: one commit to one standby. Latencies begin when a commit \
         was due.",
        load.standbys, load.per_second, load.size
    )
}

/// Measured once in a run, whichever rows want it.
fn shared<'r>(run: &'r mut Run<'_>) -> Outcome<&'r Samples> {
    if run.small_commits.is_none() {
        let subjects = [HUB, DIRECT, CASCADE, Subject::One, Subject::Nobody, Subject::Sends];
        run.small_commits = Some(compare(run, &load(run), &subjects)?);
    }
    Ok(run.small_commits.get_or_insert_default())
}

fn cost(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mut report = row.report(format!("{} Standbys report every 10 s.", how(&load(run))));
    report.samples.take(shared(run)?, &[CPU, CPU_GIB]);
    cost_ratios(&mut report);
    report.ratio(CPU, HUB.name(), Subject::Sends.name());
    let stretch = 1.1 * report.samples.median(Subject::Sends.name(), CPU);
    report.target(HUB.name(), CPU, Bound::AtMost(7.0), Bound::AtMost(stretch));
    Ok(report)
}

fn replies(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let load = Load { replies: Replies::Flush, ..load(run) };
    let mut report =
        row.report(format!("{} Standbys report twice for whatever came together.", how(&load)));
    let samples = compare(run, &load, &[HUB, DIRECT, CASCADE])?;
    report.samples.take(&samples, &[CPU, COMMIT_P50, LAST_P50, LAST_P99]);
    cost_ratios(&mut report);
    report.target(HUB.name(), CPU, Bound::AtMost(16.0), Bound::AtMost(12.0));
    Ok(report)
}

fn cost_ratios(report: &mut Report) {
    report.ratio(CPU, HUB.name(), DIRECT.name());
    report.ratio(CPU, HUB.name(), CASCADE.name());
}

fn commit(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mut report = row.report(how(&load(run)));
    report.samples.take(shared(run)?, &[COMMIT_P50, COMMIT_P99]);
    let one = Subject::One.name();
    let ratio = report.ratio(COMMIT_P50, HUB.name(), one);
    for subject in [DIRECT, CASCADE, Subject::Nobody] {
        report.ratio(COMMIT_P50, subject.name(), one);
    }
    let (must, stretch) = (Bound::AtMost(1.1), Bound::AtMost(1.02));
    report.goal("commit p50, fleet behind walhub / one direct standby", ratio, must, stretch);
    Ok(report)
}

fn last(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mut report = row.report(how(&load(run)));
    report.samples.take(shared(run)?, &[EACH_P50, EACH_P99, LAST_P50, LAST_P99]);
    let ratio = report.ratio(LAST_P50, HUB.name(), DIRECT.name());
    report.ratio(LAST_P50, HUB.name(), CASCADE.name());
    report.ratio(LAST_P99, HUB.name(), DIRECT.name());
    report.ratio(LAST_P99, HUB.name(), CASCADE.name());
    let (must, stretch) = (Bound::AtMost(0.5), Bound::AtMost(0.35));
    report.goal("last standby p50, walhub / direct walsenders", ratio, must, stretch);
    Ok(report)
}
