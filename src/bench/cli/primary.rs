//! `walhub bench primary`.

use super::flags::PrimaryFlags;
use super::{plan, refuse};
use crate::bench::clock::Clock;
use crate::bench::commits::Commits;
use crate::bench::primary::{self, Primary, PrimaryPlan, PrimaryProgress};
use crate::bench::report::say;
use crate::bench::run::Interrupt;
use crate::bench::terminal::{Status, Verbosity, print};
use crate::bench::truth::Truth;
use crate::wal::{Lsn, SystemId};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) fn primary(flags: PrimaryFlags) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let wait_for = flags.wait_for;
    let verbosity = if flags.quiet { Verbosity::Quiet } else { Verbosity::Progress };
    let plan = match prepare(flags) {
        Ok(plan) => plan,
        Err(mistake) => return refuse(&mistake),
    };
    let (what, version) = (plan.load.to_string(), plan.server_version.major());
    let primary = match primary::start(plan) {
        Ok(primary) => primary,
        Err(error) => return refuse(&error),
    };
    let interrupt = Interrupt::catch()?;
    print(&format!(
        "A synthetic primary (PostgreSQL {version}) on {}; {what}; it begins with {}.\n",
        primary.address(),
        say::of(wait_for as u64, "receiver")
    ))?;
    let end = serve(primary, wait_for, &interrupt, Status::new(verbosity));
    let written = say::bytes(end.bytes);
    let commits = say::of(end.commits, "commit");
    print(&format!("{commits} in {written} of WAL, up to {}.\n", end.end))?;
    match end.fault {
        None => Ok(ExitCode::SUCCESS),
        Some(fault) => {
            writeln!(io::stderr(), "walhub bench: {fault}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn prepare(flags: PrimaryFlags) -> Result<PrimaryPlan, Box<dyn std::error::Error>> {
    let total = flags.total.as_deref().map(|text| plan::bytes("total", text)).transpose()?;
    let segment_size = plan::segment_size(&flags.wal_segment_size)?;
    let window = plan::bytes("window", &flags.window)?;
    let start = Lsn::new(segment_size.bytes());
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(|e| e.to_string())?;
    Ok(PrimaryPlan {
        listen: flags.listen,
        server_version: plan::version(flags.major)?,
        system_id: SystemId::new(u64::from_le_bytes(number)),
        segment_size,
        start,
        load: plan::load(&flags.load, total)?,
        window,
        write_wal: flags.write_wal,
        clock: Clock::start(),
        truth: Arc::new(Truth::new(start, window)),
        // Nothing is measured here.
        commits: Arc::new(Commits::new(1)),
    })
}

fn serve(
    primary: Primary,
    wait_for: usize,
    interrupt: &Interrupt,
    mut status: Status,
) -> PrimaryProgress {
    const LOOK: Duration = Duration::from_millis(100);
    const SHOW: u32 = 10;
    let (mut begun, mut shown, mut looks) = (None, 0u64, 0u32);
    while !interrupt.is_set() {
        let progress = primary.progress();
        let receivers = progress.receivers.len();
        if begun.is_none() && receivers >= wait_for {
            primary.begin();
            begun = Some(Instant::now());
        }
        let sent = progress.receivers.iter().all(|receiver| receiver.flush >= progress.end);
        if progress.fault.is_some() || (progress.finished && sent) {
            break;
        }
        if looks.is_multiple_of(SHOW) {
            let seconds = LOOK.as_secs_f64() * f64::from(SHOW);
            status.show(&format!(
                "{}  {}  {} of WAL, {}  {}",
                progress.end,
                say::of(receivers as u64, "receiver"),
                say::bytes(progress.bytes),
                say::rate(progress.bytes - shown, seconds),
                if progress.late > LOOK { "behind its schedule" } else { "" }
            ));
            shown = progress.bytes;
        }
        looks = looks.wrapping_add(1);
        interrupt.wait_until(Instant::now() + LOOK);
    }
    status.finish();
    let fault = primary.progress().fault;
    PrimaryProgress { fault, ..primary.stop() }
}
