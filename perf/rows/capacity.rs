//! How many standbys keep up.

use super::live::{EACH_P99, Live, Load, through};
use super::{Row, Run};
use crate::bed::Way;
use crate::fault::Outcome;
use crate::report::{Bound, Report};

pub(super) const ROW: Row =
    Row { name: "capacity", what: "how many standbys have a lag p99 of at most 250 ms", measure };

const STANDBYS: &str = "standbys that keep up";
const LIMIT_MS: f64 = 250.0;

/// Fleets to try, until one does not keep up.
const HUB: &[usize] = &[100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 10_000];
const DIRECT: &[usize] = &[50, 100, 200, 300, 400, 500, 750, 1000];

/// 20 commits a second that are watched, and 5 MB/s in commits of 62.5 kB beside them.
fn load(standbys: usize) -> Load {
    Load { beside: Some((80.0, 62_500)), ..Load::new(standbys, 20.0, 200) }
}

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mut report = row.report(format!(
        "20 commits/s of 200 bytes, and 5 MB/s in commits of 62.5 kB beside them. A fleet keeps \
         up when 99 of 100 receipts of the 20 come within {LIMIT_MS} ms of when the commit was \
         due, and none is missing. Fleets grow until one does not keep up. The standbys' own \
         thread, on one of the CPUs, is part of what gives out."
    ));
    for (way, fleets) in [(Way::Hub, HUB), (Way::Direct, DIRECT)] {
        let fleets = run.options.sized(fleets, &[10, 20]);
        let mut bed = run.bed(fleets.last().copied().unwrap_or(1));
        let mut first = 0;
        for repeat in 0..run.options.repeats() {
            let mut most = 0;
            for (place, &standbys) in fleets.iter().enumerate().skip(first) {
                run.say(format_args!("round {}: {} feeds {standbys}", repeat + 1, way.name()));
                let live = through(run, &mut bed, way, &load(standbys))?;
                let lag = live.each_ms(99.0);
                report.samples.add(&format!("{}, {standbys}", way.name()), EACH_P99, lag);
                if !keeps_up(&live) {
                    break;
                }
                most = standbys;
                // The next round begins two sizes before the end of this one.
                first = place.saturating_sub(1);
            }
            report.samples.add(way.name(), STANDBYS, most as f64);
        }
    }
    report.ratio(STANDBYS, Way::Hub.name(), Way::Direct.name());
    let (must, stretch) = (Bound::AtLeast(2000.0), Bound::AtLeast(10_000.0));
    report.target(Way::Hub.name(), STANDBYS, must, stretch);
    Ok(report)
}

fn keeps_up(live: &Live) -> bool {
    live.missing == 0 && live.each_ms(99.0) <= LIMIT_MS
}
