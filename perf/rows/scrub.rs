//! What looking at old WAL again costs, while the hub runs and while it does not.

use super::{Row, Run};
use crate::bed::{newest_segment, segment_start, write_wal};
use crate::fault::{During, Fault, Outcome};
use crate::report::{Bound, Report};
use crate::support::hub::Hub;
use crate::support::programs::Programs;
use crate::support::wait;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use walhub::bench::measure::{CpuMeter, Servers};

pub(super) const ROW: Row = Row {
    name: "scrub",
    what: "reading complete segments again: verify, with and without digests, and the scrub",
    measure,
};

const RATE: &str = "MiB/s";
const CPU: &str = "CPU s/GiB";
const DIGESTS: &str = "walhub verify, walk and digests";
const WALK: &str = "walhub verify, walk alone";
const SCRUB: &str = "scrub by digests, in the running hub";
const WALDUMP: &str = "pg_waldump --quiet";
const SHA256SUM: &str = "sha256sum";
const SEGMENT: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(180);

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mib = run.options.sized(1024, 64);
    let mut report = row.report(format!(
        "{mib} MiB of complete segments of 16 MiB in a hub's directory. pg_waldump reads the same \
         files record by record and prints nothing; sha256sum reads them and knows no records. What \
         is read was written a moment ago: verify, pg_waldump and sha256sum find it in the page \
         cache, the scrub reads from the disk."
    ));
    let bed = run.bed(0);
    let start = segment_start(&bed.primary);
    let mut hub = Hub::new(run.scene, "scrubbed", &bed.primary.conninfo())
        .with_program(&run.walhub)
        .flag(&format!("--start-from={start}"))
        .flag("--wal-keep-size=16GB")
        .flag("--scrub-rate=16GB");
    hub.start();
    write_wal(&bed.primary, mib + 32);
    let first = segment_start(&bed.primary).raw() / SEGMENT - mib / (SEGMENT >> 20);
    wait::until("all segments are complete", || {
        newest_segment(&hub.pg_wal()).is_some_and(|newest| newest + 1 >= first + mib / 16)
    });
    // Digests come after the final names.
    wait::until("all segments have digests", || {
        let files = segments(&hub.pg_wal());
        files.iter().all(|file| digest_of(file).exists())
    });
    for repeat in 0..run.options.repeats() {
        run.say(format_args!("scrub, round {}", repeat + 1));
        let (span, cpu) = scrub(&hub)?;
        add(&mut report, SCRUB, &hub, (span, cpu));
        hub.stop();
        let files = segments(&hub.pg_wal());
        let digests = hub.pg_wal().join("digests");
        let aside = hub.directory().join("digests-aside");
        let verify = || {
            let mut command = Command::new(&run.walhub);
            command.arg("verify").arg(hub.directory());
            command
        };
        let spent = timed(&mut verify())?;
        add(&mut report, DIGESTS, &hub, spent);
        fs::rename(&digests, &aside).during("the digests go aside")?;
        let spent = timed(&mut verify())?;
        fs::rename(&aside, &digests).during("the digests come back")?;
        add(&mut report, WALK, &hub, spent);
        let Some(waldump) = Programs::usual().waldump() else {
            return Err(Fault::new("there is no pg_waldump"));
        };
        // Like the hub, whose files these are, as the user who measures.
        let mut waldump = Command::new(waldump.get_program());
        let (Some(first), Some(last)) = (files.first(), files.last()) else {
            return Err(Fault::new("there are no segments"));
        };
        let spent = timed(waldump.arg("--quiet").arg(first).arg(last))?;
        add(&mut report, WALDUMP, &hub, spent);
        let spent = timed(Command::new("sha256sum").args(&files))?;
        add(&mut report, SHA256SUM, &hub, spent);
        hub.start();
    }
    let to_waldump = report.ratio(CPU, WALK, WALDUMP);
    report.ratio(CPU, DIGESTS, WALDUMP);
    let to_sum = report.ratio(CPU, SCRUB, SHA256SUM);
    let (must, stretch) = (Bound::AtMost(1.0), Bound::AtMost(0.5));
    report.goal("CPU, walk alone / pg_waldump", to_waldump, must, stretch);
    let (must, stretch) = (Bound::AtMost(1.5), Bound::AtMost(1.1));
    report.goal("CPU, scrub / sha256sum", to_sum, must, stretch);
    Ok(report)
}

/// Complete segments, oldest first.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_segment = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == 24 && path.extension().is_none()
    };
    let mut files: Vec<_> = names.map(|entry| entry.path()).filter(is_segment).collect();
    files.sort();
    files
}

fn digest_of(segment: &Path) -> PathBuf {
    let name = segment.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    segment.with_file_name("digests").join(format!("{name}.digest"))
}

fn add(report: &mut Report, name: &str, hub: &Hub<'_>, (span, cpu): (Duration, Duration)) {
    let bytes = segments(&hub.pg_wal()).len() as u64 * SEGMENT;
    report.samples.add(name, RATE, bytes as f64 / f64::from(1 << 20) / span.as_secs_f64());
    report.samples.add(name, CPU, cpu.as_secs_f64() * f64::from(1 << 30) / bytes as f64);
}

/// One scrub, and what the hub spent meanwhile.
fn scrub(hub: &Hub<'_>) -> Outcome<(Duration, Duration)> {
    let status = || hub.told(&["status"])["status"]["scrub"].clone();
    let before = status()["last_ended"].clone();
    let (begun, mut meter) = (Instant::now(), CpuMeter::start(Servers::One(hub.pid())));
    hub.told(&["verify"]);
    let ended = wait::within(PATIENCE, "the scrub is over", || {
        let status = status();
        let is_over = status["segments_read"].is_null() && status["last_ended"] != before;
        is_over.then_some(status)
    });
    let spent = (begun.elapsed(), meter.used());
    match ended["damaged"].as_array().is_none_or(Vec::is_empty) {
        true => Ok(spent),
        false => Err(Fault::new(format!("the scrub finds damage: {ended}"))),
    }
}

/// How long a program takes, and its CPU time.
fn timed(command: &mut Command) -> Outcome<(Duration, Duration)> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn().during(&program)?;
    let mut meter = CpuMeter::start(Servers::One(child.id()));
    // Its account is there until it is waited for.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(&child)), ended).during(&program)?;
    let spent = (begun.elapsed(), meter.used());
    let status = child.wait().during(&program)?;
    match status.success() {
        true => Ok(spent),
        false => Err(Fault::new(format!("{program}: {status}"))),
    }
}
