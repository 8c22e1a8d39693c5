//! `walhub bench standbys`: a run of a fleet alone.

use super::flags::StandbysFlags;
use super::{outcome, plan, refuse, typed};
use crate::bench::profile::{Figures, Load, Profile};
use crate::bench::run::{Interrupt, RunPlan, ServerPlan, Work, run};
use crate::bench::terminal::Progress;
use std::process::ExitCode;
use std::time::Duration;

/// A century: the run lasts until Ctrl-C.
const FOR_EVER: Duration = Duration::from_secs(3_155_760_000);

pub(super) fn standbys(flags: StandbysFlags) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let output = flags.output.clone();
    let plan = match prepare(flags) {
        Ok(plan) => plan,
        Err(mistake) => return refuse(&mistake),
    };
    let interrupt = Interrupt::catch()?;
    let mut progress = Progress::new(output.verbosity());
    let result = run(plan, &interrupt, &mut progress);
    progress.finish();
    match result {
        Ok(report) => outcome::hand_out(&report, &output),
        Err(fault) => refuse(&fault),
    }
}

fn prepare(flags: StandbysFlags) -> Result<RunPlan, Box<dyn std::error::Error>> {
    let duration =
        flags.duration.as_deref().map(|text| plan::time("duration", text)).transpose()?;
    let target = Box::new(plan::conninfo("target", &flags.target)?);
    Ok(RunPlan {
        server: ServerPlan::Target { target, text: flags.target, commits: None, servers: None },
        // The load is not used: the target's own clients write.
        load: Load::new(Profile::Custom, &Figures::default())?,
        fleet: plan::fleet(&flags.fleet, Profile::Custom.standbys(), flags.seed)?,
        work: Work::Live { warm_up: Duration::ZERO, duration: duration.unwrap_or(FOR_EVER) },
        window: Some(plan::bytes("window", &flags.window)?),
        arguments: typed(),
    })
}
