//! What the good standbys notice of the bad ones.

use super::live::{EACH_P50, EACH_P99, LAST_P50, LAST_P99, Load, through};
use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::report::{Bound, Report};
use std::time::Duration;
use walhub::bench::standbys::{Behaviours, Slow, Stalled};

pub(super) const ROW: Row = Row {
    name: "stalled",
    what: "a twentieth stalled and a twentieth slow beside the good",
    measure,
};

/// What a slow one reads in a second; the load is ten times as much.
const SLOW: u64 = 160_000;

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let (good, bad) = run.options.sized((180, 10), (18, 1));
    let mut report = row.report(format!(
        "100 commits/s of 16 kB. Each server with {good} good standbys alone, and with {bad} that \
         do not read and {bad} that read {SLOW} B/s besides. Latencies are those of the good."
    ));
    let alone = Load::new(good, 100.0, 16_000);
    let behaviours = Behaviours {
        slow: Some(Slow { count: bad, bytes_per_second: SLOW }),
        stalled: Some(Stalled { count: bad, after: Duration::ZERO }),
        ..Behaviours::default()
    };
    let beside = Load { standbys: good + 2 * bad, behaviours, ..alone.clone() };
    let mut bed = run.bed(good + 2 * bad);
    let name = |way: Way, company: &str| format!("{}, {company}", way.name());
    let (by_themselves, among) = ("good alone", "good beside bad");
    for repeat in 0..run.options.repeats() {
        for way in [Way::Hub, Way::Direct] {
            for (company, load) in [(by_themselves, &alone), (among, &beside)] {
                run.say(format_args!("round {}: {}", repeat + 1, name(way, company)));
                let live = through(run, &mut bed, way, load)?;
                live.add_latencies(&mut report.samples, &name(way, company));
            }
        }
    }
    let mut ratio = |way: Way, measure: &str| {
        report.ratio(measure, &name(way, among), &name(way, by_themselves))
    };
    let hub = ratio(Way::Hub, EACH_P99);
    for measure in [EACH_P50, LAST_P50, LAST_P99] {
        ratio(Way::Hub, measure);
    }
    ratio(Way::Direct, EACH_P99);
    let what = "p99 of the good at walhub, beside bad / alone";
    report.goal(what, hub, Bound::AtMost(1.25), Bound::AtMost(1.1));
    Ok(report)
}
