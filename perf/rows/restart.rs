//! From the start of the process to the first byte of WAL at a standby, with a
//! directory full of segments.

use super::{Row, Run};
use crate::bed::{Bed, Making, Serving, Way, segment_number, segment_start, write_wal};
use crate::fault::{During, Fault, Outcome};
use crate::fleet;
use crate::report::{Bound, Report};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};
use walhub::bench::standbys::{Identity, identify};
use walhub::wal::Lsn;

pub(super) const ROW: Row = Row {
    name: "restart",
    what: "start of the process to the first byte of WAL at a standby",
    measure,
};

const SEGMENT: u64 = 16 << 20;
const TIME: &str = "ms";
const PATIENCE: Duration = Duration::from_secs(60);
/// The WAL begins far enough from 0 for all the segments before it.
const FIRST_SEGMENT: &str = "000000010000012C00000001";

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let segments: u64 = run.options.sized(65_536, 2_048);
    let mut report = row.report(format!(
        "A hub's directory with {segments} segments, all but the newest sparse files. Timed from \
         before the process is started; a standby asks again and again from then on and wants \
         the open segment from its beginning."
    ));
    let mut bed = Bed::new(&Making { first_segment: Some(FIRST_SEGMENT), ..run.making(0) });
    bed.hub.set_flag("--wal-keep-size=2TB");
    bed.open(Way::Hub)?;
    write_wal(&bed.primary, 40);
    bed.close(Way::Hub);
    let serving = bed.open(Way::Hub)?;
    let identity = identify(std::slice::from_ref(&serving.target)).during("who is there")?;
    bed.close(Way::Hub);
    let start = segment_start(&bed.primary);
    bed.primary.sql("select pg_logical_emit_message(true, 'walhub', repeat('x', 10000))");
    let full = format!("{segments} segments");
    for name in ["3 segments", &full] {
        if name == full {
            fill(&bed.hub.pg_wal(), segments)?;
        }
        for _ in 0..run.options.repeats() {
            let begun = Instant::now();
            bed.hub.launch();
            first_byte(&serving, &identity, start)?;
            let took = begun.elapsed();
            report.samples.add(name, TIME, took.as_secs_f64() * 1e3);
            bed.hub.stop();
        }
    }
    report.target(&full, TIME, Bound::AtMost(1000.0), Bound::AtMost(200.0));
    Ok(report)
}

/// Adds older segments until there are so many.
fn fill(folder: &Path, segments: u64) -> Outcome {
    let names = fs::read_dir(folder).during(folder.display())?;
    let oldest = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .min()
        .ok_or_else(|| Fault::new("the hub has no segment"))?;
    let number = segment_number(&oldest)
        .ok_or_else(|| Fault::new(format!("{oldest} is no segment's name")))?;
    for older in number.saturating_sub(segments)..number {
        let path = folder.join(format!("00000001{:08X}{:08X}", older >> 8, older & 0xff));
        let file = File::create(&path).during(path.display())?;
        file.set_len(SEGMENT).during(path.display())?;
    }
    Ok(())
}

/// Waits until a standby that wants the WAL from `start` on has received some.
fn first_byte(serving: &Serving, identity: &Identity, start: Lsn) -> Outcome {
    let mut plan = fleet::plan(serving, 1, start);
    plan.identity = Some(identity.clone());
    // It asks as often as it can: the answer is what is timed.
    plan.retry = Duration::from_millis(1);
    let standby = fleet::start(plan)?;
    fleet::wait(&standby, PATIENCE, "waiting for the first byte", |seen| seen.bytes > 0)?;
    fleet::stop(standby).map(drop)
}
