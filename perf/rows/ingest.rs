//! Receiving, checking and syncing WAL as fast as a primary sends it.

use super::{Row, Run};
use crate::bed::{Bed, fresh_folder, newest_segment, segment_start, write_wal};
use crate::fault::{Fault, Outcome};
use crate::floor::{SyncFloor, write_and_sync};
use crate::report::{Bound, Report};
use crate::support::hub::Hub;
use crate::support::process::Process;
use crate::support::wait;
use rustix::process::Signal;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use walhub::bench::measure::{CpuMeter, Servers};
use walhub::wal::Lsn;

pub(super) const ROW: Row = Row {
    name: "ingest",
    what: "receive and fdatasync, steady, from a primary that has the WAL ready",
    measure,
};

const RATE: &str = "MiB/s";
const CPU: &str = "CPU s/GiB";
const HUB: &str = "walhub";
const RECEIVEWAL: &str = "pg_receivewal --synchronous";
const SEGMENT: u64 = 16 << 20;
/// Received before the clock starts, MiB; many times what the hub keeps.
const WARM_UP: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(180);

/// Bytes between two syncs of the bare loop. The hub syncs what came together while the
/// last sync was under way, so the fastest of these is its yardstick.
const BATCHES: [(usize, &str); 4] = [
    (64 << 10, "bare loop, fdatasync every 64 KiB"),
    (1 << 20, "bare loop, fdatasync every 1 MiB"),
    (4 << 20, "bare loop, fdatasync every 4 MiB"),
    (16 << 20, "bare loop, fdatasync every 16 MiB"),
];

fn measure(run: &mut Run<'_>, row: &Row) -> Outcome<Report> {
    let mib = run.options.sized(1024, 64);
    let mut report = row.report(format!(
        "{mib} MiB of WAL that a primary keeps, after {WARM_UP} MiB that bring the receiver to its \
         steady state, in which the hub writes into segments that it has recycled. Timed between \
         two segments bearing their final names (complete and synced). The bare loop writes as \
         much into files written before, by the same ring."
    ));
    let bed = run.bed(0);
    let start = segment_start(&bed.primary);
    for repeat in 0..run.options.repeats() {
        bed.primary
            .sql(&format!("select pg_create_physical_replication_slot('{}', true)", slot(repeat)));
    }
    write_wal(&bed.primary, WARM_UP + mib + 64);
    for repeat in 0..run.options.repeats() {
        run.say(format_args!("ingest, round {}", repeat + 1));
        for (batch, name) in BATCHES {
            run.scene.clear("floor");
            let folder = run.scene.folder("floor", None);
            let plan = SyncFloor { batch, total: mib << 20 };
            let span = write_and_sync(&folder, plan)?;
            report.samples.add(name, RATE, mib as f64 / span.as_secs_f64());
        }
        run.scene.clear("floor");
        let hub = hub(run, &bed, start, mib)?;
        hub.add(&mut report, HUB);
        receivewal(run, &bed, &slot(repeat), mib)?.add(&mut report, RECEIVEWAL);
    }
    let rate = |name: &str| report.samples.median(name, RATE);
    let names = BATCHES.map(|(_, name)| name);
    let fastest = names.into_iter().reduce(|a, b| if rate(a) >= rate(b) { a } else { b });
    let to_loop = report.ratio(RATE, HUB, fastest.unwrap_or_default());
    let to_receivewal = report.ratio(RATE, HUB, RECEIVEWAL);
    report.ratio(CPU, HUB, RECEIVEWAL);
    let (must, stretch) = (Bound::AtLeast(0.8), Bound::AtLeast(0.9));
    report.goal("walhub / fastest bare loop", to_loop, must, stretch);
    let (must, stretch) = (Bound::AtLeast(1.0), Bound::AtLeast(2.0));
    report.goal("walhub / pg_receivewal --synchronous", to_receivewal, must, stretch);
    Ok(report)
}

/// pg_receivewal begins where its slot does, and moves it.
fn slot(repeat: usize) -> String {
    format!("ingest_{repeat}")
}

/// What one receiver did.
struct Ingested {
    rate: f64,
    cpu: f64,
}

impl Ingested {
    fn add(&self, report: &mut Report, name: &str) {
        report.samples.add(name, RATE, self.rate);
        report.samples.add(name, CPU, self.cpu);
    }
}

fn hub(run: &Run<'_>, bed: &Bed<'_>, start: Lsn, mib: u64) -> Outcome<Ingested> {
    run.scene.clear("ingest");
    let mut hub = Hub::new(run.scene, "ingest", &bed.primary.conninfo())
        .with_program(&run.walhub)
        .flag(&format!("--start-from={start}"))
        .flag("--wal-keep-size=64MB");
    hub.launch();
    let ingested = watch(&hub.pg_wal(), hub.pid(), mib)?;
    hub.stop();
    Ok(ingested)
}

fn receivewal(run: &Run<'_>, bed: &Bed<'_>, slot: &str, mib: u64) -> Outcome<Ingested> {
    let folder = fresh_folder(run.scene, "receivewal", &bed.primary);
    let (_, out, err) = run.scene.log("receivewal");
    let mut command = bed.primary.programs.client("pg_receivewal");
    command.args(["--synchronous", "--no-loop", "-d", &bed.primary.conninfo()]);
    command.args(["-S", slot, "-D"]).arg(&folder).stdout(out).stderr(err);
    let mut receiver = Process::start(&mut command);
    let ingested = watch(&folder, receiver.child().id(), mib);
    receiver.signal(Signal::INT);
    receiver.wait_end(wait::PATIENCE, "pg_receivewal ends");
    run.scene.clear("receivewal");
    ingested
}

/// Watches final names appear: first the warm-up, then `mib` with the clock running.
fn watch(folder: &Path, pid: u32, mib: u64) -> Outcome<Ingested> {
    let deadline = Instant::now() + PATIENCE;
    let mut oldest = None;
    let mut first: Option<(u64, Instant, CpuMeter)> = None;
    loop {
        if Instant::now() > deadline {
            return Err(Fault::new(format!("not within {PATIENCE:?}: {mib} MiB received")));
        }
        let newest = newest_segment(folder);
        match (&mut first, newest) {
            (None, Some(number))
                if (number - *oldest.get_or_insert(number)) * SEGMENT >= WARM_UP << 20 =>
            {
                let meter = CpuMeter::start(Servers::One(pid));
                first = Some((number, Instant::now(), meter));
            }
            (Some((from, begun, meter)), Some(to)) if (to - *from) * SEGMENT >= mib << 20 => {
                let (span, cpu) = (begun.elapsed(), meter.used());
                let gib = ((to - *from) * SEGMENT) as f64 / (1u64 << 30) as f64;
                let rate = gib * 1024.0 / span.as_secs_f64();
                return Ok(Ingested { rate, cpu: cpu.as_secs_f64() / gib });
            }
            _ => sleep(Duration::from_millis(1)),
        }
    }
}
