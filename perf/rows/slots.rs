//! Slots that move: what saving their positions does to commits that wait for the hub.

use super::live::{COMMIT_P50, COMMIT_P99, LAST_P50, Load, measure as live};
use super::{Row, Run};
use crate::bed::{Bed, HUB, Making, Serving, Way};
use crate::fault::Outcome;
use crate::fleet;
use crate::report::{Bound, Report};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};
use walhub::bench::standbys::{Replies, StandbySlots};

pub(super) const ROW: Row = Row {
    name: "slots",
    what: "commits that wait for the hub while hundreds of slots stand still or move",
    measure,
};

/// From the start of the fleet until each has its slot and streams.
const CREATED: &str = "all slots created, s";
const PREFIX: &str = "slot_";
/// How often each standby reports, and so moves its slot.
const REPORTS: Duration = Duration::from_secs(1);
/// The slots of a fleet that has left are written once more.
const RESTS: Duration = Duration::from_secs(3);
/// WAL beside the measured commits, so that slots get from segment to segment.
const BESIDE: (f64, u64) = (48.0, 64 << 10);

/// What the slots do under the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Motion {
    /// Nobody uses them.
    Standing,
    /// Each is used by one of the standbys.
    Moving,
}

impl Motion {
    const fn name(self) -> &'static str {
        match self {
            Self::Standing => "slots that stand still",
            Self::Moving => "slots that move",
        }
    }

    fn load(self, standbys: usize) -> Load {
        let slots = match self {
            Self::Standing => StandbySlots::None,
            Self::Moving => StandbySlots::Existing(PREFIX.to_owned()),
        };
        let replies = Replies::Interval(REPORTS);
        Load { replies, slots, beside: Some(BESIDE), ..Load::new(standbys, 100.0, 200) }
    }
}

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let standbys = run.options.sized(500, 20);
    let mut report = row.report(format!(
        "walhub is the primary's synchronous standby. {standbys} synthetic standbys report every \
         {} s; the hub has as many slots. They stand still while the standbys use none, and move \
         while each standby uses one: the standbys, what they report and what is committed are \
         the same. 100 commits/s of 200 bytes are measured, beside {} commits/s of {} KiB.",
        REPORTS.as_secs(),
        BESIDE.0,
        BESIDE.1 >> 10,
    ));
    let mut programs = vec![("walhub", run.walhub.clone())];
    if let Some(old) = &run.options.old {
        programs.insert(0, ("--old", old.clone()));
    }
    for segment_mib in [16, 1] {
        for (program, path) in &programs {
            let subject = format!("{program}, {segment_mib} MiB segments");
            segments(run, &mut report, &subject, (segment_mib, path, standbys))?;
        }
    }
    Ok(report)
}

/// One hub with one size of segments, with its slots at rest and in motion by turns.
fn segments(
    run: &Run<'_>,
    report: &mut Report,
    subject: &str,
    (segment_mib, program, standbys): (u64, &PathBuf, usize),
) -> Outcome {
    let making = run.making(standbys);
    let mut bed = Bed::new(&Making { segment_mib, walhub: program.clone(), ..making });
    let serving = bed.open(Way::Hub)?;
    let name = |motion: Motion| format!("{subject}, {}", motion.name());
    let created = create(&bed, &serving, standbys)?;
    report.samples.add(&name(Motion::Moving), CREATED, created.as_secs_f64());
    wait_for(&bed, HUB);
    for repeat in 0..run.options.repeats() {
        for motion in [Motion::Standing, Motion::Moving] {
            let name = name(motion);
            run.say(format_args!("slots, round {}: {name}", repeat + 1));
            sleep(RESTS);
            let live = live(run, &bed, &serving, &motion.load(standbys))?;
            live.add_latencies(&mut report.samples, &name);
        }
    }
    wait_for(&bed, "");
    bed.close(Way::Hub);
    let (moving, standing) = (name(Motion::Moving), name(Motion::Standing));
    for measure in [COMMIT_P50, COMMIT_P99] {
        let ratio = report.ratio(measure, &moving, &standing);
        let what = format!("{subject}, {measure}, slots that move / stand still");
        report.goal(&what, ratio, Bound::AtMost(1.2), Bound::AtMost(1.05));
    }
    report.ratio(LAST_P50, &moving, &standing);
    Ok(())
}

/// A fleet makes its slots, all at once, and leaves.
fn create(bed: &Bed<'_>, serving: &Serving, standbys: usize) -> Outcome<Duration> {
    let mut plan = fleet::plan(serving, standbys, bed.primary.flush_lsn());
    plan.slots = StandbySlots::Created(PREFIX.to_owned());
    let begun = Instant::now();
    let standbys_alive = fleet::start(plan)?;
    fleet::wait_streaming(&standbys_alive, standbys)?;
    let took = begun.elapsed();
    fleet::stop(standbys_alive)?;
    Ok(took)
}

/// From now on commits wait for this standby, or for none.
fn wait_for(bed: &Bed<'_>, name: &str) {
    bed.primary.sql(&format!("alter system set synchronous_standby_names = '{name}'"));
    bed.primary.sql("select pg_reload_conf()");
}
